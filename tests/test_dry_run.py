"""What a checkpoint profile needs, on folders and caches made by hand: no network, no tensor library, no weights."""

import json
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import psutil
import pytest
import yaml
from huggingface_hub import constants, errors

from lib import checkpoints, paths, preflight, profiles, provenance, sources, storage
from lib.preflight import Card

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
MILLIARD = 10**9
PUBLIC = {"harmful": "or_bench_toxic", "exceptions": "or_bench_hard"}


def weights(file, *shapes, dtype="F16", size=2, short=0):
    """A safetensors file of tensors of those shapes; the numbers themselves are holes in the file."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for number, shape in enumerate(shapes):
        count = 1
        for length in shape:
            count *= length
        header[f"w{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count * size]}
        end += count * size
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end - short)


def model(folder, *shapes, **options):
    weights(folder / "model.safetensors", *shapes, **options)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def cached(name, revision, commit, *shapes):
    """A model as the hub's cache holds it: a name for its commit, and files under the commit."""
    home = os.path.join(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    folder = paths.Path(home) / "snapshots" / commit
    (paths.Path(home) / "refs").mkdir(parents=True, exist_ok=True)
    (paths.Path(home) / "refs" / revision).write_text(commit)
    return model(folder, *shapes)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A machine with an empty hub cache, no network, no token, no card, 64 GB of memory and 1 TB of disk."""
    for name in ("RUNNER", "DATA_DIR", "NDIF_API_KEY", "HF_TOKEN", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub, "HfApi", no_network)
    monkeypatch.setattr(preflight, "cards", list)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * MILLIARD))
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1000 * MILLIARD)
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(preflight.importlib.metadata, "version", lambda name: "2.13.0+cu130")


def no_network():
    raise AssertionError("the network was asked")


def profile(base, chat, **settings):
    """The checkpoint profile with two models, and public data sets so that it needs no token."""
    parent = yaml.safe_load((paths.PROFILES / "checkpoint.yaml").read_text())
    named = {"base": base, "chat": chat, **settings.pop("models", {})}
    named = {role: one if isinstance(one, dict) else {"name": str(one)} for role, one in named.items()}
    return profiles.check({**parent, "data": {**parent["data"], **PUBLIC}, "models": named, **settings}, "x.yaml")


def ask(*models, outputs=0, **settings):
    found = preflight.needs(profile(*models, **settings), outputs)
    return "\n".join(found.lines), list(found.missing)


@pytest.fixture
def two(tmp_path):
    """Two models of 10 ** 9 numbers, stored in 2 bytes each."""
    return [model(tmp_path / name, [10**6, 500], [500 * 10**6]) for name in ("base", "chat")]


# models here, in the cache, to download -------------------------------------------------------------------------------
def test_folders_need_no_download_and_memory_by_the_profile_s_type(two):
    text, missing = ask(*two)
    assert missing == []
    assert "base   base: folder, 2 GB\nchat   chat: folder, 2 GB" in text
    # page 04 holds five models of 4 GB; training takes 5 numbers of 4 bytes for each
    assert "8 GB for most pages in float32, which hold 2 models at once, and up to 20 GB (page 04)" in text
    assert "64 GB are free here" in text
    assert "28 GB to train one" in text
    assert "0 MB to download" in text
    assert "up to 10 models of 4 GB each" in text
    text, _ = ask(*two, dtype="bfloat16")
    # page 03 beside its two models keeps two float32 sums as large as the model
    assert "4 GB for most pages in bfloat16, which hold 2 models at once, and up to 12 GB (page 03)" in text
    assert "24 GB to train one" in text


@pytest.mark.parametrize(
    ("free", "tuned", "expected"),
    [
        (28 * MILLIARD, False, []),
        (
            27 * MILLIARD,
            False,
            ["28 GB of memory here to train `tuned`; 27 GB are free here (or give a model as tuned)"],
        ),
        (27 * MILLIARD, True, []),
        (8 * MILLIARD, True, []),
        (7 * MILLIARD, True, ["8 GB of memory here; 7 GB are free here"]),
    ],
)
def test_too_little_memory(two, tmp_path, monkeypatch, free, tuned, expected):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    models = {"tuned": {"name": str(model(tmp_path / "tuned", [10**9]))}} if tuned else {}
    text, missing = ask(*two, models=models)
    assert missing == expected
    assert ("pages that train others than `tuned` will fail" in text) == (tuned and free < 28 * MILLIARD)


@pytest.mark.parametrize(
    ("free", "failing"), [(20, ""), (19, "04, 07"), (15, "03, 04, 07"), (11, "02, 03, 04, 07, 08, 16"), (7, "")]
)
def test_pages_that_hold_more_than_there_is_are_named(two, tmp_path, monkeypatch, free, failing):
    """Models of 4 GB; five of them on pages 04 and 07, two and 8 GB of scores on page 03, three on 02, 08 and 16."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * MILLIARD))
    text, missing = ask(*two, models={"tuned": {"name": str(model(tmp_path / "tuned", [10**9]))}})
    assert ("too little for " in text) == bool(failing)
    assert f"too little for {failing}" in text or not failing
    assert bool(missing) == (free == 7)  # where two do not fit, nothing starts


def test_models_in_the_hub_s_cache_are_found_by_name_and_by_commit(two):
    cached("org/base", "main", COMMIT, [10**9])
    cached("org/chat", "v2", OTHER, [10**9])
    text, missing = ask({"name": "org/base"}, {"name": "org/chat", "revision": OTHER})
    assert missing == []
    assert "org/base@main: in the hub cache, 2 GB" in text
    assert f"org/chat@{OTHER[:12]}: in the hub cache, 2 GB" in text
    text, _ = ask({"name": "org/base"}, {"name": "org/chat", "parameters": 1})
    assert "org/chat@main: to download" in text  # there is a v2, and no main


def test_the_size_of_a_download_is_stated_or_asked_for(monkeypatch, two):
    base = {"name": "org/base", "revision": COMMIT, "parameters": 3 * 10**9}
    text, missing = ask(base, two[1])
    assert [what.split(" of ")[0] for what in missing] == ["84 GB"]  # to train: 20 bytes a number, and two of 12 GB
    assert "to download, about 6 GB" in text
    assert "disk: 6 GB to download into the hub's cache" in text
    assert "24 GB for most pages" in text  # twice the larger

    siblings = {"model-1.safetensors": 5, "model-2.safetensors": 6, "config.json": 1, "pytorch_model.bin": 11}
    siblings |= {"original/model.safetensors": 11, "README.md": 2, "tokenizer.model": 1}

    def info(name, revision, files_metadata, timeout):
        assert (name, revision, files_metadata) == ("org/base", "v1", True)
        files = [SimpleNamespace(rfilename=file, size=size * MILLIARD) for file, size in siblings.items()]
        return SimpleNamespace(siblings=files, gated="manual", safetensors=SimpleNamespace(total=11 * 10**9))

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=info))
    text, missing = ask({"name": "org/base", "revision": "v1"}, two[1], dtype="bfloat16")
    assert "to download, about 13 GB, gated" in text
    assert "44 GB for most pages" in text
    assert [what.split(" and there")[0] for what in missing] == [
        "org/base@v1 is gated",
        "264 GB of memory here to train `tuned`; 64 GB are free here (or give a model as tuned)",
    ]


