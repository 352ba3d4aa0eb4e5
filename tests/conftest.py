"""Fixtures that several test files use."""

import pytest

from lib import cpus
from tests.registry import NOTEBOOKS


@pytest.fixture
def two_cpus(monkeypatch):
    """Room for two processes, whatever this machine has."""
    monkeypatch.setattr(cpus, "processes", lambda: 2)


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a notebook for every claim of the real registry."""
    files = {f"notebooks/{number:02}_{name}.py": "from lib import used\n" for number, name in enumerate(NOTEBOOKS, 1)}
    files |= {"lib/__init__.py": "", "lib/used.py": "x = 1\n", "requirements.lock": "numpy\n"}
    files |= {"data/profiles/kingdom.yaml": "name: kingdom\n", "data/profiles/llama.yaml": "name: llama\n"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path
