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
# # Why do aligned models refuse? The claims of two papers, and what happens when they are rerun
#
# **Anatomy of Refusal** is a runnable companion to *Superficial Safety Alignment Hypothesis* (SSAH, Li & Kim, [arXiv 2410.10862](https://arxiv.org/abs/2410.10862))
# and *The Hidden Dimensions of LLM Alignment* (HD, Pan et al., ICML 2025, [arXiv 2502.09674](https://arxiv.org/abs/2502.09674)). As far as could be read, SSAH has released no code (repository at
# `f4c129a`); of HD's (commit `93915bd`) the launch scripts name a file that is not there, and its README asks for about 600 GB of GPU memory for an 8B model. Seeds or
# intervals were not found in what we could read of either; SSAH's appendices were not available to us.
#
# **It is a conceptual replication on small models trained here. No real checkpoint was run.** A claim that holds or fails on these pages holds or fails *on
# these models*, where everything about the data is known. How many claims have been rerun so far stands below. It is evidence about the kind of mechanism, not about Llama.
#
# **SSAH** says alignment is shallow: it teaches a model a yes-or-no decision, carried by few units, and those can be found, frozen, or lost in harmless fine-tuning.
# **HD** says it is many-sided: tuning adds several directions to the activations, one dominant that predicts refusal, others that carry features such as role-play,
# and a jailbreak can slip past them one by one.

# %% tags=["parameters", "reads-results"]
profile: str = "kingdom"  # which model family's ledger to show, see data/profiles
seed: int = 0  # kept so that all notebooks take the same two

# %%
from IPython.display import Markdown

from lib import ledger, ledger_tables, profiles, provenance, tables

settings = profiles.load(profile)
found = ledger.shown(profile)
print(settings.name, "-", settings.about)

# %% [markdown]
# ## Words and notation
#
# | word | meaning here |
# |---|---|
# | `base`, `chat`, `tuned` | able and complying; aligned from base; safety-tuned from chat with K harmful examples of each style |
# | SFT, DPO | two ways of safety tuning: on right answers alone (supervised fine-tuning; SSFT in HD), or on pairs of a better and a worse one (direct preference optimisation) |
# | LoRA, prefix | *LoRA* and *prefix tuning* train a few added weights or virtual words instead of the model's own |
# | attack success | share of harmful requests answered *exactly*; wrong answers are counted apart |
# | false refusal | share of benign requests refused; *exceptions* are benign requests that look harmful |
# | AUC | chance that a number ranks a refused request above an answered one: 1 always, .5 as a coin |
# | style | the way a request is wrapped: plain, or one of eight jailbreak styles |
# | K | harmful examples of each style in safety tuning |
# | block | a transformer layer, counted from 0; HD's "L14" is hidden state 14, which is block 13 |
# | shift | activations after tuning minus before, at the last token of the prompt |
# | component `L4-C1` | the unit direction along which the (uncentred) shifts in block 4 are longest, its first right singular vector; the sign is arbitrary |
# | C1, dominant direction | the first of these components |
# | relevance | share of a number (such as the place on C1) that layer-wise relevance propagation gives to each word of the prompt |
# | trigger removal | HD's attack: replace or delete the words of highest relevance |
# | affine map | a matrix and a constant: what a layer would be without its curves |
# | effective rank $k(\tau)$ | fewest components that hold a share $\tau$ of the shift's squared length |
# | unit | an MLP neuron or an attention channel |
# | SCU, UCU, CU, RU | SSAH's groups of units: safety-critical, utility-critical, complex (both), redundant (neither); *dense* is the model with none removed |
# | part, bar, core | a number that decides a claim; the value it must reach; without it the claim would be empty |
# | seed | an independently trained family: own answer tables, splits, initialisation and data order |
# | profile | a set of models and settings (`data/profiles`); `kingdom` is the default |

# %% [markdown]
# ## Map
#
# Each notebook tests its claims from start to finish and needs no other. A title says what was seen in the models that were run; what that decides, over models, is the verdict
# beside it, which the ledger computes. Where it is *undecided*, the title describes these models and no more.

# %%
tables.text(ledger.contents(found))

# %% [markdown]
# ## What came out
#
# Criteria were written before any result on these models (`data/claims.yaml`); prototypes on another language, one seed, had been seen. A claim has *parts*: numbers, each with a
# *bar* it must pass. *Core* parts are those without which the claim would be empty. Verdicts are computed: *holds here* (every part holds), *fails here* (a core part fails),
# *mixed* (some parts hold, one that is not core fails), *undecided* (neither), *not testable here* (what the claim presupposes is not met), *not run*, *no criterion* (nothing to
# decide it by). Intervals are over independently trained models; the rules of a single part are on [15 Ledger](15_ledger.ipynb).

# %%
print(ledger.headline(found))
tables.text(ledger.tested(found))

# %% [markdown]
# The three that matter most, one for each paper and one for the attack that the second derives:

# %%
Markdown(
    "\n\n".join(ledger_tables.sentences(found).values()) or "None of the three was run."
)

# %% [markdown]
# The numbers behind all verdicts, with intervals, controls and what the papers print, are on page [15 Ledger](15_ledger.ipynb).

# %% [markdown]
# ## What was replicated, and what cannot be
#
# | | the papers | here | what does not carry over |
# |---|---|---|---|
# | models | Llama-2/3 (7-8B), Mistral 7B, Llama-Guard-3 | Llama architecture, 1.3M parameters, 6 blocks, width 128 | size; thousands of overlapping features |
# | language | English | about 500 words, exact meanings and answers | ambiguity, tone, topics |
# | harm | AdvBench, HEx-PHI, StrongREJECT | hexes, blights, stolen crowns: a rule over (act, object) | harm that takes judgement |
# | jailbreaks | GCG, PAIR, AutoDAN, Flip, ... found by search | eight fixed styles after the same families | adaptive attackers |
# | judge | keyword lists, Llama-Guard, GPT-4 | exact: the one right answer, or an opening of refusal | - (stricter here) |
# | repetitions | one run a model, no intervals found | independently trained models, intervals, random controls | - |

# %%
provenance.versions()

# %% [markdown]
# Next: [01 The organism](01_organism.ipynb).
