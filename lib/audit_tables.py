"""What the size of a sample, a chance level or a sentence says about printed numbers: intervals, noise, the .03 floor.

Owns sample sizes read from printed decimals, the intervals they imply, and the findings that rest on them; also those
where a sentence or a second figure says something else than the figure. The shape of a finding is `audit`'s. All
intervals are 95 %: Wilson's for a share, and for a difference the combination of two shares taken as independent.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lib import stats
from lib.audit import EPSILON, Finding, decimals, finding, need, prints_as
from lib.errors import InputError

WIDE = 0.05  # a share is called wide when it is known no better than this, to one side
DIGITISED = 1  # ranks read from HD's vector figure are exact to so much
LARGEST = 2000  # samples looked through for the smallest that gives all cells
CONTRASTS = {
    "full against top CU frozen": ("full", "SCU + top CU"),
    "full against all CU frozen": ("full", "SCU + all CU"),
    "top against all CU frozen": ("SCU + top CU", "SCU + all CU"),
}
FROZEN, STRICTER = "full against all CU frozen", "top against all CU frozen"  # the two contrasts that are drawn
KEPT = "Trigger Removal"  # the attack that HD says keeps working


# sample sizes ---------------------------------------------------------------------------------------------------------
def is_share(cell: float, n: int, digits: int | None = None) -> bool:
    """Whether some k of `n`, in per cent, is printed as `cell`."""
    unit = 10.0 ** -(decimals(cell) if digits is None else digits)
    least = max(0, math.ceil((cell - unit / 2) * n / 100 - EPSILON))
    return least <= n and prints_as(100 * least / n, cell, digits)


def smallest_n(cells: Sequence[float], digits: int | None = None) -> int | None:
    """The smallest sample of which every cell (per cent) is a share, if it is at most `LARGEST`: a lower bound."""
    if not len(cells):
        raise InputError("no cells, so no sample size; pass the printed shares in per cent")
    return next((n for n in range(1, LARGEST + 1) if all(is_share(cell, n, digits) for cell in cells)), None)


def by_chance(cell: float, n: int) -> float:
    """Chance that a number with as many decimals as `cell`, drawn at random, is a share of `n`."""
    return min(1.0, 1.5 * 10.0 ** -decimals(cell) * n / 100)


def counts(table: pd.DataFrame, sizes: pd.DataFrame) -> Finding | None:
    """Shares that no number of prompts gives, whether rounded or cut off (SSAH Table 2).

    `sizes` has the prompts and the answers a prompt (tries) of every benchmark in column measure.
    """
    need(table, ["model", "benchmark", "judge", "unit", "corpus", "arm", "value"], "attack success")
    need(sizes, ["measure", "prompts", "tries"], "sample sizes")
    known = sizes.assign(n=sizes["prompts"] * sizes["tries"]).rename(columns={"measure": "benchmark"})
    shares = table[table["unit"] == "%"].merge(known[["benchmark", "n"]])
    shares = shares.drop_duplicates(["model", "judge", "benchmark", "arm", "value"])  # one start for both corpora
    pairs = list(zip(shares["value"], shares["n"], strict=True))
    wrong = shares[[not is_share(cell, n) for cell, n in pairs]].reset_index(drop=True)
    if wrong.empty:
        return None
    cells = wrong[["model", "benchmark", "judge", "corpus", "arm", "value", "n"]].assign(
        below=[f"{math.floor(c * n / 100)}/{n} = {100 * math.floor(c * n / 100) / n:.2f}"
               for c, n in zip(wrong["value"], wrong["n"], strict=True)],
        above=[f"{math.ceil(c * n / 100)}/{n} = {100 * math.ceil(c * n / 100) / n:.2f}"
               for c, n in zip(wrong["value"], wrong["n"], strict=True)],
    )  # fmt: skip
    lists = [
        f"{name}, no k/{part['n'].iloc[0]}: {', '.join(f'{value:g}' for value in part['value'])}"
        for name, part in cells.groupby("benchmark", sort=False)
    ]
    return finding(
        "shares that no count of prompts gives",
        [wrong],
        cells=cells,
        checked=len(shares),
        arithmetic=f"{'; '.join(lists)}; {len(shares) - len(cells)} of {len(shares)} cells fit, "
        f"{sum(by_chance(cell, n) for cell, n in pairs):.0f} would by chance",
        consequence="means over runs, another number of prompts, or a slip in typing: the n behind them is open",
    )


# intervals ------------------------------------------------------------------------------------------------------------
def with_intervals(shares: pd.DataFrame) -> pd.DataFrame:
    """Columns lower and upper for shares (column share, 0 to 1) of `n` prompts; the nearest count is taken."""
    if missing := {"share", "n"} - set(shares):
        raise InputError(f"shares lack the columns {', '.join(sorted(missing))}; give share (0 to 1) and n")
    found = [stats.wilson(round(share * n), int(n)) for share, n in zip(shares["share"], shares["n"], strict=True)]
    bounds = pd.DataFrame([one.bounds for one in found], columns=["lower", "upper"], index=shares.index)
    return shares.assign(**bounds)


def pruned(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """SSAH Table 1's attack success by model, group and prompt as shares of `n`, with intervals."""
    need(table, ["model", "group", "asr_system", "asr_no_system"], "attack success")
    prompts = {"asr_system": "with system prompt", "asr_no_system": "without system prompt"}
    kept = table[["model", "group", *prompts]]
    long = kept.melt(["model", "group"], var_name="prompt", value_name="share")
    return with_intervals(long.assign(prompt=long["prompt"].map(prompts), share=long["share"] / 100, n=n))


