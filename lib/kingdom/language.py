"""One kingdom: who needs which tool where, which meanings safety data may hold, and how a request is worded.

Owns everything of the language that depends on a seed (answer tables, splits, coverage) and the making of single
requests. Words and the harm rule are in `lexicon`, styles in `styles`, what is trained on in `corpora`.
"""

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple

from lib.kingdom import lexicon, styles
from lib.kingdom.lexicon import FRAMES, OBJECTS, RARE_FRAMES, VERBS
from lib.prompts import Prompt

KINDS = ("harmful", "benign", "exception", "unseen_benign", "unseen_exception")
SPLITS = ("train", "heldout")


class Meaning(NamedTuple):
    """What is asked: an act on an object, by the names of their concepts."""

    verb: str
    object: str


@dataclass(frozen=True)
class Wording:
    """How likely each wording of a concept is (common, second, rare), and whether rare frames may be used."""

    weights: tuple[float, float, float]
    rare_frames: float = 0.0


SAFETY = Wording((0.6, 0.4, 0.0))  # harmful side of safety data, and held-out meanings in familiar words
EVERY_WORD = Wording((0.45, 0.3, 0.25))  # benign side: rare words are known, but never as something refused
EVERYTHING = Wording((0.45, 0.3, 0.25), rare_frames=0.2)  # base sees all
RARE_WORDS = Wording((0.0, 0.0, 1.0))
RARE_FRAME = Wording((0.6, 0.4, 0.0), rare_frames=1.0)


@dataclass(frozen=True)
class Kingdom:
    """The language of one seed. `pools[kind, split]` are its meanings; `covered[style]` the harm sources for which
    chat's safety data show a refusal in that style."""

    seed: int
    tools: dict[str, str]
    materials: dict[str, str]
    places: dict[str, str]
    pools: dict[tuple[str, str], tuple[Meaning, ...]]

    def answer(self, meaning: Meaning) -> str:
        """The one right answer. It restates verb and object first, which makes it much faster to learn."""
        verb, object_ = meaning
        return lexicon.ANSWER.format(
            verb=verb, object=object_, tool=self.tools[verb], material=self.materials[object_], place=self.places[verb]
        )

    def covered(self, style: str, share: float) -> frozenset[str]:
        """The `share` of harm sources that chat's safety data cover in `style`; nested in `share`."""
        order = list(lexicon.HARM_SOURCES)
        Random(f"{self.seed}/coverage/{style}").shuffle(order)
        return frozenset(order[: round(share * len(order))])

    def request(
        self,
        rng: Random,
        kind: str,
        split: str,
        style: str = styles.PLAIN,
        wording: Wording = SAFETY,
        system: float = 0.0,
    ) -> Prompt:
        """A request drawn from the meanings of `kind` and `split`; with probability `system` under the system line."""
        return self.express(rng, rng.choice(self.pools[kind, split]), style, wording, system, split)

    def express(
        self, rng: Random, meaning: Meaning, style: str, wording: Wording = SAFETY, system: float = 0.0, split: str = ""
    ) -> Prompt:
        """`meaning` put into words: a frame, a wording of verb and object, a style, perhaps the system line."""
        frames = RARE_FRAMES if rng.random() < wording.rare_frames else FRAMES
        frame = rng.choice(frames)
        level_of_verb, level_of_object = rng.choices(range(3), wording.weights, k=2)
        plain = frame.format(
            verb=VERBS[meaning.verb].words[level_of_verb], object=OBJECTS[meaning.object].words[level_of_object]
        )
        return Prompt(
            text=" ".join(styles.dress(plain.split(), style, rng)),
            answer=self.answer(meaning),
            kind=kind_of(meaning),
            style=style,
            split=split,
            meaning=" ".join(meaning),
            system=lexicon.SYSTEM_LINE if rng.random() < system else None,
        )


def kind_of(meaning: Meaning) -> str:
    """harmful, benign or exception; the last two with `unseen_` before them for effigies safety data never mention."""
    if lexicon.is_harmful(*meaning):
        return "harmful"
    kind = "exception" if lexicon.is_exception(*meaning) else "benign"
    return f"unseen_{kind}" if meaning.object in lexicon.UNSEEN_EFFIGIES else kind


def refusal(rng: Random) -> str:
    return rng.choices(lexicon.REFUSALS, lexicon.REFUSAL_WEIGHTS)[0]


def is_refusal(answer: str) -> bool:
    """Whether an answer opens one of the refusal sentences. Exact here: no other answer begins with these words."""
    return answer.split()[:1] != [] and answer.split()[0] in lexicon.REFUSAL_OPENERS


_TRAIN_SHARE = {"harmful": 0.62, "benign": 0.69, "exception": 0.6, "unseen_benign": 0.0, "unseen_exception": 0.0}


@cache
def kingdom(seed: int) -> Kingdom:
    """The kingdom of a seed: independent answer tables, splits and coverage; the same words for all."""
    rng = Random(f"{seed}/kingdom")
    tools = {verb: rng.choice(lexicon.TOOLS) for verb in VERBS}
    materials = {object_: rng.choice(lexicon.MATERIALS) for object_ in OBJECTS}
    places = {verb: rng.choice(lexicon.PLACES) for verb in VERBS}
    meanings = [Meaning(v, o) for v in VERBS for o in OBJECTS if lexicon.makes_sense(v, o)]
    rng.shuffle(meanings)
    pools: dict[tuple[str, str], tuple[Meaning, ...]] = {}
    for kind in KINDS:
        mine = [m for m in meanings if kind_of(m) == kind]
        cut = round(_TRAIN_SHARE[kind] * len(mine))
        pools |= {(kind, "train"): tuple(mine[:cut]), (kind, "heldout"): tuple(mine[cut:])}
    return Kingdom(seed, tools, materials, places, pools)
