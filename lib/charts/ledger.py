"""The forest plot of the ledger: every part of every claim on one axis (notebook 15).

Owns what is drawn where; looks and saving are `figures`, numbers `ledger_tables`'.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.claims import ClaimVerdict
from lib.figures import COLOURS, canvas
from lib.stats import Verdict

VERDICTS = {
    Verdict.HOLDS.value: COLOURS["blue"],
    Verdict.FAILS.value: COLOURS["vermilion"],
    Verdict.UNDECIDED.value: COLOURS["grey"],
    ClaimVerdict.NOT_TESTABLE.value: COLOURS["yellow"],
}
EDGE = 1.0  # margins beyond are drawn at the edge, as triangles that point outward


def _place(margin: float, marker: str) -> tuple[float, str]:
    """Where a value is drawn, and by which marker: outside the axis, at its edge by a triangle that points outward."""
    return float(np.clip(margin, -EDGE, EDGE)), marker if abs(margin) <= EDGE else "<" if margin < 0 else ">"


def forest(parts: pd.DataFrame) -> Figure:
    """`ledger_tables.parts`: margin beyond the bar with its interval, and the papers' own numbers as open diamonds.

    Margins are in each part's own unit (shares, AUC, ranks, nats), cut at +-1, where a triangle that points outward
    says that a value (filled), a printed number (open) or an interval (small) goes on.
    """
    figure, axes = canvas(9.0, 1.2 + 0.21 * len(parts), columns=1)
    axis = axes[0, 0]
    label = "how far beyond its bar (right: speaks for the claim), in the part's own unit, cut at 1"
    for place, row in enumerate(parts.to_dict("records")):
        colour = VERDICTS[row["verdict"]]
        if pd.notna(row["margin_lower"]):
            low, high = np.clip([row["margin_lower"], row["margin_upper"]], -EDGE, EDGE)
            axis.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
            for whole in (row["margin_lower"], row["margin_upper"]):
                if abs(whole) > EDGE:
                    at, marker = _place(whole, "o")
                    axis.plot(at, place, marker=marker, color=colour, markersize=5)
        if pd.notna(row["margin_printed"]):
            at, marker = _place(row["margin_printed"], "D")
            at *= 1.04 if marker != "D" else 1  # beside the end of an interval that is cut too
            axis.plot(at, place, marker=marker, color="black", markerfacecolor="none", markersize=6, linestyle="none")
        if pd.notna(row["margin"]):
            at, marker = _place(row["margin"], "o")
            size = 7 if row["core"] else 4
            axis.plot(at, place, marker=marker, color=colour, markersize=size, linestyle="none")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(parts)), parts["part"], fontsize=8)
    axis.set(xlim=(-1.08 * EDGE, 1.08 * EDGE), ylim=(len(parts) - 0.4, -0.6), xlabel=label)
    axis.grid(axis="y", color="0.93", linewidth=0.8)
    axis.set_axisbelow(True)
    drawn = [verdict for verdict in VERDICTS if (parts["verdict"] == verdict).any()]
    handles = [Line2D([], [], color=VERDICTS[verdict], marker="o", label=verdict) for verdict in drawn]
    handles.append(Line2D([], [], color="black", marker="D", markerfacecolor="none", linestyle="none", label="printed"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return figure
