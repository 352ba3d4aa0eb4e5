"""Which direction predicts refusal, block by block: from two models' activations to curves and the parts hd.3, hd.4.

Owns reading (`read`), estimating every direction on the fit prompts (`estimate`), judging them on test prompts, and
the intervals. The rules and estimators themselves are in `directions`, changing a model along a direction in
`direction_effects`. Meanings are resampled, with all their prompts; the directions stay as estimated.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib import behaviour, directions, residual, stats
from lib.errors import InputError
from lib.models import LanguageModel
from lib.prompts import Prompt
from lib.stats import Interval

SHOWN = 6  # components with a name of their own
BEST = 16  # candidates of "best of N"; HD takes 100 of 4,096 dimensions


@dataclass(frozen=True)
class Seen:
    """What a model holds after each block at the last token of prompts, and whether it refuses them."""

    states: Float[Tensor, "layer prompt d_model"]
    refused: Bool[np.ndarray, "prompt"]


@dataclass(frozen=True)
class Readings:
    """One model on the prompts to estimate on, and on those to judge on."""

    fit: Seen
    test: Seen


def _see(model: LanguageModel, asked: Sequence[Prompt]) -> Seen:
    refused = behaviour.teacher_forced(model, asked)["refused"].to_numpy() > 0
    return Seen(residual.activations(model, asked), refused)


def read(model: LanguageModel, fit: Sequence[Prompt], test: Sequence[Prompt]) -> Readings:
    """Activations and decisions of a model on both sets of prompts."""
    return Readings(_see(model, fit), _see(model, test))


def testable(before: Readings, after: Readings, harmful: Sequence[bool]) -> tuple[bool, str]:
    """Whether tuning made the model refuse harm, and whether there are both labels; and what was found.

    This project's own rule: at least half of the harmful test prompts are refused, more than before, not everything.
    """
    chosen = np.asarray(harmful, dtype=bool)
    was, now = (float(model.test.refused[chosen].mean()) for model in (before, after))
    found = f"tuned refuses {now:.2f} of harmful prompts, chat {was:.2f}"
    if not (now >= 0.5 and now > was):
        return False, found
    if any(len(set(seen.refused.tolist())) < 2 for seen in (after.fit, after.test)):
        return False, f"{found}, and the same decision on every prompt"
    return True, found


# estimating -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class BlockDirections:
    """Directions of one block, all estimated on the fit prompts.

    `single`: C1 to C6 of the uncentred shift, "C1, centred", "probe" (of this block), "stacked probe", "difference of
    means" and "mean shift". `sets`: "shift" and "base", the first `BEST` components of the shift and of the activations
    before tuning; random directions "in the span" of the first components, "beside C1" (in that span, orthogonal to
    C1) and "anywhere".
    """

    single: dict[str, Float[Tensor, "d_model"]]
    sets: dict[str, Float[Tensor, "direction d_model"]]


def _components(states: Float[Tensor, "prompt d_model"], centred: bool) -> Float[Tensor, "component d_model"]:
    found = residual.space(states, centred).directions[: max(BEST, directions.SPAN)]
    if len(found) < 2:
        raise InputError(
            "the shift of a block has fewer than two components, so there is no C2; compare two models that differ, "
            "on more prompts"
        )
    return directions.oriented(found)


def _block(before: Tensor, after: Tensor, refused: np.ndarray, draws: int, generator: torch.Generator) -> tuple:
    shift = after.double() - before.double()
    components = _components(shift, centred=False)
    span = components[: directions.SPAN]
    single = {f"C{i + 1}": direction for i, direction in enumerate(components[:SHOWN])}
    single |= {
        "C1, centred": _components(shift, centred=True)[0],
        "probe": directions.probe(after, refused),
        "difference of means": directions.difference_of_means(after, refused),
        "mean shift": shift.mean(0),
    }
    sets = {
        "shift": components[:BEST],
        "base": _components(before, centred=False)[:BEST],
        "in the span": directions.random_directions(draws, generator, within=span),
        "beside C1": directions.random_directions(draws, generator, within=span[1:]),
        "anywhere": directions.random_directions(draws, generator, width=shift.shape[1]),
    }
    return single, sets


def estimate(before: Seen, after: Seen, draws: int, seed: int) -> list[BlockDirections]:
    """Every direction of every block. Probes and means use the tuned model's activations and its own refusals."""
    generator = torch.Generator().manual_seed(seed)
    stacked = {"stacked probe": directions.stacked_probe(after.states, after.refused)}
    found = [
        _block(one, other, after.refused, draws, generator)
        for one, other in zip(before.states, after.states, strict=True)
    ]
    return [BlockDirections(single | stacked, sets) for single, sets in found]


