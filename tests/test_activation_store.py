"""A store against Hugging Face's own hidden states, prompt by prompt, and against damage; streams against memory."""

import json

import numpy as np
import pytest
import torch

from lib import activation_store, edits, prompt_sets, prompts, residual, residual_streams, storage
from lib.errors import InputError
from tests import tiny_models

EXAMPLES = [*prompt_sets.calibration("tiny", 0)["safety"], *prompt_sets.calibration("tiny", 0)["utility"]][:13]
ASKED = [EXAMPLES[i].prompt for i in (5, 0, 12, 3, 8, 1, 10, 2, 9, 4, 11, 7, 6)]  # lengths up and down
BLOCKS = [("resid", layer) for layer in range(tiny_models.LAYERS)]
PLACES = [("resid", 1), ("neurons", 0), ("attn_z", 2)]


@pytest.fixture(scope="module")
def model():
    return tiny_models.speaking("llama-gqa")


@pytest.fixture(scope="module")
def half():
    made = tiny_models.speaking("llama-gqa")
    made.hf.bfloat16()
    return made


def truth(model, place):
    """[token d] of each prompt at a place, alone and unpadded, by a plain hook on a model never traced."""
    plain = tiny_models.speaking("llama-gqa").hf.to(model.hf.dtype)
    site, layer = place
    block, found = plain.model.layers[layer], []
    if site == "resid":
        hook = block.register_forward_hook(lambda _, inputs, output: found.append(output[0]))
    else:
        module = block.mlp.down_proj if site == "neurons" else block.self_attn.o_proj
        hook = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    with torch.no_grad():
        for row in prompts.prompt_ids(model.tokenizer, ASKED):
            plain(input_ids=torch.tensor([row]))
    hook.remove()
    return found


@pytest.mark.parametrize("shard", [1, 4000, 2**28])  # a shard a batch, a few, all in one
@pytest.mark.parametrize("positions", ["last", "all"])
def test_rows_are_those_of_single_prompts_in_the_order_asked(model, tmp_path, positions, shard):
    store = activation_store.write(tmp_path / "s", model, ASKED, PLACES, positions, batch=4, shard=shard)
    assert len(store.shards) == {1: 4, 2**28: 1}.get(shard, len(store.shards))
    for place in PLACES:
        expected = truth(model, place)
        rows = [x if positions == "all" else x[-1:] for x in expected]
        torch.testing.assert_close(store.read(place), torch.cat(rows), rtol=1e-4, atol=1e-5)
        owners = [i for i, x in enumerate(rows) for _ in x]
        assert store.prompts.tolist() == owners
        assert len(set(map(len, expected))) > 2  # batches were padded


def test_pieces_are_the_rows_of_read_and_name_their_prompts(model, tmp_path):
    store = activation_store.write(tmp_path / "s", model, ASKED, BLOCKS, "all", batch=4, shard=1)
    whole, seen = store.read(BLOCKS[1]), []
    for owners, values in store.pieces(BLOCKS[1]):
        assert owners.tolist() == sorted(owners.tolist())
        for prompt in owners.unique():
            assert torch.equal(values[owners == prompt], whole[store.prompts == prompt])
        seen += owners.unique().tolist()
    assert sorted(seen) == list(range(len(ASKED)))


def test_dtype_is_kept(half, tmp_path):
    store = activation_store.write(tmp_path / "s", half, ASKED, BLOCKS, batch=4)
    found = store.read(BLOCKS[0])
    assert found.dtype == torch.bfloat16
    assert store.dtype == "bfloat16"
    expected = torch.stack([x[-1] for x in truth(half, BLOCKS[0])])
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.05, atol=0.05)
    assert torch.equal(found.float(), residual.activations(half, ASKED, batch=4)[0])  # to the last bit


def test_edits_are_seen_by_what_comes_after(model, tmp_path):
    store = activation_store.write(
        tmp_path / "s", model, ASKED, [("neurons", 0), ("resid", 0)], edits={("neurons", 0): edits.mute([1, 4])}
    )
    states = store.read(("neurons", 0))
    assert (states[:, [1, 4]] == 0).all()
    assert (states[:, [0, 2, 3]] != 0).any()


