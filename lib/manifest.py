"""What a run took and with what it was made: `build/<profile>/seed-<n>/manifest.json`, and the times it lets us expect.

Owns seconds, memory, versions and status of every notebook of one run folder, and which models and data it took; they
stay out of the notebooks, so that a rerun is byte-equal. Owns the rows of `data/results/benchmarks.json`, too, where
publishing puts those seconds. No environment variables, no absolute paths.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib import notebooks, paths, provenance, storage

MODELS = "models"
PACKAGES = (*provenance.NUMERIC, "papermill", "jupytext")
BENCHMARKS = paths.RESULTS / "benchmarks.json"
# What a page is to take at most with its models at hand, by the design's budgets (its section 6). `TRAINING` are pages
# that train more themselves: four minutes from nothing; with their runs in the cache one minute, like the others, but
# a time does not tell which of the two it is of.
NOTEBOOK_SECONDS, TRAINING_SECONDS = 60, 240
TRAINING = ("05_freezing", "06_alignment_budget", "11_trigger_removal")


def _file(profile: str, seed: int) -> Path:
    return paths.run_folder(profile, seed) / "manifest.json"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one: a manifest is a record, and a damaged one is no reason to stop."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _private(argument: str) -> str:
    """An argument of the command without the folders of an absolute path in it."""
    name, equals, value = argument.rpartition("=")
    return f"{name}{equals}.../{Path(value).name}" if Path(value).is_absolute() else argument


def _shortened(about: Any) -> Any:
    """What is known of a model, its origin without the folders above its own."""
    if not isinstance(about, dict) or "origin" not in about:
        return about
    return about | {"origin": _private(str(about["origin"]))}


class Manifest:
    """The manifest of one run folder, rewritten whenever something finishes. Safe to use from several threads."""

    def __init__(self, profile: str, seed: int, command: Sequence[str]) -> None:
        self._path, self._lock = _file(profile, seed), threading.Lock()
        self._about = {
            "profile": profile,
            "seed": seed,
            "command": ["./run_all.sh", *map(_private, command)],
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "versions": _versions(),
        }

    def _beside(self, name: str) -> dict[str, Any]:
        return _read(self._path.with_name(name))

    def record(self, name: str, entry: dict[str, Any]) -> None:
        """`name`: a notebook, or `models`, whose entry takes in what the builder wrote into models.json and, of the
        data sets that were read, into data.json."""
        with self._lock:
            value = _read(self._path) | self._about
            if name == MODELS:
                roles = {role: _shortened(about) for role, about in self._beside("models.json").items()}
                read = self._beside("data.json")
                value[MODELS] = entry | {"roles": roles} | ({"data": read} if read else {})
            else:
                value["notebooks"] = value.get("notebooks", {}) | {name: entry}
            storage.write_json(self._path, value)


def _seconds(value: dict[str, Any], name: str) -> float | None:
    entry = value.get(MODELS) if name == MODELS else value.get("notebooks", {}).get(name)
    done = isinstance(entry, dict) and entry.get("status", "done") == "done"
    return entry.get("seconds") if entry and done else None


def expected(profile: str, seed: int, name: str) -> float | None:
    """Seconds `name` took last: in this run folder, in another seed's, or in the published benchmarks."""
    files = [_file(profile, seed), *sorted((paths.BUILD / profile).glob("seed-*/manifest.json"))]
    found = (_seconds(_read(path), name) for path in files)
    return next((seconds for seconds in found if seconds is not None), published_times(profile).get(name))


# Published ------------------------------------------------------------------------------------------------------------
def row(name: str, values: Sequence[float], unit: str, budget: float | None, command: str) -> dict[str, Any]:
    """One row of the published benchmarks: median and spread (smallest, largest) of repeated measurements; `budget` is
    the most it may be."""
    middle, low, high = (float(f"{x:.4g}") for x in (statistics.median(values), min(values), max(values)))
    return {
        "name": name, "value": middle, "unit": unit, "budget": budget, "command": command, "n": len(values),
        "spread": [low, high],
    }  # fmt: skip


def on_request(name: str) -> bool:
    """Whether that is a page which runs only when it is named, so takes what it takes."""
    return notebooks.source_path(name).is_file() and notebooks.read(name).on_request


def time_row(profile: str, name: str, seconds: float) -> dict[str, Any]:
    """The row of what a notebook, or `models`, took in a run."""
    budget = TRAINING_SECONDS if name in TRAINING else NOTEBOOK_SECONDS
    free = name == MODELS or on_request(name)
    return row(f"{profile}: {name}", [seconds], "s", None if free else budget, "./run_all.sh")


def recorded(result: Path) -> float | None:
    """Seconds that all a notebook on request needs took to make, the fact `seconds` of its result: its last run may
    have found all in the cache."""
    seconds: float | None = _read(result).get("facts", {}).get("seconds")
    return seconds


def _took(profile: str, seed: int, name: str) -> float | None:
    """Seconds a notebook took, of one on request what it recorded."""
    result = paths.result_file(paths.run_folder(profile, seed) / "results", name)
    noted = recorded(result) if on_request(name) else None
    return noted if noted is not None else _seconds(_read(_file(profile, seed)), name)


def published_times(profile: str) -> dict[str, float]:
    """Seconds by notebook, and `models`, from the published benchmarks; empty where they cannot be read."""
    try:
        rows = json.loads(BENCHMARKS.read_text(encoding="utf-8"))
        named = {row["name"].partition(": ")[::2]: row["value"] for row in rows}
        return {name: seconds for (owner, name), seconds in named.items() if owner == profile and name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def publish_times(profile: str, seed: int, names: Sequence[str]) -> None:
    """Put what these notebooks took in a run among the published benchmarks; rows of others stay as they are."""
    took = {name: seconds for name in names if (seconds := _took(profile, seed, name)) is not None}
    new = {f"{profile}: {name}": time_row(profile, name, seconds) for name, seconds in sorted(took.items())}
    old = storage.read_json(BENCHMARKS) if BENCHMARKS.is_file() else []
    kept = [new.pop(row["name"], row) for row in old]
    storage.write_json(BENCHMARKS, [*kept, *new.values()])