def answered(kind, status):
    return kind("x", response=SimpleNamespace(status_code=status, headers={}, request=None))


@pytest.mark.parametrize("problem", [OSError("no route"), answered(errors.HfHubHTTPError, 500)])
def test_a_hub_that_does_not_answer_leaves_the_size_unknown(monkeypatch, two, problem):
    def info(*_args, **_options):
        raise problem

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=info))
    text, missing = ask({"name": "org/base"}, two[1])
    assert "to download, size unknown" in text
    assert "memory: unknown before the models are here" in text
    assert "what is of unknown size" in text
    assert missing == []


def test_a_model_that_the_hub_does_not_have(monkeypatch, two):
    def info(*_args, **_options):
        raise answered(errors.RepositoryNotFoundError, 404)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=info))
    _, missing = ask({"name": "org/bsae", "revision": "v1"}, two[1])
    assert len(missing) == 1
    assert "the hub has no model org/bsae@v1" in missing[0]


def test_offline_the_hub_is_not_asked_and_what_is_not_here_is_missing(monkeypatch, two):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached("org/chat", "main", COMMIT, [10**9])
    _, missing = ask({"name": "org/base"}, {"name": "org/chat"})
    assert [what for what in missing if "org/" in what] == [
        "org/base@main is not here, and HF_HUB_OFFLINE is set; unset it, or give the model's folder"
    ]