def wide(shares: Mapping[str, pd.DataFrame], sources: Sequence[pd.DataFrame]) -> Finding | None:
    """Printed shares whose implied interval is wider than `WIDE` to one side; `shares` by table, with share and n."""
    rows = []
    for name, table in shares.items():
        known = with_intervals(table)
        sides = {"up": known["upper"] - known["share"], "down": known["share"] - known["lower"]}
        half = pd.DataFrame(sides).max(axis=1)
        n = sorted({int(one) for one in known["n"]})
        rows.append(
            (name, len(known), ", ".join(map(str, n)), 100 * half.median(), 100 * half.max(), (half > WIDE).sum())
        )
    columns = ["table", "shares", "n", "median +-", "largest +-", "wide"]
    cells = pd.DataFrame(rows, columns=columns)
    if not cells["wide"].any():
        return None
    total = int(cells["shares"].sum())
    return finding(
        "shares without an interval",
        sources,
        cells=cells,
        checked=total,
        arithmetic="; ".join(
            f"{r['table']} (n {r['n']}): up to +-{r['largest +-']:.0f} points" for _, r in cells.iterrows()
        ),
        consequence=f"{cells['wide'].sum()} of {total} shares are known no better than to {100 * WIDE:.0f} points with "
        "these n, even if runs did not differ; no interval or repetition was found in print",
    )


# noise ----------------------------------------------------------------------------------------------------------------
def difference(first: float, second: float, n: int) -> stats.Interval:
    """`first` minus `second`, two printed percentages of `n` prompts each, in points with its interval."""
    one, other = (stats.wilson(round(value * n / 100), n) for value in (first, second))
    found = stats.difference(one, other)
    low, high = found.bounds or (math.nan, math.nan)
    return stats.Interval(mean=first - second, lower=100 * low, upper=100 * high, n=n, kind="difference")


