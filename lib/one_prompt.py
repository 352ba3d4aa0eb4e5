"""One harmful prompt followed through the four methods of both papers: its words, its path along C1, its units, its
answer.

Owns what is read of that prompt and how it is tabulated; each method lives in its own module (`relevance`,
`projection_paths`, `bridge_tables`, `reasoning`). Of a sensitive prompt no word leaves this module, only places and
roles.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lib import bridge, prompts, reasoning, reasoning_tables, relevance, residual
from lib.bridge_tables import Seen
from lib.errors import NotHere
from lib.models import LanguageModel
from lib.prompts import Prompt
from lib.relevance import Rule
from lib.units import KEY
from lib.worlds import World

WORDS = 10  # words that are shown, of longer prompts those of the largest relevance
PROMPT, HARMFUL, BENIGN = "this prompt", "harmful prompts", "benign prompts"


@dataclass(frozen=True)
class Followed:
    """Tidy tables of one prompt: `words` (word, relevance), `path` (series, block, projection, lower, upper), `units`
    (unit, prompt, harmful: standardised values) and `answer` (answer, word, distance; empty where refusals cannot be
    compared)."""

    prompt: Prompt
    words: pd.DataFrame
    path: pd.DataFrame
    units: pd.DataFrame
    answer: pd.DataFrame


def follow(seen: Seen, world: World, rows: pd.DataFrame) -> Followed:
    """The first plain harmful prompt of those seen (or the first harmful one), in the model of their aim; `rows` are
    the units to follow."""
    harmful = seen.of(True)
    prompt = next((one for one in harmful if one.style == "plain"), harmful[0])
    model = seen.aim.model
    return Followed(
        prompt, words(seen, prompt, world), path(seen, prompt), unit_values(seen, prompt, rows),
        distances(model, world, prompt),
    )  # fmt: skip


def words(seen: Seen, prompt: Prompt, world: World) -> pd.DataFrame:
    """Relevance of each word to the prompt's projection on C1, in the order asked. By plain gradients for a family
    without relevance rules."""
    model, aim = seen.aim.model, seen.aim
    rule: Rule = "gradient" if model.traced.sites.rules is None else "attnlrp"
    (found,) = relevance.token_relevance(model, [prompt], aim.block, aim.c1[None], rule)
    values = found.words(prompts.user_words(model.tokenizer, prompt))[0].numpy()
    said = prompt.text.split()
    named = [f"#{place + 1} {world.word_role(word)}" if prompt.sensitive else word for place, word in enumerate(said)]
    kept = np.sort(np.argsort(-np.abs(values), kind="stable")[:WORDS])
    return pd.DataFrame({"word": [named[place] for place in kept], "relevance": values[kept]})


def path(seen: Seen, prompt: Prompt) -> pd.DataFrame:
    """Projection on each block's own C1: the prompt, and mean and 10th to 90th percentile of each side."""
    states = residual.activations(seen.aim.model, [prompt, *seen.asked]).double()
    along = torch.stack([part[0] for part in seen.aim.components])
    found = torch.einsum("lnd,ld->ln", states, along).numpy()
    rows = []
    for block, values in enumerate(found):
        rows.append((PROMPT, block, values[0], values[0], values[0]))
        for series, mine in ((HARMFUL, seen.harmful), (BENIGN, ~seen.harmful)):
            rows.append((series, block, values[1:][mine].mean(), *np.quantile(values[1:][mine], [0.1, 0.9])))
    return pd.DataFrame(rows, columns=["series", "block", "projection", "lower", "upper"])


def unit_values(seen: Seen, prompt: Prompt, rows: pd.DataFrame) -> pd.DataFrame:
    """Values of units at the last prompt token, in standard deviations from their mean over benign prompts: of this
    prompt, and the mean over harmful ones, in whose order they are sorted. Units that do not vary are left out."""
    mine = np.flatnonzero(bridge.inside(seen.table, rows))
    every = np.concatenate([x.double().numpy() for x in seen.values.values()], axis=1)[:, mine]
    now = bridge.means(bridge.values(seen.aim.model, [prompt]), np.ones(1, dtype=bool))[mine]
    benign = every[~seen.harmful]
    centre, spread = benign.mean(0), benign.std(0)
    keep = spread > 0
    names = [f"{kind} {layer}.{index}" for kind, layer, index in seen.table.iloc[mine][KEY].to_numpy()]
    table = pd.DataFrame({
        "unit": np.array(names)[keep],
        "prompt": (now - centre)[keep] / spread[keep],
        "harmful": (every[seen.harmful].mean(0) - centre)[keep] / spread[keep],
    })  # fmt: skip
    return table.sort_values("harmful", kind="stable", ignore_index=True)


def distances(model: LanguageModel, world: World, prompt: Prompt) -> pd.DataFrame:
    """Cosine distance in the last block, word by word, from the model's own answer to a refusal in other words, to the
    answer that complies and to a neutral sentence."""
    try:
        found = reasoning_tables.answers(model, world, [prompt])
    except NotHere:
        return pd.DataFrame(columns=["answer", "word", "distance"])
    seen = reasoning_tables.read(model, found)
    others = {
        name: seen[name] for name in (reasoning_tables.OTHER, reasoning_tables.COMPLYING, reasoning_tables.NEITHER)
    }
    apart = reasoning.distances(seen["own"], others)
    rows = [
        (name, place + 1, float(value))
        for name, values in apart.items()
        for place, value in enumerate(values[-1, 0])
        if np.isfinite(value)
    ]
    return pd.DataFrame(rows, columns=["answer", "word", "distance"])
