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
# # C1 is held no better than a random direction, and trigger removal moves prompts along it no further than rewording at random
#
# **Claims** (*The Hidden Dimensions of LLM Alignment*, HD, [arXiv 2502.09674](https://arxiv.org/abs/2502.09674), Figs 5 and 6). HD follows the components of the safety
# shift from layer to layer. It says that early layers *mix* them into each other while later layers *hold* each one, with growing confidence; and that two ways of getting past the model move the
# dominant projection differently: rewriting a request without its trigger words moves it towards benign requests, suppressing the non-dominant directions moves it elsewhere.
#
# | HD reports (8B model, hidden states of 32 layers) | |
# |---|---|
# | share of C1's relevance that C1 had one layer below | 0 at layers 2 to 4, .91 at 5, .21 at 6, .90 and more at most later layers |
# | mean projections at layer 27, C1: harmful, trigger removed, benign, suppressed | -26.8, -21.7, -15.7, -6.8 |
# | the same, C2 | 8.1, 15.7, 21.4, 8.3 |
#
# Neither figure has a control or an interval, and the first shows only positive relevance.
#
# **We measure** the same on 1.3M-parameter models trained on an invented language ([notebook 01](01_organism.ipynb)), signed as well as clipped, beside random directions of the same activations.
#
# **Decided by** `hd.7` and `hd.9` in `data/claims.yaml`, written before any result: in the later half C1's self-share is at least .1 above that of random directions, and at least .1 above its own in the
# first third; in the last third, trigger removal goes at least .2 of the way from harmful to benign on C1, and on C2 at least .1 further than suppression.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which organism; others than 0 are trained first (12 minutes)

# %%
import pandas as pd
import torch

from lib import claims, component_removal, direction_dynamics, direction_effects
from lib import direction_tables, directions, feature_directions, figures, models, profiles
from lib import projection_paths, prompt_sets, prompts, provenance, residual, suppression
from lib import tables, trigger_tables, triggers, worlds
from lib.charts import dynamics as charts

# %%
settings, world = profiles.load(profile), worlds.of(profile, seed)
measure = settings.measure
results = claims.Results(notebook="10_direction_dynamics", profile=profile, seed=seed)

# %% [markdown]
# ## Components
#
# As in notebooks 08 and 09: uncentred singular vectors of the shift from `chat` to `tuned`, at the last token of the *fit* prompts, in every block. All measurements are on prompts with other meanings. The
# claims need a model that learned to refuse; otherwise all parts are recorded as not testable.

# %%
fit, test = prompt_sets.residual(profile, seed)
chat, tuned = (models.load(profile, role, seed) for role in ("chat", "tuned"))
residual.check_pair(chat, tuned)
before, after = (direction_tables.read(model, fit, test) for model in (chat, tuned))
met, why = direction_tables.testable(before, after, test.table()["harmful"])
results.testable(met, why)
spaces = feature_directions.components(before.fit.states, after.fit.states)
layers = tuned.layers
early, late = residual.first_third(layers), residual.later_half(layers)
print(f"{why}; {layers} blocks, first third {list(early)}, later half {list(late)}")

# %% [markdown]
# ## Mixing, then holding
#
# Where does the projection on a component after a block come from? Partial relevance (notebook 09) goes one block down and is divided among the components there. HD's heat map sets negative
# relevance to 0 and divides by the sum over five components; the **self-share** is what is left for the component of the same number. Prompts count by the size of their projection here
# (HD divides prompt by prompt, so that one with a projection near 0 can outweigh the rest; its average is drawn too). One test prompt of each meaning is used.
#
# **Controls.** The residual stream passes every direction on unchanged, so *anything* that keeps its direction keeps its relevance. Therefore: five random orthonormal directions in the span of the first 16
# components, the same after both blocks, with relevance of the first from all five; and what blocks that add nothing would give the components themselves.

