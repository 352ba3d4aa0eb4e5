"""What an intervention costs on real checkpoints: benchmark accuracy and perplexity.

Owns the call of EleutherAI's lm-evaluation-harness (an optional extra) on a model that is already loaded, and two
perplexities: of given answers (HD appendix C.4) and of running text (SSAH Table 1). Which benchmarks each paper used
is data (`data/utility.yaml`). In the kingdom utility is the skills of `behaviour`.
"""

import contextlib
import copy
import importlib
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

from lib import batches, behaviour, paths, plain_data, tracing
from lib.edits import Edit
from lib.errors import InputError, unknown
from lib.models import LanguageModel
from lib.prompts import Prompt

EXTRA = "pip install lm_eval"
Edits = Mapping[tuple[str, int], Edit]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Task(_Strict):
    """A benchmark by its name in the harness; `shots` None leaves the number of solved examples to the task."""

    name: str
    metric: str = "acc"
    shots: Annotated[int, Field(ge=0)] | None = 0


class Suite(_Strict):
    """Benchmarks that a paper reports together; `limit` items of each, None for all."""

    source: str
    limit: Annotated[int, Field(ge=1)] | None
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, strict=False)]


@cache
def suites() -> dict[str, Suite]:
    """The papers' benchmarks by table."""
    return {name: Suite.model_validate(settings) for name, settings in plain_data.read_yaml(paths.UTILITY).items()}


def suite(name: str) -> Suite | None:
    """The suite of that name, None for an empty one; `InputError` for any other, and when the harness is missing, so
    that a page can say so before it measures anything."""
    if not name:
        return None
    if name not in suites():
        raise unknown("suite", name, suites())
    _harness("lm_eval")
    return suites()[name]


# benchmarks -----------------------------------------------------------------------------------------------------------
def _harness(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"benchmarks need lm-evaluation-harness, which is not installed; run: {EXTRA}") from None


def benchmarks(
    model: LanguageModel,
    tasks: Sequence[Task],
    limit: int | None = None,
    batch: int = 8,
    seed: int = 0,
    folder: str | Path | None = None,
    chat: bool = False,
) -> pd.DataFrame:
    """One row a task: `accuracy` by the task's metric, its standard error `stderr`, `n` items, and the `shots` it had.

    `folder` holds tasks of your own (the harness's YAML); `chat` puts each item into the model's chat template; `seed`
    draws the solved examples. Items are the first `limit` of each task, for a group such as mmlu of each of its tasks.
    `InputError`, before the model runs, when the harness is missing, a task or its metric is unknown, or the items of
    any of them cannot be had.
    """
    if not tasks:
        raise InputError("no tasks to run; name some, such as utility.suites()['ssah_table1'].tasks")
    evaluator, wrapper = _harness("lm_eval.evaluator"), _harness("lm_eval.models.huggingface")
    manager = _harness("lm_eval.tasks").TaskManager(include_path=None if folder is None else str(folder))
    for task in tasks:
        if task.name not in manager.all_tasks:
            raise InputError(
                f"the harness has no task {task.name!r}; look at {len(manager.all_tasks)} names in lm_eval ls"
            )
    for task in tasks:
        _check_metric(manager, task)
    # a copy of the tokenizer: the harness changes how it pads
    lm = wrapper.HFLM(pretrained=model.hf, tokenizer=copy.deepcopy(model.tokenizer), batch_size=batch)
    return pd.DataFrame([_benchmark(evaluator, lm, manager, task, limit, seed, chat) for task in tasks])


