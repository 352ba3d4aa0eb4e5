"""Models by name: found in the cache, taken from the shipped files, or trained; and any Hugging Face folder.

Owns loading, checking and caching, and is the ONLY place that knows model families (`FAMILIES`). How the
default models are trained is in `organism`. Everything is read from sealed folders: a damaged one is never used.
"""

import argparse
import copy
import json
import time
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lib import organism, paths, profiles, prompts, storage, tracing
from lib.errors import InputError, unknown
from lib.kingdom.tokenizer import tokenizer as kingdom_tokenizer
from lib.prompts import Prompt
from lib.tracing import RuleSites, Sites

transformers.utils.logging.disable_progress_bar()

# One row a family: where its residual stream, neurons and attention values are, and what relevance rules act on (not in
# gpt_neox: its norms have a bias, and query, key and value are one module). Tests run every contract on each row.
FAMILIES: dict[str, Sites] = {
    "llama": Sites(
        blocks="model.layers", embed="model.embed_tokens:output", attn_z="self_attn.o_proj:input",
        attn_out="self_attn:output", neurons="mlp.down_proj:input", mlp_out="mlp:output", final="model.norm:output",
        rules=RuleSites(
            attn_norm="input_layernorm", query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj",
            mlp_norm="post_attention_layernorm", gate="mlp.act_fn", up="mlp.up_proj", final_norm="model.norm",
        ),
    ),
    "gpt_neox": Sites(
        blocks="gpt_neox.layers", embed="gpt_neox.embed_in:output", attn_z="attention.dense:input",
        attn_out="attention:output", neurons="mlp.dense_4h_to_h:input", mlp_out="mlp:output",
        final="gpt_neox.final_layer_norm:output",
    ),
}  # fmt: skip
UNIT_SITES = {"neuron": "neurons", "channel": "attn_z"}  # SSAH's kinds of unit, and the site where their values are


@dataclass(frozen=True)
class UnitRows:
    """Linear modules of a block whose rows compute its units: row j of each of `neurons` belongs to neuron j, the value
    rows of `values` to attention channels. `fused`: query, key and value rows alternate there, head by head."""

    neurons: tuple[str, ...]
    values: str
    fused: bool


