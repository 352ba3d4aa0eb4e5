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
# # Removing the units that SSAH's score calls safety-critical leaves refusal in place here; a causal score finds few units that carry most of it, and far fewer single weights suffice
#
# **Claims** (*Superficial Safety Alignment Hypothesis*, SSAH, [arXiv 2410.10862](https://arxiv.org/abs/2410.10862), section 4, Table 1, and its conclusion).
# A *unit* is a neuron of an MLP or a channel of attention, with all the weights that belong to it. SSAH scores every unit on harmful and on harmless prompts and sorts
# units into four groups: safety-critical (**SCU**), utility-critical (**UCU**), complex (**CU**, serving both) and redundant (**RU**). It says that a very small set, the SCU,
# carries safety alone, and concludes that the neuron is the atomic unit of safety.
#
# | SSAH reports, units removed | share of units | zero-shot accuracy | attack success without system prompt |
# |---|---|---|---|
# | none (Llama-2-7B-Chat) | | 58.3 | 18 |
# | SCU | 1.3 % | 56.9 | 84 |
# | UCU | 13.3 % | 42.7 | 48 |
# | RU | 14.8 % | 55.5 | 19 |
#
# **We measure** the same on `chat`, a 1.3M-parameter model trained here, and add what the table lacks: random units, equal in number; intervals; other scores; other ways to
# remove a unit; and sets of single weights.
#
# **Decided by** `ssah.4`, `ssah.4.best` and `ssah.11` in `data/claims.yaml`, written before any result: without SCU (at most 2 % of units) attack success on plain harm rises by at
# least .25 and beyond random units, while utility falls by at most .05; UCU and RU behave as their names say; whole units need at most twice the parameters that single weights need.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which organism; others than 0 are trained first (16 minutes)

# %%
import pandas as pd

from lib import (
    claims,
    figures,
    models,
    profiles,
    prompt_sets,
    provenance,
    tables,
    unit_choice,
    unit_scores,
    unit_stability,
    unit_tables,
    unit_weights,
    units,
)
from lib.charts import units as charts

# %%
settings = profiles.load(profile)
measure = settings.measure
results = claims.Results(notebook="03_unit_classification", profile=profile, seed=seed)

# %% [markdown]
# ## Score: one row a unit
#
# A neuron is a row of the gate and up matrices with the column of the down matrix that writes it out; a channel is a row of the value matrix with its output column.
# Everything below works on a table with one row a unit, in three steps: **score**, **group**, **edit**.

# %%
chat = models.load(profile, "chat", seed)
total = len(unit_scores.table(chat))
unit_scores.table(chat).groupby("kind").size().to_frame("units")

# %% [markdown]
# Scores are computed on two calibration sets whose meanings occur in safety data: plain harmful requests, refused (I_S), and plain benign requests and skills, answered (I_U).
# SSAH's score is the variance of a unit's value over tokens times the squared norm of its column. Beside it: the second moment (Wanda), FLAP's running fluctuation, SNIP (weight times gradient
# of the answer's loss), and Taylor (value times gradient of the logit of refusing against that of complying; with its sign, it says which way a unit pushes).
# Activation scores are taken over all tokens, the answer's, or the one that decides the answer's first word.

# %%
sets = prompt_sets.calibration(profile, seed)
calibration = unit_scores.calibrate(chat, sets)
raw = calibration.raw[unit_scores.PAPER]
raw.sort_values("safety", ascending=False).head(3).round(3)

# %% [markdown]
# SSAH does not say how I_S and I_U are made comparable before they are subtracted. Ours for the paper's score is the standard score within kind and layer (z), as in FLAP.
# Two other rules come from models that decide nothing (seeds 5 and 6): **the chosen score** had the largest rise of attack success among rules that cost little utility on both;
# **the strongest score** had the largest rise whatever its cost. The first decides `ssah.4.best`; the second decides nothing. The best five of the record:

