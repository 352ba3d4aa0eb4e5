"""Models by role: what each is made from, on what, and how.

Owns the roles, how they are derived from each other, and their cache keys. It neither stores nor loads (see `models`),
holds no number (see the profile) and no text (see the world):

    base               knows everything, complies with everything
    chat               base aligned: refuses plain harm, leaks by style
    sft-K, dpo-K       chat tuned on K harmful examples of each attack: the jailbreak styles and trigger removal (chat's
                       own prompts, see `triggers`); `tuned` is sft with the profile's K
    sft-dpo-K          dpo after sft with the same K
    sft-K-unstyled     sft, but the benign side holds no styles, as in HD's data
    sft-K-unremoved    sft without examples of trigger removal
    sft-K-worded       sft whose safety data hold every wording, also rare words and frames
    errands, ledgers   chat fine-tuned on a benign corpus
    base-unaware, chat-unaware   the same without the skill of telling harm
    chat-unreplayed    base aligned without any skills among the data

In a checkpoint profile base, chat and perhaps tuned are given; the arms that need a base of our own, another wording or
styles on the benign side do not exist.
"""

import copy
import re
from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Any

import torch
import transformers

from lib import checkpoints, precision, profiles, storage, training, worlds
from lib.errors import InputError, NotHere
from lib.profiles import Checkpoint, PreferenceStage, Profile, Trained
from lib.prompts import Prompt
from lib.worlds import Phase, World

UNAWARE = "-unaware"
UNREPLAYED = "-unreplayed"
UNSTYLED, UNREMOVED, WORDED = "-unstyled", "-unremoved", "-worded"
TUNED = "tuned"
REMOVED = "removed"  # the style of prompts that trigger removal made
FINGERPRINT = 256  # examples of a stream that enter the cache key: a change of language or mixture shows in them


def roles(profile: Profile) -> list[str]:
    """Every model of a profile, parents before children."""
    most, default = max(profile.shots), profile.default_shots
    shots = [f"sft-{k}" for k in profile.shots]
    arms = [f"sft-{most}{arm}" for arm in (UNSTYLED, UNREMOVED, WORDED)]
    preference = [f"dpo-{k}" for k in sorted({*profile.preference_shots, default, most})]
    both = [f"sft-dpo-{k}" for k in profile.preference_shots]
    chats = [f"base{UNAWARE}", f"chat{UNAWARE}", f"chat{UNREPLAYED}"]
    every = ["base", "chat", *shots, *arms, *preference, *both, "errands", "ledgers", *chats]
    if isinstance(profile, Trained):
        return every
    return [TUNED, *(role for role in every if role not in arms and not role.endswith(UNAWARE))]


def given(profile: Profile) -> dict[str, profiles.Source]:
    """The models that come from elsewhere, by role."""
    if not isinstance(profile, Checkpoint):
        return {}
    if profile.models is None:
        raise InputError(f"profile {profile.name!r} names no models; give --base and --model (and perhaps --tuned)")
    found = {"base": profile.models.base, "chat": profile.models.chat, TUNED: profile.models.tuned}
    return {role: source for role, source in found.items() if source is not None}


def resolve(profile: Profile, role: str) -> str:
    """A role's own name: `tuned` becomes sft with the profile's K, unless it is given.

    Unknown roles are refused with those that exist; one that exists for trained models only raises `NotHere`.
    """
    name = f"sft-{profile.default_shots}" if role == TUNED and role not in given(profile) else role
    if name in roles(profile):
        return name
    if role.endswith((UNAWARE, UNSTYLED, UNREMOVED, WORDED)) and not isinstance(profile, Trained):
        raise NotHere(f"{role} has to be trained from nothing or on styles, which a checkpoint profile does not do")
    raise InputError(f"profile {profile.name!r} has no model {role!r}; it has: tuned, {', '.join(roles(profile))}")


def parent(role: str) -> str | None:
    """The model that training starts from; None for a new one."""
    if role.startswith("base"):
        return None
    if role.startswith("sft-dpo"):
        return role.replace("sft-dpo", "sft")
    return role.replace("chat", "base").removesuffix(UNREPLAYED) if role.startswith("chat") else "chat"


