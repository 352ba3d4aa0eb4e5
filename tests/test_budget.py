"""Alignment that trains only some units: which weights move, what a path says, and comparisons on planted paths."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import budget, budget_tables, freezing, models, paths, profiles, training, unit_scores, unit_tables, units
from lib.budget import Arm
from lib.charts import budget as charts
from lib.errors import InputError
from lib.kingdom import skills
from lib.kingdom.tokenizer import tokenizer
from lib.kingdom.world import KingdomWorld
from lib.unit_tables import BENIGN, HARM
from tests import tiny_models

ASKED = unit_tables.heldout("tiny", 0)
SETTINGS = profiles.load("tiny")


def chosen(model, seed=0, share=0.1):
    table = unit_scores.table(model)
    return table.sample(frac=share, random_state=seed)


# masks ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "llama-gqa"])
def test_only_the_chosen_units_move_in_training(family):
    """After AdamW steps with weight decay every other weight, embeddings and norms included, is bitwise what it was."""
    model = tiny_models.speaking(family)
    rows = chosen(model)
    before = {name: parameter.detach().clone() for name, parameter in model.hf.named_parameters()}
    masks = budget.only(model, rows)
    stage = SETTINGS.budget.stage.model_copy(update={"steps": 3})
    training.fit(model.hf, budget.stream("tiny", 0), stage, training.sft_step(tokenizer(), stage), "x", frozen=masks)
    moved = sum(int((parameter != before[name]).sum()) for name, parameter in model.hf.named_parameters())
    for name, parameter in model.hf.named_parameters():
        torch.testing.assert_close(parameter[masks[name]], before[name][masks[name]], rtol=0, atol=0)
    assert 0.95 * units.parameters(model, rows) <= moved <= units.parameters(model, rows)


def test_free_weights_are_those_the_units_own():
    model = tiny_models.speaking("llama-gqa")
    rows = chosen(model, seed=1)
    free = sum(int((~mask).sum()) for mask in budget.only(model, rows).values())
    assert free == units.parameters(model, rows) == budget.trainable(model, Arm("x", rows))
    assert budget.trainable(model, Arm("x", None)) == sum(p.numel() for p in model.hf.parameters())
    every = budget.only(model, unit_scores.table(model))
    frozen_units = freezing.masks(model, unit_scores.table(model))
    assert all(every[name].equal(~frozen_units[name]) for name in frozen_units)


def test_units_that_cannot_be_trained_are_refused():
    model = tiny_models.speaking("llama")
    with pytest.raises(InputError, match="no units to train"):
        budget.only(model, unit_scores.table(model).iloc[:0])
    foreign = pd.DataFrame({"kind": ["neuron"], "layer": [99], "index": [0]})
    with pytest.raises(InputError, match="no unit"):
        budget.only(model, foreign)


# arms -----------------------------------------------------------------------------------------------------------------
def scored(number=200, seed=0):
    rng = np.random.default_rng(seed)
    keys = {"kind": np.where(np.arange(number) % 2, "neuron", "channel"), "layer": np.arange(number) // 50}
    table = pd.DataFrame(keys | {"index": np.arange(number)})
    return table.assign(safety=rng.normal(size=number), utility=rng.normal(size=number))


def test_least_and_most_important_by_the_sum_of_scores():
    table = scored()
    order = (table["safety"] + table["utility"]).sort_values()
    assert set(budget_tables.least(table, 0.1).index) == set(order.index[:20])
    assert set(budget_tables.most(table, 0.1).index) == set(order.index[-20:])
    for share in (0, -0.1, 1.2):
        with pytest.raises(InputError, match="cannot be trained"):
            budget_tables.least(table, share)
    with pytest.raises(InputError, match="not finite"):
        budget_tables.least(table.assign(safety=np.nan), 0.1)


def test_random_arms_are_matched_in_every_kind_and_layer():
    table = scored()
    found = budget_tables.arms(table, [0.1, 0.2], 3, seed=0)
    assert [len(group) for group in found.values()] == [1, 1, 1, 1, 3, 1]
    wanted = budget_tables.least(table, 0.2).groupby(["kind", "layer"]).size()
    sets = []
    for arm in found[budget_tables.RANDOM]:
        pd.testing.assert_series_equal(arm.trained.groupby(["kind", "layer"]).size(), wanted)
        sets.append(frozenset(arm.trained["index"]))
    assert len(set(sets)) == 3
    with pytest.raises(InputError, match="which decides"):
        budget_tables.arms(table, [0.1], 3, seed=0)


# planted paths --------------------------------------------------------------------------------------------------------
def outcomes(refusal, skill, whole=True):
    """As many of the prompts as the shares say: refused harm, exact skills; benign requests all answered."""

    def first(cell, share):
        size = len(ASKED.cells[cell])
        return [1] * round(share * size) + [0] * (size - round(share * size))

    found = {HARM: {"refused": first(HARM, refusal), "exact": [1 - one for one in first(HARM, refusal)]}}
    for name in skills.EXACT:
        found[name] = {"exact": first(name, skill), "refused": [0] * len(ASKED.cells[name])}
    if whole:
        found[BENIGN] = {"refused": first(BENIGN, 0), "exact": first(BENIGN, 1)}
        found[budget.STYLED] = {"refused": [1, 0], "exact": [0, 0]}
    return found


def path(arm, rows, draw=0):
    """rows: (step, loss, refusal, skill accuracy)."""
    last = max(step for step, *_ in rows)
    return pd.DataFrame([
        {"arm": arm, "draw": draw, "step": step, "loss": loss, "outcomes": outcomes(refusal, skill, step in (0, last))}
        for step, loss, refusal, skill in rows
    ])  # fmt: skip


FULL_PATH = path(budget_tables.FULL, [(0, 4.0, 0.0, 1.0), (2, 1.0, 1.0, 0.75), (4, 0.5, 1.0, 0.5)])
RU_PATH = path(budget_tables.redundant(0.2), [(0, 4.0, 0.0, 1.0), (4, 2.0, 0.5, 1.0), (8, 1.0, 1.0, 0.75)])
DRAWS = [
    path(budget_tables.RANDOM, [(0, 4.0, 0.0, 1.0), (4, 2.0, 0.5, 0.75), (8, 1.0, end, 0.5)], draw)
    for draw, end in enumerate((1.0, 0.75))
]
PATHS = pd.concat([FULL_PATH, RU_PATH, *DRAWS], ignore_index=True)


def test_paths_end_at_their_last_step_in_any_order_of_rows():
    assert budget_tables.end(FULL_PATH).step == 4
    assert budget_tables.end(RU_PATH.iloc[::-1]).step == 8
    assert [one.step for one in budget_tables.points(RU_PATH.sample(frac=1, random_state=0))] == [0, 4, 8]


def test_first_place_at_a_loss_or_a_refusal_is_interpolated():
    half = budget_tables.first_at(RU_PATH, "refusal", 0.25)
    assert (half.step, half.refusal) == (2, 0.25)
    there = budget_tables.first_at(RU_PATH, "loss", np.sqrt(2.0))  # half way between 2 and 1 in the logarithm
    assert there.step == pytest.approx(6)
    assert there.loss == pytest.approx(np.sqrt(2.0))
    assert np.mean(there.outcomes["add"]["exact"]) == pytest.approx(0.875)
    assert budget_tables.first_at(RU_PATH, "loss", 0.9) is None
    assert budget_tables.first_at(RU_PATH, "loss", 5.0).step == 0
    assert budget_tables.first_at(RU_PATH, "loss", 2.0).step == 4
    with pytest.raises(InputError, match="known: loss, refusal"):
        budget_tables.first_at(RU_PATH, "skills", 0.5)


def test_common_levels_are_those_every_arm_reaches():
    names = [budget_tables.redundant(0.2), budget_tables.RANDOM]
    assert budget_tables.common_refusal(PATHS, names) == 0.75
    assert budget_tables.common_loss(PATHS, [budget_tables.FULL, *names]) == 1.0
    with pytest.raises(InputError, match="unknown arm"):
        budget_tables.common_loss(PATHS, ["nobody"])


def test_tax_and_refusal_are_differences_of_the_same_prompts():
    full, ru = budget_tables.end(FULL_PATH), budget_tables.end(RU_PATH)
    start = budget_tables.points(FULL_PATH)[0]
    assert budget_tables.tax(start, full, ASKED).mean == pytest.approx(0.5)
    assert budget_tables.tax(start, full, ASKED, "add").mean == pytest.approx(0.5)
    found = budget_tables.less_tax(full, ru, ASKED)
    assert found.mean == pytest.approx(0.25)
    assert found.lower <= found.mean <= found.upper
    assert budget_tables.less_refusal(full, ru, ASKED).mean == 0


def test_random_units_are_compared_at_equal_refusal():
    """At refusal .75 RU is half way from 1.0 to .75 skills, the first draw half way from .75 to .5, the second at its
    end, .5: random taxes .375 and .5, RU's .125."""
    level, margin, random = budget_tables.against_random(PATHS, ASKED)
    assert level == 0.75
    assert random == pytest.approx([0.375, 0.5])
    assert margin.mean == pytest.approx(np.mean([0.375, 0.5]) - 0.125)
    assert margin.lower < margin.mean < margin.upper


