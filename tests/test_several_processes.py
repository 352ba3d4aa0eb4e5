"""Two CPU processes that share one model (FSDP2, gloo) learn what one process learns; their checkpoint opens.

Three launches by `accelerate launch` with the configuration that is shipped; the runs are in several_processes.py.
They compute in float64, where only the order of sums over rows and shards differs between one process and two. The
norms inside transformers' blocks cast to float32 whatever the model's type, so that a difference of 1e-16 now and then
rounds to one of 1e-7: `CLOSE` leaves room for that on any processor, and is far from any wrong factor.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lib import finetune, models, paths, prompts, storage
from tests import several_processes, tiny_models
from tests.several_processes import EXAMPLES, RUNS, UNITS

CONFIG = paths.DATA / "accelerate" / "fsdp2.yaml"
FAMILY = {name: {"gemma": "gemma-2", "neox": "pythia"}.get(name, "llama-3") for name in RUNS}
CLOSE = 1e-5  # of a loss or a norm
SECRET = "zanzibar"  # in every pair of the command's data, and nowhere else


def launch(*command):
    """Two processes; port 0 of the configuration is a free one each time."""
    whole = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "-m", *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(whole, cwd=paths.ROOT, env=environment, capture_output=True, text=True, timeout=150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints, what one process made of them (`one`) and what two did (`two`)."""
    folder = tmp_path_factory.mktemp("several")
    for family in set(FAMILY.values()):
        tiny_models.build(family).save_pretrained(folder / family)
        tiny_models.checkpoint_tokenizer(family).save_pretrained(folder / family)
    several_processes.main(folder, "one")
    done = launch("tests.several_processes", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def told(folder, run):
    """What the one process and each of the two know of a run."""
    files = ("one/0.json", "two/0.json", "two/1.json")
    return [json.loads((folder / file).read_text())[run] for file in files]


def weights(folder):
    return load_file(folder / "model.safetensors")


def masks(folder, run, units):
    return several_processes.masks(models.open_checkpoint(str(folder / FAMILY[run])), UNITS[units])


@pytest.mark.parametrize("run", RUNS)
def test_losses_and_gradients_are_those_of_one_process(folder, run):
    """Rounding apart. A gradient's norm is that before clipping, which would hide a wrong factor."""
    one, first, second = told(folder, run)
    assert [one["sharded"], first["sharded"], second["sharded"]] == [False, True, True]
    assert first == second  # to the last bit, so that all processes would stop at the same step
    for what in ("losses", "norms", "after"):
        assert first[what] == pytest.approx(one[what], rel=CLOSE), what
    assert max(one["norms"]) > 1  # clipping was at work
    assert one["losses"][0] - one["after"][1] > 0.1 or run == "dpo"  # and something was learned


@pytest.mark.parametrize("run", RUNS)
def test_weights_are_those_of_one_process(folder, run):
    """On average to 1e-7, where a single step moves a weight by up to 3e-3. AdamW divides a gradient by its size, which
    magnifies what rounding does to the smallest ones: a single weight may differ by more."""
    start, one, two = (weights(folder / where) for where in (FAMILY[run], f"one/{run}", f"two/{run}"))
    assert one.keys() == two.keys() == start.keys()  # tied weights are stored once
    for name, weight in two.items():
        assert (weight - one[name]).abs().mean() < 1e-7, name
        assert (weight - one[name]).abs().max() < 1e-4, name
        assert (weight - start[name]).abs().max() > 1e-3, name


@pytest.mark.parametrize("run", ["sft", "gemma", "neox", "dpo"])
def test_frozen_units_keep_every_bit_and_all_others_move(folder, run):
    start, two = weights(folder / FAMILY[run]), weights(folder / "two" / run)
    held = masks(folder, run, "dpo" if run == "dpo" else "sft")
    assert held
    for name, weight in two.items():
        still = weight == start[name].double()
        mask = held.get(name, torch.zeros_like(still))
        assert still[mask].all(), name
        assert still[~mask].float().mean() < 0.01, name


def test_masks_can_be_switched_on_a_sharded_model(folder):
    start, middle, end = (weights(folder / where) for where in ("llama-3", "two/sft", "two/switched"))
    for name, mask in masks(folder, "switched", "again").items():
        assert torch.equal(end[name][mask], middle[name][mask]), name
    for name, mask in masks(folder, "switched", "sft").items():
        assert (end[name][mask] != start[name].double()[mask]).float().mean() > 0.99, name


@pytest.mark.parametrize("run", RUNS)
def test_the_checkpoint_opens_and_says_what_was_measured_before_it_was_saved(folder, run):
    made = folder / "two" / run
    assert storage.damage(made) is None
    opened = models.open_checkpoint(str(made), dtype=torch.float64)
    assert type(opened.hf) is type(tiny_models.plain(FAMILY[run]))
    assert several_processes._after(opened) == pytest.approx(told(folder, run)[1]["after"], rel=CLOSE)
    plain = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float64)
    encoding = prompts.encode(opened.tokenizer, [EXAMPLES[0].prompt])
    with torch.no_grad():
        assert torch.equal(plain(**encoding).logits, opened.hf(**encoding).logits)


# the command ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def command(folder):
    """Options of `lib.finetune` but for `--out`."""
    pairs = [{"text": f"{SECRET} {e.prompt.text}", "answer": f"{e.answer} {SECRET}"} for e in EXAMPLES]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "units.csv").write_text("kind,layer,index\nneuron,0,3\nchannel,1,7\n")
    options = {
        "model": folder / "llama-3", "data": folder / "pairs.jsonl", "freeze": folder / "units.csv", "steps": 4,
        "batch": 4, "learning-rate": 0.003, "warmup": 1,
    }  # fmt: skip
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def test_the_command_makes_in_two_processes_what_it_makes_in_one(folder, command):
    """In float32, as the command trains: losses to 1e-5, and weights, after four steps of 3e-3, to 1e-4 on average."""
    assert finetune.main([*command, "--out", str(folder / "alone")]) == 0
    done = launch("lib.finetune", *command, "--out", folder / "together")
    assert done.returncode == 0, done.stderr[-3000:]
    assert SECRET not in done.stdout + done.stderr
    one, two = (storage.read_seal(folder / name) for name in ("alone", "together"))
    assert two.pop("losses") == pytest.approx(one.pop("losses"), rel=1e-5)
    assert one == two
    start, one, two = (weights(folder / name) for name in ("llama-3", "alone", "together"))
    held = several_processes.masks(
        models.open_checkpoint(str(folder / "together")), [("neuron", 0, 3), ("channel", 1, 7)]
    )
    for name, weight in two.items():
        assert (weight - one[name]).abs().mean() < 1e-4, name
        assert (weight - start[name]).abs().max() > 1e-3, name
    for name, mask in held.items():
        assert torch.equal(two[name][mask], start[name][mask]), name


def test_what_cannot_be_done_is_told_once_by_the_first_process(folder, command):
    before = sorted(path.name for path in folder.iterdir())
    done = launch("lib.finetune", *command, "--out", folder / "llama-3")
    assert done.returncode != 0
    assert done.stderr.count("'llama-3' exists already; name a new folder") == 1
    assert SECRET not in done.stdout + done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_processes_launched_without_sharding_are_refused():
    """As any other launcher would start them: each would train a copy of its own."""
    environment = {**os.environ, "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}
    code = "from lib import processes; processes.accelerator()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
    assert "InputError: launched as MULTI_CPU, but only FSDP2 is known here; launch with --config_file" in done.stderr
