"""Nothing is mixed between the model's device and the CPU, and results are the same wherever the model is."""

import json
import subprocess
import sys
from functools import cache

import pytest

from lib import paths

NAMES = (
    "mixing is refused", "wrapping left the model there", "residual.activations", "activation_store",
    "unit_scores.calibrate", "unit_scores.weight_taylor", "freezing.masks", "units.edits", "units.without",
    "relevance attnlrp", "relevance conservative",
)  # fmt: skip


@cache
def found():
    command = [sys.executable, "-m", "tests.second_device"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_results_on_a_second_device_are_those_on_the_cpu(name):
    assert found()[name] == pytest.approx(0, abs=1e-3), found()[name]


def test_every_check_is_looked_at():
    assert sorted(found()) == sorted(NAMES)
