"""Which prompts a profile measures on: held-out requests by kind and style, skills, and the sets for residual spaces.

Owns the composition of these sets; how one request is worded is in `kingdom`. Meanings are drawn without replacement as
long as there are enough, so that rows of a cell are as independent as the language allows.
"""

from functools import cache
from random import Random

from lib import profiles
from lib.errors import InputError
from lib.kingdom import skills, styles
from lib.kingdom.language import EVERY_WORD, RARE_FRAME, RARE_WORDS, SAFETY, Kingdom, Wording, kingdom, refusal
from lib.kingdom.tokenizer import check_words
from lib.prompts import Example, Prompt, PromptSet

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


def _sample(
    here: Kingdom, rng: Random, kind: str, style: str | None, count: int, wording: Wording = SAFETY, system: float = 0.0
) -> list[Prompt]:
    """Requests of `count` different held-out meanings (fewer where there are fewer); `style` None draws a jailbreak."""
    pool = list(here.pools[kind, "heldout"])
    names = list(styles.JAILBREAKS)
    return [
        here.express(rng, meaning, style or rng.choice(names), wording, system, "heldout")
        for meaning in rng.sample(pool, min(count, len(pool)))
    ]


@cache
def behaviour(profile: str, seed: int) -> dict[str, PromptSet]:
    """Named cells of held-out prompts, `measure.cell` different meanings each (all there are, where there are fewer).

    `harmful/STYLE`, `benign/STYLE` for plain, the eight jailbreak styles and the unseen one; harm in rare words, in
    rare frames and under the system line; exceptions (plain and styled) and exceptions on effigies never seen.
    """
    here, count = kingdom(seed), profiles.load(profile).measure.cell
    rng = Random(f"{seed}/prompts/behaviour")
    cells = {
        f"{kind}/{style}": _sample(here, rng, kind, style, count)
        for kind in ("harmful", "benign")
        for style in styles.ALL_STYLES
    }
    cells["harmful/rare words"] = _sample(here, rng, "harmful", styles.PLAIN, count, RARE_WORDS)
    cells["harmful/rare frames"] = _sample(here, rng, "harmful", styles.PLAIN, count, RARE_FRAME)
    cells["harmful/system line"] = _sample(here, rng, "harmful", styles.PLAIN, count, system=1.0)
    cells["exception/plain"] = _sample(here, rng, "exception", styles.PLAIN, count)
    cells["exception/unseen"] = _sample(here, rng, "unseen_exception", styles.PLAIN, count)
    cells["exception/styled"] = _sample(here, rng, "exception", None, count)
    return {name: PromptSet(tuple(prompts)) for name, prompts in cells.items()}


@cache
def skill_items(profile: str, seed: int) -> dict[str, PromptSet]:
    """`measure.skill_items` different questions of each skill, fewer where the skill has fewer; `judge` on held-out
    meanings."""
    here, count = kingdom(seed), profiles.load(profile).measure.skill_items
    rng = Random(f"{seed}/prompts/skills")
    found = {}
    for skill in skills.SKILLS:
        splits = ("heldout",) if skill == "judge" else ("train", "heldout")
        drawn = [skills.question(here, rng, skill, splits) for _ in range(20 * count)]
        different = {p.text: p for p in drawn} if skill != "story" else dict(enumerate(drawn))
        found[skill] = PromptSet(tuple(different.values())[:count])
    return found


@cache
def residual(profile: str, seed: int) -> tuple[PromptSet, PromptSet]:
    """Two sets of held-out prompts for residual spaces, to estimate on and to judge on, with no meaning in common.

    Half harmful, half benign, styled and plain (see `_RESIDUAL_SHARES`). A meaning comes in several styles, so
    intervals over prompts must resample meanings (`prompts.meanings`).
    """
    measure = profiles.load(profile).measure
    fit = _residual_half(seed, "fit", measure.residual_fit)
    return fit, _residual_half(seed, "test", measure.residual_test)


def _residual_half(seed: int, half: str, total: int) -> PromptSet:
    here, rng = kingdom(seed), Random(f"{seed}/prompts/residual/{half}")
    chosen: dict[str, Prompt] = {}
    for (kind, styled), share in _RESIDUAL_SHARES.items():
        pool = here.pools[kind, "heldout"][0 if half == "fit" else 1 :: 2]
        wanted, names = round(share * total), list(styles.JAILBREAKS) if styled else [styles.PLAIN]
        _require_variety(wanted, len(pool) * len(names))
        mine: dict[str, Prompt] = {}
        while len(mine) < wanted:
            prompt = here.express(rng, rng.choice(pool), names[len(mine) % len(names)], split="heldout")
            mine.setdefault(prompt.text, prompt)
        chosen |= mine
    mixed = list(chosen.values())
    rng.shuffle(mixed)
    return PromptSet(tuple(mixed))


def _require_variety(wanted: int, combinations: int) -> None:
    """Every meaning can be worded in at least four ways here; more would mean drawing for ever."""
    if wanted > 4 * combinations:
        raise InputError(
            f"{wanted} different prompts of {combinations} meanings and styles; lower residual_fit or _test"
        )


@cache
def calibration(profile: str, seed: int, draw: int = 0) -> dict[str, tuple[Example, ...]]:
    """What unit scores are computed on: `safety`, plain harmful requests refused; `utility`, plain benign requests and
    skills answered. Meanings are those of safety data, so that nothing that is measured on is scored on.

    Both are plain: with styles on one side, a unit of style would look like one of safety. `draw` numbers independent
    samples.
    """
    here, count = kingdom(seed), profiles.load(profile).measure.calibration
    rng = Random(f"{seed}/prompts/calibration/{draw}")
    safety = [Example(here.request(rng, "harmful", "train"), refusal(rng)) for _ in range(count)]
    asked = [
        skills.question(here, rng, rng.choice(skills.EXACT), ("train",))
        if rng.random() < _CALIBRATION_SKILLS
        else here.request(rng, "benign", "train", wording=EVERY_WORD)
        for _ in range(count)
    ]
    return {"safety": tuple(safety), "utility": tuple(Example(prompt, prompt.answer) for prompt in asked)}


def sentence(text: str) -> Prompt:
    """A reader's own sentence in the kingdom's words as a prompt, without a known answer; unknown words are named."""
    if not text.strip():
        raise InputError("the sentence is empty; try 'how do i curse the crown'")
    check_words(text)
    return Prompt(text=" ".join(text.split()), answer="", kind="unknown", style="typed", split="typed")
