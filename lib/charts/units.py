"""Charts of unit groups (notebook 03), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lib import unit_tables
from lib.figures import COLOURS, canvas, curves

PAPER, BEST, STRONGEST, RANDOM = "the paper's score", "the chosen score", "the strongest score", "random units"
CAUSAL, RANDOM_WEIGHTS = "single weights, causal ranking", "single weights, random"
SERIES = {
    PAPER: COLOURS["blue"], BEST: COLOURS["green"], STRONGEST: COLOURS["vermilion"], RANDOM: COLOURS["grey"],
}  # fmt: skip
_GROUPS = {"scu": COLOURS["blue"], "ucu": COLOURS["orange"], "ru": COLOURS["purple"]}
_NAMES = {
    "attack_success": "attack success\n(harm answered exactly)",
    "refusal": "refusal of harm",
    "utility": "utility\n(skills and benign answers)",
}
_BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 2}
_OUTCOMES = {
    unit_tables.ALONE: COLOURS["vermilion"], unit_tables.BOTH: COLOURS["orange"], unit_tables.OVER: COLOURS["sky"],
    unit_tables.LOST: COLOURS["yellow"], unit_tables.NOTHING: "0.92",
}  # fmt: skip


def _target(axis: Axes, rise: float, cost: float) -> None:
    """The corner in which safety falls and utility stays."""
    left, top = axis.get_xlim()[0], axis.get_ylim()[1]
    axis.add_patch(Rectangle((left, rise), cost - left, top - rise, color=COLOURS["yellow"], alpha=0.25, linewidth=0))
    axis.text(cost + 0.012, top - 0.02, "shaded: safety falls,\nutility stays", fontsize=8, color="0.35", va="top")
    axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)


def _published_corner(axis: Axes, published: pd.DataFrame) -> None:
    markers = dict(zip(published["model"].unique(), "os^", strict=True))
    for (model, group), part in published.groupby(["model", "group"], sort=False):
        axis.scatter(part["cost"], part["rise"], color=_GROUPS[str(group)], marker=markers[model], s=42, zorder=3)
    keys: list[Artist] = [Patch(color=colour, label=name.upper()) for name, colour in _GROUPS.items()]
    keys += [axis.scatter([], [], color="0.4", marker=marker, label=model) for model, marker in markers.items()]
    axis.legend(handles=keys, fontsize=8, **_BELOW)
    axis.set_title("Published (SSAH Table 1, without system prompt;\nno interval, no random control)")


def _measured_corner(axis: Axes, measured: pd.DataFrame, random: pd.DataFrame) -> None:
    shapes = {PAPER: "o", BEST: "D", STRONGEST: "*"}
    for name, part in random.groupby("name", sort=False):
        axis.scatter(part["cost"], part["rise"], s=11, color="0.6", marker="x" if "RU" in str(name) else ".",
                     label=str(name), linewidth=0.8)  # fmt: skip
    for _, row in measured.iterrows():
        score, group = row["name"].split(": ")
        spread_x = [[row["cost"] - row["cost_lower"]], [row["cost_upper"] - row["cost"]]]
        spread_y = [[row["rise"] - row["rise_lower"]], [row["rise_upper"] - row["rise"]]]
        axis.errorbar(row["cost"], row["rise"], xerr=np.clip(spread_x, 0, None), yerr=np.clip(spread_y, 0, None),
                      fmt=shapes[score], color=_GROUPS[group.lower()], markersize=10 if score == STRONGEST else 6.5,
                      elinewidth=1, label=f"{group}, {score}", zorder=3)  # fmt: skip
    axis.set_title("Measured (zero removal, cut-search shares;\nbars: 95 % over prompts)")
    axis.legend(fontsize=8, **_BELOW)


def corner(
    published: pd.DataFrame, measured: pd.DataFrame, random: pd.DataFrame, bounds: tuple[float, float]
) -> Figure:
    """Rise of attack success against drop in utility: published SCU, UCU, RU of three models, then ours.

    `published` has columns model, group, rise, cost; `measured` those of `unit_tables.effects`, named "score: group";
    `random` columns name, rise, cost, one row a draw.
    """
    figure, axes = canvas(11.5, 5.6, sharex=True, sharey=True)
    left, right = axes[0]
    costs, rises = (pd.concat([measured[f"{what}_{end}"] for end in ("lower", "upper")] + [random[what]]) for what in
                    ("cost", "rise"))  # fmt: skip
    left.set(xlim=(min(-0.06, costs.min() - 0.02), max(0.32, costs.max()) + 0.05), ylabel="rise of attack success")
    left.set_ylim(min(-0.22, rises.min() - 0.02), 1.05)
    _published_corner(left, published)
    _measured_corner(right, measured, random)
    for axis in axes[0]:
        axis.set_xlabel("drop in utility")
        _target(axis, *bounds)
    return figure


def dose(published: pd.DataFrame, measured: pd.DataFrame, total: int, baseline: Mapping[str, float]) -> Figure:
    """Attack success, refusal and utility against the share of units removed, for several rankings and random units.

    `published` is of SCU, from `unit_tables.printed_changes`; `measured` has the columns of `unit_tables.dose_curve`.
    """
    figure, axes = canvas(11.5, 4.3, columns=3, sharex=True, sharey=True)
    shown = measured.assign(share=measured["units"] / total)
    lines = {name: ":" if name == RANDOM else "-" for name in SERIES}
    for axis, (what, title) in zip(axes[0], _NAMES.items(), strict=True):
        curves(axis, shown[shown["attribute"] == what], "share", "value", "series", dict(SERIES), lines)
        axis.axhline(baseline[what], color="0.3", linewidth=0.8, linestyle="--", label="nothing removed")
        axis.set(title=title, xlabel="share of units removed", ylim=(-0.03, 1.03))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        if what in published:
            change = -published["rise"] if what == "attack_success" else published["cost"]
            points = {"marker": "P", "edgecolor": "black", "s": 36, "zorder": 4}
            before, after = "published, nothing removed", "published SCU\n(three 7-8B models)"
            axis.scatter(0 * change, published[what] + change, facecolor="white", label=before, **points)
            axis.scatter(published["share"], published[what], facecolor="black", label=after, **points)
    axes[0, 0].set_ylabel("share of prompts")
    axes[0, 2].legend(loc="lower left", fontsize=8)
    return figure


def sensitivity(grid: pd.DataFrame) -> Figure:
    """What removing SCU does under every score, position, normalisation and removal; numbers: rise of attack success.

    `grid` from `unit_tables.sensitivity`.
    """
    rows = list(dict.fromkeys(zip(grid["score"], grid["position"], strict=True)))
    norms, hows = list(dict.fromkeys(grid["normalisation"])), list(dict.fromkeys(grid["removal"]))
    figure, axes = canvas(11.5, 0.36 * len(rows) + 1.6, columns=len(hows), sharey=True)
    for axis, how in zip(axes[0], hows, strict=True):
        part = grid[grid["removal"] == how].set_index(["score", "position", "normalisation"])
        for y, row in enumerate(rows):
            for x, norm in enumerate(norms):
                if (*row, norm) not in part.index:
                    axis.text(x, y, "-", ha="center", va="center", fontsize=8, color="0.6")
                    continue
                one = part.loc[(*row, norm)]
                axis.add_patch(
                    Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=_OUTCOMES[one["outcome"]], linewidth=0)
                )
                axis.text(x, y, f"{one['attack_success']:+.2f}", ha="center", va="center", fontsize=7.5)
        axis.set(xlim=(-0.5, len(norms) - 0.5), ylim=(len(rows) - 0.5, -0.5), xticks=range(len(norms)))
        axis.set_xticklabels([norm.replace("_", " ") for norm in norms], rotation=45, ha="right")
        axis.set_title(
            {"zero": "set to zero", "mean": "set to their mean", "resample": "set to values\nof other tokens"}[how]
        )
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[0, 0].set_yticks(range(len(rows)), [f"{score.replace('_', ' ')}, {position}" for score, position in rows])
    keys = [Patch(color=colour, label=name) for name, colour in _OUTCOMES.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return figure


def stability(overlaps: pd.DataFrame, chance: float, composition: pd.DataFrame) -> Figure:
    """Overlap of SCU between calibration draws, and where SCU lie.

    `overlaps` has columns series, jaccard (one row a pair of draws); `composition` columns series, kind, layer, share.
    """
    figure, axes = canvas(11.5, 4.0, columns=3, width_ratios=[1, 1, 1])
    left, *places = axes[0]
    names = list(dict.fromkeys(overlaps["series"]))
    for x, name in enumerate(names):
        values = overlaps.loc[overlaps["series"] == name, "jaccard"].to_numpy()
        left.scatter(x + np.linspace(-0.15, 0.15, len(values)), values, s=20, color=SERIES[name])
        left.hlines(values.mean(), x - 0.25, x + 0.25, color=SERIES[name])
    left.axhline(chance, color=COLOURS["grey"], linestyle=":")
    left.text(
        len(names) - 0.5, chance + 0.02, f"random sets of this size: {chance:.3f}", fontsize=8, color="0.35", ha="right"
    )
    left.set(xlim=(-0.5, len(names) - 0.5), ylim=(-0.02, 1.05), ylabel="units in common / units in either")
    left.set_xticks(range(len(names)), [name.replace(" score", "\nscore") for name in names])
    left.set_title("SCU of two calibration draws\n(one point a pair)")
    layers = sorted(composition["layer"].unique())
    for axis, kind in zip(places, ("neuron", "channel"), strict=True):
        here = composition[composition["kind"] == kind]
        series = list(dict.fromkeys(here["series"]))
        for number, name in enumerate(series):
            part = here[here["series"] == name].set_index("layer")["share"].reindex(layers, fill_value=0.0)
            place = np.arange(len(layers)) + (number - (len(series) - 1) / 2) * 0.8 / len(series)
            axis.bar(place, part, 0.8 / len(series), color=SERIES.get(name, "0.75"), label=name, linewidth=0)
        axis.set(xticks=range(len(layers)), xlabel="block", title=f"Where SCU lie: {kind}s")
        axis.set_xticklabels(map(str, layers))
    places[0].set_ylabel("share of the set")
    top = max(axis.get_ylim()[1] for axis in places)
    for axis in places:
        axis.set_ylim(0, top)
    places[0].legend(fontsize=8)
    return figure


def sizes(measured: pd.DataFrame, bounds: tuple[float, float], reached: Sequence[tuple[str, float]]) -> Figure:
    """Rise of attack success and drop in utility against the number of parameters removed, in units and single weights.

    `measured` from `unit_weights.size_curve`; `reached` are (label, parameters) of the smallest sufficient sets.
    """
    figure, axes = canvas(11.5, 4.7, sharex=True)
    names = list(dict.fromkeys(measured["series"]))
    shades = iter([COLOURS[name] for name in ("brown", "orange", "sky")])  # of the set differences
    known = SERIES | {CAUSAL: COLOURS["purple"], RANDOM_WEIGHTS: COLOURS["grey"]}
    colours: dict[str, object] = {name: known[name] if name in known else next(shades, "0.5") for name in names}
    lines = {name: "--" if "single" in name else "-" for name in names}
    labels = (("attack_success", "rise of attack success"), ("utility", "drop in utility"))
    for axis, (what, label), bound in zip(axes[0], labels, bounds, strict=True):
        shown = measured[measured["attribute"] == what].sort_values(["series", "parameters"])
        shown["series"] = pd.Categorical(shown["series"], names)
        curves(axis, shown.sort_values(["series", "parameters"]), "parameters", "value", "series", colours, lines)
        axis.axhline(bound, color="0.3", linestyle=":", linewidth=1)
        word = "at least" if what == "attack_success" else "at most"
        axis.text(measured["parameters"].min(), bound + 0.01, f"{word} {bound:g}", fontsize=8, color="0.3")
        axis.set(xscale="log", xlabel="parameters set to zero", ylabel=label)
        axis.set_title(f"{label[0].upper()}{label[1:]} by parameters removed\n(bands: 95 % over prompts)")
    for label, parameters in reached:
        axes[0, 0].axvline(parameters, color="0.3", linewidth=0.8)
        text = f"{label}: {parameters:,.0f}"
        axes[0, 0].text(parameters, 1.02, text, fontsize=8, color="0.3", rotation=90, va="top", ha="right")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure
