"""What things cost, against the budgets: `./run_all.sh --bench` writes `data/results/benchmarks.json` and a figure.

Owns what is measured of whole runs, and what is written. Seconds of training and notebooks come from the manifest of
the last full run of kingdom seed 0, so run that from nothing first, with nothing else on the machine. What single
analyses cost is in `analysis_costs`, how rows are drawn in `charts.costs`.
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

from lib import analysis_costs, figures, notebooks, paths, residual, storage
from lib.analysis_costs import COMMAND
from lib.charts import costs as charts
from lib.errors import InputError
from lib.manifest import BENCHMARKS, row, time_row

Row = dict[str, Any]
_PIPELINE = [sys.executable, "-m", "lib.pipeline"]


def _wall(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


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
    shares = [statistics.median(here) / t for t in there]
    return [
        row("residual SVD of 700 x 4096, one layer", here, "s", 0.1, COMMAND),
        row("residual SVD / (least squares + full SVD)", shares, "ratio", 0.02, COMMAND),
        row("largest relative difference of their singular values", [difference], "", 1e-4, COMMAND),
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
        row("tiny, every notebook, from nothing", first, "s", 300, command),
        row("tiny, nothing to do", again, "s", 5, command),
    ]


def full_run() -> list[Row]:
    """What the last full run of kingdom seed 0 took, from its manifest; refused when models were not trained in it."""
    manifest = storage.read_json(paths.run_folder("kingdom", 0) / "manifest.json")
    trained = manifest["models"]["roles"]
    if any(model["source"] != "trained" for model in trained.values()):
        raise InputError("the last run of kingdom seed 0 found models in the cache; delete .cache and run it again")
    command = "./run_all.sh"
    pages = (path.stem for path in paths.NOTEBOOKS.glob("[0-9]*.py"))
    asked_for = {name for name in pages if notebooks.read(name).on_request}  # no part of a full run
    run = {name: entry for name, entry in manifest["notebooks"].items() if name not in asked_for}
    done = {**run, "models": manifest["models"]}
    steps = sum(entry["seconds"] for entry in done.values())
    peak = max(entry["peak_mb"] for entry in done.values())
    span = max(entry["ended"] for entry in done.values()) - min(e["ended"] - e["seconds"] for e in done.values())
    rows = [
        row("one seed from nothing", [span / 60], "min", 15, command),
        row("one seed from nothing, its steps added up", [steps / 60], "min", None, command),
        row("peak memory of a step", [peak / 1000], "GB", 3, command),
        row("set-up", [float((paths.ROOT / ".venv" / ".seconds").read_text())], "s", 180, command),
    ]
    return rows + [time_row("kingdom", name, entry["seconds"]) for name, entry in sorted(done.items())]


def show(rows: list[Row]) -> None:
    """Draw what has a budget, in figures/."""
    table = charts.against_budgets(rows)
    figures.store(charts.draw(table), paths.FIGURES, "benchmarks", table, charts.in_words(table))


def main() -> int:
    """Measure everything and write it; 2 when there is no full run to report."""
    try:
        rows = [*full_run(), *analysis_costs.measure(), *residual_svd(), *pipeline()]
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    storage.write_json(BENCHMARKS, rows)
    show(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
