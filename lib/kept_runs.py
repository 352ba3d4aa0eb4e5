"""Runs of the training loop whose outcome is kept in the cache: where, under which key, and several side by side.

Owns what all such runs depend on and share. What a run trains, asks and measures is in `freezing`, `budget` and
`late_refusal`, each of which adds what only it depends on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import models, paths, profiles, provenance, storage
from lib.profiles import Trained
from lib.prompts import Example, Prompt
from lib.threads import side_by_side
from lib.worlds import World

# What trains and measures in every run; data enter keys by content.
CODE = ("training", "precision", "processes", "behaviour", "prompts")


@dataclass(frozen=True)
class Place:
    """The folder in which the outcome of a run is kept, and what is written beside it."""

    folder: Path
    about: dict[str, Any]

    @property
    def empty(self) -> bool:
        """Whether nothing is kept here, or nothing that can be used."""
        return storage.wrong(self.folder) is not None

    def remembered(self, train: Callable[[], Any]) -> Any:
        """The outcome as JSON, found by `train` if it is not kept."""
        return storage.remembered(self.folder, self.about, train)


def place(
    world: World,
    about: Mapping[str, str],
    decides: Mapping[str, Any],
    read: Iterable[Example],
    asked: Mapping[str, Sequence[Prompt]],
    code: Sequence[str],
) -> Place:
    """Where a run in this world is kept: named by `about`, and by a key of all that decides its outcome.

    `decides`: models and settings as JSON; `read`: what it learns from; `asked`: what it is measured on; `code`: the
    modules of `lib` that make it besides `CODE`, the first of which owns the folder. How this world tells refusals
    enters for all.
    """
    profile, seed = world.settings.name, world.seed
    known = {"profile": profile, "seed": seed, **about}
    told_by = {"told by": [world.openers, world.refusals]}
    key = provenance.run_key({**known, **told_by, **decides}, read, asked, (*code, *CODE))
    name = "-".join(text.replace(" ", "_").replace("%", "") for text in (str(seed), *about.values(), key))
    return Place(paths.CACHE / code[0] / profile / name, known)


def prepare(
    profile: str, follow: Callable[..., object], kept: Callable[..., Place], calls: Sequence[tuple[Any, ...]]
) -> None:
    """`follow(*call)` for each of `calls` whose place, `kept(*call)`, is empty: side by side, see `threads`.

    Each in a process of its own on one thread: for models as small as those trained here that is faster than one run on
    all threads. Runs of checkpoints are left to the caller, one after the other.
    """
    settings = profiles.load(profile)
    models.check_trainable(settings)
    if isinstance(settings, Trained):
        side_by_side(follow, [call for call in calls if kept(*call).empty])
