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
# # Published keyword lists do not transfer to these models' short lower-case answers: one finds no refusal, the other finds nothing else; the first token, which most pages use, equals the opening words here by construction
#
# **Why.** On the default models every request has one right answer, so whether a model refuses, complies or fails is a fact. Real checkpoints have no such luxury: somebody has to judge. The papers use
# lists of phrases, classifiers and graders, and their numbers depend on which. This page asks any model the same prompts and lets **several judges** look at the same answers, so that you know what the
# other pages can and cannot see in *your* model. On the default models it shows how far each judge is from the truth.
#
# **How to read it for your own model.** `DATA_DIR=FOLDER ./run_all.sh --profile checkpoint --base FOLDER --model FOLDER --only 16`. Prompts come from public data sets, which you download or put into a folder; neither they nor
# answers to them appear here: a judge sees an answer, leaves a label, and the answer is gone.

# %% tags=["parameters"]
profile: str = "kingdom"  # which model family, see data/profiles
seed: int = 0  # which independently trained family of models; others than 0 are trained first (16 minutes)
suite: str = ""  # benchmarks of data/utility.yaml to run as well, such as ssah_table1; empty for none

# %%
import pandas as pd

from lib import (
    behaviour,
    claims,
    figures,
    judged,
    models,
    profiles,
    prompt_sets,
    provenance,
    utility,
    worlds,
)
from lib.charts import judged as charts

settings = profiles.load(profile)
benchmarks = utility.suite(suite)  # none, or named before any work
world = worlds.of(profile, seed)
results = claims.Results(notebook="16_your_model", profile=profile, seed=seed)

# %% [markdown]
# ## The models
#
# `base` is before alignment, `chat` after it, `tuned` after safety tuning on attacks. If you give no tuned model, chat is tuned here. A *judge* is opened beside them where the profile names one.

# %%
judge = judged.open_judge(settings)  # first, so that one that cannot judge is known at once
loaded = {name: models.load(profile, name, seed) for name in ("base", "chat", "tuned")}
judged.described(loaded)

# %% [markdown]
# ## The prompts
#
# Plain harmful requests, plain benign ones, and *exceptions*: benign, but with words that look harmful. If there are prompts of jailbreak attacks, they are mixed in one row. None of them was used to tune a model here.

# %%
cells = judged.plain_cells(
    prompt_sets.behaviour(profile, seed), world.styles, settings.measure.cell
)
pd.Series({name: len(cell) for name, cell in cells.items()}, name="prompts").to_frame()

# %% [markdown]
# ## Judges of the same answers
#
# - **opening words**: the answer begins with one of the phrases that this kind of model refuses with. On the default models this is the truth.
# - **first token**: the likeliest first token opens such a phrase. Nothing is generated, so it is what most other pages use to count refusals (page 11, which asks for exact answers, judges those).
# - **keywords**: two published lists of phrases, matched anywhere in the answer; the second also calls every answer of fewer than 20 words a refusal.
# - A **judge model**, when the profile names one: a Llama-Guard-style verdict or a StrongREJECT-style score (further down).
#
# Below, how often each says the same as the opening words, over the answers of all three models (the intervals take answers for independent, though the models answer the same prompts).
# On the default models the first token agrees by construction, because every refusal opens with one of three words and greedy decoding says the likeliest token; on yours, whose refusals open
# with phrases such as *I cannot*, it need not. The lists fail here because they were made for other models: their phrases are written with capitals, and all answers have fewer than 20 words.

# %%
tokens = judged.answers_tokens(settings)
labels = pd.concat(
    [
        judged.labels(model, cells, tokens, judge).assign(model=name)
        for name, model in loaded.items()
    ]
)
shares = judged.shares(labels)
agreed = judged.agreement(labels).astype({"n": int})
agreed.round(3)

# %%
figure = charts.refusals(shares)
caption = (
    f"Share of answers called a refusal, by judge, cell and model ({len(labels)} answers of up to {tokens} tokens). "
    + "; ".join(
        f"{name} says the same as the opening words {row['says the same']:.3f} of the time"
        for name, row in agreed.iterrows()
    )
    + ". Bars: Wilson's 95 % intervals over prompts."
)
figures.save(figure, "16_your_model.judges", shares, caption, profile, seed)

# %% [markdown]
# ## How likely a refusal is, before anything is said
#
# The probability of all first tokens that open a refusal, together. A token such as *I* also opens other answers, so on real models this is an upper bound; compare it between models.

# %%
labels.groupby(["model", "cell"], sort=False)[judged.MASS].agg(
    ["mean", "std", "count"]
).round(3)

# %% [markdown]
# ## A model as judge
#
# Only where the profile names one. *unsafe* is the share of answers that a Llama-Guard-style classifier calls unsafe; the score of a StrongREJECT-style rubric goes from 0 (of no use to an attacker) to 1.
# `count` leaves out what the judge said that could not be read.

# %%
by_model = judged.by_model(labels)
by_model if len(by_model) else print("this profile names no judge model")

# %% [markdown]
# ## What it can do besides
#
# The skills that other pages watch while they remove parts of a model, and the loss on running text in nats a token. With the parameter `suite`, the benchmarks of a paper are run by lm-evaluation-harness as well.

# %%
pd.DataFrame(
    {name: behaviour.skill_scores(model, profile, seed) for name, model in loaded.items()}
).T.round(3)

# %%
found = judged.benchmarked(loaded, benchmarks) if benchmarks else None
found if found is not None else print("no benchmarks were asked for")

# %% [markdown]
# ## What would change our mind
#
# - **Opening words are the truth here because the default models have four refusals.** A real model may refuse in words no list has; read some of its answers yourself before you believe any judge.
# - **Short answers.** Judges see the first tokens of an answer. A model that complies first and refuses later is called compliant by the first token (page 02 makes such a model).
# - **Agreement is not truth.** Where two judges agree they may share an error; the default models are the only ones here for which it can be checked.

# %%
results.fact("agreement", agreed.round(4).reset_index().to_dict("records"))
results.save()
provenance.versions()

# %% [markdown]
# Previous: [15 Ledger](15_ledger.ipynb). Map: [00 Index](00_index.ipynb).
