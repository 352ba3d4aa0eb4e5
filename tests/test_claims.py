"""The registry as it stands, planted results for every verdict, and a ledger over small fake checkouts."""

import copy
import json
import math

import numpy as np
import pytest
import yaml

from lib import claims, paths, provenance, stats
from lib.claims import Results
from lib.errors import InputError
from lib.stats import Interval
from tests.registry import DRAWS, RAW, fill, results

# --- registry ---------------------------------------------------------------------------------------------------------


def test_the_registry_is_read_whole():
    registry = claims.registry()
    assert list(registry) == [row["id"] for row in RAW]
    for row in RAW:
        owner = registry[row["id"]]
        assert [part.id for part in owner.parts] == [part["id"] for part in row["parts"]]
        for part, raw in zip(owner.parts, row["parts"], strict=True):
            assert (part.measure, part.core) == (raw["measure"], raw["core"])
            rule = raw["rule"]
            expected = (
                ("beats_control", None, 0.0)
                if isinstance(rule, str)
                else next((kind, float(rule[kind]), float(rule.get(None, 0.0))) for kind in rule if kind)
            )
            assert (part.rule.kind, part.rule.bound, part.rule.null) == expected
    assert sum(len(row["parts"]) for row in RAW) == len({part["id"] for row in RAW for part in row["parts"]})


def test_yaml_reads_the_key_null_as_none_and_the_registry_as_a_number():
    raw = next(part for row in RAW for part in row["parts"] if part["id"] == "hd.3.late")
    assert set(raw["rule"]) == {"at_least", None}
    assert claims.part("hd.3.late").rule == stats.Rule("at_least", 0.95, null=0.5)


def test_lookups():
    assert claims.claim("ssah.4.best").notebook == "unit_classification"
    assert claims.part("ssah.4.best.scu").measure == "as ssah.4.scu"
    with pytest.raises(InputError, match=r"unknown claim 'hd\.99'; known: ssah\.1"):
        claims.claim("hd.99")
    with pytest.raises(InputError, match=r"unknown part 'hd\.6'; known: ssah\.1\.switch"):
        claims.part("hd.6")


def row(**change):
    part = {"id": "hd.1.a", "core": True, "measure": "m", "rule": {"at_least": 0.2}}
    return {"id": "hd.1", "claim": "c", "where": "w", "notebook": "finding", "parts": [part]} | change


def write(tmp_path, rows):
    path = tmp_path / "claims.yaml"
    path.write_text(rows if isinstance(rows, str) else yaml.safe_dump(rows))
    return path


