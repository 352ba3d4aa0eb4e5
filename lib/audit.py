"""Findings about printed numbers: sums, averages and labels that do not follow from their cells.

Owns the shape of a finding, when a number counts as printed, and the checks of one table against another. Checks that
need a sample size, a chance level or a sentence of the text are in `audit_tables`. Everything is a pure function of the
tables in `data/published`; clean tables give None. Names and consequences are our words; every number is computed.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from lib import stats
from lib.errors import InputError

HIDDEN_FLOW = 0.1  # SSAH Figs 5 and 6 leave out flows below so many per cent of all units
BENIGN = "OR-Bench"  # the one row of HD Tables 5-7 that is no attack
SCORED = "SFT"  # the training of HD Table 5, which Table 3 stands beside
EPSILON = 1e-9  # decimals are compared as floats
_SOURCE = ("claim", "source", "version", "reliability")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One place where printed numbers disagree, or say something else than they seem to.

    `where`, `version` and `reliability` are those of the rows it rests on. `cells` are the cells in question with the
    arithmetic beside them; `checked` is how many were looked at.
    """

    name: str
    claim: str
    where: str
    version: str
    reliability: str
    cells: pd.DataFrame
    checked: int
    arithmetic: str
    consequence: str

    def __str__(self) -> str:
        source = f"{self.where} ({self.version}; {self.reliability})"
        return "\n".join(textwrap.fill(line, 110) for line in (source, self.arithmetic, f"So: {self.consequence}."))