# %%
rows = [group[0] for group in prompts.meanings(test)][: measure.cell]
asked = [test.prompts[row] for row in rows]
links = direction_dynamics.links(tuned, asked, spaces, measure.draws, seed)
links_before = direction_dynamics.links(chat, asked, spaces, 1, seed)
kinds = pd.Series([prompt.kind for prompt in asked]).value_counts().to_dict()
print(f"{len(asked)} prompts: {kinds}")
shares = direction_dynamics.share_table(links)
shares.pivot(
    index="component", columns="block", values=["self_share", "signed", "identity"]
).round(2)

# %% [markdown]
# `self_share` follows HD's rule; `signed` is the relevance as it is, a share of the projection that may be negative or above 1; `identity` is the self-share if blocks added nothing.

# %%
alone = [[row] for row in range(len(asked))]  # one prompt of each meaning
weights = direction_tables.meaning_weights(alone, measure.bootstrap, seed)
curves = direction_dynamics.share_curves(links, weights)
held = direction_dynamics.holding(links, layers, weights)
results.part(
    "hd.7.hold",
    held.hold.mean,
    len(asked),
    interval=held.hold,
    controls=held.draws,
    detail={"self-share of C1, later half": held.later},
)
results.part(
    "hd.7.mix",
    held.mix.mean if held.mix else None,
    len(asked),
    interval=held.mix,
    reason=None if held.mix else "no block of the first third has one before it",
)

# %%
published = figures.published("hd_fig5_self_share")
first = published.query("component == 'C1'").set_index("hidden_state")["self_share"]
assert first.loc[[2, 3, 4]].max() == 0
assert first.loc[[5, 6, 14]].round(2).tolist() == [0.91, 0.21, 0.81]
shares_before = direction_dynamics.share_table(links_before)
spans = {"first third": (0, 1 / 3), "later half": (0.5, 1.03)}
figure = charts.holding(published, curves, shares, shares_before, layers, spans)
mix = f"{held.mix.mean:+.2f}" if held.mix else "undefined"
caption = (
    f"Left, published: C1's self-share reaches {first.loc[2:31].max():.2f}, median {first.loc[15:31].median():.2f} from "
    f"layer 15 to 31. Middle, measured: C1 {held.later:.2f} in the later half, random directions {held.draws.mean():.2f} "
    f"(band: 5th to 95th percentile); later half minus first third {mix}. Right, all five components by HD's rule. "
    f"{len(asked)} prompts; C1's band: 95 % interval."
)
data = figures.panels(
    published=published, c1=curves, components=shares, before=shares_before
)
figures.save(figure, "10_direction_dynamics.hd.7", data, caption, profile, seed)

# %% [markdown]
# The same as a network. Under HD's rule every target's incoming lines sum to 1, so a target whose relevance mostly comes from elsewhere (other tokens, directions beyond the
# first five, negative terms) looks as well explained as any other. Signed, it does not.

# %%
edges = pd.concat([direction_dynamics.edges(link) for link in links])
figure = charts.network(edges, layers)
total = edges.groupby(["block", "target"])["signed"].sum()
negative = (edges["signed"] < 0).mean()
caption = (
    f"Relevance between components of neighbouring blocks, lines as wide as it is large. {negative:.0%} of the signed "
    f"links are negative. Signed relevance from the five components below sums to {total.min():.2f} to {total.max():.2f} "
    "of a target's projection; by HD's rule always to 1."
)
figures.save(figure, "10_direction_dynamics.network", edges, caption, profile, seed)

# %% [markdown]
# ## Does confidence grow?
#
# HD reads the growth of its score through the late layers as growing confidence. The score is a multiple of the gap between the mean projections of refused and answered prompts, so it grows with the length of
# activations. Where the paper prints that length (Table 4, if it describes the same model, which is not stated), the gap can be divided by it. Here: the gap between what the tuned model refuses and what it answers, on C1, as it is and divided.

