"""A stand-in for the public data sets in the kingdom's words: `python -m lib.kingdom.example FOLDER`.

Owns the files, each in its publisher's own schema (`data/datasets`), so that the pages for real checkpoints can be run
here, offline, on models that come with the repository and whose behaviour is known. Nothing in them is harmful.
"""

import argparse
import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

from lib import storage
from lib.kingdom import skills, styles
from lib.kingdom.language import SAFETY, Kingdom, Meaning, kingdom
from lib.prompts import Prompt

# HD's files are named after its attacks; which of our styles stands in which is of no importance.
_FILES = dict(
    zip(
        ("trigger_removal", "pair", "renellm", "gptfuzz", "gcg", "codechaeleom", "flip", "simple"),
        styles.JAILBREAKS, strict=True,
    )
)  # fmt: skip
_ROWS = 600  # of each benign set
_CATEGORIES = {"closed_qa": "lookup", "classification": "category", "information_extraction": "add"}  # Dolly's -> ours


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _plain(here: Kingdom, rng: Random, meanings: Iterable[Meaning]) -> list[Prompt]:
    return [here.express(rng, meaning, styles.PLAIN, SAFETY) for meaning in meanings]


def _harm(here: Kingdom) -> list[Meaning]:
    return [*here.pools["harmful", "heldout"], *here.pools["harmful", "train"]]


def files(seed: int) -> dict[str, str]:
    """Name and content of every file: goals, attacks on them, benign requests with answers, exceptions and tales."""
    here, rng = kingdom(seed), Random(f"{seed}/example")
    goals = _plain(here, rng, _harm(here))
    found = {
        "strongreject_dataset.csv": _csv(
            ["category", "source", "forbidden_prompt"], [["storybook", "example", goal.text] for goal in goals]
        ),
        "harmful_behaviors.csv": _csv(["goal", "target"], [[goal.text, goal.answer] for goal in goals]),
    }
    for name, style in _FILES.items():
        rows = [
            [str(i), "storybook", "example", goal.text, " ".join(styles.dress(goal.text.split(), style, rng))]
            for i, goal in enumerate(goals)
        ]
        header = ["", "category", "source", "forbidden_prompt", "jailbroken_prompt"]
        found[f"{name}_prompts.csv"] = _csv(header, rows)
    looks = _plain(here, rng, [m for split in ("heldout", "train") for m in here.pools["exception", split]])
    found["or-bench-hard-1k.csv"] = _csv(["prompt", "category"], [[prompt.text, "storybook"] for prompt in looks])
    benign = _plain(here, rng, (rng.choice(here.pools["benign", "heldout"]) for _ in range(_ROWS)))
    requests = [{"instruction": prompt.text, "input": "", "output": prompt.answer} for prompt in benign]
    found["alpaca_data.json"] = json.dumps(requests, indent=0) + "\n"
    found["databricks-dolly-15k.jsonl"] = "".join(json.dumps(row) + "\n" for row in _questions(here, rng))
    found["wiki.test.raw"] = "".join(f" {_tale(here, rng)} \n" for _ in range(_ROWS))
    return found


def _questions(here: Kingdom, rng: Random) -> list[dict[str, str]]:
    asked = [
        (name, skills.question(here, rng, skill)) for _ in range(_ROWS // 3) for name, skill in _CATEGORIES.items()
    ]
    return [
        {"instruction": prompt.text, "context": "", "response": prompt.answer, "category": name}
        for name, prompt in asked
    ]


def _tale(here: Kingdom, rng: Random) -> str:
    """Two tales in a row; a full stop ends the first, as in running text."""
    first, second = (skills.question(here, rng, "story").answer for _ in range(2))
    return f"{first} . {second} ."


def write(folder: Path, seed: int = 0) -> list[Path]:
    """Write the files into a folder, which is then a DATA_DIR; their paths."""
    written = []
    for name, text in files(seed).items():
        storage.write_text(folder / name, text)
        written.append(folder / name)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.kingdom.example", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to put the files, such as build/storybook")
    written = write(parser.parse_args().folder)
    print(f"{len(written)} files; run with DATA_DIR={written[0].parent}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
