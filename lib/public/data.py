"""Prompts of the public data sets the papers used, from a local folder or the Hugging Face hub.

Owns reading, checking and the record of what was read; what the sets look like is in `schemas`, drawing is `world`'s.
Real harmful text must not reach notebooks, results or logs: prompts show a length and a digest instead of their words,
tables of sensitive sets hold digests, and no error repeats a row, not even as its cause (messages of parsers can
quote one). A folder is read without `datasets`, which would leave a copy of the rows in its cache.
"""

import contextlib
import csv
import fnmatch
import importlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from lib import storage
from lib.errors import InputError
from lib.prompts import Prompt, PromptSet, digest
from lib.public import schemas
from lib.public.schemas import LINES, Hub, Layout, Schema

DATA_DIR = "DATA_DIR"
_FILE = "_file"  # the column that says which file a row is from
_NAME = re.compile(r"\w{1,32}")  # a column's name; anything longer may be a row that was taken for a header


@dataclass(frozen=True, repr=False)
class PublicPrompt(Prompt):
    """A prompt of a public data set. Its words are there for models (`text`), and nowhere else: not in its repr.

    `split` is set and publisher's split, such as `xstest/test`: whether a model's safety data had it is not known.
    `meaning` is a digest; prompts of one goal share it.
    """

    free: bool = True
    sensitive: bool = True
    category: str = ""

    def __repr__(self) -> str:
        return f"<{self.kind} prompt of {self.split}: {len(self.text)} characters, sha256 {digest(self.text)}>"

    def row(self) -> dict[str, Any]:
        return {**super().row(), "category": self.category}


@dataclass(frozen=True, repr=False)
class PublicText(PublicPrompt):
    """The beginning of running text; what follows is the answer, and the text goes on after it."""

    ends: ClassVar[bool] = False


@dataclass(frozen=True)
class Record:
    """Where prompts came from; no text in it. `files` are sha256 of local files, `content` of the rows as read."""

    name: str
    licence: str
    sensitive: bool
    origin: str  # folder, or the hub's id
    revision: str | None  # None for a folder
    pinned: bool  # whether revision is a commit or the files' digests are known
    config: str | None
    split: str
    files: dict[str, str]
    content: str
    available: int
    blank: int  # rows without text; running text has them, and published perplexities count them

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PublicSet(PromptSet):
    """Prompts with the record of where they came from."""

    prompts: tuple[PublicPrompt, ...]
    record: Record


def load(name: str, folder: str | Path | None = None) -> PublicSet:
    """Every prompt of a public data set, in its order.

    `folder` holds the publisher's files, or a folder of the set's name with them; without it, the hub is asked.
    `InputError` for an unknown set, files or columns that are not there, and rows without text.
    """
    schema = schemas.load(name)
    rows, layout, origin = _from_hub(schema) if folder is None else _from_folder(schema, Path(folder))
    prompts, blank = _prompts(schema, layout, rows, origin["split"])
    if not prompts:
        raise InputError(f"{name} has no rows where it was looked for ({origin['origin']}); get the publisher's files")
    record = Record(
        name=name, licence=schema.licence, sensitive=schema.sensitive, **origin,
        content=storage.digest_json([[p.text, p.answer, p.kind, p.category, p.style] for p in prompts]),
        available=len(prompts), blank=blank,
    )  # fmt: skip
    return PublicSet(tuple(prompts), record)


def _guarded(action: Callable[[], Any], failed: str) -> Any:
    """What `action` gives, or an `InputError` that names only the kind of problem: messages of parsers quote rows.

    It is raised outside the handler, so that it does not carry the parser's error along as its context either.
    """
    try:
        return action()
    except Exception as problem:  # whatever the libraries raise
        kind = type(problem).__name__
    raise InputError(f"{failed} ({kind})")


