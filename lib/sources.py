"""Given checkpoints as they can be known without opening them: where they are, what tells them apart, how large.

Owns the text by which a model is named (a folder, or `id@revision` of the hub), finding it on this machine, and an
identity that changes with its content. It never asks the network, reads no weight (of a weight file only the header)
and imports no tensor library, because the pipeline asks before every task. Whether a checkpoint can be used is for
`checkpoints` to say.
"""

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from lib import paths, plain_data, storage
from lib.errors import InputError

# What is read of a checkpoint: not a second copy of its weights in another format, no code, no README.
WANTED = ("*.json", "*.jinja", "*.txt", "tokenizer*", "model*.safetensors")
COMMIT = re.compile(r"[0-9a-f]{40}")
_ASSUMED = "assumed: "
_HUB = re.compile(r"(?P<name>(?:[\w.-]+/)?[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_LONGEST = 100_000_000  # bytes of a header, as in the safetensors library
_ROLES = ("base", "chat", "tuned")


def parse(text: str, here: Path) -> tuple[str, str | None]:
    """A model as a user names it, as name and revision: a folder (made absolute from `here`), or `id` or `id@revision`
    of the hub. A folder goes before a hub name; `InputError` for what is neither."""
    folder = Path(os.path.abspath(here / Path(text).expanduser()))
    if text and is_folder(folder):
        return str(folder), None
    if is_path(text.partition("@")[0]):
        raise InputError(
            f"there is no folder {text!r}; give a model's folder, or its name on the hub (id or id@revision)"
        )
    found = _HUB.fullmatch(text)
    if not found:
        raise InputError(f"{text!r} names no model; give its folder, or its name on the hub (id or id@revision)")
    return found["name"], found["revision"]


def is_path(name: str) -> bool:
    """Whether a name can only be a folder's."""
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1


def is_folder(path: Path) -> bool:
    """Whether there is a folder of that name; of a name longer than any can be, there is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def folder_of(name: str) -> Path:
    """The folder that a profile's name of a model means, whether it is there or not: relative ones lie in the checkout,
    wherever the process runs (a notebook's kernel runs in notebooks/)."""
    return paths.ROOT / name


def git(revision: str | None) -> str | None:
    """A revision as git knows it: profiles write `assumed: main` where no commit is known."""
    return revision.removeprefix(_ASSUMED) if isinstance(revision, str) else None


def find(name: str, revision: str | None) -> Path | None:
    """The folder of a model on this machine, its own or in the hub's cache, or None; it may lack weights."""
    if is_folder(folder_of(name)):
        return folder_of(name)
    if is_path(name):
        return None
    from huggingface_hub import errors, try_to_load_from_cache  # here: most profiles train their own models

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except errors.HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


# identity -------------------------------------------------------------------------------------------------------------
def identity(name: str, revision: str | None) -> str | None:
    """What tells a checkpoint from others without reading its weights: the commit on the hub, or a folder's small files
    and the names, sizes and times of its weights. None where it is not here and its commit not known."""
    found = find(name, revision)
    if found is not None and found == folder_of(name):
        return of_folder(found)
    commit = found.name if found else revision if revision and COMMIT.fullmatch(revision) else None
    return of_commit(name, commit) if commit else None


def of_commit(name: str, commit: str) -> str:
    return storage.digest_json([name, commit])[:20]


def of_folder(folder: Path) -> str:
    files = sorted({path for pattern in WANTED for path in folder.glob(pattern) if path.is_file()})
    small = [path for path in files if path.suffix != ".safetensors"]
    return storage.digest_json(
        [
            {path.name: _digest(str(path), *_written(path)) for path in small},
            [[path.name, *_written(path)] for path in files if path not in small],
        ]
    )[:20]


def _written(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=256)
def _digest(path: str, _size: int, _time: int) -> str:
    """A file's hash, computed again only when it has been written since: a tokenizer can have 20 MB."""
    return storage.digest(Path(path))


def given(settings: Any) -> dict[str, tuple[str, str | None]]:
    """The models that unchecked settings of a profile name, as name and revision by role; `judge` is one of them."""
    if not isinstance(settings, Mapping):
        return {}
    models, judge = settings.get("models"), settings.get("judge")
    found = {role: models.get(role) for role in _ROLES} if isinstance(models, Mapping) else {}
    found["judge"] = judge.get("model") if isinstance(judge, Mapping) else None
    named = {role: one for role, one in found.items() if isinstance(one, Mapping) and isinstance(one.get("name"), str)}
    return {role: (one["name"], git(one.get("revision"))) for role, one in named.items()}


def identities(settings: Any) -> dict[str, str | None]:
    """`identity` of every model that settings name."""
    return {role: identity(*source) for role, source in given(settings).items()}


# size -----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Weights:
    """Of a folder: bytes and numbers in the weight files that are there, and the names of those that are not."""

    size: int
    numbers: int
    missing: tuple[str, ...]


def weights(folder: Path) -> Weights:
    """How large a model is, from the headers of its files; a file that is no safetensors counts as missing."""
    names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not (folder / names[0]).is_file() and index.is_file():
        try:
            found = plain_data.json_of(index.read_text(encoding="utf-8"))["weight_map"].values()
            names = sorted({str(name) for name in found})
        except (ValueError, KeyError, AttributeError, TypeError):
            names = [index.name]
    held = {name: _numbers(folder / name) if is_inside(name) else None for name in names}
    here = [name for name, numbers in held.items() if numbers is not None]
    size = sum((folder / name).stat().st_size for name in here)
    return Weights(size, sum(held[name] or 0 for name in here), tuple(name for name in names if name not in here))


def is_inside(shard: str) -> bool:
    """Whether a name in an index is that of a file in its folder, and not a way out of it."""
    return Path(shard).name == shard and "\\" not in shard and shard != ".."


def _numbers(file: Path) -> int | None:
    """Numbers in a whole safetensors file: eight bytes say how long the JSON header is that has every shape and end."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            data = file.stat().st_size - 8 - length
            header = plain_data.json_of(stream.read(max(0, min(length, _LONGEST))).decode())
        tensors = [one for name, one in header.items() if name != "__metadata__"]
        sizes = [size for one in tensors for size in one["shape"]]
        whole = data >= 0 and all(one["data_offsets"][1] <= data for one in tensors)
        whole &= all(type(size) is int and size >= 0 for size in sizes)
        return sum(prod(one["shape"]) for one in tensors) if whole else None
    except (OSError, ValueError, struct.error, KeyError, IndexError, TypeError, AttributeError):
        return None
