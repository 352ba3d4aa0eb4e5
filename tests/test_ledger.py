"""A ledger over small fake checkouts, and the tables made of it."""

import json

import pytest

from lib import claims, ledger, notebooks, paths
from lib.claims import ClaimVerdict
from lib.errors import InputError
from tests.registry import NOTEBOOKS, RAW, fill


def plant(checkout, folder, name, seeds, shift=0.0, inner="results"):
    for seed in seeds:
        fill(checkout, name, seed, shift).save(folder / f"seed-{seed}" / inner)


def rows_of(found):
    return {row["id"]: row for row in found["rows"]}


def test_an_empty_ledger(checkout):
    found = ledger.make("kingdom", [checkout / "build"], [0, 1], root=checkout)
    assert found["counts"] == {verdict.value: 0 for verdict in ClaimVerdict} | {"not run": len(RAW)}
    assert found["decided_parts"] == 0
    assert found["provisional"]
    assert [row["id"] for row in found["rows"]] == [row["id"] for row in RAW]


def test_a_full_ledger(checkout):
    for name in NOTEBOOKS:
        plant(checkout, checkout / "build", name, range(5))
    found = ledger.make("kingdom", [checkout / "build"], range(5), root=checkout)
    parts = sum(len(row["parts"]) for row in RAW)
    assert found["counts"]["holds here"] == sum(bool(row["parts"]) for row in RAW)
    assert found["counts"]["not run"] == sum(not row["parts"] for row in RAW)
    assert (found["decided_parts"], found["provisional"]) == (parts, False)
    assert ledger.chance(found).startswith(
        f"{parts} parts were tested at 95 %, 2.5 % a side: up to {parts / 40:.1f} of the"
    )
    assert not any(row["stale_seeds"] for row in found["rows"])
    path = checkout / "ledger.json"
    ledger.write(path, found)
    assert json.loads(path.read_text()) == found
    assert len(claims.verdict_table(found["rows"])) == parts + found["counts"]["not run"]


def test_the_first_folder_that_has_a_seed_counts(checkout):
    published, build = checkout / "data" / "results" / "kingdom", checkout / "build" / "kingdom"
    plant(checkout, published, "residual_space", [0, 1], inner="")
    plant(checkout, build, "residual_space", [1, 2], shift=1.0)
    got = rows_of(ledger.make("kingdom", [published, build], [0, 1, 2], root=checkout))["hd.1"]
    assert got["parts"][0]["seeds"] == pytest.approx({"0": 0.2, "1": 0.201, "2": 1.202})
    assert got["provisional"]
    other = rows_of(ledger.make("kingdom", [build, published], [0, 1], root=checkout))["hd.1"]
    assert other["parts"][0]["seeds"] == pytest.approx({"0": 0.2, "1": 1.201})


def test_results_of_other_code_are_marked(checkout):
    build = checkout / "build"
    plant(checkout, build, "residual_space", [0, 1])
    (checkout / "lib" / "used.py").write_text("x = 2\n")
    plant(checkout, build, "residual_space", [2])
    plant(checkout, build, "freezing", [0])
    got = rows_of(ledger.make("kingdom", [build], [0, 1, 2], root=checkout))
    assert got["hd.1"]["stale_seeds"] == [0, 1]
    assert got["ssah.7"]["stale_seeds"] == []
    assert got["hd.1"]["verdict"] == "holds here"  # marked, not dropped
    (checkout / "lib" / "used.py").write_text("x = 1  # as before\n")
    assert rows_of(ledger.make("kingdom", [build], [0, 1, 2], root=checkout))["hd.1"]["stale_seeds"] == [2]


@pytest.mark.parametrize(("field", "value"), [("profile", "llama"), ("seed", 3), ("notebook", "01_other")])
def test_results_in_the_wrong_place_are_refused(checkout, field, value):
    path = fill(checkout, "residual_space", 0).save(checkout / "build" / "seed-0")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError, match=rf"says {field} .* belongs; delete it and run \d\d_residual_space again"):
        ledger.make("kingdom", [checkout / "build"], [0], root=checkout)


