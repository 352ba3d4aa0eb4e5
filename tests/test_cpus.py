"""How many CPUs a process takes for its own."""

import os
from types import SimpleNamespace

import psutil
import pytest

from lib import cpus
from lib.workers import Workers


@pytest.fixture
def machine(monkeypatch):
    """A machine of 8 CPUs and plenty of memory, without SLURM."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", cpus.SHARE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    memory(monkeypatch, 64e9)
    return monkeypatch


def memory(patch, free):
    patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 8),
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "6"}, 3),
        ({"SLURM_CPUS_ON_NODE": "6"}, 6),
        ({"SLURM_CPUS_PER_TASK": "64"}, 8),
        ({cpus.SHARE: "2"}, 2),
        ({cpus.SHARE: "20"}, 8),
        ({cpus.SHARE: ""}, 8),
        ({"SLURM_CPUS_PER_TASK": "4", cpus.SHARE: "2"}, 2),
    ],
)
def test_the_least_that_was_granted_counts(machine, environment, expected):
    for name, value in environment.items():
        machine.setenv(name, value)
    assert cpus.available() == cpus.processes() == expected


@pytest.mark.parametrize(("free", "expected"), [(64e9, 8), (6.1e9, 4), (0.5e9, 1)])
def test_there_are_no_more_processes_than_memory_holds(machine, free, expected):
    memory(machine, free)
    assert cpus.processes() == expected


@pytest.mark.parametrize(("parallel", "share"), [(1, "8"), (2, "4"), (3, "2"), (50, "1")])
def test_notebooks_share_the_machine_and_models_have_it_all(machine, tmp_path, parallel, share):
    """What each worker finds in its environment; with a runner, what the runner grants is left alone."""
    started = []

    def start(command, env, **_):
        started.append(env.get(cpus.SHARE))
        raise OSError(2, "enough seen")

    machine.setattr("lib.workers.subprocess.Popen", start)
    for kind in ("notebook", "module"):
        Workers((), parallel).call({"kind": kind, "name": "x"}, tmp_path / "log")
    Workers(["srun"], parallel).call({"kind": "notebook", "name": "x"}, tmp_path / "log")
    assert started == [share, None, None]
