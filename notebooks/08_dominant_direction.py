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
# # Models disagree about the dominant direction: in some it stays close to the shift that all prompts share, and removing it leaves refusal as it was; in others it turns to refusal in the last blocks, and removing it gives full compliance
#
# **Claims** (*The Hidden Dimensions of LLM Alignment*, HD, [arXiv 2502.09674](https://arxiv.org/abs/2502.09674), section 4, Fig. 3).
# The *shift* is what safety tuning adds to a model's activations; its singular vectors are directions C1, C2, ..., most energy first. HD says that the
# dominant one, C1, predicts whether a prompt is refused, from a middle layer on; that several orthogonal directions do; and that a trained probe is their aggregate.
#
# | HD reports (8B model, 32 layers, 700 prompts) | |
# |---|---|
# | accuracy of C1 | no better than chance (.58) up to layer 9, .95 at layer 14, up to .989 |
# | accuracy of C2 | .96 at layer 14, never below .96 up to layer 31 |
# | cosine of C1 with the probe | .003 to .194 (read by eye) |
#
# **We measure** the same on a 1.3M-parameter model trained here, by HD's rule and by one HD lacks: directions estimated on some prompts and judged on prompts
# with other meanings, for the refusals of the *tuned* model, beside random directions and shuffled labels. Then we ask what the paper's figure cannot say: does the
# model refuse *because of* what a direction holds?
#
# **Decided by** `hd.3` and `hd.4` in `data/claims.yaml`, written before any result on these models (prototypes on another language, one seed, had been seen): AUC of C1 at least .95 in the later half of the blocks and above random
# directions, at most .85 in the first third; C2 saves at least .02 nats beside C1, beyond a random direction; cosine of the probe with C1 at most .5.
#
# The page shows one model at a time. The title speaks of all that were run; [15 Ledger](15_ledger.ipynb) puts them side by side.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which independently trained family of models; others than 0 are trained first (16 minutes)

# %%
import numpy as np
import pandas as pd

from lib import (
    claims,
    direction_effects,
    direction_tables,
    directions,
    figures,
    models,
    profiles,
    prompt_sets,
    prompts,
    provenance,
    residual,
    second_direction,
    stats,
    tables,
)
from lib.charts import directions as charts

# %%
settings = profiles.load(profile)
measure = settings.measure
results = claims.Results(notebook="08_dominant_direction", profile=profile, seed=seed)

# %% [markdown]
# ## Prompts, models, labels
#
# `chat` is the model before safety tuning, `SFT` and `DPO` two models after it. Each is read at the last token of a prompt, after every block, and asked whether it
# refuses. Directions are estimated on the *fit* prompts and judged on the *test* prompts; the two have no meaning in common.

# %%
fit, test = prompt_sets.residual(profile, seed)
groups = {"fit": prompts.meanings(fit), "test": prompts.meanings(test)}
roles = {"chat": "chat", "SFT": "tuned", "DPO": f"dpo-{settings.default_shots}"}
loaded = {name: models.load(profile, role, seed) for name, role in roles.items()}
for model in loaded.values():
    residual.check_pair(loaded["chat"], model)
seen = {name: direction_tables.read(model, fit, test) for name, model in loaded.items()}
layers = loaded["chat"].layers
early, late = residual.first_third(layers), residual.later_half(layers)

# %% [markdown]
# The claims need a model that learned to refuse. This notebook's own rule, as in notebook 07: the tuned model refuses at least half of the harmful test
# prompts and more than `chat` does; and it must not do the same with every prompt, because then nothing can be predicted. Otherwise all parts are recorded as not testable, and
# every AUC below reads .5.

# %%
harmful = test.table()["harmful"]
met, why = direction_tables.testable(seen["chat"], seen["SFT"], harmful)
results.testable(met, why)
print(f"{why}; {len(test)} test prompts of {len(groups['test'])} meanings")
shares = {
    name: {
        "fit": one.fit.refused.mean(),
        "test": one.test.refused.mean(),
        "test, harmful": one.test.refused[harmful].mean(),
    }
    for name, one in seen.items()
}
pd.DataFrame(shares).round(2).rename_axis("share of prompts refused")

# %% [markdown]
# ## Directions
#
# All of these are estimated in each block on the fit prompts: the components of the shift from `chat` to the tuned model, uncentred as published (and C1 with the shift's mean
# removed first); a **probe** (logistic regression with intercept, activations not standardised); HD's **stacked probe** (one for all blocks, no intercept); and the **difference of
# means** between refused and answered prompts. Controls: random directions in the span of the first 16 components, and anywhere.

