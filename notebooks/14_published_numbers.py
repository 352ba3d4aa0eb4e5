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
# # Of 24 printed averages 18 follow from their columns, and 36 cells agree with where they were copied from; some labels and sums do not fit, and small samples leave some differences open
#
# **Why.** The other pages compare what small models do with what *Superficial Safety Alignment Hypothesis* (SSAH, [arXiv 2410.10862](https://arxiv.org/abs/2410.10862)) and *The Hidden Dimensions of LLM
# Alignment* (HD, [arXiv 2502.09674](https://arxiv.org/abs/2502.09674)) print. That only works if a printed number means what its label says. So this page recomputes what can be recomputed from print alone: no model is run.
# It is also where claim `hd.12` is looked at, the pass rate of .03 that remains after safety tuning.
#
# **What we read.** For SSAH, the authors' project site (commit `c695aa0`; its pictures of tables are from the time of the first version and write ESU, EUU for SCU, UCU). Its appendices were not available to us
# and may answer some of what follows. For HD, the text and tables of the ICML 2025 version, and the files the authors released at commit `93915bd`, which are from the time of the first version.
#
# **How far each number can be trusted** is said with it. *printed*: in a table or text of the authors. *released*: in a file of theirs. *digitised*: read from a vector figure. *read by eye*: from a picture, with the error of reading beside it.
# *derived*: by us, from the others. Reading notes are not a source; where they repeat a cell for a later version, the version says so. Every finding below is computed from `data/published`; if we have mistyped a cell, that is where to mend it.
#
# **Words.** A unit is an MLP neuron or an attention channel. SSAH sorts units into SCU (safety-critical), UCU (utility-critical), CU (complex: both) and RU (redundant: neither); *dense* is the model with none of them removed, *top CU*
# the highest-ranked 6 % of CU, *full* a fine-tune with nothing frozen. In HD, K is the number of examples of each attack in safety tuning, SSFT its supervised form (SFT) and DPO its form on pairs of answers. PAIR, GCG, GPTFuzz, Flip,
# Simple, ReNeLLM, CodeChameleon, AutoDAN and Trigger Removal are attacks; AdvBench, HEx-PHI and HarmBench are lists of harmful requests, OR-Bench of harmless ones that look harmful; StrongREJECT scores answers from 0 to 1.

# %% tags=["parameters", "no-models"]
profile: str = "kingdom"  # under which the findings are filed; nothing depends on it
seed: int = 0  # the same

# %%
import pandas as pd

from lib import audit, audit_tables, claims, figures, provenance, tables
from lib.charts import audit as charts

results = claims.Results(notebook="14_published_numbers", profile=profile, seed=seed)
published = figures.published
pruning, freezing = published("ssah_table1"), published("ssah_table2")
passed, scores = published("hd_table3"), published("hd_tables5_7")
released, affine = published("hd_table3_released"), published("hd_table4")
accuracy, sizes = published("hd_fig3_accuracy"), published("sample_sizes")
n_of = sizes.set_index(["table", "measure"])["prompts"]

# %% [markdown]
# ## What adds up
#
# First what can be recomputed and was: averages from their columns, cells that two tables share, a printed table from the file it was made from (so the last two lines check copying, not arithmetic). A cell follows if the computed
# value, rounded or cut off, is what is printed; `largest difference` is between the two, in the unit of the cell.

# %%
skills = ["winogrande", "openbookqa", "arc_c", "boolq", "hellaswag", "rte"]
attacks = ["asr_system", "asr_no_system"]
judge = published("ssah_table5")["measure"].str.split(" (", regex=False).str[0]
chat2 = freezing.query("model == 'Llama-2-7B-Chat' and benchmark == 'HEx-PHI'")
shared = published("ssah_table5").assign(judge=judge)
shared = shared.merge(chat2, on=["corpus", "arm", "judge"], suffixes=("", " in Table 2"))
counted = passed.merge(released, on=["attack", "shots"])
missed = 1 - counted["matching"] / counted["prompts"]