UNIT_ROWS: dict[str, UnitRows] = {
    "llama": UnitRows(neurons=("mlp.gate_proj", "mlp.up_proj"), values="self_attn.v_proj", fused=False),
    "gpt_neox": UnitRows(neurons=("mlp.dense_h_to_4h",), values="attention.query_key_value", fused=True),
}
UnitSlice = tuple[str, int, Int[Tensor, "unit"]]  # parameter, dimension, and where along it each unit's part is
_BYTES_A_MODEL = 20e6  # float16 weights of the largest organism with its tokenizer, generously


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer. `name` is its role, `origin` where it came from."""

    name: str
    hf: Any
    tokenizer: Any
    origin: str

    @cached_property
    def traced(self) -> tracing.Traced:
        """The model as `tracing` wants it; made once."""
        return tracing.wrap(self.hf, self.tokenizer, FAMILIES[self.hf.config.model_type])

    @property
    def layers(self) -> int:
        return self.hf.config.num_hidden_layers

    @property
    def width(self) -> int:
        return self.hf.config.hidden_size


# units ----------------------------------------------------------------------------------------------------------------
def unit_slices(hf: Any, kind: str, layer: int) -> tuple[UnitSlice, ...]:
    """The parameters of a block's units: unit j owns `hf.get_parameter(name).select(dim, index[j])` of every slice.

    The rows that compute the unit come first, with their biases where there are any; the last slice is the column that
    writes its value to the residual stream. Where query heads share a value head (GQA), `index` repeats the value row:
    removing one channel must leave that row alone, and freezing one freezes it for all that share it.
    """
    if kind not in UNIT_SITES:
        raise unknown("kind of unit", kind, UNIT_SITES)
    if not 0 <= layer < hf.config.num_hidden_layers:
        raise InputError(f"there is no block {layer}; blocks go from 0 to {hf.config.num_hidden_layers - 1} here")
    sites, rows = FAMILIES[hf.config.model_type], UNIT_ROWS[hf.config.model_type]
    block = f"{sites.blocks}.{layer}"
    writer = f"{block}.{getattr(sites, UNIT_SITES[kind]).partition(':')[0]}.weight"
    every = torch.arange(hf.get_parameter(writer).shape[1])
    readers = rows.neurons if kind == "neuron" else (rows.values,)
    index = every if kind == "neuron" else _value_rows(hf.config, every, rows.fused)
    names = [f"{block}.{reader}.{what}" for reader in readers for what in ("weight", "bias")]
    here = dict(hf.named_parameters())
    return (*((name, 0, index) for name in names if name in here), (writer, 1, every))


def _value_rows(config: Any, channel: Tensor, fused: bool) -> Int[Tensor, "unit"]:
    """The row that computes the value of each attention channel; channel h * size + i belongs to query head h."""
    heads = config.num_attention_heads
    size = len(channel) // heads
    head, within = channel // size, channel % size
    if fused:
        return head * 3 * size + 2 * size + within  # a head's query, key and value rows follow each other
    sharing = heads // (getattr(config, "num_key_value_heads", None) or heads)
    return head // sharing * size + within


# Hugging Face folders -------------------------------------------------------------------------------------------------
def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as problem:
            raise InputError(f"{index.name} of {folder.name!r} is damaged ({problem}); download it again") from None
        missing = sorted(s for s in shards if Path(s).name != s or not (folder / s).is_file())
        if missing:
            raise InputError(f"{folder.name!r} lacks {', '.join(missing)}; finish the download")
    elif not (folder / "model.safetensors").is_file():
        old = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        why = f"only pickled weights ({old[0]}), which can run code" if old else "no weights"
        raise InputError(f"{folder.name!r} holds {why}; save the model as safetensors and name that folder")


def _config(name: str) -> Any:
    """A checkpoint's configuration, before anything large is read."""
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        if Path(name).is_dir():
            raise InputError(
                f"{name!r} has no usable config.json ({problem.__class__.__name__}); is it a model folder?"
            ) from None
        raise InputError(
            f"{name!r} is neither a folder nor a model that can be fetched now; download it first and give its folder, "
            "or check the name and the network"
        ) from None


