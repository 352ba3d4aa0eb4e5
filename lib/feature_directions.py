"""Which components of a shift tell one style of prompt from the rest: the part hd.5.style.

Owns the components of every block (`components`), random directions in equal number (`orthonormal`), how well each
direction tells each style, and the choice of the best on half of the meanings. What tokens a component reads is in
`feature_words`, what removing it does in `component_removal`. Components count from 1: `L2-C3` is row 2 of block 2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import directions, residual, stats
from lib.direction_tables import SHOWN
from lib.errors import InputError, NotHere
from lib.residual import Space
from lib.stats import Interval

FEW = 2  # a shift needs so many components to have a non-dominant one
STYLES_NEEDED = 3  # hd.6 asks for so many that tuning taught


def components(
    before: Float[Tensor, "layer prompt d_model"], after: Float[Tensor, "layer prompt d_model"]
) -> list[Space]:
    """Components of the uncentred shift in every block, with a fixed sign (`directions.oriented`).

    `InputError` where a block's shift has fewer than two: there is no non-dominant direction then.
    """
    spaces = [residual.space(y.double() - x.double(), centred=False) for x, y in zip(before, after, strict=True)]
    for block, space in enumerate(spaces):
        if len(space.directions) < FEW:
            raise InputError(
                f"the shift in block {block} has {len(space.directions)} components, so no non-dominant direction; "
                "compare two models that differ, on more prompts"
            )
    return [Space(directions.oriented(space.directions), space.energy, space.mean) for space in spaces]


def at_depth(hidden_state: int, published_layers: int, layers: int) -> int:
    """The block whose relative depth is nearest to that of a published hidden state, the earlier of two."""
    if not 1 <= hidden_state <= published_layers:
        raise InputError(
            f"hidden state {hidden_state} is not after one of {published_layers} blocks; give 1 to {published_layers}"
        )
    wanted = hidden_state / published_layers
    return min(range(layers), key=lambda block: (abs((block + 1) / layers - wanted), block))


def orthonormal(
    count: int, generator: torch.Generator, within: Float[Tensor, "component d_model"] | None = None, width: int = 0
) -> Float[Tensor, "direction d_model"]:
    """`count` random orthonormal directions of a space of `width`, or of the span of the orthonormal `within`."""
    space = width if within is None else len(within)
    if not 1 <= count <= space:
        raise InputError(f"{count} orthonormal directions do not fit in {space} dimensions; ask for 1 to {space}")
    noise = torch.randn(space, count, generator=generator, dtype=torch.float64)
    drawn = torch.linalg.qr(noise).Q.T
    return drawn if within is None else drawn @ within.double()


# how well directions tell styles --------------------------------------------------------------------------------------
def attack_styles(known: Sequence[str]) -> list[str]:
    """The jailbreak styles of a world, in its order; `NotHere` with fewer than three, because single components are
    told apart by them."""
    if len(known) < STYLES_NEEDED:
        raise NotHere(
            "single components are told apart by the jailbreak style they stand for, and this profile has prompts of "
            f"{len(known)} styles, not of {STYLES_NEEDED} or more; name a set of attacks under `data: attacks`"
        )
    return list(known)


Labels = Bool[np.ndarray, "style prompt"]


def style_labels(styles: Sequence[str], names: Sequence[str]) -> Labels:
    """One row a style of `names`: which prompts are in it. The rest, plain ones included, are not."""
    return np.array([[style == name for style in styles] for name in names])


def style_aucs(
    states: Float[Tensor, "prompt d_model"], along: Float[Tensor, "direction d_model"], labels: Labels
) -> Float[np.ndarray, "style direction"]:
    """Sign-free AUC of every projection for every style against the rest; .5 where a style is absent, or is all."""
    ranks = scipy.stats.rankdata((states.double() @ along.double().T).numpy(), axis=0)
    ones = labels.sum(axis=1, keepdims=True)
    zeros = labels.shape[1] - ones
    pairs = np.maximum(ones * zeros, 1)
    area = (labels.astype(float) @ ranks - ones * (ones + 1) / 2) / pairs
    return np.where(ones * zeros > 0, np.maximum(area, 1 - area), 0.5)


@dataclass(frozen=True)
class Pick:
    """The direction and style chosen on half of the prompts, and the AUC there and on the other half."""

    block: int
    direction: int  # row of what was offered in that block
    style: int
    on_choice: float
    confirmed: float
    scores: Float[np.ndarray, "prompt"]  # projections of the other half


def pick(
    states: Float[Tensor, "layer prompt d_model"],
    offered: Sequence[Float[Tensor, "direction d_model"]],
    labels: Labels,
    choose: Sequence[int],
    confirm: Sequence[int],
) -> Pick:
    """The best (block, direction, style) by AUC on the prompts `choose`; of equals, the first."""
    tables = [style_aucs(x[list(choose)], along, labels[:, choose]) for x, along in zip(states, offered, strict=True)]
    block = int(np.argmax([table.max() for table in tables]))
    style, direction = np.unravel_index(int(tables[block].argmax()), tables[block].shape)
    along, rest = offered[block][int(direction)][None], list(confirm)
    confirmed = style_aucs(states[block][rest], along, labels[[int(style)]][:, rest])[0, 0]
    scores = (states[block][rest].double() @ along[0].double()).numpy()
    return Pick(block, int(direction), int(style), float(tables[block].max()), float(confirmed), scores)


def non_dominant(spaces: Sequence[Space], most: int | None = None) -> list[Float[Tensor, "direction d_model"]]:
    """C2 and all later components of every block, or those up to C`most`."""
    return [space.directions[1:most] for space in spaces]


def random_offers(
    offered: Sequence[Float[Tensor, "direction d_model"]],
    draws: int,
    seed: int,
    spans: Sequence[Float[Tensor, "component d_model"]] | None = None,
) -> Iterator[list[Float[Tensor, "direction d_model"]]]:
    """As many random orthonormal directions in every block as are offered, `draws` times: anywhere, or in the spans."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield [
            orthonormal(len(mine), generator, None if spans is None else spans[block], mine.shape[1])
            for block, mine in enumerate(offered)
        ]


