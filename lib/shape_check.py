"""What the analyses cost on a model of a real checkpoint's shape: `python -m lib.shape_check --size 8b --device cuda`.

Owns the steps and the timing; the models and how much is run on them are in `shapes`. Each step is timed against a
plain forward pass (or forward and backward) of the same tokens, in the same batches, by the same weights in modules
that nnsight never touched; the two alternate in one process. A share of 0.9 means 0.9 times as many tokens a second as
the plain pass. Weights are random: no number here says anything about what a model does.

Memory of `--size 8b` in bfloat16, against the 80 GB of one H100; the whole run takes a few minutes there:

    weights                                      16.1 GB
    reading every block, 64 prompts              + 3 GB: a block's MLP and one vector a prompt and block
    unit scores, 8 sequences of 512              + 6 GB: values of every unit of a batch, and float64 of one block's
    SNIP, a sequence at a time                   + 38 GB: float32 sums and bfloat16 gradients of 6.3 billion weights
    relevance of 8 prompts                       + 30 GB: what 32 blocks keep for the backward pass, rules included
    fine-tuning 1b, after the 8b model is gone   20 GB: weights, gradients, two moments, and the plain pass's gradients
"""

import argparse
import gc
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import (
    activation_store,
    batches,
    freezing,
    paths,
    prompts,
    relevance,
    residual,
    residual_streams,
    shapes,
    storage,
    training,
    unit_scores,
)
from lib.errors import InputError, unknown
from lib.models import LanguageModel
from lib.profiles import Stage
from lib.shapes import Plan

Row = dict[str, Any]
_COMMAND = "python -m lib.shape_check"
_FROZEN = 10  # one unit in so many is held still


# timing ---------------------------------------------------------------------------------------------------------------
@dataclass
class Bench:
    """The device, what is to be run on it, and the rows found so far."""

    device: torch.device
    plan: Plan
    rows: list[Row] = field(default_factory=list)

    def add(self, name: str, values: Sequence[float], unit: str, goal: str | None = None) -> None:
        """Median and spread (smallest, largest) of repeated measurements; `goal` such as ">= 0.9"."""
        middle, low, high = (float(f"{x:.4g}") for x in (statistics.median(values), min(values), max(values)))
        self.rows.append(
            {"name": name, "value": middle, "unit": unit, "goal": goal, "n": len(values), "spread": [low, high]}
        )

    def share(self, name: str, plain: Sequence[float], ours: Sequence[float], goal: str | None = None) -> None:
        """Tokens a second as a share of the plain pass's, from seconds for the same tokens, pair by pair."""
        self.add(name, [p / o for p, o in zip(plain, ours, strict=True)], "of plain", goal)

    def seconds(self, action: Callable[[], object]) -> float:
        """Wall-clock time until the device is done."""
        self.wait()
        start = time.perf_counter()
        action()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def alternating(self, *actions: Callable[[], object]) -> list[list[float]]:
        """Seconds of each action, round by round, after a round that is not counted."""
        found = [[self.seconds(action) for action in actions] for _ in range(self.plan.rounds + 1)]
        return [list(times) for times in zip(*found[1:], strict=True)]

    def peak(self, step: str) -> None:
        """The most memory that a step had in use, the weights included; on a GPU only, where it can be told apart."""
        if self.device.type == "cuda":
            self.add(f"peak memory: {step}", [torch.cuda.max_memory_allocated(self.device) / 1e9], "GB")
            torch.cuda.reset_peak_memory_stats(self.device)


# the steps ------------------------------------------------------------------------------------------------------------
def reading(bench: Bench, model: LanguageModel, plain: Any) -> None:
    """Every block's residual stream at the last token: in memory, in a store on disk, and the spaces of a shift."""
    plan = bench.plan
    asked = [example.prompt for example in shapes.examples(model, shapes.lengths(plan, plan.prompts), seed=1)]
    ids = prompts.prompt_ids(model.tokenizer, asked)
    order = prompts.by_length([len(row) for row in ids], plan.batch)
    places = model.traced.every("resid")
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before", Path(folder) / "after"
        passed, kept, stored = bench.alternating(
            lambda: _forward(plain, ids, order),
            lambda: residual.activations(model, asked, plan.batch),
            lambda: activation_store.write(before, model, asked, places, batch=plan.batch),
        )
        tokens = sum(len(row) for row in ids)
        bench.add("plain forward of the prompts", [tokens / seconds for seconds in passed], "tokens/s")
        what = f"every block at the last token of {len(asked)} prompts"
        bench.share(f"{what}, in memory", passed, kept, ">= 0.9")
        bench.share(f"{what}, to a store on disk", passed, stored, ">= 0.9")
        bench.peak("reading every block")
        with torch.no_grad():
            for weight in model.hf.base_model.layers.parameters():
                weight.mul_(1.01)  # a model that another training might have left: every block moves
        activation_store.write(after, model, asked, places, batch=plan.batch)
        stores = activation_store.load(before), activation_store.load(after)
        found = residual_streams.spaces(*stores, centred=False)
        times = [bench.seconds(lambda: next(found)) for _ in stores[0].places]
        name = f"residual space of {len(asked)} x {model.width} from two stores, one block"
        bench.add(name, times, "s", "<= 0.1")