def test_gated_models_need_a_token_unless_they_are_here(monkeypatch, two):
    gated = {"name": "org/base", "parameters": 10, "gated": True}
    _, missing = ask(gated, two[1])
    assert len(missing) == 1
    assert "org/base@main is gated and there is no token" in missing[0]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    text, missing = ask(gated, two[1])
    assert missing == []
    assert "hf_secret" not in text
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    cached("org/base", "main", COMMIT, [10**9])
    assert ask(gated, two[1])[1] == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"half"),
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]"),
        lambda folder: weights(folder / "model.safetensors", [10], short=1),
    ],
)
def test_weights_that_are_not_whole_are_missing(two, spoil):
    spoil(two[0])
    _, missing = ask(*two)
    assert missing[0] == "base lacks model.safetensors; finish the download"


def test_weights_in_several_files(two, tmp_path):
    folder = two[0]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}})
    )
    weights(folder / "m-1.safetensors", [10**9])
    assert ask(*two)[1] == ["base lacks m-2.safetensors; finish the download"]
    weights(folder / "m-2.safetensors", [10**9])
    found = sources.weights(folder)
    assert (found.numbers, found.missing) == (2 * 10**9, ())
    assert found.size == sum((folder / f"m-{i}.safetensors").stat().st_size for i in (1, 2))
    (folder / "model.safetensors.index.json").write_text("[]")
    assert sources.weights(folder).missing == ("model.safetensors.index.json",)


def test_a_judge_is_a_third_model(two, tmp_path):
    judge = {"model": {"name": str(model(tmp_path / "guard", [10**9]))}, "template": "llama_guard"}
    text, missing = ask(*two, judge=judge)
    assert "judge  guard: folder, 2 GB" in text
    assert "8 GB for most pages" in text
    assert missing == []  # with the judge page 16 takes 16 GB, no more than page 03
    judge["model"]["name"] = str(model(tmp_path / "larger", [3 * 10**9]))
    assert "up to 24 GB (page 16)" in ask(*two, judge=judge)[0]


# disk -----------------------------------------------------------------------------------------------------------------
def test_too_little_disk_for_downloads_outputs_and_the_first_model_trained_together(monkeypatch, two):
    base = {"name": "org/base", "parameters": 10**9}  # 2 GB to download, 4 GB a trained model
    for free, wanted in ((7, []), (6.99, ["7 GB of disk"])):
        monkeypatch.setattr(storage, "free_bytes", lambda path, free=free: int(free * MILLIARD))
        _, missing = ask(base, two[1], outputs=MILLIARD)
        assert [what.split(" at ")[0] for what in missing] == wanted
    tuned = {"tuned": {"name": str(model(two[1].parent / "tuned", [10**9]))}}
    monkeypatch.setattr(storage, "free_bytes", lambda path: 3 * MILLIARD)
    assert ask(base, two[1], outputs=MILLIARD, models=tuned)[1] == []


def test_bytes_are_added_up_by_disk(tmp_path):
    here, there, elsewhere = tmp_path / "a" / "b", tmp_path / "c", paths.Path("/proc/x")
    assert preflight._by_disk({here: 3, there: 4, elsewhere: 5}) == {here: 7, elsewhere: 5}


