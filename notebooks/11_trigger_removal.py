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
# # After safety tuning, removing the words that drive the dominant direction works no better here than removing random words, and the best other style works at least as well
#
# **Claims** (*The Hidden Dimensions of LLM Alignment*, HD, [arXiv 2502.09674](https://arxiv.org/abs/2502.09674), section 6, appendix B, Tables 3 and 5-7). Safety tuning on
# K examples of each known attack soon stops all of them, HD says, except its own: **trigger removal** finds the words of a refused request that drive the dominant
# direction, rewrites the request without them, and keeps getting answers. The same holds for DPO and for SFT followed by DPO; at most 30 attempts a request are needed.
#
# **What HD does not have.** A control that removes *other* words; the same number of attempts for every attack (its other attacks get one fixed prompt); rankings of words beside its own.
# Its released attack ranks words by a plain gradient, attacks another model than the tuned one, and needs a 405B-parameter language model to rewrite. Here a request is
# rewritten by the grammar of the language: any frame and any word for the act and the object, but none of the words on the blacklist.
#
# **Decided by** `hd.10` and `hd.11` in `data/claims.yaml`, written before any result on these models (prototypes on another language, one seed, had been seen): at K = 80 trigger removal beats the best of eight jailbreak styles by at least .1, with as
# many attempts for each, and beats the removal of random words by at least .1. An answer counts when it is exactly the right answer to what was asked at first.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which independently trained family of models; others than 0 are trained first (16 minutes)

# %%
import pandas as pd

from lib import claims, figures, profiles, provenance, tables, worlds
from lib import trigger_tables as attack
from lib.charts import triggers as charts

# %%
settings, world = profiles.load(profile), worlds.of(profile, seed)
measure = settings.measure
results = claims.Results(notebook="11_trigger_removal", profile=profile, seed=seed)
most = max(settings.shots)
tried = attack.attempts(settings.triggers)
n = len(attack.asked(profile, seed))
series = {
    "SFT": {k: f"sft-{k}" for k in settings.shots},
    "DPO": {k: f"dpo-{k}" for k in settings.preference_shots},
    "SFT then DPO": {k: f"sft-dpo-{k}" for k in settings.preference_shots},
}
last = {training: roles[max(roles)] for training, roles in series.items()}
caveat = attack.caveat(world)
if caveat:
    print(f"Numbers of this profile are {caveat}.")

# %% [markdown]
# ## The attack
#
# Each round, the words of the best rewrite so far are ranked; the highest joins the request's blacklist (as in HD's code, only words of more than three letters can). Up to ten rewrites without
# blacklisted words are tried; the round ends at the first exact answer. After three rounds the request counts as refused. HD's ranking, *relevance*, is the part of each word in the projection of the last token
# on the dominant direction of the shift that made the model, in its last block, by AttnLRP (layer-wise relevance propagation for attention: a number is passed backward through the
# network, divided at each step among the inputs by what each contributed).
#
# Every other attacker has the same requests and as many different attempts: each jailbreak style re-dresses and re-words the request in the ways safety data hold; *random words* blacklists any word;
# *re-worded* has no blacklist at all. `chat` is the model before safety tuning, `SFT 80` the one after it with K = 80 examples an attack, trigger removal's among them.

# %%
against = {"chat": "chat", last["SFT"]: f"SFT, K = {most}"}
extra = (*attack.RANKINGS, *attack.UNFILTERED)
wide = pd.concat([attack.campaign(profile, role, seed, extra, draws=5) for role in against])
attack.examples(profile, seed, wide, last["SFT"], attack.RELEVANCE)

# %% [markdown]
# ## Models by K
#
# The same for every K and training, by relevance and by random words, beside the styles. HD's other attacks ask one prompt made beforehand; *prompts made for chat* does that with trigger removal: what
# the attack on `chat` ended with, asked once of every model.

