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

_SERIES = {
    "SFT": COLOURS["blue"], "DPO": COLOURS["orange"], "errands": COLOURS["green"], "random": COLOURS["grey"],
    "errands, equally long": COLOURS["green"], "ledgers": COLOURS["brown"], "activations": COLOURS["grey"],
}  # fmt: skip
_LINES = {"random": ":", "shuffled": ":", "errands": "--", "errands, equally long": "--", "ledgers": "--"}
_EDGE = 1.3
STYLED, PLAIN_SIDE = "tuned with benign styles", "tuned without, as in HD"


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


def _labels(start: pd.DataFrame, apart: float = 0.05) -> list[tuple[float, str]]:
    """Names at the heights where lines start; those too close to read are put on lines of one label."""
    groups: list[list[tuple[float, str]]] = []
    for share, name in sorted(zip(start["share"], start["series"], strict=True), reverse=True):
        if groups and groups[-1][-1][0] - share < apart:
            groups[-1].append((share, name))
        else:
            groups.append([(share, name)])
    return [(sum(share for share, _ in group) / len(group), "\n".join(name for _, name in group)) for group in groups]


def shots_curve(published: pd.DataFrame, measured: pd.DataFrame, false_refusal: pd.DataFrame, target: float) -> Figure:
    """Attack success against K, published and measured, and false refusals (`behaviour.shots_curve`, `false_refusals`).

    `target` is the largest share wanted at the largest K. Published rows in another metric are left out.
    """
    figure, axes = canvas(11.5, 4.1, columns=3, sharey=True)
    left, middle, right = axes[0]
    same = published[published["metric"] != "StrongREJECT score"]
    curves(left, same, "shots", "pass_rate", "attack")
    left.set(
        title="Published: attacks that pass\n(HD Table 3, 8B; K = 0 is untuned)",
        ylabel="share of prompts",
        ylim=(-0.03, 1),
    )
    single = measured[measured["series"] != "mean"]
    for _, part in single.groupby("series", sort=False):
        middle.plot(part["shots"], part["share"], color="0.75", linewidth=1)
    for height, names in _labels(single[single["shots"] == single["shots"].min()]):
        middle.annotate(names, (0, height), fontsize=7, color="0.45", xytext=(-4, 0), textcoords="offset points",
                        ha="right", va="center")  # fmt: skip
    mean = measured[measured["series"] == "mean"].assign(series="mean of eight styles")
    curves(middle, mean, "shots", "share", "series", {"mean of eight styles": COLOURS["vermilion"]})
    middle.set(title="Measured: harm answered exactly\n(K = 0 is tuned on plain harm)")
    middle.set(xlim=(-24, None), xticks=sorted(single["shots"].unique())[::2])
    curves(
        right, false_refusal[false_refusal["series"] == STYLED], "shots", "share", "series", {STYLED: COLOURS["blue"]}
    )
    other = false_refusal[false_refusal["series"] != STYLED]
    spread = (other["share"] - other["lower"], other["upper"] - other["share"])
    right.errorbar(other["shots"], other["share"], yerr=spread, fmt="D", color=COLOURS["purple"], label=PLAIN_SIDE)
    right.set(title="Measured: benign requests in\nthese styles refused")
    for axis in axes[0]:
        axis.legend()
        axis.set_xlabel("K, harmful examples of each style")
    for axis in (middle, right):
        axis.axhline(target, **CONTROL)
        axis.text(axis.get_xlim()[1], target + 0.01, f"target {target:g}", fontsize=8, color="0.3", ha="right")
    return figure


