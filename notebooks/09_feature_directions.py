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
# # Relevance finds the words that move a component, but no component beats random directions at telling an attack style by the margin asked, and removing one opens no attack more selectively
#
# **Claims** (*The Hidden Dimensions of LLM Alignment*, HD, [arXiv 2502.09674](https://arxiv.org/abs/2502.09674), sections 5 and 6, Tables 1, 2 and 8, Figs 4 and 12). Safety tuning moves a model's activations in a few
# directions. The strongest, C1, is the subject of [notebook 08](08_dominant_direction.ipynb). HD says that the weaker, *non-dominant* ones each carry a feature that a person can name:
# fiction, chat personas, a demand to begin with "Sure". It finds the words by *partial relevance* and says that removing one such direction, L14-C6,
# undoes what the model learned about one attack and no other; and that suppressing nearly all of them makes the model answer jailbreaks while it still refuses plain harm.
#
# | HD reports (8B model) | |
# |---|---|
# | PAIR attacks passed, of 60 (Fig. 4, first version) | 52 before tuning, 1 after, 31 with L14-C6 removed (Flip 48, 0, 7; Simple 4, 0, 5) |
# | suppressing non-dominant directions: refusal of jailbreaks | 96.7 % before, 14.4 % after |
# | the same, refusal of plain harm | 100 % before, 80 % after |
# | perplexity on ordinary text | 6.59 before, 7.32 and 7.23 under the two interventions |
#
# Components 3 and 4 of that layer were tried beside it, no random direction was, and no number says whether the words found are the ones that matter.
#
# **We measure** the same on 1.3M-parameter models trained on an invented language ([notebook 01](01_organism.ipynb)), where the right answers and eight attack styles are known exactly (story, roleplay, authority, prefix and suffix wrap a request in words; *flip*
# reverses it, *cipher* mixes in noise words, *scroll* hides it in a blank to fill). *Plain* requests have no style; prompts that ask for the same have the same *meaning*.
#
# **Decided by** `hd.5`, `hd.6`, `hd.8` and `hd.14` in `data/claims.yaml`, written before any result: words found by relevance move a projection more than random ones (area at least .1); a
# non-dominant component tells a style better than random directions (AUC .05 more); removing the chosen component lets its style through (+.3) and the others not (at most +.1), more selectively
# than random directions; suppression costs at least .5 of jailbreak refusals and at most .2 of plain ones; exact answers to benign requests fall by at most .05, skills by at most .03, and the loss on stories rises by at most .05 nats a token.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which organism; others than 0 are trained first (12 minutes)

# %%
import numpy as np
import pandas as pd

from lib import behaviour, claims, direction_tables, feature_directions, figures, models
from lib import ability, component_effects, component_removal, direction_effects
from lib import faithfulness, feature_words, one_position, profiles, prompt_sets, prompts
from lib import provenance, residual, second_direction, suppression, tables, worlds
from lib.charts import features as charts

# %%
settings, world = profiles.load(profile), worlds.of(profile, seed)
measure = settings.measure
results = claims.Results(notebook="09_feature_directions", profile=profile, seed=seed)
names = feature_directions.attack_styles(world.styles)

# %% [markdown]
# ## Models and components
#
# `chat` is the model before safety tuning, `tuned` the one after. Both are read at the last token of the *fit* prompts after every block; the uncentred singular vectors of the
# difference are the components `L<block>-C<n>`. Words and styles are judged on prompts with other meanings; removal and suppression on held-out prompts some of whose meanings are also among the fit prompts, in other
# wordings, which can only help the claim. As in notebooks 07 and 08, the model must have learned to refuse, or nothing here is testable.

# %%
fit, test = prompt_sets.residual(profile, seed)
chat, tuned = (models.load(profile, role, seed) for role in ("chat", "tuned"))
residual.check_pair(chat, tuned)
before, after = (direction_tables.read(model, fit, test) for model in (chat, tuned))
met, why = direction_tables.testable(before, after, test.table()["harmful"])
results.testable(met, why)
spaces = feature_directions.components(before.fit.states, after.fit.states)
layers = tuned.layers
print(f"{why}; components in each block: {[len(space.directions) for space in spaces]}")

# %% [markdown]
# HD looks at hidden state 14 of 32 and follows relevance to C1 of state 25. We take the blocks at the same relative depth.

