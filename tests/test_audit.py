"""Findings about printed numbers: hand arithmetic on small tables with planted errors; clean tables give none.

The last part reads `data/published` and repeats by other means what notebook 14 says.
"""

import math

import numpy as np
import pandas as pd
import pytest

from lib import audit, audit_tables, claims, figures, notebooks, paths, provenance
from lib.charts import audit as charts
from lib.errors import InputError

published = figures.published


def table(rows, columns, **tags):
    """Rows with a source; two tags make the finding name both."""
    source = {"claim": "x.1", "source": "Paper Table 9", "version": "v1", "reliability": "printed"} | tags
    return pd.DataFrame(rows, columns=columns.split()).assign(**source)


# printed decimals -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "cell", "digits", "printed"),
    [
        (58.25, 58.3, None, True),  # rounded
        (62.9167, 62.91, None, True),  # cut off
        (62.9167, 62.92, None, True),
        (62.9167, 62.93, None, False),
        (62.9167, 62.9, None, True),
        (28.4, 28.3, 1, False),
        (25.15, 25.0, None, True),  # a trailing zero is not seen ...
        (25.15, 25.0, 1, False),  # ... unless the digits are given
        (math.nan, 1.0, None, False),
    ],
)
def test_a_value_is_printed_rounded_or_cut_off(value, cell, digits, printed):
    assert audit.prints_as(value, cell, digits) is printed


def test_decimals_are_those_that_show():
    assert [audit.decimals(cell) for cell in (25.0, 9, 0.19, 4.443e-05)] == [0, 0, 2, 8]


def test_agreement_counts_cells_and_names_the_largest_difference():
    line = audit.agreement("means", [1.0, 2.5], [1.04, 2.0], digits=1)
    assert line == {"what": "means", "cells": 2, "follow": 1, "largest difference": 0.5}
    with pytest.raises(InputError, match="1 printed and 2 computed cells"):
        audit.agreement("means", [1.0], [1.0, 2.0])


# findings of audit ----------------------------------------------------------------------------------------------------
def test_an_average_of_three_columns_of_which_two_are_shown():
    rows = [("m", "dense", 2.0, 4.0, 3.0), ("n", "dense", 2.0, 4.0, 5.0), ("n", "scu", 30.0, 60.0, 50.3)]
    made = table(rows, "model group a b mean_printed")
    found = audit.averages(made, ["a", "b"], "mean_printed")
    assert found.cells["mean"].tolist() == [3.0, 45.0]
    assert found.cells["third"].tolist() == ["9", "61"]  # (2 + 4 + 9) / 3 = 5; (30 + 60 + 61) / 3 = 50.33
    assert "a rise of 45.3 as printed, 42.0 from the two columns" in found.consequence
    assert found.checked == 3
    assert audit.averages(made[made["model"] == "m"], ["a", "b"], "mean_printed") is None


FLOWS = [("F", "a", "a", 10.0), ("F", "a", "b", 5.0), ("F", "b", "b", 84.95)]


def test_flows_may_fall_short_by_what_is_not_drawn_and_never_exceed():
    bands = table(FLOWS, "figure before after share")
    sizes = [("F", "before", "a", 15.0), ("F", "before", "b", 85.0), ("F", "after", "a", 10.0)]
    clean = table([*sizes, ("F", "after", "b", 89.95)], "figure when group share")
    assert audit.flows(bands, clean) is None  # b before is short of 85 by .05: one band below .1 is not drawn
    wrong = audit.flows(bands, table([*sizes, ("F", "after", "b", 88.85)], "figure when group share"))
    assert wrong.cells[["when", "group"]].to_numpy().tolist() == [["after", "b"]]
    assert wrong.cells["sum - printed"].tolist() == [pytest.approx(1.1)]
    assert "5 + 84.95 = 89.95, printed 88.85" in wrong.arithmetic
    short = table([*sizes, ("F", "after", "b", 90.06)], "figure when group share")
    assert audit.flows(bands, short).cells["group"].tolist() == ["b"]  # all its bands are drawn, so .11 short is off


def scores(base=(0.2, 0.4), tuned=(0.0, 0.1), trainings=("SFT", "DPO")):
    rows = [
        (t, a, k, s) for t in trainings for k, both in ((0, base), (10, tuned)) for a, s in zip("AB", both, strict=True)
    ]
    benign = [(t, "OR-Bench (benign)", k, 0.9) for t in trainings for k in (0, 10)]
    return table([*rows, *benign], "training attack shots score")


