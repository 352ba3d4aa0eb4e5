# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Safety units change group when refusal is lost, and nearly as often when it stays; and an alignment that costs no skill moves no fewer units than one that does
#
# **Claims** (*Superficial Safety Alignment Hypothesis*, SSAH, [arXiv 2410.10862](https://arxiv.org/abs/2410.10862), section 4, Figs 5 and 6).
# A *unit* is an MLP neuron or an attention channel. SSAH sorts units into four groups: safety-critical (SCU), utility-critical (UCU), complex (CU, both) and redundant (RU).
# Harmless fine-tuning makes models less safe, it says, because it turns safety units into complex and utility units; and the *alignment tax*, what a model unlearns while it is
# aligned, is the same transfer the other way: from utility units to safety and complex ones.
#
# | SSAH reports (Llama-2-7B, one run each, no control) | |
# |---|---|
# | SCU that are no longer SCU after fine-tuning on Dolly (Fig. 5) | .85 of 1.3 % of all units: about two thirds (its bands do not add up to its groups) |
# | units that serve utility and no longer do after alignment (Fig. 6) | 1.14 + 2.8 of 85.1 %; net 1.26 points |
# | the tax itself for this pair of models | drawn, no number |
#
# **We measure** the same flows on small models trained on an invented language ([notebook 01](01_organism.ipynb)), unit by unit, and what the paper lacks: how many units change group when *nothing is trained* and only the
# calibration prompts are drawn anew. In the tables, `attack_success` is the share of harmful requests answered exactly, `false_refusal` of harmless ones refused, `benign_exact` of harmless ones answered exactly, `skills` the mean accuracy on six skills.
#
# **Decided by** `ssah.5` and `ssah.6` in `data/claims.yaml`, written before any result: at least half of SCU leave, and .1 more than leave without training; at least .01 of the utility-serving units are lost beyond
# that noise; the tax is at least .02 on the mean of six skills.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which organism; others than 0 are trained first (12 minutes)
draws: int = 5  # independent samples of calibration prompts, from 2 to 100

# %%
import pandas as pd

from lib import (
    claims,
    figures,
    models,
    profiles,
    provenance,
    stats,
    tables,
    transfer,
    unit_scores,
    unit_stability,
    unit_tables,
    units,
)
from lib.charts import transfer as charts

# %%
settings = profiles.load(profile)
results = claims.Results(notebook="04_attribute_transfer", profile=profile, seed=seed)
practice = unit_tables.practice(profile, seed)
asked = unit_tables.heldout(profile, seed, "whole")

# %% [markdown]
# ## Models
#
# `chat` refuses plain harm. Two harmless fine-tunes of it: `errands`, everyday requests answered, and `ledgers`, a new kind of sum and stories, no request at all. `base` complies with everything; `chat` is base aligned on data
# of which 30 % are old skills, and **unreplayed** is base aligned for as many steps on requests of the same kind alone.

# %%
roles = {name: name for name in ("base", "chat", "errands", "ledgers")}
roles["unreplayed"] = "chat-unreplayed"
loaded = {name: models.load(profile, role, seed) for name, role in roles.items()}
observed = {name: unit_tables.observe(model, asked) for name, model in loaded.items()}
columns = ["refusal", "attack_success", "false_refusal", "benign_exact", "skills"]
unit_tables.removal_table(observed, columns).round(2)

# %% [markdown]
# `ssah.5` needs a fine-tune that lowers refusal of plain harm by .1: that is `errands`. `ledgers` leaves refusal nearly where it was, and so is the contrast: whatever its units do cost little safety.
# `ssah.6` needs a model aligned without replay that did learn to refuse.

# %%
now = {name: frame["refusal"].iloc[0] for name, frame in observed.items()}
fell = round(now["chat"] - now["errands"], stats.DIGITS) >= 0.1
results.requires(
    "ssah.5",
    met=fell,
    reason="" if fell else f"refusal {now['chat']:.2f} before, {now['errands']:.2f} after",
)
learned = now["unreplayed"] >= 0.5 > now["base"]
results.requires(
    "ssah.6",
    met=learned,
    reason="" if learned else f"the unreplayed model refuses {now['unreplayed']:.2f}",
)

