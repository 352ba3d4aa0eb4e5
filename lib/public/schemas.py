"""How public data sets look where their publishers keep them, read from `data/datasets/*.yaml`.

Owns the shape of such a description and its checks: hub id and revision, the files a local copy may have, which of
their columns is which of our fields, licence, and whether the prompts are really harmful. Rows are read by
`data`.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lib import paths, plain_data
from lib.errors import InputError, unknown

FOLDER = paths.DATA / "datasets"
FORMATS = (".csv", ".json", ".jsonl", ".parquet", ".txt", ".raw")
LINES = "text"  # the column that files of one prompt a line are given

# text is what is asked; before and after stand around it, a blank line between, where they are not empty; answer is
# what the publisher says a compliant answer is or opens with; rows with one meaning count as one (kept as a digest)
Column = Literal["text", "before", "after", "answer", "category", "meaning"]
_COMMIT, _ASSUMED = re.compile(r"[0-9a-f]{40}"), re.compile(r"assumed: (\S+)")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Harmful(_Strict):
    """Rows whose `column` matches one of the patterns `like` are harmful; the others are of the set's kind."""

    column: str
    like: Annotated[list[str], Field(min_length=1)]


class Layout(_Strict):
    """One form in which a publisher ships the rows: a table with named columns, or one prompt a line."""

    columns: dict[Column, str] = {}
    lines: bool = False
    harmful: Harmful | None = None
    file_is: Literal["category", "style"] | None = None  # what a file's name says about its rows
    without: str = ""  # end of the name that says nothing

    @model_validator(mode="after")
    def _complete(self) -> "Layout":
        if self.lines and (self.columns or self.harmful):
            raise ValueError("files of one prompt a line have no columns to name")
        if not self.lines and "text" not in self.columns:
            raise ValueError("columns must say which one holds the text")
        return self

    @property
    def fields(self) -> Mapping[Column, str]:
        """Our field -> the publisher's column."""
        return {"text": LINES} if self.lines else self.columns


class Hub(Layout):
    """Where the Hugging Face hub has the set, and the files a snapshot of that repository holds."""

    id: str
    revision: str
    why: str = ""  # there is no commit
    access: str
    config: str | None = None
    split: str
    files: list[str] = []  # for files of one prompt a line
    snapshot: list[str] = []

    @model_validator(mode="after")
    def _pinned(self) -> "Hub":
        if not (_COMMIT.fullmatch(self.revision) or (_ASSUMED.fullmatch(self.revision) and self.why)):
            raise ValueError("revision must be a whole commit hash, or 'assumed: BRANCH' with the reason in why")
        if self.lines != bool(self.files):
            raise ValueError("files are named exactly when they hold one prompt a line")
        if self.file_is and not self.files:
            raise ValueError("file_is needs the files named")
        return self

    @property
    def pinned(self) -> bool:
        return bool(_COMMIT.fullmatch(self.revision))

    @property
    def git(self) -> str:
        """The revision as git knows it."""
        return self.revision.removeprefix("assumed: ")


class Local(Layout):
    """Files of the publisher's own that may lie in a folder; all that are there belong together."""

    files: Annotated[list[str], Field(min_length=1)]


class Schema(_Strict):
    """One public data set."""

    name: str
    about: str
    source: str
    licence: str
    sensitive: bool  # whether prompts are really harmful, so that no text may be shown
    kind: Literal["harmful", "benign", "exception", "skill"]
    running_text: bool = False
    hub: Hub | None = None
    local: Annotated[list[Local], Field(min_length=1)]

    @model_validator(mode="after")
    def _readable(self) -> "Schema":
        files = [name for layout in self.local for name in layout.files] + (self.hub.snapshot if self.hub else [])
        if wrong := [name for name in files if Path(name).suffix not in FORMATS]:
            raise ValueError(f"files {wrong} end in none of {FORMATS}")
        if wrong := [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]:
            raise ValueError(f"files {wrong} are not in the folder of the set; name files inside it")
        return self


def names() -> list[str]:
    """The public data sets that are described, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(path: Path) -> Schema:
    """A description, checked; `InputError` names every field that is wrong."""
    try:
        schema = Schema.model_validate(plain_data.read_yaml(path))
    except ValidationError as problem:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'schema'}: {e['msg']}" for e in problem.errors())
        raise InputError(f"{path.name} is not a data set's description: {wrong}") from None
    if schema.name != path.stem:
        raise InputError(f"{path.name} describes {schema.name!r}; name the file after the data set")
    return schema


@cache
def load(name: str) -> Schema:
    """The description of a public data set, by name."""
    if name not in names():
        raise unknown("data set", name, names())
    return read(FOLDER / f"{name}.yaml")
