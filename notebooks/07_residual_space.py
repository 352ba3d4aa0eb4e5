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
# # Safety tuning moves activations along few directions
#
# **Claims** (*The Hidden Dimensions of LLM Alignment*, HD, [arXiv 2502.09674](https://arxiv.org/abs/2502.09674), sections 3-4, Fig. 2, Table 4).
# Safety tuning moves the activations of a model by an affine map with low error, and the movement spans few dimensions: with
# supervised fine-tuning (SFT) the rank rises and falls with depth, with DPO it is larger in late blocks.
#
# | HD reports (8B model, 4,096 dimensions, 700 prompts) | |
# |---|---|
# | error of the affine map, six layers (Table 4) | 4e-14 to 2e-2 mean squared error, no interval |
# | components that hold 90 % of the shift, SFT (Fig. 2) | 1 up to layer 11, 72 at layer 20, 4 at layer 32 |
# | the same, DPO | rising, 139 at layer 32 |
#
# **We measure** the same on a 1.3M-parameter model trained here, `chat` before and `tuned` after safety tuning, and add what the paper lacks:
# prompts the map was not fitted on, a shift with its constant part removed, a random shift of the same size, and a *benign* fine-tune.
#
# **Decided by** `hd.1`, `hd.2`, `hd.2.centred` and `hd.2.specific` in `data/claims.yaml`, written before any result:
# held-out error at most .25 of the shift, rank(.9) at most .15 of the width, benign rank above safety rank by at least 1.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which independently trained organism

# %%
import numpy as np
import pandas as pd

from lib import behaviour, charts, claims, figures, models, profiles, prompt_sets, provenance, residual, stats

settings = profiles.load(profile)
results = claims.Results(notebook="07_residual_space", profile=profile, seed=seed)

# %% [markdown]
# ## The shift
#
# A *shift* is what tuning adds to the residual stream at the last token of a prompt, the position that predicts the first word of the
# answer. `chat` is the model before. After it come three models: tuned by SFT, tuned by DPO, and fine-tuned on harmless errands.

# %%
chat = models.load(profile, "chat", seed)
roles = {"SFT": "tuned", "DPO": f"dpo-{settings.default_shots}", "benign": "errands"}
after = {name: models.load(profile, role, seed) for name, role in roles.items()}
for model in after.values():
    residual.check_pair(chat, model)

# %% [markdown]
# Half of the prompts are harmful, half are not; both halves come plain and in every jailbreak style. Directions and maps are estimated
# on one set and judged on another; no text stands in both, and no meaning of either was in safety data.

# %%
fit, test = prompt_sets.residual(profile, seed)
fit.table().groupby(["kind", "style"]).size().unstack(fill_value=0)

# %%
before = {"fit": residual.activations(chat, fit), "test": residual.activations(chat, test)}
shift = {name: residual.activations(model, fit) - before["fit"] for name, model in after.items()}
layers, width = chat.layers, chat.width
before["fit"].shape  # block, prompt, dimension

# %% [markdown]
# Is there a safety shift to describe? Only if tuning made the model refuse: at least half of the harmful prompts, and more than `chat` does.
# Otherwise the parts below are recorded as not testable.

# %%
moved_test = residual.activations(after["SFT"], test)
did = {model.name: behaviour.teacher_forced(model, test) for model in (chat, after["SFT"])}
refused = {name: float(outcome["refused"][test.table()["harmful"]].mean()) for name, outcome in did.items()}
tuned = refused[after["SFT"].name]
results.testable(tuned >= max(0.5, refused["chat"]), f"tuned refuses {tuned:.2f} of harmful prompts, chat {refused['chat']:.2f}")
pd.Series(refused, name="harmful prompts refused").to_frame().T.round(2)

# %% [markdown]
# How large is the shift? Its norm relative to the activation's, a mean over prompts. A model against itself does not move at all.

# %%
size = {name: (moved.norm(dim=2) / before["fit"].norm(dim=2)).mean(1).tolist() for name, moved in shift.items()}
assert residual.ranks(before["fit"] - before["fit"], 0.9, centred=False) == [0] * layers
pd.DataFrame(size, index=pd.RangeIndex(layers, name="block")).T.round(3)

# %% [markdown]
# ## Is it an affine map?
#
# A map $x \mapsto xW + b$ is fitted by least squares. It has as many unknowns a dimension as there are dimensions, so **with fewer prompts
# than dimensions it passes through every point whatever tuning did**. That is HD's setting (700 prompts, 4,096 dimensions): there the
# fitted map minus the identity *is* the shift, and its error on the same prompts is rounding. Here there are more prompts than dimensions,
# and below both cases are run, the first on as many prompts as half the width.

