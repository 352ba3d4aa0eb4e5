"""Alignment of base without skill replay that trains only some of the weights (SSAH section 6), followed step by step.

Owns the arms, their training and what is measured on the way: loss on the alignment data, refusal, skills. Tables and
intervals made of the paths are in `budget_tables`. A path is kept in the cache under a key of everything it depends on,
this code included (see `kept_runs`), so that nothing is trained twice.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import pandas as pd
import torch

from lib import (
    behaviour,
    freezing,
    kept_runs,
    models,
    organism,
    precision,
    profiles,
    prompt_sets,
    training,
    unit_tables,
    units,
    worlds,
)
from lib.errors import InputError
from lib.kept_runs import Place
from lib.models import LanguageModel
from lib.profiles import Stage, Trained
from lib.prompts import Example, Prompt
from lib.threads import one_thread
from lib.training import Masks

_MARKS = (0, 0.1, 0.25, 0.45, 0.7, 1.0)  # of a run: where the path is measured
_VALIDATION = 128  # examples of a fresh sample of the alignment data
_STYLED = 16  # prompts of each jailbreak style, at start and end
STYLED = "styled"  # the cell of those prompts; there is none where no styles are at hand


@dataclass(frozen=True)
class Arm:
    """One way of aligning base. `trained` are the units that may change; None trains every weight of the model. `twice`
    doubles the steps, as SSAH does where only units are trained."""

    name: str
    trained: pd.DataFrame | None
    twice: bool = True


def only(model: LanguageModel, rows: pd.DataFrame) -> Masks:
    """Masks of frozen weights that leave nothing free but the weights of the units `rows`.

    Embeddings, norms, queries and keys belong to no unit, so they are frozen too: the paper updates a share of the
    parameters and says no more. A value row that channels share is trained if one of them is.
    """
    if not len(rows):
        raise InputError("no units to train; name at least one")
    units.check(rows, model)
    owned = freezing.masks(model, rows)
    return {
        name: ~owned[name] if name in owned else torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in model.hf.named_parameters()
    }


def trainable(model: LanguageModel, arm: Arm) -> int:
    """How many weights an arm may change."""
    if arm.trained is None:
        return sum(parameter.numel() for parameter in model.hf.parameters())
    return units.parameters(model, arm.trained)


# data -----------------------------------------------------------------------------------------------------------------
def _stage(settings: profiles.Profile, arm: Arm) -> Stage:
    found = settings.budget
    rate = found.stage.learning_rate if arm.trained is None else found.part_rate
    steps = found.stage.steps * (2 if arm.twice else 1)
    return found.stage.model_copy(update={"steps": steps, "learning_rate": rate})


def stream(profile: str, seed: int, name: str = "budget") -> Iterator[Example]:
    """Requests as chat is aligned on, but plain ones only and without any skills: half of them harmful, all refused.

    With jailbreak styles, in which chat's data may answer some harm on purpose, refusal of plain harm comes and goes
    for hundreds of steps, longer than a dozen arms can be trained for here.
    """
    return worlds.of(profile, seed).alignment(name)


@cache
def questions(profile: str, seed: int) -> dict[str, tuple[Prompt, ...]]:
    """What a path asks: the prompts of `unit_tables.heldout`, and harm in jailbreak styles (`styled`) if there are."""
    cells, styles = prompt_sets.behaviour(profile, seed), worlds.of(profile, seed).styles
    asked = {name: tuple(cell) for name, cell in unit_tables.heldout(profile, seed).cells.items()}
    styled = tuple(p for style in styles for p in cells[f"harmful/{style}"].prompts[:_STYLED])
    return asked | ({STYLED: styled} if styled else {})


def _measure(model: Any, start: LanguageModel, profile: str, seed: int, stage: Stage, whole: bool) -> dict[str, Any]:
    """One point of a path. `whole`: also the prompts that are asked only at start and end."""
    asked = questions(profile, seed)
    names = [name for name in asked if whole or name not in (unit_tables.BENIGN, STYLED)]
    every = [prompt for name in names for prompt in asked[name]]
    validation = list(islice(stream(profile, seed, "budget/validation"), _VALIDATION))
    last = freezing.positions(start, every)
    with torch.no_grad():
        loss = sum(piece.item() for piece in training.sft_step(start.tokenizer, stage)(model, validation))
        table = behaviour.teacher_forced(start, every, logits=lambda encoding: _logits(model, encoding, last))
    table["cell"] = [name for name in names for _ in asked[name]]
    outcomes = {
        str(name): {what: part[what].astype(int).tolist() for what in ("refused", "exact")}
        for name, part in table.groupby("cell", sort=False)
    }
    return {"loss": loss, "outcomes": outcomes}


def _logits(model: Any, encoding: Mapping[str, torch.Tensor], last: int) -> torch.Tensor:
    logits = model(**{name: rows.to(model.device) for name, rows in encoding.items()}).logits
    return logits[:, -last:].cpu().float()


@cache
def _before(profile: str, seed: int) -> dict[str, Any]:
    """The first point of every path: base itself."""
    settings = profiles.load(profile)
    with one_thread(False):  # gives the caller's number of threads back, which loading sets to the profile's
        start = models.load(profile, "base", seed)
        with one_thread(isinstance(settings, Trained)), precision.in_float32(start.hf):  # as at all other points
            return _measure(start.hf, start, profile, seed, settings.budget.stage, whole=True)


# training -------------------------------------------------------------------------------------------------------------
def _train(profile: str, seed: int, arm: Arm) -> list[dict[str, Any]]:
    settings = profiles.load(profile)
    models.check_trainable(settings)
    start = models.load(profile, "base", seed)
    with one_thread(isinstance(settings, Trained)):  # the same bits one by one and side by side
        return _path(settings, start, seed, arm)


def _path(settings: profiles.Profile, start: LanguageModel, seed: int, arm: Arm) -> list[dict[str, Any]]:
    profile, stage = settings.name, _stage(settings, arm)
    frozen = {} if arm.trained is None else only(start, arm.trained)
    marks = {round(mark * stage.steps) for mark in _MARKS}
    points: list[dict[str, Any]] = []

    def watch(step: int, current: Any) -> None:
        if step in marks:
            last = step == stage.steps
            found = _measure(current, start, profile, seed, stage, whole=last) if step else _before(profile, seed)
            points.append({"step": step, **found})

    label = f"{profile} seed {seed}: aligning base, {arm.name}"
    model = copy.deepcopy(start.hf).requires_grad_(True)
    step = training.sft_step(start.tokenizer, stage)
    training.fit(model, stream(profile, seed), stage, step, label, frozen=frozen, watch=watch)
    return points


def follow(profile: str, seed: int, arm: Arm) -> pd.DataFrame:
    """Align base and follow it: one row a measured step, from 0 to the end of the run.

    Columns: `step`, `loss` (nats a token of a fresh sample of alignment data) and `outcomes`: by cell, 0/1 lists
    `refused` and `exact` over the prompts of `questions`; benign and styled ones only at start and end.
    """
    return pd.DataFrame(_kept(profile, seed, arm).remembered(lambda: _train(profile, seed, arm)))


def prepare(profile: str, seed: int, arms: Sequence[Arm]) -> None:
    """Train what `follow` would have to, side by side where that is faster (see `kept_runs.prepare`)."""
    kept_runs.prepare(profile, follow, _kept, [(profile, seed, arm) for arm in arms])


def _kept(profile: str, seed: int, arm: Arm) -> Place:
    settings = profiles.load(profile)
    rows = None if arm.trained is None else sorted(map(list, arm.trained[units.KEY].to_numpy().tolist()))
    stage, base = _stage(settings, arm).model_dump(), organism.key(settings, "base", seed)
    decides = {"base": base, "stage": stage, "trained": rows}
    world, asked = worlds.of(profile, seed), questions(profile, seed)
    return kept_runs.place(world, {"arm": arm.name}, decides, stream(profile, seed), asked, ("budget",))
