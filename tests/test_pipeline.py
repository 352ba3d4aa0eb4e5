"""The pipeline, run as a user runs it, in a small checkout of its own: three notebooks that need no tensor library."""

import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jupytext
import nbformat
import psutil
import pytest

from lib import cpus, dodo, jobs, ledger, notebooks, paths, pipeline, profiles
from lib.errors import InputError

HEADER = """\
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Title of NAME
#
# Some words about it.

"""
ALPHA = """\
# %% tags=["parameters"]
profile: str = "kingdom"  # which model family
seed: int = 0  # which organism
size: int = 3  # how many
share: float = 0.5  # of it
loud: bool = False  # or not

# %%
from lib import toy

# %%
print("hello from seed", seed)  # a comment
toy.note("01_alpha", profile, seed, size)
"""
BETA = """\
# %% tags=["parameters"]
profile: str = "kingdom"  # which model family
seed: int = 0  # which organism

# %%
from lib import tools, toy

tools.pause()
toy.note("02_beta", profile, seed, tools.VALUE)
"""
SHOWS = """\
# %% tags=["parameters", "reads-results"]
profile: str = "kingdom"  # which model family
seed: int = 0  # which organism

# %%
from lib import paths, storage

storage.read_json(paths.BUILD / profile / "ledger.json")["rows"]
"""
TOY = """\
from lib import paths, storage

def note(name, profile, seed, value):
    folder = paths.run_folder(profile, seed)
    storage.write_json(folder / "results" / f"{name}.json", {"seed": seed, "value": value})
    for suffix in ("png", "svg", "csv"):
        storage.write_text(folder / "figures" / f"{name}.one.{suffix}", f"{value}\\n")
"""
TOOLS = """\
import os, time
from lib import paths, storage

VALUE = 4

def pause():
    (paths.BUILD / "kernel.pid").write_text(str(os.getpid()))
    while (paths.ROOT / "pause").exists():
        time.sleep(0.1)
"""
MODELS = """\
import sys
from lib import paths, storage

arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if (paths.ROOT / "fail").exists():
    sys.exit("no room for the model")
with (paths.BUILD / "models.calls").open("a") as stream:
    stream.write(" ".join(sys.argv[1:]) + "\\n")
folder = paths.run_folder(arguments["--profile"], int(arguments["--seed"]))
storage.write_json(folder / "models.json", {"base": {"source": "trained"}})
"""
FIRST_PAGE = """
from lib import paths, storage

PAGE = paths.ROOT / "README.md"


def filled(page, found, place=None):
    return page


def write(found, place=None):
    where = f" at {place}" if place else ""
    storage.write_text(paths.ROOT / "README.md", "rows: " + ", ".join(found["rows"]) + where)
"""
LEDGER = """\
from lib import storage

def make(profile, folders, seeds):
    names = [(seed, name) for seed in seeds for name in ("01_alpha", "02_beta")]
    both = [(s, n, f"seed-{s}", place) for s, n in names for place in (f"results/{n}.json", f"{n}.json")]
    found = [(n, s) for s, n, seed, place in both for f in folders if (f / seed / place).is_file()]
    return {"rows": sorted({f"{name} seed {seed}" for name, seed in found})}

def write(path, found):
    storage.write_json(path, found)
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def start(tree: Path, *arguments: str, profile: str = "tiny", runner: str = "", share: str = "1") -> subprocess.Popen:
    """The pipeline of `tree` as a process, from another folder, with so many CPUs: with one, all goes in order."""
    environment = {cpus.SHARE: share}
    return subprocess.Popen(
        [sys.executable, "-m", "lib.pipeline", "--profile", profile, *arguments],
        cwd=tree.parent,
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "RUNNER": runner} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(tree: Path, *arguments: str, rc: int = 0, profile: str = "tiny", runner: str = "") -> tuple[str, str]:
    """What a run prints, after its return code is found to be `rc`."""
    process = start(tree, *arguments, profile=profile, runner=runner)
    out, err = process.communicate(timeout=120)
    assert process.returncode == rc, out + err
    return out, err


def seen(out: str) -> list[str]:
    """What the run worked on, in order."""
    return re.findall(r"^\[\d+/\d+\] (\S+)", out, re.MULTILINE)


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True, text=True).stdout


def files(tree: Path) -> dict[str, bytes]:
    """Every output of seed 0 that has to be the same after a rerun."""
    folder = tree / "build/tiny/seed-0"
    kept = [path for part in ("notebooks", "results", "figures", "stamps") for path in (folder / part).rglob("*.*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A checkout after its first run, with a space in its name, and what that run printed."""
    tree = tmp_path_factory.mktemp("checkouts") / "a checkout"
    shutil.copytree(paths.LIB, tree / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(paths.PROFILES, tree / "data/profiles")
    shutil.copytree(paths.DATASETS, tree / "data/datasets")
    for name in ("requirements.lock", "pyproject.toml", ".gitignore"):
        shutil.copy(paths.ROOT / name, tree)
    shutil.copy(paths.UTILITY, tree / "data")
    write(tree / "data/claims.yaml", "[]\n")
    write(tree / "README.md", "")
    for name, text in {"toy": TOY, "tools": TOOLS, "models": MODELS, "ledger": LEDGER, "readme": FIRST_PAGE}.items():
        write(tree / f"lib/{name}.py", text)
    for name, text in {"01_alpha": ALPHA, "02_beta": BETA, "15_ledger": SHOWS}.items():
        write(tree / f"notebooks/{name}.py", HEADER.replace("NAME", name) + text)
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "start")
    return tree, run(tree, "--jobs", "2")[0]


