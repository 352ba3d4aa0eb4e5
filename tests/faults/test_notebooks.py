"""Notebooks that are killed, hang, or print without end: the run goes on with the others and says which did what.

`test_pipeline` has the notebook that raises and the kernel that ends itself, `test_stopping` the one that cannot be run
here; neither is repeated.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from lib import paths
from tests.faults import toys
from tests.test_pipeline import edit, start

BESIDE = "subprocess.Popen(['sleep', '600'], cwd=paths.ROOT)"  # what a kernel started and does not live to end
KILLED = f"import os, signal, subprocess\nfrom lib import paths\n\n{BESIDE}\nos.kill(os.getpid(), signal.SIGKILL)"
HANGS = f"import subprocess, time\nfrom lib import paths\n\n{BESIDE}\ntime.sleep(600)"
FLOODS = 'while True:\n    print("all work and no play " * 100)'
PRINTS = 'line = "x" * 99 + "\\n"\n\nprint(line * 1_000_000)'
SHOWS = "from IPython.display import HTML\n\nHTML('y' * 30_000_000)"
FINE = 'print("z" * 1_000_000)'
PAGES = {"01_killed": KILLED, "02_hangs": HANGS, "03_floods": FLOODS, "04_prints": PRINTS, "05_shows": SHOWS,
         "06_fine": FINE}  # fmt: skip
SAID = {
    "01_killed": "stopped in cell [3] `import os, signal, subprocess`: the kernel died, most likely for want of memory",
    "02_hangs": "stopped in cell [3] `import subprocess, time`: it was stopped, because it did not end within 0.002",
    "03_floods": "stopped in cell [3] `while True:`: TooMuchOutput: it shows more than 20 MB; show less",
    "04_prints": 'stopped in cell [3] `line = "x" * 99 + "\\n"`: TooMuchOutput: it shows more than 20 MB; show less',
    "05_shows": "stopped in cell [3] `from IPython.display import HTML`: TooMuchOutput: it shows more than 20 MB; show",
}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A checkout with such notebooks after a run in which a cell may take no more than eight seconds."""
    tree = toys.make(
        tmp_path_factory.mktemp("troubled") / "tree", {name: toys.page(cell) for name, cell in PAGES.items()}
    )
    edit(tree / "lib/engine.py", "PATIENCE = 12 * 3600", "PATIENCE = 8")
    return tree, toys.ran(tree, "--jobs", "2")


def test_the_run_fails_and_says_why_of_each(troubled):
    _, (code, out, err) = troubled
    assert code == 1, out + err
    told = sorted(line.removeprefix("error: ") for line in err.splitlines())
    assert len(told) == len(SAID), err
    for line, (name, text) in zip(told, SAID.items(), strict=True):
        assert line.startswith(f"{name} {text}")
    assert re.search(r"^\[\d/8\] 06_fine  tiny seed 0  \d+ s$", out, re.MULTILINE)
    assert out.endswith(f"3 done, 0 notebooks up to date, {len(SAID)} failed\n")  # models, 06 and the ledger


def test_nothing_of_a_failed_notebook_passes_for_a_result(troubled):
    folder = troubled[0] / "build/tiny/seed-0"
    for part in ("results", "notebooks", "stamps"):
        done = {path.name.split(".")[0] for path in (folder / part).glob("*.*") if ".failed." not in path.name}
        assert done == {"06_fine"}, part
    assert not list((troubled[0] / "build").rglob("*.running.ipynb"))
    assert not list((troubled[0] / "build").rglob(".kernels"))


@pytest.mark.parametrize("name", SAID)
def test_what_a_failed_notebook_had_shown_is_kept_and_small(troubled, name):
    path = troubled[0] / f"build/tiny/seed-0/notebooks/{name}.failed.ipynb"
    assert path.stat().st_size < 45e6
    nbformat.validate(nbformat.read(path, as_version=4))
    manifest = json.loads((troubled[0] / "build/tiny/seed-0/manifest.json").read_text())["notebooks"][name]
    assert manifest["status"] == "failed"
    assert manifest["peak_mb"] < 1500
    assert manifest["seconds"] < 60


def test_no_process_stays_not_even_one_that_a_kernel_had_started(troubled):
    assert toys.none_left(troubled[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["lib.execute", "ipykernel_launcher"])
def test_a_process_killed_in_the_middle_is_named_and_leaves_nothing(tmp_path, victim):
    tree = toys.make(tmp_path / "tree", {"01_waits": toys.page("from lib import tools\n\ntools.pause()")})
    (tree / "pause").touch()
    process = start(tree)
    limit = time.monotonic() + 60
    while not (tree / "build/kernel.pid").exists():
        assert time.monotonic() < limit
        time.sleep(0.05)
    (mine,) = [one for one in psutil.Process(process.pid).children(recursive=True) if victim in " ".join(one.cmdline())]
    mine.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    said = "was ended from outside (SIGKILL), perhaps for want of memory; see build/tiny/seed-0/logs/01_waits.log"
    assert err == f"error: 01_waits {said}\n" if victim == "lib.execute" else "the kernel died" in err
    assert toys.none_left(tree) == []
    (tree / "pause").unlink()
    assert toys.ran(tree)[0] == 0
    assert (tree / "build/tiny/seed-0/results/01_waits.json").is_file()
    assert not list((tree / "build").rglob("*.failed.ipynb"))


SIDE_BY_SIDE = """
import sys, time
from pathlib import Path
from lib import threads

def work(place, name):
    (Path(place) / name).touch()
    time.sleep(1)

if __name__ == "__main__":
    threads.side_by_side(work, [(sys.argv[1], str(number)) for number in range(100)], 2)
"""


@pytest.mark.slow
def test_work_side_by_side_ends_with_the_process_that_asked_for_it(tmp_path):
    """As when a kernel is killed whose worker is, too: nobody is left to end what it started."""
    (tmp_path / "program.py").write_text(SIDE_BY_SIDE)
    command = [sys.executable, "program.py", str(tmp_path)]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(paths.ROOT)})
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("[0-9]")):
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert len(toys.of(tmp_path)) > 2
    process.kill()
    process.wait()
    assert toys.none_left(tmp_path) == []
