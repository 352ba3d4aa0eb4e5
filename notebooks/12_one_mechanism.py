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
# # Swapping one coordinate in the last block exchanges fulfilling and refusing, in a middle block it changes far fewer; the units that SSAH's score finds write a little more of the dominant direction than units like them
#
# **Claims.** *Superficial Safety Alignment Hypothesis* (SSAH, [arXiv 2410.10862](https://arxiv.org/abs/2410.10862), sections 1-3): alignment makes a model choose between two directions, to fulfil a request or to
# refuse it; that is an implicit yes-or-no decision, and what the model knew is still there. *Ours*, in neither paper: the *safety-critical units* (SCU) that SSAH finds write the *dominant direction* (C1) that
# *The Hidden Dimensions of LLM Alignment* (HD, [arXiv 2502.09674](https://arxiv.org/abs/2502.09674)) finds. If both papers describe one mechanism, units and direction must belong together.
#
# | the papers report | |
# |---|---|
# | attack success without SCU, 1.3 % of the units (SSAH Table 1, Llama-2) | .18 to .84 |
# | harmful after benign fine-tuning on Dolly (SSAH Table 2, GPT-4 on HEx-PHI) | .003 to .19 |
# | attacks that pass when an 8B model is steered against L25-C1 (HD Fig. 4) | .01 to 1 |
# | swapping a coordinate; units that write C1 | nothing |
#
# Attack success there means that a judge calls an answer harmful, not that it is what the model knew before alignment; `base`, which knows, has exact answers here.
#
# **We measure** on 1.3M-parameter models trained on an invented language ([notebook 01](01_organism.ipynb)): `base` complies, `chat` is aligned from it, `tuned` from chat.
#
# **Decided by** `ssah.1` and `ours.bridge` in `data/claims.yaml`, written before any result on these models: at least .8 of the prompts change sides when one coordinate is swapped at one middle block; after the best of three small
# interventions harmful answers are at least .9 as often exact as base's; an SCU writes more of C1 than units matched to it; removing SCU takes harmful prompts at least .5 of the way to benign ones on C1.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which organism; others than 0 are trained first (16 minutes)

# %%
import pandas as pd

from lib import aims, behaviour, benign_steps, claims, figures
from lib import (
    harm_skill,
    knowledge,
    models,
    one_position,
    one_prompt,
    profiles,
    prompt_sets,
)
from lib import provenance, refusal_swap, tables, unit_scores, units, worlds
from lib import bridge_tables as links
from lib.charts import mechanism as charts

# %%
settings, world = profiles.load(profile), worlds.of(profile, seed)
measure = settings.measure
sampling = {"seed": seed, "resamples": measure.bootstrap}
few = min(measure.draws, 10)  # draws of controls that decide nothing
results = claims.Results(notebook="12_one_mechanism", profile=profile, seed=seed)

# %% [markdown]
# ## Two shifts, two sets of units
#
# A *shift* is what training adds to the residual stream at the last token of a prompt; C1 is the direction along which it is longest. In the registry C1 is that of `chat` -> `tuned`, so `tuned` decides `ours.bridge`; the shift of alignment itself, `base` -> `chat`,
# stands beside it and is what `ssah.1` is about. C1 is read in one block, as in [08](08_dominant_direction.ipynb): the one of the later half in which it best tells, among prompts set aside for that, what the model refuses. All components are turned so that harmful prompts lie above benign ones.

# %%
fit, test = prompt_sets.residual(profile, seed)
loaded = {role: models.load(profile, role, seed) for role in ("base", "chat", "tuned")}
before = {"tuned": loaded["chat"], "chat": loaded["base"]}
aim = {role: aims.aim(start, loaded[role], fit) for role, start in before.items()}
pd.DataFrame({role: one.auc for role, one in aim.items()}).T.rename_axis(
    index="AUC of C1", columns="block"
).round(2).assign(chosen=[one.block for one in aim.values()])

# %% [markdown]
# SCU are chosen in each model by the paper's rule (I_S - I_U, variance times squared column norm) and, beside it, by the score that [03](03_unit_classification.ipynb) calls chosen (it had the largest effect at no cost on models that decide nothing). Both take the share that the
# paper has for Llama-2. Scores are computed on requests whose meanings occur in safety data, everything below on others.