def test_a_headline_follows_from_a_table_or_does_not():
    """Means of the attacks are .30 and .05; the benign row does not count. Means of subsets: .2, .4, .3."""
    said = [(0.30, 0.05)]
    assert audit.headline(table(said, "before after"), scores()) is None
    found = audit.headline(table([(0.40, 0.05)], "before after"), scores())
    assert found.cells["before"].tolist() == pytest.approx([0.3, 0.3])
    assert "1 of 3 subsets" in found.arithmetic
    assert found.arithmetic.endswith("the nearest is 0.400 (B)")


def test_a_row_of_scores_among_pass_rates_is_found():
    rates = [("A", 0, 0.50), ("A", 10, 0.10), ("B", 0, 0.41), ("B", 10, 0.1)]
    counts = table([("A", 0, 5, 10), ("A", 10, 9, 10)], "attack shots matching prompts")
    found = audit.other_metric(table(rates, "attack shots pass_rate"), counts, scores(base=(0.2, 0.406)))
    assert set(found.cells["attack"]) == {"B"}
    assert "0.41 is between 4/10 = 0.400 and 5/10 = 0.500" in found.arithmetic
    known = pd.concat([counts, table([("B", 0, 6, 10), ("B", 10, 9, 10)], "attack shots matching prompts")])
    rates[2] = ("B", 0, 0.40)
    assert audit.other_metric(table(rates, "attack shots pass_rate"), known, scores()) is None


def test_a_ratio_by_the_wrong_norm_is_found_and_a_right_one_is_not():
    columns = "hidden_state mse norm_before norm_shift printed_ratio width"
    found = audit.ratio_label(table([(1, 0.02, 50.0, 4.0, 0.005, 10), (2, 0.03, 60.0, 3.0, 0.01, 10)], columns))
    assert found.cells["labelled"].tolist() == pytest.approx([0.0004, 0.0005])
    assert found.cells["relative"].tolist() == pytest.approx([0.05, 0.1])
    assert audit.ratio_label(table([(1, 0.02, 50.0, 4.0, 0.0004, 10)], columns)) is None
    assert audit.ratio_label(table([(1, 0.02, 50.0, 4.0, 0.7, 10)], columns)) is None  # neither: not this finding


def test_the_covariance_score_gives_back_the_gap_between_class_means():
    """The score of the released code, computed literally on made-up projections, and the true gap."""
    rng = np.random.default_rng(0)
    label = np.arange(700) < 211
    projections = {k: rng.normal(size=700) + gap * label for k, gap in ((1, 0.5), (2, 4.0), (3, 5.0))}
    rows = [(k, float(np.mean((p - p.mean()) * (2 * label - 1))), 700, 211) for k, p in projections.items()]
    norms = table([(1, 1.0), (2, 4.0), (3, 100.0)], "hidden_state norm_before")
    found = audit.score_name(table(rows, "hidden_state value prompts positive"), norms)
    true = [p[label].mean() - p[~label].mean() for p in projections.values()]
    assert found.cells["gap"].tolist() == pytest.approx(true)
    assert found.cells["gap / length"].tolist() == pytest.approx([true[0], true[1] / 2, true[2] / 10])
    assert "length of activations 5.0-fold" in found.consequence  # from layer 2, where gap / length is largest
    negative = table([(1, -0.7, 700, 211)], "hidden_state value prompts positive")
    assert audit.score_name(negative, norms) is None


def test_one_start_for_all_trainings_is_found():
    found = audit.same_start(scores())
    assert found.checked == 3
    assert "DPO 0.30 to 0.05" in found.arithmetic
    made = scores()
    made.loc[0, "score"] += 0.01
    assert audit.same_start(made) is None


def test_a_mean_score_above_the_share_not_refused_is_found():
    """1 of 60 passed: Wilson's upper bound is .0886 by the closed form; a mean score of .2 is above, .08 is not."""
    z, p, n = 1.959964, 1 / 60, 60
    upper = (p + z**2 / (2 * n) + z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)
    rates = table([("A", 0, 0.02), ("B", 0, 0.5)], "attack shots pass_rate")
    found = audit.two_models(rates, scores(), 60)
    assert found.cells.set_index("attack").loc["A", "at most"] == pytest.approx(upper, abs=1e-6)
    assert found.arithmetic.startswith("A: pass rate 0.02 (at most 0.09), mean score 0.200")
    assert "B" not in found.arithmetic
    assert audit.two_models(rates, scores(base=(0.08, 0.4)), 60) is None


