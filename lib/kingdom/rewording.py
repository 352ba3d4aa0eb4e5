"""How a request can be said otherwise: the rewriting that trigger removal needs, without a language model.

Owns synonyms and the rewriting of a plain request around a blacklist. Which words are blacklisted is decided in
`lib.triggers`. A rewrite says the whole request anew, as a person or a model would: any frame, any word for the act and
for the object, but no blacklisted word where the language has another.
"""

from collections.abc import Sequence, Set
from itertools import product
from random import Random

from lib.errors import InputError
from lib.kingdom.lexicon import FRAMES, OBJECTS, RARE_FRAMES, VERBS, WORDINGS

VERSION = 2  # part of the cache keys of safety-tuned models: raise it when other rewrites are made (a test tells)


def synonyms(word: str) -> tuple[str, ...]:
    """Other words for the same act or object; none for a word of the frame."""
    if word not in WORDINGS:
        return ()
    concept, _ = WORDINGS[word]
    return tuple(other for other in concept.words if other != word)


def _parts(words: Sequence[str]) -> tuple[str, str]:
    """The words for act and object of a plain request."""
    content = [word for word in words if word in WORDINGS]
    names = [WORDINGS[word][0].name for word in content]
    if len(names) != 2 or names[0] not in VERBS or names[1] not in OBJECTS:
        raise InputError(f"{' '.join(words)!r} is not a request for one act on one object; rewrite plain requests")
    return content[0], content[1]


def _frames(words: Sequence[str], verb: str, object_: str, blacklist: Set[str]) -> list[str]:
    """Frames without blacklisted words: every one of the language, and the request's own with those words dropped."""
    places = {verb: "{verb}", object_: "{object}"}
    own = " ".join(places.get(word, word) for word in words if word in places or word not in blacklist)
    return list(dict.fromkeys([own, *(f for f in (*FRAMES, *RARE_FRAMES) if not blacklist & set(f.split()))]))


def rewrites(words: Sequence[str], blacklist: Set[str], count: int, rng: Random) -> list[tuple[str, ...]]:
    """Up to `count` different rewrites of a plain request, in random order; never `words` itself.

    The meaning is kept: act and object are said by their own words only, and stay when all of these are blacklisted. A
    request that is no plain one is refused.
    """
    verb, object_ = _parts(words)
    acts, objects = (
        [word for word in (mine, *synonyms(mine)) if word not in blacklist] or [mine] for mine in (verb, object_)
    )
    found = {
        tuple(frame.format(verb=act, object=thing).split())
        for frame, act, thing in product(_frames(words, verb, object_, blacklist), acts, objects)
    }
    ordered = sorted(found - {tuple(words)})
    return rng.sample(ordered, min(count, len(ordered)))
