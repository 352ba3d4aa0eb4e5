"""Residual spaces of models too large for memory: `residual`'s functions, a block at a time, from two stores.

Owns the passage from stores to blocks and nothing else: the linear algebra is `residual`'s, called for one block with
what `activation_store` reads, so that memory holds one block whatever the number of layers. Numbers are those of
`residual` on the same activations.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib import activation_store, residual
from lib.activation_store import Store
from lib.errors import InputError
from lib.residual import Errors, Space


def blocks(store: Store) -> list[int]:
    """The blocks whose residual stream a store holds, in the order stored."""
    return [layer for site, layer in store.places if site == "resid"]


def states(store: Store, layer: int) -> Float[Tensor, "row d_model"]:
    """The residual stream after a block, float32 as `residual.activations` gives it."""
    return store.read(("resid", layer)).float()


def shifts(before: Store, after: Store) -> Iterator[tuple[int, Float[Tensor, "row d_model"]]]:
    """(block, shift after it), one block in memory at a time. `InputError` for stores that do not belong together."""
    _check(before, after)
    return ((layer, states(after, layer) - states(before, layer)) for layer in blocks(before))


def spaces(before: Store, after: Store, centred: bool) -> Iterator[tuple[int, Space]]:
    """(block, `residual.space` of its shift)."""
    return ((layer, residual.space(shift, centred)) for layer, shift in shifts(before, after))


def energies(before: Store, after: Store, centred: bool) -> Float[Tensor, "layer component"]:
    """`residual.energies` of every block's shift; `residual.effective_rank` of a row is that block's rank."""
    return torch.cat([residual.energies(shift[None], centred) for _, shift in shifts(before, after)])


def map_errors(
    before: Store, after: Store, before_test: Store, after_test: Store, shuffle: Sequence[int] | Int[np.ndarray, "row"]
) -> Errors:
    """`residual.map_errors` of every block: maps fitted on the first two stores, judged on the others."""
    _check(before, after)
    _check(before_test, after_test)
    if blocks(before) != blocks(before_test):
        raise InputError("the stores to fit on and to test on hold different blocks; write both at the same places")
    found = []
    for layer in blocks(before):
        x, y, x_test, y_test = (states(store, layer)[None] for store in (before, after, before_test, after_test))
        found.append(residual.map_errors(x, y, x_test, y_test, shuffle))
    return {
        name: (torch.cat([errors[name][0] for errors in found]), torch.cat([errors[name][1] for errors in found]))
        for name in found[0]
    }


def _check(before: Store, after: Store) -> None:
    activation_store.check_pair(before, after)
    if not blocks(before):
        raise InputError(f"the store {before.folder.name} holds no residual stream; write it at traced.every('resid')")
