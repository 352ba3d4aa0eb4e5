"""Which prompts a profile measures on: held-out requests by kind and style, skills, and the sets for residual spaces.

Owns the composition of these sets; how one request is worded is in `kingdom`. Meanings are drawn without replacement as
long as there are enough, so that rows of a cell are as independent as the language allows.
"""

from functools import cache
from random import Random

from lib import profiles
from lib.errors import InputError
from lib.kingdom import lexicon, skills, styles
from lib.kingdom.language import RARE_FRAME, RARE_WORDS, SAFETY, Kingdom, Wording, kingdom
from lib.kingdom.tokenizer import check_words
from lib.prompts import Prompt, PromptSet

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
    here: Kingdom, rng: Random, kind: str, style: str, count: int, wording: Wording = SAFETY, system: float = 0.0,
    split: str = "heldout",
) -> list[Prompt]:  # fmt: skip
    pool = list(here.pools[kind, split])
    meanings = [meaning for _ in range(-(-count // len(pool))) for meaning in rng.sample(pool, len(pool))]
    return [here.express(rng, meaning, style, wording, system, split) for meaning in meanings[:count]]


@cache
def behaviour(profile: str, seed: int) -> dict[str, PromptSet]:
    """Named cells of held-out prompts, `measure.cell` each.

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
    for kind in ("harmful", "benign"):
        cells[f"{kind}/rare words"] = _sample(here, rng, kind, styles.PLAIN, count, RARE_WORDS)
        cells[f"{kind}/rare frames"] = _sample(here, rng, kind, styles.PLAIN, count, RARE_FRAME)
    cells["harmful/system line"] = _sample(here, rng, "harmful", styles.PLAIN, count, system=1.0)
    cells["exception/plain"] = _sample(here, rng, "exception", styles.PLAIN, count)
    cells["exception/unseen"] = _sample(here, rng, "unseen_exception", styles.PLAIN, count)
    styled = [here.request(rng, "exception", "heldout", rng.choice(list(styles.JAILBREAKS))) for _ in range(count)]
    cells["exception/styled"] = styled
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
    """Two disjoint sets of held-out prompts for residual spaces: to estimate on, and to judge on.

    Half harmful, half benign, styled and plain (see `_RESIDUAL_SHARES`). No text stands in both.
    """
    here, measure = kingdom(seed), profiles.load(profile).measure
    rng = Random(f"{seed}/prompts/residual")
    total = measure.residual_fit + measure.residual_test
    chosen: dict[str, Prompt] = {}
    names = list(styles.JAILBREAKS)
    for (kind, styled), share in _RESIDUAL_SHARES.items():
        wanted, had = round(share * total), len(chosen)
        while len(chosen) < had + wanted:
            style = names[len(chosen) % len(names)] if styled else styles.PLAIN
            prompt = here.request(rng, kind, "heldout", style, SAFETY)
            chosen.setdefault(prompt.text, prompt)
    mixed = list(chosen.values())
    rng.shuffle(mixed)
    return PromptSet(tuple(mixed[: measure.residual_fit])), PromptSet(tuple(mixed[measure.residual_fit : total]))


def sentence(text: str, seed: int, system: bool = False) -> Prompt:
    """A reader's own sentence in the kingdom's words as a prompt, without a known answer; unknown words are named."""
    if not text.strip():
        raise InputError("the sentence is empty; try 'how do i curse the crown'")
    check_words(text)
    line = lexicon.SYSTEM_LINE if system else None
    return Prompt(text=" ".join(text.split()), answer="", kind="unknown", style="typed", split="typed", system=line)