def test_findings_name_every_source_and_wrap_in_print():
    said = table([(0.65, 0.05)], "before after", source="Paper text", reliability="digitised")
    found = audit.headline(said, scores())
    assert (found.where, found.reliability, found.claim) == ("Paper text; Paper Table 9", "digitised; printed", "x.1")
    assert max(map(len, str(found).splitlines())) <= 110
    line = audit.summary([found]).loc["a headline that its tables do not give"]
    assert line["version"] == "v1"
    assert line["consequence"] == found.consequence


def test_tables_without_columns_or_rows_are_refused():
    with pytest.raises(InputError, match="table of flows lacks the columns before, share"):
        audit.flows(table([("F", "a")], "figure after"), table(FLOWS, "figure before after share"))
    with pytest.raises(InputError, match="lacks the columns claim, source, version, reliability"):
        audit.same_start(pd.DataFrame({"training": [], "attack": [], "shots": [], "score": []}))
    with pytest.raises(InputError, match="table of ranks has no rows"):
        audit_tables.last_rank(table([], "tau hidden_state rank"))
    with pytest.raises(InputError, match="shares lack the columns n"):
        audit_tables.with_intervals(pd.DataFrame({"share": [0.5]}))
    with pytest.raises(InputError, match="no cells"):
        audit_tables.smallest_n([])


# findings of audit_tables ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cells", "digits", "n"),
    [([50.0, 25.0], 1, 4), ([33.3, 66.6], 1, 3), ([0.5], 1, 167), ([0.5, 99.5], 1, 182), ([1.0, 37.0], 2, 100)],
)
def test_the_smallest_sample_is_the_first_that_gives_every_cell(cells, digits, n):
    """By trying every count of every smaller sample, rounded and cut off."""
    unit = 10**digits

    def gives(size, cell):
        scaled = [100 * k / size * unit + 1e-9 for k in range(size + 1)]
        return any(round(cell * unit) in (math.floor(one), math.floor(one + 0.5)) for one in scaled)

    first = next(size for size in range(1, 400) if all(gives(size, cell) for cell in cells))
    assert audit_tables.smallest_n(cells, digits) == first == n


def attack(value, arm="full", benchmark="P", unit="%"):
    return ("m", benchmark, "j", unit, "c", arm, value)


ATTACK = "model benchmark judge unit corpus arm value"


def test_shares_that_no_count_gives_are_found():
    """Of 40 answers (20 prompts, two tries): 7.5 is 3, 12.5 is 5; 11.25 and 7.6 are none. A score is no share."""
    sizes = table([("P", 20, 2)], "measure prompts tries")
    rows = [attack(7.5), attack(11.25, "a"), attack(7.6, "b"), attack(1.33, "d", unit="1-5"), attack(12.5, "e")]
    found = audit_tables.counts(table(rows, ATTACK), sizes)
    assert found.cells["value"].tolist() == [11.25, 7.6]
    assert found.cells["below"].tolist() == ["4/40 = 10.00", "3/40 = 7.50"]
    assert found.checked == 4
    assert audit_tables.counts(table(rows[:1], ATTACK), sizes) is None
    assert audit_tables.by_chance(11.25, 40) == pytest.approx(0.006)  # a window of .015 every 2.5


def test_differences_have_the_interval_of_two_independent_shares():
    """Against the plain normal one, which Wilson's nears for shares near a half of many prompts."""
    found = audit_tables.difference(52.0, 48.0, 10_000)
    half = 100 * 1.959964 * math.sqrt(2 * 0.52 * 0.48 / 10_000)
    assert (found.mean, found.lower, found.upper) == pytest.approx((4.0, 4 - half, 4 + half), abs=0.01)


def test_a_tax_within_its_error_is_found_and_a_large_one_is_not():
    sizes = table([("sums", 900, 1)], "measure prompts tries")
    columns = ["task", "unit", "pre-trained", "full", "RU only", "claim", "source", "version", "reliability"]
    rows = [["sums", "%", 10.0, 9.5, 20.0, *"abcd"], ["other", "%", 10.0, 20.0, 12.0, *"abcd"]]
    found = audit_tables.tax(pd.DataFrame(rows, columns=columns), sizes)
    assert found.cells["standard error of one score"].iloc[0] == pytest.approx(1.0)  # sqrt(.1 x .9 / 900)
    assert found.cells["change"].tolist() == pytest.approx([-0.5, 10.0])
    assert found.arithmetic.startswith("1 of 2 tasks lose")
    rows[0][3] = 2.0
    assert audit_tables.tax(pd.DataFrame(rows, columns=columns), sizes) is None
    rows[0][3] = 11.0
    assert audit_tables.tax(pd.DataFrame(rows, columns=columns), sizes) is None


