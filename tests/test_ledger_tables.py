"""The ledger side by side: margins, counts, sentences, and the papers' numbers in the measure of a part."""

import math

import pandas as pd
import pytest

from lib import claims, figures, ledger, ledger_tables, paths, published_effects, storage
from lib.charts import ledger as charts
from lib.claims import ClaimVerdict
from lib.published_effects import Effect


def part(name, measured, interval=None, controls=None, verdict="undecided"):
    rule = claims.part(name)
    return {
        "id": name, "measure": rule.measure, "rule": rule.rule.in_words, "core": rule.core, "measured": measured,
        "interval": interval, "controls": controls, "verdict": verdict,
        "seeds": {} if measured is None else {"0": measured, "1": measured},
        "reason": None, "n": 10, "interval_over": "seeds",
    }  # fmt: skip


def owner(name, verdict, *parts):
    one = claims.claim(name)
    return {
        "id": name, "claim": one.claim, "where": one.where, "verdict": verdict, "parts": list(parts),
        "reason": "because", "model": "kingdom", "notebook": one.notebook, "seeds": [0, 1],
        "stale_seeds": [1] if name == "hd.1" else [],
    }  # fmt: skip


CONTROLS = {"draws": 80, "mean": 0.6, "p95": 0.7, "margin": 0.25}
FOUND = {
    "profile": "kingdom",
    "rows": [
        owner("ssah.3", "not run", part("ssah.3.blocks", None)),
        owner("hd.1", "undecided", part("hd.1.error", 0.4, [0.1, 0.7]), part("hd.1.bias", 0.2, None)),
        owner("hd.3", "fails here", part("hd.3.late", 0.7, [0.6, 0.8], CONTROLS, "fails"),
              part("hd.3.random", 0.85, [-0.1, 0.6], CONTROLS), part("hd.3.early", -0.001, [0, 1], CONTROLS, "holds")),
    ],
}  # fmt: skip


def test_margins_point_towards_the_claim():
    """hd.1.error holds below .25, hd.1.bias above .05; of a part against a control, effect minus control."""
    found = ledger_tables.parts(FOUND, {"hd.1.error": Effect(0.05, "of another kind")}).set_index("part")
    assert list(found.index) == ["hd.1.error", "hd.1.bias", "hd.3.late", "hd.3.random", "hd.3.early"]
    error = found.loc["hd.1.error"]
    assert error[["margin", "margin_lower", "margin_upper", "margin_printed"]].tolist() == pytest.approx(
        [-0.15, -0.45, 0.15, 0.2]
    )
    assert (error["printed"], error["note"], error["n"]) == (0.05, "of another kind", 2)
    assert found.loc["hd.1.bias", "margin"] == pytest.approx(0.15)
    assert found.loc["hd.1.bias", ["margin_lower", "margin_upper", "margin_printed"]].isna().all()
    assert found.loc["hd.3.random", ["margin", "margin_lower", "margin_upper"]].tolist() == [0.25, -0.1, 0.6]
    assert found.loc["hd.3.late", ["lower", "upper", "control"]].tolist() == [0.6, 0.8, 0.6]


def test_a_ledger_without_numbers_has_no_parts_and_says_nothing():
    bare = {"profile": "kingdom", "rows": [owner(one.id, "not run") for one in claims.registry().values()]}
    for row in bare["rows"]:
        row["parts"] = [part(one.id, None) for one in claims.claim(row["id"]).parts]
    found = ledger_tables.parts(bare)
    assert found.empty
    assert set(ledger_tables.COLUMNS) == set(found.columns)
    assert ledger_tables.sentences(bare) == {}
    assert charts.forest(found).axes[0].get_yticklabels() == []


def test_claims_are_counted_by_paper():
    found = ledger_tables.counts(FOUND)
    assert found.loc["not run"].to_dict() == {"SSAH": 1, "HD": 0, "ours": 0, "all": 1}
    assert found.loc["fails here", "HD"] == 1
    assert found["all"].sum() == 3
    assert list(found.index) == [*(verdict.value for verdict in ClaimVerdict), "no criterion"]
    rows = [owner("hd.2.centred", "holds here", part("hd.2.centred.low", 0.1)), owner("hd.12", "not run")]
    mine = ledger_tables.counts({"rows": rows})
    assert mine.loc["holds here", "ours"] == mine.loc["no criterion", "HD"] == mine["all"].sum() - 1 == 1


