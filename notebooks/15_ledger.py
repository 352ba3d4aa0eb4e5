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
# [arXiv 2502.09674](https://arxiv.org/abs/2502.09674)), in the words of `data/claims.yaml`, where each has its criterion, written before any result. A claim has *parts*, numbers with a bar.
#
# This page reads results and measures nothing. **Everything here was measured on small models trained for this project**; a verdict on them is not a verdict on a 7B model.

# %% tags=["parameters", "reads-results"]
profile: str = "kingdom"  # which model family's ledger to show, see data/profiles
seed: int = 0  # kept so that all notebooks take the same two

# %%
from IPython.display import Markdown

from lib import figures, ledger, ledger_tables, profiles, provenance, tables
from lib.charts import ledger as charts

settings = profiles.load(profile)
found = ledger.shown(settings.name)
print(ledger.headline(found))

# %% [markdown]
# ## How many hold
#
# *Holds here*: every part is beyond its bar with its whole interval. *Fails here*: a part without which the claim would be empty (core) is not. *Mixed*: only a part that is not core fails.
# *Undecided*: an interval contains its bar. *Not testable here*: a requirement of the claim is unmet, so nothing is said. *Not run*: no results yet, or the claim needs a real checkpoint.

# %%
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
# ## All parts on one axis
#
# Each row is one part. The dot says how far its value lies beyond its bar, to the right if that speaks for the claim; of parts that are held against a control, how far beyond the control. Large dots are core parts.
# Lines are 95 % intervals over independently trained models (Student's t, so with two models they are very wide); diamonds are the papers' own printed numbers where they print something comparable.

# %%
parts = ledger_tables.parts(found)
figure = charts.forest(parts)
tally = parts["verdict"].value_counts()
caption = (
    f"{len(parts)} parts of {found['profile']}: "
    + ", ".join(f"{count} {verdict}" for verdict, count in tally.items())
    + f". {parts['margin_printed'].notna().sum()} have a printed number, of which {(parts['margin_printed'] >= 0).sum()} are beyond the bar."
)
data = parts.drop(columns=["rule", "note"])
figures.save(figure, "15_ledger.all", data, caption, profile, seed)

# %% [markdown]
# What to know before comparing a diamond with a dot:

# %%
notes = parts[parts["note"] != ""].set_index("part")[["printed", "note"]]
tables.text(notes.assign(printed=notes["printed"].map("{:+.3f}".format)))

# %% [markdown]
# ## Every claim
#
# Values are means over models, intervals in brackets (of a part that is held against its control, the interval of the difference); then the control, the bar, and the printed number where there is one.

# %%
tables.text(ledger_tables.table(found))

# %% [markdown]
# ## What would change our mind
#
# - **More models.** With fewer than five the ledger is provisional, and most intervals contain their bar for that reason alone.
# - **A real checkpoint.** Size, natural language and attacks found by search are what these models lack; the first page lists what cannot carry over.
# - **A bar in the wrong place.** Bars were set before results and stay. Whoever would set one elsewhere finds value and interval above.
# - **Chance.** Among so many parts, some land on the wrong side of their bar by accident; the number to expect stands in the first line of this page.

# %%
provenance.versions()

# %% [markdown]
# Previous: [14 Published numbers](14_published_numbers.ipynb). Next: [16 Your model](16_your_model.ipynb). Map: [00 Index](00_index.ipynb).
