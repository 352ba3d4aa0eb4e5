"""Whether a group of units is the same when calibration is drawn again, and where its units lie.

Owns overlap with what chance gives, and composition by kind and layer. What removing a group does is in `unit_tables`.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import scipy.stats

from lib import prompt_sets, unit_scores, units
from lib.errors import InputError
from lib.models import LanguageModel
from lib.unit_scores import Rule

MOST_DRAWS = 100  # of calibration prompts


def overlap(groups: Sequence[pd.DataFrame]) -> list[float]:
    """Jaccard index (shared units over all units of both) of every pair of unit sets."""
    sets = [set(map(tuple, rows[units.KEY].to_numpy().tolist())) for rows in groups]
    if not all(sets):
        raise InputError("a set without units has no overlap with another; choose at least one unit")
    return [len(one & other) / len(one | other) for one, other in combinations(sets, 2)]


def overlap_by_chance(size: int, total: int) -> float:
    """Expected Jaccard index of two random sets of `size` of `total` units (hypergeometric)."""
    if not 0 < size <= total:
        raise InputError(f"sets of {size} of {total} units have no overlap to expect; choose at least one unit")
    shared = np.arange(size + 1)
    return float((scipy.stats.hypergeom(total, size, size).pmf(shared) * shared / (2 * size - shared)).sum())


def composition(table: pd.DataFrame) -> pd.DataFrame:
    """Share of each group in every kind and layer: one row a group, columns (kind, layer), rows sum to 1.

    Units of models trained from different seeds cannot be matched one by one, but this can be compared.
    """
    counts = pd.crosstab(table["group"], [table["kind"], table["layer"]])
    return counts.div(counts.sum(axis=1), axis=0)


def places(grouped: Mapping[str, pd.DataFrame], group: str = "scu") -> pd.DataFrame:
    """Tidy `composition` of one group of several tables, and of all units: columns series, kind, layer, share."""
    first = next(iter(grouped.values()))
    found = {name: pd.Series(composition(table).loc[group]) for name, table in grouped.items()}
    found["all units"] = pd.Series(composition(first.assign(group="all")).loc["all"])
    return pd.concat(
        [part.reset_index(name="share").assign(series=name) for name, part in found.items()], ignore_index=True
    )


def redrawn(
    model: LanguageModel, profile: str, seed: int, rules: Sequence[Rule], draws: int
) -> dict[Rule, list[pd.DataFrame]]:
    """Raw scores by each rule on independent calibration draws, at least two; more than `MOST_DRAWS` are refused."""
    if isinstance(draws, bool) or not isinstance(draws, int) or not 2 <= draws <= MOST_DRAWS:
        raise InputError(f"draws is {draws!r}; give a whole number from 2, to compare them, to {MOST_DRAWS}")
    found = [unit_scores.calibrate(model, prompt_sets.calibration(profile, seed, draw), rules) for draw in range(draws)]
    return {rule: [one.raw[rule] for one in found] for rule in rules}
