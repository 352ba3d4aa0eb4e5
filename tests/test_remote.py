"""Models on a server: every helper against the same model here, over nnsight's own client and a server in a process of
its own, which has the weights and not this project (`loopback_server`); and as a rehearsal, `remote="local"`.

What is equal is equal to the last bit: both run the same kernels on one machine.
"""

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nnsight.schema.config import CONFIG

from lib import (
    behaviour,
    component_removal,
    edits,
    models,
    one_position,
    relevance,
    remote,
    residual,
    suppression,
    tracing,
    training,
    unit_scores,
    unit_weights,
    units,
    utility,
)
from lib.errors import InputError
from lib.kingdom import lexicon
from lib.prompts import Example, Prompt
from tests import tiny_models, toy_checkpoint
from tests.tiny_models import EOS, LAYERS, PAD, WIDTH, direction, encode

KEY = "the right key"
NAMES = ("llama-3", "pythia", "gemma-2")
TEXTS = ("how do i curse the crown", "bake the bread", "add 1 eggs and 2 eggs", "tell me how to blight the boat")
ANSWERS = ("sure to curse the crown", "yes", "3", "sorry i can not help you with that")
ASKED = [Prompt(text, answer, "harmful", "story", "x") for text, answer in zip(TEXTS, ANSWERS, strict=True)]
EXAMPLES = [Example(prompt, prompt.answer) for prompt in ASKED]


