"""Intervals against closed forms and against simulated worlds whose truth is known; rules against the registry's text.

Simulated rates are compared with the rate the theory gives, within four standard errors of the simulation.
"""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import stats
from lib.errors import InputError
from lib.stats import Control, Interval, Rule, Verdict

HOLDS, FAILS, UNDECIDED = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED
T4 = 2.7764451051977987  # 97.5 % point of Student's t with 4 degrees of freedom (tables)
numbers = st.floats(-1e3, 1e3)
quick = settings(deadline=None, max_examples=80, derandomize=True)


def interval(mean, lower, upper):
    return Interval(mean=mean, lower=lower, upper=upper, n=5, kind="seeds")


def near(rate, expected, trials, low=None, high=None):
    """Whether a simulated rate agrees with theory; `low` and `high` widen it where theory is only asymptotic."""
    error = 4 * math.sqrt(max(expected * (1 - expected), 1e-9) / trials)
    return (expected if low is None else low) - error <= rate <= (expected if high is None else high) + error


# --- intervals --------------------------------------------------------------------------------------------------------


def test_over_seeds_closed_form():
    got = stats.over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    half = T4 * math.sqrt(2.5 / 5)
    assert (got.mean, got.n, got.kind) == (3.0, 5, "seeds")
    assert got.bounds == pytest.approx((3 - half, 3 + half), abs=1e-12)


def test_over_seeds_of_one_and_of_equal_values():
    assert stats.over_seeds([0.3]).bounds is None
    assert stats.over_seeds([0.1] * 3).bounds == (0.1, 0.1)  # a float sum divided by 3 would be .10000000000000002


@quick
@given(st.lists(numbers, min_size=2, max_size=8), st.randoms())
def test_over_seeds_ignores_order(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert stats.over_seeds(shuffled) == stats.over_seeds(values)


@quick
@given(st.lists(numbers, min_size=2, max_size=8), numbers, st.floats(-10, 10))
def test_over_seeds_moves_with_its_values(values, shift, scale):
    before, after = stats.over_seeds(values), stats.over_seeds([scale * value + shift for value in values])
    expected = sorted(scale * bound + shift for bound in before.bounds)
    assert after.bounds == pytest.approx(expected, abs=1e-7)


def test_t_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(2.0, 3.0, size=(3000, 5))
    inside = [low <= 2.0 <= high for low, high in (stats.over_seeds(row).bounds for row in draws)]
    assert near(np.mean(inside), 0.95, len(inside))


def wilson_by_hand(successes, n, z=1.959963984540054):
    rate, spread = successes / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@quick
@given(st.integers(1, 1000), st.data())
def test_wilson_closed_form_and_mirror(n, data):
    successes = data.draw(st.integers(0, n))
    got, mirrored = stats.wilson(successes, n), stats.wilson(n - successes, n)
    assert got.bounds == pytest.approx(wilson_by_hand(successes, n), abs=1e-9)
    assert got.bounds == pytest.approx((1 - mirrored.upper, 1 - mirrored.lower), abs=1e-9)
    assert got.lower - 1e-12 <= got.mean <= got.upper + 1e-12
    assert got.upper - got.lower > 0


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_wilson_coverage_exactly(rate):
    n = 128
    weights = scipy.stats.binom.pmf(np.arange(n + 1), n, rate)
    bounds = [stats.wilson(successes, n).bounds for successes in range(n + 1)]
    coverage = sum(weight for weight, (low, high) in zip(weights, bounds, strict=True) if low <= rate <= high)
    assert 0.92 < coverage < 0.98


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(InputError, match="no rate"):
        stats.wilson(successes, n)


def test_over_prompts_covers_the_truth():
    draws = np.random.default_rng(1).gamma(4.0, 1.0, size=(500, 120))
    inside = [low <= 4.0 <= high for low, high in (stats.over_prompts(row, 0, 300).bounds for row in draws)]
    assert near(np.mean(inside), 0.95, len(inside), low=0.93)


def test_over_prompts_agrees_with_the_normal_interval():
    values = np.random.default_rng(2).normal(size=400)
    half = 1.96 * values.std(ddof=1) / 20
    got = stats.over_prompts(values, seed=3, resamples=4000)
    assert got.kind == "prompts"
    assert got.bounds == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_over_prompts_is_repeatable_and_seeded():
    values = np.random.default_rng(4).normal(size=50)
    first, again, other = (stats.over_prompts(values, seed, 200) for seed in (0, 0, 1))
    assert first == again
    assert first.bounds != other.bounds


@quick
@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=40))
def test_over_prompts_of_answers_is_wilson(values):
    assert stats.over_prompts(values, 0, 50) == stats.wilson(sum(values), len(values))


