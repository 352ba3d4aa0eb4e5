"""Activations of many prompts on disk, written as they are made and read back a place at a time.

Owns the layout of a store: a sealed folder (see `storage`) of safetensors shards, each with the rows of a few batches
at every place. It is for what does not fit into memory; what does is read by `residual.activations`. A store holds
numbers, names of places and how many tokens each prompt has: no text and no token ids.

    store = activation_store.write(folder, model, asked, model.traced.every("resid"))
    for place in store.places:
        states = store.read(place)                      # [prompt d], in the order asked, in the model's dtype
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib import batches, families, prompts, storage, tracing
from lib.edits import Edit
from lib.errors import InputError, unknown
from lib.models import LanguageModel
from lib.prompts import Prompt
from lib.tracing import Place

SHARD = 2**28  # bytes of activations after which a shard is written: what a store being written keeps in memory
_ROWS = "prompt"  # of a shard's rows
_KIND = "activations 1"  # of a sealed folder: what it holds, and the version of its layout
Positions = Literal["last", "all"]


@dataclass(frozen=True)
class Store:
    """Activations on disk. `lengths` are the prompts' tokens; `asked` tells whether two stores hold the same prompts.

    With positions "last" there is a row a prompt, with "all" a row a token: pads are left out.
    """

    folder: Path
    places: tuple[Place, ...]
    positions: Positions
    lengths: tuple[int, ...]
    dtype: str
    model: str
    asked: str
    shards: tuple[str, ...]

    @property
    def prompts(self) -> Int[Tensor, "row"]:
        """The prompt that each row of `read` belongs to."""
        repeats = torch.tensor(self.lengths) if self.positions == "all" else torch.ones(len(self.lengths)).long()
        return torch.arange(len(self.lengths)).repeat_interleave(repeats)

    def read(self, place: Place) -> Float[Tensor, "row d"]:
        """Every row at one place in the order the prompts were asked in, tokens in theirs, in the dtype stored."""
        parts = list(self.pieces(place))
        order = torch.cat([rows for rows, _ in parts]).argsort(stable=True)
        return torch.cat([values for _, values in parts])[order]

    def pieces(self, place: Place) -> Iterator[tuple[Int[Tensor, "row"], Float[Tensor, "row d"]]]:
        """The same shard by shard: the rows' prompts and the rows. Shards follow the lengths of prompts; within one,
        prompts and tokens are in the order of `read`."""
        if place not in self.places:
            raise unknown("place in this store", place, self.places)
        for name in self.shards:
            with safe_open(self.folder / name, "pt") as shard:  # reads this place's bytes, not the whole shard
                yield shard.get_tensor(_ROWS), shard.get_tensor(_key(place))


def write(
    folder: Path,
    model: LanguageModel,
    asked: Sequence[Prompt],
    places: Sequence[Place],
    positions: Positions = "last",
    batch: int = 64,
    edits: Mapping[Place, Edit] | None = None,
    shard: int = SHARD,
) -> Store:
    """Run prompts through the model and store its activations at `places`, in the model's dtype.

    At the last token of each prompt, or with positions "all" at every token but pads. Prompts of like length share a
    batch, the longest first; batches get smaller when memory runs out. `folder` appears when the store is whole and
    replaces an older one. `InputError` before work starts when there is nothing to store or no room for it.
    """
    if positions not in ("last", "all"):
        raise unknown("positions", positions, ("last", "all"))
    if not asked or not places or len(set(places)) < len(places):
        raise InputError(
            f"{len(asked)} prompts at places {list(places)} cannot be stored; name at least one of each, places once"
        )
    if folder.exists() and not (folder / storage.SEAL).is_file():
        raise InputError(f"{folder} is there and no store, so it is not replaced; name a new folder")
    ids = prompts.prompt_ids(model.tokenizer, asked)
    lengths = [len(row) for row in ids]
    rows = len(ids) if positions == "last" else sum(lengths)
    size = rows * sum(_width(model, place) for place in places) * model.hf.dtype.itemsize
    storage.require_space(folder, size + 2**20, "the store of activations")
    about = {
        "kind": _KIND, "places": [list(place) for place in places], "positions": positions, "lengths": lengths,
        "dtype": str(model.hf.dtype).removeprefix("torch."), "model": model.name, "asked": storage.digest_json(ids),
    }  # fmt: skip

    def states(chosen: list[int]) -> dict[Place, Tensor]:
        encoding = prompts.pad_left([ids[row] for row in chosen], model.tokenizer.pad_token_id)
        with torch.inference_mode():
            found = tracing.forward(model.traced, encoding, places, edits, positions).activations
            if positions == "all":
                mask = encoding["attention_mask"].bool()
                found = {place: values[mask.to(values.device)] for place, values in found.items()}
            return {place: values.cpu() for place, values in found.items()}

    def fill(temporary: Path) -> None:
        shards = _Shards(temporary, shard)
        for chosen, found in batches.halving(reversed(prompts.by_length(lengths, batch)), lengths, states):
            repeats = torch.tensor([lengths[row] if positions == "all" else 1 for row in chosen])
            shards.add(torch.tensor(chosen).repeat_interleave(repeats), found)
        shards.flush()

    storage.seal_folder(folder, fill, about)
    return load(folder, check=False)


def load(folder: Path, check: bool = True) -> Store:
    """A store that was written before. `InputError` when it is missing, incomplete or damaged.

    Every byte is read for that; `check=False` trusts what was checked or written a moment ago.
    """
    remedy = "write it again with activation_store.write"
    if not folder.is_dir():
        raise InputError(f"there is no store of activations at {folder}; {remedy}")
    if check and (problem := storage.damage(folder)):
        raise InputError(f"the store of activations at {folder} is not used: {problem}; {remedy}")
    about = storage.read_seal(folder)
    if not isinstance(about, dict) or about.get("kind") != _KIND:
        raise InputError(f"{folder} is sealed, but is no store of activations of this version; {remedy}")
    places = tuple((site, layer) for site, layer in about["places"])
    shards = tuple(sorted(path.name for path in folder.glob("*.safetensors")))
    positions, dtype, model, asked = (about[name] for name in ("positions", "dtype", "model", "asked"))
    found = Store(folder, places, positions, tuple(about["lengths"]), dtype, model, asked, shards)
    rows = [_count(folder / name) for name in found.shards]
    if sum(rows) != len(found.prompts):
        raise InputError(
            f"the store of activations at {folder} is incomplete: {sum(rows)} of {len(found.prompts)} rows; {remedy}"
        )
    return found


def check_pair(before: Store, after: Store) -> None:
    """Refuse two stores whose rows cannot be subtracted."""
    for what in ("places", "positions", "asked"):
        if getattr(before, what) != getattr(after, what):
            raise InputError(
                f"the stores {before.folder.name} and {after.folder.name} differ in their {what}; write both from the "
                "same prompts at the same places"
            )


@dataclass
class _Shards:
    """Rows that wait to be written, and the shards that are."""

    folder: Path
    most: int  # bytes
    rows: list[Tensor] = field(default_factory=list)
    values: list[dict[Place, Tensor]] = field(default_factory=list)
    bytes: int = 0
    written: int = 0

    def add(self, rows: Tensor, values: dict[Place, Tensor]) -> None:
        self.rows.append(rows)
        self.values.append(values)
        self.bytes += sum(x.nbytes for x in values.values())
        if self.bytes >= self.most:
            self.flush()

    def flush(self) -> None:
        if not self.rows:
            return
        rows = torch.cat(self.rows)
        order = rows.argsort(stable=True)
        tensors: dict[str, Any] = {_ROWS: rows[order]}
        for place in list(self.values[0]):
            tensors[_key(place)] = torch.cat([values.pop(place) for values in self.values])[order]
        save_file(tensors, self.folder / f"{self.written:05}.safetensors")
        self.rows, self.values, self.bytes, self.written = [], [], 0, self.written + 1


def _key(place: Place) -> str:
    return f"{place[0]}.{place[1]}"


def _count(path: Path) -> int:
    with safe_open(path, "pt") as shard:
        return shard.get_slice(_ROWS).get_shape()[0]


def _width(model: LanguageModel, place: Place) -> int:
    """How wide a place is; `InputError` when there is no such place."""
    model.traced.locate(place)
    kinds = {site: kind for kind, site in families.UNIT_SITES.items()}
    if place[0] in kinds:
        return len(families.unit_slices(model.hf, kinds[place[0]], place[1])[-1][2])
    return model.width