# %%
score = figures.published("hd_fig3_accuracy").query(
    "measure == 'covariance score' and series == 'C1'"
)
share = score["positive"].iloc[0] / score["prompts"].iloc[0]
gap = (score.set_index("hidden_state")["value"] / (2 * share * (1 - share))).loc[1:31]
lengths = figures.published("hd_table4").set_index("hidden_state")["norm_before"] ** 0.5
both = pd.concat([
    gap.rename("value").reset_index().assign(measure="gap"),
    (gap / lengths).dropna().rename("value").reset_index().assign(measure="gap / length"),
])  # fmt: skip
both["depth"] = both["hidden_state"] / score["blocks"].iloc[0]
generator = torch.Generator().manual_seed(seed)
along = [
    torch.cat([space.directions[:1], directions.random_directions(
        measure.draws, generator, within=space.directions[: directions.SPAN])])
    for space in spaces
]  # fmt: skip

# %%
weights_all = direction_tables.meaning_weights(
    prompts.meanings(test), measure.bootstrap, seed
)
grown = direction_dynamics.gap_curves(
    after.test.states, along, after.test.refused, weights_all
)
figure = charts.growth(both, grown, layers)
table = grown.pivot(index=["measure", "series"], columns="block", values="value")
span = grown.query("measure == 'gap' and series != 'C1'").set_index("block")["upper"]
ahead = int((table.loc[("gap", "C1")] > span).sum())
printed = both[both["measure"] == "gap / length"].set_index("hidden_state")["value"]
caption = (
    f"Left, published: the gap on C1 rises to {gap.abs().max():.0f}; divided by the length of activations it is "
    f"{printed[19]:.2f}, {printed[25]:.2f} and {printed[31]:.2f} at layers 19, 25 and 31. Right, here: "
    f"{table.loc[('gap', 'C1')].iloc[0]:.2f} in block 0 to {table.loc[('gap', 'C1')].iloc[-1]:.2f} in the last; divided, "
    f"{table.loc[('gap / length', 'C1')].iloc[0]:.2f} to {table.loc[('gap / length', 'C1')].iloc[-1]:.2f}. Grey: "
    f"{measure.draws} random directions in the span, of which C1 leaves the 95th percentile behind in {ahead} of {layers} blocks. {len(test)} prompts."
)
data = figures.panels(published=both, measured=grown)
figures.save(figure, "10_direction_dynamics.growth", data, caption, profile, seed)

# %% [markdown]
# ## Two ways past the model
#
# **Trigger removal** rewrites plain harmful requests: the word with most relevance to the dominant direction is barred, one more each round, and the request is said anew without them (another frame, synonyms for act and object), up to three rounds of ten
# rewrites, until the tuned model answers exactly. The meaning stays. **Control**: the same attack on *random* words. **Suppression** puts the coordinates along the components of the set of `hd.8` (notebook 09) at their benign means; each block is read with all
# blocks before it suppressed and itself not, because a coordinate that has just been set says nothing. The set holds C1 and C2 too, in every block where they tell harm too little. What the block before was set to is passed on, so
# there suppressed prompts lie near the benign mean by construction.

# %%
plain = direction_effects.one_each(test, "plain")
harmful = [prompt for prompt in plain if prompt.harmful][: measure.attacked]
benign = [prompt for prompt in plain if not prompt.harmful][: measure.attacked]
target = triggers.dominant(chat, tuned, fit)
if caveat := trigger_tables.caveat(world):
    print(f"Numbers of trigger removal here are {caveat}.")
rankings = {
    projection_paths.REMOVED: triggers.by_relevance(target, "attnlrp"),
    projection_paths.RANDOM: triggers.at_random(seed),
}
attacks = {
    name: triggers.remove(tuned, harmful, rank, world, settings.triggers, seed)
    for name, rank in rankings.items()
}
pd.DataFrame(
    {
        name: attack[["refused", "exact", "queries"]].mean()
        for name, attack in attacks.items()
    }
).T.round(2)