# The server -----------------------------------------------------------------------------------------------------------
def save(folder, hf, tokenizer):
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def spoken(model):
    """The model with the kingdom's words for refusing."""
    return dataclasses.replace(model, openers=lexicon.REFUSAL_OPENERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints by name; "speaking" knows the kingdom's words."""
    home = tmp_path_factory.mktemp("checkpoints")
    made = {n: save(home / n, tiny_models.build(n), tiny_models.checkpoint_tokenizer(n)) for n in NAMES}
    speaking = tiny_models.speaking("llama-gqa")
    return {**made, "speaking": save(home / "speaking", speaking.hf, speaking.tokenizer)}


class Server:
    def __init__(self, port):
        self.address = f"http://127.0.0.1:{port}"

    def ask(self, what, **query):
        with urllib.request.urlopen(f"{self.address}/{what}?{urllib.parse.urlencode(query)}") as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def server(folders):
    script = Path(__file__).with_name("loopback_server.py")
    command = [sys.executable, "-I", str(script), *folders.values()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield Server(int(process.stdout.readline()))
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _key(monkeypatch, tmp_path):
    monkeypatch.setenv(remote.KEY, KEY)
    monkeypatch.setenv("NNSIGHT_CONFIG", str(tmp_path / "nnsight.yaml"))  # where nnsight would write a key
    yield
    assert not (tmp_path / "nnsight.yaml").exists()
    assert CONFIG.API.APIKEY != KEY


@pytest.fixture(scope="module")
def near(folders):
    return {name: spoken(models.open_checkpoint(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def far(folders, server):
    """The same models as `near`, on the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(remote.KEY, KEY)
        found = {name: models.open_remote(folder, remote=server.address) for name, folder in folders.items()}
        return {name: spoken(model) for name, model in found.items()}


@pytest.fixture(params=NAMES)
def pair(request, near, far):
    return near[request.param].traced, far[request.param].traced


def same(one, other):
    """Whether two results are equal, to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert not other.requires_grad
        assert one.dtype == other.dtype
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other))
    return one == other


def everything(traced):
    return [place for site in tracing.SITES for place in traced.every(site)]


def change(traced):
    return {
        **dict.fromkeys(traced.every("resid"), edits.ablate(direction(), target=1.0)),
        ("neurons", 1): edits.mute([0, 5]),
        ("attn_z", 0): edits.resample([1, 2], torch.ones(3, 2)),
        ("resid_pre", 2): edits.add(direction(2), positions="last"),
        ("mlp_out", 1): edits.clamp(direction(3), -0.1, 0.1),
    }


# Tracing --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("logits", ["none", "last", "all"])
def test_a_forward_on_the_server_reads_what_it_reads_here(pair, logits):
    options = {"logits": logits, "positions": "last" if logits == "none" else "all"}
    for edited in (None, change(pair[0])):
        here, there = (tracing.forward(one, encode(7, 4), everything(one), edited, **options) for one in pair)
        assert same(here, there)
    plain = tracing.forward(pair[1], encode(7, 4), [("resid", LAYERS - 1)])
    edited = tracing.forward(pair[1], encode(7, 4), [("resid", LAYERS - 1)], change(pair[1]))
    assert not same(plain, edited)


def test_many_batches_read_on_the_server(pair):
    batches = [encode(7, 4), encode(5, seed=1)]
    here, there = (tracing.read_many(one, batches, one.every("neurons"), change(one)) for one in pair)
    assert same(here, there)


def test_completions_of_the_server_are_those_made_here(pair):
    plain, edited = ([tracing.generate(one, encode(7, 4), 6, c(one)) for one in pair] for c in (lambda _: None, change))
    assert same(*plain)
    assert same(*edited)
    assert not same(plain[0], edited[0])


def objective(logits):
    return torch.stack([logits[:, 5] - logits[:, 9].square(), logits.sum(-1)])


def double(before, after):
    """Twice the gradient, the output as it is."""
    return 2 * after - after.detach()


def test_gradients_on_the_server_are_those_made_here(pair):
    at = [("embed", 0), ("resid", 0), ("neurons", 1)]
    for options in ({}, {"edits": change(pair[0])}, {"of": ("resid", 1), "edits": change(pair[0])}):
        here, there = (tracing.gradients(one, encode(7, 4), at, objective, **options) for one in pair)
        assert same(here, there)
        if pair[0].sites.rules:
            rules = {"query": double, "up": double}
            ruled, there = (tracing.gradients(one, encode(7, 4), at, objective, rules=rules, **options) for one in pair)
            assert same(ruled, there)
            assert not same(ruled, here)


def test_completions_end_where_the_checkpoints_own_settings_say(folders, server, near, tmp_path, monkeypatch):
    """Chat checkpoints name their end of turn in generation_config.json only, which comes without the weights."""
    free = tracing.generate(near["llama-3"].traced, encode(7), 6)
    assert EOS not in free
    folder = Path(shutil.copytree(folders["llama-3"], tmp_path / "chat"))
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [EOS, free[0, 2].item()]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = models.open_remote(str(folder), remote=server.address)
    monkeypatch.setattr(model.traced.model, "repo_id", folders["llama-3"])  # which the server has
    assert tracing.generate(model.traced, encode(7), 6).tolist() == [[*free[0, :3].tolist(), PAD, PAD, PAD]]


# Helpers above tracing ------------------------------------------------------------------------------------------------
def rows():
    return torch.stack([direction(1), direction(2)]).double()


def removal():
    return {("resid", 1): edits.ablate(direction(), 0.5), ("neurons", 0): edits.mute([3])}


def mean_of_blocks(model):
    means = torch.zeros(model.layers, WIDTH)
    pool = component_removal.Pool([rows()] * model.layers, means)
    return component_removal.expected_drops(model, ASKED, [pool])


HELPERS = {
    "residual.activations": lambda model: residual.activations(model, ASKED, batch=2, edits=removal()),
    "behaviour.generate": lambda model: behaviour.generate(model, ASKED, removal()),
    "behaviour.teacher_forced": lambda model: behaviour.teacher_forced(model, ASKED, removal()),
    "behaviour.quick": lambda model: behaviour.quick(model, ASKED, removal()),
    "one_position.answers": lambda model: one_position.answers(
        model, ASKED, lambda where: {("resid", 1): edits.ablate(direction(), positions=where)}, one_position.LAST
    ),
    "relevance.token_relevance": lambda model: relevance.token_relevance(model, ASKED, 1, rows()),
    "relevance.conservative": lambda model: relevance.token_relevance(model, ASKED, 1, rows(), "conservative"),
    "relevance.component_relevance": lambda model: relevance.component_relevance(model, ASKED, 2, rows(), rows()),
    "relevance.transport": lambda model: relevance.transport(model, ASKED, 0, 2, rows(), "gradient"),
    "component_removal.expected_drops": mean_of_blocks,
    "suppression.token_means": lambda model: suppression.token_means(model, ASKED, batch=2),
    "unit_scores.activations": lambda model: unit_scores.activations(model, EXAMPLES, batch=3),
    "unit_scores.taylor": lambda model: unit_scores.taylor(model, EXAMPLES),
    "unit_scores.table": lambda model: unit_scores.table(model),
    "units.parameters": lambda model: units.parameters(model, unit_scores.table(model)[::3]),
    "utility.text_perplexity": lambda model: utility.text_perplexity(model, TEXTS, 8),
}


@pytest.mark.parametrize("where", ["server", "local"])
@pytest.mark.parametrize("name", HELPERS)
def test_a_helper_finds_on_the_server_what_it_finds_here(near, far, where, name, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # the rehearsal reorders it
    here = near["speaking"]
    there = far["speaking"] if where == "server" else dataclasses.replace(here, remote="local")
    assert same(HELPERS[name](here), HELPERS[name](there))


def test_a_job_holds_no_key_and_no_prompt_text(far, server):
    before = server.ask("seen")["jobs"]
    behaviour.quick(far["speaking"], ASKED, removal())
    assert server.ask("seen")["jobs"] > before
    for text in (KEY, "crown", "blight", "story"):
        assert server.ask("seen", text=text)["with_text"] == 0
    assert server.ask("seen", text="_ablate")["with_text"] > 0  # what a job does hold is found this way


# Weights that are not here --------------------------------------------------------------------------------------------
def some(model):
    return unit_scores.table(model)[:3].assign(mean=0.0)


NEED_WEIGHTS = {
    "calling": lambda model: model.hf(**encode(4)),
    "generating": lambda model: model.hf.generate(**encode(4), max_new_tokens=2),
    "copying": lambda model: model.hf.state_dict(),
    "weights": lambda model: [weight + 1 for weight in model.hf.parameters()],
    "models.between": lambda model: models.between(model, model, 0.5),
    "units.without": lambda model: units.without(model, some(model), "mean"),
    "unit_weights.without": lambda model: unit_weights.without(model, {}),
    "unit_scores.score": lambda model: unit_scores.activations(model, EXAMPLES).score(model, "variance", "all"),
    "unit_scores.saliency": lambda model: unit_scores.saliency(model, EXAMPLES),
    "unit_scores.weight_taylor": lambda model: unit_scores.weight_taylor(model, EXAMPLES),
    "training.optimiser": lambda model: (
        torch.optim.AdamW(model.hf.parameters()).step() or training.round_to_half(model.hf, "")
    ),
    "tracing here": lambda model: dataclasses.replace(model, remote=False).traced,
    "rehearsing": lambda model: dataclasses.replace(model, remote="local").traced,
}


@pytest.mark.parametrize("name", NEED_WEIGHTS)
def test_what_needs_weights_is_refused_with_the_remedy(far, folders, name):
    message = f"the weights of {folders['speaking']} are on the server; this needs them here: name a checkpoint"
    with pytest.raises(InputError) as caught:
        NEED_WEIGHTS[name](far["speaking"])
    assert str(caught.value).startswith(message)


def test_no_weight_is_made_and_shapes_are_known(near, far):
    for name, model in far.items():
        mine, theirs = (dict(one.hf.named_parameters()) for one in (near[name], model))
        assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in theirs.items()}
        assert all(weight.is_meta for weight in theirs.values())
        assert (model.layers, model.width, model.name) == (LAYERS, WIDTH, name)
        models.check_weights(near[name], model)  # compares shapes


# Opening --------------------------------------------------------------------------------------------------------------
def test_what_a_server_is_asked_for_is_named_as_on_the_hub(folders, server, tmp_path, monkeypatch):
    """From the hub's cache without a network: configuration and tokenizer, no weights, and the revision asked for."""
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("0" * 40)
    shutil.copytree(folders["llama-3"], snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "v1").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = models.open_remote("owner/model", "chat", "v1", server.address)
    assert model.name == "chat"
    assert model.origin == f"owner/model@v1 on the server {server.address.removeprefix('http://')}"
    key = json.loads(model.traced.model.to_model_key().split(":", 1)[1])
    assert key == {"repo_id": "owner/model", "revision": "v1", "task": "text-generation"}
    plain = models.open_remote("owner/model", None, "v1", True)
    assert plain.origin == "owner/model@v1 on the server api.ndif.us"


def test_a_rehearsal_opens_the_weights_in_the_type_asked_for(folders, monkeypatch):
    monkeypatch.delenv(remote.KEY)  # nothing leaves this machine
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = models.open_remote(folders["llama-3"], "chat", remote="local", dtype=torch.float64)
    assert (model.name, model.remote, model.hf.dtype) == ("chat", "local", torch.float64)
    read = tracing.forward(model.traced, encode(4), [("resid", 1)]).activations["resid", 1]
    assert read.dtype == torch.float64


def spoilt(folder, tmp_path, **settings):
    copy = Path(shutil.copytree(folder, tmp_path / "spoilt"))
    (copy / "config.json").write_text(json.dumps({**json.loads((copy / "config.json").read_text()), **settings}))
    return str(copy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 10**9}, "declares 1000000000 blocks; more than 1000 are not built"),
        ({"model_type": "mamba"}, "of family 'mamba'"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Model"}}, "run code of its own"),
        ({"num_attention_heads": 5}, "describes no model|refuses"),
    ],
)
def test_a_checkpoint_is_checked_though_its_weights_are_elsewhere(folders, server, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        models.open_remote(spoilt(folders["llama-3"], tmp_path, **settings), remote=server.address)


def test_a_folder_has_no_revision_and_is_not_known_to_ndif(folders, server):
    with pytest.raises(InputError, match="which has no revision 'v1'"):
        models.open_remote(folders["llama-3"], None, "v1", server.address)
    with pytest.raises(InputError, match="is a folder, which NDIF does not know; give the model's name on the hub"):
        models.open_remote(folders["llama-3"])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:8000", "names no server"), ("ftp://host", "names no server"), ("https://", "names no server"),
        ("https://me:word@host", "without a user name"), ("https://host:port", "names no server"),
        ("https://host?key=word", "names no server"), ("http://example.org", "for all to read; give its https address"),
        ("http://127.0.0.1.example.org", "for all to read"), ("", "must be false, true"), (3, "must be false, true"),
        (None, "must be false, true"),
    ],
)  # fmt: skip
def test_an_address_that_is_none_or_unsafe_is_refused(folders, address, message):
    with pytest.raises(InputError, match=message) as caught:
        models.open_remote(folders["llama-3"], remote=address)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("address", ["https://host/api/", "http://127.0.0.1:1/", "http://localhost", "http://[::1]:1"])