def _forward(plain: Any, ids: Sequence[Sequence[int]], order: Sequence[Sequence[int]]) -> None:
    """All blocks and the final norm, without the head: what is read needs no more."""
    with torch.inference_mode():
        for rows in order:
            plain.base_model(**_padded(plain, [ids[row] for row in rows]), use_cache=False)


def _padded(plain: Any, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    return {name: x.to(plain.device) for name, x in prompts.pad_left(ids, 0).items()}


def scoring(bench: Bench, model: LanguageModel, plain: Any) -> None:
    """Scores of every unit from activations, and from gradients of single sequences (SNIP)."""
    plan = bench.plan
    data = shapes.examples(
        model, [plan.sequence - shapes.ANSWER - 1] * plan.sequences, seed=2
    )  # and the end of the answer
    asked = [example.prompt for example in data]
    answers = prompts.answer_ids(model.tokenizer, asked, [example.answer for example in data])
    ids = [a + b for a, b in zip(prompts.prompt_ids(model.tokenizer, asked), answers, strict=True)]
    order = batches.in_order(len(ids), plan.sequence_batch)
    passed, took = bench.alternating(
        lambda: _forward(plain, ids, order),
        lambda: unit_scores.activations(model, data, plan.sequence_batch).score(model, *unit_scores.PAPER),
    )
    bench.share(f"unit scores on {len(ids)} x {plan.sequence} tokens", passed, took, ">= 0.8")
    bench.peak("unit scores")
    passed, took = bench.alternating(
        lambda: _backward(model, plain, ids[: plan.snip], answers),
        lambda: unit_scores.of_units(model, unit_scores.saliency(model, data[: plan.snip])),
    )
    name = f"SNIP on {plan.snip} x {plan.sequence} tokens, of forward and backward"
    bench.share(name, passed, took)
    bench.peak("SNIP")


def _backward(model: LanguageModel, plain: Any, ids: Sequence[list[int]], answers: Sequence[list[int]]) -> None:
    """Gradients of the answers' loss at every weight that units own, a sequence at a time."""
    weights = [plain.get_parameter(name).requires_grad_() for name in unit_scores.weight_names(model)]
    for whole, answer in zip(ids, answers, strict=False):
        inputs = torch.tensor([whole], device=plain.device)
        logits = plain(input_ids=inputs, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
        torch.autograd.grad(F.cross_entropy(logits, inputs[0, -len(answer) :]), weights)
    plain.requires_grad_(False)


def explaining(bench: Bench, model: LanguageModel, plain: Any) -> None:
    """Relevance of every token of one batch to a direction after the last block."""
    asked = [
        example.prompt for example in shapes.examples(model, shapes.lengths(bench.plan, bench.plan.relevance), seed=3)
    ]
    ids, direction = prompts.prompt_ids(model.tokenizer, asked), torch.ones(1, model.width)

    def backward() -> None:
        encoding = _padded(plain, ids)
        embedded = plain.get_input_embeddings()(encoding.pop("input_ids")).detach().requires_grad_()
        states = plain.base_model(inputs_embeds=embedded, **encoding, use_cache=False).last_hidden_state
        torch.autograd.grad((states[:, -1].float() @ direction[0].to(states.device)).sum(), embedded)

    last = model.layers - 1
    passed, took = bench.alternating(backward, lambda: relevance.token_relevance(model, asked, last, direction))
    bench.share(f"relevance of {len(asked)} prompts, of forward and backward", passed, took, ">= 0.67")
    bench.peak("relevance")


def tuning(bench: Bench) -> None:
    """Steps of AdamW with some units held still, each beside a plain forward and backward of its own examples."""
    plan, model = bench.plan, shapes.build(bench.plan.tuned, bench.device)
    model.hf.requires_grad_(True)
    data = shapes.examples(model, shapes.lengths(plan, plan.steps * plan.step_batch), seed=4)
    stage = Stage(steps=plan.steps, batch=plan.step_batch, learning_rate=1e-5, warmup=0, decay=False)
    step, weights = training.sft_step(model.tokenizer, stage), list(model.hf.parameters())
    frozen = freezing.masks(model, unit_scores.table(model).iloc[::_FROZEN])
    passed: list[float] = []
    took: list[float] = []
    started = 0.0

    def backward(number: int) -> None:
        for loss in step(model.hf, data[number * plan.step_batch :][: plan.step_batch]):
            torch.autograd.grad(loss, weights)

    def watch(number: int, _: torch.nn.Module) -> None:
        """Called before every step and after the last: the time since the last call is that of a step."""
        nonlocal started
        bench.wait()
        if number:
            took.append(time.perf_counter() - started)
        if number < plan.steps:
            passed.append(bench.seconds(lambda: backward(number)))
        started = time.perf_counter()

    training.fit(model.hf, iter(data), stage, step, f"{plan.tuned} fine-tuned", frozen=frozen, watch=watch)
    if model.hf.device.type != bench.device.type:
        raise InputError(f"training took the model from {bench.device} to {model.hf.device}; use --device cpu")
    name = f"a fine-tuning step of {plan.tuned}, 1 unit in {_FROZEN} frozen, of forward and backward"
    bench.share(name, passed, took)
    bench.peak("fine-tuning")


def run(size: str, device: torch.device) -> dict[str, Any]:
    """All steps: {"about": the card and the settings, "rows": [{name, value, unit, goal, n, spread}]}."""
    if size not in shapes.SHAPES:
        raise unknown("size", size, shapes.SHAPES)
    bench, start = Bench(device, shapes.PLANS[size]), time.perf_counter()
    model = shapes.build(size, device)
    plain = shapes.twin(model.hf)
    for step in (reading, scoring, explaining):
        step(bench, model, plain)
    parameters = sum(weight.numel() for weight in model.hf.parameters())
    del model, plain
    _free(device)
    tuning(bench)
    if device.type == "cpu":  # of the whole process, once: the operating system keeps only the largest
        bench.add("peak memory of the process", [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6], "GB")
    bench.add("the whole run", [time.perf_counter() - start], "s", "<= 600")
    about = {
        "size": size, "parameters": parameters, "device": device_name(device), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "dtype": str(shapes.DTYPE).removeprefix("torch."), "attention": "sdpa",
        "plan": asdict(bench.plan),
    }  # fmt: skip
    return {"about": about, "rows": bench.rows}


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# what is written ------------------------------------------------------------------------------------------------------
def device_name(device: torch.device) -> str:
    """The card, or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def table(found: Mapping[str, Any]) -> str:
    """The rows as a Markdown table under one line that says what they were measured on."""
    about = found["about"]
    where = f"{about['device']}, {about['threads']} CPU threads, {about['dtype']}, {about['attention']} attention"
    lines = [
        f"Shape {about['size']} ({about['parameters'] / 1e9:.3g} billion random weights) on {where}, "
        f"torch {about['torch']}.", "", "| what | median | spread | n | goal |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        low, high = row["spread"]
        spread = f"{low:g} to {high:g}" if row["n"] > 1 else ""
        lines.append(
            f"| {row['name']} | {row['value']:g} {row['unit']} | {spread} | {row['n']} | {row['goal'] or ''} |"
        )
    return "\n".join(lines) + "\n"


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here; use --device cpu, with --size 0.1b for minutes")
    return torch.device(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the result, or with `--table` alone show the one that was written."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=tuple(shapes.SHAPES), help="measure this shape; without it, only --table")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=paths.RESULTS / "shape_check.json")
    parser.add_argument("--table", action="store_true", help="show the result as a Markdown table")
    options = parser.parse_args(arguments)
    try:
        if options.size:
            storage.write_json(options.out, run(options.size, _device(options.device)))
        elif not options.table:
            raise InputError("nothing to do; name a --size to measure, or ask for the --table of a result")
        if options.table:
            sys.stdout.write(table(storage.read_json(options.out)))
    except InputError as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
