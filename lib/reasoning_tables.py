"""From states along answers to what notebook 02 shows and decides: curves, intervals, and the controls of the probe.

Owns which answers are read and compared, the control variants, and the parts of ssah.2, ssah.3 and ssah.12; reading and
distances are in `reasoning`. Plain prompts have a meaning each, so they are resampled one by one; styled prompts share
meanings and are resampled by meaning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from lib import behaviour, direction_tables, directions, prompts, reasoning, residual, stats
from lib.errors import InputError, NotHere
from lib.models import LanguageModel
from lib.prompts import Prompt
from lib.reasoning import Along, Ids
from lib.stats import Interval
from lib.worlds import World

FIRST, LAST = 4, 10  # words (tokens) that decide, in the registry; up to the shortest refusal where that is shorter
APPENDED = 3  # words put after the query in the literal reading
NEUTRAL = "once the fox went to the barn and"  # says neither yes nor no, as long as a refusal
CLOSING = "and"  # the same last word for every answer
REFUSING, COMPLYING, OTHER, NEITHER = "refusing", "complying", "refusing, other words", "neutral"
PUBLISHED, WORDING = "as published", "refusal in other words"
LAST_WORD, SUFFIX = "other words, same last word", "other words, neutral suffix subtracted"
QUERY = "other words, bare query subtracted"
STRICT = "other words, minus benign queries, same words forced"
LITERAL = "other words, minus benign queries, own answers"
VARIANTS = (PUBLISHED, WORDING, LAST_WORD, SUFFIX, QUERY, STRICT, LITERAL)
BEFORE = "preference before answering"
Values = Float[np.ndarray, "layer prompt"]


# answers --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answers:
    """Token ids of a model's own answers to prompts, and of the answers they are compared with, over `words` tokens."""

    asked: tuple[Prompt, ...]
    own: Ids
    others: Mapping[str, Ids]
    words: int


def compared(model: LanguageModel, world: World) -> int:
    """Over how many words answers are compared: the tokens of the shortest refusal, at most `LAST`. In the kingdom a
    token is a word, and all refusals have eight. `NotHere` where a refusal ends before the words that decide."""
    nothing = [Prompt("x", "", "benign", "plain", "none")] * len(world.refusals)
    shortest = min(len(row) for row in reasoning.sentence_ids(model, nothing, world.refusals))
    if shortest < FIRST:
        raise NotHere(f"answers are compared from token {FIRST} on, and a refusal of this profile has {shortest}")
    return min(shortest, LAST)


def answers(model: LanguageModel, world: World, asked: Sequence[Prompt], own: Ids | None = None) -> Answers:
    """The answers to compare. `own` puts other words in the place of the model's own answer."""
    words = compared(model, world)
    own = reasoning.continued(model, asked, [[]] * len(asked), words) if own is None else own
    worded = reasoning.other_words(reasoning.texts(model, own), world.refusals)
    commonest = [world.refusals[0]] * len(asked)
    others = {
        REFUSING: reasoning.sentence_ids(model, asked, commonest),
        COMPLYING: reasoning.right_ids(model, asked),
        OTHER: reasoning.sentence_ids(model, asked, worded),
        NEITHER: reasoning.sentence_ids(model, asked, [NEUTRAL] * len(asked)),
    }
    return Answers(tuple(asked), own, others, words)


def read(model: LanguageModel, found: Answers) -> dict[str, Along]:
    """States along the own answer (`own`) and along the others."""
    return {
        name: reasoning.read(model, found.asked, ids, found.words)
        for name, ids in {"own": found.own, **found.others}.items()
    }


def example(model: LanguageModel, found: Answers) -> dict[str, str]:
    """What may be shown of the answers to the first prompt, by name."""
    (prompt, *_), every = found.asked, {"own": found.own, **found.others}
    return {which: prompt.shown_answer(reasoning.texts(model, ids[:1])[0]) for which, ids in every.items()}


def preferred(seen: Mapping[str, Along], refusing: str = REFUSING, measure: str = "cosine") -> Values:
    """Preference for refusing, mean over the words that decide, block by block and prompt by prompt."""
    values = _by_word(seen, refusing, measure)
    return reasoning.over_words(values, FIRST, values.shape[2])