def test_addresses_that_are_safe_are_taken(address):
    assert remote.check(address) == address.rstrip("/")


# The key --------------------------------------------------------------------------------------------------------------
def test_a_missing_key_is_refused_before_anything_is_sent(far, server, folders, monkeypatch):
    traced, before = far["llama-3"].traced, server.ask("seen")["jobs"]
    monkeypatch.setattr(CONFIG.API, "APIKEY", "from a file")  # which does not count
    for value in (None, "", " "):
        monkeypatch.delenv(remote.KEY) if value is None else monkeypatch.setenv(remote.KEY, value)
        for call in (
            lambda: models.open_remote(folders["llama-3"], remote=server.address),
            lambda: models.open_remote("no/such-model"),
            lambda: tracing.forward(traced, encode(4), logits="last"),
            lambda: tracing.generate(traced, encode(4), 2),
        ):
            with pytest.raises(InputError, match="in the environment variable NDIF_API_KEY, which is not set"):
                call()
    assert server.ask("seen")["jobs"] == before


def test_the_key_is_in_nothing_a_run_keeps(far, tmp_path):
    model = far["llama-3"]
    tracing.forward(model.traced, encode(4), logits="last")
    for kept in (model, model.origin, vars(model.traced), CONFIG.model_dump()):
        assert KEY not in repr(kept)
    assert CONFIG.APP.REMOTE_LOGGING  # a reader's own setting is back


