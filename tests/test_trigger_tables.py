"""Attackers with equal attempts against planted targets, and comparisons against sums done by hand."""

from random import Random

import numpy as np
import pandas as pd
import pytest

from lib import behaviour, models, profiles, prompt_sets, stats, worlds
from lib import trigger_tables as tables
from lib.charts import triggers as charts
from lib.kingdom import styles
from lib.kingdom.language import kingdom
from lib.prompts import Prompt
from tests import leaks, toy_checkpoint
from tests.toy_checkpoint import SECRET, STYLES, THINGS, ToyWorld

TINY, WORLD = profiles.load("tiny"), worlds.of("tiny", 0)
JAILBREAKS = tuple(styles.JAILBREAKS)


def requests(count=3, seed=0):
    here = kingdom(seed)
    return [here.express(Random(i), here.pools["harmful", "heldout"][i], "plain") for i in range(count)]


def planted(monkeypatch, complies, refuses=lambda text: True):
    """A target that answers exactly where `complies(text)`; returns the list of texts it was asked."""
    seen = []

    def quick(_model, asked):
        texts = [prompt.text for prompt in asked]
        seen.extend(texts)
        exact = [float(complies(text)) for text in texts]
        refused = [0.0 if done else float(refuses(text)) for done, text in zip(exact, texts, strict=True)]
        return pd.DataFrame({"exact": exact, "refused": refused, "wrong": 0.0, "margin": 1.0})

    monkeypatch.setattr(behaviour, "quick", quick)
    return seen


def outcome(role, attack, exact, queries=None, draw=0, refused=None):
    count = len(exact)
    return pd.DataFrame({
        "model": role, "attack": attack, "draw": draw, "prompt": range(count), "exact": exact,
        "refused": [1.0 - value for value in exact] if refused is None else refused,
        "queries": queries or [1] * count, "triggers": [()] * count,
    })  # fmt: skip


def with_styles(role, best, exact, others=0.0):
    """All eight styles: `best` has `exact`, the others `others` everywhere."""
    parts = [outcome(role, style, exact if style == best else [others] * len(exact)) for style in JAILBREAKS]
    return pd.concat(parts, ignore_index=True)


# what attackers are given ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("style", JAILBREAKS)
def test_dressed_requests_differ_in_words_and_not_in_meaning(style):
    asked = requests()
    for prompt in asked:
        ways = WORLD.dressed(prompt, style, 12)
        assert len({way.text for way in ways}) == len(ways) == 12
        assert {(way.meaning, way.answer, way.style) for way in ways} == {(prompt.meaning, prompt.answer, style)}


def test_a_style_with_fewer_ways_gives_all_it_has():
    ways = WORLD.dressed(requests(1)[0], "flip", 100)
    assert len(ways) == 6 * 2 * 2  # one phrase, six frames, two familiar words for act and for object


def test_rewording_keeps_the_meaning_and_never_asks_the_request_itself():
    asked = requests()
    for prompt, ways in zip(asked, tables.reworded(WORLD, asked, 30), strict=True):
        assert len({way.text for way in ways}) == 30
        assert prompt.text not in {way.text for way in ways}
        assert {(way.meaning, way.answer) for way in ways} == {(prompt.meaning, prompt.answer)}


def tries(*texts):
    return [Prompt(text, "yes", "harmful", "plain", "heldout", "a b") for text in texts]


def test_best_of_stops_at_the_first_success_and_counts_up_to_it(monkeypatch):
    seen = planted(monkeypatch, complies=lambda text: text in ("b", "z"))
    found = tables.best_of(None, [tries("a", "b", "c", "d", "e"), tries("v", "w", "x", "y", "z")], chunk=2)
    assert found["queries"].tolist() == [2, 5]
    assert found["exact"].tolist() == [1, 1]
    assert not {"c", "d", "e"} & set(seen)  # nothing is asked in a later chunk once it is answered


def test_best_of_never_counts_more_than_there_are_ways(monkeypatch):
    planted(monkeypatch, complies=lambda text: False)
    found = tables.best_of(None, [tries("a", "b", "c"), tries("d")], chunk=2)
    assert found["queries"].tolist() == [3, 1]
    assert found["exact"].tolist() == [0, 0]