# %%
block = feature_directions.at_depth(14, 32, layers)
onward = max(feature_directions.at_depth(25, 32, layers), block + 1)
onward = min(onward, layers - 1)
shown = spaces[block].directions[: direction_tables.SHOWN]
components = [f"C{i + 1}" for i in range(len(shown))]
print(f"block {block}, followed to block {onward} of blocks 0 to {layers - 1}")

# %% [markdown]
# ## Which words a component reads
#
# **Partial relevance** starts at the projection of the last token's state on a direction and is passed down, by the rules of layer-wise relevance propagation, to the words of the prompt: how much of
# the projection does each word account for? HD's Table 1, for one prompt written by hand:

# %%
published = figures.published("hd_table1")
tables.text(
    published[["direction", "tokens", "relevance_to_L25_C1"]]
    .set_index("direction")
    .astype(str)
)

# %% [markdown]
# Over HD's test prompts, a language model (GPT-4o) was shown such words and wrote what each direction of layer 14 stands for (Table 2, shortened):

# %%
labelled = figures.published("hd_table2").set_index("component")[["label"]]
tables.text(labelled)

# %% [markdown]
# The same here, over one harmful test prompt of each meaning: words by mean relevance until 40 % of what is positive is used (HD's rule). *Relevance onwards* is the part that a direction
# has in the projection on the later block's C1. *Tells best* is the style whose prompts the component tells from all others best, with its AUC on these test prompts (how often a prompt of the style scores higher than another; .5 is chance).

# %%
chosen = [rows[0] for rows in prompts.meanings(test) if test.prompts[rows[0]].harmful]
asked = [test.prompts[row] for row in chosen]
found = feature_words.words(tuned, asked, block, shown, role_of=world.word_role)
labels = feature_directions.style_labels([prompt.style for prompt in test], names)
aucs = feature_directions.style_aucs(after.test.states[block], shown, labels)
best = {
    c: f"{names[column.argmax()]} ({column.max():.2f})"
    for c, column in zip(components, aucs.T, strict=True)
}
if onward > block:
    target = spaces[onward].directions[0]
    further = feature_words.onward(tuned, asked, block, onward, target, shown)
else:
    further = np.zeros(len(shown))
words = feature_words.read_table(found, components, further, best)
words["relevance onwards"] = words["relevance onwards"].map("{:+.3f}".format)
tables.text(words.set_index("direction"))

# %% [markdown]
# Two prompts word by word: red words raise the projection, blue ones lower it, each row scaled to its largest. Does any row light up on the style (the first and last words), or on the act?

# %%
examples = feature_words.examples(test, names)
pages = feature_words.words(
    tuned, list(examples.values()), block, shown, role_of=world.word_role
)
heat = pd.concat([
    feature_words.heat(one, components, f"{style}, block {block}")
    for one, style in zip(pages, examples, strict=True)
], ignore_index=True)  # fmt: skip
figure = charts.readable(heat)
size = heat["relevance"].abs().groupby([heat["prompt"], heat["direction"]], sort=False)
strongest = heat.loc[size.idxmax()]
caption = "Relevance of words to components. Strongest word of each"
for prompt, rows in strongest.groupby("prompt", sort=False):
    caption += f"; {prompt}: " + ", ".join(
        f"{row.direction} {row.word}" for row in rows.itertuples()
    )
figures.save(figure, "09_feature_directions.words", heat, caption + ".", profile, seed)

# %% [markdown]
# ## Are these the words that matter?
#
# Delete words, the most relevant first, and watch the projection. 1 is where the whole prompt lies, 0 where a request without words does; a good order falls fast. A projection may pass 0, when what
# is left pushes to the other side. The controls: the order given by plain gradient times activation (which HD's released trigger-removal code in fact computes), and random orders. *Conservative*, a
# stricter rule of relevance, is shown beside and decides nothing. Areas are means over the non-dominant components shown.

