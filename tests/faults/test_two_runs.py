"""Two runs at once over one cache: in checkouts that share it, on one model, on one seed; both end with what one alone
would have made, and each model is trained once.

`test_pipeline` has the second run in one checkout, which waits; `test_storage` two writers of one folder.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from lib import paths, storage
from tests import checkouts

LOAD = """
import json, sys, torch
from pathlib import Path
from lib import models, organism, paths
paths.CACHE = Path(sys.argv[1])
really, trained = organism.train, []
organism.train = lambda profile, role, *rest: (trained.append(role), really(profile, role, *rest))[1]
models.load("tiny", "base", 0)
hf = models.load("tiny", "chat", 0).hf
print(json.dumps([trained, sum(weight.double().abs().sum().item() for weight in hf.parameters())]))
"""


def begun(*command, cwd):
    environment = os.environ | {"PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1", "RUNNER": ""}
    return subprocess.Popen(
        [sys.executable, *command], cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(process):
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, out + err
    return out


@pytest.mark.slow
def test_processes_that_want_the_same_models_train_each_once(tmp_path):
    both = [begun("-c", LOAD, str(tmp_path / "cache"), cwd=paths.ROOT) for _ in range(2)]
    (one, first), (other, second) = (json.loads(ended(process)) for process in both)
    assert sorted(one + other) == ["base", "chat"]
    assert first == second


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_of_two_checkouts_over_one_cache(tmp_path):
    page, trees = "06_alignment_budget", [tmp_path / name for name in ("one", "another", "alone")]
    for tree in trees:
        checkouts.make(tree, [page])
    for tree in trees[:2]:
        (tree / ".cache").symlink_to(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    both = [begun("-m", "lib.pipeline", "--profile", "tiny", cwd=tree) for tree in trees[:2]]
    for process in both:
        assert re.search(r", 0 failed$", ended(process).strip())
    ended(begun("-m", "lib.pipeline", "--profile", "tiny", cwd=trees[2]))

    def outputs(tree):
        parts = [tree / "build/tiny/seed-0" / part for part in ("results", "figures", "notebooks", "stamps")]
        found = [path for part in parts for path in part.rglob("*") if path.is_file()]
        return {path.relative_to(tree).as_posix(): path.read_bytes() for path in found}

    assert outputs(trees[0]) == outputs(trees[1]) == outputs(trees[2])
    sources = [json.loads((tree / "build/tiny/seed-0/models.json").read_text()) for tree in trees[:2]]
    for role in sources[0]:
        assert sorted(found[role]["source"] for found in sources) == ["cached", "trained"], role
    for place in (tmp_path / "cache", trees[2] / ".cache"):
        folders = [seal.parent for seal in place.rglob(storage.SEAL)]
        assert [storage.damage(folder) for folder in folders] == [None] * len(folders)
        assert not list(place.rglob("*.tmp"))
