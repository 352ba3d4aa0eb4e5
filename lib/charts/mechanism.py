"""Charts of the mechanism that both papers may share (notebook 12).

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import knowledge, one_prompt, reasoning_tables
from lib.bridge_tables import Move, Write
from lib.charts import units
from lib.figures import COLOURS, CONTROL, OUTCOME_COLOURS, OUTCOME_NAMES, canvas, curves, relative_depth
from lib.one_prompt import Followed

PAPER, CHOSEN = units.PAPER, units.BEST
_SIDES: dict[str, object] = {
    "both": COLOURS["purple"], "harmful": COLOURS["vermilion"], "benign": COLOURS["blue"],
}  # fmt: skip
_WORDS = {"both": "both ways", "harmful": "harmful: refused to answered", "benign": "benign: answered to refused"}
_PATHS: dict[str, object] = {
    one_prompt.PROMPT: "black", one_prompt.HARMFUL: COLOURS["vermilion"], one_prompt.BENIGN: COLOURS["blue"],
}  # fmt: skip
_ANSWERS: dict[str, object] = {
    reasoning_tables.OTHER: COLOURS["blue"], reasoning_tables.COMPLYING: COLOURS["vermilion"],
    reasoning_tables.NEITHER: COLOURS["grey"],
}  # fmt: skip
_KINDS = {
    knowledge.C1: COLOURS["green"], knowledge.SCU: COLOURS["blue"], knowledge.STEPS: COLOURS["orange"],
    knowledge.SWAP: COLOURS["purple"], knowledge.UNTOUCHED: "black", knowledge.RANDOM_C1: "0.6",
    knowledge.RANDOM_SCU: "0.6",
}  # fmt: skip
_MARKS = {knowledge.RANDOM_C1: ".", knowledge.RANDOM_SCU: "x", knowledge.UNTOUCHED: "s", knowledge.SWAP: "*"}


# one prompt -----------------------------------------------------------------------------------------------------------
def followed(found: Followed, model: str, block: int) -> Figure:
    """One prompt in four panels: relevance of its words, its projection by block, values of units, its answer."""
    figure, axes = canvas(14.5, 4.2, columns=4, width_ratios=[1, 1, 1, 1])
    words, path, values, answer = axes[0]
    colours = [COLOURS["vermilion"] if value > 0 else COLOURS["blue"] for value in found.words["relevance"]]
    words.barh(range(len(found.words)), found.words["relevance"], color=colours)
    words.set_yticks(range(len(found.words)), found.words["word"])
    words.invert_yaxis()
    words.axvline(0, color="0.6", linewidth=0.8)
    words.set(title="1 Its words (HD: relevance)", xlabel=f"relevance to L{block}-C1")
    curves(path, found.path, "block", "projection", "series", _PATHS, {one_prompt.PROMPT: "--"})
    path.axvline(block, **CONTROL)
    path.set(title="2 Its path (HD: direction)", xlabel="block (bands: 10-90 %)", ylabel="projection on C1")
    path.xaxis.get_major_locator().set_params(integer=True)
    path.legend(fontsize=8)
    order = range(len(found.units))
    values.bar(order, found.units["harmful"], color=COLOURS["sky"], label="harmful prompts, mean")
    values.plot(order, found.units["prompt"], ".", color="black", label=one_prompt.PROMPT)
    values.axhline(0, color="0.6", linewidth=0.8)
    values.set(title="3 Its units (SSAH: safety-critical)", xlabel="SCU, sorted", ylabel="sd from the benign mean")
    values.legend(fontsize=8)
    if len(found.answer):
        curves(answer, found.answer, "word", "distance", "answer", _ANSWERS, {reasoning_tables.NEITHER: ":"})
        answer.legend(fontsize=8, title="distance to an answer that is", title_fontsize=8)
    answer.set(title="4 Its answer (SSAH: states)", xlabel="word of its own answer")
    answer.set(ylabel="cosine distance", ylim=(0, None))
    figure.suptitle(f"One harmful prompt in {model}, by the four methods", fontsize=11)
    return figure


# the switch -----------------------------------------------------------------------------------------------------------
def switch(
    by_block: pd.DataFrame, block: int, middle: Sequence[int], random: Mapping[int, Mapping[str, np.ndarray]],
    outcomes: pd.DataFrame, bound: float, layers: int,
) -> Figure:  # fmt: skip
    """Left: prompts that flip under the swap, by block, with random directions at some. Right: outcomes of either
    side before and after. `random` has shares by block and where directions were drawn; `block` is the chosen one."""
    figure, axes = canvas(12.5, 4.2, columns=2, width_ratios=[1.25, 1])
    left, right = axes[0]
    shown = by_block.assign(depth=relative_depth(by_block["block"], layers))
    named = shown.assign(side=shown["side"].map(_WORDS))
    curves(left, named, "depth", "share", "side", {_WORDS[side]: colour for side, colour in _SIDES.items()})
    step, ends = 1 / layers, relative_depth([middle[0], middle[-1]], layers)
    left.axvspan(ends[0] - step / 2, ends[1] + step / 2, color=COLOURS["yellow"], alpha=0.2, linewidth=0)
    left.axhline(bound, color="0.3", linestyle="--", linewidth=1)
    for number, (at, drawn) in enumerate(random.items()):
        for place, (where, values) in enumerate(drawn.items()):
            across = float(relative_depth(at, layers)) + np.linspace(-0.25, 0.25, len(values)) * step
            label = None if number else f"random, {where}"
            left.plot(across, values, "x" if place else ".", color="0.5", markersize=4, label=label)
    left.set(title=f"Prompts that change sides when one coordinate is swapped\n(shaded: middle blocks; "
             f"chosen: {block}; dashed: bar; nothing published)", xlabel="relative depth", ylim=(-0.03, 1.03),
             ylabel="share of prompts")  # fmt: skip
    left.legend(fontsize=8)
    _stacked(right, outcomes)
    right.set_title("Outcomes (exact: every word right)")
    return figure


def _stacked(axis: Axes, table: pd.DataFrame) -> None:
    """Stacked outcomes, one bar a condition and side."""
    names = list(dict.fromkeys(zip(table["side"], table["condition"], strict=True)))
    base = np.zeros(len(names))
    for outcome, colour in OUTCOME_COLOURS.items():
        part = table[table["outcome"] == outcome].set_index(["side", "condition"])["share"].loc[names].to_numpy()
        axis.bar(range(len(names)), part, bottom=base, color=colour, label=OUTCOME_NAMES[outcome], width=0.8)
        base = base + part
    axis.set_xticks(
        range(len(names)), [f"{side},\n" + condition.replace(" in ", "\nin ") for side, condition in names], fontsize=8
    )
    axis.set(ylim=(0, 1), ylabel="share of prompts")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)


# knowledge ------------------------------------------------------------------------------------------------------------
def kept(published: pd.DataFrame, table: pd.DataFrame, base: float, bound: float, layer: int) -> Figure:
    """Left: published attack success after similar interventions. Middle: outcomes after each, the bar dotted. Right:
    how far each moves prompts on the refusal coordinate against what is still refused.

    `published` has columns name, rate (shares); `table` as `knowledge.table`.
    """
    figure, axes = canvas(14.5, 4.6, columns=3, width_ratios=[1, 1.5, 1.1])
    left, middle, right = axes[0]
    left.barh(range(len(published)), published["rate"], color=COLOURS["grey"])
    left.set_yticks(range(len(published)), published["name"], fontsize=8)
    left.invert_yaxis()
    left.set(title="Published attack success (7B; judged\nharmful, not exact; no base rate)", xlim=(0, 1))
    bars = knowledge.without_draws(table).set_index("intervention")
    start = np.zeros(len(bars))
    for outcome in ("exact", "wrong", "refused"):
        middle.barh(range(len(bars)), bars[outcome], left=start, color=OUTCOME_COLOURS[outcome],
                    label=OUTCOME_NAMES[outcome])  # fmt: skip
        start = start + bars[outcome].to_numpy()
    spread = np.abs(bars[["lower", "upper"]].to_numpy(float).T - bars["exact"].to_numpy(float))
    middle.errorbar(bars["exact"], range(len(bars)), xerr=spread, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    middle.axvline(bound * base, **{**CONTROL, "color": "black"})
    middle.set_yticks(range(len(bars)), bars.index, fontsize=8)
    middle.invert_yaxis()
    middle.set(
        title=f"Measured: harmful prompts after each (dotted:\nbar, {bound:g} of base's exact answers)", xlim=(0, 1)
    )
    middle.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    for kind, part in table.groupby("kind", sort=False):
        right.plot(part["way"], part["refused"], _MARKS.get(str(kind), "o"), color=_KINDS[str(kind)], label=kind,
                   linestyle="none", markersize=11 if kind == knowledge.SWAP else 6)  # fmt: skip
    right.set(title=f"Measured: way on the refusal coordinate\nafter block {layer} against refusal", ylim=(-0.03, 1.03))
    right.set(xlabel="way from harmful (0) to benign (1)", ylabel="share still refused")
    right.legend(fontsize=8)
    return figure


# the bridge -----------------------------------------------------------------------------------------------------------
def bridge(
    every: pd.DataFrame, written: Mapping[str, Write], moved: Mapping[str, Move], bound: float, block: int
) -> Figure:
    """Left: what each unit writes on C1 against I_S - I_U, one dot a unit (columns gap, share, scu). Middle: per SCU
    minus matched units, by group of SCU. Right: how far removing the group moves harmful prompts."""
    figure, axes = canvas(14.5, 4.4, columns=3, width_ratios=[1.1, 1, 1])
    left, middle, right = axes[0]
    for mine, colour, label in ((False, "0.75", "other units"), (True, COLOURS["blue"], "SCU, the paper's score")):
        part = every[every["scu"] == mine]
        left.plot(part["gap"], part["share"], ".", color=colour, markersize=6 if mine else 3, label=label)
    left.axhline(0, color="0.6", linewidth=0.8)
    left.set(title=f"What each unit writes on L{block}-C1\nagainst its score (nothing published)")
    left.set(xlabel="I_S - I_U, standardised", ylabel="share of harmful - benign on C1")
    left.legend(fontsize=8)
    _intervals(middle, {name: (one.margin, one.draws) for name, one in written.items()}, COLOURS["blue"])
    middle.set_title("Per SCU minus matched units\n(grey: one matched unit for each, redrawn)")
    middle.set_xlabel("share of harmful - benign on C1")
    _intervals(right, {name: (one.way, one.draws) for name, one in moved.items()}, COLOURS["vermilion"])
    right.axvline(bound, color="0.3", linestyle="--", linewidth=1)
    right.set_title("Way on C1 without the group\n(dashed: bar; grey: random units)")
    right.set_xlabel("from harmful (0) to benign (1)")
    return figure


def _intervals(axis: Axes, found: Mapping[str, tuple], colour: object) -> None:
    """A row for each name: the value with its interval, control draws above it."""
    for height, (interval, draws) in enumerate(found.values()):
        axis.plot(draws, np.full(len(draws), height - 0.22), ".", color="0.6", markersize=4)
        if interval is None:
            continue
        low, high = interval.bounds or (interval.mean, interval.mean)
        axis.errorbar(interval.mean, height, xerr=[[interval.mean - low], [high - interval.mean]], fmt="o",
                      color=colour, capsize=3)  # fmt: skip
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylim(len(found) - 0.5, -0.6)


def carried(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What groups of units write of the distance on C1, a panel for each of `tables` (`bridge_tables.carried`), with as
    many random units in grey (5th to 95th percentile)."""
    figure, axes = canvas(12.5, 3.8, columns=len(tables))
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        at = np.arange(len(table))
        spread = np.abs(table[["lower", "upper"]].to_numpy(float).T - table["share"].to_numpy(float))
        axis.barh(at, table["share"], height=0.5, color=COLOURS["blue"], xerr=spread, error_kw={"elinewidth": 1})
        axis.hlines(
            at + 0.36, table["random_low"], table["random_high"], color="0.5", linewidth=3, label="random units"
        )
        axis.set_yticks(at, [f"{name} ({units:,})" for name, units in zip(table["group"], table["units"], strict=True)])
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.invert_yaxis()
        axis.set(title=title, xlabel="share of harmful - benign on C1 written directly")
    axes[0, 0].legend(fontsize=8)
    return figure
