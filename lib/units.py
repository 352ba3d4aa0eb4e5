"""Units, from score to group to edit: three pure functions over a table with one row a unit.

Owns how raw scores on two sets are made comparable, SSAH's four groups, and taking units away, in a running model or in
its weights. How raw scores are measured is in `unit_scores`; whether removal did what a claim says in `unit_tables`.
A *unit* is an MLP neuron (its gate and up rows, its down column) or an attention channel (its value row, its output
column); the table's key is (kind, layer, index).

    raw = unit_scores.calibrate(chat, sets).raw["variance", "all"]
    table = units.groups(units.score(raw, "z"), ru=0.148, scu=0.013, ucu=0.133)
    behaviour.measure(chat, cells, units.edits(table[table["group"] == "scu"]))
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib import edits as editing
from lib import families, unit_scores
from lib.edits import Edit
from lib.errors import InputError, unknown
from lib.families import UNIT_SITES
from lib.models import LanguageModel
from lib.tracing import Place

KEY = ["kind", "layer", "index"]
GROUPS = ("ru", "scu", "ucu", "cu")  # in the order they are taken
REMOVALS = ("zero", "mean", "resample")
_FLOOR = 1e-6  # of the mean: log ratios of units that are silent on one set stay finite


# score ----------------------------------------------------------------------------------------------------------------
def _z(x: pd.Series) -> pd.Series:
    return (x - x.mean()) / (x.std() or 1.0)


def _share(x: pd.Series) -> pd.Series:
    return x / (x.sum() or 1.0)


def _log(x: pd.Series) -> pd.Series:
    return np.log((x / (x.mean() or 1.0)).clip(lower=_FLOOR))


NORMALISATIONS: dict[str, Callable[[pd.Series], pd.Series]] = {
    "z": _z,  # standard score, as FLAP makes layers comparable
    "share": _share,
    "rank": lambda x: x.rank(pct=True),
    "log_ratio": _log,  # I_S - I_U becomes the logarithm of their ratio
    "raw": lambda x: x,
}
NEED_POSITIVE = ("share", "log_ratio")


def score(raw: pd.DataFrame, normalisation: str = "z") -> pd.DataFrame:
    """`raw` with safety (I_S) and utility (I_U) each normalised within its kind and layer, to be comparable.

    SSAH does not say how the two are made comparable; every way here is a choice. Cells in which all units score alike
    become 0 (z) or stay as they are. Raises `InputError` for NaN, and for signed scores where a sum is divided by.
    """
    if normalisation not in NORMALISATIONS:
        raise unknown("normalisation", normalisation, NORMALISATIONS)
    _checked(raw, ["safety", "utility"])
    if normalisation in NEED_POSITIVE and bool((raw[["safety", "utility"]] < 0).any(axis=None)):
        raise InputError(f"{normalisation} needs scores of at least 0, and these are signed; use z, rank or raw")
    cells = raw.groupby(["kind", "layer"], sort=False)
    return raw.assign(**{name: cells[name].transform(NORMALISATIONS[normalisation]) for name in ("safety", "utility")})


def _checked(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in (*KEY, *columns) if name not in table]
    if missing:
        raise InputError(f"the table of units lacks {', '.join(missing)}; make it with unit_scores.calibrate")
    if bool(table.duplicated(KEY).any()):
        raise InputError("the table names a unit twice; pass the units of one model, each once")
    finite = np.isfinite(table[list(columns)].to_numpy(dtype=float)).all(axis=1)
    if not finite.all():
        bad = ", ".join(map(str, table[KEY][~finite].iloc[0]))
        raise InputError(f"the scores of unit {bad} are not finite; look for overflow or an empty calibration set")


# groups ---------------------------------------------------------------------------------------------------------------
def groups(table: pd.DataFrame, *, ru: float = 0.0, scu: float = 0.0, ucu: float = 0.0) -> pd.DataFrame:
    """`table` with a column `group`: a partition of all units, each share a share of all of them.

    In the paper's order: RU have the smallest I_S + I_U; of the rest, SCU the largest I_S - I_U; of the rest, UCU the
    smallest; CU are what is left. The ranking is over the whole model (the paper does not say). A share above 0 is at
    least one unit; ties go to the earlier row.
    """
    shares = {"ru": ru, "scu": scu, "ucu": ucu}
    if any(not 0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1:
        given = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise InputError(f"shares of groups must be from 0 to 1 and not overlap, not {given}; they sum to at most 1")
    _checked(table, ["safety", "utility"])
    if "group" in table:
        table = table.drop(columns="group")
    keys = {"ru": table["safety"] + table["utility"], "scu": table["utility"] - table["safety"]}
    keys["ucu"] = -keys["scu"]
    group = pd.Series("cu", index=table.index)
    for name, share in shares.items():
        left = keys[name][group == "cu"].sort_values(kind="stable")
        group[left.index[: count(share, len(table))]] = name
    return table.assign(group=group)


def count(share: float, units: int) -> int:
    """How many units a share is: rounded, at least one if it is above 0."""
    return max(round(share * units), 1) if share > 0 else 0


def top_cu(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """The complex units with the largest I_S, `share` of all units: those SSAH freezes beside SCU.

    The paper calls them top-performing and does not give the key; I_S is our choice.
    """
    _checked(table, ["safety"])
    if "group" not in table:
        raise InputError("the table has no groups yet; pass it through units.groups")
    complex_units, wanted = table[table["group"] == "cu"], count(share, len(table))
    if not 0 <= share <= 1 or wanted > len(complex_units):
        raise InputError(
            f"share {share:g} is {wanted} units, but there are {len(complex_units)} complex ones; lower it"
        )
    return complex_units.sort_values("safety", ascending=False, kind="stable").head(wanted)


def matched(table: pd.DataFrame, rows: pd.DataFrame, seed: int | Sequence[int]) -> pd.DataFrame:
    """Random units, as many in every kind and layer as `rows` has there, drawn from those of `table` outside `rows`.

    Where fewer are left outside than `rows` has, the missing ones are drawn from `rows`: the number stays equal, and
    the control can only come out nearer to the group it is compared with.
    """
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    inside = pd.MultiIndex.from_frame(table[KEY]).isin(pd.MultiIndex.from_frame(rows[KEY]))
    if inside.sum() < len(rows):
        raise InputError("some of the units are not in the table; draw controls from the model's own table")
    for _, cell in table[["kind", "layer"]].assign(inside=inside).groupby(["kind", "layer"], sort=False):
        mine, others = (cell.index[cell["inside"] == own].to_numpy() for own in (True, False))
        outside = generator.choice(others, min(len(mine), len(others)), replace=False)
        chosen += [*outside, *generator.choice(mine, len(mine) - len(outside), replace=False)]
    return table.loc[chosen]


# edit -----------------------------------------------------------------------------------------------------------------
def edits(
    rows: pd.DataFrame, how: str = "zero", pool: Mapping[Place, Float[Tensor, "row unit"]] | None = None
) -> dict[Place, Edit]:
    """Edits that take the units of `rows` away in a running model.

    `zero` is the paper's; `mean` puts in the column `mean` (FLAP's compensation); `resample` values from `pool`, see
    `edits.resample`. No units, no edits.
    """
    if how not in REMOVALS:
        raise unknown("removal", how, REMOVALS)
    if (pool is None) == (how == "resample"):
        raise InputError(
            f"removal {how} {'needs a pool: pass that of the calibration' if pool is None else 'uses no pool'}"
        )
    _checked(rows, ["mean"] if how == "mean" else [])
    found: dict[Place, Edit] = {}
    for (kind, layer), part in _cells(rows):
        units = torch.tensor(part["index"].to_numpy())
        place = UNIT_SITES[kind], layer
        if how == "mean":
            found[place] = editing.replace(units, torch.tensor(part["mean"].to_numpy()))
        else:
            found[place] = editing.mute(units) if pool is None else editing.resample(units, pool[place][:, units])
    return found


def _cells(rows: pd.DataFrame) -> list[tuple[tuple[str, int], pd.DataFrame]]:
    """The rows of each (kind, layer)."""
    found = []
    for _, part in rows.groupby(["kind", "layer"], sort=False):
        found.append(((str(part["kind"].iloc[0]), int(part["layer"].iloc[0])), part))
    return found


def without(model: LanguageModel, rows: pd.DataFrame, how: str = "zero") -> LanguageModel:
    """A copy of the model with the units of `rows` taken out of its weights: their writing columns are 0.

    With `mean`, what the units wrote on average becomes a bias, as in FLAP. Under GQA value rows are left as they are:
    other channels read them.
    """
    if how not in ("zero", "mean"):
        raise unknown("removal from weights", how, ("zero", "mean"))
    check(rows, model)
    hf = copy.deepcopy(model.hf)
    for (kind, layer), part in _cells(rows):
        name, _, _ = families.unit_slices(hf, kind, layer)[-1]
        module, units = hf.get_submodule(name.removesuffix(".weight")), torch.tensor(part["index"].to_numpy())
        with torch.no_grad():
            if how == "mean":
                lost = module.weight[:, units].double() @ torch.tensor(part["mean"].to_numpy()).to(module.weight.device)
                start = torch.zeros_like(lost) if module.bias is None else module.bias
                module.bias = torch.nn.Parameter((start + lost).to(module.weight.dtype))
            module.weight[:, units] = 0
    return dataclasses.replace(model, name=f"{model.name} without {len(rows)} units", hf=hf)


def check(rows: pd.DataFrame, model: LanguageModel, whole: bool = False) -> None:
    """Refuse units that the model does not have; with `whole`, also a table that leaves some of its units out."""
    _checked(rows, [])
    mine = pd.MultiIndex.from_frame(unit_scores.table(model))
    named = pd.MultiIndex.from_frame(rows[KEY])
    if len(foreign := named.difference(mine, sort=False)):
        raise InputError(f"{model.name} has no unit {foreign[0]}; these units are of a model of another shape")
    if whole and len(named) != len(mine):
        raise InputError(f"the table has {len(named)} units and {model.name} {len(mine)}; it is of another model")


def parameters(model: LanguageModel, rows: pd.DataFrame) -> int:
    """How many different weights the units own; a value row that channels share counts once."""
    check(rows, model)
    total = 0
    for (kind, layer), part in _cells(rows):
        for name, dim, index in families.unit_slices(model.hf, kind, layer):
            weight = model.hf.get_parameter(name)
            total += len(index[torch.tensor(part["index"].to_numpy())].unique()) * weight.numel() // weight.shape[dim]
    return total
