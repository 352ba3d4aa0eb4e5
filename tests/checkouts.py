"""Small checkouts of this repository, in which the pipeline is run as a user runs it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lib import paths


def make(tree: Path, pages: Sequence[str]) -> Path:
    """The library, what it reads, and some of the notebooks."""
    shutil.copytree(paths.LIB, tree / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("profiles", "datasets", "judges", "published"):
        shutil.copytree(paths.DATA / part, tree / "data" / part)
    for name in ("data/claims.yaml", "data/utility.yaml", "requirements.lock", "pyproject.toml"):
        shutil.copy(paths.ROOT / name, tree / name)
    (tree / "notebooks").mkdir()
    for page in pages:
        shutil.copy(paths.NOTEBOOKS / f"{page}.py", tree / "notebooks")
    return tree


def run(tree: Path, module: str, *arguments: str, **environment: str) -> str:
    """What `python -m module` prints there, on one thread; it must end well."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
