"""Arms compared at equal loss: planted paths with known crossings, shares in closed form, equal random groups."""

import math

import numpy as np
import pandas as pd
import pytest

from lib import freezing, profiles, units
from lib import freezing_tables as compare
from lib.errors import InputError
from lib.freezing_tables import ALL, LORA, NOTHING, PREFIX, RANDOM, SCHEDULE, SCU, TOP, AtLoss
from lib.kingdom import styles
from tests import tiny_models

TINY = profiles.load("tiny")
RESAMPLES = 200


def path(steps, losses, success, arm=NOTHING, draw=0, n=10):
    """Prompts comply in their order: `success` holds the share that does at each step."""
    exact = [[int(i < round(share * n)) for i in range(n)] for share in success]
    return pd.DataFrame({"step": steps, "loss": losses, "exact": exact}).assign(arm=arm, draw=draw, corpus="errands")


def falling(arm, end, success, draw=0, n=10, lowest=1.0):
    """From loss 4 to `lowest` in ten steps, by way of `end` after the first five; success rises in a line."""
    return path([0, 5, 10], [4.0, end, lowest], [0.0, success / 2, success], arm, draw, n)


def unit_paths(free=0.8, top=0.2, everything=0.0, **options):
    """All arms that decide, with the same losses."""
    held = {NOTHING: free, SCU: free, TOP: top, ALL: everything, SCHEDULE: top, RANDOM[TOP]: free, RANDOM[ALL]: free}
    return pd.concat([falling(arm, 2.0, success, **options) for arm, success in held.items()], ignore_index=True)


# the compared loss ----------------------------------------------------------------------------------------------------
def test_the_compared_loss_is_the_lowest_that_all_reach():
    paths = pd.concat([path([0, 1, 2], [4.0, 1.0, 1.5], [0] * 3), path([0, 1, 2], [4.0, 3.0, 2.0], [0] * 3, TOP)])
    assert compare.compared_loss(paths) == 2.0


def test_every_draw_has_to_reach_the_compared_loss():
    draws = [path([0, 1], [4.0, lowest], [0, 0], RANDOM[TOP], draw) for draw, lowest in enumerate((1.0, 2.5))]
    assert compare.compared_loss(pd.concat([path([0, 1], [4.0, 1.0], [0, 0]), *draws])) == 2.5


def test_adapters_do_not_move_the_compared_loss_unless_they_are_named():
    paths = pd.concat([unit_paths(), path([0, 10], [4.0, 3.0], [0, 1], LORA)])
    assert compare.compared_loss(paths) == 1.0
    assert compare.compared_loss(paths, (NOTHING, LORA)) == 3.0


# one path at a loss ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("loss", "step", "share"),
    [
        (2.0, 5.0, 0.4),  # halfway from 4 to 1 in the logarithm
        (math.sqrt(8.0), 2.5, 0.2),  # a quarter of the way
        (1.0, 10.0, 0.8),  # exactly the last point
        (4.0, 0.0, 0.0),  # where it starts
        (5.0, 0.0, 0.0),  # already below
    ],
)
def test_between_two_points_loss_falls_geometrically_and_success_in_a_line(loss, step, share):
    found = compare.at_loss(path([0, 10], [4.0, 1.0], [0.0, 0.8]), loss)
    assert found.step == pytest.approx(step)
    assert found.exact.mean() == pytest.approx(share)


def test_each_prompt_gets_its_own_chance():
    table = path([0, 10], [4.0, 1.0], [0, 0], n=3)
    table["exact"] = [[1, 0, 1], [0, 1, 1]]
    assert compare.at_loss(table, 2.0).exact == pytest.approx([0.5, 0.5, 1.0])


def test_the_first_crossing_counts_when_the_loss_rises_again():
    found = compare.at_loss(path([0, 2, 4, 6, 8], [4.0, 1.0, 3.0, 0.5, 0.4], [0, 0.1, 0.5, 0.9, 1.0]), 2.0)
    assert (found.step, found.exact.mean()) == pytest.approx((1.0, 0.05))


def test_the_order_of_rows_does_not_matter():
    table = path([0, 2, 4], [4.0, 2.0, 1.0], [0, 0.4, 0.8])
    one, other = compare.at_loss(table, 1.5), compare.at_loss(table.iloc[::-1], 1.5)
    assert one.step == other.step
    assert one.exact.tolist() == other.exact.tolist()