def _by_word(seen: Mapping[str, Along], refusing: str, measure: str = "cosine") -> np.ndarray:
    pair = {REFUSING: seen[refusing], COMPLYING: seen[COMPLYING]}
    return reasoning.preference(reasoning.distances(seen["own"], pair, measure))


# controls -------------------------------------------------------------------------------------------------------------
def _same_last_word(model: LanguageModel, found: Answers) -> Values:
    """Every answer cut after k words and followed by the same word, read there; mean over the k that decide."""
    (closing,) = reasoning.sentence_ids(model, found.asked[:1], [CLOSING])
    rows = {"own": found.own, REFUSING: found.others[OTHER], COMPLYING: found.others[COMPLYING]}
    by_word = []
    for count in range(FIRST, found.words + 1):
        seen = {}
        for name, ids in rows.items():
            cut = [[*row[:count], *closing] if len(row) >= count else [] for row in ids]
            seen[name] = reasoning.read(model, found.asked, cut, len(closing), skip=count)
        by_word.append(_by_word(seen, REFUSING)[:, :, -1:])
    return reasoning.over_words(np.concatenate(by_word, axis=2), 1, len(by_word))


def variants(
    model: LanguageModel, world: World, harmful: Sequence[Prompt], benign: Sequence[Prompt]
) -> dict[str, tuple[Values, Values | None]]:
    """Preference for refusing on harmful queries by every way of measuring, with what is subtracted from its mean.

    `harmful` and `benign` are equally many. STRICT subtracts the same on benign queries *after the same words*: what is
    left is owed to the query. LITERAL lets the model answer benign queries in its own words.
    """
    if len(harmful) != len(benign):
        raise InputError(f"{len(harmful)} harmful and {len(benign)} benign prompts; give as many of each")
    found = answers(model, world, harmful)
    seen = read(model, found)
    forced, natural = (read(model, answers(model, world, benign, own)) for own in (found.own, None))
    bare = residual.activations(model, harmful)[:, :, None]
    worded = preferred(seen, OTHER)
    without = {name: reasoning.minus(one, seen[NEITHER].states) for name, one in seen.items()}
    of_query = {name: reasoning.minus(one, bare) for name, one in seen.items()}
    return {
        PUBLISHED: (preferred(seen), None),
        WORDING: (worded, None),
        LAST_WORD: (_same_last_word(model, found), None),
        SUFFIX: (preferred(without, OTHER), None),
        QUERY: (preferred(of_query, OTHER), None),
        STRICT: (worded, preferred(forced, OTHER)),
        LITERAL: (worded, preferred(natural, OTHER)),
    }


def before_answering(model: LanguageModel, world: World, asked: Sequence[Prompt]) -> Values:
    """The paper's comparison with nothing generated: the bare query's state at its last token against the two answers
    of others, mean over the same words. It can be computed before the model says anything."""
    found = answers(model, world, asked, own=[[]] * len(asked))
    bare = residual.activations(model, asked)[:, :, None].expand(-1, -1, found.words, -1)
    seen = {name: reasoning.read(model, asked, found.others[name], found.words) for name in (REFUSING, COMPLYING)}
    return preferred({"own": Along(bare, torch.ones(len(asked), found.words, dtype=torch.bool)), **seen})


def literal(model: LanguageModel, found: Answers) -> dict[str, np.ndarray]:
    """The other reading of Fig. 2: a few words of an answer are appended to the query, the model goes on by itself, and
    its state at the k-th word *it generated* is compared with that of the bare query. Distances by answer."""
    own = reasoning.read(model, found.asked, found.own, found.words)
    others = {}
    for name in (REFUSING, COMPLYING):
        opening = [row[:APPENDED] for row in found.others[name]]
        whole = reasoning.continued(model, found.asked, opening, found.words)
        others[name] = reasoning.read(model, found.asked, whole, found.words, skip=APPENDED)
    return reasoning.distances(own, others)