def test_equal_values_do_not_pretend_to_certainty():
    ceiling = stats.wilson(0, 64).upper
    assert stats.over_prompts([0] * 64, 0, 50).bounds == pytest.approx((0, ceiling))
    assert stats.over_prompts([0] * 64, 0, 50, span=(-1, 1)).bounds == pytest.approx((-ceiling, ceiling))
    assert stats.over_prompts([-1] * 64, 0, 50, span=(-1, 1)).bounds == pytest.approx((-1, -1 + 2 * ceiling))
    assert stats.over_prompts([0.37] * 64, 0, 50).bounds is None
    assert stats.over_prompts([0.37], 0, 50).bounds is None
    with pytest.raises(InputError, match="span"):
        stats.over_prompts([2.0, 3.0], 0, 50, span=(0, 1))


def test_a_span_changes_nothing_where_values_differ():
    values = [-1.0, -0.5, 0.0, 0.5, 1.0] * 4
    assert stats.over_prompts(values, 0, 200, span=(-1, 1)) == stats.over_prompts(values, 0, 200)


def test_bootstrap_of_a_mean_is_over_prompts():
    values = np.random.default_rng(5).normal(size=80)
    general = stats.bootstrap(np.mean, values, seed=7, resamples=400)
    assert general.bounds == pytest.approx(stats.over_prompts(values, 7, 400).bounds, abs=1e-9)


def test_pairing_matters_and_rows_stay_together():
    noise = np.random.default_rng(6).normal(size=(200, 2))
    before, after = 10 * noise[:, :1] + np.zeros((200, 3)), 10 * noise[:, :1] + 1 + 0.1 * noise[:, 1:]

    def rise(first, second):
        return float(second.mean() - first.mean())

    paired = stats.bootstrap(rise, before, after, seed=0, resamples=300)
    loose = stats.bootstrap(rise, before, after, seed=0, resamples=300, paired=False)
    assert paired.upper - paired.lower == pytest.approx(4 * 0.1 / math.sqrt(200), rel=0.25)
    assert loose.upper - loose.lower > 20 * (paired.upper - paired.lower)


def test_bootstrap_of_an_auc_covers_the_truth():
    truth = scipy.stats.norm.cdf(1 / math.sqrt(2))  # two normals one deviation apart
    random, inside = np.random.default_rng(8), []
    labels = np.repeat([0, 1], 40)

    def area(scores, labels):  # Mann and Whitney's U, by ranks: quicker than scikit-learn and independent of it
        ranks = scipy.stats.rankdata(scores)[labels == 1]
        positive = len(ranks)
        return (ranks.sum() - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))

    for _ in range(150):
        scores = random.normal(size=80) + labels
        low, high = stats.bootstrap(area, scores, labels, seed=0, resamples=150).bounds
        inside.append(low <= truth <= high)
    assert near(np.mean(inside), 0.95, len(inside), low=0.92)


