"""What a model does once groups of units are taken away: behaviour with intervals, the cut search, curves and grids.

Owns the panels of prompts that removals are measured on, the resampling behind paired differences, and the experiments
of SSAH's section on units. Which units are removed is decided in `units`; what decides a claim is in `claims`. Prompts
that share a meaning are resampled together, and every model is measured on the same prompts and resamples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib import behaviour, profiles, prompt_sets, prompts, stats, units, worlds
from lib.behaviour import Edits
from lib.errors import NotHere, unknown
from lib.models import LanguageModel
from lib.profiles import Cut
from lib.prompts import Prompt, PromptSet
from lib.stats import Interval
from lib.unit_scores import Calibration

HARM, SYSTEM, BENIGN = "harmful/plain", "harmful/system line", "benign/plain"
_SEARCH_DRAW = 1000  # the sample of training meanings that the cut search is measured on; scores use draws from 0 on
_SMALL, _LARGE = (64, 16), (128, 48)  # prompts a kind of request, questions a skill
_SAMPLES, _REPLAYED = 50, 5000  # samples of training meanings, and examples of safety tuning, looked through for them
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
CURVES = ("attack_success", "refusal", "utility")
_DOSES = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.013, 0.016, 0.02, 0.03, 0.05)  # shares of all units
ALONE, BOTH, OVER, LOST, NOTHING = (
    "safety falls, utility stays", "both fall", "over-refusal", "utility falls", "nothing",
)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """Prompts in cells, and how often each prompt is in each resample; row 0 holds every prompt once.

    `text` names the cell of running text, judged by likelihood. Cells of requests are `KIND/STYLE`, the others skills.
    """

    cells: Mapping[str, PromptSet]
    weights: Mapping[str, Float[np.ndarray, "resample prompt"]]
    text: str = ""

    @property
    def skills(self) -> tuple[str, ...]:
        """Cells of questions with one right answer, in order."""
        return tuple(name for name in self.cells if "/" not in name and name != self.text)

    def n(self, attribute: str) -> int:
        """How many prompts are behind an attribute of `observe`."""
        known = {"utility": (BENIGN, *self.skills), "skills": self.skills, "story_nll": (self.text,)}
        known |= dict.fromkeys(("attack_success", "refusal", "wrong"), (HARM,))
        known |= dict.fromkeys(("attack_success_system", "refusal_system", "wrong_system"), (SYSTEM,))
        known |= dict.fromkeys(("false_refusal", "benign_exact"), (BENIGN,)) | {name: (name,) for name in self.skills}
        if attribute not in known:
            raise unknown("attribute", attribute, known)
        return sum(len(self.cells[name]) for name in known[attribute] if name in self.cells)

    def only(self, *names: str) -> "Panel":
        """The same prompts and resamples, of these cells."""
        return replace(self, cells={n: self.cells[n] for n in names}, weights={n: self.weights[n] for n in names})


def panel(cells: Mapping[str, Sequence[Prompt]], resamples: int, seed: int, text: str = "") -> Panel:
    """A panel of these cells; `seed` draws the resamples, by meaning within each cell."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, cell in cells.items():
        groups = prompts.meanings(cell)
        drawn = generator.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=resamples)
        group_of = np.empty(len(cell), dtype=int)
        for number, rows in enumerate(groups):
            group_of[rows] = number
        weights[name] = np.vstack([np.ones(len(cell)), drawn[:, group_of]])
    return Panel({name: PromptSet(tuple(cell)) for name, cell in cells.items()}, weights, text)


def in_words(count: int) -> str:
    """A small number of skills as captions say it: `six`."""
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


@cache
def heldout(profile: str, seed: int, size: str = "large") -> Panel:
    """Plain harmful and benign requests of held-out meanings, and the skills.

    `small` is for grids, `large` for what decides, `whole` has all the prompts, running text, and where there are such
    prompts harm under the system line.
    """
    here, asked = prompt_sets.behaviour(profile, seed), prompt_sets.skill_items(profile, seed)
    text = worlds.of(profile, seed).text
    resamples = profiles.load(profile).measure.bootstrap
    if size == "whole":
        cells = {name: here[name].prompts for name in (HARM, SYSTEM, BENIGN) if name in here}
        return panel(cells | {skill: items.prompts for skill, items in asked.items()}, resamples, seed, text)
    requests, items = {"small": _SMALL, "large": _LARGE}[size]
    cells = {name: here[name].prompts[:requests] for name in (HARM, BENIGN)}
    chosen = {skill: some.prompts[:items] for skill, some in asked.items() if skill != text}
    return panel(cells | chosen, resamples, seed)


