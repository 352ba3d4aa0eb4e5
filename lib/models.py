"""Models by name: found in the cache, taken from the shipped files, or trained; and any Hugging Face folder.

Owns opening, loading and caching. What is checked before a checkpoint is opened is in `checkpoints`, what differs
between model families in `families`, how models are made of others in `organism`. Models made here are read from sealed
folders: a damaged one is never used.
"""

import argparse
import copy
import time
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from lib import checkpoints, families, organism, paths, profiles, storage, tracing, worlds
from lib import remote as server
from lib.errors import InputError, NotHere, unknown
from lib.profiles import Checkpoint, Profile, Trained
from lib.prompts import Prompt
from lib.remote import Remote
from lib.threads import side_by_side

transformers.utils.logging.disable_progress_bar()

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_BYTES_BESIDE = 20_000_000  # of a model beside its weights: tokenizer, configuration, generously


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer. `name` is its role, `origin` where it came from.

    `openers`: the words or phrases with which it opens a refusal, as its `World` says. `remote` says where it runs. On
    a server, `hf` has shapes and no weights, and `revision` is part of its name there.
    """

    name: str
    hf: Any
    tokenizer: Any
    origin: str
    openers: tuple[str, ...] = ()
    remote: Remote = False
    revision: str | None = None

    @cached_property
    def traced(self) -> tracing.Traced:
        """The model as `tracing` wants it; made once."""
        sites = families.of(self.hf.config).sites
        return tracing.wrap(self.hf, self.tokenizer, sites, self.remote, self.revision)

    @property
    def layers(self) -> int:
        return self.hf.config.num_hidden_layers

    @property
    def width(self) -> int:
        return self.hf.config.hidden_size


# Hugging Face folders -------------------------------------------------------------------------------------------------
def open_checkpoint(
    name: str,
    role: str | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    device: str = "cpu",
    read_with: Any = None,
) -> LanguageModel:
    """A causal LM from a local folder or the hub, with its tokenizer, in `dtype` whatever it was saved in.

    `device`: cpu, cuda, or auto (all cards, by accelerate's device map). `revision` is a branch, tag or commit on the
    hub. `read_with`: a tokenizer in the place of its own, see `checkpoints.tokenizer`. No code from the checkpoint is
    run and nothing is unpickled. Raises `InputError`, before weights are read, for everything `checkpoints.check`
    refuses, and for cards that are missing or too small.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if device != "cpu" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} needs a GPU and there is none; set device: cpu in the profile")
    found = checkpoints.check(name, revision, read_with)
    options = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    if device != "cpu":  # without it the loader does not ask for accelerate's dispatch
        options["device_map"] = device
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(found.folder, output_loading_info=True, **options)
    except torch.OutOfMemoryError:  # a RuntimeError too, and no fault of the files
        raise InputError(
            f"{name!r} does not fit beside the models that are open on {device!r}; take a card with more memory, or "
            "several with device: auto"
        ) from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        raise InputError(
            f"the weights of {name!r} cannot be read ({problem.__class__.__name__}); download it again"
        ) from None
    hf, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers would leave these random
        raise InputError(
            f"{name!r} lacks {len(missing)} of its model's weights ({missing[0]}); name a checkpoint of the whole model"
        )
    _check_placed(hf, name)
    return LanguageModel(role or Path(name).name, hf.eval(), found.tokenizer, found.origin)


def _check_placed(hf: Any, name: str) -> None:
    """Refuse what accelerate keeps off the cards for want of memory: such weights are copies that come and go, so that
    training them, or setting them to zero, would silently do nothing."""
    places = getattr(hf, "hf_device_map", {})
    away = [part for part, place in places.items() if str(place) in ("cpu", "disk")]
    if away and len(away) < len(places):
        raise InputError(
            f"{len(away)} of {len(places)} parts of {name!r} do not fit on the cards ({away[0]}); take more cards, or "
            "device: cpu in the profile"
        )


def open_remote(
    name: str,
    role: str | None = None,
    revision: str | None = None,
    remote: Remote = True,
    dtype: torch.dtype = torch.float32,
    read_with: Any = None,
) -> LanguageModel:
    """A causal LM that runs on a server: configuration and tokenizer from the hub or a folder, and no weights.

    `remote` is True for NDIF or the address of a server like it, which must know the model by this name: a folder, by
    its path. "local" opens the weights here, in `dtype`, and rehearses; a server keeps its own type. `InputError` as in
    `checkpoints.check` and `remote.check`, before anything is sent.
    """
    where = server.check(remote)
    if not server.elsewhere(where):
        return replace(open_checkpoint(name, role, dtype, revision, read_with=read_with), remote=where)
    if where is True and Path(name).is_dir():
        raise InputError(f"{name!r} is a folder, which NDIF does not know; give the model's name on the hub")
    found = checkpoints.outline(name, revision, read_with)
    hf = server.skeleton(found.config, name)
    if found.generation is not None:
        hf.generation_config = found.generation
    origin = f"{name} on {server.place(where)}" if revision is None else f"{name}@{revision} on {server.place(where)}"
    return LanguageModel(role or Path(name).name, hf, found.tokenizer, origin, remote=where, revision=revision)


