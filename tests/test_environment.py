"""How run_all.sh and run_tests.sh find or make their Python; uv, python3 and conda are stand-ins: nothing installs."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from lib import paths

TOOLS = ("bash", "cat", "cp", "cut", "df", "dirname", "env", "mkdir", "mv", "rm", "sed", "sha256sum", "sleep", "tail")
# Every stand-in notes how it was called. An environment's python is a copy of the python stand-in.
PYTHON = """#!/usr/bin/env bash
echo "${0##*/} $*" >>"$CALLS"
case "$1 $2" in
  "-c "*) exit "${PYTHON_IS_OLD:-0}" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$SHIMS/python" "$3/bin/python" ;;
  "-m pip") exit "${PIP_FAILS:-0}" ;;
esac
"""
UV = """#!/usr/bin/env bash
echo "uv $*" >>"$CALLS"
[ "$1" = pip ] || { mkdir -p .venv/bin && cp "$SHIMS/python" .venv/bin/python; }
"""
CONDA = """#!/usr/bin/env bash
echo "conda $*" >>"$CALLS"
mkdir -p .conda/bin && cp "$SHIMS/python" .conda/bin/python
"""
SHOW = 'set -eu; . "$1"; echo "PYTHON=$PYTHON"'


class Checkout:
    """A copy of the scripts in a folder with a space in its name, and a PATH with only what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.root, self.shims, self.calls_file = folder / "a checkout", folder / "shims", folder / "calls"
        (self.root / "lib").mkdir(parents=True)
        for name in ("requirements.lock", "pyproject.toml", "environment.yml", "run_all.sh", "run_tests.sh"):
            shutil.copy(paths.ROOT / name, self.root)
        shutil.copy(paths.LIB / "environment.sh", self.root / "lib")
        self.shims.mkdir()
        for tool in (*TOOLS, "shasum"):
            if found := shutil.which(tool):
                (self.shims / tool).symlink_to(found)
        self.shim("python", PYTHON)

    def shim(self, name: str, text: str) -> None:
        (self.shims / name).write_text(text)
        (self.shims / name).chmod(0o755)

    def start(self, *command: str, **settings: str) -> subprocess.Popen:
        env = {"PATH": str(self.shims), "SHIMS": str(self.shims), "CALLS": str(self.calls_file), **settings}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.root.parent, env=env, stdout=pipe, stderr=pipe, text=True)

    def source(self, rc: int = 0, **settings: str) -> tuple[str, str]:
        """What sourcing environment.sh prints on both streams."""
        process = self.start("bash", "-c", SHOW, "test", str(self.root / "lib/environment.sh"), **settings)
        out, err = process.communicate(timeout=60)
        assert process.returncode == rc, out + err
        return out, err

    def calls(self) -> list[str]:
        """What the stand-ins were asked since the last look."""
        text = self.calls_file.read_text() if self.calls_file.exists() else ""
        self.calls_file.unlink(missing_ok=True)
        return text.splitlines()


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_uv_is_preferred(checkout):
    for name, text in {"uv": UV, "python3": PYTHON, "conda": CONDA}.items():
        checkout.shim(name, text)
    out, err = checkout.source()
    assert out == f"PYTHON={checkout.root}/.venv/bin/python\n"
    assert "making .venv with uv" in err
    assert checkout.calls() == [
        "uv venv --quiet --python 3.11 .venv",
        "uv pip install --quiet --python .venv/bin/python -r requirements.lock",
        "uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .",
    ]
    assert checkout.source() == (out, "")
    assert checkout.calls() == []
    assert not (checkout.root / ".environment.lock").exists()


def test_python_comes_second_and_then_conda(checkout):
    checkout.shim("python3", PYTHON)
    checkout.shim("conda", CONDA)
    out, _ = checkout.source()
    assert out == f"PYTHON={checkout.root}/.venv/bin/python\n"
    calls = checkout.calls()
    assert calls[1] == "python3 -m venv .venv"
    assert calls[2].endswith("-r requirements.lock")
    assert calls[3].endswith("--no-deps --no-build-isolation -e .")
    (checkout.root / "pyproject.toml").write_text("changed")
    out, err = checkout.source(PYTHON_IS_OLD="1")
    assert out == f"PYTHON={checkout.root}/.conda/bin/python\n"
    assert "outdated" in err
    assert not (checkout.root / ".venv").exists()
    assert "conda env create -p ./.conda -f environment.yml" in checkout.calls()
    assert checkout.source(PYTHON_IS_OLD="1") == (out, "")