def need(table: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """`InputError` unless the table has rows, these columns, and the four that name a source."""
    missing = [name for name in (*columns, *_SOURCE) if name not in table]
    if missing:
        raise InputError(
            f"the table of {what} lacks the columns {', '.join(missing)}; see data/published for its shape"
        )
    if table.empty:
        raise InputError(f"the table of {what} has no rows; pass it before it is filtered to nothing")


def finding(name: str, sources: Sequence[pd.DataFrame], **rest: Any) -> Finding:
    """A finding that takes claim, place, version and reliability from the rows it rests on."""
    rows = pd.concat([source[list(_SOURCE)] for source in sources])
    claim, where, version, tag = ("; ".join(dict.fromkeys(rows[column])) for column in _SOURCE)
    return Finding(name=name, claim=claim, where=where, version=version, reliability=tag, **rest)


def summary(found: Iterable[Finding]) -> pd.DataFrame:
    """One line a finding, ready to read."""
    lines = [(f.name, f.where, f.version, f.reliability, f.arithmetic, f.consequence) for f in found]
    columns = ["finding", "where", "version", "reliability", "arithmetic", "consequence"]
    return pd.DataFrame(lines, columns=columns).set_index("finding")


# printed decimals -----------------------------------------------------------------------------------------------------
def decimals(cell: float) -> int:
    """Decimals needed to write `cell`: .19 has 2, 25.0 has 0. A zero that was printed at the end cannot be seen."""
    exponent = Decimal(repr(float(cell))).normalize().as_tuple().exponent
    return max(0, -int(exponent))


def prints_as(value: float, cell: float, digits: int | None = None) -> bool:
    """Whether `value`, rounded or cut off after `digits` decimals (else those of `cell`), is printed as `cell`."""
    unit = 10.0 ** -(decimals(cell) if digits is None else digits)
    return cell - unit / 2 - EPSILON <= value < cell + unit - EPSILON


def agreement(
    what: str, printed: Sequence[float], computed: Sequence[float], digits: int | None = None
) -> dict[str, Any]:
    """One line of the list of what adds up: how many cells, how many follow, and the largest difference."""
    if len(printed) != len(computed) or not len(printed):
        raise InputError(f"{what}: {len(printed)} printed and {len(computed)} computed cells; give as many of each")
    pairs = list(zip(printed, computed, strict=True))
    follow = sum(prints_as(value, cell, digits) for cell, value in pairs)
    far = max(abs(value - cell) for cell, value in pairs)
    return {"what": what, "cells": len(pairs), "follow": follow, "largest difference": far}


# sums and averages ----------------------------------------------------------------------------------------------------
def averages(table: pd.DataFrame, parts: Sequence[str], printed: str) -> Finding | None:
    """Rows whose printed average is not the mean of its columns (SSAH Table 1).

    `third`: whole numbers from 0 to 100 that would, as one more column, give the printed value.
    """
    need(table, ["model", "group", *parts, printed], "averages")
    digits = max(decimals(cell) for cell in table[printed])
    cells = table[["model", "group", *parts, printed]].assign(mean=table[list(parts)].mean(axis=1))
    off = [not prints_as(m, p, digits) for m, p in zip(cells["mean"], cells[printed], strict=True)]
    if not any(off):
        return None
    cells = cells[off].reset_index(drop=True)
    cells["third"] = [
        " or ".join(str(t) for t in range(101) if prints_as((mean * len(parts) + t) / (len(parts) + 1), shown, digits))
        for shown, mean in zip(cells[printed], cells["mean"], strict=True)
    ]
    rows = [f"{r['group']} {r[printed]:.1f} printed, {r['mean']:.1f} computed" for _, r in cells.iterrows()]
    return finding(
        "an average that is not the mean of its columns",
        [table[off]],
        cells=cells,
        checked=len(table),
        arithmetic=f"{'; '.join(rows)}; a further column of {', '.join(cells['third'].replace('', 'nothing'))} fits",
        consequence=_rises(cells, printed),
    )


def _rises(cells: pd.DataFrame, printed: str) -> str:
    rises = []
    for model, part in cells.set_index("group").groupby("model"):
        if {"dense", "scu"} <= set(part.index):
            up = part.loc[["dense", "scu"], [printed, "mean"]].to_numpy(dtype=float)
            shown, mean = up[1] - up[0]
            rises.append(f"{model}, dense to SCU: a rise of {shown:.1f} as printed, {mean:.1f} from the two columns")
    return "; ".join(rises) or "the printed average cannot be checked from its own table"


def flows(bands: pd.DataFrame, groups: pd.DataFrame) -> Finding | None:
    """Groups whose flows do not add up to their size (SSAH Figs 5 and 6).

    Flows below `HIDDEN_FLOW` are not drawn: a sum may fall short by that much for each group of the other side that
    has no band, and never exceeds its group by more than rounding.
    """
    need(bands, ["figure", "before", "after", "share"], "flows")
    need(groups, ["figure", "when", "group", "share"], "group sizes")
    rows = []
    for size in groups.to_dict("records"):
        mine = bands[(bands["figure"] == size["figure"]) & (bands[size["when"]] == size["group"])]["share"]
        others = ((groups["figure"] == size["figure"]) & (groups["when"] != size["when"])).sum()
        excess, rounding = float(mine.sum() - size["share"]), 0.005 * (len(mine) + 1) + EPSILON
        off = excess > rounding or -excess > rounding + HIDDEN_FLOW * max(0, others - len(mine))
        terms = " + ".join(f"{share:g}" for share in mine)
        rows.append((size["figure"], size["when"], size["group"], terms, mine.sum(), size["share"], excess, off))
    columns = ["figure", "when", "group", "flows", "sum", "printed", "sum - printed", "off"]
    cells = pd.DataFrame(rows, columns=columns)
    wrong = cells[cells["off"]].drop(columns="off").reset_index(drop=True)
    if wrong.empty:
        return None
    figures = set(wrong["figure"])
    sums = [f"{r['group']} {r['when']}: {r['flows']} = {r['sum']:.2f}, printed {r['printed']:.2f}"
            for _, r in wrong.iterrows()]  # fmt: skip
    return finding(
        "flows that do not add up to their groups",
        [bands[bands["figure"].isin(figures)], groups[groups["figure"].isin(figures)]],
        cells=wrong,
        checked=len(cells),
        arithmetic="; ".join(sums),
        consequence=f"shares that stay or leave are good to {wrong['sum - printed'].abs().max():.1f} % of units until "
        "a label tells where the rest goes",
    )


def headline(said: pd.DataFrame, scores: pd.DataFrame) -> Finding | None:
    """A mean before and after that no training gives over all attacks (HD section 3.2 against Tables 5-7).

    Counts also the subsets of attacks, of whatever size, whose mean before is the printed one, and names the nearest.
    """
    need(said, ["before", "after"], "the headline")
    need(scores, ["training", "attack", "shots", "score"], "scores")
    attacks = scores[~scores["attack"].str.startswith(BENIGN)]
    last = attacks["shots"].max()
    means = attacks.pivot_table(index="training", columns="shots", values="score")
    cells = means[[0, last]].set_axis(["before", "after"], axis=1)
    before, after = (float(said[name].iloc[0]) for name in cells)
    if any(prints_as(row["before"], before) and prints_as(row["after"], after) for _, row in cells.iterrows()):
        return None
    start = attacks[attacks["shots"] == 0].groupby("attack")["score"].first()
    every = (one for size in range(1, len(start) + 1) for one in combinations(start.index, size))
    subsets = {one: float(start[list(one)].mean()) for one in every}
    fit = sum(prints_as(mean, before) for mean in subsets.values())
    near = min(subsets, key=lambda names: abs(subsets[names] - before))
    pairs = "; ".join(f"{name} {row['before']:.3f} to {row['after']:.3f}" for name, row in cells.iterrows())
    return finding(
        "a headline that its tables do not give",
        [said, scores],
        cells=cells.reset_index(),
        checked=len(cells),
        arithmetic=f"text: {before:.2f} to {after:.2f}; mean of {len(start)} attacks at K = 0 and {last}: {pairs}; "
        f"{fit} of {len(subsets)} subsets of the attacks average {before:.2f} at K = 0; the nearest is "
        f"{subsets[near]:.3f} ({', '.join(near)})",
        consequence="quote the tables, not the headline, which may come from other attacks or another judge",
    )


# labels ---------------------------------------------------------------------------------------------------------------
def other_metric(table: pd.DataFrame, released: pd.DataFrame, scores: pd.DataFrame) -> Finding | None:
    """Rows of a table of pass rates that are another table's scores in every column (HD Table 3 and Table 5)."""
    need(table, ["attack", "shots", "pass_rate"], "pass rates")
    need(released, ["attack", "shots", "matching", "prompts"], "released counts")
    need(scores, ["training", "attack", "shots", "score"], "scores")
    scored = scores[scores["training"] == SCORED]
    known = released.assign(released=1 - released["matching"] / released["prompts"])
    cells = table[["attack", "shots", "pass_rate"]]
    for other, column in ((scored, "score"), (known, "released")):
        cells = cells.merge(other[["attack", "shots", column]], "left")
        cells[f"is {column}"] = [prints_as(v, c, 2) for v, c in zip(cells[column], cells["pass_rate"], strict=True)]
    rows = cells.groupby("attack", sort=False)[["is score", "is released"]].all()
    names = rows.index[rows["is score"] & ~rows["is released"]]
    if not len(names):
        return None
    wrong = cells[cells["attack"].isin(names)][["attack", "shots", "pass_rate", "score"]].reset_index(drop=True)
    n, top = int(released["prompts"].iloc[0]), float(wrong["pass_rate"].max())
    near = " and ".join(f"{k}/{n} = {k / n:.3f}" for k in (math.floor(top * n), math.ceil(top * n)))
    return finding(
        "a row in another metric",
        [table[table["attack"].isin(names)], scored[scored["attack"].isin(names)]],
        cells=wrong,
        checked=len(rows),
        arithmetic=f"{', '.join(names)}: all {len(wrong)} cells are the StrongREJECT score of {SCORED}; {top:.2f} is "
        f"between {near}; {rows['is released'].sum()} of {len(rows)} rows are 1 - the released accuracy",
        consequence="this row cannot be read against the others: its 0 is a score of 0, theirs ends at a floor",
    )


def ratio_label(table: pd.DataFrame) -> Finding | None:
    """Rows whose printed ratio divides by the shift and not, as labelled, by the activation (HD Table 4).

    `relative` is the error relative to the shift if the printed error is a mean over the `width` elements.
    """
    need(table, ["hidden_state", "mse", "norm_before", "norm_shift", "printed_ratio", "width"], "affine errors")
    labelled, by_shift = table["mse"] / table["norm_before"], table["mse"] / table["norm_shift"]

    def printed(ratio: pd.Series) -> np.ndarray:  # three to four printed digits in each of two factors
        return np.isclose(ratio.to_numpy(), table["printed_ratio"].to_numpy(), rtol=2e-3, atol=0)

    wrong = printed(by_shift) & ~printed(labelled)
    if not wrong.any():
        return None
    shown = ["hidden_state", "mse", "norm_before", "norm_shift"]
    cells = table[shown].assign(labelled=labelled, by_shift=by_shift, printed=table["printed_ratio"])
    cells = cells.assign(relative=by_shift * table["width"])[wrong].reset_index(drop=True)
    row = cells.iloc[-1]
    return finding(
        "a ratio with another denominator than its label",
        [table[wrong]],
        cells=cells,
        checked=len(table),
        arithmetic=f"{len(cells)} of {len(table)} rows; layer {row['hidden_state']:.0f}: {row['mse']:.4g} / "
        f"{row['norm_before']:.4g} = {row['labelled']:.3g}, / {row['norm_shift']:.4g} = {row['by_shift']:.4g}, printed "
        f"{row['printed']:.4g}",
        consequence="the printed ratio is relative to the shift, the stricter yardstick; if its error is a mean over "
        f"{table['width'].iloc[0]:,} elements, the map misses {cells['relative'].min():.2%} to "
        f"{cells['relative'].max():.0%} of the shift",
    )


def score_name(scores: pd.DataFrame, norms: pd.DataFrame) -> Finding | None:
    """A 'log-likelihood' with positive values: 2 cov(projection, label), as long as the activations (HD Fig. 5).

    `scores` of one component. The gap between the class means is score / (2 p (1 - p)), p the share of positive
    labels; the squared lengths in `norms` (HD Table 4) put it in proportion.
    """
    need(scores, ["hidden_state", "value", "prompts", "positive"], "scores")
    need(norms, ["hidden_state", "norm_before"], "norms")
    above = int((scores["value"] > 0).sum())
    if not above:
        return None
    share = scores["positive"].iloc[0] / scores["prompts"].iloc[0]
    factor = 2 * share * (1 - share)
    cells = scores[["hidden_state", "value"]].merge(norms[["hidden_state", "norm_before"]])
    cells = cells.assign(gap=cells["value"] / factor, length=cells.pop("norm_before") ** 0.5)
    cells["gap / length"] = cells["gap"] / cells["length"]
    top, end = cells.iloc[int(cells["gap / length"].argmax())], cells.iloc[-1]
    span = f"layer {top['hidden_state']:.0f} to {end['hidden_state']:.0f}"
    return finding(
        "a log-likelihood that is a covariance",
        [scores, norms],
        cells=cells,
        checked=len(scores),
        arithmetic=f"{above} of {len(scores)} values are positive, up to {scores['value'].max():.2f}, and no mean "
        f"log-likelihood of labels is; gap = score / {factor:.3f}; {span}: gap / length {top['gap / length']:.2f} to "
        f"{end['gap / length']:.2f}",
        consequence=f"{span}: the score grows {end['value'] / top['value']:.1f}-fold, the length of activations "
        f"{end['length'] / top['length']:.1f}-fold, so growth alone shows no confidence (if both are of one model)",
    )


def same_start(scores: pd.DataFrame) -> Finding | None:
    """A first column that is the same in every training, so a model before any of them (HD Tables 5-7)."""
    need(scores, ["training", "attack", "shots", "score"], "scores")
    first, second = sorted(scores["shots"].unique())[:2]
    cells = scores[scores["shots"] == first].pivot(index="attack", columns="training", values="score")
    if cells.shape[1] < 2 or (cells.nunique(axis=1, dropna=False) > 1).any():
        return None
    mean = scores[~scores["attack"].str.startswith(BENIGN)].groupby(["training", "shots"])["score"].mean()
    falls = "; ".join(f"{name} {mean[name, first]:.2f} to {mean[name, second]:.2f}" for name in cells)
    return finding(
        "a K = 0 that is no training at all",
        [scores],
        cells=cells.reset_index(),
        checked=len(cells),
        arithmetic=f"all {len(cells)} rows have one value at K = {first} in {cells.shape[1]} trainings; mean of the "
        f"attacks from K = {first} to {second}: {falls}",
        consequence=f"the step to K = {second} mixes the effect of {second} prompts an attack with that of all other "
        f"tuning prompts; tuning with K = {first} would tell the two apart",
    )


def two_models(table: pd.DataFrame, scores: pd.DataFrame, prompts: int) -> Finding | None:
    """Attacks with a higher mean score than their pass rate allows, beyond its interval (HD Tables 3 and 5, K = 0).

    A refused answer scores 0 and no answer more than 1, so one model's mean score is at most its share not refused.
    """
    need(table, ["attack", "shots", "pass_rate"], "pass rates")
    need(scores, ["training", "attack", "shots", "score"], "scores")
    start = scores[(scores["training"] == SCORED) & (scores["shots"] == 0)]
    cells = table[table["shots"] == 0][["attack", "pass_rate"]].merge(start[["attack", "score"]])
    cells["at most"] = [stats.wilson(round(rate * prompts), prompts).upper for rate in cells["pass_rate"]]
    wrong = cells[cells["score"] > cells["at most"]]
    if wrong.empty:
        return None
    rows = [f"{r['attack']}: pass rate {r['pass_rate']:.2f} (at most {r['at most']:.2f}), mean score {r['score']:.3f}"
            for _, r in wrong.iterrows()]  # fmt: skip
    return finding(
        "one name for two models",
        [table, start],
        cells=cells,
        checked=len(cells),
        arithmetic="; ".join(rows),
        consequence="we read the SFT model of Table 3 as a classifier and that of Table 5 as a chat model; numbers of "
        "one do not carry over to the other",
    )
