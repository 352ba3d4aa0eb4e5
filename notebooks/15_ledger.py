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
# # Every claim of both papers: what was printed, what decides it, what was measured, and what came out
#
# The claims are those of *Superficial Safety Alignment Hypothesis* (SSAH, [arXiv 2410.10862](https://arxiv.org/abs/2410.10862)) and *The Hidden Dimensions of LLM Alignment* (HD,
# [arXiv 2502.09674](https://arxiv.org/abs/2502.09674)), in the words of `data/claims.yaml`, and a few of ours that ask the same more strictly. A claim has *parts*: numbers, each with a *bar* it must pass,
# written before any result on these models (prototypes on another language, one seed, had been seen). *Core* parts are those without which the claim would be empty.
#
# This page reads results and measures nothing. **Everything here was measured on small models trained for this project**; a verdict on them is not a verdict on a 7B model.

# %% tags=["parameters", "reads-results"]
profile: str = "kingdom"  # which model family's ledger to show, see data/profiles
seed: int = 0  # kept so that all notebooks take the same two

# %%
from IPython.display import Markdown

from lib import figures, ledger, ledger_tables, profiles, provenance, stats, tables
from lib.charts import ledger as charts

settings = profiles.load(profile)
found = ledger.shown(settings.name)
print(ledger.headline(found))

# %% [markdown]
# ## How many hold
#
# Parts first. Intervals are 95 %, over models; whatever neither holds nor fails is *undecided*.
#
# | bar of a part | holds when | fails when |
# |---|---|---|
# | at least x, above n | the mean reaches x and the whole interval lies above n | the whole interval lies below x |
# | at most x | the whole interval lies at or below x | the whole interval lies above x |
# | above its control draws | the whole interval of (value minus mean of its control) lies above 0, and the value exceeds the 95th percentile of the control draws | that interval lies below .02 |
#
# Then claims. *Holds here*: every part holds. *Fails here*: a core part fails. *Mixed*: some parts hold and one that is not core fails. *Undecided*: none of these. *Not testable here*: what
# the claim presupposes is unmet in most models, or a core part has no number. *Not run*: no results yet. *No criterion*: the claim has no part that could decide it.

# %%
assert (stats.CONTROL_QUANTILE, stats.NEGLIGIBLE) == (0.95, 0.02)
tables.text(ledger_tables.counts(found))

# %% [markdown]
# ## Three that matter most
#
# One claim carries the first paper, one the second, and one the attack that the second derives from it.

# %%
Markdown(
    "\n\n".join(ledger_tables.sentences(found).values()) or "None of the three was run."
)

# %% [markdown]
# ### Where models disagree
#
# Means hide it, so here is `hd.3` model by model, in blocks from first to last: how far the dominant direction C1 is the shift that all prompts share (|cosine| with the mean shift), how
# well it tells refused from answered, beside random directions of the same span, and what the model answers when C1 is removed in a late block ([08](08_dominant_direction.ipynb)).

# %%
by_model = ledger_tables.dominant(found)
tables.text(by_model) if by_model.size else print("no model of this profile has it")

# %% [markdown]
# ## All parts on one axis
#
# Each row is one part. The dot says how far its value lies beyond its bar, to the right if that speaks for the claim; of parts that are held against a control, how far beyond the control. Large dots are core parts.
# Lines are 95 % intervals over independently trained models (Student's t, so with few models they are wide); diamonds are the papers' own printed numbers where they print something comparable. Triangles at
# the edge, open for printed numbers, point to values that lie further out. A line may lie wholly to the right and its part still be undecided: a value must also reach its bar, or exceed the 95th percentile of its control. Those draws are pooled over models, so where models lie far apart the percentile is that of the models with the larger draws.

# %%
parts = ledger_tables.parts(found)
figure = charts.forest(parts)
tally = parts["verdict"].value_counts()
caption = (
    f"{len(parts)} parts of {found['profile']}: "
    + ", ".join(f"{count} {verdict}" for verdict, count in tally.items())
    + f". {parts['margin_printed'].notna().sum()} have a printed number, of which "
    f"{(parts['margin_printed'] >= 0).sum()} are at or beyond the bar. Values beyond -1 or +1 are drawn at the edge."
)
missing = ledger_tables.without_number(found)
if missing:
    caption += f" Run, but without a number: {', '.join(missing)}."
data = parts.drop(columns=["rule", "note"])
figures.save(figure, "15_ledger.all", data, caption, profile, seed)

# %% [markdown]
# What to know before comparing a diamond with a dot:

# %%
notes = parts[parts["note"] != ""].set_index("part")[["printed", "note"]]
tables.text(notes.assign(printed=notes["printed"].map("{:+.3f}".format)))

# %% [markdown]
# ## Every claim

# %%
tables.text(ledger_tables.claim_table(found))

# %% [markdown]
# ## Every part
#
# *Measured* is the mean over models, then the value of each. *Control* is the mean of what was drawn at random, shuffled or left untrained to compare with. The interval stands with the number that
# is judged by it: of parts whose bar is the control, with the difference. *Already taken off* means that the measured value is itself a difference from that control; where the column is empty, the part compares two models or two groups within its measure, or has none. What a part measures is
# said in `data/claims.yaml`; what to know about printed numbers, above.

# %%
tables.text(ledger_tables.part_table(found))

# %% [markdown]
# ## What would change our mind
#
# - **More models.** With fewer than five the ledger is provisional, and most intervals contain their bar for that reason alone.
# - **A real checkpoint.** Size, natural language and attacks found by search are what these models lack; the first page lists what cannot carry over.
# - **A bar in the wrong place.** Bars were set before results and stay. Whoever would set one elsewhere finds value and interval above.
# - **Chance.** Among so many parts, some land on the wrong side of their bar by accident; how many that may be stands in the first line of this page.

# %%
provenance.versions()

# %% [markdown]
# Previous: [14 Published numbers](14_published_numbers.ipynb). Next: [16 Your model](16_your_model.ipynb). Map: [00 Index](00_index.ipynb).
