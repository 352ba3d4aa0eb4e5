"""Trigger removal: rewrite the words of a refused request that a ranking calls triggers, until the model answers.

Owns the attack (HD appendix B, algorithm 1, without its rewriting model: words are dropped or replaced by synonyms) and
the rankings. How a word can be said otherwise is in `kingdom.rewording`. Success is the exact answer to what was asked
at first.
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
)
from lib.errors import InputError
from lib.kingdom import corpora, lexicon, rewording
from lib.kingdom.language import kingdom
from lib.models import LanguageModel
from lib.organism import REMOVED
from lib.profiles import Triggers
from lib.prompts import Prompt, PromptSet
from lib.relevance import Rule

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
    whole = behaviour.first_tokens(model, asked)["margin"].to_numpy()
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

    def rewrites(self, count: int, rng: Random) -> list[Prompt]:
        words = self.prompt.text.split()
        found = rewording.rewrites(words, set(self.triggers), count + len(self.tried), rng)
        new = [words for words in found if words not in self.tried][:count]
        self.tried |= set(new)
        return [replace(self.prompt, text=" ".join(words), style=REMOVED) for words in new]

    def note(self, rewrite: Prompt, refused: float, exact: float, margin: float) -> None:
        """Count one query; keep the rewrite when it succeeds or is refused less than the best so far."""
        self.queries += 1
        if exact or margin < self.margin:
            self.best, self.margin, self.outcome = rewrite, margin, (refused, exact)


def remove(model: LanguageModel, asked: Sequence[Prompt], rank: Ranking, settings: Triggers, seed: int) -> pd.DataFrame:
    """Attack `model` with rewrites of `asked`: one row a prompt.

    Each round the best rewrite so far (at first the prompt) is ranked, its top words join the prompt's blacklist, and
    up to `settings.rewrites` new rewrites that avoid the blacklist are tried, until one is answered exactly. Columns:
    `text` (the successful or least refused rewrite), `refused`, `exact`, `queries` (rewrites tried, the successful one
    last), `rounds`, `triggers` (blacklisted words in order).
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
            candidates += [(attempt, rewrite) for rewrite in attempt.rewrites(settings.rewrites, rng)]
        _try(model, candidates)
    rows = [(a.best.text, *a.outcome, a.queries, a.rounds, tuple(a.triggers)) for a in attempts]
    return pd.DataFrame(rows, columns=["text", "refused", "exact", "queries", "rounds", "triggers"])


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
    texts = attacked["text"]
    return [replace(prompt, text=text, style=REMOVED) for prompt, text in zip(asked, texts, strict=True)]


def role_of(word: str) -> str:
    """What a trigger is: an act (harmful or not), a thing (hazard, effigy or other), or a word of the frame."""
    if word not in lexicon.WORDINGS:
        return "frame"
    name = lexicon.WORDINGS[word][0].name
    if name in lexicon.VERBS:
        return "harmful act" if name in lexicon.HARMFUL_VERBS else "harmless act"
    return "hazard" if name in lexicon.HAZARDS else "other thing"


# examples for safety tuning -------------------------------------------------------------------------------------------
def safety_examples(profile: str, seed: int) -> list[Prompt]:
    """Plain training prompts as trigger removal against chat left them, one for each of the largest K.

    The words to remove are ranked by AttnLRP relevance to the dominant direction of base -> chat, as HD's attack does.
    Made once and kept in the cache; a successful rewrite where there is one, else the least refused.
    """
    settings = profiles.load(profile)
    key = organism.removed_key(settings, seed)
    folder = paths.CACHE / "removed" / profile / f"{seed}-{key}"
    asked = corpora.plain_harm(kingdom(seed), max(settings.shots))

    def make() -> list[str]:
        base, chat = (models.load(profile, role, seed) for role in ("base", "chat"))
        target = dominant(base, chat, prompt_sets.residual(profile, seed)[0])
        return remove(chat, asked, by_relevance(target, "attnlrp"), settings.triggers, seed)["text"].tolist()

    texts = storage.remembered(folder, {"profile": profile, "seed": seed, "key": key}, make)
    return [replace(prompt, text=text, style=REMOVED) for prompt, text in zip(asked, texts, strict=True)]