@dataclass(frozen=True)
class StyleGain:
    """hd.5.style: what the chosen component has over random directions chosen in the same way."""

    chosen: Pick
    draws: list[Pick]
    margin: Interval


def style_gain(
    states: Float[Tensor, "layer prompt d_model"],
    offered: Sequence[Float[Tensor, "direction d_model"]],
    random: Iterator[list[Float[Tensor, "direction d_model"]]],
    labels: Labels,
    halves: tuple[Sequence[int], Sequence[int]],
    weights: Float[np.ndarray, "resample prompt"],
) -> StyleGain:
    """AUC on the second half of what is chosen on the first, minus the mean of the same over random directions.

    `weights`, how often each prompt of the second half counts in a resample; choices stay as made.
    """
    choose, confirm = halves
    chosen = pick(states, offered, labels, choose, confirm)
    drawn = [pick(states, one, labels, choose, confirm) for one in random]

    def resampled(one: Pick) -> np.ndarray:
        return directions.resampled_auc(one.scores, labels[one.style][list(confirm)], weights)

    value = chosen.confirmed - float(np.mean([one.confirmed for one in drawn]))
    moved = resampled(chosen) - np.mean([resampled(one) for one in drawn], axis=0)
    defined = moved[np.isfinite(moved)]
    if len(defined) < (1 - stats.UNDEFINED) * len(moved):
        return StyleGain(chosen, drawn, Interval(mean=value, lower=None, upper=None, n=len(confirm), kind="prompts"))
    return StyleGain(chosen, drawn, stats.from_draws(value, defined, len(confirm)))


def taught(
    fit: Float[Tensor, "prompt d_model"],
    fit_styles: Sequence[str],
    test: Float[Tensor, "other d_model"],
    labels: Labels,
    names: Sequence[str],
    confirm: Sequence[int],
) -> pd.DataFrame:
    """How well one direction can tell a style: the difference of means of the fit prompts, learned from labels, on the
    same prompts as `selectivity` with its columns. AUC .5 for a style that the fit prompts do not have."""
    learned = [directions.difference_of_means(fit, row) for row in style_labels(fit_styles, names)]
    found = style_aucs(test[list(confirm)], torch.stack(learned), labels[:, list(confirm)])
    rows = [("difference of means", name, found[s, s]) for s, name in enumerate(names)]
    return pd.DataFrame(rows, columns=["direction", "style", "auc"])


# tables ---------------------------------------------------------------------------------------------------------------
def selectivity(
    states: Float[Tensor, "prompt d_model"],
    space: Space,
    labels: Labels,
    names: Sequence[str],
    halves: tuple[Sequence[int], Sequence[int]],
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """AUC for every style in one block on the second half of the prompts: columns direction, style, auc.

    The first components by name; the best for the style of `directions.SPAN` components but the first, chosen on the
    first half; and the mean over `draws` of the best of as many random directions of their span, chosen likewise.
    """
    choose, confirm = (list(half) for half in halves)
    span = space.directions[: directions.SPAN]
    on_choice, rest = (style_aucs(states[rows], span, labels[:, rows]) for rows in (choose, confirm))
    rows = [(f"C{i + 1}", name, rest[s, i]) for i in range(min(SHOWN, len(span))) for s, name in enumerate(names)]
    best = 1 + on_choice[:, 1:].argmax(axis=1)
    label = f"best of C2 to C{len(span)}"
    rows += [(label, name, rest[s, best[s]]) for s, name in enumerate(names)]
    found = np.zeros((draws, len(names)))
    for draw, (one,) in enumerate(random_offers([span[1:]], draws, seed, [span[1:]])):
        first, second = (style_aucs(states[r], one, labels[:, r]) for r in (choose, confirm))
        found[draw] = second[np.arange(len(names)), first.argmax(axis=1)]
    rows += [(f"best of {len(span) - 1} random", name, found[:, s].mean()) for s, name in enumerate(names)]
    return pd.DataFrame(rows, columns=["direction", "style", "auc"])
