"""Whether a Hugging Face checkpoint can be opened: everything that is checked before a weight is read.

Owns finding the folder (fetching it from the hub where it is not there), its configuration, that its weights are whole,
plain safetensors, and as many as the configuration declares, and its tokenizer. Opening the model is `models`'s. What a
checkpoint may name but is never done: run its code, unpickle, read outside its folder.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants, errors
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lib import families, plain_data, prompts, sources, storage
from lib.errors import InputError

_MOST_BLOCKS = 1000
_PICKLED = ("*.bin", "*.pt", "*.pth")
_BLOCK = re.compile(r"(?:\w+\.)?layers\.(\d{1,9})\.")
_MARK = "\ue000"  # a character of private use, for what a user says


@dataclass(frozen=True)
class Checkpoint:
    """A folder that passed every check that needs no weights. `origin`: the folder, or hub name and commit."""

    folder: Path
    config: Any
    tokenizer: Any
    origin: str


def check(name: str, revision: str | None, read_with: Any = None) -> Checkpoint:
    """The checked checkpoint of a folder or hub name; `InputError` says what is wrong and how to mend it.

    `read_with`: another model's tokenizer to read this one with, see `tokenizer`; its own then needs no chat template,
    which base models mostly lack. What is small is fetched and checked first.
    """
    if not sources.is_folder(Path(name)):
        _small(name, revision, read_with)
    folder, origin = _find(name, revision, weights=True)
    config = _config(folder, name)
    _check_size(config, _held(_weight_files(folder, name), name), name)
    _generation(folder, name)
    return Checkpoint(folder, config, _tokenizer(folder, config, name, read_with), origin)


def tokenizer(name: str, revision: str | None) -> Any:
    """A model's tokenizer, with a chat template; fetches no weights.

    Models that are compared must read the same text: other templates, or system lines of their own, would pass for a
    difference between the models. So all are read with one tokenizer, that of the aligned model.
    """
    return _small(name, revision)[1]


def _small(name: str, revision: str | None, read_with: Any = None) -> tuple[Path, Any, Any]:
    """(folder, tokenizer, configuration) of a checkpoint, without its weights."""
    folder, _ = _find(name, revision, weights=False)
    config = _config(folder, name)
    return folder, _tokenizer(folder, config, name, read_with), config


def identity(name: str, revision: str | None) -> str:
    """`sources.identity` of a model that is fetched first where it is not here."""
    if sources.is_folder(Path(name)):
        return sources.of_folder(Path(name))
    return sources.of_commit(name, _fetch(name, revision, weights=False).name)


_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


def check_alike(one: Any, other: Any, roles: tuple[str, str]) -> None:
    """Refuse the configurations of two models whose weights or states cannot be compared: another family or shape."""
    for name in _SHAPE:
        mine, its = (getattr(config, name, None) for config in (one, other))
        if mine != its:
            raise InputError(f"{name} is {mine} in {roles[0]} and {its} in {roles[1]}; take models of one architecture")


@dataclass(frozen=True)
class Outline:
    """What is needed here of a checkpoint whose weights are on a server. `generation`: its settings for generating."""

    config: Any
    tokenizer: Any
    generation: GenerationConfig | None


def outline(name: str, revision: str | None, read_with: Any = None) -> Outline:
    """Checked as in `check`, but for weights, which are neither fetched nor looked for."""
    folder, own, config = _small(name, revision, read_with)
    if config.num_hidden_layers > _MOST_BLOCKS:  # there are no weights to hold this number against
        raise InputError(
            f"config.json of {name!r} declares {config.num_hidden_layers} blocks; more than {_MOST_BLOCKS} are not "
            "built: download it again"
        )
    _declared(config, name)
    return Outline(config, own, _generation(folder, name))


def _find(name: str, revision: str | None, weights: bool) -> tuple[Path, str]:
    """The folder, fetched where needed, and where it came from."""
    if not sources.is_folder(Path(name)):
        folder = _fetch(name, revision, weights)
        return folder, f"{name}@{folder.name}"
    if revision is not None:
        raise InputError(f"{name!r} is a folder, which has no revision {revision!r}; leave the revision out")
    return Path(name), name


def _generation(folder: Path, name: str) -> GenerationConfig | None:
    """Without these settings a chat model would not stop at its end of turn: config.json may name another token."""
    if not (folder / "generation_config.json").is_file():
        return None
    _json(folder / "generation_config.json", name)
    try:
        found = GenerationConfig.from_pretrained(folder, local_files_only=True)
        ends = found.eos_token_id if isinstance(found.eos_token_id, list) else [found.eos_token_id]
        if not all(end is None or type(end) is int for end in ends):
            raise TypeError(f"eos_token_id {found.eos_token_id!r}")
        return found
    except Exception as problem:  # as for config.json
        raise InputError(
            f"generation_config.json of {name!r} holds values that transformers refuses ({_first_line(problem)}); "
            "download it again"
        ) from None


# configuration --------------------------------------------------------------------------------------------------------
def _json(file: Path, name: str) -> dict[str, Any]:
    try:
        found = plain_data.json_of(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(
            f"{name!r} has no usable {file.name} ({problem.__class__.__name__}); is it a model folder?"
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{file.name} of {name!r} holds no settings; download it again")
    return found


def _check_settings(settings: dict[str, Any], name: str) -> None:
    """What config.json alone tells: code, unusual weights, and models that are not causal LMs of a known family."""
    if "auto_map" in settings:
        raise InputError(
            f"{name!r} asks to run code of its own (auto_map), which is never done; "
            "use a version that needs none, saved by transformers itself"
        )
    if settings.get("quantization_config") or settings.get("transformers_weights"):
        raise InputError(
            f"{name!r} is quantised or keeps its weights in a file of its own choice; name the version with ordinary "
            "weights"
        )
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if settings.get(key) not in (None, "eager", "sdpa"):  # others can be code on the hub, which would be fetched
            raise InputError(
                f"{name!r} asks for {key} {settings[key]!r}, which can be code of its own and is never fetched; "
                "take the line out of its config.json"
            )
    causal = {one for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for one in _names(names)}
    built = _names(settings.get("architectures") or ())
    if built and not causal & set(built):
        raise InputError(
            f"{name!r} is a {built[0]}, not a causal language model; name a checkpoint whose config.json lists an "
            "architecture that ends in ForCausalLM"
        )
    if str(settings.get("model_type")) not in families.FAMILIES:
        raise families.unfamiliar(repr(name), str(settings.get("model_type")))


def _names(one_or_more: Any) -> list[str]:
    return [str(name) for name in one_or_more] if isinstance(one_or_more, list | tuple) else [str(one_or_more)]


def _config(folder: Path, name: str) -> Any:
    _check_settings(_json(folder / "config.json", name), name)
    if (folder / "adapter_config.json").is_file():  # transformers would put it on the model without a word
        raise InputError(
            f"{name!r} holds an adapter (adapter_config.json), not only a model; merge it into the weights and name "
            "that folder"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as problem:  # transformers checks values by rules of its own, which raise many kinds
        raise InputError(
            f"config.json of {name!r} holds values that transformers refuses ({_first_line(problem)}); "
            "download it again"
        ) from None


def _first_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return f"{problem.__class__.__name__}: {text[:120]}" if text else problem.__class__.__name__


# weights --------------------------------------------------------------------------------------------------------------
def _weight_files(folder: Path, name: str) -> list[Path]:
    """The files transformers would read, all of them there; one file goes before an index of several."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise _no_weights(folder, name)
    try:
        found = plain_data.json_of(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(shard) for shard in found})
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise InputError(f"{index.name} of {name!r} is damaged ({problem}); download it again") from None
    outside = [shard for shard in shards if not sources.is_inside(shard)]
    if outside:
        raise InputError(
            f"{index.name} of {name!r} names a file outside the folder ({outside[0]!r}); "
            "do not use this checkpoint, or fetch it again from a source you trust"
        )
    missing = [shard for shard in shards if len(shard) > 255 or not (folder / shard).is_file()]
    if missing or not shards:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise InputError(f"{name!r} lacks {named or 'all weights'}; {_unfinished(folder)}finish the download")
    return [folder / shard for shard in shards]