# 07 ------------------------------------------------------------------------------------------------------------------
def affine_error(published: pd.DataFrame, measured: pd.DataFrame, layers: int, bound: float) -> Figure:
    """Relative error of the map by depth; the claim's bound dotted. Values above the axis are drawn at its edge."""
    figure, axes = canvas(10, 3.9, sharex=True, sharey=True)
    left, right = axes[0]
    depth = relative_depth(published["hidden_state"] - 1, published["blocks"].iloc[0])
    left.plot(depth, published["relative"], "o-", color=COLOURS["blue"])
    left.set(
        title="Published: affine map (HD Table 4, 8B; if\nits MSE is a mean over 4,096 elements)",
        ylabel="squared error / squared shift",
        ylim=(0, _EDGE),
    )
    shown = measured.assign(depth=relative_depth(measured["block"], layers))
    shown[["error", "lower", "upper"]] = shown[["error", "lower", "upper"]].clip(upper=_EDGE)
    colours = {"affine": COLOURS["blue"], "constant": COLOURS["orange"], "shuffled": COLOURS["grey"]}
    curves(right, shown, "depth", "error", "map", colours, _LINES)
    right.set_title(f"Measured: prompts with other meanings\n(above {_EDGE} drawn at the edge)")
    right.legend()
    for axis in axes[0]:
        axis.axhline(bound, color="0.3", linestyle=":", linewidth=1)
        axis.set_xlabel("relative depth")
    left.text(0.02, bound + 0.02, f"bar: {bound:.0%} of the shift", fontsize=8, color="0.3")
    return figure


def rank_by_depth(published: pd.DataFrame, measured: pd.DataFrame, layers: int, width: int, bound: float) -> Figure:
    """Rank(.9) as a share of the width, published (other shares thin), then measured uncentred and centred."""
    figure, axes = canvas(11.5, 4.1, columns=3, sharex=True, sharey=True)
    left = axes[0, 0]
    blocks, wide = published["blocks"].iloc[0], published["width"].iloc[0]
    shown = published.assign(
        depth=relative_depth(published["hidden_state"] - 1, blocks), share=published["rank"] / wide
    )
    shown["series"] = shown["series"].replace("SSFT", "SFT")
    for (series, tau), part in shown.groupby(["series", "tau"]):
        main = tau == 0.9
        left.plot(part["depth"], part["share"], color=_SERIES[str(series)], linewidth=1.8 if main else 0.6,
                  alpha=1 if main else 0.6, label=series if main else None)  # fmt: skip
    left.set(
        title=f"Published: width {wide:,}, uncentred\n(HD Fig. 2; thin: shares .4 to .8)",
        ylabel="rank / width",
        yscale="log",
    )
    scaled = measured.assign(depth=relative_depth(measured["block"], layers))
    scaled["series"] = scaled["series"].replace("benign", "errands")
    scaled[["rank", "lower", "upper"]] = scaled[["rank", "lower", "upper"]] / width
    for axis, kind in zip(axes[0, 1:], ("uncentred", "centred"), strict=True):
        curves(axis, scaled[scaled["kind"] == kind], "depth", "rank", "series", _SERIES, _LINES)
        axis.axhline(bound, color="0.3", linestyle=":", linewidth=1)
        axis.set(title=f"Measured: width {width}, {kind}\n(dotted grey: random shift of equal length)", yscale="log")
    for axis in axes[0]:
        axis.set_xlabel("relative depth")
        axis.legend(loc="upper left" if axis is left else "lower left")
    left.set_ylim(1.6e-4, 1.2)
    axes[0, 1].text(0.2, bound * 1.1, f"bar: {bound:.0%} of the width", fontsize=8, color="0.3")
    return figure


def specific_rank(measured: pd.DataFrame, layers: int, width: int) -> Figure:
    """Centred rank(.9) of the safety shift, of a benign shift as long, and of the activations themselves."""
    figure, axes = canvas(6.2, 3.8, columns=1)
    axis = axes[0, 0]
    shown = measured.assign(depth=relative_depth(measured["block"], layers))
    shown["series"] = shown["series"].replace("benign", "errands, equally long")
    curves(axis, shown, "depth", "rank", "series", _SERIES, _LINES)
    axis.set(
        title=f"Components that hold 90 % of the variation\nof shifts and activations (width {width})",
        xlabel="relative depth",
        ylabel="rank",
    )
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


_KINDS = {"harmful": COLOURS["purple"], "benign": COLOURS["sky"], "exception": COLOURS["green"]}


def prompt_map(points: pd.DataFrame, block: int) -> Figure:
    """Prompts on two components, a row a model (column `model`), coloured by kind, style and outcome."""
    rows = list(points["model"].unique())
    figure, axes = canvas(11.5, 3.6 * len(rows), rows=len(rows), columns=3, sharex=True, sharey=True)
    bright = [colour for name, colour in COLOURS.items() if name not in ("grey", "yellow")]
    styles = dict(zip((PLAIN, *JAILBREAKS), ["0.75", *bright], strict=True))
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
