"""What a model does when asked, as real checkpoints let it be judged: several judges on the same answers (notebook 16).

Owns opening a profile's judge model, the table of labels, shares by judge, and how far judges agree; the judges are
`judges`'. Answers are generated, judged and dropped: nothing here keeps or returns one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from lib import behaviour, judges, models, stats
from lib.judges import Guard, Rubric
from lib.models import LanguageModel
from lib.profiles import Checkpoint, Profile
from lib.prompts import Prompt, PromptSet
from lib.utility import Suite, benchmarks

OPENING, FIRST_TOKEN, MASS = "opening words", "first token", "first-token mass"
KEYWORDS = {"keywords, Qi et al. 2023": "qi23", "keywords, Wei et al. 2024": "wei24"}
GUARD, RUBRIC = "judged unsafe by a model", "StrongREJECT-style score"
REFUSALS = (OPENING, FIRST_TOKEN, *KEYWORDS)  # judges that say whether an answer refuses
_REPLY_TOKENS = 48  # what a judge may write: three short lines


@dataclass(frozen=True)
class Judge:
    """A model that judges answers, and how it is asked."""

    model: LanguageModel
    template: Guard | Rubric


def open_judge(settings: Profile) -> Judge | None:
    """The profile's judge model on the profile's device and in its type, or None where it names none.

    `InputError`, before any model is asked, for a checkpoint that cannot be opened and one that the template cannot
    ask. Open it once for all models that are judged, and before them.
    """
    if not isinstance(settings, Checkpoint) or settings.judge is None:
        return None
    source, name = settings.judge.model, settings.judge.template
    template = judges.rubric(name) if name == "strongreject_rubric" else judges.guard(name)
    model = models.open_checkpoint(
        source.name, "judge", getattr(torch, settings.dtype), source.revision, settings.device
    )
    judges.check(model, template)
    return Judge(model, template)


def described(loaded: Mapping[str, LanguageModel]) -> pd.DataFrame:
    """One row a model: family, blocks, width, parameters in millions, type of its numbers."""
    rows = {}
    for role, model in loaded.items():
        weights = list(model.hf.parameters())
        rows[role] = {
            "family": model.hf.config.model_type, "blocks": model.layers, "width": model.width,
            "parameters (millions)": round(sum(w.numel() for w in weights) / 1e6, 2),
            "numbers": str(weights[0].dtype).removeprefix("torch."),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def plain_cells(cells: Mapping[str, PromptSet], styles: Sequence[str], most: int) -> dict[str, tuple[Prompt, ...]]:
    """Up to `most` prompts of each plain cell, and as many harmful ones dressed in jailbreak styles, taken in turn."""
    found = {name: cells[name].prompts[:most] for name in cells if name.endswith("/plain")}
    if styles:
        turns = zip(*(cells[f"harmful/{style}"].prompts for style in styles), strict=False)
        found["harmful/jailbreaks"] = tuple(prompt for turn in turns for prompt in turn)[:most]
    return found


def answers_tokens(settings: Profile) -> int:
    """How many tokens of an answer are generated for judging."""
    return settings.answer_tokens if isinstance(settings, Checkpoint) else behaviour.LONGEST_ANSWER


def labels(
    model: LanguageModel, cells: Mapping[str, Sequence[Prompt]], tokens: int, judge: Judge | None
) -> pd.DataFrame:
    """One row a prompt: its cell, and what each judge says of the answer (of the prompt alone, the first-token ones).

    Refusal judges give 0 or 1. With a judge model, `GUARD` is 1 where it calls the answer unsafe, or `RUBRIC` a score
    from 0 to 1; what it says that cannot be read is missing.
    """
    asked = [prompt for cell in cells.values() for prompt in cell]
    first = judges.first_token_refusals(model, asked, model.openers)
    told = judges.labels_only(
        lambda part: behaviour.generate(model, part, tokens=tokens), asked, _judge(model, judge), batch=32
    )
    table = pd.DataFrame({"cell": [name for name, cell in cells.items() for _ in cell]})
    table[FIRST_TOKEN], table[MASS] = first["refused"].astype(float), first["mass"]
    return pd.concat([table, told], axis=1).assign(model=model.name)


Judged = Callable[[Sequence[Prompt], Sequence[str]], pd.DataFrame]


def _judge(model: LanguageModel, judge: Judge | None) -> Judged:
    by_model = _by_model(judge)

    def judged(asked: Sequence[Prompt], answers: Sequence[str]) -> pd.DataFrame:
        opened = [behaviour.opens_refusal(answer, model.openers) for answer in answers]
        found = {OPENING: pd.Series(opened, dtype=float)}
        for name, rule in KEYWORDS.items():
            found[name] = pd.Series(judges.keyword_refusals(answers, judges.keywords(rule)), dtype=float)
        return pd.concat([pd.DataFrame(found), by_model(asked, answers)], axis=1)

    return judged


def _by_model(judge: Judge | None) -> Judged:
    """Labels by a judge model; no column without one."""
    if judge is None:
        return lambda asked, answers: pd.DataFrame(index=range(len(answers)))
    model, template = judge.model, judge.template

    def scored(asked: Sequence[Prompt], answers: Sequence[str]) -> pd.DataFrame:
        requests = [prompt.text for prompt in asked]
        if isinstance(template, Rubric):
            write = judges.replies_of(model, _REPLY_TOKENS)
            found = judges.rubric_scores(write, requests, answers, template)
            return found[["score"]].rename(columns={"score": RUBRIC})
        found = judges.unsafe(model, requests, answers, template)
        unsafe = (found["label"] == "unsafe").astype(float)
        return unsafe.mask(found["label"] == judges.UNPARSED).rename(GUARD).to_frame()

    return scored


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Share of prompts refused by cell and judge, Wilson's 95 % interval: columns model, cell, judge, share, lower,
    upper, n."""
    rows = []
    for (model, cell), part in table.groupby(["model", "cell"], sort=False):
        for judge in REFUSALS:
            found = stats.wilson(int(part[judge].sum()), len(part))
            rows.append((model, cell, judge, found.mean, found.lower, found.upper, found.n))
    return pd.DataFrame(rows, columns=["model", "cell", "judge", "share", "lower", "upper", "n"])


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How often each judge says the same as the answer's opening words: share, interval, n, and how often either way it
    differs."""
    rows = {}
    for judge in REFUSALS[1:]:
        same = table[judge] == table[OPENING]
        found = stats.wilson(int(same.sum()), len(table))
        rows[judge] = {
            "says the same": found.mean, "lower": found.lower, "upper": found.upper, "n": found.n,
            "refusal where none opens": float(((table[judge] == 1) & (table[OPENING] == 0)).mean()),
            "none where one opens": float(((table[judge] == 0) & (table[OPENING] == 1)).mean()),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def by_model(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of what the judge model says, by model and cell, with how many answers it could be read for."""
    columns = [name for name in (GUARD, RUBRIC) if name in table]
    if not columns:
        return pd.DataFrame()
    found = table.groupby(["model", "cell"], sort=False)[columns]
    return found.agg(["mean", "count"]).round(3)


def benchmarked(loaded: Mapping[str, LanguageModel], suite: Suite) -> pd.DataFrame:
    """Accuracy of each model on a suite of benchmarks: one row a model and task."""
    parts = [benchmarks(model, suite.tasks, suite.limit).assign(model=role) for role, model in loaded.items()]
    return pd.concat(parts, ignore_index=True)