def test_a_path_that_never_gets_there_has_no_place():
    assert compare.at_loss(path([0, 10], [4.0, 2.1], [0, 1]), 2.0) is None


def test_rounding_does_not_keep_an_arm_from_the_loss_it_defines():
    lowest = 0.1 + 0.2  # not 0.3 in floating point
    assert compare.at_loss(path([0, 10], [4.0, lowest], [0, 1]), 0.3).step == pytest.approx(10.0)


def test_all_arms_and_draws_are_matched_by_name():
    draws = [falling(RANDOM[TOP], 2.0, 0.6, draw) for draw in range(3)]
    found = compare.matched(pd.concat([falling(NOTHING, 2.0, 0.8), *draws]), 2.0)
    assert {name: len(places) for name, places in found.items()} == {NOTHING: 1, RANDOM[TOP]: 3}
    assert [place.exact.mean() for place in found[RANDOM[TOP]]] == pytest.approx([0.3] * 3)


def test_the_start_is_before_any_step():
    assert compare.start(path([0, 1], [4.0, 1.0], [0.3, 1.0])).mean() == pytest.approx(0.3)


# the share taken away -------------------------------------------------------------------------------------------------
def at(share, n=100):
    return AtLoss(1.0, (np.arange(n) < round(share * n)).astype(float))


@pytest.mark.parametrize(("held", "share"), [(0.1, 1.0), (0.5, 0.5), (0.9, 0.0), (1.0, -0.125), (0.0, 1.125)])
def test_the_share_taken_is_that_of_the_unfrozen_rise(held, share):
    found = compare.share_taken(at(0.1).exact, at(0.9), at(held), seed=0, resamples=RESAMPLES)
    assert found.mean == pytest.approx(share)
    low, high = found.bounds
    assert low - 1e-9 <= share <= high + 1e-9


def test_the_interval_of_a_share_is_that_of_its_resampled_prompts():
    """Of 400 prompts none complies at first, half do unfrozen and a quarter frozen: 1 - held / free, of counts."""
    found = compare.share_taken(np.zeros(400), at(0.5, 400), at(0.25, 400), seed=0, resamples=2000)
    assert found.mean == 0.5
    # Each complying prompt is held with chance 1/2, of about 200: sd = (1/4 / 200) ** .5 = .035
    assert (found.upper - found.lower) / 2 == pytest.approx(1.96 * 0.0354, rel=0.15)


@pytest.mark.parametrize("free", [0.1, 0.05])
def test_without_an_unfrozen_rise_there_is_no_share_and_it_is_said(free):
    with pytest.raises(InputError, match="with nothing frozen, so no share of it can be taken away"):
        compare.share_taken(at(0.1).exact, at(free), at(0.1), seed=0, resamples=RESAMPLES)


def test_a_rise_that_is_lost_in_many_resamples_has_no_bounds():
    found = compare.share_taken(np.zeros(20), at(0.05, 20), at(0.0, 20), seed=0, resamples=RESAMPLES)
    assert (found.mean, found.bounds) == (1.0, None)  # a third of the resamples lacks the one prompt that rises


def test_shares_of_every_draw_or_none():
    draws = [falling(RANDOM[TOP], 2.0, success, draw) for draw, success in enumerate((0.8, 0.4, 0.0))]
    slow = path([0, 10], [4.0, 3.0], [0, 0], RANDOM[TOP], 3)
    found = compare.matched(pd.concat([falling(NOTHING, 2.0, 0.8), *draws, slow]), 1.0)
    shares = compare.taken(found, np.zeros(10), RANDOM[TOP], seed=0, resamples=RESAMPLES)
    assert [one and one.mean for one in shares] == pytest.approx([0.0, 0.5, 1.0, None])


@pytest.mark.parametrize("free", [falling(NOTHING, 2.0, 0.0), path([0, 10], [4.0, 3.0], [0, 1])], ids=["flat", "slow"])
def test_no_share_where_nothing_unfrozen_rises_or_gets_there(free):
    found = compare.matched(pd.concat([free, falling(TOP, 2.0, 0.4), falling(ALL, 2.0, 0.4)]), 1.0)
    assert compare.taken(found, np.zeros(10), TOP, seed=0, resamples=RESAMPLES) == [None]


