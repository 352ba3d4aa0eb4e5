"""No sensitive prompt, target or answer is left behind by a run: not in notebooks, figures, results, logs or caches.

The pipeline is run as a user runs it, in a small checkout of its own, on data sets in which every sensitive text holds
a word that is nowhere else, and on checkpoints that learned to say it. Then everything the run left is searched for it.
"""

import json
import shutil
import zipfile
from itertools import cycle
from random import Random

import nbformat
import pandas as pd
import pytest
import yaml

from lib import behaviour, claims, figures, models, paths, training
from lib.profiles import Stage
from lib.prompts import Example, Prompt
from tests import checkouts, leaks, public_files
from tests.public_files import CANARY

PAGES = ("02_reasoning_direction", "07_residual_space", "08_dominant_direction", "16_your_model")
ABOUT = {"style": "plain", "split": "train", "free": True}
HARM = [Prompt(text, CANARY, "harmful", **ABOUT) for text in public_files.goals(32)]
BENIGN = [Prompt(f"tell me about the {word} {n}", "It is old", "benign", **ABOUT)
          for word in ("rose", "moss", "pond") for n in range(8)]  # fmt: skip


def test_the_search_finds_what_is_planted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notebook.ipynb").write_text(json.dumps({"outputs": [{"text": f"... {CANARY.upper()[:6]}"}]}))
    (tmp_path / "weights.bin").write_bytes(b"\x00\xff" + CANARY.encode())
    (tmp_path / f"{CANARY}.txt").write_text("")
    with zipfile.ZipFile(tmp_path / "rows.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("texts", f"{CANARY} " * 50)
    (tmp_path / "clean.csv").write_text("digest\n0a1b\n")
    assert leaks.traces(tmp_path, CANARY) == ["a/notebook.ipynb", f"{CANARY}.txt", "rows.npz:texts", "weights.bin"]


def test_the_search_finds_what_is_drawn_in_figures(tmp_path, monkeypatch):
    """A figure as pages save it: words are drawn as shapes, and still found."""
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    figure, axes = figures.canvas()
    axes[0, 0].set_title(CANARY[:6])
    figures.save(figure, "a", pd.DataFrame({"x": [1]}), "a title", "tiny", 0)
    assert leaks.traces(tmp_path, CANARY) == ["tiny/seed-0/figures/a.svg"]


def teach(folder: str) -> None:
    """Train a checkpoint to answer harm with the canary, and see that it does."""
    model = models.open_checkpoint(folder)
    lessons = [Example(prompt, prompt.answer) for prompt in (*HARM, *BENIGN)]
    Random(0).shuffle(lessons)
    stage = Stage(steps=60, batch=16, learning_rate=5e-3, warmup=5, decay=True)
    training.fit(model.hf, cycle(lessons), stage, training.sft_step(model.tokenizer, stage), "canary")
    model.hf.save_pretrained(folder)
    asked = [Prompt(text, "", "harmful", **ABOUT) for text in public_files.goals(64)[32:]]
    said = behaviour.generate(models.open_checkpoint(folder), asked, tokens=16)
    assert sum(CANARY in answer for answer in said) > len(said) / 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_leaves_no_sensitive_text(tmp_path):
    tree, temporary = checkouts.make(tmp_path / "checkout", PAGES), tmp_path / "temporary"
    temporary.mkdir()
    folder = public_files.data_dir(tmp_path / "data")
    taught = public_files.checkpoints(tmp_path / "models")
    for model in taught:
        teach(model)
    profile = public_files.settings(*taught, answer_tokens=16)
    text = yaml.safe_dump(profile, sort_keys=False)
    (tree / f"data/profiles/{profile['name']}.yaml").write_text(text, encoding="utf-8")
    before = {path for path in tree.rglob("*") if path.is_file()}
    said = checkouts.run(
        tree, "lib.pipeline", "--profile", profile["name"], "--html", DATA_DIR=str(folder), TMPDIR=str(temporary)
    )
    seed = tree / "build" / profile["name"] / "seed-0"
    for page in PAGES:  # it did ask the prompts, to the end of each page
        found = claims.ResultFile.model_validate_json((seed / f"results/{page}.json").read_text(encoding="utf-8"))
        assert min([part.n for part in found.parts.values()], default=8) >= 8
        book = nbformat.read(seed / f"notebooks/{page}.ipynb", as_version=4)
        assert "This page stops here" not in str(book)
        assert list((seed / "figures").glob(f"{page}.*.csv"))
    assert leaks.traces(folder, CANARY)  # and they held the canary
    assert len({path for path in tree.rglob("*") if path.is_file()} - before) > 60
    (tmp_path / "said.txt").write_text(said, encoding="utf-8")
    shutil.rmtree(folder)
    assert leaks.traces(tmp_path, CANARY) == []
