"""What is to be up to date: one notebook for one profile and seed, and the ledger of a profile.

Owns the keys that say so, made of content alone (code, settings, parameters, results): touching a file changes nothing.
It runs nothing.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib import paths, profile_files, profiles, provenance, sources, storage
from lib.execute import Slot
from lib.manifest import expected, recorded
from lib.notebooks import Notebook, Value, read, source_path


def code_hash(notebook: str, profile: str) -> str:
    """`provenance.code_hash`, computed again only when a source or a given model has been written since: it is asked
    for often."""
    settings = [path for folder in profile_files.folders() for path in folder.glob("*.yaml")]
    files = [*paths.LIB.rglob("*.py"), *paths.NOTEBOOKS.glob("*.py"), *settings, paths.LOCK]
    written = ((path, path.stat()) for path in sorted(files))
    stamps = tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in written)
    return _code_hash(notebook, profile, stamps, tuple(sources.identities(provenance.settings(profile)).items()))


@lru_cache(maxsize=256)
def _code_hash(
    notebook: str, profile: str, _written: tuple[tuple[str, int, int], ...], _models: tuple[tuple[str, str | None], ...]
) -> str:
    return provenance.code_hash(notebook, profile)


@dataclass(frozen=True)
class Job:
    """One notebook to be up to date for one profile and seed. `given`: parameters from the command line."""

    notebook: Notebook
    profile: str
    seed: int
    given: Mapping[str, Value] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.notebook.name}  {self.profile} seed {self.seed}"

    @property
    def slot(self) -> Slot:
        return Slot(paths.run_folder(self.profile, self.seed), self.notebook.name)

    @property
    def values(self) -> dict[str, Value]:
        """Every parameter as this run has it."""
        defaults = {parameter.name: parameter.default for parameter in self.notebook.parameters}
        return defaults | dict(self.given) | {"profile": self.profile, "seed": self.seed}

    @property
    def changed(self) -> dict[str, Value]:
        """The parameters that differ from the source, in its order: all that the notebook is told."""
        return {p.name: self.values[p.name] for p in self.notebook.parameters if self.values[p.name] != p.default}

    @property
    def custom(self) -> bool:
        """Whether a parameter other than profile and seed differs, so that the result is not for the ledger."""
        return bool(self.changed.keys() - {"profile", "seed"})

    def key(self) -> str:
        """Changes with whatever could change the outputs."""
        shows = ledger_key(self.profile) if self.notebook.reads_results else None
        code = code_hash(self.notebook.name, self.profile)
        text = self._text()
        facts = {path.name: storage.digest(path) for path in (paths.CLAIMS, *_tables(text))}
        key: dict[str, Any] = {"code": code, "parameters": self.values, "shows": shows, "facts": facts}
        if compared := self._compared(text):
            key["compared"] = compared
        if isinstance(profiles.load(self.profile), profiles.Checkpoint):
            key["data"] = _public_data(paths.BUILD / self.profile)
        return storage.digest_json(key)

    def _compared(self, text: str) -> dict[str, Any]:
        """Settings of other profiles whose models the notebook compares with this one's: of those `PROFILE-...` that
        its source names."""
        mine = [name for name in profile_files.names() if name.startswith(f"{self.profile}-") and f'"{name}"' in text]
        return {name: provenance.settings(name) for name in mine}

    def _text(self) -> str:
        """The notebook's source and that of all `lib` modules it reaches."""
        source = source_path(self.notebook.name)
        return "".join(path.read_text(encoding="utf-8") for path in (source, *provenance.modules_of(source)))

    def expected(self) -> float | None:
        """Seconds a run took last, of a notebook on request what all it needs took to make; None when only its prose is
        to be renewed."""
        if not self.slot.stale(self.key()):
            return None
        noted = self._recorded() if self.notebook.on_request else None
        return noted if noted is not None else expected(self.profile, self.seed, self.notebook.name)

    def _recorded(self) -> float | None:
        """The fact `seconds` of the notebook's result, here or published: its last run may have found all in the
        cache."""
        published = (paths.published_results(self.profile, seed) for seed in (self.seed, 0))
        files = [self.slot.result, *(paths.result_file(folder, self.notebook.name) for folder in published)]
        return next((seconds for path in files if (seconds := recorded(path)) is not None), None)

    def stale(self) -> str | None:
        """Why the notebook has to be dealt with, or None."""
        reason = self.slot.stale(self.key())
        if reason is None and self.slot.reworded(storage.digest(source_path(self.notebook.name))):
            return "only its prose or comments changed"
        return reason


