"""The ledger as notebook 15 shows it: every part on one axis, counts by paper, and sentences about what matters most.

Owns how rows of the ledger are put side by side; how they are judged is in `claims`. Nothing is measured here, and no
number is written by hand: values are the ledger's, printed ones `published_effects`'.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from lib import claims, ledger, published_effects, stats
from lib.claims import ClaimVerdict, Row
from lib.figures import published
from lib.published_effects import Effect

COLUMNS = [
    "part", "paper", "verdict", "rule", "core", "n", "measured", "lower", "upper", "control", "printed", "note",
    "margin", "margin_lower", "margin_upper", "margin_printed",
]  # fmt: skip
SHOWN = ["part", "measured (95 %)", "by model", "control", "minus control (95 %)", "bar", "printed", "verdict"]
MATTER = ("ssah.4", "hd.3", "hd.10")  # the claims on which each paper, and its attack, rests
# Parts whose value has the recorded control taken off already, as the registry words them.
TAKEN_OFF = ("ssah.5.noise", "ssah.6.transfer", "ssah.10.random", "hd.4.second", "hd.5.style", "hd.7.hold")
FIRST, RANDOM = "C1", "random in the span"  # series of notebook 08's AUC
NO_BREAK = "\N{NO-BREAK SPACE}"  # in the column of bars, so that most rows keep to one line
EXACT = 9  # decimals kept of a margin, so that a value on its bar is not beyond it by rounding


def counts(found: Row) -> pd.DataFrame:
    """How many claims came out how: one row a verdict, one column a paper and ours, and all."""
    table = pd.DataFrame({"paper": [ledger.paper(row["where"]) for row in found["rows"]],
                          "verdict": [claims.verdict_of(row) for row in found["rows"]]})  # fmt: skip
    every = [*(verdict.value for verdict in ClaimVerdict), claims.NO_CRITERION]
    wide = pd.crosstab(table["verdict"], table["paper"]).reindex(index=every, columns=list(ledger.PAPERS))
    return wide.fillna(0).astype(int).assign(all=lambda frame: frame.sum(axis=1)).rename_axis(columns=None)


def parts(found: Row, printed: Mapping[str, Effect] | None = None) -> pd.DataFrame:
    """Every part that has a number, in the registry's order, one row each.

    Columns: part, paper, verdict, rule, core, n (seeds), measured, lower, upper, control, printed, note, and on one
    common axis `margin` with `margin_lower`, `margin_upper` and `margin_printed`: how far beyond its bar a value lies,
    positive where it speaks for the claim. Of rule beats_control the margin is effect minus control.
    """
    known = published_effects.effects() if printed is None else printed
    rows = [
        _line(ledger.paper(row["where"]), one, known.get(one["id"]))
        for row in found["rows"]
        for one in row["parts"]
        if one["measured"] is not None
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _line(paper: str, one: Row, printed: Effect | None) -> Row:
    rule = claims.part(one["id"]).rule
    versus = rule.kind == "beats_control"
    low, high = one["interval"] or (None, None)
    control = one["controls"] and one["controls"]["mean"]
    line = {
        "part": one["id"], "paper": paper, "verdict": one["verdict"], "rule": one["rule"],
        "core": one["core"], "n": len(one["seeds"]), "measured": one["measured"], "lower": low, "upper": high,
        "control": control, "printed": printed and printed.value, "note": printed.note if printed else "",
    }  # fmt: skip
    if versus:
        margins = [one["controls"]["margin"] if one["controls"] else None, low, high, None]
    else:
        margins = [_beyond(rule, value) for value in (one["measured"], low, high, line["printed"])]
        if rule.kind == "at_most":
            margins[1], margins[2] = margins[2], margins[1]
    return line | dict(zip(("margin", "margin_lower", "margin_upper", "margin_printed"), margins, strict=True))


def _beyond(rule: stats.Rule, value: float | None) -> float | None:
    if value is None:
        return None
    assert rule.bound is not None
    return round(value - rule.bound if rule.kind == "at_least" else rule.bound - value, EXACT)


# tables to read -------------------------------------------------------------------------------------------------------
def claim_table(found: Row) -> pd.DataFrame:
    """Every claim: what it says, where, its verdict, and on which models, by which notebook; where there is no verdict
    on it, why."""
    lines = []
    for row in found["rows"]:
        judged = row["verdict"] not in (ClaimVerdict.NOT_RUN, ClaimVerdict.NOT_TESTABLE)
        reason = (row["reason"] or "").removeprefix("not_run: ")
        seeds = f"seeds {', '.join(map(str, row['seeds']))}" if row["seeds"] else ""
        stale = f"made by other code: {row['stale_seeds']}" if row["stale_seeds"] else ""
        lines.append({
            "claim": row["id"], "says": row["claim"], "where": row["where"], "verdict": claims.verdict_of(row),
            "why, or on what": "; ".join(filter(None, (seeds if judged else reason, stale))),
            "notebook": row["notebook"],
        })  # fmt: skip
    return pd.DataFrame(lines).set_index("claim")


def part_table(found: Row, printed: Mapping[str, Effect] | None = None) -> pd.DataFrame:
    """Every part in words, measured or not, one row each, in the registry's order: `SHOWN`, indexed by part.

    The interval stands with what is judged by it: of rule beats_control with the difference, else with the value.
    """
    known = published_effects.effects() if printed is None else printed
    rows = [_in_words(one, known.get(one["id"])) for row in found["rows"] for one in row["parts"]]
    return pd.DataFrame(rows, columns=SHOWN).set_index("part")


def _in_words(one: Row, printed: Effect | None) -> tuple[str, ...]:
    beside = one["controls"] if one["measured"] is not None else None
    value = "" if one["measured"] is None else _number(one["measured"])
    interval = "" if one["interval"] is None else f" ({_number(one['interval'][0])} to {_number(one['interval'][1])})"
    control, difference = _number(beside["mean"]) if beside else "", ""
    if claims.part(one["id"]).rule.kind == "beats_control":
        control += f"; 95th percentile {_number(beside['p95'])}" if beside else ""
        difference, interval = (_number(beside["margin"]) + interval if beside else ""), ""
    elif beside and one["id"] in TAKEN_OFF:
        difference = "already taken off"
    by_model = ", ".join(_number(seen) for seen in one["seeds"].values()) if len(one["seeds"]) > 1 else ""
    said = _number(printed.value) if printed else ""
    bar = one["rule"].replace(" ", NO_BREAK)
    return one["id"], value + interval, by_model, control, difference, bar, said, one["verdict"]


def _number(value: float) -> str:
    """Two digits, and no minus before a zero."""
    return f"{value + 0.0:.2g}"


def without_number(found: Row) -> list[str]:
    """Parts of claims that were run which have no number, with their verdict: 'ssah.9.prefix (not testable here)'."""
    return [
        f"{one['id']} ({one['verdict']})"
        for row in found["rows"]
        if row["verdict"] != ClaimVerdict.NOT_RUN
        for one in row["parts"]
        if one["measured"] is None
    ]


def dominant(found: Row) -> pd.DataFrame:
    """What hd.3 found in each model, one row a seed: cosine of C1 with the mean shift, AUC of C1 and of random
    directions in every block, and outcomes on plain requests when C1 is removed. Models whose notebook stopped have no
    row."""
    rows = {}
    for seed, noted in ledger.facts(found, "hd.3").items():
        if not {"c1_and_mean_shift", "auc_by_block", "removals"} <= set(noted):
            continue
        auc = pd.DataFrame(noted["auc_by_block"]).pivot(index="series", columns="block", values="auc")
        gone = pd.DataFrame(noted["removals"]).set_index(["direction", "way", "kind"]).T.to_dict()
        before, without = gone["nothing", "none", "harmful"], gone["C1", "mean, one block", "harmful"]
        benign = gone["C1", "mean, one block", "benign"]
        rows[f"seed {seed}"] = {
            "|cosine| of C1 with the mean shift": _by_block(noted["c1_and_mean_shift"]),
            "AUC of C1": _by_block(auc.T[FIRST].tolist()),
            "AUC, random directions": _by_block(auc.T[RANDOM].tolist()),
            "requests, harmful and benign": f"{without['n']:.0f} and {benign['n']:.0f}",
            "harmful refused before": f"{before['refused']:.2f}", "without C1": f"{without['refused']:.2f}",
            "harmful answered exactly": f"{without['exact']:.2f}", "benign answered exactly": f"{benign['exact']:.2f}",
        }  # fmt: skip
    return pd.DataFrame(rows)


def _by_block(values: Sequence[float]) -> str:
    return "  ".join(f"{value:.2f}" for value in values)


# what matters most ----------------------------------------------------------------------------------------------------
def sentences(found: Row) -> dict[str, str]:
    """What came of the three claims that matter most, by claim, a sentence or two each; empty where it was not run."""
    known, rows = published_effects.effects(), {row["id"]: row for row in found["rows"]}
    makers = {"ssah.4": _units, "hd.3": _direction, "hd.10": _removal}
    said = {}
    for name in MATTER:
        values = {one["id"].removeprefix(f"{name}."): one for one in rows[name]["parts"] if one["measured"] is not None}
        if len(values) == len(rows[name]["parts"]):
            count = min(len(one["seeds"]) for one in values.values())
            models = "one model" if count == 1 else f"{count} independently trained models"
            said[name] = f"{makers[name](values, known)} Over {models}: {rows[name]['verdict']}."
    return said


def _signed(value: float) -> str:
    """Two digits with a sign, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:+.2f}"


