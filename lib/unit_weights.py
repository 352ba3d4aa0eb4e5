"""Single weights against whole units: how few parameters of each kind carry refusal (`ssah.11`).

Owns choosing and removing single weights, and the comparison of sizes. Weights are scored in `unit_scores`, by the set
difference of Wei et al. (2024, "Assessing the brittleness of safety alignment") or by the causal score that units have
too; only matrices that units are made of count. Whole units are removed by `unit_tables.dose`.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import families, stats, unit_scores, unit_tables, units
from lib.errors import InputError
from lib.models import LanguageModel
from lib.stats import UNDEFINED, Interval
from lib.unit_tables import Panel

TOP_SAFETY = (0.001, 0.003, 0.01, 0.03, 0.05)  # q
TOP_UTILITY = (0.01, 0.03, 0.1)  # p
NUMBERS = (10, 30, 60, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000)
Scores = Mapping[str, Mapping[str, Tensor]]  # "safety" and "utility", then the parameter's name
Masks = dict[str, Bool[Tensor, "out in"]]


@dataclass(frozen=True)
class Removal:
    """A set of parameters taken away: by which rule, how many, and what the model did then (`unit_tables.observe`)."""

    series: str
    parameters: int
    observed: pd.DataFrame


# choosing weights -----------------------------------------------------------------------------------------------------
def set_difference(
    safety: Float[Tensor, "out in"], utility: Float[Tensor, "out in"], top_safety: float, top_utility: float
) -> Bool[Tensor, "out in"]:
    """Weights among the top `top_safety` of the safety scores and not the top `top_utility` of the utility scores.

    Shares are of this matrix, and their counts are cut off, not rounded, as in the released code.
    """
    for name, share in (("top_safety", top_safety), ("top_utility", top_utility)):
        if not 0 <= share <= 1:
            raise InputError(f"{name} {share:g} is outside 0 to 1; it is a share of the matrix")
    if safety.shape != utility.shape:
        raise InputError(f"scores of shapes {tuple(safety.shape)} and {tuple(utility.shape)} are of different matrices")

    def top(scores: Tensor, share: float) -> Tensor:
        chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        chosen[scores.flatten().topk(int(share * scores.numel())).indices] = True
        return chosen

    return (top(safety, top_safety) & ~top(utility, top_utility)).reshape(safety.shape)


def differing(model: LanguageModel, scores: Scores, top_safety: float, top_utility: float) -> Masks:
    """`set_difference` for every matrix that units are made of.

    Where a matrix also holds rows of no unit (queries and keys beside values), those take no part.
    """
    found: Masks = {}
    for name, rows in _owned(model).items():
        safety, utility = (scores[which][name] for which in ("safety", "utility"))
        found[name] = torch.zeros_like(safety, dtype=torch.bool)
        found[name][rows] = set_difference(safety[rows], utility[rows], top_safety, top_utility)
    return found


def leading(model: LanguageModel, scores: Scores, number: int) -> Masks:
    """The `number` weights with the largest I_S - I_U in the whole model, as units are ranked; raw scores."""
    owned = _owned(model)
    gaps = {name: (scores["safety"][name] - scores["utility"][name])[rows].cpu() for name, rows in owned.items()}
    every = torch.cat([gap.flatten() for gap in gaps.values()])
    if not 1 <= number <= len(every):
        raise InputError(f"{number} weights cannot be chosen; units of this model own 1 to {len(every)}")
    chosen = torch.zeros(len(every), dtype=torch.bool)
    chosen[every.topk(number).indices] = True
    parts = chosen.split([gap.numel() for gap in gaps.values()])
    found: Masks = {}
    for (name, rows), part in zip(owned.items(), parts, strict=True):
        found[name] = torch.zeros_like(scores["safety"][name], dtype=torch.bool)
        found[name][rows] = part.reshape(gaps[name].shape).to(found[name].device)
    return found


def shuffled(model: LanguageModel, scores: Scores, seed: int) -> Scores:
    """The same scores I_S - I_U dealt anew among the weights of each matrix: a random control for `leading`, with as
    many weights in every matrix."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, Tensor]] = {"safety": {}, "utility": {}}
    for name, rows in _owned(model).items():
        gap = (scores["safety"][name] - scores["utility"][name]).clone()
        mine = gap[rows].flatten()
        gap[rows] = mine[torch.randperm(len(mine), generator=generator)].reshape(len(rows), -1)
        found["safety"][name], found["utility"][name] = gap, torch.zeros_like(gap)
    return found


def _owned(model: LanguageModel) -> dict[str, Tensor]:
    """For every matrix with weights of units, the rows that belong to them."""
    found = {}
    for kind, layer in unit_scores.cells(model):
        for name, dim, index in families.unit_slices(model.hf, kind, layer):
            weight = model.hf.get_parameter(name)
            if weight.ndim == 2:
                found[name] = index.unique() if dim == 0 else torch.arange(len(weight))
    return found


# taking them away -----------------------------------------------------------------------------------------------------
def without(model: LanguageModel, chosen: Masks) -> LanguageModel:
    """A copy of the model with the chosen weights set to 0."""
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        for name, mask in chosen.items():
            weight = hf.get_parameter(name)
            if mask.shape != weight.shape:
                raise InputError(f"a mask of shape {tuple(mask.shape)} for {name}, which is {tuple(weight.shape)}")
            weight.masked_fill_(mask.to(weight.device), 0.0)
    return replace(model, name=f"{model.name} without single weights", hf=hf)


