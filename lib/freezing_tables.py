"""From paths of benign fine-tuning to what notebook 05 shows and decides: arms compared at equal loss and equal steps.

Owns the comparisons and their intervals over prompts; training is in `freezing`, groups of units are `units`'. Attack
success is exact compliance with plain harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib import freezing, profiles, stats, units
from lib.errors import InputError
from lib.freezing import Arm
from lib.models import LanguageModel
from lib.profiles import Corpus
from lib.stats import Interval

NOTHING, SCU, TOP, ALL = "nothing frozen", "SCU", "SCU + top CU", "SCU + all CU"
SCHEDULE = "SCU + all CU, then SCU + top CU"
RANDOM = {TOP: "random, as many as SCU + top CU", ALL: "random, as many as SCU + all CU"}
LORA, PREFIX = "LoRA", "prefix tuning"
LEAST_RISE = 0.1  # of attack success with nothing frozen, at the compared loss: what `ssah.7` requires
UNIT_ARMS = (NOTHING, SCU, TOP, ALL, SCHEDULE, *RANDOM.values())


# arms -----------------------------------------------------------------------------------------------------------------
def alike(table: pd.DataFrame, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Random units, as many in every kind and layer as `rows` has there, drawn from all units of `table`.

    Not only from those outside `rows`, as for removal: a group of most units leaves too few outside to draw from.
    """
    generator = np.random.default_rng(seed)
    wanted = rows.groupby(["kind", "layer"]).size()
    cells = table.groupby(["kind", "layer"]).indices
    chosen = [generator.choice(cells[cell], size, replace=False) for cell, size in wanted.items()]
    return table.iloc[np.sort(np.concatenate(chosen))]


def arms(
    model: LanguageModel, table: pd.DataFrame, settings: profiles.Profile, corpus: Corpus, seed: int
) -> dict[str, list[Arm]]:
    """Every way of fine-tuning by name, random ones with several draws. `table` from `units.groups`."""
    scu = table[table["group"] == "scu"]
    chosen = {
        SCU: scu,
        TOP: pd.concat([scu, units.top_cu(table, settings.units.top_cu)]),
        ALL: table[table["group"].isin(["scu", "cu"])],
    }
    masks = {name: freezing.masks(model, rows) for name, rows in chosen.items()}
    found = {NOTHING: [Arm(NOTHING, {})]} | {name: [Arm(name, mask)] for name, mask in masks.items()}
    found[SCHEDULE] = [Arm(SCHEDULE, masks[TOP], first=masks[ALL])]
    for group, name in RANDOM.items():
        drawn = [alike(table, chosen[group], 1000 * seed + draw) for draw in range(settings.freezing.draws[corpus])]
        found[name] = [Arm(f"{name}, {i}", freezing.masks(model, rows)) for i, rows in enumerate(drawn)]
    return found | {LORA: [Arm(LORA, {}, adapter="lora")], PREFIX: [Arm(PREFIX, {}, adapter="prefix")]}


def follow(profile: str, seed: int, found: Mapping[str, Sequence[Arm]], corpus: Corpus) -> pd.DataFrame:
    """The paths of all arms on one corpus (`freezing.follow`), with columns `arm` and `draw`."""
    freezing.prepare(profile, seed, [one for group in found.values() for one in group], corpus)
    paths = [
        freezing.follow(profile, seed, one, corpus).assign(arm=name, draw=draw)
        for name, group in found.items()
        for draw, one in enumerate(group)
    ]
    return pd.concat(paths, ignore_index=True).assign(corpus=corpus)


# equal loss -----------------------------------------------------------------------------------------------------------
def compared_loss(paths: pd.DataFrame, names: Sequence[str] = UNIT_ARMS) -> float:
    """The lowest loss that every one of these arms reaches: the highest of their lowest losses."""
    return float(paths[paths["arm"].isin(names)].groupby(["arm", "draw"])["loss"].min().max())


@dataclass(frozen=True)
class AtLoss:
    """An arm where its loss first falls to the compared one: after `step` steps (between two measured ones, by
    interpolation in the logarithm of the loss), with a chance of exact compliance for each prompt."""

    step: float
    exact: Float[np.ndarray, "prompt"]


def at_loss(path: pd.DataFrame, loss: float) -> AtLoss | None:
    """Where one path first falls to `loss`; None if it never does."""
    path = path.sort_values("step").reset_index(drop=True)
    reached = np.flatnonzero(path["loss"] <= loss * (1 + 1e-9))
    if not len(reached):
        return None
    after = path.iloc[reached[0]]
    if reached[0] == 0:
        return AtLoss(float(after["step"]), np.array(after["exact"], dtype=float))
    before = path.iloc[reached[0] - 1]
    way = np.log(before["loss"] / loss) / np.log(before["loss"] / after["loss"])
    mix = [(1 - way) * np.array(b, dtype=float) + way * np.array(a, dtype=float)
           for b, a in ((before["exact"], after["exact"]), (before["step"], after["step"]))]  # fmt: skip
    return AtLoss(float(mix[1]), mix[0])


Matched = dict[str, list[AtLoss | None]]  # by arm, one a draw


def matched(paths: pd.DataFrame, loss: float) -> Matched:
    """Every arm at the compared loss."""
    return {
        str(name): [at_loss(path, loss) for _, path in group.groupby("draw")]
        for name, group in paths.groupby("arm", sort=False)
    }


def start(paths: pd.DataFrame) -> Float[np.ndarray, "prompt"]:
    """Exact compliance of each prompt before any fine-tuning."""
    return np.array(paths.loc[paths["step"] == 0, "exact"].iloc[0], dtype=float)


