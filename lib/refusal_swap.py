"""The rank-one swap: harmful and benign prompts exchange one coordinate, and fulfilling and refusing should change
places (ssah.1.switch).

Owns the coordinate (harmful minus benign mean state at the last prompt token, block by block), the swap, flips, and the
choice of the block on half of the meanings. One prompt is changed at a time: its own coordinate is replaced by the mean
of the other side. Random directions carry prompts as far. Edits are `edits`'s, judging is `behaviour`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import behaviour, directions, edits, one_position, prompts, residual, second_direction, stats
from lib.behaviour import OUTCOMES, Edits
from lib.edits import Positions
from lib.models import LanguageModel
from lib.one_position import EVERY, LAST, Maker
from lib.prompts import Prompt
from lib.stats import Interval

HARMFUL, BENIGN = SIDES = ("harmful", "benign")
OTHER = {HARMFUL: BENIGN, BENIGN: HARMFUL}
Sides = Mapping[str, Sequence[Prompt]]  # prompts by side
Makers = Mapping[str, Maker]  # what is done to each side


# prompts --------------------------------------------------------------------------------------------------------------
def halves(sides: Sides, seed: int) -> tuple[dict[str, list[Prompt]], dict[str, list[Prompt]]]:
    """The meanings of each side in two halves at random: to estimate and choose on, and to measure on."""
    found: tuple[dict[str, list[Prompt]], dict[str, list[Prompt]]] = ({}, {})
    for side, asked in sides.items():
        for half, groups in zip(found, second_direction.halves(prompts.meanings(asked), seed), strict=True):
            half[side] = [asked[row] for group in groups for row in group]
    return found


def middle(layers: int) -> range:
    """Blocks that are neither in the first nor in the last third, as the registry counts them; all blocks of a model
    too shallow to have such."""
    between = range(residual.first_third(layers).stop, residual.last_third(layers).start)
    return between or range(layers)


# the coordinate -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Coordinate:
    """Unit vectors from the benign to the harmful mean in every block, and the mean coordinate of each side there."""

    along: Float[Tensor, "layer d_model"]
    means: Mapping[str, Float[Tensor, "layer"]]

    @property
    def gap(self) -> Float[Tensor, "layer"]:
        """Distance between the two means."""
        return self.means[HARMFUL] - self.means[BENIGN]

    def swap(self, block: int) -> dict[str, Maker]:
        """For each side the edit that puts its coordinate in a block where the other side's mean is."""
        return {side: partial(_put, self.along[block], block, float(self.means[OTHER[side]][block])) for side in SIDES}

    def carry(self, direction: Float[Tensor, "d_model"], block: int) -> dict[str, Maker]:
        """For each side the edit that moves prompts as far as the swap does on average, along another direction."""
        size = float(self.gap[block])
        return {side: partial(_add, direction, block, sign * size) for side, sign in ((HARMFUL, -1), (BENIGN, 1))}


def coordinate(model: LanguageModel, sides: Sides) -> Coordinate:
    """The coordinate of a model from prompts of both sides."""
    states = {side: residual.activations(model, sides[side]).double().mean(1) for side in SIDES}
    along = torch.nn.functional.normalize(states[HARMFUL] - states[BENIGN], dim=1)
    return Coordinate(along, {side: (mean * along).sum(1) for side, mean in states.items()})


def _put(direction: Tensor, block: int, target: float, positions: Positions) -> Edits:
    return {("resid", block): edits.ablate(direction, target, positions=positions)}


def _add(direction: Tensor, block: int, size: float, positions: Positions) -> Edits:
    return {("resid", block): edits.add(direction, size, positions)}


# outcomes -------------------------------------------------------------------------------------------------------------
def answers(model: LanguageModel, asked: Sequence[Prompt], make: Maker, where: str = LAST) -> pd.DataFrame:
    """`one_position.answers` (`refused`, `exact`, `wrong`), whole answers read only where they begin rightly."""
    first = _first(model, asked, make, where)
    begun = first.index[first["begins"]].tolist()
    exact = pd.Series(0.0, index=first.index)
    if begun:
        exact[begun] = one_position.answers(model, [asked[row] for row in begun], make, where)["exact"].to_numpy()
    frame = pd.DataFrame({"refused": first["refused"].astype(float), "exact": exact * ~first["refused"]})
    return frame.assign(wrong=1.0 - frame.max(axis=1))


