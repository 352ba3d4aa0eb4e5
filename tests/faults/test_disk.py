"""A run on a full disk, or in a tree that cannot be written, in the pipeline, a worker or a kernel: an exit code that
is not 0, one line for each thing that failed with the disk's own words, no traceback, and nothing lost.

`test_writes` has every write of what stores and publishes; `test_storage` and `test_models` the work that is refused
beforehand for want of space. A tree is made unwritable by its errors, because permissions do not bind root.
"""

import itertools
import re
import shutil

import pytest

from tests.faults import positions, toys
from tests.faults.positions import FULL, READ_ONLY
from tests.test_pipeline import ALPHA, edit, files

WORDS = {FULL: "No space left on device", READ_ONLY: "Read-only file system"}
PIPELINE, WORKER, KERNEL = "lib.pipeline", "lib.execute", "ipykernel_launcher"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout after a run."""
    tree = toys.make(tmp_path_factory.mktemp("disks") / "tree", {"01_alpha": ALPHA})
    assert toys.ran(tree)[0] == 0
    return tree


@pytest.fixture
def tree(finished, tmp_path):
    """A copy of it in which the notebook has to run again."""
    tree = shutil.copytree(finished, tmp_path / "tree")
    edit(tree / "lib/toy.py", "def note", "CHANGED = 1\n\ndef note")
    return tree


def check(tree, kind, where, number):
    """One run with that fault and one without; whether the fault was met."""
    seen, (code, out, err) = files(tree), toys.ran(tree, fault={"in": where, "kind": kind, "at": number})
    if code == 0:
        return False
    told = err.splitlines()
    assert code in (1, 2), out + err
    assert all(line.startswith(("error: ", "warning: ")) for line in told), err
    log = (tree / "build/tiny/seed-0/logs/01_alpha.log").read_text(errors="replace")
    silent = "its kernel did not start" in err and WORDS[kind] in log  # it can tell only its log
    assert silent or any(WORDS[kind] in line for line in told), (number, err)
    assert not re.search(r"Traceback|\bNone\b", err), err
    assert all(content == seen.get(name, content) for name, content in files(tree).items() if "stamps" not in name)
    assert toys.none_left(tree) == []
    return True


def again(tree, finished):
    """A clean run brings what an undisturbed one did, and leaves nothing half-made."""
    code, out, err = toys.ran(tree)
    assert code == 0, out + err
    found, expected = files(tree), files(finished)
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found if "stamps" not in name)  # a stamp holds the code's key
    build = tree / "build"
    assert not [path for path in build.rglob("*") if path.suffix == ".tmp" or ".running." in path.name]
    assert not [path for path in build.rglob("*") if ".failed." in path.name or path.name == ".kernels"]
    assert toys.ran(tree)[1].startswith("0 done, 1 notebooks up to date, 0 failed")


@pytest.mark.parametrize(
    ("kind", "where", "number"),
    [
        (READ_ONLY, PIPELINE, 1),
        (FULL, PIPELINE, 9),
        pytest.param(FULL, WORKER, 12, marks=pytest.mark.slow),
        pytest.param(FULL, KERNEL, 4, marks=pytest.mark.slow),
    ],
)
def test_a_run_says_that_the_disk_is_full_or_cannot_be_written(tree, kind, where, number):
    assert check(tree, kind, where, number)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("where", [PIPELINE, WORKER, KERNEL])
@pytest.mark.parametrize("kind", [FULL, READ_ONLY])
def test_the_same_at_every_write_of_a_run(tree, finished, tmp_path, kind, where):
    met = 0
    for number in itertools.count(1):
        mine = shutil.copytree(tree, tmp_path / f"at {number}")
        if not check(mine, kind, where, number):
            break
        met += 1
        if number % 4 == 0:
            again(mine, finished)
        shutil.rmtree(mine)
    assert met >= 5, positions.__doc__