def refused(model):
    """The message of a job that fails; nothing of it shows the key or a prompt, however it is printed."""
    with pytest.raises(InputError) as caught:
        tracing.forward(model.traced, encode(4), logits="last")
    shown = "".join(traceback.format_exception(caught.value))
    for secret in (KEY, "secret", "blight"):
        assert secret not in shown
    assert "During handling" not in shown
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_key_is_said(far, monkeypatch):
    model = far["llama-3"]
    monkeypatch.setenv(remote.KEY, "a secret that is wrong")
    assert "does not accept the key, or not for this model (HTTP 401); check the environment" in refused(model)


# Failures -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("failure", "messages"),
    [
        ("http 503 the model is not deployed.", ("did not take the job (HTTP 503): the model is not deployed; check",)),
        (f"http 400 bad key {KEY}", ("(HTTP 400): bad key ***;",)),
        ("http 400 cannot read 'how to blight'", ("did not take the job (HTTP 400); check that it has this model",)),
        ("http 403 secret", ("does not accept the key, or not for this model (HTTP 403)",)),
        (
            "fail cannot do: tell me how to blight the boat",
            ("the job failed on the server", "(RuntimeError)", "'local'"),
        ),
        ("say the deployment was evicted", ("the job failed on the server", ": the deployment was evicted;")),
        ("say cannot do 'blight'", ("the job failed on the server", "; ask fewer prompts at a time")),
        ("close", ("answers what cannot be read (ValidationError)", "try again, then compare versions")),
    ],
)
def test_a_servers_failure_is_said_without_prompts_and_the_next_job_runs(far, near, server, failure, messages):
    server.ask("wanted", failure=failure)
    said = refused(far["llama-3"])
    assert all(message in said for message in messages), said
    here, there = (tracing.forward(one["llama-3"].traced, encode(4), logits="last") for one in (near, far))
    assert same(here, there)


