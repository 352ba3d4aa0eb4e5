"""What a run's record says of the models and data that it took; no run is made."""

import json

import pytest

from lib import manifest, models, notebooks, paths, provenance, storage, worlds
from lib.errors import InputError
from lib.manifest import MODELS, Manifest

READ = {"seed": 3, "sets": {"harmful": {"name": "advbench", "content": "c0ffee", "heldout": {"count": 7}}}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the run leaves its files."""
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    return paths.run_folder("mine", 3)


def recorded(folder):
    Manifest("mine", 3, ["--profile", "mine"]).record(MODELS, {"seconds": 1.0})
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))[MODELS]


def test_data_sets_are_in_the_record_of_a_run_that_read_some(folder):
    storage.write_json(folder / "models.json", {"chat": {"origin": "org/chat@0123", "source": "given"}})
    found = recorded(folder)
    assert found == {"seconds": 1.0, "roles": {"chat": {"origin": "org/chat@0123", "source": "given"}}}
    storage.write_json(folder / "data.json", READ)
    assert recorded(folder) == {**found, "data": READ}


def test_folders_of_models_are_named_without_what_is_above_them(folder, tmp_path):
    storage.write_json(folder / "models.json", {"chat": {"origin": str(tmp_path / "secret" / "chat")}})
    assert recorded(folder)["roles"] == {"chat": {"origin": ".../chat"}}
    assert "secret" not in (folder / "manifest.json").read_text(encoding="utf-8")
    assert manifest.expected("mine", 3, MODELS) == 1.0


def test_the_builder_writes_what_the_world_read(folder, monkeypatch):
    class World:
        def sources(self):
            return READ

    monkeypatch.setattr(worlds, "of", lambda profile, seed: World())
    monkeypatch.setattr(models, "build", lambda profile, seed: {"chat": {"source": "given"}})
    assert models.main(["build", "--profile", "mine", "--seed", "3"]) == 0
    assert storage.read_json(folder / "data.json") == READ
    assert storage.read_json(folder / "models.json") == {"chat": {"source": "given"}}


def test_data_that_cannot_be_had_is_known_before_a_model_is_looked_at(folder, monkeypatch, capsys):
    def missing(profile, seed):
        raise InputError("alpaca is not here; set DATA_DIR")

    monkeypatch.setattr(worlds, "of", missing)
    monkeypatch.setattr(models, "build", lambda profile, seed: pytest.fail("a model was looked at"))
    with pytest.raises(SystemExit):
        models.main(["build", "--profile", "mine", "--seed", "3"])
    assert "alpaca is not here" in capsys.readouterr().err


# Times that are published ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "budget"),
    [("models", None), ("05_freezing", 240), ("06_alignment_budget", 240), ("11_trigger_removal", 240),
     ("01_organism", 60), ("15_ledger", 60), ("13_size", None)],
)  # fmt: skip
def test_a_page_is_held_against_the_budget_of_its_kind(name, budget):
    assert name == MODELS or name in provenance.notebooks()
    found = manifest.time_row("kingdom", name, 100.0)
    assert (found["name"], found["value"], found["budget"]) == (f"kingdom: {name}", 100.0, budget)


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """A run in which a page on request found all that it needs in the cache, and another page of the same length."""
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(manifest, "BENCHMARKS", tmp_path / "benchmarks.json")
    for name, tag in (("12_a", ""), ("13_b", f', "{notebooks.ON_REQUEST}"')):
        text = f'# %% tags=["parameters"{tag}]\nprofile: str = "k"  # x\nseed: int = 0  # y\n'
        (tmp_path / f"{name}.py").write_text(text)
        Manifest("mine", 3, []).record(name, {"seconds": 18.0, "status": "done"})
        storage.write_json(folder / "results" / f"{name}.json", {"facts": {"seconds": 9000.0}})
    return folder


def published():
    return {row["name"]: (row["value"], row["budget"]) for row in storage.read_json(manifest.BENCHMARKS)}


def test_a_page_on_request_took_what_all_it_needs_took_to_make(run):
    manifest.publish_times("mine", 3, ["12_a", "13_b"])
    assert published() == {"mine: 12_a": (18.0, 60), "mine: 13_b": (9000.0, None)}
    assert manifest.published_times("mine") == {"12_a": 18.0, "13_b": 9000.0}


@pytest.mark.parametrize("result", ['{"facts": {}}', "{}", "damaged"])
def test_a_page_on_request_that_records_no_seconds_took_those_of_its_run(run, result):
    storage.write_text(run / "results" / "13_b.json", result)
    manifest.publish_times("mine", 3, ["13_b"])
    assert published() == {"mine: 13_b": (18.0, None)}
