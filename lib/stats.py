"""Intervals, and the three rules by which a number decides a part of a claim.

Owns the statistics (scipy and scikit-learn compute them) and the words holds, fails, undecided. It knows numbers
only: no claim, no file, no model. All intervals are two-sided at 95 %. The rules are those of the header of
`data/claims.yaml`.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from lib.errors import InputError

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2  # the chance of error on one side
NEGLIGIBLE = 0.02  # a margin over the control that is surely below this is none (beats_control)
CONTROL_QUANTILE = 0.95  # of the pooled control draws
DIGITS = 9  # numbers are compared at so many decimals, so that .7 - .4 counts as .3
UNDEFINED = 0.05  # share of resamples that may be undefined before the bounds count as unknown

AGAINST_CONTROL = "above its control draws"  # rule beats_control in words


class Verdict(StrEnum):
    """What a rule says about one part."""

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"


def _finite(value: Any, what: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{what} is {number}; only finite numbers can be judged: find where it became undefined")
    return number


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval. Both bounds are None when nothing is known about them (JSON's null).

    `mean` is the estimate (for `bootstrap` the statistic itself), `n` the number of seeds or prompts behind it. A
    bootstrap interval of a biased statistic may lie beside its estimate; that is kept, not mended.
    """

    mean: float
    lower: float | None
    upper: float | None
    n: int
    kind: Literal["seeds", "prompts", "wilson", "difference"]

    def __post_init__(self) -> None:
        _finite(self.mean, "the mean of an interval")
        if (self.lower is None) != (self.upper is None):
            raise InputError(f"an interval has both bounds or none, not {self.lower} and {self.upper}")
        if self.lower is not None and self.upper is not None:
            low, high = _finite(self.lower, "a lower bound"), _finite(self.upper, "an upper bound")
            if low > high:
                raise InputError(f"the lower bound {low} lies above the upper bound {high}; swap them")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(lower, upper), or None when they are not known."""
        return None if self.lower is None or self.upper is None else (self.lower, self.upper)


def _values(values: ArrayLike, what: str) -> list[float]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InputError(f"{what} must be a list of at least one number, not an array of shape {array.shape}")
    return [_finite(value, f"one of the {what}") for value in array]


# --- intervals --------------------------------------------------------------------------------------------------------


def over_seeds(values: ArrayLike) -> Interval:
    """Student's t interval of the mean over independent seeds; one seed has no interval (bounds None).

    Mean and deviation are computed exactly, so equal values have width 0 and their order does not matter.
    """
    numbers = _values(values, "values per seed")
    mean, n = statistics.mean(numbers), len(numbers)
    if n == 1:
        return Interval(mean=mean, lower=None, upper=None, n=1, kind="seeds")
    half = float(scipy.stats.t.ppf(1 - TAIL, n - 1)) * statistics.stdev(numbers) / math.sqrt(n)
    return Interval(mean=mean, lower=mean - half, upper=mean + half, n=n, kind="seeds")


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a rate; never of width 0, also at 0 and at 1."""
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n} trials is no rate; give 0 <= successes <= n and n >= 1")
    test = scipy.stats.binomtest(int(successes), int(n))
    low, high = test.proportion_ci(LEVEL, method="wilson")
    return Interval(mean=successes / n, lower=float(low), upper=float(high), n=int(n), kind="wilson")


def over_prompts(values: ArrayLike, seed: int, resamples: int, span: tuple[float, float] | None = None) -> Interval:
    """Interval of the mean over prompts of one model: percentile bootstrap, for 0/1 values Wilson's.

    Values that are all equal would get width 0. `span`, the least and the greatest value a prompt can have, mends that:
    a share up to Wilson's bound for 0 of n may still lie at either end. Pass (-1, 1) for differences of 0/1 values.
    Without it 0/1 values have span (0, 1) and the bounds of other equal values are unknown (None).
    """
    numbers = _values(values, "values per prompt")
    n, low, high = len(numbers), min(numbers), max(numbers)
    if span is not None and not span[0] <= low <= high <= span[1]:
        raise InputError(f"values from {low} to {high} leave the span {span}; give the span of one prompt's value")
    if set(numbers) <= {0.0, 1.0} and span in (None, (0, 1)):
        return wilson(int(sum(numbers)), n)
    if low == high and span is not None:
        share = wilson(0, n).upper or 0.0
        ends = [low + share * (end - low) for end in span]
        return Interval(mean=low, lower=ends[0], upper=ends[1], n=n, kind="prompts")
    if low == high:
        return Interval(mean=low, lower=None, upper=None, n=n, kind="prompts")
    drawn = scipy.stats.bootstrap(
        (np.array(numbers),), np.mean, n_resamples=resamples, confidence_level=LEVEL, method="percentile", rng=seed
    ).confidence_interval
    return Interval(mean=statistics.mean(numbers), lower=float(drawn.low), upper=float(drawn.high), n=n, kind="prompts")