def check_weights(before: LanguageModel, after: LanguageModel) -> None:
    """Refuse two models whose weights cannot be subtracted or mixed."""
    one, other = ({name: tuple(w.shape) for name, w in model.hf.named_parameters()} for model in (before, after))
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            raise InputError(
                f"{name} is {one.get(name)} in {before.name} and {other.get(name)} in {after.name}; take two models of "
                "one architecture"
            )


def between(before: LanguageModel, after: LanguageModel, alpha: float) -> LanguageModel:
    """The model a step `alpha` of the way from `before` to `after` in weight space: 0 is before, 1 after, more beyond.

    Both models are left as they are. `InputError` for models of different shapes.
    """
    check_weights(before, after)
    hf = copy.deepcopy(before.hf)
    for mine, target in zip(hf.parameters(), after.hf.parameters(), strict=True):
        mine.data.lerp_(target.data, alpha)
    name = f"{before.name}-{alpha:.3g}-{after.name}"
    return replace(before, name=name, hf=hf, origin="interpolated")


# models by role -------------------------------------------------------------------------------------------------------
def _cached(profile: Profile, role: str, key: str) -> Path:
    return paths.CACHE / "models" / profile.name / f"{role}-{key}"


def _usable(folder: Path, key: str) -> bool:
    """Whether a sealed folder holds the model of `key`; warns when it is damaged."""
    if not folder.is_dir():
        return False
    problem = storage.damage(folder)
    same = not problem and storage.read_seal(folder).get("key") == key
    if not same and (problem or paths.CACHE in folder.parents):  # what is shipped may be of other settings
        why = problem or "it holds another model"
        warnings.warn(f"{folder.parent.name}/{folder.name} is not used: {why}; it will be made again", stacklevel=3)
    return same


def _is_cached(profile: Profile, role: str, seed: int) -> bool:
    key = organism.key(profile, role, seed)
    return _usable(_cached(profile, role, key), key)


def _save(hf: Any, tokenizer: Any, half: bool, folder: Path, about: dict[str, Any]) -> None:
    """Seal a model in a folder; `half`: in float16, to which its weights have been rounded."""

    def write(temporary: Path) -> None:
        stored = hf
        if half:
            stored = type(hf)(hf.config).half()
            stored.load_state_dict(hf.state_dict())
        stored.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    storage.seal_folder(folder, write, about)


def _removed(profile: str, seed: int) -> list[Prompt]:
    """Safety examples that attack chat itself. Imported here, because the attack needs models that are loaded."""
    from lib import triggers

    return triggers.safety_examples(profile, seed)


