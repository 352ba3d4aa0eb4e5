"""From paths of alignment to what notebook 06 shows and decides: arms compared at the end, at equal loss and at equal
refusal.

Owns the arms, the comparisons and their intervals over prompts; training is in `budget`, scores are `unit_scores`'.
Every arm answers the same prompts, resampled the same way (`unit_tables.heldout`), so differences are paired. The tax
on a skill is the accuracy of base minus that of the aligned model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib import budget, freezing_tables, stats, unit_tables, units
from lib.budget import STYLED, Arm
from lib.errors import InputError, unknown
from lib.models import LanguageModel
from lib.profiles import Budget
from lib.stats import Interval
from lib.unit_tables import BENIGN, HARM, Panel

FULL, TWICE, TOP = "all weights", "all weights, doubled steps", "most important 20 %"
RANDOM = "random 20 %"
DECIDES = 0.2  # share of units, the paper's
COLUMNS = ("refusal", "attack_success", "wrong", "false_refusal", "benign_exact", "refusal_styled", "tax")


def redundant(share: float) -> str:
    """Name of the arm that trains the least important `share` of units."""
    return f"least important {100 * share:.0f} %"


# arms -----------------------------------------------------------------------------------------------------------------
def importance(table: pd.DataFrame) -> pd.Series:
    """I_S + I_U, by which the paper calls units redundant."""
    return table["safety"] + table["utility"]


def least(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """The `share` of all units with the smallest I_S + I_U: the paper's redundant units."""
    _check_share(share)
    return units.groups(table, ru=share).query("group == 'ru'")


def most(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """The `share` of all units with the largest I_S + I_U."""
    _check_share(share)
    return units.groups(table.assign(safety=-table["safety"], utility=-table["utility"]), ru=share).query(
        "group == 'ru'"
    )


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"share {share:g} of units cannot be trained; choose more than 0 and at most 1")


def arms(table: pd.DataFrame, shares: Sequence[float], draws: int, seed: int) -> dict[str, list[Arm]]:
    """Every way of aligning by name, random ones with several draws. `table` from `units.score` on base.

    Random units are as many in every kind and layer as the least important `DECIDES` has there.
    """
    if DECIDES not in shares:
        raise InputError(f"shares {list(shares)} lack {DECIDES:g}, which decides; add it")
    found = {FULL: [Arm(FULL, None, twice=False)], TWICE: [Arm(TWICE, None)]}
    found |= {redundant(s): [Arm(redundant(s), least(table, s))] for s in sorted(shares)}
    like = least(table, DECIDES)
    drawn = [freezing_tables.alike(table, like, 1000 * seed + draw) for draw in range(draws)]
    found[RANDOM] = [Arm(f"{RANDOM}, {i}", rows) for i, rows in enumerate(drawn)]
    return found | {TOP: [Arm(TOP, most(table, DECIDES))]}


def small(found: Mapping[str, Sequence[Arm]]) -> list[str]:
    """Arms with fewer units than `DECIDES` has: they may not reach what the others do."""
    sizes = {name: None if arm.trained is None else len(arm.trained) for name, (arm, *_) in found.items()}
    decides = sizes[redundant(DECIDES)] or 0
    return [name for name, size in sizes.items() if size is not None and size < decides]


def arm_table(model: LanguageModel, found: Mapping[str, Sequence[Arm]], settings: Budget) -> pd.DataFrame:
    """What each arm may change, and how long and fast it is trained: one row an arm."""
    total, stage = sum(parameter.numel() for parameter in model.hf.parameters()), settings.stage
    rows = {}
    for name, (arm, *others) in found.items():
        weights, rows_of = budget.trainable(model, arm), arm.trained
        rows[name] = {
            "draws": 1 + len(others),
            "units": "all" if rows_of is None else f"{len(rows_of):,}",
            "weights": f"{weights:,}",
            "share of weights": f"{weights / total:.1%}",
            "steps": stage.steps * (2 if arm.twice else 1),
            "learning rate": f"{stage.learning_rate if rows_of is None else settings.part_rate:.0e}",
        }
    return pd.DataFrame(rows).T.rename_axis("arm")


def follow(profile: str, seed: int, found: Mapping[str, Sequence[Arm]]) -> pd.DataFrame:
    """The paths of all arms (`budget.follow`), with columns `arm` and `draw`; what is missing is trained first."""
    budget.prepare(profile, seed, [one for group in found.values() for one in group])
    parts = [
        budget.follow(profile, seed, one).assign(arm=name, draw=draw)
        for name, group in found.items()
        for draw, one in enumerate(group)
    ]
    return pd.concat(parts, ignore_index=True)


# points ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Point:
    """An arm at one place of its path: after `step` steps, and the chance of each outcome for every prompt."""

    step: float
    loss: float
    outcomes: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def refusal(self) -> float:
        return float(self.outcomes[HARM]["refused"].mean())