def _library(name: str, needed: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{needed} needs the package {name}; run: pip install {name}") from None


# from the hub ---------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No messages of `datasets`: the ones about malformed files can quote them."""
    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _from_hub(schema: Schema) -> tuple[pd.DataFrame, Layout, dict[str, Any]]:
    hub = schema.hub
    if hub is None:
        raise InputError(
            f"{schema.name} is not on the hub; set {DATA_DIR} to a folder with its files ({schema.source})"
        )
    datasets = _library("datasets", f"{schema.name} from the hub")
    failed = (
        f"{schema.name} could not be had from {hub.id} on the hub (access: {hub.access}); or download its files and "
        f"set {DATA_DIR} to their folder"
    )
    with _quiet(datasets):
        rows = _guarded(partial(_hub_rows, datasets, hub), failed)
    _require_columns(schema, hub, rows, hub.id)
    origin = {
        "origin": hub.id, "revision": hub.revision, "pinned": hub.pinned, "config": hub.config, "split": hub.split,
        "files": {},
    }  # fmt: skip
    return rows, hub, origin


def _hub_rows(datasets: Any, hub: Hub) -> pd.DataFrame:
    if not hub.lines:
        return datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.git).to_pandas()
    parts = []
    for name in hub.files:
        found = datasets.load_dataset(
            "text", data_files={hub.split: f"hf://datasets/{hub.id}@{hub.git}/{name}"}, split=hub.split
        )
        parts.append(_lines(list(found[LINES]), name))
    return pd.concat(parts, ignore_index=True)


# from a folder --------------------------------------------------------------------------------------------------------
def _from_folder(schema: Schema, folder: Path) -> tuple[pd.DataFrame, Layout, dict[str, Any]]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name one with the files of {schema.name}, or unset {DATA_DIR}")
    layout, files = _find(schema, folder)
    parts = []
    for path in files:
        if path.suffix == ".parquet":
            _library("pyarrow", path.name)
        failed = f"{path.name} of {schema.name} cannot be read as {path.suffix[1:]}; get the publisher's file again"
        part = _guarded(partial(_read, path, layout), failed)
        _require_columns(schema, layout, part, path.name)
        parts.append(part)
    origin = {
        "origin": "folder", "revision": None, "pinned": True, "config": None, "split": schema.hub.split if schema.hub
        else "all", "files": {path.name: storage.digest(path) for path in files},
    }  # fmt: skip
    return pd.concat(parts, ignore_index=True), layout, origin


def _find(schema: Schema, folder: Path) -> tuple[Layout, list[Path]]:
    """The one layout whose files are in the folder or in its folder of the set's name, and those files in order."""
    own = folder / schema.name
    place = own if own.is_dir() else folder
    wanted: list[tuple[Layout, list[str]]] = [(layout, layout.files) for layout in schema.local]
    if schema.hub and own.is_dir():  # names such as train-*.parquet say nothing outside the set's own folder
        wanted.append((schema.hub, schema.hub.snapshot))
    found = [
        (layout, sorted({p for name in names for p in place.glob(name)}, key=_natural)) for layout, names in wanted
    ]
    found = [(layout, files) for layout, files in found if files]
    known = [name for _, names in wanted for name in names]
    if not found:
        hub = f"; or unset {DATA_DIR} to have it from the hub (access: {schema.hub.access})" if schema.hub else ""
        raise InputError(
            f"no files of {schema.name} in {place.name!r}; it may hold {', '.join(known)} ({schema.source}){hub}"
        )
    if len(found) > 1:
        several = ", ".join(path.name for _, files in found for path in files)
        raise InputError(f"{place.name!r} has {schema.name} more than once ({several}); keep one form of it")
    return found[0]


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts category_9 before category_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path.name)]


def _read(path: Path, layout: Layout) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path).assign(**{_FILE: path.name})
    text = path.read_text(encoding="utf-8-sig")
    if layout.lines:
        return _lines(text.removesuffix("\n").split("\n"), path.name)
    if path.suffix == ".csv":
        return _table(text).assign(**{_FILE: path.name})
    rows = (
        json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line.strip()]
    )
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise TypeError  # its kind is all that is reported
    return pd.DataFrame(rows).assign(**{_FILE: path.name})


def _table(text: str) -> pd.DataFrame:
    """A csv file, every cell as it stands. pandas would take the first cell of rows that are too long for an index."""
    header, *body = (row for row in csv.reader(io.StringIO(text), strict=True) if row)
    if any(len(row) != len(header) for row in body):
        raise ValueError  # its kind is all that is reported
    return pd.DataFrame(body, columns=header)