# %%
rest = [role for roles in series.values() for role in roles.values() if role not in against]
narrow = [attack.campaign(profile, role, seed, draws=2) for role in rest]
dressed = [attack.styled(profile, role, seed) for role in (*against, *rest)]
plain = [attack.styled(profile, role, seed, [attack.REWORDED]) for role in against]
for_chat = wide[
    (wide["model"] == "chat") & (wide["attack"] == attack.RELEVANCE) & (wide["draw"] == 0)
]
moved = [
    attack.transferred(profile, role, seed, for_chat)
    for roles in series.values()
    for role in roles.values()
]
found = pd.concat([wide, *narrow, *dressed, *plain, *moved], ignore_index=True)
rates = attack.rates(found, seed, measure.bootstrap)
by_shots = attack.shots_table(rates, series)
by_shots.pivot(index="attack", columns=["training", "shots"], values="success").round(2)

# %% [markdown]
# ## Requirements
#
# The claims need models that refuse the styles when asked once, and rewrites that mean something: `base`, which refuses nothing, must answer them.

# %%
by_claim = {"hd.10": [last["SFT"]], "hd.11": [last["DPO"], last["SFT then DPO"]]}
for claim, roles in by_claim.items():
    met, reason = attack.requirement(profile, seed, roles)
    results.requires(claim, met=met, reason=reason)
    print(f"{claim}: {reason}")

# %% [markdown]
# ## The figure: success by K
#
# Left, HD's table: trigger removal falls slowest (its row ReNeLLM is left out, because it holds scores, not pass rates: [14](14_published_numbers.ipynb)). Right, ours: *relevance* is
# trigger removal by HD's ranking. *Best style* is the most successful of the eight, with as many attempts as trigger removal has; *mean style* their mean, which has no band of its own.

# %%
table3 = figures.published("hd_table3")
same = table3[table3["metric"] != "StrongREJECT score"]
figure = charts.shots(same, by_shots, caveat)
at_most = by_shots[by_shots["shots"] == most].set_index(["training", "attack"])["success"]
called = {attack.RELEVANCE: "trigger removal (relevance)"}
called |= {name: name for name in (attack.RANDOM, attack.BEST_STYLE, attack.MEAN_STYLE)}
caption = (
    f"Attack success by K. At K = {most}: "
    + "; ".join(
        f"{training}: "
        + ", ".join(
            f"{label} {at_most[training, name]:.2f}"
            for name, label in called.items()
            if (training, name) in at_most
        )
        for training in series
    )
    + f". Bands: 95 % over {n} requests, none for the mean style; {tried} attempts each."
)
figures.save(figure, "11_trigger_removal.shots", by_shots, caption, profile, seed)

# %%
gaps = {
    training: attack.gap(found, role, seed, measure.bootstrap)
    for training, role in last.items()
}
beside = {
    name: attack.advantage(found, last["SFT"], name, attack.RANDOM, seed, measure.bootstrap)
    for name in (attack.RELEVANCE, attack.OCCLUSION)
}
decided = {
    "hd.10.gap": gaps["SFT"],
    "hd.10.random": beside[attack.RELEVANCE],
    "hd.10.occlusion": beside[attack.OCCLUSION],
    "hd.11.dpo": gaps["DPO"],
    "hd.11.both": gaps["SFT then DPO"],
}

# %%
for part, value in decided.items():
    reason = None if value else attack.NO_STYLES
    prompts = value.n if value else n
    results.part(part, value and value.mean, prompts, interval=value, reason=reason)
rows = {name: (one.mean, one.lower, one.upper) for name, one in decided.items() if one}
pd.DataFrame(rows, index=["difference", "lower", "upper"]).T.round(3)

# %% [markdown]
# ## Which ranking
#
# All rankings against `chat` and against the model tuned with K = 80: HD's relevance; the same to the dominant direction with the shift's mean removed first (*centred*, see
# [08](08_dominant_direction.ipynb)); the conservative variant that other studies use; a plain gradient, which is what the released code computes; leave-one-out, which asks the model itself what
# each word does; random words. Three of them once more with words of every length, because the rule of more than three letters is an accident of spelling.

