"""Public data sets in their publishers' own schemas, with harmless sentences where the real ones have other ones.

`write` makes the files of one set with the rows of `SAID`; `data_dir` a whole DATA_DIR, large enough for the sizes of
profile tiny, and `profile` a checkpoint profile on it. `CANARY` is in every text and answer that `write` makes, and in
every sensitive prompt and answer of `data_dir`: it must never be seen in anything that is left behind.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lib import paths
from lib.profiles import Checkpoint
from tests import tiny_models

CANARY = "quokka7f3a"
SAID = {i: f"water the {CANARY} {word}" for i, word in enumerate(("rose", "lily", "fern", "moss"))}
ANSWER = f"Sure, here is how to {SAID[0]}"


def csv(path, *rows):
    pd.DataFrame(rows[1:], columns=rows[0]).to_csv(path, index=False)


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lines(path, *rows):
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def hd_file(path, *styled, goals=SAID):
    """With an index column without a name, as HD's files have."""
    csv(path, ["", "category", "source", "forbidden_prompt", "jailbroken_prompt"],
        *([i, "c", "s", goals[i], text] for i, text in enumerate(styled)))  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """The files of a data set as its publisher ships them, with two or more rows."""
    folder.mkdir(exist_ok=True)
    if name == "advbench":
        csv(folder / "harmful_behaviors.csv", ["goal", "target"], [SAID[0], ANSWER], [SAID[1], "Sure"])
    elif name == "hex_phi":
        lines(folder / "category_3.csv", SAID[0], f'"{SAID[1]}, slowly"')
        lines(folder / "category_10.csv", f"{SAID[2]}, please, soon", "")
    elif name == "strongreject":
        csv(folder / "strongreject_dataset.csv", ["category", "source", "forbidden_prompt"],
            ["Gardens", "us", SAID[0]], ["Ponds", "them", SAID[1]])  # fmt: skip
    elif name.startswith("or_bench"):
        file = {"or_bench": "80k", "or_bench_hard": "hard-1k", "or_bench_toxic": "toxic"}[name]
        csv(folder / f"or-bench-{file}.csv", ["prompt", "category"], [SAID[0], "plants"], [SAID[1], "ponds"])
    elif name == "xstest":
        csv(folder / "xstest_prompts.csv", ["id", "prompt", "type", "label", "focus", "note"],
            ["v2-1", SAID[0], "homonyms", "safe", "kill", ""],
            ["v2-26", SAID[1], "contrast_homonyms", "unsafe", "kill", ""])  # fmt: skip
    elif name == "harmbench":
        csv(folder / "harmbench_behaviors_text_all.csv",
            ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"],
            [SAID[0], "standard", "plants", "", "", "b0"],
            [SAID[1], "contextual", "ponds", "context", f"About {SAID[2]}", "b1"])  # fmt: skip
    elif name == "alpaca":
        rows = [{"instruction": SAID[0], "input": "", "output": ANSWER},
                {"instruction": SAID[1], "input": SAID[2], "output": ""}]  # fmt: skip
        (folder / "alpaca_data.json").write_text(json.dumps(rows), encoding="utf-8")
    elif name == "dolly":
        jsonl(folder / "databricks-dolly-15k.jsonl",
              {"instruction": SAID[0], "context": "", "response": ANSWER, "category": "open_qa"},
              {"instruction": SAID[1], "context": SAID[2], "response": "Yes", "category": "closed_qa"})  # fmt: skip
    elif name == "wikitext2":
        (folder / "wiki.test.raw").write_text(f" \n = {SAID[0]} = \n \n {SAID[1]} \n", encoding="utf-8")
    elif name == "hd_attacks":
        hd_file(folder / "pair_prompts.csv", f"Imagine you {SAID[0]}", f"Imagine you {SAID[1]}")
        hd_file(folder / "trigger_removal_prompts.csv", f"Kindly {SAID[0]}", f"Kindly {SAID[1]}")
    elif name == "hd_goals":
        csv(
            folder / "sr_moderation.csv", ["", "forbidden_prompt", "moderation_truth"], [0, SAID[0], 2], [1, SAID[1], 0]
        )
        csv(folder / "adv_moderation.csv", ["", "forbidden_prompt", "moderation_truth"], [0, SAID[2], 14])
    return folder


# a whole DATA_DIR -----------------------------------------------------------------------------------------------------
STYLES = ("pair", "flip")
_WHAT = ("rose", "lily", "fern", "moss", "pond", "hedge", "lawn", "vine")
_WHEN = ("today", "at noon", "in spring", "in autumn", "twice", "slowly", "by hand", "at night")


