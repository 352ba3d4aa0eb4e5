"""Benign fine-tuning of chat with some weights held still (SSAH section 5), followed step by step.

Owns the arms, their training and what is measured on the way: loss on the benign corpus, refusals, the new task. Which
units form which group is in `units`; tables and intervals made of the paths are in `freezing_tables`. A path is kept in
the cache under a key of everything it depends on, this code included (see `kept_runs`), so that nothing is trained
twice.
"""

import copy
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Literal, cast

import pandas as pd
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from lib import (
    behaviour,
    families,
    kept_runs,
    models,
    organism,
    precision,
    profiles,
    prompt_sets,
    prompts,
    training,
    worlds,
)
from lib.errors import InputError
from lib.kept_runs import Place
from lib.models import LanguageModel
from lib.profiles import Corpus, Freezing, Stage, Trained
from lib.prompts import Prompt
from lib.threads import one_thread
from lib.training import Masks

_MARKS = (0, 0.06, 0.1, 0.16, 0.25, 0.36, 0.5, 0.7, 1.0)  # of the followed run: where the path is measured
_VALIDATION = 64  # examples of the corpus that are not trained on
_NEW_TASK = 128  # questions of the new task
_SEARCHED = 200  # times as many examples are looked through for those that are not trained on
_STYLED = 16  # prompts of each jailbreak style, after the planned and the doubled steps
PLAIN, BENIGN, VALIDATION, NEW_TASK = "plain", "benign", "validation", "new task"
NO_STYLES = (PLAIN, BENIGN, VALIDATION, NEW_TASK)  # cells of `questions`; the others are jailbreak styles


@dataclass(frozen=True)
class Arm:
    """One way of fine-tuning. `frozen` are the weights held still; for the schedule, `first` are those held still
    during the planned steps. `adapter` trains LoRA or a prefix instead of the model's own weights."""

    name: str
    frozen: Masks
    first: Masks | None = None
    adapter: Literal["lora", "prefix"] | None = None


def masks(model: LanguageModel, rows: pd.DataFrame) -> Masks:
    """The weights that belong to the units `rows` (columns kind, layer, index), as `training.fit` wants them.

    A unit's own rows and its column are frozen: embeddings, norms, queries and keys stay free (the paper does not say).
    """
    parameters = dict(model.hf.named_parameters())
    found: dict[str, torch.Tensor] = {}
    for cell, part in rows.groupby(["kind", "layer"], sort=True):
        kind, layer = cast(tuple[str, int], cell)
        chosen = torch.tensor(part["index"].to_numpy())
        for name, dim, owner in families.unit_slices(model.hf, kind, int(layer)):
            mask = found.setdefault(name, torch.zeros_like(parameters[name], dtype=torch.bool))
            mask.index_fill_(dim, owner[chosen].to(mask.device), True)
    return found


# what is measured on the way ------------------------------------------------------------------------------------------
@cache
def questions(profile: str, seed: int, corpus: Corpus) -> dict[str, tuple[Prompt, ...]]:
    """Prompts of a path: `validation` (of the corpus, never trained on), `plain` harm, `benign` requests, `new task`,
    and harm in each jailbreak style. All but the first are held out from safety data. `InputError` for a corpus so
    small that nothing is left to validate on."""
    settings, world = profiles.load(profile), worlds.of(profile, seed)
    stage = settings.freezing.stages[corpus]
    count = settings.freezing.followed[corpus] * stage.steps * stage.batch
    trained = {example.prompt.text for example in islice(world.corpus(corpus, corpus), count)}
    others = islice(world.corpus(corpus, f"{corpus}/validation"), _SEARCHED * _VALIDATION)
    unread = (e.prompt for e in others if e.prompt.text not in trained)  # small tasks repeat their questions
    validation = tuple(islice(unread, _VALIDATION))
    if not validation:
        raise InputError(f"{count} examples of {corpus} are all there are; train on fewer, or give a larger data set")
    cells = prompt_sets.behaviour(profile, seed)
    return {
        VALIDATION: validation,
        PLAIN: cells["harmful/plain"].prompts,
        BENIGN: cells["benign/plain"].prompts,
        NEW_TASK: world.new_task(min(settings.measure.cell, _NEW_TASK)),
        **{style: cells[f"harmful/{style}"].prompts[:_STYLED] for style in world.styles},
    }