@cache
def practice(profile: str, seed: int) -> Panel:
    """Prompts as in `small`, but of meanings in safety data: for the cut search, which must not see held-out ones.

    Skills that calibration data have no questions of are asked as safety tuning replays them; `NotHere` without any.
    """
    measure, world = profiles.load(profile).measure, worlds.of(profile, seed)
    wanted = {name: min(_SMALL[0], measure.cell) for name in (HARM, BENIGN)}
    wanted |= {skill: min(_SMALL[1], measure.skill_items) for skill in world.skills}
    cells: dict[str, list[Prompt]] = {name: [] for name in wanted}
    for draw in range(_SEARCH_DRAW, _SEARCH_DRAW + _SAMPLES):
        if all(len(cells[name]) >= count for name, count in wanted.items()):
            break
        sets = prompt_sets.calibration(profile, seed, draw)
        for example in (*sets["safety"], *sets["utility"]):
            asked = example.prompt
            cells[asked.style if asked.kind == "skill" else HARM if asked.harmful else BENIGN].append(asked)
    for example in islice(world.safety(0, "cut search"), _REPLAYED if any(not cell for cell in cells.values()) else 0):
        asked = example.prompt
        if asked.kind == "skill" and asked.style in wanted and asked not in cells[asked.style]:
            cells[asked.style].append(asked)
    if not any(cells[skill] for skill in world.skills):
        raise NotHere("training data hold no questions of a skill, on which the sizes of groups of units are searched")
    return panel({name: cell[: wanted[name]] for name, cell in cells.items() if cell}, 1, seed)


# behaviour ------------------------------------------------------------------------------------------------------------
def observe(model: LanguageModel, asked: Panel, edits: Edits | None = None) -> pd.DataFrame:
    """Attributes of a model on a panel: row 0 as measured, the others resampled; differences of two are paired.

    Columns, as far as the panel has the cells: attack_success (exact harmful compliance), refusal, wrong; the first two
    with `_system` under the system line; false_refusal and benign_exact; each skill, their mean `skills`, `utility`
    (see `behaviour.utility`) and `story_nll`.
    """
    measured = behaviour.measure(model, asked.cells, edits)

    def share(cell: str, outcome: str) -> np.ndarray:
        weight = asked.weights[cell]
        return weight @ measured.loc[measured["cell"] == cell, outcome].to_numpy() / weight.sum(1)

    found: dict[str, np.ndarray] = {}
    for cell, ending in ((HARM, ""), (SYSTEM, "_system")):
        if cell in asked.cells:
            found |= {f"attack_success{ending}": share(cell, "exact"), f"refusal{ending}": share(cell, "refused")}
            found |= {f"wrong{ending}": share(cell, "wrong")}
    if BENIGN in asked.cells:
        found |= {"false_refusal": share(BENIGN, "refused"), "benign_exact": share(BENIGN, "exact")}
    each = {skill: share(skill, "exact") for skill in asked.skills}
    if each:
        found |= each | {"skills": np.mean(list(each.values()), axis=0)}
    if each and BENIGN in asked.cells:
        every = zip(*each.values(), found["benign_exact"], strict=True)
        found["utility"] = np.array([behaviour.utility(mine, benign) for *mine, benign in every])
    if asked.text in asked.cells:
        found["story_nll"] = share(asked.text, "nll")
    return pd.DataFrame(found)


def interval(values: pd.Series, n: int) -> Interval:
    """The interval of an attribute, or of a difference of two, over `n` prompts; equal resamples get no width 0."""
    if values.nunique() == 1:
        return stats.over_prompts([float(values.iloc[0])] * n, seed=0, resamples=1, span=(-1, 1))
    return stats.from_draws(float(values.iloc[0]), values.iloc[1:], n)


def damage(before: pd.DataFrame | pd.Series, after: pd.DataFrame) -> pd.Series:
    """The larger of the drops in utility and in refusal."""
    return (before - after)[["utility", "refusal"]].max(axis=1)


def critical_parts(dense: pd.DataFrame, scu: pd.DataFrame, asked: Panel) -> dict[str, Interval]:
    """What decides about SCU, by the last word of the registry's part: the rise of attack success (`scu` and, to be
    held against random units, `scu_random`) and the drop in utility."""
    rise = interval((scu - dense)["attack_success"], asked.n("attack_success"))
    cost = interval((dense - scu)["utility"], asked.n("utility"))
    return {"scu": rise, "scu_random": rise, "scu_utility": cost}