# %%
columns = {
    "SSAH Table 1: mean accuracy": (pruning["average"], pruning[skills].mean(axis=1), 1),
    "SSAH Table 1: mean attack": (pruning["asr_average"], pruning[attacks].mean(axis=1), 1),
    "SSAH Table 5: cells of Table 2": (shared["value"], shared["value in Table 2"]),
    "HD Table 3: 1 - released accuracy": (counted["pass_rate"], missed, 2),
}
checks = pd.DataFrame([audit.agreement(what, *pair) for what, pair in columns.items()])
checks["kind"] = ["averages", "averages", "copied", "copied"]
follow = checks.groupby("kind")[["follow", "cells"]].sum()
assert follow.T.to_dict("list") == {"averages": [18, 24], "copied": [36, 36]}
checks.set_index("what").round(3)

# %% [markdown]
# Two mean accuracies are off by one in the last digit, which changes nothing. The mean attack rates are the first finding.
#
# ## Sums and averages
#
# ### Four Llama-2 averages and a third column
#
# For Llama-3 and Mistral the printed average is the mean of the rates with and without system prompt. For Llama-2 it is not. It would be the mean of three whole percentages (`third` is the one that fits); we do not
# know why. Both rises are large; they are not the same size.

# %%
averages = audit.averages(pruning, attacks, "asr_average")
print(averages)
averages.cells.round(1)

# %% [markdown]
# ### Flows of units
#
# Flows below .1 % are not drawn in SSAH's figures, so a sum may fall a little short; here one exceeds its group. If the band from UCU to UCU was labelled with the group's size before, and about 1.1 % went from UCU to CU unlabelled, both sums
# would close. Every sum of Fig. 6 closes.

# %%
flows = audit.flows(published("ssah_fig5_6"), published("ssah_fig5_6_groups"))
print(flows)
assert set(flows.cells["figure"]) == {"Fig. 5"}
flows.cells.round(2)

# %% [markdown]
# ### The headline of safety tuning
#
# HD's text gives the change of the mean StrongREJECT score in one sentence, without saying over which attacks. We tried every training and every subset of the eight attacks.

# %%
headline = audit.headline(published("hd_headline"), scores)
print(headline)
headline.cells.round(3)

# %% [markdown]
# ## Labels
#
# ### ReNeLLM in Table 3
#
# HD's Table 3 holds pass rates of 60 prompts. One row has the numbers of Table 5, which are mean scores of a judge. The released file of pass rates has no such attack; why the row is there we do not know.

# %%
other_metric = audit.other_metric(passed, released, scores)
print(other_metric)
other_metric.cells

# %% [markdown]
# ### The last column of Table 4
#
# The column is labelled as error over the squared norm of the activation. It is the error over the squared norm of the *shift*: a stricter measure than the one named, so the label undersells the result. How small the error is depends on whether it
# is a mean over dimensions, which we could not find; if it is, `relative` is the part of the shift that the map misses. `labelled` is the error over the squared norm of the activation, `by_shift` over that of the shift; the second is what is `printed`.

# %%
ratio = audit.ratio_label(affine)
print(ratio)
ratio.cells

# %% [markdown]
# ### The log-likelihood
#
# The released code computes the mean of (projection minus its mean) times the label as +1 or -1. That is twice the covariance of projection and label, $2p(1-p)$ times the gap between the two class means. It has no upper bound, can be of either sign,
# and grows when activations do. HD reads its growth in late layers as confidence; relative to the length of the activations, the gap falls.

# %%
score = accuracy.query("measure == 'covariance score' and series == 'C1'")
log_likelihood = audit.score_name(score, affine)
print(log_likelihood)
log_likelihood.cells.round(3)

# %% [markdown]
# ### What K = 0 is
#
# In Tables 5-7 the column K = 0 is the same for three trainings: it is the model before any of them. Tuning with K = 10 differs from it by ten prompts an attack *and* by all other prompts of the tuning set, plain harmful and harmless ones (appendix C.1).

# %%
start = audit.same_start(scores)
print(start)
start.cells