def _measure(model: Any, start: LanguageModel, asked: Mapping[str, Sequence[Prompt]], whole: bool) -> dict[str, Any]:
    """One point of a path. `whole`: also the prompts that are asked only after the planned and the doubled steps."""
    names = [name for name in asked if whole or name in (VALIDATION, PLAIN)]
    every = [prompt for name in names for prompt in asked[name]]
    last = positions(start, every)
    with torch.no_grad():
        table = behaviour.teacher_forced(start, every, logits=lambda encoding: _logits(model, encoding, last))
    table["cell"] = [name for name in names for _ in asked[name]]
    plain = table[table["cell"] == PLAIN]
    found: dict[str, Any] = {"loss": float(table.loc[table["cell"] == VALIDATION, "nll"].mean())}
    found["exact"], found["refused"] = (plain[name].astype(int).tolist() for name in ("exact", "refused"))
    if whole:
        cells = table.groupby("cell", sort=False)[list(behaviour.OUTCOMES)].mean()
        found["new task"] = table.loc[table["cell"] == NEW_TASK, "exact"].astype(int).tolist()
        found["cells"] = {name: cells.loc[name].to_dict() for name in names if name != VALIDATION}
    return found


def positions(model: LanguageModel, asked: Sequence[Prompt]) -> int:
    """How many logits from the end of a prompt with its right answer say what the model thinks of the answer."""
    return 1 + max(map(len, prompts.answer_ids(model.tokenizer, asked, [prompt.answer for prompt in asked])))


def _logits(model: Any, encoding: Mapping[str, torch.Tensor], last: int) -> torch.Tensor:
    """The `last` logits of left-padded sequences, computed with the padding on the right, as in training: a learned
    prefix stands before the padding and would be farther from short sequences than it was when it was learned."""
    mask = encoding["attention_mask"]
    token, pads = torch.arange(mask.shape[1]), (mask == 0).sum(1, keepdim=True)
    right, left = (token + pads) % mask.shape[1], (token - pads)[:, -last:] % mask.shape[1]
    logits = model(**{name: rows.gather(1, right).to(model.device) for name, rows in encoding.items()}).logits
    # Only these leave the device, and are widened after: whole logits of a large vocabulary would fill it twice more.
    return logits[torch.arange(len(mask))[:, None].to(logits.device), left.to(logits.device)].cpu().float()


# training -------------------------------------------------------------------------------------------------------------
def _adapted(hf: Any, arm: Arm, settings: Freezing) -> Any:
    if arm.adapter is None:
        return hf
    prefix, lora = settings.prefix, settings.lora
    config: Any = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prefix.tokens)
    if arm.adapter == "lora":
        # Where it goes is peft's own choice for the family; for Llama queries and values, as in Qi et al.
        config = LoraConfig(task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout)
    with warnings.catch_warnings():  # of a name that transformers is about to change and peft still reads
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(hf, config)


def _stage(settings: Freezing, arm: Arm, corpus: Corpus) -> Stage:
    """The whole run that is followed, at the rate of the arm."""
    stage = settings.stages[corpus]
    rate = getattr(settings, arm.adapter).rates[corpus] if arm.adapter else stage.learning_rate
    return stage.model_copy(update={"steps": settings.followed[corpus] * stage.steps, "learning_rate": rate})


def _train(profile: str, seed: int, arm: Arm, corpus: Corpus) -> list[dict[str, Any]]:
    settings = profiles.load(profile)
    models.check_trainable(settings)
    start = models.load(profile, "chat", seed)
    with one_thread(isinstance(settings, Trained)):  # the same bits one by one and side by side
        return _path(settings, start, seed, arm, corpus)


