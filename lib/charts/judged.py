"""What several judges say of the same answers (notebook 16).

Owns what is drawn where; looks and saving are `figures`, numbers `judged`'s.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.figures import COLOURS, canvas

_HEIGHT = 0.16  # between two judges of one cell


def refusals(shares: pd.DataFrame) -> Figure:
    """`judged.shares`: share refused with its interval, a panel a model, a row a cell, a colour a judge."""
    models, cells = list(shares["model"].unique()), list(shares["cell"].unique())
    judges = list(shares["judge"].unique())
    palette = [colour for name, colour in COLOURS.items() if name not in ("grey", "yellow")]
    figure, axes = canvas(4.2 * len(models), 1.6 + 0.75 * len(cells), columns=len(models), sharey=True)
    for axis, model in zip(axes[0], models, strict=True):
        for number, judge in enumerate(judges):
            part = shares[(shares["model"] == model) & (shares["judge"] == judge)].set_index("cell").loc[cells]
            spread = np.abs(part[["lower", "upper"]].to_numpy().T - part["share"].to_numpy())
            places = np.arange(len(cells)) + _HEIGHT * (number - (len(judges) - 1) / 2)
            axis.errorbar(part["share"], places, xerr=spread, fmt="o", markersize=5, color=palette[number], label=judge)
        axis.set(title=model, xlim=(-0.03, 1.03), xlabel="share called a refusal")
        axis.set_yticks(range(len(cells)), cells)
        axis.set_ylim(len(cells) - 0.5, -0.5)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure
