"""A second device made of Python, and what runs on it: `python -m tests.second_device` prints what failed as JSON.

Its tensors are the CPU's behind a mask: they say they are elsewhere and refuse to be mixed with tensors of the CPU, as
those of a GPU do. So code that forgets to move a tensor fails here without a GPU. It runs in a process of its own,
because torch can be told of a new kind of device once and keeps it.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "other"
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")  # a GPU takes indices that are on the CPU
MOVING = ("_to_copy", "copy_")


class Elsewhere(torch.Tensor):
    """A tensor of the second device."""

    @staticmethod
    def __new__(cls, own: torch.Tensor) -> "Elsewhere":
        return torch.Tensor._make_wrapper_subclass(
            cls, own.shape, own.stride(), own.storage_offset(), dtype=own.dtype, device=torch.device(NAME, 0)
        )

    def __init__(self, own: torch.Tensor) -> None:
        self.own = own

    def __repr__(self) -> str:
        return f"Elsewhere({self.own})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.partition("::")[2]
    tensors = [x for x in tree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]  # numbers may be mixed
    if here and len(here) < len(tensors) and name not in (*INDEXED, *MOVING):
        raise RuntimeError(f"{func} was given tensors on two devices, of shapes {[tuple(x.shape) for x in tensors]}")

    def bare(x: Any) -> Any:
        return x.own if isinstance(x, Elsewhere) else torch.device("cpu") if isinstance(x, torch.device) else x

    found = func(*tree.tree_map(bare, args), **tree.tree_map(bare, kwargs))
    to = [torch.device(x).type for x in (*args[1:], kwargs.get("device")) if isinstance(x, torch.device)]
    if to == ["cpu"] or (name == "copy_" and not isinstance(args[0], Elsewhere)):
        return found
    found = tree.tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, found)
    # Not in inference mode: there it sees operations before they are split into those that it knows.
    return found if torch.is_inference_mode_enabled() else return_and_correct_aliasing(func, args, kwargs, found)


class Placing(TorchDispatchMode):
    """Sends what is to be made on the second device there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if to is not None and torch.device(to).type == NAME:
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


def prepare() -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    _setup_privateuseone_for_python_backend(NAME)


# what runs on it ------------------------------------------------------------------------------------------------------
def checks() -> dict[str, Callable[[Any], Any]]:
    """Functions of a model whose results must be the same on both devices."""
    from lib import activation_store, freezing, prompt_sets, relevance, residual, tracing, unit_scores, units

    examples = prompt_sets.calibration("tiny", 0)["safety"][:5]
    asked = [example.prompt for example in examples]

    def stored(model: Any) -> list[torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            store = activation_store.write(
                Path(folder) / "s", model, asked, model.traced.every("resid"), "all", batch=2
            )
            return [store.read(place) for place in store.places]

    def explained(rule: Any) -> Callable[[Any], Any]:
        def tokens(model: Any) -> list[torch.Tensor]:
            found = relevance.token_relevance(model, asked, 2, torch.eye(model.width)[:2], rule=rule)
            return [one.tokens for one in found]

        return tokens

    def some(model: Any) -> Any:
        return unit_scores.table(model).iloc[::7]

    def muted(model: Any) -> torch.Tensor:
        encoding = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
        edits = units.edits(some(model))
        return tracing.forward(model.traced, encoding, [("resid", 2)], edits).activations["resid", 2]

    return {
        "residual.activations": lambda model: residual.activations(model, asked, batch=2),
        "activation_store": stored,
        "unit_scores.calibrate": lambda model: [
            raw["safety"].to_numpy()
            for raw in unit_scores.calibrate(model, {"safety": examples, "utility": examples}, batch=2).raw.values()
        ],
        "unit_scores.weight_taylor": lambda model: list(unit_scores.weight_taylor(model, examples, 2).values()),
        "freezing.masks": lambda model: [mask.float() for mask in freezing.masks(model, some(model)).values()],
        "units.edits": muted,
        "units.without": lambda model: list(units.without(model, some(model)).hf.parameters()),
        "relevance attnlrp": explained("attnlrp"),
        "relevance conservative": explained("conservative"),
    }


def difference(one: Any, other: Any) -> float:
    """Largest difference as a share of the largest value."""
    pairs = [(one, other)] if not isinstance(one, list) else list(zip(one, other, strict=True))
    flat = [(torch.as_tensor(a).detach().cpu().double(), torch.as_tensor(b).detach().double()) for a, b in pairs]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in flat)


def main() -> None:
    prepare()
    from tests import tiny_models

    moved = tiny_models.speaking("llama-gqa")
    still = replace(moved, name="still", hf=copy.deepcopy(moved.hf))
    found: dict[str, Any] = {}
    with Placing():
        moved.hf.to(NAME)
        weight = next(moved.hf.parameters())
        try:
            found["mixing is refused"] = f"accepted: {weight + torch.ones(weight.shape)}"
        except RuntimeError as problem:
            found["mixing is refused"] = 0.0 if "on two devices" in str(problem) else str(problem)
        for name, check in checks().items():
            try:
                found[name] = difference(check(moved), check(still))
            except Exception as problem:  # whatever it is, the test shows it
                found[name] = f"{type(problem).__name__}: {problem}"[:500]
        found["wrapping left the model there"] = 0.0 if moved.hf.device.type == NAME else str(moved.hf.device)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
