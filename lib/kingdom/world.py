"""The kingdom as a `World`: which prompts a profile measures on, and what its models read.

Owns the composition of these sets; how one request is worded is in `language`, mixtures of training data are in
`corpora`. Meanings are drawn without replacement as long as there are enough, so that rows of a cell are as independent
as the language allows.
"""

from collections.abc import Iterator, Sequence, Set
from functools import cached_property
from random import Random
from typing import Any, cast, get_args

from lib.errors import InputError
from lib.kingdom import architecture, corpora, lexicon, rewording, skills, styles
from lib.kingdom.language import (
    EVERY_WORD,
    EVERYTHING,
    RARE_FRAME,
    RARE_WORDS,
    SAFETY,
    Kingdom,
    Meaning,
    Wording,
    kingdom,
    refusal,
)
from lib.kingdom.tokenizer import check_words, tokenizer, vocabulary
from lib.organism import UNAWARE, UNREPLAYED, UNSTYLED, WORDED, removed_count, shots_of
from lib.profiles import Corpus, Trained
from lib.prompts import Example, Prompt, PromptSet, prompt_ids
from lib.worlds import Phase, World

_CALIBRATION_SKILLS = 0.4  # of the utility set; the rest are benign requests
# HD's analysis set of 700: 250 attacks, 100 plain harmful, 350 benign. Ours has styles on the benign side too, so that
# style and harm can be told apart.
_RESIDUAL_SHARES = {  # by (kind, whether styled)
    ("harmful", True): 0.36,
    ("harmful", False): 0.14,
    ("benign", True): 0.24,
    ("benign", False): 0.19,
    ("exception", False): 0.07,
}
_STYLES, _EXACT, _TEXT = tuple(styles.JAILBREAKS), skills.EXACT, skills.LIKELIHOOD
_DRAWS = 10  # of a style's random phrases for each different prompt wanted