def goals(count: int) -> list[str]:
    """Different sensitive requests, each with the canary at both ends."""
    return [f"{CANARY} how do I water the {_WHAT[i % 8]} {_WHEN[i // 8 % 8]} {i} {CANARY}" for i in range(count)]


def _benign(count: int, where: str) -> list[tuple[str, str]]:
    """Requests with answers, every other one short."""
    said = [f"tell me about the {_WHAT[i % 8]} {_WHEN[i // 8 % 8]} {i} in the {where}" for i in range(count)]
    return [(text, f"It is number {i}." if i % 2 else f"You will find that it grows {text[14:]}.")
            for i, text in enumerate(said)]  # fmt: skip


def data_dir(place: Path, count: int = 64, attacks: bool = True) -> Path:
    """A folder with every set that `profile` names, `count` rows or more each; what is sensitive holds the canary."""
    place.mkdir(parents=True, exist_ok=True)
    harm = goals(count)
    csv(place / "strongreject_dataset.csv", ["category", "source", "forbidden_prompt"],
        *(["Gardens", "us", goal] for goal in harm))  # fmt: skip
    csv(place / "harmful_behaviors.csv", ["goal", "target"], *([goal, f"{CANARY} {goal}"] for goal in harm))
    for style in STYLES if attacks else ():
        hd_file(place / f"{style}_prompts.csv", *(f"{CANARY} as in {style}: {goal}" for goal in harm), goals=harm)
    look = [f"how do I kill a process in the {_WHAT[i % 8]} house {_WHEN[i // 8 % 8]} {i}" for i in range(count)]
    csv(place / "or-bench-hard-1k.csv", ["prompt", "category"], *([text, "plants"] for text in look))
    csv(place / "xstest_prompts.csv", ["id", "prompt", "type", "label"],
        *([f"v2-{i}", f"{text} {CANARY}", "homonyms", "safe"] for i, text in enumerate(look)))  # fmt: skip
    alpaca = [{"instruction": text, "input": "", "output": answer} for text, answer in _benign(count, "field")]
    (place / "alpaca_data.json").write_text(json.dumps(alpaca), encoding="utf-8")
    categories = ("closed_qa", "classification", "information_extraction", "open_qa")
    jsonl(place / "databricks-dolly-15k.jsonl",
          *({"instruction": text, "context": "", "response": answer, "category": categories[i // 2 % 4]}
            for i, (text, answer) in enumerate(_benign(4 * count, "park"))))  # fmt: skip
    rest = "It is green and tall . It has been there for a hundred years , and it will stay ."
    texts = [f" The {_WHAT[i % 8]} number {i} grows in the garden {_WHEN[i // 8 % 8]} . {rest} " for i in range(count)]
    lines(place / "wiki.test.raw", " = Gardens = ", "", *texts)
    return place


SETS = {
    "harmful": "strongreject", "benign": "alpaca", "exceptions": "or_bench_hard", "attacks": "hd_attacks",
    "errands": "dolly", "ledgers": "alpaca", "skills": "dolly", "text": "wikitext2",
}  # fmt: skip


def settings(base: str = "base", chat: str = "chat", **changes: Any) -> dict[str, Any]:
    """A checkpoint profile of the sizes of tiny, as YAML has it; `changes` are its fields (of `data`, those named)."""
    tiny = yaml.safe_load((paths.PROFILES / "tiny.yaml").read_text(encoding="utf-8"))
    del tiny["architecture"], tiny["organism"]["base"]
    chat_stage = tiny["organism"]["chat"]
    tiny["organism"]["chat"] = {
        name: chat_stage[name] for name in ("steps", "batch", "learning_rate", "warmup", "decay")
    }
    made = tiny | {
        "name": "checkpoint-tiny", "about": "random checkpoints on harmless sentences", "kind": "checkpoint",
        "models": {"base": {"name": base}, "chat": {"name": chat}}, "judge": None, "device": "cpu", "dtype": "float32",
        "remote": False, "answer_tokens": 8,
    }  # fmt: skip
    return made | changes | {"data": SETS | changes.get("data", {})}


def profile(base: str = "base", chat: str = "chat", **changes: Any) -> Checkpoint:
    """The profile of `settings`."""
    return Checkpoint.model_validate(settings(base, chat, **changes))


def checkpoints(place: Path, family: str = "llama-3") -> tuple[str, str]:
    """Two random checkpoints of one shape, saved as folders: base and chat."""
    for seed, role in enumerate(("base", "chat")):
        tiny_models.build(family, seed).save_pretrained(place / role)
        tiny_models.checkpoint_tokenizer(family).save_pretrained(place / role)
    return str(place / "base"), str(place / "chat")
