"""Public data sets in their publishers' own schemas, with harmless sentences where the real ones have other ones."""

import hashlib
import json
import logging
import pickle
import sys
import traceback
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from lib import prompts
from lib.errors import InputError
from lib.kingdom.tokenizer import tokenizer
from lib.prompts import PromptSet
from lib.public import data, pools, schemas
from tests.public_files import ANSWER, CANARY, SAID, csv, jsonl, lines, write

# text, answer, kind, style, category of the rows above, in the order of the files
EXPECTED = {
    "advbench": [(SAID[0], ANSWER, "harmful", "plain", ""), (SAID[1], "Sure", "harmful", "plain", "")],
    "hex_phi": [
        (SAID[0], "", "harmful", "plain", "category_3"),
        (f"{SAID[1]}, slowly", "", "harmful", "plain", "category_3"),
        (f"{SAID[2]}, please, soon", "", "harmful", "plain", "category_10"),
    ],
    "strongreject": [(SAID[0], "", "harmful", "plain", "Gardens"), (SAID[1], "", "harmful", "plain", "Ponds")],
    "or_bench": [(SAID[0], "", "exception", "plain", "plants"), (SAID[1], "", "exception", "plain", "ponds")],
    "or_bench_hard": [(SAID[0], "", "exception", "plain", "plants"), (SAID[1], "", "exception", "plain", "ponds")],
    "or_bench_toxic": [(SAID[0], "", "harmful", "plain", "plants"), (SAID[1], "", "harmful", "plain", "ponds")],
    "xstest": [(SAID[0], "", "exception", "plain", "homonyms"), (SAID[1], "", "harmful", "plain", "contrast_homonyms")],
    "harmbench": [
        (SAID[0], "", "harmful", "plain", "standard"),
        (f"About {SAID[2]}\n\n{SAID[1]}", "", "harmful", "plain", "contextual"),
    ],
    "alpaca": [(SAID[0], ANSWER, "benign", "plain", ""), (f"{SAID[1]}\n\n{SAID[2]}", "", "benign", "plain", "")],
    "dolly": [
        (SAID[0], ANSWER, "benign", "plain", "open_qa"),
        (f"{SAID[1]}\n\n{SAID[2]}", "Yes", "benign", "plain", "closed_qa"),
    ],
    "wikitext2": [
        ("", "", "skill", "wikitext2", ""),
        (f" = {SAID[0]} = \n", "", "skill", "wikitext2", ""),
        ("", "", "skill", "wikitext2", ""),
        (f" {SAID[1]} \n", "", "skill", "wikitext2", ""),
    ],
    "hd_attacks": [
        (f"{way} {SAID[i]}", "", "harmful", style, "")
        for style, way in (("pair", "Imagine you"), ("trigger_removal", "Kindly"))
        for i in (0, 1)
    ],
    "hd_goals": [
        (SAID[2], "", "harmful", "plain", "14"),
        (SAID[0], "", "harmful", "plain", "2"),
        (SAID[1], "", "exception", "plain", "0"),
    ],
}
SENSITIVE = {"advbench", "hex_phi", "strongreject", "or_bench_toxic", "xstest", "harmbench", "hd_attacks", "hd_goals"}


def seen(loaded):
    return [(p.text, p.answer, p.kind, p.style, p.category) for p in loaded]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)


def test_every_described_set_is_tested_here():
    assert set(EXPECTED) == set(schemas.names())
    assert {name for name in EXPECTED if schemas.load(name).sensitive} == SENSITIVE


@pytest.mark.parametrize("name", EXPECTED)
def test_the_publishers_files_become_prompts(name, tmp_path):
    loaded = data.load(name, write(name, tmp_path))
    assert seen(loaded) == EXPECTED[name]
    assert loaded.record.available == len(EXPECTED[name])
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert loaded.record.files == files
    assert (loaded.record.origin, loaded.record.revision, loaded.record.pinned) == ("folder", None, True)


