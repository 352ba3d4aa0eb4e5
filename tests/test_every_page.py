"""Every notebook on a checkpoint profile: public data sets in the publishers' files, random models of each family.

Nothing is measured here: random models refuse nothing. A page must come to its end, or stop with a reason, and leave
no sensitive text.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lib import claims, jobs, notebooks, paths, profile_files, provenance
from tests import leaks, pages, public_files
from tests.public_files import CANARY
from tests.tiny_models import CHECKPOINTS

STOPS = {  # pages that need what no checkpoint profile has, and a word of the reason
    "01_organism": "default models",
    "13_size": "has no other sizes",
}
PAGES = [name for name in provenance.notebooks() if not notebooks.read(name).reads_results]
ALWAYS, ALSO = "llama-3", "gemma-3"  # families on which every page is run; the second one among the slow tests


def widen(folder):
    """A window of a few tokens sees the template's end alone, so the first block would be alike on all prompts."""
    file = Path(folder) / "config.json"
    settings = json.loads(file.read_text())
    if settings.get("sliding_window"):
        file.write_text(json.dumps(settings | {"sliding_window": 64}))


class Place:
    """A family's checkpoints, a DATA_DIR and a profile that names them, in folders of their own."""

    def __init__(self, root, family, patch):
        self.root, self.name = root, f"tiny-{family}"
        data = public_files.data_dir(root / "data")
        goals = public_files.goals(64)
        public_files.hd_file(data / "gcg_prompts.csv", *(f"{goal} and so on" for goal in goals), goals=goals)
        base, chat = public_files.checkpoints(root / "models", family)
        widen(base), widen(chat)
        found = public_files.settings(base, chat, name=self.name)
        (root / "profiles").mkdir()
        for path in paths.PROFILES.glob("*.yaml"):
            shutil.copy(path, root / "profiles")
        (root / "profiles" / f"{self.name}.yaml").write_text(yaml.safe_dump(found), encoding="utf-8")
        for folder in ("profiles", "cache", "build"):
            patch.setattr(paths, folder.upper(), root / folder)
        patch.setattr(provenance, "code_hash", lambda *_: "0" * 64)  # looks for profiles in the checkout only
        patch.setenv("DATA_DIR", str(data))

    def left(self):
        """Files of the run that hold the canary."""
        return [name for part in ("build", "cache") for name in leaks.traces(self.root / part, CANARY)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made, patch = {}, pytest.MonkeyPatch()

    def of(family):
        if family not in made:
            made[family] = Place(tmp_path_factory.mktemp(family), family, patch)
        return made[family]

    yield of
    patch.undo()


def check(place, page):
    shown, reason = pages.run(page, place.name)
    assert not leaks.holds(shown, CANARY)
    assert place.left() == []
    if page in STOPS:
        assert STOPS[page] in reason
        return
    assert reason is None, reason
    found = json.loads(paths.result_file(paths.run_folder(place.name, 0) / "results", page).read_text())
    file = claims.ResultFile.model_validate(found)
    mine = {part.id for one in claims.registry().values() if one.notebook == page[3:] for part in one.parts}
    assert set(file.parts) == mine
    assert not re.search(r"\bnan\b", shown, re.IGNORECASE)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_on_one_family(place, page):
    check(place(ALWAYS), page)


@pytest.mark.parametrize("family", [name for name in CHECKPOINTS if name != ALWAYS])
def test_residual_spaces_of_every_family(tmp_path, monkeypatch, family):
    check(Place(tmp_path, family, monkeypatch), "07_residual_space")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_on_another_family(tmp_path, monkeypatch, page):
    check(Place(tmp_path, ALSO, monkeypatch), page)


def test_profiles_of_the_test_are_found_where_it_says(place):
    assert profile_files.file(place(ALWAYS).name).parent == place(ALWAYS).root / "profiles"


def test_a_page_is_out_of_date_when_its_data_change(place, monkeypatch):
    found, page = place(ALWAYS), notebooks.read("07_residual_space")
    monkeypatch.setattr(jobs, "code_hash", lambda *_: "0" * 64)
    own, default = jobs.Job(page, found.name, 0), jobs.Job(page, "tiny", 0)
    before = own.key(), default.key()
    file = found.root / "data" / "alpaca_data.json"
    file.write_text(file.read_text() + "\n")
    after = own.key(), default.key()
    assert after[0] != before[0]
    assert after[1] == before[1]  # reads no public data