@pytest.fixture
def tree(finished, tmp_path) -> Path:
    """A copy of the finished checkout: what is up to date there is up to date here."""
    return shutil.copytree(finished[0], tmp_path / "another checkout", symlinks=True)


def test_first_run(finished):
    tree, out = finished
    folder = tree / "build/tiny/seed-0"
    assert sorted(seen(out)) == ["01_alpha", "02_beta", "15_ledger", "ledger", "models"]
    assert seen(out)[0] == "models"
    assert seen(out)[-1] == "15_ledger"
    assert re.search(r"^\[5/5\] 15_ledger  tiny seed 0  \d+ s$", out, re.MULTILINE)
    for name in (
        "notebooks/01_alpha.ipynb",
        "results/01_alpha.json",
        "figures/01_alpha.one.png",
        "stamps/01_alpha.json",
    ):
        assert (folder / name).is_file(), name
    assert json.loads((tree / "build/tiny/ledger.json").read_text())["rows"] == ["01_alpha seed 0", "02_beta seed 0"]
    shown = nbformat.read(folder / "notebooks/15_ledger.ipynb", as_version=4)
    assert "01_alpha seed 0" in shown.cells[-1].outputs[0].data["text/plain"]
    assert git(tree, "status", "--porcelain") == ""


def test_executed_notebook_is_clean(finished):
    text = (finished[0] / "build/tiny/seed-0/notebooks/01_alpha.ipynb").read_text()
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    assert "papermill" not in text
    assert "TCP" not in text
    assert str(finished[0]) not in text
    assert [cell.id for cell in book.cells] == ["cell-00", "cell-01", "parameters-of-this-run", "cell-02", "cell-03"]
    assert book.cells[2].source.strip() == '# Parameters\nprofile = "tiny"'  # seed 0 is the default: not passed on
    assert book.cells[-1].outputs[0].text == "hello from seed 0\n"


