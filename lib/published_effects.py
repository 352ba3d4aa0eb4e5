"""What the papers' printed numbers come to in the measure of a part of the registry, for the ledger's first column.

Owns that arithmetic, from `data/published` alone. A part has no entry where the papers print nothing like it; `note`
says in what the printed numbers differ from our measure. Nothing here is measured by us.
"""

from dataclasses import dataclass
from math import log

import pandas as pd

from lib.figures import published


@dataclass(frozen=True)
class Effect:
    """`value` in the unit of the part, and what to know before comparing."""

    value: float
    note: str


def effects() -> dict[str, Effect]:
    """Every part with a printed number: part id -> effect."""
    return _ssah() | _freezing() | _shifts() | _directions() | _attacks()


def blocks(table: pd.DataFrame, first: int, last: int) -> pd.DataFrame:
    """Rows of hidden states `first` to `last`; hidden state h is the output of block h - 1."""
    return table[table["hidden_state"].between(first, last)]


# SSAH -----------------------------------------------------------------------------------------------------------------
def _ssah() -> dict[str, Effect]:
    distance = published("ssah_fig2").query("tokens >= 4")
    wide = distance.pivot_table(index="aligned", columns="answer", values="distance")
    nearer = wide["complying"] - wide["refusing"]
    eye = "cosine distances of six panels read by eye, 4 to 10 tokens"
    units = published("ssah_table1").set_index(["model", "group"])
    asr, accuracy = units["asr_no_system"].unstack() / 100, units["average"].unstack() / 100
    plain = "mean of the models of Table 1; without the system prompt"
    flows = published("ssah_fig5_6")
    dolly, aligning = (flows[flows["figure"] == name] for name in ("Fig. 5", "Fig. 6"))
    tasks = published("ssah_table4").query("unit == '%'")
    return {
        "ssah.2.published": Effect(nearer["yes"], eye),
        "ssah.2.base": Effect(-nearer["no"], eye),
        "ssah.4.scu": Effect((asr["scu"] - asr["dense"]).mean(), plain),
        "ssah.4.scu_utility": Effect((accuracy["dense"] - accuracy["scu"]).mean(), "mean of the models of Table 1"),
        "ssah.4.ucu": Effect((accuracy["dense"] - accuracy["ucu"]).mean(), "mean of the models of Table 1"),
        "ssah.4.ucu_safety": Effect((asr["ucu"] - asr["dense"]).mean(), f"rise of attack success; {plain}"),
        "ssah.5.leave": Effect(_left(dolly, "scu", ("scu",)), "Llama-2, Dolly; its bands do not add up"),
        "ssah.6.transfer": Effect(_left(aligning, "ucu", ("ucu", "cu")), "no calibration noise subtracted"),
        "ssah.10.tax": Effect((tasks["RU only"] - tasks["full"]).mean() / 100, "mean of eight accuracies, no refusals"),
    }


def _left(flows: pd.DataFrame, group: str, stay: tuple[str, ...]) -> float:
    """Share of a group before that is in none of `stay` after."""
    mine = flows[flows["before"] == group]
    return float(1 - mine.loc[mine["after"].isin(stay), "share"].sum() / mine["share"].sum())


def _freezing() -> dict[str, Effect]:
    cells = published("ssah_table2").query("unit == '%'")
    wide = cells.pivot_table(index=["model", "benchmark", "judge", "corpus"], columns="arm", values="value")
    rose = wide[wide["full"] > wide["initial"]]
    taken = {arm: ((rose["full"] - rose[arm]) / (rose["full"] - rose["initial"])).mean()
             for arm in ("SCU + top CU", "SCU + all CU")}  # fmt: skip
    rate = published("ssah_table5").query("measure == 'GPT-4 rate (%)'")
    arms = rate.pivot_table(index="corpus", columns="arm", values="value").mean() / 100
    note = f"mean of {len(rose)} cells of Table 2 in per cent; twice the epochs, not the same loss"
    peft = "HEx-PHI by GPT-4, mean of two corpora; some cells copied from other work"
    return {
        "ssah.7.part": Effect(taken["SCU + top CU"], note),
        "ssah.7.all.share": Effect(taken["SCU + all CU"], note),
        "ssah.9.lora": Effect(arms["LoRA"] - arms["SCU + all CU"], peft),
        "ssah.9.prefix": Effect(arms["prefix"] - arms["SCU + all CU"], peft),
    }


