"""What is reported of whole runs, the refusal to report what was not measured, and the figure against budgets."""

import pandas as pd
import pytest

from lib import analysis_costs, benchmarks, figures, paths, storage
from lib.charts import costs as charts
from lib.errors import InputError
from lib.manifest import row


def test_a_row_holds_median_and_spread():
    found = row("x", [3.0, 1.0, 2.0], "s", 5, "./x")
    assert found == {
        "name": "x",
        "value": 2.0,
        "unit": "s",
        "budget": 5,
        "command": "./x",
        "n": 3,
        "spread": [1.0, 3.0],
    }


TAGS = {"00_index": ', "reads-results"', "05_freezing": "", "08_y": "", "13_size": ', "on-request", "no-models"',
        "14_z": ', "no-models"'}  # fmt: skip


def step(seconds, peak_mb, ended):
    return {"seconds": seconds, "peak_mb": peak_mb, "ended": ended, "status": "done"}


def manifest(source="trained"):
    """420 seconds from 1000 to 1420, two pages side by side, and 6 of a page made again hours later."""
    pages = {
        "00_index": step(6.0, 300.0, 20000.0),
        "05_freezing": step(60.0, 1200.0, 1420.0),
        "08_y": step(100.0, 700.0, 1420.0),
        "13_size": step(5000.0, 5000.0, 9000.0),  # no part of a full run
        "14_z": step(10.0, 100.0, 1310.0),
        "17_gone": step(10.0, 9000.0, 90000.0),  # no page any more
    }
    return {"models": step(300.0, 900.0, 1300.0) | {"roles": {"base": {"source": source}}}, "notebooks": pages}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The manifest of a full run, in a repository with three pages that measure."""
    for name in ("BUILD", "ROOT", "NOTEBOOKS"):
        monkeypatch.setattr(paths, name, tmp_path)
    for name in ("FIGURES", "CACHE"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setattr(benchmarks, "BENCHMARKS", tmp_path / "benchmarks.json")
    for name, tags in TAGS.items():
        text = f'# %% tags=["parameters"{tags}]\nprofile: str = "k"  # x\nseed: int = 0  # y\n'
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".seconds").write_text("90\n")
    file = paths.run_folder("kingdom", 0) / "manifest.json"
    storage.write_json(file, manifest())
    return file


def test_a_full_run_is_reported_from_its_manifest(run):
    rows = {one["name"]: one["value"] for one in benchmarks.full_run()}
    assert rows["one seed from nothing"] == 7.1  # 420 s, and 6 s of the page that shows results
    assert rows["one seed from nothing, its steps added up"] == pytest.approx(476 / 60, rel=1e-3)
    assert rows["peak memory of a step"] == 1.2
    assert rows["kingdom: 00_index"] == 6.0
    assert rows["kingdom: 08_y"] == 100.0
    assert rows["kingdom: models"] == 300.0
    assert rows["set-up"] == 90.0
    assert not {"kingdom: 13_size", "kingdom: 17_gone"} & rows.keys()


def test_pages_that_train_have_the_budget_of_training(run):
    budgets = {one["name"]: one["budget"] for one in benchmarks.full_run()}
    assert budgets["kingdom: 05_freezing"] == 240
    assert budgets["kingdom: 08_y"] == budgets["kingdom: 00_index"] == 60
    assert budgets["kingdom: models"] is None


def without_models(found):
    del found["models"]


def without_roles(found):
    found["models"]["roles"] = {}


def without_pages(found):
    del found["notebooks"]


def without_two(found):
    del found["notebooks"]["00_index"]
    found["notebooks"]["08_y"]["status"] = "failed"


def failed_models(found):
    found["models"]["status"] = "failed"


def of_an_earlier_version(found):
    del found["notebooks"]["14_z"]["ended"]


def of_a_later_run(found):
    found["notebooks"]["14_z"]["ended"] = 5000.0


def of_an_earlier_run(found):
    found["notebooks"]["14_z"]["ended"] = 500.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_models, r"\(models missing\)"),
        (without_roles, r"\(models missing\)"),
        (without_pages, r"\(00_index missing, 05_freezing missing, 08_y missing, 14_z missing\)"),
        (without_two, r"\(00_index missing, 08_y failed\)"),
        (failed_models, r"\(models failed\)"),
        (of_an_earlier_version, r"\(14_z without times\)"),
        (of_a_later_run, r"more than one run \(14_z began 3570 s after"),
        (of_an_earlier_run, r"more than one run \(models began 500 s after"),
    ],
)
def test_what_is_not_one_whole_run_is_not_reported(run, change, said):
    found = manifest()
    change(found)
    storage.write_json(run, found)
    with pytest.raises(InputError, match=said + r".*make a run from nothing"):
        benchmarks.full_run()


def test_a_run_that_found_models_is_not_reported(run, capsys):
    storage.write_json(run, manifest("cached"))
    with pytest.raises(InputError, match=r"found models in the cache \(base\); make a run from nothing"):
        benchmarks.full_run()
    assert benchmarks.main() == 2
    said = capsys.readouterr().err
    assert "in another clone" in said
    assert "mv .cache ../cache.aside" in said
    assert "delete" not in said  # it holds the models of every seed and size
    assert not benchmarks.BENCHMARKS.exists()


def test_a_run_from_nothing_finds_nothing_kept_of_its_profile(run, monkeypatch):
    folders = ("models/tiny", "models/tiny-wide", "freezing/tiny", "sizes/tiny", "freezing/kingdom")
    seen = []

    def go(*options):
        seen.append((options[2:], {name for name in folders if (paths.CACHE / name).exists()}))

    for name in folders:
        storage.write_text(paths.CACHE / name / "0-abc" / "value.json", "{}")
    monkeypatch.setattr(benchmarks, "_run", go)
    names = [one["name"] for one in benchmarks.pipeline()]
    assert names == ["tiny, every notebook, from nothing", "tiny, nothing to do"]
    others = {"models/tiny-wide", "freezing/kingdom"}
    assert seen == [(("--clean",), set(folders)), *4 * [((), others)]]


def test_the_report_and_its_figure_are_written(run, monkeypatch):
    monkeypatch.setattr(analysis_costs, "measure", lambda: [row("cheap", [0.5], "ratio", 1.0, "x")])
    asked_for, old = row("kingdom: 13_size", [9000.0], "s", None, "x"), row("kingdom: 08_y", [1.0], "s", 60, "x")
    storage.write_json(benchmarks.BENCHMARKS, [old, asked_for, row("cheap", [9.0], "ratio", 1.0, "x")])
    for name in ("residual_svd", "pipeline"):
        monkeypatch.setattr(benchmarks, name, lambda: [])
    assert benchmarks.main() == 0
    written = storage.read_json(benchmarks.BENCHMARKS)
    assert written[-1]["name"] == "cheap"
    assert len({one["name"] for one in written}) == len(written)
    assert asked_for in written  # no full run measures it again
    assert old not in written
    assert sorted(path.name for path in paths.FIGURES.iterdir()) == [f"benchmarks.{s}" for s in ("csv", "png", "svg")]
    table = pd.read_csv(paths.FIGURES / "benchmarks.csv").set_index("name")
    assert table.loc["cheap", "share"] == 0.5


def test_costs_are_drawn_as_shares_of_their_budgets():
    rows = [
        row("good", [1.0, 2.0, 3.0], "s", 4, "x"),
        row("bad", [6.0], "ratio", 1.5, "x"),
        row("free", [1.0], "", None, "x"),
    ]
    table = charts.against_budgets(rows)
    assert table["name"].tolist() == ["good", "bad"]
    assert table["share"].tolist() == [0.5, 4.0]
    assert table[["lower", "upper"]].to_numpy().tolist() == [[0.25, 0.75], [4.0, 4.0]]
    assert charts.in_words(table) == "1 of 2 costs are within their budgets; not: bad 6 of 1.5 ratio."
    (axis,) = charts.draw(table).axes
    dots = {int(line.get_ydata()[0]): line for line in axis.lines if line.get_marker() == "o"}
    assert [dots[place].get_xdata()[0] for place in (0, 1)] == [0.5, 4.0]
    assert [dots[place].get_color() for place in (0, 1)] == [figures.COLOURS["blue"], figures.COLOURS["vermilion"]]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["good  (at most 4)", "bad  (at most 1.5)"]
