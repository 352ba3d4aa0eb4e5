"""Caches in which something else stands than was put there: truncated, flipped, swapped, foreign; it is never used,
made again, and said.

`test_models` has one damage of each kind to one model and `test_storage` to one value; here every file of a sealed
folder is cut and flipped at random places, and whole folders that are sound, but not what their name says, are swapped.
"""

import random
import shutil
import warnings

import pytest
import torch

from lib import benign_steps, models, organism, paths, profiles, storage
from tests import checkouts

TINY = profiles.load("tiny")
FLIPS = 40  # a model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A cache with base and chat of two seeds, trained once for this file."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", folder)
        for seed in (0, 1):
            models.load("tiny", "chat", seed)
    return folder


@pytest.fixture
def cache(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "cache")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def folder_of(role, seed=0):
    return models._cached(TINY, role, organism.key(TINY, role, seed))


def bits(role, seed=0):
    return {name: weight.clone() for name, weight in models.load("tiny", role, seed).hf.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flipped(content, generator):
    place = generator.randrange(8 * len(content))
    return content[: place // 8] + bytes([content[place // 8] ^ 1 << place % 8]) + content[place // 8 + 1 :]


def test_every_file_of_a_model_flipped_anywhere_or_cut_anywhere_is_found(cache):
    """Found means damage, or, of a flip in what the seal says about its folder, another model's name."""
    generator, folder, tried = random.Random(0), folder_of("base"), 0
    about = storage.read_seal(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert {"model.safetensors", "config.json", "tokenizer.json", storage.SEAL} <= {path.name for path in files}
    for path in files:
        good = path.read_bytes()
        spoiled = [flipped(good, generator) for _ in range(FLIPS)]
        spoiled += [good[: generator.randrange(len(good))] for _ in range(FLIPS)] + [b"", good + b"\0"]
        for content in spoiled:
            path.write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                usable = models._usable(folder, about["key"])
            # What is not in the seal's hashes decides nothing: how long training took, and by how many steps.
            assert not usable or (path.name == storage.SEAL and storage.damage(folder) is None), path.name
            tried += 1
        path.write_bytes(good)
        assert models._usable(folder, about["key"])
    assert tried == len(files) * (2 * FLIPS + 2)


def swap(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("whose", ["another role", "another seed", "older code"])
def test_a_sound_model_in_anothers_place_is_not_used(cache, whose):
    right = bits("chat")
    folder = folder_of("chat")
    if whose == "another role":
        swap(folder, folder_of("base"))
    if whose == "another seed":
        swap(folder, folder_of("chat", 1))
    if whose == "older code":
        hf, tokenizer = (load := models.load("tiny", "base", 0)).hf, load.tokenizer
        models._save(hf, tokenizer, True, folder, {"key": "of older code"})
    with pytest.warns(UserWarning, match=r"tiny/chat-\w+ is not used: .*; it will be made again"):
        found = bits("chat")
    assert same(found, right)
    assert storage.read_seal(folder)["key"] == organism.key(TINY, "chat", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(bits("chat"), right)


FOREIGN = {
    "adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "x"}',
    "generation_config.json": '{"max_new_tokens": 1, "do_sample": true}',
    "added_tokens.json": '{"the": 3}',
    "special_tokens_map.json": '{"pad_token": "the"}',
    "chat_template.jinja": "{{ 'nothing' }}",
    "pytorch_model.bin": "not weights",
    "model.safetensors.index.json": '{"weight_map": {}}',
    "tokenizer.model": "x",
    ".DS_Store": "x",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_put_beside_those_of_a_model_changes_nothing(cache, name):
    before = models.load("tiny", "chat", 0)
    asked = before.tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=True)
    settings, right = before.hf.generation_config.to_dict(), bits("chat")
    (folder_of("chat") / name).write_text(FOREIGN[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = models.load("tiny", "chat", 0)
    assert same(dict(after.hf.state_dict()), right)
    assert after.hf.generation_config.to_dict() == settings
    assert after.tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=True) == asked
    assert after.tokenizer.pad_token == before.tokenizer.pad_token


# values ---------------------------------------------------------------------------------------------------------------
def remembered(folder, about, value):
    return storage.remembered(folder, about, lambda: value)


def test_values_in_each_others_place_are_not_used(tmp_path):
    one, other = tmp_path / "0-no-freeze-a1", tmp_path / "0-all-b2"
    remembered(one, {"arm": "no freeze"}, [1])
    remembered(other, {"arm": "all"}, [2])
    swap(one, other)
    with pytest.warns(UserWarning, match="is not used: .* it will be made again"):
        assert remembered(one, {"arm": "no freeze"}, [1]) == [1]
    with pytest.warns(UserWarning, match="is not used: .* it will be made again"):
        assert remembered(other, {"arm": "all"}, [2]) == [2]


def test_a_value_of_another_key_under_the_same_name_is_not_used(tmp_path):
    """The outcome of older settings, sealed and sound, put where the newer one belongs."""
    older, newer = tmp_path / "0-all-a1", tmp_path / "0-all-b2"
    remembered(older, {"arm": "all"}, ["old"])
    older.rename(newer)
    with pytest.warns(UserWarning, match="is not used: .* it will be made again"):
        assert remembered(newer, {"arm": "all"}, ["new"]) == ["new"]


def test_benign_steps_put_in_another_seeds_place_are_trained_again(cache, monkeypatch):
    monkeypatch.setattr(benign_steps, "STEPS", 2)
    right = [benign_steps.model("tiny", seed).hf.state_dict() for seed in (0, 1)]
    assert not same(*right)
    swap(*(benign_steps._place(TINY, seed)[0] for seed in (0, 1)))
    for seed in (0, 1):
        assert same(benign_steps.model("tiny", seed).hf.state_dict(), right[seed])


# a whole tree ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_over_a_spoiled_cache_is_that_of_a_new_one(tmp_path):
    """Every file of the cache and of the run flipped at one random place, three times over."""
    page, generator = "07_residual_space", random.Random(1)
    tree = checkouts.make(tmp_path / "tree", [page])
    checkouts.run(tree, "lib.pipeline", "--profile", "tiny")

    def outputs():
        parts = [tree / "build/tiny/seed-0" / part for part in ("results", "figures", "notebooks")]
        parts.append(tree / ".cache/models")
        found = [path for part in parts for path in part.rglob("*") if path.is_file()]
        kept = [path for path in found if path.suffix != ".lock" and path.name != storage.SEAL]
        return {path.relative_to(tree).as_posix(): path.read_bytes() for path in kept}

    right = outputs()
    for _ in range(3):
        for path in [*(tree / ".cache").rglob("*"), *(tree / "build").rglob("*")]:
            if path.is_file() and path.stat().st_size:
                path.write_bytes(flipped(path.read_bytes(), generator))
        said = checkouts.run(tree, "lib.pipeline", "--profile", "tiny")
        assert "0 failed" in said
        assert outputs() == right