# %%
blocks = direction_tables.estimate(seen["chat"].fit, seen["SFT"].fit, measure.draws, seed)
blocks_dpo = direction_tables.estimate(
    seen["chat"].fit, seen["DPO"].fit, measure.draws, seed
)
cosines = second_direction.cosine_table(blocks)
cosines.query("second == 'mean shift'").pivot(
    index="first", columns="block", values="cosine"
).round(2)

# %% [markdown]
# The table is the first thing to look at: it gives the cosine of each component with the *mean* shift, the same vector for every prompt. Where C1 has cosine 1 with it, C1 is the
# direction in which tuning moved all prompts alike, refused or not.
#
# ## The published rule
#
# HD projects the activations of the model **before** tuning on **minus** C1, predicts "refuses" for as many prompts as do refuse, and counts agreement. Its label is the decision of the
# model **before** tuning, and directions, sign, threshold and accuracy come from the **same** prompts. A projection that knows nothing is right for a share
# $p^2 + (1-p)^2$ of prompts, where $p$ is the share refused; always saying the commoner label is right for $1-p$. The sign of a singular vector is arbitrary, so C1 is shown with both.
# "Best of N" is the best of the first components, 100 of 4,096 in HD and 16 here, of the shift or of the activations before tuning ("base"). Only the probe is judged on prompts it has not seen.

# %%
published = figures.published("hd_fig3_accuracy")
printed = published.pivot(
    index="hidden_state", columns=["measure", "series"], values="value"
)
pair = printed["accuracy"][["C1", "C2"]]
assert pair.loc[14].round(2).tolist() == [0.95, 0.96]
assert pair.loc[14:31].min().round(2).tolist() == [0.93, 0.96]

# %%
by_rule = direction_tables.published_curves(blocks, seen["chat"].fit, blocks_dpo)
first = published.query("series == 'C1'").iloc[0]
share = {
    "published": first["positive"] / first["prompts"],
    "measured": seen["chat"].fit.refused.mean(),
}
levels = {
    name: {
        "chance": directions.chance_accuracy(p),
        "majority": directions.majority_accuracy(p),
    }
    for name, p in share.items()
}
c1_before = pair["C1"] > levels["published"]["chance"]
assert not c1_before.loc[1:9].any()
assert c1_before.loc[10:].all()
by_rule.pivot(index="series", columns="block", values="accuracy").round(2)

# %% [markdown]
# HD's second score, called log-likelihood, is twice the covariance of projection and decision. It rises through the late layers there (.76 at layer 14, 8.2 at layer 31), which the
# paper reads as growing confidence. The score grows with the length of activations whatever a direction knows; the last line takes the length out.

# %%
score = printed["covariance score"]["C1"]
assert (round(score[14], 2), round(score[31], 1)) == (0.76, 8.2)
direction_tables.covariance_table(blocks, seen["chat"].fit).round(3)

# %% [markdown]
# ## On other prompts, for the tuned model's refusals
#
# Now the rule that decides `hd.3`. A direction is judged on the test prompts by its **AUC**, the chance that a refused prompt lies further along it than an answered one, taking
# the better of its two signs. The label is what the *tuned* model does, and the activations are the tuned model's own: its refusals are what is to be predicted. The two rules
# differ in several ways at once, so here is C1 under both rules, with either model's decisions as labels. An accuracy below chance means that the arbitrary sign is the wrong one:

# %%
both = direction_tables.both_rules(blocks, seen["chat"], seen["SFT"])
both.round(2)

# %% [markdown]
# Intervals are over prompts, by resampling meanings; directions stay as estimated.

# %%
tuned, weights = (
    seen["SFT"],
    direction_tables.meaning_weights(groups["test"], measure.bootstrap, seed),
)
names = ["C1", "C1, centred", "C2", "probe", "difference of means", "stacked probe"]
held_out = pd.concat(
    [direction_tables.curve(blocks, name, tuned.test, weights) for name in names]
    + [
        direction_tables.curve(
            blocks_dpo, "C1", seen["DPO"].test, weights, series="C1, DPO"
        )
    ]
    + [direction_tables.control_curves(blocks, tuned.test, measure.draws, seed)],
    ignore_index=True,
)
held_out.pivot(index="series", columns="block", values="auc").round(3)

# %% [markdown]
# The best of several directions looks better than it is when it is chosen on the prompts that judge it, as in HD. Here the best of 16 is chosen both ways:

# %%
best = direction_tables.best_curves(blocks, tuned)
best.pivot(index="series", columns="block", values="auc").round(3)