def test_arms_closer_than_their_error_are_found():
    sizes = table([("P", 400, 1)], "measure prompts tries")
    arms = ("full", "SCU + top CU", "SCU + all CU")
    rows = [attack(value, arm) for value, arm in zip((40.0, 20.0, 18.0), arms, strict=True)]
    found = audit_tables.freezing(table(rows, ATTACK), sizes)
    assert found.cells["contrast"].tolist() == ["top against all CU frozen"]
    assert "full against all CU frozen 1 of 1, top against all CU frozen 0 of 1" in found.arithmetic
    rows = [attack(value, arm) for value, arm in zip((60.0, 40.0, 20.0), arms, strict=True)]
    assert audit_tables.freezing(table(rows, ATTACK), sizes) is None


def test_shares_of_few_prompts_are_wide_and_of_many_are_not():
    shares = {"few": pd.DataFrame({"share": [0.5, 0.0], "n": 20}), "many": pd.DataFrame({"share": [0.5], "n": 10_000})}
    found = audit_tables.wide(shares, [table([(1,)], "x")])
    assert found.cells["wide"].tolist() == [2, 0]
    assert found.checked == 3
    assert audit_tables.wide({"many": shares["many"]}, [table([(1,)], "x")]) is None


def test_the_floor_is_what_calling_everything_a_hazard_misses():
    """10 goals, 3 labelled safe. A at K = 5 misses 3 and B 5, of which Fig. 4 shows 0 and 2."""
    rows = [("A", 0, 4, 10), ("A", 5, 7, 10), ("B", 5, 5, 10), ("C", 5, 7, 10)]
    released = table(rows, "attack shots matching prompts")
    passed = table(
        [("A", "after tuning", 0), ("B", "after tuning", 2), ("B", "before tuning", 9)], "attack condition passed"
    )
    goals = table([("all", 50, 9), ("test goals of T", 10, 3)], "set goals labelled_safe")
    found = audit_tables.floor(released, goals, passed, 5)
    assert found.cells["rest"].tolist() == [0, 2, 0]
    assert found.cells["fig4"].tolist()[:2] == [0, 2]
    assert "passes 3/10 = 0.300; 2 of 3 cells after tuning are just that" in found.arithmetic
    assert "for 2 of 2 attacks" in found.arithmetic
    assert audit_tables.floor(released, goals.replace(3, 0), passed, 5) is None


def test_chance_of_flagging_as_many_as_are_positive():
    """Drawn: 30 of 100 flagged at random, 30 positive. Mean agreement is chance; that of disjoint sets is least."""
    rng = np.random.default_rng(1)
    label = np.arange(100) < 30
    drawn = np.mean([np.mean(rng.permutation(label) == label) for _ in range(4000)])
    rows = [("C1", 0, 0.1), ("C1", 1, drawn - 0.01), ("C1", 2, 0.4), ("C2", 1, drawn + 0.01), ("C2", 2, 0.95)]
    made = table([(*row, 100, 30) for row in rows], "series hidden_state value prompts positive")
    found = audit_tables.below_chance(made)
    assert found.cells[["series", "hidden_state"]].to_numpy().tolist() == [["C1", 1], ["C1", 2]]
    assert np.mean(np.roll(label, 30) == label) == pytest.approx(0.4)
    assert found.cells["least possible"].tolist() == [False, True]
    assert audit_tables.below_chance(made[made["series"] == "C2"]) is None


def test_the_last_rank_allows_for_the_reading_error():
    ranks = [(0.4, 7, 3), (0.4, 8, 1), (0.9, 8, 2)]
    assert audit_tables.last_rank(table(ranks, "tau hidden_state rank")) is None
    found = audit_tables.last_rank(table([*ranks, (0.95, 8, 3)], "tau hidden_state rank"))
    assert found.name == "a rank that returns to 1 for 2 of 3 shares"
    assert found.arithmetic == "layer 8: rank 1 at tau 0.4, rank 1 or 2 at tau 0.9, rank 3 at tau 0.95"
    assert found.consequence.endswith("up to tau = 0.9, not at 0.95")
    alone = audit_tables.last_rank(table([(0.95, 8, 3)], "tau hidden_state rank"))
    assert (alone.name, alone.consequence[-13:]) == ("a rank that does not return to 1", "does not hold")


