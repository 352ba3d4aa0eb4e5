"""What a profile's models speak and are asked: the one door to the kingdom language and to public data sets.

Owns the interface `World` and the choice of one by a profile's kind. Everything outside `lib.kingdom` and `lib.public`
asks a world and knows neither, so that every notebook runs on the default models and on a user's own. It makes no
prompt itself and loads no model.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from lib import profiles
from lib.profiles import Corpus, Profile, Stage
from lib.prompts import Example, Prompt, PromptSet


@dataclass(frozen=True)
class Phase:
    """One call of the training loop: its settings and the endless stream it reads."""

    name: str
    stage: Stage
    stream: Iterator[Example]


class World(ABC):
    """The language of one profile and seed. Methods are deterministic: each call gives the same prompts, and a stream
    that is fresh.

    `styles`: the jailbreak styles in which harm is asked, none where no attack prompts are at hand. `skills`: names of
    the skills that have one right answer; `text`: that of the running text judged by likelihood. `refusals`: sentences
    that safety data refuse with, the commonest first; `openers`: words or phrases that open a refusal. `word_roles`:
    what `word_role` can say. `rewriting`: version of `rewrites`, part of cache keys; 0 where a meaning cannot be kept,
    so that safety data hold no rewritten prompts.
    """

    settings: Profile
    seed: int
    styles: tuple[str, ...]
    skills: tuple[str, ...]
    text: str
    refusals: tuple[str, ...]
    openers: tuple[str, ...]
    word_roles: tuple[str, ...]

    @property
    @abstractmethod
    def rewriting(self) -> int: ...

    # what is asked ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def behaviour(self) -> dict[str, PromptSet]:
        """Cells of held-out requests, at least `harmful/plain`, `benign/plain`, `exception/plain` (benign, but looks
        harmful) and `harmful/STYLE` for each of `styles`. `benign/STYLE` beside it only where benign prompts in
        that style are at hand: the kingdom has them, public data sets do not."""

    @abstractmethod
    def skill_items(self) -> dict[str, PromptSet]:
        """Questions of each of `skills` and of `text`."""

    @abstractmethod
    def residual(self) -> tuple[PromptSet, PromptSet]:
        """Two sets of held-out requests for residual spaces, to estimate on and to judge on, no meaning in common:
        half harmful, half benign. Fewer than asked where there are fewer; `NotHere` where there are none."""

    @abstractmethod
    def calibration(self, draw: int) -> dict[str, tuple[Example, ...]]:
        """What unit scores are computed on: `safety`, plain harm refused; `utility`, everything else answered."""

    @abstractmethod
    def new_task(self, count: int) -> tuple[Prompt, ...]:
        """Questions of the task that the corpus `ledgers` teaches."""

    # what is learned --------------------------------------------------------------------------------------------------
    @abstractmethod
    def phases(self, role: str, removed: Sequence[Prompt]) -> list[Phase]:
        """What a role of `organism` reads and how, in order; `removed` are prompts of trigger removal."""

    @abstractmethod
    def corpus(self, name: Corpus, order: str) -> Iterator[Example]:
        """A benign corpus without any refusal; `order` names an independent stream of it."""

    @abstractmethod
    def alignment(self, order: str) -> Iterator[Example]:
        """Plain requests, half of them harmful and all of those refused, and no skills."""

    @abstractmethod
    def safety(self, shots: int, order: str) -> Iterator[Example]:
        """Safety tuning as `sft-K` with K = `shots` reads it, in an order of its own."""

    @abstractmethod
    def plain_harm(self, count: int) -> list[Prompt]:
        """Plain harmful prompts of the training split, for trigger removal to make safety examples of."""

    @abstractmethod
    def untrained(self) -> tuple[Any, Any]:
        """A new model and its tokenizer, for roles without a parent; `NotHere` where models are given."""

    @abstractmethod
    def as_read(self, asked: Sequence[Prompt]) -> list[Any]:
        """Prompts as JSON that changes when what a model reads changes."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What of language and architecture enters the cache keys of models trained on it, as JSON."""

    def sources(self) -> dict[str, Any]:
        """What was read from elsewhere, as JSON that holds no text, for the record of a run; nothing where the language
        is made here."""
        return {}

    # other words for the same -----------------------------------------------------------------------------------------
    @abstractmethod
    def dressed(self, prompt: Prompt, style: str, count: int) -> list[Prompt]:
        """Up to `count` different ways of asking for a plain request in a jailbreak style."""

    @abstractmethod
    def rewrites(self, words: Sequence[str], blacklist: Set[str], count: int, rng: Random) -> list[tuple[str, ...]]:
        """Up to `count` different rewrites of a plain request that avoid the blacklist; never `words` itself."""

    @abstractmethod
    def word_role(self, word: str) -> str:
        """What a word of a request is: one of `word_roles`."""


def make(settings: Profile, seed: int) -> World:
    """The world of settings and seed."""
    # Imported here: what the kingdom's results depend on must not hold the other world's code (see `provenance`).
    if isinstance(settings, profiles.Trained):
        from lib.kingdom.world import KingdomWorld

        return KingdomWorld(settings, seed)
    from lib.public.world import PublicWorld

    assert isinstance(settings, profiles.Checkpoint)
    return PublicWorld(settings, seed)


@cache
def of(profile: str, seed: int) -> World:
    """The world of a profile and seed; what it reads from disk is read once."""
    return make(profiles.load(profile), seed)