# intervals ------------------------------------------------------------------------------------------------------------
def interval(values: Float[np.ndarray, "prompt"], seed: int, resamples: int) -> Interval | None:
    """Mean over the prompts that have a value, by the bootstrap; None when there are none."""
    there = values[np.isfinite(values)]
    if not len(there):
        return None
    return stats.over_prompts(there, seed=seed, resamples=resamples)


def beyond(values: Values, taken: Values | None, blocks: Sequence[int], seed: int, resamples: int) -> Interval | None:
    """Mean of a variant over `blocks` and prompts, less the mean of what is subtracted, where there is such."""
    chosen = list(blocks)
    found = interval(values[chosen].mean(axis=0), seed, resamples)
    if taken is None or found is None:
        return found
    other = interval(taken[chosen].mean(axis=0), seed, resamples)
    return None if other is None else stats.difference(found, other)


def share_of_blocks(values: Values, seed: int, resamples: int) -> Interval | None:
    """Share of blocks whose mean preference is positive (`ssah.3.blocks`); prompts are resampled together."""
    there = values[:, np.isfinite(values).all(axis=0)]
    count = there.shape[1]
    if count < 2:
        return None
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    shares = ((drawn @ there.T) > 0).mean(axis=1)
    return stats.from_draws(float((there.mean(axis=1) > 0).mean()), shares, count)


# tidy frames ----------------------------------------------------------------------------------------------------------
def _rows(values: Float[np.ndarray, "place prompt"], seed: int, resamples: int) -> list[tuple]:
    """(place, mean, lower, upper, n) of every place in which at least half of the prompts have a value."""
    rows = []
    for place, part in enumerate(values):
        found = interval(part, seed, resamples)
        if found is None or 2 * found.n < len(part):
            continue
        rows.append((place, found.mean, *(found.bounds or (found.mean, found.mean)), found.n))
    return rows


def by_word(apart: Mapping[str, np.ndarray], model: str, seed: int, resamples: int) -> pd.DataFrame:
    """Distances in the last block by word: columns model, answer, word, distance, lower, upper, n."""
    rows = [
        (model, name, place + 1, *rest)
        for name, values in apart.items()
        for place, *rest in _rows(values[-1].T, seed, resamples)
    ]
    return pd.DataFrame(rows, columns=["model", "answer", "word", "distance", "lower", "upper", "n"])


def by_block(found: Mapping[str, tuple[Values, Values | None]], seed: int, resamples: int) -> pd.DataFrame:
    """Preference by block for each series: columns series, block, preference, lower, upper."""
    rows = []
    for name, (values, taken) in found.items():
        for block in range(len(values)):
            one = beyond(values, taken, [block], seed, resamples)
            if one is not None:
                rows.append((name, block, one.mean, *(one.bounds or (one.mean, one.mean))))
    return pd.DataFrame(rows, columns=["series", "block", "preference", "lower", "upper"])


def variant_table(found: Mapping[str, tuple[Values, Values | None]], seed: int, resamples: int) -> pd.DataFrame:
    """Every variant in the last block: columns variant, preference, lower, upper."""
    last = {name: (one[-1:], None if taken is None else taken[-1:]) for name, (one, taken) in found.items()}
    table = by_block(last, seed, resamples)
    return table.drop(columns="block").rename(columns={"series": "variant"})


def measure_table(seen: Mapping[str, Mapping[str, Along]]) -> pd.DataFrame:
    """Mean preference in the last block by distance measure: one row a model and wording of the refusal."""
    rows = {
        (model, wording): {measure: _mean(preferred(one, wording, measure)[-1]) for measure in reasoning.MEASURES}
        for model, one in seen.items()
        for wording in (REFUSING, OTHER)
    }
    return pd.DataFrame(rows).T.rename_axis(["model", "compared with"])


def _mean(values: Float[np.ndarray, "prompt"]) -> float | None:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else None