def _tables(text: str) -> list[Path]:
    """The papers' numbers that a notebook can read: a table is read by its name, in the notebook or in `lib`."""
    return [path for path in sorted(paths.PUBLISHED.glob("*.csv")) if f'"{path.stem}"' in text]


def _public_data(own: Path) -> list[Any]:
    """What public data sets are read from: their descriptions, those of judges and of benchmarks, and the files of
    DATA_DIR by size and time, but not what the run itself leaves in its `own` folder."""
    described = [paths.UTILITY, *sorted(paths.DATASETS.glob("*.yaml")), *sorted((paths.DATA / "judges").glob("*.yaml"))]
    place = os.environ.get("DATA_DIR")
    there = sorted(path.resolve() for path in Path(place).rglob("*") if path.is_file()) if place else []
    files = [path for path in there if not path.is_relative_to(own)]
    read = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return [[storage.digest(path) for path in described], read]


# The ledger -----------------------------------------------------------------------------------------------------------
def ledger_file(profile: str) -> Path:
    return paths.BUILD / profile / "ledger.json"


def ledger_folders(profile: str) -> list[Path]:
    """Where results are looked for, a fresh one before a published one."""
    return [paths.BUILD / profile, paths.RESULTS / profile]


def _ledger_stamp(profile: str) -> Path:
    return paths.BUILD / profile / "ledger.stamp.json"


def ledger_key(profile: str) -> str:
    """Changes with every result of the profile's seeds, the registry, the code behind either, and notebooks' titles."""
    names, results = provenance.notebooks(), {}
    books = {name: read(name) for name in names}
    for seed in profiles.load(profile).seeds:
        run, published = paths.run_folder(profile, seed) / "results", paths.published_results(profile, seed)
        for name in (name for name in names if not books[name].reads_results):
            files = [paths.result_file(folder, name) for folder in (run, published)]
            results[f"{seed}/{name}"] = next((storage.digest(file) for file in files if file.is_file()), None)
    judge = paths.LIB / "ledger.py"
    modules = sorted({judge, *provenance.modules_of(judge)})
    return storage.digest_json(
        {
            "results": results,
            "registry": storage.digest(paths.CLAIMS),
            "printed": [storage.digest(path) for path in sorted(paths.PUBLISHED.glob("*.csv"))],
            "notebooks": {name: [code_hash(name, profile), books[name].title] for name in names},
            "lib": [provenance.ast_digest(path.read_text(encoding="utf-8")) for path in modules],
        }
    )


def ledger_stale(profile: str) -> bool:
    try:
        stamp = json.loads(_ledger_stamp(profile).read_text(encoding="utf-8"))
        return stamp != {"key": ledger_key(profile), "digest": storage.digest(ledger_file(profile))}
    except (OSError, ValueError):
        return True


def seal_ledger(profile: str, key: str) -> None:
    storage.write_json(_ledger_stamp(profile), {"key": key, "digest": storage.digest(ledger_file(profile))})


def set_aside(profile: str) -> list[str]:
    """Hide results that no finished run left, such as those of a cell run by hand, from the ledger; which they were."""
    found = []
    for seed in profiles.load(profile).seeds:
        for name in provenance.notebooks():
            slot = Slot(paths.run_folder(profile, seed), name)
            if slot.result.is_file() and not slot.vouched():
                slot.custom_result.parent.mkdir(exist_ok=True)
                slot.result.replace(slot.custom_result)
                found.append(f"{name} seed {seed}")
    return found
