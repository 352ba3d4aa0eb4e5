"""A model, the shift that made it, and the block in which its dominant direction is read: what ours.bridge is about.

Owns the choice of that block (the rule of notebook 08), the sign of components and removing C1. Components are
`feature_directions`', which units write them is `bridge`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import behaviour, directions, edits, feature_directions, residual
from lib.behaviour import Edits
from lib.edits import Positions
from lib.errors import InputError
from lib.models import LanguageModel
from lib.one_position import Maker
from lib.prompts import PromptSet


@dataclass(frozen=True)
class Aim:
    """`components` of the uncentred shift by block, each turned so that harmful fit prompts lie above benign ones;
    `block` is where C1 is read; `auc` how well each block's C1 tells what the model refuses; `benign` mean states."""

    model: LanguageModel
    components: tuple[Float[Tensor, "component d_model"], ...]
    block: int
    auc: Float[np.ndarray, "layer"]
    benign: Float[Tensor, "layer d_model"]

    def first(self, count: int) -> Float[Tensor, "component d_model"]:
        """The first components of the block, as many as there are."""
        return self.components[self.block][:count]

    @property
    def c1(self) -> Float[Tensor, "d_model"]:
        return self.components[self.block][0]

    def removal(self, blocks: Sequence[int]) -> Maker:
        """Put the coordinate along each block's own C1 where benign fit prompts have it on average."""
        return self.replacing([self.components[block][0] for block in blocks], blocks)

    def replacing(self, along: Sequence[Float[Tensor, "d_model"]], blocks: Sequence[int]) -> Maker:
        """The same along other directions, one a block."""
        targets = [float(self.benign[block] @ one) for one, block in zip(along, blocks, strict=True)]
        return partial(_replace, tuple(along), tuple(blocks), tuple(targets))


def aim(before: LanguageModel, after: LanguageModel, fit: PromptSet) -> Aim:
    """The shift `before` -> `after` on these prompts. C1 is read in the block of the later half in which it best tells
    what `after` refuses among them; the first of equals. `InputError` without harmful and benign prompts."""
    residual.check_pair(before, after)
    kinds = np.array([prompt.kind for prompt in fit])
    harmful, benign = (torch.from_numpy(kinds == kind) for kind in ("harmful", "benign"))
    if not harmful.any() or not benign.any():
        raise InputError("a direction is turned towards harmful prompts and needs benign ones too; choose both")
    start, end = (residual.activations(model, fit.prompts).double() for model in (before, after))
    above = end[:, harmful].mean(1) - end[:, benign].mean(1)
    found = [
        space.directions * torch.where(space.directions @ gap < 0, -1.0, 1.0)[:, None]
        for space, gap in zip(feature_directions.components(start, end), above, strict=True)
    ]
    refused = behaviour.first_tokens(after, fit.prompts)["refused"].to_numpy()
    auc = np.array([directions.sign_free_auc(x, rows[:1], refused)[0] for x, rows in zip(end, found, strict=True)])
    late = list(residual.later_half(after.layers))
    return Aim(after, tuple(found), late[int(auc[late].argmax())], auc, end[:, benign].mean(1))


def _replace(
    along: tuple[Tensor, ...], blocks: tuple[int, ...], targets: tuple[float, ...], positions: Positions
) -> Edits:
    return {
        ("resid", block): edits.ablate(one, target, positions=positions)
        for one, block, target in zip(along, blocks, targets, strict=True)
    }