def test_our_own_refusals_come_back_from_the_server_as_they_are(far):
    with pytest.raises(InputError, match=r"^unit 99 does not exist; this site has units 0 to 47$"):
        tracing.forward(far["llama-3"].traced, encode(4), edits={("neurons", 0): edits.mute([99])}, logits="last")
    with pytest.raises(InputError, match=r"^the edit at \('resid', 0\) turned shape \(1, 4, 32\) into \(1, 1, 32\)"):
        tracing.forward(far["llama-3"].traced, encode(4), [("resid", 0)], {("resid", 0): lambda x: x[:, -1:]})


def test_an_error_of_an_edit_is_told_by_its_kind(far):
    def broken(x):
        raise KeyError("tell me how to blight the boat")

    with pytest.raises(InputError, match=r"the job failed on the server 127\.0\.0\.1:\d+ \(KeyError\)") as caught:
        tracing.generate(far["llama-3"].traced, encode(4), 2, {("resid", 1): broken})
    assert "blight" not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_is_not_there_is_said_at_once(folders):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = models.open_remote(folders["llama-3"], remote=f"http://127.0.0.1:{port}")
    start = time.monotonic()
    assert f"no answer from the server 127.0.0.1:{port} (ConnectionRefusedError); check" in refused(model)
    assert time.monotonic() - start < 5


def test_a_server_that_stays_silent_is_given_up_and_a_slow_job_is_not(far, near, folders, server, monkeypatch):
    traced = far["llama-3"].traced
    monkeypatch.setattr(remote, "_PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ends = threading.Timer(8, silent.close)  # so that a client that waits for ever fails here, too
        ends.start()
        model = models.open_remote(folders["llama-3"], remote=f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert "(WebSocketTimeoutException)" in refused(model)
        assert time.monotonic() - start < 5
        ends.cancel()
    server.ask("wanted", failure="slow")
    start = time.monotonic()
    there = tracing.forward(traced, encode(4), logits="last")
    assert time.monotonic() - start > 0.9
    assert same(there, tracing.forward(near["llama-3"].traced, encode(4), logits="last"))


def test_nothing_is_printed(far, capfd, monkeypatch):
    monkeypatch.setattr(CONFIG.APP, "DEBUG", True)
    tracing.forward(far["llama-3"].traced, encode(4), logits="last")
    tracing.generate(far["llama-3"].traced, encode(4), 2, removal())
    assert capfd.readouterr() == ("", "")


def test_models_on_a_server_are_checked_without_their_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "a key")
    toy = toy_checkpoint.install(tmp_path, monkeypatch, remote=True)
    for file in (toy.folder / "models").rglob("*.safetensors"):
        file.unlink()
    report = models.build(toy.name, 0)
    assert {role: found["source"] for role, found in report.items()} == dict.fromkeys(["base", "chat"], "on a server")
    config = toy.folder / "models" / "base" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 2'))
    with pytest.raises(InputError, match="num_hidden_layers is 3 in chat and 2 in base"):
        models.build(toy.name, 0)