# %% [markdown]
# ### Two models called SFT
#
# The text starts SFT and DPO from Llama-3.1-8B-Instruct; the released SFT script starts from Llama-Guard-3-8B by default, a classifier. Print alone makes one model for both tables unlikely: a refused answer scores 0, so a mean
# score cannot exceed the share that is not refused. `at most` is the upper end of that share's interval.

# %%
two_models = audit.two_models(passed, scores, n_of["hd_table3", "attack pass rate"])
print(two_models)
two_models.cells.round(3)

# %% [markdown]
# ## The .03 that remains (`hd.12`)
#
# After tuning, attacks of Table 3 fall to about .03 and stay there. The rate is 1 minus the share of verdicts that match a label, and the label comes from Llama-Guard-3-8B's verdict on the goal. Some test goals it labels safe. A model that calls every attack a hazard
# misses exactly those. (GPTFuzz starts at .02: there the model agreed with at least one of these labels.)

# %%
goals = published("hd_moderation")
longest = int(passed["shots"].max())
floor = audit_tables.floor(released, goals, published("hd_fig4"), longest)
print(floor)
floor.cells.astype(object).fillna("not drawn")

# %%
safe = int(goals["labelled_safe"].iloc[0])
rates = released.assign(
    share=1 - released["matching"] / released["prompts"], n=released["prompts"]
)
rates = audit_tables.with_intervals(rates)
figure = charts.floor(rates, floor.cells, safe, longest)
last = rates[rates["shots"] == longest].set_index("attack")["share"]
caption = (
    f"Left, pass rates of HD Table 3 from the released counts, with 95 % intervals: at K = {longest} "
    + ", ".join(f"{name} {share:.3f}" for name, share in last.items())
    + f"; dotted, {safe}/{rates['n'].iloc[0]}, a model that calls everything a hazard (Simple and K above {longest} are in the released file alone). Right, prompts that miss "
    f"their label at K = {longest}: {safe} are of goals labelled safe, the rest is what passes in Fig. 4 "
    "(diamonds) where both show the attack."
)
data = figures.panels(rates=rates, missed=floor.cells)
figures.save(figure, "14_published_numbers.hd.12", data, caption, profile, seed)

# %% [markdown]
# So the remaining .03 says nothing about attacks: it would be there if none passed. What remains of trigger removal is far above it. The rest is a lower bound of what passes, since a model may also agree with a label of safe.
#
# ## How many prompts
#
# ### From the digits
#
# Where no number of prompts was found, the digits of the shares give a lower bound: the smallest sample of which every cell is a share. Together with the size of public benchmarks this says what most shares are of (`basis`).

# %%
digits = {
    "SSAH Table 1, accuracy": (pruning[skills].stack(), 1),
    "SSAH Table 1, attack success": (pruning[attacks].stack(), 1),
    "HD Table 8, harmful": (published("hd_table8")["harmful"], 1),
    "HD Table 8, jailbreaks": (published("hd_table8")["jailbreaks"], 1),
    "HD Table 8, benign": (published("hd_table8")["benign"], 1),
}
least = {name: audit_tables.smallest_n(*one) for name, one in digits.items()}
print(least)
tables.text(
    sizes[["source", "measure", "prompts", "reliability", "basis"]].set_index("source")
)

# %% [markdown]
# ### Shares that no count gives
#
# SSAH's Table 2 mixes one and two decimals and sometimes rounds, sometimes cuts off; we allow both. Nearly all cells are then counts of the public benchmark, far more than chance would give. A few are not.

# %%
counts = audit_tables.counts(freezing, sizes)
print(counts)
counts.cells

# %% [markdown]
# ### Intervals
#
# In what we could read of either paper we found no interval or second run for these shares. The counts imply one, Wilson's, for sampling of prompts alone; how much runs differ cannot be seen from print. `wide` counts shares
# known no better than to 5 points, to one side. The n of SSAH's tables are derived, as the table above says. Of HD's Table 8 only a lower bound of n is known, so no width is given for it.