# the table at equal loss ----------------------------------------------------------------------------------------------
def test_every_arm_and_draw_at_equal_loss():
    paths = pd.concat([unit_paths(), falling(RANDOM[TOP], 1.0, 0.4, draw=1)], ignore_index=True)
    table = compare.equal_loss_table(paths, 2.0, seed=0, resamples=RESAMPLES).set_index(["arm", "draw"])
    assert table["reaches the loss"].all()
    # All reach 2 after five steps; the faster draw on its way from 4 to 1, halfway of its first five.
    assert table.loc[(TOP, 0), ["steps", "success", "taken"]].tolist() == pytest.approx([5.0, 0.1, 0.75])
    assert table.loc[(ALL, 0), "taken"] == pytest.approx(1.0)
    assert table.loc[(RANDOM[TOP], 0), "taken"] == pytest.approx(0.0)
    assert table.loc[(RANDOM[TOP], 1), ["steps", "success"]].tolist() == pytest.approx([2.5, 0.1])
    assert (table["lower"] <= table["taken"] + 1e-9).all()
    assert (table["taken"] <= table["upper"] + 1e-9).all()


def test_an_arm_that_does_not_reach_the_loss_is_named_and_has_no_numbers():
    paths = pd.concat([unit_paths(), path([0, 10], [4.0, 3.0], [0, 1], LORA)])
    table = compare.equal_loss_table(paths, 1.0, seed=0, resamples=RESAMPLES).set_index("arm")
    assert table.index[~table["reaches the loss"].astype(bool)].tolist() == [LORA]
    assert table.loc[LORA, ["steps", "success", "taken", "lower", "upper"]].isna().all()
    assert table.drop(LORA)[["steps", "success", "taken"]].notna().all(axis=None)


def test_without_an_unfrozen_rise_success_is_shown_and_no_share():
    table = compare.equal_loss_table(unit_paths(free=0.0, top=0.0), 1.0, seed=0, resamples=RESAMPLES)
    assert table["reaches the loss"].all()
    assert table["success"].notna().all()
    assert table[["taken", "lower", "upper"]].isna().all(axis=None)


# adapters -------------------------------------------------------------------------------------------------------------
def test_more_success_is_paired_over_prompts():
    found = compare.more_success(at(0.7), at(0.3), seed=0, resamples=2000)
    assert found.mean == pytest.approx(0.4)
    # Differences are 1 for 40 of 100 prompts and else 0
    assert (found.upper - found.lower) / 2 == pytest.approx(1.96 * 0.049, rel=0.2)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_equal_success_is_no_difference_but_not_a_certain_one(share):
    found = compare.more_success(at(share), at(share), seed=0, resamples=RESAMPLES)
    assert found.mean == 0
    assert found.lower < 0 < found.upper


def test_an_adapter_is_compared_where_it_and_all_unit_arms_have_learned_equally_much():
    lora = path([0, 10], [8.0, 2.0], [0.0, 0.9], LORA)
    slower = path([0, 10], [8.0, 3.0], [0.0, 1.0], PREFIX)
    found = compare.against(pd.concat([unit_paths(), lora, slower]), LORA, seed=0, resamples=RESAMPLES)
    assert found.loss == 2.0  # its own lowest: the other adapter's does not matter
    assert found.success == pytest.approx({NOTHING: 0.4, ALL: 0.0, LORA: 0.9})
    assert found.rise == pytest.approx(0.4)
    assert found.difference.mean == pytest.approx(0.9)


def test_an_adapter_that_learns_more_is_compared_on_its_way():
    lora = path([0, 10], [4.0, 0.25], [0.0, 0.8], LORA)
    found = compare.against(pd.concat([unit_paths(), lora]), LORA, seed=0, resamples=RESAMPLES)
    assert found.loss == 1.0
    assert found.success[LORA] == pytest.approx(0.4)  # halfway in the logarithm


# equal steps ----------------------------------------------------------------------------------------------------------
def rates(refused, exact):
    return {"refused": refused, "exact": exact, "wrong": 1 - refused - exact}