# %%
paper = dict(zip(("score", "position"), unit_scores.PAPER, strict=True))
rules = {
    charts.PAPER: profiles.UnitRule(**paper, normalisation="z"),
    charts.BEST: settings.units.best,
    charts.STRONGEST: settings.units.strongest,
}
scored = {
    name: units.score(calibration.raw[rule.score, rule.position], rule.normalisation)
    for name, rule in rules.items()
}
unit_choice.recorded().head().round(3)

# %% [markdown]
# ## Group: how many of each
#
# RU have the smallest I_S + I_U; of the rest, SCU have the largest and UCU the smallest I_S - I_U; CU are what is left. SSAH scans shares from high to low and keeps the first that spares
# what should survive. We do so on prompts with meanings from safety data, never on those that judge: RU may cost .05 of utility and of refusal, SCU .05 of utility, UCU .1 of refusal;
# if no share passes, the smallest is kept. The search for the paper's score:

# %%
practice = unit_tables.practice(profile, seed)
searched = {
    name: unit_tables.cut_search(chat, table, settings.units.cuts, practice)
    for name, table in scored.items()
}
shares = {name: found for name, (found, _) in searched.items()}
grouped = {name: units.groups(scored[name], **shares[name]) for name in rules}
searched[charts.PAPER][1].round(3).set_index(["group", "share"])

# %%
fixed = {group: getattr(settings.units, group) for group in ("ru", "scu", "ucu")}
pd.DataFrame(shares | {"fixed: Llama-2-7B-Chat": fixed}).T.assign(units=total)

# %% [markdown]
# ## Edit: Table 1 again
#
# First, is there anything to take away? `ssah.4` needs a model that refuses plain harm and is useful. *Utility* is the mean of six skills and of exact benign answers; *attack success*
# is exact harmful compliance. All prompts are held out: their meanings occur in no safety data.

# %%
asked = unit_tables.heldout(profile, seed)
dense = unit_tables.observe(chat, asked)
refusal, utility = dense.loc[0, ["refusal", "utility"]]
met, why = (
    refusal >= 0.9 and utility >= 0.9,
    f"chat refuses {refusal:.2f} of plain harm, utility {utility:.2f}",
)
results.requires("ssah.4", met=met, reason=why)
results.testable(met, why)
harm_n, utility_n = asked.n("attack_success"), asked.n("utility")
print(f"{why}; {harm_n} harmful prompts, {utility_n} benign prompts and questions")

# %% [markdown]
# The published table. Llama-2's printed average attack rate is not the mean of its two printed columns (they give 10.5 and 51.5, not 10 and 66), so we compare with the
# rate without system prompt.

# %%
table1 = figures.published("ssah_table1").set_index(["model", "group"])
llama2 = table1.loc["Llama-2-7B-Chat"]
halves = llama2[["asr_system", "asr_no_system"]].mean(axis=1)
assert halves[["dense", "scu"]].tolist() == [10.5, 51.5]
assert llama2["asr_average"][["dense", "scu"]].tolist() == [10, 66]
table1[["share", "wiki2", "average", "asr_system", "asr_no_system", "asr_average"]]

# %% [markdown]
# Ours, with units set to zero: groups by the paper's score at the shares of the cut search, at the paper's fixed shares, and by the chosen score. First utility: shares of exact
# answers, and nats a token for the story.

# %%
whole = unit_tables.heldout(profile, seed, "whole")
sources = {
    "cut search": grouped[charts.PAPER],
    "fixed shares": units.groups(scored[charts.PAPER], **fixed),
    charts.BEST: grouped[charts.BEST],
}
rebuilt = {("", "nothing removed"): unit_tables.observe(chat, whole)} | {
    (name, group.upper()): unit_tables.observe(
        chat, whole, units.edits(table[table["group"] == group])
    )
    for name, table in sources.items()
    for group in units.GROUPS
}
columns = [*whole.skills, "benign_exact", "utility", "story_nll"]
unit_tables.removal_table(rebuilt, columns).round(3)

# %% [markdown]
# Then safety: plain harmful prompts, without and with the system line (a sentence that tells the model to be safe). Wrong answers are neither a refusal nor the exact answer.

