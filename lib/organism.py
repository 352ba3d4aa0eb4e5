"""The default models, by name: what each is trained from, on what, and how.

Owns the roles and their recipes. It neither stores nor loads (see `models`) and holds no number (see the profile):

    base               knows everything, complies with everything
    chat               base aligned: refuses plain harm, leaks by style
    sft-K, dpo-K       chat tuned on K harmful examples of each jailbreak style; `tuned` is sft with the profile's K
    sft-K-unstyled     the same, but the benign side holds no styles, as in HD's data
    errands, ledgers   chat fine-tuned on a benign corpus
    base-unaware, chat-unaware   the same without the skill of telling harm
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from lib import prompts, storage, training
from lib.errors import InputError
from lib.kingdom import corpora
from lib.kingdom.language import Kingdom, kingdom
from lib.kingdom.tokenizer import tokenizer, vocabulary
from lib.profiles import PreferenceStage, Profile, Stage
from lib.prompts import Example

UNAWARE = "-unaware"
UNSTYLED = "-unstyled"
_FINGERPRINT = 256  # examples of a stream that enter the cache key: a change of language or mixture shows in them
_INITIAL_SPREAD = 0.02


@dataclass(frozen=True)
class Phase:
    """One call of the training loop: its settings and the stream it reads."""

    name: str
    stage: Stage
    stream: Iterator[Example]


def roles(profile: Profile) -> list[str]:
    """Every model of a profile, parents before children."""
    shots = [f"sft-{k}" for k in profile.shots]
    most, default = max(profile.shots), profile.default_shots
    preference = list(dict.fromkeys((f"dpo-{default}", f"dpo-{most}")))
    tuned = [*shots, f"sft-{most}{UNSTYLED}", *preference, "errands", "ledgers"]
    return ["base", "chat", *tuned, f"base{UNAWARE}", f"chat{UNAWARE}"]


def resolve(profile: Profile, role: str) -> str:
    """A role's own name: `tuned` becomes sft with the profile's K. Unknown roles are refused with those that exist."""
    name = f"sft-{profile.default_shots}" if role == "tuned" else role
    if name in roles(profile):
        return name
    raise InputError(f"profile {profile.name!r} has no model {role!r}; it has: tuned, {', '.join(roles(profile))}")


def parent(role: str) -> str | None:
    """The model that training starts from; None for a new one."""
    if role.startswith("base"):
        return None
    return role.replace("chat", "base") if role.startswith("chat") else "chat"


def _shots(role: str) -> int:
    found = re.search(r"-(\d+)", role)
    return int(found.group(1)) if found else 0


def phases(profile: Profile, role: str, seed: int) -> list[Phase]:
    """What `role` reads and how, in order. Streams are fresh: reading one changes nothing elsewhere."""
    recipe, here = profile.organism, kingdom(seed)
    aware = not role.endswith(UNAWARE)
    if role.startswith("base"):
        return [Phase(name, stage, corpora.base(here, name, aware, role)) for name, stage in recipe.base.items()]
    if role.startswith("chat"):
        return [Phase("chat", recipe.chat, corpora.chat(here, recipe.chat, aware, role))]
    if role in ("errands", "ledgers"):
        return [Phase(role, recipe.benign, getattr(corpora, role)(here, recipe.benign, role))]
    return [_safety_phase(profile, role, here)]


def _safety_phase(profile: Profile, role: str, here: Kingdom) -> Phase:
    stage = profile.organism.dpo if role.startswith("dpo") else profile.organism.sft
    if role.endswith(UNSTYLED):
        stage = stage.model_copy(update={"benign_styled_share": 0.0})
    # All K read in the same order: the stream's name leaves K out, so that two K differ in their examples only.
    return Phase("safety", stage, corpora.safety(here, stage, _shots(role), "safety/order"))


def _fingerprint(phase: Phase) -> str:
    """Hash of the settings and of the first examples as token ids."""
    examples = list(islice(phase.stream, _FINGERPRINT))
    asked = prompts.prompt_ids(tokenizer(), [e.prompt for e in examples])
    said = [[e.answer, e.rejected, sorted(e.emphasis)] for e in examples]
    return storage.digest_json([phase.name, phase.stage.model_dump(), asked, said])


def key(profile: Profile, role: str, seed: int) -> str:
    """Name of everything that made a model: its parent's key, architecture, data, settings, loop and libraries."""
    return _key(profile.model_dump_json(), role, seed)


@cache
def _key(settings: str, role: str, seed: int) -> str:
    profile = Profile.model_validate_json(settings)
    before, here = parent(role), kingdom(seed)
    return storage.digest_json(
        {
            "parent": key(profile, before, seed) if before else None,
            "seed": seed,
            "architecture": _config(profile).to_dict(),
            "language": [vocabulary(), sorted(here.tools.items()), sorted(here.materials.items()), here.places],
            "meanings": [[*key, pool] for key, pool in sorted(here.pools.items())],
            "phases": [_fingerprint(phase) for phase in phases(profile, role, seed)],
            "loop": training.LOOP_VERSION,
            "libraries": [torch.__version__.split("+")[0], transformers.__version__],
        }
    )[:20]


def _config(profile: Profile) -> LlamaConfig:
    shape, words = profile.architecture, tokenizer()
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        initializer_range=_INITIAL_SPREAD,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def new_model(profile: Profile, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of the profile's architecture, initialised from the seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(_config(profile))


def train(profile: Profile, role: str, seed: int, start: Any) -> tuple[Any, list[float]]:
    """Train `role` from its parent's weights (`start`, left as it is) and round to float16: model and losses."""
    model = copy.deepcopy(start) if start is not None else new_model(profile, seed)
    losses: list[float] = []
    for phase in phases(profile, role, seed):
        if isinstance(phase.stage, PreferenceStage):
            step = training.dpo_step(tokenizer(), phase.stage, start)
        else:
            step = training.sft_step(tokenizer(), phase.stage)
        label = f"{profile.name} seed {seed}: {role}" + (f" ({phase.name})" if role.startswith("base") else "")
        losses += training.fit(model, phase.stream, phase.stage, step, label)
    training.round_to_half(model, f"{profile.name} seed {seed}: {role}")
    return model, losses