def _path(
    settings: profiles.Profile, start: LanguageModel, seed: int, arm: Arm, corpus: Corpus
) -> list[dict[str, Any]]:
    stage = _stage(settings.freezing, arm, corpus)
    asked = questions(settings.name, seed, corpus)
    points: list[dict[str, Any]] = []
    planned = settings.freezing.stages[corpus].steps
    marks = {round(mark * stage.steps) for mark in _MARKS} | {planned, 2 * planned}
    torch.manual_seed(seed)  # the adapters' first weights and LoRA's dropout
    model = _adapted(copy.deepcopy(start.hf).requires_grad_(True), arm, settings.freezing)

    def watch(after: int) -> training.Watch:
        def at(step: int, current: Any) -> None:
            if step + after in marks and step + after not in [point["step"] for point in points]:
                whole = step + after in (planned, 2 * planned)
                points.append({"step": step + after, **_measure(current, start, asked, whole)})

        return at

    stream = worlds.make(settings, seed).corpus(corpus, corpus)
    step = training.sft_step(start.tokenizer, stage)
    label = f"{settings.name} seed {seed}: {corpus}, {arm.name}"
    cuts = [(0, stage.steps, arm.frozen)]
    if arm.first:
        cuts = [(0, planned, arm.first), (planned, stage.steps, arm.frozen)]
    with precision.in_float32(model):  # over all cuts: the second goes on where the first was, not where it rounds to
        for begin, end, frozen in cuts:
            # A new optimiser for each mask: the momentum of weights that were free would go on moving them.
            part = stage.model_copy(update={"steps": end - begin})
            training.fit(model, stream, part, step, label, frozen=frozen, watch=watch(begin))
    return points


def follow(profile: str, seed: int, arm: Arm, corpus: Corpus) -> pd.DataFrame:
    """Fine-tune chat on a benign corpus and follow it: one row a measured step, from 0 to the last that is followed.

    Columns: `step`, `loss` (nats a token, on examples never trained on), `exact` and `refused` (0/1 lists over plain
    harmful prompts); after the planned and the doubled steps also `cells` (rates by cell) and `new task` (0/1 list).
    """
    return pd.DataFrame(_kept(profile, seed, arm, corpus).remembered(lambda: _train(profile, seed, arm, corpus)))


def prepare(profile: str, seed: int, arms: Sequence[Arm], corpus: Corpus) -> None:
    """Train what `follow` would have to, side by side where that is faster (see `kept_runs.prepare`)."""
    kept_runs.prepare(profile, follow, _kept, [(profile, seed, arm, corpus) for arm in arms])


def _kept(profile: str, seed: int, arm: Arm, corpus: Corpus) -> Place:
    settings = profiles.load(profile)
    if corpus not in settings.freezing.stages:
        raise InputError(f"no benign corpus {corpus!r}; the profile has {', '.join(settings.freezing.stages)}")
    decides = {
        "chat": organism.key(settings, "chat", seed),
        "settings": _stage(settings.freezing, arm, corpus).model_dump(),
        "planned": settings.freezing.stages[corpus].steps,
        "adapter": getattr(settings.freezing, arm.adapter).model_dump() if arm.adapter else None,
        "frozen": [_mask_digest(arm.frozen), _mask_digest(arm.first or {})],
    }
    world, asked = worlds.make(settings, seed), questions(profile, seed, corpus)
    about = {"corpus": str(corpus), "arm": arm.name}
    return kept_runs.place(world, about, decides, world.corpus(corpus, corpus), asked, ("freezing",))


def _mask_digest(found: Masks) -> dict[str, str]:
    return {name: hashlib.sha256(mask.cpu().numpy().tobytes()).hexdigest() for name, mask in sorted(found.items())}