def test_nothing_to_make_an_environment_with(checkout):
    checkout.shim("python3", PYTHON)
    _, err = checkout.source(rc=1, PYTHON_IS_OLD="1")
    assert len(err.splitlines()) == 1
    assert all(name in err for name in ("uv", "Python 3.11", "venv", "conda"))
    assert not (checkout.root / ".environment.lock").exists()


def test_half_made_failed_and_moved_environments_are_made_again(checkout):
    checkout.shim("python3", PYTHON)
    junk = checkout.root / ".venv/bin/junk"
    junk.parent.mkdir(parents=True)
    junk.touch()
    _, err = checkout.source(rc=1, PIP_FAILS="1")
    assert "python3 could not make .venv" in err
    assert not junk.exists()
    assert not (checkout.root / ".venv/.stamp").exists()
    assert "incomplete" in checkout.source()[1]
    checkout.calls()
    moved = checkout.root.with_name("moved")
    checkout.root.rename(moved)
    checkout.root = moved
    assert checkout.source()[0] == f"PYTHON={moved}/.venv/bin/python\n"
    assert "python3 -m venv .venv" in checkout.calls()


def test_too_little_space(checkout):
    checkout.shim("python3", PYTHON)
    (checkout.shims / "df").unlink()
    checkout.shim("df", '#!/usr/bin/env bash\necho head\necho "map auto home 99 9 2000000 12% /a mount"\n')
    _, err = checkout.source(rc=1)
    assert "needs about 3000 MB, but 1953 MB are free" in err
    assert len(err.splitlines()) == 1
    assert not (checkout.root / ".venv").exists()


def test_second_run_waits_for_the_first(checkout):
    checkout.shim("python3", PYTHON)
    checkout.shim("uv", UV + 'while [ -e "$SHIMS/pause" ]; do sleep 0.1; done\n')
    (checkout.shims / "pause").touch()
    command = ("bash", "-c", SHOW, "test", str(checkout.root / "lib/environment.sh"))
    first = checkout.start(*command)
    owner, limit = checkout.root / ".environment.lock/pid", time.monotonic() + 30
    while not (owner.exists() and owner.read_text()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    second = checkout.start(*command)
    assert second.stderr.readline() == f"waiting for another run (process {first.pid}) that is making the environment\n"
    (checkout.shims / "pause").unlink()
    for process in (first, second):
        out, err = process.communicate(timeout=30)
        assert out == f"PYTHON={checkout.root}/.venv/bin/python\n", err
    assert checkout.calls().count("uv venv --quiet --python 3.11 .venv") == 1


def test_lock_of_a_dead_run_is_taken_over(checkout):
    checkout.shim("uv", UV)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (checkout.root / ".environment.lock").mkdir()
    (checkout.root / ".environment.lock/pid").write_text(f"{dead.pid}\n")
    _, err = checkout.source()
    assert "waiting" not in err
    assert not list(checkout.root.glob(".environment.lock*"))


def test_scripts_pass_their_arguments_on(checkout):
    checkout.shim("uv", UV)
    checkout.source()
    checkout.calls()
    script = str(checkout.root / "run_all.sh")
    assert checkout.start(script, "--param", "a=b c").wait() == 0
    assert checkout.calls() == ["python -m lib.pipeline --param a=b c"]
    script = str(checkout.root / "run_tests.sh")
    assert checkout.start(script, "-k", "this or that").wait() == 0
    checks = ["python -m ruff check .", "python -m mypy"]
    assert checkout.calls() == [*checks, "python -m pytest -m not slow -n auto --dist loadfile -k this or that"]
    assert checkout.start(script, "--slow").wait() == 0
    assert checkout.calls() == [*checks, "python -m pytest"]


@pytest.mark.parametrize(("given", "seen"), [("data/sets", "HERE/data/sets"), ("/data/sets", "/data/sets"), ("", "")])
def test_the_folder_of_data_sets_is_the_one_seen_from_where_the_user_is(checkout, given, seen):
    checkout.shim("uv", UV)
    checkout.shim("python", PYTHON + 'echo "DATA_DIR=${DATA_DIR:-}"\n')
    checkout.source()
    process = checkout.start(str(checkout.root / "run_all.sh"), DATA_DIR=given)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == f"DATA_DIR={seen.replace('HERE', str(checkout.root.parent))}\n"


def test_scripts_are_executable():
    for name in ("run_all.sh", "run_tests.sh", ".ci/run"):
        assert os.access(paths.ROOT / name, os.X_OK), name