def _lines(lines: Sequence[str], name: str) -> pd.DataFrame:
    """One row a line; blank lines at the end of prompts are no rows. A line of a csv file is unquoted where it is one
    cell."""
    kept = list(lines)
    while kept and not kept[-1].strip() and not name.endswith(".raw"):
        kept.pop()
    if name.endswith(".csv"):
        cells = [next(csv.reader([line]), []) for line in kept]
        kept = [cell[0] if len(cell) == 1 else line for cell, line in zip(cells, kept, strict=True)]
    return pd.DataFrame({LINES: kept, _FILE: name})


# rows to prompts ------------------------------------------------------------------------------------------------------
def _require_columns(schema: Schema, layout: Layout, rows: pd.DataFrame, where: str) -> None:
    wanted = [*layout.fields.values(), *([layout.harmful.column] if layout.harmful else [])]
    missing = [column for column in dict.fromkeys(wanted) if column not in rows.columns]
    if not missing:
        return
    there = [str(column) for column in rows.columns if column not in (_FILE, "")]
    shown = [column for column in there if _NAME.fullmatch(column)]
    hidden = len(there) - len(shown)
    also = f" and {hidden} that look like text (is the first row no header?)" if hidden else ""
    raise InputError(
        f"{where} of {schema.name} lacks the columns {', '.join(missing)}; it has {', '.join(shown) or 'none'}{also}. "
        "Get the publisher's file, or describe this one in data/datasets"
    )


def _cells(schema: Schema, rows: pd.DataFrame, column: str) -> list[str]:
    """A column as text; missing cells are empty. `InputError` says where a cell is neither text nor a number."""
    values = rows[column].astype(object)
    values = values.where(values.notna(), "")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str | int | float):
            raise InputError(
                f"{schema.name}: row {number} of column {column} is a {type(value).__name__}, not text; get the "
                "publisher's file"
            )
    return [str(value) for value in values]


def _prompts(schema: Schema, layout: Layout, rows: pd.DataFrame, split: str) -> tuple[list[PublicPrompt], int]:
    """Every row as a prompt, and how many are blank, which only running text may have."""
    fields: dict[str, list[str]] = {field: _cells(schema, rows, column) for field, column in layout.fields.items()}
    empty = [number for number, text in enumerate(fields["text"], start=1) if not text.strip()]
    if empty and not schema.running_text:
        raise InputError(
            f"{schema.name}: {len(empty)} rows have no text, the first is row {empty[0]}; get the publisher's file"
        )
    fields |= _of_file(layout, rows)
    harmful = _harmful(schema, layout, rows)
    prompts = [
        _prompt(schema, {field: values[number] for field, values in fields.items()}, harmful[number], split)
        for number in range(len(rows))
    ]
    return prompts, len(empty)


def _of_file(layout: Layout, rows: pd.DataFrame) -> dict[str, list[str]]:
    if layout.file_is is None:
        return {}
    return {layout.file_is: [Path(name).stem.removesuffix(layout.without) for name in rows[_FILE]]}


def _harmful(schema: Schema, layout: Layout, rows: pd.DataFrame) -> list[bool]:
    rule = layout.harmful
    if rule is None:
        return [schema.kind == "harmful"] * len(rows)
    labels = [label.strip() for label in _cells(schema, rows, rule.column)]
    if "" in labels:
        raise InputError(
            f"{schema.name}: row {labels.index('') + 1} has nothing in {rule.column}, which says whether it is "
            "harmful; get the publisher's file"
        )
    return [any(fnmatch.fnmatchcase(label, pattern) for pattern in rule.like) for label in labels]


def _prompt(schema: Schema, row: dict[str, str], harmful: bool, split: str) -> PublicPrompt:
    parts = [row.get("before", ""), row["text"], row.get("after", "")]
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    if schema.running_text:  # as on the hub: a line with its end, or nothing
        text = row["text"].rstrip("\n") + "\n" if text else ""
    plain = schema.name if schema.kind == "skill" else "plain"
    return PublicPrompt(
        text=text, answer=row.get("answer", "").strip(), kind="harmful" if harmful else schema.kind,
        style=row.get("style", plain), split=f"{schema.name}/{split}",
        meaning=digest(row.get("meaning", "").strip() or text), category=row.get("category", ""),
        sensitive=schema.sensitive,
    )  # fmt: skip
