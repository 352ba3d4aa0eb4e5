"""Models whose weights are on a server (NDIF, or one of your own): what a run there needs, and what it cannot do.

Owns the address and the key, a server's failures in words, and weights that are known here by their shape only. The
trace itself is `tracing`'s, opening a model `models`'s. The key comes from the environment variable `KEY` and nowhere
else: nnsight has it in memory while a job is sent and writes it nowhere, and no message shows it. What a server learns:
the ids of the prompts' tokens, and the source of what runs inside a trace with the path of its file. What it answers is
unpickled, so name only servers you trust.
"""

import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit

import httpx
import nnsight
import torch
import websocket
from nnsight.intervention.backends.remote import RemoteError
from nnsight.modeling import huggingface
from nnsight.schema.config import CONFIG
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM
from zstandard import ZstdError

from lib.errors import InputError

# False: here. "local": here, but shipped as to a server, to rehearse it. True: NDIF. An address: another such server.
Remote = bool | str
REHEARSAL = "local"
KEY = "NDIF_API_KEY"
_PATIENCE = 20.0  # seconds in which a server must answer that it is there
_SILENCE = (httpx.HTTPError, websocket.WebSocketException, OSError)
_NOISE = (ValidationError, json.JSONDecodeError, ZstdError, UnpicklingError, EOFError)  # an empty answer, or another's
_LONGEST = 200  # characters of a server's sentence that is repeated


# the server -----------------------------------------------------------------------------------------------------------
def elsewhere(remote: Remote) -> bool:
    """Whether weights are on a server."""
    return bool(remote) and remote != REHEARSAL


def check(remote: Any) -> Remote:
    """The setting as it is used, or `InputError`: for what is no address, for a key that would travel unprotected, and
    for a key that is missing."""
    if not isinstance(remote, bool | str) or remote == "":
        raise InputError(f"remote is {remote!r}; it must be false, true (NDIF), {REHEARSAL!r} or a server's address")
    if not elsewhere(remote):
        return remote
    _check_address(_address(remote))
    _key()
    return remote if isinstance(remote, bool) else remote.rstrip("/")


def place(remote: Remote) -> str:
    """A server's name for messages and tables, without anything secret."""
    parts = urlsplit(_address(remote))
    return f"the server {parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _address(remote: Remote) -> str:
    return CONFIG.API.HOST if isinstance(remote, bool) else remote  # nnsight's own, or the variable NDIF_HOST


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # a port that is none
        known = False
    if not known or parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "remote names no server; give true for NDIF, or an address such as https://host:port, without a user name, "
            f"and put the key in the environment variable {KEY}"
        )
    if parts.scheme == "http" and not _loopback(str(parts.hostname)):
        raise InputError(f"http would send the key to {parts.hostname} for all to read; give its https address")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key() -> str:
    if not (key := os.environ.get(KEY, "").strip()):
        raise InputError(
            f"a model on a server needs a key in the environment variable {KEY}, which is not set; get one at "
            "login.ndif.us (for a server of your own that asks for none, any word will do), set it and start again"
        )
    return key


@contextmanager
def session(remote: Remote) -> Iterator[None]:
    """Around the trace of one job: the key is in nnsight's memory, nothing is printed, failures become `InputError`s.

    Without a server it does nothing.
    """
    if not elsewhere(remote):
        yield
        return
    key, before, patience = _key(), (CONFIG.API, CONFIG.APP), websocket.getdefaulttimeout()
    CONFIG.API = CONFIG.API.model_copy(update={"APIKEY": key})
    CONFIG.APP = CONFIG.APP.model_copy(update={"REMOTE_LOGGING": False, "DEBUG": False})  # both print
    websocket.setdefaulttimeout(_PATIENCE)  # for connecting; while a job runs, nnsight waits on
    try:
        yield
    except (RemoteError, *_SILENCE, *_NOISE) as problem:
        raise InputError(_in_words(problem, place(remote), key)) from None
    finally:
        CONFIG.API, CONFIG.APP = before
        websocket.setdefaulttimeout(patience)