PART = row()["parts"][0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("- {id: [", "not valid YAML"),
        ("a: 1", "list of claims"),
        ("- 3", "claim number 1"),
        ([row(verdict="holds")], "claim hd.1 .*verdict: Extra inputs"),
        ([row(parts=[PART | {"threshold": 1}])], "threshold: Extra inputs"),
        ([row(parts=[PART | {"rule": {"at_leats": 1}}])], "unknown rule"),
        ([row(parts=[PART | {"rule": "beats"}])], "unknown rule"),
        ([row(parts=[PART | {"id": "hd.2.a"}])], r"must be called hd\.1\.<name>"),
        ([row(parts=[PART | {"id": "hd.1.a.b"}])], r"must be called hd\.1\.<name>"),
        ([row(parts=[PART | {"core": False}])], "no part is core"),
        ([row(parts=[])], "needs a note"),
        ([row(id="HD 1")], "id: String should match"),
        ([row(), row(parts=[PART | {"id": "hd.1.b"}])], r"more than once: hd\.1; rename"),
        ([row(parts=[PART, copy.deepcopy(PART)])], r"more than once: hd\.1\.a; rename"),
        ([row(id="hd.1.a", parts=[], note="n"), row()], r"more than once: hd\.1\.a; rename"),
        ([{"id": "hd.1"}], "claim: Field required"),
    ],
)
def test_a_wrong_registry_is_refused(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        claims.registry_from(write(tmp_path, rows))


def test_a_correction_keeps_its_old_text(tmp_path):
    corrected = row(parts=[PART | {"was": "the older text", "note": "n", "control": "c"}])
    assert claims.registry_from(write(tmp_path, [corrected]))["hd.1"].parts[0].was == "the older text"


# --- verdicts from planted results ------------------------------------------------------------------------------------


SPREAD = (-0.02, -0.01, 0.0, 0.01, 0.02)  # over five seeds: half width .02 (t)


def measurement(value, controls=(), interval=None, reason=None):
    fields = {"value": value, "n": 100, "interval": interval, "controls": controls, "detail": None, "reason": reason}
    return claims.Measurement(**fields)


def run(parts, seed, requires=None):
    found = {name: one if isinstance(one, claims.Measurement) else measurement(one) for name, one in parts.items()}
    met = {name: {"met": ok, "reason": "" if ok else f"seed {seed} is weak"} for name, ok in (requires or {}).items()}
    head = {"code": "c", "profile": "kingdom", "seed": seed, "notebook": "07_finding"}
    return claims.ResultFile(**head, parts=found, requires=met, facts={})


def five(parts, requires=None):
    """Results of five seeds: every value spread a little around the planted one."""
    return {
        seed: run({name: value + SPREAD[seed] for name, value in parts.items()}, seed, requires) for seed in range(5)
    }


def a_claim(requires=None):
    """Two core parts, one of each kind of rule, and one part that is not core."""
    rules = {"a": ({"at_least": 0.2}, True), "b": ({"at_most": 0.5}, True), "c": ({"at_least": 0.2}, False)}
    parts = [
        {"id": f"hd.1.{name}", "core": core, "measure": name, "rule": rule} for name, (rule, core) in rules.items()
    ]
    return claims.Claim(**row(parts=parts, requires=requires))


def verdict_of(a, b, c):
    return claims.judge_claim(a_claim(), five({"hd.1.a": a, "hd.1.b": b, "hd.1.c": c}), "kingdom")["verdict"]


def test_every_verdict_from_values():
    assert verdict_of(0.4, 0.1, 0.4) == "holds here"
    assert verdict_of(0.1, 0.1, 0.4) == "fails here"
    assert verdict_of(0.4, 0.9, 0.4) == "fails here"
    assert verdict_of(0.19, 0.9, 0.1) == "fails here"  # a core part fails, whatever the others
    assert verdict_of(0.4, 0.1, 0.1) == "mixed"
    assert verdict_of(0.19, 0.1, 0.1) == "mixed"  # some hold, and one that is not core fails
    assert verdict_of(0.4, 0.1, 0.19) == "undecided"
    assert verdict_of(0.19, 0.5, 0.1) == "undecided"  # none holds


def test_a_row_shows_every_seed_and_what_it_rests_on():
    got = claims.judge_claim(a_claim(), five({"hd.1.a": 0.4, "hd.1.b": 0.1, "hd.1.c": 0.19}), "kingdom")
    part = got["parts"][0]
    expected = stats.over_seeds([0.4 + step for step in SPREAD])
    assert part["interval"] == pytest.approx(expected.bounds)
    assert part["measured"] == pytest.approx(0.4)
    assert (part["rule"], part["interval_over"], part["n"]) == ("at least 0.2, above 0", "seeds", 100)
    assert part["seeds"] == pytest.approx({str(seed): 0.4 + SPREAD[seed] for seed in range(5)})
    assert (got["model"], got["notebook"], got["one_model"]) == ("kingdom", "finding", False)
    assert (got["seeds"], got["left_out"], got["reason"]) == ([0, 1, 2, 3, 4], {}, "hd.1.c undecided")
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def control_claim():
    return claims.Claim(**row(parts=[PART | {"rule": "beats_control"}]))


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [(0.3, "holds here"), (0.05, "holds here"), (0.0395, "undecided"), (0.038, "fails here"), (0.02, "fails here")],
)
def test_beats_control_over_seeds(effect, verdict):
    noise = (-0.001, 0.001, 0.0, 0.0, 0.0) if effect < 0.3 else SPREAD
    runs = {seed: run({"hd.1.a": measurement(effect + noise[seed], DRAWS)}, seed) for seed in range(5)}
    got = claims.judge_claim(control_claim(), runs, "kingdom")
    part = got["parts"][0]
    assert got["verdict"] == verdict
    assert part["controls"] == pytest.approx({"draws": 25, "mean": 0.02, "p95": 0.04, "margin": effect - 0.02})
    assert part["measured"] == pytest.approx(effect)
    assert sum(part["interval"]) / 2 == pytest.approx(effect - 0.02)


