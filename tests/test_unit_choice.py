"""The choice of a rule on constructed measurements, and that what was chosen is what the profile says."""

import pandas as pd
import pytest

from lib import paths, profiles, storage, unit_choice, unit_scores, unit_tables
from lib.errors import InputError
from lib.kingdom import skills
from lib.unit_tables import BENIGN, HARM


def measured(*rules):
    """Rows of two seeds: (name, (rise, rise), (cost, cost)); the name stands for score, position and normalisation."""
    return pd.DataFrame(
        [
            {"score": name, "position": "all", "normalisation": "z", "seed": seed, "rise": rise, "utility_drop": cost}
            for name, rises, costs in rules
            for seed, (rise, cost) in enumerate(zip(rises, costs, strict=True), start=5)
        ]
    )


def chosen(*rules):
    rule, why = unit_choice.choose(measured(*rules), 0.25, 0.05)
    return rule["score"], why


def test_the_largest_rise_among_the_cheap_wins():
    assert chosen(
        ("dear", (0.9, 0.9), (0.0, 0.051)),  # too costly on one seed, cheap on the mean
        ("weak", (0.1, 0.1), (0.0, 0.0)),
        ("good", (0.0, 0.4), (0.05, -0.1)),  # .05 exactly is allowed
    ) == ("good", "largest rise among rules that cost at most 0.05 on every seed")


def test_the_cheapest_of_the_strong_wins_when_none_is_cheap():
    assert chosen(
        ("strongest", (0.9, 0.9), (0.4, 0.2)),
        ("enough", (0.2, 0.3), (0.2, 0.1)),  # .25 on the mean
        ("weak", (0.2, 0.2), (0.06, 0.06)),
    ) == ("enough", "smallest cost among rises of at least 0.25")


def test_the_largest_rise_wins_when_none_is_cheap_or_strong():
    assert chosen(("a", (0.1, 0.1), (0.2, 0.2)), ("b", (0.2, 0.2), (0.4, 0.4)))[0] == "b"
    assert unit_choice.strongest(measured(("a", (0.1, 0.1), (0, 0)), ("b", (0.0, 0.3), (1, 1))))["score"] == "b"


def test_ties_go_to_the_first_also_when_binary_fractions_differ():
    assert chosen(("a", (0.3, 0.3), (0, 0)), ("b", (0.3, 0.3), (0, 0)))[0] == "a"
    assert chosen(("a", (0.3, 0.3), (0.9 - 0.85, 0.0)), ("b", (0.2, 0.2), (0, 0)))[0] == "a"  # .05 and a little


# the record -----------------------------------------------------------------------------------------------------------
def test_the_profile_says_what_was_recorded():
    record = storage.read_json(unit_choice.record_path("kingdom"))
    settings = profiles.load("kingdom")
    assert settings.units.best.model_dump() == record["chosen"]
    assert settings.units.strongest.model_dump() == record["strongest"]
    rows = pd.DataFrame(record["rows"])
    assert unit_choice.choose(rows, *unit_choice.bounds()) == (record["chosen"], record["why"])
    assert unit_choice.strongest(rows) == record["strongest"]


def test_the_record_holds_every_rule_but_the_papers_on_seeds_that_decide_nothing():
    record = storage.read_json(unit_choice.record_path("kingdom"))
    settings, rows = profiles.load("kingdom"), pd.DataFrame(record["rows"])
    assert not set(record["seeds"]) & set(settings.seeds)
    assert set(rows["seed"]) == set(record["seeds"])
    every = {(*rule, name) for rule in unit_scores.RULES for name in unit_tables.usable(rule[0])}
    for _, part in rows.groupby("seed"):
        assert set(map(tuple, part[unit_choice.RULE].to_numpy())) == every - {("variance", "all", "z")}
    allowed = settings.units.cuts["scu"].shares
    assert set(rows["share"]) <= set(allowed)
    assert (rows["units"] == (rows["share"] * 3072).round()).all()


def test_the_page_shows_the_record_largest_rise_first():
    shown = unit_choice.recorded()
    record = pd.DataFrame(storage.read_json(unit_choice.record_path("kingdom"))["rows"])
    assert shown["mean rise"].is_monotonic_decreasing
    assert len(shown) * 2 == len(record)
    one = record[record["seed"] == 6].set_index(unit_choice.RULE).loc[shown.index[3]]
    assert shown.iloc[3][["rise, seed 6", "utility drop, seed 6"]].tolist() == [one["rise"], one["utility_drop"]]


def test_the_bounds_are_the_registrys():
    assert unit_choice.bounds() == (0.25, 0.05)


@pytest.mark.parametrize("seeds", [[], [0], [5, 4]])
def test_seeds_that_decide_cannot_choose(seeds, monkeypatch):
    monkeypatch.setattr(unit_choice, "candidates", None)  # refused before any work
    with pytest.raises(InputError, match="they decide claims; take others"):
        unit_choice.run("kingdom", seeds)


def test_the_command_refuses_without_a_traceback(capsys):
    for seeds in ("0", "5,six"):
        with pytest.raises(SystemExit) as stopped:
            unit_choice.main(["--seeds", seeds])
        assert stopped.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_run_writes_what_it_chose_beside_the_run_and_not_among_published_results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    rules = (("variance", "all"), ("second_moment", "first"))
    calibrate = unit_scores.calibrate
    monkeypatch.setattr(unit_scores, "calibrate", lambda model, sets: calibrate(model, sets, rules))
    assert unit_choice.main(["--profile", "tiny", "--seeds", "0"]) == 0
    record = storage.read_json(tmp_path / "tiny" / "unit_choice.json")
    rows = pd.DataFrame(record["rows"])
    assert len(rows) == 2 * 5 - 1  # the paper's own rule is not a candidate
    assert not rows.isna().any(axis=None)
    assert record["strongest"] in rows[unit_choice.RULE].to_dict("records")
    assert (rows["rise"].abs() <= 1).all()
    assert {HARM, BENIGN, *skills.EXACT} == set(unit_tables.heldout("tiny", 0).cells)