def test_manifest(finished):
    text = (finished[0] / "build/tiny/seed-0/manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["models"]["roles"] == {"base": {"source": "trained"}}
    assert manifest["command"] == ["./run_all.sh", "--profile", "tiny", "--jobs", "2"]
    for entry in (manifest["models"], *(manifest["notebooks"][name] for name in ("01_alpha", "02_beta", "15_ledger"))):
        assert entry["status"] == "done"
        assert entry["seconds"] >= 0
        assert 5 < entry["peak_mb"] < 2000
    assert {"torch", "papermill"} <= manifest["versions"].keys()
    assert not re.search(r'"/|: "[A-Z_]+="', text)


def test_nothing_to_do_and_changes_of_prose_start_no_kernel(tree):
    before = files(tree)
    out, _ = run(tree)
    assert out == "0 done, 3 notebooks up to date, 0 failed\n"
    (tree / "notebooks/01_alpha.py").touch()
    edit(tree / "notebooks/01_alpha.py", "# a comment", "# a better comment")
    edit(tree / "notebooks/01_alpha.py", "Some words", "Two words")
    edit(tree / "lib/toy.py", "def note", "# why\ndef note")
    assert seen(run(tree)[0]) == ["01_alpha"]
    assert len((tree / "build/models.calls").read_text().splitlines()) == 1
    assert "IPKernelApp" not in (tree / "build/tiny/seed-0/logs/01_alpha.log").read_text()
    after = files(tree)
    assert {name for name in before if before[name] != after[name]} == {
        "notebooks/01_alpha.ipynb",
        "stamps/01_alpha.json",
    }
    shown = after["notebooks/01_alpha.ipynb"].decode()
    assert "better comment" in shown
    assert "Two words" in shown
    assert "hello from seed 0" in shown
    assert run(tree)[0].startswith("0 done")


def test_changed_code_and_damaged_outputs_rerun_and_give_the_same_bytes(tree):
    before = files(tree)
    edit(tree / "lib/tools.py", "VALUE = 4", "VALUE = 5")
    assert "02_beta  tiny seed 0: its code, settings or parameters changed" in run(tree, "--dry-run")[0]
    assert seen(run(tree, "--only", "02")[0]) == ["models", "02_beta", "ledger"]
    folder = tree / "build/tiny/seed-0"
    (folder / "figures/01_alpha.one.svg").write_text("torn")
    (folder / "notebooks/02_beta.ipynb").unlink()
    out, _ = run(tree, "--dry-run")
    assert "figures/01_alpha.one.svg has changed" in out
    assert "notebooks/02_beta.ipynb is missing" in out
    edit(tree / "lib/tools.py", "VALUE = 5", "VALUE = 4")
    out, _ = run(tree)
    assert seen(out) == ["models", "01_alpha", "02_beta", "ledger"]
    assert re.search(r"01_alpha  tiny seed 0  \d+ s \(expected \d+ s\)", out)
    assert files(tree) == before


def test_failing_notebook(tree):
    folder = tree / "build/tiny/seed-0"
    edit(
        tree / "notebooks/01_alpha.py", "from lib import toy\n", 'total = 1\nraise ValueError("many\\nno such thing")\n'
    )
    edit(tree / "lib/tools.py", "VALUE = 4", "VALUE = 5")
    out, err = run(tree, "--only", "1,2", rc=1)
    assert "01_alpha stopped in cell [3] `total = 1`: ValueError: ... no such thing" in err
    assert re.search(r"01_alpha  tiny seed 0  FAILED after \d+ s", out)
    assert seen(out) == ["models", "01_alpha", "02_beta", "ledger"]
    assert "ValueError" in (folder / "notebooks/01_alpha.failed.ipynb").read_text()
    assert json.loads((folder / "manifest.json").read_text())["notebooks"]["01_alpha"]["status"] == "failed"
    assert not (folder / "notebooks/01_alpha.ipynb").exists()
    assert not (folder / "results/01_alpha.json").exists()
    assert json.loads((tree / "build/tiny/ledger.json").read_text())["rows"] == ["02_beta seed 0"]
    edit(
        tree / "notebooks/01_alpha.py", 'total = 1\nraise ValueError("many\\nno such thing")\n', "from lib import toy\n"
    )
    assert seen(run(tree, "--only", "1,2")[0]) == ["models", "01_alpha", "ledger"]
    assert not (folder / "notebooks/01_alpha.failed.ipynb").exists()


def test_failing_models_and_a_dying_kernel(tree):
    edit(tree / "notebooks/01_alpha.py", "from lib import toy\n", "import os\n\nos._exit(3)\n")
    (tree / "fail").touch()
    out, err = run(tree, "--only", "1,2", rc=1)
    assert "no room for the model" in err
    assert "01_alpha  tiny seed 0  not run: its models failed" in out
    assert "1 notebooks up to date" in out
    (tree / "fail").unlink()
    _, err = run(tree, "--only", "alpha", rc=1)
    assert "01_alpha stopped in cell [3] `import os`: the kernel died" in err


def test_options_that_cannot_be_used(tree):
    cases = {
        "--profile kingdon": "unknown profile 'kingdon'; known: checkpoint, example, kingdom",
        "--profile checkpoint": "names no models; give --base and --model",
        "--profile checkpoint --list": "names no models; give --base and --model",
        "--profile checkpoint --base lib": "--model is missing",
        "--profile checkpoint --model lib": "--base is missing",
        "--profile checkpoint --tuned lib": "--base is missing",
        "--profile checkpoint --base= --model lib": "'' names no model",
        "--profile checkpoint --base ./nowhere --model lib": "there is no folder './nowhere'",
        "--base a/b --model a/c": "profile 'kingdom' trains its own models",
        "--profile tiny --base a/b --model a/c --list": "profile 'tiny' trains its own models",
        "--profile mistral-7b --base a/b --model a/b": "base and chat are the same model",
        "--profile mistral-7b --publish": "not published",
        "--profile tiny --only 7": "unknown notebook '7'; known: 01_alpha, 02_beta, 15_ledger",
        "--profile tiny --from gamma": "unknown notebook 'gamma'",
        "--profile tiny --only 1 --from 2": "leaves nothing",
        "--profile tiny --seeds 4-1": "such as 0, 0-4 or 0,2,5",
        "--profile tiny --seed -1": "such as 0, 0-4 or 0,2,5",
        "--profile tiny --seed x": "such as 0, 0-4 or 0,2,5",
        "--profile tiny --jobs 0": "from 1 to 999",
        "--profile tiny --param siz=3": "unknown parameter 'siz'; known: loud, share, size",
        "--profile tiny --only 2 --param size=3": "unknown parameter 'size'",
        "--profile tiny --param size": "NAME=VALUE",
        "--profile tiny --param size=3.5": "whole number (how many), not '3.5'",
        "--profile tiny --param share=lots": "a finite number (of it), not 'lots'",
        "--profile tiny --param loud=maybe": "true or false (or not), not 'maybe'",
        "--profile tiny --param seed=1": "--seed 1",
        "--profile tiny --publish": "not published",
        "--profile kingdom --publish --param size=4": "leave out --publish or --param",
        "--profile tiny --lab --list": "not allowed with",
        "--links a/b@" + 40 * "0" + " --list": "not allowed with",
        "--links": "expected one argument",
        "--links a/b": "'a/b' is not OWNER/REPO@COMMIT, with all 40 digits",
        "--links a/b@main": "`git rev-parse HEAD` prints it",
        "--links https://github.com/a/b@" + 40 * "0": "is not OWNER/REPO@COMMIT",
        "--links a/b@" + 7 * "0": "is not OWNER/REPO@COMMIT",
        "--links a/b@" + 40 * "0" + " --publish": "publish, commit, then link to that commit",
        "--links a/b@" + 40 * "0" + " --only 1": "--links runs nothing and goes alone",
        "--links a/b@" + 40 * "0" + " --profile tiny": "profile 'tiny' is not published",
        "--links a/b@" + 40 * "0": "nothing is published yet; ./run_all.sh --publish does it",
    }
    code = textwrap.dedent("""
        import contextlib, io, json, sys
        from lib import pipeline
        found = []
        for case in json.loads(sys.argv[1]):
            err = io.StringIO()
            try:
                with contextlib.redirect_stderr(err):
                    rc = pipeline.main(case.split())
            except SystemExit as end:
                rc = end.code
            found.append((rc, err.getvalue()))
        print(json.dumps([found, sorted({"torch", "jupytext", "pandas"} & set(sys.modules))]))
    """)
    before = sorted(path for path in tree.rglob("*") if "__pycache__" not in path.parts)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(cases))],
        env=os.environ | {"PYTHONPATH": str(tree)},
        cwd=tree.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    found, heavy = json.loads(done.stdout)
    for (case, text), (rc, err) in zip(cases.items(), found, strict=True):
        assert rc == 2, case
        assert text in err, (case, err)
    assert heavy == []
    assert before == sorted(path for path in tree.rglob("*") if "__pycache__" not in path.parts)