def test_beats_control_without_recorded_draws_was_not_run():
    runs = {seed: run({"hd.1.a": 0.3}, seed) for seed in range(5)}
    got = claims.judge_claim(control_claim(), runs, "kingdom")
    assert got["verdict"] == "not run"
    assert "seed 0 left out: not recorded" in got["parts"][0]["reason"]


def test_controls_of_other_rules_are_shown_and_do_not_decide():
    runs = {seed: run({"hd.1.a": measurement(0.4 + SPREAD[seed], [9.0] * 5)}, seed) for seed in range(5)}
    got = claims.judge_claim(claims.Claim(**row()), runs, "kingdom")
    assert got["verdict"] == "holds here"
    assert got["parts"][0]["controls"]["mean"] == pytest.approx(9.0)
    assert got["parts"][0]["interval"] == pytest.approx(stats.over_seeds([0.4 + step for step in SPREAD]).bounds)


def test_one_model_is_judged_over_prompts_and_says_so():
    parts = {"hd.1.a": measurement(0.4, interval=(0.3, 0.5)), "hd.1.b": measurement(0.1, interval=(0.0, 0.2))}
    got = claims.judge_claim(a_claim(), {3: run(parts | {"hd.1.c": 0.4}, 3)}, "llama")
    assert got["one_model"]
    assert [part["verdict"] for part in got["parts"]] == ["holds", "holds", "undecided"]
    assert [part["interval_over"] for part in got["parts"]] == ["prompts", "prompts", None]
    assert got["parts"][2]["reason"] == "one seed and no interval over prompts"
    table = claims.verdict_table([got])
    assert list(table["verdict"]) == ["holds (one model)", "holds (one model)", "undecided (one model)"]


def test_one_model_against_its_control():
    one = measurement(0.5, DRAWS, interval=(0.4, 0.6))
    part = claims.judge_claim(control_claim(), {0: run({"hd.1.a": one}, 0)}, "llama")["parts"][0]
    assert (part["verdict"], part["interval_over"]) == ("holds", "prompts")
    assert part["interval"][0] < 0.4 - 0.02  # the doubt about the control is added


def test_a_table_says_where_an_interval_is_not_of_the_value():
    one = measurement(0.5, DRAWS, interval=(0.4, 0.6))
    table = claims.verdict_table([claims.judge_claim(control_claim(), {0: run({"hd.1.a": one}, 0)}, "llama")])
    assert table["value"].tolist() == ["0.5"]
    assert table["interval"].item().endswith(", value minus control")


def needing(unmet, count=5):
    """`count` seeds of which the first `unmet` do not meet the requirement; those would make the claim fail."""
    values = {seed: (0.0 if seed < unmet else 0.4 + SPREAD[seed]) for seed in range(count)}
    runs = {
        seed: run({"hd.1.a": value, "hd.1.b": 0.1, "hd.1.c": 0.4}, seed, {"hd.1": seed >= unmet})
        for seed, value in values.items()
    }
    return claims.judge_claim(a_claim(requires="a strong model"), runs, "kingdom")