def tax(table: pd.DataFrame, sizes: pd.DataFrame) -> Finding | None:
    """Losses of accuracy by fine-tuning whose interval contains 0 (SSAH Table 4); tasks of known size are judged."""
    need(table, ["task", "unit", "pre-trained", "full", "RU only"], "accuracies")
    need(sizes, ["measure", "prompts"], "sample sizes")
    accuracies = table[table["unit"] == "%"]
    lost = accuracies[accuracies["full"] < accuracies["pre-trained"]]
    rows = []
    for row in lost.merge(sizes[["measure", "prompts"]], left_on="task", right_on="measure").to_dict("records"):
        n, before = int(row["prompts"]), float(row["pre-trained"])
        error = 100 * math.sqrt(before / 100 * (1 - before / 100) / n)
        for arm in ("full", "RU only"):
            gain = difference(float(row[arm]), before, n)
            rows.append((row["task"], n, arm, before, row[arm], gain.mean, error, gain.lower, gain.upper))
    columns = ["task", "n", "arm", "before", "after", "change", "standard error of one score", "lower", "upper"]
    cells = pd.DataFrame(rows, columns=columns)
    noise = cells[(cells["arm"] == "full") & (cells["upper"] >= 0)]
    if noise.empty:
        return None
    words = [f"{r['task']}, {r['arm']}: {r['before']:g} to {r['after']:g}, {r['change']:+.2f} ({r['lower']:+.1f} to "
             f"{r['upper']:+.1f})" for _, r in cells.iterrows()]  # fmt: skip
    return finding(
        "an alignment tax within its own error",
        [table, sizes[sizes["measure"].isin(noise["task"])]],
        cells=cells,
        checked=len(accuracies),
        arithmetic=f"{len(lost)} of {len(accuracies)} tasks lose by full tuning; {'; '.join(words)}; one score of "
        f"{cells['n'].iloc[0]:,} questions has a standard error of {cells['standard error of one score'].iloc[0]:.2f}",
        consequence="the table shows what tuning redundant units gains on this task, not a tax that it avoids",
    )


def contrasts(table: pd.DataFrame, sizes: pd.DataFrame) -> pd.DataFrame:
    """Differences of attack success between arms, points, with intervals (SSAH Table 2, rows in per cent)."""
    need(table, ["model", "benchmark", "judge", "unit", "corpus", "arm", "value"], "attack success")
    need(sizes, ["measure", "prompts"], "sample sizes")
    keys = ["model", "corpus", "benchmark", "judge"]
    shares = table[table["unit"] == "%"].pivot(index=keys, columns="arm", values="value").reset_index()
    shares = shares.merge(sizes[["measure", "prompts"]], left_on="benchmark", right_on="measure")
    rows = []
    for row in shares.to_dict("records"):
        for name, (first, second) in CONTRASTS.items():
            gap = difference(float(row[first]), float(row[second]), int(row["prompts"]))
            rows.append((*(row[key] for key in keys), name, gap.n, gap.mean, gap.lower, gap.upper))
    found = pd.DataFrame(rows, columns=[*keys, "contrast", "n", "difference", "lower", "upper"])
    return found.assign(resolved=(found["lower"] > 0) | (found["upper"] < 0))


def freezing(table: pd.DataFrame, sizes: pd.DataFrame) -> Finding | None:
    """Differences between frozen and unfrozen runs whose interval contains 0 (SSAH Table 2)."""
    found = contrasts(table, sizes)
    if found["resolved"].all():
        return None
    per = found.groupby("contrast", sort=False)["resolved"].agg(["sum", "size"])
    all_frozen = found[found["contrast"] == FROZEN].groupby(["model", "corpus"])["resolved"]
    clear = all_frozen.agg(["sum", "size"]).reset_index()
    rows = ", ".join(f"{name} {row['sum']} of {row['size']}" for name, row in per.iterrows())
    where = "; ".join(f"{row['model']}, {row['corpus']} {row['sum']} of {row['size']}" for _, row in clear.iterrows())
    used = sizes[sizes["measure"].isin(found["benchmark"])]
    return finding(
        "differences between frozen runs within their error",
        [table, used],
        cells=found[~found["resolved"]].reset_index(drop=True),
        checked=len(found),
        arithmetic=f"intervals without 0: {rows}",
        consequence=f"{FROZEN} is clear of 0 in {where}; which way of freezing is better shows in few "
        "rows (the prompts are the same, so paired counts could tell more)",
    )


# the floor ------------------------------------------------------------------------------------------------------------
def excess(released: pd.DataFrame, passed: pd.DataFrame, safe: int, shots: int) -> pd.DataFrame:
    """Verdicts that miss their label at `shots`, split into `safe` (goals labelled safe) and the rest, beside the
    attacks passed after tuning in HD Fig. 4 (missing where the figure has no such attack)."""
    need(released, ["attack", "shots", "matching", "prompts"], "released counts")
    need(passed, ["attack", "condition", "passed"], "attacks passed")
    rows = released[released["shots"] == shots].assign(missed=lambda t: t["prompts"] - t["matching"])
    after = passed[passed["condition"] == "after tuning"].set_index("attack")["passed"]
    rows = rows.assign(rest=rows["missed"] - safe, fig4=rows["attack"].map(after))
    return rows[["attack", "prompts", "missed", "rest", "fig4"]].reset_index(drop=True)