def test_a_store_is_read_back_by_its_folder(model, tmp_path):
    made = activation_store.write(tmp_path / "s", model, ASKED, PLACES, "all")
    again = activation_store.load(tmp_path / "s")
    assert again == made
    assert again.lengths == tuple(len(row) for row in prompts.prompt_ids(model.tokenizer, ASKED))
    with pytest.raises(InputError, match="unknown place in this store"):
        again.read(("resid", 0))


def test_no_text_and_no_ids_are_stored(model, tmp_path):
    activation_store.write(tmp_path / "s", model, ASKED, BLOCKS, "all")
    content = b"".join(path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file())
    words = {word for prompt in ASKED for word in prompt.text.split() if len(word) > 4}
    assert len(words) > 10
    assert not any(word.encode() in content for word in words)
    about = storage.read_seal(tmp_path / "s")
    assert sorted(about) == ["asked", "dtype", "kind", "lengths", "model", "places", "positions"]
    assert len(about["asked"]) == 64  # a hash


def test_stores_of_the_same_prompts_are_told_from_others(model, half, tmp_path):
    one = activation_store.write(tmp_path / "1", model, ASKED, BLOCKS)
    two = activation_store.write(tmp_path / "2", half, ASKED, BLOCKS, batch=2)
    activation_store.check_pair(one, two)
    fewer = activation_store.write(tmp_path / "3", half, ASKED[1:], BLOCKS)
    with pytest.raises(InputError, match="differ in their asked"):
        activation_store.check_pair(one, fewer)
    other = activation_store.write(tmp_path / "4", half, ASKED, BLOCKS[:1])
    with pytest.raises(InputError, match="differ in their places"):
        activation_store.check_pair(one, other)


# what must not be used ------------------------------------------------------------------------------------------------
def shorten(folder):
    path = folder / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder):
    path = folder / "00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def alter(folder):
    """A seal that is whole, of a store that is not: one prompt more than there are rows."""
    seal = json.loads((folder / storage.SEAL).read_text())
    seal["about"]["lengths"].append(3)
    (folder / storage.SEAL).write_text(json.dumps(seal))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shorten, "00001.safetensors has other bytes"), (flip, "00000.safetensors has other bytes"),
        (lambda folder: (folder / "00002.safetensors").unlink(), "00002.safetensors is missing"),
        (lambda folder: (folder / storage.SEAL).unlink(), "its seal cannot be read"),
        (alter, "incomplete: 13 of 14 rows"),
    ],
)  # fmt: skip
def test_a_damaged_or_incomplete_store_is_refused(model, tmp_path, harm, message):
    activation_store.write(tmp_path / "s", model, ASKED, BLOCKS, batch=4, shard=1)
    harm(tmp_path / "s")
    with pytest.raises(InputError, match=message) as caught:
        activation_store.load(tmp_path / "s")
    assert "write it again" in str(caught.value)