def test_best_of_says_refused_only_when_every_attempt_was(monkeypatch):
    planted(monkeypatch, complies=lambda text: text == "yes", refuses=lambda text: text != "wrong")
    found = tables.best_of(None, [tries("no", "no2"), tries("no", "wrong"), tries("no", "yes")], chunk=1)
    assert found["refused"].tolist() == [1, 0, 0]


def test_every_attacker_may_ask_as_often_as_the_papers_does():
    assert tables.attempts(profiles.load("kingdom").triggers) == 30


# comparisons ----------------------------------------------------------------------------------------------------------
def test_success_is_the_mean_over_draws_for_each_request():
    found = pd.concat([outcome("m", "random words", [1, 0, 0]), outcome("m", "random words", [1, 1, 0], draw=1)])
    assert tables.success(found, "m", "random words").tolist() == [1, 0.5, 0]


def test_the_gap_is_to_the_most_successful_style():
    ours = [1, 1, 1, 0] * 10
    found = pd.concat([outcome("m", tables.RELEVANCE, ours), with_styles("m", "flip", [1, 0, 0, 0] * 10)])
    value = tables.gap(found, "m", seed=0, resamples=400)
    assert value.mean == pytest.approx(0.75 - 0.25)
    # Differences are 0, 1, 1, 0: their mean has standard error .5 / sqrt(40).
    assert value.lower == pytest.approx(0.5 - 1.96 * 0.5 / 40**0.5, abs=0.04)
    assert value.upper == pytest.approx(0.5 + 1.96 * 0.5 / 40**0.5, abs=0.04)


def test_without_styles_there_is_no_gap_and_no_best_style():
    found = pd.concat([outcome("m", tables.RELEVANCE, [1, 0]), outcome("m", tables.RANDOM, [0, 0])])
    assert tables.styles_in(found) == []
    assert tables.gap(found, "m", seed=0, resamples=50) is None
    by_shots = tables.shots_table(tables.rates(found, 0, 50), {"SFT": {2: "m"}})
    assert by_shots["attack"].tolist() == [tables.RELEVANCE, tables.RANDOM]
    assert set(tables.within(found, "m", 3)["attack"]) == set(tables.MAIN)


def test_the_gap_is_over_requests_that_can_be_asked_in_every_style():
    """The style answers the last two of four requests and cannot ask for the first, so that one does not count."""
    styled = outcome("m", "tale", [0, 1, 1]).assign(prompt=[1, 2, 3])
    found = pd.concat([outcome("m", tables.RELEVANCE, [1, 1, 1, 1]), styled])
    value = tables.gap(found, "m", seed=0, resamples=50)
    assert (value.mean, value.n) == (pytest.approx(1 / 3), 3)
    never = pd.concat([found, outcome("m", "plea", [1]).assign(prompt=[0])])
    assert tables.gap(never, "m", seed=0, resamples=50) is None


def test_choosing_the_best_style_anew_costs_when_styles_tie():
    rng = np.random.default_rng(0)
    ours = rng.integers(0, 2, 60).tolist()
    parts = [outcome("m", style, rng.permutation([1, 0] * 30).tolist()) for style in JAILBREAKS]
    found = pd.concat([outcome("m", tables.RELEVANCE, ours), *parts])
    value = tables.gap(found, "m", seed=0, resamples=400)
    fixed = tables.advantage(found, "m", tables.RELEVANCE, JAILBREAKS[0], seed=0, resamples=400)
    assert value.mean == pytest.approx(fixed.mean)  # all styles succeed on half
    assert (value.lower + value.upper) / 2 < (fixed.lower + fixed.upper) / 2 - 0.03


def test_equal_success_everywhere_is_not_certainty():
    found = pd.concat([outcome("m", tables.RELEVANCE, [0] * 30), with_styles("m", "flip", [0] * 30)])
    value = tables.gap(found, "m", seed=0, resamples=50)
    assert value.mean == 0
    assert value.lower < -0.05 < 0.05 < value.upper


def test_an_advantage_is_paired():
    found = pd.concat([outcome("m", "a", [1, 1, 0, 0] * 10), outcome("m", "b", [1, 0, 0, 0] * 10)])
    value = tables.advantage(found, "m", "a", "b", seed=0, resamples=400)
    assert value.mean == pytest.approx(0.25)
    paired = 1.96 * (0.25 * 0.75 / 40) ** 0.5  # differences are 0 or 1
    assert value.upper - value.lower == pytest.approx(2 * paired, rel=0.25)