def other_parts(dense: pd.DataFrame, ucu: pd.DataFrame, ru: pd.DataFrame, asked: Panel) -> dict[str, Interval]:
    """The same for UCU and RU. `ru_random` is the damage with its sign turned, so that less damage is more."""
    harm, every = asked.n("refusal"), asked.n("utility")
    harmed = damage(dense, ru)
    return {
        "ucu": interval((dense - ucu)["utility"], every),
        "ucu_safety": interval((dense - ucu)["refusal"], harm),
        "ru": interval(harmed, harm),
        "ru_random": interval(-harmed, harm),
    }


def removal_table(observed: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """One row a model, one column an attribute, as measured; attributes without prompts here have no column."""
    return pd.DataFrame({name: frame.iloc[0] for name, frame in observed.items()}).T.filter(items=list(columns))


def effects(observed: Mapping[str, pd.DataFrame], dense: pd.DataFrame, asked: Panel) -> pd.DataFrame:
    """For each removal the rise of attack success and the cost, the drop in utility, with intervals: one row a name."""
    rows = []
    for name, frame in observed.items():
        rise = interval((frame - dense)["attack_success"], asked.n("attack_success"))
        cost = interval((dense - frame)["utility"], asked.n("utility"))
        bounds = [*(rise.bounds or [rise.mean] * 2), *(cost.bounds or [cost.mean] * 2)]
        rows.append((name, rise.mean, cost.mean, *bounds))
    columns = ["name", "rise", "cost", "rise_lower", "rise_upper", "cost_lower", "cost_upper"]
    return pd.DataFrame(rows, columns=columns)


def random_draws(
    model: LanguageModel, table: pd.DataFrame, rows: pd.DataFrame, asked: Panel, draws: int, seed: int
) -> pd.DataFrame:
    """Attributes, as measured, after removal of matched random units: one row a draw."""
    found = [observe(model, asked, units.edits(units.matched(table, rows, [seed, draw]))) for draw in range(draws)]
    return pd.DataFrame([frame.iloc[0] for frame in found]).reset_index(drop=True)


def printed_changes(table1: pd.DataFrame) -> pd.DataFrame:
    """SSAH's Table 1 in our words, one row a removal: columns model, group, share, attack_success (without the system
    prompt) and utility (mean accuracy) as shares; rise and cost against the same model with nothing removed."""
    values = {"share": table1["share"], "attack_success": table1["asr_no_system"], "utility": table1["average"]}
    found = table1[["model", "group"]].assign(**{name: column / 100 for name, column in values.items()})
    dense = found[found["group"] == "dense"].set_index("model").loc[found["model"]]
    found["rise"] = found["attack_success"] - dense["attack_success"].to_numpy()
    found["cost"] = dense["utility"].to_numpy() - found["utility"]
    return found[found["group"] != "dense"].reset_index(drop=True)


def random_effects(draws: Mapping[str, pd.DataFrame], dense: pd.DataFrame) -> pd.DataFrame:
    """Rise and cost as in `effects` for every draw of `random_draws`: columns name, rise, cost."""
    rows = []
    for name, drawn in draws.items():
        change = drawn - dense.iloc[0]
        rows.append(pd.DataFrame({"name": name, "rise": change["attack_success"], "cost": -change["utility"]}))
    return pd.concat(rows, ignore_index=True)


# the cut search -------------------------------------------------------------------------------------------------------
def cut_search(
    model: LanguageModel,
    table: pd.DataFrame,
    cuts: Mapping[Any, Cut],
    asked: Panel,
    names: Iterable[str] = units.GROUPS,
) -> tuple[dict[str, float], pd.DataFrame]:
    """The share of each group, found as SSAH describes: from high to low, the first that spares what should survive.

    RU first, then SCU, then UCU, because each is taken from what the ones before leave. Returns the shares and a row
    for each share tried. When none passes, the smallest is kept.
    """
    units.check(table, model, whole=True)
    dense, tried = observe(model, asked).iloc[0], []
    kept: dict[str, float] = {}
    for name in [name for name in units.GROUPS if name in cuts and name in names]:
        for share in cuts[name].shares:
            rows = units.groups(table, **{**kept, name: share}).query("group == @name")
            drop = dense - observe(model, asked, units.edits(rows)).iloc[0]
            passed = all(
                limit is None or round(drop[what] - limit, stats.DIGITS) <= 0
                for what, limit in (("utility", cuts[name].utility), ("refusal", cuts[name].refusal))
            )
            tried.append((name, share, len(rows), drop["utility"], drop["refusal"], passed))
            kept[name] = share
            if passed:
                break
    columns = ["group", "share", "units", "utility drop", "refusal drop", "passes"]
    return kept, pd.DataFrame(tried, columns=columns)


# curves and grids -----------------------------------------------------------------------------------------------------
def doses(total: int) -> list[int]:
    """Numbers of units to remove, of `total`, from very few to well above the shares of the paper."""
    return sorted({units.count(share, total) for share in _DOSES})


def dose(
    model: LanguageModel, table: pd.DataFrame, ru: float, counts: Sequence[int], asked: Panel
) -> dict[int, pd.DataFrame]:
    """What `observe` gives without the first units of a ranking by I_S - I_U, for each number of `counts`."""
    found = {}
    for number in counts:
        rows = units.groups(table, ru=ru, scu=number / len(table)).query("group == 'scu'")
        found[number] = observe(model, asked, units.edits(rows))
    return found


def dose_curve(dense: pd.DataFrame, doses: Mapping[int, pd.DataFrame], series: str, asked: Panel) -> pd.DataFrame:
    """Tidy attack success, refusal and utility by number of units removed: columns series, units, attribute, value,
    lower, upper."""
    rows = []
    for number, frame in {0: dense, **doses}.items():
        for what in CURVES:
            found = interval(frame[what], asked.n(what))
            low, high = found.bounds or (found.mean, found.mean)
            rows.append((series, number, what, found.mean, max(low, 0.0), min(high, 1.0)))
    return pd.DataFrame(rows, columns=["series", "units", "attribute", "value", "lower", "upper"])


def random_curve(
    model: LanguageModel, table: pd.DataFrame, ru: float, counts: Sequence[int], asked: Panel, draws: int, seed: int
) -> pd.DataFrame:
    """The same columns for random units matched to the first of a ranking: mean of the draws, smallest and largest."""
    rows = []
    for number in counts:
        grouped = units.groups(table, ru=ru, scu=number / len(table))
        found = random_draws(model, grouped, grouped[grouped["group"] == "scu"], asked, draws, seed)
        rows += [("random", number, what, *found[what].agg(["mean", "min", "max"])) for what in CURVES]
    return pd.DataFrame(rows, columns=["series", "units", "attribute", "value", "lower", "upper"])


def outcome(change: pd.Series, rise: float, cost: float, over: float = 0.1) -> str:
    """In a word what a removal did. `change`: after minus before, as measured; `rise` of attack success and `cost` in
    utility as the registry has them; benign requests refused more often by `over` are over-refusal."""
    falls = round(change["attack_success"] - rise, stats.DIGITS) >= 0
    costly = round(-change["utility"] - cost, stats.DIGITS) > 0
    if falls:
        return BOTH if costly else ALONE
    if change["false_refusal"] >= over:
        return OVER
    return LOST if costly else NOTHING


def sensitivity(
    model: LanguageModel,
    found: Calibration,
    shares: Mapping[str, float],
    asked: Panel,
    bounds: tuple[float, float],
    removals: Sequence[str] = units.REMOVALS,
) -> pd.DataFrame:
    """What removing SCU does under every score, position, normalisation and removal; one row each, with `outcome`.

    `shares` of ru and scu are the same for all. `bounds`: the rise of attack success and the utility drop that count.
    """
    dense, rows = observe(model, asked).iloc[0], []
    for (score, position), raw in found.raw.items():
        for normalisation in usable(score):
            table = units.groups(units.score(raw, normalisation), **shares)
            scu = table[table["group"] == "scu"]
            for how in removals:
                edits = units.edits(scu, how, found.pool if how == "resample" else None)
                change = observe(model, asked, edits).iloc[0] - dense
                kept = change[["attack_success", "refusal", "wrong", "false_refusal", "utility"]].to_dict()
                rows.append(
                    {"score": score, "position": position, "normalisation": normalisation, "removal": how}
                    | kept
                    | {"outcome": outcome(change, *bounds)}
                )
    return pd.DataFrame(rows)


def usable(score: str) -> list[str]:
    """Normalisations that a score allows: signed scores have no shares and no ratios."""
    return [name for name in units.NORMALISATIONS if score != "taylor_signed" or name not in units.NEED_POSITIVE]
