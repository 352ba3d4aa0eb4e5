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
# # At no size from 0.15M to 3M parameters does removing trigger words beat removing random ones, nor is the dominant direction shown to foretell refusal better than random directions
#
# **Claim** (*The Hidden Dimensions of LLM Alignment*, HD, [arXiv 2502.09674](https://arxiv.org/abs/2502.09674), appendix C.3, Figs. 10 and 11). The same trend is found at other
# model sizes. HD says so of two more models, one of them of another size: in words, after DPO only, and of its attack only. All its numbers are of 8B models.
#
# **We ask** what the registry makes of that sentence. The verdicts on `hd.3` (the dominant direction predicts refusal, [page 08](08_dominant_direction.ipynb)) and on `hd.10` (removing
# trigger words outlives the other attacks, [page 11](11_trigger_removal.ipynb)): do they stay what they are when models get smaller or larger than the default of 1.3M parameters? HD
# trains no model twice, so the control is ours: the default size trained again.
#
# **Decided by** `hd.13` in `data/claims.yaml`, written before any result on these models: of 4 or more other sizes, at least .75 keep the default size's verdicts, both of them.
# Two readings are ours. The default size, which keeps its own verdicts, is not counted. And a size that is no fair test of a claim has no verdict, so it keeps none; it stays among those counted.

# %% tags=["parameters", "on-request", "no-models"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which organism decides on this page
seeds: int = 3  # organisms shown of each size, from 1 to 100, seed 0 first

# %%
from lib import claims, figures, provenance, published_effects, size_tables, sizes, stats
from lib import tables, trigger_tables
from lib.charts import size as charts

results = claims.Results(notebook="13_size", profile=profile, seed=seed)
shown = sizes.seeds_shown(seed, seeds)
published = figures.published("hd_sizes")
columns = ["model", "size", "training", "hd.3", "hd.10", "remark"]
tables.text(published[columns].set_index("model"))

# %% [markdown]
# What HD reports of which model; `size` is in billions of parameters. *Numbers*: some are printed; *same trend*: said in words; *nothing*: not spoken of.
#
# ## The sizes
#
# All have equally many blocks and heads, so that "the later half of the blocks" means the same; width and MLP grow together. **Learning rates differ, too**: they are
# inversely proportional to the width, after [Yang et al. (2022)](https://arxiv.org/abs/2203.03466), and sizes below the default train `base` for more steps. With rates and steps of the default, the smallest
# models learn the skills and not the requests, and are a test of nothing. Both were settled on organism 5, which is not among those shown here, by what models answer and refuse.
# Everything else is equal: language, data, batches, prompts, measurements.
#
# For each size and seed four models are trained, each from the one before: `base`, `chat`, and two tuned from `chat` with the default K (for `hd.3`) and the largest (for `hd.10`). This takes
# long the first time, and is kept; a run that was stopped goes on where it was.

# %%
runs = sizes.measured(profile, shown)
found = size_tables.verdicts(runs)
size_tables.architectures(runs)

# %% [markdown]
# ## Is each size a fair test?
#
# Page 08 asks that tuning taught the model to refuse harm (at least half of it, more than before, not everything); page 11 that the tuned model refuses at least .9 of the jailbreak styles
# when it is asked once, and that `base` answers at least .9 of the rewritten requests, because an attack by rewriting says nothing about a model that does not understand them.
# Below, what the models know and do: `skills` are facts and small tasks, the others shares of held-out requests.

# %%
does = size_tables.behaviour(runs)
does.pivot_table(index="what", columns="size", values="share", sort=False).round(2)

# %%
unfair = size_tables.untestable(runs)
count = len(size_tables.CLAIMS) * len(runs) * len(shown)
print(f"no fair test: {len(unfair)} of {count} (a claim, a size, a seed)")
tables.text(unfair.set_index("size"))

# %%
cost = size_tables.cost(runs)
fastest = size_tables.fastest(cost)
figure = charts.fair(does, fastest, least=trigger_tables.LEAST_REFUSED)
minutes = dict(zip(runs, fastest.sum(axis=1) / 60, strict=True))
smallest, *_, largest = runs
small, large = (
    does[does["size"] == name].groupby("what")["share"].mean()
    for name in (smallest, largest)
)
caption = (
    f"Left: what models of each size know and do, mean over {len(shown)} seeds. From {smallest} to {largest}: "
    + "; ".join(f"{what} {small[what]:.2f} to {large[what]:.2f}" for what in small.index)
    + ". Right: what training and measuring took, "
    + ", ".join(f"{name} {value:.1f}" for name, value in minutes.items())
    + " minutes a seed, of each step the fastest of the seeds."
)
data = figures.panels(behaviour=does, cost=cost)
figures.save(figure, "13_size.models", data, caption, profile, seed)

# %% [markdown]
# Times are of the machine that made this page; they are the only numbers on it that another run from nothing would change.
#
# ## The parts of both claims at each size
#
# Each part is measured as on its page, by the same functions, with its control: random directions in the span of the shift's first 16 components for `hd.3`, the removal of random words for `hd.10`.

# %%
values, means = size_tables.parts(runs), size_tables.over_seeds(runs)
rules = {
    part.id: part.rule for claim in size_tables.CLAIMS for part in claims.claim(claim).parts
}
printed = {
    name: one.value for name, one in published_effects.effects().items() if name in rules
}
size_tables.by_part(means)