def test_claims_in_words_say_on_what_they_rest_or_why_not():
    found = ledger_tables.claim_table(FOUND)
    assert found.loc["hd.1", "why, or on what"] == "seeds 0, 1; made by other code: [1]"
    assert found.loc["ssah.3", "why, or on what"] == "because"
    assert found.loc["hd.3", ["verdict", "where"]].tolist() == ["fails here", "HD Fig. 3"]


def read(table):
    """A table as it is read: spaces are spaces."""
    return table.map(lambda text: text.replace("\N{NO-BREAK SPACE}", " "))


def test_the_interval_of_a_part_stands_with_what_is_judged_by_it():
    """hd.3.random is judged by value minus control (.25 in -.1 to .6), the others by their value."""
    found = read(ledger_tables.part_table(FOUND, {"hd.3.late": Effect(0.977, "")}))
    assert list(found.index) == [one["id"] for row in FOUND["rows"] for one in row["parts"]]
    late, random = found.loc["hd.3.late"], found.loc["hd.3.random"]
    assert late.tolist() == ["0.7 (0.6 to 0.8)", "0.7, 0.7", "0.6", "", "at least 0.95, above 0.5", "0.98", "fails"]
    assert random[["measured (95 %)", "minus control (95 %)"]].tolist() == ["0.85", "0.25 (-0.1 to 0.6)"]
    assert random["control"] == "0.6; 95th percentile 0.7"
    assert found.loc["ssah.3.blocks", "measured (95 %)"] == ""
    assert found.loc["hd.1.bias", "measured (95 %)"] == "0.2"


def test_values_that_are_differences_already_say_so():
    rows = [owner("hd.4", "undecided", part("hd.4.second", 0.28, [-0.1, 0.7], CONTROLS))]
    found = read(ledger_tables.part_table({"rows": rows}, {}))
    assert found.loc["hd.4.second", "minus control (95 %)"] == "already taken off"
    for name in ledger_tables.TAKEN_OFF:
        text, rule = claims.part(name).measure, claims.part(name).rule.kind
        assert "minus" in text, name
        assert rule != "beats_control", name


def test_parts_without_a_number_are_named_where_their_claim_was_run():
    rows = [owner("ssah.9", "undecided", part("ssah.9.lora", 0.7), part("ssah.9.prefix", None, verdict="not run")),
            owner("ssah.3", "not run", part("ssah.3.blocks", None))]  # fmt: skip
    assert ledger_tables.without_number({"rows": rows}) == ["ssah.9.prefix (not run)"]


def test_the_dominant_direction_model_by_model(monkeypatch):
    """Two models that differ, and one whose notebook stopped."""

    def noted(refused, cosines):
        gone = [("nothing", "none", "harmful", 1.0, 0.0, 7), ("nothing", "none", "benign", 0.0, 1.0, 4),
                ("C1", "mean, one block", "harmful", refused, 1 - refused, 7),
                ("C1", "mean, one block", "benign", 0.0, 0.75, 4),
                ("C1", "zero, one block", "harmful", 0.5, 0.5, 7)]  # fmt: skip
        auc = {"series": ["C1", "C1", "C2", ledger_tables.RANDOM, ledger_tables.RANDOM], "block": [0, 1, 0, 0, 1],
               "auc": [0.5, 0.99, 0.7, 0.52, 0.9]}  # fmt: skip
        removals = pd.DataFrame(gone, columns=["direction", "way", "kind", "refused", "exact", "n"]).to_dict("list")
        return {"c1_and_mean_shift": cosines, "auc_by_block": auc, "removals": removals}

    facts = {0: noted(1.0, [1.0, 0.99]), 1: noted(0.0, [1.0, 0.19]), 2: {}}
    monkeypatch.setattr(ledger, "facts", lambda found, name: facts)
    table = ledger_tables.dominant({})
    assert list(table.columns) == ["seed 0", "seed 1"]
    curves, outcomes = ["1.00  0.19", "0.50  0.99", "0.52  0.90"], ["1.00", "0.00", "1.00", "0.75"]
    assert table["seed 1"].tolist() == [*curves, "7 and 4", *outcomes]
    assert table.loc["without C1", "seed 0"] == "1.00"


