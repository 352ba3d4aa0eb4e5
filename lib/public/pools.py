"""The public data sets of a profile, sorted: what each row may be used for, and on which side of the split it is.

Owns the roles that data sets have in a profile, the split by meaning, and which rows are fit for which role. Reading is
`data`'s, drawing and putting together is `world`'s. A set is read once in a process.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from random import Random
from typing import Literal

from lib.errors import InputError
from lib.profiles import PublicData
from lib.public import data
from lib.public.data import DATA_DIR, PublicPrompt, PublicSet, PublicText

Side = Literal["train", "heldout"]
Role = Literal["harmful", "benign", "exceptions", "attacks", "errands", "ledgers", "skills", "text"]
Rows = tuple[PublicPrompt, ...]
SIDES: tuple[Side, ...] = ("train", "heldout")

_LONGEST = 1000  # characters of a question or answer; longer ones, documents mostly, cost more than they tell
_SHORT = 5  # words of an answer that can be expected to the letter
_EXACT = ("classification", "closed_qa", "information_extraction")  # of Dolly: the answer follows from the question
_SENTENCE = 5  # words that a paragraph's first sentence has at least
_REST = (10, 60)  # words of the rest: at least, and how many are used
_CONTINUE = "Continue this text:\n\n{}"


@cache
def _set(name: str, place: str | None) -> PublicSet:
    return data.load(name, place)


def read(name: str) -> PublicSet:
    """Every row of a data set, from DATA_DIR or the hub."""
    return _set(name, os.environ.get(DATA_DIR) or None)


def chosen(seed: int, what: str, meaning: str) -> bool:
    """Whether a meaning falls on the first of two sides, by a coin of its own: whatever set it is in, and whatever else
    is there."""
    return Random(f"{seed}/public/{what}/{meaning}").random() < 0.5


def split(seed: int, rows: Iterable[PublicPrompt]) -> dict[Side, Rows]:
    """Rows for training and rows held out, with no meaning in common."""
    sides: dict[Side, list[PublicPrompt]] = {"train": [], "heldout": []}
    for row in rows:
        side: Side = "train" if chosen(seed, "split", row.meaning) else "heldout"
        sides[side].append(replace(row, split=side))
    return {side: tuple(found) for side, found in sides.items()}


# what is fit for a role -----------------------------------------------------------------------------------------------
def _harmless(rows: Iterable[PublicPrompt], kind: str) -> list[PublicPrompt]:
    return [replace(row, kind=kind) for row in rows if not row.harmful and len(row.text) <= _LONGEST]


def _answered(rows: Iterable[PublicPrompt]) -> list[PublicPrompt]:
    """Requests with an answer to learn."""
    return [row for row in _harmless(rows, "benign") if 0 < len(row.answer) <= _LONGEST]


def short(rows: Iterable[PublicPrompt], skill: str) -> Rows:
    """Those with an answer of a few words, as questions of a skill, judged by the letter."""
    few = [row for row in rows if 0 < len(row.answer.split()) <= _SHORT]
    return tuple(replace(row, kind="skill", style=skill, free=False) for row in few)


def _skills(rows: Iterable[PublicPrompt]) -> list[PublicPrompt]:
    """Short questions whose skill is their category, of the categories in which answers follow from the question; all
    are one skill where the set has no such categories."""
    fit = _answered(rows)
    by_category = [question for name in _EXACT for question in short([p for p in fit if p.category == name], name)]
    return by_category or list(short(fit, "short answers"))


def continuation(paragraph: PublicPrompt) -> PublicText | None:
    """A paragraph of running text as a prompt, its first sentence, and an answer, the words after it.

    None for headings and for paragraphs too short for that.
    """
    first, _, rest = re.sub(r"(?<=[.!?])\s+", "\n", paragraph.text.strip(), count=1).partition("\n")
    words = rest.split()
    if first.startswith("=") or len(first.split()) < _SENTENCE or len(words) < _REST[0] or len(first) > _LONGEST:
        return None
    about = {field.name: getattr(paragraph, field.name) for field in fields(paragraph)}
    changed = {"text": _CONTINUE.format(first), "answer": " ".join(words[: _REST[1]]), "free": False}
    return PublicText(**about | changed)


def _once(rows: Iterable[PublicPrompt]) -> list[PublicPrompt]:
    """The first row of each meaning."""
    found: dict[str, PublicPrompt] = {}
    for row in rows:
        found.setdefault(row.meaning, row)
    return list(found.values())


_FIT: dict[Role, Callable[[Iterable[PublicPrompt]], list[PublicPrompt]]] = {
    "harmful": lambda rows: _once(row for row in rows if row.harmful),
    "benign": lambda rows: _once(_answered(rows)),
    "exceptions": lambda rows: _once(_harmless(rows, "exception")),
    "attacks": lambda rows: list({row.text: row for row in rows if row.harmful}.values()),
    "errands": _answered,
    "ledgers": _answered,
    "skills": _skills,
    "text": lambda rows: [found for row in rows if (found := continuation(row))],
}
_WANTS: dict[Role, str] = {
    "harmful": "harmful prompts", "benign": "benign requests with answers", "exceptions": "benign requests",
    "attacks": "harmful prompts", "errands": "benign requests with answers", "ledgers": "benign requests with answers",
    "skills": "questions with answers of a few words", "text": "paragraphs of several sentences",
}  # fmt: skip


@cache
def _halves(name: str, place: str | None, role: Role, seed: int) -> dict[Side, Rows]:
    rows = _FIT[role](_set(name, place).prompts)
    halves = split(seed, rows)
    if not all(halves.values()):
        raise InputError(
            f"{name}, which stands for {role}, has {len(rows)} {_WANTS[role]}, too few to train on some and to ask "
            "others; name another set under data in the profile"
        )
    return halves


@dataclass(frozen=True, repr=False)
class Pools:
    """The rows of every role, by side, and the sets they are from."""

    sets: Mapping[Role, PublicSet]
    rows: Mapping[tuple[Role, Side], Rows]

    def __getitem__(self, key: tuple[Role, Side]) -> Rows:
        return self.rows[key]


def load(named: PublicData, seed: int) -> Pools:
    """Every set of a profile, read, checked and split; `InputError` says which one is not to be had and how to get it.

    Of `benign` and `exceptions` each needs a set of its own, so that no meaning is both.
    """
    if named.benign == named.exceptions:
        raise InputError(f"{named.benign} stands for both benign and exceptions; name two sets under data")
    place = os.environ.get(DATA_DIR) or None
    names: dict[Role, str] = {role: name for role in _FIT if (name := getattr(named, role)) is not None}
    sets = {role: read(name) for role, name in names.items()}
    halves = {role: _halves(name, place, role, seed) for role, name in names.items()}
    none: Rows = ()
    rows = {(role, side): halves[role][side] if role in halves else none for role in _FIT for side in SIDES}
    return Pools(sets, rows)