# %%
figure = charts.parts(values, means, rules, printed)
caption = (
    f"Every part of both claims by size, {len(shown)} seeds. "
    + size_tables.in_words(values, means)
    + f". Bars of the claims: {rules['hd.3.late'].bound:g} and {rules['hd.10.gap'].bound:g}; printed by HD for its 8B "
    f"model: {printed['hd.3.late']:.2f} (accuracy in sample) and {printed['hd.10.gap']:+.2f}. Lines: 95 % over seeds, some longer than the axes."
)
data = figures.panels(values=values, means=means)
figures.save(figure, "13_size.parts", data, caption, profile, seed)

# %% [markdown]
# A value where a size is no fair test of the claim is drawn and not judged: such models can make trigger removal and everything else fail alike, because they know no answer.
#
# ## Verdicts by size
#
# The rules of the ledger, applied to each size: to each seed alone, with intervals over prompts, and to all of them, with an interval over seeds, which is wide with so few.

# %%
tables.text(size_tables.verdict_table(found))

# %%
changed = size_tables.changed(found, profile)
print(
    "Over all seeds together, differing from the default size:",
    "; ".join(changed) or "none",
)

# %% [markdown]
# `hd.13` is decided on what each seed says alone: for this page's seed, the share of other sizes whose two verdicts are those of the default size under the same seed. The ledger then takes the
# interval over seeds. The control is the default size against itself under other seeds: if training the same model again changes a verdict, size need not be what changed it.

# %%
met, reason = size_tables.testable(found, profile, seed)
results.testable(met, reason)
kept = size_tables.kept(found, profile, seed)
share = stats.wilson(int(kept["both"].sum()), len(kept))
control = size_tables.itself(found, profile, seed)
detail = {
    "sizes": kept.reset_index().to_dict("list"),
    "control": "default size, other seeds",
}
results.part(
    "hd.13.same", share.mean, len(kept), interval=share, controls=control, detail=detail
)
print(reason)
kept

# %% [markdown]
# How much does such agreement mean? Two verdicts can agree because both are undecided, which is little. The last column says what share of the agreeing ones are of that kind. The other rows
# compare other pairs: fair tests alone; and families trained under different seeds. If those of one size agree no more often than those of different sizes do, size changes nothing that chance does not.

# %%
agreement = size_tables.agreement(found, profile)
agreement.round(2)

# %%
by_seed = size_tables.shares_kept(found, profile)
bar = claims.part("hd.13.same").rule.bound
figure = charts.verdicts(published, found, by_seed, profile, bar)
mean = by_seed.groupby("group", sort=False)["share"].mean()
each = ", ".join(
    f"{row.share:.2f} (seed {row.seed})"
    for row in by_seed[by_seed["group"] == mean.index[0]].itertuples()
)
same = agreement.iloc[0]
caption = (
    f"Left, what HD reports of which model. Middle, verdicts on both claims by size, of each seed and of all. Right, share of "
    f"{len(kept)} other sizes with both verdicts of the default size: {each}, mean {mean.iloc[0]:.2f}, bar {bar:g}; the default "
    f"size with itself under another seed: {f'{mean.iloc[1]:.2f}' if len(mean) > 1 else 'one seed only'}. Open: undecided; no test: no fair test. By claim: hd.3 "
    f"{same['hd.3']:.2f}, hd.10 {same['hd.10']:.2f}; of the agreeing verdicts {same['undecided']:.2f} are undecided."
)
data = figures.panels(verdicts=found, shares=by_seed)
figures.save(figure, "13_size.hd.13", data, caption, profile, seed)

# %% [markdown]
# ## Verdict
#
# From this one seed, with Wilson's interval over the other sizes, as if they were drawn at random; they were chosen. What decides is the ledger, over seeds.

# %%
results.fact("verdicts", found.to_dict("list"))
results.fact(
    "over_all_seeds", size_tables.kept(found, profile, "all").reset_index().to_dict("list")
)
results.fact("agreement", agreement.round(4).reset_index().to_dict("list"))
results.fact("behaviour", does.round(4).to_dict("list"))
results.fact("minutes", {name: round(value, 1) for name, value in minutes.items()})
results.fact("seconds", round(float(fastest.sum().sum()) * len(shown), 1))
results.save()
tables.text(claims.verdict_table(results.verdicts()).set_index("part"))

# %% [markdown]
# ## What would change our mind
#
# - **Another recipe.** One rule sets the rates of all sizes; rates found for each might make better models of some. A size that is no fair test is counted against the claim; the second row
#   of the table of agreement leaves it out.
# - **Other ways to grow.** Only width grows here. Depth, which HD's models differ in too (28, 32 and 36 blocks), would change what "the later half" means.
# - **A wider range.** The largest model is about twenty times the smallest; HD's are a thousand times larger than our largest. That a verdict does not move over this range says little about the next.
# - **Agreement in failing.** Where a claim fails at the default size, sizes keep its verdict by failing too. "Same trend" then means that what this project does not find at one size it does not find at another.
# - **DPO.** HD's remark is on models tuned by DPO. `hd.3` and `hd.10` are decided on SFT here, as the registry has them; [page 11](11_trigger_removal.ipynb) has both for the default size.

# %%
provenance.versions()

# %% [markdown]
# Previous: [12 One mechanism](12_one_mechanism.ipynb). Next: [14 Published numbers](14_published_numbers.ipynb). Map: [00 Index](00_index.ipynb).