def test_requirements():
    assert needing(0)["verdict"] == "holds here"
    some = needing(2)
    assert (some["verdict"], some["seeds"]) == ("holds here", [2, 3, 4])
    assert some["left_out"] == {"0": "seed 0 is weak", "1": "seed 1 is weak"}
    half = needing(1, count=2)
    assert (half["verdict"], half["seeds"], half["one_model"]) == ("undecided", [1], True)
    most = needing(3)
    assert most["verdict"] == "not testable here"
    assert most["reason"].startswith("requires: a strong model. Unmet at seed 0: seed 0 is weak; seed 1")
    assert {part["verdict"] for part in most["parts"]} == {"not testable here"}
    assert most["parts"][0]["measured"] == pytest.approx((0.4 + SPREAD[3] + 0.4 + SPREAD[4]) / 5)


def test_a_requirement_nobody_recorded_leaves_the_seed_out():
    runs = five({"hd.1.a": 0.4, "hd.1.b": 0.1, "hd.1.c": 0.4})
    got = claims.judge_claim(a_claim(requires="a strong model"), runs, "kingdom")
    assert got["verdict"] == "not run"
    assert got["left_out"]["4"] == "requirement not recorded; run the notebook"


def undefined(core_seeds, other_seeds):
    runs = five({"hd.1.a": 0.4, "hd.1.b": 0.1, "hd.1.c": 0.4})
    for seeds, name in ((core_seeds, "hd.1.a"), (other_seeds, "hd.1.c")):
        for seed in range(seeds):
            runs[seed] = runs[seed].model_copy(
                update={"parts": runs[seed].parts | {name: measurement(None, reason="the shift is zero")}}
            )
    return claims.judge_claim(a_claim(), runs, "kingdom")


def test_values_that_do_not_exist():
    some = undefined(2, 0)
    assert some["verdict"] == "holds here"
    assert "seed 0 left out: the shift is zero; seed 1 left out" in some["parts"][0]["reason"]
    assert list(some["parts"][0]["seeds"]) == ["2", "3", "4"]
    assert undefined(3, 0)["verdict"] == "not testable here"
    assert undefined(5, 0)["parts"][0] | {"measured": None} == undefined(5, 0)["parts"][0]
    assert undefined(0, 5)["verdict"] == "undecided"  # cannot hold without its last part
    nothing = measurement(None, reason="the shift is zero")
    half = {seed: run({"hd.1.a": nothing if seed < 2 else 0.4 + SPREAD[seed]}, seed) for seed in range(4)}
    assert claims.judge_claim(claims.Claim(**row()), half, "kingdom")["parts"][0]["verdict"] != "not testable here"


def test_a_seed_that_gave_no_part_a_value_is_none_the_claim_rests_on():
    nothing = {name: measurement(None, reason="the model refuses nothing") for name in ("hd.1.a", "hd.1.b", "hd.1.c")}
    runs = five({"hd.1.a": 0.4, "hd.1.b": 0.1, "hd.1.c": 0.4})
    runs[1] = runs[1].model_copy(update={"parts": nothing})
    got = claims.judge_claim(a_claim(), runs, "kingdom")
    assert (got["verdict"], got["seeds"]) == ("holds here", [0, 2, 3, 4])
    assert got["left_out"] == {"1": "the model refuses nothing"}
    alone = claims.judge_claim(a_claim(), {seed: runs[seed] for seed in (0, 1)}, "kingdom")
    assert (alone["seeds"], alone["one_model"]) == ([0], True)
    none = claims.judge_claim(a_claim(), {seed: runs[1] for seed in (0, 1)}, "kingdom")
    assert (none["verdict"], none["seeds"], none["left_out"]) == ("not testable here", [0, 1], {})