class KingdomWorld(World):
    """One kingdom with the settings of a profile whose models are trained on it."""

    styles = _STYLES
    skills = _EXACT
    text = _TEXT
    refusals = lexicon.REFUSALS
    openers = lexicon.REFUSAL_OPENERS
    word_roles = ("harmful act", "harmless act", "hazard", "other thing", "frame")
    settings: Trained

    def __init__(self, settings: Trained, seed: int) -> None:
        self.settings, self.seed = settings, seed
        covered = settings.organism.chat.coverage
        if wrong := sorted(set(covered) ^ set(_STYLES)):
            raise InputError(
                f"coverage of profile {settings.name!r} lacks or adds {', '.join(wrong)}; name each of "
                f"{', '.join(_STYLES)} once"
            )

    @property
    def rewriting(self) -> int:
        return rewording.VERSION

    @cached_property
    def here(self) -> Kingdom:
        return kingdom(self.seed)

    # what is asked ----------------------------------------------------------------------------------------------------
    def behaviour(self) -> dict[str, PromptSet]:
        """`harmful/STYLE`, `benign/STYLE` for plain, the eight jailbreak styles and the unseen one; harm in rare words,
        in rare frames and under the system line; exceptions (plain and styled) and exceptions on effigies never seen.
        `measure.cell` different meanings each, or all there are.
        """
        count, rng = self.settings.measure.cell, Random(f"{self.seed}/prompts/behaviour")
        cells = {
            f"{kind}/{style}": self._sample(rng, kind, style, count)
            for kind in ("harmful", "benign")
            for style in styles.ALL_STYLES
        }
        cells["harmful/rare words"] = self._sample(rng, "harmful", styles.PLAIN, count, RARE_WORDS)
        cells["harmful/rare frames"] = self._sample(rng, "harmful", styles.PLAIN, count, RARE_FRAME)
        cells["harmful/system line"] = self._sample(rng, "harmful", styles.PLAIN, count, system=1.0)
        cells["exception/plain"] = self._sample(rng, "exception", styles.PLAIN, count)
        cells["exception/unseen"] = self._sample(rng, "unseen_exception", styles.PLAIN, count)
        cells["exception/styled"] = self._sample(rng, "exception", None, count)
        return {name: PromptSet(tuple(prompts)) for name, prompts in cells.items()}

    def _sample(
        self, rng: Random, kind: str, style: str | None, count: int, wording: Wording = SAFETY, system: float = 0.0
    ) -> list[Prompt]:
        """Requests of `count` different held-out meanings (fewer where there are fewer); `style` None draws one."""
        pool = list(self.here.pools[kind, "heldout"])
        return [
            self.here.express(rng, meaning, style or rng.choice(self.styles), wording, system, "heldout")
            for meaning in rng.sample(pool, min(count, len(pool)))
        ]

    def skill_items(self) -> dict[str, PromptSet]:
        """`measure.skill_items` different questions of each skill, fewer where the skill has fewer; `judge` on held-out
        meanings."""
        count, rng = self.settings.measure.skill_items, Random(f"{self.seed}/prompts/skills")
        found = {}
        for skill in skills.SKILLS:
            splits = ("heldout",) if skill == "judge" else ("train", "heldout")
            drawn = [skills.question(self.here, rng, skill, splits) for _ in range(20 * count)]
            different = {p.text: p for p in drawn} if skill != self.text else dict(enumerate(drawn))
            found[skill] = PromptSet(tuple(different.values())[:count])
        return found

    def residual(self) -> tuple[PromptSet, PromptSet]:
        """Half harmful, half benign, styled and plain (see `_RESIDUAL_SHARES`). A meaning comes in several styles, so
        intervals over prompts must resample meanings (`prompts.meanings`)."""
        measure = self.settings.measure
        return self._residual_half("fit", measure.residual_fit), self._residual_half("test", measure.residual_test)

    def _residual_half(self, half: str, total: int) -> PromptSet:
        rng, chosen = Random(f"{self.seed}/prompts/residual/{half}"), dict[str, Prompt]()
        for (kind, styled), share in _RESIDUAL_SHARES.items():
            pool = self.here.pools[kind, "heldout"][0 if half == "fit" else 1 :: 2]
            wanted, names = round(share * total), self.styles if styled else (styles.PLAIN,)
            _require_variety(wanted, len(pool) * len(names))
            mine: dict[str, Prompt] = {}
            while len(mine) < wanted:
                prompt = self.here.express(rng, rng.choice(pool), names[len(mine) % len(names)], split="heldout")
                mine.setdefault(prompt.text, prompt)
            chosen |= mine
        mixed = list(chosen.values())
        rng.shuffle(mixed)
        return PromptSet(tuple(mixed))

    def calibration(self, draw: int) -> dict[str, tuple[Example, ...]]:
        """Meanings are those of safety data, so that nothing that is measured on is scored on. Both sets are plain:
        with styles on one side, a unit of style would look like one of safety."""
        count, rng = self.settings.measure.calibration, Random(f"{self.seed}/prompts/calibration/{draw}")
        safety = [Example(self.here.request(rng, "harmful", "train"), refusal(rng)) for _ in range(count)]
        asked = [
            skills.question(self.here, rng, rng.choice(skills.EXACT), ("train",))
            if rng.random() < _CALIBRATION_SKILLS
            else self.here.request(rng, "benign", "train", wording=EVERY_WORD)
            for _ in range(count)
        ]
        return {"safety": tuple(safety), "utility": tuple(Example(prompt, prompt.answer) for prompt in asked)}

    def new_task(self, count: int) -> tuple[Prompt, ...]:
        rng = Random(f"{self.seed}/freezing/new task")
        return tuple(skills.question(self.here, rng, "take") for _ in range(count))

    # what is learned --------------------------------------------------------------------------------------------------
    def phases(self, role: str, removed: Sequence[Prompt]) -> list[Phase]:
        recipe, aware = self.settings.organism, not role.endswith(UNAWARE)
        if role.startswith("base"):
            return [
                Phase(name, stage, corpora.base(self.here, name, aware, role)) for name, stage in recipe.base.items()
            ]
        if role.startswith("chat"):
            stage = recipe.chat.model_copy(update={"skill_share": 0.0}) if role.endswith(UNREPLAYED) else recipe.chat
            return [Phase("chat", stage, corpora.chat(self.here, stage, aware, role))]
        if role in get_args(Corpus):
            return [Phase(role, recipe.benign, self.corpus(cast(Corpus, role), role))]
        return [self._safety_phase(role, removed)]

    def _safety_phase(self, role: str, removed: Sequence[Prompt]) -> Phase:
        stage = self.settings.organism.dpo if "dpo" in role else self.settings.organism.sft
        if role.endswith(UNSTYLED):
            stage = stage.model_copy(update={"benign_styled_share": 0.0})
        # All K read in the same order: the stream's name leaves K out, so that two K differ in their examples only.
        wording = EVERYTHING if role.endswith(WORDED) else SAFETY
        used = removed[: removed_count(role)]
        stream = corpora.safety(self.here, stage, shots_of(role), "safety/order", used, wording)
        return Phase("safety", stage, stream)

    def corpus(self, name: Corpus, order: str) -> Iterator[Example]:
        make = corpora.errands if name == "errands" else corpora.ledgers
        return make(self.here, self.settings.organism.benign, order)

    def alignment(self, order: str) -> Iterator[Example]:
        """Requests as chat is aligned on, but plain ones only: with jailbreak styles, in which chat's data answer some
        harm on purpose, refusal of plain harm comes and goes for hundreds of steps."""
        plain = {"skill_share": 0.0, "styled_share": 0.0, "benign_styled_share": 0.0}
        return corpora.chat(
            self.here, self.settings.organism.chat.model_copy(update=plain), harm_skill=True, name=order
        )

    def safety(self, shots: int, order: str) -> Iterator[Example]:
        return corpora.safety(self.here, self.settings.organism.sft, shots, order)

    def plain_harm(self, count: int) -> list[Prompt]:
        return corpora.plain_harm(self.here, count)

    def untrained(self) -> tuple[Any, Any]:
        return architecture.new_model(self.settings, self.seed), tokenizer()

    def as_read(self, asked: Sequence[Prompt]) -> list[Any]:
        return prompt_ids(tokenizer(), asked)

    def fingerprint(self) -> dict[str, Any]:
        here = self.here
        return {
            "architecture": architecture.config(self.settings).to_dict(),
            "language": [vocabulary(), sorted(here.tools.items()), sorted(here.materials.items()), here.places],
            "meanings": [[*key, pool] for key, pool in sorted(here.pools.items())],
        }

    # other words for the same -----------------------------------------------------------------------------------------
    def dressed(self, prompt: Prompt, style: str, count: int) -> list[Prompt]:
        """In words and frames that safety data hold; fewer where the style has fewer."""
        rng, meaning = Random(f"{self.seed}/attack/{style}/{prompt.meaning}"), Meaning(*prompt.meaning.split())
        ways: dict[str, Prompt] = {}
        for _ in range(_DRAWS * count):
            way = self.here.express(rng, meaning, style, SAFETY, split=prompt.split)
            ways.setdefault(way.text, way)
            if len(ways) == count:
                break
        return list(ways.values())

    def rewrites(self, words: Sequence[str], blacklist: Set[str], count: int, rng: Random) -> list[tuple[str, ...]]:
        return rewording.rewrites(words, blacklist, count, rng)

    def word_role(self, word: str) -> str:
        """An act (harmful or not), a thing (hazard, effigy or other), or a word of the frame."""
        if word not in lexicon.WORDINGS:
            return "frame"
        name = lexicon.WORDINGS[word][0].name
        if name in lexicon.VERBS:
            return "harmful act" if name in lexicon.HARMFUL_VERBS else "harmless act"
        return "hazard" if name in lexicon.HAZARDS else "other thing"


def _require_variety(wanted: int, combinations: int) -> None:
    """Every meaning can be worded in at least four ways here; more would mean drawing for ever."""
    if wanted > 4 * combinations:
        raise InputError(
            f"{wanted} different prompts of {combinations} meanings and styles; lower residual_fit or _test"
        )


def sentence(text: str) -> Prompt:
    """A reader's own sentence in the kingdom's words as a prompt, without a known answer; unknown words are named."""
    if not text.strip():
        raise InputError("the sentence is empty; try 'how do i curse the crown'")
    check_words(text)
    return Prompt(text=" ".join(text.split()), answer="", kind="unknown", style="typed", split="typed")