# %%
best = settings.units.best
rules = {
    charts.PAPER: (*unit_scores.PAPER, "z"),
    charts.CHOSEN: (best.score, best.position, best.normalisation),
}
shares = {name: getattr(settings.units, name) for name in ("ru", "scu", "ucu")}
sets, scored = prompt_sets.calibration(profile, seed), {}
for role, one in aim.items():
    raw = unit_scores.calibrate(one.model, sets, [rule[:2] for rule in rules.values()]).raw
    scored[role] = {
        name: units.groups(units.score(raw[rule[:2]], rule[2]), **shares)
        for name, rule in rules.items()
    }
scu = {
    role: {name: table[table["group"] == "scu"] for name, table in mine.items()}
    for role, mine in scored.items()
}

# %% [markdown]
# ## One prompt, four methods
#
# One harmful request in `tuned`, as each method of the two papers sees it. **Words**: how much each raises the prompt's place on C1 (relevance, [11](11_trigger_removal.ipynb)). **Path**: its place on C1, block by block. **Units**: the values of the SCU at the last token of the prompt,
# in standard deviations from benign prompts. **Answer**: how far the states along its own answer are from those along other answers ([02](02_reasoning_direction.ipynb)).

# %%
seen, like = (
    {role: links.see(one, part) for role, one in aim.items()} for part in (test, fit)
)
followed = one_prompt.follow(seen["tuned"], world, scu["tuned"][charts.PAPER])
print("asked:", followed.prompt.shown)
block = aim["tuned"].block
figure = charts.followed(followed, "the tuned model", block)
place = followed.path[followed.path["block"] == block].set_index("series")["projection"]
words = followed.words.set_index("word")["relevance"]
far = (followed.units["harmful"].abs() > 1).mean()

# %%
caption = (
    f"One harmful prompt. Words: most relevant to C1 is {words.abs().idxmax()}. Path: in block {block} it lies at "
    f"{place[one_prompt.PROMPT]:.1f}, harmful prompts at {place[one_prompt.HARMFUL]:.1f} and benign ones at "
    f"{place[one_prompt.BENIGN]:.1f}. Units: {far:.0%} of the {len(followed.units)} SCU of the paper's score are on average "
    "more than one standard deviation from benign prompts. Answer: cosine distances in the last block."
)
parts = {name: getattr(followed, name) for name in ("words", "path", "units", "answer")}
data = figures.panels(**{name: part for name, part in parts.items() if len(part)})
figures.save(figure, "12_one_mechanism.followed", data, caption, profile, seed)

# %% [markdown]
# ## Does base tell harm?
#
# `ssah.1` takes for granted that the model could tell harmful from benign before alignment. So base is asked: in the kingdom by a skill it was taught ("would it cause harm to ..."), elsewhere by putting requests as such questions. It counts as right when the right one of yes and no is
# likelier. This page's bar is that of notebook 01, .95. A base never taught the skill shows what chance gives.

# %%
known = harm_skill.known(profile, seed)
plain = {
    side: prompt_sets.behaviour(profile, seed)[f"{side}/plain"].prompts
    for side in refusal_swap.SIDES
}
refuses = {
    role: behaviour.first_tokens(loaded[role], plain["harmful"])["refused"].mean()
    for role in ("base", "chat")
}
told = "; ".join(
    f"{name} {one.mean:.3f} [{one.lower:.2f}, {one.upper:.2f}], n = {one.n}"
    for name, one in known.items()
)
enough = known["base"].mean >= harm_skill.LEAST
results.requires("ssah.1", met=enough, reason=f"right when asked about harm: {told}")
met = refuses["chat"] >= 0.5 > refuses["base"]
why = f"chat refuses {refuses['chat']:.2f} of plain harm, base {refuses['base']:.2f}"
print(f"right when asked about harm: {told}. {why}")

# %% [markdown]
# As in notebook 02, the parts of `ssah.1` are recorded as not testable unless chat refuses at least half of plain harm and base less than half.
#
# ## The switch
#
# In each block of `chat`, the *refusal coordinate* is the one along the difference between the mean states of plain harmful and plain benign prompts. **The swap**: at one block, at the last token of the prompt, a harmful prompt gets the benign mean for its coordinate and a benign prompt the
# harmful mean; everything else stays, and the answer is written unedited. A harmful prompt *flips* when it was refused and is now answered exactly; a benign one when it was answered exactly and is now refused. Wrong answers are no flips.
#
# Meanings are halved. One half gives means and chooses the block among the *middle* ones (neither in the first nor in the last third); the other half is measured. Controls: all prompts carried as far along random directions, in the span of the first 16 components of the shift, or anywhere.

