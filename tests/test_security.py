"""What the project promises about safety, held against its own text: no pickle, no code from elsewhere, no shell, no
secret left behind, and no package that nobody asked for.

What hostile inputs can do is in `test_fuzz`, `test_parameters` and `test_hostile_checkpoints`, harmful text in
`test_canary`. One exception stands outside: what a server with remote models answers is unpickled by nnsight, so
`lib.remote` tells to name only servers one trusts.
"""

import ast
import contextlib
import importlib.metadata
import io
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from functools import cache

import pytest

from lib import paths, pipeline, workers
from tests import checkouts
from tests.test_environment import UV, Checkout

SOURCES = sorted(path for folder in (paths.LIB, paths.NOTEBOOKS, paths.ROOT / "tests") for path in folder.rglob("*.py"))
SCRIPTS = [paths.ROOT / name for name in ("run_all.sh", "run_tests.sh", "lib/environment.sh", ".ci/run")]
MODULES = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pty", "telnetlib",
    "code", "pdb",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execl", "os.execlp", "os.execv",
    "os.execvp", "os.spawnl", "torch.load", "torch.hub.load", "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "pd.eval", "np.load",
    "tempfile.mktemp", "runpy.run_path", "runpy.run_module", "importlib.import_module",
}  # fmt: skip
SWITCHES = {
    "trust_remote_code": False, "shell": False, "allow_pickle": False, "weights_only": True, "use_safetensors": True,
    "verify": True,
}  # fmt: skip
ALLOWED = {  # where one of these is what is meant, and why
    "lib/remote.py": {"from pickle": "the name of an error"},
    "lib/plain_data.py": {"yaml.load": "with a loader of its own, derived from the safe one"},
    "lib/execute.py": {"runpy.run_module": "a module of this project, named by the pipeline"},
    "lib/pipeline.py": {"os.execv": "JupyterLab, without a shell"},
    "lib/utility.py": {"importlib.import_module": "lm_eval"},
    "lib/public/data.py": {"importlib.import_module": "datasets, pyarrow"},
    "tests/pages.py": {"eval": "cells", "exec": "cells", "compile": "cells"},
    "tests/test_audit.py": {"exec": "cells", "compile": "cells"},
    "tests/test_edits.py": {"import pickle": "edits that travel to a server"},
    "tests/test_hostile_checkpoints.py": {"import pickle": "to make one"},
    "tests/test_public_data.py": {"import pickle": "prompts that go to another process"},
    "tests/test_public_world.py": {"import pickle": "prompts that go to another process"},
}


# text -----------------------------------------------------------------------------------------------------------------
@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def risks(tree):
    """Everything in a module's text that could run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {one.name}" for one in node.names if one.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in CALLS:
                yield name
            yield from (f"{one.arg}=" for one in node.keywords if one.arg in SWITCHES and not off(one.arg, one.value))
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            named = [
                (key.value, value) for key, value in pairs if isinstance(key, ast.Constant) and key.value in SWITCHES
            ]
            yield from (f"{key}=" for key, value in named if not off(key, value))


def off(name, value):
    return isinstance(value, ast.Constant) and value.value is SWITCHES[name]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(paths.ROOT).as_posix())
def test_nothing_that_is_read_is_run(path):
    name = path.relative_to(paths.ROOT).as_posix()
    found = set(risks(parsed(path)))
    if name == "tests/test_hostile_checkpoints.py":
        found -= {"trust_remote_code="}  # what a hostile checkpoint says
    assert found == set(ALLOWED.get(name, {}))  # exceptions that are no longer needed are taken off the list


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("import pickle", "import pickle"),
        ("from joblib import load", "from joblib"),
        ("torch.load(x)", "torch.load"),
        ("import torch\ntorch.load(x, weights_only=False)", "weights_only="),
        ("np.load(x, allow_pickle=True)", "allow_pickle="),
        ("subprocess.run(x, shell=True)", "shell="),
        ("subprocess.run(x, shell=maybe)", "shell="),
        ("f(**{'trust_remote_code': yes})", "trust_remote_code="),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code="),
        ("yaml.load(x, yaml.Loader)", "yaml.load"),
        ("eval(x)", "eval"),
    ],
)
def test_the_search_finds_what_it_looks_for(text, seen):
    assert seen in set(risks(ast.parse(text)))


def test_no_configuration_of_a_checkpoint_is_built_without_saying_no_to_its_code():
    """Every call of transformers that could run a checkpoint's code says that it must not."""
    for path in paths.LIB.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and re.fullmatch(r"Auto(Config|Tokenizer)\.from_\w+", ast.unparse(node.func)):
                assert "trust_remote_code" in {one.arg for one in node.keywords}, (path.name, node.lineno)


