"""Trigger removal: rewrite the words of a refused request that a ranking calls triggers, until the model answers.

Owns the attack (HD appendix B, algorithm 1, without its rewriting model) and the rankings. How a request can be said
otherwise is for its `World` to say: in other words, or, where a meaning cannot be kept, only with words left out.
Success is the exact answer to what was asked at first; where no single answer is right, any that is no refusal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib import (
    behaviour,
    models,
    organism,
    paths,
    profiles,
    prompt_sets,
    prompts,
    relevance,
    residual,
    storage,
    worlds,
)
from lib.errors import InputError
from lib.models import LanguageModel
from lib.organism import REMOVED
from lib.profiles import Triggers
from lib.prompts import Prompt, PromptSet
from lib.relevance import Rule
from lib.worlds import World

# Scores of the words of each prompt; the highest is what the ranking would remove first.
Ranking = Callable[[LanguageModel, Sequence[Prompt]], list[list[float]]]


# rankings -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Target:
    """What words are ranked by: a direction in one block, pointing to where refused prompts lie."""

    layer: int
    direction: Float[Tensor, "d_model"]


def dominant(before: LanguageModel, after: LanguageModel, asked: PromptSet, centred: bool = False) -> Target:
    """The dominant direction of the shift `before` -> `after` in the last block, towards the prompts `after` refuses.

    From the prompts `asked`; uncentred as published, where a constant offset can be the direction. When `after`
    refuses all or none of them, the direction keeps the sign that the shift has on average.
    """
    residual.check_pair(before, after)
    start, end = residual.activations(before, asked.prompts), residual.activations(after, asked.prompts)
    space = residual.space(end[-1] - start[-1], centred)
    if len(space.directions) == 0:
        raise InputError(f"{before.name} and {after.name} do not differ, so there is no direction; compare two models")
    direction = space.directions[0]
    refused = torch.tensor(behaviour.first_tokens(after, asked.prompts)["refused"].to_numpy())
    if refused.any() and not refused.all():
        along = space.coordinates(end[-1])[:, 0]
        sign = along[refused].mean() - along[~refused].mean()
    else:
        sign = ((end[-1] - start[-1]).double() @ direction).mean()
    return Target(after.layers - 1, (direction * (1.0 if sign >= 0 else -1.0)).float())


def by_relevance(target: Target, rule: Rule) -> Ranking:
    """Words by their relevance to the projection on the target (partial relevance; rules in `relevance`)."""

    def rank(model: LanguageModel, asked: Sequence[Prompt]) -> list[list[float]]:
        relevance.require(model, rule)
        found = relevance.token_relevance(model, asked, target.layer, target.direction[None], rule)
        return [
            one.words(prompts.user_words(model.tokenizer, prompt))[0].tolist()
            for prompt, one in zip(asked, found, strict=True)
        ]

    return rank


def leave_one_out(model: LanguageModel, asked: Sequence[Prompt]) -> list[list[float]]:
    """Words by how much the refusal margin falls without them: one more forward pass for each word."""
    words = [prompt.text.split() for prompt in asked]
    without = [
        replace(prompt, text=" ".join(parts[:place] + parts[place + 1 :]) or parts[0])
        for prompt, parts in zip(asked, words, strict=True)
        for place in range(len(parts))
    ]
    every = [replace(prompt, text=" ".join(parts)) for prompt, parts in zip(asked, words, strict=True)]
    whole = behaviour.first_tokens(model, every)["margin"].to_numpy()
    left = behaviour.first_tokens(model, without)["margin"].to_numpy()
    ends = np.cumsum([len(parts) for parts in words])
    return [(margin - part).tolist() for margin, part in zip(whole, np.split(left, ends[:-1]), strict=True)]


def at_random(seed: int) -> Ranking:
    """The control: words in random order, the same for the same text."""

    def rank(model: LanguageModel, asked: Sequence[Prompt]) -> list[list[float]]:
        return [[Random(f"{seed}/{p.text}/{place}").random() for place in range(len(p.text.split()))] for p in asked]

    return rank


# the attack -----------------------------------------------------------------------------------------------------------
@dataclass
class _Attempt:
    """One prompt under attack: what was tried, and the rewrite with the least refusal so far."""

    prompt: Prompt
    best: Prompt
    margin: float = float("inf")
    outcome: tuple[float, float] = (1.0, 0.0)  # refused, exact
    queries: int = 0
    rounds: int = 0
    triggers: list[str] = field(default_factory=list)
    tried: set[tuple[str, ...]] = field(default_factory=set)

    @property
    def open(self) -> bool:
        return self.outcome[1] == 0.0

    def blacklist(self, scores: Sequence[float], settings: Triggers) -> None:
        """Add the highest-ranked words of the best rewrite that are long enough to be triggers and not yet listed."""
        words = self.best.text.split()
        order = sorted(range(len(words)), key=lambda place: -scores[place])
        long = [words[place] for place in order if len(words[place]) >= settings.shortest]
        self.triggers += list(dict.fromkeys(word for word in long if word not in self.triggers))[: settings.tops]

    def rewrites(self, world: World, count: int, rng: Random) -> list[Prompt]:
        words = self.prompt.text.split()
        found = world.rewrites(words, set(self.triggers), count + len(self.tried), rng)
        new = [words for words in found if words and words not in self.tried][:count]
        self.tried |= set(new)
        return [replace(self.prompt, text=" ".join(words), style=REMOVED) for words in new]

    def note(self, rewrite: Prompt, refused: float, exact: float, margin: float) -> None:
        """Count one query; keep the rewrite when it succeeds or is refused less than the best so far."""
        self.queries += 1
        if exact or margin < self.margin:
            self.best, self.margin, self.outcome = rewrite, margin, (refused, exact)

    def row(self, world: World) -> tuple:
        """The values of `COLUMNS`."""
        roles = tuple(world.word_role(word) for word in self.triggers)
        text, listed = self.best.text, tuple(self.triggers)
        if self.prompt.sensitive:
            words = self.prompt.text.split()
            text = " ".join(f"#{place + 1}" for place in _places(words, text.split()))
            listed = tuple(f"#{words.index(word) + 1}" for word in self.triggers)
        return (text, *self.outcome, self.queries, self.rounds, listed, roles)


COLUMNS = ("text", "refused", "exact", "queries", "rounds", "triggers", "roles")


def _places(words: Sequence[str], left: Sequence[str]) -> list[int]:
    """Which of `words` are `left`, in their order; `InputError` where others were put in."""
    places, start = [], 0
    for word in left:
        if word not in words[start:]:
            raise InputError("a rewrite of a prompt that must not be shown holds other words; only leave words out")
        places.append(words.index(word, start))
        start = places[-1] + 1
    return places


def remove(
    model: LanguageModel, asked: Sequence[Prompt], rank: Ranking, world: World, settings: Triggers, seed: int
) -> pd.DataFrame:
    """Attack `model` with rewrites of `asked`: one row a prompt.

    Each round the best rewrite so far (at first the prompt) is ranked, its top words join the prompt's blacklist, and
    up to `settings.rewrites` new rewrites that avoid the blacklist are tried, until one is answered exactly. Columns:
    `text` (the successful or least refused rewrite), `refused`, `exact`, `queries` (rewrites tried, the successful one
    last), `rounds`, `triggers` (blacklisted words in order) and `roles`, what they are. Of a sensitive prompt `text`
    and `triggers` hold the places of its words, `#1 #3`, in place of the words.
    """
    attempts = [_Attempt(prompt, prompt) for prompt in asked]
    for number in range(settings.rounds):
        running = [attempt for attempt in attempts if attempt.open]
        if not running:
            break
        scores = rank(model, [attempt.best for attempt in running])
        candidates: list[tuple[_Attempt, Prompt]] = []
        for attempt, mine in zip(running, scores, strict=True):
            attempt.blacklist(mine, settings)
            attempt.rounds = number + 1
            rng = Random(f"{seed}/{number}/{attempt.prompt.text}")
            candidates += [(attempt, rewrite) for rewrite in attempt.rewrites(world, settings.rewrites, rng)]
        _try(model, candidates)
    return pd.DataFrame([attempt.row(world) for attempt in attempts], columns=list(COLUMNS))


def _try(model: LanguageModel, candidates: Sequence[tuple[_Attempt, Prompt]]) -> None:
    """Ask all at once, then count them one by one, as if asking had stopped at the first success."""
    if not candidates:
        return
    found = behaviour.quick(model, [rewrite for _, rewrite in candidates])
    columns = (found[name] for name in ("refused", "exact", "margin"))
    for (attempt, rewrite), refused, exact, margin in zip(candidates, *columns, strict=True):
        if attempt.open:
            attempt.note(rewrite, refused, exact, margin)


def rewritten(asked: Sequence[Prompt], attacked: pd.DataFrame) -> list[Prompt]:
    """The prompts that an attack ended with, each with its original meaning and right answer."""
    return [
        replace(prompt, text=_read_back(prompt, text), style=REMOVED)
        for prompt, text in zip(asked, attacked["text"], strict=True)
    ]


def _read_back(prompt: Prompt, text: str) -> str:
    """A rewrite of a prompt as `remove` gives it, in words."""
    if not prompt.sensitive:
        return text
    words = prompt.text.split()
    return " ".join(words[int(place.removeprefix("#")) - 1] for place in text.split())


# examples for safety tuning -------------------------------------------------------------------------------------------
def safety_examples(profile: str, seed: int) -> list[Prompt]:
    """Plain training prompts as trigger removal against chat left them, one for each of the largest K.

    The words to remove are ranked by AttnLRP relevance to the dominant direction of base -> chat, as HD's attack does.
    Made once and kept in the cache; a successful rewrite where there is one, else the least refused. None, and nothing
    kept, where a rewrite does not keep the meaning: words of such prompts must not be written down.
    """
    settings, world = profiles.load(profile), worlds.of(profile, seed)
    if not world.rewriting:
        return []
    key = organism.removed_key(settings, seed)
    folder = paths.CACHE / "removed" / profile / f"{seed}-{key}"
    asked = world.plain_harm(max(settings.shots))

    def make() -> list[str]:
        base, chat = (models.load(profile, role, seed) for role in ("base", "chat"))
        target = dominant(base, chat, prompt_sets.residual(profile, seed)[0])
        found = remove(chat, asked, by_relevance(target, "attnlrp"), world, settings.triggers, seed)
        return found["text"].tolist()

    texts = storage.remembered(folder, {"profile": profile, "seed": seed, "key": key}, make)
    return [replace(prompt, text=text, style=REMOVED) for prompt, text in zip(asked, texts, strict=True)]
