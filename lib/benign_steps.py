"""chat after a few steps of harmless fine-tuning: one of the small interventions of ssah.1.knowledge.

Owns this training and its memory; the recipe is that of notebook 05 with nothing frozen. Trained once and kept under a
key of all it depends on.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model

from lib import models, organism, paths, profiles, provenance, storage, training, worlds
from lib.models import LanguageModel
from lib.profiles import Corpus, Profile, Stage, Trained
from lib.threads import one_thread

STEPS = 50  # registry, ssah.1.knowledge
_CORPUS: Corpus = "errands"  # requests of the kinds the model knows, all answered, none harmful
_CODE = ("benign_steps", "training", "prompts")
_WEIGHTS = "weights.safetensors"


def model(profile: str, seed: int) -> LanguageModel:
    """chat after `STEPS` steps on errands. `NotHere` where nothing can be trained."""
    settings = profiles.load(profile)
    models.check_trainable(settings)
    start = models.load(profile, "chat", seed)
    folder, about = _place(settings, seed)
    hf = copy.deepcopy(start.hf).requires_grad_(True)
    if storage.wrong(folder) is None:
        load_model(hf, folder / _WEIGHTS)
    else:
        storage.require_space(paths.CACHE, sum(weight.nbytes for weight in hf.parameters()), f"{STEPS} benign steps")
        _train(settings, seed, hf, start.tokenizer)
        storage.seal_folder(folder, lambda place: save_model(hf, str(place / _WEIGHTS)), about)
    return replace(start, name=f"chat, {STEPS} benign steps", hf=hf.eval(), origin="trained")


def _stage(settings: Profile) -> Stage:
    return settings.freezing.stages[_CORPUS].model_copy(update={"steps": STEPS})


def _train(settings: Profile, seed: int, hf: Any, tokenizer: Any) -> None:
    stage, label = _stage(settings), f"{settings.name} seed {seed}: {STEPS} benign steps"
    stream = worlds.make(settings, seed).corpus(_CORPUS, _CORPUS)
    with one_thread(isinstance(settings, Trained)):  # the same bits on any number of threads
        training.fit(hf, stream, stage, training.sft_step(tokenizer, stage), label)


def _place(settings: Profile, seed: int) -> tuple[Path, dict[str, Any]]:
    """The folder the weights are kept in, and what is written beside them."""
    about = {"profile": settings.name, "seed": seed, "corpus": _CORPUS}
    decides = {**about, "chat": organism.key(settings, "chat", seed), "settings": _stage(settings).model_dump()}
    read = worlds.make(settings, seed).corpus(_CORPUS, _CORPUS)
    key = provenance.run_key(decides, read, {}, _CODE)
    return paths.CACHE / "benign_steps" / settings.name / f"{seed}-{key}", about