# what a secret looks like where it is issued, in any text of the repository
_ISSUED = re.compile(
    r"hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|BEGIN [A-Z ]*PRIVATE KEY"
)


def test_the_repository_holds_no_secret():
    kept = (
        "lib",
        "tests",
        "notebooks",
        "data",
        "figures",
        "README.md",
        "CONTRIBUTING.md",
        "pyproject.toml",
        "run_all.sh",
    )
    files = [path for name in kept for path in (paths.ROOT / name, *(paths.ROOT / name).rglob("*")) if path.is_file()]
    texts = [
        path for path in files if path.suffix in {".py", ".md", ".yaml", ".json", ".toml", ".sh", ".csv", ".ipynb"}
    ]
    assert len(texts) > 200
    assert not [path.name for path in texts if _ISSUED.search(path.read_text(encoding="utf-8"))]


# scripts --------------------------------------------------------------------------------------------------------------
ARGUMENTS = [
    "$(touch X)", "`touch X`", "; touch X", "&& touch X", "| touch X", "> X", "a b", "two\nlines", "", "*", "~", "-n",
    "-e", "'",
    '"', "\\", "${IFS}touch${IFS}X", "a=$(touch X)", "é", "--param", "x=$(touch X); touch X", "$'\\x24(touch X)'",
]  # fmt: skip
NOTES = """#!/usr/bin/env bash
case "$2" in
  lib.pipeline | pytest) printf '%s\\0' "$@" >"$CALLS.arguments"; printf '%s' "${DATA_DIR:-}" >"$CALLS.data" ;;
esac
"""


@pytest.fixture(params=["a checkout", "$(touch X); `touch X` 'x' & {a,b} * ü"])
def checkout(request, tmp_path):
    """A copy of the scripts whose Python notes what it is asked to do."""
    made = Checkout(tmp_path)
    made.root = made.root.rename(tmp_path / request.param)
    made.shim("uv", UV)
    made.shim("python", NOTES)
    return made


