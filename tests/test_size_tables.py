"""Verdicts of planted sizes, how often they agree by counts done by hand, and the page that shows them."""

import json
from math import sqrt
from types import SimpleNamespace

import pytest

from lib import (
    claims,
    figures,
    jobs,
    notebooks,
    paths,
    pipeline,
    profile_files,
    profiles,
    published_effects,
    size_tables,
    sizes,
)
from lib.charts import size as charts
from lib.claims import Measurement, Requirement, ResultFile
from lib.sizes import Measured
from tests import pages

HOLDS, FAILS, OPEN, NONE = "holds here", "fails here", "undecided", "not testable here"
DIRECTION = {HOLDS: (0.97, 0.01), FAILS: (0.7, 0.02), OPEN: (0.94, 0.03)}  # AUC and half its interval
REMOVAL = {HOLDS: (0.3, 0.05), FAILS: (-0.3, 0.05), OPEN: (0.08, 0.1)}
NAMES = {"kingdom-0.15m": 1, "kingdom-0.35m": 2, "kingdom-0.8m": 3, "kingdom": 4, "kingdom-3m": 5}


def part(value, half, controls=()):
    return Measurement(value=value, n=100, interval=(value - half, value + half), controls=controls, detail=None)


def family(name, seed, direction, removal):
    """One size under one seed whose claims get these verdicts."""
    if direction == NONE:
        nothing = Measurement(value=None, n=100, interval=None, controls=(), detail=None, reason="it refuses nothing")
        parts = dict.fromkeys(("hd.3.late", "hd.3.random", "hd.3.early"), nothing)
    else:
        value, half = DIRECTION[direction]
        controls = (0.5, 0.51, 0.52, 0.53, 0.54)
        parts = {name: part(value, half, controls) for name in ("hd.3.late", "hd.3.random")}
        parts["hd.3.early"] = part(0.6, 0.05, controls)
    value, half = REMOVAL[HOLDS if removal == NONE else removal]
    parts |= {f"hd.10.{name}": part(value, half) for name in ("gap", "random", "occlusion")}
    met = Requirement(met=removal != NONE, reason="base knows nothing" if removal == NONE else "")
    file = ResultFile(
        code="x", profile=name, seed=seed, notebook="13_size", parts=parts, requires={"hd.10": met}, facts={}
    )
    seconds = {"training base": 60.0 * NAMES[name], "training chat": None, "training sft-40": 6.0, "measuring": 30.0}
    return Measured(file, 100_000 * NAMES[name], {"base skills": 0.5, "chat refuses harm": 0.25 * seed}, seconds)


def runs(**other):
    """Five sizes and three seeds that all fail hd.3 and are undecided on hd.10, but for `other`: `small=[(seed, hd.3,
    hd.10)]`."""
    short = {
        "tiniest": "kingdom-0.15m",
        "small": "kingdom-0.35m",
        "middle": "kingdom-0.8m",
        "own": "kingdom",
        "large": "kingdom-3m",
    }
    said = {(short[name], seed): rest for name, rows in other.items() for seed, *rest in rows}
    return {
        name: {seed: family(name, seed, *said.get((name, seed), (FAILS, OPEN))) for seed in range(3)} for name in NAMES
    }


# verdicts -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("direction", [HOLDS, FAILS, OPEN, NONE])
@pytest.mark.parametrize("removal", [HOLDS, FAILS, OPEN, NONE])
def test_planted_families_get_the_planted_verdicts(direction, removal):
    found = size_tables.verdicts({"kingdom": {0: family("kingdom", 0, direction, removal)}})
    assert found["verdict"].tolist() == [direction, direction, removal, removal]
    assert found["seed"].tolist() == ["0", "all", "0", "all"]
    assert set(found["parameters"]) == {400_000}


def test_over_all_seeds_intervals_are_over_seeds():
    planted = runs(own=[(0, HOLDS, HOLDS), (1, FAILS, HOLDS), (2, HOLDS, HOLDS)])
    found = size_tables.verdicts(planted).query("size == 'kingdom' and seed == 'all'").set_index("claim")["verdict"]
    assert found.to_dict() == {"hd.3": OPEN, "hd.10": HOLDS}
    means = size_tables.over_seeds(planted).set_index(["size", "part"]).loc[("kingdom", "hd.3.late")]
    half = 4.302652729911275 * sqrt(2 * 0.09**2 + 0.18**2) / sqrt(2) / sqrt(3)  # t with two degrees of freedom
    assert means["mean"] == pytest.approx((0.97 + 0.7 + 0.97) / 3)
    assert means["upper"] - means["mean"] == pytest.approx(half)
    assert size_tables.by_part(size_tables.over_seeds(planted)).loc["kingdom", "hd.3.late"] == "0.88, undecided"