def _within(one: Row, form: str = "+.2f", least: float = -1.0) -> str:
    """' (95 %: -0.05 to +0.05)', or nothing where the interval is unknown. Shares differ by 1 at most, so Student's
    interval is cut at `least` and 1."""
    if one["interval"] is None:
        return ""
    low, high = (format(round(min(max(end, least), 1.0), 2) + 0.0, form) for end in one["interval"])
    return f" (95 %: {low} to {high})"


def _rises() -> tuple[int, float, float]:
    """Models of SSAH Table 1, and their mean rise of attack success without and with a system prompt."""
    table = published("ssah_table1").pivot(index="model", columns="group")
    without, with_prompt = (
        float((table[way]["scu"] - table[way]["dense"]).mean()) / 100 for way in ("asr_no_system", "asr_system")
    )
    return len(table), without, with_prompt


def _units(one: Mapping[str, Row], known: Mapping[str, Effect]) -> str:
    rise, random = one["scu"]["measured"], one["scu_random"]["controls"]["mean"]
    models, without, with_prompt = _rises()
    cost, printed = one["scu_utility"], known["ssah.4.scu_utility"].value
    return (
        "**Does the paper's score find the few units that carry safety?** Removing those that it calls safety-critical "
        f"changes attack success by {_signed(rise)}{_within(one['scu'])}, as many random ones by {_signed(random)}; "
        f"the numbers of the paper's {models} models come to {_signed(without)} without and {_signed(with_prompt)} "
        f"with a system prompt. What else the model can do falls by {cost['measured']:.2f}{_within(cost)}, in print by "
        f"{printed:.2f}."
    )


def _direction(one: Mapping[str, Row], known: Mapping[str, Effect]) -> str:
    measured, random = one["late"]["measured"], one["random"]["controls"]["mean"]
    return (
        "**Does one direction predict refusal?** In later blocks the dominant direction tells refused from answered "
        f"requests with an AUC (1: always, .5: as a coin) of {measured:.2f}{_within(one['late'], '.2f', 0.0)}, random "
        f"directions of the same span with {random:.2f}; the paper prints an accuracy of "
        f"{known['hd.3.late'].value:.2f} and no random direction."
    )


def _removal(one: Mapping[str, Row], known: Mapping[str, Effect]) -> str:
    gap, random, printed = one["gap"]["measured"], one["random"]["measured"], known["hd.10.gap"].value
    return (
        "**Does removing trigger words outlive the other attacks?** After safety tuning with 80 examples of each, "
        "the success of replacing or deleting the words that drive this direction, minus that of the best other style, "
        f"is {_signed(gap)}{_within(one['gap'])}, in print {_signed(printed)}; minus that of replacing or deleting "
        f"random words it is {_signed(random)}{_within(one['random'])}."
    )