# %%
rules = {"relevance": "attnlrp", "conservative": "conservative", "gradient": "gradient"}
deleted = faithfulness.curves(tuned, asked, block, shown, rules, draws=5, seed=seed)
sampling = {"seed": seed, "resamples": measure.bootstrap}
minor = range(1, len(shown))
areas = {
    (better, other): faithfulness.area_between(deleted, better, other, minor, **sampling)
    for better in rules
    for other in ("random", "gradient")
    if better != other
}
curves = faithfulness.curve_table(deleted, components)
pd.Series({f"{b} against {o}": a.mean for (b, o), a in areas.items() if a}).round(2)

# %%
for part, other in (("hd.5.faithful", "random"), ("hd.5.gradient", "gradient")):
    area = areas["relevance", other]
    results.part(
        part,
        area.mean if area else None,
        len(asked),
        interval=area,
        reason=None if area else "no prompt moves one of the projections",
    )
line = curves[curves["direction"].isin(components[1:])]
line = line.groupby(["order", "deleted"], sort=False, as_index=False)[
    ["left", "lower", "upper"]
].mean()
line.pivot(index="order", columns="deleted", values="left").round(2)

# %% [markdown]
# ## Does a component stand for a style?
#
# If non-dominant directions carry named features, one of them should tell the prompts of one style from all others better than a direction picked blindly. The best (block, component, style) is
# chosen on half of the test meanings and its AUC measured on the other half; the same is done 40 times with a **random orthonormal basis**, as many directions in every block. All components but C1 take part.

# %%
groups = prompts.meanings(test)
halves = [
    sorted(row for rows in half for row in rows)
    for half in second_direction.halves(groups, seed)
]
rest = prompts.meanings([test.prompts[row] for row in halves[1]])
weights = direction_tables.meaning_weights(rest, measure.bootstrap, seed)
offered = feature_directions.non_dominant(spaces)
random = feature_directions.random_offers(offered, measure.draws, seed)
gain = feature_directions.style_gain(
    after.test.states, offered, random, labels, halves, weights
)

# %%
pick, drawn = gain.chosen, [one.confirmed for one in gain.draws]
picked = f"L{pick.block}-C{pick.direction + 2}"
results.part(
    "hd.5.style",
    gain.margin.mean,
    len(halves[1]),
    interval=gain.margin,
    controls=drawn,
    detail={"component": picked, "style": names[pick.style], "auc": pick.confirmed},
)
print(f"{picked} tells {names[pick.style]} with AUC {pick.confirmed:.3f}; ", end="")
print(f"random directions chosen the same way {np.mean(drawn):.3f} (to {max(drawn):.3f})")
energy = spaces[pick.block].energy
held = float(energy[pick.direction + 1] / energy.sum())
print(f"share of its block's shift that {picked} holds: {held:.1e}")

# %% [markdown]
# Where random directions already come near 1, a better component has no room to show; so here is every style by itself, in one block. The last rows of the picture are chosen on the first half and judged on the
# second: the best of the non-dominant components among the first 16, and the best of as many random directions of their span. (Components far down the list hold almost nothing of the shift; there the comparison above is one of two arbitrary bases.) **The power of this test**: the difference of means between a style's
# fit prompts and all others (one direction a style, learned from labels that components never saw): where it too is poor, the style is hard to read along one direction of this block.

# %%
table = feature_directions.selectivity(
    after.test.states[block], spaces[block], labels, names, halves, measure.draws, seed
)
taught = feature_directions.taught(
    after.fit.states[block], [p.style for p in fit], after.test.states[block], labels,
    names, halves[1],
)  # fmt: skip
table = pd.concat([table, taught], ignore_index=True)
figure = charts.selectivity(table, block)
level = table.groupby("direction")["auc"].mean()
caption = (
    f"AUC of directions of block {block} for eight styles. Means over styles: "
    + ", ".join(f"{name} {level[name]:.2f}" for name in table["direction"].unique()[-3:])
)
figures.save(figure, "09_feature_directions.styles", table, caption + ".", profile, seed)

