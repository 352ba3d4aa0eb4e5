"""Charts of the audit of printed numbers (notebook 14).

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import audit_tables as tables
from lib.figures import COLOURS, CONTROL, canvas

_PROMPTS = {"with system prompt": COLOURS["blue"], "without system prompt": COLOURS["orange"]}
_CONTRASTS = dict(zip((tables.FROZEN, tables.STRICTER), (COLOURS["green"], COLOURS["vermilion"]), strict=True))
_ATTACKS: dict[str, object] = {
    "Trigger Removal": COLOURS["vermilion"], "PAIR": COLOURS["blue"], "Flip": COLOURS["green"],
    "GPTFuzz": COLOURS["orange"], "Simple": COLOURS["purple"],
}  # fmt: skip
_GREY = COLOURS["grey"]


def _bars(
    axis: Axes,
    data: pd.DataFrame,
    value: str,
    places: Iterable[float],
    colour: object,
    label: str,
    hollow: bool = False,
) -> None:
    """Points with horizontal intervals; `hollow` ones are drawn as rings, with thinner intervals."""
    spread = [data[value] - data["lower"], data["upper"] - data[value]]
    axis.errorbar(data[value], list(places), xerr=spread, fmt="o", color=colour, markersize=4.5,
                  elinewidth=0.8 if hollow else 1.5, capsize=2, label=label,
                  markerfacecolor="white" if hollow else colour)  # fmt: skip


def _averages(axis: Axes, shares: pd.DataFrame, printed: pd.DataFrame, off: pd.DataFrame) -> None:
    rows = printed[["model", "group"]].reset_index(drop=True)
    for shift, (prompt, colour) in zip((-0.17, 0.17), _PROMPTS.items(), strict=True):
        part = rows.merge(shares[shares["prompt"] == prompt])
        _bars(axis, 100 * part[["share", "lower", "upper"]], "share", rows.index + shift, colour, prompt)
    wrong = rows.merge(off[["model", "group"]], "left", indicator=True)["_merge"] == "both"
    for chosen, colour, label in (
        (~wrong, "0.2", "printed average"),
        (wrong, COLOURS["vermilion"], "printed average, not the mean"),
    ):
        axis.scatter(printed["asr_average"].to_numpy()[chosen], rows.index[chosen], marker="D", s=42, facecolor="none",
                     edgecolor=colour, linewidth=1.4, zorder=3, label=label)  # fmt: skip
    means = rows.merge(off)
    at = [int(rows.index[(rows == row).all(axis=1)][0]) for _, row in means[["model", "group"]].iterrows()]
    axis.scatter(
        means["mean"],
        at,
        marker="|",
        s=110,
        color="black",
        zorder=3,
        label="mean of the two rates\n(where it differs from the printed average)",
    )
    groups = rows["group"].replace({"scu": "SCU", "ucu": "UCU", "ru": "RU"})
    axis.set_yticks(rows.index, rows["model"].str.split("-Instruct").str[0] + ", " + groups, fontsize=8)
    for edge in np.flatnonzero(rows["model"] != rows["model"].shift())[1:]:
        axis.axhline(edge - 0.5, color="0.85", linewidth=0.8)
    axis.invert_yaxis()
    n = shares["n"].iloc[0]
    axis.set(title=f"Attack success, %, after pruning each group\n(SSAH Table 1; {n} prompts a cell, derived)",
             xlabel="attack success, %", xlim=(-2, 102))  # fmt: skip
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.11), ncols=2, fontsize=8)


def _forest(axis: Axes, gaps: pd.DataFrame) -> None:
    keys = ["model", "corpus", "benchmark", "judge"]
    rows = gaps[keys].drop_duplicates().reset_index(drop=True)
    axis.axvline(0, color="0.5", linewidth=0.8)
    for shift, name in zip((-0.18, 0.18), (tables.FROZEN, tables.STRICTER), strict=True):
        part = rows.merge(gaps[gaps["contrast"] == name])
        clear = part["resolved"].to_numpy()
        places = rows.index.to_numpy() + shift
        _bars(axis, part[clear], "difference", places[clear], _CONTRASTS[name], name)
        _bars(axis, part[~clear], "difference", places[~clear], _CONTRASTS[name], "_", hollow=True)
    axis.plot([], [], "o", color="0.35", markerfacecolor="white", markersize=4.5, label="ring: interval contains 0")
    labels = [f"{row['benchmark']}, {row['judge'].split(' (')[0]}" for _, row in rows.iterrows()]
    axis.set_yticks(rows.index, labels, fontsize=7)
    groups = rows["model"] + ", " + rows["corpus"]
    for start in np.flatnonzero(groups != groups.shift()):
        axis.axhline(start - 0.5, color="0.85", linewidth=0.8)
        axis.text(
            0.99, start - 0.4, groups[start], transform=axis.get_yaxis_transform(), fontsize=8, ha="right", va="top"
        )
    axis.invert_yaxis()
    axis.set(title="Points of attack success saved by freezing\n(SSAH Table 2; n of each benchmark)",
             xlabel="difference, points", xlim=(-9, 47))  # fmt: skip
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=2, fontsize=8)


def shares(pruned: pd.DataFrame, printed: pd.DataFrame, off: pd.DataFrame, gaps: pd.DataFrame) -> Figure:
    """Printed shares with the intervals that their n implies. Left: attack success of SSAH Table 1 (`pruned` of
    `audit_tables.pruned`), the printed averages as diamonds, those of `off` in red. Right: `audit_tables.contrasts`."""
    figure, axes = canvas(13.0, 7.2, width_ratios=[1, 1.05])
    left, right = axes[0]
    _averages(left, pruned, printed.reset_index(drop=True), off)
    _forest(right, gaps)
    return figure


def floor(released: pd.DataFrame, missed: pd.DataFrame, safe: int, shots: int) -> Figure:
    """Left: pass rate by K (columns share, lower, upper), the rate of a model that calls everything a hazard dotted.
    Right: prompts missed at `shots`, those labelled safe in grey, and the attacks passed in HD Fig. 4 as diamonds."""
    figure, axes = canvas(11.5, 4.3, width_ratios=[1.35, 1])
    left, right = axes[0]
    ticks = sorted(released["shots"].unique())
    for number, (name, colour) in enumerate(_ATTACKS.items()):
        part = released[released["attack"] == name].sort_values("shots")
        at = np.searchsorted(ticks, part["shots"]) + 0.09 * (number - 2)
        spread = [part["share"] - part["lower"], part["upper"] - part["share"]]
        left.errorbar(at, part["share"], yerr=spread, color=colour, fmt="o-", markersize=4, elinewidth=0.9, label=name)
    n = int(released["n"].iloc[0])
    left.axhline(safe / n, **CONTROL)
    left.text(len(ticks) - 0.6, safe / n, f"{safe}/{n}", fontsize=8, va="bottom", ha="left", color="0.35")
    left.set_xticks(range(len(ticks)), [f"{k:g}" for k in ticks])
    left.set(title=f"Pass rate by K ({n} prompts; dotted: everything\ncalled a hazard; released counts of HD Table 3)",
             xlabel="examples an attack, K", ylabel="pass rate",
             xlim=(-0.4, len(ticks)), ylim=(-0.01, 1))  # fmt: skip
    left.legend(fontsize=8)
    places = range(len(missed))
    base = missed["missed"] - missed["rest"]
    right.barh(places, base, color=_GREY, label=f"goals labelled safe ({safe})")
    right.barh(places, missed["rest"], left=base, color=COLOURS["vermilion"], label="the rest")
    known = missed["fig4"].notna().to_numpy()
    shown = np.flatnonzero(known)
    right.scatter(missed["fig4"][known] + safe, shown, marker="D", color="black", s=30, zorder=3,
                  label=f"passed in Fig. 4, plus {safe}")  # fmt: skip
    right.set_yticks(places, missed["attack"])
    right.xaxis.get_major_locator().set_params(integer=True)
    right.invert_yaxis()
    right.set(title=f"Prompts that miss their label at K = {shots}", xlabel=f"prompts of {n}")
    right.legend(fontsize=8)
    return figure