def test_damaged_results_are_refused(checkout):
    path = fill(checkout, "residual_space", 0).save(checkout / "build" / "seed-0")
    for text, message in (("{", "not valid JSON"), ('{"verdict": "holds"}', "a result to delete .*Extra inputs")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            ledger.make("kingdom", [checkout / "build"], [0], root=checkout)


def test_four_seeds_are_provisional_and_five_are_not(checkout):
    plant(checkout, checkout / "build", "residual_space", range(5))
    for count in (4, 5):
        rows = rows_of(ledger.make("kingdom", [checkout / "build"], range(count), root=checkout))
        assert rows["hd.1"]["provisional"] is (count == 4)


def test_the_headline_names_the_claims_of_few_seeds_unless_all_are(checkout):
    for name in NOTEBOOKS:
        plant(checkout, checkout / "build", name, range(3 if name == "size" else 5))
    seeds = {count: ledger.make("kingdom", [checkout / "build"], range(count), root=checkout) for count in (4, 5)}
    assert "Provisional: fewer than 5 seeds." in ledger.headline(seeds[4])
    assert "Provisional, of fewer than 5 seeds: hd.13." in ledger.headline(seeds[5])
    plant(checkout, checkout / "build", "size", range(3, 5))
    whole = ledger.make("kingdom", [checkout / "build"], range(5), root=checkout)
    assert "Provisional" not in ledger.headline(whole)


def test_a_ledger_needs_distinct_seeds(checkout):
    for seeds in ([], [0, 0]):
        with pytest.raises(InputError, match="give each seed once"):
            ledger.make("kingdom", [checkout], seeds, root=checkout)


# --- display ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def judged(checkout, monkeypatch):
    plant(checkout, checkout / "build" / "kingdom", "residual_space", [0, 1])
    found = ledger.make("kingdom", [checkout / "build" / "kingdom"], [0, 1], root=checkout)
    monkeypatch.setattr(paths, "BUILD", checkout / "build")
    monkeypatch.setattr(paths, "RESULTS", checkout / "results")
    return found


def test_the_own_ledger_is_shown_before_the_published_one(judged):
    with pytest.raises(InputError, match=r"has no ledger yet; \./run_all.sh --profile kingdom makes it"):
        ledger.shown("kingdom")
    ledger.write(paths.RESULTS / "kingdom" / "ledger.json", judged | {"profile": "published"})
    assert ledger.shown("kingdom")["profile"] == "published"
    ledger.write(paths.BUILD / "kingdom" / "ledger.json", judged)
    assert ledger.shown("kingdom") == judged


def test_tables_hold_what_was_run_and_only_that(judged):
    mine = {row["id"]: row for row in RAW if row["notebook"] == "residual_space"}
    assert list(ledger.tested(judged).index) == list(mine)
    assert set(ledger.tested(judged)["seeds"]) == {2}


def test_the_headline_counts_come_from_the_rows(judged):
    text = ledger.headline(judged)
    bare = sum(not row["parts"] for row in RAW)
    run = sum(row["verdict"] != "not run" for row in judged["rows"])
    ours = sum(row["where"] in ("ours", "neither paper") for row in RAW)
    assert text.startswith(
        f"{len(RAW)} claims on kingdom ({len(RAW) - ours} of the papers, {ours} of ours), seeds 0, 1: "
    )
    assert f"{len(RAW) - run - bare} not run, {bare} no criterion" in text
    assert "Provisional: fewer than 5 seeds." in text


def part_of(verdict):
    return {"id": "hd.1.error", "verdict": verdict}


def test_chance_is_taken_over_all_parts_tested_not_over_those_decided():
    """2.5 % of 40 parts is 1, of which no more can be wrong than are decided; untested parts do not count."""
    parts = [part_of("holds")] * 2 + [part_of("undecided")] * 38 + [part_of("not run"), part_of("not testable here")]
    assert "40 parts were tested" in ledger.chance({"rows": [{"parts": parts}]})
    assert "up to 1.0 of the 2 that are decided" in ledger.chance({"rows": [{"parts": parts}]})
    assert "up to 0.0 of the 0 that" in ledger.chance({"rows": [{"parts": parts[2:]}]})


def test_a_claim_belongs_to_where_the_registry_finds_it():
    whose = {row["id"]: ledger.paper(row["where"]) for row in RAW}
    assert whose["ssah.4.best"] == whose["hd.2.centred"] == whose["hd.2.specific"] == whose["ours.bridge"] == "ours"
    others = {name: paper for name, paper in whose.items() if paper != "ours"}
    assert len(others) == len(RAW) - 4
    assert all(paper == name.split(".")[0].upper() for name, paper in others.items())


def test_a_claim_without_parts_has_no_criterion(judged):
    rows = rows_of(judged)
    assert rows["hd.12"]["verdict"] == "not run"  # what is stored
    assert [claims.verdict_of(rows[name]) for name in ("hd.12", "ssah.1", "hd.1")] == [
        "no criterion", "not run", rows["hd.1"]["verdict"],
    ]  # fmt: skip


def test_the_contents_name_every_notebook_with_what_came_of_its_claims(judged):
    table, rows = ledger.contents(judged), rows_of(judged)
    mine = ("hd.1", "hd.2", "hd.2.centred", "hd.2.specific")
    assert table.loc["07", "claims"] == ", ".join(f"{name} {rows[name]['verdict']}" for name in mine)
    assert table.loc["07", "title"] == notebooks.read("07_residual_space").title
    assert table.loc["11", "claims"].endswith("hd.15 no criterion")


def test_facts_are_those_of_the_seeds_that_a_claim_rests_on(judged, checkout):
    """The run's own results count before the published ones, and a seed that the row left out is not read."""
    for folder, note, seeds in ((paths.BUILD, "own", (1,)), (paths.RESULTS, "published", (0, 1, 2))):
        for seed in seeds:
            noted = fill(checkout, "residual_space", seed)
            noted.fact("which", note)
            noted.save(folder / "kingdom" / f"seed-{seed}")
    for seed in (0, 1):
        next((paths.BUILD / "kingdom" / f"seed-{seed}" / "results").glob("*_residual_space.json")).unlink()
    noted = ledger.facts(judged, "hd.1", root=checkout)
    assert {seed: one["which"] for seed, one in noted.items()} == {0: "published", 1: "own"}
    assert ledger.facts(judged, "hd.3", root=checkout) == {}
