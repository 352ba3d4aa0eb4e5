"""The chart of what things cost, as shares of their budgets.

Owns what is drawn where; looks and saving are `figures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lib.figures import COLOURS, canvas


def against_budgets(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Every row with a budget: columns name, value, unit, budget, share, lower, upper; the three last in budgets."""
    columns = ["name", "value", "unit", "budget", "share", "lower", "upper"]
    found = []
    for row in rows:
        if row["budget"]:
            parts = [row["value"] / row["budget"], *(bound / row["budget"] for bound in row["spread"])]
            found.append([*(row[name] for name in columns[:4]), *parts])
    return pd.DataFrame(found, columns=columns)


def draw(table: pd.DataFrame) -> Figure:
    """A dot a row on a logarithmic axis of budgets, its spread as a line; beyond 1 it costs more than it may."""
    figure, axes = canvas(11, 0.3 * len(table) + 1.2, columns=1)
    axis = axes[0, 0]
    for place, row in enumerate(table.to_dict("records")):
        colour = COLOURS["blue"] if row["share"] <= 1 else COLOURS["vermilion"]
        axis.plot([row["lower"], row["upper"]], [place, place], color=colour, linewidth=1.2)
        axis.plot(row["share"], place, "o", color=colour, markersize=5)
        value = f"{row['value']:.3g} {row['unit']}".strip()
        axis.annotate(value, (row["upper"], place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axis.axvline(1, color="0.3", linestyle="--", linewidth=1)
    axis.set_xscale("log")
    axis.set_yticks(range(len(table)), [f"{r['name']}  (at most {r['budget']:g})" for r in table.to_dict("records")])
    axis.tick_params(axis="y", labelsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set(xlabel="share of the budget", title="What things cost, against their budgets")
    return figure


def in_words(table: pd.DataFrame) -> str:
    """How many are within their budgets, and which are not."""
    over = table[table["share"] > 1]
    named = "; ".join(
        f"{r['name']} {r['value']:.3g} of {r['budget']:g} {r['unit']}".strip() for r in over.to_dict("records")
    )
    return f"{len(table) - len(over)} of {len(table)} costs are within their budgets" + (
        f"; not: {named}." if named else "."
    )