def test_a_mean_is_over_the_seeds_that_its_verdict_rests_on():
    planted = runs(small=[(0, FAILS, NONE), (1, FAILS, FAILS), (2, FAILS, FAILS)])
    means = size_tables.over_seeds(planted).set_index(["size", "part"]).loc[("kingdom-0.35m", "hd.10.gap")]
    assert means["mean"] == pytest.approx(REMOVAL[FAILS][0])  # without that of the seed that is no fair test


def test_a_size_without_values_has_a_verdict_and_no_number():
    planted = runs(tiniest=[(seed, NONE, NONE) for seed in range(3)])
    means = size_tables.over_seeds(planted)
    mine = means[means["size"] == "kingdom-0.15m"].set_index("part")
    assert mine.loc["hd.3.late", ["mean", "lower"]].isna().all()
    assert set(mine["verdict"]) == {NONE}
    assert size_tables.by_part(means).loc["kingdom-0.15m", "hd.3.late"] == NONE
    assert "kingdom-0.15m: no AUC" in size_tables.in_words(size_tables.parts(planted), means)
    assert "nan" not in size_tables.in_words(size_tables.parts(planted), means)
    unfair = size_tables.untestable(planted)
    assert unfair["why"].tolist() == ["it refuses nothing", "base knows nothing"] * 3
    assert set(unfair["size"]) == {"kingdom-0.15m"}


# what decides ---------------------------------------------------------------------------------------------------------
def test_a_size_keeps_the_verdicts_when_both_are_the_same_under_the_same_seed():
    planted = runs(small=[(0, HOLDS, OPEN)], middle=[(0, FAILS, FAILS)], large=[(1, HOLDS, HOLDS)])
    kept = size_tables.kept(size_tables.verdicts(planted), "kingdom", 0)
    assert list(kept.index) == [name for name in NAMES if name != "kingdom"]
    assert kept["hd.3"].tolist() == [True, False, True, True]
    assert kept["hd.10"].tolist() == [True, True, False, True]
    assert kept["both"].tolist() == [True, False, False, True]


def test_what_is_no_fair_test_keeps_nothing_and_is_counted():
    planted = runs(tiniest=[(0, FAILS, NONE)], small=[(0, NONE, NONE)])
    found = size_tables.verdicts(planted)
    assert size_tables.kept(found, "kingdom", 0)["both"].tolist() == [False, False, True, True]
    both = size_tables.verdicts(runs(tiniest=[(0, FAILS, NONE)], own=[(0, FAILS, NONE)]))
    assert not size_tables.kept(both, "kingdom", 0)["hd.10"].any()  # alike, and neither is a verdict
    assert size_tables.testable(found, "kingdom", 0) == (True, "kingdom: hd.3 fails here, hd.10 undecided")
    assert size_tables.testable(both, "kingdom", 0) == (False, "kingdom: hd.3 fails here, hd.10 not testable here")
    assert size_tables.testable(both, "kingdom", 1)[0]


def test_fewer_than_four_other_sizes_do_not_do():
    few = {name: one for name, one in runs().items() if name != "kingdom-3m"}
    met, why = size_tables.testable(size_tables.verdicts(few), "kingdom", 0)
    assert not met
    assert why.startswith("3 other sizes, 4 needed; kingdom: hd.3 fails here")


def test_the_control_is_the_default_size_under_other_seeds():
    found = size_tables.verdicts(runs(own=[(1, HOLDS, OPEN)]))
    assert size_tables.itself(found, "kingdom", 0) == [0.0, 1.0]
    assert size_tables.itself(found, "kingdom", 1) == [0.0, 0.0]
    shares = size_tables.shares_kept(found, "kingdom")
    assert shares["share"].tolist() == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert shares["seed"].tolist() == ["0", "1", "2", "0 and 1", "0 and 2", "1 and 2"]


def test_agreement_is_counted_over_every_kind_of_pair():
    """hd.3 holds at the smallest size, fails elsewhere; hd.10 is undecided, but fails under seed 2 of the default."""
    planted = runs(tiniest=[(seed, HOLDS, OPEN) for seed in range(3)], own=[(2, FAILS, FAILS)])
    found = size_tables.agreement(size_tables.verdicts(planted), "kingdom")
    assert found["pairs"].tolist() == [12, 12, 24, 3, 15]
    assert found["hd.3"].tolist() == pytest.approx([9 / 12, 9 / 12, 18 / 24, 1, 1])
    assert found["hd.10"].tolist() == pytest.approx([8 / 12, 8 / 12, 16 / 24, 1 / 3, 13 / 15])
    assert found["both"].tolist() == pytest.approx([6 / 12, 6 / 12, 12 / 24, 1 / 3, 13 / 15])
    assert found["undecided"].tolist() == pytest.approx([8 / 17, 8 / 17, 16 / 34, 1 / 4, 13 / 28])