def _point(row: pd.Series) -> Point:
    outcomes = {
        cell: {what: np.array(values, dtype=float) for what, values in found.items()}
        for cell, found in row["outcomes"].items()
    }
    return Point(float(row["step"]), float(row["loss"]), outcomes)


def points(path: pd.DataFrame) -> list[Point]:
    """One path in order of steps."""
    return [_point(row) for _, row in path.sort_values("step").iterrows()]


def end(path: pd.DataFrame) -> Point:
    """Where one path ends."""
    return points(path)[-1]


def first_at(path: pd.DataFrame, what: str, level: float) -> Point | None:
    """Where a path first falls to a `loss` or rises to a `refusal`; None if it never does.

    Between two measured points everything is interpolated, the loss and the way to it in logarithms.
    """
    if what not in ("loss", "refusal"):
        raise unknown("quantity", what, ("loss", "refusal"))
    found = points(path)
    height = np.array([np.log(one.loss) if what == "loss" else -one.refusal for one in found])
    wanted = np.log(level) if what == "loss" else -level
    reached = np.flatnonzero(height <= wanted + 1e-9)
    if not len(reached):
        return None
    place = int(reached[0])
    if place == 0:
        return found[0]
    way = (height[place - 1] - wanted) / (height[place - 1] - height[place])
    return _between(found[place - 1], found[place], float(way))


def _between(one: Point, other: Point, way: float) -> Point:
    cells = [cell for cell in one.outcomes if cell in other.outcomes]
    outcomes = {
        cell: {
            what: (1 - way) * one.outcomes[cell][what] + way * other.outcomes[cell][what]
            for what in ("refused", "exact")
        }
        for cell in cells
    }
    loss = np.exp((1 - way) * np.log(one.loss) + way * np.log(other.loss))
    return Point((1 - way) * one.step + way * other.step, float(loss), outcomes)


def common_loss(paths: pd.DataFrame, names: Sequence[str]) -> float:
    """The lowest loss that all these arms reach: the highest of their lowest losses."""
    return float(_of(paths, names).groupby(["arm", "draw"])["loss"].min().max())


def common_refusal(paths: pd.DataFrame, names: Sequence[str]) -> float:
    """The highest refusal of plain harm that all these arms reach."""
    highest = [max(one.refusal for one in points(path)) for _, path in _of(paths, names).groupby(["arm", "draw"])]
    return min(highest)