# judging --------------------------------------------------------------------------------------------------------------
Blocks = Sequence[BlockDirections]
Rule = Callable[[Tensor, Tensor, np.ndarray], np.ndarray]  # (states, directions, labels) -> a value a direction


def meaning_weights(groups: Sequence[Sequence[int]], resamples: int, seed: int) -> Int[np.ndarray, "resample prompt"]:
    """How often each prompt counts when meanings are drawn with replacement; one row a resample."""
    drawn = np.random.default_rng(seed).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=resamples)
    weights = np.zeros((resamples, sum(map(len, groups))), dtype=int)
    for meaning, rows in enumerate(groups):
        weights[:, list(rows)] = drawn[:, [meaning]]
    return weights


def _interval(value: float, drawn: Float[np.ndarray, "resample"], n: int) -> Interval:
    """From resamples, some perhaps undefined (NaN): with too many of those the bounds are unknown."""
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < (1 - stats.UNDEFINED) * len(drawn):
        return Interval(mean=value, lower=None, upper=None, n=n, kind="prompts")
    return stats.from_draws(value, defined, n)


def by_block(
    blocks: Blocks, name: str, seen: Seen, rule: Rule = directions.sign_free_auc
) -> Float[np.ndarray, "layer direction"]:
    """What a rule gives each direction of that name in every block: a set's, or one where the name is of a single."""
    return np.stack([
        rule(states, block.sets[name] if name in block.sets else block.single[name][None], seen.refused)
        for block, states in zip(blocks, seen.states, strict=True)
    ])  # fmt: skip


def _resampled(blocks: Blocks, name: str, seen: Seen, weights: np.ndarray) -> Float[np.ndarray, "layer resample"]:
    return np.stack([
        directions.resampled_auc((states.double() @ block.single[name]).numpy(), seen.refused, weights)
        for block, states in zip(blocks, seen.states, strict=True)
    ])  # fmt: skip


def mean_auc(blocks: Blocks, name: str, seen: Seen, over: Iterable[int], weights: np.ndarray) -> Interval:
    """AUC of one direction, mean over the blocks `over`: hd.3.late with C1 and the later half."""
    chosen = list(over)
    value = float(by_block(blocks, name, seen)[chosen].mean())
    return _interval(value, _resampled(blocks, name, seen, weights)[chosen].mean(axis=0), len(seen.refused))


def curve(blocks: Blocks, name: str, seen: Seen, weights: np.ndarray, series: str | None = None) -> pd.DataFrame:
    """AUC of one direction by block with intervals: columns series, block, auc, lower, upper."""
    values, drawn = by_block(blocks, name, seen)[:, 0], _resampled(blocks, name, seen, weights)
    found = [_interval(float(value), draws, len(seen.refused)) for value, draws in zip(values, drawn, strict=True)]
    rows = [(series or name, block, i.mean, *(i.bounds or (i.mean, i.mean))) for block, i in enumerate(found)]
    return pd.DataFrame(rows, columns=["series", "block", "auc", "lower", "upper"])


def _band(series: str, values: Float[np.ndarray, "layer draw"]) -> pd.DataFrame:
    """Mean over draws by block; lower and upper are the 5th and 95th percentile of the draws."""
    low, high = np.quantile(values, [1 - stats.CONTROL_QUANTILE, stats.CONTROL_QUANTILE], axis=1)
    frame = pd.DataFrame({"auc": values.mean(axis=1), "lower": low, "upper": high})
    return frame.assign(series=series, block=range(len(values)))


def control_curves(blocks: Blocks, seen: Seen, draws: int, seed: int) -> pd.DataFrame:
    """Random directions in the span and anywhere, and C1 with the labels shuffled among prompts; bands are 5-95 %."""
    rng = np.random.default_rng(seed)
    shuffled = [Seen(seen.states, rng.permutation(seen.refused)) for _ in range(draws)]
    bands = {f"random {where}": by_block(blocks, where, seen) for where in ("in the span", "anywhere")}
    bands["C1, shuffled labels"] = np.concatenate([by_block(blocks, "C1", one) for one in shuffled], axis=1)
    return pd.concat([_band(series, values) for series, values in bands.items()], ignore_index=True)


