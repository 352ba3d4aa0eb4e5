"""The charts of particular notebooks, published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from lib.figures import (
    COLOURS,
    CONTROL,
    OUTCOME_COLOURS,
    OUTCOME_NAMES,
    canvas,
    curves,
    outcomes,
    relative_depth,
    scatter,
)
from lib.kingdom.styles import JAILBREAKS, PLAIN, UNSEEN

_SERIES = {"SFT": COLOURS["blue"], "DPO": COLOURS["orange"], "benign": COLOURS["green"], "random": COLOURS["grey"]}
_LINES = {"random": ":", "shuffled": ":", "benign": "--"}
_PUBLISHED = {"SSFT": COLOURS["blue"], "DPO": COLOURS["orange"]}


# 01 ------------------------------------------------------------------------------------------------------------------
def behaviour_by_style(rates: pd.DataFrame, names: dict[str, str]) -> Figure:
    """What each model does with harmful (left) and benign (right) requests in every style.

    `rates` from `behaviour.rates`; `names` maps the column `model` to row titles.
    """
    figure, axes = canvas(11.5, 2.35 * len(names) + 0.6, rows=len(names), columns=2, sharey=True)
    order = [PLAIN, *JAILBREAKS, UNSEEN]
    for row, (name, title) in enumerate(names.items()):
        part = rates[rates["model"] == name]
        for column, kind in enumerate(("harmful", "benign")):
            axis = axes[row, column]
            outcomes(axis, part, [f"{kind}/{style}" for style in order], f"{title}: {kind} requests")
            axis.axvline(0.5, color="white", linewidth=3)
            if row < len(names) - 1:
                axis.set_xticklabels([])
        axes[row, 0].set_ylabel("share of prompts")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def shots_curve(published: pd.DataFrame, measured: pd.DataFrame, false_refusal: pd.DataFrame, floor: float) -> Figure:
    """Attack success against K, published and measured, and false refusals (`behaviour.shots_curve`, `false_refusals`).

    `floor` is the largest attack success wanted at the largest K.
    """
    figure, axes = canvas(11.5, 3.9, columns=3, sharey=True)
    left, middle, right = axes[0]
    curves(left, published, "shots", "pass_rate", "attack")
    left.set(title="Published (HD Table 3, 8B)", ylabel="share", ylim=(-0.03, 1), xlabel="K examples of each attack")
    for style, part in measured[measured["style"] != "mean"].groupby("style", sort=False):
        middle.plot(part["shots"], part["share"], color="0.75", linewidth=1)
        middle.annotate(str(style), (part["shots"].iloc[0], part["share"].iloc[0]), fontsize=7, color="0.5",
                        xytext=(-3, 0), textcoords="offset points", ha="right", va="center")  # fmt: skip
    curves(middle, measured[measured["style"] == "mean"], "shots", "share", "style", {"mean": COLOURS["vermilion"]})
    middle.axhline(floor, **CONTROL)
    middle.set(title="Measured: attack success", xlabel="K examples of each style")
    styled = false_refusal["mix"] == "benign side styled"
    curves(right, false_refusal[styled], "shots", "share", "mix", {"benign side styled": COLOURS["blue"]})
    other = false_refusal[~styled]
    spread = (other["share"] - other["lower"], other["upper"] - other["share"])
    right.errorbar(
        other["shots"],
        other["share"],
        yerr=spread,
        fmt="D",
        color=COLOURS["purple"],
        label="benign side plain, as in HD",
    )
    right.axhline(floor, **CONTROL)
    right.set(title="Measured: benign styled requests refused", xlabel="K examples of each style")
    for axis in axes[0]:
        axis.legend()
    return figure


# 07 ------------------------------------------------------------------------------------------------------------------
def affine_error(published: pd.DataFrame, measured: pd.DataFrame, layers: int, bound: float) -> Figure:
    """Relative error of the map by depth; the claim's bound dotted."""
    figure, axes = canvas(10, 3.7, sharex=True)
    left, right = axes[0]
    left.plot(relative_depth(published["hidden_state"] - 1, 32), published["relative"], "o-", color=COLOURS["blue"])
    left.set(title="Published (HD Table 4, 8B; see text)", ylabel="squared error / squared shift", ylim=(0, 1.3))
    shown = measured.assign(depth=relative_depth(measured["block"], layers), upper=measured["upper"].clip(upper=1.3))
    colours = {"affine": COLOURS["blue"], "constant": COLOURS["orange"], "shuffled": COLOURS["grey"]}
    curves(right, shown, "depth", "error", "map", colours, _LINES)
    right.set(title="Measured on held-out prompts", ylim=(0, 1.3))
    right.legend()
    for axis in axes[0]:
        axis.axhline(bound, color="0.3", linestyle=":", linewidth=1)
        axis.set_xlabel("relative depth")
    left.text(0.02, bound + 0.02, "bound of hd.1", fontsize=8, color="0.3")
    return figure