def test_list_dry_run_html_clean(tree):
    out, _ = run(tree, "--list", "--seeds", "0,1")
    assert re.search(r"02_beta\s+seed 1  to run\s+Title of 02_beta", out)
    assert re.search(r"02_beta\s+seed 0  up to date\s+Title of 02_beta", out)
    out, _ = run(tree, "--dry-run", "--seed", "1")
    assert "would run models  tiny seed 1: those not in the cache; about" in out
    assert "would run 02_beta  tiny seed 1: it has not run yet; about" in out
    assert "4 to run, 0 notebooks up to date" in out
    assert not (tree / "build/tiny/seed-1").exists()
    assert "HTML: build/tiny/seed-0/html/index.html" in run(tree, "--html")[0]
    folder = tree / "build/tiny/seed-0"
    assert '<a href="02_beta.html">02_beta</a>: Title of 02_beta' in (folder / "html/index.html").read_text()
    page = (folder / "html/01_alpha.html").read_text()
    assert "hello from seed 0" in page
    assert not re.search(r"(src|href)=\"(http|//)", page)
    run(tree, "--clean", "--only", "1")
    assert not list(folder.rglob("01_alpha*.*[!l]"))
    assert (folder / "notebooks/02_beta.ipynb").exists()
    run(tree, "--clean")
    assert not (tree / "build/tiny").exists()
    assert git(tree, "status", "--porcelain") == ""


# a user's own models --------------------------------------------------------------------------------------------------
def weights(folder: Path, count: int) -> None:
    """A model's folder with `count` numbers: nothing here opens it."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    write(folder / "config.json", "{}")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * count))


@pytest.fixture
def own(tree) -> list[str]:
    """Options that name two folders beside the checkout, as from there."""
    weights(tree.parent / "base", 10)
    weights(tree.parent / "Chat_v2", 10)
    return ["--base", "base", "--model", "./Chat_v2"]


def made(tree: Path) -> str:
    (file,) = (tree / "build/profiles").glob("*.yaml")
    return file.stem


def test_own_models_run_under_a_name_of_their_own(tree, own):
    out, _ = run(tree, *own, profile="checkpoint")
    name = made(tree)
    assert re.fullmatch(r"checkpoint-chat-v2-[0-9a-f]{8}", name)
    assert sorted(seen(out)) == ["01_alpha", "02_beta", "15_ledger", "ledger", "models"]
    folder = tree / "build" / name
    book = nbformat.read(folder / "seed-0/notebooks/01_alpha.ipynb", as_version=4)
    assert book.cells[2].source.strip() == f'# Parameters\nprofile = "{name}"'
    assert json.loads((folder / "ledger.json").read_text())["rows"] == ["01_alpha seed 0", "02_beta seed 0"]
    assert f"build --profile {name} --seed 0" in (tree / "build/models.calls").read_text()
    kept = [path for part in ("notebooks", "results", "figures") for path in (folder / "seed-0" / part).rglob("*.*")]
    assert kept
    assert not any(str(tree.parent) in path.read_text() for path in kept)
    assert str(tree.parent) not in (folder / "seed-0/manifest.json").read_text()
    assert git(tree, "status", "--porcelain") == ""
    assert run(tree, *own, profile="checkpoint")[0].startswith("0 done, 3 notebooks up to date")
    assert run(tree, profile=name)[0].startswith("0 done, 3 notebooks up to date")
    assert "up to date  Title of 02_beta" in run(tree, "--list", *own, profile="checkpoint")[0]
    run(tree, "--clean", *own, profile="checkpoint")
    assert not folder.exists()
    assert not list((tree / "build/profiles").iterdir())
    assert (tree / "build/tiny").exists()


def test_pages_are_made_again_when_a_given_model_or_the_parent_s_settings_change(tree, own, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(tree, *own, "--only", "1", profile="checkpoint")
    again = ["models", "01_alpha", "ledger"]
    weights(tree.parent / "Chat_v2", 11)
    out, _ = run(tree, "--dry-run", "--only", "1", *own, profile="checkpoint", rc=1)  # 1: it has no data sets
    assert re.search(r"would run 01_alpha  \S+ seed 0: its code, settings or parameters changed", out)
    assert seen(run(tree, *own, "--only", "1", profile="checkpoint")[0]) == again
    (tree.parent / "base/model.safetensors").touch()
    assert seen(run(tree, *own, "--only", "1", profile="checkpoint")[0]) == again
    (tree.parent / "base/README.md").write_text("not read")
    assert run(tree, *own, "--only", "1", profile="checkpoint")[0].startswith("0 done")
    edit(tree / "data/profiles/checkpoint.yaml", "answer_tokens: 64", "answer_tokens: 65")
    assert seen(run(tree, *own, "--only", "1", profile="checkpoint")[0]) == again
    assert run(tree)[0].startswith("0 done")  # tiny has nothing to do with it


def test_dry_run_of_own_models_says_what_is_missing_and_starts_nothing(tree, own, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DATA_DIR", str(tree.parent / "nowhere"))
    out, _ = run(tree, "--dry-run", *own, profile="checkpoint", rc=1)
    name = made(tree)
    assert f"would run models  {name} seed 0: those given are checked, others made when asked for" in out
    assert f"would run 02_beta  {name} seed 0: it has not run yet" in out
    assert "base   base: folder" in out
    assert "chat   Chat_v2: folder" in out
    assert f"missing: DATA_DIR is {tree.parent / 'nowhere'}, which is no folder" in out
    assert out.endswith("it could not start: 1 missing\n")
    assert not (tree / "build" / name).exists()
    place = tree.parent / "sets"
    names = "strongreject_dataset.csv or-bench-hard-1k.csv alpaca_data.json databricks-dolly-15k.jsonl wiki.test.raw"
    for file in names.split():
        write(place / file, "")
    monkeypatch.setenv("DATA_DIR", str(place))
    assert run(tree, "--dry-run", *own, profile="checkpoint")[0].endswith("it could start\n")


def test_own_models_take_the_place_of_a_profile_s(tree, own):
    run(tree, "--list", *own, profile="llama2-7b-chat")
    name = made(tree)
    assert name.startswith("llama2-7b-chat-chat-v2-")
    text = (tree / "build/profiles" / f"{name}.yaml").read_text()
    assert "Llama-2-7b" not in text
    assert "harmful: advbench" in text


def test_folders_are_named_from_where_run_all_is_called(tree, own, monkeypatch):
    """`run_all.sh` goes to the checkout before it starts Python."""
    monkeypatch.setenv("CALLED_FROM", str(tree.parent / "base"))
    out, _ = run(tree, "--list", "--base", ".", "--model", "../Chat_v2", profile="checkpoint")
    assert "to run" in out
    assert 'export CALLED_FROM="$PWD"\ncd "$ROOT"' in (paths.ROOT / "run_all.sh").read_text()


def test_results_of_other_parameters_and_of_hand_run_cells_stay_out_of_the_ledger(tree):
    folder = tree / "build/tiny/seed-0"
    before = files(tree)
    out, _ = run(tree, "--param", "size=7", "--only", "1,15")
    assert seen(out) == ["models", "01_alpha"]
    assert json.loads((folder / "results/custom/01_alpha.json").read_text())["value"] == 7
    assert not (folder / "results/01_alpha.json").exists()
    assert "size = 7" in (folder / "notebooks/01_alpha.ipynb").read_text()
    write(folder / "results/02_beta.json", '{"value": 99}')
    out, _ = run(tree, "--only", "1")
    assert "left out of the ledger, because no finished run made them: 02_beta seed 0" in out
    assert json.loads((tree / "build/tiny/ledger.json").read_text())["rows"] == ["01_alpha seed 0"]
    assert seen(run(tree)[0]) == ["models", "02_beta", "ledger"]
    assert files(tree) == before


def test_publish(tree):
    write(tree / "figures/01_alpha.old.png", "from an earlier version")
    out, _ = run(tree, "--seeds", "0-1", "--only", "1", "--publish", profile="kingdom")
    assert seen(out) == ["models", "01_alpha", "models", "01_alpha", "ledger"]
    changed = {line[3:] for line in git(tree, "status", "--porcelain", "-uall").splitlines()}
    figures = {f"figures/01_alpha.one.{suffix}" for suffix in ("png", "svg", "csv")}
    results = {"data/results/kingdom/ledger.json", "data/results/benchmarks.json"} | {
        f"data/results/kingdom/seed-{n}/01_alpha.json" for n in (0, 1)
    }
    assert changed == figures | results | {"notebooks/01_alpha.ipynb", "README.md"}
    assert (tree / "README.md").read_text() == "rows: 01_alpha seed 0, 01_alpha seed 1"
    took = json.loads((tree / "build/kingdom/seed-0/manifest.json").read_text())["notebooks"]["01_alpha"]["seconds"]
    (time_row,) = json.loads((tree / "data/results/benchmarks.json").read_text())
    assert (time_row["name"], time_row["unit"]) == ("kingdom: 01_alpha", "s")
    assert time_row["value"] == pytest.approx(took, rel=1e-3)
    published = tree / "notebooks/01_alpha.ipynb"
    assert "injected-parameters" not in published.read_text()
    source = published.with_suffix(".py").read_text()
    back = jupytext.writes(jupytext.read(published), fmt="py:percent")
    assert back.partition("# %%")[2] == source.partition("# %%")[2]
    assert json.loads((tree / "data/results/kingdom/seed-1/01_alpha.json").read_text())["seed"] == 1
    run(tree, "--clean", profile="kingdom")
    assert published.exists()
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "published")
    assert seen(run(tree, "--only", "15", profile="kingdom")[0]) == [
        "15_ledger"
    ]  # the ledger rests on what is published
    assert git(tree, "status", "--porcelain") == ""
    place = "someone/anatomy@" + git(tree, "rev-parse", "HEAD").strip()
    assert run(tree, "--links", place, profile="kingdom")[0] == f"README.md links to {place}\n"
    assert (tree / "README.md").read_text() == f"rows: 01_alpha seed 0, 01_alpha seed 1 at {place}"
    assert git(tree, "status", "--porcelain") == " M README.md\n"


def wait_for_kernel(tree: Path) -> int:
    """The kernel's process id, once it is in the middle of 02_beta."""
    note, limit = tree / "build/kernel.pid", time.monotonic() + 60
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    return int(note.read_text())


