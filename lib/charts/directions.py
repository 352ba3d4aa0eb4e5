"""Charts of single directions (notebook 08), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.direction_effects import EVERYWHERE, HERE
from lib.figures import COLOURS, CONTROL, canvas, curves, relative_depth

_GREY, _PUBLISHED_BEST = COLOURS["grey"], "best of 100"
_SERIES = {
    "C1": COLOURS["blue"], "C1, other sign": COLOURS["blue"], "C1, centred": COLOURS["blue"], "C2": COLOURS["orange"],
    "C1, DPO": COLOURS["sky"], "probe": COLOURS["green"], "stacked probe": COLOURS["green"],
    "difference of means": COLOURS["purple"], "best of N": COLOURS["vermilion"],
    "best of N, base": COLOURS["brown"], "random in the span": _GREY, "C1, shuffled labels": COLOURS["pink"],
    "random beside C1": _GREY,
}  # fmt: skip
_LINES = {
    "C1, other sign": ":", "C1, centred": "--", "C1, DPO": "--", "random in the span": ":",
    "C1, shuffled labels": ":", "best of N": "-.", "best of N, base": "-.", "random beside C1": ":",
}  # fmt: skip
_MAIN = ("C1", "C1, centred", "C2", "C1, DPO", "probe", "difference of means", "random in the span",
         "C1, shuffled labels")  # fmt: skip


def _beside(axis: Axes, height: float, text: str) -> None:
    """Text at the right of an axis, where no curve crosses it."""
    axis.text(1.01, height, text, fontsize=8, color="0.35", va="center", transform=axis.get_yaxis_transform())


def _level(axis: Axes, height: float, text: str) -> None:
    axis.axhline(height, color="0.35", linestyle=(0, (1, 2)), linewidth=1)
    _beside(axis, height, text)


def _legend_below(axis: Axes) -> None:
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize=8.5, handlelength=3)


def _by_depth(axis: Axes, data: pd.DataFrame, blocks: int, value: str, markers: bool = True) -> None:
    shown = data.assign(depth=relative_depth(data["block"], blocks))
    curves(axis, shown, "depth", value, "series", _SERIES, _LINES, markers)


def _published(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracies after every block (not of the embedding, nor after the final norm)."""
    blocks = int(table["blocks"].iloc[0])
    kept = table[(table["measure"] == "accuracy") & table["hidden_state"].between(1, blocks - 1)]
    return kept.assign(
        block=kept["hidden_state"] - 1, series=kept["series"].replace({_PUBLISHED_BEST: "best of N"})
    ).rename(columns={"value": "accuracy"})


def prediction(
    published: pd.DataFrame, by_rule: pd.DataFrame, held_out: pd.DataFrame, levels: dict[str, dict[str, float]],
    bars: dict[str, float], blocks: int,
) -> Figure:  # fmt: skip
    """Accuracy by depth as published, the same rule on these models, and AUC on other prompts.

    `levels` are the heights of lines, by panel ("published", "measured") and label; `bars` those of hd.3, "late" for
    the later half and "early" for the first third.
    """
    figure, axes = canvas(13.5, 5.2, columns=3, sharex=True, sharey=True)
    left, middle, right = axes[0]
    table = _published(published)
    _by_depth(left, table, int(published["blocks"].iloc[0]), "accuracy", markers=False)
    left.set(title="Published: accuracy by HD's rule\n(HD Fig. 3, 8B, same 700 prompts)", ylabel="accuracy / AUC")
    _by_depth(middle, by_rule, blocks, "accuracy")
    middle.set_title("Measured: HD's rule on our models\n(model before tuning, same prompts)")
    shown = held_out[held_out["series"].isin(_MAIN)]
    _by_depth(right, shown, blocks, "auc")
    right.set_title("Measured: AUC for the tuned model's\nrefusals, prompts of other meanings")
    for axis, panel in ((left, "published"), (middle, "measured")):
        for text, height in levels[panel].items():
            _level(axis, height, text)
    for name, (start, end) in {"late": (0.5, 1.0), "early": (0.0, 1 / 3)}.items():
        right.plot([start, end], [bars[name]] * 2, color="0.35", linewidth=1.2)
    _beside(right, bars["late"], f"bar: at\nleast {bars['late']:g}")
    right.text(-0.02, bars["early"] + 0.008, f"bar: at\nmost {bars['early']:g}", fontsize=8, color="0.35")
    for axis in axes[0]:
        axis.set(xlabel="relative depth", ylim=(0.33, 1.03))
        _legend_below(axis)
    return figure