def _check_metric(manager: Any, task: Task) -> None:
    """Load a task, which fetches its items where they are not here, and see that it has its metric."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            leaves = manager.load([task.name])["tasks"].values()
    except OSError as problem:
        raise InputError(
            f"the items of {task.name} cannot be had ({type(problem).__name__}); check the network, or fetch them once "
            "with it"
        ) from None
    known = set.intersection(*(set(leaf.aggregation()) for leaf in leaves))
    if task.metric not in known:
        raise unknown(f"metric of {task.name}", task.metric, sorted(known))


def _benchmark(
    evaluator: Any, lm: Any, manager: Any, task: Task, limit: int | None, seed: int, chat: bool
) -> dict[str, Any]:
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        found = evaluator.simple_evaluate(
            model=lm, tasks=[task.name], num_fewshot=task.shots, limit=limit, task_manager=manager,
            log_samples=False, apply_chat_template=chat, fewshot_random_seed=seed,
            random_seed=None, numpy_random_seed=None, torch_random_seed=None,  # global generators stay as they are
        )  # fmt: skip
    return _score(found, task)


def _score(found: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The task's row of the harness's results: 'acc,none' is metric and filter."""
    results = found["results"][task.name]
    keys = [key for key in results if key.split(",")[0] == task.metric]
    if not keys:
        known = sorted({key.split(",")[0] for key in results if "," in key and "_stderr" not in key})
        raise unknown(f"metric of {task.name}", task.metric, known)
    metric, _, applied = keys[0].partition(",")  # the strictest filter of a task comes first
    leaves = _leaves(found, task.name)
    return {
        "task": task.name, "metric": metric, "accuracy": float(results[keys[0]]),
        "stderr": float(results[f"{metric}_stderr,{applied}"]),
        "n": sum(found["n-samples"][leaf]["effective"] for leaf in leaves), "shots": found["n-shot"][leaves[0]],
    }  # fmt: skip


def _leaves(found: Mapping[str, Any], name: str) -> list[str]:
    """The tasks of a group, or the task itself."""
    parts = found.get("group_subtasks", {}).get(name) or []
    return [leaf for part in parts for leaf in _leaves(found, part)] or [name]


# perplexity -----------------------------------------------------------------------------------------------------------
def answer_perplexity(
    model: LanguageModel, asked: Sequence[Prompt], edits: Edits | None = None, batch: int = 32
) -> float:
    """exp of the mean loss over all tokens of the prompts' answers, in the chat template (HD appendix C.4).

    HD's code leaves out the first token of an answer, counts padding, and edits one position only; this counts every
    token of the answer and its end, and edits act everywhere.
    """
    if not asked or not all(prompt.answer for prompt in asked):
        raise InputError("every prompt needs an answer whose likelihood is measured; leave out those without")
    losses = behaviour.teacher_forced(model, asked, edits, batch)["nll"]
    tokens = torch.tensor([len(ids) for ids in behaviour.answer_ids(model, asked)], dtype=torch.float64)
    return math.exp(float((torch.tensor(losses.to_numpy()) * tokens).sum() / tokens.sum()))


def text_perplexity(
    model: LanguageModel, rows: Sequence[str], window: int, edits: Edits | None = None, batch: int = 1
) -> float:
    """exp of the mean loss over windows of `window` tokens of running text, its rows joined by blank lines.

    As Wei et al. 2024 and their forerunners do for WikiText-2: windows do not overlap, each but its first token is
    predicted from those before it in the window, and what is left at the end is not used.
    """
    if not 2 <= window <= model.traced.context:
        raise InputError(f"windows of {window} tokens; the model reads 2 to {model.traced.context}")
    ids = torch.tensor(model.tokenizer("\n\n".join(rows))["input_ids"])
    count = len(ids) // window
    if not count:
        raise InputError(f"the text has {len(ids)} tokens, fewer than a window of {window}; take a smaller one")
    windows = ids[: count * window].view(count, window)

    def loss(rows: list[int]) -> float:
        part = windows[rows]
        encoding = {"input_ids": part, "attention_mask": torch.ones_like(part)}
        logits: Any = tracing.forward(model.traced, encoding, edits=edits, logits="all").logits
        said = logits[:, :-1].cpu().float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(said, part[:, 1:].flatten(), reduction="sum").item()

    losses = batches.halving(batches.in_order(count, batch), [window] * count, loss)
    return math.exp(sum(found for _, found in losses) / (count * (window - 1)))