# %%
start_once = ["model", "judge", "benchmark", "arm", "value"]
percent = freezing[freezing["unit"] == "%"].drop_duplicates(start_once)
rates3 = passed[passed["attack"].isin(released["attack"])]
by_table = {
    "SSAH Table 1, accuracy": (pruning[skills].stack(), n_of["ssah_table1", "accuracy"]),
    "SSAH Table 1, attacks": (pruning[attacks].stack(), n_of["ssah_table1", "attack success"]),
    "SSAH Table 2": (percent["value"], percent["benchmark"].map(n_of["ssah_table2"])),
    "HD Table 3": (100 * rates3["pass_rate"], n_of["hd_table3"].iloc[0]),
}  # fmt: skip
shares = {
    w: pd.DataFrame({"share": cell / 100, "n": n}) for w, (cell, n) in by_table.items()
}

# %%
wide = audit_tables.wide(
    shares, [pruning, freezing, rates3, sizes[sizes["table"] != "ssah_table4"]]
)
print(wide)
wide.cells.set_index("table").round(1)

# %%
gaps = audit_tables.contrasts(freezing, sizes)
pruned = audit_tables.pruned(pruning, n_of["ssah_table1", "attack success"])
figure = charts.shares(pruned, pruning, averages.cells, gaps)
drawn = gaps[gaps["contrast"].isin([audit_tables.FROZEN, audit_tables.STRICTER])]
clear = drawn.groupby("contrast")["resolved"].agg(["sum", "size"])
caption = (
    f"Left, attack success after pruning (SSAH Table 1) with the 95 % intervals of {pruned['n'].iloc[0]} prompts, a "
    f"number derived from the digits; {len(averages.cells)} printed averages (red diamonds) lie off the mean of their "
    "two rates (bars). Right, points of attack success saved by freezing (SSAH Table 2), rings where 0 lies within: "
    + ", ".join(
        f"{name} {row['sum']} of {row['size']} clear of 0" for name, row in clear.iterrows()
    )
    + "."
)
data = figures.panels(pruned=pruned, gaps=gaps)
figures.save(figure, "14_published_numbers.shares", data, caption, profile, seed)

# %% [markdown]
# ### What freezing saves
#
# The arms of SSAH's Table 2 (nothing frozen; SCU and the *top* 6 % of CU frozen; SCU and *all* CU frozen) answered the same prompts, but only shares are printed, so they are compared as independent: that makes intervals wide rather than narrow. HarmBench counts as its 400 behaviours, because three answers to one are not independent.

# %%
frozen = audit_tables.freezing(freezing, sizes)
print(frozen)
by_arm = gaps.groupby(["model", "corpus", "contrast"], sort=False)["resolved"]
(by_arm.sum().astype(str) + " of " + by_arm.size().astype(str)).unstack("contrast")

# %% [markdown]
# ### The alignment tax
#
# SSAH's Table 4 shows a tax on one task and its removal by tuning redundant units only. The loss is smaller than the error of one score; the gain is not.

# %%
tax = audit_tables.tax(published("ssah_table4"), sizes)
print(tax)
tax.cells.round(2)

# %% [markdown]
# ### What the intervals leave standing
#
# A sample of 60 or 100 is enough for large effects, and the papers' largest are far outside it. In points of attack success, but for the last line:

# %%
asked, tested = n_of["ssah_table1", "attack success"], n_of["hd_table3"].iloc[0]
chat = pruning[pruning["model"] == "Llama-2-7B-Chat"].set_index("group")["asr_no_system"]
at_80 = released[released["shots"] == 80].set_index("attack")
kept = 100 - 100 * at_80["matching"] / at_80["prompts"]
gsm = published("ssah_table4").set_index("task").loc["GSM8K (5-shot)"]
effects = {
    "SSAH Table 1: SCU pruned, no system prompt": (chat["scu"], chat["dense"], asked),
    "HD Table 3: trigger removal less PAIR, K = 80": (
        *kept[["Trigger Removal", "PAIR"]],
        tested,
    ),
    "SSAH Table 4: GSM8K, RU less full": (
        *gsm[["RU only", "full"]],
        tax.cells["n"].iloc[0],
    ),
}
stands = {name: audit_tables.difference(*one) for name, one in effects.items()}
lines = {name: (one.n, one.mean, one.lower, one.upper) for name, one in stands.items()}
pd.DataFrame(lines, index=["n", "difference", "lower", "upper"]).T.round(1)

