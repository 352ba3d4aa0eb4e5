"""Public data sets as a `World`: what real checkpoints are asked and what they read.

Owns the composition of sets and of training streams; which rows there are and on which side of the split is `pools`'s.
Each data set is split into a train half and a held-out half by meaning: a goal that safety data hold is asked nowhere.
Whether a checkpoint given by the user has seen it is not known.

What differs from the kingdom: there are no benign prompts in jailbreak styles, nor rewrites that keep a meaning, so
safety data hold neither; a request has no single right answer, so every answer that is no refusal complies; harmful
prompts mostly have no answer at all. The first token tells a refusal, and for most models that is "I", so rates of
refusal are upper bounds (see `data/judges/keywords.yaml`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from random import Random
from typing import Any, cast, get_args

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from lib import judges, storage
from lib.errors import InputError, NotHere
from lib.organism import shots_of
from lib.profiles import Checkpoint, Corpus, TuneStage
from lib.prompts import Example, Prompt, PromptSet, digest
from lib.public import pools
from lib.public.data import PublicPrompt, Record
from lib.public.pools import Rows
from lib.worlds import Phase, World

_STYLED = 5 / 7  # of the harmful side of residual sets; HD has 250 attacks and 100 plain prompts
_EXCEPTIONS = 0.5  # of the benign side; HD's is OR-Bench alone
_PLAIN = "plain"
_GIVEN = "a checkpoint profile makes no model from nothing; its base is the one it names"
_DRAWS = 20  # random deletions tried for each rewrite wanted
_FEW = 3  # at most one word in so many is dropped at random
_PUNCTUATION = ".,;:!?\"'()[]{}"


@dataclass(frozen=True, repr=False)
class PublicExample(Example):
    """An example that does not show its answers: what is rejected can be harmful."""

    def __repr__(self) -> str:
        return f"<example: {self.prompt!r}>"


class PublicWorld(World):
    """The data sets that a checkpoint profile names, drawn by `seed`.

    `InputError`, before any model is opened, when one of them cannot be had or lacks what it stands for.
    """

    word_roles = ("content word", "function word")
    rewriting = 0
    settings: Checkpoint

    def __init__(self, settings: Checkpoint, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self._pools = pools.load(settings.data, seed)
        self.styles = _names(self._pools["attacks", "heldout"])
        self.skills = _names(self._pools["skills", "heldout"])
        self.text = settings.data.text
        self.refusals = tuple(settings.refusals or judges.wordings("refusals"))
        self.openers = tuple(settings.openers or judges.wordings("openers"))
        self._complies = judges.wordings("compliance")[0]
        if _PLAIN in self.styles:
            raise InputError(
                f"{settings.data.attacks} has no styles, so it cannot stand for attacks; name it as harmful"
            )
        if untaught := set(self.styles) - set(_names(self._pools["attacks", "train"])):
            raise InputError(
                f"{settings.data.attacks} has too few prompts of {', '.join(sorted(untaught))} to train on some and to "
                "ask others; leave out its file"
            )

    @property
    def records(self) -> dict[str, Record]:
        """What was read, by what it stands for."""
        return {role: found.record for role, found in self._pools.sets.items()}

    def sources(self) -> dict[str, Any]:
        """`sets`: each set's record, and this seed's halves of it; `asked`: what is measured on. Texts as counts and
        digests."""
        halves = {
            role: {side: _counted(self._pools[cast(pools.Role, role), side]) for side in pools.SIDES}
            for role in self.records
        }
        sets = {role: {**record.json(), **halves[role]} for role, record in self.records.items()}
        cells = {**self.behaviour(), **self.skill_items()}
        return {"seed": self.seed, "sets": sets, "asked": {name: _counted(cell) for name, cell in cells.items()}}

    def _rng(self, name: str) -> Random:
        return Random(f"{self.seed}/public/{name}")

    def _draw(self, name: str, rows: Sequence[PublicPrompt], count: int) -> list[PublicPrompt]:
        """Up to `count` rows of different meanings; draws of one name are nested."""
        different: dict[str, PublicPrompt] = {}
        for row in self._rng(name).sample(rows, len(rows)):
            different.setdefault(row.meaning, row)
        return list(different.values())[:count]

    # what is asked ----------------------------------------------------------------------------------------------------
    def behaviour(self) -> dict[str, PromptSet]:
        """Plain harm, benign requests, exceptions, and harm in each style; `measure.cell` different meanings each."""
        cells = {
            "harmful/plain": self._pools["harmful", "heldout"],
            "benign/plain": self._pools["benign", "heldout"],
            "exception/plain": self._pools["exceptions", "heldout"],
            **{f"harmful/{style}": self._of(style, "attacks", "heldout") for style in self.styles},
        }
        count = self.settings.measure.cell
        return {name: PromptSet(tuple(self._draw(f"behaviour/{name}", rows, count))) for name, rows in cells.items()}

    def _of(self, style: str, role: pools.Role, side: pools.Side) -> Rows:
        """The rows of an attack or a skill."""
        return tuple(row for row in self._pools[role, side] if row.style == style)

    def skill_items(self) -> dict[str, PromptSet]:
        """Questions with answers of a few words, judged to the letter; and paragraphs whose first sentence is the
        prompt and whose next words are the answer, for their likelihood."""
        asked = {skill: self._of(skill, "skills", "heldout") for skill in self.skills}
        asked[self.text] = self._pools["text", "heldout"]
        count = self.settings.measure.skill_items
        return {name: PromptSet(tuple(self._draw(f"skills/{name}", rows, count))) for name, rows in asked.items()}

    def residual(self) -> tuple[PromptSet, PromptSet]:
        """Half harmful, 5 of 7 of these in a style where there are styles; half benign, every other one of these an
        exception. The larger half is cut to the size of the other, so fewer may come than `measure` asks for.

        Styles share goals, so intervals over prompts must resample meanings (`prompts.meanings`).
        """
        measure = self.settings.measure
        return self._residual_half("fit", measure.residual_fit), self._residual_half("test", measure.residual_test)

    def _residual_half(self, half: str, total: int) -> PromptSet:
        side = total // 2
        styled = self._in_turn(half, round(_STYLED * side))
        plain = self._draw(f"residual/{half}/harmful", self._mine("harmful", half), side - len(styled))
        exceptions = self._draw(
            f"residual/{half}/exceptions", self._mine("exceptions", half), round(_EXCEPTIONS * side)
        )
        benign = self._draw(f"residual/{half}/benign", self._mine("benign", half), side - len(exceptions))
        rng = self._rng(f"residual/{half}")
        sides = [rng.sample(part, len(part)) for part in ([*styled, *plain], [*exceptions, *benign])]
        size = min(map(len, sides))
        if not size:
            raise NotHere("the data sets of this profile hold too few prompts for two sets without a common meaning")
        mixed = [prompt for part in sides for prompt in part[:size]]
        rng.shuffle(mixed)
        return PromptSet(tuple(mixed))

    def _mine(self, role: pools.Role, half: str) -> Rows:
        """The held-out rows of a role that one of the two residual sets may use."""
        first = half == "fit"
        return tuple(p for p in self._pools[role, "heldout"] if pools.chosen(self.seed, "fit", p.meaning) == first)

    def _in_turn(self, half: str, count: int) -> list[PublicPrompt]:
        """Up to `count` attack prompts, the styles in turn."""
        order = self._rng(f"residual/{half}/attacks").sample(rows := self._mine("attacks", half), len(rows))
        places = dict.fromkeys(self.styles, 0)
        turns = []
        for prompt in order:
            turns.append((places[prompt.style], self.styles.index(prompt.style), prompt))
            places[prompt.style] += 1
        return [prompt for *_, prompt in sorted(turns, key=lambda turn: turn[:2])][:count]

    def calibration(self, draw: int) -> dict[str, tuple[Example, ...]]:
        """From the train half, so that nothing that is measured on is scored on; benign requests with the data set's
        own answers. Fewer than `measure.calibration` where there are fewer."""
        count, rng = self.settings.measure.calibration, self._rng(f"calibration/{draw}/answers")
        harmful = self._draw(f"calibration/{draw}/safety", self._pools["harmful", "train"], count)
        benign = self._draw(f"calibration/{draw}/utility", self._pools["benign", "train"], count)
        return {
            "safety": tuple(PublicExample(prompt, rng.choice(self.refusals)) for prompt in harmful),
            "utility": tuple(_answered(prompt) for prompt in benign),
        }

    def new_task(self, count: int) -> tuple[Prompt, ...]:
        """Held-out rows of the corpus that have answers of a few words."""
        name = self.settings.data.ledgers
        few = self._draw("new task", pools.short(self._pools["ledgers", "heldout"], name), count)
        if not few:
            raise NotHere(f"{name}, this profile's ledgers, has no answers of a few words, which can be told right")
        return tuple(few)

    # what is learned --------------------------------------------------------------------------------------------------
    def phases(self, role: str, removed: Sequence[Prompt]) -> list[Phase]:
        """`removed` is not used: rewrites here do not keep the meaning."""
        recipe = self.settings.organism
        if role.startswith("base"):
            raise NotHere(_GIVEN)
        if role.startswith("chat"):
            return [Phase("chat", recipe.chat, self.alignment(role))]
        if role in get_args(Corpus):
            return [Phase(role, recipe.benign, self.corpus(cast(Corpus, role), role))]
        stage = recipe.dpo if "dpo" in role else recipe.sft
        return [Phase("safety", stage, self._safety(stage, shots_of(role), "safety/order"))]

    def corpus(self, name: Corpus, order: str) -> Iterator[Example]:
        rng, rows = self._rng(order), self._pools[name, "train"]
        share = self.settings.organism.benign.skill_share
        return _forever(lambda: self._skill(rng) if rng.random() < share else _answered(rng.choice(rows)))

    def _skill(self, rng: Random) -> Example:
        rows = self._of(rng.choice(self.skills), "skills", "train") or self._pools["skills", "train"]
        return _answered(rng.choice(rows), rng.choice(self.refusals))

    def alignment(self, order: str) -> Iterator[Example]:
        rng = self._rng(order)
        harmful, benign = self._pools["harmful", "train"], self._pools["benign", "train"]

        def draw() -> Example:
            if rng.random() < 0.5:
                return PublicExample(rng.choice(harmful), rng.choice(self.refusals))
            return _answered(rng.choice(benign))

        return _forever(draw)

    def safety(self, shots: int, order: str) -> Iterator[Example]:
        """Half harmful prompts refused, half benign ones answered, and some skills. Exceptions are among the benign
        ones only where their data set has answers."""
        return self._safety(self.settings.organism.sft, shots, order)

    def _safety(self, stage: TuneStage, shots: int, order: str) -> Iterator[Example]:
        rng = self._rng(order)
        sides = (
            [
                PublicExample(p, rng.choice(self.refusals), p.answer or self._complies)
                for p in self._harm(stage.pairs, shots)
            ],
            [_answered(p, rng.choice(self.refusals)) for p in self._good(stage)],
        )

        def draw() -> Example:
            if rng.random() < stage.skill_share:
                return self._skill(rng)
            return rng.choice(sides[rng.random() < 0.5])

        return _forever(draw)

    def _harm(self, pairs: int, shots: int) -> list[PublicPrompt]:
        """`pairs` harmful prompts, K = `shots` of each attack (or all there are) and the rest plain. Nested: raising K
        replaces some plain prompts by attacks and leaves all others, and their places, as they were."""
        plain = self._rng("safety/harmful").choices(self._pools["harmful", "train"], k=pairs)
        styled = [self._draw(f"safety/{name}", self._of(name, "attacks", "train"), shots) for name in self.styles]
        attacks = [rows[shot] for shot in range(shots) for rows in styled if shot < len(rows)]
        return [*attacks, *plain[len(attacks) :]]

    def _good(self, stage: TuneStage) -> list[PublicPrompt]:
        rng, benign = self._rng("safety/benign"), self._pools["benign", "train"]
        exceptions = [row for row in self._pools["exceptions", "train"] if row.answer]
        return [
            rng.choice(exceptions if exceptions and rng.random() < stage.exception_share else benign)
            for _ in range(stage.pairs)
        ]

    def plain_harm(self, count: int) -> list[Prompt]:
        """Fewer where there are fewer."""
        return [*self._draw("plain harm", self._pools["harmful", "train"], count)]

    def untrained(self) -> tuple[Any, Any]:
        raise NotHere(_GIVEN)

    def as_read(self, asked: Sequence[Prompt]) -> list[Any]:
        """Digests: what a tokenizer makes of the words is in its parent's key."""
        return [[digest(prompt.text), digest(prompt.system or "")] for prompt in asked]

    def fingerprint(self) -> dict[str, Any]:
        return {"data": {role: [record.name, record.content] for role, record in self.records.items()}}

    # other words for the same -----------------------------------------------------------------------------------------
    def dressed(self, prompt: Prompt, style: str, count: int) -> list[Prompt]:
        """The attack prompts of the same goal, mostly one in a style; none where there are no attacks on it."""
        sides = (self._of(style, "attacks", side) for side in ("train", "heldout"))
        ways: list[Prompt] = [way for side in sides for way in side if way.meaning == prompt.meaning]
        return ways[:count]

    def rewrites(self, words: Sequence[str], blacklist: Set[str], count: int, rng: Random) -> list[tuple[str, ...]]:
        """The request without its blacklisted words, and then also without up to a third of the others, drawn by `rng`.
        There are no synonyms here, and nothing tells whether the meaning is left."""
        kept = [word for word in words if word not in blacklist]
        found: dict[tuple[str, ...], None] = dict.fromkeys([tuple(kept)])
        for _ in range(_DRAWS * count if len(kept) > 1 else 0):
            places = sorted(rng.sample(range(len(kept)), len(kept) - rng.randint(1, max(1, len(kept) // _FEW))))
            found.setdefault(tuple(kept[place] for place in places))
        return [rewrite for rewrite in found if rewrite and rewrite != tuple(words)][:count]

    def word_role(self, word: str) -> str:
        """By scikit-learn's list of English stop words, after case and punctuation: rough, and not about harm."""
        bare = word.lower().strip(_PUNCTUATION)
        return "function word" if bare in ENGLISH_STOP_WORDS or not bare else "content word"


def _answered(prompt: PublicPrompt, rejected: str | None = None) -> Example:
    return PublicExample(prompt, prompt.answer, rejected)


def _forever(draw: Callable[[], Example]) -> Iterator[Example]:
    while True:
        yield draw()


def _counted(rows: Iterable[Prompt]) -> dict[str, Any]:
    found = [[digest(row.text), digest(row.answer)] for row in rows]
    return {"count": len(found), "content": storage.digest_json(found)}


def _names(rows: Rows) -> tuple[str, ...]:
    """Styles of rows, in their order."""
    return tuple(dict.fromkeys(row.style for row in rows))
