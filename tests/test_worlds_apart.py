"""A run of one kind of profile imports nothing of the other kind's language, so that its code is no part of what the
results depend on (`provenance.OTHER_WORLD`). Seen in processes of their own, in which nothing is imported yet."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
import yaml

from lib import notebooks, paths, provenance
from tests import public_files

RUN = """
import json, sys
from pathlib import Path
from lib import paths, provenance
profile, folder, page, imports = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.stdin.read()
for what in ("profiles", "cache", "build"):
    setattr(paths, what.upper(), folder / what)
provenance.code_hash = lambda *_: "0" * 64  # looks for profiles in the checkout only
exec(imports)
from lib import models, profiles, prompt_sets
asked = prompt_sets.behaviour(profile, 0), prompt_sets.residual(profile, 0), prompt_sets.skill_items(profile, 0)
models.load(profile, "base", 0)
if page:
    from tests import pages
    assert pages.run(page, profile)[1] is None
packages = sorted({name.split(".")[1] for name in sys.modules if name.startswith("lib.")})
print(json.dumps([profiles.load(profile).kind, packages]))
"""


def imports(page):
    """Every import statement of a notebook, wherever it stands."""
    cells = [cell.source for cell in notebooks.cells(notebooks.source_path(page).read_text()) if cell.kind == "code"]
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the profiles of the repository and one of random checkpoints on public data sets."""
    root = tmp_path_factory.mktemp("apart")
    shutil.copytree(paths.PROFILES, root / "profiles")
    found = public_files.settings(*public_files.checkpoints(root / "models"))
    (root / "profiles" / f"{found['name']}.yaml").write_text(yaml.safe_dump(found), encoding="utf-8")
    public_files.data_dir(root / "data")
    return root


@pytest.mark.parametrize(("profile", "kind"), [("tiny", "trained"), ("checkpoint-tiny", "checkpoint")])
@pytest.mark.parametrize("page", ["", pytest.param("07_residual_space", marks=pytest.mark.slow)], ids=["start", "page"])
def test_nothing_of_the_other_language_is_imported(folder, monkeypatch, profile, kind, page):
    """With the imports of all pages, what they are asked and a model; and to the end of a page."""
    monkeypatch.setenv("DATA_DIR", str(folder / "data"))
    other = provenance.OTHER_WORLD[kind]
    (own,) = set(provenance.OTHER_WORLD.values()) - {other}
    read = {page: imports(page) for page in provenance.notebooks()}
    about_one = [page for page, text in read.items() if "lib.kingdom" in text]
    assert about_one == ["01_organism"]  # the kingdom's own page, which stops on other profiles
    asked = [text for page, text in read.items() if own == "kingdom" or page not in about_one]
    run = subprocess.run(
        [sys.executable, "-c", RUN, profile, str(folder), page], input="\n".join(asked), cwd=paths.ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found, packages = json.loads(run.stdout.splitlines()[-1])
    assert found == kind
    assert own in packages  # its own language was spoken
    assert other not in packages
