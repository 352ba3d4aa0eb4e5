"""Charts of the reasoning direction (notebook 02), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import late_refusal
from lib import reasoning_tables as tables
from lib.figures import COLOURS, CONTROL, canvas, curves, relative_depth

_ANSWERS: dict[str, object] = {
    tables.REFUSING: COLOURS["blue"], tables.COMPLYING: COLOURS["vermilion"], tables.OTHER: COLOURS["sky"],
    tables.NEITHER: COLOURS["grey"],
}  # fmt: skip
_LINES = {tables.OTHER: "--", tables.NEITHER: ":"}
_ARM_COLOURS: dict[str, object] = {
    late_refusal.CHAT: COLOURS["vermilion"], late_refusal.CONTROL: COLOURS["grey"], late_refusal.LATE: COLOURS["blue"],
}  # fmt: skip


def _published_distances(axis: Axes, table: pd.DataFrame, title: str) -> None:
    """A thin line for each model and figure, the mean of them thick."""
    for answer in (tables.REFUSING, tables.COMPLYING):
        part = table[table["answer"] == answer]
        for _, one in part.groupby(["figure", "model"]):
            axis.plot(one["tokens"], one["distance"], color=_ANSWERS[answer], linewidth=0.6, alpha=0.6)
        mean = part.groupby("tokens")["distance"].mean()
        axis.plot(mean.index, mean, "o-", color=_ANSWERS[answer], markersize=4, label=answer)
    axis.set(title=title, xlabel="tokens of the answer")


def distances(published: pd.DataFrame, measured: Mapping[str, pd.DataFrame]) -> Figure:
    """Distance from a harmful query's own answer to other answers, word by word: published aligned and unaligned
    models, then ours (`measured` by panel title, frames of `reasoning_tables.by_word`)."""
    figure, axes = canvas(13, 4.3, columns=2 + len(measured), sharey=True)
    for axis, (aligned, name) in zip(axes[0], (("yes", "aligned"), ("no", "unaligned")), strict=False):
        title = f"Published: {name}\n(SSAH Figs 2 and 7, 7-8B)"
        _published_distances(axis, published[published["aligned"] == aligned], title)
    for axis, (title, table) in zip(axes[0, 2:], measured.items(), strict=True):
        curves(axis, table, "word", "distance", "answer", _ANSWERS, _LINES)
        axis.set(title=title, xlabel="word of the answer", ylim=(-0.05, None))
    axes[0, 0].set_ylabel("cosine distance to the ... answer")
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return figure


def controls(variants: pd.DataFrame, continued: Mapping[str, pd.DataFrame], bound: float) -> Figure:
    """Left: the preference for refusing by every way of measuring it, the bar dotted. Right: the literal reading, where
    words are appended and the model goes on by itself (`continued` by panel title)."""
    figure, axes = canvas(13, 4.2, columns=1 + len(continued), width_ratios=[1.7, *[1] * len(continued)])
    left, *others = axes[0]
    names = [name for name in tables.VARIANTS if name in set(variants["variant"])]
    for height, name in enumerate(names):
        row = variants.set_index("variant").loc[name]
        spread = [[row["preference"] - row["lower"]], [row["upper"] - row["preference"]]]
        colour = COLOURS["vermilion"] if name == tables.STRICT else COLOURS["blue"]
        left.errorbar(row["preference"], height, xerr=spread, fmt="o", color=colour, elinewidth=1.2, capsize=2)
        left.text(row["preference"] + 0.04, height - 0.28, f"{row['preference']:.2f}", fontsize=8, color="0.25")
    left.axvline(0, color="0.7", linewidth=0.8)
    left.axvline(bound, **CONTROL)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_title(f"Measured: chat, last block (dotted: bar of {bound:g};\nred: the control that decides)")
    left.set_xlabel("nearer to the refusal by (cosine distance)")
    for axis, (title, table) in zip(others, continued.items(), strict=True):
        curves(axis, table, "word", "distance", "answer", _ANSWERS, _LINES)
        axis.set(
            title=title, xlabel="word generated after it", ylim=(0, 1.4), ylabel="cosine distance to the bare query's"
        )
    others[0].legend(title=f"{tables.APPENDED} words appended", title_fontsize=9)
    return figure


def by_block(published: pd.DataFrame, measured: pd.DataFrame, layers: int, bound: float) -> Figure:
    """Preference by depth: published gap between the two distances, then ours as published and with the control."""
    figure, axes = canvas(11, 4.0)
    left, right = axes[0]
    for aligned, label, colour in (("yes", "aligned", COLOURS["blue"]), ("no", "unaligned", COLOURS["orange"])):
        part = published[published["aligned"] == aligned]
        depth = relative_depth(part["block"], int(part["blocks"].iloc[0]))
        left.plot(depth, part["gap"], "o-", color=colour, label=label)
    left.set_title("Published: |gap| between the two distances\n(SSAH Fig. 4, Llama-3.1-8B, smoothed there)")
    left.set(ylabel="cosine distance", ylim=(0, None))
    palette = [COLOURS[name] for name in ("blue", "sky", "vermilion", "orange")]
    colours: dict[str, object] = dict(zip(measured["series"].unique(), palette, strict=False))
    shown = measured.assign(depth=relative_depth(measured["block"], layers))
    curves(right, shown, "depth", "preference", "series", colours)
    right.axhline(0, color="0.7", linewidth=0.8)
    right.axhline(bound, **CONTROL)
    right.set(title=f"Measured: nearer to the refusal by\n(dotted: bar of {bound:g} for the early blocks)")
    for axis in axes[0]:
        axis.set_xlabel("relative depth")
    left.legend(fontsize=8)
    right.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.45))
    return figure


def decides(areas: pd.DataFrame, forced: pd.DataFrame, layers: int, bounds: Mapping[str, float]) -> Figure:
    """Left, where there are `areas`: AUC of what is known before answering for refusals of styled harm, by depth. Then
    outcomes after forced words of the right answer (`forced` with columns arm, forced, refused, lower, upper)."""
    figure, axes = canvas(11.5, 4.1, columns=2 if len(areas) else 1)
    right = axes[0, -1]
    if len(areas):
        _foretold(axes[0, 0], areas, layers, bounds)
    curves(right, forced, "forced", "refused", "arm", _ARM_COLOURS, {late_refusal.CONTROL: "--"})
    right.set(title="Measured: refusal of plain harm after\nforced words of compliance (nothing published)",
              xlabel="words of the right answer put into its mouth", ylabel="share that refuses, at once or later",
              ylim=(-0.03, 1.03), xticks=sorted(forced["forced"].unique()))  # fmt: skip
    right.legend(fontsize=8)
    return figure


def _foretold(left: Axes, areas: pd.DataFrame, layers: int, bounds: Mapping[str, float]) -> None:
    colours: dict[str, object] = dict(
        zip(areas["series"].unique(), [COLOURS[name] for name in ("blue", "green", "grey")], strict=False)
    )
    shown = areas.assign(depth=relative_depth(areas["block"], layers))
    curves(left, shown, "depth", "auc", "series", colours, {"random directions": ":"})
    left.axhline(bounds["auc"], color="0.3", linestyle="--", linewidth=1)
    left.axhline(0.5, color="0.7", linewidth=0.8)
    left.set_title("Measured: does it foretell refusal of styled harm?\n(dashed: bar; nothing published)")
    left.set(xlabel="relative depth", ylabel="AUC, before the first word", ylim=(0, 1.03))
    left.legend(fontsize=8, loc="lower right")