def best_curves(blocks: Blocks, model: Readings) -> pd.DataFrame:
    """Best of the first components of the shift, and of the activations before: chosen on the fit prompts, and chosen
    on the very prompts they are judged on, as HD does. Columns series, block, auc, component (from 1)."""
    rows = []
    for name, label in (("shift", "shift"), ("base", "activations")):
        on_fit, on_test = by_block(blocks, name, model.fit), by_block(blocks, name, model.test)
        for chosen, scores in (("other prompts", on_fit), ("the same prompts", on_test)):
            picks = scores.argmax(axis=1)
            rows += [
                (
                    f"best of {on_test.shape[1]} of the {label}, chosen on {chosen}",
                    block,
                    on_test[block, pick],
                    pick + 1,
                )
                for block, pick in enumerate(picks)
            ]
    return pd.DataFrame(rows, columns=["series", "block", "auc", "component"])


# the published rule on these models -----------------------------------------------------------------------------------
def _other_sign(states: Tensor, along: Tensor, labels: np.ndarray) -> np.ndarray:
    return directions.published_accuracy(states, -along, labels)


def published_curves(blocks: Blocks, before: Seen, other: Blocks) -> pd.DataFrame:
    """The published rule: activations and decisions of the model BEFORE tuning on the fit prompts themselves.

    Columns series, block, accuracy. `other` are the directions of DPO. The sign of a component is arbitrary, so C1 is
    there with both.
    """
    rule = directions.published_accuracy
    shift, base = (by_block(blocks, name, before, rule) for name in ("shift", "base"))
    series = {
        "C1": shift[:, 0],
        "C1, other sign": by_block(blocks, "C1", before, _other_sign)[:, 0],
        "C2": shift[:, 1],
        "best of N": shift.max(axis=1),
        "probe": directions.stacked_probe_accuracy(before.states, before.refused),
        "best of N, base": base.max(axis=1),
        "C1, DPO": by_block(other, "C1", before, rule)[:, 0],
    }
    frames = [pd.DataFrame({"series": name, "block": range(len(blocks)), "accuracy": v}) for name, v in series.items()]
    return pd.concat(frames, ignore_index=True)


def both_rules(blocks: Blocks, before: Readings, after: Readings) -> pd.DataFrame:
    """C1 under the published rule (fit prompts) and by AUC on test prompts, labels from either model: a row each."""
    models, rows = {"before": before, "tuned": after}, []
    for activations, decisions in (("before", "before"), ("before", "tuned")):
        seen = Seen(models[activations].fit.states, models[decisions].fit.refused)
        found = by_block(blocks, "C1", seen, directions.published_accuracy)[:, 0]
        rows.append(("published accuracy, same prompts", activations, decisions, *found))
    for activations, decisions in (("before", "before"), ("before", "tuned"), ("tuned", "tuned")):
        seen = Seen(models[activations].test.states, models[decisions].test.refused)
        rows.append(("AUC, other prompts", activations, decisions, *by_block(blocks, "C1", seen)[:, 0]))
    index = ["rule", "activations of", "decisions of"]
    return pd.DataFrame(rows, columns=[*index, *range(len(blocks))]).set_index(index).rename_axis(columns="block")


def covariance_table(blocks: Blocks, before: Seen) -> pd.DataFrame:
    """HD's "log-likelihood" of C1 by block, the activations' root mean square length, and the gap between class means
    in units of that length: rows by name, columns blocks."""
    scores = by_block(blocks, "C1", before, directions.covariance_score)[:, 0]
    share = before.refused.mean()
    length = before.states.double().square().sum(2).mean(1).sqrt().numpy()
    gap = np.abs(scores) / (2 * share * (1 - share)) if 0 < share < 1 else np.zeros(len(scores))
    rows = {
        "2 cov(projection, decision)": scores,
        "length of activations": length,
        "gap between class means / length": gap / length,
    }
    return pd.DataFrame(rows).T.rename_axis(columns="block")
