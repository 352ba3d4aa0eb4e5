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
# # The shift of safety tuning is close to affine and spans few dimensions here, and so do the activations themselves
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
# test prompts whose meanings the map never saw, a shift with its constant part removed, a random shift of the same size, and *benign* fine-tunes.
#
# **Decided by** `hd.1`, `hd.2`, `hd.2.centred` and `hd.2.specific` in `data/claims.yaml`, written before any result:
# held-out error at most .25 of the shift and less than the constant's by .05; rank(.9) at most .15 of the width, its peak at
# least twice its early mean (the rise; the registry does not test the fall), DPO above SFT by 1 in late blocks; benign rank above safety rank by 1.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which organism; others than 0 are trained first (16 minutes)

# %%
import numpy as np
import pandas as pd

from lib import behaviour, claims, figures, models, profiles, prompt_sets, prompts
from lib import provenance, residual, residual_tables, tables, worlds
from lib.charts import residual as charts

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
# Half of the prompts are harmful, half are not. Both halves hold every jailbreak style, but the harmless half is plainer (exceptions are plain only),
# so a direction of style can look a little like one of harm. Directions and maps are estimated
# on one set and judged on another: the two have no meaning in common, and no meaning of either was in safety data.

# %%
fit, test = prompt_sets.residual(profile, seed)
groups = {"fit": prompts.meanings(fit), "test": prompts.meanings(test)}
for name, part in (("estimate", fit), ("judge", test)):
    print(f"to {name} on: {len(part)} prompts of {len(prompts.meanings(part))} meanings")
fit.table().groupby(["kind", "style"]).size().unstack(fill_value=0)

# %%
before = {"fit": residual.activations(chat, fit), "test": residual.activations(chat, test)}
shift = {
    name: residual.activations(model, fit) - before["fit"] for name, model in after.items()
}
layers, width = chat.layers, chat.width
before["fit"].shape  # block, prompt, dimension

# %% [markdown]
# Is there a safety shift to describe? This notebook's own rule: only if the tuned model refuses at least half of the harmful prompts, and more
# than `chat` does. Otherwise the parts below are recorded as not testable.

# %%
moved_test = residual.activations(after["SFT"], test)
harmful = test.table()["harmful"]
did = {
    name: behaviour.teacher_forced(model, test)
    for name, model in {"chat": chat, **after}.items()
}
refused = {name: float(outcome["refused"][harmful].mean()) for name, outcome in did.items()}
tuned = {
    name: refused[name] >= 0.5 and refused[name] > refused["chat"]
    for name in ("SFT", "DPO")
}
why = {
    name: f"{name} refuses {refused[name]:.2f} of harmful prompts, chat {refused['chat']:.2f}"
    for name in tuned
}
results.testable(tuned["SFT"], why["SFT"])
pd.Series(refused, name="harmful prompts refused").to_frame().T.round(2)

# %% [markdown]
# How large is the shift? Its norm relative to the activation's, a mean over prompts. A model read twice does not move at all.

# %%
size = {
    name: (moved.norm(dim=2) / before["fit"].norm(dim=2)).mean(1).tolist()
    for name, moved in shift.items()
}
assert (
    residual.ranks(residual.activations(chat, fit) - before["fit"], 0.9, centred=False)
    == [0] * layers
)
pd.DataFrame(size, index=pd.RangeIndex(layers, name="block")).T.round(3)

# %% [markdown]
# ## Is it an affine map?
#
# A map $x \mapsto xW + b$ is fitted by least squares. It has as many unknowns a dimension as there are dimensions, so **with fewer prompts
# than dimensions it passes through every point whatever tuning did**. That is HD's setting (700 prompts, 4,096 dimensions): there the
# fitted map minus the identity *is* the shift, and its error on those same prompts is rounding. Both cases in the last block, the first
# with half as many prompts as dimensions:

# %%
few, target = width // 2, (before["fit"] + shift["SFT"])[-1]
fits = {
    few: residual.fit_affine(before["fit"][-1][:few], target[:few]),
    len(fit): residual.fit_affine(before["fit"][-1], target),
}
own = {
    n: residual.relative_errors(fitted, before["fit"][-1][:few], target[:few])
    for n, fitted in fits.items()
}
pd.DataFrame(
    [
        (n, fits[n].interpolates, float(error.sum() / moved.sum()))
        for n, (error, moved) in own.items()
    ],
    columns=[
        "fitted on",
        "passes through every point",
        "error on prompts it was fitted on",
    ],
).set_index("fitted on")

# %% [markdown]
# So the error must be measured on prompts the map has not seen. Beside it stand the constant shift alone ($x \mapsto x + b$) and, as a
# control, a map fitted after the activations after tuning were shuffled among prompts. An error of 1 is as bad as predicting no movement.
# The shuffled map predicts roughly the mean activation, so how bad it is depends on how small the shift is: a loose control. The constant is the one to beat.

# %%
mixed = np.random.default_rng(seed).permutation(len(fit))
errors = residual.map_errors(
    before["fit"], before["fit"] + shift["SFT"], before["test"], moved_test, mixed
)
curves = residual_tables.error_curves(
    errors, groups["test"], seed, settings.measure.bootstrap
)
curves.pivot(index="map", columns="block", values="error").round(3)

