"""Checkpoints that cannot be used: each refused in one sentence with its remedy, and before weights are read."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from lib import checkpoints, models, prompts, residual, storage, tracing
from lib.errors import InputError
from tests import tiny_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save(folder, name="llama-3", tokenizer=None, **settings):
    tiny_models.build(name, **settings).save_pretrained(folder)
    (tokenizer or tiny_models.checkpoint_tokenizer(name)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return save(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def folder(sound, tmp_path):
    """A sound checkpoint that a test may spoil."""
    return shutil.copytree(sound, tmp_path / "model")


@pytest.fixture
def no_weights_read(monkeypatch):
    def read(*_args, **_options):
        raise AssertionError("weights were read")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", read)


def change(file, **settings):
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def index(folder, **shards):
    """An index of shards in place of the one file, whose tensors are in a.safetensors."""
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors", **shards}}))


def refusal(name, **options):
    with pytest.raises(InputError) as caught:
        models.open_checkpoint(str(name), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Configuration --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "what", "remedy"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "x.Model"}}, "run code of its own", "needs none"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification, not a causal", "name"),
        (
            {"architectures": ["BertModel"], "model_type": "bert"},
            "BertModel, not a causal language",
            "ForCausalLM",
        ),
        ({"model_type": "mamba"}, "of family 'mamba'; known: llama, mistral", "a row of FAMILIES in lib/families.py"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "of family 'gpt2'", "To add it"),
        ({"model_type": None, "architectures": None}, "of family 'None'", "known: llama"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised", "ordinary weights"),
        ({"transformers_weights": "../x.safetensors"}, "file of its own choice", "ordinary weights"),
        ({"num_attention_heads": "many"}, "values that transformers refuses", "download it again"),
        ({"num_hidden_layers": 10**9}, "1000000000 blocks, its files hold 29 tensors", "download both"),
        ({"intermediate_size": 10**9}, "its files hold 33,504; they do not belong together", "download both"),
        ({"vocab_size": 10**12}, "declares 32,000,000,", "download both"),
        ({"hidden_size": 2**62}, "describes no model", "download it again"),
        ({"vocab_size": 100}, "has 280 tokens, its model 100", "copy the tokenizer that came with the model"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder, no_weights_read, settings, what, remedy):
    change(folder / "config.json", **settings)
    started = time.monotonic()
    message = refusal(folder)
    assert what in message
    assert remedy in message
    assert time.monotonic() - started < 10  # a billion blocks are not built, however little memory each takes


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_configuration_that_is_none_is_refused(folder, no_weights_read, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


# Weights --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shard", "what"),
    [
        ("b.safetensors", "lacks b.safetensors; finish the download"),
        ("../../outside.safetensors", "a file outside the folder ('../../outside.safetensors'); do not use"),
        ("/etc/passwd", "a file outside the folder ('/etc/passwd')"),
        ("..\\outside.safetensors", "a file outside the folder"),
        ("..", "a file outside the folder"),
    ],
)
def test_an_index_of_missing_or_foreign_files_is_refused(folder, no_weights_read, shard, what):
    (folder.parent / "outside.safetensors").write_bytes(b"")
    index(folder, x=shard)
    assert what in refusal(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(folder, no_weights_read, text):
    index(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    assert "is damaged" in refusal(folder)


def test_many_missing_shards_are_counted(folder, no_weights_read):
    index(folder, **{f"w{i}": f"shard-{i}.safetensors" for i in range(9)})
    assert "shard-0.safetensors, shard-1.safetensors, shard-2.safetensors and 6 more" in refusal(folder)


def test_shards_open_as_the_one_file_does(sound, tmp_path):
    hf = tiny_models.build("llama-3")
    hf.save_pretrained(tmp_path, max_shard_size="50KB")
    tiny_models.checkpoint_tokenizer("llama-3").save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    one, other = (models.open_checkpoint(str(folder)).hf.state_dict() for folder in (sound, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("old", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_never_loaded(folder, no_weights_read, old):
    (folder / "model.safetensors").rename(folder / old)
    assert f"only pickled weights ({old}), which can run code; save the model as safetensors" in refusal(folder)


def test_pickled_weights_beside_safetensors_are_left_alone(folder):
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert models.open_checkpoint(str(folder)).layers == tiny_models.LAYERS


@pytest.mark.parametrize("spoil", ["truncated", "empty", "text", "header"])
def test_a_file_that_is_no_whole_safetensors_is_refused_by_its_header(folder, no_weights_read, spoil):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    spoilt = {"truncated": whole[:-100], "empty": b"", "text": b"<html>not found</html>", "header": b"\xff" * 8 + whole}
    file.write_bytes(spoilt[spoil])
    assert "model.safetensors of" in refusal(folder)
    assert "cannot be read" in refusal(folder)


def test_a_weight_under_another_name_is_not_replaced_by_a_random_one(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["elsewhere.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of its model's weights (model.norm.weight)" in refusal(folder)


def test_a_checkpoint_without_its_last_block_is_refused_by_its_headers(folder, no_weights_read):
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if ".layers.2." not in k}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "do not belong together" in refusal(folder)


# Tokenizer ------------------------------------------------------------------------------------------------------------
def test_a_tokenizer_with_code_is_refused(folder, no_weights_read):
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Tokenizer", None]})
    assert "the tokenizer of" in refusal(folder)
    assert "code of its own (auto_map), which is never done; save it as a fast tokenizer" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_tokenizer_is_refused(folder, no_weights_read, text):
    (folder / "tokenizer.json").write_text(text)
    assert "no usable tokenizer" in refusal(folder)


@pytest.mark.parametrize("use", ["special", "ordinary", "padding"])
def test_only_special_tokens_that_are_never_used_may_lack_an_embedding(tmp_path, use):
    """Gemma 3's text models come with the image token of the larger ones, beyond their embeddings."""
    words = tiny_models.checkpoint_tokenizer("gemma-3")
    size = len(words)
    if use == "ordinary":
        words.add_tokens(["<word>"])
    else:
        added = {"additional_special_tokens": ["<image>"]} if use == "special" else {"pad_token": "<pad2>"}
        words.add_special_tokens(added)
    save(tmp_path / "model", "gemma-3", words, vocab_size=size)
    if use != "special":
        assert f"has {size + 1} tokens, its model {size}" in refusal(tmp_path / "model")
        return
    model = models.open_checkpoint(str(tmp_path / "model"))
    ids = model.tokenizer("curse <image>", return_tensors="pt")
    with pytest.raises(InputError, match=f"token {size} has no embedding; the model knows tokens 0 to {size - 1}"):
        tracing.forward(model.traced, ids, logits="last")