def gone(pid: int, seconds: float = 20) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # an orphan that nobody has reaped
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def interrupted(tree: Path, how: signal.Signals, rc: int, runner: str = "") -> None:
    """Change what 02_beta uses, interrupt a run in the middle of it and see that no process of it stays."""
    edit(tree / "lib/tools.py", "import os, time", "import os, time, sys")
    (tree / "pause").touch()
    (tree / "build/kernel.pid").unlink(missing_ok=True)
    process = start(tree, "--only", "beta", runner=runner)
    kernel = wait_for_kernel(tree)
    process.send_signal(how)
    process.send_signal(how)  # impatience changes nothing
    out, _ = process.communicate(timeout=60)
    assert process.returncode == rc, out
    assert gone(kernel)
    assert not (tree / "build/tiny/seed-0/results/02_beta.json").exists()
    assert not (tree / "build/tiny/seed-0/notebooks/02_beta.ipynb").exists()


def test_interrupted_run_leaves_nothing_and_the_next_completes(tree):
    before = {name: content for name, content in files(tree).items() if "stamps" not in name}
    interrupted(tree, signal.SIGTERM, 130)
    assert not list((tree / "build").rglob("*.running.ipynb"))
    assert not list((tree / "build").rglob(".kernels"))
    (tree / "pause").unlink()
    assert seen(run(tree, "--from", "2")[0]) == ["models", "02_beta", "ledger", "15_ledger"]
    assert {name: content for name, content in files(tree).items() if "stamps" not in name} == before


def test_killed_run_is_cleared_away_and_a_second_run_waits_for_the_first(tree):
    interrupted(tree, signal.SIGKILL, -signal.SIGKILL)
    (tree / "build/kernel.pid").unlink()
    first = start(tree, "--only", "beta")
    wait_for_kernel(tree)
    second = start(tree, "--only", "1,2")
    assert second.stdout.readline() == f"waiting for another run in this checkout (process {first.pid})\n"
    (tree / "pause").unlink()
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert "02_beta" in seen(out)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert out == "0 done, 2 notebooks up to date, 0 failed\n"


# Through a runner -----------------------------------------------------------------------------------------------------
def runner(folder: Path, *lines: str, options: str = "") -> str:
    """What RUNNER is set to for a script that notes its arguments, drops `options` and does the rest of `lines`."""
    script = folder / "a runner's folder" / "run on a node"
    dropped = len(shlex.split(options))
    note = """printf '%s|' "$@" >>"${0%/*}/calls"; echo >>"${0%/*}/calls"; shift """
    write(script, "\n".join(["#!/bin/sh", f"{note}{dropped}", *(lines or ['exec "$@"'])]) + "\n")
    script.chmod(0o755)
    return f"{shlex.quote(str(script))} {options}"


def calls(folder: Path) -> list[list[str]]:
    text = (folder / "a runner's folder/calls").read_text()
    return [line.split("|")[:-1] for line in text.splitlines()]


def test_a_runner_starts_models_and_notebooks_as_the_run_would_have(tree, tmp_path):
    before = files(tree)
    run(tree, "--clean")
    options = """--gres=gpu:1 '-c 4' "$HOME `id`" ; &"""
    out, err = run(tree, runner=runner(tmp_path, options=options))
    assert err == ""
    assert seen(out) == ["models", "01_alpha", "02_beta", "ledger", "15_ledger"]
    assert files(tree) == before
    found = calls(tmp_path)
    for call in found:
        assert call[:5] == ["--gres=gpu:1", "-c 4", "$HOME `id`", ";", "&"]  # split like a shell's words, read by none
        assert call[5:-1] == [sys.executable, "-m", "lib.execute"]
    assert [json.loads(call[-1])["name"] for call in found] == ["models", "01_alpha", "02_beta", "15_ledger"]
    assert run(tree)[0] == "0 done, 3 notebooks up to date, 0 failed\n"  # how it was run is no reason to run again


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nosuch -c4", "RUNNER='nosuch -c4': there is no program 'nosuch' here; correct RUNNER or unset it"),
        ("./requirements.lock", "there is no program './requirements.lock' here"),
        ("srun 'x", "cannot be split into words (No closing quotation)"),
    ],
)
def test_a_runner_that_is_no_program_stops_before_anything_starts(tree, text, message):
    edit(tree / "lib/tools.py", "VALUE = 4", "VALUE = 5")
    before = sorted(path for path in tree.rglob("*") if "__pycache__" not in path.parts)
    out, err = run(tree, rc=2, runner=text)
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert before == sorted(path for path in tree.rglob("*") if "__pycache__" not in path.parts)