def test_a_set_may_have_a_folder_of_its_own_and_the_folder_comes_from_the_environment(tmp_path, monkeypatch):
    write("advbench", tmp_path / "advbench")
    write("dolly", tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert seen(pools.read("advbench")) == EXPECTED["advbench"]
    assert seen(pools.read("dolly")) == EXPECTED["dolly"]
    other = write("advbench", tmp_path / "elsewhere")
    csv(other / "harmful_behaviors.csv", ["goal", "target"], ["feed the fish", "Sure"])
    monkeypatch.setenv("DATA_DIR", str(other))
    assert [p.text for p in pools.read("advbench")] == ["feed the fish"]


def test_wei_et_al_ship_advbench_as_lines(tmp_path):
    lines(tmp_path / "advbench.txt", f"{SAID[0]}, and rest", f'say "{SAID[1]}"', "", "")
    loaded = data.load("advbench", tmp_path)
    assert [p.text for p in loaded] == [f"{SAID[0]}, and rest", f'say "{SAID[1]}"']


def test_a_snapshot_of_the_hub_is_read_by_the_hubs_columns(tmp_path):
    pytest.importorskip("pyarrow")
    place = tmp_path / "xstest" / "data"
    place.mkdir(parents=True)
    table = pd.DataFrame({"prompt": [SAID[0], SAID[1]], "focus": "x", "type": ["homonyms", "contrast_homonyms"],
                          "note": "", "label": ["safe", "unsafe"]})  # fmt: skip
    table.to_parquet(place / "train-00000-of-00001.parquet")
    assert seen(data.load("xstest", tmp_path)) == EXPECTED["xstest"]


# the hub --------------------------------------------------------------------------------------------------------------
class Hub:
    """Stands for `datasets`: keeps what it was asked, answers with tables or with trouble."""

    def __init__(self, table=None, trouble=None):
        self.asked, self.table, self.trouble, self.level = [], table, trouble, "as before"
        self.bars = True
        self.logging = SimpleNamespace(CRITICAL=50, get_verbosity=lambda: self.level, set_verbosity=self._set)

    def _set(self, level):
        self.level = level

    def are_progress_bars_disabled(self):
        return not self.bars

    def disable_progress_bars(self):
        self.bars = False

    def enable_progress_bars(self):
        self.bars = True

    def load_dataset(self, *args, **options):
        assert self.level == 50
        assert not self.bars
        self.asked.append((args, options))
        if self.trouble:
            raise self.trouble
        if args == ("text",):
            file = options["data_files"]["train"].rpartition("/")[2]
            return {"text": self.table[file]}
        return SimpleNamespace(to_pandas=lambda: self.table)


@pytest.fixture
def hub(monkeypatch):
    def install(**what):
        monkeypatch.setitem(sys.modules, "datasets", Hub(**what))
        return sys.modules["datasets"]

    return install


HUB = {  # columns of the repositories on the hub: rows as in EXPECTED
    "advbench": {"prompt": [SAID[0], SAID[1]], "target": [ANSWER, "Sure"]},
    "strongreject": {"prompt": [SAID[0], SAID[1]], "category": ["Gardens", "Ponds"]},
    "or_bench": {"prompt": [SAID[0], SAID[1]], "category": ["plants", "ponds"]},
    "or_bench_hard": {"prompt": [SAID[0], SAID[1]], "category": ["plants", "ponds"]},
    "or_bench_toxic": {"prompt": [SAID[0], SAID[1]], "category": ["plants", "ponds"]},
    "xstest": {"prompt": [SAID[0], SAID[1]], "type": ["homonyms", "contrast_homonyms"], "label": ["safe", "unsafe"]},
    "alpaca": {"instruction": [SAID[0], SAID[1]], "input": ["", SAID[2]], "output": [ANSWER, None], "text": ["", ""]},
    "dolly": {
        "instruction": [SAID[0], SAID[1]], "context": [None, SAID[2]], "response": [ANSWER, "Yes"],
        "category": ["open_qa", "closed_qa"],
    },
    "wikitext2": {"text": ["", f" = {SAID[0]} = \n", "", f" {SAID[1]} \n"]},
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_the_hub_gives_the_same_prompts_as_the_publishers_files(name, hub, tmp_path):
    library, described = hub(table=pd.DataFrame(HUB[name])), schemas.load(name).hub
    loaded = data.load(name)
    assert seen(loaded) == EXPECTED[name]
    (args, options) = library.asked[0]
    assert args == (described.id, described.config)
    assert options == {"split": described.split, "revision": described.git}
    assert (library.level, library.bars) == ("as before", True)
    local = data.load(name, write(name, tmp_path))
    assert loaded.record.content == local.record.content
    assert (loaded.record.origin, loaded.record.revision) == (described.id, described.revision)


def test_revisions_are_commits_or_say_why_not():
    hubs = {name: schemas.load(name).hub for name in EXPECTED}
    commits = {name: hub.git for name, hub in hubs.items() if hub and hub.pinned}
    assert all(len(commit) == 40 for commit in commits.values())
    assert {name for name, hub in hubs.items() if hub and not hub.pinned} == {"advbench", "hex_phi"}
    assert hubs["advbench"].git == "main"
    assert hubs["hex_phi"].why


def test_files_without_a_header_keep_their_first_line_on_the_hub_too(hub):
    files = [f"category_{i}.csv" for i in (1, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
    library = hub(table={file: [f"{SAID[0]} {i}", f'"{SAID[1]}, {i}"'] for i, file in enumerate(files)})
    loaded = data.load("hex_phi")
    assert [p.text for p in loaded][:2] == [f"{SAID[0]} 0", f"{SAID[1]}, 0"]
    assert [p.category for p in loaded] == [file[:-4] for file in files for _ in range(2)]
    assert [options["data_files"]["train"] for _, options in library.asked] == [
        f"hf://datasets/LLM-Tuning-Safety/HEx-PHI@main/{file}" for file in files
    ]


def test_trouble_on_the_hub_says_how_to_get_access(hub):
    library = hub(trouble=ConnectionError(CANARY))
    with pytest.raises(
        InputError, match=r"LLM-Tuning-Safety/HEx-PHI.*hf auth login.*DATA_DIR.*ConnectionError"
    ) as found:
        data.load("hex_phi")
    assert CANARY not in "".join(traceback.format_exception(found.value))
    assert (found.value.__context__, found.value.__cause__) == (None, None)
    assert (library.level, library.bars) == ("as before", True)


def test_without_the_library_the_hub_is_refused_and_a_folder_is_not(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        data.load("advbench")
    assert len(data.load("advbench", write("advbench", tmp_path))) == 2
    with pytest.raises(InputError, match="hd_attacks is not on the hub; set DATA_DIR"):
        data.load("hd_attacks")


def test_the_library_itself_reads_a_repository_alike(monkeypatch, tmp_path):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load, file = library.load_dataset, write("strongreject", tmp_path / "files") / "strongreject_dataset.csv"
    csv(file, ["prompt", "category"], [SAID[0], "Gardens"], [SAID[1], "Ponds"])
    monkeypatch.setattr(library, "load_dataset", lambda *_, split, revision: load(
        "csv", data_files={split: str(file)}, split=split, cache_dir=str(tmp_path / "cache")))  # fmt: skip
    assert seen(data.load("strongreject")) == EXPECTED["strongreject"]
    monkeypatch.setattr(library, "load_dataset", lambda kind, data_files, split: load(
        kind, data_files={split: str(tmp_path / "hex" / data_files[split].rpartition("/")[2])}, split=split,
        cache_dir=str(tmp_path / "cache")))  # fmt: skip
    write("hex_phi", tmp_path / "hex")
    for i in (1, 4, 5, 6, 7, 8, 9, 11):
        lines(tmp_path / "hex" / f"category_{i}.csv", SAID[3])
    loaded = data.load("hex_phi")
    assert [p.text for p in loaded if p.text != SAID[3]] == [text for text, *_ in EXPECTED["hex_phi"]]


def test_the_library_quotes_no_damaged_file(monkeypatch, tmp_path, caplog, capfd):
    library = pytest.importorskip("datasets")
    load, file = library.load_dataset, tmp_path / "damaged.jsonl"
    file.write_text(f'{{"instruction": "{SAID[0]}"}}\n{{"instruction": "{SAID[1]}\n', encoding="utf-8")
    monkeypatch.setattr(library, "load_dataset", lambda *_, split, revision: load(
        "json", data_files={split: str(file)}, split=split, cache_dir=str(tmp_path / "cache")))  # fmt: skip
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError, match="could not be had") as found:
        data.load("dolly")
    shown = "".join(traceback.format_exception(found.value)) + caplog.text + "".join(capfd.readouterr())
    assert CANARY not in shown


# the record -----------------------------------------------------------------------------------------------------------
def test_a_changed_row_changes_the_record(tmp_path):
    def written(answer):
        rows = ([f"plant tree {i}", answer] for i in range(4))
        csv(tmp_path / "harmful_behaviors.csv", ["goal", "target"], *rows)
        return data.load("advbench", tmp_path).record

    before, after = written("Sure"), written("Sure!")
    assert before.available == after.available == 4
    assert before.content != after.content
    assert before.files != after.files


def test_a_set_without_rows_is_refused(tmp_path):
    csv(tmp_path / "harmful_behaviors.csv", ["goal", "target"])
    with pytest.raises(InputError, match="advbench has no rows where it was looked for"):
        data.load("advbench", tmp_path)


# what fails -----------------------------------------------------------------------------------------------------------
def test_missing_columns_are_named_with_those_that_are_there(tmp_path):
    csv(tmp_path / "harmful_behaviors.csv", ["request", "target"], [SAID[0], "Sure"])
    with pytest.raises(
        InputError, match=r"harmful_behaviors.csv of advbench lacks the columns goal; it has request, target"
    ):
        data.load("advbench", tmp_path)
    csv(tmp_path / "xstest_prompts.csv", ["id", "prompt"], ["1", SAID[0]])
    with pytest.raises(InputError, match="lacks the columns type; it has id, prompt"):
        data.load("xstest", tmp_path)


@pytest.mark.parametrize("blank", ["", "  \t"])
def test_rows_without_text_are_refused(tmp_path, blank):
    csv(tmp_path / "or-bench-80k.csv", ["prompt", "category"], [SAID[0], "a"], [blank, "b"], [blank, "c"])
    with pytest.raises(InputError, match="or_bench: 2 rows have no text, the first is row 2"):
        data.load("or_bench", tmp_path)
    lines(tmp_path / "category_1.csv", SAID[0], blank, SAID[1])
    with pytest.raises(InputError, match="hex_phi: 1 rows have no text, the first is row 2"):
        data.load("hex_phi", tmp_path)


def test_cells_that_are_no_text_are_refused(tmp_path):
    jsonl(tmp_path / "databricks-dolly-15k.jsonl",
          {"instruction": [SAID[0]], "context": "", "response": "", "category": "a"})  # fmt: skip
    with pytest.raises(InputError, match="dolly: row 1 of column instruction is a list, not text"):
        data.load("dolly", tmp_path)
    jsonl(tmp_path / "databricks-dolly-15k.jsonl",
          {"instruction": None, "context": "", "response": "", "category": "a"})  # fmt: skip
    with pytest.raises(InputError, match="1 rows have no text"):
        data.load("dolly", tmp_path)


def test_a_row_that_does_not_say_whether_it_is_harmful_is_refused(tmp_path):
    csv(tmp_path / "xstest_prompts.csv", ["prompt", "type"], [SAID[0], "homonyms"], [SAID[1], ""])
    with pytest.raises(InputError, match="xstest: row 2 has nothing in type"):
        data.load("xstest", tmp_path)


def test_folders_that_do_not_have_it(tmp_path):
    with pytest.raises(InputError, match=r"no files of advbench.*harmful_behaviors.csv, advbench.txt"):
        data.load("advbench", tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        data.load("advbench", tmp_path / "none")
    write("advbench", tmp_path)
    lines(tmp_path / "advbench.txt", SAID[0])
    with pytest.raises(InputError, match=r"advbench more than once \(harmful_behaviors.csv, advbench.txt\)"):
        data.load("advbench", tmp_path)
    with pytest.raises(InputError, match="unknown data set 'adv'; known: advbench, alpaca"):
        data.load("adv", tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hub": {"revision": "main"}}, "hub: Value error, revision must be a whole commit hash"),
        ({"hub": {"revision": "assumed: main", "why": ""}}, "with the reason in why"),
        ({"hub": {"columns": {"answer": "target"}}}, "columns must say which one holds the text"),
        ({"local": [{"files": ["rows.xls"], "columns": {"text": "goal"}}]}, "end in none of"),
        ({"local": [{"files": ["rows.txt"], "lines": True, "columns": {"text": "goal"}}]}, "have no columns"),
        ({"name": "other"}, "name the file after the data set"),
        ({"sensitiv": True}, "sensitiv: Extra inputs"),
    ],
)
def test_wrong_descriptions_are_named(tmp_path, change, says):
    described = yaml.safe_load((schemas.FOLDER / "advbench.yaml").read_text(encoding="utf-8"))
    hub = {**described["hub"], **change.get("hub", {})}
    (tmp_path / "advbench.yaml").write_text(yaml.safe_dump({**described, **change, "hub": hub}), encoding="utf-8")
    with pytest.raises(InputError, match=says):
        schemas.read(tmp_path / "advbench.yaml")


# nothing is shown -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", EXPECTED)
def test_no_text_of_any_set_is_shown_by_prompts_sets_and_records(name, tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        loaded = data.load(name, write(name, tmp_path))
    prompt = next(p for p in loaded if p.text)
    assert CANARY in prompt.text  # the canary was there to be seen
    plain = PromptSet(loaded.prompts)
    shown = [repr(prompt), str(prompt), f"{prompt}", f"{prompt!r:>80}", repr(loaded), str(plain), repr([prompt]),
             repr(replace(prompt, answer=prompt.text)), json.dumps(loaded.record.json()), repr(loaded.record),
             caplog.text, *capfd.readouterr()]  # fmt: skip
    if name in SENSITIVE:
        shown += [loaded.table().to_csv(), loaded.table().to_json(), loaded.table().to_string()]
    assert not [text for text in shown if CANARY in text]
    assert prompts.digest(prompt.text) in repr(prompt)
    assert str(len(prompt.text)) in repr(prompt)
    assert str(tmp_path) not in json.dumps(loaded.record.json())


def test_tables_of_sets_that_are_not_sensitive_have_their_words(tmp_path):
    table = data.load("alpaca", write("alpaca", tmp_path)).table()
    assert table["text"].tolist() == [text for text, *_ in EXPECTED["alpaca"]]
    assert table["harmful"].tolist() == [False, False]


DAMAGE = {
    "a cell too few": lambda path: path.write_text(f"goal,target\n{SAID[0]},Sure\n{SAID[1]}\n"),
    "a cell too many": lambda path: path.write_text(f"goal,target\n{SAID[0]},Sure,{SAID[1]}\n"),
    "an open quote": lambda path: path.write_text(f'goal,target\n"{SAID[0]},Sure\n'),
    "no header": lambda path: path.write_text(f'{SAID[0]},"{ANSWER}"\n{SAID[1]},Sure\n'),
    "no utf-8": lambda path: path.write_bytes(f"goal,target\n{SAID[0]} caf\u00e9,Sure\n".encode("latin-1")),
    "no text": lambda path: path.write_text(f"goal,target\n{SAID[0]},{SAID[1]}\n,{SAID[1]}\n"),
    "nothing": lambda path: path.write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_error_quotes_a_table(damage, tmp_path, caplog, capfd):
    DAMAGE[damage](tmp_path / "harmful_behaviors.csv")
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError) as found:
        data.load("advbench", tmp_path)
    shown = "".join(traceback.format_exception(found.value)) + caplog.text + "".join(capfd.readouterr())
    assert CANARY not in shown
    assert (found.value.__context__, found.value.__cause__) == (None, None)


@pytest.mark.parametrize("text", [f'[{{"instruction": "{SAID[0]}"', f'["{SAID[0]}"]', f'{{"a": "{SAID[0]}"}}'])
def test_no_error_quotes_json(text, tmp_path, caplog):
    (tmp_path / "alpaca_data.json").write_text(text)
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError, match="cannot be read as json") as found:
        data.load("alpaca", tmp_path)
    assert CANARY not in "".join(traceback.format_exception(found.value)) + caplog.text
    assert found.value.__context__ is None


def test_a_missing_header_is_guessed_but_its_words_are_not_shown(tmp_path):
    DAMAGE["no header"](tmp_path / "harmful_behaviors.csv")
    with pytest.raises(InputError, match=r"lacks the columns goal, target; it has none and 2 that look like text"):
        data.load("advbench", tmp_path)


# use ------------------------------------------------------------------------------------------------------------------
def test_models_read_the_words(tmp_path):
    loaded = data.load("advbench", write("advbench", tmp_path))
    assert SAID[0] in prompts.chat_text(tokenizer(), loaded.prompts[0])
    assert [p.harmful for p in loaded] == [True, True]
    assert pickle.loads(pickle.dumps(loaded)) == loaded


def test_rows_of_one_goal_share_a_meaning(tmp_path):
    loaded = data.load("hd_attacks", write("hd_attacks", tmp_path))
    assert prompts.meanings(loaded) == [[0, 2], [1, 3]]
    goals = data.load("strongreject", write("strongreject", tmp_path))
    assert goals.prompts[0].meaning == loaded.prompts[0].meaning  # across sets too


def test_splits_name_the_set_so_that_none_passes_for_the_kingdoms(tmp_path):
    assert {p.split for p in data.load("xstest", write("xstest", tmp_path))} == {"xstest/test"}
    assert {p.split for p in data.load("hd_goals", write("hd_goals", tmp_path))} == {"hd_goals/all"}
