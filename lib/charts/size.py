"""Charts of verdicts and values against the size of a model (notebook 13), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from lib import stats
from lib.claims import ClaimVerdict
from lib.figures import COLOURS, CONTROL, canvas
from lib.stats import Rule, Verdict

Looks = Mapping[str, tuple[object, str]]  # colour and a word short enough for a cell
_VERDICTS: Looks = {
    ClaimVerdict.HOLDS.value: (COLOURS["blue"], "holds"),
    ClaimVerdict.MIXED.value: (COLOURS["purple"], "mixed"),
    ClaimVerdict.UNDECIDED.value: ("0.82", "open"),
    ClaimVerdict.FAILS.value: (COLOURS["vermilion"], "fails"),
    ClaimVerdict.NOT_TESTABLE.value: ("white", "no test"),
}
_REPORTED: Looks = {
    "numbers": (COLOURS["blue"], "numbers"), "same trend": (COLOURS["sky"], "in words"), "nothing": ("white", "-"),
}  # fmt: skip
_DARK = (COLOURS["blue"], COLOURS["purple"], COLOURS["vermilion"])
_POINTS = {
    Verdict.HOLDS.value: COLOURS["blue"], Verdict.FAILS.value: COLOURS["vermilion"],
    Verdict.UNDECIDED.value: "0.45", ClaimVerdict.NOT_TESTABLE.value: COLOURS["yellow"],
}  # fmt: skip
_TITLES = {
    "hd.3.late": "AUC of C1, later half", "hd.3.random": "the same against random",
    "hd.3.early": "AUC of C1, first third", "hd.10.gap": "trigger removal - best style",
    "hd.10.random": "ranked - random words", "hd.10.occlusion": "leave-one-out - random",
}  # fmt: skip


def millions(parameters: float) -> str:
    """1346688 -> 1.3M."""
    return f"{parameters / 1e6:.2g}M"


# verdicts -------------------------------------------------------------------------------------------------------------
def _cells(axis: Axes, words: pd.DataFrame, looks: Looks) -> None:
    """A coloured cell with a word for each entry; the first row on top."""
    for (row, column), value in np.ndenumerate(words.to_numpy()):
        colour, word = looks[value]
        axis.add_patch(Rectangle((column - 0.47, row - 0.43), 0.94, 0.86, facecolor=colour, edgecolor="0.6", lw=0.6))
        ink = "white" if colour in _DARK else "black"
        axis.text(column, row, word, ha="center", va="center", fontsize=8, color=ink)
    axis.set(xlim=(-0.55, words.shape[1] - 0.45), ylim=(words.shape[0] - 0.4, -0.6))
    axis.set_yticks(range(len(words)), words.index)
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)


def verdicts(published: pd.DataFrame, table: pd.DataFrame, shares: pd.DataFrame, default: str, bar: float) -> Figure:
    """Left, what HD reports of which model; middle, every verdict here; right, how many sizes keep the default's.

    `published` is `hd_sizes`; `table` is `size_tables.verdicts`; `shares` is `size_tables.shares_kept`.
    """
    figure, axes = canvas(13, 0.42 * table["size"].nunique() + 2.0, columns=3, width_ratios=[0.8, 2.1, 1])
    left, middle, right = axes[0]
    names = published["model"] + ", " + published["training"]
    _cells(left, published.set_index(names)[["hd.3", "hd.10"]], _REPORTED)
    left.set_xticks([0, 1], ["hd.3", "hd.10"])
    left.set_title("Published by HD")
    wide = table.pivot(index="size", columns=["claim", "seed"], values="verdict")
    order = list(reversed(dict.fromkeys(table["size"])))
    heads = list(dict.fromkeys(zip(table["claim"], table["seed"], strict=True)))
    wide = wide.loc[order, heads]
    sizes = table.drop_duplicates("size").set_index("size")["parameters"]
    _cells(middle, wide, _VERDICTS)
    middle.set_yticks(
        range(len(order)), [millions(sizes[name]) + (" (default)" if name == default else "") for name in order]
    )
    labels = [f"{claim}\n{'seed ' if str(seed).isdecimal() else ''}{seed}" for claim, seed in heads]
    middle.set_xticks(range(wide.shape[1]), labels)
    middle.set_title("Verdicts here, by size: each seed alone, and all together")
    middle.axvline(wide.shape[1] / 2 - 0.5, color="black", linewidth=1.2)
    _shares(right, shares, bar)
    return figure


def _shares(axis: Axes, shares: pd.DataFrame, bar: float) -> None:
    """Shares by group: a dot a seed (or pair of seeds), the mean; an interval over seeds where the dots are seeds."""
    groups = list(dict.fromkeys(shares["group"]))
    for place, (group, colour) in enumerate(zip(groups, (COLOURS["blue"], COLOURS["grey"]), strict=False)):
        values = shares.loc[shares["group"] == group, "share"].to_numpy(float)
        spread = 0.08 * (np.arange(len(values)) - (len(values) - 1) / 2)
        axis.plot(place + spread, values, "o", color=colour, markersize=5, alpha=0.6)
        axis.plot([place - 0.25, place + 0.25], [values.mean()] * 2, color=colour)
        bounds = stats.over_seeds(values).bounds if place == 0 else None
        if bounds:
            axis.plot([place + 0.32] * 2, np.clip(bounds, 0, 1), color=colour, linewidth=1.2)
    axis.axhline(bar, color="0.3", linestyle=":", linewidth=1)
    axis.text(len(groups) - 0.5, bar + 0.02, f"bar {bar:g}", fontsize=8, color="0.3", ha="right")
    axis.set_xticks(range(len(groups)), [group.replace(", ", ",\n") for group in groups])
    axis.set(ylim=(-0.04, 1.04), xlim=(-0.5, len(groups) - 0.5), title="Both verdicts as the default's", ylabel="share")


# values ---------------------------------------------------------------------------------------------------------------
def _by_size(axis: Axes, sizes: pd.Series) -> None:
    """A logarithmic axis of parameters with the sizes themselves as ticks."""
    axis.set_xscale("log")
    axis.set_xticks(sizes.to_numpy(float), [millions(size) for size in sizes], fontsize=8)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(sizes.min() / 1.35, sizes.max() * 1.35)


def parts(values: pd.DataFrame, means: pd.DataFrame, rules: Mapping[str, Rule], printed: Mapping[str, float]) -> Figure:
    """Every part against size: a dot a seed, the mean with its interval over seeds in the colour of the verdict, random
    directions dotted, the bar dashed, and HD's number at 8B as a line. Frames of `size_tables.parts`, `.over_seeds`.
    Intervals go on beyond the axes."""
    names = list(rules)
    figure, axes = canvas(12.5, 6.2, rows=2, columns=3, sharex=True)
    for axis, name in zip(axes.flat, names, strict=True):
        mine, mean = (table[table["part"] == name] for table in (values, means))
        axis.plot(mine["parameters"], mine["value"], "o", color="0.6", markersize=4)
        control = mine.groupby("parameters")["control"].mean()
        if control.notna().any():
            axis.plot(control.index, control, **CONTROL)
        for row in mean.dropna(subset="mean").to_dict("records"):
            colour = _POINTS[row["verdict"]]
            if pd.notna(row["lower"]):
                axis.plot([row["parameters"]] * 2, [row["lower"], row["upper"]], color=colour, linewidth=1.6)
            axis.plot(row["parameters"], row["mean"], "D", color=colour, markersize=6)
        if rules[name].bound is not None:
            axis.axhline(float(rules[name].bound or 0.0), color="0.3", linestyle="--", linewidth=1)
        if name in printed:
            axis.axhline(printed[name], color=COLOURS["purple"], linewidth=1.2)
        shown = pd.concat([mine["value"], mean["mean"]]).dropna()
        low, high = (0.4, 1.03) if name.startswith("hd.3") else (-0.65, 0.65)
        ylim = (min([low, *(shown - 0.05)]), max([high, *(shown + 0.05)]))  # every dot is inside
        axis.set(title=f"{name}: {_TITLES[name]}", ylim=ylim)
        _by_size(axis, values["parameters"].drop_duplicates())
    for axis in axes[-1]:
        axis.set_xlabel("parameters")
    axes[0, 0].set_ylabel("AUC on other prompts")
    axes[1, 0].set_ylabel("difference in attack success")
    figure.legend(handles=_part_handles(), loc="outside lower center", ncols=8, fontsize=8.5)
    return figure


def _part_handles() -> list[Line2D]:
    handles = [Line2D([], [], color="0.6", marker="o", linestyle="none", label="a seed")]
    handles += [
        Line2D([], [], color=colour, marker="D", label=f"mean, {verdict}") for verdict, colour in _POINTS.items()
    ]
    handles.append(Line2D([], [], label="random directions", **CONTROL))
    handles.append(Line2D([], [], color="0.3", linestyle="--", label="bar"))
    return [*handles, Line2D([], [], color=COLOURS["purple"], label="printed by HD, 8B")]


def fair(behaviour: pd.DataFrame, cost: pd.DataFrame, least: float) -> Figure:
    """Left, what models of each size know and do (mean over seeds, a dot a seed), with the line `least` that two
    requirements share; right, minutes by step. Frames of `size_tables.behaviour` and `.fastest`."""
    figure, axes = canvas(12.5, 4.3, columns=2, width_ratios=[1.4, 1])
    left, right = axes[0]
    sizes = behaviour["parameters"].drop_duplicates()
    colours = [colour for name, colour in COLOURS.items() if name not in ("grey", "yellow")]
    for (what, mine), colour in zip(behaviour.groupby("what", sort=False), cycle(colours), strict=False):
        left.plot(mine["parameters"], mine["share"], "o", color=colour, markersize=3, alpha=0.6)
        mean = mine.groupby("parameters")["share"].mean()
        left.plot(mean.index, mean, color=colour, label=what, linewidth=1.4)
    left.axhline(least, color="0.3", linestyle="--", linewidth=1)
    left.set(title="What models of each size know and do", ylabel="share of prompts", ylim=(-0.03, 1.03))
    left.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
    minutes_of = cost / 60
    base = np.zeros(len(minutes_of))
    for (step, minutes), colour in zip(minutes_of.items(), cycle(COLOURS.values()), strict=False):
        right.bar(
            range(len(minutes_of)), minutes.fillna(0), bottom=base, color=colour, edgecolor="white", label=str(step)
        )
        base = base + minutes.fillna(0).to_numpy()
    right.set_xticks(range(len(minutes_of)), [millions(size) for size in minutes_of.index])
    right.set(
        title="Minutes for one seed (of each step,\nthe fastest of the seeds)", xlabel="parameters", ylabel="minutes"
    )
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
    left.set_xlabel("parameters")
    _by_size(left, sizes)
    return figure
