"""Small checkouts whose notebooks need no tensor library (those of `test_pipeline`, or others), and what runs leave."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from lib import paths
from tests import test_pipeline as toy
from tests.faults import positions

HEAD = """\
# %% tags=["parameters"]
profile: str = "kingdom"  # which model family
seed: int = 0  # which organism

"""
NOTE = """
# %%
from lib import toy

toy.note("NAME", profile, seed, 1)
"""


def page(cell: str) -> str:
    """A notebook that runs one cell and leaves a result and figures."""
    return f"{HEAD}# %%\n{cell}\n{NOTE}"


def make(tree: Path, pages: Mapping[str, str]) -> Path:
    """A checkout with these notebooks, in which nothing has run."""
    shutil.copytree(paths.LIB, tree / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(paths.PROFILES, tree / "data/profiles")
    shutil.copytree(paths.DATASETS, tree / "data/datasets")
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(paths.ROOT / name, tree)
    toy.write(tree / "data/claims.yaml", "[]\n")
    (tree / "build").mkdir()
    sources = {"toy": toy.TOY, "tools": toy.TOOLS, "models": toy.MODELS, "ledger": toy.LEDGER, "readme": toy.FIRST_PAGE}
    for name, text in sources.items():
        toy.write(tree / f"lib/{name}.py", text)
    for name, text in pages.items():
        toy.write(tree / f"notebooks/{name}.py", toy.HEADER.replace("NAME", name) + text.replace("NAME", name))
    return tree


def ran(tree: Path, *arguments: str, fault: Mapping[str, object] | None = None) -> tuple[int, str, str]:
    """Return code, output and errors of a run; `fault`: see `positions.from_environment`."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "RUNNER": ""}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # so that positions are those of the run
    if fault:
        shutil.copy(positions.__file__, tree / "sitecustomize.py")
        environment[positions.VARIABLE] = json.dumps({"under": str(tree), **fault})
    done = subprocess.run(
        [sys.executable, "-m", "lib.pipeline", "--profile", "tiny", *arguments], cwd=tree.parent, env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def of(tree: Path) -> list[psutil.Process]:
    """Living processes that were started for a checkout: it is in their working folder, command or search path."""
    found = []
    for process in psutil.process_iter():
        try:
            known = [process.cwd(), *process.cmdline(), process.environ().get("PYTHONPATH", "")]
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if alive and process.pid != os.getpid() and any(str(tree) in text for text in known):
            found.append(process)
    return found


def none_left(tree: Path, seconds: float = 20) -> list[str]:
    """The commands of processes that are still there after a while."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and of(tree):
        time.sleep(0.1)
    return [" ".join(process.cmdline())[:200] for process in of(tree)]