def ends(arm, draw, success, corpus="errands", task=(0, 1)):
    """A path that asks everything after the planned steps and the doubled ones, and is followed beyond."""
    cells = {"plain": rates(0.5, success), "benign": rates(0.1, 0.9), "new task": rates(0.0, 0.25)}
    cells |= {style: rates(0.0, success if style == "flip" else 0.0) for style in styles.JAILBREAKS}
    table = path([0, 4, 6, 8, 16], [4.0, 2.0, 1.5, 1.0, 0.5], [0] * 5, arm, draw).assign(corpus=corpus)
    whole = {"cells": [None, cells, None, cells, None], "new task": [None, [0], None, list(task), None]}
    return table.assign(**whole)


def test_at_equal_steps_draws_are_averaged():
    found = compare.step_table(pd.concat([ends(NOTHING, 0, 0.4), ends(TOP, 0, 0.1), ends(TOP, 1, 0.3)]))
    assert found.index.tolist() == [("errands", arm, steps) for arm in (NOTHING, TOP) for steps in (4, 8)]
    row = found.loc[("errands", TOP, 8)]
    expected = {"loss": 1.0, "refused": 0.5, "success": 0.2, "wrong": 0.3, "success in styles": 0.2 / 8,
                "benign refused": 0.1, "new task": 0.25}  # fmt: skip
    assert row.to_dict() == pytest.approx(expected)
    assert found.loc[("errands", NOTHING, 4), "loss"] == 2.0


def test_corpora_are_kept_apart_at_equal_steps():
    found = compare.step_table(pd.concat([ends(NOTHING, 0, 0.4), ends(NOTHING, 0, 0.2, "ledgers")]))
    assert found["success"].unstack("corpus").loc[(NOTHING, 8)].to_dict() == pytest.approx(
        {"errands": 0.4, "ledgers": 0.2}
    )


def test_what_freezing_costs_the_new_task():
    paths = pd.concat([ends(NOTHING, 0, 0, task=[1] * 90 + [0] * 10), ends(ALL, 0, 0, task=[1] * 80 + [0] * 20)])
    found = compare.new_task_loss(paths, ALL)
    assert found.mean == pytest.approx(0.1)
    # MOVER with Wilson's bounds: 90 of 100 (.8256, .9448), 80 of 100 (.7112, .8667)
    assert found.lower == pytest.approx(0.1 - math.hypot(0.9 - 0.8256, 0.8667 - 0.8), abs=1e-3)
    assert found.upper == pytest.approx(0.1 + math.hypot(0.9448 - 0.9, 0.8 - 0.7112), abs=1e-3)


# published ------------------------------------------------------------------------------------------------------------
def test_the_published_share_is_computed_from_its_four_columns():
    key = {"model": "m", "benchmark": "b", "judge": "j", "corpus": "Dolly"}
    values = {"initial": 10.0, "full": 50.0, TOP: 20.0, ALL: 10.0}
    table = pd.DataFrame([{**key, "arm": arm, "value": value} for arm, value in values.items()])
    found = compare.published_taken(table).set_index("arm")["taken"]
    assert found.to_dict() == pytest.approx({TOP: 0.75, ALL: 1.0})


# arms -----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model():
    return tiny_models.speaking("llama-gqa")


@pytest.fixture(scope="module")
def grouped():
    """Every unit of the tiny Llama with random scores, in the groups of the profile."""
    every = [(kind, layer, i) for layer in range(tiny_models.LAYERS) for kind, size in (("neuron", 48), ("channel", 32))
             for i in range(size)]  # fmt: skip
    generator = np.random.default_rng(0)
    table = pd.DataFrame(every, columns=units.KEY).assign(
        safety=generator.normal(size=len(every)), utility=generator.normal(size=len(every))
    )
    shares = TINY.units
    return units.groups(table, ru=shares.ru, scu=shares.scu, ucu=shares.ucu)


def counts(rows):
    return rows.groupby(["kind", "layer"]).size().to_dict()


@pytest.mark.parametrize("group", [["scu"], ["scu", "cu"]])
def test_random_units_are_as_many_of_every_kind_in_every_layer(grouped, group):
    rows = grouped[grouped["group"].isin(group)]
    found = compare.alike(grouped, rows, seed=0)
    assert counts(found) == counts(rows)
    assert not found.duplicated(units.KEY).any()