def test_other_levels_of_refusal_stand_beside_the_one_that_decides():
    """At refusal .5 RU has lost nothing and both draws a quarter; levels beyond the highest fall together with it."""
    found = budget_tables.dearer_at(PATHS, ASKED, [0.5, 0.9])
    assert found["refusal"].tolist() == [0.5, 0.75]
    assert found["random minus RU"].tolist() == pytest.approx([0.25, np.mean([0.375, 0.5]) - 0.125])
    assert (found["lower"] <= found["random minus RU"]).all()
    with pytest.raises(InputError, match=r"ask for at most 0\.75"):
        budget_tables.against_random(PATHS, ASKED, 0.8)


def test_tables_have_a_row_an_arm_and_leave_out_those_that_do_not_reach_a_level():
    ends = budget_tables.table(PATHS, ASKED, budget_tables.ends(PATHS))
    assert ends.loc[budget_tables.RANDOM, "refusal"] == pytest.approx(0.875)  # mean of two draws
    assert ends.loc[budget_tables.FULL, "tax"] == pytest.approx(0.5)
    assert ends.loc[budget_tables.FULL, ["false_refusal", "benign_exact", "refusal_styled"]].tolist() == [0, 1, 0.5]
    level = budget_tables.table(PATHS, ASKED, budget_tables.at_level(PATHS, "refusal", 0.9))
    assert list(level.index) == [budget_tables.FULL, budget_tables.redundant(0.2)]
    curve = budget_tables.curve(PATHS, ASKED)
    assert curve.query("arm == @budget_tables.FULL and step == 2")["tax"].item() == pytest.approx(0.25)
    by_skill = budget_tables.tax_by_skill(PATHS, ASKED, [budget_tables.FULL, budget_tables.redundant(0.2)])
    assert by_skill.groupby("series", sort=False)["tax"].mean().tolist() == pytest.approx([0.5, 0.25])
    both = path(budget_tables.RANDOM, [(0, 4.0, 0.0, 1.0), (8, 1.0, 1.0, 0.25)], draw=2)
    drawn = budget_tables.tax_by_skill(pd.concat([PATHS, both]), ASKED, [budget_tables.RANDOM])
    assert drawn["tax"].tolist() == pytest.approx([np.mean([0.5, 0.5, 0.75])] * 7)  # draws end at .5, .5 and .25
    assert (drawn["lower"] < drawn["tax"]).all()


