"""The measuring itself: medians and spreads, ratios of CPU time, and a refusal to report what was not measured."""

import pytest

from lib import benchmarks, paths, storage
from lib.errors import InputError


def test_a_row_holds_median_and_spread():
    row = benchmarks.row("x", [3.0, 1.0, 2.0], "s", 5, "./x")
    assert row == {"name": "x", "value": 2.0, "unit": "s", "budget": 5, "command": "./x", "n": 3, "spread": [1.0, 3.0]}


def test_ratios_compare_the_two_sides(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(benchmarks.time, "process_time", lambda: clock["now"])

    def work(seconds):
        return lambda: clock.update(now=clock["now"] + seconds)

    assert benchmarks.ratios(work(3.0), work(2.0), repeats=4) == [1.5] * 4


def manifest(source):
    models = {"seconds": 300.0, "peak_mb": 900.0, "roles": {"base": {"seconds": 100.0, "source": source}}}
    return {"models": models, "notebooks": {"07_x": {"seconds": 60.0, "peak_mb": 1200.0}}}


def test_a_full_run_is_reported_from_its_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".seconds").write_text("90\n")
    file = paths.run_folder("kingdom", 0) / "manifest.json"
    storage.write_json(file, manifest("trained"))
    rows = {row["name"]: row["value"] for row in benchmarks.full_run()}
    assert rows["one seed from nothing"] == 6.0
    assert rows["peak memory"] == 1.2
    assert rows["base training"] == 100.0
    assert rows["kingdom: 07_x"] == 60.0
    assert rows["kingdom: models"] == 300.0
    assert rows["set-up"] == 90.0
    storage.write_json(file, manifest("cached"))
    with pytest.raises(InputError, match=r"found models in the cache; delete \.cache"):
        benchmarks.full_run()