# %% [markdown]
# ## Groups, found anew on every model
#
# By the paper's rule: a unit's score on a set of prompts is the variance of its value times the squared norm of the weights it writes with; I_S on harmful requests and refusals, I_U on harmless ones
# and answers, each standardised within layer and kind (our choice; the paper does not say how they are made comparable). RU have the smallest sum, SCU the largest difference, UCU the smallest.
# How many units each group gets is searched per model, from large to small, as the paper describes. All of it is repeated for each draw of calibration prompts.

# %%
best = settings.units.best
strongest = settings.units.strongest
rules = {
    ("the paper's score", "z"): unit_scores.PAPER,
    ("the chosen score", "z"): (best.score, best.position),
    ("the strongest score", strongest.normalisation): (
        strongest.score,
        strongest.position,
    ),
}
raw = {
    name: unit_stability.redrawn(model, profile, seed, list(rules.values()), draws)
    for name, model in loaded.items()
}

# %%
searching = dict.fromkeys(loaded, units.GROUPS) | {"base": ("ru",)}
found = {
    name: transfer.searched(
        loaded[name],
        raw[name][unit_scores.PAPER],
        "z",
        settings.units.cuts,
        practice,
        groups,
    )
    for name, groups in searching.items()
}
transfer.share_table(found)

# %% [markdown]
# The table gives the share of all units that each group got, from the smallest to the largest over draws. `base` is not aligned, so as in the paper it has two groups only: RU, and the rest, which serve utility (UCU). SCU stop at the largest share that is tried for every model, so their number cannot fall here as it does in the paper.
# `errands` has no refusal left to lose, so its UCU, too, are the largest share tried and no finding.
#
# ## Does harmless fine-tuning turn safety units into others?
#
# A unit's group before (rows) is compared with its group after (columns), in per cent of all units. Before and after use independent samples of calibration prompts (a few in a hundred coincide); and the same comparison **without any training**,
# `chat` with itself on other prompts, is the noise. Each sample enters two pairs, so intervals are somewhat too narrow. Rows and columns add up to the groups exactly.

# %%
found["base"] = transfer.unaligned(found["base"])
tuned = {
    name: transfer.flows(found["chat"], found[after])
    for name, after in {
        "errands": "errands",
        "ledgers": "ledgers",
        transfer.NONE: "chat",
    }.items()
}
shares = {name: transfer.mean_shares(one) for name, one in tuned.items()}
transfer.closed(shares["errands"]).round(2)

# %%
left = transfer.summary(tuned, "leaving")
noise = transfer.beyond(tuned["errands"], tuned[transfer.NONE], "leaving")
stay = transfer.over_draws(left.set_index("series").loc["errands", "draws"])
prompts = 2 * settings.measure.calibration * draws
results.part("ssah.5.leave", stay.mean, prompts, interval=stay)
results.part(
    "ssah.5.noise",
    noise.mean,
    prompts,
    interval=noise,
    controls=left.set_index("series").loc[transfer.NONE, "draws"],
    detail={"ledgers": left.set_index("series").loc["ledgers", "share"]},
)
left.drop(columns="draws").set_index("series").round(3)

# %%
flows = figures.published("ssah_fig5_6")
dolly, aligned = (
    transfer.published(flows[flows["figure"] == name]) for name in ("Fig. 5", "Fig. 6")
)
printed = transfer.printed(dolly, "leaving", "published (Llama-2, Dolly)")
size = transfer.mean_shares(tuned["errands"]).sum(axis=0)["scu"]
panels = {
    "Published: Dolly\n(SSAH Fig. 5, Llama-2-7B-Chat)": dolly,
    f"Measured: errands\n(refusal {now['chat']:.2f} to {now['errands']:.2f})": shares[
        "errands"
    ],
    f"Measured: ledgers\n(refusal {now['chat']:.2f} to {now['ledgers']:.2f})": shares[
        "ledgers"
    ],
    "Control: no training\n(other calibration prompts)": shares[transfer.NONE],
}
table = pd.concat([printed, left], ignore_index=True)
figure = charts.flows(panels, table, "share of SCU that leave the group", chance=1 - size)

