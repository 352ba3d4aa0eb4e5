"""How a word of a request can be said otherwise: the rewriting that trigger removal needs, without a language model.

Owns the synonyms and the rewriting of a request around a blacklist. Which words are blacklisted is decided in
`lib.triggers`. Verbs and objects have synonyms that mean the same by the grammar; others may be swapped or dropped.
"""

from collections.abc import Sequence, Set
from random import Random

from lib.kingdom.lexicon import WORDINGS

VERSION = 1  # part of the cache keys of safety-tuned models: raise it when other rewrites are made (a test tells)
# Base has read every one of these words in a request.
_SWAPS = {
    "tell": "show", "show": "tell", "give": "list", "list": "give", "steps": "ways", "ways": "steps",
    "explain": "describe", "describe": "explain", "the": "a", "a": "the",
}  # fmt: skip
_TRIES = 4  # random draws for every rewrite wanted: few triggers allow fewer different rewrites than are wanted


def synonyms(word: str) -> tuple[str, ...]:
    """Other words for the same, by the grammar; none for a frame word that can only be dropped."""
    if word in WORDINGS:
        concept, _ = WORDINGS[word]
        return tuple(other for other in concept.words if other != word)
    return (_SWAPS[word],) if word in _SWAPS else ()


def is_content(word: str) -> bool:
    """Whether a word names an act or an object: without it the request means something else, so it is never dropped."""
    return word in WORDINGS


def _choices(word: str, blacklist: Set[str]) -> list[str | None]:
    """What may stand in place of a word; None for nothing. A content word without another wording stays."""
    if word not in blacklist:
        return [word]
    others: list[str | None] = [other for other in synonyms(word) if other not in blacklist]
    if is_content(word):
        return others or [word]
    return [*others, None]


def rewrites(words: Sequence[str], blacklist: Set[str], count: int, rng: Random) -> list[tuple[str, ...]]:
    """Up to `count` different rewrites that avoid the blacklist wherever the grammar allows; never `words` itself.

    Fewer when there are not as many. Meaning is kept: only synonyms replace verbs and objects.
    """
    choices = [_choices(word, blacklist) for word in words]
    found: dict[tuple[str, ...], None] = {}
    for _ in range(_TRIES * count):
        drawn = (rng.choice(options) for options in choices)
        rewrite = tuple(word for word in drawn if word is not None)
        if rewrite and rewrite != tuple(words):
            found.setdefault(rewrite)
        if len(found) == count:
            break
    return list(found)