# %%
few = width // 2
tight = residual.fit_affine(before["fit"][-1][:few], (before["fit"] + shift["SFT"])[-1][:few])
loose = residual.fit_affine(before["fit"][-1], (before["fit"] + shift["SFT"])[-1])
own = {name: residual.relative_errors(fitted, before["fit"][-1][:few], (before["fit"] + shift["SFT"])[-1][:few])
       for name, fitted in {f"fitted on {few} prompts": tight, f"fitted on {len(fit)} prompts": loose}.items()}
assert tight.interpolates
assert not loose.interpolates
pd.Series({name: float(error.sum() / moved.sum()) for name, (error, moved) in own.items()}, name="error on fitted prompts").to_frame()

# %% [markdown]
# So the error must be measured on prompts the map has not seen. Beside it stand the constant shift alone ($x \mapsto x + b$) and, as a
# control, a map fitted after the answers were shuffled among prompts. An error of 1 is as bad as predicting no movement.

# %%
mixed = np.random.default_rng(seed).permutation(len(fit))
errors = residual.map_errors(before["fit"], before["fit"] + shift["SFT"], before["test"], moved_test, mixed)
relative = {name: (error.sum(1) / moved.sum(1)).numpy() for name, (error, moved) in errors.items()}
pd.DataFrame(relative, index=pd.RangeIndex(layers, name="block")).T.round(3)

# %%
worst = 1 + int(np.argmax(relative["affine"][1:])) if layers > 1 else 0
error, moved = (values[worst].numpy() for values in errors["affine"])
offset = errors["constant"][0][worst].numpy()
interval = stats.bootstrap(lambda e, m: e.sum() / m.sum(), error, moved, seed=seed, resamples=settings.measure.bootstrap)
gain = stats.bootstrap(lambda e, o, m: (o.sum() - e.sum()) / m.sum(), error, offset, moved, seed=seed, resamples=settings.measure.bootstrap)
results.part("hd.1.error", interval.mean, len(test), interval=interval, controls=[relative["shuffled"][worst]], detail={"block": worst})
results.part("hd.1.bias", gain.mean, len(test), interval=gain, detail={"block": worst, "by_block": relative})

# %% [markdown]
# The published table is drawn as the error relative to the shift, under the reading that its error is a mean over 4,096 elements while its
# norms are sums (the paper does not say; under the other reading every point lies 4,096 times lower). Its last column, labelled as relative to the activation, equals
# the error relative to the shift in every row.

# %%
table4 = figures.published("hd_table4")
table4["relative"] = table4["mse"] * 4096 / table4["norm_shift"]
assert np.allclose(table4["mse"] / table4["norm_shift"], table4["printed_ratio"], rtol=0.01)
ours = residual.error_curves(errors, seed, settings.measure.bootstrap)
figure = charts.affine_error(table4, ours, layers, bound=0.25)
figures.save(figure, "07_residual_space.hd.1", ours, f"Error of the affine map relative to the shift by depth. Published: at most {table4['relative'].max():.2f}. "
             f"Measured on held-out prompts: affine at most {relative['affine'][1:].max():.2f}, constant shift {relative['constant'][1:].max():.2f}, shuffled above 1.", profile, seed)

# %% [markdown]
# ## How many dimensions?
#
# The *effective rank* $k(\tau)$ is the number of components that hold a share $\tau$ of the shift's squared length. HD does not centre the
# shift, so one constant offset common to all prompts counts as one component and can hold most of the length; centring removes it and asks
# what *varies* between prompts. The random control replaces each prompt's shift by a random direction of the same length.

# %%
share = 0.9
control = {"random": residual.random_shift(shift["SFT"], seed)}
ranks = {centred: {name: residual.ranks(moved, share, centred) for name, moved in (shift | control).items()} for centred in (False, True)}
draws = {centred: residual.resampled_ranks(shift, share, centred, settings.measure.spectra, seed) for centred in (False, True)}
pd.concat({("centred" if centred else "as published"): pd.DataFrame(found).T for centred, found in ranks.items()})

# %%
published = figures.published("hd_fig2_rank").query("tau == 0.9 and hidden_state > 0")
curves = residual.rank_curves(ranks, draws)
figure = charts.rank_by_depth(published, curves, layers, width, bound=0.15)
figures.save(figure, "07_residual_space.hd.2", curves, "Effective rank at 90 % of the shift by depth. Left: published, 4,096 dimensions, single digits until mid-depth, "
             f"then up to 72 (SFT) and 143 (DPO). Middle and right: measured, {width} dimensions, uncentred and centred, at most {max(ranks[True]['SFT'])} for SFT, far below the random shift.", profile, seed)

# %% [markdown]
# HD draws five values of $\tau$. All of them for SFT, by block:

# %%
by_share = residual.ranks_by_share(shift["SFT"])
by_share

# %% [markdown]
# The parts of `hd.2` follow from these ranks. Intervals are over prompts; the ledger's are over independently trained models.

