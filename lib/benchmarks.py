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
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from lib import analysis_costs, figures, notebooks, paths, residual, storage
from lib.analysis_costs import COMMAND
from lib.charts import costs as charts
from lib.errors import InputError
from lib.manifest import BENCHMARKS, MODELS, on_request, row, time_row

Row = dict[str, Any]
_PIPELINE = [sys.executable, "-m", "lib.pipeline"]
_TIMES = ("ended", "seconds", "peak_mb")  # of a step, in the manifest
IDLE_SECONDS = 60  # in one run the next step begins within seconds, so a longer wait lies between two runs
# The cache holds models of all seeds and sizes, hours of work: it is moved, never deleted. It goes out of the checkout,
# because git ignores no other name there; --clean, because pages that are up to date ask for no models.
FROM_NOTHING = (
    "make a run from nothing, ./run_all.sh in another clone; or here, with the cache out of the way: "
    "`mv .cache ../cache.aside && ./run_all.sh --clean && ./run_all.sh`, and after --bench "
    "`mv .cache ../cache.new && mv ../cache.aside .cache`"
)


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
    """`--profile tiny` from nothing, no model nor kept run, then again with nothing to do."""
    _run("--profile", "tiny", "--clean")
    for folder in paths.CACHE.glob("*/tiny"):
        shutil.rmtree(folder)
    command = "./run_all.sh --profile tiny"
    first = [_wall(lambda: _run("--profile", "tiny"))]
    again = [_wall(lambda: _run("--profile", "tiny")) for _ in range(3)]
    return [
        row("tiny, every notebook, from nothing", first, "s", 300, command),
        row("tiny, nothing to do", again, "s", 5, command),
    ]


def _steps(manifest: Row, names: Iterable[str]) -> dict[str, Row]:
    """What the manifest has of the models and of these pages, by name; refused unless all are there and done, and every
    model was trained."""
    models = manifest.get(MODELS, {})
    found = manifest.get("notebooks", {}) | ({MODELS: models} if models.get("roles") else {})
    steps = {name: found.get(name, {"status": "missing"}) for name in (MODELS, *names)}
    wrong = {name: entry.get("status") for name, entry in steps.items() if entry.get("status") != "done"}
    wrong |= {n: "without times" for n, e in steps.items() if n not in wrong and not e.keys() >= set(_TIMES)}
    if wrong:
        told = ", ".join(f"{name} {what}" for name, what in wrong.items())
        raise InputError(f"the manifest of kingdom seed 0 is not of a whole run ({told}); {FROM_NOTHING}")
    if kept := sorted(role for role, model in models["roles"].items() if model.get("source") != "trained"):
        raise InputError(
            f"the last run of kingdom seed 0 found models in the cache ({', '.join(kept)}); {FROM_NOTHING}"
        )
    return steps


def _span(steps: Mapping[str, Row]) -> float:
    """Seconds from the first step's begin to the last one's end; refused where they are of more than one run."""
    ordered = sorted((entry["ended"] - entry["seconds"], entry["ended"], name) for name, entry in steps.items())
    first, end, _ = ordered[0]
    for begin, ended, name in ordered:
        if begin - end > IDLE_SECONDS:
            waited = f"{name} began {begin - end:.0f} s after all before it had ended"
            raise InputError(f"the steps of kingdom seed 0 are of more than one run ({waited}); {FROM_NOTHING}")
        end = max(end, ended)
    return float(end - first)


def full_run() -> list[Row]:
    """What the last full run of kingdom seed 0 took, from its manifest; refused when it is not one run from nothing.

    Pages that show results are made again by later runs of other pages and seeds, so their seconds are added to the
    span of what comes before them. Pages on request are no part of a full run. The seconds in which the ledger is made
    are in no manifest.
    """
    manifest = storage.read_json(paths.run_folder("kingdom", 0) / "manifest.json")
    books = [notebooks.read(path.stem) for path in sorted(paths.NOTEBOOKS.glob("[0-9]*.py"))]
    books = [book for book in books if not book.on_request]
    steps = _steps(manifest, [book.name for book in books])
    shown = {book.name: steps[book.name]["seconds"] for book in books if book.reads_results}
    span = _span({name: entry for name, entry in steps.items() if name not in shown}) + sum(shown.values())
    added = sum(entry["seconds"] for entry in steps.values())
    peak = max(entry["peak_mb"] for entry in steps.values())
    command = "./run_all.sh"
    rows = [
        row("one seed from nothing", [span / 60], "min", 15, command),
        row("one seed from nothing, its steps added up", [added / 60], "min", None, command),
        row("peak memory of a step", [peak / 1000], "GB", 3, command),
        row("set-up", [float((paths.ROOT / ".venv" / ".seconds").read_text())], "s", 180, command),
    ]
    return rows + [time_row("kingdom", name, entry["seconds"]) for name, entry in sorted(steps.items())]


def asked_for() -> list[Row]:
    """The published rows of pages on request, which no full run measures again."""
    rows = storage.read_json(BENCHMARKS) if BENCHMARKS.is_file() else []
    return [one for one in rows if on_request(one["name"].partition(": ")[2])]


def show(rows: list[Row]) -> None:
    """Draw what has a budget, in figures/."""
    table = charts.against_budgets(rows)
    figures.store(charts.draw(table), paths.FIGURES, "benchmarks", table, charts.in_words(table))


def main() -> int:
    """Measure everything and write it; 2 when there is no full run to report."""
    try:
        rows = [*full_run(), *asked_for(), *analysis_costs.measure(), *residual_svd(), *pipeline()]
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    storage.write_json(BENCHMARKS, rows)
    show(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