# %%
chat = loaded["chat"]
choose, confirm = refusal_swap.halves(plain, seed)
coordinate = refusal_swap.coordinate(chat, choose)
first = {
    name: refusal_swap.outcomes(chat, half, {})
    for name, half in (("choose", choose), ("confirm", confirm))
}
middle = refusal_swap.middle(chat.layers)
tried = refusal_swap.by_block(chat, choose, coordinate, first["choose"])
switch, late = (refusal_swap.chosen(tried, where) for where in (middle, range(chat.layers)))
confirmed = (chat, confirm, coordinate, first["confirm"])
by_block = refusal_swap.by_block(*confirmed)
every = refusal_swap.by_block(*confirmed, where=one_position.EVERY)
swaps = {"last prompt token": by_block, "every token": every}
pd.concat(swaps, names=["where"]).pivot_table(
    index=["where", "side"], columns="block", values="share", sort=False
).round(2)

# %%
makers = coordinate.swap(switch)
flipped = refusal_swap.share(refusal_swap.flips(chat, confirm, makers, first["confirm"]))
random = {}
for at, draws in {late: few, switch: measure.draws}.items():
    along = refusal_swap.random_along(aim["chat"].components[at], draws, seed)
    along["anywhere"] = along["anywhere"][:few]
    random[at] = {
        where: refusal_swap.random_shares(
            chat, confirm, coordinate, at, drawn, first["confirm"]
        )
        for where, drawn in along.items()
    }
named = {"as it is": first["confirm"]} | {
    f"swapped in block {at}": refusal_swap.outcomes(chat, confirm, coordinate.swap(at))
    for at in sorted({switch, late})
}
outcomes = refusal_swap.outcome_table(named)
outcomes.pivot(index=["side", "condition"], columns="outcome", values="share").round(2)

# %%
results.testable(met, why)
results.part(
    "ssah.1.switch",
    flipped.mean,
    flipped.n,
    interval=flipped,
    controls=random[switch]["in the span"],
    detail={
        "block": switch,
        "by block": by_block.query("side == 'both'")["share"].tolist(),
    },
)
bound = claims.part("ssah.1.switch").rule.bound
figure = charts.switch(by_block, switch, middle, random, outcomes, bound, chat.layers)
most = {block: drawn["in the span"].max() for block, drawn in random.items()}
at = by_block.set_index(["side", "block"])["share"]

# %%
caption = (
    f"Left: share of {flipped.n} prompts that flip. In block {switch}, chosen among the middle ones: {flipped.mean:.2f} "
    f"(95 % {flipped.lower:.2f} to {flipped.upper:.2f}; random directions in the span at most "
    f"{most[switch]:.2f}, anywhere {random[switch]['anywhere'].max():.2f}). In block {late}, best of all on the other half: "
    f"{at['both', late]:.2f} (harmful {at['harmful', late]:.2f}, benign {at['benign', late]:.2f}; random at most {most[late]:.2f}). Bands: 95 %. Right: "
    "outcomes of both sides."
)
data = figures.panels(flips=by_block, outcomes=outcomes)
figures.save(figure, "12_one_mechanism.ssah.1.switch", data, caption, profile, seed)

# %% [markdown]
# ## Is the knowledge still there?
#
# The registry names three small interventions on `chat`. **C1 ablation**: the coordinate along C1 is put where benign prompts have it, in one block or in every one, at every token or at the last of the prompt. **SCU removal**: units set to zero. **50 benign steps**: fine-tuning on harmless errands, the run of
# [05](05_freezing.ipynb) with nothing frozen. The best is chosen on one half of the harmful prompts and measured on the other, as a share of what base answers exactly there.
#
# Beside them, not counted: the swap, in the middle block and in the best of all. Controls: random directions in C1's place, in the blocks of the best ablation, and as many random units.

# %%
small = knowledge.small(aim["chat"], scu["chat"], benign_steps.model(profile, seed))
chosen = knowledge.measure(small, choose["harmful"])
winner, kinds = knowledge.best(small, chosen), knowledge.best_of_kinds(small, chosen)
ending = {f"swap, block {at}": coordinate.swap(at)["harmful"] for at in (switch, late)}
table, rows = scored["chat"][charts.PAPER], scu["chat"][charts.PAPER]
shown = knowledge.shortlist(small, chosen) + knowledge.beside(aim["chat"], ending)
shown += knowledge.controls(aim["chat"], kinds[knowledge.C1], table, rows, few, seed)
after = knowledge.measure(shown, confirm["harmful"])
base = refusal_swap.answers(loaded["base"], confirm["harmful"], one_position.nothing)
kept = knowledge.relative(after[winner.name], base, **sampling)
ways = knowledge.moved(shown, confirm, coordinate, chat.layers - 1)
outcome = knowledge.table(shown, after, ways)
knowledge.without_draws(outcome).set_index("intervention").round(2)

