"""Charts of trigger removal (notebook 11), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib import trigger_tables as tables
from lib.figures import COLOURS, canvas, curves

_COLOURS: dict[str, object] = {
    tables.RELEVANCE: COLOURS["vermilion"], tables.RANDOM: COLOURS["grey"], tables.TRANSFER: COLOURS["purple"],
    tables.BEST_STYLE: COLOURS["blue"], tables.MEAN_STYLE: COLOURS["sky"],
}  # fmt: skip
_LINES = {tables.RANDOM: ":", tables.MEAN_STYLE: "--", tables.TRANSFER: "-."}
_ROLES = ("vermilion", "orange", "purple", "sky", "grey", "blue", "green", "brown")  # colours of what a word is


def shots(published: pd.DataFrame, measured: pd.DataFrame, caveat: str) -> Figure:
    """Success against K: published (HD Table 3), then one panel for each way of training (`shots_table`).

    `published` has columns attack, shots, pass_rate; all its attacks but Trigger Removal are thin lines. A `caveat`
    (`trigger_tables.caveat`) stands above the figure.
    """
    trainings = list(dict.fromkeys(measured["training"]))
    figure, axes = canvas(13, 4.3, columns=1 + len(trainings), sharey=True)
    left = axes[0, 0]
    for attack, part in published.groupby("attack", sort=False):
        own = attack == "Trigger Removal"
        left.plot(part["shots"], part["pass_rate"], color=COLOURS["vermilion"] if own else "0.7", marker="o",
                  markersize=4 if own else 2, linewidth=1.8 if own else 0.8)  # fmt: skip
    end = published[published["attack"] == "Trigger Removal"].iloc[-1]
    left.annotate("trigger removal", (end["shots"], end["pass_rate"]), (0, 34), textcoords="offset points",
                  ha="right", color=COLOURS["vermilion"])  # fmt: skip
    left.text(160, 0.14, "other attacks", color="0.5", ha="right")
    left.set(
        title="Published: SFT, 8B\n(HD Table 3; 60 prompts, no control)", ylabel="attack success", ylim=(-0.03, 1.03)
    )
    for axis, training in zip(axes[0, 1:], trainings, strict=True):
        curves(axis, measured[measured["training"] == training], "shots", "success", "attack", _COLOURS, _LINES)
        axis.set(title=f"Measured: {training}\n(exact answers within 30 attempts)")
    for axis in axes[0]:
        axis.set_xlabel("K, examples an attack")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    _warn(figure, caveat)
    return figure


def _warn(figure: Figure, caveat: str) -> None:
    if caveat:
        figure.suptitle(f"Measured here: {caveat}", fontsize=10)


def rankings(rates: pd.DataFrame, models: Mapping[str, str], caveat: str) -> Figure:
    """Success by ranking, by re-wording without one and by style, a panel for each model (`rates`); `models` gives
    panel titles by role, `caveat` as in `shots`. Bars: 95 % over requests."""
    styles = tables.styles_in(rates)
    names = [*tables.RANKINGS, *tables.UNFILTERED, tables.REWORDED, *styles]
    figure, axes = canvas(11.5, 0.29 * len(names) + 1.1, columns=len(models), sharey=True, sharex=True)
    for axis, (role, title) in zip(axes[0], models.items(), strict=True):
        mine = rates[rates["model"] == role].set_index("attack").reindex(names)
        for height, (name, row) in enumerate(mine.iterrows()):
            style = name in styles
            colour = COLOURS["blue"] if style else COLOURS["vermilion"]
            if tables.RANDOM in str(name) or name == tables.REWORDED:
                colour = COLOURS["grey"]
            error = np.abs(row[["lower", "upper"]].to_numpy(float)[:, None] - row["success"])
            axis.errorbar(row["success"], height, xerr=error, fmt="o", color=colour, markersize=5, elinewidth=1.2)
        axis.axhline(len(names) - len(styles) - 0.5, color="0.8", linewidth=0.8)
        axis.set(title=title, xlabel="answered exactly within 30 attempts", xlim=(-0.03, 1.03))
    axes[0, 0].set_yticks(range(len(names)), [f"style: {n}" if n in styles else n for n in names])
    axes[0, 0].invert_yaxis()
    _warn(figure, caveat)
    return figure


def attempts(measured: Mapping[str, pd.DataFrame], most: int) -> Figure:
    """Share of requests answered within so many attempts, a panel for each model: `within` by panel title."""
    figure, axes = canvas(11.5, 3.9, columns=len(measured), sharey=True)
    for axis, (title, table) in zip(axes[0], measured.items(), strict=True):
        curves(axis, table, "queries", "success", "attack", _COLOURS, _LINES, markers=False)
        axis.axvline(most, color="0.6", linewidth=0.8)
        axis.set(title=title, xlabel="attempts", xlim=(1, most), ylim=(-0.03, 1.03))
    axes[0, 0].set_ylabel("share of requests answered exactly")
    axes[0, -1].legend(loc="upper left", fontsize=8)
    return figure


def roles(shares: pd.DataFrame) -> Figure:
    """What blacklisted words are, by ranking (`roles_of_triggers`): stacked shares, a colour a column."""
    figure, axes = canvas(9.5, 0.36 * len(shares) + 1.5, columns=1)
    axis = axes[0, 0]
    left = np.zeros(len(shares))
    for role, colour in zip(shares.columns, cycle(_ROLES), strict=False):
        axis.barh(range(len(shares)), shares[role], left=left, color=COLOURS[colour], label=role)
        left = left + shares[role].to_numpy()
    axis.set_yticks(range(len(shares)), shares.index)
    axis.invert_yaxis()
    axis.set(xlabel="share of blacklisted words", xlim=(0, 1), title="Which words are called triggers")
    figure.legend(loc="outside lower center", ncols=len(shares.columns))
    return figure


def remedy(success: pd.DataFrame, cost: pd.DataFrame) -> Figure:
    """Left, success of trigger removal on models that differ in their safety data; right, what that costs in false
    refusals. `success` from `rates`, its column `model` holding the names that index `cost`."""
    figure, axes = canvas(11.5, 3.9, columns=2, width_ratios=[1.3, 1])
    left, right = axes[0]
    names = list(cost.index)
    attacks = list(dict.fromkeys(success["attack"]))
    palette = [COLOURS[name] for name in ("vermilion", "grey", "orange", "sky")]
    for place, attack in enumerate(attacks):
        mine = success[success["attack"] == attack].set_index("model").loc[names]
        at = np.arange(len(names)) + 0.2 * (place - (len(attacks) - 1) / 2)
        error = np.abs(mine[["lower", "upper"]].to_numpy(float).T - mine["success"].to_numpy(float))
        left.bar(at, mine["success"], 0.2, color=palette[place], label=attack, yerr=error, error_kw={"elinewidth": 1})
    left.set_xticks(range(len(names)), names)
    left.set(title="Success within 30 attempts", ylabel="share of requests")
    left.set_ylim(0, max(0.1, 1.35 * float(success["upper"].max())))
    left.legend(fontsize=8)
    every = {"false_refusal_plain": "plain", "false_refusal_styled": "styled", "false_refusal_borderline": "exceptions"}
    kinds = {column: label for column, label in every.items() if column in cost}
    for place, (column, label) in enumerate(kinds.items()):
        at = np.arange(len(names)) + 0.25 * (place - 1)
        right.bar(at, cost[column], 0.25, color=list(COLOURS.values())[4 + place], label=label)
    right.set_xticks(range(len(names)), names)
    right.set(title="Benign requests refused", ylim=(0, max(0.1, 1.2 * float(cost[list(kinds)].max().max()))))
    right.legend(fontsize=8)
    return figure