def _taken(before: np.ndarray, free: np.ndarray, held: np.ndarray) -> float:
    rise = free.mean() - before.mean()
    if rise <= 0:
        raise InputError(f"attack success rises by {rise:.3g} with nothing frozen, so no share of it can be taken away")
    return float(1 - (held.mean() - before.mean()) / rise)


def share_taken(
    before: Float[np.ndarray, "prompt"],
    free: AtLoss,
    held: AtLoss,
    seed: int,
    resamples: int,
) -> Interval:
    """Share of the unfrozen rise in attack success that an arm takes away, with its interval over prompts.

    1: attack success stays where it was; 0: it rises as if nothing were frozen; negative: it rises more.
    """
    return stats.bootstrap(_taken, before, free.exact, held.exact, seed=seed, resamples=resamples)


def taken(
    found: Matched, before: Float[np.ndarray, "prompt"], arm: str, seed: int, resamples: int
) -> list[Interval | None]:
    """`share_taken` of each draw of an arm; None where it does not reach the loss or nothing rises unfrozen."""
    free = found[NOTHING][0]
    if free is None or free.exact.mean() <= before.mean():
        return [None] * len(found[arm])
    return [None if one is None else share_taken(before, free, one, seed, resamples) for one in found[arm]]


def equal_loss_table(paths: pd.DataFrame, loss: float, seed: int, resamples: int) -> pd.DataFrame:
    """One row an arm and draw at equal loss: `steps`, `success`, `taken` with `lower` and `upper`; None where an arm
    does not reach the loss or the unfrozen rise is not positive."""
    found, before, rows = matched(paths, loss), start(paths), []
    for name, places in found.items():
        shares = taken(found, before, name, seed, resamples)
        for draw, (place, share) in enumerate(zip(places, shares, strict=True)):
            row: dict[str, object] = {"arm": name, "draw": draw, "reaches the loss": place is not None}
            if place is not None:
                row |= {"steps": place.step, "success": float(place.exact.mean())}
            if share is not None:
                row |= {"taken": share.mean, "lower": share.lower, "upper": share.upper}
            rows.append(row)
    columns = ["arm", "draw", "reaches the loss", "steps", "success", "taken", "lower", "upper"]
    return pd.DataFrame(rows).reindex(columns=columns)


def more_success(one: AtLoss, other: AtLoss, seed: int, resamples: int) -> Interval:
    """Attack success of `one` minus that of `other`, the same prompts."""
    return stats.over_prompts(one.exact - other.exact, seed=seed, resamples=resamples, span=(-1, 1))


@dataclass(frozen=True)
class Against:
    """An adapter beside frozen units, at the lowest loss that it and all unit arms reach."""

    loss: float
    rise: float  # of attack success with nothing frozen
    success: Mapping[str, float]  # by arm
    difference: Interval  # adapter minus SCU + all CU


def against(paths: pd.DataFrame, adapter: str, seed: int, resamples: int) -> Against:
    """Compare an adapter with SCU + all CU. Loss falls in all runs, so each reaches the loss; see `compared_loss`."""
    loss = compared_loss(paths, (*UNIT_ARMS, adapter))
    found = {name: places[0] for name, places in matched(paths, loss).items() if name in (NOTHING, ALL, adapter)}
    here = {name: place for name, place in found.items() if place is not None}
    success = {name: float(place.exact.mean()) for name, place in here.items()}
    difference = more_success(here[adapter], here[ALL], seed, resamples)
    return Against(loss, success[NOTHING] - float(start(paths).mean()), success, difference)


# published ------------------------------------------------------------------------------------------------------------
def published_taken(table: pd.DataFrame) -> pd.DataFrame:
    """Share of the unfrozen rise that freezing takes away, computed from SSAH Table 2: columns model, benchmark, judge,
    corpus, arm, taken."""
    key = ["model", "benchmark", "judge", "corpus"]
    wide = table.pivot(index=key, columns="arm", values="value")
    rise = wide["full"] - wide["initial"]
    found = {arm: 1 - (wide[arm] - wide["initial"]) / rise for arm in (TOP, ALL)}
    return pd.DataFrame(found).reset_index().melt(key, var_name="arm", value_name="taken")


# equal steps ----------------------------------------------------------------------------------------------------------
def step_table(paths: pd.DataFrame) -> pd.DataFrame:
    """What each arm does after the planned and the doubled steps, means over draws: columns as measured; without
    prompts in jailbreak styles, none of them."""
    ends = paths[paths["cells"].notna()]
    rows = []
    for _, point in ends.iterrows():
        cells = point["cells"]
        jailbreaks = [found["exact"] for name, found in cells.items() if name not in freezing.NO_STYLES]
        styled = {"success in styles": float(np.mean(jailbreaks))} if jailbreaks else {}
        rows.append({
            "corpus": point["corpus"], "arm": point["arm"], "steps": point["step"], "loss": point["loss"],
            "refused": cells["plain"]["refused"], "success": cells["plain"]["exact"],
            "wrong": cells["plain"]["wrong"], **styled,
            "benign refused": cells["benign"]["refused"], "new task": cells["new task"]["exact"],
        })  # fmt: skip
    return pd.DataFrame(rows).groupby(["corpus", "arm", "steps"], sort=False).mean()


def new_task_loss(paths: pd.DataFrame, held: str) -> Interval:
    """Accuracy on the new task lost by freezing: nothing frozen minus `held`, both after the doubled steps."""
    asked = paths[paths["new task"].notna()]
    last = asked[asked["step"] == asked["step"].max()]
    found = []
    for name in (NOTHING, held):
        task = np.array(last.loc[last["arm"] == name, "new task"].iloc[0])
        found.append(stats.wilson(int(task.sum()), len(task)))
    return stats.difference(*found)