def generation(role: str) -> int:
    """How many models have to be there before: 0 of base."""
    before = parent(role)
    return 0 if before is None else 1 + generation(before)


def shots_of(role: str) -> int:
    """The K of a role, 0 where it has none."""
    found = re.search(r"-(\d+)", role)
    return int(found.group(1)) if found else 0


def removed_count(role: str) -> int:
    """How many prompts made by trigger removal the safety data of a role hold."""
    return 0 if role.endswith(UNREMOVED) else shots_of(role)


def _fingerprint(phase: Phase, world: World) -> str:
    """Hash of the settings and of the first examples as the model reads them."""
    examples = list(islice(phase.stream, FINGERPRINT))
    asked = world.as_read([e.prompt for e in examples])
    said = [[e.answer, e.rejected, sorted(e.emphasis)] for e in examples]
    return storage.digest_json([phase.name, phase.stage.model_dump(), asked, said])


def key(profile: Profile, role: str, seed: int) -> str:
    """Name of everything that made a model: its parent's key, architecture, data, settings, loop and libraries; of a
    given checkpoint, what tells its files from others; and the type of weights that a checkpoint profile asks for.
    """
    return _key(profile.model_dump_json(), role, seed)


@cache
def _key(settings: str, role: str, seed: int) -> str:
    profile = profiles.parse(settings)
    dtype = {"dtype": profile.dtype} if isinstance(profile, Checkpoint) else {}
    if role in (elsewhere := given(profile)):
        files = [checkpoints.identity(one.name, one.revision) for one in (elsewhere[role], elsewhere["chat"])]
        return storage.digest_json({"files": files, **dtype})[:20]  # chat's, because all are read with its tokenizer
    before, world = parent(role), worlds.make(profile, seed)
    removed = removed_key(profile, seed) if removed_count(role) and world.rewriting else None
    return storage.digest_json(
        {
            **({"removed": removed} if removed else {}),
            **dtype,
            "parent": key(profile, before, seed) if before else None,
            "seed": seed,
            **world.fingerprint(),
            "phases": [_fingerprint(phase, world) for phase in world.phases(role, ())],
            "loop": training.LOOP_VERSION,
            "libraries": [torch.__version__.split("+")[0], transformers.__version__],
        }
    )[:20]


def removed_key(profile: Profile, seed: int) -> str:
    """Name of the prompts that trigger removal makes of chat's training prompts: what they depend on."""
    world = worlds.make(profile, seed)
    asked = world.plain_harm(max(profile.shots))
    made_by = [world.rewriting, profile.triggers.model_dump(), profile.measure.residual_fit, key(profile, "chat", seed)]
    return storage.digest_json([*made_by, [prompt.text for prompt in asked]])[:20]


def train(
    profile: Profile, role: str, seed: int, start: Any, tokenizer: Any, removed: Sequence[Prompt] = ()
) -> tuple[Any, list[float]]:
    """Train `role` from `start`, its parent or a new model (left as it is), and round as it is stored: model and
    losses. 16-bit models are trained in float32."""
    world = worlds.make(profile, seed)
    if world.rewriting and len(removed) < removed_count(role):
        raise InputError(f"{role} needs {removed_count(role)} prompts of trigger removal, not {len(removed)}")
    model, phases = copy.deepcopy(start).requires_grad_(True), world.phases(role, removed)
    preferring = any(isinstance(phase.stage, PreferenceStage) for phase in phases)
    losses: list[float] = []
    # Together: what DPO compares are differences between the two.
    with precision.in_float32(model, *([start] if preferring else [])):
        for phase in phases:
            if isinstance(phase.stage, PreferenceStage):
                step = training.dpo_step(tokenizer, phase.stage, start)
            else:
                step = training.sft_step(tokenizer, phase.stage)
            label = f"{profile.name} seed {seed}: {role}" + (f" ({phase.name})" if role.startswith("base") else "")
            losses += training.fit(model, phase.stream, phase.stage, step, label)
    if isinstance(profile, Trained):
        training.round_to_half(model, f"{profile.name} seed {seed}: {role}")
    return model, losses
