"""Pages 02, 09 and 11 on a checkpoint profile: they run through, or stop with a reason, and leave no sensitive word."""

import json

import pytest

from lib import claims, paths, provenance
from lib.claims import ClaimVerdict
from tests import pages, toy_world
from tests.toy_world import SECRETS, ToyWorld


class Page:
    """One notebook run on the toy profile: what it showed and what it left in its folders."""

    def __init__(self, monkeypatch, tmp_path, name, world):
        self.name, self.root = name, tmp_path
        toy_world.install(monkeypatch, world)
        monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
        monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
        monkeypatch.setattr(provenance, "code_hash", lambda *_: "toy")
        monkeypatch.setattr(claims.provenance, "code_hash", lambda *_: "toy")
        self.shown, self.stopped = pages.run(name, toy_world.NAME)

    def verdicts(self):
        file = json.loads(paths.result_file(paths.run_folder(toy_world.NAME, 0) / "results", self.name).read_text())
        return file["parts"], file["requires"]

    def leaks(self):
        """Secrets in what was shown or written."""
        texts = {"shown": self.shown}
        for path in self.root.rglob("*"):
            if path.is_file() and path.suffix in (".json", ".csv", ".svg", ".txt", ".md"):
                texts[path.relative_to(self.root).as_posix()] = path.read_text(encoding="utf-8")
        return [(where, word) for where, text in texts.items() for word in SECRETS if word in text]


@pytest.fixture
def run(monkeypatch, tmp_path):
    return lambda name, world: Page(monkeypatch, tmp_path, name, world)


@pytest.mark.parametrize("answered", [True, False])
def test_answers_are_compared_without_styles(run, answered):
    page = run("02_reasoning_direction", ToyWorld(answered=answered))
    assert page.stopped is None
    parts, _ = page.verdicts()
    assert parts["ssah.2.predicts"]["value"] is None
    assert "no harmful prompts in jailbreak styles" in parts["ssah.2.predicts"]["reason"]
    measured = {name for name, part in parts.items() if part["value"] is not None}
    assert measured == set(parts) - {"ssah.2.predicts"}
    assert page.leaks() == []
    assert "words of a harmful prompt, not shown" in page.shown


def test_with_styles_it_is_asked_whether_refusal_is_foretold(run):
    page = run("02_reasoning_direction", ToyWorld(toy_world.STYLES))
    assert page.stopped is None
    parts, _ = page.verdicts()
    assert "styled harmful prompts" in (parts["ssah.2.predicts"]["reason"] or "") or parts["ssah.2.predicts"]["value"]
    assert page.leaks() == []


def test_components_are_not_told_apart_without_styles(run):
    page = run("09_feature_directions", ToyWorld())
    assert "prompts of 0 styles, not of 3 or more" in page.stopped
    assert page.leaks() == []


def test_components_with_styles(run):
    page = run("09_feature_directions", ToyWorld(toy_world.STYLES))
    assert page.stopped is None
    parts, _ = page.verdicts()
    assert all(part["value"] is not None for part in parts.values()), page.shown
    assert page.leaks() == []
    assert "content #3" in page.shown


def test_words_are_left_out_and_nothing_is_comparable_with_the_papers(run):
    page = run("11_trigger_removal", ToyWorld())
    assert page.stopped is None
    parts, requires = page.verdicts()
    assert {name for name, part in parts.items() if part["value"] is None} == {"hd.10.gap", "hd.11.dpo", "hd.11.both"}
    assert not requires["hd.10"]["met"]
    assert page.shown.count("not comparable with the paper's") >= 1
    assert page.leaks() == []
    assert ClaimVerdict.NOT_TESTABLE.value in page.shown


def test_trigger_removal_beside_styles(run):
    page = run("11_trigger_removal", ToyWorld(toy_world.STYLES))
    assert page.stopped is None
    parts, requires = page.verdicts()
    assert all(part["value"] is not None for part in parts.values())
    assert "hold no prompts of trigger removal" in requires["hd.10"]["reason"]
    assert page.leaks() == []
