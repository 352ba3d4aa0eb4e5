"""The safety residual space of HD: how tuning moves activations, whether that is an affine map, and of what rank.

Owns reading activations before and after, the affine map, the SVD of the shift on its small Gram side, effective rank
and component coordinates. It decides nothing (see `stats`) and draws nothing. Linear algebra is in float64. Layers are
blocks from 0; HD's "L14" is hidden state 14, our block 13. Components are rows of `directions`, so `L5-C1` is
`spaces[5].directions[0]`; their sign is arbitrary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib import batches, models, precision, prompts, tracing
from lib.edits import Edit
from lib.errors import InputError
from lib.models import LanguageModel
from lib.prompts import Prompt, PromptSet
from lib.tracing import Place

_EPSILON = torch.finfo(torch.float64).eps
SHARES = (0.4, 0.6, 0.7, 0.8, 0.9)  # tau of HD Fig. 2


def activations(
    model: LanguageModel,
    asked: Sequence[Prompt],
    batch: int = 128,
    layers: Sequence[int] | None = None,
    edits: Mapping[Place, Edit] | None = None,
) -> Float[Tensor, "layer prompt d_model"]:
    """Residual stream after each block at the last prompt token, the one that predicts the first word of the answer.

    The last block is before the final norm (HD's released code joins a state after it to the curves; we do not).
    `layers` names the blocks to read, in the order wanted; the model does not run beyond the last. `edits` change it.
    Float32 on the CPU; for more than fits there, see `activation_store`. Batches get smaller when memory runs out.
    """
    ids = prompts.prompt_ids(model.tokenizer, asked)
    lengths = [len(row) for row in ids]
    reads = model.traced.every("resid") if layers is None else [("resid", layer) for layer in layers]

    def read(rows: list[int]) -> list[Tensor]:
        encoding = prompts.pad_left([ids[row] for row in rows], model.tokenizer.pad_token_id)
        with torch.inference_mode():
            found = tracing.read_many(model.traced, [encoding], reads, edits)
        return [found[place] for place in reads]

    # The longest first: what is too long fails at once.
    parts = list(batches.halving(reversed(prompts.by_length(lengths, batch)), lengths, read))
    if not parts:
        raise InputError("there are no prompts to read; choose a set with at least one")
    back = torch.tensor([row for rows, _ in parts for row in rows]).argsort()
    return torch.stack([torch.cat(states)[back] for states in zip(*(found for _, found in parts), strict=True)])


def check_pair(before: LanguageModel, after: LanguageModel) -> None:
    """Refuse two models whose activations cannot be subtracted."""
    for what in ("layers", "width"):
        one, other = getattr(before, what), getattr(after, what)
        if one != other:
            raise InputError(f"{before.name} has {what} {one} and {after.name} {other}; compare models of one shape")
    if before.tokenizer.get_vocab() != after.tokenizer.get_vocab():
        raise InputError(
            f"{before.name} and {after.name} have different tokenizers, so they do not read the same prompts"
        )


# affine map ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AffineMap:
    """x -> x W + b, fitted by least squares. `interpolates`: as many unknowns as prompts, so the fit says nothing."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, "d_model"]
    interpolates: bool

    def __call__(self, x: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt d_model"]:
        return x.double() @ self.weight + self.bias


def fit_affine(before: Float[Tensor, "prompt d_model"], after: Float[Tensor, "prompt d_model"]) -> AffineMap:
    """Least-squares affine map from activations before to activations after tuning (HD definition 3.1).

    With no more prompts than dimensions the smallest such map is returned and passes through every point: its error on
    the same prompts is zero whatever tuning did. HD's released code is in that case (700 prompts, 4,096 dimensions).
    """
    x, y = before.double(), after.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    weight = torch.linalg.lstsq(x - mean_x, y - mean_y, driver="gelsd").solution
    return AffineMap(weight, mean_y - mean_x @ weight, interpolates=len(x) <= x.shape[1] + 1)


def fit_offset(before: Float[Tensor, "prompt d_model"], after: Float[Tensor, "prompt d_model"]) -> AffineMap:
    """The constant shift, x -> x + b: what is left of the affine map without its matrix."""
    width = before.shape[1]
    offset = (after.double() - before.double()).mean(0)
    return AffineMap(torch.eye(width, dtype=torch.float64), offset, interpolates=len(before) <= 1)


def relative_errors(
    fitted: AffineMap, before: Float[Tensor, "prompt d_model"], after: Float[Tensor, "prompt d_model"]
) -> tuple[Float[Tensor, "prompt"], Float[Tensor, "prompt"]]:
    """Squared error of the map and squared norm of the shift, a value a prompt. Their sums' ratio is the error
    relative to the shift: 0 is perfect, 1 as bad as predicting no change. Use prompts the map was not fitted on.
    """
    error = (fitted(before) - after.double()).square().sum(1)
    return error, (after.double() - before.double()).square().sum(1)


Errors = dict[str, tuple[Float[Tensor, "layer prompt"], Float[Tensor, "layer prompt"]]]


def map_errors(
    before: Float[Tensor, "layer prompt d_model"],
    after: Float[Tensor, "layer prompt d_model"],
    before_test: Float[Tensor, "layer prompt d_model"],
    after_test: Float[Tensor, "layer prompt d_model"],
    shuffle: Sequence[int] | Int[np.ndarray, "prompt"],
) -> Errors:
    """`relative_errors` on test prompts, in every block, of three maps fitted on the first two arguments: `affine`,
    `constant`, and as a control `shuffled`, affine but fitted with prompts' after-states in the order `shuffle`."""
    order = torch.as_tensor(shuffle)
    fits = {
        "affine": lambda x, y: fit_affine(x, y),
        "constant": lambda x, y: fit_offset(x, y),
        "shuffled": lambda x, y: fit_affine(x, y[order]),
    }
    found = {}
    for name, fit in fits.items():
        pairs = [
            relative_errors(fit(x, y), x_test, y_test)
            for x, y, x_test, y_test in zip(before, after, before_test, after_test, strict=True)
        ]
        found[name] = torch.stack([e for e, _ in pairs]), torch.stack([m for _, m in pairs])
    return found


# spectrum ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Space:
    """Right singular vectors of a shift. `directions` unit rows, most energy first; `mean` was subtracted (0 if not).

    `energy` are squared singular values, descending, summing to the squared norm of the (centred) shift.
    """

    directions: Float[Tensor, "component d_model"]
    energy: Float[Tensor, "component"]
    mean: Float[Tensor, "d_model"]

    def coordinates(self, x: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt component"]:
        """Projections of activations (not of shifts) on the components."""
        return x.double() @ self.directions.T

    def rank(self, share: float) -> int:
        return effective_rank(self.energy, share)


def _noise(shifts: Float[Tensor, "layer prompt d_model"]) -> Float[Tensor, "layer"]:
    """Energy that rounding alone can leave in a block's shift once its mean is subtracted."""
    return shifts.square().sum((1, 2)) * (10 * _EPSILON) ** 2


def space(shift: Float[Tensor, "prompt d_model"], centred: bool) -> Space:
    """The SVD of a shift, computed on the smaller of its two Gram matrices.

    Uncentred as in HD, where a constant offset shows as a first component; centred for what varies between prompts.
    Directions whose energy is below float64 noise are left out, so a zero shift has none.
    """
    x = shift.double()
    mean = x.mean(0) if centred else torch.zeros(x.shape[1], dtype=torch.float64)
    noise = _noise(x[None])[0]
    x = x - mean
    tall = x.shape[0] >= x.shape[1]
    energy, vectors = torch.linalg.eigh(x.T @ x if tall else x @ x.T)
    energy, vectors = energy.flip(0), vectors.flip(1)
    kept = int((energy > noise + max(x.shape) * _EPSILON * energy[0]).sum())
    energy, vectors = energy[:kept], vectors[:, :kept]
    directions = vectors.T if tall else (x.T @ vectors / energy.sqrt()).T
    return Space(directions, energy, mean)


def effective_rank(energy: Float[Tensor, "component"], share: float) -> int:
    """How many components hold `share` of the energy (HD section 4, k(tau)).

    `energy` are squared singular values, descending, any scale; `share` in (0, 1]. No energy has rank 0. The released
    code takes percent and never centres.
    """
    if not 0 < share <= 1:
        raise InputError(f"share {share} is outside (0, 1]; HD uses {SHARES}")
    total = energy.double().sum()
    if len(energy) == 0 or total <= 0:
        return 0
    reached = energy.double().cumsum(0) < share * total * (1 - 1e-12)
    return min(int(reached.sum()) + 1, len(energy))


def energies(shifts: Float[Tensor, "layer prompt d_model"], centred: bool) -> Float[Tensor, "layer component"]:
    """Squared singular values of every block's shift, descending, without the directions: cheap enough to resample."""
    x = shifts.double()
    noise = _noise(x)
    x = x - x.mean(1, keepdim=True) if centred else x
    gram = x.mT @ x if x.shape[1] >= x.shape[2] else x @ x.mT
    energy = torch.linalg.eigvalsh(gram).flip(-1)
    return torch.where(energy > noise[:, None], energy, 0.0)


def ranks(shifts: Float[Tensor, "layer prompt d_model"], share: float, centred: bool) -> list[int]:
    """Effective rank of the shift in every block."""
    return [effective_rank(energy, share) for energy in energies(shifts, centred)]


def ranks_by_share(shifts: Float[Tensor, "layer prompt d_model"]) -> pd.DataFrame:
    """Effective ranks for every share of HD Fig. 2, uncentred and centred: rows (centred, share), columns blocks."""
    spectra = {centred: energies(shifts, centred) for centred in (False, True)}
    found = {
        ("centred" if centred else "as published", share): [effective_rank(energy, share) for energy in spectrum]
        for centred, spectrum in spectra.items()
        for share in SHARES
    }
    return pd.DataFrame(found).T.rename_axis(index=["shift", "share"], columns="block")


def random_shift(like: Float[Tensor, "layer prompt d_model"], seed: int) -> Float[Tensor, "layer prompt d_model"]:
    """A control with every prompt's shift replaced by a random direction of the same norm."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)
    return noise * like.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)


def match_norm(
    before: LanguageModel, after: LanguageModel, asked: Sequence[Prompt], target: float, steps: int = 10
) -> tuple[Float[Tensor, "layer prompt d_model"], float] | None:
    """The shift of the model between `before` and `after` in weight space whose mean squared norm is `target`.

    Found by bisection on the step alpha in (0, 1]; returns the shift and alpha. None when even `after` moves less: a
    model beyond it was never trained. 16-bit models are in float32 meanwhile, because steps between two 16-bit weights
    would be rounded to one of them.
    """
    with precision.in_float32(before.hf, after.hf):
        return _match_norm(before, after, asked, target, steps)


def _match_norm(
    before: LanguageModel, after: LanguageModel, asked: Sequence[Prompt], target: float, steps: int
) -> tuple[Float[Tensor, "layer prompt d_model"], float] | None:
    start = activations(before, asked)

    def at(alpha: float) -> tuple[Tensor, float]:
        moved = activations(models.between(before, after, alpha), asked) - start
        return moved, float(moved.double().square().sum(2).mean())

    low, high = 0.0, 1.0
    if at(high)[1] < target:
        return None
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[1] > target else (middle, high)
    return at(high)[0], high


def map_points(
    axes: Space, states: Float[Tensor, "prompt d_model"], asked: PromptSet, outcomes: pd.DataFrame
) -> pd.DataFrame:
    """One row a prompt for a picture: its first two coordinates, kind, style and what the model did."""
    places = axes.coordinates(states)
    found = outcomes[["refused", "exact", "wrong"]].idxmax(axis=1)
    kept = asked.table()[["kind", "style"]]
    return kept.assign(first=places[:, 0].numpy(), second=places[:, 1].numpy(), outcome=found.to_numpy())


# parts of a model, as the registry counts them ------------------------------------------------------------------------
def first_third(layers: int) -> range:
    """Blocks before ceil(L/3)."""
    return range(-(-layers // 3))


def last_third(layers: int) -> range:
    """Blocks from floor(2L/3) on."""
    return range(2 * layers // 3, layers)


def later_half(layers: int) -> range:
    """Blocks from L/2 on: of an odd number, the middle one is left out."""
    return range(-(-layers // 2), layers)
