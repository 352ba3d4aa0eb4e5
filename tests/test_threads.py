"""Threads inside a block, and work side by side in processes."""

import os

import pytest
import torch

from lib import cpus, threads


def leave(folder, name):
    """What a process of the pool does: says who it is."""
    if name == "wrong":
        raise ValueError("this one fails")
    (folder / name).write_text(str(os.getpid()))


def test_the_number_of_threads_comes_back(monkeypatch):
    now = [5]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    with threads.one_thread():
        assert now[-1] == 1
    assert now[-1] == 5
    with threads.one_thread(wanted=False):
        assert now[-1] == 5


def test_calls_run_in_other_processes_and_a_single_one_is_left_to_the_caller(tmp_path, two_cpus):
    threads.side_by_side(leave, [(tmp_path, "a"), (tmp_path, "b")])
    found = {path.name: int(path.read_text()) for path in tmp_path.iterdir()}
    assert set(found) == {"a", "b"}
    assert os.getpid() not in found.values()
    threads.side_by_side(leave, [(tmp_path, "c")])
    threads.side_by_side(leave, [])
    assert not (tmp_path / "c").exists()


def test_where_one_cpu_is_left_no_process_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "processes", lambda: 1)
    threads.side_by_side(leave, [(tmp_path, "a"), (tmp_path, "b")])
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_in_a_process_is_raised(tmp_path, two_cpus):
    with pytest.raises(ValueError, match="this one fails"):
        threads.side_by_side(leave, [(tmp_path, "wrong"), (tmp_path, "d")])
