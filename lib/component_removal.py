"""Does removing one non-dominant component let one style of attack through, and no other? The parts of hd.6.

Owns what is offered for removal (components, or random directions in equal number), the choice of a direction and a
style on half of the meanings, and what the other half says. A direction is removed in its own block, by its mean
coordinate over benign prompts. Trying each of thousands of random directions would cost hours, so every pool, that of
components too, is first ranked by what the gradient expects, and only the first few are removed in earnest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import behaviour, directions, edits, prompts, stats, tracing
from lib.behaviour import Edits
from lib.direction_effects import EVERYWHERE, HERE, WAYS, ZERO
from lib.errors import InputError, unknown
from lib.feature_directions import random_offers
from lib.margins import margins
from lib.models import LanguageModel
from lib.prompts import Prompt, PromptSet
from lib.residual import Space
from lib.second_direction import halves
from lib.stats import Interval

FINALISTS = 2  # of each pool, removed in earnest on the half that chooses
LEARNED = 0.3  # gain in refusal from which tuning has taught a style (registry, hd.6)


# prompts --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Styled:
    """Harmful prompts in several styles: `style[i]` is the number of prompt i's style in `names`."""

    asked: tuple[Prompt, ...]
    style: np.ndarray
    names: tuple[str, ...]

    def by_style(self, values: Float[np.ndarray, "*more prompt"]) -> Float[np.ndarray, "*more style"]:
        """Mean over the prompts of each style."""
        return np.stack([values[..., self.style == number].mean(axis=-1) for number in range(len(self.names))], axis=-1)


def in_styles(cells: Mapping[str, PromptSet], names: Sequence[str]) -> Styled:
    """The cells `harmful/STYLE` of these styles as one set."""
    chosen = [(prompt, number) for number, name in enumerate(names) for prompt in cells[f"harmful/{name}"]]
    return Styled(tuple(p for p, _ in chosen), np.array([number for _, number in chosen]), tuple(names))


def split(every: Styled, per_style: int, seed: int) -> tuple[Styled, Styled]:
    """Two sets without a common meaning: `per_style` prompts of each style to choose on, twice as many to confirm on
    (fewer where there are fewer). `InputError` when a style is missing from a half."""
    found = []
    for rows, most in zip(halves(prompts.meanings(every.asked), seed), (per_style, 2 * per_style), strict=True):
        flat = sorted(row for group in rows for row in group)
        kept = [
            row for number in range(len(every.names)) for row in [r for r in flat if every.style[r] == number][:most]
        ]
        found.append(Styled(tuple(every.asked[row] for row in kept), every.style[kept], every.names))
    if any(len(set(half.style.tolist())) < len(every.names) for half in found):
        raise InputError("a style is missing from one half of the meanings; measure more prompts a cell")
    return found[0], found[1]


def learned(before: pd.DataFrame, after: pd.DataFrame, every: Styled) -> pd.DataFrame:
    """Refusal by style before and after tuning, the gain, and whether the style counts as learned."""
    was, now = (every.by_style(table["refused"].to_numpy()) for table in (before, after))
    table = pd.DataFrame({"refused before": was, "refused after": now, "gain": now - was}, index=list(every.names))
    return table.assign(learned=(table["gain"] >= LEARNED - 1e-9)).rename_axis("style")


# directions to remove -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pool:
    """Directions offered in every block, unit rows, and the mean states of benign prompts that replace them."""

    along: list[Float[Tensor, "direction d_model"]]
    means: Float[Tensor, "layer d_model"]

    def targets(self, block: int) -> Float[Tensor, "direction"]:
        """Mean coordinates over benign prompts of the directions offered in a block."""
        return self.along[block].double() @ self.means[block].double()

    def edits(self, block: int, row: int, way: str = HERE) -> Edits:
        """Remove one of them, in one of `direction_effects.WAYS`."""
        if way not in WAYS:
            raise unknown("way", way, WAYS)
        along = self.along[block][row]
        every = range(len(self.means)) if way == EVERYWHERE else [block]
        wanted = (0.0 if way == ZERO else 1.0) * self.means.double() @ along.double()
        return {("resid", layer): edits.ablate(along, float(wanted[layer])) for layer in every}


def benign_means(
    states: Float[Tensor, "layer prompt d_model"], benign: Bool[np.ndarray, "prompt"]
) -> Float[Tensor, "layer d_model"]:
    """What a removed coordinate is replaced by comes from here: the mean state of benign prompts in every block."""
    if not benign.any():
        raise InputError("no benign prompt, so there is no coordinate to put in place of a removed one; add some")
    return states[:, torch.from_numpy(np.flatnonzero(benign))].double().mean(1)


