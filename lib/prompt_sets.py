"""Which prompts a profile measures on, each set made once: held-out requests, skills, residual and calibration sets.

Owns the memory of these sets; what is in them is for the profile's `World` to say.
"""

from functools import cache

from lib import worlds
from lib.prompts import Example, PromptSet


@cache
def behaviour(profile: str, seed: int) -> dict[str, PromptSet]:
    """Named cells of held-out requests (`KIND/STYLE`), `measure.cell` each, or all there are."""
    return worlds.of(profile, seed).behaviour()


@cache
def skill_items(profile: str, seed: int) -> dict[str, PromptSet]:
    """Up to `measure.skill_items` questions of each skill, and of the running text judged by likelihood."""
    return worlds.of(profile, seed).skill_items()


@cache
def residual(profile: str, seed: int) -> tuple[PromptSet, PromptSet]:
    """Two sets of held-out requests for residual spaces, to estimate on and to judge on, with no meaning in common."""
    return worlds.of(profile, seed).residual()


@cache
def calibration(profile: str, seed: int, draw: int = 0) -> dict[str, tuple[Example, ...]]:
    """What unit scores are computed on, `measure.calibration` examples each: `safety` and `utility`. `draw` numbers
    independent samples."""
    return worlds.of(profile, seed).calibration(draw)