def bootstrap(
    statistic: Callable[..., float], *arrays: ArrayLike, seed: int, resamples: int, paired: bool = True
) -> Interval:
    """Percentile bootstrap of `statistic(*arrays)`, resampled over the first axis (prompts) of every array.

    `paired`: row i of every array is the same prompt. A resample for which `statistic` raises `InputError` or returns
    NaN (an AUC without both labels) is left out; when more than 5 % are, the bounds are unknown (None). A statistic
    that is the same in every resample, such as an AUC of 1, gets width 0: read it as "at its ceiling", not as certain.
    """
    columns = [np.asarray(array) for array in arrays]
    sizes = [len(column) if column.ndim else 0 for column in columns]
    if not columns or min(sizes) < 1 or (paired and len(set(sizes)) > 1):
        raise InputError(
            f"arrays of {sizes} prompts cannot be resampled; none may be empty, paired ones are equally long"
        )
    whole = _finite(statistic(*columns), "the statistic of all prompts")
    unknown = Interval(mean=whole, lower=None, upper=None, n=min(sizes), kind="prompts")
    if min(sizes) < 2:
        return unknown

    def resampled(*drawn: NDArray[Any]) -> float:
        rows = [index.astype(int) for index in (drawn * len(columns) if paired else drawn)]
        try:
            return float(statistic(*(column[row] for column, row in zip(columns, rows, strict=True))))
        except InputError:
            return math.nan

    indices = tuple(np.arange(size) for size in (sizes[:1] if paired else sizes))
    with warnings.catch_warnings():  # scipy warns of undefined resamples; they are counted below
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        drawn = scipy.stats.bootstrap(
            indices, resampled, n_resamples=resamples, method="percentile", vectorized=False, rng=seed
        ).bootstrap_distribution
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < (1 - UNDEFINED) * resamples:
        return unknown
    low, high = np.quantile(defined, [TAIL, 1 - TAIL])
    return replace(unknown, lower=float(low), upper=float(high))


def from_draws(value: float, draws: ArrayLike, n: int) -> Interval:
    """The interval of `value` from resamples made elsewhere: several statistics can share one costly resampling.

    It is widened to contain `value`: where resamples lie beside it (a rank falls when prompts repeat), their quantiles
    alone would let a value beyond a bound pass under it.
    """
    drawn = np.asarray(draws, dtype=float)
    if drawn.ndim != 1 or len(drawn) < 2 or not np.isfinite(drawn).all():
        raise InputError(f"draws of shape {drawn.shape} give no interval; pass at least two finite numbers")
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL])
    mean = _finite(value, "the value")
    return Interval(mean=mean, lower=min(float(low), mean), upper=max(float(high), mean), n=n, kind="prompts")


def difference(first: Interval, second: Interval) -> Interval:
    """`first` minus `second`, two independent estimates, from their own intervals (MOVER; Zou and Donner 2008).

    Estimates that rise and fall together (the same prompts) get an interval that is too wide, not too narrow.
    """
    mean, n = first.mean - second.mean, min(first.n, second.n)
    if first.bounds is None or second.bounds is None:
        return Interval(mean=mean, lower=None, upper=None, n=n, kind="difference")
    (low_1, high_1), (low_2, high_2) = first.bounds, second.bounds
    down = math.hypot(max(first.mean - low_1, 0), max(high_2 - second.mean, 0))
    up = math.hypot(max(high_1 - first.mean, 0), max(second.mean - low_2, 0))
    return Interval(mean=mean, lower=mean - down, upper=mean + up, n=n, kind="difference")


# --- rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """`at_least bound [null]`, `at_most bound` or `beats_control`, as the registry writes them."""

    kind: Literal["at_least", "at_most", "beats_control"]
    bound: float | None = None
    null: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("at_least", "at_most", "beats_control"):
            raise InputError(f"unknown rule {self.kind!r}; known: at_least, at_most, beats_control")
        if (self.bound is None) != (self.kind == "beats_control"):
            raise InputError(
                f"rule {self.kind} with bound {self.bound}; at_least and at_most need one, beats_control not"
            )
        if self.kind != "at_least" and self.null != 0:
            raise InputError(f"rule {self.kind} with null {self.null}; only at_least has a null")
        _finite(self.bound or 0.0, "the bound of a rule")
        _finite(self.null, "the null of a rule")

    @classmethod
    def parse(cls, value: Any) -> "Rule":
        """`beats_control`, `{at_most: x}` or `{at_least: x, null: n}`; YAML reads the bare key `null` as None."""
        if value == "beats_control":
            return cls("beats_control")
        keys = {"null" if key is None else key: x for key, x in value.items()} if isinstance(value, dict) else {}
        if set(keys) not in ({"at_most"}, {"at_least"}, {"at_least", "null"}):
            raise InputError(f"unknown rule {value!r}; known: {{at_least: x, null: n}}, {{at_most: x}}, beats_control")
        if any(isinstance(x, bool) or not isinstance(x, int | float) for x in keys.values()):
            raise InputError(f"rule {value!r} has a bound that is no number; write one")
        if "at_most" in keys:
            return cls("at_most", float(keys["at_most"]))
        return cls("at_least", float(keys["at_least"]), float(keys.get("null", 0.0)))

    @property
    def in_words(self) -> str:
        """`at least 0.25, above 0`: the mean reaches .25 and the interval lies above 0."""
        if self.kind == "beats_control":
            return AGAINST_CONTROL
        return f"at most {self.bound:g}" if self.kind == "at_most" else f"at least {self.bound:g}, above {self.null:g}"