def _removals(model: LanguageModel, sets: Iterable[tuple[str, Masks]], asked: Panel) -> list[Removal]:
    return [
        Removal(
            series, sum(int(mask.sum()) for mask in chosen.values()), unit_tables.observe(without(model, chosen), asked)
        )
        for series, chosen in sets
    ]


def by_set_difference(
    model: LanguageModel,
    scores: Scores,
    asked: Panel,
    top_safety: Sequence[float] = TOP_SAFETY,
    top_utility: Sequence[float] = TOP_UTILITY,
) -> list[Removal]:
    """Behaviour without the set difference, for every pair (p, q)."""
    sets = (
        (f"single weights, set difference p = {p:g}", differing(model, scores, q, p))
        for p in top_utility
        for q in top_safety
    )
    return _removals(model, sets, asked)


def by_ranking(
    model: LanguageModel, scores: Scores, asked: Panel, series: str, numbers: Sequence[int] = NUMBERS
) -> list[Removal]:
    """Behaviour without the first weights of a ranking over the whole model, for each number of them."""
    possible = sum(rows.numel() * scores["safety"][name].shape[1] for name, rows in _owned(model).items())
    sets = ((series, leading(model, scores, number)) for number in numbers if number <= possible)
    return _removals(model, sets, asked)


def of_units(
    model: LanguageModel, table: pd.DataFrame, ru: float, doses: Mapping[int, pd.DataFrame], series: str
) -> list[Removal]:
    """What `unit_tables.dose` measured, with the number of parameters that those units own."""
    found = []
    for number, observed in doses.items():
        rows = units.groups(table, ru=ru, scu=number / len(table)).query("group == 'scu'")
        found.append(Removal(series, units.parameters(model, rows), observed))
    return found


# sizes ----------------------------------------------------------------------------------------------------------------
def sufficient(observed: pd.DataFrame, dense: pd.DataFrame, rise: float, cost: float) -> Bool[np.ndarray, "resample"]:
    """Whether a removal raises attack success by `rise` and costs at most `cost` utility: as measured, then in every
    resample."""
    change = (observed - dense).round(stats.DIGITS)
    return ((change["attack_success"] >= rise) & (-change["utility"] <= cost)).to_numpy()


def smallest(
    removals: Sequence[Removal], dense: pd.DataFrame, rise: float, cost: float
) -> Float[np.ndarray, "resample"]:
    """Size of the smallest `sufficient` removal in every resample; infinite where there is none."""
    if not removals:
        raise InputError("no removals to compare; measure at least one")
    sizes = [np.where(sufficient(one.observed, dense, rise, cost), one.parameters, np.inf) for one in removals]
    return np.min(sizes, axis=0)


@dataclass(frozen=True)
class SizeRatio:
    """Parameters that whole units and single weights need (None where no set tried suffices), and their ratio with its
    interval. `reason` says where a kind never suffices; `ratio` is None where that leaves it open."""

    units: int | None
    weights: int | None
    ratio: Interval | None
    reason: str


def size_ratio(
    of_units: Sequence[Removal],
    of_weights: Sequence[Removal],
    dense: pd.DataFrame,
    bounds: tuple[float, float],
    most: float,
    n: int,
) -> SizeRatio:
    """How many times more parameters whole units need than single weights, over `n` prompts; `bounds` as in `smallest`.

    A kind that never suffices needs more than its largest set tried, which then stands in for it: the ratio is only a
    bound, and given only where it settles whether the true one is at most `most`. Resamples in which neither kind
    suffices are left out; with more than 5 % of them, the bounds are unknown.
    """
    found = [smallest(one, dense, *bounds) for one in (of_units, of_weights)]
    of_unit, of_weight = (int(one[0]) if np.isfinite(one[0]) else None for one in found)
    tried = [max(one.parameters for one in some) for some in (of_units, of_weights)]
    filled = [np.where(np.isfinite(one), one, top) for one, top in zip(found, tried, strict=True)]
    ratios, known = np.divide(*filled), np.isfinite(np.array(found)).any(axis=0)
    at_least, at_most = of_unit is None, of_weight is None  # the ratio is only such a bound
    lacking = [name for name, never in (("whole units", at_least), ("single weights", at_most)) if never]
    sizes = f"of up to {tried[0]:,} and {tried[1]:,} parameters"
    reason = f"no set of {' and none of '.join(lacking)} suffices, {sizes}" if lacking else ""
    if (at_least and ratios[0] <= most) or (at_most and ratios[0] > most) or (at_least and at_most):
        return SizeRatio(of_unit, of_weight, None, reason)
    ratio = Interval(mean=float(ratios[0]), lower=None, upper=None, n=n, kind="prompts")
    if known[1:].mean() >= 1 - UNDEFINED:
        ratio = stats.from_draws(float(ratios[0]), ratios[1:][known[1:]], n)
    return SizeRatio(of_unit, of_weight, ratio, reason)


def size_curve(removals: Sequence[Removal], dense: pd.DataFrame, asked: Panel) -> pd.DataFrame:
    """Tidy changes by number of parameters: columns series, parameters, attribute (rise of attack success, drop in
    utility), value, lower, upper."""
    rows = []
    for one in removals:
        for what, sign in (("attack_success", 1), ("utility", -1)):
            found = unit_tables.interval(sign * (one.observed - dense)[what], asked.n(what))
            low, high = found.bounds or (found.mean, found.mean)
            rows.append((one.series, one.parameters, what, found.mean, low, high))
    return pd.DataFrame(rows, columns=["series", "parameters", "attribute", "value", "lower", "upper"])