# %% [markdown]
# `hd.3` is decided on the mean over the later half of the blocks, and for its last part over the first third.

# %%
options = {"weights": weights, "seen": tuned.test}
found = {
    "hd.3.late": direction_tables.mean_auc(blocks, "C1", over=late, **options),
    "hd.3.early": direction_tables.mean_auc(blocks, "C1", over=early, **options),
}
found["hd.3.random"] = found["hd.3.late"]
drawn = {
    where: direction_tables.by_block(blocks, where, tuned.test)
    for where in ("in the span", "anywhere")
}
by_block = direction_tables.by_block(blocks, "C1", tuned.test)[:, 0]

# %%
for part, interval in found.items():
    over = list(early if part == "hd.3.early" else late)
    control = {where: values[over].mean(axis=0) for where, values in drawn.items()}
    results.part(
        part,
        interval.mean,
        len(test),
        interval=interval,
        controls=control["in the span"],
        detail={"by block": by_block, "random anywhere": control["anywhere"]},
    )
random_late = drawn["in the span"][list(late)].mean()
print(f"random directions, later half: in the span {random_late:.2f}, ", end="")
print(
    f"anywhere {drawn['anywhere'][list(late)].mean():.2f}; C1 {found['hd.3.late'].mean:.2f}"
)

# %% [markdown]
# Block by block, for this model. Where C1 is the shared part it cannot tell prompts apart; where its cosine with the mean shift falls, look whether its AUC rises, and whether it rises
# above what random directions of the same span reach in the same block. The mean that decides can hide a block in which C1 is better than they are.

# %%
shared = cosines.query("first == 'C1' and second == 'mean shift'")["cosine"].tolist()
span = drawn["in the span"]
rows = {
    "|cosine| of C1 with the mean shift": shared,
    "AUC of C1": by_block,
    "AUC of random directions in the span, mean": span.mean(axis=1),
    "their 95th percentile": np.quantile(span, stats.CONTROL_QUANTILE, axis=1),
}
pd.DataFrame(rows).T.rename_axis(columns="block").round(3)

# %%
bars = {name: claims.part(f"hd.3.{name}").rule.bound for name in ("late", "early")}
figure = charts.prediction(published, by_rule, held_out, levels, bars, layers)
top = published.query("measure == 'accuracy' and 0 < hidden_state < 32").groupby("series")
c1 = by_rule[by_rule["series"] == "C1"]["accuracy"]
caption = (
    f"How well directions tell refusal, by depth. Left, published: C1 up to {top['value'].max()['C1']:.2f}, "
    f"chance {levels['published']['chance']:.2f}. Middle, the same rule here: C1 {c1.min():.2f} to {c1.max():.2f}, "
    f"chance {levels['measured']['chance']:.2f}. Right, AUC on {len(test)} other prompts: C1 "
    f"{found['hd.3.late'].mean:.2f} in the later half ({by_block[-1]:.2f} in the last block), random "
    f"directions in the span {random_late:.2f} on average. Bands: 95 % intervals over "
    f"meanings; for the {measure.draws} random directions and shuffled labels, 5th to 95th percentile."
)
data = figures.panels(published=published, rule=by_rule, held_out=held_out)
figures.save(figure, "08_dominant_direction.hd.3", data, caption, profile, seed)

# %% [markdown]
# ## A second direction
#
# HD finds that C2 predicts about as well as C1 (left panel), and that no component is parallel to the probe. Both can be so without two directions *carrying* the decision: two
# directions that share one contrast both predict it. So we ask what C2 **adds**: a logistic regression on the coordinate along C1 is given a second coordinate, and the test
# prompts' log-loss should fall by more than with a random direction orthogonal to C1. The block is chosen on half of the meanings and the number measured on the other half.

# %%
gained = second_direction.gains(blocks, tuned)
sampling = {"groups": groups["test"], "seed": seed, "resamples": measure.bootstrap}
second = second_direction.second_part(gained, late, **sampling)
results.part(
    "hd.4.second",
    second.margin.mean,
    second.margin.n,
    interval=second.margin,
    controls=second.draws,
    detail={"block": second.block},
)
gain_curves = second_direction.gain_curves(gained, **sampling)
gain_curves.pivot(index="series", columns="block", values="gain").round(3)

# %% [markdown]
# For the cosine, probe and C1 are estimated anew on resampled fit prompts. A probe's direction is not that in which classes differ most: it discounts
# directions in which activations vary for other reasons, so a small cosine with it is easily had. The table shows that random directions have it too.