def _first(model: LanguageModel, asked: Sequence[Prompt], make: Maker, where: str) -> pd.DataFrame:
    """What the first word decides; before any answer the last prompt token is the last of all."""
    return behaviour.first_tokens(model, asked, make("all" if where == EVERY else "last"))


def outcomes(model: LanguageModel, sides: Sides, makers: Makers, where: str = LAST) -> dict[str, pd.DataFrame]:
    """`answers` of each side, with nothing done where `makers` has none."""
    return {side: answers(model, sides[side], makers.get(side, one_position.nothing), where) for side in SIDES}


def flips(
    model: LanguageModel, sides: Sides, makers: Makers, before: Mapping[str, pd.DataFrame], where: str = LAST
) -> dict[str, Bool[np.ndarray, "prompt"]]:
    """Which prompts change their outcome to the other side's: harmful ones from refused to exact, benign ones from
    exact to refused. An answer that is wrong, before or after, is no flip."""
    told = answers(model, sides[HARMFUL], makers[HARMFUL], where)["exact"].to_numpy()
    refused = _first(model, sides[BENIGN], makers[BENIGN], where)["refused"].to_numpy()
    was = before[HARMFUL]["refused"].to_numpy(), before[BENIGN]["exact"].to_numpy()
    return {HARMFUL: (was[0] == 1) & (told == 1), BENIGN: (was[1] == 1) & refused}


def share(found: Mapping[str, Bool[np.ndarray, "prompt"]]) -> Interval:
    """Share of prompts of both sides that flip; each prompt has a meaning of its own."""
    every = np.concatenate([found[side] for side in SIDES])
    return stats.wilson(int(every.sum()), len(every))


def by_block(
    model: LanguageModel, sides: Sides, found: Coordinate, before: Mapping[str, pd.DataFrame], where: str = LAST
) -> pd.DataFrame:
    """Shares that flip under the swap in every block: columns side (also "both"), block, share, lower, upper, n."""
    rows = []
    for block in range(model.layers):
        turned = flips(model, sides, found.swap(block), before, where)
        named = {side: stats.wilson(int(one.sum()), len(one)) for side, one in turned.items()} | {"both": share(turned)}
        rows += [(side, block, one.mean, *(one.bounds or ()), one.n) for side, one in named.items()]
    return pd.DataFrame(rows, columns=["side", "block", "share", "lower", "upper", "n"])


def chosen(table: pd.DataFrame, layers: Sequence[int]) -> int:
    """The block of `layers` in which most prompts of `by_block` flip; the first of equals."""
    both = table[table["side"] == "both"].set_index("block")["share"]
    return max(layers, key=lambda block: float(both[block]))


def random_shares(
    model: LanguageModel,
    sides: Sides,
    found: Coordinate,
    block: int,
    along: Float[Tensor, "draw d_model"],
    before: Mapping[str, pd.DataFrame],
    where: str = LAST,
) -> Float[np.ndarray, "draw"]:
    """Shares that flip when prompts are carried as far along random directions instead."""
    return np.array([share(flips(model, sides, found.carry(one, block), before, where)).mean for one in along])


def random_along(
    span: Float[Tensor, "component d_model"], draws: int, seed: int
) -> dict[str, Float[Tensor, "draw d_model"]]:
    """Random unit vectors in the span of the first components, and anywhere."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "in the span": directions.random_directions(draws, generator, within=span[: directions.SPAN]),
        "anywhere": directions.random_directions(draws, generator, width=span.shape[1]),
    }


def outcome_table(named: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Shares of outcomes with Wilson's interval: columns condition, side, outcome, share, lower, upper, n."""
    rows = []
    for condition, found in named.items():
        for side, table in found.items():
            for outcome in OUTCOMES:
                one = stats.wilson(int(table[outcome].sum()), len(table))
                rows.append((condition, side, outcome, one.mean, *(one.bounds or ()), one.n))
    return pd.DataFrame(rows, columns=["condition", "side", "outcome", "share", "lower", "upper", "n"])