def test_bootstrap_where_resamples_are_undefined():
    labels, scores = np.array([1] + [0] * 9), np.arange(10.0)
    assert stats.bootstrap(stats.auc, scores, labels, seed=0, resamples=100).bounds is None  # a third lose the 1
    labels = np.array([1] * 4 + [0] * 6)  # (.6 ** 10 + .4 ** 10): one resample in 160
    assert stats.bootstrap(stats.auc, scores, labels, seed=0, resamples=400).bounds is not None
    with pytest.raises(InputError, match="all equal"):
        stats.bootstrap(stats.auc, scores, np.zeros(10), seed=0, resamples=100)


def test_bootstrap_edges():
    assert stats.bootstrap(np.mean, [3.0], seed=0, resamples=10).bounds is None
    for arrays in ([], [[]], [[1.0, 2.0], [1.0]], [3.0]):
        with pytest.raises(InputError, match="cannot be resampled"):
            stats.bootstrap(np.mean, *arrays, seed=0, resamples=10)


def test_difference_of_independent_means_is_pythagoras():
    first, second = interval(1.0, 0.7, 1.3), interval(0.2, -0.2, 0.6)
    assert stats.difference(first, second).bounds == pytest.approx((0.3, 1.3))
    assert stats.difference(first, interval(0.2, None, None)).bounds is None


def test_difference_covers_the_truth():
    random, inside = np.random.default_rng(9), []
    for _ in range(800):
        answers = int(random.binomial(100, 0.6))
        gap = stats.difference(stats.wilson(answers, 100), stats.over_seeds(random.normal(0.3, 0.1, size=40)))
        inside.append(gap.lower <= 0.3 <= gap.upper)
    assert near(np.mean(inside), 0.95, len(inside), low=0.93, high=0.97)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_everywhere(bad):
    for build in (
        lambda: stats.over_seeds([0.1, bad]),
        lambda: stats.over_prompts([0.1, bad], 0, 50),
        lambda: stats.bootstrap(np.mean, [0.1, bad], seed=0, resamples=50),
        lambda: stats.against_control([bad], [[0.1, 0.2]]),
        lambda: stats.against_control([0.1], [[0.1, bad]]),
        lambda: stats.auc([0.1, bad], [0, 1]),
        lambda: interval(bad, 0, 1),
        lambda: interval(0, 0, bad),
        lambda: Rule("at_most", bad),
    ):
        with pytest.raises(InputError):
            build()


def test_intervals_that_are_none_are_refused():
    for values in ([], [[1.0]]):
        with pytest.raises(InputError, match="at least one number"):
            stats.over_seeds(values)
    with pytest.raises(InputError, match="above the upper"):
        interval(0, 1, -1)
    with pytest.raises(InputError, match="both bounds or none"):
        interval(0, None, 1)


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "lower", "upper", "expected"),
    [
        (0.25, 0.01, 0.5, HOLDS),  # the bound itself is enough
        (0.25, 0.00, 0.5, UNDECIDED),  # the null itself is not excluded
        (0.24, 0.20, 0.3, UNDECIDED),
        (0.1, 0.0, 0.24, FAILS),
        (0.1, 0.0, 0.25, UNDECIDED),
        (-0.5, -0.6, -0.4, FAILS),
        (0.3, 0.1, 0.2, UNDECIDED),  # an interval beside its mean, which would hold and fail
        (0.3, None, None, UNDECIDED),
    ],
)
def test_at_least(mean, lower, upper, expected):
    assert stats.decide(interval(mean, lower, upper), Rule("at_least", 0.25)) is expected


@pytest.mark.parametrize(("lower", "expected"), [(0.51, HOLDS), (0.5, UNDECIDED), (0.2, UNDECIDED)])
def test_at_least_with_a_null(lower, expected):
    assert stats.decide(interval(0.96, lower, 1.0), Rule("at_least", 0.95, null=0.5)) is expected


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [(-0.1, 0.05, HOLDS), (0.01, 0.06, UNDECIDED), (0.05, 0.06, UNDECIDED), (0.051, 0.06, FAILS)],
)
def test_at_most(lower, upper, expected):
    assert stats.decide(interval(0.052, lower, upper), Rule("at_most", 0.05)) is expected