def test_ties_within_two_readings_are_no_order():
    def panel(refusing):
        rows = [("F", "m", "yes", "refusing", k, d) for k, d in zip((2, 4), refusing, strict=True)]
        rows += [("F", "m", "yes", "complying", k, 0.5) for k in (2, 4)]
        return table([(*row, 0.02) for row in rows], "figure model aligned answer tokens distance reading_error")

    assert audit_tables.early_order(panel((0.45, 0.2))) is None
    assert audit_tables.early_order(panel((0.46, 0.2))).cells["nearer"].tolist() == ["tie"]
    found = audit_tables.early_order(panel((0.55, 0.2)))
    assert found.cells["nearer"].tolist() == ["complying"]
    assert "later: 1 of 1 refusing" in found.arithmetic


def test_ranges_apart_by_more_than_both_readings_do_not_meet():
    tokens = table(
        [("m", "yes", "refusing", d, 0.02) for d in (0.3, 0.5)], "model aligned answer distance reading_error"
    )
    columns = "model aligned answer lowest highest reading_error"
    assert audit_tables.two_figures(tokens, table([("m", "yes", "refusing", 0.1, 0.26, 0.02)], columns)) is None
    found = audit_tables.two_figures(tokens, table([("m", "yes", "refusing", 0.1, 0.25, 0.02)], columns))
    assert "0.30 to 0.50 by token, 0.10 to 0.25 by block" in found.arithmetic


# the published tables -------------------------------------------------------------------------------------------------
def test_llama_2_averages_and_no_others():
    found = audit.averages(published("ssah_table1"), ["asr_system", "asr_no_system"], "asr_average")
    assert set(found.cells["model"]) == {"Llama-2-7B-Chat"}
    assert found.cells["mean"].tolist() == [10.5, 51.5, 35.5, 12.5]
    assert found.cells["third"].tolist() == ["9", "95", "14", "19"]


def test_fig_5_does_not_close_and_fig_6_does():
    found = audit.flows(published("ssah_fig5_6"), published("ssah_fig5_6_groups"))
    assert set(found.cells["figure"]) == {"Fig. 5"}
    assert found.cells["sum"].tolist() == pytest.approx([13.27 + 1.32, 69.19 + 0.85 + 7.44])


def test_pass_rates_scores_and_the_floor():
    rates, scored, released = published("hd_table3"), published("hd_tables5_7"), published("hd_table3_released")
    assert set(audit.other_metric(rates, released, scored).cells["attack"]) == {"ReNeLLM"}
    assert audit.two_models(rates, scored, 60).arithmetic.startswith("GPTFuzz")
    assert audit.same_start(scored).checked == 9
    headline = audit.headline(published("hd_headline"), scored).arithmetic
    assert "0 of 255" in headline
    assert headline.endswith(f"{(0.61 + 0.677) / 2:.3f} (ReNeLLM, Trigger Removal)")
    floor = audit_tables.floor(released, published("hd_moderation"), published("hd_fig4"), 160)
    assert floor.claim.startswith("hd.12")
    by_attack = floor.cells.set_index("attack")
    assert by_attack["rest"].to_dict() == {"Simple": 0, "GPTFuzz": 0, "Trigger Removal": 16, "Flip": 0, "PAIR": 1}
    assert "for 3 of 3 attacks" in floor.arithmetic


def test_table_4_of_hd_and_its_score():
    ratio = audit.ratio_label(published("hd_table4"))
    assert len(ratio.cells) == ratio.checked == 6
    assert ratio.cells["relative"].round(3).tolist() == [0.0, 0.063, 0.12, 0.241, 0.214, 0.182]
    score = published("hd_fig3_accuracy").query("measure == 'covariance score' and series == 'C1'")
    found = audit.score_name(score, published("hd_table4"))
    assert found.cells["gap / length"].round(2).tolist()[-3:] == [0.6, 0.51, 0.33]