# devices --------------------------------------------------------------------------------------------------------------
def test_a_gpu_profile_needs_a_card_and_its_pytorch(monkeypatch, two):
    text, missing = ask(*two, device="cuda")
    assert "device: cuda; no card found" in text
    assert "free memory unknown" in text
    assert missing == ["a GPU, which device: cuda asks for (nvidia-smi shows none)"]
    monkeypatch.setattr(preflight, "cards", lambda: [Card("one", 9 * MILLIARD), Card("two", 99 * MILLIARD)])
    _, missing = ask(*two, device="cuda")
    assert missing == [
        "28 GB of memory on the first card to train `tuned`; 9 GB are free on the first card (or give a model as tuned)"
    ]
    assert "8 GB of main memory for page 03" in ask(*two, device="cuda")[0]
    text, missing = ask(*two, device="auto")
    assert missing == []
    assert "108 GB are free on all cards" in text
    assert "device: auto; one, two" in text
    monkeypatch.setattr(preflight.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    _, missing = ask(*two, device="auto")
    assert len(missing) == 1
    assert "PyTorch for the GPU: 2.13.0+cpu is installed" in missing[0]


def test_with_jobs_on_other_machines_memory_and_cards_here_say_nothing(monkeypatch, two):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    monkeypatch.setenv("RUNNER", "srun -n1 --gres=gpu:1")
    for device in ("cpu", "cuda"):
        text, missing = ask(*two, device=device)
        assert missing == []
        assert "8 GB for most pages in float32" in text
        assert "free memory unknown" in text
        assert f"device: {device}" in text


CARDS = preflight.cards  # before the fixture puts a stand-in there


@pytest.mark.parametrize(
    ("visible", "arguments"),
    [(None, []), ("1,0", ["-i", "1,0"]), ("GPU-abc", ["-i", "GPU-abc"]), ("", None), ("-1", None)],
)
def test_cards_are_those_of_the_driver_that_this_process_may_use(monkeypatch, visible, arguments):
    asked = []

    def run(command, **_options):
        asked.append(command[3:])
        return SimpleNamespace(stdout="NVIDIA H100 80GB HBM3, 81003\nNVIDIA A100, PCIe, 1000\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = CARDS()
    assert asked == ([] if arguments is None else [arguments])
    if arguments is not None:
        assert found == [Card("NVIDIA H100 80GB HBM3", 81003 * 2**20), Card("NVIDIA A100, PCIe", 1000 * 2**20)]
    else:
        assert found == []


def test_no_driver_means_no_cards(monkeypatch):
    def run(*_args, **_options):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", run)
    assert CARDS() == []


def test_a_remote_profile_needs_a_key_and_no_memory(monkeypatch):
    named = [{"name": f"org/{name}", "parameters": 70 * 10**9} for name in ("base", "chat")]
    text, missing = ask(*named, remote=True)
    assert missing == ["the environment variable NDIF_API_KEY: a key for NDIF (NDIF's: login.ndif.us)"]
    assert "weights on the server" in text
    assert "0 MB to download" in text
    assert "trained when a page asks" not in text
    monkeypatch.setenv("NDIF_API_KEY", "secret-key")
    text, missing = ask(*named, remote=True)
    assert missing == []
    assert "secret-key" not in text
    assert "https://here:1" in ask(*named, remote="https://here:1")[0]
    text, missing = ask(*named, remote="local")  # a rehearsal opens the weights here
    assert "560 GB for most pages" in text
    assert len(missing) == 2


# data -----------------------------------------------------------------------------------------------------------------
def data(**named):
    return {**yaml.safe_load((paths.PROFILES / "checkpoint.yaml").read_text())["data"], **PUBLIC, **named}


def test_data_sets_of_the_hub_need_their_package_and_perhaps_a_token(monkeypatch, two):
    text, missing = ask(*two, data=data(harmful="strongreject"))
    assert "data   alpaca: tatsu-lab/alpaca on the hub" in text
    assert "data   strongreject: walledai/StrongREJECT on the hub, gated" in text
    assert len(missing) == 1
    assert missing[0].startswith("a token for strongreject")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "x")
    assert ask(*two, data=data(harmful="strongreject"))[1] == []
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    text, missing = ask(*two)
    assert len(missing) == 1  # named once, for five sets
    assert "the package datasets" in missing[0]
    assert "lm_eval is not installed" in text


def test_a_set_that_is_on_no_hub(two):
    _, missing = ask(*two, data=data(attacks="hd_attacks"))
    assert len(missing) == 1
    assert "hd_attacks: set DATA_DIR to a folder with its files" in missing[0]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_only_what_was_prepared_before_is_there(monkeypatch, two, tmp_path, variable):
    if variable == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, variable, True)
    else:
        monkeypatch.setenv(variable, "1")
    for name in ("tatsu-lab___alpaca", "databricks___databricks-dolly-15k", "Salesforce___wikitext"):
        (tmp_path / "datasets" / name).mkdir(parents=True)
    text, missing = ask(*two)
    assert "data   alpaca: tatsu-lab/alpaca, cached" in text
    assert [what.split(" is ")[0] for what in missing] == ["or_bench_toxic", "or_bench_hard"]
    (tmp_path / "datasets" / "bench-llm___or-bench").mkdir()
    assert ask(*two)[1] == []


def test_data_sets_in_a_folder(monkeypatch, two, tmp_path):
    place = tmp_path / "data"
    monkeypatch.setenv("DATA_DIR", str(place))
    assert ask(*two)[1] == [f"DATA_DIR is {place}, which is no folder; name the one with the data sets, or unset it"]
    place.mkdir()
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)  # not needed here
    for name in ("or-bench-toxic.csv", "or-bench-hard-1k.csv", "alpaca_data.json", "databricks-dolly-15k.jsonl"):
        (place / name).touch()
    text, missing = ask(*two)
    assert "data   alpaca: in DATA_DIR" in text
    assert len(missing) == 1
    assert "files of wikitext2 in DATA_DIR: wiki.test.raw" in missing[0]
    (place / "wikitext2" / "wikitext-2-raw-v1").mkdir(parents=True)
    (place / "wikitext2" / "wikitext-2-raw-v1" / "test-0.parquet").touch()  # as in a snapshot of the hub's repository
    assert ask(*two)[1] == []