@pytest.mark.parametrize("script", ["run_all.sh", "run_tests.sh"])
def test_arguments_reach_python_as_they_are_and_no_shell(checkout, script):
    data = "$(touch X); touch X"
    process = checkout.start(
        str(checkout.root / script), *ARGUMENTS, DATA_DIR=data, RUNNER="$(touch X)", HOME="$(touch X)"
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    noted = checkout.calls_file.with_name("calls.arguments").read_bytes().decode().split("\0")[:-1]
    assert noted[-len(ARGUMENTS) :] == ARGUMENTS
    if script == "run_all.sh":
        assert noted == ["-m", "lib.pipeline", *ARGUMENTS]
        assert checkout.calls_file.with_name("calls.data").read_text() == f"{checkout.root.parent}/{data}"
    assert not list(checkout.root.parent.rglob("X"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_evaluate_nothing(script):
    code = [line.partition(" #")[0] for line in script.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in code if re.search(r"\beval\b|\bcurl\b|\bwget\b|\bsudo\b|chmod 777|\bbash -c\b", line)]
    assert any(re.match(r"set -euo pipefail$", line) for line in code) or script.name == "environment.sh"  # sourced


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed here")
    done = subprocess.run([program, "-x", *SCRIPTS], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_runner_s_words_are_words(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER", "env '$(touch X)=1' ; touch X `touch X` > X")
    assert workers.runner()[1:] == ["$(touch X)=1", ";", "touch", "X", "`touch", "X`", ">", "X"]
    assert not list(tmp_path.iterdir())


# secrets --------------------------------------------------------------------------------------------------------------
SECRET = "zyxw9canary8secret"
KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "NDIF_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY")


@pytest.mark.parametrize("profile", ["llama3-8b", "llama3.1-70b-remote", "smollm2-135m"])
def test_a_dry_run_shows_no_secret(profile, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    for name in KEYS:
        monkeypatch.setenv(name, SECRET)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert pipeline.main(["--profile", profile, "--only", "7", "--dry-run"]) in (0, 1)
    assert "would run" in said.getvalue()
    assert SECRET not in said.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_leaves_no_secret(tmp_path):
    """Not in notebooks, logs, manifests, results, figures or caches, also where a page fails."""
    tree = checkouts.make(tmp_path / "checkout", ("07_residual_space", "14_published_numbers", "16_your_model"))
    (tree / "notebooks/99_failing.py").write_text(
        '# %% [markdown]\n# # It fails\n\n# %% tags=["parameters", "no-models"]\nprofile: str = "kingdom"  # which\n'
        "seed: int = 0  # which\n\n# %%\nimport os\n\nfrom lib import models\n\nassert os.environ['HF_TOKEN']\n"
        "models.open_checkpoint('owner/model')\n"
    )
    environment = {**dict.fromkeys(KEYS, SECRET), "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    said = checkouts.run(tree, "lib.pipeline", "--profile", "tiny", "--only", "7,14,16", "--html", **environment)
    with pytest.raises(AssertionError, match="owner/model"):
        checkouts.run(tree, "lib.pipeline", "--profile", "tiny", "--only", "99", **environment)
    assert len([path for path in (tree / "build").rglob("*") if path.is_file()]) > 20
    assert (tree / "build/tiny/seed-0/notebooks/99_failing.failed.ipynb").is_file()
    assert SECRET not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    # whole, unlike words, which tables cut: its first letters also come about by chance in an image
    assert not [path.name for path in files if SECRET.encode() in path.read_bytes()]


# packages -------------------------------------------------------------------------------------------------------------
PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
RUN_ONLY = {"jupyterlab", "ipykernel"}  # started as programs
OPTIONAL = {"lm_eval"}  # the extra `real`, where it is installed


def named(requirement):
    """A package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


MAIN = {named(one) for one in PROJECT["dependencies"]}
DEV = {named(one) for one in PROJECT["optional-dependencies"]["dev"]}
LINES = re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^ ;\n]+)(.*)$", paths.LOCK.read_text())
LOCK = defaultdict(set)
for package, version, _ in LINES:
    LOCK[named(package)].add(version)


@cache
def installed():
    return {named(one.metadata["Name"]): one for one in importlib.metadata.distributions()}


@cache
def providers():
    """Module -> the packages that hold it."""
    return importlib.metadata.packages_distributions()


@cache
def imported(folder):
    """Top-level modules that a folder's files import, from elsewhere."""
    found = set()
    for path in (paths.ROOT / folder).rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                found |= {one.name.split(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return frozenset(found) - sys.stdlib_module_names - {"lib", "tests"} - OPTIONAL


@pytest.mark.parametrize(("folder", "declared"), [("lib", MAIN), ("notebooks", MAIN), ("tests", MAIN | DEV)])
def test_what_is_imported_is_declared(folder, declared):
    known = providers()
    for module in imported(folder):
        packages = {named(one) for one in known[module]}
        assert packages & declared, f"{folder} imports {module}, which pyproject.toml does not name"


def test_what_is_declared_is_used():
    known = providers()
    used = {named(one) for folder in ("lib", "notebooks") for module in imported(folder) for one in known[module]}
    assert used | RUN_ONLY >= MAIN


def test_the_environment_is_the_locked_one():
    for name, versions in LOCK.items():
        if name in installed():
            assert installed()[name].version.partition("+")[0] in versions, name
        else:  # of another system or another Python
            assert all(marker.strip().startswith(";") for package, _, marker in LINES if named(package) == name), name
    assert set(installed()) - set(LOCK) <= {named(PROJECT["name"]), "pip"}


def test_everything_locked_is_needed_by_something_declared():
    """Following what each package requires, with the extras asked for; markers of other systems count as met."""
    reached, waiting = (
        set(),
        [(one, frozenset()) for one in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]],
    )
    while waiting:
        requirement, extras = waiting.pop()
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        if wanted and wanted[1] not in extras:
            continue
        asked = re.match(r"[A-Za-z0-9._-]+\s*\[([^\]]*)\]", requirement)
        inner = frozenset(one.strip() for one in asked[1].split(",")) if asked else frozenset()
        name = named(requirement)
        if (name, inner) in reached:
            continue
        reached.add((name, inner))
        if name in installed():
            waiting += [(one, inner) for one in installed()[name].requires or ()]
    needed = {name for name, _ in reached}
    absent = set(LOCK) - set(installed())  # what these require cannot be asked here
    assert set(LOCK) >= MAIN | DEV
    assert set(LOCK) - needed <= absent, sorted(set(LOCK) - needed - absent)


FREE = re.compile(r"\b(MIT|BSD|Apache|MPL|Python Software Foundation|PSF|Zlib|0BSD|CC0|ISC|Unlicense)\b", re.IGNORECASE)


@pytest.mark.parametrize("name", sorted(MAIN))
def test_licences_of_what_is_declared_let_it_be_used(name):
    about = installed()[name].metadata
    said = [about.get("License-Expression"), *(about.get_all("Classifier") or []), (about.get("License") or "")[:400]]
    assert [one for one in said if one and FREE.search(one)], said
    assert not [one for one in said if one and re.search(r"\bA?GPL|Affero|non-?commercial", one, re.IGNORECASE)]