# %%
redrawn = direction_tables.meaning_weights(groups["fit"], measure.spectra, seed)
angle = second_direction.probe_part(blocks, seen["chat"].fit, tuned.fit, late, redrawn)
with_random = second_direction.probe_with_random(blocks)[list(late)].mean(axis=0)
results.part("hd.4.probe", angle.mean, len(fit), interval=angle, controls=with_random)
cosines.assign(pair=cosines["first"] + " and " + cosines["second"]).pivot(
    index="pair", columns="block", values="cosine"
).round(2)

# %%
reported = figures.published("hd_probe_cosine")["cosine"]
bound = claims.part("hd.4.probe").rule.bound
figure = charts.second(
    published, (reported.min(), reported.max()), gain_curves, cosines, bound, layers
)
last = gain_curves[gain_curves["block"] == max(late)].set_index("series")["gain"]
caption = (
    "Left, published accuracy of C1, C2 and the probe. Middle, log-loss saved by C2 beside C1: "
    f"in block {second.block} {second.margin.mean:.2f} nats more than a random direction "
    f"({second.margin.n} prompts), in the last block {last['C2']:.3f} against {last['random beside C1']:.3f}. "
    f"Right, cosines: C1 with the probe {angle.mean:.2f} in the later half, random directions "
    f"{with_random.mean():.2f}; dotted line: the bar of .5."
)
data = figures.panels(published=published, gain=gain_curves, cosine=cosines)
figures.save(figure, "08_dominant_direction.hd.4", data, caption, profile, seed)

# %% [markdown]
# ## What predicts need not be what acts
#
# A direction can hold a copy of the decision that nothing later reads. So change the tuned model along it and ask plain requests again, one of each meaning among the test prompts.
# The block is the later one in which C1 predicts best *on the fit prompts*. **Removing** a direction means replacing the coordinate along it by its mean over benign fit prompts;
# zero is shown beside, but zero is not "no harm": nothing says that harmless prompts lie there. Edits act at every token, so whole answers can be judged by *teacher forcing*: the model is
# given the right answer word by word and must find each next word the likeliest.

# %%
block = direction_effects.strongest(blocks, "C1", tuned.fit, late)
asked = direction_effects.one_each(test, "plain")
named = direction_effects.candidates(blocks[block], draws=10)
benign = (fit.table()["kind"] == "benign").to_numpy()
plan = direction_effects.steering(block, named, tuned.fit, benign)
removed = direction_effects.removals(loaded["SFT"], asked, plan)
asked_n = pd.Series([prompt.kind for prompt in asked]).value_counts()
print(f"block {block}, {asked_n['harmful']} harmful and {asked_n['benign']} benign prompts")
direction_effects.removal_table(removed).round(2)

# %% [markdown]
# Shares of prompts: refused, complied with exactly, answered wrongly. For C1 in one sentence, and then the picture of it: what each direction knows (across) against what its removal
# does (down).

# %%
alone = removed.set_index(["direction", "way", "kind"]).sort_index()
before = alone.loc[("nothing", "none")]
without = alone.loc[("C1", direction_effects.HERE)]
print(
    f"C1 of block {block} removed there: harmful requests refused {before.loc['harmful', 'refused']:.2f} before, "
    f"{without.loc['harmful', 'refused']:.2f} after, {without.loc['harmful', 'exact']:.2f} answered exactly; "
    f"benign ones answered exactly {before.loc['benign', 'exact']:.2f} before, {without.loc['benign', 'exact']:.2f} after"
)

# %%
effects = direction_effects.changes(removed, named, tuned.test, block)
figure = charts.causal(effects)
at_block = effects[effects["way"] == direction_effects.HERE].set_index("direction")
drawn = at_block[at_block.index.str.startswith(direction_effects.RANDOM)]
caption = (
    f"AUC of directions of block {block} and the change in refusal of plain harm when each is removed. "
    f"C1: AUC {at_block['auc']['C1']:.2f}, change {at_block['change']['C1']:+.2f}; C2: "
    f"{at_block['auc']['C2']:.2f}, {at_block['change']['C2']:+.2f}; difference of means: "
    f"{at_block['auc'].get('difference of means', 0.5):.2f}, "
    f"{at_block['change'].get('difference of means', 0.0):+.2f}. "
    f"{len(drawn)} random directions in the span: AUC up to {drawn['auc'].max():.2f}, refusal falls "
    f"by at most {abs(drawn['change'].min()):.2f}. Bars: 95 % intervals over {asked_n['harmful']} prompts."
)
figures.save(figure, "08_dominant_direction.causal", effects, caption, profile, seed)