# failures in words ----------------------------------------------------------------------------------------------------
def _in_words(problem: Exception, server: str, key: str) -> str:
    status = _status(problem)
    code = f"HTTP {status}" if status else type(problem).__name__
    if status in (401, 403):
        return f"{server} does not accept the key, or not for this model ({code}); check the environment variable {KEY}"
    if isinstance(problem, _NOISE):
        return (
            f"{server} answers what cannot be read ({code}): it broke off, is no such server, or has another "
            f"nnsight than {nnsight.__version__}; try again, then compare versions (nnsight.compare())"
        )
    if not isinstance(problem, RemoteError) or (not status and isinstance(problem.__cause__, httpx.HTTPError)):
        return (
            f"no answer from {server} ({code}); check that its address is right, that it is up (NDIF: "
            "nnsight.net/status) and that the network reaches it"
        )
    said = str(problem).replace(key, "***").removeprefix("Failed to send request: ")
    if status:
        return f"{server} did not take the job ({code}){_sentence(said)}; check that it has this model, by this name"
    return _job(said, server)


def _status(problem: Exception) -> int | None:
    if isinstance(problem, websocket.WebSocketBadStatusException):
        return problem.status_code
    caused = problem if isinstance(problem, httpx.HTTPStatusError) else problem.__cause__
    return caused.response.status_code if isinstance(caused, httpx.HTTPStatusError) else None


def _job(said: str, server: str) -> str:
    """What a server said of a job that failed. The text of an exception may quote a prompt, so only its kind is
    repeated; our own `InputError`s quote none."""
    own = re.search(r"^(?:[\w.]+\.)?InputError: (.+)\Z", said.strip(), re.MULTILINE)
    if own:
        return own[1]
    kinds = re.findall(r"\b[A-Za-z_.]+(?:Error|Exception|Interrupt)\b", said)
    why = f" ({kinds[-1]})" if kinds else _sentence(said)
    return (
        f"the job failed on {server}{why}; ask fewer prompts at a time if memory ran out, or run the same on a small "
        f"model with remote {REHEARSAL!r}, which shows why"
    )


def _sentence(said: str) -> str:
    """A server's own words, if they are one plain sentence that quotes nothing."""
    plain = said.strip() and len(said) <= _LONGEST and not re.search(r"[\"'`“”\n]", said.strip())
    return f": {said.strip().rstrip('.')}" if plain else ""


# weights that are not here --------------------------------------------------------------------------------------------
class Absent(Tensor):
    """A weight on a server: it has a shape and a type, and whatever needs its values is refused."""

    owner: str

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KNOWN:
            return super().__torch_function__(func, types, args, kwargs or {})
        raise _absent(next(x.owner for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, cls)))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"a weight of shape {tuple(self.shape)} on a server"


_KNOWN = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_meta")}
_KNOWN |= {getattr(Tensor, name) for name in ("numel", "size", "dim", "__len__", "is_floating_point")}


def _absent(owner: str) -> InputError:
    return InputError(
        f"the weights of {owner} are on the server; this needs them here: name a checkpoint small enough to open, or "
        "leave this part out"
    )


def skeleton(config: Any, name: str) -> Any:
    """The modules of a causal LM without its weights, which are on a server that knows the model as `name`."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    made: dict[Tensor, Tensor] = {}  # tied weights stay tied
    for module in model.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = made.setdefault(weight, _stand_in(weight, name))
    model.name_or_path = name
    # nnsight would ask the hub how the name is spelt there, before the first job
    huggingface._ID_CACHE[name] = name
    return model.eval()


def _stand_in(weight: Tensor, owner: str) -> Any:
    found = torch.Tensor._make_subclass(Absent, weight.detach(), False)
    found.owner, found._is_param = owner, True  # type: ignore[attr-defined]  # which is how torch knows a parameter
    return found


def need_weights(model: Any) -> None:
    """Refuse a model (its Hugging Face module) whose weights are on a server, before any work is done."""
    weight = next(model.parameters())
    if weight.is_meta:
        raise _absent(getattr(weight, "owner", type(model).__name__))
