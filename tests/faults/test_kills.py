"""Runs killed fifty times, at random moments and in every phase, then finished once: byte for byte what a run gives
that nobody disturbed.

Killed are the pipeline alone, a worker, a kernel or one of its processes, or all at once. `test_pipeline` has one kill
of the pipeline, `test_writes` a kill at each single write of storing and publishing.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from lib import paths, storage
from tests import checkouts
from tests.faults import toys

PAGES = ("06_alignment_budget", "07_residual_space")  # one that keeps training runs in the cache, one that does not
KILLS = {"training": 14, "caching a model": 7, "caching a run": 5, "papermill": 14, "publishing": 10}
VICTIMS = {
    "training": ("pipeline", "worker", "all"), "caching a model": ("pipeline", "worker", "all"),
    "caching a run": ("pipeline", "worker", "kernel", "all"), "papermill": ("pipeline", "worker", "kernel", "all"),
    "publishing": ("pipeline",),
}  # fmt: skip
WORDS = {"pipeline": "lib.pipeline", "worker": "lib.execute", "kernel": "ipykernel_launcher"}
LONGEST = {"training": 8.0, "papermill": 12.0}  # seconds within which a moment is drawn
MODELS, RUNS = ".cache/models/tiny", ".cache/budget/tiny"


def checkout(tree):
    """A small checkout that publishes the tiny profile."""
    checkouts.make(tree, PAGES)
    profile = tree / "data/profiles/tiny.yaml"
    profile.write_text(profile.read_text().replace("published: false", "published: true"))
    shutil.copy(paths.ROOT / "README.md", tree)
    return tree


def begun(tree):
    return subprocess.Popen(
        [sys.executable, "-m", "lib.pipeline", "--profile", "tiny", "--publish"], cwd=tree, text=True,
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "RUNNER": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(tree):
    out, err = (process := begun(tree)).communicate(timeout=1200)
    assert process.returncode == 0, out + err
    return out


def made(tree):
    """All that a run leaves and that has to be the same after another: of seals what they say of files, of the first
    page what does not come from a clock."""
    parts = [f"build/tiny/seed-0/{name}" for name in ("results", "figures", "notebooks", "stamps")]
    parts += [".cache", "figures", "notebooks", "data/results/tiny"]
    found = {}
    for path in (path for part in parts for path in (tree / part).rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name == storage.SEAL:
            content = json.dumps(json.loads(content)["files"]).encode()
        if path.suffix != ".lock":
            found[path.relative_to(tree).as_posix()] = content
    page = (tree / "README.md").read_text()
    found["README.md"] = re.sub(r"\| [\d.]* \|$", "| |", page, flags=re.MULTILINE).encode()
    return found


def half_made(tree):
    """What only a run in progress may have."""
    found = [path for path in tree.rglob("*") if re.search(r"\.tmp$|\.(running|failed)\.ipynb$|^\.kernels$", path.name)]
    return [path.relative_to(tree).as_posix() for path in found]


def whole(tree, right):
    """After a kill everything in its place is what it should be; what was under way is not in its place."""
    for name, content in made(tree).items():
        hidden = any(part.startswith(".") and part != ".cache" for part in name.split("/"))
        vouched = name.startswith("build") and not (tree / f"build/tiny/seed-0/stamps/{stem(name)}.json").is_file()
        if not hidden and not vouched and name != "README.md" and ".running." not in name and ".failed." not in name:
            assert content == right[name], name


def stem(name):
    return name.rpartition("/")[2].partition(".")[0]


def undo(tree, phase, generator):
    """Take away finished work, so that a run has something to do in that phase."""
    stamps = tree / "build/tiny/seed-0/stamps"
    if phase in ("training", "caching a model"):
        folders = sorted(folder for folder in (tree / MODELS).glob("[!.]*") if folder.is_dir())
        for folder in generator.sample(folders, len(folders) // 2):
            shutil.rmtree(folder)
    if phase == "caching a run":
        for folder in (tree / RUNS).glob("[!.]*"):
            shutil.rmtree(folder)
        (stamps / f"{PAGES[0]}.json").unlink(missing_ok=True)
    elif phase != "publishing":
        (stamps / f"{PAGES[1]}.json").unlink(missing_ok=True)


def writing(tree, phase):
    """Whether something of that phase is being written."""
    if phase == "publishing":
        return any(any((tree / part).rglob(".*.tmp")) for part in ("figures", "notebooks", "data/results"))
    return any((tree / (RUNS if phase == "caching a run" else MODELS)).glob(".*.tmp"))


def under_way(process):
    """The processes of a run by kind (a kernel's own count as kernels), and whether models are being made."""
    found, training = {kind: [] for kind in WORDS}, False
    with contextlib.suppress(psutil.Error):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                line = " ".join(one.cmdline())
                own = "kernel" if "multiprocessing" in line else None
                kind = next((kind for kind, word in WORDS.items() if word in line), own)
                if kind:
                    found[kind].append(one)
                    training |= '"module": "lib.models"' in line
    return found, training


def goes_on(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def moment(tree, phase, process, generator):
    """Wait for the moment to kill; False when the phase was over before."""

    def there():
        found, training = under_way(process)
        return training if phase == "training" else bool(found["kernel"])

    while goes_on(process):
        if phase not in LONGEST and writing(tree, phase):
            time.sleep(generator.uniform(0, 0.02))
            return True
        if phase in LONGEST and there():
            time.sleep(generator.uniform(0, LONGEST[phase]))
            return goes_on(process) and there()
        time.sleep(0.005)
    return False


def kill(process, who):
    """Whether a process of that kind was there to be killed."""
    there, _ = under_way(process)
    chosen = there[who] if who != "all" else [one for some in there.values() for one in some]
    for one in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    return bool(chosen)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_fifty_kills_and_a_clean_finish_give_what_an_undisturbed_run_gives(tmp_path):
    generator, counts, tries = random.Random(0), Counter(), 0
    undisturbed, tree = checkout(tmp_path / "undisturbed"), checkout(tmp_path / "killed")
    finished(undisturbed)
    right = made(undisturbed)
    wanted = [phase for phase, count in KILLS.items() for _ in range(count)]
    generator.shuffle(wanted)
    wanted.sort(key=lambda phase: phase == "publishing")  # which wants everything else to be done
    wanted.insert(0, wanted.pop(wanted.index("training")))  # the first falls on a tree in which nothing is made yet
    while wanted:
        tries += 1
        assert tries < 4 * sum(KILLS.values()), (counts, wanted)
        phase = wanted[0]
        who = generator.choice(VICTIMS[phase])
        if phase == "publishing":  # only then is it all that is left to do
            finished(tree)
        undo(tree, phase, generator)
        run = begun(tree)
        process = psutil.Process(run.pid)
        hit = moment(tree, phase, process, generator) and kill(process, who)
        out, err = run.communicate(timeout=600)
        assert toys.none_left(tree) == [], (phase, who)
        whole(tree, right)
        assert "Traceback" not in err, err
        if hit:
            counts[phase, who] += 1
            wanted.pop(0)
            print(phase, who, run.returncode, sum(counts.values()), tries, flush=True)
            expected = (-signal.SIGKILL,) if who in ("pipeline", "all") else (1, 0)  # 0: it had done its work
            assert run.returncode in expected, (phase, who, out, err)
    print(f"\nkills: {dict(sorted(counts.items()))}; runs: {tries}")
    finished(tree)
    assert half_made(tree) == []
    left = made(tree)
    assert left.keys() == right.keys()
    assert {name for name in right if left[name] != right[name]} == set()
    assert "0 done, 2 notebooks up to date, 0 failed" in finished(tree)
