"""What a checkpoint profile needs before it can run: `--dry-run` prints it, and what of it is missing.

Owns the sums and the looking: models here or to download, memory, disk, keys, packages, data sets. It imports no tensor
library and reads of weights the headers only. The network is asked once, for the size of a hub model that is not here
and whose size the profile does not state, and not where HF_HUB_OFFLINE is set. Memory counts weights, not activations.
"""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lib import paths, plain_data, sources, storage
from lib.profiles import Checkpoint, Source

NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
HUB_BYTES = 2  # a number on the hub: every model that the profiles name is stored in 16 bits
# Models that a page holds at once. Those named hold most: 04 base, chat, its two benign fine-tunes and chat aligned
# without replay; 07 chat, three tuned from it, one a step of the way to the last; 16 three and the judge. Most hold
# two: a model and a copy that is changed.
HELD = {"02": 3, "04": 5, "07": 5, "08": 3, "16": 3}
FEWEST = 2
JUDGED = "16"
# Page 03 scores single weights, in float32: on the device one sum as large as the model while it is made, in main
# memory two, of both calibration sets.
SCORED, SUM, SUMS = "03", 4, 8  # bytes a weight
# A model is trained in float32: weights, gradients, AdamW's two moments and, for DPO, what it starts from; bytes a
# weight. Beside these are the two models that a page has already when it asks for `tuned`.
TRAINED, BESIDE = 5 * NUMBER_BYTES["float32"], 2
KEY = "NDIF_API_KEY"
DATA_DIR = "DATA_DIR"
RUNNER = "RUNNER"  # a command that starts jobs on other machines: memory and cards here say nothing then
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Needs:
    """`lines` for a reader; `missing` is what keeps a run from starting, each with its remedy."""

    lines: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A model as far as it is known: `download` in bytes and `numbers` of weights, None where nobody says."""

    label: str
    place: str
    download: int | None
    numbers: int | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """Free memory of one accelerator in bytes."""

    name: str
    free: int


def needs(profile: Checkpoint, outputs: float) -> Needs:
    """Everything a run of this profile needs; `outputs` are the bytes that the run's own files may take."""
    assert profile.models is not None  # the command line refuses such a profile
    models = _models(profile)
    lines = [f"{role:6} {one.label}: {one.place}" for role, one in models.items()]
    missing = [what for one in dict.fromkeys(models.values()) for what in one.missing]
    for part in (_memory(profile, models), _disk(profile, models, outputs), _device(profile), _data(profile)):
        lines += part.lines
        missing += part.missing
    if importlib.util.find_spec("lm_eval") is None:
        lines.append("note: lm_eval is not installed, so benchmarks of `lib.utility` cannot run; no page needs it")
    return Needs(tuple(lines), tuple(dict.fromkeys(missing)))


def trained(profile: Checkpoint) -> int:
    """How many models the pages together can ask to be trained: all of `organism.roles` that are not given."""
    if profile.elsewhere:
        return 0
    preference = {*profile.preference_shots, profile.default_shots, max(profile.shots)}
    benign, unreplayed = 2, 1
    return len(profile.shots) + len(preference) + len(profile.preference_shots) + benign + unreplayed


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


# models ---------------------------------------------------------------------------------------------------------------
def _models(profile: Checkpoint) -> dict[str, Model]:
    assert profile.models is not None
    named = {role: source for role, source in profile.models if source is not None}
    found = {role: _model(source, not profile.elsewhere) for role, source in named.items()}
    return found | ({"judge": _model(profile.judge.model, True)} if profile.judge else {})