def _train(profile: Profile, role: str, seed: int, key: str, shipped: bool) -> Path:
    """Train one model (its parents first where missing) into the cache."""
    check_trainable(profile)
    before, world = organism.parent(role), worlds.of(profile.name, seed)
    if before:
        start = load(profile.name, before, seed, shipped)
        hf, tokenizer = start.hf, start.tokenizer
    else:
        hf, tokenizer = world.untrained()
    size = sum(weight.nbytes for weight in hf.parameters())
    storage.require_space(paths.CACHE, size + _BYTES_BESIDE, f"training {role}")
    started = time.monotonic()
    removed = _removed(profile.name, seed) if organism.removed_count(role) and world.rewriting else []
    torch.set_num_threads(profile.threads)
    model, losses = organism.train(profile, role, seed, hf, tokenizer, removed)
    about = {
        "key": key, "profile": profile.name, "role": role, "seed": seed, "steps": len(losses),
        "last_loss": round(sum(losses[-10:]) / len(losses[-10:]), 6), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    folder = _cached(profile, role, key)
    _save(model, tokenizer, isinstance(profile, Trained), folder, about)
    return folder


def check_trainable(profile: Profile) -> None:
    """`NotHere` where weights are on a server, so that nothing can be trained."""
    if isinstance(profile, Checkpoint) and profile.elsewhere:
        raise NotHere("this page trains models, which a remote profile cannot: its weights are on a server")


def find(profile: Profile, role: str, seed: int, shipped: bool) -> tuple[Path, str]:
    """Folder of a model made here, and whether it was cached, shipped (looked at only if `shipped`) or trained now."""
    key = organism.key(profile, role, seed)
    if _usable(_cached(profile, role, key), key):
        return _cached(profile, role, key), "cached"
    in_repository = paths.shipped_organism(seed) / role
    if shipped and profile.published and _usable(in_repository, key):
        return in_repository, "shipped"
    folder = _cached(profile, role, key)
    with storage.alone(folder):  # another process may be training it: then it is there afterwards
        if storage.damage(folder) is None and storage.read_seal(folder).get("key") == key:
            return folder, "cached"
        return _train(profile, role, seed, key, shipped), "trained"


def load(profile: str, role: str, seed: int, shipped: bool = True) -> LanguageModel:
    """The model of that role, e.g. `load("kingdom", "chat", 0)`: given, from the cache, shipped, or trained now.

    `shipped=False` ignores the files that come with the repository. Roles are listed in `organism`.
    """
    settings = profiles.load(profile)
    role = organism.resolve(settings, role)
    if seed < 0:
        raise InputError(f"seed {seed} is negative; seeds are 0, 1, 2, ...")
    torch.set_num_threads(settings.threads)
    openers = worlds.of(profile, seed).openers
    if isinstance(settings, Checkpoint):
        return replace(_of_checkpoint(settings, role, seed, shipped), openers=openers)
    folder, _ = find(settings, role, seed, shipped)
    return replace(open_checkpoint(str(folder), role), openers=openers)


def _of_checkpoint(settings: Checkpoint, role: str, seed: int, shipped: bool) -> LanguageModel:
    dtype, source = getattr(torch, settings.dtype), organism.given(settings).get(role)
    if source is not None:
        name, revision, read_with = source.name, source.revision, _read_with(settings, role)
    else:
        name, revision, read_with = str(find(settings, role, seed, shipped)[0]), None, None
    if settings.remote:
        return open_remote(name, role, revision, settings.remote, dtype, read_with)
    opened = open_checkpoint(name, role, dtype, revision, settings.device, read_with)
    # Else every gradient of an activation would keep the input of every linear map; what trains asks for its own copy.
    opened.hf.requires_grad_(False)
    return opened


def _read_with(settings: Checkpoint, role: str) -> Any:
    """The tokenizer of `chat` for the other given models, see `checkpoints.tokenizer`; None for chat, which has it."""
    chat = organism.given(settings)["chat"]
    return None if role == "chat" else checkpoints.tokenizer(chat.name, chat.revision)


def largest_difference(one: Path, other: Path) -> float:
    """Largest absolute difference between two models' weights; infinite when their tensors differ in name or shape."""
    a, b = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).state_dict() for p in (one, other))
    if {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
        return float("inf")
    return max((a[k] - b[k]).abs().max().item() for k in a)


def _against_shipped(trained: Path, role: str, seed: int) -> str:
    shipped = paths.shipped_organism(seed) / role
    if not shipped.is_dir():
        return "not shipped"
    if storage.damage(shipped):
        return "the shipped file is damaged"
    difference = largest_difference(trained, shipped)
    return "equal to the last bit" if difference == 0 else f"largest difference {difference:.2g}"


def build(profile: str, seed: int) -> dict[str, dict[str, Any]]:
    """Train every model of the profile that is not in the cache, and compare with what is shipped; returns a report.

    Several at a time where there are CPUs: what a model is trained from comes before it, or is waited for. Given
    checkpoints are checked instead, that they open and fit each other; what else a notebook needs is trained when
    it asks, because a large model is not fine-tuned a dozen times for a page that nobody runs.
    """
    settings = profiles.load(profile)
    if isinstance(settings, Checkpoint):
        return _checked(settings)
    missing = [role for role in organism.roles(settings) if not _is_cached(settings, role, seed)]
    side_by_side(find, [(settings, role, seed, False) for role in sorted(missing, key=organism.generation)])
    report: dict[str, dict[str, Any]] = {}
    for role in organism.roles(settings):
        folder, _ = find(settings, role, seed, shipped=False)
        report[role] = {**storage.read_seal(folder), "source": "trained" if role in missing else "cached"}
        if settings.published:
            report[role]["shipped"] = _against_shipped(folder, role, seed)
    return report


def _checked(settings: Checkpoint) -> dict[str, dict[str, Any]]:
    """The given checkpoints, checked without reading weights: each by itself, and that they are of one shape and
    vocabulary. Where they are on a server, without fetching weights either."""
    report, shapes = {}, {}
    for role, source in organism.given(settings).items():
        read_with = _read_with(settings, role)
        if settings.elsewhere:
            shapes[role] = checkpoints.outline(source.name, source.revision, read_with).config
            report[role] = {"origin": source.name, "source": "on a server"}
        else:
            found = checkpoints.check(source.name, source.revision, read_with)
            shapes[role] = found.config
            report[role] = {"origin": found.origin, "source": "given"}
    if settings.judge is not None:
        checkpoints.check(settings.judge.model.name, settings.judge.model.revision)
    for role, config in shapes.items():
        checkpoints.check_alike(shapes["chat"], config, ("chat", role))
    return report


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.models build --profile P --seed N`: train what is missing and write models.json of the run."""
    parser = argparse.ArgumentParser(prog="python -m lib.models", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("build",))
    parser.add_argument("--profile", default="kingdom")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        read = worlds.of(options.profile, options.seed).sources()
        report = build(options.profile, options.seed)
        folder = paths.run_folder(options.profile, options.seed)
        storage.write_json(folder / "models.json", report)
        if read:
            storage.write_json(folder / "data.json", read)
    except InputError as problem:
        parser.exit(2, f"{problem}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