# %%
is_benign = (fit.table()["kind"] == "benign").to_numpy()
means = component_removal.benign_means(after.fit.states, is_benign)
is_harmful = fit.table()["harmful"].to_numpy(dtype=bool)
named = suppression.named_set(spaces, after.fit.states, is_harmful, means)
states = {
    projection_paths.HARMFUL: residual.activations(tuned, harmful),
    projection_paths.BENIGN: residual.activations(tuned, benign),
    projection_paths.SUPPRESSED: projection_paths.suppressed_states(tuned, harmful, named),
}
states |= {
    name: residual.activations(tuned, triggers.rewritten(harmful, attack))
    for name, attack in attacks.items()
}

# %% [markdown]
# How far does each group lie from harmful (0) to benign (1), in the last third of the blocks? Numerator and denominator are summed over the blocks, because in one block alone harmful and benign prompts may
# hardly differ on a component. C1 of the *centred* shift stands beside: there the part that all prompts share is gone.

# %%
last = list(residual.last_third(layers))
centred = [
    residual.space(y.double() - x.double(), centred=True).directions[0]
    for x, y in zip(before.fit.states, after.fit.states, strict=True)
]
axes = {f"C{i + 1}": [space.directions[i] for space in spaces] for i in range(2)}
axes["C1, centred"] = centred
ways = {name: projection_paths.paths(states, along) for name, along in axes.items()}
sampling = {"layers": last, "seed": seed, "resamples": measure.bootstrap}
moved = [projection_paths.REMOVED, projection_paths.RANDOM, projection_paths.SUPPRESSED]
went = {
    (name, group): projection_paths.between(way, group, **sampling)
    for name, way in ways.items()
    for group in moved
}
pd.Series({key: way.mean if way else None for key, way in went.items()}).unstack().round(2)

# %% [markdown]
# Block by block on C1, beside the gap that is to be crossed. Where the gap is small, a constant effect of rewording alone goes a long way.

# %%
steps = projection_paths.by_block(ways["C1"], moved)
steps.map("{:.2f}".format, na_action="ignore").astype(object).fillna("-")

# %%
nowhere = "harmful and benign prompts do not differ on this component"
removal = went["C1", projection_paths.REMOVED]
apart = projection_paths.differs(
    ways["C2"], projection_paths.REMOVED, projection_paths.SUPPRESSED, **sampling
)
control = went["C1", projection_paths.RANDOM]
for part, found in (("hd.9.between", removal), ("hd.9.differs", apart)):
    results.part(
        part,
        found.mean if found else None,
        len(harmful),
        interval=found,
        reason=None if found else nowhere,
        detail={"random words removed, C1": control.mean if control else None},
    )

# %%
drawn = pd.concat([
    projection_paths.mean_table(ways[c], seed, measure.bootstrap).assign(component=c)
    for c in ("C1", "C2")
])  # fmt: skip
reported = figures.published("hd_fig6_projections")
end = reported.query("hidden_state == 27").set_index(["component", "group"])["projection"]
assert end["C1"].round(1).to_dict()["harmful"] == -26.8
figure = charts.projections(reported, drawn, layers, ((last[0] + 0.5) / layers, 1.03))
way = {
    c: {g: (end[c, "harmful"] - end[c, g]) / (end[c, "harmful"] - end[c, "benign"])
        for g in ("trigger removed", "suppressed")}
    for c in ("C1", "C2")
}  # fmt: skip
text = {key: f"{found.mean:.2f}" if found else "undefined" for key, found in went.items()}

# %%
caption = (
    "Mean projections by depth, published left. Share of the way from harmful to benign, published (layer 27): trigger "
    f"removal {way['C1']['trigger removed']:.2f} on C1 and {way['C2']['trigger removed']:.2f} on C2, suppression "
    f"{way['C1']['suppressed']:.2f} and {way['C2']['suppressed']:.2f}. Here (last third): trigger removal "
    f"{text['C1', moved[0]]} on C1 and {text['C2', moved[0]]} on C2, random words {text['C1', moved[1]]} and "
    f"{text['C2', moved[1]]}, suppression {text['C1', moved[2]]} and {text['C2', moved[2]]}. "
    f"{len(harmful)} harmful and {len(benign)} benign prompts; bands: 95 % intervals. Signs are set block by block, so "
    "a line may cross 0 where nothing moved."
)
data = figures.panels(published=reported, measured=drawn)
figures.save(figure, "10_direction_dynamics.hd.9", data, caption, profile, seed)