# %% [markdown]
# `hd.1` is decided in the worst block after the first, and the gain over the constant shift in the same block.

# %%
affine = curves[(curves["map"] == "affine") & (curves["block"] > 0)]
worst = int(affine.loc[affine["error"].idxmax(), "block"])
options = {"groups": groups["test"], "seed": seed, "resamples": settings.measure.bootstrap}
error = residual_tables.relative_error(errors, "affine", worst, **options)
control = residual_tables.relative_error(errors, "shuffled", worst, **options)
gain = residual_tables.gain_over_constant(errors, worst, **options)
results.part(
    "hd.1.error",
    error.mean,
    len(test),
    interval=error,
    controls=[control.mean],
    detail={"block": worst},
)
results.part("hd.1.bias", gain.mean, len(test), interval=gain, detail={"block": worst})

# %% [markdown]
# The published table is drawn as the error relative to the shift, under the reading that its error is a mean over 4,096 elements while its
# norms are sums (the paper does not say; under the other reading every point lies 4,096 times lower). Its last column, labelled as relative
# to the activation, equals the error relative to the shift in every row.

# %%
table4 = figures.published("hd_table4").assign(
    relative=lambda t: t["mse"] * t["width"] / t["norm_shift"]
)
assert np.allclose(table4["mse"] / table4["norm_shift"], table4["printed_ratio"], rtol=0.01)
figure = charts.affine_error(table4, curves, layers, claims.part("hd.1.error").rule.bound)
caption = (
    "Error of the affine map relative to the shift, by depth. Left, published: up to "
    f"{table4['relative'].max():.2f}. Right, measured on prompts with other meanings: in block "
    f"{worst} the affine map leaves {error.mean:.2f}, the constant shift "
    f"{error.mean + gain.mean:.2f}, the shuffled control {control.mean:.2f}."
)
data = figures.panels(published=table4, measured=curves)
figures.save(figure, "07_residual_space.hd.1", data, caption, profile, seed)

# %% [markdown]
# ## How many dimensions?
#
# The *effective rank* $k(\tau)$ is the number of components that hold a share $\tau$ of the shift's squared length. HD does not centre the
# shift, so one constant offset common to all prompts counts as one component and can hold most of the length; centring removes it and asks
# what *varies* between prompts. The random control replaces each prompt's shift by a random direction of the same length.

# %%
share, resamples = 0.9, settings.measure.spectra
drawn = shift | {"random": residual.random_shift(shift["SFT"], seed)}
kinds = residual_tables.KINDS  # uncentred, centred
ranks = {
    kind: {name: residual.ranks(moved, share, centred) for name, moved in drawn.items()}
    for kind, centred in kinds.items()
}
draws = {
    kind: residual_tables.resampled_ranks(
        shift, groups["fit"], share, centred, resamples, seed
    )
    for kind, centred in kinds.items()
}
pd.concat({kind: pd.DataFrame(found).T for kind, found in ranks.items()}).rename_axis(
    columns="block"
)

# %%
published = figures.published("hd_fig2_rank").query("hidden_state > 0")
curves = residual_tables.rank_curves(ranks, draws)
bound = claims.part("hd.2.low").rule.bound
figure = charts.rank_by_depth(published, curves, layers, width, bound)
top = published[published["tau"] == share].groupby("series")["rank"].max()
caption = (
    "Effective rank at 90 % of the shift, as a share of the width, by depth. Left, published: "
    f"SFT up to {top['SSFT']}, DPO up to {top['DPO']} of 4,096. Middle and right, measured: SFT "
    f"at most {max(ranks['uncentred']['SFT'])} uncentred and {max(ranks['centred']['SFT'])} "
    f"centred of {width}, a random shift at least {min(ranks['centred']['random'])}."
)
data = figures.panels(published=published, measured=curves)
figures.save(figure, "07_residual_space.hd.2", data, caption, profile, seed)

# %% [markdown]
# HD draws five values of $\tau$. All of them, by block:

# %%
by_share = pd.concat(
    {name: residual.ranks_by_share(moved) for name, moved in shift.items()}, names=["model"]
)
by_share.unstack("model").swaplevel(axis=1).sort_index(axis=1).reindex(
    columns=list(shift), level=0
)

# %% [markdown]
# A random shift does not fill the width, because 90 % of an even spread needs about that share of the dimensions. DPO moves activations further than SFT, and
# their lengths are not matched.
#
# The parts of `hd.2` follow from the ranks at .9. Intervals are over prompts (resampled by meaning); the ledger's are over independently trained models.

# %%
decided = residual_tables.rank_parts(ranks, draws, width, len(fit))
for part, interval in decided.items():
    kind = "centred" if "centred" in part else "uncentred"
    results.testable(
        tuned["SFT"] and (tuned["DPO"] or part != "hd.2.dpo"),
        why["DPO"] if part == "hd.2.dpo" else why["SFT"],
    )
    random = [max(ranks[kind]["random"]) / width] if part.endswith("low") else []
    results.part(
        part,
        interval.mean,
        len(fit),
        interval=interval,
        controls=random,
        detail=ranks[kind],
    )