# %%
share = table.set_index("series")["share"]
caption = (
    f"Units by group before and after; bands are flows. Share of SCU that leave: published {share.iloc[0]:.2f}; errands, which take refusal from "
    f"{now['chat']:.2f} to {now['errands']:.2f}, {share['errands']:.2f}; ledgers, after which it is {now['ledgers']:.2f}, {share['ledgers']:.2f}; no training "
    f"{share[transfer.NONE]:.2f}; groups drawn at random {1 - size:.2f} (dotted). Ticks: {draws} draws of calibration prompts; bars: 95 %. Groups are in per cent of all units; the published "
    "ones after tuning are sums of the printed bands, where the paper prints 13.51 UCU and 78.60 CU."
)
data = figures.panels(flows=transfer.tidy(panels), shares=table)
figures.save(figure, "04_attribute_transfer.ssah.5", data, caption, profile, seed)

# %% [markdown]
# Read `errands` against `ledgers`. One ends refusal, the other hardly touches it, and safety units leave the group in both, most of them in neither. There is turnover beyond the noise in both; which of the two moves more depends on how groups are cut (below).
#
# ## Is the alignment tax the same thing?
#
# From `base` to the unreplayed model. SSAH's way of counting gives base no safety units, so **the new SCU are taken from the units that served utility by the way of counting alone**, as large as the group is cut. The noise floor therefore does
# to base what is done to the aligned model: four groups of the aligned model's sizes, on other prompts, without training. *Lost* are units that served utility before (UCU or CU) and do not after.

# %%
ways = {"without replay": "unreplayed", "with replay": "chat"}
aligning, floor = {}, {}
for way, name in ways.items():
    sizes = found[name].shares
    null = transfer.at_shares(raw["base"][unit_scores.PAPER], "z", sizes)
    aligning[way] = transfer.flows(found["base"], found[name])
    floor[way] = transfer.flows(found["base"], null)
shares = {way: transfer.mean_shares(one) for way, one in aligning.items()}
nothing = transfer.mean_shares(floor["without replay"])
transfer.closed(shares["without replay"]).round(2)

# %%
named = {
    label: table
    for way in ways
    for label, table in (
        (way, aligning[way]),
        (f"{transfer.NONE}, sizes {way}", floor[way]),
    )
}
gone = transfer.summary(named, "lost")
moved = {way: transfer.beyond(aligning[way], floor[way], "lost") for way in ways}
results.part(
    "ssah.6.transfer",
    moved["without replay"].mean,
    prompts,
    interval=moved["without replay"],
    controls=gone["draws"].iloc[1],
    detail={"with replay": moved["with replay"].mean},
)
gone.drop(columns="draws").set_index("series").round(3)

# %%
printed = transfer.printed(aligned, "lost", "published (Llama-2)")
table = pd.concat([printed, gone], ignore_index=True)
panels = {
    "Published: alignment\n(SSAH Fig. 6, Llama-2-7B)": aligned,
    "Measured: base aligned\nwithout old skills": shares["without replay"],
    "Control: no training, groups\nof the aligned model's sizes": nothing,
}
figure = charts.flows(panels, table, "share of utility-serving units lost")
share = table.set_index("series")["share"]
caption = (
    f"Units by group before and after alignment. Share of utility-serving units lost: published {share.iloc[0]:.3f}; base aligned without replay "
    f"{share['without replay']:.3f}, where new groups of these sizes alone take {share.iloc[2]:.3f}; with replay {share['with replay']:.3f}, against {share.iloc[4]:.3f}. "
    f"Beyond that noise {moved['without replay'].mean:.3f} and {moved['with replay'].mean:.3f}. Ticks: {draws} draws of calibration prompts; bars: 95 %."
)
data = figures.panels(flows=transfer.tidy(panels), shares=table)
figures.save(figure, "04_attribute_transfer.ssah.6", data, caption, profile, seed)