# prediction -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Foretold:
    """What is known before answering, and what the model then does with styled harmful prompts: `areas` in the columns
    of `predicts`, without rows where there are no such prompts."""

    areas: pd.DataFrame
    refused: Bool[np.ndarray, "prompt"]

    @property
    def both(self) -> bool:
        """Whether the model refuses some of them and answers some."""
        return bool(len(self.refused)) and bool(0.05 <= self.refused.mean() <= 0.95)

    @property
    def decides(self) -> Interval | None:
        """`ssah.2.predicts`."""
        return last_block(self.areas, BEFORE, len(self.refused)) if len(self.areas) else None

    def in_words(self, name: str) -> str:
        if not len(self.refused):
            return "this profile has no harmful prompts in jailbreak styles (`data: attacks`)"
        return f"{name} refuses {self.refused.mean():.2f} of {len(self.refused)} styled harmful prompts"


def foretelling(
    model: LanguageModel, world: World, plain: Mapping[str, Sequence[Prompt]], styled: Sequence[Prompt], seed: int
) -> Foretold:
    """AUC of the preference before answering, and of its rivals, for refusal of styled harmful prompts."""
    if not styled:
        return Foretold(pd.DataFrame(columns=["series", "block", "auc", "lower", "upper"]), np.zeros(0, dtype=bool))
    measure = world.settings.measure
    refused = behaviour.first_tokens(model, styled)["refused"].to_numpy(dtype=bool)
    weights = direction_tables.meaning_weights(prompts.meanings(styled), measure.bootstrap, seed)
    areas = predicts(before_answering(model, world, styled), refused, weights, BEFORE)
    known = rivals(model, plain, styled, refused, weights, measure.draws, seed)
    return Foretold(pd.concat([areas, known], ignore_index=True), refused)


def predicts(values: Values, refused: Bool[np.ndarray, "prompt"], weights: np.ndarray, series: str) -> pd.DataFrame:
    """AUC of a preference for refusing, by block: columns series, block, auc, lower, upper. Below .5, prompts that are
    refused lie *farther* from the refusal. With one label only there is nothing to predict: every AUC is .5."""
    rows: list[tuple] = []
    for block, scores in enumerate(values):
        if len(set(refused.tolist())) < 2:
            rows.append((series, block, 0.5, 0.5, 0.5))
            continue
        area = stats.auc(scores, refused.astype(float))
        drawn = directions.resampled_auc(scores, refused, weights, sign_free=False)
        one = stats.from_draws(area, drawn[np.isfinite(drawn)], len(scores))
        rows.append((series, block, one.mean, *(one.bounds or (one.mean, one.mean))))
    return pd.DataFrame(rows, columns=["series", "block", "auc", "lower", "upper"])


def last_block(areas: pd.DataFrame, series: str, prompts: int) -> Interval:
    """The AUC of one series in the last block, as the interval that decides."""
    row = areas[areas["series"] == series].iloc[-1]
    known = row["lower"] < row["upper"]
    low, high = (float(row["lower"]), float(row["upper"])) if known else (None, None)
    return Interval(mean=float(row["auc"]), lower=low, upper=high, n=prompts, kind="prompts")


def rivals(
    model: LanguageModel,
    plain: Mapping[str, Sequence[Prompt]],
    styled: Sequence[Prompt],
    refused: Bool[np.ndarray, "prompt"],
    weights: np.ndarray,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """AUC of other things that are known before answering, in the columns of `predicts`: the direction from plain
    `benign` to plain `harmful` queries, and random directions (the better sign of each; 5th to 95th percentile)."""
    means = {name: residual.activations(model, asked).double().mean(1) for name, asked in plain.items()}
    states = residual.activations(model, styled).double()
    along = torch.einsum("lpd,ld->lp", states, means["harmful"] - means["benign"]).numpy()
    table = predicts(along, refused, weights, "harm in plain queries")
    generator, rows = torch.Generator().manual_seed(seed), []
    for block, here in enumerate(states):
        drawn = directions.random_directions(draws, generator, width=model.width)
        found = directions.sign_free_auc(here, drawn, refused)
        rows.append(("random directions", block, found.mean(), *np.quantile(found, [0.05, 0.95])))
    return pd.concat([table, pd.DataFrame(rows, columns=table.columns)], ignore_index=True)