# Pairs ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hidden_size": 64, "head_dim": 8}, "width 32"), ({"num_hidden_layers": 2}, "layers 3 and other 2")],
)
def test_base_and_tuned_of_different_shapes_are_refused(sound, tmp_path, settings, message):
    base = models.open_checkpoint(str(sound), "base")
    other = models.open_checkpoint(str(save(tmp_path / "other", **settings)))
    with pytest.raises(InputError, match=message):
        residual.check_pair(base, other)
    with pytest.raises(InputError, match=r"take two models of one architecture"):
        models.between(base, other, 0.5)


def test_a_base_and_a_tuned_model_whose_inner_shapes_differ_are_not_mixed(sound, tmp_path):
    base = models.open_checkpoint(str(sound), "base")
    other = models.open_checkpoint(str(save(tmp_path / "other", intermediate_size=40)))
    residual.check_pair(base, other)  # their activations can be subtracted
    with pytest.raises(InputError, match=r"gate_proj.weight is \(48, 32\) in base and \(40, 32\) in other"):
        models.between(base, other, 0.5)


def test_a_pair_with_different_tokenizers_is_refused(sound, tmp_path):
    base = models.open_checkpoint(str(sound), "base")
    other = models.open_checkpoint(str(save(tmp_path / "x", tokenizer=tiny_models.checkpoint_tokenizer("mistral"))))
    with pytest.raises(InputError, match="different tokenizers"):
        residual.check_pair(base, other)


