"""Whether a second direction adds to the first, and how directions lie to each other: the parts of hd.4.

Owns the log-loss gained by a second coordinate, the choice of a block on half of the test prompts, and cosines between
probe, components and means. Directions come from `direction_tables.estimate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lib import directions, residual, stats
from lib.direction_tables import BlockDirections, Blocks, Readings, Seen
from lib.errors import InputError
from lib.stats import Interval


# log-loss -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Gains:
    """Log-loss (nats) on test prompts that a logistic regression on C1 saves when given a second coordinate.

    `second` with C2, `random` with directions in the span of the first components, orthogonal to C1.
    """

    second: Float[np.ndarray, "layer prompt"]
    random: Float[np.ndarray, "layer draw prompt"]

    @property
    def margin(self) -> Float[np.ndarray, "layer prompt"]:
        """Saved with C2 minus saved with a random direction, mean over draws."""
        return self.second - self.random.mean(axis=1)


def _block_gains(block: BlockDirections, layer: int, model: Readings) -> tuple[np.ndarray, np.ndarray]:
    fit, test = (seen.states[layer].double() for seen in (model.fit, model.test))

    def losses(*along: Tensor) -> np.ndarray:
        features = [np.stack([(x @ v).numpy() for v in along], axis=1) for x in (fit, test)]
        return directions.log_losses(features[0], model.fit.refused, features[1], model.test.refused)

    first, second = block.single["C1"], block.single["C2"]
    alone = losses(first)
    return alone - losses(first, second), np.stack([alone - losses(first, v) for v in block.sets["beside C1"]])


def gains(blocks: Blocks, model: Readings) -> Gains:
    """Gains in every block; regressions are fitted on the fit prompts."""
    found = [_block_gains(block, layer, model) for layer, block in enumerate(blocks)]
    return Gains(np.stack([second for second, _ in found]), np.stack([random for _, random in found]))


def halves(groups: Sequence[Sequence[int]], seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Meanings in two halves at random: to choose on, to confirm on."""
    if len(groups) < 2:
        raise InputError(f"{len(groups)} meanings cannot be halved; use more prompts")
    order = np.random.default_rng(seed).permutation(len(groups))
    one, other = order[: len(order) // 2], order[len(order) // 2 :]
    return [list(groups[i]) for i in sorted(one)], [list(groups[i]) for i in sorted(other)]


def _over_meanings(
    values: Float[np.ndarray, "prompt"], groups: Sequence[Sequence[int]], seed: int, resamples: int
) -> Interval:
    sums, counts = (np.array([f(values[list(rows)]) for rows in groups]) for f in (np.sum, len))
    found = stats.bootstrap(lambda s, n: s.sum() / n.sum(), sums, counts, seed=seed, resamples=resamples)
    return Interval(mean=found.mean, lower=found.lower, upper=found.upper, n=int(counts.sum()), kind="prompts")


@dataclass(frozen=True)
class Second:
    """hd.4.second: the block chosen, the margin on the other half of the prompts, and what each random draw gains."""

    block: int
    margin: Interval
    draws: list[float]


def second_part(
    found: Gains, layers: Sequence[int], groups: Sequence[Sequence[int]], seed: int, resamples: int
) -> Second:
    """The block of `layers` with the largest margin on half of the meanings, measured on the other half."""
    chosen, confirm = halves(groups, seed)
    rows = [row for group in chosen for row in group]
    best = max(layers, key=lambda layer: found.margin[layer, rows].mean())
    rest = [row for group in confirm for row in group]
    margin = _over_meanings(found.margin[best], confirm, seed=seed, resamples=resamples)
    return Second(best, margin, found.random[best][:, rest].mean(axis=1).tolist())


def gain_curves(found: Gains, groups: Sequence[Sequence[int]], seed: int, resamples: int) -> pd.DataFrame:
    """Log-loss saved by block on all test prompts: columns series, block, gain, lower, upper. For C2 the interval is
    over prompts, for random directions the band is 5-95 % of the draws."""
    rows = []
    for block, second in enumerate(found.second):
        saved = _over_meanings(second, groups, seed=seed, resamples=resamples)
        rows.append(("C2", block, saved.mean, *(saved.bounds or (saved.mean, saved.mean))))
        draws = found.random[block].mean(axis=1)
        low, high = np.quantile(draws, [1 - stats.CONTROL_QUANTILE, stats.CONTROL_QUANTILE])
        rows.append(("random beside C1", block, draws.mean(), low, high))
    return pd.DataFrame(rows, columns=["series", "block", "gain", "lower", "upper"])


# cosines --------------------------------------------------------------------------------------------------------------
def cosine_table(blocks: Blocks) -> pd.DataFrame:
    """|cosine| between directions by block: columns first, second, block, cosine; beside them the probe with random
    directions in the span (mean over draws)."""
    pairs = [(c, other) for other in ("probe", "difference of means", "mean shift") for c in ("C1", "C2")]
    pairs.append(("difference of means", "probe"))
    rows = [
        (first, second, layer, float(directions.cosines(block.single[first][None], block.single[second])[0]))
        for layer, block in enumerate(blocks)
        for first, second in pairs
    ]
    rows += [
        ("random in the span", "probe", layer, float(draw.mean()))
        for layer, draw in enumerate(probe_with_random(blocks))
    ]
    return pd.DataFrame(rows, columns=["first", "second", "block", "cosine"])


def probe_with_random(blocks: Blocks) -> Float[np.ndarray, "layer draw"]:
    """|cosine| of each block's probe with random directions in the span of the first components."""
    return np.stack([directions.cosines(block.sets["in the span"], block.single["probe"]) for block in blocks])


def probe_part(blocks: Blocks, before: Seen, after: Seen, layers: Sequence[int], weights: np.ndarray) -> Interval:
    """hd.4.probe: |cosine| of the probe with C1, mean over `layers`. Probe and C1 are estimated anew on every resample
    of the fit prompts (`weights`, how often each counts)."""
    chosen = list(layers)
    value = np.mean([
        directions.cosines(blocks[layer].single["C1"][None], blocks[layer].single["probe"])[0] for layer in chosen
    ])  # fmt: skip
    drawn = [np.mean([_cosine_again(before, after, layer, once) for layer in chosen]) for once in weights]
    return stats.from_draws(float(value), drawn, len(after.refused))


def _cosine_again(before: Seen, after: Seen, layer: int, weights: np.ndarray) -> float:
    rows = np.repeat(np.arange(len(weights)), weights)
    shift = after.states[layer][rows].double() - before.states[layer][rows].double()
    first = residual.space(shift, centred=False).directions[:1]
    return float(directions.cosines(first, directions.probe(after.states[layer], after.refused, weights))[0])