# %% [markdown]
# `lower` and `upper` are the 95 % interval of `exact`; `way` says how far harmful prompts have come from the harmful to the benign mean on the refusal coordinate after the last block. Random ones are means of their draws.

# %%
results.part(
    "ssah.1.knowledge",
    kept and kept.mean,
    len(base),
    interval=kept,
    detail={
        "chosen": winner.name,
        "exact, base": float(base["exact"].mean()),
        "exact": {one.name: float(after[one.name]["exact"].mean()) for one in shown},
    },
    reason=None if kept else "base answers none of these prompts exactly",
)
print(f"best on the other half: {winner.name}; base exact {base['exact'].mean():.2f}")

# %%
names = ("ssah_table1", "ssah_table2", "hd_fig4")
printed = knowledge.published(*map(figures.published, names))
bound = claims.part("ssah.1.knowledge").rule.bound
figure = charts.kept(printed, outcome, base["exact"].mean(), bound, chat.layers - 1)
exact = outcome.set_index("intervention")["exact"]
share = f"{kept.mean:.2f} [{kept.lower:.2f}, {kept.upper:.2f}]" if kept else "no share"
caption = (
    f"Left, published. Middle, {len(base)} harmful prompts after each intervention on chat: the best by the other half is "
    f"{winner.name}, with {share} of base's exact answers; "
    + ", ".join(f"{one.name} {exact[one.name]:.2f}" for one in kinds.values())
    + "; "
    + ", ".join(f"{name} {exact[name]:.2f}" for name in dict.fromkeys(ending))
    + ". Right: the way each goes on the refusal coordinate, against what is still refused."
)
figures.save(figure, "12_one_mechanism.ssah.1.knowledge", outcome, caption, profile, seed)

# %% [markdown]
# ## Do safety-critical units write C1?
#
# A unit's **direct effect** on C1 is its column's component along C1, times how much larger its value is on harmful than on benign prompts (last prompt token, one prompt of each meaning). No norm lies between a column and the residual stream, so this path is exact: the effects of all units must sum to the distance of
# harmful and benign prompts on C1. Effects are given as shares of it. (Where a family has a norm behind attention and MLP, its division is left out and the sum is not exact.)

# %%
harmful = [prompt for prompt in test if prompt.harmful]
refused = {
    role: behaviour.first_tokens(loaded[role], harmful)["refused"].mean()
    for role in ("chat", "tuned")
}
met = refused["tuned"] >= 0.5 and refused["tuned"] > refused["chat"]
why = f"tuned refuses {refused['tuned']:.2f} of harmful prompts, chat {refused['chat']:.2f}"
results.testable(met, why)
n = len(seen["tuned"].asked)
print(f"{why}; {n} prompts, one of each meaning")
sums = {role: (one.table["direct"].sum(), one.gap) for role, one in seen.items()}
pd.DataFrame(sums, index=["sum of direct effects", "distance on C1"]).T.round(2)

# %% [markdown]
# Does a unit that the score prefers write more? Rank correlation of I_S - I_U with the direct effect on each component, over all units. `random`: mean absolute correlation with random directions in the span, `random_high` its 95th percentile.

# %%
correlations = links.correlations(seen["tuned"], scored["tuned"], measure.draws, seed)
correlations.round(3)

# %% [markdown]
# **Matched units.** Units that are active and have long columns write more on anything. So each SCU is compared with the five units of its layer and kind that are nearest in column length and in how differently they act on harmful and benign prompts (both as logarithms; matched on the prompts set aside, compared on the
# others). What is left is where their columns point. The table shows how alike they are. As control, one of the five is drawn in the place of each SCU, again and again.

# %%
paired = {
    f"{role}, {name}": (role, rows)
    for role, mine in scu.items()
    for name, rows in mine.items()
}
written = {
    name: links.write(seen[role], like[role], rows, measure.draws, **sampling)
    for name, (role, rows) in paired.items()
}
pd.concat({name: one.balance for name, one in written.items()}).round(4)