def test_a_core_part_that_is_missing_keeps_the_claim_open():
    runs = five({"hd.1.a": 0.4, "hd.1.c": 0.4})
    got = claims.judge_claim(a_claim(), runs, "kingdom")
    assert (got["verdict"], got["parts"][1]["verdict"]) == ("not run", "not run")
    assert claims.judge_claim(a_claim(), five({"hd.1.a": 0.1}), "kingdom")["verdict"] == "fails here"


def test_claims_that_were_not_run():
    assert claims.judge_claim(a_claim(), {}, "kingdom")["verdict"] == "not run"
    got = claims.judge_claim(claims.claim("ssah.13"), {}, "kingdom")
    assert (got["verdict"], got["reason"]) == ("not run", claims.claim("ssah.13").note)
    line = claims.verdict_table([got]).iloc[0]
    assert (line["part"], line["verdict"]) == ("ssah.13", "no criterion")  # not run would say that it could be


def test_the_table_is_ready_to_read():
    table = claims.verdict_table([claims.judge_claim(a_claim(), five({"hd.1.a": 0.4, "hd.1.b": 0.1}), "kingdom")])
    assert list(table.columns) == ["part", "measures", "rule", "value", "interval", "verdict"]
    low, high = stats.over_seeds([0.4 + step for step in SPREAD]).bounds
    assert table.iloc[0].tolist() == [
        "hd.1.a",
        "a",
        "at least 0.2, above 0",
        "0.4",
        f"{low:.3g} to {high:.3g}",
        "holds",
    ]
    assert table.iloc[2].tolist() == ["hd.1.c", "c", "at least 0.2, above 0", "", "", "not run"]


# --- what a notebook records ------------------------------------------------------------------------------------------


def test_a_result_file_has_the_designs_format(checkout):
    found = fill(checkout, "residual_space", 2)
    found.fact("sizes", {"blocks": np.int64(6), "share": np.float32(0.5), "rows": np.arange(2), "t": (1, 2)})
    path = found.save(checkout / "out")
    assert path == checkout / "out" / f"{provenance.full_name('residual_space', checkout)}.json"
    text = json.loads(path.read_text())
    assert set(text) == {"code", "profile", "seed", "notebook", "parts", "requires", "facts"}
    assert (text["profile"], text["seed"], text["notebook"]) == ("kingdom", 2, path.stem)
    assert text["code"] == provenance.code_hash(path.stem, "kingdom", checkout)
    assert text["facts"] == {"sizes": {"blocks": 6, "share": 0.5, "rows": [0, 1], "t": [1, 2]}}
    assert set(text["parts"]["hd.1.error"]) == {"value", "n", "interval", "controls", "detail", "reason"}


def test_the_default_place_is_the_run_folder(checkout, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", checkout / "build")
    path = fill(checkout, "residual_space", 1).save()
    assert path.relative_to(checkout).as_posix() == f"build/kingdom/seed-1/results/{path.name}"


def test_a_part_with_everything(checkout):
    found = results(checkout)
    own = Interval(mean=0.2, lower=0.1, upper=0.3, n=50, kind="prompts")
    found.part("hd.1.error", np.float32(0.2), 50, interval=own, controls=np.array([0.1, 0.2]), detail={"by": [1.0]})
    got = found.verdicts()[0]
    assert got["id"] == "hd.1"
    assert (got["verdict"], got["one_model"]) == ("undecided", True)
    assert (got["parts"][0]["interval"], got["parts"][0]["n"]) == ([0.1, 0.3], 50)
    assert got["parts"][1]["verdict"] == "not run"
    assert len(claims.verdict_table(found.verdicts())) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hd.3.late", 0.5, 10), r"unknown part of notebook .*'hd\.3\.late'; known: hd\.1\.error"),
        (("hd.1.eror", 0.5, 10), r"unknown part of notebook .*; known: hd\.1\.error"),
        (("hd.1.error", None, 10), "give a reason exactly if value is None"),
        (("hd.1.error", math.nan, 10), r"hd\.1\.error cannot be used \(value: .*finite"),
        (("hd.1.error", 0.5, -1), r"hd\.1\.error cannot be used \(n: "),
    ],
)
def test_a_part_that_cannot_be_recorded(checkout, arguments, message):
    with pytest.raises(InputError, match=message):
        results(checkout).part(*arguments)