# %% [markdown]
# **The power of this measurement.** Few rewrites get through the tuned model. Had more, would the projection have moved? The same attacks on `chat`, which saw no such rewrites in its safety data, with one ranking more: words by what happens to the
# refusal when each is left out. `n` counts successes; the last columns are for successful rewrites alone.

# %%
rankings["leaving one out"] = triggers.leave_one_out
power = {}
for name, model in {"chat": chat, "tuned": tuned}.items():
    tried = {
        rank: triggers.remove(model, harmful, how, world, settings.triggers, seed)
        for rank, how in rankings.items()
    }
    power[name] = projection_paths.attack_table(model, harmful, benign, tried, axes, last)
power = pd.concat(power, names=["model"])
names = {projection_paths.REMOVED: "relevance", projection_paths.RANDOM: "chance"}
shown = power.rename(index=names).map("{:.2f}".format, na_action="ignore").astype(object)
shown.assign(n=power["n"].map("{:.0f}".format).to_numpy()).fillna("-")

# %% [markdown]
# ## Verdict
#
# From this one model, with intervals over prompts. What decides is the ledger, over independently trained models.

# %%
results.fact("self_shares", shares.round(4).to_dict("records"))
results.fact("gaps", grown.round(4).to_dict("records"))
results.fact(
    "ways", {f"{c}, {g}": found.mean if found else None for (c, g), found in went.items()}
)
success = {name: attack["exact"].mean() for name, attack in attacks.items()}
results.fact("attack_success", success)
known = [row.dropna().to_dict() for _, row in power.reset_index().iterrows()]
results.fact("ways_by_attack", known)
results.save()
tables.text(claims.verdict_table(results.verdicts()).set_index("part"))

# %% [markdown]
# ## What would change our mind
#
# - **What self-share compares.** It asks whether the component of the same *number* is the same direction. Where two components swap places in the spectrum, or C1 turns from the part that all prompts share to what
#   tells refusal, the share falls although nothing was mixed. The dashed line (blocks that add nothing) shows how much of the curve is only that geometry.
# - **Random directions stay the same by construction.** They are the same vectors after both blocks, components are not. That is the point: to be held is the ordinary fate of a direction in a residual stream. A measure of
#   holding that the residual stream does not pass by itself, such as relevance that came through the block and not past it, could still separate the two.
# - **Six blocks.** The first third has a single pair of blocks. HD's mixing happens in layers 2 to 6 of 32, where shifts are tiny; a small model may have no such stage.
# - **An attack that works.** Few rewrites get through, so what is measured is mostly failed removal. The last table separates the successes: rewrites that get through do lie well on the way to benign, but so do those of random words. Success means that
#   the model answers, and C1 of the last block reads whether it does.
# - **Selection.** Of failed attacks the least refused of up to 30 rewrites is shown, so some movement towards benign is selection; random words, chosen alike, are the measure of it. Most of a rewrite is the new frame, whatever the ranking, so the two
#   attacks differ little by construction.
# - **How suppressed prompts are read.** Before a block's own edit; read after it, the suppressed coordinates would lie at their benign means by construction. HD does not say how it read them, nor on which prompts.
#
# Choices the paper leaves open and ours: relevance of the tuned model (HD's code uses the model before tuning, drawn dotted); prompts counted by the size of their projection; trigger removal by synonyms and dropped words, without
# a rewriting model; signs of C1 and C2 turned so that harmful lies above benign.

# %%
provenance.versions()

# %% [markdown]
# Previous: [09 Feature directions](09_feature_directions.ipynb). Next: [11 Trigger removal](11_trigger_removal.ipynb). Map: [00 Index](00_index.ipynb).