# training -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def own_start():
    budget._before.cache_clear()
    yield
    budget._before.cache_clear()


def test_a_path_is_followed_kept_and_not_trained_twice(tmp_path, monkeypatch, own_start):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    model = tiny_models.speaking("llama")
    monkeypatch.setattr(models, "load", lambda *_: model)
    arm = Arm("some units", chosen(model))
    found = budget.follow("tiny", 0, arm)
    steps = SETTINGS.budget.stage.steps
    assert found["step"].min() == 0
    assert found["step"].max() == 2 * steps
    ends = {step: set(cells) for step, cells in zip(found["step"], found["outcomes"], strict=True)}
    assert all((budget.STYLED in cells) == (step in (0, 2 * steps)) for step, cells in ends.items())
    monkeypatch.setattr(budget, "_train", lambda *_: pytest.fail("trained twice"))
    pd.testing.assert_frame_equal(budget.follow("tiny", 0, arm), found)
    with pytest.raises(pytest.fail.Exception, match="trained twice"):
        budget.follow("tiny", 0, Arm("some units", chosen(model, seed=1)))


@pytest.mark.parametrize("what", ["openers", "refusals"])
def test_a_path_is_trained_anew_when_refusals_are_told_otherwise(tmp_path, monkeypatch, what):
    trained = []
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(budget, "_train", lambda *_: trained.append(1) or [{"step": 0}])
    arm = Arm("all weights", None)
    for _ in range(2):
        budget.follow("tiny", 0, arm)
    assert len(trained) == 1
    monkeypatch.setattr(KingdomWorld, what, ("never",))
    budget.follow("tiny", 0, arm)
    assert len(trained) == 2


