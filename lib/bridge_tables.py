"""From what units write to what notebook 12 shows and decides: the parts of ours.bridge, their controls and tables.

Owns the prompts (one of each meaning, so that they are independent), the shares of the distance between harmful and
benign prompts that groups of units write, and what removing units does to C1 and removing C1 to units. The arithmetic
of single units is `bridge`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import scipy.stats
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import bridge, directions, freezing_tables, projection_paths, prompts, residual, stats, unit_stability, units
from lib.aims import Aim
from lib.bridge import Values
from lib.errors import InputError
from lib.models import LanguageModel
from lib.prompts import Prompt, PromptSet
from lib.stats import Interval

SHOWN = 6  # components that direct effects are given for
NO_GAP = "harmful and benign prompts lie at the same place on C1"
WRITERS = "written on C1"


@dataclass(frozen=True)
class Seen:
    """What a model's units and its C1 hold at the last token of prompts, one of each meaning, harmful or benign.

    `projection` on C1 after the block of the aim; `table` as `bridge.table` makes it, towards C1.
    """

    aim: Aim
    asked: tuple[Prompt, ...]
    harmful: Bool[np.ndarray, "prompt"]
    values: Values
    projection: Float[np.ndarray, "prompt"]
    table: pd.DataFrame

    @property
    def gap(self) -> float:
        """Harmful minus benign, on C1."""
        return float(self.projection[self.harmful].mean() - self.projection[~self.harmful].mean())

    def of(self, harmful: bool) -> list[Prompt]:
        """The prompts of one side."""
        return [prompt for prompt, mine in zip(self.asked, self.harmful, strict=True) if mine == harmful]


def see(aim: Aim, some: PromptSet) -> Seen:
    """Read the model of an aim on one prompt of each harmful and benign meaning."""
    kept = [prompt for prompt in some if prompt.kind in ("harmful", "benign")]
    asked = tuple(kept[rows[0]] for rows in prompts.meanings(kept))
    harmful = np.array([prompt.harmful for prompt in asked], dtype=bool)
    if harmful.all() or not harmful.any():
        raise InputError("all prompts are on one side, so nothing lies between the two; choose harmful and benign ones")
    found = bridge.values(aim.model, asked)
    projection = (residual.activations(aim.model, asked, layers=[aim.block])[0].double() @ aim.c1).numpy()
    table = bridge.table(aim.model, found, harmful, ~harmful, aim.c1, aim.block)
    return Seen(aim, asked, harmful, found, projection, table)


# shares of the distance -----------------------------------------------------------------------------------------------
def share_of_gap(parts: Float[np.ndarray, "prompt"], seen: Seen, seed: int, resamples: int) -> Interval | None:
    """Harmful minus benign mean of `parts` over that of the projection on C1, prompts resampled within each side; None
    where the two sides do not differ on C1."""

    def difference(values: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return one @ values[seen.harmful] / one.sum(1) - other @ values[~seen.harmful] / other.sum(1)

    sizes = [int(seen.harmful.sum()), int((~seen.harmful).sum())]
    whole = tuple(np.ones((1, size)) for size in sizes)
    if not (gap := difference(seen.projection, *whole)[0]) > 0:
        return None
    rng = np.random.default_rng(seed)
    drawn = tuple(rng.multinomial(size, np.full(size, 1 / size), size=resamples) for size in sizes)
    gaps = difference(seen.projection, *drawn)
    shares = np.divide(difference(parts, *drawn), gaps, out=np.full(resamples, np.nan), where=gaps > 0)
    value, defined = float(difference(parts, *whole)[0] / gap), shares[np.isfinite(shares)]
    if len(defined) < (1 - stats.UNDEFINED) * resamples:
        return Interval(mean=value, lower=None, upper=None, n=sum(sizes), kind="prompts")
    return stats.from_draws(value, defined, sum(sizes))


@dataclass(frozen=True)
class Write:
    """ours.bridge.write: what a unit of a group writes of the distance on C1, minus what the units like it write.

    `draws`: the same for one of those units, drawn at random, in the place of each unit. `over_units`: the interval
    when units are resampled rather than prompts. `balance`: how alike they are.
    """

    margin: Interval | None
    draws: list[float]
    over_units: Interval
    balance: pd.DataFrame

    @property
    def above(self) -> float:
        """Share of the draws that the units as a whole write more than."""
        return float(np.mean(np.array(self.draws) < self.over_units.mean))


def write(seen: Seen, like: Seen, rows: pd.DataFrame, draws: int, seed: int, resamples: int) -> Write:
    """Direct effects on the prompts of `seen` of units `rows`, which are matched by what they do on those of `like`."""
    pairs = [(one, others) for one, others in bridge.alike(like.table, rows) if others]
    if not pairs:
        raise InputError("no unit has another of its kind and layer to be compared with; choose fewer units")
    share = seen.table["direct"].to_numpy() / seen.gap
    beyond = np.array([share[one] - share[others].mean() for one, others in pairs])
    weights = np.zeros(len(share))
    for one, others in pairs:
        weights[one] += 1 / len(pairs)
        np.add.at(weights, others, -1 / (len(others) * len(pairs)))
    margin = share_of_gap(bridge.summed(seen.values, weights * seen.table["written"].to_numpy()), seen, seed, resamples)
    rng = np.random.default_rng(seed)
    drawn = [
        float(np.mean([share[rng.choice(others)] - share[others].mean() for _, others in pairs])) for _ in range(draws)
    ]
    over_units = stats.over_prompts(beyond, seed=seed, resamples=resamples)
    return Write(margin, drawn, over_units, _balance(seen, like, pairs))


def _balance(seen: Seen, like: Seen, pairs: Sequence[tuple[int, list[int]]]) -> pd.DataFrame:
    """Units and those matched to them: medians of what they were matched on, means of what they are compared on."""
    sets = {"the units": [[one] for one, _ in pairs], "matched units": [others for _, others in pairs]}
    rows = {}
    for name, groups in sets.items():
        matched = [like.table.iloc[group][["norm", "contrast"]].abs().mean() for group in groups]
        found = [seen.table.iloc[group][["cosine", "direct"]].mean() for group in groups]
        size, effect = pd.DataFrame(matched).median(), pd.DataFrame(found).mean()
        rows[name] = {
            "column norm, median": size["norm"], "|contrast|, median": size["contrast"],
            "cosine with C1, mean": effect["cosine"], "share of the distance, mean": effect["direct"] / seen.gap,
            "units": len(groups),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def scatter(seen: Seen, table: pd.DataFrame) -> pd.DataFrame:
    """One row a unit for a picture: I_S - I_U (`gap`), `share` of the distance on C1 it writes, whether it is SCU."""
    gap = (table["safety"] - table["utility"]).to_numpy()
    share = seen.table["direct"].to_numpy() / seen.gap
    return seen.table[units.KEY].assign(gap=gap, share=share, scu=(table["group"] == "scu").to_numpy())


def carried(seen: Seen, groups: Mapping[str, pd.DataFrame], draws: int, seed: int, resamples: int) -> pd.DataFrame:
    """What groups of units write of the distance on C1 together, beside as many random units of each kind and layer.

    Columns group, units, share, lower, upper (over prompts), random, random_low, random_high (5th to 95th percentile).
    """
    rows = []
    written, direct = seen.table["written"].to_numpy(), seen.table["direct"].to_numpy()
    for name, group in groups.items():
        weights = written * bridge.inside(seen.table, group)
        found = share_of_gap(bridge.summed(seen.values, weights), seen, seed, resamples)
        if found is None:
            continue
        picked = [freezing_tables.alike(seen.table, group, 1000 * seed + draw) for draw in range(draws)]
        random = np.array([direct[bridge.inside(seen.table, one)].sum() for one in picked]) / seen.gap
        band = np.quantile(random, [1 - stats.CONTROL_QUANTILE, stats.CONTROL_QUANTILE])
        bounds = found.bounds or (found.mean, found.mean)
        rows.append((name, len(group), found.mean, *bounds, float(random.mean()), *band))
    columns = ["group", "units", "share", "lower", "upper", "random", "random_low", "random_high"]
    return pd.DataFrame(rows, columns=columns)


# removing one, reading the other --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Move:
    """ours.bridge.move: how far harmful prompts go towards benign ones on C1 when units are removed, and when as many
    random units are (`draws`). `benign`: how far benign prompts go the same way; what both go is no loss of contrast.
    """

    way: Interval | None
    draws: list[float]
    benign: float | None = None


def move(seen: Seen, rows: pd.DataFrame, draws: int, seed: int, resamples: int) -> Move:
    """Units are set to zero at every token, as the paper removes them."""
    sides = {projection_paths.HARMFUL: seen.of(True), projection_paths.BENIGN: seen.of(False)}

    def states(side: str, taken: pd.DataFrame | None = None) -> Float[Tensor, "one prompt d_model"]:
        edits = None if taken is None else units.edits(taken)
        return residual.activations(seen.aim.model, sides[side], layers=[seen.aim.block], edits=edits)

    groups = {side: states(side) for side in sides}
    groups[projection_paths.REMOVED] = states(projection_paths.HARMFUL, rows)
    found = projection_paths.paths(groups, [seen.aim.c1])
    way = projection_paths.between(found, projection_paths.REMOVED, [0], seed, resamples)
    if way is None:
        return Move(None, [])

    def mean(x: Tensor) -> float:
        return float((x[0].double() @ seen.aim.c1).mean())

    start, goal = (mean(groups[side]) for side in sides)
    drawn = [
        (start - mean(states(projection_paths.HARMFUL, units.matched(seen.table, rows, [seed, draw])))) / (start - goal)
        for draw in range(draws)
    ]
    benign = (goal - mean(states(projection_paths.BENIGN, rows))) / (start - goal)
    return Move(way, drawn, benign)


def summary(written: Mapping[str, Write], moved: Mapping[str, Move]) -> pd.DataFrame:
    """What both parts come to for every group: columns group, part, value, lower, upper (None where unknown), n, and
    mean, lowest and highest of the control draws."""
    every = {"write": {name: (one.margin, one.draws) for name, one in written.items()}}
    every["move"] = {name: (one.way, one.draws) for name, one in moved.items()}
    rows = []
    for part, groups in every.items():
        for name, (found, draws) in groups.items():
            if found is None:
                continue
            low, high = found.bounds or (None, None)
            spread = (float(np.mean(draws)), min(draws), max(draws))
            rows.append((name, part, found.mean, low, high, found.n, *spread))
    columns = ["group", "part", "value", "lower", "upper", "n", "random", "random_low", "random_high"]
    return pd.DataFrame(rows, columns=columns)


def contrast_lost(seen: Seen, rows: Mapping[str, pd.DataFrame], draws: int, seed: int) -> pd.DataFrame:
    """What groups of units lose of their contrast between harmful and benign prompts when C1 is removed in every block,
    and when a random direction in the span of each block's first components is.

    Contrasts weigh by column norm; lost is 1 minus the sum of absolute contrasts after over that before, so it is
    negative where they grow. Columns group, removed, lost, low, high (5th to 95th percentile of the random draws).
    """
    aim, every = seen.aim, range(seen.aim.model.layers)
    generator = torch.Generator().manual_seed(seed)
    spans = [part[: directions.SPAN] for part in aim.components]
    edits = {"C1": [aim.removal(every)("all")], "random": []}
    for _ in range(draws):
        along = [directions.random_directions(1, generator, within=span)[0] for span in spans]
        edits["random"].append(aim.replacing(along, every)("all"))
    norm, before = seen.table["norm"].to_numpy(), np.abs(seen.table["contrast"].to_numpy())
    chosen, found = {name: bridge.inside(seen.table, group) for name, group in rows.items()}, []
    for removed, some in edits.items():
        after = [bridge.values(aim.model, seen.asked, one) for one in some]
        sizes = [np.abs(bridge.means(x, seen.harmful) - bridge.means(x, ~seen.harmful)) * norm for x in after]
        for name, mine in chosen.items():
            whole = float((before * norm)[mine].sum())
            lost = np.array([1 - float(size[mine].sum()) / whole for size in sizes]) if whole > 0 else np.zeros(1)
            band = np.quantile(lost, [1 - stats.CONTROL_QUANTILE, stats.CONTROL_QUANTILE])
            found.append((name, removed, float(lost.mean()), *band))
    return pd.DataFrame(found, columns=["group", "removed", "lost", "low", "high"])


# which units ----------------------------------------------------------------------------------------------------------
def correlations(seen: Seen, scored: Mapping[str, pd.DataFrame], draws: int, seed: int) -> pd.DataFrame:
    """Spearman correlation over all units of I_S - I_U with what they write, towards harmful prompts, on each of the
    first components: rows scores, columns components, and `random` (a mean of absolute values) with `random_high`
    (95th percentile) for random directions in the span. Components have the sign that puts harmful prompts above."""
    aim = seen.aim
    first = aim.first(SHOWN)
    generator = torch.Generator().manual_seed(seed)
    random = directions.random_directions(draws, generator, within=aim.components[aim.block][: directions.SPAN])
    contrast = seen.table["contrast"].to_numpy()
    effects = {
        name: bridge.written(aim.model, along, aim.block) * contrast
        for name, along in (("own", first), ("draw", random))
    }
    rows = {}
    for score, table in scored.items():
        key = (table["safety"] - table["utility"]).to_numpy()
        own = {f"C{i + 1}": _spearman(key, effect) for i, effect in enumerate(effects["own"])}
        drawn = np.abs([_spearman(key, effect) for effect in effects["draw"]])
        rows[score] = own | {"random": drawn.mean(), "random_high": np.quantile(drawn, stats.CONTROL_QUANTILE)}
    return pd.DataFrame(rows).T


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(one, other).statistic)


def found_by(like: Seen, before: LanguageModel, scu: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """As many units by other criteria as `scu` has by scores: what they write on C1 (directly, or in total, by
    gradient) on the prompts of `like`, and how far the shift `before` -> the aim's model moved their weights."""
    aim, count = like.aim, max(map(len, scu.values()))
    usual = bridge.means(like.values, ~like.harmful)
    scores = {
        WRITERS: like.table["direct"].to_numpy(),
        "gradient to C1": bridge.total(aim.model, like.of(True), usual, aim.c1, aim.block),
        "weight change": bridge.changed(before, aim.model),
    }
    return dict(scu) | {name: bridge.largest(aim.model, one, count) for name, one in scores.items()}


def overlaps(sets: Mapping[str, pd.DataFrame], total: int) -> pd.DataFrame:
    """Jaccard index of every two sets of units, and what two random sets of that size share: a row a pair."""
    found = unit_stability.overlap(list(sets.values()))
    sizes = {name: len(rows) for name, rows in sets.items()}
    rows = [
        (one, other, value, unit_stability.overlap_by_chance(min(sizes[one], sizes[other]), total))
        for (one, other), value in zip(combinations(sets, 2), found, strict=True)
    ]
    return pd.DataFrame(rows, columns=["units by", "and by", "overlap", "by chance"])