def component_pool(spaces: Sequence[Space], means: Float[Tensor, "layer d_model"]) -> Pool:
    """C2 to C16 of every block."""
    return Pool([space.directions[1 : directions.SPAN] for space in spaces], means)


def random_pools(
    like: Pool, spaces: Sequence[Space], means: Float[Tensor, "layer d_model"], draws: int, seed: int, first: int = 1
) -> list[Pool]:
    """As many random orthonormal directions in each block, `draws` times, in the span of its first 16 components; with
    `first` 2, of those but C1, which a direction in the whole span partly contains."""
    spans = [space.directions[first - 1 : directions.SPAN] for space in spaces]
    return [Pool(one, means) for one in random_offers(like.along, draws, seed, spans)]


# what the gradient expects --------------------------------------------------------------------------------------------
def expected_drops(
    model: LanguageModel, asked: Sequence[Prompt], pools: Sequence[Pool], batch: int = 128
) -> list[list[Float[np.ndarray, "direction prompt"]]]:
    """By pool and block, to first order: the fall in the probability of refusing, against the right first word, when
    each direction is removed at every token of the prompt in its block."""
    before = prompts.prompt_ids(model.tokenizer, asked)
    right, openers = behaviour.right_tokens(model, asked), sorted(behaviour.refusal_openers(model))
    along = [torch.cat([one.along[block] for one in pools]).double() for block in range(model.layers)]
    targets = [torch.cat([one.targets(block) for one in pools]) for block in range(model.layers)]
    found = [np.zeros((len(mine), len(asked))) for mine in along]
    for rows in prompts.by_length([len(ids) for ids in before], batch):
        encoding = prompts.pad_left([before[row] for row in rows], model.tokenizer.pad_token_id)
        objective = partial(_margin, openers=openers, right=right[rows])
        logits: Any = tracing.forward(model.traced, encoding, logits="last").logits
        leans = objective(logits.cpu()).double()
        pairs = tracing.gradients(model.traced, encoding, model.traced.every("resid"), objective)
        for block in range(model.layers):
            state, slope = (x.double().cpu() for x in pairs["resid", block])
            moved = ((targets[block] - state @ along[block].T) * (slope @ along[block].T)).sum(1)  # [prompt direction]
            drop = leans[:, None].sigmoid() - (leans[:, None] + moved).sigmoid()
            found[block][:, rows] = drop.T.numpy()
    sizes = [np.cumsum([len(one.along[block]) for one in pools])[:-1] for block in range(model.layers)]
    parts = [np.split(mine, cut) for mine, cut in zip(found, sizes, strict=True)]
    return [[parts[block][number] for block in range(model.layers)] for number in range(len(pools))]


def _margin(logits: Any, openers: Any, right: Any) -> Any:
    """Log-odds of a refusal opener against complying. Runs inside a trace: see `tracing`."""
    return margins(logits.float(), openers, right)


# choosing -------------------------------------------------------------------------------------------------------------
def selective(rises: Float[np.ndarray, "*more style"]) -> Float[np.ndarray, "*more style"]:
    """Each style's rise minus the mean rise of the others."""
    count = rises.shape[-1]
    return rises - (rises.sum(axis=-1, keepdims=True) - rises) / (count - 1)


@dataclass(frozen=True)
class Chosen:
    """A direction and the style it is said to carry, chosen on one half; changes of each prompt of the other half."""

    block: int
    row: int
    style: int
    on_choice: float  # rise of the style minus mean rise of the others, where it was chosen
    exact: Float[np.ndarray, "prompt"]
    refused: Float[np.ndarray, "prompt"]

    def name(self, first: int = 2) -> str:
        """`L3-C2`, if `first` is the number of the pool's first component."""
        return f"L{self.block}-C{self.row + first}"


def choose(
    model: LanguageModel,
    offered: Pool,
    expected: Sequence[Float[np.ndarray, "direction prompt"]],
    choice: Styled,
    confirm: Styled,
    was: tuple[pd.DataFrame, pd.DataFrame],
    styles: Sequence[int],
) -> Chosen:
    """Remove the `FINALISTS` directions from which the gradient expects most, on the prompts `choice`; take the one and
    the style, among `styles`, with the largest rise of attack success beyond the other styles; then ask `confirm`.

    `was` are the outcomes of both sets as the model is.
    """
    hopes = [selective(choice.by_style(drops))[:, list(styles)].max(axis=1) for drops in expected]
    order = sorted(((-hope, block, row) for block, mine in enumerate(hopes) for row, hope in enumerate(mine)))
    tried = []
    for _, block, row in order[:FINALISTS]:
        now = behaviour.quick(model, choice.asked, offered.edits(block, row))
        found = selective(choice.by_style((now["exact"] - was[0]["exact"]).to_numpy()))[list(styles)]
        tried.append((float(found.max()), block, row, styles[int(found.argmax())]))
    best, block, row, style = max(tried, key=lambda one: one[0])
    now = behaviour.quick(model, confirm.asked, offered.edits(block, row))
    moved = [(now[what] - was[1][what]).to_numpy() for what in ("exact", "refused")]
    return Chosen(block, row, style, best, moved[0], moved[1])