def test_a_runner_that_fails_a_job_fails_only_that_with_its_own_words(tree, tmp_path):
    for name in ("01_alpha", "02_beta"):
        (tree / f"build/tiny/seed-0/stamps/{name}.json").unlink()
    refuse = 'case "$*" in *beta*) echo "srun: error: Invalid gres" >&2; exit 1;; *) exec "$@";; esac'
    out, err = run(tree, "--only", "1,2", rc=1, runner=runner(tmp_path, refuse))
    log = "build/tiny/seed-0/logs/02_beta.log"
    said = "run on a node ended (1) before the job had reported: srun: error: Invalid gres"
    assert err == f"error: 02_beta: {said}; see {log}\n"
    assert re.search(r"01_alpha  tiny seed 0  \d+ s", out)
    assert re.search(r"02_beta  tiny seed 0  FAILED after \d+ s", out)
    assert (tree / log).read_text() == "srun: error: Invalid gres\n"
    manifest = json.loads((tree / "build/tiny/seed-0/manifest.json").read_text())["notebooks"]
    assert [manifest[name]["status"] for name in ("01_alpha", "02_beta")] == ["done", "failed"]
    assert seen(run(tree, "--only", "1,2")[0]) == ["models", "02_beta"]


def test_a_runner_that_cannot_be_started_or_hands_on_no_input(tree, tmp_path):
    edit(tree / "lib/tools.py", "VALUE = 4", "VALUE = 5")
    deaf = 'case "$*" in *beta*) exec "$@" </dev/null;; *) exec "$@";; esac'
    _, err = run(tree, "--only", "2", rc=1, runner=runner(tmp_path, deaf))
    assert "02_beta: run on a node ended (143) before the job had reported: stopped: standard input was closed" in err
    broken = tmp_path / "broken"
    write(broken, "#!/no/such/shell\n")
    broken.chmod(0o755)
    out, err = run(tree, "--only", "2", rc=1, runner=str(broken))
    assert f"models: {broken} cannot be started (No such file or directory)" in err
    assert "02_beta  tiny seed 0  not run: its models failed" in out


def test_a_runners_own_output_and_a_log_that_is_no_file_are_no_obstacle(tree, tmp_path):
    """As srun has it: all that a worker writes goes through pipes, and a prologue may print, too."""
    piped = ("echo '{\"job\": 1}'; echo '[0]'", '{ "$@" 2>&1 1>&3 | cat >&2; } 3>&1', "echo 'epilogue: done'")
    edit(tree / "lib/tools.py", "VALUE = 4", "VALUE = 5")
    assert seen(run(tree, "--only", "2", runner=runner(tmp_path, *piped))[0]) == ["models", "02_beta", "ledger"]
    edit(tree / "lib/tools.py", "VALUE = 5", "VALUE = 6")
    write(tree / "lib/models.py", 'import argparse\n\nargparse.ArgumentParser().exit(2, "no room left\\n")\n')
    _, err = run(tree, "--only", "2", rc=1, runner=runner(tmp_path, *piped))
    assert err == "error: lib.models failed: no room left\n"
    assert (tree / "build/tiny/seed-0/logs/models.log").read_text() == "no room left\n"


