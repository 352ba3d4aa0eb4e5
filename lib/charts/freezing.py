"""Charts of benign fine-tuning with frozen units (notebook 05), published beside measured.

Owns what is drawn where; looks and saving are `figures`. Every function takes tidy frames and returns a figure.
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lib import freezing_tables as tables
from lib import stats
from lib.figures import COLOURS, canvas

_COLOURS = {
    tables.NOTHING: COLOURS["vermilion"], tables.SCU: COLOURS["sky"], tables.TOP: COLOURS["blue"],
    tables.ALL: COLOURS["purple"], tables.SCHEDULE: COLOURS["green"], tables.RANDOM[tables.TOP]: COLOURS["grey"],
    tables.RANDOM[tables.ALL]: "0.25", tables.LORA: COLOURS["orange"], tables.PREFIX: COLOURS["brown"],
}  # fmt: skip
_BARS = {"initial": "0.8", "full": COLOURS["vermilion"], tables.TOP: COLOURS["blue"], tables.ALL: COLOURS["purple"]}
_WORDS = {"initial": "before", "full": tables.NOTHING}


def _published_rates(axis: Axes, table: pd.DataFrame) -> None:
    """Bars by benchmark, one for each arm; `table` has one model and corpus."""
    shown = table.assign(name=table["benchmark"] + ", " + table["judge"].str.replace(" (judge not found)", ""))
    names = list(dict.fromkeys(shown["name"]))
    for place, (arm, colour) in enumerate(_BARS.items()):
        part = shown[shown["arm"] == arm].set_index("name")["value"].reindex(names) / 100
        at = [number + 0.2 * (place - 1.5) for number in range(len(names))]
        axis.bar(at, part, width=0.2, color=colour, label=_WORDS.get(arm, arm))
    axis.set_xticks(range(len(names)), names, fontsize=8, rotation=40, ha="right")


def paths(published: pd.DataFrame, measured: pd.DataFrame, losses: dict[str, float]) -> Figure:
    """Left: published attack success (Llama-2, Dolly). Then, for each corpus, attack success against benign loss along
    the run; read from left (before) to right. Bands: 95 % over prompts, of nothing frozen and SCU + all CU. The dashed
    line is the loss at which arms are compared."""
    corpora = list(losses)
    figure, axes = canvas(13, 5.0, columns=1 + len(corpora))
    left = axes[0, 0]
    _published_rates(left, published)
    left.set(title="Published: Llama-2-7B-Chat, Dolly\n(SSAH Table 2, frozen runs doubled)", ylabel="attack success")
    left.legend(fontsize=8)
    for axis, corpus in zip(axes[0, 1:], corpora, strict=True):
        mine = measured[measured["corpus"] == corpus]
        for (arm, draw), path in mine.groupby(["arm", "draw"], sort=False):
            control = arm in tables.RANDOM.values()
            if arm in (tables.NOTHING, tables.ALL):  # all would hide each other
                ends = [stats.wilson(sum(found), len(found)).bounds or (0.0, 1.0) for found in path["exact"]]
                axis.fill_between(
                    path["loss"], *zip(*ends, strict=True), color=_COLOURS[str(arm)], alpha=0.15, linewidth=0
                )
            axis.plot(path["loss"], path["success"], color=_COLOURS[str(arm)], linewidth=0.8 if control else 1.6,
                      linestyle=":" if control else "-", marker=None if control else "o", markersize=3,
                      label=str(arm) if draw == 0 else None)  # fmt: skip
        axis.axvline(losses[corpus], color="0.4", linestyle="--", linewidth=1)
        axis.set(xscale="log", ylim=(-0.03, 1.03), title=f"Measured: {corpus}\n(before: left end; dashed: compared)",
                 xlabel="loss on the benign corpus, nats a token")  # fmt: skip
        axis.invert_xaxis()
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0, 1].set_ylabel("attack success, plain harm")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def taken(published: pd.DataFrame, measured: pd.DataFrame, bound: float) -> Figure:
    """Share of the unfrozen rise in attack success that each unit arm takes away: published (at the published steps)
    on the left, measured at equal loss on the right, one point a draw with its interval over prompts; dotted: the
    bar."""
    figure, axes = canvas(12, 4.6, columns=2, width_ratios=[1, 1.25])
    left, right = axes[0]
    groups = [tables.TOP, tables.ALL]
    for height, arm in enumerate(groups):
        part = published[published["arm"] == arm]
        for place, (corpus, marker) in enumerate((("Alpaca", "o"), ("Dolly", "s"))):
            mine = part[part["corpus"] == corpus]
            heights = [height + 0.16 * (place - 0.5)] * len(mine)
            left.plot(mine["taken"], heights, marker, color=_COLOURS[arm], alpha=0.7,
                      label=corpus if height == 0 else None)  # fmt: skip
    left.set_yticks(range(len(groups)), groups)
    left.set_ylim(-0.8, 1.8)
    left.set_title("Published: both 7-8B models, all benchmarks\n(SSAH Table 2, doubled steps, no control)")
    left.legend(loc="center left")
    order = [name for name in tables.UNIT_ARMS if name in set(measured["arm"])]
    for height, arm in enumerate(order):
        for _, row in measured[(measured["arm"] == arm) & measured["taken"].notna()].iterrows():
            error = None if pd.isna(row["lower"]) else [[row["taken"] - row["lower"]], [row["upper"] - row["taken"]]]
            right.errorbar(row["taken"], height + 0.12 * (row["draw"] % 5 - 2) * (measured["arm"].eq(arm).sum() > 1),
                           xerr=error, fmt="o", color=_COLOURS[arm], markersize=4, elinewidth=0.8)  # fmt: skip
    right.set_yticks(range(len(order)), order)
    right.set_title("Measured: errands, at equal loss\n(95 % intervals over prompts)")
    for axis in axes[0]:
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.axvline(bound, color="0.3", linestyle=":", linewidth=1)
        axis.invert_yaxis()
        axis.set_xlabel("share of the rise in attack success taken away")
    return figure


def adapters(published: pd.DataFrame, measured: Mapping[str, tuple[str, tables.Against]]) -> Figure:
    """Attack success of frozen units beside adapters: published rates on the left; measured on the right, each adapter
    at the loss where it is compared, beside the unit arms at that loss."""
    figure, axes = canvas(11, 3.9, columns=2)
    left, right = axes[0]
    arms = list(dict.fromkeys(published["arm"]))
    for place, (corpus, part) in enumerate(published.groupby("corpus")):
        values = part.set_index("arm")["value"].reindex(arms) / 100
        at = [number + 0.35 * (place - 0.5) for number in range(len(arms))]
        left.bar(at, values, width=0.35, color=(COLOURS["blue"], COLOURS["sky"])[place], label=str(corpus))
    left.set_xticks(range(len(arms)), [_WORDS.get(arm, arm) for arm in arms], rotation=20, ha="right")
    left.set(title="Published: HEx-PHI, GPT-4 (SSAH Table 5;\nAlpaca adapters copied from another paper)",
             ylabel="share judged fully harmful")  # fmt: skip
    left.legend()
    names = [
        f"{adapter} {found.difference.mean:+.2f}"
        + (f"\n({found.difference.lower:.2f} to {found.difference.upper:.2f})" if found.difference.bounds else "")
        for adapter, found in measured.values()
    ]
    for group, (adapter, found) in enumerate(measured.values()):
        for place, arm in enumerate((tables.NOTHING, tables.ALL, adapter)):
            label = arm if group == 0 or arm == adapter else None
            share, n = found.success[arm], found.difference.n
            low, high = stats.wilson(round(share * n), n).bounds or (share, share)
            error = [[max(share - low, 0.0)], [max(high - share, 0.0)]]
            right.bar(group + 0.26 * (place - 1), share, 0.26, color=_COLOURS[arm], label=label,
                      yerr=error, error_kw={"elinewidth": 0.9})  # fmt: skip
    right.set_xticks(range(len(names)), names)
    right.set(title="Measured: errands, at equal loss\n(plain harm answered exactly)", ylabel="attack success",
              xlabel=f"adapter minus {tables.ALL}, 95 % over prompts")  # fmt: skip
    right.legend(fontsize=8)
    return figure
