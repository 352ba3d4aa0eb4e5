"""Where the outcome of a run is kept: another place for all that could change it, the same for what cannot."""

from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import pytest

from lib import kept_runs, paths, profiles, threads
from lib.errors import NotHere
from lib.prompts import Example, Prompt

PROMPT = Prompt("how do i bake", "with flour", "benign", "plain", "train")


@dataclass(frozen=True)
class Told:
    """A world as far as a place asks."""

    settings: Any
    seed: int = 0
    openers: tuple[str, ...] = ("no",)
    refusals: tuple[str, ...] = ("no, i refuse",)


WORLD = Told(profiles.load("tiny"))


def place(world: Any = WORLD, about=None, decides=None, read=PROMPT, asked=PROMPT, code=("budget", "units")):
    about, decides = about or {"arm": "10 % of all"}, decides or {"rate": 1}
    return kept_runs.place(world, about, decides, cycle([Example(read, "x")]), {"cell": (asked,)}, code)


def test_a_place_is_named_by_the_run_and_its_key():
    found = place()
    assert found.folder.parent == paths.CACHE / "budget" / "tiny"
    assert found.folder.name.startswith("0-10__of_all-")
    assert found.about == {"profile": "tiny", "seed": 0, "arm": "10 % of all"}
    assert place() == found


OTHER = replace(PROMPT, text="how do i brew")


@pytest.mark.parametrize(
    "change",
    [
        {"world": replace(WORLD, seed=1)},
        {"world": replace(WORLD, openers=("no", "never"))},
        {"world": replace(WORLD, refusals=("never",))},
        {"world": replace(WORLD, settings=profiles.load("kingdom"))},
        {"about": {"arm": "another"}},
        {"decides": {"rate": 2}},
        {"read": OTHER},
        {"asked": OTHER},
        {"code": ("budget",)},
    ],
    ids=["seed", "openers", "refusals", "profile", "name", "settings", "read", "asked", "code"],
)
def test_another_run_has_another_place(change):
    key = place().folder.name.rpartition("-")[2]
    assert place(**change).folder.name.rpartition("-")[2] != key


@pytest.mark.parametrize("name", [*kept_runs.CODE, "budget", "units"])
def test_a_change_of_code_that_trains_or_measures_is_another_run(monkeypatch, tmp_path, name):
    before = place()
    for file in paths.LIB.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        (tmp_path / file.name).write_text(text + "\nCHANGED = 1\n" if file.stem == name else f"# note\n{text}")
    monkeypatch.setattr(paths, "LIB", tmp_path)
    assert place() != before


def test_the_loop_and_all_it_calls_are_in_every_key():
    assert {"training", "processes", "precision"} <= set(kept_runs.CODE)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What would be trained side by side."""
    seen: list[tuple] = []
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(kept_runs, "side_by_side", lambda work, calls: seen.append((work, calls)))
    return seen


def at(profile, name):
    return place(about={"arm": name})


def test_only_what_is_missing_or_damaged_is_trained(started):
    for name in ("whole", "damaged"):
        at("tiny", name).remembered(lambda: [1])
    (at("tiny", "damaged").folder / "value.json").write_text("[2]")
    calls = [("tiny", name) for name in ("whole", "damaged", "missing")]
    kept_runs.prepare("tiny", threads.side_by_side, at, calls)
    assert started == [(threads.side_by_side, calls[1:])]
    assert [at(*call).empty for call in calls] == [False, True, True]


def test_nothing_is_looked_for_where_nothing_can_be_trained(started, monkeypatch):
    monkeypatch.setattr(kept_runs.models, "check_trainable", lambda _: (_ for _ in ()).throw(NotHere("on a server")))
    with pytest.raises(NotHere, match="on a server"):
        kept_runs.prepare("tiny", threads.side_by_side, lambda *_: pytest.fail("looked"), [("tiny", "a")])
