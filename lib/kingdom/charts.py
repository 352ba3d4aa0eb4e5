"""Charts of the model family and its behaviour (notebook 01), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

import pandas as pd
from matplotlib.figure import Figure

from lib.figures import COLOURS, CONTROL, canvas, curves, outcomes
from lib.kingdom.styles import JAILBREAKS, PLAIN, UNSEEN

STYLED, PLAIN_SIDE = "tuned with benign styles", "tuned without, as in HD"


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
    """Attack success against K, published and measured, and false refusals (see `portrait`).

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