# %% [markdown]
# ## Sentences and figures
#
# ### Accuracy and chance
#
# HD's Fig. 3 shows how well a component tells the prompts that the model before tuning refuses. The rule flags as many prompts as are refused, so a component that knows nothing is right more often than half of the time. The sign of a component is arbitrary
# and was fixed once for all, so some that know much are far *below* chance; turned round, they would count. The table counts the layers that do no better than chance, with their lowest and highest accuracy.

# %%
c1_c2 = accuracy.query("measure == 'accuracy' and series in ['C1', 'C2']")
chance = audit_tables.below_chance(c1_c2)
print(chance)
chance.cells.groupby("series")["value"].agg(layers="size", lowest="min", highest="max")

# %% [markdown]
# ### The rank at the end
#
# HD's text says that the rank under SFT falls to 1 at the last layer. In the vector figure, read to about one, it does for all but the largest share of the spectrum drawn: a 2 read there may be a 1. With the largest it falls as well, but not so far.

# %%
rank = audit_tables.last_rank(published("hd_fig2_rank").query("series == 'SSFT'"))
print(rank)
rank.cells

# %% [markdown]
# ### The first two tokens
#
# SSAH reads from Fig. 2 that aligned models are consistently nearer to the refusing answer. From the second point on every panel shows it. At the first, two tokens in, none does beyond the error of our reading: perhaps two tokens are too few to be a refusal.

# %%
distances = published("ssah_fig2")
order = audit_tables.early_order(distances)
print(order)
order.cells

# %% [markdown]
# ### Figures 2 and 3
#
# Both show the cosine distance of Llama-3.1-8B's states, by token and by block. If one were a part of the other, their ranges would meet. We could not find over what each is averaged. `min` and `max` are over tokens (Fig. 2), `lowest` and `highest` over blocks (Fig. 3).

# %%
ranges = audit_tables.two_figures(
    distances[distances["figure"] == "Fig. 2"], published("ssah_fig3")
)
print(ranges)
ranges.cells

# %% [markdown]
# ## All findings

# %%
found = [
    averages, flows, headline, other_metric, ratio, log_likelihood, start, two_models, floor,
    counts, wide, frozen, tax, chance, rank, order, ranges,
]  # fmt: skip
results.fact("cells_that_follow", follow.T.to_dict())
results.fact("smallest_samples", least)
for one in found:
    results.fact(one.name, {"arithmetic": one.arithmetic, "consequence": one.consequence})
results.save()
tables.text(audit.summary(found))

# %% [markdown]
# None of this decides whether a claim is true; that is what the other pages ask of models. `hd.12` has no criterion in the registry, so the ledger gives no verdict on it:

# %%
print("; ".join(f"{row['id']}: {row['reason']}" for row in results.verdicts()))

# %% [markdown]
# ## What would change our mind
#
# - **A word from the authors.** Most findings would be settled by one sentence: the third mode of attack, the missing label, the denominator, the model, the set of attacks behind the headline.
# - **The appendices of SSAH**, which we could not read: sample sizes, judges, seeds, how distances are averaged. A later version may have mended any of it; what stands here is of the versions named.
# - **Paired counts.** Intervals of differences treat arms as independent. With answers by prompt, differences that look like noise here might not be.
# - **Our readings.** Values read by eye carry an error of .02, ranks from the vector figure about one; what lies within that is not called a finding. Sizes marked *derived* are inferred, and where they are wrong the intervals are.

# %%
provenance.versions()

# %% [markdown]
# Previous: [13 Size](13_size.ipynb). Next: [15 Ledger](15_ledger.ipynb). Map: [00 Index](00_index.ipynb).