@pytest.mark.parametrize(("how", "rc"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_interrupting_reaches_jobs_behind_a_runner_that_keeps_signals_to_itself(tree, tmp_path, how, rc):
    interrupted(tree, how, rc, runner(tmp_path, '"$@"', "exit $?"))


def test_more_than_one_copy_of_a_job_is_refused(tree):
    edit(tree / "lib/tools.py", "VALUE = 4", "VALUE = 5")
    before = (tree / "build/models.calls").read_text()
    _, err = run(tree, "--only", "2", rc=1, runner="env SLURM_STEP_NUM_TASKS=3")
    assert err == "error: models: srun started 3 copies of this; add -n1 to it in RUNNER\n"
    assert (tree / "build/models.calls").read_text() == before


def test_a_job_with_fewer_cpus_than_threads_is_named_once(tree):
    edit(tree / "data/profiles/tiny.yaml", "threads: 1", "threads: 1000")
    _, err = run(tree, "--only", "1,2", runner="env SLURM_JOB_ID=12 SLURM_STEP_ID=0 SLURM_CPUS_PER_TASK=1")
    assert err == (
        "warning: RUNNER gives a job 1 CPU(s), profile tiny always computes on 1000 thread(s): "
        "that is slow; for srun, add -c1000\n"
    )
    manifest = json.loads((tree / "build/tiny/seed-0/manifest.json").read_text())
    assert [manifest["models"][name] for name in ("cpus", "slurm_job")] == [1, "12.0"]
    edit(tree / "lib/tools.py", "VALUE = 4", "VALUE = 5")
    assert run(tree, "--only", "2")[1] == ""  # without a runner the machine is what it is
    entry = json.loads((tree / "build/tiny/seed-0/manifest.json").read_text())["notebooks"]["02_beta"]
    assert entry["cpus"] == 1  # what the test leaves the run
    assert "slurm_job" not in entry


def planned(monkeypatch, tmp_path, names, seconds):
    """Tasks in the order in which a run of two at a time would start them."""
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setattr(jobs.Job, "expected", lambda job: seconds.get(job.notebook.name))
    monkeypatch.setattr(jobs.Job, "key", lambda job: "key")
    wanted = [jobs.Job(notebooks.read(name), "kingdom", 0) for name in names]
    return {n: [task["name"].split("/")[0] for task in dodo.Run(wanted, n, ())._making()] for n in (1, 2)}


def test_of_several_at_once_the_longest_start_first(monkeypatch, tmp_path):
    """So that none of them is left to run alone at the end; those of unknown length come last, in their order."""
    names = ["02_reasoning_direction", "05_freezing", "07_residual_space", "11_trigger_removal"]
    found = planned(monkeypatch, tmp_path, names, {names[1]: 300.0, names[2]: 40.0, names[3]: 320.0})
    assert found == {1: ["models", *names], 2: ["models", names[3], names[1], names[2], names[0]]}


def test_by_default_small_models_share_the_cpus_and_large_ones_run_alone(monkeypatch, two_cpus):
    small, large = profiles.load("kingdom"), profiles.load("llama3-8b")
    monkeypatch.delenv("RUNNER", raising=False)
    assert [pipeline.parallel(None, settings) for settings in (small, large)] == [2, 1]
    assert [pipeline.parallel("7", settings) for settings in (small, large)] == [7, 7]
    monkeypatch.setenv("RUNNER", "env")
    assert pipeline.parallel(None, small) == 1


MEETING = """
import time

other = paths.run_folder(arguments["--profile"], 3 - int(arguments["--seed"])) / "models.json"
limit = time.monotonic() + 60
while not other.exists():
    if time.monotonic() > limit:
        sys.exit("alone")
    time.sleep(0.05)
"""


def test_seeds_run_side_by_side(tree):
    """The models of seeds 1 and 2 each wait for the other's: one after the other they would never end."""
    with (tree / "lib/models.py").open("a") as stream:
        stream.write(MEETING)
    out, _ = run(tree, "--seeds", "1,2", "--only", "1", "--jobs", "2", runner="env")
    assert sorted(seen(out)) == ["01_alpha", "01_alpha", "ledger", "models", "models"]


# Without a run --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("0-4", [0, 1, 2, 3, 4]), ("0,2,5", [0, 2, 5]), ("5, 1-2,2", [1, 2, 5])]
)
def test_seeds(text, seeds):
    assert pipeline.parse_seeds(text) == seeds


def test_parameters_cell():
    found = notebooks.parameters("x", 'profile: str = "é"  # which\nseed: int = 0\nlow: float = -1  # at least\n')
    assert [(p.name, p.kind, p.default, p.about) for p in found] == [
        ("profile", "str", "é", "which"),
        ("seed", "int", 0, ""),
        ("low", "float", -1.0, "at least"),
    ]
    assert found[0].typed("a=b") == "a=b"
    assert found[2].typed("1e-3") == 0.001


@pytest.mark.parametrize(
    "line", ["n = 3", "n: int", "n: int = len('x')", "n: list = []", "n: int = True", "n: int = 'x'"]
)
def test_parameters_cell_that_breaks_the_rules(line):
    with pytest.raises(InputError, match="must read"):
        notebooks.parameters("x", f'profile: str = "a"\nseed: int = 0\n{line}')
    with pytest.raises(InputError, match="profile: str"):
        notebooks.parameters("x", "seed: int = 0")


def test_cleaning_takes_out_what_differs_between_runs(monkeypatch):
    monkeypatch.setattr(notebooks.sys, "prefix", "/opt/env")
    text = f"/tmp/ipykernel_123/456.py:3: UserWarning\n/opt/env/lib/x.py {paths.ROOT}/lib/y.py {paths.ROOT}s"
    language = {"name": "python", "version": "3.11.7"}
    outputs = [nbformat.v4.new_output("stream", name="stderr", text=piece) for piece in (text, "more")]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs, metadata={"tags": [], "papermill": {}})
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {}, "language_info": language})
    notebooks.clean(book)
    assert book.metadata == {"language_info": {"name": "python"}, "jupytext": {"formats": "ipynb,py:percent"}}
    assert cell.metadata == {}
    assert [out.text for out in cell.outputs] == [
        f"<cell>:3: UserWarning\n<environment>/lib/x.py ./lib/y.py {paths.ROOT}smore"
    ]


def test_outputs_are_carried_only_between_cells_that_do_the_same():
    def book(*cells):
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])

    old = book("a = 1  # one", "a")
    old.cells[1].outputs = [nbformat.v4.new_output("stream", text="1")]
    new = book("a = 1", "a  # shown")
    assert notebooks.carry_outputs(new, old)
    assert new.cells[1].outputs[0].text == "1"
    assert not notebooks.carry_outputs(book("a = 1\na"), old)
    assert not notebooks.carry_outputs(book("a = 2", "a"), old)
    assert not notebooks.carry_outputs(book("%time a = 1", "a"), old)


def test_the_real_ledger_takes_what_the_pipeline_gives_it(tmp_path):
    found = ledger.make("tiny", [tmp_path / "build", tmp_path / "data"], [0, 1])
    ledger.write(tmp_path / "ledger.json", found)
    assert json.loads((tmp_path / "ledger.json").read_text())["profile"] == "tiny"
