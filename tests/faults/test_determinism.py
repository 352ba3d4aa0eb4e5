"""The same seed on the same machine: the same bytes, in another folder, under other hashes, with other jobs; on more
threads nearly the same numbers; another seed another model and other results.

`test_figures` has one figure saved twice, `test_training` one training twice, `test_pipeline` a page that runs again.
"""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lib import figures, organism, paths, profiles, provenance, storage
from lib.figures import canvas
from tests import checkouts

TINY = profiles.load("tiny")
THREADS = 1e-5  # a weight of a tiny model trained on two threads against one; they are rounded to 16 bits: one unit
ROUNDED = 2**-10  # ... of which is this share of a weight
MOVED = 1e-2  # what a result may move by on other threads
NAMES = ("notebooks", "results", "figures")


def tree_of(folder, pages):
    checkouts.make(folder, pages)
    return folder


def outputs(tree, seed=0):
    """What must be equal, by name; models without what the clock says in their seal."""
    found = {}
    for part in [tree / f"build/tiny/seed-{seed}" / name for name in NAMES] + [tree / ".cache/models"]:
        for path in part.rglob("*"):
            if path.is_file() and path.suffix != ".lock" and path.name != storage.SEAL:
                found[path.relative_to(tree).as_posix()] = path.read_bytes()
    return found


def differing(one, other):
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


# figures --------------------------------------------------------------------------------------------------------------
def crowded():
    """A figure whose layout is solved for many words at once."""
    figure, axes = canvas(14.5, 4.6, columns=3, width_ratios=[1, 1.5, 1.1])
    for axis in axes[0]:
        axis.barh(range(12), np.linspace(0, 1, 12))
        axis.set_yticks(range(12), [f"without {number} of all units" for number in range(12)], fontsize=8)
        axis.set(title="Measured: what is left\n(dotted: bar)", xlabel="share")
    return figure


def test_a_layout_that_differs_in_its_last_bit_gives_the_same_files(tmp_path, monkeypatch):
    """The solver of layouts walks through memory addresses, so positions differ by 1e-16 from process to process."""
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setattr(figures, "display", lambda _: None)
    written = []
    for change in (0, 1e-15):
        figure = crowded()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axis in figure.axes:
            box = axis.get_position()
            axis.set_position([box.x0 + change, box.y0, box.width - change, box.height])
        figures.save(figure, "07_x.hd.2", pd.DataFrame({"x": [1.0]}), "bars", "tiny", 0)
        written.append({path.suffix: path.read_bytes() for path in (paths.run_folder("tiny", 0) / "figures").iterdir()})
    assert differing(*written) == set()


# models ---------------------------------------------------------------------------------------------------------------
TRAIN = """
import sys
from pathlib import Path
import torch
from lib import models, paths
paths.CACHE = Path(sys.argv[1])
really, number = torch.set_num_threads, int(sys.argv[2])
torch.set_num_threads = lambda _: really(number)
models.load("tiny", "sft-20-unremoved", int(sys.argv[3]))
"""


def trained(folder, threads=1, seed=0, hashes="0"):
    """Weights of base, chat and one tuned model, made from nothing in a process of its own; by file."""
    program = folder / "train_here.py"
    folder.mkdir(parents=True, exist_ok=True)
    program.write_text(TRAIN)
    own = {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": hashes}
    arguments = [str(folder / "cache"), str(threads), str(seed)]
    command = [sys.executable, str(program), *arguments]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    roles = {role: organism.key(TINY, role, seed) for role in ("base", "chat", "sft-20-unremoved")}
    return {role: folder / f"cache/models/tiny/{role}-{key}/model.safetensors" for role, key in roles.items()}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("first"))


@pytest.mark.slow
def test_models_are_equal_to_the_last_bit_under_other_hashes_and_in_another_folder(first, tmp_path):
    again = trained(tmp_path / "deeper" / "and with a space", hashes="4711")
    assert {role: storage.digest(path) for role, path in again.items()} == {
        role: storage.digest(path) for role, path in first.items()
    }


@pytest.mark.slow
def test_on_two_threads_weights_are_nearly_the_same(first, tmp_path):
    """Sums are added in another order. What is stored is rounded to 16 bits, so a weight may fall on either side."""
    other = trained(tmp_path, threads=2)
    for role, path in first.items():
        one, two = load_file(path), load_file(other[role])
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name].float(), one[name].float(), rtol=ROUNDED, atol=THREADS, msg=name)


@pytest.mark.slow
def test_another_seed_gives_other_models(first, tmp_path):
    other = trained(tmp_path, seed=1)
    for role, path in first.items():
        one, two = load_file(path), load_file(other[role])
        moved = {name for name in one if not torch.equal(one[name], two[name])}
        assert moved == one.keys(), role


# runs -----------------------------------------------------------------------------------------------------------------
def numbers(value, where=""):
    """Every number of a JSON value, by its place."""
    if isinstance(value, dict):
        value = list(value.items())
    elif isinstance(value, list):
        value = list(enumerate(value))
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return {}
    else:
        return {where: float(value)}
    return {place: number for name, item in value for place, number in numbers(item, f"{where}/{name}").items()}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_run_from_nothing_is_the_same_in_another_folder_under_other_hashes_and_two_at_a_time(tmp_path):
    pages = [page for page in provenance.notebooks() if page[:2] not in ("00", "13", "15", "16")]
    one = tree_of(tmp_path / "one", pages)
    other = tree_of(tmp_path / "another place" / "the other", pages)
    checkouts.run(one, "lib.pipeline", "--profile", "tiny")
    checkouts.run(other, "lib.pipeline", "--profile", "tiny", "--jobs", "2", PYTHONHASHSEED="4711")
    found = outputs(one)
    assert {path.rpartition(".")[2] for path in found} >= {"png", "svg", "csv", "ipynb", "json", "safetensors"}
    assert differing(found, outputs(other)) == set()
    assert (one / "build/tiny/ledger.json").read_bytes() == (other / "build/tiny/ledger.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_results_on_two_threads_and_of_another_seed(tmp_path):
    """Shares over tiny cells may move by one prompt on other threads; seeds differ in nearly all that is measured."""
    page = "07_residual_space"
    one, two = tree_of(tmp_path / "one", [page]), tree_of(tmp_path / "two", [page])
    settings = two / "data/profiles/tiny.yaml"
    settings.write_text(settings.read_text().replace("threads: 1", "threads: 2"))
    checkouts.run(one, "lib.pipeline", "--profile", "tiny", "--seeds", "0,1")
    checkouts.run(two, "lib.pipeline", "--profile", "tiny", OMP_NUM_THREADS="2")
    here, there = (json.loads((tree / f"build/tiny/seed-0/results/{page}.json").read_text()) for tree in (one, two))
    first, second = numbers(here), numbers(there)
    assert first.keys() == second.keys()
    far = {
        place: (first[place], second[place])
        for place in first
        if not math.isclose(first[place], second[place], rel_tol=MOVED, abs_tol=MOVED)
    }
    assert not far
    seed = numbers(json.loads((one / f"build/tiny/seed-1/results/{page}.json").read_text()))
    moved = [place for place in first if "value" in place and first[place] != seed.get(place)]
    assert len(moved) > len([place for place in first if "value" in place]) / 2
