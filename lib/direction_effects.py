"""What changing a model along a direction does to what it answers: the causal side of hd.3.

Owns which prompts are asked, the edits (removing a direction, adding it, at one block or at every one) and the tables
of outcomes. Directions come from `direction_tables`, the arithmetic of an edit is in `edits`, judging in `behaviour`.
Edits act at every token, prompt and answer, so that teacher forcing agrees with generation; HD's released code changes
the last prompt token alone and looks at the first token said.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import behaviour, directions, edits, prompts, stats
from lib.behaviour import OUTCOMES, Edits
from lib.direction_tables import BlockDirections, Blocks, Seen, by_block
from lib.errors import InputError
from lib.models import LanguageModel
from lib.prompts import Prompt

KINDS = ("harmful", "benign")
DOSES = (-1.0, -0.5, 0.0, 0.5, 1.0)
HERE, EVERYWHERE, ZERO = "mean, one block", "mean, every block", "zero, one block"
WAYS = (HERE, EVERYWHERE, ZERO)  # to remove a direction: what its coordinate becomes, and where
LEARNED = ("probe", "difference of means")
RANDOM = "random"  # names of random directions begin with it


def one_each(asked: Sequence[Prompt], style: str) -> list[Prompt]:
    """Harmful and benign prompts of a style, one of each meaning, so that they are independent of each other."""
    chosen = [prompt for prompt in asked if prompt.style == style and prompt.kind in KINDS]
    return [chosen[rows[0]] for rows in prompts.meanings(chosen)]


def strongest(blocks: Blocks, name: str, seen: Seen, layers: Iterable[int]) -> int:
    """The block of `layers` in which a direction has its highest AUC; the first of equals."""
    values, order = by_block(blocks, name, seen)[:, 0], list(layers)
    return order[int(values[order].argmax())]


@dataclass(frozen=True)
class Steering:
    """Directions of one block and what edits along them need, all from the fit prompts.

    `along` unit vectors by name, turned so that plus is towards refusal; `target` their mean coordinate over benign
    prompts in every block; `length` the distance between the mean activations of refused and answered prompts.
    """

    block: int
    along: dict[str, Float[Tensor, "d_model"]]
    target: dict[str, Float[Tensor, "layer"]]
    length: float


def steering(
    block: int, named: Mapping[str, Float[Tensor, "d_model"]], seen: Seen, benign: Bool[np.ndarray, "prompt"]
) -> Steering:
    """Directions of a block made ready; those without length (learned from labels that are all equal) are left out."""
    if not benign.any():
        raise InputError("no benign prompt, so there is no coordinate to put in place of a removed one; add some")
    gap = directions.difference_of_means(seen.states[block], seen.refused)
    kept = {name: v.double() / v.double().norm() for name, v in named.items() if float(v.norm()) > 0}
    along = {name: -v if float(gap @ v) < 0 else v for name, v in kept.items()}
    ordinary = seen.states[:, torch.tensor(benign.nonzero()[0])].double().mean(1)
    return Steering(block, along, {name: ordinary @ v for name, v in along.items()}, float(gap.norm()))


def candidates(block: BlockDirections, draws: int) -> dict[str, Float[Tensor, "d_model"]]:
    """The named components, the block's probe and difference of means, and the first `draws` random directions in the
    span, called "random 1" and so on."""
    own = {name: v for name, v in block.single.items() if name[1:].isdigit() or name in LEARNED}
    return own | {f"{RANDOM} {i}": v for i, v in enumerate(block.sets["in the span"][:draws], start=1)}


# edits ----------------------------------------------------------------------------------------------------------------
def removal(plan: Steering, name: str, way: str) -> Edits:
    """Replace the coordinate by its mean over benign prompts, or by zero: at the block, or (published) at every one."""
    every = range(len(plan.target[name])) if way == EVERYWHERE else [plan.block]
    wanted = torch.zeros_like(plan.target[name]) if way == ZERO else plan.target[name]
    return {("resid", layer): edits.ablate(plan.along[name], float(wanted[layer])) for layer in every}


def addition(plan: Steering, name: str, dose: float, everywhere: bool) -> Edits:
    """Add `dose` times `length` along the direction, at the block; or in equal parts at every block, which is HD's
    constant steering."""
    layers = len(plan.target[name])
    every = range(layers) if everywhere else [plan.block]
    size = dose * plan.length / len(every)
    return {("resid", layer): edits.add(plan.along[name], size) for layer in every}


# tables ---------------------------------------------------------------------------------------------------------------
def _outcomes(model: LanguageModel, asked: Sequence[Prompt], change: Edits) -> list[dict]:
    said = behaviour.teacher_forced(model, asked, change)
    kinds = np.array([prompt.kind for prompt in asked])
    return [
        {"kind": kind, "n": int((kinds == kind).sum()), **said[kinds == kind][[*OUTCOMES]].mean()} for kind in KINDS
    ]


def removals(model: LanguageModel, asked: Sequence[Prompt], plan: Steering) -> pd.DataFrame:
    """Outcomes when each direction is removed in each of `WAYS`: rows by direction, way and kind of prompt, with n and
    the shares refused, exact and wrong. Direction "nothing" is the model as it is."""
    rows = [{"direction": "nothing", "way": "none", **row} for row in _outcomes(model, asked, {})]
    for way in WAYS:
        for name in plan.along:
            found = _outcomes(model, asked, removal(plan, name, way))
            rows += [{"direction": name, "way": way, **row} for row in found]
    return pd.DataFrame(rows)


def removal_table(removed: pd.DataFrame) -> pd.DataFrame:
    """`removals` to read: a row a way and direction (random ones as their mean), columns outcomes by kind of prompt."""
    random = removed["direction"].str.startswith(RANDOM)
    drawn = removed[random].groupby(["way", "kind"], as_index=False, sort=False)[[*OUTCOMES]].mean()
    drawn["direction"] = f"{RANDOM}, mean of {removed.loc[random, 'direction'].nunique()}"
    kept = pd.concat([removed[~random], drawn], ignore_index=True)
    long = kept.melt(["way", "direction", "kind"], [*OUTCOMES], "outcome", "share")
    wide = long.pivot(index=["way", "direction"], columns=["kind", "outcome"], values="share")
    order = kept[["way", "direction"]].drop_duplicates()
    order = order.sort_values("way", key=lambda ways: ways.map(["none", *WAYS].index), kind="stable")
    return wide.loc[list(order.itertuples(index=False, name=None)), list(product(KINDS, OUTCOMES))]


def doses(model: LanguageModel, asked: Sequence[Prompt], plan: Steering, everywhere: bool) -> pd.DataFrame:
    """Outcomes when each direction is added in every dose of `DOSES`: rows by direction, dose and kind of prompt."""
    still, rows = _outcomes(model, asked, {}), []
    for name in plan.along:
        for dose in DOSES:
            found = _outcomes(model, asked, addition(plan, name, dose, everywhere)) if dose else still
            rows += [{"direction": name, "dose": dose, **row} for row in found]
    return pd.DataFrame(rows, columns=["direction", "dose", "kind", "n", *OUTCOMES])


def changes(
    removed: pd.DataFrame, named: Mapping[str, Float[Tensor, "d_model"]], seen: Seen, block: int
) -> pd.DataFrame:
    """What each direction knows and does: its AUC on `seen` in that block, and the change in the share of harmful
    prompts refused when it is removed, with the Wilson interval of the share after. Columns direction, way, auc,
    change, lower, upper, n."""
    harmful = removed[removed["kind"] == "harmful"]
    before = float(harmful.loc[harmful["direction"] == "nothing", "refused"].iloc[0])
    values = directions.sign_free_auc(seen.states[block], torch.stack(list(named.values())), seen.refused)
    aucs = dict(zip(named, values, strict=True))
    rows = []
    for row in harmful[harmful["direction"] != "nothing"].to_dict("records"):
        after = stats.wilson(round(row["refused"] * row["n"]), row["n"])
        ends = [end - before for end in after.bounds or (after.mean, after.mean)]
        rows.append((row["direction"], row["way"], aucs[row["direction"]], after.mean - before, *ends, row["n"]))
    return pd.DataFrame(rows, columns=["direction", "way", "auc", "change", "lower", "upper", "n"])