@pytest.mark.parametrize(
    ("lower", "upper", "effect", "expected"),
    [
        (0.1, 0.3, 0.96, HOLDS),
        (0.1, 0.3, 0.95, UNDECIDED),  # equal to the percentile is not above it
        (0.1, 0.3, 0.90, UNDECIDED),
        (0.0, 0.3, 0.96, UNDECIDED),
        (-0.3, 0.019, 0.96, FAILS),
        (-0.3, 0.02, 0.96, UNDECIDED),
        (0.001, 0.019, 0.96, HOLDS),  # holds is tried first
        (0.001, 0.019, 0.90, FAILS),
        (None, None, 0.96, UNDECIDED),
    ],
)
def test_beats_control(lower, upper, effect, expected):
    draws = tuple(np.linspace(0, 1, 101))  # its 95th percentile is .95
    assert stats.decide(interval(0.2, lower, upper), Rule("beats_control"), Control(effect, draws)) is expected


def test_rounding_noise_decides_nothing():
    assert 0.7 - 0.4 < 0.3
    assert stats.decide(interval(0.7 - 0.4, 0.1, 0.5), Rule("at_least", 0.3)) is HOLDS
    assert stats.decide(interval(0.0, 0.0, 0.1 + 0.2), Rule("at_most", 0.3)) is HOLDS
    assert stats.decide(interval(0.3, 1e-17, 0.5), Rule("at_least", 0.3)) is UNDECIDED


def test_a_control_is_given_exactly_when_the_rule_asks():
    control = Control(0.3, (0.1, 0.2))
    with pytest.raises(InputError, match="with a control"):
        stats.decide(interval(0.2, 0.1, 0.3), Rule("beats_control"))
    with pytest.raises(InputError, match="without a control"):
        stats.decide(interval(0.2, 0.1, 0.3), Rule("at_most", 1.0), control)
    with pytest.raises(InputError, match="with a control"):
        stats.judge(Rule("beats_control"), [0.1, 0.2])


def test_against_control_subtracts_each_seeds_own_draws():
    margin, control = stats.against_control([0.5, 0.9], [[0.1, 0.3], [0.6, 0.8]])
    assert margin == stats.over_seeds([0.5 - 0.2, 0.9 - 0.7])
    assert control == Control(0.7, (0.1, 0.3, 0.6, 0.8))
    assert control.high == pytest.approx(0.6 + 0.2 * 0.85)
    with pytest.raises(InputError, match="draws for 1 seeds"):
        stats.against_control([0.5, 0.9], [[0.1, 0.3]])


def test_against_control_of_one_model_adds_the_doubt_about_the_control():
    prompts = Interval(mean=0.5, lower=0.4, upper=0.6, n=100, kind="prompts")
    draws = [0.1, 0.2, 0.3, 0.2]
    margin, _ = stats.against_control([0.5], [draws], prompts)
    doubt = stats.over_seeds(draws).upper - 0.2
    assert margin.bounds == pytest.approx((0.3 - math.hypot(0.1, doubt), 0.3 + math.hypot(0.1, doubt)))
    assert stats.against_control([0.5], [draws])[0].bounds is None


def test_judge_takes_the_interval_the_rule_needs():
    rule, draws = Rule("at_least", 0.25), [[0.0] * 5, [0.1] * 5]
    assert stats.judge(rule, [0.4, 0.5])[1] == stats.over_seeds([0.4, 0.5])
    assert stats.judge(rule, [0.4, 0.5], draws)[1] == stats.over_seeds([0.4, 0.5])
    assert stats.judge(Rule("beats_control"), [0.4, 0.5], draws)[1].mean == pytest.approx(0.4)
    prompts = Interval(mean=0.4, lower=0.3, upper=0.5, n=9, kind="prompts")
    assert stats.judge(rule, [0.4], prompts=prompts)[:2] == (HOLDS, prompts)
    assert stats.judge(rule, [0.4])[0] is UNDECIDED
    assert stats.judge(rule, [0.4, 0.5], prompts=prompts)[1].kind == "seeds"