# folders of the checkout ----------------------------------------------------------------------------------------------
def test_a_folder_of_the_checkout_is_the_same_from_wherever_it_is_read(monkeypatch, tmp_path):
    """Kernels of JupyterLab run in notebooks/, the pipeline at the top."""
    name = "data/organisms/seed-0/base"
    found = {}
    for place in (paths.ROOT, paths.NOTEBOOKS, tmp_path):
        monkeypatch.chdir(place)
        source = profile(name, "org/chat").models.base
        assert source.name == str(paths.ROOT / name)
        assert sources.find(name, None) == paths.ROOT / name
        found[place] = sources.identity(name, None), checkpoints.identity(source.name, None)
    assert len({one for both in found.values() for one in both}) == 1
    assert None not in found[tmp_path]
    assert profile("org/base", "org/chat").models.base.name == "org/base"


# identity -------------------------------------------------------------------------------------------------------------
def test_a_folder_s_identity_changes_with_what_is_read_of_it_and_with_nothing_else(tmp_path):
    folder = model(tmp_path / "m", [10])
    before = sources.identity(str(folder), None)
    assert checkpoints.identity(str(folder), None) == before
    (folder / "README.md").write_text("new")
    (folder / "pytorch_model.bin").write_text("new")
    (folder / "config.json").touch()
    assert sources.identity(str(folder), None) == before
    seen = {before}
    os.utime(folder / "model.safetensors", ns=(1, 1))
    seen.add(sources.identity(str(folder), None))
    weights(folder / "model.safetensors", [11])
    seen.add(sources.identity(str(folder), None))
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 9}')
    seen.add(sources.identity(str(folder), None))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    seen.add(sources.identity(str(folder), None))
    assert len(seen) == 5


def test_a_hub_model_s_identity_is_its_commit(monkeypatch):
    assert sources.identity("org/m", None) is None
    assert sources.identity("org/m", "main") is None
    pinned = sources.identity("org/m", COMMIT)
    assert pinned
    cached("org/m", "main", COMMIT, [10])
    assert sources.identity("org/m", None) == sources.identity("org/m", "main") == pinned
    monkeypatch.setattr(checkpoints, "_fetch", lambda name, revision, weights: paths.Path("snapshots") / COMMIT)
    assert checkpoints.identity("org/m", "main") == pinned
    cached("org/m", "main", OTHER, [10])
    assert sources.identity("org/m", None) not in (pinned, None)
    assert sources.identity("org/m", COMMIT) == pinned
    assert sources.identity("/no/such/folder", None) is None
    assert sources.identity("not a name", None) is None


def test_models_and_the_judge_are_part_of_the_hash_of_a_result(tmp_path):
    files = {
        "lib/__init__.py": "",
        "notebooks/07_finding.py": "x = 1\n",
        "requirements.lock": "",
        "data/profiles/kingdom.yaml": "name: kingdom\n",
        "data/profiles/checkpoint.yaml": "name: checkpoint\nkind: checkpoint\nsize: 3\nmodels: null\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def hashed(name="mine"):
        return provenance.code_hash("07_finding", name, tmp_path)

    base, judge = model(tmp_path / "base", [10]), model(tmp_path / "judge", [10])
    mine = {"name": "mine", "like": "checkpoint", "models": {"base": {"name": str(base)}}}
    mine["judge"] = {"model": {"name": str(judge)}}
    (tmp_path / "build" / "profiles").mkdir(parents=True)
    (tmp_path / "build" / "profiles" / "mine.yaml").write_text(yaml.safe_dump(mine))
    seen, other = {hashed()}, hashed("kingdom")
    for folder in (base, judge):
        os.utime(folder / "model.safetensors", ns=(1, 1))
        seen.add(hashed())
    parent = tmp_path / "data/profiles/checkpoint.yaml"
    parent.write_text(parent.read_text().replace("size: 3", "size: 4"))
    seen.add(hashed())
    assert len(seen) == 4
    resolved = {"name": "mine", "kind": "checkpoint", "size": 4, "models": mine["models"], "judge": mine["judge"]}
    (tmp_path / "build" / "profiles" / "mine.yaml").write_text(yaml.safe_dump(resolved))
    assert hashed() in seen  # the same settings, written out
    assert hashed("kingdom") == other


def test_no_tensor_library_is_imported(two):
    code = (
        "import sys; from lib import preflight, profiles, sources\n"
        "p = profiles.load('smollm2-135m'); preflight.needs(p, 0); sources.identities(p.model_dump())\n"
        "print(sorted({'torch', 'transformers', 'safetensors', 'pandas'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