# %% [markdown]
# **Adding** a direction, in several doses. All vectors have equal length: dose 1 is the distance between the mean activations of refused and answered prompts in that block, and plus
# points towards refusal. In the second row the same vector is added at every block in equal parts, HD's constant steering (HD changes the last prompt token alone; we change every token).
# HD reports that steering against C1 of its layer 25 ends all refusal, and counts an attack as passed when the *first* token does not refuse (Fig. 4, 60 prompts). Here whole
# answers are judged, which tells ending refusal from answering.

# %%
fewer = direction_effects.candidates(blocks[block], draws=5)
plan = direction_effects.steering(block, fewer, tuned.fit, benign)
steered = {
    "at one block": direction_effects.doses(loaded["SFT"], asked, plan, everywhere=False),
    "at every block": direction_effects.doses(loaded["SFT"], asked, plan, everywhere=True),
}
figure = charts.dose_response(steered)
here, everywhere = (
    table.query("dose == -1 and kind == 'harmful'").set_index("direction")
    for table in steered.values()
)
drawn = here[here.index.str.startswith(direction_effects.RANDOM)]

# %%
caption = (
    f"Outcomes on plain prompts when a direction of block {block} is added to the tuned model. Dose -1 in that "
    f"block: harmful prompts refused {here['refused']['C1']:.2f} with C1, {here['refused']['C2']:.2f} with C2 (wrong "
    f"answers {here['wrong']['C2']:.2f}), {drawn['refused'].min():.2f} to {drawn['refused'].max():.2f} with "
    f"{len(drawn)} random directions in the span (grey band). Dose -1 of C1 spread over every block: refused "
    f"{everywhere['refused']['C1']:.2f}, exact {everywhere['exact']['C1']:.2f}, wrong {everywhere['wrong']['C1']:.2f}. "
    f"{asked_n['harmful']} harmful and {asked_n['benign']} benign prompts."
)
data = pd.concat([table.assign(where=where) for where, table in steered.items()])
figures.save(figure, "08_dominant_direction.dose", data, caption, profile, seed)

# %% [markdown]
# ## Verdict
#
# From this one model, with intervals over prompts. What decides is the [ledger](15_ledger.ipynb), over independently trained models, which differ here.

# %%
results.fact("c1_and_mean_shift", [round(value, 4) for value in shared])
results.fact("auc_by_block", held_out.drop(columns=["lower", "upper"]).to_dict("list"))
results.fact("c1_by_both_rules", both.round(4).reset_index().to_dict("split")["data"])
results.fact("block_of_edits", block)
results.fact("removals", removed.to_dict("list"))
results.save()
tables.text(claims.verdict_table(results.verdicts()).set_index("part"))

# %% [markdown]
# ## What would change our mind
#
# - **Which shift is decomposed.** Uncentred, as published, the first component follows the mean shift whenever that is long compared with what varies between prompts. With the mean
#   removed first, C1 is the direction in which prompts move *differently* (dashed line of the first figure). Whether HD's C1 owes its place to the mean is not reported;
#   HD's early layers, where one component holds nearly everything and predicts nothing, look like it.
# - **A late decision is easy to read.** In late blocks random directions in the span read refusal well too (grey), so a high AUC there says little by itself. On a model whose
#   late activations vary for many other reasons, beating random directions would be easier and mean more.
# - **Where the later half begins.** `hd.3.late` is a mean over the later half of the blocks. HD's C1 jumps at layer 14 of 32, before that half; a model that decides later can fail by depth alone.
#   The centred C1, C2 and the difference of means in the same blocks show how much of the miss is depth.
# - **What `hd.4` shows.** It asks what C2 adds to C1 as published. Where C1 is the shared part, C2 adds much because C1 had little, not because two
#   directions carry the decision; look at the last block, where both predict.
# - **Removal at every token.** The mean coordinate is taken at the last prompt token and put at every token, answers included. That costs exactness (wrong answers in the table) and is one reason why a
#   direction may lower refusal without giving compliance.
#
# Choices the paper leaves open and ours: the tuned model's activations and refusals for the rule that decides; probes not standardised; the best of 16, not of 100, because the width is
# smaller; the last block is read before the final norm, and HD's state after that norm (its layer 32) is not drawn.

# %%
provenance.versions()

# %% [markdown]
# Previous: [07 Residual space](07_residual_space.ipynb). Next: [09 Feature directions](09_feature_directions.ipynb). Map: [00 Index](00_index.ipynb).