def _model(source: Source, weights: bool) -> Model:
    """`weights`: whether they are wanted here, not only configuration and tokenizer."""
    folder = sources.find(source.name, source.revision)
    label = Path(source.name).name if source.is_folder else source.name + f"@{(source.revision or 'main')[:12]}"
    if folder is None and source.is_folder:
        return Model(label, "not there", None, None, (f"there is no folder {source.name}",))
    if folder is None and not weights:
        return Model(
            label,
            "weights on the server; configuration and tokenizer to download",
            0,
            None,
            _token(source.gated, label),
        )
    if folder is None:
        return _to_download(source, label)
    if not weights:
        return Model(label, "weights on the server; configuration and tokenizer here", 0, None)
    held = sources.weights(folder)
    own = source.is_folder
    place = f"{'folder' if own else 'in the hub cache'}, {_gb(held.size)}"
    if held.missing and own:
        return Model(
            label, place, None, held.numbers, (f"{label} lacks {', '.join(held.missing[:3])}; finish the download",)
        )
    if held.missing:
        return Model(
            label,
            f"{place}; {len(held.missing)} files of weights to download",
            None,
            source.parameters,
            _token(source.gated, label),
        )
    return Model(label, place, 0, held.numbers)


def _to_download(source: Source, label: str) -> Model:
    size = source.parameters and source.parameters * HUB_BYTES
    numbers, gated = source.parameters, source.gated
    wrong: tuple[str, ...] = ()
    if size is None:
        size, numbers, gated, wrong = _asked(source.name, source.revision, gated)
    if wrong:
        return Model(label, "not found", None, None, wrong)
    place = f"to download, {'size unknown' if size is None else 'about ' + _gb(size)}" + (", gated" if gated else "")
    from huggingface_hub import constants

    offline = (f"{label} is not here, and HF_HUB_OFFLINE is set; unset it, or give the model's folder",)
    return Model(label, place, size, numbers, (offline if constants.HF_HUB_OFFLINE else ()) + _token(gated, label))


def _asked(name: str, revision: str | None, gated: bool) -> tuple[int | None, int | None, bool, tuple[str, ...]]:
    """Bytes, numbers of weights and whether it is gated, as the hub says; nothing where it does not answer."""
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        return None, None, gated, ()
    try:
        found: Any = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        what = f"{name}@{revision}" if revision else name
        return None, None, gated, (f"the hub has no model {what}, or it is private; check the name, or {LOGIN}",)
    except Exception:  # no network in one of many ways: then its size is not known before it is fetched
        return None, None, gated, ()
    wanted = [one for one in found.siblings or () if any(Path(one.rfilename).match(like) for like in sources.WANTED)]
    size = sum(one.size or 0 for one in wanted if "/" not in one.rfilename)
    return size, found.safetensors.total if found.safetensors else None, bool(found.gated), ()


def _token(gated: bool, label: str) -> tuple[str, ...]:
    from huggingface_hub import get_token

    if not gated or get_token():
        return ()
    return (f"{label} is gated and there is no token: accept its terms on its page on the hub, then {LOGIN}",)


# memory and devices ---------------------------------------------------------------------------------------------------
def _memory(profile: Checkpoint, models: Mapping[str, Model]) -> Needs:
    """What pages take (see `HELD`), and training (see `TRAINED`). A page that finds too little fails alone."""
    here = [one for role, one in models.items() if role == "judge" or not profile.elsewhere]
    if any(one.numbers is None for one in here):
        return Needs(("memory: unknown before the models are here",), ())
    if not here:
        return Needs(("memory: weights are on the server; here what is read of them, a few GB",), ())
    counts = {role: one.numbers or 0 for role, one in models.items()}
    judge = counts.pop("judge", 0) * NUMBER_BYTES[profile.dtype]
    numbers = 0 if profile.elsewhere else max(counts.values())
    free, where = _free(profile)
    has = f"{_gb(free)} are free {where}" if free is not None else "free memory unknown"
    if not numbers:
        short = free is not None and free < judge
        lack = (f"{_gb(judge)} of memory {where} for the judge; {has}",) if short else ()
        return Needs((f"memory: {_gb(judge)} for the judge in {profile.dtype}; {has}",), lack)
    each = numbers * NUMBER_BYTES[profile.dtype]
    lines, missing = _of_pages(profile, each, numbers, judge)
    train = TRAINED * numbers + BESIDE * each
    lines.append(
        f"memory: {_gb(train)} to train one (in float32: weights, gradients, AdamW and what it starts from; "
        f"beside {BESIDE} models that a page holds)"
    )
    if free is not None and free < train and "tuned" in models:
        lines[-1] += "; too little is free, so pages that train others than `tuned` will fail"
    elif free is not None and free < train:
        missing.append(f"{_gb(train)} of memory {where} to train `tuned`; {has} (or give a model as tuned)")
    return Needs(tuple(lines), tuple(missing))


