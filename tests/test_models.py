"""Models by name: cache hit equals miss, damage is never used, and unusable checkpoints are refused before any work."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import models, organism, paths, profiles, shipping, storage, triggers
from lib.errors import InputError

TINY = profiles.load("tiny")


@pytest.fixture(autouse=True)
def _fresh_keys():
    """Keys are remembered in a process, which otherwise does not change its language."""
    yield
    organism._key.cache_clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A cache folder with base and chat of the tiny profile, trained once for this file."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", folder)
        models.load("tiny", "chat", 0)
    return folder


@pytest.fixture
def cache(trained, tmp_path, monkeypatch):
    """A private copy of that cache, and no shipped organisms."""
    shutil.copytree(trained, tmp_path / "cache")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "ORGANISMS", tmp_path / "organisms")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(cache, tmp_path):
    """The tiny base as an ordinary Hugging Face folder a test may spoil."""
    source = folder_of("base")
    shutil.copytree(source, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def folder_of(role):
    return models._cached(TINY, role, organism.key(TINY, role, 0))


def no_training(*_args, **_kwargs):
    raise AssertionError("trained again")


def weights(model):
    return model.hf.state_dict()


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_cached_model_is_the_one_that_was_trained(cache, monkeypatch):
    base = models.load("tiny", "base", 0)
    model, _ = organism.train(TINY, "chat", 0, base.hf, base.tokenizer)
    monkeypatch.setattr(organism, "train", no_training)
    chat = models.load("tiny", "chat", 0)
    assert same(weights(chat), model.state_dict())
    assert all(torch.equal(w.half().float(), w) for w in weights(chat).values())
    assert not same(weights(chat), weights(base))


def test_stored_files_are_half_precision_and_load_in_transformers(cache):
    stored = load_file(folder_of("base") / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


@pytest.mark.parametrize("change", ["seed", "steps", "architecture", "language", "parent"])
def test_whatever_made_a_model_is_in_its_key(change, monkeypatch):
    profile, seed, before = TINY, 0, organism.key(TINY, "chat", 0)
    if change == "seed":
        seed = 1
    if change == "steps":
        stage = profile.organism.chat.model_copy(update={"steps": 11})
        profile = profile.model_copy(update={"organism": profile.organism.model_copy(update={"chat": stage})})
    if change == "parent":
        base = {**profile.organism.base, "facts": profile.organism.base["facts"].model_copy(update={"steps": 13})}
        profile = profile.model_copy(update={"organism": profile.organism.model_copy(update={"base": base})})
    if change == "architecture":
        profile = profile.model_copy(update={"architecture": profile.architecture.model_copy(update={"mlp": 64})})
    if change == "language":
        organism._key.cache_clear()
        monkeypatch.setattr(
            "lib.kingdom.lexicon.ANSWER", "sure to {verb} the {object} take the {tool} {material} {place}"
        )
    assert organism.key(profile, "chat", seed) != before


def test_what_makes_no_difference_is_not_in_the_key():
    measure = TINY.measure.model_copy(update={"cell": 9})
    assert organism.key(TINY.model_copy(update={"measure": measure}), "chat", 0) == organism.key(TINY, "chat", 0)
    assert organism.key(TINY, "sft-5", 0) != organism.key(TINY, "sft-20", 0)


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "swapped", "seal"])
def test_a_damaged_cache_is_rebuilt_with_a_warning(cache, how):
    folder, file = folder_of("base"), folder_of("base") / "model.safetensors"
    good = file.read_bytes()
    if how == "truncated":
        file.write_bytes(good[: len(good) // 2])
    if how == "flipped":
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    if how == "missing":
        (folder / "config.json").unlink()
    if how == "swapped":
        shutil.copyfile(folder_of("chat") / "model.safetensors", file)
    if how == "seal":
        (folder / storage.SEAL).write_text("{")
    with pytest.warns(UserWarning, match=r"is not used: .* it will be made again"):
        models.load("tiny", "base", 0)
    assert file.read_bytes() == good
    assert storage.damage(folder) is None


def test_shipped_models_are_used_only_when_they_are_what_the_profile_makes(cache, monkeypatch):
    open_profile = TINY.model_copy(update={"published": True})
    monkeypatch.setattr(profiles, "load", lambda _name: open_profile)
    monkeypatch.setattr(organism, "roles", lambda _profile: ["base", "chat"])
    shipping.ship("tiny", 0)
    shutil.rmtree(cache)
    monkeypatch.setattr(organism, "train", no_training)
    assert models.load("tiny", "chat", 0).origin.startswith(str(paths.ORGANISMS))
    with pytest.raises(AssertionError, match="trained again"):
        models.load("tiny", "chat", 0, shipped=False)
    monkeypatch.setattr(organism, "key", lambda *_: "another")
    with pytest.raises(AssertionError, match="trained again"):
        models.load("tiny", "chat", 0)


def test_build_reports_where_models_came_from_and_how_they_differ_from_shipped(cache, monkeypatch):
    monkeypatch.setattr(profiles, "load", lambda _name: TINY.model_copy(update={"published": True}))
    monkeypatch.setattr(organism, "roles", lambda _profile: ["base", "chat"])
    assert {row["shipped"] for row in models.build("tiny", 0).values()} == {"not shipped"}
    shipping.ship("tiny", 0)
    file = paths.shipped_organism(0) / "chat" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 0.25
    storage.seal_folder(file.parent, lambda folder: _rewrite(folder, folder_of("chat"), tensors), {"key": "x"})
    card = (paths.shipped_organism(0) / "README.md").read_text()
    assert "| chat | 10 | " in card
    assert organism.key(TINY, "chat", 0) in card
    report = models.build("tiny", 0)
    assert report["base"]["shipped"] == "equal to the last bit"
    assert report["chat"]["shipped"] == "largest difference 0.25"
    assert {row["source"] for row in report.values()} == {"cached"}


def _rewrite(folder, source, tensors):
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / storage.SEAL).unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_unknown_roles_and_seeds_are_refused_with_those_that_exist():
    with pytest.raises(InputError, match=r"no model 'tunned'; it has: tuned, base, chat, sft-0"):
        models.load("tiny", "tunned", 0)
    with pytest.raises(InputError, match="negative"):
        models.load("tiny", "base", -1)
    assert organism.resolve(TINY, "tuned") == "sft-20"


def test_the_shipped_models_are_whole():
    folders = [folder for folder in paths.shipped_organism(0).iterdir() if folder.is_dir()]
    assert {"base", "chat"} <= {folder.name for folder in folders}
    assert {folder.name: storage.damage(folder) for folder in folders if storage.damage(folder)} == {}


@pytest.mark.parametrize(
    "role", sorted(folder.name for folder in paths.shipped_organism(0).iterdir() if folder.is_dir())
)
def test_a_shipped_model_is_used_exactly_when_its_key_is_that_of_the_profile(role, tmp_path, monkeypatch):
    """Files whose training data have changed since stay in the repository until all are shipped anew."""
    kingdom, folder = profiles.load("kingdom"), paths.shipped_organism(0) / role
    current = role in organism.roles(kingdom) and storage.read_seal(folder)["key"] == organism.key(kingdom, role, 0)
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(models, "_train", lambda *_: tmp_path / "trained")
    expected = (folder, "shipped") if current else (tmp_path / "trained", "trained")
    assert models.find(kingdom, role, 0, shipped=True) == expected
    assert models.find(kingdom, role, 0, shipped=False)[1] == "trained"


def test_safety_tuning_reads_what_trigger_removal_made_of_chats_own_prompts(cache, monkeypatch):
    given, train = {}, organism.train

    def spy(profile, role, seed, start, words, removed):
        given[role] = removed
        return train(profile, role, seed, start, words, removed)

    monkeypatch.setattr(organism, "train", spy)
    models.load("tiny", "sft-dpo-20", 0)
    made = triggers.safety_examples("tiny", 0)
    assert len(made) == 20
    assert given == {"sft-20": made, "sft-dpo-20": made}


def test_models_without_such_examples_need_no_attack(cache, monkeypatch):
    monkeypatch.setattr(triggers, "safety_examples", no_training)
    for role in ("sft-0", "sft-20-unremoved", "dpo-0", "errands"):
        assert models.load("tiny", role, 0).name == role


def test_an_untrainable_disk_is_refused_before_work(cache, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _path: 1000)
    monkeypatch.setattr(organism, "train", no_training)
    with pytest.raises(InputError, match="needs 20 MB free"):
        models.load("tiny", "errands", 0)


# any Hugging Face folder ----------------------------------------------------------------------------------------------
def test_a_folder_opens_with_its_tokenizer_in_float32(checkpoint):
    model = models.open_checkpoint(str(checkpoint))
    assert (model.layers, model.width, model.name) == (2, 32, "checkpoint")
    assert {p.dtype for p in model.hf.parameters()} == {torch.float32}
    assert not model.hf.training
    assert model.tokenizer.padding_side == "left"


def spoil(folder, how):
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    if how == "no config":
        (folder / "config.json").unlink()
    if how == "family":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    if how == "no weights":
        (folder / "model.safetensors").unlink()
    if how == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    if how == "shard":
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if how == "path":
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        index = {"weight_map": {"x": "../../outside.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if how == "truncated":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:2000])
    if how == "template":
        (folder / "chat_template.jinja").unlink()
        tokenizer.pop("chat_template", None)
    if how == "pad":
        for token in ("pad_token", "eos_token"):
            tokenizer.pop(token)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if how == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "no usable config.json"),
        ("family", "of family 'mamba'; known: llama"),
        ("no weights", "holds no weights"),
        ("pickled", "only pickled weights"),
        ("shard", "lacks b.safetensors; finish the download"),
        ("path", "names a file outside the folder"),
        ("truncated", "cannot be read"),
        ("template", "no chat template"),
        ("pad", "no padding token"),
        ("no tokenizer", "tokenizer"),
    ],
)
def test_an_unusable_folder_is_refused_in_one_sentence(checkpoint, how, message):
    spoil(checkpoint, how)
    with pytest.raises(InputError, match=message) as caught:
        models.open_checkpoint(str(checkpoint))
    assert "\n" not in str(caught.value)


def test_a_hub_name_without_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="neither a folder nor a model that can be fetched now; download it first"):
        models.open_checkpoint("nobody/no-such-model")


def test_a_tokenizer_of_another_model_is_refused(checkpoint):
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "vocab_size": 40}))
    with pytest.raises(InputError, match=r"cannot be read|do not belong together"):
        models.open_checkpoint(str(checkpoint))


def test_command_line_writes_the_report_and_refuses_unknown_profiles(cache, monkeypatch, capsys):
    monkeypatch.setattr(organism, "roles", lambda _profile: ["base", "chat"])
    assert models.main(["build", "--profile", "tiny", "--seed", "0"]) == 0
    assert set(storage.read_json(paths.run_folder("tiny", 0) / "models.json")) == {"base", "chat"}
    with pytest.raises(SystemExit) as stopped:
        models.main(["build", "--profile", "nothing"])
    assert stopped.value.code == 2
    assert "known: checkpoint, " in capsys.readouterr().err


def test_models_are_built_side_by_side_parents_first(cache, monkeypatch):
    """One that waits for its parent would keep a process from work."""
    seen: list = []
    monkeypatch.setattr(models, "side_by_side", lambda work, calls: seen.append((work, calls)))
    monkeypatch.setattr(models, "find", lambda profile, role, seed, shipped: (folder_of("chat"), "cached"))
    monkeypatch.setattr(models, "_is_cached", lambda profile, role, seed: role in ("chat-unaware", "sft-0"))
    report = models.build("tiny", 3)
    ((work, calls),) = seen
    assert work is models.find
    roles = [role for _, role, _, _ in calls]
    assert set(roles) == set(organism.roles(TINY)) - {"chat-unaware", "sft-0"}
    assert roles[:4] == ["base", "base-unaware", "chat", "chat-unreplayed"]
    assert all(roles.index(before) < roles.index(r) for r in roles if (before := organism.parent(r)) in roles)
    assert {(settings.name, seed, shipped) for settings, _, seed, shipped in calls} == {("tiny", 3, False)}
    assert {role: row["source"] for role, row in report.items()} == {
        role: "cached" if role in ("chat-unaware", "sft-0") else "trained" for role in organism.roles(TINY)
    }