order = {FAILS: 0, UNDECIDED: 1, HOLDS: 2}


@quick
@given(numbers, st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.floats(-5, 5))
def test_more_of_a_thing_never_speaks_against_having_it(mean, down, up, more, bound):
    low, high = interval(mean, mean - down, mean + up), interval(mean + more, mean + more - down, mean + more + up)
    at_least, at_most = Rule("at_least", bound), Rule("at_most", bound)
    assert order[stats.decide(low, at_least)] <= order[stats.decide(high, at_least)]
    assert order[stats.decide(low, at_most)] >= order[stats.decide(high, at_most)]


@quick
@given(st.lists(st.floats(-1, 1), min_size=5, max_size=5), st.floats(0, 2), st.randoms())
def test_beats_control_grows_with_the_effect_and_ignores_order(effects, more, random):
    draws = np.random.default_rng(0).normal(0, 0.1, size=(5, 8)).tolist()
    rule, larger = Rule("beats_control"), [effect + more for effect in effects]
    before = stats.judge(rule, effects, draws)[0]
    assert order[before] <= order[stats.judge(rule, larger, draws)[0]]
    pairs = list(zip(effects, draws, strict=True))
    random.shuffle(pairs)
    assert stats.judge(rule, [effect for effect, _ in pairs], [draw[::-1] for _, draw in pairs])[0] is before


def rates(rule, effects, draws=()):
    """Share of simulated worlds in which each verdict is given."""
    verdicts = [stats.judge(rule, row, draws[i] if len(draws) else ())[0] for i, row in enumerate(effects)]
    return {verdict: verdicts.count(verdict) / len(verdicts) for verdict in Verdict}


WORLDS = 2000


def worlds(mean, spread=0.1, seed=0):
    return np.random.default_rng(seed).normal(mean, spread, size=(WORLDS, 5)).tolist()


def test_at_least_error_rates():
    rule = Rule("at_least", 0.05)
    nothing = rates(rule, worlds(0.0))
    assert nothing[HOLDS] <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / WORLDS)
    assert near(rates(rule, worlds(0.05))[FAILS], 0.025, WORLDS)
    assert near(rates(Rule("at_least", 0.3), worlds(0.3))[HOLDS], 0.5, WORLDS)  # at the bound: as good as a coin
    assert rates(Rule("at_least", 0.3), worlds(0.6))[HOLDS] > 0.99
    assert rates(Rule("at_least", 0.6), worlds(0.2))[FAILS] > 0.99
    assert near(rates(Rule("at_least", 0.0), worlds(0.0))[HOLDS], 0.025, WORLDS)


def test_at_most_error_rates():
    rule = Rule("at_most", 0.05)
    at_the_bound = rates(rule, worlds(0.05))
    assert near(at_the_bound[HOLDS], 0.025, WORLDS)
    assert near(at_the_bound[FAILS], 0.025, WORLDS)
    assert rates(rule, worlds(-0.3))[HOLDS] > 0.99
    assert rates(rule, worlds(0.4))[FAILS] > 0.99


def test_beats_control_error_rates():
    random = np.random.default_rng(1)
    seed_offsets = random.normal(0, 0.3, size=(WORLDS, 5))  # what a seed does to effect and control alike
    draws = (seed_offsets[..., None] + random.normal(0, 0.05, size=(WORLDS, 5, 40))).tolist()
    rule = Rule("beats_control")

    def effects(margin):
        return (seed_offsets + margin + random.normal(0, 0.05, size=(WORLDS, 5))).tolist()

    assert rates(rule, effects(0.0), draws)[HOLDS] <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / WORLDS)
    at_the_bound = rates(rule, effects(0.02), draws)
    assert at_the_bound[FAILS] <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / WORLDS)
    assert rates(rule, effects(1.5), draws)[HOLDS] > 0.99
    assert rates(rule, effects(-0.3), draws)[FAILS] > 0.99