def _of_pages(profile: Checkpoint, each: int, numbers: int, judge: int) -> tuple[list[str], list[str]]:
    """Lines, and what is missing, for models of `each` bytes and so many `numbers`."""
    free, where = _free(profile)
    has = f"{_gb(free)} are free {where}" if free is not None else "free memory unknown"
    pages = {page: count * each + (judge if page == JUDGED else 0) for page, count in HELD.items()}
    pages[SCORED] = FEWEST * each + numbers * (SUMS if profile.device == "cpu" else SUM)
    least, worst = FEWEST * each, max(sorted(pages), key=lambda page: pages[page])
    lines = [f"memory: {_gb(least)} for most pages in {profile.dtype}, which hold {FEWEST} models at once, and up to "
             f"{_gb(pages[worst])} (page {worst}); {has}"]  # fmt: skip
    if free is not None and least <= free < pages[worst]:
        failing = ", ".join(page for page in sorted(pages) if pages[page] > free)
        lines[0] += f": too little for {failing}, which will fail; name the others with --only"
    if profile.device != "cpu":
        lines.append(f"memory: {_gb(SUMS * numbers)} of main memory for page {SCORED}, which scores single weights")
    return lines, [f"{_gb(least)} of memory {where}; {has}"] if free is not None and free < least else []


def _free(profile: Checkpoint) -> tuple[int | None, str]:
    if os.environ.get(RUNNER, "").strip():
        return None, ""
    if profile.device == "cpu":
        return psutil.virtual_memory().available, "here"
    found = [card.free for card in cards()]
    if not found:
        return None, ""
    return (sum(found), "on all cards") if profile.device == "auto" else (found[0], "on the first card")


def cards() -> list[Card]:
    """The NVIDIA cards this process may use, by the driver's own tool; none where it is not there."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and not chosen.strip(" -1"):
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command + (["-i", chosen] if chosen else []), capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    found = re.findall(r"^(.+), *(\d+)$", done.stdout, re.MULTILINE)
    return [Card(name, int(free) * 2**20) for name, free in found]


def _device(profile: Checkpoint) -> Needs:
    """Where models run: here, on cards, or on a server with a key."""
    if profile.elsewhere:
        place = "NDIF" if profile.remote is True else str(profile.remote)
        key = bool(os.environ.get(KEY, "").strip())
        lack = () if key else (f"the environment variable {KEY}: a key for {place} (NDIF's: login.ndif.us)",)
        return Needs((f"device: {place}; key {'set' if key else 'not set'}; nothing is trained",), lack)
    if profile.device == "cpu":
        return Needs((f"device: cpu, {profile.threads} threads",), ())
    if os.environ.get(RUNNER, "").strip():
        return Needs((f"device: {profile.device}, where {RUNNER} starts jobs; cards here are not looked at",), ())
    found, version = cards(), importlib.metadata.version("torch")
    lines = [f"device: {profile.device}; " + (", ".join(card.name for card in found) or "no card found")]
    missing = [] if found else [f"a GPU, which device: {profile.device} asks for (nvidia-smi shows none)"]
    if version.endswith("+cpu"):
        missing.append(f"PyTorch for the GPU: {version} is installed; install it for your CUDA version (pytorch.org)")
    return Needs(tuple(lines), tuple(missing))


# disk -----------------------------------------------------------------------------------------------------------------
def _disk(profile: Checkpoint, models: Mapping[str, Model], outputs: float) -> Needs:
    """Downloads in the hub's cache; outputs and models trained here in the checkout. One trained model has to fit."""
    from huggingface_hub import constants

    downloads = [one.download for one in dict.fromkeys(models.values())]
    fetched, open_ended = sum(size or 0 for size in downloads), None in downloads
    numbers = [one.numbers or 0 for role, one in models.items() if role != "judge"]
    each, count = max(numbers) * NUMBER_BYTES[profile.dtype], trained(profile)
    first = each if count and "tuned" not in models else 0
    hub, here = Path(constants.HF_HUB_CACHE), paths.CACHE
    lines = [f"disk: {_gb(fetched)}{' and what is of unknown size' if open_ended else ''} to download into the hub's "
             f"cache, {_gb(storage.free_bytes(hub))} are free there"]  # fmt: skip
    if count:
        size = f"of {_gb(each)}" if each else "of unknown size"
        lines.append(
            f"disk: up to {count} models {size} each, trained when a page asks; "
            f"{_gb(storage.free_bytes(here))} are free in .cache"
        )
    missing = []
    for place, needed in _by_disk({hub: fetched, here: int(outputs) + first}).items():
        if storage.free_bytes(place) < needed:
            missing.append(f"{_gb(needed)} of disk at {place}; {_gb(storage.free_bytes(place))} are free")
    return Needs(tuple(lines), tuple(missing))