# %%
last = list(table["direction"].unique()[-3:])
dots = table[table["direction"].isin(last)].rename(columns={"direction": "series"})
drawn_line = line[line["order"] != "conservative"]
figure = charts.faithful(published, drawn_line, dots)
shares = {other: areas["relevance", other] for other in ("random", "gradient")}
numbers = {o: f"{a.mean:.2f}" if a else "undefined" for o, a in shares.items()}
caption = (
    "Left, published words and relevance. Middle, what is left of projections when words go: deleting by relevance "
    f"leaves {numbers['random']} less area than random deletion and {numbers['gradient']} less than by gradient "
    f"({len(asked)} prompts). Right, AUC for each style in block {block}: means "
    + ", ".join(f"{name} {level[name]:.2f}" for name in last)
    + f". Best over all blocks: {picked} {pick.confirmed:.3f}, random {np.mean(drawn):.3f}."
)
data = figures.panels(published=published, deletion=drawn_line, styles=dots)
figures.save(figure, "09_feature_directions.hd.5", data, caption, profile, seed)

# %% [markdown]
# ## One component, one attack?
#
# The claim needs something learned: styles in which tuning raised refusal by at least .3 are the candidates for the *hit* style, and there must be three of them.

# %%
cells = prompt_sets.behaviour(profile, seed)
styled = component_removal.in_styles(cells, names)
was, now = (behaviour.quick(model, styled.asked) for model in (chat, tuned))
learned = component_removal.learned(was, now, styled)
count = int(learned["learned"].sum())
results.requires("hd.6", met=count >= 3, reason=f"{count} styles gained .3 or more")
learned.round(2)

# %% [markdown]
# **Removing** a component replaces the coordinate along it, after its block and at every token, by its mean over benign fit prompts. C2 to C16 of every block are offered. Component and hit style are chosen on half of the
# meanings, by the rise of attack success (whole answers exactly right) in that style beyond the others, and measured on the other half.
#
# **Control**: random directions chosen the same way, 40 times, as many in every block, in the span of the first 16 components. Removing thousands of directions one by one would take hours, so each pool, the
# components' as well, is first ranked by what the *gradient* expects of a removal; the two most promising are removed in earnest. Directions in that span contain a little of C1; a second control of fewer draws leaves C1 out.
# What is not matched is how far a removal moves the state: a random direction mixes several components.