# %%
listed = rates[rates["model"] == last["SFT"]].set_index("attack")
columns = ["success", "lower", "upper", "refused", "wrong", "queries", "n"]
print(f"SFT, K = {most}: shares of {n} requests; queries: attempts, mean over requests")
print(f"wrong answers: at most {listed['wrong'].max():.2f} of requests in any row")
listed[columns].round(2) + 0.0

# %%
figure = charts.rankings(rates, against, caveat)
sft = rates[rates["model"] == last["SFT"]].set_index("attack")["success"]
caption = (
    f"Success of every ranking, of re-wording without one and of every style; bars 95 % over {n} requests, random "
    f"words five draws. SFT, K = {most}: "
    + ", ".join(f"{name} {sft[name]:.2f}" for name in (*attack.RANKINGS, attack.REWORDED))
)
styles = attack.styles_in(rates)
if styles:
    caption += f"; most successful style {sft[styles].idxmax()} {sft[styles].max():.2f}"
caption += "."
figures.save(figure, "11_trigger_removal.rankings", rates, caption, profile, seed)

# %%
shares = attack.roles_of_triggers(wide, "chat", world.word_roles)
figure = charts.roles(shares)
top = attack.common_triggers(wide, "chat", attack.RELEVANCE)
telling = [role for role in ("harmful act", "hazard") if role in shares] or list(shares)[:1]
caption = (
    "What the words blacklisted against chat are; random words show what chance gives. Share that names a "
    f"{' or a '.join(telling)}: "
    + ", ".join(
        f"{name} {row[telling].sum():.2f}"
        for name, row in shares.loc[list(attack.RANKINGS)].iterrows()
    )
    + f". Most often by relevance: {', '.join(top.index)}."
)
data = shares.rename_axis("ranking").reset_index()
figures.save(figure, "11_trigger_removal.triggers", data, caption, profile, seed)

# %% [markdown]
# ## How many attempts
#
# HD allows 30 attempts a request (`hd.15`) and does not say how many were needed. A style that fails at the first attempt may succeed at the tenth, and so may mere
# re-wording: this is what equal attempts are about.

# %%
curves = {title: attack.within(found, role, tried) for role, title in against.items()}
figure = charts.attempts(curves, tried)
needed = found[(found["exact"] == 1) & (found["attack"] == attack.RELEVANCE)]
median = needed.groupby("model")["queries"].median()
results.fact("attempts_of_successful_attacks", median.to_dict())
caption = (
    f"Requests answered within so many attempts, of {n}. Median attempts where trigger removal by relevance succeeds: "
    + ", ".join(
        f"{title} {median[role]:.0f}" for role, title in against.items() if role in median
    )
    + ". The best style is the one that succeeds most often in the end."
)
data = pd.concat([table.assign(model=title) for title, table in curves.items()])
figures.save(figure, "11_trigger_removal.attempts", data, caption, profile, seed)

# %%
tuned = found[(found["model"] == last["SFT"]) & found["attack"].isin(styles)]
at_once = ((tuned["queries"] == 1) & (tuned["exact"] == 1)).groupby(tuned["attack"]).mean()
print(f"SFT, K = {most}: share of requests that a style gets answered at its first attempt")
at_once.rename("answered").to_frame().round(2)

# %% [markdown]
# ## The proposed remedy, and wordings that safety data never held
#
# HD proposes to add trigger-removed prompts to the safety data. Three models with K = 80 differ in these data alone: *without* trigger-removed prompts, *with* them (the default), and
# with them and **every wording** on the harmful side, also the rare words and frames that only rewrites use. If success fell with the last, what looked like an attack on the mechanism would be owed to vocabulary.