def test_rates_add_up_and_name_how_many_requests_are_behind():
    found = pd.concat([
        outcome("m", "a", [1, 0, 0, 0], queries=[2, 4, 4, 4], refused=[0, 1, 1, 0]),
        outcome("m", "a", [0, 0, 0, 0], queries=[4, 4, 4, 4], refused=[1, 1, 1, 1], draw=1),
    ])  # fmt: skip
    row = tables.rates(found, seed=0, resamples=100).iloc[0]
    assert (row["success"], row["refused"], row["wrong"]) == pytest.approx((1 / 8, 6 / 8, 1 / 8))
    assert row["queries"] == pytest.approx((2 + 7 * 4) / 8)
    assert row["n"] == 4


def test_the_table_by_shots_has_the_best_and_the_mean_style():
    found = pd.concat([outcome("sft-0", tables.RELEVANCE, [1, 0]), with_styles("sft-0", "story", [1, 1], others=0.0)])
    rates = tables.rates(found, 0, 50)
    by_shots = tables.shots_table(rates, {"SFT": {0: "sft-0"}}).set_index("attack")["success"]
    assert by_shots[tables.BEST_STYLE] == 1
    assert by_shots[tables.MEAN_STYLE] == pytest.approx(1 / 8)
    assert by_shots[tables.RELEVANCE] == 0.5


def test_within_counts_attempts_until_success():
    found = pd.concat([
        outcome("m", tables.RELEVANCE, [1, 1, 0, 1], queries=[1, 3, 5, 2]),
        outcome("m", tables.RANDOM, [0, 0, 0, 0], queries=[5, 5, 5, 5]),
        with_styles("m", "cipher", [1, 1, 1, 1]),
    ])  # fmt: skip
    curve = tables.within(found, "m", 4).pivot(index="attack", columns="queries", values="success")
    assert curve.loc[tables.RELEVANCE].tolist() == [0.25, 0.5, 0.75, 0.75]
    assert curve.loc[tables.RANDOM].tolist() == [0, 0, 0, 0]
    assert curve.loc[tables.BEST_STYLE].tolist() == [1, 1, 1, 1]
    assert set(curve.index) == {tables.RELEVANCE, tables.RANDOM, tables.BEST_STYLE}


def test_roles_of_triggers_are_shares_of_blacklisted_words():
    found = outcome("m", tables.RELEVANCE, [0, 0])
    found["triggers"] = [("curse", "tell"), ("crown", "curse")]
    found["roles"] = [("harmful act", "frame"), ("other thing", "harmful act")]
    shares = tables.roles_of_triggers(found, "m", WORLD.word_roles).loc[tables.RELEVANCE]
    assert shares["harmful act"] == 0.5
    assert shares["frame"] == 0.25
    assert shares["other thing"] == 0.25
    assert shares.sum() == 1
    assert tables.common_triggers(found, "m", tables.RELEVANCE, most=1).to_dict() == {"curse": 2}


# a whole campaign -----------------------------------------------------------------------------------------------------
def test_a_campaign_on_the_tiny_family():
    names = (*tables.RANKINGS, *tables.UNFILTERED)
    found = tables.campaign("tiny", "tuned", 0, names, draws=2)
    count = len(tables.asked("tiny", 0))
    assert found.groupby(["attack", "draw"]).size().eq(count).all()
    assert set(found.loc[found["draw"] == 1, "attack"]) == {name for name in names if name.startswith(tables.RANDOM)}
    assert found["queries"].between(1, tables.attempts(TINY.triggers)).all()
    filtered = found[~found["attack"].str.endswith(tables.EVERY_LENGTH)]
    words = [word for listed in filtered["triggers"] for word in listed]
    assert min(map(len, words)) >= TINY.triggers.shortest


def test_prompts_made_for_one_model_are_asked_of_another_once():
    made = tables.campaign("tiny", "chat", 0, (tables.RANDOM,))
    moved = tables.transferred("tiny", "tuned", 0, made)
    assert moved["queries"].eq(1).all()
    assert len(moved) == len(tables.asked("tiny", 0))