@dataclass(frozen=True)
class Control:
    """What an effect is compared with: `effect` is its mean over seeds, `draws` the control draws of all seeds."""

    effect: float
    draws: tuple[float, ...]

    @property
    def high(self) -> float:
        """95th percentile of the pooled draws (linear interpolation)."""
        return float(np.quantile(self.draws, CONTROL_QUANTILE))


def against_control(
    effects: Sequence[float], draws: Sequence[Sequence[float]], prompts: Interval | None = None
) -> tuple[Interval, Control]:
    """What `beats_control` judges: the interval of (effect - mean of its draws) over seeds, and the pooled draws.

    `draws[i]` belongs to `effects[i]`. With one seed, `prompts` is the interval of the effect over prompts; the
    uncertainty of the mean of the draws (t interval) is added to it. Without `prompts` the bounds are unknown.
    """
    values = _values(effects, "effects per seed")
    if len(draws) != len(values):
        raise InputError(
            f"{len(values)} effects but draws for {len(draws)} seeds; give one list of control draws a seed"
        )
    per_seed = [_values(list(one), "control draws") for one in draws]
    control = Control(statistics.mean(values), tuple(draw for one in per_seed for draw in one))
    if len(values) == 1 and prompts is not None:
        return difference(prompts, over_seeds(per_seed[0])), control
    margins = [value - statistics.mean(one) for value, one in zip(values, per_seed, strict=True)]
    return over_seeds(margins), control


def decide(interval: Interval, rule: Rule, control: Control | None = None) -> Verdict:
    """The registry's rules, to the letter; unknown bounds are undecided.

    at_least x [null n]: holds if mean >= x and lower > n; fails if upper < x. at_most x: holds if upper <= x; fails if
    lower > x. beats_control (`interval` and `control` from `against_control`): holds if lower > 0 and the effect is
    above the 95th percentile of the pooled draws; fails if upper < .02. Conditions are tried in this order, so a margin
    surely between 0 and .02 holds. An interval beside its own mean that would both hold and fail at_least is undecided.
    """
    if (control is None) == (rule.kind == "beats_control"):
        needed = "with" if control is None else "without"
        raise InputError(f"rule {rule.kind} is judged {needed} a control; see `against_control`")
    if interval.bounds is None:
        return Verdict.UNDECIDED
    mean, low, high = (round(number, DIGITS) for number in (interval.mean, *interval.bounds))
    bound = round(rule.bound or 0.0, DIGITS)
    if control is not None:
        holds = low > 0 and round(control.effect, DIGITS) > round(control.high, DIGITS)
        fails = high < NEGLIGIBLE and not holds
    elif rule.kind == "at_least":
        holds, fails = mean >= bound and low > rule.null, high < bound
    else:
        holds, fails = high <= bound, low > bound
    if holds == fails:
        return Verdict.UNDECIDED
    return Verdict.HOLDS if holds else Verdict.FAILS


def judge(
    rule: Rule, values: Sequence[float], draws: Sequence[Sequence[float]] = (), prompts: Interval | None = None
) -> tuple[Verdict, Interval, Control | None]:
    """The verdict on one value a seed, the interval it rests on and the pooled control draws, if there are any.

    `draws` as in `against_control`; only beats_control judges by them. `prompts`, the interval over prompts, is used
    with one seed only. The interval is of the value, for beats_control of effect minus control.
    """
    own = prompts if prompts is not None and len(values) == 1 else over_seeds(values)
    margin, control = against_control(values, draws, prompts) if draws else (None, None)
    if rule.kind != "beats_control" or margin is None:
        return decide(own, rule), own, control
    return decide(margin, rule, control), margin, control


# --- ranking ----------------------------------------------------------------------------------------------------------


def auc(scores: ArrayLike, labels: ArrayLike, *, sign_free: bool = False) -> float:
    """Chance that a score of label 1 exceeds one of label 0 (ties count half).

    `sign_free`: the larger of that and its complement, for directions without a sign; its chance level lies above .5.
    Raises `InputError` when all labels are equal: check before asking, and record the part as not testable.
    """
    values, truth = np.asarray(_values(scores, "scores")), np.asarray(_values(labels, "labels"))
    if len(values) != len(truth):
        raise InputError(f"{len(values)} scores but {len(truth)} labels; give one label a score")
    if not set(truth) <= {0.0, 1.0}:
        raise InputError(f"labels {sorted(set(truth))[:4]} are not 0 and 1; threshold them first")
    if len(set(truth)) < 2:
        raise InputError(f"labels are all equal ({truth[0]:g}), so an AUC is undefined; check before asking for it")
    area = float(roc_auc_score(truth, values))
    return max(area, 1 - area) if sign_free else area