# The hub --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def cached(folder, tmp_path, monkeypatch):
    """A hub cache with the checkpoint as owner/model, as the hub's own client lays it out, and no network."""
    home = tmp_path / "hub"
    repository = home / "models--owner--model"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    shutil.copytree(folder, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository


def test_what_is_cached_opens_without_network_and_names_its_commit(cached, sound):
    one, other = models.open_checkpoint("owner/model"), models.open_checkpoint("owner/model", "chat", revision=COMMIT)
    assert (one.name, other.name) == ("model", "chat")
    assert one.origin == other.origin == f"owner/model@{COMMIT}"
    built = dict(tiny_models.build("llama-3").named_parameters())
    assert all(torch.equal(weight, built[name]) for name, weight in other.hf.named_parameters())


def test_a_half_downloaded_cache_says_so(cached, no_weights_read):
    snapshot = cached / "snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(cached / "blobs" / "abc.1f.incomplete")
    broke = "a download broke off there (1 *.incomplete); finish the download"
    assert f"'owner/model' holds no weights; {broke}" in refusal("owner/model")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    for name in ("owner/model", snapshot):
        assert f"lacks model-1.safetensors; {broke}" in refusal(name)


def test_a_folder_whose_download_broke_off_says_so(folder, no_weights_read):
    (folder / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (folder / "model.safetensors").rename(folder / ".cache" / "huggingface" / "download" / "m.x.incomplete")
    assert "a download broke off there" in refusal(folder)


@pytest.mark.parametrize("name", ["owner/other", "/no/such/folder", "a b/c", "", "../up"])
def test_what_is_neither_there_nor_on_the_hub_is_refused(cached, no_weights_read, name):
    message = refusal(name)
    assert "neither a folder nor a model that can be fetched now" in message or "no usable config.json" in message


def test_a_revision_that_is_not_cached_is_refused_offline(cached, no_weights_read):
    assert "can be fetched now" in refusal("owner/model", revision="v2")


def test_a_folder_has_no_revisions(folder, no_weights_read):
    assert "is a folder, which has no revision 'main'; leave the revision out" in refusal(folder, revision="main")


def broken(kind):
    response = MagicMock(headers={}, status_code=403)
    return kind("secret\nlines", response=response)


@pytest.mark.parametrize(
    ("kind", "what", "remedy"),
    [
        (errors.GatedRepoError, "is gated", "hf auth login"),
        (errors.RepositoryNotFoundError, "no model 'owner/model' on the hub, or it is private", "check the name"),
        (errors.RevisionNotFoundError, "has no revision 'v9'", "branches, tags or commits"),
        (errors.RemoteEntryNotFoundError, "has no config.json", "name one that is"),
        (errors.DisabledRepoError, "can be fetched now", "check the name and the network (DisabledRepoError)"),
        (errors.HfHubHTTPError, "can be fetched now", "(HfHubHTTPError)"),
    ],
)
@pytest.mark.parametrize("call", ["hf_hub_download", "snapshot_download"])
def test_what_the_hub_refuses_is_said_with_the_remedy(sound, no_weights_read, monkeypatch, kind, what, remedy, call):
    def refuse(*_args, **_options):
        raise broken(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_args, **_options: str(sound / "config.json"))
    monkeypatch.setattr(huggingface_hub, call, refuse)
    message = refusal("owner/model", revision="v9")
    assert what in message
    assert remedy in message


@pytest.fixture
def hub(folder, monkeypatch):
    """A hub that serves the checkpoint and notes what was asked of it."""
    asked = []

    def one_file(name, file, revision):
        asked.append((file, revision))
        return str(folder / file)

    def snapshot(name, revision, allow_patterns, dry_run=False):
        large = any(pattern.endswith("safetensors") for pattern in allow_patterns)
        asked.append(("list" if dry_run else "files" if large else "small files", revision))
        if not dry_run:
            return str(folder)
        return [
            SimpleNamespace(filename=file.name, file_size=file.stat().st_size, will_download=file.suffix != ".json")
            for file in folder.iterdir()
        ]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one_file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return SimpleNamespace(folder=folder, asked=asked)


def test_a_model_is_fetched_at_the_revision_asked_for(hub):
    model = models.open_checkpoint("owner/model", "chat", revision="v1")
    assert model.origin == f"owner/model@{hub.folder.name}"
    commit = hub.folder.name
    assert hub.asked == [
        ("config.json", "v1"), ("small files", commit), ("config.json", "v1"), ("list", commit), ("files", commit)
    ]  # fmt: skip


@pytest.mark.parametrize("missing", ["tokenizer.json", "chat_template.jinja"])
def test_a_tokenizer_is_refused_before_anything_large_is_fetched(hub, missing):
    (hub.folder / missing).unlink()
    refusal("owner/model")
    assert {what for what, _ in hub.asked} == {"config.json", "small files"}


def test_a_full_disk_is_refused_before_anything_large_is_fetched(hub, no_weights_read, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _path: 1000)
    assert "downloading owner/model needs 0 MB free" in refusal("owner/model")
    assert ("files", hub.folder.name) not in hub.asked
    needed = sum(file.stat().st_size for file in Path(hub.folder).iterdir() if file.suffix != ".json")
    monkeypatch.setattr(storage, "free_bytes", lambda _path: needed)
    with pytest.raises(AssertionError, match="weights were read"):
        models.open_checkpoint("owner/model")


def test_code_families_and_pickles_are_refused_before_anything_large_is_fetched(hub, no_weights_read):
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in refusal("owner/model")
    assert [what for what, _ in hub.asked] == ["config.json", "small files", "config.json", "list"]
    hub.asked.clear()
    for settings in ({"auto_map": {}}, {"model_type": "mamba"}, {"architectures": ["BertModel"]}):
        change(hub.folder / "config.json", **settings)
        refusal("owner/model")
    assert {what for what, _ in hub.asked} == {"config.json"}


# one tokenizer for all models of a profile ----------------------------------------------------------------------------
def test_a_base_model_without_a_template_is_read_as_chat_is(folder, sound):
    (folder / "chat_template.jinja").unlink()
    assert "no chat template" in refusal(folder)
    chat = checkpoints.tokenizer(str(sound), None)
    base = models.open_checkpoint(str(folder), "base", read_with=chat)
    asked = [prompts.Prompt("bake the bread", "", "benign", "plain", "train")]
    assert prompts.prompt_ids(base.tokenizer, asked) == prompts.prompt_ids(chat, asked)


def test_another_vocabulary_is_refused(folder, sound):
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    swapped = {"a": "b", "b": "a"}
    found["model"]["vocab"] = {swapped.get(word, word): token for word, token in found["model"]["vocab"].items()}
    file.write_text(json.dumps(found))
    chat = checkpoints.tokenizer(str(sound), None)
    assert "numbers 2 tokens otherwise than that of the aligned model ('a')" in refusal(folder, read_with=chat)


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(folder):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("pad_token")
    file.write_text(json.dumps(settings))
    model = models.open_checkpoint(str(folder))
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    asked = [prompts.Prompt(text, "", "benign", "plain", "train") for text in ("bake", "bake the bread at noon")]
    together = model.hf(**prompts.encode(model.tokenizer, asked)).logits[:, -1]
    alone = torch.cat([model.hf(**prompts.encode(model.tokenizer, [one])).logits[:, -1] for one in asked])
    assert torch.allclose(together, alone, atol=1e-5)


# cards ----------------------------------------------------------------------------------------------------------------
def test_a_full_card_is_no_damaged_file(folder, monkeypatch):
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", full)
    assert "does not fit beside the models that are open on 'cpu'" in refusal(folder)


@pytest.mark.parametrize(
    ("places", "refused"),
    [({"": 0}, False), ({"": "cpu"}, False), ({"a": 0, "b": 1}, False), ({"a": 0, "b": "disk"}, True),
     ({"a": 0, "b": "cpu"}, True)],
)  # fmt: skip
def test_a_model_that_is_partly_kept_off_the_cards_is_refused(places, refused):
    placed = SimpleNamespace(hf_device_map=places)
    if not refused:
        models._check_placed(placed, "m")
        return
    with pytest.raises(InputError, match="1 of 2 parts of 'm' do not fit on the cards"):
        models._check_placed(placed, "m")


def test_a_missing_card_is_told_before_anything_is_fetched(hub):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "needs a GPU" in refusal("owner/model", device="cuda")
    assert hub.asked == []
