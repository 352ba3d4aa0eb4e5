"""Notebooks as JupyterLab runs them in a fresh clone: in a kernel, without a cache, with the models shipped."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request

import nbclient
import nbformat
import pytest

from lib import execute, paths, pipeline

FOLDERS = ("lib", "data/profiles", "data/datasets", "data/judges")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A checkout as it is cloned: shipped models, no cache, no build. Kernels started from here import its `lib`."""
    for name in FOLDERS:
        shutil.copytree(paths.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(paths.LOCK, tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "data/organisms").symlink_to(paths.ORGANISMS, target_is_directory=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONWARNINGS", execute.quiet_warnings())
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return tmp_path


def executed(clone, *sources):
    """The outputs of these cells, run as JupyterLab runs a notebook of `notebooks/`."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    place = {"metadata": {"path": str(clone / "notebooks")}}
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3", resources=place).execute()
    return [output for cell in book.cells for output in cell.outputs]


def stream(outputs, name):
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == name)


FIND = """
from lib import models, paths, profiles
for role in ("base", "chat", "errands"):
    folder, source = models.find(profiles.load("kingdom"), role, 0, shipped=True)
    print(role, source, folder.is_relative_to(paths.ORGANISMS))
print(paths.ROOT, models.load("kingdom", "chat", 0).layers)
"""


def test_a_kernel_finds_the_shipped_models_and_trains_nothing(clone):
    outputs = executed(clone, FIND)
    assert stream(outputs, "stdout").splitlines() == [
        *(f"{role} shipped True" for role in ("base", "chat", "errands")),
        f"{clone} 6",
    ]
    assert stream(outputs, "stderr") == ""
    assert not (clone / ".cache").exists()


TRAIN = """
from lib import models
models.load("tiny", "chat", 0)
"""


def test_training_says_what_and_how_far_it_is(clone):
    said = stream(executed(clone, TRAIN), "stderr")
    for stage in ("base (facts)", "chat"):
        assert re.search(rf"training tiny seed 0: {re.escape(stage)}: +\d+%\|", said)
    made = [path.name for path in (clone / ".cache/models/tiny").iterdir() if not path.name.startswith(".")]  # locks
    assert sorted(name.split("-")[0] for name in made) == ["base", "chat"]


def test_the_pipelines_kernels_train_silently(clone, monkeypatch):
    monkeypatch.setattr(execute.os, "environ", os.environ.copy())
    execute._kernel_environment(clone / "home")
    monkeypatch.setenv("TQDM_DISABLE", execute.os.environ["TQDM_DISABLE"])
    assert stream(executed(clone, TRAIN), "stderr") == ""


@pytest.mark.slow
def test_the_lab_serves_sources_as_notebooks(tmp_path, monkeypatch):
    """The command of `--lab`, without a browser: a percent-format source opens as a notebook, in a kernel of this
    environment's Python."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    options = ["--no-browser", "--allow-root", "--ServerApp.port_retries=50"]
    with subprocess.Popen([*pipeline.lab_command(), *options], stderr=subprocess.DEVNULL) as server:
        try:
            book = asked(tmp_path, server, "api/contents/notebooks/07_residual_space.py?type=notebook")
            specs = asked(tmp_path, server, "api/kernelspecs")
        finally:
            server.terminate()
    assert book["type"] == "notebook"
    assert book["content"]["cells"][0]["cell_type"] == "markdown"
    assert book["content"]["metadata"]["kernelspec"]["name"] in specs["kernelspecs"]
    assert specs["default"] == "python3"


def asked(folder, server, path):
    """What a running server answers, as JSON; it says in `folder` where it listens."""
    limit = time.monotonic() + 90
    while not (notes := list(folder.glob("jpserver-*.json"))):
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < limit, "the server did not start"
        time.sleep(0.2)
    note = json.loads(notes[0].read_text())
    request = urllib.request.Request(note["url"] + path, headers={"Authorization": f"token {note['token']}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