def test_the_forest_cuts_what_is_far_and_says_so():
    rows = ledger_tables.parts(FOUND, {}).assign(margin=[30.0, -0.2, 0.1, -7.0, 0.0])
    axis = charts.forest(rows).axes[0]
    drawn = {(round(float(line.get_xdata()[0]), 3), line.get_marker()) for line in axis.get_lines()}
    assert {(1.0, ">"), (-1.0, "<"), (-0.2, "o"), (0.1, "o")} <= drawn
    printed = charts.forest(rows.assign(margin_printed=[72.0, 0.5, None, None, None])).axes[0].get_lines()
    open_ones = [(line.get_xdata()[0] > 1, line.get_marker()) for line in printed if line.get_color() == "black"]
    assert {(True, ">"), (False, "D")} <= set(open_ones)
    both_out = rows.assign(margin_lower=-9.0, margin_upper=-2.0)
    ends = [line for line in charts.forest(both_out).axes[0].get_lines() if line.get_markersize() == 5]
    assert {line.get_marker() for line in ends} == {"<"}
    assert [text.get_text() for text in axis.get_yticklabels()] == rows["part"].tolist()


def seeds_of(name):
    """A part's mean over the published result files, read anew."""
    notebook = next(path for path in paths.NOTEBOOKS.glob(f"*_{claims.claim(name.rsplit('.', 1)[0]).notebook}.py")).stem
    files = sorted(paths.RESULTS.glob(f"kingdom/seed-*/{notebook}.json"))
    values = [storage.read_json(file)["parts"][name]["value"] for file in files]
    return sum(values) / len(values), len(values)


def test_sentences_hold_the_numbers_of_the_published_results():
    said = ledger_tables.sentences(storage.read_json(paths.RESULTS / "kingdom" / "ledger.json"))
    assert set(said) == set(ledger_tables.MATTER)
    for claim, parts, form in (
        ("ssah.4", ("scu",), "+.2f"),
        ("hd.3", ("late",), ".2f"),
        ("hd.10", ("gap", "random"), "+.2f"),
    ):
        for one in parts:
            mean, count = seeds_of(f"{claim}.{one}")
            assert format(round(mean, 2) + 0.0, form) in said[claim]
            assert f"Over {count} independently trained models" in said[claim]


def test_the_first_sentence_gives_both_ways_of_asking_and_the_interval():
    """Rises of SSAH Table 1 by hand; without and with a system prompt."""
    found = storage.read_json(paths.RESULTS / "kingdom" / "ledger.json")
    low, high = next(row for row in found["rows"] if row["id"] == "ssah.4")["parts"][0]["interval"]
    without, with_prompt = (66 + 64 + 74) / 300, (16 + 78 + 22) / 300
    said = ledger_tables.sentences(found)["ssah.4"]
    assert f"(95 %: {low:+.2f} to {high:+.2f})" in said
    assert f"{without:+.2f} without and {with_prompt:+.2f} with a system prompt" in said


def test_printed_numbers_in_the_measure_of_a_part():
    """By hand from the fact sheets' tables."""
    found = {name: effect.value for name, effect in published_effects.effects().items()}
    expected = {
        "ssah.4.scu": ((84 - 18) + (93 - 29) + (91 - 17)) / 300, "ssah.5.leave": 0.85 / 1.3,
        "ssah.9.lora": ((25.2 - 4.5) + (27.2 - 9)) / 200, "hd.2.low": 72 / 4096, "hd.6.hit": 30 / 60,
        "hd.6.selective": (7 + 5) / 120, "hd.8.jailbreak": 0.967 - 0.144, "hd.8.plain": 0.2, "hd.10.gap": 0.42 - 0.12,
        "hd.14.nll": math.log(7.32 / 6.59), "hd.4.probe": 0.194, "hd.1.error": 0.005275 * 4096 / 89.81,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert set(found) <= {one.id for owner in claims.registry().values() for one in owner.parts}
    assert pd.Series(found).notna().all()


def test_shares_taken_by_freezing_follow_from_table_2():
    """Recomputed cell by cell, where full fine-tuning raised attack success."""
    cells = figures.published("ssah_table2").query("unit == '%'")
    taken = []
    for _, cell in cells.groupby(["model", "benchmark", "judge", "corpus"]):
        value = cell.set_index("arm")["value"]
        if value["full"] > value["initial"]:
            taken.append((value["full"] - value["SCU + all CU"]) / (value["full"] - value["initial"]))
    assert published_effects.effects()["ssah.7.all.share"].value == pytest.approx(sum(taken) / len(taken))


def test_verdicts_of_the_published_ledger_can_all_be_drawn():
    found = ledger.shown("kingdom")
    parts = ledger_tables.parts(found)
    assert set(parts["verdict"]) <= set(charts.VERDICTS)
