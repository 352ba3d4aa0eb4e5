"""Which words of a prompt a component reads, by partial relevance: HD's Table 1, and the heat-mapped prompts beside it.

Owns sums over words, the published choice of top words, and tables of them. The relevance itself is `relevance`'s, and
whether it is faithful is measured in `faithfulness`. Words are shown only of the kingdom's prompts: of others,
their places and what they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lib import prompts, relevance
from lib.errors import InputError
from lib.models import LanguageModel
from lib.prompts import Prompt
from lib.relevance import Rule

TOP_SHARE = 0.4  # HD's released code lists words until this share of the positive relevance is used
_WIDEST = 40  # words of a prompt that a page has room for
RoleOf = Callable[[str], str]  # what a word of a request is, see `World.word_role`


@dataclass(frozen=True)
class Words:
    """Relevance of the words of one prompt, a row a direction.

    `signed` in units of the projection. `published`: for a seed of 1, in which the sign of the projection cancels,
    over the largest absolute value of any token, those of the template included.
    """

    text: tuple[str, ...]
    signed: Float[np.ndarray, "direction word"]
    published: Float[np.ndarray, "direction word"]
    projection: Float[np.ndarray, "direction"]


def shown(prompt: Prompt, role_of: RoleOf) -> tuple[str, ...]:
    """The words of a prompt as a page may print them, or what each is and its place: `frame #3`. Words are those of the
    kingdom, whose requests have one right answer; a prompt of a public data set is `free`, and its words are somebody's
    own, harmless or not."""
    words = prompt.text.split()
    if not (prompt.sensitive or prompt.free):
        return tuple(words)
    return tuple(f"{role_of(word)} #{place}".strip() for place, word in enumerate(words, start=1))


def examples(test: Iterable[Prompt], styles: Sequence[str]) -> dict[str, Prompt]:
    """A harmful prompt of each of two styles, those in the middle of the list that there are prompts of."""
    first: dict[str, Prompt] = {}
    for prompt in test:
        if prompt.harmful:
            first.setdefault(prompt.style, prompt)
    known = [style for style in styles if style in first]
    middle = len(known) // 2
    return {style: first[style] for style in known[max(middle - 1, 0) : middle + 1][::-1]}


def _unnamed(word: str) -> str:
    return ""


def words(
    model: LanguageModel, asked: Sequence[Prompt], layer: int, along: Float[Tensor, "direction d_model"],
    rule: Rule = "attnlrp", role_of: RoleOf = _unnamed,
) -> list[Words]:  # fmt: skip
    """Relevance of every word of each prompt to the projections after block `layer`; `role_of` says what the words of
    prompts are that are not shown. `NotHere` where the model's family has no rules of relevance."""
    relevance.require(model, rule)
    found = []
    for prompt, one in zip(asked, relevance.token_relevance(model, asked, layer, along, rule), strict=True):
        places = prompts.user_words(model.tokenizer, prompt)
        largest = one.published().abs().amax(1, keepdim=True).clamp(min=1e-300)
        scaled = relevance.TokenRelevance(one.published() / largest, one.projection)
        signed, published = (part.words(places).numpy() for part in (one, scaled))
        found.append(Words(shown(prompt, role_of), signed, published, one.projection.numpy()))
    return found


def top_words(found: Sequence[Words], direction: int, share: float = TOP_SHARE) -> pd.Series:
    """Words by mean published relevance over the prompts that hold them, the highest first, until `share` of all
    positive relevance is used (HD's rule). Empty when no word has positive relevance."""
    if not 0 < share <= 1:
        raise InputError(f"share {share} is outside (0, 1]; HD uses {TOP_SHARE}")
    rows = [(word, value) for one in found for word, value in zip(one.text, one.published[direction], strict=True)]
    mean = pd.DataFrame(rows, columns=["word", "relevance"]).groupby("word", sort=False)["relevance"].mean()
    positive = mean[mean > 0].sort_values(ascending=False, kind="stable")
    before = positive.cumsum() - positive
    return positive[before < share * positive.sum() * (1 - 1e-12)]


def read_table(
    found: Sequence[Words], names: Sequence[str], onwards: Sequence[float], styles: Mapping[str, str], most: int = 6
) -> pd.DataFrame:
    """HD's Table 1 over many prompts: a row a direction, with its top words, its part of a later direction's relevance,
    and the style it tells best (`styles`)."""
    rows = []
    for number, name in enumerate(names):
        top = top_words(found, number)
        text = ", ".join(top.index[:most]) + (f" (and {len(top) - most} more)" if len(top) > most else "")
        rows.append((name, text or "none", onwards[number], styles[name]))
    return pd.DataFrame(rows, columns=["direction", "top words", "relevance onwards", "tells best"])


def heat(one: Words, names: Sequence[str], label: str) -> pd.DataFrame:
    """One prompt as a chart wants it: columns prompt, direction, place, word, relevance (of the largest in its row). Of
    a long prompt, the first words only."""
    scale = np.maximum(np.abs(one.signed).max(axis=1, keepdims=True), 1e-300)
    rows = [
        (label, name, place, word, value)
        for name, row in zip(names, one.signed / scale, strict=True)
        for place, (word, value) in enumerate(zip(one.text[:_WIDEST], row[:_WIDEST], strict=True))
    ]
    return pd.DataFrame(rows, columns=["prompt", "direction", "place", "word", "relevance"])


def onward(
    model: LanguageModel, asked: Sequence[Prompt], lower: int, upper: int, target: Float[Tensor, "d_model"],
    sources: Float[Tensor, "source d_model"],
) -> Float[np.ndarray, "source"]:  # fmt: skip
    """Relevance of directions after block `lower` to the projection on `target` after block `upper`, as a share of that
    projection: mean over prompts, each counted by the size of its projection. 0 when nothing projects on the target."""
    moved = relevance.transport(model, asked, lower, upper, target[None])
    parts, projection = moved.components(sources)[:, 0], moved.projection[:, :1]
    size = projection.abs().sum()
    return ((parts * projection.sign()).sum(0) / size).numpy() if size > 0 else np.zeros(len(sources))
