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


def manifest(source):
    models = {"seconds": 300.0, "peak_mb": 900.0, "ended": 1300.0, "roles": {"base": {"source": source}}}
    page = {"seconds": 60.0, "peak_mb": 1200.0, "ended": 1420.0}
    beside = page | {"seconds": 100.0, "peak_mb": 700.0}
    on_request = {"seconds": 5000.0, "peak_mb": 5000.0, "ended": 9000.0}  # no part of a full run
    return {"models": models, "notebooks": {"07_x": page, "08_y": beside, "13_size": on_request}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A full run that took 420 seconds from 1000 to 1420, two of its pages side by side."""
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(benchmarks, "BENCHMARKS", tmp_path / "benchmarks.json")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".seconds").write_text("90\n")
    file = paths.run_folder("kingdom", 0) / "manifest.json"
    storage.write_json(file, manifest("trained"))
    return file


def test_a_full_run_is_reported_from_its_manifest(run):
    rows = {one["name"]: one["value"] for one in benchmarks.full_run()}
    assert rows["one seed from nothing"] == 7.0
    assert rows["one seed from nothing, its steps added up"] == pytest.approx(460 / 60, rel=1e-3)
    assert rows["peak memory of a step"] == 1.2
    assert rows["kingdom: 07_x"] == 60.0
    assert rows["kingdom: models"] == 300.0
    assert rows["set-up"] == 90.0


def test_a_run_that_found_models_is_not_reported(run, monkeypatch, capsys):
    storage.write_json(run, manifest("cached"))
    with pytest.raises(InputError, match=r"found models in the cache; delete \.cache"):
        benchmarks.full_run()
    assert benchmarks.main() == 2
    assert "delete .cache" in capsys.readouterr().err
    assert not benchmarks.BENCHMARKS.exists()


def test_the_report_and_its_figure_are_written(run, monkeypatch):
    monkeypatch.setattr(analysis_costs, "measure", lambda: [row("cheap", [0.5], "ratio", 1.0, "x")])
    for name in ("residual_svd", "pipeline"):
        monkeypatch.setattr(benchmarks, name, lambda: [])
    assert benchmarks.main() == 0
    assert [one["name"] for one in storage.read_json(benchmarks.BENCHMARKS)][-1] == "cheap"
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
