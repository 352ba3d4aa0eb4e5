"""Pages 02, 09, 11 and 16 on a checkpoint profile: they run through, or stop with a reason, and leave no sensitive
word, whatever the models say."""

import json

import pytest

from lib import behaviour, judged, models, paths, profiles, prompt_sets
from lib.claims import ClaimVerdict
from tests import pages, toy_checkpoint
from tests.toy_checkpoint import SECRET, STYLES


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    with toy_checkpoint.shelf(tmp_path_factory) as take:
        yield take


@pytest.fixture
def run(capfd, caplog):
    """Runs a page: what it shows, why it stopped, what it recorded of parts and claims; nothing sensitive is left."""

    def of(page, toy):
        shown, stopped = pages.run(page, toy.name)
        said = "".join(capfd.readouterr()) + caplog.text
        assert toy.leaks(shown + said) == []
        if stopped:
            return shown, stopped, {}, {}
        file = json.loads(paths.result_file(paths.run_folder(toy.name, 0) / "results", page).read_text())
        return shown, stopped, file["parts"], file["requires"]

    return of


@pytest.mark.parametrize("answered", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_answers_are_compared_without_styles(toy, run, answered):
    shown, stopped, parts, _ = run("02_reasoning_direction", toy(answered=answered))
    assert stopped is None
    assert parts["ssah.2.predicts"]["value"] is None
    assert "no harmful prompts in jailbreak styles" in parts["ssah.2.predicts"]["reason"]
    measured = {name for name, part in parts.items() if part["value"] is not None}
    assert measured == set(parts) - {"ssah.2.predicts"}
    assert "words of a harmful prompt, not shown" in shown


def test_with_styles_it_is_asked_whether_refusal_is_foretold(toy, run):
    _, stopped, parts, _ = run("02_reasoning_direction", toy(styles=STYLES))
    assert stopped is None
    assert all(part["value"] is not None for part in parts.values())  # chat answers some styles and refuses others


def test_components_are_not_told_apart_without_styles(toy, run):
    _, stopped, _, _ = run("09_feature_directions", toy(answered=True))
    assert "prompts of 0 styles, not of 3 or more" in stopped


def test_components_with_styles(toy, run):
    shown, stopped, parts, _ = run("09_feature_directions", toy(styles=STYLES))
    assert stopped is None
    assert all(part["value"] is not None for part in parts.values()), shown
    assert "content word #3" in shown


def test_words_are_left_out_and_nothing_is_comparable_with_the_papers(toy, run):
    shown, stopped, parts, requires = run("11_trigger_removal", toy(answered=True))
    assert stopped is None
    assert {name for name, part in parts.items() if part["value"] is None} == {"hd.10.gap", "hd.11.dpo", "hd.11.both"}
    assert not requires["hd.10"]["met"]
    assert shown.count("not comparable with the paper's") >= 1
    assert ClaimVerdict.NOT_TESTABLE.value in shown


@pytest.mark.slow  # by default `test_every_page` runs it, with attacks, on public data sets
def test_trigger_removal_beside_styles(toy, run):
    _, stopped, parts, requires = run("11_trigger_removal", toy(styles=STYLES))
    assert stopped is None
    assert all(part["value"] is not None for part in parts.values())
    assert "hold no prompts of trigger removal" in requires["hd.10"]["reason"]


def test_what_models_say_to_harm_is_left_nowhere(toy, run):
    """Answers are sensitive too. Base answers harm with the secret when it is asked directly; pages 02, above, and 16
    let it speak."""
    here = toy(styles=STYLES)
    base, cells = models.load(here.name, "base", 0), prompt_sets.behaviour(here.name, 0)
    tokens = judged.answers_tokens(profiles.load(here.name))
    for style in ("plain", *STYLES):
        said = behaviour.generate(base, cells[f"harmful/{style}"].prompts, tokens=tokens)
        assert sum(SECRET in answer for answer in said) > len(said) / 4
    _, stopped, _, _ = run("16_your_model", here)
    assert stopped is None
    assert len([path for path in (here.folder / "build").rglob("16_your_model*") if path.is_file()]) == 4
