"""The worked example of the README, run by its own commands: shipped models for somebody else's checkpoints."""

import re
import shlex

import pandas as pd
import pytest

from lib import paths
from tests import checkouts

PAGES = ("07_residual_space", "16_your_model")
MAKES = re.compile(r"^\.venv/bin/python -m lib\.kingdom\.example (?P<folder>\S+)$", re.MULTILINE)
RUNS = re.compile(r"^DATA_DIR=(?P<data>\S+) \./run_all\.sh (?P<options>--profile example --only \S+)$", re.MULTILINE)


def outputs(tree):
    seed = tree / "build/example/seed-0"
    kept = [path for part in ("notebooks", "results", "figures", "stamps") for path in (seed / part).rglob("*.*")]
    return {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readmes_example_runs_and_a_second_run_has_nothing_to_do(tmp_path):
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    made, told = MAKES.search(readme), RUNS.search(readme)
    *options, pages = shlex.split(told["options"])
    mine = ",".join(str(int(page[:2])) for page in PAGES)
    assert set(mine.split(",")) <= set(pages.split(","))
    tree = checkouts.make(tmp_path / "checkout", PAGES)
    (tree / "data/organisms").symlink_to(paths.ORGANISMS)

    assert made["folder"] in checkouts.run(tree, "lib.kingdom.example", made["folder"])
    first = checkouts.run(tree, "lib.pipeline", *options, mine, DATA_DIR=told["data"])
    assert ", 0 failed" in first
    left = outputs(tree)
    assert {path.stem for path in left if path.suffix == ".ipynb"} == set(PAGES)

    shares = pd.read_csv(tree / "build/example/seed-0/figures/16_your_model.judges.csv")
    opening = shares[shares["judge"] == "opening words"].set_index(["model", "cell"])["share"]
    assert opening["base"].max() == 0  # what page 01 says of these models: base refuses nothing,
    assert opening["chat", "harmful/plain"] > 0.9  # chat plain harm and not much else,
    assert opening["chat", "benign/plain"] < 0.1
    assert opening["tuned", "harmful/jailbreaks"] > opening["chat", "harmful/jailbreaks"] + 0.3  # tuned jailbreaks, too

    assert "0 done, 2 notebooks up to date, 0 failed" in checkouts.run(
        tree, "lib.pipeline", *options, mine, DATA_DIR=told["data"]
    )
    assert outputs(tree) == left