def _of(paths: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    missing = [name for name in names if name not in set(paths["arm"])]
    if missing:
        raise unknown("arm", missing[0], paths["arm"].unique())
    return paths[paths["arm"].isin(list(names))]


def path_of(paths: pd.DataFrame, arm: str, draw: int = 0) -> pd.DataFrame:
    """One arm's path."""
    return _of(paths, [arm]).query("draw == @draw")


# attributes -----------------------------------------------------------------------------------------------------------
def attributes(point: Point, asked: Panel) -> pd.DataFrame:
    """What a model does at one point: row 0 as measured, the others resampled (as `unit_tables.observe`).

    Columns refusal, attack_success, wrong, each skill, `skills`, their mean; where the point has them false_refusal and
    benign_exact, and refusal_styled, which is not resampled.
    """

    def share(cell: str, outcome: str) -> np.ndarray:
        weight = asked.weights[cell]
        return weight @ point.outcomes[cell][outcome] / weight.sum(axis=1)

    found = {"refusal": share(HARM, "refused"), "attack_success": share(HARM, "exact")}
    found["wrong"] = 1 - found["refusal"] - found["attack_success"]
    if BENIGN in point.outcomes:
        found |= {"false_refusal": share(BENIGN, "refused"), "benign_exact": share(BENIGN, "exact")}
    if STYLED in point.outcomes:
        found["refusal_styled"] = np.full(len(found["refusal"]), point.outcomes[STYLED]["refused"].mean())
    each = {skill: share(skill, "exact") for skill in asked.skills}
    return pd.DataFrame(found | each | {"skills": np.mean(list(each.values()), axis=0)})


def tax(start: Point, point: Point, asked: Panel, skill: str = "skills") -> Interval:
    """Accuracy lost since the start, the same prompts."""
    lost = (attributes(start, asked) - attributes(point, asked))[skill]
    return unit_tables.interval(lost, _size(asked, skill))


def less_tax(one: Point, other: Point, asked: Panel) -> Interval:
    """Mean skill tax of `one` minus that of `other`, the same prompts."""
    return unit_tables.interval((attributes(other, asked) - attributes(one, asked))["skills"], _size(asked, "skills"))


def less_refusal(one: Point, other: Point, asked: Panel) -> Interval:
    """Refusal of plain harm of `one` minus that of `other`, the same prompts."""
    return unit_tables.interval((attributes(one, asked) - attributes(other, asked))["refusal"], len(asked.cells[HARM]))


def _size(asked: Panel, skill: str) -> int:
    return sum(len(asked.cells[name]) for name in (asked.skills if skill == "skills" else (skill,)))


def table(paths: pd.DataFrame, asked: Panel, found: Mapping[tuple[str, int], Point | None]) -> pd.DataFrame:
    """One row an arm, means over draws: steps, loss, what it does (`COLUMNS`) and the tax on each skill. `found` by arm
    and draw; arms of which a draw is None are left out."""
    start, rows = attributes(points(path_of(paths, FULL))[0], asked).iloc[0], []
    for (arm, draw), point in found.items():
        if any(one is None for (name, _), one in found.items() if name == arm) or point is None:
            continue
        now = attributes(point, asked).iloc[0]
        lost = {skill: start[skill] - now[skill] for skill in asked.skills}
        lost["tax"] = start["skills"] - now["skills"]
        where = {"arm": arm, "draw": draw, "steps": point.step, "loss": point.loss}
        rows.append(where | now.drop([*asked.skills, "skills"]).to_dict() | lost)
    frame = pd.DataFrame(rows).drop(columns="draw").groupby("arm", sort=False).mean()
    order = ["steps", "loss", *[name for name in COLUMNS if name in frame], *asked.skills]
    return frame[order]


def ends(paths: pd.DataFrame) -> dict[tuple[str, int], Point | None]:
    """Every arm and draw at its end."""
    return {(str(arm), int(draw)): end(path) for (arm, draw), path in _by_arm(paths)}


def at_level(paths: pd.DataFrame, what: str, level: float) -> dict[tuple[str, int], Point | None]:
    """Every arm and draw where it first reaches a loss or a refusal."""
    return {(str(arm), int(draw)): first_at(path, what, level) for (arm, draw), path in _by_arm(paths)}


def _by_arm(paths: pd.DataFrame) -> list[tuple]:
    return list(paths.groupby(["arm", "draw"], sort=False))


def against_random(
    paths: pd.DataFrame, asked: Panel, level: float | None = None
) -> tuple[float, Interval, list[float]]:
    """At a refusal, by default the highest that RU and all random draws reach: that refusal, the random units' tax
    minus RU's, and the random units' taxes. The interval holds the draws' spread (Student's t) and RU's prompts'."""
    names = [redundant(DECIDES), RANDOM]
    highest = common_refusal(paths, names)
    level = highest if level is None else level
    if level > highest:
        raise InputError(f"not every run reaches refusal {level:g}; ask for at most {highest:g}")
    found = at_level(_of(paths, names), "refusal", level)
    start = points(path_of(paths, RANDOM))[0]
    taxes = {key: tax(start, point, asked) for key, point in found.items() if point is not None}
    random = [one.mean for (arm, _), one in taxes.items() if arm == RANDOM]
    return level, stats.difference(stats.over_seeds(random), taxes[redundant(DECIDES), 0]), random


def curve(paths: pd.DataFrame, asked: Panel) -> pd.DataFrame:
    """Every measured point of every path: columns arm, draw, step, loss, refusal, tax."""
    rows = []
    for (arm, draw), path in _by_arm(paths):
        found = points(path)
        start = attributes(found[0], asked)["skills"].iloc[0]
        for one in found:
            now = attributes(one, asked).iloc[0]
            rows.append((arm, draw, one.step, one.loss, now["refusal"], start - now["skills"]))
    return pd.DataFrame(rows, columns=["arm", "draw", "step", "loss", "refusal", "tax"])


def dearer_at(paths: pd.DataFrame, asked: Panel, levels: Sequence[float]) -> pd.DataFrame:
    """`against_random` at several refusals that all runs reach: columns refusal, random minus RU, lower, upper."""
    highest, rows = common_refusal(paths, [redundant(DECIDES), RANDOM]), []
    for level in sorted({min(level, highest) for level in levels} | {highest}):
        _, found, _ = against_random(paths, asked, level)
        rows.append((level, found.mean, *(found.bounds or (found.mean, found.mean))))
    return pd.DataFrame(rows, columns=["refusal", "random minus RU", "lower", "upper"])


def tax_by_skill(paths: pd.DataFrame, asked: Panel, arms: Sequence[str]) -> pd.DataFrame:
    """Tax on each skill and their mean at the end: columns series, skill, tax, lower, upper.

    Intervals are over prompts; of an arm with several draws the mean, and Student's t over the draws.
    """
    rows = []
    for arm in arms:
        draws = [path for _, path in _of(paths, [arm]).groupby("draw")]
        for skill in (*asked.skills, "skills"):
            each = [tax(points(path)[0], end(path), asked, skill) for path in draws]
            one = each[0] if len(each) == 1 else stats.over_seeds([found.mean for found in each])
            rows.append((arm, skill, one.mean, *(one.bounds or (one.mean, one.mean))))
    return pd.DataFrame(rows, columns=["series", "skill", "tax", "lower", "upper"])