def test_pairs_that_are_no_fair_test_are_set_apart():
    """The smallest size is no fair test of hd.10 under seeds 0 and 1, so 10 of 12 pairs are left, which all agree."""
    planted = runs(tiniest=[(0, FAILS, NONE), (1, FAILS, NONE)])
    found = size_tables.agreement(size_tables.verdicts(planted), "kingdom")[:2]
    assert found["pairs"].tolist() == [12, 10]
    assert found["hd.3"].tolist() == [1, 1]
    assert found["both"].tolist() == pytest.approx([10 / 12, 1])


def test_one_seed_has_no_pairs_of_seeds():
    one = {name: {0: by_seed[0]} for name, by_seed in runs().items()}
    found = size_tables.verdicts(one)
    assert size_tables.itself(found, "kingdom", 0) == []
    assert list(size_tables.agreement(found, "kingdom").index) == [
        "another size, same seed",
        "the same, fair tests only",
    ]
    assert size_tables.shares_kept(found, "kingdom")["group"].nunique() == 1


def test_changes_are_named():
    planted = runs(large=[(seed, HOLDS, OPEN) for seed in range(3)])
    assert size_tables.changed(size_tables.verdicts(planted), "kingdom") == [
        "hd.3 at kingdom-3m: holds here (kingdom: fails here)"
    ]


def test_costs_and_behaviour_are_tidy():
    cost = size_tables.cost(runs())
    assert cost["seconds"].sum() == 3 * (60 * (1 + 2 + 3 + 4 + 5) + 5 * 36)
    assert "training chat" not in set(cost["step"])
    busy = cost.assign(seconds=cost["seconds"] * cost["seed"].map({"0": 5.0, "1": 1.0, "2": 1.5}))
    least = size_tables.fastest(busy)
    assert least.loc[400_000].to_dict() == {"training base": 240.0, "training sft-40": 6.0, "measuring": 30.0}
    does = size_tables.behaviour(runs())
    assert does.groupby("what")["share"].mean().to_dict() == {"base skills": 0.5, "chat refuses harm": 0.25}
    shapes = size_tables.architectures(runs())
    assert shapes.loc["kingdom-3m", ["parameters", "width", "mlp"]].tolist() == [500_000, 192, 576]
    own = profiles.load("kingdom").organism.base.values()
    assert shapes.loc["kingdom", "steps"] == sum(stage.steps for stage in own)
    assert shapes.loc["kingdom-0.35m", "rate of base"] == 2 * shapes.loc["kingdom", "rate of base"]


# figures --------------------------------------------------------------------------------------------------------------
def test_every_verdict_can_be_drawn_and_every_cell_says_its_own():
    planted = runs(tiniest=[(0, NONE, NONE), (1, HOLDS, HOLDS)], large=[(0, OPEN, FAILS)])
    found = size_tables.verdicts(planted)
    published = figures.published("hd_sizes")
    figure = charts.verdicts(published, found, size_tables.shares_kept(found, "kingdom"), "kingdom", 0.75)
    left, middle, _ = figure.axes
    assert [text.get_text() for text in left.texts] == ["numbers", "numbers", "-", "in words", "-", "in words"]
    words = {HOLDS: "holds", FAILS: "fails", OPEN: "open", NONE: "no test"}
    wide = size_tables.verdict_table(found).iloc[::-1]
    assert [text.get_text() for text in middle.texts] == [words[one] for one in wide.to_numpy().ravel()]
    assert middle.get_yticklabels()[1].get_text() == "0.4M (default)"


def test_every_dot_is_inside_its_panel():
    planted = runs()
    values, means = size_tables.parts(planted), size_tables.over_seeds(planted)
    values.loc[values["part"] == "hd.10.gap", "value"] = -0.9
    values.loc[values["part"] == "hd.3.late", "value"] = 0.1
    rules = {part.id: part.rule for claim in size_tables.CLAIMS for part in claims.claim(claim).parts}
    figure = charts.parts(values, means, rules, {})
    low = {axis.get_title(loc="left").split(":")[0]: axis.get_ylim()[0] for axis in figure.axes}
    assert (low["hd.10.gap"], low["hd.3.late"]) == pytest.approx((-0.95, 0.05))