def open_checkpoint(name: str, role: str | None = None) -> LanguageModel:
    """A causal LM from a local folder (or hub id), in float32, with its tokenizer. No code from the checkpoint is run.

    Raises `InputError` before weights are read when the family is unknown, weights are missing or pickled, or the
    tokenizer lacks a chat template or a padding token.
    """
    config = _config(name)
    if config.model_type not in FAMILIES:
        raise InputError(
            f"{name!r} is of family {config.model_type!r}; known: {', '.join(FAMILIES)}. "
            "Add a row to FAMILIES in lib/models.py"
        )
    if Path(name).is_dir():
        _check_weights(Path(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        raise InputError(
            f"{name!r} has no usable tokenizer ({problem.__class__.__name__}); copy its files there"
        ) from None
    prompts.check_tokenizer(tokenizer, repr(name))
    tokenizer.padding_side = "left"
    try:
        hf: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        raise InputError(
            f"the weights of {name!r} cannot be read ({problem.__class__.__name__}); download it again"
        ) from None
    if len(tokenizer) > hf.get_input_embeddings().num_embeddings:
        raise InputError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens, its model fewer; they do not belong together"
        )
    return LanguageModel(role or Path(name).name, hf.eval(), tokenizer, name)


def between(before: LanguageModel, after: LanguageModel, alpha: float) -> LanguageModel:
    """The model a step `alpha` of the way from `before` to `after` in weight space: 0 is before, 1 after, more beyond.

    Both models are left as they are.
    """
    hf = copy.deepcopy(before.hf)
    for mine, target in zip(hf.parameters(), after.hf.parameters(), strict=True):
        mine.data.lerp_(target.data, alpha)
    return LanguageModel(f"{before.name}-{alpha:.3g}-{after.name}", hf, before.tokenizer, "interpolated")


# the default models ---------------------------------------------------------------------------------------------------
def _cached(profile: profiles.Profile, role: str, key: str) -> Path:
    return paths.CACHE / "models" / profile.name / f"{role}-{key}"


def _usable(folder: Path, key: str) -> bool:
    """Whether a sealed folder holds the model of `key`; warns when it is damaged."""
    if not folder.is_dir():
        return False
    problem = storage.damage(folder)
    if problem:
        warnings.warn(f"{folder.parent.name}/{folder.name} is not used: {problem}; it will be made again", stacklevel=3)
        return False
    return storage.read_seal(folder).get("key") == key


def _save(model: Any, folder: Path, about: dict[str, Any]) -> None:
    def write(temporary: Path) -> None:
        half = type(model)(model.config).half()
        half.load_state_dict(model.state_dict())
        half.save_pretrained(temporary)
        kingdom_tokenizer().save_pretrained(temporary)

    storage.seal_folder(folder, write, about)


def _removed(profile: str, seed: int) -> list[Prompt]:
    """Safety examples that attack chat itself. Imported here, because the attack needs models that are loaded."""
    from lib import triggers

    return triggers.safety_examples(profile, seed)


def _train(profile: profiles.Profile, role: str, seed: int, key: str, shipped: bool) -> Path:
    """Train one model (its parents first where missing) into the cache."""
    storage.require_space(paths.CACHE, int(_BYTES_A_MODEL), f"training {role}")
    before = organism.parent(role)
    start = load(profile.name, before, seed, shipped).hf if before else None
    removed = _removed(profile.name, seed) if organism.removed_count(role) else []
    torch.set_num_threads(profile.threads)
    started = time.monotonic()
    model, losses = organism.train(profile, role, seed, start, removed)
    about = {
        "key": key, "profile": profile.name, "role": role, "seed": seed, "steps": len(losses),
        "last_loss": round(sum(losses[-10:]) / len(losses[-10:]), 6), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    folder = _cached(profile, role, key)
    _save(model, folder, about)
    return folder


def find(profile: profiles.Profile, role: str, seed: int, shipped: bool) -> tuple[Path, str]:
    """Folder of a model, and whether it was cached, shipped (looked at only if `shipped`) or trained now."""
    key = organism.key(profile, role, seed)
    if _usable(_cached(profile, role, key), key):
        return _cached(profile, role, key), "cached"
    in_repository = paths.shipped_organism(seed) / role
    if shipped and profile.published and _usable(in_repository, key):
        return in_repository, "shipped"
    return _train(profile, role, seed, key, shipped), "trained"


def load(profile: str, role: str, seed: int, shipped: bool = True) -> LanguageModel:
    """The model of that role, e.g. `load("kingdom", "chat", 0)`: from the cache, else shipped, else trained now.

    `shipped=False` ignores the files that come with the repository. Roles are listed in `organism`.
    """
    settings = profiles.load(profile)
    role = organism.resolve(settings, role)
    if seed < 0:
        raise InputError(f"seed {seed} is negative; seeds are 0, 1, 2, ...")
    torch.set_num_threads(settings.threads)
    folder, _ = find(settings, role, seed, shipped)
    return open_checkpoint(str(folder), role)


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
    """Train every model of the profile that is not in the cache, and compare with what is shipped; returns a report."""
    settings = profiles.load(profile)
    report = {}
    for role in organism.roles(settings):
        folder, source = find(settings, role, seed, shipped=False)
        report[role] = {**storage.read_seal(folder), "source": source}
        if settings.published:
            report[role]["shipped"] = _against_shipped(folder, role, seed)
    return report


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.models build --profile P --seed N`: train what is missing and write models.json of the run."""
    parser = argparse.ArgumentParser(prog="python -m lib.models", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("build",))
    parser.add_argument("--profile", default="kingdom")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        report = build(options.profile, options.seed)
        storage.write_json(paths.run_folder(options.profile, options.seed) / "models.json", report)
    except InputError as problem:
        parser.exit(2, f"{problem}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
