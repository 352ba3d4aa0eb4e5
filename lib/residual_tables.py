"""From residual spaces to what figures show and claims decide: intervals over prompts and tidy curves.

Owns the resampling and the parts of hd.1 and hd.2; the linear algebra is in `residual`, the intervals in `stats`.
Prompts that share a meaning are not independent, so meanings are resampled, with all their prompts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib import residual, stats
from lib.errors import InputError
from lib.residual import Errors
from lib.stats import Interval

Ranks = Mapping[str, Sequence[int]]  # by model, a value a block
Draws = Mapping[str, Int[np.ndarray, "resample layer"]]
UNCENTRED, CENTRED = "uncentred", "centred"
KINDS = {UNCENTRED: False, CENTRED: True}


# affine map ----------------------------------------------------------------------------------------------------------
def _by_group(values: Float[Tensor, "prompt"], groups: Sequence[Sequence[int]]) -> Float[np.ndarray, "group"]:
    return np.array([float(values[list(rows)].sum()) for rows in groups])


def relative_error(
    errors: Errors, name: str, block: int, groups: Sequence[Sequence[int]], seed: int, resamples: int
) -> Interval:
    """Squared error of a map over squared shift, held-out prompts of one block."""
    error, moved = (_by_group(values[block], groups) for values in errors[name])
    return stats.bootstrap(lambda e, m: e.sum() / m.sum(), error, moved, seed=seed, resamples=resamples)


def gain_over_constant(
    errors: Errors, block: int, groups: Sequence[Sequence[int]], seed: int, resamples: int
) -> Interval:
    """Relative error of the constant shift minus that of the affine map, the same prompts."""
    affine, moved = (_by_group(values[block], groups) for values in errors["affine"])
    constant = _by_group(errors["constant"][0][block], groups)
    return stats.bootstrap(
        lambda a, c, m: (c.sum() - a.sum()) / m.sum(), affine, constant, moved, seed=seed, resamples=resamples
    )


def error_curves(errors: Errors, groups: Sequence[Sequence[int]], seed: int, resamples: int) -> pd.DataFrame:
    """Tidy curves of relative error by map and block, with intervals over prompts."""
    rows = []
    for name, (error, _) in errors.items():
        for block in range(len(error)):
            found = relative_error(errors, name, block, groups, seed, resamples)
            rows.append({"map": name, "block": block, "error": found.mean, "lower": found.lower, "upper": found.upper})
    return pd.DataFrame(rows)


# ranks ---------------------------------------------------------------------------------------------------------------
def resampled_ranks(
    shifts: Mapping[str, Float[Tensor, "layer prompt d_model"]],
    groups: Sequence[Sequence[int]],
    share: float,
    centred: bool,
    resamples: int,
    seed: int,
) -> dict[str, Int[np.ndarray, "resample layer"]]:
    """Effective ranks of several models' shifts on resampled meanings, the same resample for all of them.

    A resample repeats some prompts and lacks others, so ranks come out slightly low: read widths, not centres.
    """
    count = {shift.shape[1] for shift in shifts.values()}
    if count != {sum(map(len, groups))}:
        raise InputError(
            f"shifts of {sorted(count)} prompts and meanings of {sum(map(len, groups))} do not belong together"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[list[int]]] = {name: [] for name in shifts}
    for _ in range(resamples):
        chosen = torch.randint(len(groups), (len(groups),), generator=generator).tolist()
        rows = [row for group in chosen for row in groups[group]]
        for name, shift in shifts.items():
            drawn[name].append(residual.ranks(shift[:, rows], share, centred))
    return {name: np.array(found) for name, found in drawn.items()}


def rank_curves(ranks: Mapping[str, Ranks], draws: Mapping[str, Draws]) -> pd.DataFrame:
    """Tidy curves of rank by kind (uncentred, centred), series and block; bounds where there are resamples."""
    rows = []
    for kind, series in ranks.items():
        for name, curve in series.items():
            drawn = draws[kind].get(name)
            low, high = (curve, curve) if drawn is None else np.quantile(drawn, [stats.TAIL, 1 - stats.TAIL], axis=0)
            for block, rank in enumerate(curve):
                bounds = {"lower": min(low[block], rank), "upper": max(high[block], rank)}
                rows.append({"kind": kind, "series": name, "block": block, "rank": rank, **bounds})
    return pd.DataFrame(rows)


def rank_parts(ranks: Mapping[str, Ranks], draws: Mapping[str, Draws], width: int, n: int) -> dict[str, Interval]:
    """The parts of hd.2 and hd.2.centred, from ranks(.9) of SFT and DPO as the registry words them."""
    layers = len(ranks[UNCENTRED]["SFT"])
    early, late = list(residual.first_third(layers)), list(residual.last_third(layers))

    def low(kind: str) -> Interval:
        return stats.from_draws(max(ranks[kind]["SFT"]) / width, draws[kind]["SFT"].max(1) / width, n)

    sft, dpo = (np.array(ranks[UNCENTRED][name]) for name in ("SFT", "DPO"))
    drawn, drawn_dpo = draws[UNCENTRED]["SFT"], draws[UNCENTRED]["DPO"]
    return {
        "hd.2.low": low(UNCENTRED),
        "hd.2.shape": stats.from_draws(sft.max() / sft[early].mean(), drawn.max(1) / drawn[:, early].mean(1), n),
        "hd.2.dpo": stats.from_draws((dpo - sft)[late].mean(), (drawn_dpo - drawn)[:, late].mean(1), n),
        "hd.2.centred.low": low(CENTRED),
    }


def specific_part(ranks: Ranks, draws: Draws, n: int) -> Interval:
    """hd.2.specific.benign: centred rank(.9) of the benign shift minus that of SFT, mean over blocks."""
    value = float(np.mean(np.subtract(ranks["benign"], ranks["SFT"])))
    return stats.from_draws(value, (draws["benign"] - draws["SFT"]).mean(1), n)
