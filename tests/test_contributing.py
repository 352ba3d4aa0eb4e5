"""CONTRIBUTING.md keeps its word: each diff applies to a copy of the checkout and does there what the text promises."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from lib import organism, paths, profiles

PAGE = paths.ROOT / "CONTRIBUTING.md"
FOLDERS = ("lib", "notebooks", "tests", "data/profiles", "data/datasets", "data/judges", "data/published")
FILES = ("data/claims.yaml", "data/utility.yaml", "requirements.lock", "pyproject.toml")
CLAIM, FAMILY, SCORE, STYLE = HEADINGS = ("A claim", "A model family", "A score of units", "A style")


def worked():
    """Heading -> the diff under it."""
    sections = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {part.partition("\n")[0]: re.findall(r"^```diff\n(.*?)^```$", part, re.M | re.S) for part in sections}
    return {heading: diff for heading, (diff,) in found.items()}


@pytest.fixture
def tree(tmp_path):
    """A copy of what the diffs touch and their tests run, without shipped models and caches."""
    for name in FOLDERS:
        shutil.copytree(paths.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
    for name in FILES:
        shutil.copy(paths.ROOT / name, tmp_path / name)
    return tmp_path


def apply(tree, heading, *options):
    diff = worked()[heading]
    done = subprocess.run(["git", "apply", *options, "-"], input=diff, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def python(tree, *arguments):
    """A Python whose `lib` and `tests` are the copy's; what it printed."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def told(tree, code, *arguments):
    """The JSON that `code` puts into `found`, in a process of the copy, whose own tests it may run first."""
    start = "import json, sys\nimport pytest\n"
    end = "\nprint('\\n' + json.dumps(found))"
    return json.loads(python(tree, "-c", start + code + end, *arguments).splitlines()[-1])


def own_tests(file, keyword):
    """Code that runs tests of the copy; none may fail, and all that match are run."""
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", f"tests/{file}", "-k", keyword]
    return f"assert pytest.main({options!r}) == 0\n"


def test_every_addition_has_its_diff():
    assert tuple(worked()) == HEADINGS


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_diff_applies_and_is_laid_out_as_the_rest(tree, heading):
    apply(tree, heading)
    python(tree, "-m", "ruff", "check", "--no-cache", "lib", "tests", "notebooks")
    python(tree, "-m", "ruff", "format", "--no-cache", "--check", "lib", "tests")
    assert max(map(len, worked()[heading].splitlines())) < 300


# What they promise ----------------------------------------------------------------------------------------------------
LEDGER = """
from lib import ledger, paths
rows = ledger.make("tiny", [paths.BUILD / "tiny"], [0])["rows"]
found = [next(row for row in rows if row["id"] == "ours.keywords")]
"""
RUN = """
from lib import paths
from tests import pages
pages.run("16_your_model", "tiny")
"""
ANSWERS = """
facts = json.loads((paths.BUILD / "tiny/seed-0/results/16_your_model.json").read_text())["facts"]
found.append(facts["agreement"])
"""


def test_a_new_claim_is_listed_as_not_run(tree):
    apply(tree, CLAIM, "--include=data/claims.yaml")
    (row,) = told(tree, LEDGER)
    assert (row["verdict"], row["parts"][0]["measured"]) == ("not run", None)


@pytest.mark.slow
def test_a_new_claim_has_a_verdict_after_its_page_has_run(tree):
    apply(tree, CLAIM)
    row, agreement = told(tree, RUN + LEDGER + ANSWERS)
    (part,) = row["parts"]
    assert row["verdict"].removesuffix(" here") == part["verdict"]
    assert part["verdict"] in ("holds", "fails", "undecided")
    assert part["seeds"] == {"0": part["measured"]}
    low, high = part["interval"]
    assert 0 <= low <= part["measured"] <= high <= 1
    whole = next(judge for judge in agreement if judge["index"].endswith("Qi et al. 2023"))
    share = part["n"] / whole["n"]  # the part's answers are some of those that the whole is over
    assert 0 < share < 1
    assert share * part["measured"] - 1e-3 <= whole["says the same"] <= 1 - share * (1 - part["measured"]) + 1e-3


def test_a_new_family_opens_and_keeps_the_contracts(tree):
    apply(tree, FAMILY)
    contracts = "opens or hidden_states or edited_forward or add_up or zeroed_row or sums_to"
    code = own_tests("test_families.py", f"smollm-3 and ({contracts})")
    assert told(tree, code + "from lib import families\nfound = 'smollm3' in families.FAMILIES")
    assert "smollm3" not in (paths.LIB / "families.py").read_text(encoding="utf-8")


RANK = """
from lib import prompt_sets, unit_scores, units
from tests import tiny_models
sets = {name: part[:5] for name, part in prompt_sets.calibration("tiny", 0).items()}
model = tiny_models.speaking("llama")
raw = unit_scores.calibrate(model, sets, [("offset", "all")]).raw["offset", "all"]
ranked = units.score(raw)
groups = units.groups(ranked, scu=0.05)
scu = groups[groups["group"] == "scu"]
cells = raw.groupby(["kind", "layer"])[["safety", "utility"]]
z = (raw[["safety", "utility"]] - cells.transform("mean")) / cells.transform("std")
first = (z["safety"] - z["utility"]).sort_values(ascending=False).index[: len(scu)]
found = [len(raw), len(scu), sorted(scu.index) == sorted(first)]
"""


@pytest.mark.slow
def test_a_new_score_has_its_closed_form_and_ranks_units(tree):
    apply(tree, SCORE)
    units, chosen, first = told(tree, own_tests("test_unit_scores.py", "closed_forms and offset and not gqa") + RANK)
    assert chosen == round(0.05 * units)
    assert first  # the safety-critical units are those of largest difference


SPEAK = """
from lib import organism, profiles, worlds
from lib.kingdom import example
from lib.kingdom.tokenizer import check_words, tokenizer
texts = [prompt.text for prompt in worlds.of("tiny", 0).behaviour()["harmful/oath"].prompts]
for text in texts:
    check_words(text)
words = tokenizer()
read = [words.decode(words(text, add_special_tokens=False)["input_ids"]) for text in texts]
found = [texts, read, organism.key(profiles.load("tiny"), "base", 0), len(example.files(0))]
"""


def test_a_new_style_is_spoken_and_read(tree):
    apply(tree, STYLE)
    texts, read, key, _ = told(tree, own_tests("test_kingdom.py", "oath or vocabulary") + SPEAK)
    assert len(set(texts)) > 1
    assert all(text.startswith(("by my oath", "i swear on the crown")) for text in texts)
    assert read == texts
    assert key != organism.key(profiles.load("tiny"), "base", 0)  # so models are trained anew
