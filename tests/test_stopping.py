"""A page that needs what its profile cannot give stops there: no error, and its claims are not testable."""

import json
import shutil
import subprocess
import sys

import nbformat
import pytest

from lib import claims, paths
from tests.test_pipeline import HEADER

NAME = "07_residual_space"
PAGE = """\
# %% tags=["parameters"]
profile: str = "kingdom"  # which model family
seed: int = 0  # which organism

# %%
from lib import claims
from lib.errors import NotHere

results = claims.Results(notebook="07_residual_space", profile=profile, seed=seed)
print("as far as it goes")

# %%
raise NotHere("there are no attack prompts; set DATA_DIR to a folder with them")

# %%
print("never")
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A checkout in which the page was run by the worker of the pipeline."""
    root = tmp_path_factory.mktemp("a checkout")
    shutil.copytree(paths.LIB, root / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(paths.PROFILES, root / "data" / "profiles")
    for path in (paths.CLAIMS, paths.LOCK):
        shutil.copy(path, root / path.relative_to(paths.ROOT))
    (root / "notebooks").mkdir()
    (root / "notebooks" / f"{NAME}.py").write_text(HEADER + PAGE)
    spec = {"kind": "notebook", "name": NAME, "notebook": NAME, "profile": "tiny", "seed": 1, "key": "k",
            "parameters": {"profile": "tiny", "seed": 1}, "custom": False, "reword": False}  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-m", "lib.execute", json.dumps(spec)], cwd=root, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with worker:  # its standard input stays open: it ends when that closes
        assert worker.stdout is not None
        report = json.loads(worker.stdout.read())
    assert worker.returncode == 0, report
    return root / "build" / "tiny" / "seed-1", report


def test_it_is_no_failure(stopped):
    folder, report = stopped
    assert report["message"] is None
    assert (folder / "stamps" / f"{NAME}.json").is_file()
    assert not (folder / "notebooks" / f"{NAME}.failed.ipynb").exists()


def test_the_page_shows_what_came_before_and_why_it_stops(stopped):
    folder, _ = stopped
    page = nbformat.read(folder / "notebooks" / f"{NAME}.ipynb", as_version=4)
    outputs = [output for cell in page.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} == {"stream"}
    assert [output.text for output in outputs] == [
        "as far as it goes\n",
        "This page stops here: there are no attack prompts; set DATA_DIR to a folder with them\n",
    ]
    assert not any("error" in str(cell.metadata) or "Exception" in cell.source for cell in page.cells)


def test_every_claim_of_the_page_is_not_testable_for_that_reason(stopped):
    folder, _ = stopped
    found = json.loads((folder / "results" / f"{NAME}.json").read_text())
    mine = [one for one in claims.registry().values() if one.notebook == NAME[3:]]
    assert set(found["parts"]) == {part.id for claim in mine for part in claim.parts}
    for part in found["parts"].values():
        assert part["value"] is None
        assert part["reason"].startswith("there are no attack prompts")
    file = claims.ResultFile.model_validate(found)
    rows = [claims.judge_claim(one, {1: file}, "tiny") for one in mine]
    assert {row["verdict"] for row in rows} == {"not testable here"}


def test_what_the_claims_of_the_page_require_is_unmet(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    path = claims.stopped("05_freezing", "tiny", 0, "there is no server")
    found = json.loads(path.read_text())["requires"]
    assert set(found) == {"ssah.7", "ssah.7.all", "ssah.9"}  # of the registry; ssah.8 requires nothing
    assert all(one == {"met": False, "reason": "there is no server"} for one in found.values())
