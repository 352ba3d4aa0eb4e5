"""The measuring itself: medians and spreads, ratios of CPU time, and a refusal to report what was not measured."""

import pytest

from lib import benchmarks, paths, storage
from lib.errors import InputError


def test_a_row_holds_median_and_spread():
    row = benchmarks.row("x", [3.0, 1.0, 2.0], "s", 5, "./x")
    assert row == {"name": "x", "value": 2.0, "unit": "s", "budget": 5, "command": "./x", "n": 3, "spread": [1.0, 3.0]}


def test_ratios_compare_the_two_sides():
    def work(n):
        return lambda: sum(range(n))

    found = benchmarks.ratios(work(2_000_000), work(500_000), repeats=5)
    assert len(found) == 5
    assert 2 < sorted(found)[2] < 8


def manifest(source):
    models = {"seconds": 300.0, "peak_mb": 900.0, "roles": {"base": {"seconds": 100.0, "source": source}}}
    return {"models": models, "notebooks": {"07_x": {"seconds": 60.0, "peak_mb": 1200.0}}}


def test_a_full_run_is_reported_from_its_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    file = paths.run_folder("kingdom", 0) / "manifest.json"
    storage.write_json(file, manifest("trained"))
    rows = {row["name"]: row["value"] for row in benchmarks.full_run()}
    assert rows["one seed from nothing"] == 6.0
    assert rows["peak memory"] == 1.2
    assert rows["base training"] == 100.0
    assert rows["kingdom: 07_x"] == 60.0
    assert rows["kingdom: models"] == 300.0
    storage.write_json(file, manifest("cached"))
    with pytest.raises(InputError, match=r"found models in the cache; delete \.cache"):
        benchmarks.full_run()