# %%
early, late = list(residual.first_third(layers)), list(residual.last_third(layers))
low = stats.from_draws(max(ranks[False]["SFT"]) / width, draws[False]["SFT"].max(1) / width, len(fit))
results.part("hd.2.low", low.mean, len(fit), interval=low, controls=[max(ranks[False]["random"]) / width], detail=ranks[False])
shape = stats.from_draws(max(ranks[False]["SFT"]) / np.mean(ranks[False]["SFT"][: len(early)]),
                         draws[False]["SFT"].max(1) / draws[False]["SFT"][:, early].mean(1), len(fit))
results.part("hd.2.shape", shape.mean, len(fit), interval=shape, detail={"first_third": early})
gap = stats.from_draws(np.mean([ranks[False]["DPO"][b] - ranks[False]["SFT"][b] for b in late]),
                       (draws[False]["DPO"] - draws[False]["SFT"])[:, late].mean(1), len(fit))
results.part("hd.2.dpo", gap.mean, len(fit), interval=gap, detail={"last_third": late})

# %%
low = stats.from_draws(max(ranks[True]["SFT"]) / width, draws[True]["SFT"].max(1) / width, len(fit))
results.part("hd.2.centred.low", low.mean, len(fit), interval=low, controls=[max(ranks[True]["random"]) / width], detail=ranks[True])

# %% [markdown]
# ### Is that special to safety?
#
# Two comparisons. The activations themselves: are they of higher rank than the shift? And a benign fine-tune whose shift is as long as the
# safety shift: is its rank higher? Rank does not depend on length, but how far training went might matter, so the benign model is taken
# at the point between `chat` and `errands` where its mean squared shift equals that of SFT.

# %%
target = float(shift["SFT"].double().square().sum(2).mean())
matched, alpha = residual.match_norm(chat, after["benign"], fit, target)
specific = {"SFT": shift["SFT"], "benign": matched}
centred = {name: residual.ranks(moved, share, centred=True) for name, moved in specific.items()}
again = residual.resampled_ranks(specific, share, True, settings.measure.spectra, seed)
own_rank = residual.ranks(before["fit"], share, centred=True)
difference = stats.from_draws(np.mean(np.subtract(centred["benign"], centred["SFT"])), (again["benign"] - again["SFT"]).mean(1), len(fit))
results.part("hd.2.specific.benign", difference.mean, len(fit), interval=difference,
             detail={"alpha": alpha, "benign": centred["benign"], "SFT": centred["SFT"], "activations": own_rank})
pd.DataFrame({**centred, "activations": own_rank}, index=pd.RangeIndex(layers, name="block")).T

# %% [markdown]
# ## Looking at it
#
# Prompts on the first two components of the SFT shift in a late block, before tuning (top) and after (bottom). The axes are the same in
# every panel, and the prompts are those the components were not estimated on.

# %%
block = late[0]
axes = residual.space(shift["SFT"][block], centred=False)
seen = {"before tuning": (chat, before["test"]), "after tuning": (after["SFT"], moved_test)}
points = pd.concat([residual.map_points(axes, states[block], test, did[model.name]).assign(model=name)
                    for name, (model, states) in seen.items()])
figure = charts.prompt_map(points, block)
figures.save(figure, "07_residual_space.map", points, f"Prompts on the first two components of the shift in block {block}, before and after tuning, coloured by kind, "
             "style and what the model does with them.", profile, seed)

# %% [markdown]
# ## Verdict
#
# From this one model, with intervals over prompts. What decides is the ledger, over independently trained models.

# %%
results.fact("relative_size_of_shift", size)
results.fact("ranks_by_share", {f"{kind}, {tau}": ranks for (kind, tau), ranks in by_share.T.to_dict("list").items()})
results.save()
claims.verdict_table(results.verdicts())

# %% [markdown]
# ## What would change our mind
#
# - **Width and variety.** 128 dimensions, one rule of harm, eight fixed styles: there is less to vary than in an 8B model on web prompts, so a low rank is expected here more than there.
#   Ranks are compared as shares of the width; a model with several unrelated kinds of harm would be the harder test.
# - **What a low rank proves.** Little by itself, if harmless fine-tuning gives the same: that is why `hd.2.specific` is the part to watch.
# - **Affine is a statement about held-out prompts.** With fewer prompts than dimensions, as published, it cannot fail.
#
# Choices the paper leaves open and ours: the position is the last prompt token; the last block is read before the final norm (the released code
# joins a state after it to the curve); K = 40 examples of each style in safety tuning; prompts carry styles on the benign side too, while HD's benign
# prompts carry none.

# %%
provenance.versions()

# %% [markdown]
# Previous: [01 The organism](01_organism.ipynb). Map: [00 Index](00_index.ipynb).