def rank_by_depth(published: pd.DataFrame, measured: pd.DataFrame, layers: int, width: int, bound: float) -> Figure:
    """Effective rank as a share of the width, published, then measured uncentred and centred."""
    figure, axes = canvas(11.5, 3.7, columns=3, sharex=True)
    shown = published.assign(depth=relative_depth(published["hidden_state"] - 1, 32), share=published["rank"] / 4096)
    curves(axes[0, 0], shown, "depth", "share", "series", _PUBLISHED, markers=False)
    axes[0, 0].set(title="Published (HD Fig. 2, width 4,096)", ylabel="rank(.9) / width", yscale="log", ylim=(2e-4, 1))
    scaled = measured.assign(depth=relative_depth(measured["block"], layers))
    for column in ("rank", "lower", "upper"):
        scaled[column] = scaled[column] / width
    for number, centred in enumerate((False, True), start=1):
        axis = axes[0, number]
        curves(axis, scaled[scaled["centred"] == centred], "depth", "rank", "series", _SERIES, _LINES)
        axis.axhline(bound, color="0.3", linestyle=":", linewidth=1)
        title = "centred" if centred else "as published (uncentred)"
        axis.set(title=f"Measured, {title}, width {width}", ylim=(0, 0.8))
    for axis in axes[0]:
        axis.set_xlabel("relative depth")
        axis.legend(loc="upper left" if axis is axes[0, 0] else "best")
    axes[0, 1].text(0.2, bound + 0.01, "bound of hd.2", fontsize=8, color="0.3")
    return figure


_KINDS = {"harmful": COLOURS["vermilion"], "benign": COLOURS["blue"], "exception": COLOURS["green"]}


def prompt_map(points: pd.DataFrame, block: int) -> Figure:
    """Prompts on two components, a row a model (column `model`), coloured by kind, style and outcome."""
    rows = list(points["model"].unique())
    figure, axes = canvas(11.5, 3.6 * len(rows), rows=len(rows), columns=3, sharex=True, sharey=True)
    styles = dict(zip((PLAIN, *JAILBREAKS), ["0.7", *COLOURS.values()], strict=False))
    named = points.assign(outcome=points["outcome"].map(OUTCOME_NAMES))
    palettes: Sequence[tuple[str, dict]] = (
        ("kind", _KINDS), ("style", styles), ("outcome", {OUTCOME_NAMES[k]: c for k, c in OUTCOME_COLOURS.items()}),
    )  # fmt: skip
    for row, model in enumerate(rows):
        for column, (what, palette) in enumerate(palettes):
            axis = axes[row, column]
            scatter(axis, named[named["model"] == model], what, palette, f"{model}, by {what}")
            axis.set(
                xlabel=f"L{block}-C1" if row == len(rows) - 1 else "", ylabel=f"L{block}-C2" if column == 0 else ""
            )
            if row == 0:
                axis.legend(markerscale=2, fontsize=8, ncols=2 if what == "style" else 1)
    return figure