def floor(released: pd.DataFrame, goals: pd.DataFrame, passed: pd.DataFrame, shots: int) -> Finding | None:
    """The pass rate of a model that calls every prompt a hazard, because some test goals are labelled safe (hd.12)."""
    need(goals, ["set", "goals", "labelled_safe"], "labelled goals")
    test = goals[goals["set"].str.startswith("test goals")]
    safe, n = int(test["labelled_safe"].iloc[0]), int(test["goals"].iloc[0])
    if not safe:
        return None
    cells = excess(released, passed, safe, shots)
    tuned = released[(released["shots"] > 0) & (released["attack"] != KEPT)]
    at_floor = int((tuned["prompts"] - tuned["matching"] == safe).sum())
    shared = cells.dropna()
    same = int((shared["rest"] == shared["fig4"]).sum())
    upper = stats.wilson(0, n - safe).upper
    return finding(
        "a pass rate with a floor of its own",
        [released, test, passed],
        cells=cells,
        checked=len(tuned),
        arithmetic=f"{safe} of {n} test goals are labelled safe, so a model that calls all of them a hazard passes "
        f"{safe}/{n} = {safe / n:.3f}; {at_floor} of {len(tuned)} cells after tuning are just that; K = {shots} less "
        f"{safe} is Fig. 4 after tuning for {same} of {len(shared)} attacks",
        consequence=f"a printed {safe / n:.2f} is what no attack passing looks like (0 of {n - safe}: at most "
        f"{upper:.2f}); rates count from there",
    )


# text and figure ------------------------------------------------------------------------------------------------------
def below_chance(accuracies: pd.DataFrame) -> Finding | None:
    """Accuracies that a direction at random reaches, where no chance level is drawn (HD Fig. 3).

    The rule flags as many prompts as are positive, a share p: chance is p^2 + (1 - p)^2, and the least possible, 1 - 2p
    (p up to 1/2), means that no flagged prompt is positive. The embedding, where all prompts are equal, is left out.
    """
    need(accuracies, ["series", "hidden_state", "value", "prompts", "positive"], "accuracies")
    share = accuracies["positive"].iloc[0] / accuracies["prompts"].iloc[0]
    chance, least = share**2 + (1 - share) ** 2, 1 - 2 * share
    shown = accuracies[accuracies["hidden_state"] > 0]
    cells = shown[shown["value"] <= chance][["series", "hidden_state", "value"]].reset_index(drop=True)
    if cells.empty:
        return None
    cells["least possible"] = [prints_as(least, value, 4) for value in cells["value"]]
    layers = [f"{name} in layers {', '.join(map(str, part))}" for name, part in cells.groupby("series")["hidden_state"]]
    ends = [f"{r['series']} at {r['hidden_state']}" for _, r in cells[cells["least possible"]].iterrows()]
    lowest = f"; the least possible, {least:.3f}: {', '.join(ends)}" if ends else ""
    return finding(
        "an accuracy without its chance level",
        [accuracies],
        cells=cells,
        checked=len(shown),
        arithmetic=f"chance {share:.3f}^2 + {1 - share:.3f}^2 = {chance:.3f}; no better: {'; '.join(layers)}{lowest}",
        consequence=f"read accuracies against {chance:.2f}, not .5; one far below it is a direction with the other "
        "sign, not one that knows nothing",
    )