# HD: 32 blocks; first third = hidden states 1-11, later half 17-31, last third 22-31; 32 is after the norm ------------
def _shifts() -> dict[str, Effect]:
    affine = published("hd_table4").query("hidden_state > 1")
    rank = published("hd_fig2_rank").query("tau == 0.9")
    sft, dpo = (rank[rank["series"] == name] for name in ("SSFT", "DPO"))
    inner = blocks(sft, 1, 31)["rank"]
    later = [blocks(one, 22, 31)["rank"].mean() for one in (sft, dpo)]
    return {
        "hd.1.error": Effect(
            (affine["mse"] * affine["width"] / affine["norm_shift"]).max(),
            f"if the printed error is a mean over {affine['width'].iloc[0]:,} dimensions, as page 07 draws it; if "
            f"it is a sum, {(affine['mse'] / affine['norm_shift']).max():.1e}; printed rows only",
        ),
        "hd.2.low": Effect(inner.max() / sft["width"].iloc[0], "of 4096 dimensions"),
        "hd.2.shape": Effect(inner.max() / blocks(sft, 1, 11)["rank"].mean(), ""),
        "hd.2.dpo": Effect(later[1] - later[0], "of 4096 dimensions"),
    }


def _directions() -> dict[str, Effect]:
    found = published("hd_fig3_accuracy").query("measure == 'accuracy' and series == 'C1' and prompts == 700")
    rule = "in-sample accuracy by the paper's rule, not AUC; labels of the model before tuning"
    cosine = published("hd_probe_cosine").set_index("value")["cosine"]
    share = published("hd_fig5_self_share").query("component == 'C1'")
    path = blocks(published("hd_fig6_projections"), 22, 27)
    totals = path.pivot_table(index="component", columns="group", values="projection", aggfunc="sum")
    way = {
        group: (totals["harmful"] - totals[group]) / (totals["harmful"] - totals["benign"])
        for group in ("trigger removed", "suppressed")
    }
    return {
        "hd.3.late": Effect(blocks(found, 17, 31)["value"].mean(), rule),
        "hd.3.early": Effect(blocks(found, 1, 11)["value"].mean(), rule),
        "hd.4.probe": Effect(cosine["largest"], "largest over layers, read by eye"),
        "hd.7.mix": Effect(
            blocks(share, 17, 31)["self_share"].mean() - blocks(share, 2, 11)["self_share"].mean(),
            "clipped, normalised",
        ),
        "hd.9.between": Effect(way["trigger removed"]["C1"], "layers 22 to 27"),
        "hd.9.differs": Effect(way["trigger removed"]["C2"] - way["suppressed"]["C2"], "layers 22 to 27"),
    }


def _attacks() -> dict[str, Effect]:
    removed = published("hd_fig4").pivot(index="attack", columns="condition", values="passed") / 60
    rise = removed["without L14-C6"] - removed["after tuning"]
    without = _suppressed()
    table3 = published("hd_table3").query("shots == 80").set_index("attack")["pass_rate"]
    scores = published("hd_tables5_7").query("shots == 80")
    scores = scores[~scores["attack"].str.startswith("OR-Bench")]
    by = scores.pivot(index="training", columns="attack", values="score")
    others = by.drop(columns="Trigger Removal").max(axis=1)
    word = published("hd_fig12").set_index("model")["perplexity"]
    worse = max(word["SSFT without L14-C6"], word["SSFT without non-dominant"])
    constant = "constant steering at the last token of every block, 60 prompts"
    score = "mean StrongREJECT score at K = 80, 60 prompts"
    return {
        "hd.6.hit": Effect(rise["PAIR"], constant),
        "hd.6.selective": Effect(rise.drop("PAIR").mean(), constant),
        "hd.8.jailbreak": Effect(without["jailbreaks"], "Table 8"),
        "hd.8.plain": Effect(without["harmful"], "Table 8"),
        "hd.10.gap": Effect(table3["Trigger Removal"] - table3.drop("Trigger Removal").max(), "pass rates at K = 80"),
        "hd.11.dpo": Effect(by.loc["DPO", "Trigger Removal"] - others["DPO"], score),
        "hd.11.both": Effect(by.loc["SFT then DPO", "Trigger Removal"] - others["SFT then DPO"], score),
        "hd.14.nll": Effect(log(worse / word["SSFT"]), "answers of Alpaca, one position of each text edited"),
    }


def _suppressed() -> dict[str, float]:
    """Drop of refusal by kind of prompt when non-dominant directions are suppressed (HD Table 8)."""
    table = published("hd_table8").set_index("condition")
    return {
        kind: float(table[kind]["no intervention"] - table[kind]["non-dominant directions suppressed"]) / 100
        for kind in ("harmful", "jailbreaks", "benign")
    }