def test_what_is_no_store_is_refused_and_never_replaced(model, tmp_path):
    with pytest.raises(InputError, match="there is no store"):
        activation_store.load(tmp_path / "none")
    storage.seal_folder(tmp_path / "other", lambda folder: storage.write_json(folder / "a", 1), {"kind": "else"})
    with pytest.raises(InputError, match="is no store of activations"):
        activation_store.load(tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not replaced"):
        activation_store.write(tmp_path / "mine", model, ASKED, BLOCKS)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_run_that_fails_leaves_the_older_store_and_nothing_else(model, tmp_path, monkeypatch):
    made = activation_store.write(tmp_path / "s", model, ASKED, BLOCKS)
    written = []

    def full(tensors, path):
        written.append(path)
        if len(written) == 2:
            raise OSError("no space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr(activation_store, "save_file", full)
    for folder in ("s", "new"):
        written.clear()
        with pytest.raises(OSError, match="no space"):
            activation_store.write(tmp_path / folder, model, ASKED, BLOCKS, batch=4, shard=1)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    monkeypatch.undo()
    assert activation_store.load(tmp_path / "s") == made


def test_a_store_that_does_not_fit_is_refused_before_the_model_runs(model, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda path: 2**20)
    rows = 13 * (32 + 48 + 32) * 4
    with pytest.raises(InputError, match=f"needs {(rows + 2**20) / 1e6:.0f} MB"):
        activation_store.write(tmp_path / "s", model, ASKED, PLACES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], BLOCKS), "0 prompts"), ((ASKED, []), "cannot be stored"), ((ASKED, [BLOCKS[0]] * 2), "places once"),
        ((ASKED, [("resid", 7)]), "no layer 7"), ((ASKED, [("mlp", 0)]), "unknown site"),
        ((ASKED, BLOCKS, "first"), "unknown positions"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_work_starts(model, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        activation_store.write(tmp_path / "s", model, *arguments)
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_one_shard(model, tmp_path, monkeypatch):
    held, save = [], activation_store.save_file
    add = activation_store._Shards.add

    def watched(self, rows, values):
        add(self, rows, values)
        held.append(sum(x.nbytes for part in self.values for x in part.values()))

    monkeypatch.setattr(activation_store._Shards, "add", watched)
    monkeypatch.setattr(activation_store, "save_file", save)
    one = 3 * 32 * 4  # bytes of a prompt: three blocks, float32
    activation_store.write(tmp_path / "s", model, ASKED, BLOCKS, batch=2, shard=4 * one)
    assert len(held) == 7
    assert max(held) < 4 * one
    assert held.count(0) == 3  # 13 prompts: a batch of 1, then sixes of 2


# residual spaces from streams -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Stores before and after, to fit on and to test on, and the same activations in memory."""
    folder, fit, test = tmp_path_factory.mktemp("stores"), ASKED, ASKED[:5]
    before, after = tiny_models.speaking("llama-gqa"), tiny_models.speaking("llama-gqa")
    with torch.no_grad():
        after.hf.model.layers[1].mlp.down_proj.weight.mul_(1.3)  # block 0 stays as it is
    stores, memory = [], []
    for model in (before, after):
        for name, asked in (("fit", fit), ("test", test)):
            place = folder / f"{len(stores)}-{name}"
            stores.append(activation_store.write(place, model, asked, BLOCKS, batch=4, shard=1))
            memory.append(residual.activations(model, asked, batch=4))
    return stores, memory


def test_spaces_from_streams_are_those_from_memory(pairs):
    (before, _, after, _), (x, _, y, _) = pairs
    for centred in (False, True):
        found = dict(residual_streams.spaces(before, after, centred))
        assert list(found) == [0, 1, 2]
        for layer in range(3):
            expected = residual.space(y[layer] - x[layer], centred)
            for name in ("directions", "energy", "mean"):
                assert torch.equal(getattr(found[layer], name), getattr(expected, name))
        assert len(found[0].energy) == 0  # where nothing moved
        assert len(found[1].energy) > 5
        assert torch.equal(residual_streams.energies(before, after, centred), residual.energies(y - x, centred))


def test_maps_from_streams_are_those_from_memory(pairs):
    (before, before_test, after, after_test), (x, x_test, y, y_test) = pairs
    shuffle = np.random.default_rng(0).permutation(len(ASKED))
    found = residual_streams.map_errors(before, after, before_test, after_test, shuffle)
    expected = residual.map_errors(x, y, x_test, y_test, shuffle)
    assert list(found) == list(expected)
    for name in expected:
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_one_block_is_in_memory_at_a_time(pairs, monkeypatch):
    (before, _, after, _), _ = pairs
    read, asked = activation_store.Store.read, []
    monkeypatch.setattr(activation_store.Store, "read", lambda self, place: asked.append(place) or read(self, place))
    found = residual_streams.shifts(before, after)
    assert asked == []
    next(found)
    assert asked == [("resid", 0)] * 2


def test_stores_that_do_not_belong_together_are_refused(pairs, tmp_path, model):
    (before, _, after, after_test), _ = pairs
    with pytest.raises(InputError, match="differ in their asked"):
        residual_streams.shifts(before, after_test)
    neurons = activation_store.write(tmp_path / "n", model, ASKED, [("neurons", 0)])
    with pytest.raises(InputError, match="holds no residual stream"):
        residual_streams.energies(neurons, neurons, centred=False)
    two = [activation_store.write(tmp_path / name, model, ASKED[:5], BLOCKS[:2]) for name in "ab"]
    with pytest.raises(InputError, match="different blocks"):
        residual_streams.map_errors(before, after, *two, range(len(ASKED)))