def _by_disk(wanted: Mapping[Path, int]) -> dict[Path, int]:
    """The same bytes, added up where two places are on one disk."""
    found: dict[int, Path] = {}
    result: dict[Path, int] = {}
    for place, needed in wanted.items():
        there = place
        while not there.exists():
            there = there.parent
        first = found.setdefault(there.stat().st_dev, place)
        result[first] = result.get(first, 0) + needed
    return result


# data -----------------------------------------------------------------------------------------------------------------
def _data(profile: Checkpoint) -> Needs:
    """Every data set: in the user's folder, on the hub, or not to be had."""
    named = dict.fromkeys(name for _, name in profile.data if name is not None)
    place = os.environ.get(DATA_DIR) or None
    if place is not None and not Path(place).is_dir():
        return Needs((), (f"{DATA_DIR} is {place}, which is no folder; name the one with the data sets, or unset it",))
    lines, missing = [], []
    for name in named:
        about = plain_data.read_yaml(paths.DATASETS / f"{name}.yaml")
        where, lack = _from_hub(name, about) if place is None else _in_folder(name, about, Path(place))
        lines.append(f"data   {name}: {where}")
        missing += lack
    return Needs(tuple(lines), tuple(missing))


def _patterns(about: Mapping[str, Any], own: bool) -> Iterator[str]:
    for layout in about["local"]:
        yield from layout["files"]
    if own and about.get("hub"):
        yield from about["hub"].get("snapshot", [])


def _in_folder(name: str, about: Mapping[str, Any], place: Path) -> tuple[str, list[str]]:
    own = place / name
    folder = own if own.is_dir() else place
    wanted = list(_patterns(about, own.is_dir()))
    if any(next(folder.glob(pattern), None) for pattern in wanted):
        return f"in {DATA_DIR}", []
    return f"not in {DATA_DIR}", [f"files of {name} in {DATA_DIR}: {', '.join(wanted[:4])} ({about['source']})"]


def _from_hub(name: str, about: Mapping[str, Any]) -> tuple[str, list[str]]:
    from huggingface_hub import constants, get_token

    hub = about.get("hub")
    if not hub:
        return "in no hub", [f"{name}: set {DATA_DIR} to a folder with its files ({about['source']})"]
    missing = []
    if importlib.util.find_spec("datasets") is None:
        missing.append(
            f"the package datasets, to read data sets from the hub: pip install -e '.[real]' (or set {DATA_DIR})"
        )
    public = hub["access"] == "public"
    where = f"{hub['id']} on the hub" + ("" if public else ", gated")
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "") not in ("", "0"):
        if _cached(hub["id"]):
            return f"{hub['id']}, cached", missing
        return where, [
            *missing,
            f"{name} is not here, and the hub is switched off (offline); set {DATA_DIR} to a folder with it",
        ]
    if not public and not get_token():
        missing.append(f"a token for {name}: {hub['access']}, or set HF_TOKEN (or set {DATA_DIR})")
    return where, missing


def _cached(name: str) -> bool:
    """Whether `datasets` has prepared this set before; its folders spell names its own way."""
    from huggingface_hub import constants

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    folder = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(plain(path.name) == plain(name) for path in folder.glob("*") if path.is_dir())