def test_other_wrong_records(checkout):
    found = results(checkout)
    other = Interval(mean=0.7, lower=0.6, upper=0.8, n=50, kind="prompts")
    with pytest.raises(InputError, match=r"is 0\.5 but its interval is around 0\.7"):
        found.part("hd.1.error", 0.5, 10, interval=other)
    with pytest.raises(InputError, match="give a reason exactly"):
        found.part("hd.1.error", 0.5, 10, reason="because")
    for detail in ({"a": math.nan}, {"a": object()}):
        with pytest.raises(InputError, match=r"detail of hd\.1\.error is no JSON"):
            found.part("hd.1.error", 0.5, 10, detail=detail)
    found.part("hd.1.error", 0.5, 10)
    with pytest.raises(InputError, match=r"hd\.1\.error is recorded twice"):
        found.part("hd.1.error", 0.5, 10)
    found.fact("a", 1)
    with pytest.raises(InputError, match="a is recorded twice"):
        found.fact("a", 2)
    with pytest.raises(InputError, match="claim with a requirement"):
        found.requires("hd.1", met=True)
    with pytest.raises(InputError, match="unknown notebook"):
        Results(notebook="residual_space", profile="kingdom", seed=0, root=checkout)
    with pytest.raises(InputError, match="seed: Input should be greater"):
        results(checkout, seed=-1)


def test_requirements_and_controls_are_checked(checkout):
    found = results(checkout, "unit_classification")
    with pytest.raises(InputError, match=r"ssah\.4\.scu_random has 4 control draws; beats_control needs at least 5"):
        found.part("ssah.4.scu_random", 0.5, 10, controls=[0.1] * 4)
    found.part("ssah.4.scu_random", None, 10, reason="no unit could be removed")
    with pytest.raises(InputError, match="unmet without a reason"):
        found.requires("ssah.4", met=False)
    found.requires("ssah.4", met=np.bool_(False), reason="chat refuses .4 of plain harm")
    with pytest.raises(InputError, match="recorded twice"):
        found.requires("ssah.4", met=True)
    assert found.verdicts()[0]["verdict"] == "not testable here"


def test_saving_is_refused_until_everything_is_there(checkout):
    found = results(checkout, "trigger_removal")
    found.part("hd.10.gap", 0.5, 10)
    found.requires("hd.10", met=True)
    with pytest.raises(
        InputError, match=r"not recorded yet: hd\.10\.random, hd\.10\.occlusion, .*requires hd\.11; record"
    ):
        found.save(checkout)
    assert not list(checkout.glob("*.json"))


def test_the_code_is_that_of_the_start(checkout):
    found = fill(checkout, "residual_space", 0)
    (checkout / "lib" / "used.py").write_text("x = 2\n")
    text = json.loads(found.save(checkout).read_text())
    assert text["code"] != provenance.code_hash(text["notebook"], "kingdom", checkout)


def test_an_unfit_model_makes_parts_not_testable(checkout):
    found = results(checkout)
    found.testable(False, "tuned refuses .1 of harmful prompts")
    found.part("hd.1.error", 0.01, 10, interval=Interval(mean=0.01, lower=0.0, upper=0.02, n=10, kind="prompts"))
    found.testable(True, "")
    found.part("hd.1.bias", 0.2, 10)
    row = next(row for row in found.verdicts() if row["id"] == "hd.1")
    assert row["parts"][0]["verdict"] == "not testable here"
    assert "refuses .1" in row["parts"][0]["reason"]
    assert row["parts"][1]["measured"] == pytest.approx(0.2)
    with pytest.raises(InputError, match="needs a reason"):
        found.testable(False, "")
