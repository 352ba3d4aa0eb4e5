"""Charts of residual spaces (notebook 07), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Sequence
from itertools import cycle, islice

import pandas as pd
from matplotlib.figure import Figure

from lib.figures import COLOURS, OUTCOME_COLOURS, OUTCOME_NAMES, canvas, curves, relative_depth, scatter

_SERIES = {
    "SFT": COLOURS["blue"], "DPO": COLOURS["orange"], "errands": COLOURS["green"], "random": COLOURS["grey"],
    "errands, equally long": COLOURS["green"], "ledgers": COLOURS["brown"], "activations": COLOURS["grey"],
}  # fmt: skip
_LINES = {"random": ":", "shuffled": ":", "errands": "--", "errands, equally long": "--", "ledgers": "--"}
_EDGE = 1.3


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


def prompt_map(points: pd.DataFrame, block: int, styles: Sequence[str]) -> Figure:
    """Prompts on two components, a row a model (column `model`), coloured by kind, style (plain and `styles`) and
    outcome."""
    rows = list(points["model"].unique())
    figure, axes = canvas(11.5, 3.6 * len(rows), rows=len(rows), columns=3, sharex=True, sharey=True)
    bright = [colour for name, colour in COLOURS.items() if name not in ("grey", "yellow")]
    by_style = dict(zip(("plain", *styles), ["0.75", *islice(cycle(bright), len(styles))], strict=True))
    named = points.assign(outcome=points["outcome"].map(OUTCOME_NAMES))
    palettes: Sequence[tuple[str, dict]] = (
        ("kind", _KINDS), ("style", by_style), ("outcome", {OUTCOME_NAMES[k]: c for k, c in OUTCOME_COLOURS.items()}),
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