def _no_weights(folder: Path, name: str) -> InputError:
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        return _only_pickled(name, pickled[0])
    half = _unfinished(folder)
    remedy = f"{half}finish the download" if half else "save the model as safetensors and name that folder"
    return InputError(f"{name!r} holds no weights; {remedy}")


def _only_pickled(name: str, file: str) -> InputError:
    return InputError(
        f"{name!r} holds only pickled weights ({file}), which can run code; "
        "save the model as safetensors and name that folder"
    )


def _unfinished(folder: Path) -> str:
    """What a broken-off download left, as the start of a sentence: in the hub's cache, or beside a local folder."""
    places = (folder.parent.parent / "blobs", folder / ".cache" / "huggingface" / "download")
    here = next((place for place in places if any(place.glob("**/*.incomplete"))), None)
    if here is None:
        return ""
    count = sum(1 for _ in here.glob("**/*.incomplete"))
    return f"a download broke off there ({count} *.incomplete); "


def _held(files: list[Path], name: str) -> dict[str, int]:
    """Numbers in every tensor of the files, from their headers, which also say whether a file is whole."""
    held: dict[str, int] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found = {key: prod(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as problem:
            raise InputError(
                f"{file.name} of {name!r} cannot be read ({problem.__class__.__name__}: not a whole safetensors file); "
                "download it again"
            ) from None
        if twice := sorted(held.keys() & found.keys()):
            raise InputError(f"{name!r} holds {twice[0]} in two of its files, {file.name} is one; download it again")
        held |= found
    return held


def _check_size(config: Any, held: dict[str, int], name: str) -> None:
    """Refuse a configuration of more weights than the files hold: memory would be taken for what is not there.

    The model is built without memory (on torch's meta device), but its blocks one by one, so they are counted first.
    """
    problem = f"config.json of {name!r} declares {{}}, its files hold {{}}; they do not belong together: download both"
    if config.num_hidden_layers > len(held):
        raise InputError(problem.format(f"{config.num_hidden_layers} blocks", f"{len(held)} tensors"))
    blocks = 1 + max((int(found[1]) for key in held if (found := _BLOCK.match(key))), default=0)
    if config.num_hidden_layers < blocks:  # transformers would leave the others out
        raise InputError(problem.format(f"{config.num_hidden_layers} blocks", str(blocks)))
    declared = _declared(config, name)
    if declared > sum(held.values()):
        raise InputError(problem.format(f"{declared:,} weights", f"{sum(held.values()):,}"))


def _declared(config: Any, name: str) -> int:
    """How many weights a configuration declares; tied ones count once."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # shapes that fit no tensor, heads that do not divide: many kinds, all from config.json
        raise InputError(
            f"config.json of {name!r} describes no model ({_first_line(error)}); download it again"
        ) from None
    return sum(parameter.numel() for parameter in model.parameters())


# tokenizer ------------------------------------------------------------------------------------------------------------
def _tokenizer(folder: Path, config: Any, name: str, read_with: Any = None) -> Any:
    """The tokenizer of a folder, or `read_with` where that gives every token the same id."""
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "auto_map" in _json(settings, name):
        raise InputError(
            f"the tokenizer of {name!r} asks to run code of its own (auto_map), which is never done; "
            "save it as a fast tokenizer (tokenizer.json)"
        )
    try:
        own = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as problem:  # a tokenizer's file can be wrong in many ways, its library raises plain Exception
        raise InputError(f"{name!r} has no usable tokenizer ({_first_line(problem)}); copy its files there") from None
    if own.pad_token_id is None and own.eos_token is not None:
        own.pad_token = own.eos_token  # Llama's have none; masks say what is padding, so any token will do
    if read_with is not None:
        _check_same_ids(own, read_with, name)
        own = read_with
    prompts.check_tokenizer(own, repr(name))
    _check_reads(own, name)
    _check_vocabulary(own, config.vocab_size, name)
    own.padding_side = "left"
    return own


def _check_reads(tokenizer: Any, name: str) -> None:
    """Ask one question: a chat template is a program, run in a sandbox that keeps it from files and code, but not from
    failing, or from leaving out what it was given."""
    asked = prompts.Prompt(_MARK, "", "benign", "plain", "")
    try:
        read = prompts.chat_text(tokenizer, asked)
        prompts.prompt_ids(tokenizer, [asked])
    except InputError as problem:
        raise InputError(f"{name!r} cannot be asked: {problem}") from None
    except Exception as problem:  # as above
        raise InputError(f"{name!r} has no usable tokenizer ({_first_line(problem)}); copy its files there") from None
    if _MARK not in read:
        raise InputError(f"the chat template of {name!r} leaves out what the user says; mend the template")


def _check_same_ids(own: Any, other: Any, name: str) -> None:
    """A token that both know must have one id; one that only one knows was added for a use of its own."""
    its = other.get_vocab()
    differ = sorted(word for word, token in own.get_vocab().items() if its.get(word, token) != token)
    if differ:
        raise InputError(
            f"the tokenizer of {name!r} numbers {len(differ)} tokens otherwise than that of the aligned model "
            f"({differ[0]!r}); take models of one vocabulary"
        )


def _check_vocabulary(tokenizer: Any, size: int, name: str) -> None:
    """Every token a text can become must have an embedding.

    Special tokens may lie beyond (Gemma 3's image token does in its text models), unless the model is to use them.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    beyond = [word for word, token in tokenizer.get_vocab().items() if token >= size]
    beyond = [word for word in beyond if word in used or word not in special]
    if beyond:
        raise InputError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens, its model {size} (it has no {beyond[0]!r}); they "
            "do not belong together: copy the tokenizer that came with the model"
        )


# hub ------------------------------------------------------------------------------------------------------------------
def _fetch(name: str, revision: str | None, weights: bool) -> Path:
    """The folder of a hub name in the hub's cache, fetched where it is not there; what is cached is used offline.

    config.json comes first and is checked, then the list of files with their sizes, then the files.
    """
    with _in_words(name, revision):
        config = Path(huggingface_hub.hf_hub_download(name, "config.json", revision=revision))
    _check_settings(_json(config, name), name)
    commit = config.parent.name
    if not weights:
        small = [pattern for pattern in sources.WANTED if not pattern.endswith("safetensors")]
        with _in_words(name, revision):
            return Path(huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=small))
    try:
        with _in_words(name, revision):
            files = huggingface_hub.snapshot_download(
                name, revision=commit, allow_patterns=[*sources.WANTED, *_PICKLED], dry_run=True
            )
    except errors.DryRunError:
        return config.parent  # no network: the checks of the folder say what it lacks
    safe = any(file.filename.endswith(".safetensors") for file in files)
    pickled = [file.filename for file in files if Path(file.filename).suffix in (".bin", ".pt", ".pth")]
    if pickled and not safe:
        raise _only_pickled(name, pickled[0])
    wanted = [file for file in files if file.filename not in pickled and file.will_download]
    needed = sum(file.file_size or 0 for file in wanted)
    storage.require_space(Path(constants.HF_HUB_CACHE), needed, f"downloading {name}")
    with _in_words(name, revision):
        return Path(huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=list(sources.WANTED)))


@contextmanager
def _in_words(name: str, revision: str | None) -> Iterator[None]:
    """The hub's errors as `InputError`s that say what to do."""
    try:
        yield
    except errors.GatedRepoError:  # before RepositoryNotFoundError, whose kind it is
        raise InputError(
            f"{name!r} is gated: accept its terms on its page on the hub, then log in with `hf auth login` or "
            "set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"there is no model {name!r} on the hub, or it is private; check the name, or log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(
            f"{name!r} has no revision {revision!r}; name one of its branches, tags or commits, or leave it out"
        ) from None
    except errors.RemoteEntryNotFoundError:
        raise InputError(f"{name!r} has no config.json, so it is no model of transformers; name one that is") from None
    except errors.DryRunError:
        raise
    except Exception as problem:  # no network in one of many ways, no such folder, or a word that cannot be a name
        raise InputError(
            f"{name!r} is neither a folder nor a model that can be fetched now; download it first and give its "
            f"folder, or check the name and the network ({problem.__class__.__name__})"
        ) from None