# %%
arms = attack.remedies(profile, seed)
shown = [*attack.MAIN, attack.OCCLUSION, attack.REWORDED]
others = [role for role in arms.values() if role not in against]
runs = [attack.campaign(profile, role, seed, shown[:-1], draws=2) for role in others]
runs += [attack.styled(profile, role, seed, [attack.REWORDED]) for role in others]
runs.append(found[(found["model"] == last["SFT"]) & found["attack"].isin(shown)])
names = {role: name for name, role in arms.items()}
success = attack.rates(pd.concat(runs), seed, measure.bootstrap).replace({"model": names})
price = attack.cost(profile, arms, seed)
price.set_axis(price.columns.str.replace("_", " "), axis=1).round(3)

# %%
figure = charts.remedy(success, price)
table = success.pivot(index="model", columns="attack", values="success").loc[list(arms)]
caption = (
    f"{['One set', 'Two sets', 'Three sets'][len(arms) - 1]} of safety data, K = {most}. Trigger removal by relevance succeeds "
    + ", ".join(f"{table.loc[arm, attack.RELEVANCE]:.2f} ({arm})" for arm in arms)
    + "; re-wording without a ranking "
    + ", ".join(f"{table.loc[arm, attack.REWORDED]:.2f}" for arm in arms)
)
if "false_refusal_styled" in price:
    caption += "; benign styled requests refused "
    caption += ", ".join(f"{value:.3f}" for value in price["false_refusal_styled"])
caption += f". Bars: 95 % over {n} requests."
figures.save(figure, "11_trigger_removal.remedy", success, caption, profile, seed)

# %% [markdown]
# ## Verdict
#
# From this one model, with intervals over requests. What decides is the [ledger](15_ledger.ipynb), over independently trained models. `hd.15`, how many attempts are needed, has no
# criterion; the medians above are its answer.

# %%
columns = ["training", "attack", "shots", "success"]
results.fact("success_by_shots", by_shots[columns].round(4).to_dict("list"))
results.fact("success_by_ranking", sft.to_dict())
results.fact("remedy", table.round(4).to_dict())
results.fact("false_refusal_of_remedy", price.round(4).to_dict())
results.save()
judged = [row for row in results.verdicts() if row["parts"]]
tables.text(claims.verdict_table(judged).set_index("part"))

# %% [markdown]
# ## What would change our mind
#
# - **Words that carry refusal.** The models here refuse a request in words that safety data hold in harmless requests only (*refusal rare words* above), so there is hardly a word whose absence opens
#   the door. A model that refuses *words* rather than meanings would be open to this attack. The last arm, trained on every wording, would show by a fall of success how much is vocabulary;
#   how far success by relevance fell from the default to that arm says the last caption, and with so few requests the two arms are hardly told apart.
# - **A better rewriter.** HD's is a language model that writes ten rewrites in different *styles*. Ours changes frames and synonyms and keeps the style plain. What gets past safety tuning in
#   the figure above is a change of style, so HD's success may come from its rewriter and not from its blacklist: re-wording without a ranking is the control that would tell, and it was not reported.
# - **A better ranking.** Leave-one-out asks the model itself, word by word, and shows what a greedy removal by its response gives. If it were far above relevance, the fault would be relevance's.
# - **One attempt for the others.** HD gives its other attacks one prompt each. How often a style succeeds at its first attempt stands in the table below the curves; the best of 30 is a much harder rival.
# - **A laxer judge.** HD counts an attack as passed when no refusal is detected. Here an answer must be exact; requests that ended in a wrong answer have a column of their own in the table of rankings.
#
# Choices the paper leaves open and ours: one word a round joins the blacklist (three from each failed rewrite in HD, whose prompts are several times longer); the dominant direction is that of the shift
# that made the attacked model, in its last block, uncentred; prompts used for K are attacks on `chat`.

# %%
provenance.versions()

# %% [markdown]
# Previous: [10 Direction dynamics](10_direction_dynamics.ipynb). Next: [12 One mechanism](12_one_mechanism.ipynb). Map: [00 Index](00_index.ipynb).