def test_random_units_are_drawn_from_all_units_by_the_seed(grouped):
    rows = grouped[grouped["group"] == "scu"]
    drawn = [compare.alike(grouped, rows, seed) for seed in range(200)]
    pd.testing.assert_frame_equal(drawn[0], compare.alike(grouped, rows, 0))
    assert not drawn[0].equals(drawn[1])
    cells = rows.set_index(["kind", "layer"]).index
    possible = sum(size for cell, size in grouped.groupby(["kind", "layer"]).size().items() if cell in cells)
    assert len(pd.concat(drawn).drop_duplicates(units.KEY)) > 0.95 * possible


def test_arms_hold_the_groups_of_the_paper(model, grouped):
    found = compare.arms(model, grouped, TINY, "errands", 0)
    assert set(found) == {*compare.UNIT_ARMS, LORA, PREFIX}
    (nothing,), (scu,), (top,), (everything,), (schedule,) = (
        found[name] for name in (NOTHING, SCU, TOP, ALL, SCHEDULE)
    )

    def same(masks, rows):
        expected = freezing.masks(model, rows)
        return set(masks) == set(expected) and all(masks[name].equal(mask) for name, mask in expected.items())

    critical, complex_ = grouped[grouped["group"] == "scu"], grouped[grouped["group"] == "cu"]
    best = complex_.sort_values("safety", ascending=False).head(round(TINY.units.top_cu * len(grouped)))
    assert nothing.frozen == {}
    assert same(scu.frozen, critical)
    assert same(top.frozen, pd.concat([critical, best]))
    assert same(everything.frozen, pd.concat([critical, complex_]))
    assert same(schedule.first, pd.concat([critical, complex_]))
    assert same(schedule.frozen, pd.concat([critical, best]))
    assert [found[name][0].adapter for name in (LORA, PREFIX)] == ["lora", "prefix"]


@pytest.mark.parametrize("corpus", ["errands", "ledgers"])
def test_random_arms_are_as_many_as_the_profile_says_and_as_large_as_their_group(model, grouped, corpus):
    found = compare.arms(model, grouped, TINY, corpus, 0)
    for group, name in RANDOM.items():
        assert len(found[name]) == TINY.freezing.draws[corpus]
        assert len({arm.name for arm in found[name]}) == len(found[name])
        (own,) = found[group]
        columns = [mask for mask in own.frozen if "down_proj" in mask or "o_proj" in mask]  # a column each unit
        for arm in found[name]:
            assert {mask: int(arm.frozen[mask].sum()) for mask in columns} == {
                mask: int(own.frozen[mask].sum()) for mask in columns
            }
        assert not all(found[name][0].frozen[mask].equal(found[name][1].frozen[mask]) for mask in columns)


def test_other_seeds_draw_other_random_units(model, grouped):
    one, other = (compare.arms(model, grouped, TINY, "ledgers", seed)[RANDOM[TOP]] for seed in (0, 1))
    for a in one:
        for b in other:
            assert not all(
                a.frozen.keys() == b.frozen.keys() and a.frozen[name].equal(b.frozen[name]) for name in a.frozen
            )


def test_paths_of_all_arms_carry_their_names_and_draws(monkeypatch):
    asked = []

    def follow(profile, seed, arm, corpus):
        asked.append((profile, seed, arm.name, corpus))
        return pd.DataFrame({"step": [0, 8], "loss": [2.0, 1.0]})

    monkeypatch.setattr(freezing, "follow", follow)
    monkeypatch.setattr(freezing, "prepare", lambda *_: None)
    arms = {NOTHING: [freezing.Arm("n", {})], RANDOM[TOP]: [freezing.Arm(f"r{i}", {}) for i in range(2)]}
    found = compare.follow("tiny", 3, arms, "ledgers")
    assert asked == [("tiny", 3, name, "ledgers") for name in ("n", "r0", "r1")]
    assert list(zip(found["arm"], found["draw"], strict=True)) == [
        (name, draw) for name, draw in ((NOTHING, 0), (RANDOM[TOP], 0), (RANDOM[TOP], 1)) for _ in range(2)
    ]
    assert set(found["corpus"]) == {"ledgers"}
