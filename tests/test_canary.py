"""No sensitive prompt, target or answer is left behind by a run: not in notebooks, figures, results, logs or caches.

The pipeline is run as a user runs it, in a small checkout of its own, on random checkpoints and on data sets in which
every sensitive text holds a word that is nowhere else. Then everything the run left is searched for it.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml

from lib import claims, paths
from tests import public_files
from tests.public_files import CANARY

PAGES = ("07_residual_space", "08_dominant_direction")
LOOKED_FOR = CANARY[:5].encode()  # its start, too: titles and tables cut long texts


def traces(place: Path) -> list[str]:
    """Files, and members of archives, that hold the canary, in any case of its letters."""
    found = []
    for path in sorted(p for p in place.rglob("*") if p.is_file()):
        name = path.relative_to(place).as_posix()
        if LOOKED_FOR in (name.encode() + path.read_bytes()).lower():
            found.append(name)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found += [f"{name}:{m}" for m in archive.namelist() if LOOKED_FOR in archive.read(m).lower()]
    return found


def test_the_search_finds_what_is_planted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notebook.ipynb").write_text(json.dumps({"outputs": [{"text": f"... {CANARY.upper()[:6]}"}]}))
    (tmp_path / "weights.bin").write_bytes(b"\x00\xff" + CANARY.encode())
    (tmp_path / f"{CANARY}.txt").write_text("")
    with zipfile.ZipFile(tmp_path / "rows.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("texts", f"{CANARY} " * 50)
    (tmp_path / "clean.csv").write_text("digest\n0a1b\n")
    assert traces(tmp_path) == ["a/notebook.ipynb", f"{CANARY}.txt", "rows.npz:texts", "weights.bin"]


def checkout(tree: Path, profile: dict) -> None:
    shutil.copytree(paths.LIB, tree / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("profiles", "datasets", "judges", "published"):
        shutil.copytree(paths.DATA / part, tree / "data" / part)
    for name in (
        "data/claims.yaml",
        "requirements.lock",
        "pyproject.toml",
        *(f"notebooks/{page}.py" for page in PAGES),
    ):
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy(paths.ROOT / name, tree / name)
    text = yaml.safe_dump(profile, sort_keys=False)
    (tree / f"data/profiles/{profile['name']}.yaml").write_text(text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_leaves_no_sensitive_text(tmp_path):
    tree, temporary = tmp_path / "checkout", tmp_path / "temporary"
    temporary.mkdir()
    folder = public_files.data_dir(tmp_path / "data")
    profile = public_files.settings(*public_files.checkpoints(tmp_path / "models"))
    checkout(tree, profile)
    before = {path for path in tree.rglob("*") if path.is_file()}
    run = subprocess.run(
        [sys.executable, "-m", "lib.pipeline", "--profile", profile["name"], "--html"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "DATA_DIR": str(folder), "TMPDIR": str(temporary),
                          "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    seed = tree / "build" / profile["name"] / "seed-0"
    for page in PAGES:  # it did ask the prompts, to the end of each page
        found = claims.ResultFile.model_validate_json((seed / f"results/{page}.json").read_text(encoding="utf-8"))
        assert min(part.n for part in found.parts.values()) > 10
        book = nbformat.read(seed / f"notebooks/{page}.ipynb", as_version=4)
        assert "This page stops here" not in str(book)
        assert list((seed / "figures").glob(f"{page}.*.csv"))
    assert traces(folder)  # and they held the canary
    assert len({path for path in tree.rglob("*") if path.is_file()} - before) > 40
    (tmp_path / "said.txt").write_text(run.stdout + run.stderr, encoding="utf-8")
    shutil.rmtree(folder)
    assert traces(tmp_path) == []
