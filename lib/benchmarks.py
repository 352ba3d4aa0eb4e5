"""What things cost, against the budgets: `python -m lib.benchmarks` writes `data/results/benchmarks.json`.

Owns the measuring. Ratios are of CPU time, the two sides alternating in one process; seconds of training and notebooks
come from the manifest of the last full run of kingdom seed 0, so run that first, with nothing else on the machine.
"""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lib import models, paths, prompt_sets, prompts, residual, storage, tracing
from lib.errors import InputError
from lib.manifest import row, time_row

Row = dict[str, Any]
_COMMAND = "python -m lib.benchmarks"
_PIPELINE = [sys.executable, "-m", "lib.pipeline"]


def _cpu(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def _wall(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ratios(slow: Callable[[], object], fast: Callable[[], object], repeats: int) -> list[float]:
    """CPU time of `slow` over that of `fast`, alternating, after one unmeasured round of both."""
    slow(), fast()
    return [_cpu(slow) / _cpu(fast) for _ in range(repeats)]


def trace_overhead(repeats: int = 41) -> Row:
    """A trace that reads the residual stream after every block, over a plain forward of the same batch of 64.

    On one thread, because CPU time of two depends on how long they wait for each other.
    """
    model = models.load("kingdom", "base", 0)
    plain = models.load("kingdom", "base", 0).hf  # another copy: never touched by nnsight
    asked = [prompt for cell in prompt_sets.behaviour("kingdom", 0).values() for prompt in cell][:64]
    encoding = prompts.encode(model.tokenizer, asked)
    torch.set_num_threads(1)
    reads = model.traced.every("resid")

    def traced() -> object:
        return tracing.forward(model.traced, encoding, reads, logits="all")

    @torch.no_grad()
    def bare() -> object:
        return plain(**encoding, use_cache=False)

    return row(
        "trace reading every layer / plain forward, batch 64", ratios(traced, bare, repeats), "ratio", 1.10, _COMMAND
    )


def residual_svd(repeats: int = 5) -> list[Row]:
    """The spectrum of a 700 x 4096 shift here, and by least squares and a full SVD as in HD's released code."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(700, 4096, generator=generator, dtype=torch.float64)
    shift = torch.randn(700, 40, generator=generator, dtype=torch.float64) @ torch.randn(
        40, 4096, generator=generator, dtype=torch.float64
    )
    here = [_wall(lambda: residual.space(shift, centred=False)) for _ in range(repeats + 1)][1:]

    def released() -> np.ndarray:
        x, y = before.numpy(), (before + shift).numpy()
        fitted = np.linalg.lstsq(x, y, rcond=None)[0]
        return np.linalg.svd(x @ fitted - x)[1]

    there = [_wall(released) for _ in range(2)]
    energy = residual.space(shift, centred=False).energy.numpy()
    difference = float(np.abs(np.sqrt(energy) / released()[: len(energy)] - 1).max())
    return [
        row("residual SVD of 700 x 4096, one layer", here, "s", 0.1, _COMMAND),
        row(
            "residual SVD / (least squares + full SVD)",
            [statistics.median(here) / t for t in there],
            "ratio",
            0.02,
            _COMMAND,
        ),
        row("largest relative difference of their singular values", [difference], "", 1e-4, _COMMAND),
    ]


def _run(*options: str) -> None:
    subprocess.run([*_PIPELINE, *options], cwd=paths.ROOT, check=True, stdout=subprocess.DEVNULL)


def pipeline() -> list[Row]:
    """`--profile tiny` from nothing, then again with nothing to do."""
    _run("--profile", "tiny", "--clean")
    shutil.rmtree(paths.CACHE / "models" / "tiny", ignore_errors=True)
    command = "./run_all.sh --profile tiny"
    first = [_wall(lambda: _run("--profile", "tiny"))]
    again = [_wall(lambda: _run("--profile", "tiny")) for _ in range(3)]
    return [
        row("tiny, every notebook, from nothing", first, "s", 120, command),
        row("tiny, nothing to do", again, "s", 5, command),
    ]


def full_run() -> list[Row]:
    """What the last full run of kingdom seed 0 took, from its manifest; refused when models were not trained in it."""
    manifest = storage.read_json(paths.run_folder("kingdom", 0) / "manifest.json")
    trained = manifest["models"]["roles"]
    if any(model["source"] != "trained" for model in trained.values()):
        raise InputError("the last run of kingdom seed 0 found models in the cache; delete .cache and run it again")
    command = "./run_all.sh"
    done = manifest["notebooks"]
    total = sum(entry["seconds"] for entry in done.values()) + manifest["models"]["seconds"]
    peak = max(entry["peak_mb"] for entry in [*done.values(), manifest["models"]])
    times = {"models": manifest["models"], **done}
    rows = [
        row("one seed from nothing", [total / 60], "min", 30, command),
        row("peak memory", [peak / 1000], "GB", 3, command),
        row("base training", [trained["base"]["seconds"]], "s", 120, command),
        row("set-up", [float((paths.ROOT / ".venv" / ".seconds").read_text())], "s", 180, "./run_all.sh"),
    ]
    return rows + [time_row("kingdom", name, entry["seconds"]) for name, entry in sorted(times.items())]


def main() -> int:
    try:
        rows = [*full_run(), trace_overhead(), *residual_svd(), *pipeline()]
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    storage.write_json(paths.RESULTS / "benchmarks.json", rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