def second(published: pd.DataFrame, cosine_range: tuple[float, float], gains: pd.DataFrame, cosines: pd.DataFrame,
           bound: float, blocks: int) -> Figure:  # fmt: skip
    """C1, C2 and the probe as published; log-loss saved by C2; cosines by block with the published range shaded."""
    figure, axes = canvas(13.5, 5.0, columns=3)
    left, middle, right = axes[0]
    table = _published(published)
    _by_depth(left, table[table["series"].isin(("C1", "C2", "probe"))], int(published["blocks"].iloc[0]), "accuracy",
              markers=False)  # fmt: skip
    left.set(title="Published: C1 and C2 both predict\n(HD Fig. 3, HD's rule)", ylabel="accuracy")
    _by_depth(middle, gains, blocks, "gain")
    middle.set(title="Measured: log-loss saved by a second\ndirection beside C1, other prompts", ylabel="nats a prompt")
    middle.axhline(0, color="0.35", linewidth=0.8)
    pairs = cosines.assign(pair=cosines["first"] + " and " + cosines["second"])
    shown = {
        "C1 and probe": ("blue", "-"), "C2 and probe": ("orange", "-"), "random in the span and probe": ("grey", ":"),
        "difference of means and probe": ("purple", "-"), "C1 and difference of means": ("blue", "--"),
        "C2 and difference of means": ("orange", "--"), "C1 and mean shift": ("blue", "-."),
    }  # fmt: skip
    right.axhspan(*cosine_range, color=COLOURS["yellow"], alpha=0.5, linewidth=0, label="published, C1 and probe")
    for name, (colour, line) in shown.items():
        part = pairs[pairs["pair"] == name]
        right.plot(relative_depth(part["block"], blocks), part["cosine"], line, color=COLOURS[colour], marker="o",
                   markersize=4, label=name)  # fmt: skip
    _level(right, bound, f"bar: at\nmost {bound:g}")
    right.set(
        title="Measured: angles between directions\n(|cosine|: 1 is parallel)", ylabel="|cosine|", ylim=(-0.02, 1.03)
    )
    for axis in axes[0]:
        axis.set(xlabel="relative depth", xlim=(-0.03, 1.03))
        _legend_below(axis)
    return figure


_NAMED = {
    "C1": COLOURS["blue"], "C2": COLOURS["orange"], "C3": COLOURS["brown"], "C4": COLOURS["sky"],
    "C5": COLOURS["pink"], "C6": COLOURS["yellow"], "probe": COLOURS["green"], "difference of means": COLOURS["purple"],
}  # fmt: skip
_RINGS = {"probe": 11, "difference of means": 16}  # drawn around others, which they often cover
_SHOWN = {("harmful", "refused"): "harmful: refuses", ("harmful", "exact"): "harmful: complies exactly",
          ("harmful", "wrong"): "harmful: wrong answer", ("benign", "refused"): "benign: refuses"}  # fmt: skip


def _is_random(names: pd.Series) -> pd.Series:
    return names.str.startswith("random")


def dose_response(steered: dict[str, pd.DataFrame]) -> Figure:
    """Shares of outcomes by dose, a row a way of steering; random directions as their mean and range."""
    figure, axes = canvas(
        13.5, 3.0 * len(steered) + 0.6, rows=len(steered), columns=len(_SHOWN), sharex=True, sharey=True
    )
    for row, (way, table) in enumerate(steered.items()):
        for axis, ((kind, outcome), title) in zip(axes[row], _SHOWN.items(), strict=True):
            part = table[table["kind"] == kind]
            drawn = part[_is_random(part["direction"])].groupby("dose")[outcome].agg(["mean", "min", "max"])
            axis.fill_between(drawn.index, drawn["min"], drawn["max"], color=_GREY, alpha=0.25, linewidth=0)
            axis.plot(drawn.index, drawn["mean"], label="random in the span", **CONTROL)
            for name, colour in _NAMED.items():
                line = part[part["direction"] == name]
                main = name in ("C1", "C2", "difference of means")
                axis.plot(line["dose"], line[outcome], color=colour, marker="o", markersize=3.5, label=name,
                          linewidth=1.8 if main else 1.0, zorder=3 if name == "C1" else 2)  # fmt: skip
            axis.set_ylim(-0.04, 1.04)
            if row == 0:
                axis.set_title(title)
        axes[row, 0].set_ylabel(f"{way}\nshare of prompts")
    for axis in axes[-1]:
        axis.set_xlabel("dose (1: distance between\nrefused and answered)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=9, fontsize=8.5)
    return figure


def causal(changes: pd.DataFrame) -> Figure:
    """Each direction's AUC against the change in refusal of plain harm when it is removed, in both ways."""
    figure, axes = canvas(10.5, 4.3, sharex=True, sharey=True)
    titles = {HERE: "removed at that block", EVERYWHERE: "removed at every block"}
    for axis, (way, title) in zip(axes[0], titles.items(), strict=True):
        part = changes[changes["way"] == way]
        random = part[_is_random(part["direction"])]
        axis.plot(random["auc"], random["change"], "x", color=_GREY, markersize=7, label="random in the span")
        for name, colour in _NAMED.items():
            one = part[part["direction"] == name]
            spread = [one["change"] - one["lower"], one["upper"] - one["change"]]
            axis.errorbar(one["auc"], one["change"], yerr=spread, fmt="o", color=colour, capsize=2, elinewidth=1,
                          label=name, markersize=_RINGS.get(name, 6), markeredgewidth=1.8,
                          markerfacecolor="none" if name in _RINGS else colour)  # fmt: skip
        axis.axhline(0, color="0.35", linewidth=0.8)
        axis.set(title=title, xlabel="AUC for refusal, prompts of other meanings", ylim=(-1.05, 0.2))
    axes[0, 0].set_ylabel("change in refusal of plain harm")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8.5)
    return figure