# %%
margins = {name: (one.margin, one.over_units, one.above) for name, one in written.items()}
pd.DataFrame(
    {
        name: {
            "SCU minus matched": one.mean if one else None,
            "95 % over prompts": f"{one.lower:.5f} to {one.upper:.5f}"
            if one and one.bounds
            else "-",
            "95 % over units": f"{over.lower:.5f} to {over.upper:.5f}"
            if over.bounds
            else "-",
            "share of draws below": above,
        }
        for name, (one, over, above) in margins.items()
    }
).T

# %% [markdown]
# The registry's bar asks for the sign only, with an interval over prompts. The interval over units and the draws say whether these units differ from others like them.
#
# **Removal.** Take the SCU away and read C1 again: how far do harmful prompts go towards benign ones? The registry counts this. Benign prompts may go the same way, which moves everything and brings the two no nearer; that is shown beside, and not counted. Random units match in number, layer and kind.

# %%
decides = f"tuned, {charts.PAPER}"
moved = {
    name: links.move(
        seen[role], rows, measure.draws if name == decides else few // 2, **sampling
    )
    for name, (role, rows) in paired.items()
}
pd.DataFrame(
    {
        name: {
            "harmful prompts": one.way.mean if one.way else None,
            "benign prompts": one.benign,
            "random units, highest": max(one.draws, default=None),
        }
        for name, one in moved.items()
    }
).T.astype(float).round(3).astype(object).fillna("-")

# %%
write, move = written[decides], moved[decides]
for part, value, draws, detail in (
    (
        "write",
        write.margin,
        write.draws,
        {name: one.over_units.bounds for name, one in written.items()},
    ),
    ("move", move.way, move.draws, {name: one.benign for name, one in moved.items()}),
):
    results.part(
        f"ours.bridge.{part}",
        value and value.mean,
        value.n if value else n,
        interval=value,
        controls=draws,
        detail=detail,
        reason=None if value else links.NO_GAP,
    )

# %%
bound = claims.part("ours.bridge.move").rule.bound
every = links.scatter(seen["tuned"], scored["tuned"][charts.PAPER])
figure = charts.bridge(every, written, moved, bound, block)
said = {
    "write": f"{1000 * write.margin.mean:.2f} thousandths"
    if write.margin
    else "nothing defined",
    "move": f"{move.way.mean:.2f} [{move.way.lower:.2f}, {move.way.upper:.2f}]"
    if move.way and move.way.bounds
    else "-",
}
caption = (
    f"Left, all {len(every):,} units of tuned: share of the distance on C1 that each writes, by I_S - I_U (rank correlation "
    f"{correlations.loc[charts.PAPER, 'C1']:.2f}). Middle: an SCU of the paper's score in tuned writes {said['write']} of the "
    f"distance more than units like it; {write.above:.0%} of the redrawn sets write less. Right: without them harmful prompts go "
    f"{said['move']} of the way to benign ones, and benign prompts {move.benign or 0:.2f} the same way. Bars: 95 % over prompts."
)
data = figures.panels(units=every, parts=links.summary(written, moved))
figures.save(figure, "12_one_mechanism.ours.bridge", data, caption, profile, seed)

# %% [markdown]
# ## Which units do write it?
#
# Other ways to find as many units: those that write most on C1 (on the prompts set aside); those with the largest effect on it by gradient, through all later parts at that token; those whose own weights tuning changed most. And, in `chat`, the groups that [05](05_freezing.ipynb) freezes. Shares of the distance on C1, beside as many
# random units of each layer and kind.

# %%
groups = links.found_by(like["tuned"], before["tuned"], scu["tuned"])
graded = scored["chat"][charts.PAPER]
critical = graded[graded["group"] == "scu"]
top = pd.concat([critical, units.top_cu(graded, settings.units.top_cu)])
frozen = {"SCU": critical, "SCU + top CU": top}
frozen["SCU + all CU"] = graded[graded["group"].isin(["scu", "cu"])]
frozen |= {name.upper(): graded[graded["group"] == name] for name in ("ucu", "ru")}
carried = {
    role: links.carried(seen[role], sets, measure.draws, **sampling)
    for role, sets in (("tuned", groups), ("chat", frozen))
}
links.overlaps(groups, len(graded)).round(3)