@pytest.mark.parametrize(
    ("text", "rule", "words"),
    [
        ({"at_least": 0.25}, Rule("at_least", 0.25), "at least 0.25, above 0"),
        ({"at_least": 0.95, None: 0.5}, Rule("at_least", 0.95, 0.5), "at least 0.95, above 0.5"),  # YAML's null key
        ({"at_least": 2, "null": 1}, Rule("at_least", 2.0, 1.0), "at least 2, above 1"),
        ({"at_most": 0.05}, Rule("at_most", 0.05), "at most 0.05"),
        ("beats_control", Rule("beats_control"), "above its control draws"),
    ],
)
def test_rules_as_the_registry_writes_them(text, rule, words):
    assert Rule.parse(text) == rule
    assert rule.in_words == words


@pytest.mark.parametrize("null", [0.1, -0.1])
def test_only_at_least_has_a_null(null):
    assert Rule("at_least", 0.5, null).null == null
    with pytest.raises(InputError, match="only at_least has a null"):
        Rule("at_most", 0.5, null)


@pytest.mark.parametrize(
    "text",
    [
        {"at_least": "much"},
        {"at_least": True},
        {"at_most": 0.1, "null": 0.0},
        {"at_least": 0.1, "at_most": 0.2},
        {"at_leats": 0.1},
        {},
        None,
        "beats",
        {"beats_control": 0.1},
        {"at_most": math.nan},
    ],
)
def test_other_rules_are_refused(text):
    with pytest.raises(InputError):
        Rule.parse(text)


def test_rules_are_consistent():
    for arguments in [("beats_control", 0.1), ("at_least",), ("at_most", 0.1, 0.2), ("about", 0.1)]:
        with pytest.raises(InputError):
            Rule(*arguments)


# --- ranking ----------------------------------------------------------------------------------------------------------


def auc_by_pairs(scores, labels):
    ones, zeros = [[s for s, one in zip(scores, labels, strict=True) if one == k] for k in (1, 0)]
    return sum((a > b) + (a == b) / 2 for a in ones for b in zeros) / (len(ones) * len(zeros))


ranked = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=30).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@quick
@given(ranked)
def test_auc_counts_pairs(pairs):
    scores, labels = zip(*pairs, strict=True)
    area = stats.auc(scores, labels)
    assert area == pytest.approx(auc_by_pairs(scores, labels))
    assert stats.auc([-score for score in scores], labels) == pytest.approx(1 - area)
    assert stats.auc([score**3 + 7 for score in scores], labels) == pytest.approx(area)
    assert stats.auc(scores, labels, sign_free=True) == pytest.approx(max(area, 1 - area))


def test_auc_refuses_what_cannot_be_ranked():
    with pytest.raises(InputError, match="labels are all equal"):
        stats.auc([0.1, 0.2], [1, 1])
    with pytest.raises(InputError, match="one label a score"):
        stats.auc([0.1, 0.2], [1])
    with pytest.raises(InputError, match="not 0 and 1"):
        stats.auc([0.1, 0.2], [1, 2])


def test_intervals_from_draws_contain_their_value():
    plain = stats.from_draws(0.5, np.linspace(0, 1, 1001), 10)
    assert (plain.lower, plain.upper) == (pytest.approx(0.025), pytest.approx(0.975))
    beside = stats.from_draws(0.9, np.linspace(0, 0.5, 101), 10)
    assert beside.upper == 0.9  # a biased resample must not let a value beyond a bound pass under it
    assert stats.decide(beside, stats.Rule("at_most", 0.8)) != "holds"
    with pytest.raises(InputError, match="at least two finite"):
        stats.from_draws(0.5, [0.1], 10)