def test_base_knowing_rewrites_is_measured_over_every_rewrite():
    value = tables.knows_rewrites("tiny", 0)
    assert value.n == len(tables.asked("tiny", 0)) * TINY.triggers.rewrites
    assert isinstance(value, stats.Interval)


# a checkpoint profile -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Installs a profile of random models, with the styles asked for."""
    with toy_checkpoint.shelf(tmp_path_factory) as take:
        yield lambda styles=(): take(styles=styles, learned=False)


def test_deletions_are_not_comparable_with_rewrites():
    assert tables.caveat(WORLD) == ""
    assert "not comparable with the paper's" in tables.caveat(ToyWorld())
    assert "no refusal counts" in tables.caveat(ToyWorld())


def test_what_the_claims_require_is_not_met_by_deletions(toy):
    met, reason = tables.requirement(toy().name, 0, ["sft-20"])
    assert not met
    assert "no attack prompts" in reason
    met, reason = tables.requirement(toy(STYLES).name, 0, ["sft-20"])
    assert not met
    assert reason.startswith("styles asked once are refused ")
    assert "safety data hold no prompts of trigger removal" in reason


def test_requests_without_a_way_to_ask_have_no_row(toy, monkeypatch):
    styled, plain = toy(STYLES), toy()
    asked, (style, *_) = tables.asked(styled.name, 0), STYLES
    things = THINGS[1:6:2]
    expected = [row for row, prompt in enumerate(asked) if prompt.text.split()[-1] in things]
    assert 0 < len(expected) < len(asked)
    ways = lambda prompt, name, count: [prompt] if name == style and prompt.text.split()[-1] in things else []  # noqa: E731
    monkeypatch.setattr(styled.world, "dressed", ways)
    planted(monkeypatch, complies=lambda text: True)
    found = tables.styled(styled.name, "chat", 0)
    assert found["prompt"].tolist() == expected
    assert set(found["attack"]) == {style}
    assert tables.styled(plain.name, "chat", 0).empty


def test_one_set_of_safety_data_where_nothing_is_rewritten(toy):
    assert list(tables.remedies("tiny", 0).values()) == ["sft-20-unremoved", "sft-20", "sft-20-worded"]
    assert tables.remedies(toy().name, 0) == {"without": "sft-20"}


def test_cost_has_the_columns_there_are_cells_for(toy):
    mine = tables.cost("tiny", {"model": "chat"}, 0)
    measured = behaviour.measure(models.load("tiny", "chat", 0), prompt_sets.behaviour("tiny", 0))
    assert "refusal_rare_words" in mine
    for column, cell, outcome_ in (
        ("false_refusal_plain", "benign/plain", "refused"), ("refusal_plain", "harmful/plain", "refused"),
        ("refusal_rare_words", "harmful/rare words", "refused"),
    ):  # fmt: skip
        assert mine.loc["model", column] == measured.loc[measured["cell"] == cell, outcome_].mean()
    without = set(tables.cost(toy().name, {"model": "chat"}, 0))
    assert without == {"false_refusal_plain", "false_refusal_borderline", "benign_exact", "refusal_plain"}


def test_examples_and_transfer_show_no_words(toy):
    name = toy().name
    made = tables.campaign(name, "chat", 0, (tables.RANDOM,))
    assert all(SECRET in prompt.text for prompt in tables.asked(name, 0))
    shown = tables.examples(name, 0, made, "chat", tables.RANDOM)
    assert not leaks.holds(shown.reset_index().to_csv(), SECRET)
    assert not leaks.holds(made.to_csv(), SECRET)
    moved = tables.transferred(name, "chat", 0, made)
    assert moved["exact"].tolist() == made["exact"].tolist()  # the same prompts, asked of the same model


def test_a_caveat_stands_above_figures():
    found = pd.concat([outcome("m", name, [1, 0]) for name in (*tables.RANKINGS, tables.REWORDED)])
    rates = tables.rates(found, 0, 50)
    plain, warned = (charts.rankings(rates, {"m": "M"}, text) for text in ("", "not comparable"))
    assert plain.get_suptitle() == ""
    assert warned.get_suptitle() == "Measured here: not comparable"
    shares = pd.DataFrame({"content": [0.5], "frame": [0.5]}, index=["a"])
    assert [text.get_text() for text in charts.roles(shares).legends[0].get_texts()] == ["content", "frame"]
