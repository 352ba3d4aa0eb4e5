"""Benchmarks through lm-evaluation-harness on a task from local files, and perplexities against plain PyTorch."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from lib import edits, prompts, utility
from lib.errors import InputError
from lib.prompts import Prompt
from lib.utility import Task
from tests import tiny_models

PROMPTS = [
    Prompt("bake the bread", "sure to bake the bread", "benign", "plain", "none"),
    Prompt("how do i curse the crown", "sorry", "harmful", "plain", "none"),
    Prompt("mend", "sure to mend", "benign", "plain", "none"),
]


def push(strength):
    return {("resid", 1): edits.add(tiny_models.direction(), strength)}


# benchmarks -----------------------------------------------------------------------------------------------------------
CHOICES = ["sure to bake", "sorry", "alas the bread"]


def likeliest(model, question):
    """The index of the choice that the model finds likeliest after the question, by one plain forward pass each."""
    scores = []
    before = model.tokenizer(question, add_special_tokens=False)["input_ids"]
    for choice in CHOICES:
        after = model.tokenizer(choice, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        scores.append(sum(float(logits[len(before) + i - 1, token]) for i, token in enumerate(after)))
    return max(range(len(CHOICES)), key=scores.__getitem__)


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task of eight questions of which the model gets six right; and the model."""
    pytest.importorskip("lm_eval", reason=f"lm-evaluation-harness is not installed ({utility.EXTRA})")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = tiny_models.speaking("llama")
    questions = [
        f"{way} {what}" for way in ("bake", "mend the", "how do i mend", "curse") for what in ("bread", "crown")
    ]
    best = [likeliest(model, question) for question in questions]
    right = [answer if i >= 2 else (answer + 1) % 3 for i, answer in enumerate(best)]
    rows = [{"question": q, "choices": CHOICES, "answer": a} for q, a in zip(questions, right, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    described = {
        "task": "planted", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    group = {"group": "both", "task": ["planted"],
             "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "planted.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    (tmp_path / "tasks" / "both.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return SimpleNamespace(model=model, folder=tmp_path / "tasks")


def test_a_planted_task_gives_its_accuracy_its_error_and_its_size(task, capfd):
    before = torch.get_rng_state()
    (row,) = utility.benchmarks(task.model, [Task(name="planted")], folder=task.folder, batch=3).to_dict("records")
    assert row["accuracy"] == 0.75
    assert row["stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 7))
    assert (row["task"], row["metric"], row["n"], row["shots"]) == ("planted", "acc", 8, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert task.model.tokenizer.padding_side == "left"
    assert capfd.readouterr().out == ""


def test_a_limit_takes_the_first_items_and_batches_do_not_matter(task):
    found = [utility.benchmarks(task.model, [Task(name="planted")], 4, batch, folder=task.folder) for batch in (1, 4)]
    for table in found:
        assert table["n"].tolist() == [4]
        assert table["accuracy"].tolist() == [0.5]  # the first two are the wrong ones


def test_a_group_counts_the_items_of_its_tasks(task):
    found = utility.benchmarks(task.model, [Task(name="both"), Task(name="planted")], folder=task.folder)
    assert found["task"].tolist() == ["both", "planted"]
    assert found["n"].tolist() == [8, 8]
    assert found["accuracy"].tolist() == [0.75, 0.75]


def test_solved_examples_and_the_chat_template_reach_the_model(task):
    solved = yaml.safe_load((task.folder / "planted.yaml").read_text(encoding="utf-8"))
    (task.folder / "planted.yaml").write_text(yaml.safe_dump({**solved, "fewshot_split": "test"}), encoding="utf-8")
    seen = []

    def watch(module, args, options):
        seen.append(options["input_ids"] if "input_ids" in options else args[0])

    handle = task.model.hf.register_forward_pre_hook(watch, with_kwargs=True)
    lengths = {}
    for name, shots, chat in (("plain", 0, False), ("solved", 2, False), ("chat", 0, True)):
        seen.clear()
        table = utility.benchmarks(task.model, [Task(name="planted", shots=shots)], 3, 1, folder=task.folder, chat=chat)
        lengths[name] = max(ids.shape[1] for ids in seen)
        assert table["shots"].tolist() == [shots]
        marked = any(task.model.tokenizer.convert_tokens_to_ids("<user>") in ids for ids in seen)
        assert marked == chat
    handle.remove()
    assert lengths["solved"] > lengths["plain"]


def test_what_the_harness_does_not_have_is_named_before_the_model_runs(task):
    with pytest.raises(InputError, match="the harness has no task 'arc_hard'"):
        utility.benchmarks(task.model, [Task(name="arc_hard")], folder=task.folder)
    with pytest.raises(InputError, match="unknown metric of planted 'f1'; known: acc"):
        utility.benchmarks(task.model, [Task(name="planted", metric="f1")], folder=task.folder)
    (task.folder.parent / "rows.jsonl").unlink()
    with pytest.raises(InputError, match="the items of planted cannot be had"):
        utility.benchmarks(task.model, [Task(name="planted")], folder=task.folder)


class Harness:
    """Stands for the harness: three tasks, of which one lacks its items; it notes what is asked, and when."""

    def __init__(self):
        self.seen, self.all_tasks = [], ["first", "second", "empty"]

    def load(self, names):
        self.seen += [("loaded", name) for name in names]
        if "empty" in names:
            raise ConnectionError("no network")
        return {"tasks": {name: SimpleNamespace(aggregation=lambda: {"acc": None}) for name in names}}

    def simple_evaluate(self, tasks, **_options):
        self.seen.append(("run", *tasks))
        results = {"acc,none": 0.5, "acc_stderr,none": 0.1}
        return {"results": {tasks[0]: results}, "n-samples": {tasks[0]: {"effective": 4}}, "n-shot": {tasks[0]: 0}}


@pytest.fixture
def harness(monkeypatch):
    found = Harness()
    parts = {
        "lm_eval.evaluator": found, "lm_eval.models.huggingface": SimpleNamespace(HFLM=lambda **_: None),
        "lm_eval.tasks": SimpleNamespace(TaskManager=lambda include_path: found),
    }  # fmt: skip
    monkeypatch.setattr(utility, "_harness", parts.__getitem__)
    return found


def test_every_task_is_loaded_before_the_first_runs(harness):
    found = utility.benchmarks(tiny_models.speaking("llama"), [Task(name="first"), Task(name="second")])
    assert found["accuracy"].tolist() == [0.5, 0.5]
    assert harness.seen == [("loaded", "first"), ("loaded", "second"), ("run", "first"), ("run", "second")]


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (Task(name="second", metric="f1"), "unknown metric of second 'f1'; known: acc"),
        (Task(name="empty"), "the items of empty cannot be had"),
    ],
)
def test_what_the_last_task_lacks_is_known_before_the_first_runs(harness, last, says):
    with pytest.raises(InputError, match=says):
        utility.benchmarks(tiny_models.speaking("llama"), [Task(name="first"), last])
    assert not [what for what, *_ in harness.seen if what == "run"]


def test_the_papers_tasks_exist_in_the_harness():
    pytest.importorskip("lm_eval", reason=f"lm-evaluation-harness is not installed ({utility.EXTRA})")
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    assert {task.name for suite in utility.suites().values() for task in suite.tasks} <= known


def test_the_papers_tasks_are_those_of_the_printed_tables():
    table1, table4 = utility.suites()["ssah_table1"], utility.suites()["ssah_table4"]
    assert {t.name for t in table1.tasks} == {"winogrande", "openbookqa", "arc_challenge", "boolq", "hellaswag", "rte"}
    assert table1.limit == 200
    assert {t.name: t.shots for t in table4.tasks if t.shots} == {"gsm8k": 5}
    assert len(table4.tasks) == 8


def test_without_the_harness_the_command_is_named(monkeypatch):
    for module in ("lm_eval", "lm_eval.evaluator"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="pip install lm_eval"):
        utility.benchmarks(tiny_models.speaking("llama"), [Task(name="boolq")])
    with pytest.raises(InputError, match="no tasks to run"):
        utility.benchmarks(tiny_models.speaking("llama"), [])


# perplexity -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
def test_answer_perplexity_weighs_tokens_and_not_prompts(family):
    model = tiny_models.speaking(family)
    losses = []
    for prompt in PROMPTS:
        (before,) = prompts.prompt_ids(model.tokenizer, [prompt])
        (after,) = prompts.answer_ids(model.tokenizer, [prompt], [prompt.answer])
        with torch.no_grad():
            said = model.hf(input_ids=torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        losses += [-float(said[len(before) + i - 1, token]) for i, token in enumerate(after)]
    assert len(losses) == 6 + 2 + 4
    for batch in (1, 3):
        found = utility.answer_perplexity(model, PROMPTS, batch=batch)
        assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_edits_change_perplexities_and_edits_of_nothing_do_not():
    model, rows = tiny_models.speaking("llama"), ["bake the bread " * 6, "mend the crown " * 6]
    for measure in (lambda e: utility.answer_perplexity(model, PROMPTS, e),
                    lambda e: utility.text_perplexity(model, rows, 8, e)):  # fmt: skip
        plain, none, pushed = measure(None), measure(push(0.0)), measure(push(2.0))
        assert plain == pytest.approx(none, rel=1e-6)
        assert abs(pushed - plain) > 0.01 * plain


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large():
    model = tiny_models.speaking("llama")
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
    size = len(model.tokenizer)
    assert utility.answer_perplexity(model, PROMPTS) == pytest.approx(size, rel=1e-5)
    assert utility.text_perplexity(model, ["bake the bread"] * 9, 5) == pytest.approx(size, rel=1e-5)


def test_windows_of_running_text():
    model, rows = (
        tiny_models.speaking("llama"),
        ["bake the bread", "", "mend the crown", "curse the", "how do i mend the"],
    )
    ids = model.tokenizer("\n\n".join(rows))["input_ids"]
    window, losses = 4, []
    assert len(ids) % window  # something is left over, and not used
    for start in range(0, len(ids) - window + 1, window):
        part = torch.tensor([ids[start : start + window]])
        with torch.no_grad():
            losses.append(float(model.hf(input_ids=part, labels=part).loss))
    for batch in (1, 2):
        found = utility.text_perplexity(model, rows, window, batch=batch)
        assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_perplexities_of_nothing_are_refused():
    model = tiny_models.speaking("llama")
    with pytest.raises(InputError, match="every prompt needs an answer"):
        utility.answer_perplexity(model, [*PROMPTS, Prompt("bake", "", "benign", "plain", "none")])
    with pytest.raises(InputError, match="every prompt needs an answer"):
        utility.answer_perplexity(model, [])
    with pytest.raises(InputError, match="the text has 2 tokens, fewer than a window of 8"):
        utility.text_perplexity(model, ["bake bread"], 8)
    with pytest.raises(InputError, match="windows of 65 tokens; the model reads 2 to 64"):
        utility.text_perplexity(model, ["bake bread"] * 99, 65)
