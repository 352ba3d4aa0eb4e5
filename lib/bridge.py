"""Which units write the dominant direction, and whether they are those that other criteria find (ours.bridge).

Owns what each unit contributes to a direction of the residual stream after a block, at the last prompt token: directly,
through its own column, and in total, through everything that reads it; how far tuning changed it; and the units most
like a given one. Scores and groups of units are `unit_scores`' and `units`', intervals `bridge_tables`'.

The direct path is exact: the residual stream adds up what units write, and no norm lies between a unit's column and the
state after a block. So direct effects of all units, as differences between two groups of prompts, sum to the groups'
distance. Only where a family puts a norm behind attention and MLP (Gemma) is a unit's share scaled by that norm's
weight without its division, and sums are not exact.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.spatial.distance import cdist
from torch import Tensor

from lib import families, models, prompts, tracing, unit_scores, units
from lib.behaviour import Edits
from lib.families import UNIT_SITES
from lib.models import LanguageModel
from lib.prompts import Prompt
from lib.tracing import Place
from lib.units import KEY

Values = Mapping[Place, Float[Tensor, "prompt unit"]]
PerUnit = Float[np.ndarray, "unit"]  # in the order of `unit_scores.table`
MATCHES = 5  # units that each unit is compared with


def values(model: LanguageModel, asked: Sequence[Prompt], edits: Edits | None = None, batch: int = 128) -> Values:
    """The value of every unit at the last prompt token, prompts in the order asked; `edits` change the model."""
    places = [(UNIT_SITES[kind], layer) for kind, layer in unit_scores.cells(model)]
    ids = prompts.prompt_ids(model.tokenizer, asked)
    order = prompts.by_length([len(row) for row in ids], batch)
    encodings = [prompts.pad_left([ids[row] for row in rows], model.tokenizer.pad_token_id) for rows in order]
    found = tracing.read_many(model.traced, encodings, places, edits)
    back = torch.tensor([row for rows in order for row in rows]).argsort()
    return {place: found[place][back] for place in places}  # in the order of units, not of the forward pass


def means(found: Values, chosen: Bool[np.ndarray, "prompt"]) -> PerUnit:
    """Mean value of every unit over some of the prompts."""
    rows = torch.from_numpy(chosen)
    return np.concatenate([x[rows].double().mean(0).numpy() for x in found.values()])


# direct ---------------------------------------------------------------------------------------------------------------
def _column(model: LanguageModel, kind: str, layer: int) -> Float[Tensor, "d_model unit"]:
    name = families.unit_slices(model.hf, kind, layer)[-1][0]
    gain = families.output_gain(model.hf, kind, layer).double()
    return model.hf.get_parameter(name).detach().double() * gain[:, None]


def written(model: LanguageModel, along: Float[Tensor, "direction d_model"], block: int) -> Float[
    np.ndarray, "direction unit"
]:  # fmt: skip
    """What a value of 1 of each unit adds to the projection on each direction after a block; 0 for units of later
    blocks."""
    parts = []
    for kind, layer in unit_scores.cells(model):
        column = _column(model, kind, layer)
        part = along.double().to(column.device) @ column
        parts.append((part if layer <= block else torch.zeros_like(part)).cpu())
    return torch.cat(parts, dim=1).numpy()


def column_norms(model: LanguageModel) -> PerUnit:
    """Length of what a value of 1 of each unit adds to the residual stream."""
    return torch.cat([_column(model, *cell).norm(dim=0).cpu() for cell in unit_scores.cells(model)]).numpy()


def summed(found: Values, weights: PerUnit) -> Float[np.ndarray, "prompt"]:
    """For each prompt the weighted sum of all units' values: with `written` as weights, what units add to a
    projection; with some of them at 0, what a group adds."""
    parts = np.split(weights, np.cumsum([x.shape[1] for x in found.values()])[:-1])
    return np.sum([x.double().numpy() @ part for x, part in zip(found.values(), parts, strict=True)], axis=0)


def table(
    model: LanguageModel, found: Values, harmful: Bool[np.ndarray, "prompt"], benign: Bool[np.ndarray, "prompt"],
    along: Float[Tensor, "d_model"], block: int,
) -> pd.DataFrame:  # fmt: skip
    """One row a unit: kind, layer, index; `norm` of its column; `contrast`, its mean value over harmful minus benign
    prompts; `written` as in `written`; `direct`, their product: what the unit adds to the distance of the two groups
    on the direction; `cosine` of its column with the direction, signed by its contrast (0 without a direct path)."""
    norm, contrast = column_norms(model), means(found, harmful) - means(found, benign)
    toward = written(model, along[None] / along.norm(), block)[0]
    cosine = np.divide(toward, norm, out=np.zeros_like(norm), where=norm > 0) * np.sign(contrast)
    columns = {"norm": norm, "contrast": contrast, "written": toward, "direct": contrast * toward, "cosine": cosine}
    return unit_scores.table(model).assign(**columns)


# total ----------------------------------------------------------------------------------------------------------------
def total(
    model: LanguageModel, asked: Sequence[Prompt], ordinary: PerUnit, along: Float[Tensor, "d_model"], block: int,
    batch: int = 64,
) -> PerUnit:  # fmt: skip
    """Mean over prompts of (a unit's value minus `ordinary`) times the gradient of the projection after a block at it,
    at the last prompt token: to first order, what the projection would lose if the unit were as on ordinary prompts.

    Later units at that token pass the effect on; other tokens do not read it.
    """
    places = [(UNIT_SITES[kind], layer) for kind, layer in unit_scores.cells(model)]
    reached = [place for place in places if place[1] <= block]
    ids, sums = prompts.prompt_ids(model.tokenizer, asked), dict.fromkeys(reached, torch.zeros(()).double())
    usual = dict(zip(places, np.split(ordinary, _ends(model)), strict=True))
    objective = partial(_project, direction=along)
    for rows in prompts.by_length([len(row) for row in ids], batch):
        encoding = prompts.pad_left([ids[row] for row in rows], model.tokenizer.pad_token_id)
        pairs = tracing.gradients(model.traced, encoding, reached, objective, of=("resid", block))
        for place, (x, slope) in pairs.items():
            now, steep = (each[:, -1].double().cpu() for each in (x, slope))
            sums[place] = sums[place] + ((now - torch.from_numpy(usual[place])) * steep).sum(0)
    nothing = {place: np.zeros(len(usual[place])) for place in places}
    return np.concatenate([
        (sums[place] / len(asked)).numpy() if place in sums else nothing[place] for place in places
    ])  # fmt: skip


def _project(state: Tensor, direction: Tensor) -> Tensor:
    """[prompt d] -> [prompt], in at least float32; shipped by source, see `tracing`."""
    wide = torch.promote_types(state.dtype, torch.float32)
    return state.to(wide) @ direction.to(wide).to(state.device)


def _ends(model: LanguageModel) -> np.ndarray:
    """Where each kind and layer ends in the order of units, but for the last."""
    sizes = unit_scores.table(model).groupby(["layer", "kind"], sort=False).size()
    return np.cumsum(sizes.to_numpy())[:-1]


# other ways to find units ---------------------------------------------------------------------------------------------
def changed(before: LanguageModel, after: LanguageModel) -> PerUnit:
    """Length of the change of each unit's own weights from one model to the other."""
    models.check_weights(before, after)
    names = unit_scores.weight_names(after)
    gone = {
        name: (after.hf.get_parameter(name).detach() - before.hf.get_parameter(name).detach()).double().square()
        for name in names
    }
    return np.sqrt(unit_scores.of_units(after, gone))


def largest(model: LanguageModel, scores: PerUnit, count: int) -> pd.DataFrame:
    """The `count` units with the largest scores."""
    every = unit_scores.table(model).assign(score=scores)
    return every.sort_values("score", ascending=False, kind="stable").head(count)[KEY]


def inside(table: pd.DataFrame, rows: pd.DataFrame) -> Bool[np.ndarray, "unit"]:
    """Which units of a table are among `rows`."""
    return pd.MultiIndex.from_frame(table[KEY]).isin(pd.MultiIndex.from_frame(rows[KEY]))


# units like others ----------------------------------------------------------------------------------------------------
def alike(table: pd.DataFrame, rows: pd.DataFrame, count: int = MATCHES) -> list[tuple[int, list[int]]]:
    """For each unit of `rows` its number in `table`, and those of the units most like it: `count` of the same kind and
    layer outside `rows`, nearest in the logarithms of column norm and of |contrast|, each in units of its spread there.

    Fewer where there are fewer; a unit may be like several. `table` as `table` makes it.
    """
    chosen, found = inside(table, rows), []
    logs = {name: units.NORMALISATIONS["log_ratio"] for name in ("norm", "contrast")}
    for _, cell in table.assign(mine=chosen, at=np.arange(len(table))).groupby(["kind", "layer"], sort=False):
        size = cell[["norm", "contrast"]].abs()
        log = pd.DataFrame({name: make(size[name]) for name, make in logs.items()})
        place = ((log - log.mean()) / log.std().replace(0, 1.0).fillna(1.0)).to_numpy()
        mine, others = (np.flatnonzero(cell["mine"] == own) for own in (True, False))
        apart = cdist(place[mine], place[others]) if len(mine) else np.zeros((0, len(others)))
        at = cell["at"].to_numpy()
        for row, distance in zip(mine, apart, strict=True):
            nearest = others[np.argsort(distance, kind="stable")[:count]]
            found.append((int(at[row]), at[nearest].tolist()))
    return found
