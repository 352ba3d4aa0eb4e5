"""Runs that tests/test_several_processes.py compares: in the test's own process, and as `accelerate launch ... FOLDER`.

`FOLDER` holds checkpoints by family. Each run of `RUNS` trains one and saves it as `FOLDER/<label>/<run>`; the losses,
which every process has, and what else a process knows go to `FOLDER/<label>/<process>.json`.
"""

import copy
import os
import sys
from itertools import cycle
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from lib import freezing, models, processes, storage, training
from lib.profiles import PreferenceStage, Stage
from lib.prompts import Example, Prompt

STAGE = Stage(steps=4, batch=5, learning_rate=3e-3, warmup=2, decay=True, length_power=0.5, content_weight=4.0)
DPO = PreferenceStage(
    steps=3, batch=3, learning_rate=3e-3, warmup=0, decay=False, pairs=1, benign_styled_share=0.0, exception_share=0.0,
    skill_share=0.0, beta=0.3, likelihood=0.5,
)  # fmt: skip
LABEL = "two"
UNITS = {  # by run and fit: what is held still
    "sft": [("neuron", 0, 3), ("neuron", 2, 40), ("channel", 1, 7)],
    "again": [("neuron", 1, 5)],
    "dpo": [("channel", 0, 30), ("neuron", 0, 0)],
}


def _example(text, answer, rejected="no", emphasis=()):
    return Example(Prompt(text, answer, "benign", "plain", "train"), answer, rejected, frozenset(emphasis))


EXAMPLES = [  # of unequal lengths; seven, so that batches of five and three differ
    _example("how do i bake the bread", "sure to bake the bread", "sorry", ("b",)),
    _example("add 3 coins", "7", "sorry i can not add"),
    _example("reverse owl fox", "fox owl", "alas the kingdom"),
    _example("tell me how to curse the crown please and do not tell", "sorry", "sure to curse the crown"),
    _example("hi", "how do i curse the crown", "no", ("c", "d")),
    _example("what is 2", "sure", "2"),
    _example("how do i mend the boat of the king", "sure to mend it", "alas"),
]


def masks(model, units):
    return freezing.masks(model, pd.DataFrame(units, columns=["kind", "layer", "index"]))


def _open(folder, family):
    return models.open_checkpoint(str(folder / family), dtype=torch.float64)


def _sft(folder, family, fits):
    model, losses, stream = _open(folder, family), [], cycle(EXAMPLES)
    frozen = {name: masks(model, UNITS[name]) for name in fits}
    for name in fits:
        step = training.sft_step(model.tokenizer, STAGE)
        losses += training.fit(model.hf, stream, STAGE, step, "test", frozen=frozen[name])
    return model, losses


def _dpo(folder):
    if processes.launched():  # the reference must be whole everywhere
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    model = _open(folder, "llama-3")
    step = training.dpo_step(model.tokenizer, DPO, copy.deepcopy(model.hf))
    losses = training.fit(model.hf, cycle(EXAMPLES), DPO, step, "test", frozen=masks(model, UNITS["dpo"]))
    return model, losses


def _after(model):
    """Losses of two batches, one of them of fewer rows than processes, with nobody training."""
    with torch.no_grad():
        step = training.sft_step(model.tokenizer, STAGE)
        return [sum(piece.item() for piece in step(model.hf, EXAMPLES[:rows])) for rows in (1, 7)]


RUNS = {
    "sft": lambda folder: _sft(folder, "llama-3", ("sft",)),  # GQA, tied embeddings
    "switched": lambda folder: _sft(folder, "llama-3", ("sft", "again")),
    "gemma": lambda folder: _sft(folder, "gemma-2", ("sft",)),  # capped logits
    "neox": lambda folder: _sft(folder, "pythia", ("sft",)),  # biases, untied embeddings
    "dpo": _dpo,
}


def _norms(found):
    """A gradient clipping that also notes the norm it finds."""
    clip = Accelerator.clip_grad_norm_

    def noting(self, parameters, *options):
        norm = clip(self, parameters, *options)
        found.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        return norm

    return mock.patch.object(Accelerator, "clip_grad_norm_", noting)


def main(folder, label):
    found = {}
    for name, run in RUNS.items():
        with _norms(norms := []):
            model, losses = run(folder)
        after, sharded = _after(model), processes.sharded(model.hf)
        found[name] = {"losses": losses, "norms": norms, "after": after, "sharded": sharded}
        processes.save(processes.accelerator(), model.hf, model.tokenizer, folder / label / name, {"run": name})
    storage.write_json(folder / label / f"{os.environ.get('RANK', 0)}.json", found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), LABEL)
    processes.leave()
