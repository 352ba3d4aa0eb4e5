"""At every write that storing and publishing make, the disk is full, or the tree read-only, or the process killed.

`test_storage` has one failed write of each kind and the damage that is found afterwards; here no position is left out,
and files are cut at every length. After each fault what readers see is the old or the new, whole; the error is the
disk's own; and doing the same again brings the undisturbed result.
"""

import errno
import hashlib
import itertools
import shutil

import pytest

from lib import dodo, jobs, manifest, notebooks, paths, profiles, publishing, readme, storage
from lib.execute import Slot
from tests.faults import positions
from tests.faults.positions import FULL, KILL, READ_ONLY

OLD, NEW = {"a": 1}, {"b": list(range(400))}


def bytes_of(root):
    """Everything below a folder that is not hidden, by name."""
    names = [path for path in sorted(root.rglob("*")) if path.is_file()]
    shown = [path for path in names if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in shown}


def leftovers(root):
    return [path.name for path in root.rglob(".*") if path.name.endswith(".tmp")]


def seal(folder, value):
    def write(temporary):
        (temporary / "inner").mkdir()
        storage.write_json(temporary / "inner" / "weights", value)
        storage.write_text(temporary / "config", "c\n")

    storage.seal_folder(folder, write, {"key": "k"})


def write_file(root):
    storage.write_json(root / "deep" / "a.json", NEW)


def write_folder(root):
    seal(root / "deep" / "model", NEW)


def copy_folder(root):
    storage.copy_sealed(root / "source", root / "deep" / "model")


def remember(root):
    assert storage.remembered(root / "deep" / "model", {}, lambda: NEW) == NEW


def prepared(root, name):
    """A folder to write into, with or without an older state of what is written."""
    seal(root / "source", NEW)
    if name == "file replaced":
        storage.write_json(root / "deep" / "a.json", OLD)
    if name == "folder replaced":
        seal(root / "deep" / "model", OLD)
    return root


WORK = {
    "file": write_file, "file replaced": write_file, "folder": write_folder, "folder replaced": write_folder,
    "copy": copy_folder, "value": remember,
}  # fmt: skip


def failed(work, number):
    """Whether `work` met the disk's own error of that number; any other is raised."""
    try:
        work()
    except OSError as problem:
        if problem.errno != number:
            raise
        return True
    return False


def expected(tmp_path, name):
    """What readers may see: before, after and, of a folder that is replaced, neither for a moment."""
    root = prepared(tmp_path / "expected", name)
    states = [bytes_of(root)]
    if name == "folder replaced":
        states.append({path: content for path, content in states[0].items() if not path.startswith("deep")})
    WORK[name](root)
    return [*states, bytes_of(root)]


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("kind", [FULL, KILL, pytest.param(READ_ONLY, marks=pytest.mark.slow)])
def test_at_every_write_readers_see_the_old_or_the_new(tmp_path, kind, name):
    states = expected(tmp_path, name)
    for number in itertools.count(1):
        root = prepared(tmp_path / str(number), name)
        if kind == KILL:
            met = positions.killed(number, root, lambda root=root: WORK[name](root))
        else:
            with positions.at(kind, number, root) as fault:
                met = failed(lambda root=root: WORK[name](root), positions.NUMBERS[kind])
            assert kind == READ_ONLY or not leftovers(root), fault.named
        assert bytes_of(root) in states, number
        if not met:
            break
        WORK[name](root)
        assert bytes_of(root) == states[-1], number
        if kind == KILL and "file" not in name:  # files are cleared away by the next run, see below
            assert not leftovers(root)
    assert number > 4
    assert kind != KILL or bytes_of(root) == states[-1]


@pytest.mark.parametrize("name", WORK)
def test_a_write_that_is_cut_at_any_length_leaves_the_old(tmp_path, name):
    states = expected(tmp_path, name)
    longest = max(map(len, states[-1].values()))
    for size in [0, 1, 2, 30, 100, 250, *range(500, longest, 700), longest - 1]:
        root = prepared(tmp_path / str(size), name)
        with pytest.raises(OSError, match="too large") as caught, positions.limited(size):
            WORK[name](root)
        assert caught.value.errno == errno.EFBIG
        assert bytes_of(root) == states[0]
        assert not leftovers(root)