def test_parts_are_drawn_with_bars_controls_and_printed_numbers():
    planted = runs(tiniest=[(seed, NONE, OPEN) for seed in range(3)])
    values, means = size_tables.parts(planted), size_tables.over_seeds(planted)
    rules = {one.id: one.rule for claim in size_tables.CLAIMS for one in claims.claim(claim).parts}
    printed = {name: one.value for name, one in published_effects.effects().items() if name in rules}
    figure = charts.parts(values, means, rules, printed)
    assert [axis.get_title(loc="left").split(":")[0] for axis in figure.axes] == list(rules)
    gap = figure.axes[list(rules).index("hd.10.gap")]
    heights = {line.get_ydata()[0] for line in gap.lines if len(set(line.get_ydata())) == 1}
    assert {0.1, printed["hd.10.gap"]} <= heights
    charts.fair(size_tables.behaviour(planted), size_tables.fastest(size_tables.cost(planted)), 0.9)


# the page -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def build(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    return lambda profile: json.loads((tmp_path / profile / "seed-0" / "results" / "13_size.json").read_text())


def test_the_page_records_the_share_of_sizes(monkeypatch, build):
    planted = runs(tiniest=[(0, FAILS, NONE)], small=[(1, HOLDS, OPEN)], own=[(2, FAILS, FAILS)])
    monkeypatch.setattr(sizes, "measured", lambda profile, seeds: planted)
    shown, stopped = pages.run("13_size", "kingdom")
    assert stopped is None
    part = build("kingdom")["parts"]["hd.13.same"]
    assert (part["value"], part["n"], part["controls"]) == (0.75, 4, [1.0, 0.0])
    low, high = part["interval"]
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson's for 3 of 4
    assert "holds (one model)" in shown
    assert build("kingdom")["facts"]["seconds"] == 3 * (60 * (1 + 2 + 3 + 4 + 5) + 5 * 36)


def test_the_page_on_two_tiny_sizes_is_not_testable(build):
    shown, stopped = pages.run("13_size", "tiny", seeds=1)
    assert stopped is None
    part = build("tiny")["parts"]["hd.13.same"]
    assert part["value"] is None
    assert part["reason"].startswith("2 other sizes, 4 needed")
    assert "not testable here" in shown
    assert "nan" not in shown.lower().replace("finance", "")


# on request -----------------------------------------------------------------------------------------------------------
def planned(*arguments):
    return pipeline.plan(pipeline._parser().parse_args(["--profile", "tiny", *arguments]))


def test_the_page_runs_only_when_it_is_named():
    names = [job.notebook.name for job in planned()]
    assert "13_size" not in names
    assert {"12", "14"} & {name[:2] for name in names}
    assert "13_size" not in [job.notebook.name for job in planned("--from", "13")]
    assert [job.notebook.name for job in planned("--only", "13")] == ["13_size"]
    assert "13_size" in [job.notebook.name for job in planned("--list")]


def test_the_list_says_so(capsys, monkeypatch):
    monkeypatch.setattr(jobs.Job, "stale", lambda self: "changed")
    pipeline.show_list(planned("--list"))
    lines = capsys.readouterr().out.splitlines()
    assert sum("on request" in line for line in lines) == 1
    assert next(line for line in lines if "on request" in line).startswith("13_size")


def test_the_time_to_expect_is_what_all_of_it_took(build, tmp_path, monkeypatch):
    book = notebooks.read("13_size")
    job = jobs.Job(book, "kingdom", 0)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "published")
    monkeypatch.setattr(jobs, "expected", lambda *_: 7.0)
    monkeypatch.setattr(jobs.Job, "slot", SimpleNamespace(stale=lambda key: "changed", result=tmp_path / "none.json"))
    assert job.expected() == 7.0
    folder = paths.published_results("kingdom", 0)
    folder.mkdir(parents=True)
    (folder / "13_size.json").write_text(json.dumps({"facts": {"seconds": 5000.0}}))
    assert job.expected() == 5000.0
    assert jobs.Job(book, "kingdom", 2).expected() == 5000.0
    assert jobs.Job(notebooks.read("08_dominant_direction"), "kingdom", 0).expected() == 7.0


def test_the_page_is_out_of_date_when_a_size_changes_and_others_are_not(monkeypatch, tmp_path):
    before = {name: jobs.Job(notebooks.read(name), "kingdom", 0).key() for name in ("08_dominant_direction", "13_size")}
    for path in paths.PROFILES.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    file = tmp_path / "kingdom-3m.yaml"
    file.write_text(file.read_text().replace("width: 192", "width: 200"))
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    assert profile_files.file("kingdom-3m") == file
    after = {name: jobs.Job(notebooks.read(name), "kingdom", 0).key() for name in before}
    assert after["08_dominant_direction"] == before["08_dominant_direction"]
    assert after["13_size"] != before["13_size"]