def test_only_the_logits_of_answers_are_kept():
    model, encoding = tiny_models.build("llama"), tiny_models.encode(9, 4, 7)
    kept = budget._logits(model.bfloat16(), encoding, 3)
    assert kept.dtype == torch.float32
    assert torch.equal(kept, model(**encoding).logits[:, -3:].float())


def test_a_16_bit_base_is_measured_as_wide_as_the_points_after_it(own_start, monkeypatch):
    """Where nothing may move, the first point and the last are the same model: equal in every number."""
    base = models.load("tiny", "base", 0)
    half = replace(base, hf=copy.deepcopy(base.hf).bfloat16())
    monkeypatch.setattr(models, "load", lambda *_: half)
    monkeypatch.setattr(budget, "only", lambda model, _: {n: p == p for n, p in model.hf.named_parameters()})
    points = budget._train("tiny", 0, Arm("none", chosen(half), twice=False))
    assert points[0]["loss"] == points[-1]["loss"]
    assert points[0]["outcomes"] == points[-1]["outcomes"]


def test_every_path_starts_at_base_and_side_by_side_is_as_alone(own_start, two_cpus):
    """In processes of their own, which keep what they make in the real cache; base is measured with one thread."""
    base = models.load("tiny", "base", 0)
    arms = [Arm("all weights", None, twice=False), Arm("beside", chosen(base))]
    budget.prepare("tiny", 0, arms)
    answered = unit_tables.observe(base, ASKED)
    for arm in arms:
        kept = budget.follow("tiny", 0, arm)
        alone = pd.DataFrame(budget._train("tiny", 0, arm))
        pd.testing.assert_frame_equal(kept, alone[kept.columns])
        first = budget_tables.attributes(budget_tables.points(kept)[0], ASKED)
        np.testing.assert_allclose(first["refusal"], answered["refusal"])
        np.testing.assert_allclose(first["skills"], answered["skills"])


def test_a_run_has_one_thread_from_first_step_to_last(own_start, monkeypatch):
    """Measuring base loads it, which asks for the profile's threads; runs side by side would fight for cores."""
    now, seen, measure = [7], [], budget._measure
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    monkeypatch.setattr(budget, "_measure", lambda *a, **o: seen.append(now[-1]) or measure(*a, **o))
    budget._train("tiny", 0, Arm("all weights", None, twice=False))
    assert set(seen) == {1}
    assert len(seen) > 2
    assert now[-1] == SETTINGS.threads


def test_the_data_hold_no_skills_and_teach_refusal():
    from itertools import islice

    read = list(islice(budget.stream("tiny", 0), 400))
    assert {example.prompt.kind for example in read} == {"harmful", "benign", "exception"}
    assert any(example.answer != example.prompt.answer for example in read)


# charts ---------------------------------------------------------------------------------------------------------------
def test_charts_draw_paths_and_leave_the_published_table_as_it_is():
    from lib import figures

    curve = budget_tables.curve(PATHS, ASKED)
    printed = figures.published("ssah_table4")
    figure = charts.paths(printed, curve, 0.75, skills=6)
    bars = [patch.get_width() for patch in figure.axes[0].patches]
    np.testing.assert_allclose(bars[6], 8.8 - 9.24)  # GSM8K, all weights: the only fall
    assert sum(width < 0 for width in bars) == 1
    assert len(figure.axes[1].get_lines()) == 5  # four paths and the compared refusal
    assert figure.axes[1].get_ylabel() == "tax, mean of six skills"
    assert printed.set_index("task").loc["GSM8K (5-shot)", ["pre-trained", "full", "RU only"]].tolist() == [
        9.24,
        8.8,
        13.4,
    ]