# %% [markdown]
# ### Is that special to safety?
#
# Two comparisons. The activations themselves: are they of higher rank than the shift? And a benign fine-tune whose shift is as long as the
# safety shift: is its rank higher? Rank does not depend on length, but how far training went might matter, so the benign model is taken
# at the point on the line between `chat` and `errands`, in weight space, where its mean squared shift equals that of SFT. If even `errands` moves
# less, there is no such point, and the part is not testable.
#
# Errands hold no harmful request, yet they erase refusal, so this compares adding refusal with removing it. `ledgers`, which leaves refusal in place, is
# shown as well; it decides nothing.

# %%
wanted = float(shift["SFT"].double().square().sum(2).mean())
matched, step = residual.match_norm(chat, after["benign"], fit, wanted) or (None, None)
reason = "the benign fine-tune moves less than safety tuning, even at its end"
results.testable(tuned["SFT"] and step is not None, why["SFT"] if step else reason)
print(f"step from chat towards errands: {step:.3f}" if step else reason)

# %%
benign = shift["benign"] if matched is None else matched
ledgers = residual.activations(models.load(profile, "ledgers", seed), fit) - before["fit"]
specific = {
    "SFT": shift["SFT"],
    "benign": benign,
    "ledgers": ledgers,
    "activations": before["fit"],
}
centred = {
    name: residual.ranks(moved, share, centred=True) for name, moved in specific.items()
}
again = residual_tables.resampled_ranks(
    specific, groups["fit"], share, True, resamples, seed
)
gap = residual_tables.specific_part(centred, again, len(fit))
detail = {"step": step, **centred}
results.part("hd.2.specific.benign", gap.mean, len(fit), interval=gap, detail=detail)

# %%
curves = residual_tables.rank_curves({"centred": centred}, {"centred": again})
figure = charts.specific_rank(curves, layers, width)
caption = (
    "Centred rank at 90 %, from the first block to the last: the safety shift "
    f"{centred['SFT']}, errands as long {centred['benign']}, ledgers {centred['ledgers']}, the "
    f"activations themselves {centred['activations']}. Bands: resampled meanings, which lie slightly low."
)
figures.save(figure, "07_residual_space.hd.2.specific", curves, caption, profile, seed)

# %% [markdown]
# ## Looking at it
#
# Prompts on the first two components of the SFT shift in a late block, before tuning (top) and after (bottom). The axes are the same in
# every panel, and the prompts are those the components were not estimated on. Look for two movements: along C1, which all prompts share, and along C2,
# where harmful prompts in a style leave the answered ones and join the refused.

# %%
block = residual.last_third(layers)[0]
axes = residual.space(shift["SFT"][block], centred=False)
seen = {"before tuning": ("chat", before["test"]), "after tuning": ("SFT", moved_test)}
points = pd.concat(
    [
        residual.map_points(axes, states[block], test, did[model]).assign(model=name)
        for name, (model, states) in seen.items()
    ]
)
figure = charts.prompt_map(points, block, worlds.of(profile, seed).styles)
caption = (
    f"Prompts on the first two components of the shift in block {block}, before and after "
    "tuning, coloured by kind, style and what the model does with them."
)
figures.save(figure, "07_residual_space.map", points, caption, profile, seed)

# %% [markdown]
# ## Verdict
#
# From this one model, with intervals over prompts. What decides is the ledger, over independently trained models.

# %%
results.fact("relative_size_of_shift", size)
results.fact(
    "ranks_by_share",
    {
        f"{name}, {kind}, {tau}": found
        for (name, kind, tau), found in by_share.T.to_dict("list").items()
    },
)
results.save()
tables.text(claims.verdict_table(results.verdicts()).set_index("part"))

# %% [markdown]
# ## What would change our mind
#
# - **Width and variety.** 128 dimensions, one rule of harm, eight fixed styles: there is less to vary than in an 8B model on web prompts, so a low rank is expected here more than there.
#   Ranks are compared as shares of the width; a model with several unrelated kinds of harm would be the harder test.
# - **What a low rank proves.** Little by itself, if harmless fine-tuning gives the same: that is why `hd.2.specific` is the part to watch.
# - **Affine is a statement about other prompts.** On the prompts it was fitted on, a map with fewer prompts than dimensions cannot fail. HD's Table 4 gives
#   a test error and is not that trivial; how its test prompts were chosen is not said.
# - **The bar of `hd.1` is low** where a constant alone meets it (the orange line): there, a small error does not show that the map is more than an offset.
#
# Choices the paper leaves open and ours: the position is the last prompt token; the last block is read before the final norm (the released code
# joins a state after it to the curve); K = 40 examples of each style in safety tuning; prompts carry styles on the benign side too, while HD's benign
# prompts carry none.

# %%
provenance.versions()

# %% [markdown]
# Previous: [06 Alignment budget](06_alignment_budget.ipynb). Next: [08 Dominant direction](08_dominant_direction.ipynb). Map: [00 Index](00_index.ipynb).