# %%
titles = {
    "tuned": "tuned: as many units, found in different ways",
    "chat": "chat: the groups that freezing holds still, and others",
}
figure = charts.carried({titles[role]: table for role, table in carried.items()})
caption = (
    "Share of the distance between harmful and benign prompts on C1 that groups of units write. "
    + ". ".join(
        f"{title}: "
        + ", ".join(
            f"{row.group} {row.share:.2f} (random {row.random:.2f})"
            for row in table.itertuples()
        )
        for title, table in carried.items()
    )
)
data = figures.panels(**carried)
figures.save(figure, "12_one_mechanism.carried", data, caption, profile, seed)

# %% [markdown]
# And do those that write C1 carry refusal? `tuned` without each group, on all plain prompts.

# %%
tuned = loaded["tuned"]
gone = {"nothing": one_position.nothing} | {
    name: knowledge.without(units.edits(rows)) for name, rows in groups.items()
}
without = {
    name: {
        side: refusal_swap.answers(tuned, asked, make, one_position.EVERY)
        for side, asked in plain.items()
    }
    for name, make in gone.items()
}
removals = refusal_swap.outcome_table(without)
removals.pivot(index="condition", columns=["side", "outcome"], values="share").loc[
    list(gone)
].round(2)

# %% [markdown]
# Where all rows are alike, no group carries refusal by itself, and what its units write on C1 is not what refusing needs here.
#
# The other way round: C1 is removed in every block, each block's own. How much of their contrast between harmful and benign prompts do units lose, beside random directions in the span?

# %%
lost = links.contrast_lost(seen["tuned"], groups, few // 2, seed)
lost.pivot(index="group", columns="removed", values="lost").loc[list(groups)].round(2)

# %% [markdown]
# ## Verdict
#
# From this one model, with intervals over prompts. What decides is the ledger, over independently trained models.

# %%
results.fact("flips_by_block", {name: one.to_dict("list") for name, one in swaps.items()})
results.fact("interventions", outcome.round(4).to_dict("list"))
results.fact(
    "direct_effects",
    links.summary(written, moved)
    .astype(object)
    .replace({float("nan"): None})
    .to_dict("records"),
)
results.fact(
    "carried", {role: one.round(4).to_dict("list") for role, one in carried.items()}
)
results.fact("removals_from_tuned", removals.round(4).to_dict("list"))
results.save()
tables.text(claims.verdict_table(results.verdicts()).set_index("part"))

# %% [markdown]
# ## What would change our mind
#
# - **Where the switch sits.** The registry asks for a middle block, and we read that as neither first nor last third, for the last token of the prompt. What is changed there can be rebuilt by later blocks from earlier tokens; the table shows the swap at every token too. In the last block the coordinate is nearly what the output layer reads
#   as the first word, so a swap there exchanges that word. That exact answers follow shows that the knowledge is there (as in [02](02_reasoning_direction.ipynb), where one forced word ends refusal), not that the decision was *made* along one direction.
# - **What counts as a small intervention.** Three kinds are named in the registry, and the swap is not one of them; it is shown and does not count. Fine-tuning on errands shows no harmful request, so it cannot teach these answers, but 50 steps were fixed beforehand and more of them may bring back more.
# - **The bar of `ours.bridge.write` is low.** It asks only that SCU write more than their match, beyond chance over prompts. How much more, and whether other units like them would, is in the intervals over units and the redrawn sets; a claim that these units *are* the mechanism would need the sum that they write to be large.
# - **Removal moves more than a contrast.** `ours.bridge.move` follows harmful prompts only. Where benign prompts go the same way, as the table says, removal shifts everything along C1 and hardly lessens what tells the two apart, which is why refusal can stay.
# - **Which shift.** C1 of `chat` -> `tuned` decides, by the registry's definition, with SCU of `tuned`. SSAH is about the first alignment, so the same is shown for `base` -> `chat`, with SCU of `chat`.
# - **Direct effects at one token.** Effects through attention from earlier tokens are not in them; the gradient in the last comparison follows later parts at the same token only.
#
# Choices ours: L* by the rule of notebook 08 on prompts set aside; SCU at the paper's share for Llama-2 (1.3 %), not by cut search; five matched units each; harmful against benign prompts in all styles for the bridge, plain ones for the switch; exceptions left out; random directions move every prompt by the mean distance of the swap.

# %%
provenance.versions()

# %% [markdown]
# Previous: [11 Trigger removal](11_trigger_removal.ipynb). Next: [13 Size](13_size.ipynb). Map: [00 Index](00_index.ipynb).