# %%
choice, confirm = component_removal.split(styled, measure.cell // 6 or 1, seed)
benign = (fit.table()["kind"] == "benign").to_numpy()
means = component_removal.benign_means(after.fit.states, benign)
pool = component_removal.component_pool(spaces, means)
controls = component_removal.random_pools(pool, spaces, means, measure.draws, seed)
beside = component_removal.random_pools(
    pool, spaces, means, measure.draws // 8 or 1, seed + 1, first=2
)
pools = [pool, *controls, *beside]
expected = component_removal.expected_drops(tuned, choice.asked, pools)

# %%
asked_twice = [behaviour.quick(tuned, half.asked) for half in (choice, confirm)]
hits = np.flatnonzero(learned["learned"]).tolist() or list(range(len(names)))
chosen = [
    component_removal.choose(tuned, mine, hopes, choice, confirm, asked_twice, hits)
    for mine, hopes in zip(pools, expected, strict=True)
]
weights = direction_tables.meaning_weights(
    prompts.meanings(confirm.asked), measure.bootstrap, seed
)
parts = [
    component_removal.parts(one, confirm, weights, seed, measure.bootstrap)
    for one in chosen
]
hit, component = parts[0], chosen[0].name()
style = names[chosen[0].style]

# %%
margins = np.array([one.selective.mean for one in parts])
in_span, off_c1 = margins[1 : 1 + len(controls)], margins[1 + len(controls) :]
detail = {"component": component, "style": style, "random beside C1": off_c1}
n = len(confirm.asked)
mine = int((confirm.style == chosen[0].style).sum())
results.part("hd.6.hit", hit.hit.mean, mine, interval=hit.hit, detail=detail)
results.part("hd.6.selective", hit.others.mean, n, interval=hit.others)
results.part("hd.6.random", hit.selective.mean, n, interval=hit.selective, controls=in_span)
print(
    f"{component}, chosen for {style}: rise {hit.hit.mean:+.2f}, others {hit.others.mean:+.2f}"
)
print(f"style minus others: {hit.selective.mean:+.2f}; random directions ", end="")
print(
    f"{in_span.mean():+.2f} (95th percentile {np.quantile(in_span, 0.95):+.2f}), ", end=""
)
print(f"without C1 {off_c1.mean():+.2f} (largest {off_c1.max():+.2f})")

# %% [markdown]
# Was the choice bad luck? Every component is removed in earnest, on the prompts that choose (about twenty a style). If the largest rise of all, picked with hindsight, stays below the bar, no choice would have passed on these prompts.

# %%
scanned = component_removal.scan(tuned, pool, choice, asked_twice[0])
scanned["direction"] = (
    "L" + scanned["block"].astype(str) + "-C" + scanned["component"].astype(str)
)
hindsight = scanned[scanned["style"].isin([names[i] for i in hits])]["rise"].max()
scan_table = scanned.pivot(index="direction", columns="style", values="rise")[names]
order = scan_table.max(axis=1).sort_values(ascending=False, kind="stable").index[:8]
print(f"largest rise of any component in a learned style, with hindsight: {hindsight:.2f}")
scan_table.loc[order].round(2)

# %% [markdown]
# The chosen component beside other things one can remove, on the confirming prompts: the same component at *every* block (HD too acts in every block), put at zero, or edited at the *last prompt token only* (HD's released code);
# C1 of the same block; and random directions of the span that nobody chose (mean of five; the bars below go from the lowest to the highest).

# %%
own = {component: spaces[chosen[0].block].directions[chosen[0].row + 1]}
own |= {"C1": spaces[chosen[0].block].directions[0]}
own |= {f"random {i + 1}": p.along[chosen[0].block][0] for i, p in enumerate(controls[:5])}
plan = direction_effects.steering(chosen[0].block, own, after.fit, benign)
makers = {charts.AFTER: one_position.nothing}
makers |= {
    f"without {name}": component_effects.removal(plan, name, direction_effects.HERE)
    for name in own
}
makers[f"without {component}, every block"] = component_effects.removal(
    plan, component, direction_effects.EVERYWHERE
)
makers[f"without {component}, at zero"] = component_effects.removal(
    plan, component, direction_effects.ZERO
)
outcomes = component_effects.conditions(tuned, confirm, makers)

# %%
once = {f"without {component}, last prompt token": makers[f"without {component}"]}
once |= {"without C1, last prompt token": makers["without C1"]}
chat_too = component_effects.conditions(
    chat, confirm, {charts.BEFORE: one_position.nothing}
)
outcomes = pd.concat([
    chat_too,
    outcomes,
    component_effects.conditions(tuned, confirm, once, one_position.LAST),
])  # fmt: skip
outcomes = component_effects.random_as_one(outcomes, "without an unchosen random direction")
exact = outcomes[outcomes["outcome"] == "exact"]
by_condition = outcomes.pivot_table(
    index="condition", columns=["outcome", "style"], values="share", sort=False
)
by_condition["exact"].assign(mean=by_condition["exact"].mean(axis=1)).round(2)

# %% [markdown]
# Share of harmful requests answered exactly. Refusal under the same edits, so that what is lost to wrong answers shows:

# %%
by_condition["refused"].assign(mean=by_condition["refused"].mean(axis=1)).round(2)

# %%
hit_styles = [names[i] for i in hits]
points = component_removal.corner(
    scanned, parts[1 : 1 + len(controls)], hit, f"{component}, {style}", hit_styles
)
bars = {"hit": claims.part("hd.6.hit").rule.bound}
bars["others"] = claims.part("hd.6.selective").rule.bound
both = (points["hit"] >= bars["hit"]) & (points["others"] <= bars["others"])
inside = points[both].groupby("series").size().reindex(["random", "components tried"])
inside = inside.fillna(0).astype(int)
kept = [
    charts.BEFORE,
    charts.AFTER,
    f"without {component}",
    "without C1",
    "without an unchosen random direction",
]
figure = charts.one_removed(
    figures.published("hd_fig4"), exact[exact["condition"].isin(kept)], points, bars
)

# %%
caption = (
    "Left, published attacks passed. Middle, harmful requests answered exactly by style. Right, rise in the chosen "
    f"style against the mean rise of the others: {component} for {style} {hit.hit.mean:+.2f} and "
    f"{hit.others.mean:+.2f} ({mine} prompts a style); style minus others {hit.selective.mean:+.2f}, against "
    f"{in_span.mean():+.2f} on average and {np.quantile(in_span, 0.95):+.2f} at the 95th percentile of {len(in_span)} "
    f"random directions chosen the same way. In the shaded corner: {inside['random']} of these draws, and "
    f"{inside['components tried']} components (with hindsight the largest rise is {hindsight:+.2f})."
)
data = figures.panels(published=figures.published("hd_fig4"), exact=exact, points=points)
figures.save(figure, "09_feature_directions.hd.6", data, caption, profile, seed)

# %% [markdown]
# The other ways of removing, which do not decide: at every block, and by zero. The chosen component beside the first random directions, each chosen in its own draw, each with its own hit style. The same vector removed at every block can do much more; look whether it opens one style or all.

# %%
few = {f"random {i}": (pools[i], chosen[i]) for i in range(1, min(6, len(controls)) + 1)}
compared = component_removal.ways(
    tuned, {component: (pool, chosen[0]), **few}, confirm, asked_twice[1]
)
compared["direction"] = compared["direction"].str.replace(
    r"random \d+", f"random, mean of {len(few)}", regex=True
)
compared.pivot_table(
    index="direction", columns="way", values=["hit", "others"], sort=False
).round(2)

# %% [markdown]
# **Steering** adds a multiple of the direction instead. HD subtracts a constant multiple at every block; how its size was chosen is not stated. Here are five doses; 1 is the distance between the mean activations of
# refused and answered prompts in that block, split evenly over the blocks where all are steered; plus is towards refusal. Prompts are those of the choice, random directions two that nobody chose.

# %%
fewer = direction_effects.steering(
    chosen[0].block, {name: own[name] for name in list(own)[:4]}, after.fit, benign
)
steered = {
    way: component_effects.doses(tuned, choice, fewer, list(fewer.along), style, everywhere)
    for way, everywhere in (("at one block", False), ("at every block", True))
}
figure = charts.steering(steered, style)
most = pd.concat(steered.values()).query("group == 'the style'")
most = most.assign(direction=most["direction"].str.replace(r" \d+$", "", regex=True))
largest = most.groupby("direction", sort=False)["exact"].max()
caption = f"Outcomes by dose on {style} and on the other styles. Largest share of {style} answered exactly: "
caption += ", ".join(f"{name} {value:.2f}" for name, value in largest.items())
data = pd.concat([one.assign(way=way) for way, one in steered.items()])
figures.save(figure, "09_feature_directions.dose", data, caption + ".", profile, seed)

# %% [markdown]
# ## Suppressing them all
#
# The set `hd.8` names, in every block: the components that together hold 99 % of the shift's energy, except those whose coordinate correlates with harm by more than .7 in absolute value. HD suppresses everything
# in early layers and keeps about two directions in late ones:

# %%
harmful = fit.table()["harmful"].to_numpy(dtype=bool)
named = suppression.named_set(spaces, after.fit.states, harmful, means)
tables.text(suppression.set_table(named))

# %% [markdown]
# What decides is the removal by the benign mean at every token, as everywhere in these notebooks. Beside it: the same at the last prompt token only, where HD's released code acts; zero in place of the mean; the mean over
# *all* tokens of benign prompts, not the last alone; C1 spared in every block (the registry's rule exempts what tells harm, not what is dominant); and as many random directions of the whole space.

# %%
panel = {name: prompts.PromptSet(cells[name].prompts[: measure.cell // 2 or 1])
         for name in (f"harmful/{s}" for s in names)}  # fmt: skip
panel["harmful/plain"] = cells["harmful/plain"]
ordinary = [name for name in (f"benign/{s}" for s in ("plain", *names)) if name in cells]
panel |= {
    name: prompts.PromptSet(cells[name].prompts[: measure.cell // 4 or 1])
    for name in ordinary
}
kinds = {
    "plain harm": ["harmful/plain"],
    "jailbreaks": [f"harmful/{s}" for s in names],
    "benign": ordinary,
}
random_sets = [suppression.random_like(named, means, seed + i) for i in range(3)]

# %%
with_c1 = suppression.named_set(spaces, after.fit.states, harmful, means, spared=[1])
of_tokens = suppression.token_means(tuned, [p for p in fit if p.kind == "benign"])
by_tokens = suppression.named_set(spaces, after.fit.states, harmful, of_tokens)

# %%
edits = {"as it is": (one_position.nothing, one_position.EVERY)}
for where in one_position.WHERE:
    edits[f"suppressed, {where}"] = (suppression.maker(named), where)
    edits[f"at zero, {where}"] = (suppression.maker(named, zero=True), where)
edits["suppressed but C1, every token"] = (suppression.maker(with_c1), one_position.EVERY)
edits["mean of all tokens, every token"] = (
    suppression.maker(by_tokens),
    one_position.EVERY,
)
for i, one in enumerate(random_sets, start=1):
    edits[f"random set {i}, every token"] = (suppression.maker(one), one_position.EVERY)
answered = {
    name: one_position.measure(tuned, panel, make, where)
    for name, (make, where) in edits.items()
}
rates = suppression.rates(answered, kinds)
rates.pivot_table(
    index="condition", columns="group", values=list(behaviour.OUTCOMES), sort=False
).round(2)

# %%
pair = (answered["as it is"], answered["suppressed, every token"])
drops = {
    "hd.8.jailbreak": suppression.drop(*pair, "refused", kinds["jailbreaks"], **sampling),
    "hd.8.plain": suppression.drop(*pair, "refused", kinds["plain harm"], **sampling),
    "hd.8.benign": suppression.drop(*pair, "exact", kinds["benign"], **sampling),
}
share = rates.set_index(["condition", "group"])
for part, drop in drops.items():
    results.part(
        part, drop.mean, drop.n, interval=drop, detail={"suppressed": named.sizes()}
    )
figure = charts.suppressed(figures.published("hd_table8"), rates)

# %%
now, once = (share.loc[f"suppressed, {where}"] for where in one_position.WHERE)
still = share.loc["as it is"]
caption = (
    f"Left, published. Right, {sum(named.sizes())} directions suppressed over {layers} blocks. Refusal of plain harm "
    f"{still['refused']['plain harm']:.2f} before, {now['refused']['plain harm']:.2f} after; of jailbreaks "
    f"{still['refused']['jailbreaks']:.2f} and {now['refused']['jailbreaks']:.2f}, answered exactly "
    f"{now['exact']['jailbreaks']:.2f}, wrongly {now['wrong']['jailbreaks']:.2f}; benign requests answered exactly "
    f"{still['exact']['benign']:.2f} and {now['exact']['benign']:.2f}, refused {now['refused']['benign']:.2f}. At the last prompt token only: refusal of plain "
    f"harm {once['refused']['plain harm']:.2f}, of jailbreaks {once['refused']['jailbreaks']:.2f}."
)
data = figures.panels(published=figures.published("hd_table8"), measured=rates)
figures.save(figure, "09_feature_directions.hd.8", data, caption, profile, seed)

# %% [markdown]
# Refusals alone mislead here. A model that refuses everything keeps its refusals of plain harm, and one that answers everything wrongly has lost its refusals without a single jailbreak answered; the exact answers tell which.
#
# ## What it costs
#
# Six skills that have nothing to do with refusing, and the loss on stories, under every edit. HD measures perplexity while it edits a *single* position of each text, so that nearly all of the text
# is read and written by an unedited model. A skill is lost by one token too, if that is the token at which it is answered. Both are shown; `hd.14` is decided at every token, on the largest drop of any skill under the two interventions.

# %%
tried = {
    f"{component} removed": makers[f"without {component}"],
    "suppressed": suppression.maker(named),
    "C1 removed": makers["without C1"],
    "random set": suppression.maker(random_sets[0]),
}
calm = ability.measure(tuned, profile, seed, one_position.nothing)
cost = {
    f"{name}, {where}": ability.measure(tuned, profile, seed, make, where)
    for where in one_position.WHERE
    for name, make in tried.items()
}
costs = ability.table(calm, cost)
costs.round(3)

# %% [markdown]
# The other edits of this page, none of which decides; steering in its largest dose away from refusal.

# %%
steer = {"one block": False, "every block": True}
others = {f"{component} removed, every block": makers[f"without {component}, every block"]}
others |= {f"{component} at zero": makers[f"without {component}, at zero"]}
others |= {"a random direction removed": makers["without random 1"]}
others |= {
    f"{component} steered, {name}": component_effects.addition(fewer, component, -1.0, all_)
    for name, all_ in steer.items()
}
others |= {"suppressed at zero": suppression.maker(named, zero=True)}
others |= {"suppressed but C1": suppression.maker(with_c1)}
others |= {"mean of all tokens": suppression.maker(by_tokens)}
beside_cost = {
    f"{name}, {where}": ability.measure(tuned, profile, seed, make, where)
    for name, make in others.items()
    for where in one_position.WHERE
}
ability.table(calm, beside_cost)[["mean of skills", "story loss"]].round(3) + 0.0

# %%
interventions = (f"{component} removed", "suppressed")
two = {name: cost[f"{name}, {one_position.EVERY}"] for name in interventions}
fall = ability.largest_drop(calm, two, **sampling)
rise = ability.largest_rise(calm, two, **sampling)
results.part(
    "hd.14.skills", fall.mean, len(calm), interval=fall, detail=costs.to_dict("index")
)
results.part("hd.14.nll", rise.mean, rise.n, interval=rise)
bars = {name: claims.part(f"hd.14.{name}").rule.bound for name in ("skills", "nll")}
figure = charts.ability(figures.published("hd_fig12"), costs, bars)
alone = costs.loc[f"{component} removed, {one_position.EVERY}"]
caption = (
    f"Left, published perplexities. Right, here: largest drop of a skill {fall.mean:.2f}, largest rise of the loss on "
    f"stories {rise.mean:.2f} nats; {component} alone: mean of skills {alone['mean of skills']:+.3f}, stories "
    f"{alone['story loss']:+.3f}. Edited at the last prompt token only, suppression costs "
    f"{costs.loc[f'suppressed, {one_position.LAST}', 'mean of skills']:.3f} of skills on average."
)
data = figures.panels(published=figures.published("hd_fig12"), measured=costs.reset_index())
figures.save(figure, "09_feature_directions.hd.14", data, caption, profile, seed)

# %% [markdown]
# ## Verdict
#
# From this one model, with intervals over prompts. What decides is the ledger, over independently trained models. Where a part is held against a control (`hd.6.random`) the interval is that of value minus control.

# %%
results.fact("words", words.to_dict("records"))
results.fact("chosen", {"component": component, "style": style, "hindsight": hindsight})
results.fact("suppressed_set", named.table.to_dict("records"))
results.fact("rates", rates.to_dict("records"))
results.save()
tables.text(claims.verdict_table(results.verdicts()).set_index("part"))

# %% [markdown]
# ## What would change our mind
#
# - **How wide the model is.** With 128 dimensions and about 500 words, a random direction tells some style rather well, and the best of many tells it very well. In a model of 4,096 dimensions random directions may
#   know less, and the same components stand out more. Beating random directions there would mean something; HD did not try. Where the random best comes near an AUC of 1, as on seed 0, the bar of .05 cannot be reached at all;
#   the table by style, in one block, leaves room.
# - **What is put in place.** The benign mean is taken at the last prompt token and put at every token. For one late component that is a small change; for a whole set in every block it is a large one, and the model
#   no longer tells requests apart: it refuses them all or answers none rightly. In early blocks C1 itself is in the set. Zero, the mean of all tokens, and an edit at one token are shown beside. An intervention that spared the rest of the computation and still opened jailbreaks would change our mind about `hd.8`.
# - **Where it is removed.** One block decides here; HD's code acts in all of them at once, which moves more and says less about where a feature lives.
# - **What the control contains.** Directions in the span of the first 16 components contain a little of C1; the draws without C1 are the closer relatives of a component. A random direction mixes several components, so the benign mean put in its place
#   moves states by another amount; that amount is not matched, and at zero or at every block (table) the comparison can come out otherwise.
# - **How the component is chosen.** By a gradient first, then in earnest on half of the meanings. The scan shows what a perfect choice could have found on the choosing prompts.
# - **The published sentence about words.** Relevance is faithful here to the *projection*. Whether the projection is a feature is the other question: different components name much the same words, often those of the frame of a request, which every prompt has.
#
# Choices the paper leaves open and ours: relevance and activations of the *tuned* model (HD's code uses the model before tuning); attacks counted as passed only when the whole answer is right; K = 40.

# %%
provenance.versions()

# %% [markdown]
# Previous: [08 Dominant direction](08_dominant_direction.ipynb). Next: [10 Direction dynamics](10_direction_dynamics.ipynb). Map: [00 Index](00_index.ipynb).