def last_rank(ranks: pd.DataFrame) -> Finding | None:
    """Shares tau at which the rank of the last hidden state is above 1 by more than our reading can err (HD section 4
    against Fig. 2, SFT)."""
    need(ranks, ["tau", "hidden_state", "rank"], "ranks")
    last = ranks["hidden_state"].max()
    cells = ranks[ranks["hidden_state"] == last][["tau", "rank"]].sort_values("tau").reset_index(drop=True)
    above = cells[cells["rank"] > 1 + DIGITISED]
    if above.empty:
        return None
    near, beyond = cells.drop(above.index), ", ".join(f"{tau:g}" for tau in above["tau"])
    name = f"returns to 1 for {len(near)} of {len(cells)} shares" if len(near) else "does not return to 1"
    return finding(
        f"a rank that {name}",
        [ranks],
        cells=cells,
        checked=len(cells),
        arithmetic=f"layer {last}: "
        + ", ".join(f"rank {_read_rank(int(r['rank']))} at tau {r['tau']:g}" for _, r in cells.iterrows()),
        consequence="the sentence that the rank falls to 1 at the last layer "
        + (
            f"agrees with our reading up to tau = {near['tau'].max():g}, not at {beyond}"
            if len(near)
            else "does not hold"
        ),
    )


def _read_rank(rank: int) -> str:
    """A rank as far as it was read: 2 may be 1."""
    return f"{rank - DIGITISED} or {rank}" if rank - DIGITISED == 1 else f"{rank}"


def early_order(distances: pd.DataFrame) -> Finding | None:
    """Aligned panels in which, at the first step, the refusing answer is not nearer by more than the error of two
    readings (SSAH Figs 2 and 7)."""
    need(distances, ["figure", "model", "aligned", "answer", "tokens", "distance", "reading_error"], "distances")
    aligned = distances[distances["aligned"] == "yes"]
    wide_table = aligned.pivot(index=["figure", "model", "tokens"], columns="answer", values="distance")
    gap = (wide_table["refusing"] - wide_table["complying"]).rename("refusing - complying").reset_index()
    doubt = 2 * aligned["reading_error"].max() + EPSILON
    signs = [gap["refusing - complying"] < -doubt, gap["refusing - complying"] > doubt]
    gap["nearer"] = np.select(signs, ["refusing", "complying"], "tie")
    first, later = (part.reset_index(drop=True) for _, part in gap.groupby(gap["tokens"] > gap["tokens"].min()))
    if (first["nearer"] == "refusing").all():
        return None
    counted = ", ".join(f"{count} {name}" for name, count in first["nearer"].value_counts().items())
    return finding(
        "an order that begins after the first step",
        [aligned],
        cells=first,
        checked=len(gap),
        arithmetic=f"nearer at {first['tokens'].iloc[0]} tokens, by more than {doubt:.2f}: {counted}; later: "
        f"{(later['nearer'] == 'refusing').sum()} of {len(later)} refusing",
        consequence=f"the preference of aligned models shows from {later['tokens'].min()} tokens on, not at every step",
    )


def two_figures(by_token: pd.DataFrame, by_block: pd.DataFrame) -> Finding | None:
    """Two figures of one distance whose ranges do not meet, beyond the errors of reading (SSAH Figs 2 and 3)."""
    need(by_token, ["model", "aligned", "answer", "distance", "reading_error"], "distances by token")
    need(by_block, ["model", "aligned", "answer", "lowest", "highest", "reading_error"], "distances by block")
    keys = ["model", "aligned", "answer"]
    cells = by_token.groupby(keys)["distance"].agg(["min", "max"]).reset_index()
    cells = cells.merge(by_block[[*keys, "lowest", "highest"]])
    doubt = by_token["reading_error"].max() + by_block["reading_error"].max() + EPSILON
    wrong = cells[(cells["min"] > cells["highest"] + doubt) | (cells["max"] < cells["lowest"] - doubt)]
    if wrong.empty:
        return None
    aligned = wrong["aligned"].map({"yes": "aligned", "no": "unaligned"})
    rows = [
        f"{row['model']}, {name}, {row['answer']}: {row['min']:.2f} to {row['max']:.2f} by token, {row['lowest']:.2f} "
        f"to {row['highest']:.2f} by block"
        for name, (_, row) in zip(aligned, wrong.iterrows(), strict=True)
    ]
    return finding(
        "two figures of one distance that do not meet",
        [by_token, by_block],
        cells=wrong.reset_index(drop=True),
        checked=len(cells),
        arithmetic="; ".join(rows),
        consequence="tokens, positions or blocks are averaged differently; a replication has to choose, and say so",
    )
