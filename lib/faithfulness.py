"""Does relevance find the words that matter? Delete words in its order and watch the projection: hd.5.faithful.

Owns orders of deletion, the curves and the area between two of them. A projection is measured as its distance from that
of a request without words, in the direction in which the whole prompt lies: 1 is the whole prompt, 0 no word left. Both
ends are the same for every order, so only what lies between can differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from lib import residual, stats
from lib.errors import InputError
from lib.feature_words import words
from lib.models import LanguageModel
from lib.prompts import Prompt
from lib.relevance import Rule
from lib.stats import Interval

STEPS = 9  # shares of words deleted: 0, 1/8, ..., 1
RANDOM = "random"
Orders = Sequence[Sequence[Int[np.ndarray, "word"]]]  # [direction][prompt]: places of words, the first to go first


@dataclass(frozen=True)
class Curves:
    """What is left of each projection while words go. `left[order]` is [draw, step, direction, prompt], in units of the
    projection; `whole` its value at step 0, never negative. Divide sums of the two."""

    fractions: Float[np.ndarray, "step"]
    left: dict[str, Float[np.ndarray, "draw step direction prompt"]]
    whole: Float[np.ndarray, "direction prompt"]


def without(prompt: Prompt, places: Sequence[int] | Int[np.ndarray, "word"]) -> Prompt:
    """The prompt with the words at these places left out; the template stays."""
    gone = set(int(place) for place in places)
    return replace(prompt, text=" ".join(w for i, w in enumerate(prompt.text.split()) if i not in gone))


class _Projections:
    """Projections of prompts on directions after a block; equal texts are asked once."""

    def __init__(self, model: LanguageModel, layer: int, along: Float[Tensor, "direction d_model"]) -> None:
        self._model, self._layer, self._along = model, layer, along.double()
        self._known: dict[tuple[str, str | None], np.ndarray] = {}

    def __call__(self, asked: Sequence[Prompt]) -> Float[np.ndarray, "direction prompt"]:
        new = {(p.text, p.system): p for p in asked if (p.text, p.system) not in self._known}
        if new:
            states = residual.activations(self._model, list(new.values()), layers=[self._layer])[0]
            self._known |= zip(new, (states.double() @ self._along.T).numpy(), strict=True)
        return np.stack([self._known[p.text, p.system] for p in asked], axis=1)


def _cuts(prompt: Prompt, fractions: np.ndarray) -> list[int]:
    count = len(prompt.text.split())
    return [round(float(fraction) * count) for fraction in fractions]


def curves(
    model: LanguageModel, asked: Sequence[Prompt], layer: int, along: Float[Tensor, "direction d_model"],
    rules: Mapping[str, Rule], draws: int, seed: int,
) -> Curves:  # fmt: skip
    """Delete words by each rule's relevance, the highest first, and in `draws` random orders.

    Relevance is counted towards the side on which the whole prompt lies, for every rule alike.
    """
    if not asked:
        raise InputError("there are no prompts to delete words from; choose a set with at least one")
    asked = [without(prompt, ()) for prompt in asked]  # words a space apart, so that step 0 is the whole prompt
    project, fractions = _Projections(model, layer, along), np.linspace(0, 1, STEPS)
    empty = project([replace(prompt, text="") for prompt in asked])
    moved = project(asked) - empty
    side = np.where(moved < 0, -1.0, 1.0)

    def follow(order: Orders) -> Float[np.ndarray, "step direction prompt"]:
        left = np.zeros((STEPS, *moved.shape))
        for d, mine in enumerate(order):
            for step in range(STEPS):
                cut = [without(p, o[: _cuts(p, fractions)[step]]) for p, o in zip(asked, mine, strict=True)]
                left[step, d] = ((project(cut) - empty) * side)[d]
        return left

    left = {name: follow(_by_relevance(model, asked, layer, along, rule, side))[None] for name, rule in rules.items()}
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(draws):
        mixed = [rng.permutation(len(p.text.split())) for p in asked]
        drawn.append(follow([mixed] * len(along)))
    return Curves(fractions, {**left, RANDOM: np.stack(drawn)}, np.abs(moved))


def _by_relevance(
    model: LanguageModel, asked: Sequence[Prompt], layer: int, along: Tensor, rule: Rule, side: np.ndarray
) -> Orders:
    found = words(model, asked, layer, along, rule)
    return [
        [np.argsort(-one.signed[d] * side[d, i], kind="stable") for i, one in enumerate(found)]
        for d in range(len(along))
    ]


def _areas(found: Curves, name: str, of: Sequence[int]) -> Float[np.ndarray, "prompt direction"]:
    """Area under the curve of each prompt and direction, mean over draws, in units of the projection."""
    return np.trapezoid(found.left[name].mean(axis=0), found.fractions, axis=0)[list(of)].T


def area_between(
    found: Curves, better: str, other: str, of: Sequence[int], seed: int, resamples: int
) -> Interval | None:
    """Area under `other` minus under `better`, mean over the directions `of`: positive when `better` finds what matters
    sooner. Prompts are resampled. None when a direction does not tell any prompt from one without words."""
    whole = found.whole[list(of)].T
    if not (whole.sum(axis=0) > 0).all():
        return None
    gap = _areas(found, other, of) - _areas(found, better, of)

    def statistic(gaps: np.ndarray, wholes: np.ndarray) -> float:
        total = wholes.sum(axis=0)
        return float((gaps.sum(axis=0) / total).mean()) if (total > 0).all() else np.nan

    return stats.bootstrap(statistic, gap, whole, seed=seed, resamples=resamples)


def curve_table(found: Curves, names: Sequence[str]) -> pd.DataFrame:
    """Curves by order and direction: columns order, direction, deleted, left, lower, upper (5-95 % of random draws)."""
    rows = []
    total = np.maximum(found.whole.sum(axis=1), 1e-300)
    for order, left in found.left.items():
        shares = left.sum(axis=3) / total  # [draw, step, direction]
        low, high = np.quantile(shares, [1 - stats.CONTROL_QUANTILE, stats.CONTROL_QUANTILE], axis=0)
        for d, name in enumerate(names):
            for step, fraction in enumerate(found.fractions):
                rows.append((order, name, fraction, shares[:, step, d].mean(), low[step, d], high[step, d]))
    return pd.DataFrame(rows, columns=["order", "direction", "deleted", "left", "lower", "upper"])