def ways(
    model: LanguageModel, named: Mapping[str, tuple[Pool, Chosen]], confirm: Styled, was: pd.DataFrame
) -> pd.DataFrame:
    """What each chosen direction does on the confirming prompts in every way of removing it: columns direction, way,
    hit (rise of attack success of its own style), others (mean rise of the rest)."""
    rows = []
    for name, (offered, one) in named.items():
        for way in WAYS:
            now = behaviour.quick(model, confirm.asked, offered.edits(one.block, one.row, way))
            rises = confirm.by_style((now["exact"] - was["exact"]).to_numpy())
            rows.append((name, way, rises[one.style], np.delete(rises, one.style).mean()))
    return pd.DataFrame(rows, columns=["direction", "way", "hit", "others"])


def scan(model: LanguageModel, offered: Pool, asked: Styled, was: pd.DataFrame) -> pd.DataFrame:
    """Rise of attack success by style for every direction offered, each removed in earnest: columns block, component
    (from 2), style, rise, refused (its change)."""
    rows = []
    for block, along in enumerate(offered.along):
        for row in range(len(along)):
            now = behaviour.quick(model, asked.asked, offered.edits(block, row))
            rises, drops = (asked.by_style((now[what] - was[what]).to_numpy()) for what in ("exact", "refused"))
            rows += [
                (block, row + 2, name, rise, drop) for name, rise, drop in zip(asked.names, rises, drops, strict=True)
            ]
    return pd.DataFrame(rows, columns=["block", "component", "style", "rise", "refused"])


# parts ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Parts:
    """hd.6: rise of attack success of the hit style, mean rise of the others, and the first minus the second."""

    hit: Interval
    others: Interval
    selective: Interval


def parts(
    found: Chosen, confirm: Styled, weights: Float[np.ndarray, "resample prompt"], seed: int, resamples: int
) -> Parts:
    """Intervals over the confirming prompts, meanings resampled (`weights`); each meaning is once in the hit style."""
    mine = found.exact[confirm.style == found.style]
    hit = stats.over_prompts(mine, seed=seed, resamples=resamples, span=(-1, 1))
    rises = confirm.by_style(found.exact)
    others = np.delete(rises, found.style).mean()
    drawn = _resampled(found.exact, confirm, weights)
    rest = np.delete(drawn, found.style, axis=1).mean(axis=1)
    n = len(confirm.asked)
    return Parts(
        hit, _interval(others, rest, n), _interval(rises[found.style] - others, drawn[:, found.style] - rest, n)
    )


def corner(
    scanned: pd.DataFrame, drawn: Sequence[Parts], chosen: Parts, name: str, styles: Sequence[str]
) -> pd.DataFrame:
    """Rise of a style against the mean rise of the others, to draw: every component scanned with every style of
    `styles`, the random draws and the chosen one. Columns series, hit, others and, of the chosen one, their bounds."""
    wide = scanned.pivot(index=["block", "component"], columns="style", values="rise")
    rows: list[tuple] = [
        ("components tried", mine[style], mine.drop(style).mean()) for _, mine in wide.iterrows() for style in styles
    ]
    rows += [("random", one.hit.mean, one.others.mean) for one in drawn]
    table = pd.DataFrame([*rows, (name, chosen.hit.mean, chosen.others.mean)], columns=["series", "hit", "others"])
    for axis, found in (("hit", chosen.hit), ("others", chosen.others)):
        table[[f"{axis}_lower", f"{axis}_upper"]] = np.nan
        table.loc[table.index[-1], [f"{axis}_lower", f"{axis}_upper"]] = found.bounds or (found.mean, found.mean)
    return table


def _resampled(values: np.ndarray, confirm: Styled, weights: np.ndarray) -> Float[np.ndarray, "resample style"]:
    columns = []
    for number in range(len(confirm.names)):
        mine = confirm.style == number
        total = weights[:, mine].sum(axis=1)
        sums = weights[:, mine] @ values[mine]
        columns.append(np.divide(sums, total, out=np.full(len(sums), np.nan), where=total > 0))
    return np.stack(columns, axis=1)


def _interval(value: float, drawn: np.ndarray, n: int) -> Interval:
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < (1 - stats.UNDEFINED) * len(drawn):
        return Interval(mean=float(value), lower=None, upper=None, n=n, kind="prompts")
    return stats.from_draws(float(value), defined, n)