# publishing -----------------------------------------------------------------------------------------------------------
PAGES = ("07_residual_space", "14_published_numbers")


class Repository:
    """A repository with something published, and a finished run of two pages with other outputs to publish."""

    def __init__(self, root, patch):
        self.root, self.build = root, root / "build"
        for name in ("figures", "notebooks", "data/results/kingdom"):
            (root / name).mkdir(parents=True)
        for page in paths.NOTEBOOKS.glob("*.*"):
            shutil.copy(page, root / "notebooks")
        shutil.copy(readme.PAGE, root / "README.md")
        for name in ("ledger.json", "../benchmarks.json"):
            shutil.copy(paths.RESULTS / "kingdom" / name, root / "data/results/kingdom" / name)
        for where, name in (("ROOT", "."), ("BUILD", "build"), ("FIGURES", "figures"), ("NOTEBOOKS", "notebooks")):
            patch.setattr(paths, where, root / name)
        patch.setattr(paths, "RESULTS", root / "data/results")
        patch.setattr(readme, "PAGE", root / "README.md")
        patch.setattr(manifest, "BENCHMARKS", root / "data/results/benchmarks.json")
        patch.setattr(dodo, "DATABASE", self.build / ".doit.json")
        self.wanted = [jobs.Job(notebooks.read(page), "kingdom", seed) for seed in (0, 1) for page in PAGES]
        for job in self.wanted:
            self.finish(job)
        found = storage.read_json(root / "data/results/kingdom/ledger.json")
        found["rows"] = found["rows"][:-1]
        storage.write_json(self.build / "kingdom/ledger.json", found)
        (root / "figures" / f"{PAGES[0]}.gone.png").write_text("of an earlier version")

    def finish(self, job):
        slot = Slot(paths.run_folder(job.profile, job.seed), job.notebook.name)
        for path in (
            slot.executed,
            slot.result,
            *(slot.folder / "figures" / f"{slot.name}.a.{x}" for x in ("png", "csv")),
        ):
            storage.write_text(path, f"{path.name} {job.seed} " + "x" * 3000)

    def state(self):
        """All that is published, hashed, and what was left half-made beside it."""
        own = [path for path in self.root.rglob("*") if path.is_file() and "build" not in path.parts]
        shown = [path for path in own if not path.name.startswith(".")]
        return {path.relative_to(self.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in shown}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    assert profiles.load("kingdom").published
    return Repository(tmp_path / "repository", monkeypatch)


def restored(root, saved):
    """The published part of a repository as it was saved."""
    for name in ("figures", "notebooks", "data"):
        shutil.rmtree(root / name)
        shutil.copytree(saved / name, root / name)
    for path in root.glob("*.*"):
        if path.is_file():
            path.unlink()
    shutil.copy(saved / "README.md", root)


@pytest.mark.parametrize("kind", [FULL, pytest.param(KILL, marks=pytest.mark.slow)])
def test_at_every_write_of_publishing_each_file_is_the_old_or_the_new(repository, tmp_path, capsys, kind):
    def publish():
        publishing.publish(repository.wanted)

    saved, old = tmp_path / "saved", repository.state()
    shutil.copytree(repository.root, saved, ignore=shutil.ignore_patterns("build"))
    publish()
    new = repository.state()
    assert {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)} == {
        *(f"data/results/kingdom/seed-{seed}/{page}.json" for seed in (0, 1) for page in PAGES),
        *(f"figures/{page}.a.{x}" for page in PAGES for x in ("png", "csv")),
        *(f"notebooks/{page}.ipynb" for page in PAGES),
        f"figures/{PAGES[0]}.gone.png", "data/results/kingdom/ledger.json", "README.md",
    }  # fmt: skip
    for number in itertools.count(1):
        restored(repository.root, saved)
        if kind == KILL:
            met = positions.killed(number, repository.root, publish)
        else:
            with positions.at(kind, number, repository.root):
                met = failed(publish, errno.ENOSPC)
            assert not leftovers(repository.root)
        if not met:
            break
        for name, found in repository.state().items():
            assert found in (old.get(name), new.get(name)), (number, name)
        if number % 5 == 0 or number < 5:  # again takes as long as the first time
            dodo.sweep()  # as every run begins
            publish()
            assert repository.state() == new, number
            assert not leftovers(repository.root)
    assert number > 40