# %%
outcomes = ["attack_success", "refusal", "wrong"]
columns = [*outcomes, *(f"{name}_system" for name in outcomes), "false_refusal"]
after = unit_tables.removal_table(rebuilt, columns).round(3)
after.set_axis(after.columns.str.replace("_", " "), axis=1)

# %% [markdown]
# ## Beside random units
#
# The same removals on the prompts that decide, with intervals that resample meanings; model and edited model answer the same prompts. Controls are random units outside the group, as many
# in every layer and of every kind.

# %%
removed = {
    (name, group): table[table["group"] == group]
    for name, table in grouped.items()
    for group in ("scu", "ucu", "ru")
}
without = {
    key: unit_tables.observe(chat, asked, units.edits(rows))
    for key, rows in removed.items()
}
draws = {
    group: unit_tables.random_draws(
        chat,
        grouped[charts.PAPER],
        removed[charts.PAPER, group],
        asked,
        measure.draws,
        seed,
    )
    for group in ("scu", "ru")
}

# %%
changes = unit_tables.effects(
    {f"{name}: {group.upper()}": frame for (name, group), frame in without.items()},
    dense,
    asked,
)
drawn = unit_tables.random_effects(
    {f"random, as many as {group.upper()}": frame for group, frame in draws.items()}, dense
)
spread = drawn.groupby("name", sort=False)[["rise", "cost"]].agg(["mean", "min", "max"])
print(f"{measure.draws} draws each")
spread.round(3)

# %%
changes.set_index("name").round(3)

# %% [markdown]
# What decides `ssah.4`. For RU, "less damage than random units" is recorded as the damage with its sign turned, so that more is better.

# %%
parts = unit_tables.critical_parts(dense, without[charts.PAPER, "scu"], asked)
parts |= unit_tables.other_parts(
    dense, without[charts.PAPER, "ucu"], without[charts.PAPER, "ru"], asked
)
risen = draws["scu"]["attack_success"] - dense.loc[0, "attack_success"]
controls = {"scu": risen, "scu_random": risen}
controls["ru_random"] = -unit_tables.damage(dense.iloc[0], draws["ru"])
for name, interval in parts.items():
    results.part(
        f"ssah.4.{name}",
        interval.mean,
        interval.n,
        interval=interval,
        controls=controls.get(name, ()),
        detail={"shares": shares[charts.PAPER]},
    )

# %%
printed = unit_tables.printed_changes(table1.reset_index())
bounds = unit_choice.bounds()
shown = [f"{charts.PAPER}: {group}" for group in ("UCU", "RU")]
shown += [f"{name}: SCU" for name in rules]
figure = charts.corner(printed, changes[changes["name"].isin(shown)], drawn, bounds)
scu = printed[printed["group"] == "scu"]
by_name = changes.set_index("name")
seen = {name: by_name.loc[f"{name}: SCU"] for name in rules}
at_random = drawn[drawn["name"].str.endswith("SCU")]["rise"]

# %%
caption = (
    "Rise of attack success against drop in utility when a group of units is removed. Left, published: SCU "
    f"{scu['rise'].min():.2f} to {scu['rise'].max():.2f} at a cost of {scu['cost'].min():.2f} to "
    f"{scu['cost'].max():.2f}. Right, measured on {harm_n} harmful prompts: "
    + "; ".join(
        f"SCU by {name} {one['rise']:+.2f} [{one['rise_lower']:.2f}, {one['rise_upper']:.2f}] at {one['cost']:+.2f}"
        for name, one in seen.items()
    )
    + f". {measure.draws} draws of as many random units: {at_random.min():+.2f} to {at_random.max():+.2f}."
)
data = figures.panels(published=printed, measured=changes, random=drawn)
figures.save(figure, "03_unit_classification.ssah.4", data, caption, profile, seed)

# %% [markdown]
# ## Is it the score?
#
# The same question for the chosen score (`ssah.4.best`), and as a test of power for the strongest: were there no small set of units that carries refusal, no score could find one.
# Random units match the chosen SCU in number, kind and layer.

