"""Profiles that a command line makes: `--profile checkpoint --base A --model B` as a file of `build/profiles`.

Owns their names and the writing. Such a file states every setting, so that notebooks, results and caches know it by its
name alone, and one copied into `data/profiles` is a profile like any other. The name holds a hash of the models' names,
not of their content: the same folders are the same profile, and `provenance` sees when something in them changed.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from lib import paths, profile_files, profiles, sources, storage
from lib.errors import InputError
from lib.profiles import Checkpoint

_HEADER = """\
# Made by ./run_all.sh --profile {parent} --base ... --model ..., and made anew whenever that is run.
# To keep it or change settings, copy it into data/profiles: a file there goes before this one.
"""


def make(parent: str, base: str | None, model: str | None, tuned: str | None, here: Path) -> str:
    """The name of `parent` with these models, after its file is written where it is not as it should be.

    Models are folders, relative ones from `here`, or `id` or `id@revision` of the hub. `parent` is any checkpoint
    profile; models of its own are replaced, all of them, so `tuned` is chat tuned here unless it is given. `InputError`
    for a model that is not there, one without the other, and a parent that trains its models or was made like this.
    """
    if base is None or model is None:
        lacking = "--base" if base is None else "--model"
        raise InputError(f"{lacking} is missing; give --base (before alignment) and --model (aligned), perhaps --tuned")
    path = profile_files.file(parent)
    settings = profile_files.settings(path)
    if not isinstance(profiles.read(path), Checkpoint):
        raise InputError(
            f"profile {parent!r} trains its own models; --base, --model and --tuned go with a checkpoint profile, such "
            "as --profile checkpoint"
        )
    if path.parent == paths.RUN_PROFILES:
        raise InputError(f"profile {parent!r} was made for its models; leave out --base, --model and --tuned")
    named = {"base": base, "chat": model, "tuned": tuned}
    models = {role: _source(text, here) for role, text in named.items() if text is not None}
    name = _name(parent, models)
    made = {**settings, "name": name, "models": models}
    profiles.check(made, f"{parent}.yaml with these models")
    if name not in profile_files.names() or profile_files.file(name).parent == paths.RUN_PROFILES:
        _write(
            paths.RUN_PROFILES / f"{name}.yaml", _HEADER.format(parent=parent) + yaml.safe_dump(made, sort_keys=False)
        )
    return name


def _source(text: str, here: Path) -> dict[str, Any]:
    name, revision = sources.parse(text, here)
    return {"name": name} if revision is None else {"name": name, "revision": revision}


def _name(parent: str, models: dict[str, dict[str, Any]]) -> str:
    """Parent, what a reader knows the aligned model by, and a hash of all models."""
    last = models["chat"]["name"].replace("\\", "/").rpartition("/")[2]
    readable = re.sub(r"[^a-z0-9.]+", "-", last.lower())[:40].strip("-.") or "model"
    return f"{parent}-{readable}-{storage.digest_json(models)[:8]}"


def _write(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    storage.write_text(path, text)
    profiles.load.cache_clear()
