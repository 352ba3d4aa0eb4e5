"""What edits cost in ability: each skill and the likelihood of running text, under each edit. The parts of hd.14.

Owns the tables and the two parts: the largest drop of any skill, and the largest rise of the text's negative
log-likelihood, over several edits. Skills are scored by teacher forcing. HD measures perplexity while editing one
position.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lib import one_position, prompt_sets, stats, worlds
from lib.models import LanguageModel
from lib.one_position import EVERY, Maker
from lib.stats import Interval

Tables = Mapping[str, pd.DataFrame]  # by edit, from `measure`


def measure(model: LanguageModel, profile: str, seed: int, make: Maker, where: str = EVERY) -> pd.DataFrame:
    """Every skill question and running text under an edit: one row each, with the skill in `cell`; `running` says which
    rows are text, judged by likelihood."""
    found = one_position.measure(model, prompt_sets.skill_items(profile, seed), make, where)
    return found.assign(running=found["cell"] == worlds.of(profile, seed).text)


def _skills(before: pd.DataFrame) -> list[str]:
    """Names of the skills that have right answers, in the order asked."""
    return list(before.loc[~before["running"], "cell"].unique())


def _drops(before: pd.DataFrame, after: pd.DataFrame, skill: str) -> np.ndarray:
    mine = (before["cell"] == skill).to_numpy()
    return (before["exact"].to_numpy() - after["exact"].to_numpy())[mine]


def _rises(before: pd.DataFrame, after: pd.DataFrame) -> np.ndarray:
    mine = before["running"].to_numpy()
    return (after["nll"].to_numpy() - before["nll"].to_numpy())[mine]


def table(before: pd.DataFrame, edited: Tables) -> pd.DataFrame:
    """By edit: the drop of each skill, their mean, and the rise of the text's loss in nats a token."""
    rows = {}
    for name, after in edited.items():
        drops = {skill: _drops(before, after, skill).mean() for skill in _skills(before)}
        rows[name] = {**drops, "mean of skills": np.mean(list(drops.values())),
                      "story loss": _rises(before, after).mean()}  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis("edit")


def _largest(columns: list[np.ndarray], seed: int, resamples: int) -> Interval:
    """The largest mean of several lists of per-item values; items of each list are resampled on their own.

    The largest of several noisy means lies high, in the value and in its resamples.
    """
    rng = np.random.default_rng(seed)
    drawn = [column[rng.integers(len(column), size=(resamples, len(column)))].mean(axis=1) for column in columns]
    value = max(float(column.mean()) for column in columns)
    return stats.from_draws(value, np.max(drawn, axis=0), min(map(len, columns)))


def largest_drop(before: pd.DataFrame, edited: Tables, seed: int, resamples: int) -> Interval:
    """hd.14.skills: the largest drop in exact accuracy, over edits and skills."""
    columns = [_drops(before, after, skill) for after in edited.values() for skill in _skills(before)]
    return _largest(columns, seed, resamples)


def largest_rise(before: pd.DataFrame, edited: Tables, seed: int, resamples: int) -> Interval:
    """hd.14.nll: the largest rise of the running text's negative log-likelihood, nats a token, over edits."""
    return _largest([_rises(before, after) for after in edited.values()], seed, resamples)