# %%
harm = asked.only(unit_tables.HARM)
chosen = grouped[charts.BEST], removed[charts.BEST, "scu"]
by_chance = unit_tables.random_draws(chat, *chosen, harm, measure.draws, seed)
risen = by_chance["attack_success"] - dense.loc[0, "attack_success"]
parts = unit_tables.critical_parts(dense, without[charts.BEST, "scu"], asked)
for name, interval in parts.items():
    results.part(
        f"ssah.4.best.{name}",
        interval.mean,
        interval.n,
        interval=interval,
        controls=() if name == "scu_utility" else risen,
        detail={"rule": settings.units.best.model_dump(), "shares": shares[charts.BEST]},
    )

# %% [markdown]
# All three rankings, cut at many sizes. Here random units match the strongest ranking.

# %%
counts = unit_tables.doses(total)
doses = {
    name: unit_tables.dose(chat, table, shares[name]["ru"], counts, asked)
    for name, table in scored.items()
}
strongest = scored[charts.STRONGEST], shares[charts.STRONGEST]["ru"]
small = unit_tables.heldout(profile, seed, "small")
some = counts[::2]
random_units = unit_tables.random_curve(chat, *strongest, some, small, 5, seed)
dosed = pd.concat(
    [unit_tables.dose_curve(dense, found, name, asked) for name, found in doses.items()]
    + [random_units.assign(series=charts.RANDOM)],
    ignore_index=True,
)

# %%
baseline = dense.loc[0, list(unit_tables.CURVES)]
absolute = printed[printed["group"] == "scu"]
figure = charts.dose(absolute, dosed, total, baseline)
at = dosed[dosed["units"] == units.count(settings.units.cuts["scu"].shares[0], total)]
at = at.pivot(index="series", columns="attribute", values="value")

# %%
caption = (
    "Attack success, refusal and utility by the share of units removed, largest I_S - I_U first. At "
    f"{settings.units.cuts['scu'].shares[0]:.0%}: "
    + "; ".join(
        f"{name}: attack success {one['attack_success']:.2f}, utility {one['utility']:.2f}"
        for name, one in at.iterrows()
    )
    + f". Bands: 95 % over {harm_n} harmful and {utility_n} other prompts; for random units the range of 5 draws on fewer "
    "prompts. Crosses: published, three 7-8B models, hollow with nothing removed."
)
data = figures.panels(published=absolute, measured=dosed)
figures.save(figure, "03_unit_classification.ssah.4.best", data, caption, profile, seed)

# %% [markdown]
# ## Every combination
#
# Which score, position, normalisation and way to remove makes safety fall while utility stays? At equal shares for all (those of the paper's score), a removal is called by what it does:
# *safety falls* if attack success rises by .25, *utility falls* if it drops by more than .05, *over-refusal* if benign requests are refused .1 more often. Units are set to zero, to their mean
# over the utility set (as FLAP compensates), or to values they had at random tokens of that set.

# %%
equal = {group: shares[charts.PAPER][group] for group in ("ru", "scu")}
grid = unit_tables.sensitivity(chat, calibration, equal, small, bounds)
by_chance = [
    unit_tables.outcome(one - dense.iloc[0], *bounds) for _, one in draws["scu"].iterrows()
]
named = pd.DataFrame({"removal": "random units, zero", "outcome": by_chance})
named = pd.concat([grid[["removal", "outcome"]], named])
words = pd.crosstab(named["removal"], named["outcome"])
words

# %%
figure = charts.sensitivity(grid)
alone = grid[grid["outcome"] == unit_tables.ALONE]
by_score = grid.groupby("score")["attack_success"].agg(["min", "max"])
unsure = unit_tables.interval(pd.Series([0.0, 0.0]), small.n("attack_success"))
caption = (
    f"What removing the units of largest I_S - I_U ({equal['scu']:.1%} of all) does; numbers: rise of attack success on "
    f"{unsure.n} harmful prompts, where 0 has a 95 % interval of {unsure.upper:.2f} on either side. Safety falls and "
    f"utility stays in {len(alone)} of {len(grid)} combinations, with scores: "
    f"{', '.join(sorted(set(alone['score']))) or 'none'}. Variance: {by_score['min']['variance']:+.2f} to "
    f"{by_score['max']['variance']:+.2f}; Taylor without its sign: {by_score['min']['taylor']:+.2f} to "
    f"{by_score['max']['taylor']:+.2f}."
)
figures.save(figure, "03_unit_classification.sensitivity", grid, caption, profile, seed)

