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
Scores = Mapping[str, dict[str, Tensor]]  # "safety" and "utility", then the parameter's name
Gaps = Mapping[str, Tensor]  # I_S - I_U, by the parameter's name
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
    """`set_difference` for every matrix that units are made of, each on its own device, where ranking is fast.

    Where a matrix also holds rows of no unit (queries and keys beside values), those take no part.
    """
    found: Masks = {}
    for name, rows in _owned(model).items():
        device = model.hf.get_parameter(name).device
        safety, utility = (scores[which][name][rows].to(device) for which in ("safety", "utility"))
        found[name] = torch.zeros(scores["safety"][name].shape, dtype=torch.bool)
        found[name][rows] = set_difference(safety, utility, top_safety, top_utility).cpu()
    return found


def difference(scores: Scores) -> Gaps:
    """I_S - I_U of every weight; raw scores. It takes the place of `scores`, which are as large as the model, and are
    empty afterwards."""
    safety, utility = scores["safety"], scores["utility"]
    return {name: safety.pop(name).sub_(utility.pop(name)) for name in list(safety)}


def ranking(model: LanguageModel, gaps: Gaps, most: int) -> pd.DataFrame:
    """The `most` weights with the largest I_S - I_U in the whole model, as units are ranked, the largest first: columns
    parameter, row, column, gap.

    What leads in the whole model leads in its matrix, so the matrices are ranked one by one, where the model is.
    """
    owned = _owned(model)
    possible = sum(rows.numel() * gaps[name].shape[1] for name, rows in owned.items())
    if not 1 <= most <= possible:
        raise InputError(f"{most} weights cannot be chosen; units of this model own 1 to {possible}")
    parts = []
    for name, rows in owned.items():
        mine = gaps[name][rows].to(model.hf.get_parameter(name).device)
        top = mine.flatten().topk(min(most, mine.numel()))
        places = top.indices.cpu()
        row, column = rows[places // mine.shape[1]], places % mine.shape[1]
        about = {"row": row.numpy(), "column": column.numpy(), "gap": top.values.cpu().numpy()}
        parts.append(pd.DataFrame(about).assign(parameter=name))
    return pd.concat(parts, ignore_index=True).sort_values("gap", ascending=False, kind="stable").head(most)


def leading(model: LanguageModel, ranked: pd.DataFrame) -> Masks:
    """The weights of a `ranking`, or of its first rows."""
    found: Masks = {}
    for name in _owned(model):
        rows = ranked[ranked["parameter"] == name]
        found[name] = torch.zeros(model.hf.get_parameter(name).shape, dtype=torch.bool)
        found[name][torch.tensor(rows["row"].to_numpy()), torch.tensor(rows["column"].to_numpy())] = True
    return found


def shuffled(model: LanguageModel, gaps: Gaps, seed: int) -> Gaps:
    """The same I_S - I_U dealt anew among the weights of each matrix: a random control for `ranking`, with as many
    weights in every matrix."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, rows in _owned(model).items():
        gap = gaps[name].clone()
        mine = gap[rows].flatten()
        gap[rows] = mine[torch.randperm(len(mine), generator=generator)].reshape(len(rows), -1)
        found[name] = gap
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
    model: LanguageModel, gaps: Gaps, asked: Panel, series: str, numbers: Sequence[int] = NUMBERS
) -> list[Removal]:
    """Behaviour without the first weights of a ranking over the whole model, for each number of them."""
    possible = sum(rows.numel() * gaps[name].shape[1] for name, rows in _owned(model).items())
    tried = [number for number in numbers if number <= possible]
    ranked = ranking(model, gaps, max(tried)) if tried else pd.DataFrame()
    return _removals(model, ((series, leading(model, ranked.head(number))) for number in tried), asked)


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