# %% [markdown]
# New safety units are as many with and without training, by construction: a group of that size has to come from somewhere. What is lost beyond the floor went to the column RU, units that became *redundant*. None of it is the
# transfer to safety units that the claim is about.
#
# The tax itself, skill by skill: accuracy of base minus that of the aligned model on the same questions.

# %%
after = {"without replay": observed["unreplayed"], "with replay": observed["chat"]}
names = [*asked.skills, "skills"]
taxes = transfer.tax_table(observed["base"], after, asked, names)
tax = transfer.tax(observed["base"], observed["unreplayed"], asked)
results.part(
    "ssah.6.tax",
    tax.mean,
    tax.n,
    interval=tax,
    detail=taxes.groupby("series")["tax"].apply(list).to_dict(),
)
figure = charts.tax(taxes, claims.part("ssah.6.tax").rule.bound)
mean = taxes[taxes["skill"] == "skills"].set_index("series")["tax"]
number = unit_tables.in_words(len(asked.skills))
caption = (
    f"Accuracy lost by aligning base, skill by skill: mean of {number} {mean['without replay']:.2f} without old skills among the data, "
    f"{round(mean['with replay'], 2) + 0.0:.2f} with them. Bars: 95 % over questions."
)
figures.save(figure, "04_attribute_transfer.tax", taxes, caption, profile, seed)

# %% [markdown]
# If the tax were the transfer, the alignment that costs next to nothing should move fewer units than the one that costs much. Both side by side:

# %%
pd.DataFrame(
    {
        "units lost beyond noise": {way: one.mean for way, one in moved.items()},
        f"tax, mean of {number} skills": mean,
    }
).round(3)

# %% [markdown]
# The alignment without a tax moves at least as many. Redundant groups of the two models may differ in size, which matters here; below they do not.
#
# ## Does it depend on how groups are cut?
#
# The same numbers with groups of the paper's sizes for every model (1.3 % SCU), without a search, by three scores: the paper's, the one chosen in [notebook 03](03_unit_classification.ipynb), and the strongest there, the only one whose units end refusal when
# they are removed (it is signed, and its groups are cut from its raw values). At equal sizes more SCU leave in `errands` than in `ledgers` by the paper's and by the chosen score; so which fine-tune moves more depends on the cut, and at no cut do they leave
# in the one and stay in the other.

# %%
fixed = {name: getattr(settings.units, name) for name in ("ru", "scu", "ucu")}
transfer.sensitivity(
    {
        label: {name: one[rule] for name, one in raw.items()}
        for label, rule in rules.items()
    },
    fixed,
).round(2)

# %% [markdown]
# ## Verdict
#
# From this one model, with intervals over draws of calibration prompts and, for the tax, over questions. What decides is the ledger, over independently trained models.

# %%
results.fact("flows_of_alignment", transfer.tidy(panels).round(5).to_dict("list"))
results.save()
tables.text(claims.verdict_table(results.verdicts()).set_index("part"))

# %% [markdown]
# ## What would change our mind
#
# - **Units that do carry safety.** Removing these SCU does not end refusal (notebook 03), so their turnover says little about safety; the last row above has units that do. If removal of SCU ended refusal and the same SCU left the group in `errands` but not in `ledgers`, the claim would have its mechanism.
# - **A fine-tune that takes refusal slowly.** `errands` ends it altogether, which should make transfer easy to see. A turnover that grew with the loss of refusal over several fine-tunes would support the claim.
# - **What counts as leaving.** Groups are cut at a rank, so units near the cut change sides by noise. That is why the control is other calibration prompts. At the paper's sizes the noise here is far below the published share; what it is on Llama-2 cannot be known without the control.
# - **The tax and the flow are two numbers of one run.** That both are above their bars does not make one the cause of the other. A stronger test is notebook 06, in which only some units may change at all.
#
# Choices the paper leaves open and ours: scores standardised within layer and kind; tolerances of the cut search (profile); calibration prompts plain on both sides and of meanings that safety data hold.

# %%
provenance.versions()

# %% [markdown]
# Previous: [03 Unit classification](03_unit_classification.ipynb). Next: [05 Freezing](05_freezing.ipynb). Map: [00 Index](00_index.ipynb).
