"""Charts of attribute transfer (notebook 04), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures import COLOURS, CONTROL, canvas
from lib.transfer import ORDER
from lib.unit_tables import in_words

_GROUPS = {"scu": COLOURS["blue"], "ucu": COLOURS["orange"], "ru": COLOURS["purple"], "cu": COLOURS["brown"]}
_GAP, _WIDTH = 0.03, 0.06  # between the bars of a column; of a bar
_LEGIBLE = 0.0005  # share of units from which a band is drawn
_SMALL = 0.04  # share of units below which a label has one line


def _bars(axis: Axes, sizes: pd.Series, x: float) -> dict[str, float]:
    """One column of groups from the top; returns where each group begins."""
    top, starts = 1 + _GAP * (len(ORDER) - 1), {}
    for group in ORDER:
        size = float(sizes[group])
        starts[group] = top
        axis.bar(x, size, bottom=top - size, width=_WIDTH, color=_GROUPS[group], linewidth=0)
        if size > 0:
            side = -0.07 if x == 0 else 0.07
            label = f"{group.upper()}{' ' if size < _SMALL else chr(10)}{size:.1%}"
            axis.text(x + side, top - size / 2, label, fontsize=7.5, va="center",
                      ha="right" if x == 0 else "left")  # fmt: skip
        top -= size + _GAP
    return starts


def _alluvial(axis: Axes, shares: pd.DataFrame, title: str) -> None:
    """Groups before on the left, after on the right; bands are flows. `shares` has groups as rows and columns."""
    left, right = _bars(axis, shares.sum(axis=1), 0.0), _bars(axis, shares.sum(axis=0), 1.0)
    way = np.linspace(0, 1, 40)
    bend = way**2 * (3 - 2 * way)
    x = _WIDTH / 2 + way * (1 - _WIDTH)
    flow = shares.loc[list(ORDER), list(ORDER)].to_numpy()
    for row, before in enumerate(ORDER):
        for column, after in enumerate(ORDER):
            size = float(flow[row, column])
            if size > _LEGIBLE:
                top = left[before] + bend * (right[after] - left[before])
                axis.fill_between(x, top - size, top, color=_GROUPS[before], alpha=0.4, linewidth=0)
            left[before] -= size
            right[after] -= size
    axis.set(title=title, xlim=(-0.45, 1.45), xticks=[0, 1], xticklabels=["before", "after"], yticks=[])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _dots(axis: Axes, table: pd.DataFrame) -> None:
    """Shares by series with intervals; small marks are the draws."""
    for height, (_, row) in enumerate(table.iterrows()):
        if row["series"].startswith("published"):
            colour: object = "black"
        else:
            colour = COLOURS["grey"] if row["series"].startswith("no training") else COLOURS["vermilion"]
        spread = [[row["share"] - row["lower"]], [row["upper"] - row["share"]]]
        axis.plot(row["draws"], [height + 0.18] * len(row["draws"]), "|", color=colour, markersize=6, alpha=0.7)
        axis.errorbar(row["share"], height, xerr=np.clip(spread, 0, None), fmt="o", color=colour, elinewidth=1.2)
        axis.text(row["share"], height - 0.2, f"{row['share']:.2f}", fontsize=8, ha="center")
    axis.set_yticks(range(len(table)), table["series"], fontsize=8)
    axis.set_ylim(len(table) - 0.5, -0.6)


def flows(tables: Mapping[str, pd.DataFrame], table: pd.DataFrame, xlabel: str, chance: float | None = None) -> Figure:
    """Flow diagrams by title, then the share that decides by series (`transfer.summary`); dotted: by chance alone."""
    wide = len(tables)
    figure, axes = canvas(3.1 * wide + 4.3, 4.6, columns=wide + 1, width_ratios=[*[1] * wide, 1.15])
    for axis, (title, shares) in zip(axes[0], tables.items(), strict=False):
        _alluvial(axis, shares, title)
    last = axes[0, -1]
    _dots(last, table)
    if chance is not None:
        last.axvline(chance, **CONTROL)
    widest = max(table["upper"].max(), *(max(row) for row in table["draws"] if row), chance or 0.0)
    last.set(xlabel=xlabel, xlim=(min(0.0, table["lower"].min()), 1.08 * widest or 1.0))
    return figure


def tax(table: pd.DataFrame, bound: float) -> Figure:
    """Drop of each skill by way of aligning (`transfer.tax_table`), with intervals; dotted: the bar for the mean."""
    figure, axes = canvas(9.5, 3.9, columns=1)
    axis = axes[0, 0]
    names, colours = list(dict.fromkeys(table["skill"])), (COLOURS["vermilion"], COLOURS["blue"])
    mean = f"mean of {in_words(len(names) - 1)}"
    for number, (series, part) in enumerate(table.groupby("series", sort=False)):
        at = np.arange(len(names)) + 0.36 * (number - 0.5)
        rows = part.set_index("skill").loc[names]
        spread = np.clip([rows["tax"] - rows["lower"], rows["upper"] - rows["tax"]], 0, None)
        axis.bar(at, rows["tax"], width=0.34, color=colours[number % 2], label=str(series))
        axis.errorbar(at, rows["tax"], yerr=spread, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.axhline(bound, **CONTROL)
    axis.set_xticks(range(len(names)), [mean if name == "skills" else name for name in names])
    axis.set(ylabel="accuracy lost by alignment")
    axis.set_title(
        f"Measured: the tax on each skill (dotted: bar of {bound:g} for the mean;\nnothing published for it)"
    )
    axis.legend()
    return figure
