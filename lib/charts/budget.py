"""Charts of alignment that trains only some units (notebook 06), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import budget_tables as tables
from lib.figures import COLOURS, CONTROL, canvas
from lib.unit_tables import in_words

_LEAST = (COLOURS["sky"], COLOURS["green"], COLOURS["blue"], COLOURS["purple"])  # by rising share
_FIXED: dict[str, object] = {
    tables.FULL: COLOURS["vermilion"], tables.TWICE: COLOURS["pink"], tables.RANDOM: COLOURS["grey"],
    tables.TOP: COLOURS["orange"],
}  # fmt: skip


def _colours(arms: Sequence[str]) -> dict[str, object]:
    least = [arm for arm in arms if arm not in _FIXED]
    decides = tables.redundant(tables.DECIDES)
    others = [colour for colour in _LEAST if colour is not _LEAST[2]]
    found = dict(zip([arm for arm in least if arm != decides], others, strict=False))
    return _FIXED | {decides: _LEAST[2]} | found


def _published(axis: Axes, table: pd.DataFrame) -> None:
    """Change of each accuracy against the pre-trained model, full and redundant units only."""
    shown = table[table["unit"] == "%"]
    for place, (arm, colour) in enumerate((("full", COLOURS["vermilion"]), ("RU only", COLOURS["blue"]))):
        at = np.arange(len(shown)) + 0.38 * (place - 0.5)
        axis.barh(at, shown[arm] - shown["pre-trained"], height=0.36, color=colour)
    axis.set_yticks(range(len(shown)), shown["task"], fontsize=8)
    axis.invert_yaxis()
    axis.axvline(0, color="0.4", linewidth=0.8)
    title = "Published: all weights, 20 % redundant (blue)\n(SSAH Table 4, LLaMA-7B; no safety)"
    axis.set(title=title, xlabel="accuracy gained by fine-tuning, points")


def paths(published: pd.DataFrame, measured: pd.DataFrame, level: float | None, skills: int) -> Figure:
    """Left: published change of each accuracy. Middle: tax against refusal along each run (`budget_tables.curve`), the
    compared refusal dashed. Right: tax against loss on the alignment data, read from right (before) to left. The tax is
    the mean over so many `skills`."""
    figure, axes = canvas(14.5, 4.7, columns=3, width_ratios=[0.95, 1, 1])
    left, middle, right = axes[0]
    _published(left, published)
    colours = _colours(list(dict.fromkeys(measured["arm"])))
    for (arm, draw), path in measured.groupby(["arm", "draw"], sort=False):
        control = arm == tables.RANDOM
        main = arm in (*_FIXED, tables.redundant(tables.DECIDES))
        style = {"color": colours[str(arm)], "linewidth": 1.0 if control else 1.8 if main else 0.9, "markersize": 3,
                 "linestyle": ":" if control else "-", "marker": None if control else "o",
                 "alpha": 1.0 if main else 0.5}  # fmt: skip
        middle.plot(path["refusal"], path["tax"], label=str(arm) if draw == 0 else None, **style)
        right.plot(path["loss"], path["tax"], **style)
    if level is not None:
        middle.axvline(level, color="0.4", linestyle="--", linewidth=1)
    middle.set(title="Measured: tax by refusal along the run\n(dashed: where RU and random are compared)",
               xlabel="refusal of plain harm", ylabel=f"tax, mean of {in_words(skills)} skills",
               xlim=(-0.03, 1.03))  # fmt: skip
    right.set(
        title="Measured: tax by loss on the alignment data\n(before: right end)",
        xlabel="loss, nats a token",
        xscale="log",
    )
    right.set_xticks([3, 1, 0.3, 0.1], ["3", "1", "0.3", "0.1"])
    right.minorticks_off()
    right.invert_xaxis()
    handles, labels = middle.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def by_skill(measured: pd.DataFrame, bound: float) -> Figure:
    """Tax on each skill for a few arms, with intervals (`budget_tables.tax_by_skill`); dotted: the bar for the mean."""
    figure, axes = canvas(11, 4.0, columns=1)
    axis, names, arms = axes[0, 0], list(dict.fromkeys(measured["skill"])), list(dict.fromkeys(measured["series"]))
    colours, mean = _colours(arms), f"mean of {in_words(len(names) - 1)}"
    for place, arm in enumerate(arms):
        rows = measured[measured["series"] == arm].set_index("skill").loc[names]
        at = np.arange(len(names)) + 0.8 / len(arms) * (place - (len(arms) - 1) / 2)
        spread = np.clip([rows["tax"] - rows["lower"], rows["upper"] - rows["tax"]], 0, None)
        axis.bar(at, rows["tax"], width=0.76 / len(arms), color=colours[arm], label=arm)
        axis.errorbar(at, rows["tax"], yerr=spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.axhline(bound, **CONTROL)
    axis.set_xticks(range(len(names)), [mean if name == "skills" else name for name in names])
    axis.set(ylabel="accuracy lost by alignment")
    axis.set_title(
        f"Measured: tax on each skill at the end of each run (dotted: {bound:g};\n"
        "bars: 95 % over questions, of random units over draws)"
    )
    axis.legend(fontsize=8)
    return figure