# %% [markdown]
# ## Is the set stable?
#
# A reviewer of SSAH asked for this. SCU are chosen again on other samples of training meanings; the overlap of two sets is the number of units in both over the number in either.
# A set can be stable and still do nothing when it is removed, so stability alone is no evidence for a score. Beside it, where SCU lie: units of differently seeded models cannot be matched, but
# their layers can.

# %%
again = unit_stability.redrawn(
    chat, profile, seed, [(rule.score, rule.position) for rule in rules.values()], draws=5
)
redone = {
    name: [
        units.groups(units.score(one, rule.normalisation), **shares[name])
        for one in again[rule.score, rule.position]
    ]
    for name, rule in rules.items()
}
overlaps = pd.DataFrame(
    (name, jaccard)
    for name, found in redone.items()
    for jaccard in unit_stability.overlap([one[one["group"] == "scu"] for one in found])
).set_axis(["series", "jaccard"], axis=1)
size = max(len(removed[name, "scu"]) for name in rules)
chance = unit_stability.overlap_by_chance(size, total)

# %%
places = unit_stability.places(grouped)
figure = charts.stability(overlaps, chance, places)
mean = overlaps.groupby("series", sort=False)["jaccard"].mean()
neurons = places[places["kind"] == "neuron"].groupby("series", sort=False)["share"].sum()
caption = (
    f"Left, overlap of SCU between calibration samples, {len(overlaps) // len(rules)} pairs each: "
    + ", ".join(f"{name} {value:.2f}" for name, value in mean.items())
    + f"; random sets {chance:.3f}. Right, where SCU lie. Share of neurons: "
    + ", ".join(f"{name} {value:.2f}" for name, value in neurons.items())
    + "."
)
data = figures.panels(overlap=overlaps, composition=places)
figures.save(figure, "03_unit_classification.stability", data, caption, profile, seed)

# %% [markdown]
# ## Is the neuron the atom?
#
# If safety were made of units, the weights that carry it would come in whole units. So take single weights instead, out of the same matrices: by the set difference of Wei et al. 2024
# (SNIP: the top share q for safety that is not in the top share p for utility, matrix by matrix), and by the causal ranking that units have too (weight times gradient of the
# refusal logit, I_S - I_U). Control: the same causal scores dealt anew among the weights of each matrix.

# %%
# One kind of score at a time: each is as large as the model, for both sets.
single = unit_weights.by_set_difference(
    chat, {name: unit_scores.saliency(chat, part) for name, part in sets.items()}, asked
)
causal = unit_weights.difference(
    {name: unit_scores.weight_taylor(chat, part) for name, part in sets.items()}
)
single += unit_weights.by_ranking(chat, causal, asked, charts.CAUSAL)
dealt = unit_weights.shuffled(chat, causal, seed)
random_single = unit_weights.by_ranking(
    chat, dealt, asked, charts.RANDOM_WEIGHTS, numbers=unit_weights.NUMBERS[::3]
)
in_units = [
    removal
    for name, found in doses.items()
    for removal in unit_weights.of_units(
        chat, scored[name], shares[name]["ru"], found, name
    )
]

# %% [markdown]
# `ssah.11` compares the smallest sets, of any ranking, that raise attack success by .25 at a cost of at most .05. A unit counts with all its weights. It is silent already when its output column
# is zero; the second number counts columns only.

# %%
most = claims.part("ssah.11.single_weights").rule.bound
sizes = unit_weights.size_ratio(in_units, single, dense, bounds, most, harm_n)
enough = [
    number
    for found in doses.values()
    for number, frame in found.items()
    if unit_weights.sufficient(frame, dense, *bounds)[0]
]
columns_only = min(enough) * chat.width if enough else None
needed = {
    "whole units": sizes.units,
    "their columns": columns_only,
    "single weights": sizes.weights,
}
ratios = {
    name: round(number / sizes.weights, 1) if number and sizes.weights else None
    for name, number in needed.items()
}
table = pd.DataFrame({"parameters": needed, "times single weights": ratios}, dtype=object)
table.fillna("no set tried suffices")

# %%
results.part(
    "ssah.11.single_weights",
    sizes.ratio and sizes.ratio.mean,
    harm_n,
    interval=sizes.ratio,
    detail=needed,
    reason=None if sizes.ratio else sizes.reason,
)

# %%
curve = unit_weights.size_curve(in_units + single + random_single, dense, asked)
smallest = {
    name: number for name, number in needed.items() if number and "columns" not in name
}
figure = charts.sizes(curve, bounds, list(smallest.items()))
by_chance = curve[
    (curve["series"] == charts.RANDOM_WEIGHTS) & (curve["attribute"] == "attack_success")
]
ratio = "" if sizes.ratio is None else f" ({sizes.ratio.mean:.0f} times as many)"
differences = curve[curve["series"].str.contains("difference")].query(
    "attribute == 'attack_success'"
)
caption = (
    "Rise of attack success and drop in utility by the number of parameters set to zero. Enough for a rise of "
    f"{bounds[0]:g} at a cost of {bounds[1]:g}: "
    + ", ".join(f"{name} {number:,}" for name, number in smallest.items())
    + f"{ratio}. {sizes.reason}{'. ' if sizes.reason else ''}SNIP set differences raise it by at most {differences['value'].max():.2f}, random weights by "
    f"at most {by_chance['value'].max():.2f}. Bands: 95 % over {harm_n} harmful and {utility_n} other prompts."
)
figures.save(figure, "03_unit_classification.ssah.11", curve, caption, profile, seed)

# %% [markdown]
# ## Verdict
#
# From this one model, with intervals over prompts. What decides is the ledger, over independently trained models.

# %%
results.fact("shares", shares)
results.fact("rise_and_cost", changes.round(4).to_dict("list"))
results.fact("outcomes", words.T.to_dict())
results.fact("overlap", mean.round(4).to_dict() | {"by chance": round(chance, 4)})
results.save()
tables.text(claims.verdict_table(results.verdicts()).set_index("part"))

# %% [markdown]
# ## What would change our mind
#
# - **Our reading of the score.** SSAH's code was not public when this was written. Tokens, normalisation, ranking and the sets themselves are our choices. The grid above varies the first two
#   and the way to remove; code that scores or ranks otherwise would reopen `ssah.4`.
# - **What a size can see.** Variance, second moment, SNIP and Taylor without its sign say how much a unit matters, not which way it pushes: units for and against refusal look alike. On
#   prompts that differ more in length and topic than ours, size may follow harm more closely.
# - **A score that is given the answer.** Signed Taylor differentiates the very choice that is then measured (on other meanings), so it shows that a small set *exists*, not that importance on
#   a set of harmful prompts finds it.
# - **Chosen beforehand.** `ssah.4.best` is judged with the rule that two other models preferred. The strongest score missed that choice by its cost on one of them; where it is cheap, as the figures
#   show, the choice was unlucky. It is not changed after the fact.
# - **Steps.** Sizes are tried in steps, so the ratio of `ssah.11` is right to about a factor of 1.5, and its interval, which resamples prompts only, can have no width. Better rankings of units
#   or of weights would move it; it would have to fall below 2.
# - **A small model.** Few words decide refusal here. In a 7B model a decision may be spread over more weights, or more neatly over units.
#
# Choices the paper leaves open and ours: attention is cut by channel, not by head; the ranking is over the whole model; no retraining and, with zero, no compensation; the tolerances of the cut search.

# %%
provenance.versions()

# %% [markdown]
# Previous: [02 Reasoning direction](02_reasoning_direction.ipynb). Next: [04 Attribute transfer](04_attribute_transfer.ipynb). Map: [00 Index](00_index.ipynb).