def test_sizes_and_noise_of_ssah():
    sizes, table1 = published("sample_sizes"), published("ssah_table1")
    cells = table1[["winogrande", "openbookqa", "arc_c", "boolq", "hellaswag", "rte"]].to_numpy().ravel()
    assert audit_tables.smallest_n(cells, 1) == 200
    assert audit_tables.smallest_n(table1[["asr_system", "asr_no_system"]].to_numpy().ravel(), 1) == 100
    counts = audit_tables.counts(published("ssah_table2"), sizes)
    assert sorted(counts.cells["value"]) == [1.65, 2.96, 10.95, 14.24, 30.7, 51.38]
    tax = audit_tables.tax(published("ssah_table4"), sizes)
    assert tax.cells["standard error of one score"].iloc[0] == pytest.approx(0.80, abs=0.005)
    assert (tax.cells["lower"] > 0).tolist() == [False, True]
    frozen = audit_tables.freezing(published("ssah_table2"), sizes)
    assert "Llama-3-8B-Instruct, Alpaca 1 of 4" in frozen.consequence


def test_sentences_and_figures():
    accuracy = published("hd_fig3_accuracy").query("measure == 'accuracy' and series in ['C1', 'C2']")
    chance = audit_tables.below_chance(accuracy).cells
    assert chance[chance["series"] == "C1"]["hidden_state"].tolist() == list(range(1, 10))
    assert chance[chance["least possible"]]["hidden_state"].tolist() == [13]
    ranks = published("hd_fig2_rank").query("series == 'SSFT'")
    assert audit_tables.last_rank(ranks).cells["rank"].tolist() == [1, 1, 1, 2, 4]
    assert "rank 1 or 2 at tau 0.8, rank 4 at tau 0.9" in audit_tables.last_rank(ranks).arithmetic
    fig2 = published("ssah_fig2")
    assert set(audit_tables.early_order(fig2).cells["nearer"]) == {"tie", "complying"}
    ranges = audit_tables.two_figures(fig2[fig2["figure"] == "Fig. 2"], published("ssah_fig3"))
    assert set(ranges.cells["aligned"]) == {"yes"}


def test_new_tables_name_their_sources():
    names = ("hd_headline", "hd_moderation", "hd_table3_released", "sample_sizes", "ssah_fig3", "ssah_fig5_6_groups")
    for name in (*names, "ssah_fig2", "ssah_fig4"):
        rows = published(name)
        assert not rows.isna().any().any()
        assert set(rows["reliability"]) <= {"printed", "released", "digitised", "read by eye", "derived"}
        assert set(rows["claim"]) <= set(claims.registry())


def test_figures_show_every_cell_with_its_interval():
    table1, off = (
        published("ssah_table1"),
        audit.averages(published("ssah_table1"), ["asr_system", "asr_no_system"], "asr_average"),
    )
    gaps = audit_tables.contrasts(published("ssah_table2"), published("sample_sizes"))
    figure = charts.shares(audit_tables.pruned(table1, 100), table1, off.cells, gaps)
    left, right = figure.axes
    red = [c for c in left.collections if c.get_label() == "printed average, not the mean"]
    assert red[0].get_offsets()[:, 0].tolist() == off.cells["asr_average"].tolist()
    drawn = sum(len(bars.lines[0].get_xdata()) for bars in right.containers)
    shown = gaps[gaps["contrast"] != "full against top CU frozen"]
    assert drawn == len(shown)
    rings = [bars.lines[0] for bars in right.containers if bars.lines[0].get_markerfacecolor() == "white"]
    assert sum(len(line.get_xdata()) for line in rings) == (~shown["resolved"]).sum()
    assert len({str(line.get_color()) for line in rings}) == 2  # a ring keeps its contrast's colour


def test_the_notebook_records_every_finding_and_needs_no_model(tmp_path):
    """The cells of the notebook run here; every check of both modules is among its findings."""
    source = paths.NOTEBOOKS / "14_published_numbers.py"
    reached = provenance.modules_of(source)
    assert not any("import torch" in path.read_text(encoding="utf-8") for path in reached)
    space = {"display": lambda *_: None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "BUILD", tmp_path)
        patch.setattr(figures, "display", lambda *_: None)
        for cell in notebooks.cells(source.read_text(encoding="utf-8")):
            if cell.kind == "code":
                exec(compile(cell.source, source.name, "exec"), space)
    found = space["found"]
    assert all(isinstance(one, audit.Finding) for one in found)
    assert len({one.name for one in found}) == 17
    saved = paths.result_file(tmp_path / "kingdom" / "seed-0" / "results", "14_published_numbers")
    assert all(one.name in saved.read_text(encoding="utf-8") for one in found)
    assert [row["id"] for row in space["results"].verdicts()] == ["hd.12"]
