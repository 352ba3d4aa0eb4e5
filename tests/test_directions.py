"""Rules and estimators of directions against closed forms, planted structure and counts made another way."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib import directions, figures, residual, stats
from lib.errors import InputError

N, D = 240, 12


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(share, n=N, seed=0):
    labels = np.zeros(n, dtype=int)
    labels[: round(share * n)] = 1
    return np.random.default_rng(seed).permutation(labels)


def planted(gap, along, share=0.4, seed=3, n=N):
    """Unit noise, and label 1 moved by `gap` times the unit vector `along`."""
    labels = labels_of(share, n)
    return normal(n, D, seed=seed) + gap * torch.tensor(labels)[:, None] * along, labels


UNIT = torch.nn.functional.normalize(normal(D, seed=1), dim=0)


# the published rule ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.1, 0.3, 211 / 700, 0.5])
def test_published_accuracy_predicts_as_many_as_there_are(share):
    """Without ties the rule marks the k lowest projections on v, k the number of label 1: counted here by sorting."""
    labels, states, along = labels_of(share), normal(N, D), normal(5, D, seed=4)
    found = directions.published_accuracy(states, along, labels)
    k = labels.sum()
    for v, accuracy in zip(along, found, strict=True):
        lowest = np.argsort((states @ v).numpy())[:k]
        assert accuracy == pytest.approx(1 - 2 * (k - labels[lowest].sum()) / N)
        wrong = N * (1 - accuracy)
        assert wrong == pytest.approx(2 * round(wrong / 2))  # even: every false alarm costs a miss
        assert 1 - 2 * k / N - 1e-12 <= accuracy <= 1


def test_the_sign_of_a_perfect_direction_decides_between_1_and_1_minus_2p():
    labels = labels_of(0.3)
    states = -torch.tensor(labels)[:, None] * UNIT * 50 + normal(N, D)  # refused prompts lie at minus v
    assert directions.published_accuracy(states, UNIT[None], labels) == pytest.approx(1)
    assert directions.published_accuracy(states, -UNIT[None], labels) == pytest.approx(1 - 2 * 0.3)
    assert directions.sign_free_auc(states, -UNIT[None], labels) == 1


def test_a_constant_projection_predicts_label_0_for_all():
    labels = labels_of(0.3)
    assert directions.published_accuracy(torch.ones(N, D), UNIT[None], labels) == pytest.approx(0.7)


def test_directions_that_know_nothing_score_chance_and_majority_is_above_it():
    share = 0.3
    labels, states = labels_of(share, n=1000), normal(1000, D)
    found = directions.published_accuracy(states, normal(2000, D, seed=5), labels)
    # 12 dimensions make draws depend on each other, so the mean is compared loosely
    assert found.mean() == pytest.approx(directions.chance_accuracy(share), abs=0.01)
    assert directions.chance_accuracy(share) == pytest.approx(0.58)
    assert directions.majority_accuracy(share) == directions.majority_accuracy(1 - share) == pytest.approx(0.7)


def test_the_covariance_score_is_twice_the_covariance_and_grows_with_length():
    labels, states = labels_of(0.3), normal(N, D)
    score = directions.covariance_score(states, UNIT[None], labels)[0]
    p = -(states @ UNIT).numpy()
    assert score == pytest.approx(2 * np.cov(p, labels, ddof=0)[0, 1])
    gap = p[labels == 1].mean() - p[labels == 0].mean()
    assert score == pytest.approx(2 * 0.3 * 0.7 * gap)
    assert directions.covariance_score(7 * states, UNIT[None], labels)[0] == pytest.approx(7 * score)


def test_the_published_table_obeys_the_published_rule():
    """Every accuracy of a component is 1 - 2k/700 and lies in [1 - 2p, 1]; hidden state 0, equal for all, is 1 - p."""
    table = figures.published("hd_fig3_accuracy").query("measure == 'accuracy' and prompts == 700")
    table = table[table["series"].isin(["C1", "C2", "best of 100", "C1, DPO"])]
    wrong = (1 - table["value"]) * 700
    assert len(table) == 4 * 33
    above = table["hidden_state"] > 0  # ties at the embedding
    assert (np.abs(wrong[above] / 2 - (wrong[above] / 2).round()) < 0.03).all()
    share = table["positive"] / 700
    assert (table["value"] > 1 - 2 * share - 1e-4).all()
    start = table[table["hidden_state"] == 0]
    assert np.allclose(start["value"], 1 - start["positive"] / 700, atol=1e-4)
    assert directions.chance_accuracy(211 / 700) == pytest.approx(0.579, abs=5e-4)


def test_the_stacked_probe_has_no_intercept_and_is_optimal_on_all_blocks_together():
    states = torch.stack([planted(2.0, UNIT, seed=s)[0] - UNIT for s in (3, 4)])  # classes on both sides of 0
    labels = planted(2.0, UNIT)[1]
    weight = directions.stacked_probe(states, labels)
    x, y = states.flatten(0, 1), torch.tensor(np.tile(labels, 2), dtype=torch.float64)
    slope = weight + x.T @ (torch.sigmoid(x @ weight) - y)  # of |w|^2 / 2 + log-loss: zero at the optimum
    assert slope.norm() < 1e-2 * (x.T @ (0.5 - y)).norm()
    assert directions.cosines(weight[None], UNIT)[0] > 0.9


def test_the_stacked_probe_is_judged_on_the_half_it_has_not_seen():
    """With more dimensions than prompts it fits any labels; on other prompts random labels stay random."""
    states, labels = normal(1, 100, 200), labels_of(0.5, n=100)
    weight = directions.stacked_probe(states, labels)
    assert ((states[0] @ weight > 0).numpy() == labels).mean() == 1
    assert directions.stacked_probe_accuracy(states, labels)[0] < 0.75
    easy, truth = planted(20.0, UNIT, share=0.5)
    shifted = easy - 10 * UNIT  # classes on both sides of 0, as a probe without intercept needs
    assert directions.stacked_probe_accuracy(shifted[None], truth)[0] == 1


# on other prompts -----------------------------------------------------------------------------------------------------
def test_auc_equals_the_pairs_counted_one_by_one():
    labels = labels_of(0.3, n=40)
    states = normal(40, D).round()  # ties
    for v in (UNIT.round(), -UNIT.round()):
        scores = (states @ v).numpy()
        pairs = np.sign(scores[labels == 1][:, None] - scores[labels == 0][None])
        plain = (pairs > 0).mean() + (pairs == 0).mean() / 2
        found = directions.sign_free_auc(states, v[None], labels)[0]
        assert found == pytest.approx(max(plain, 1 - plain))
        assert found == pytest.approx(stats.auc(scores, labels, sign_free=True))


def test_weighted_auc_is_the_auc_of_repeated_prompts():
    rng, labels = np.random.default_rng(0), labels_of(0.4, n=60)
    scores = normal(60).round(decimals=1).numpy()
    weights = rng.integers(0, 3, size=(20, 60))
    found = directions.resampled_auc(scores, labels, weights)
    for row, value in zip(weights, found, strict=True):
        again = np.repeat(np.arange(60), row)
        assert value == pytest.approx(stats.auc(scores[again], labels[again], sign_free=True))
    assert directions.resampled_auc(scores, labels, np.ones((1, 60)))[0] == pytest.approx(
        stats.auc(scores, labels, sign_free=True)
    )


def test_a_resample_without_one_label_is_undefined_not_a_number_made_up():
    weights = np.array([[1, 1, 0, 0], [1, 0, 1, 0]])
    found = directions.resampled_auc(np.arange(4.0), np.array([1, 1, 0, 0]), weights)
    assert np.isnan(found[0])
    assert found[1] == 1


def test_shuffled_labels_reach_the_theoretical_level():
    """AUC under the null has mean 1/2 and variance (n + 1) / (12 a b); the larger of it and its complement lies
    above 1/2 by the mean of a folded normal."""
    ones, zeros = 96, N - 96
    states, rng = normal(N, D), np.random.default_rng(1)
    found = [directions.sign_free_auc(states, UNIT[None], rng.permutation(labels_of(0.4)))[0] for _ in range(800)]
    sd = np.sqrt((N + 1) / (12 * ones * zeros))
    assert np.mean(found) == pytest.approx(0.5 + sd * np.sqrt(2 / np.pi), abs=4 * sd / np.sqrt(800))


def test_log_losses_are_those_of_a_standardised_regression():
    x, labels = planted(1.5, UNIT)
    other, truth = planted(1.5, UNIT, seed=9)
    features, unseen = 5 * x[:, :2].numpy() + 3, 5 * other[:, :2].numpy() + 3
    found = directions.log_losses(features, labels, unseen, truth)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features, labels)
    assert found.mean() == pytest.approx(log_loss(truth, model.predict_proba(unseen)), rel=1e-5)
    assert found.shape == (N,)
    useless = directions.log_losses(np.zeros((N, 1)), labels, np.zeros((N, 1)), truth)
    assert useless.mean() == pytest.approx(-(0.4 * np.log(0.4) + 0.6 * np.log(0.6)), rel=1e-3)  # the labels' entropy


# directions -----------------------------------------------------------------------------------------------------------
def test_a_planted_direction_is_found_by_means_and_probe():
    states, labels = planted(3.0, UNIT, n=4000)
    gap = directions.difference_of_means(states, labels)
    assert gap.norm() == pytest.approx(3.0, rel=0.05)
    assert gap @ UNIT == pytest.approx(3.0, rel=0.05)
    for found in (gap, directions.probe(states, labels)):
        assert directions.cosines(found[None], UNIT)[0] > 0.99


def test_a_probe_discounts_what_varies_and_the_difference_of_means_does_not():
    """For two normal classes the best direction is the inverse covariance times the gap (Fisher)."""
    spread = torch.ones(D, dtype=torch.float64)
    spread[0] = 10.0
    states, labels = planted(0.0, UNIT, n=8000)
    gap = torch.zeros(D, dtype=torch.float64)
    gap[0], gap[1] = 3.0, 1.0
    states = states * spread + torch.tensor(labels)[:, None] * gap
    fisher = gap / spread.square()
    assert directions.cosines(directions.probe(states, labels)[None], fisher)[0] > 0.98
    assert directions.cosines(directions.probe(states, labels)[None], gap)[0] < 0.5
    assert directions.cosines(directions.difference_of_means(states, labels)[None], gap)[0] > 0.98


def test_a_weight_counts_a_prompt_so_many_times():
    states, labels = planted(1.0, UNIT)
    weights = np.random.default_rng(2).integers(0, 3, N)
    rows = np.repeat(np.arange(N), weights)
    weighted = directions.probe(states, labels, weights)
    repeated = directions.probe(states[rows], labels[rows])
    assert torch.allclose(weighted, repeated, atol=1e-3 * float(repeated.norm()))
    assert not torch.allclose(weighted, directions.probe(states, labels), atol=1e-2)


def test_random_directions_fill_their_span_evenly_and_stay_in_it():
    basis = torch.linalg.qr(normal(D, 4, seed=6))[0].T
    inside = directions.random_directions(3000, torch.Generator().manual_seed(0), within=basis)
    assert torch.allclose(inside.norm(dim=1), torch.ones(3000, dtype=torch.float64))
    assert torch.allclose((inside @ basis.T).norm(dim=1), torch.ones(3000, dtype=torch.float64))
    anywhere = directions.random_directions(3000, torch.Generator().manual_seed(0), width=D)
    for drawn, dimensions in ((inside, 4), (anywhere, D)):  # the squared cosine with a fixed direction averages 1/k
        assert float((drawn @ basis[0]).square().mean()) == pytest.approx(1 / dimensions, rel=0.1)


def test_orientation_changes_signs_only_and_does_not_depend_on_the_given_ones():
    given = normal(6, D)
    flipped = given * torch.tensor([1, -1, 1, -1, -1, 1])[:, None]
    found = directions.oriented(given)
    assert torch.equal(found, directions.oriented(flipped))
    assert torch.equal(found.abs(), given.abs())
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("label", [0, 1])
def test_labels_all_equal_give_the_stated_conventions_and_no_nan(label):
    states, labels = normal(N, D), np.full(N, label)
    assert directions.sign_free_auc(states, UNIT[None], labels) == 0.5
    assert directions.probe(states, labels).norm() == 0
    assert directions.difference_of_means(states, labels).norm() == 0
    assert directions.stacked_probe(states[None], labels).norm() == 0
    assert directions.stacked_probe_accuracy(states[None], labels) == 1
    assert directions.cosines(UNIT[None], torch.zeros(D)) == 0
    assert np.isfinite(directions.published_accuracy(states, UNIT[None], labels)).all()
    loss = directions.log_losses(states.numpy(), labels, states.numpy(), labels)
    assert np.allclose(loss, -np.log((N + 1) / (N + 2)))


def test_what_is_no_label_or_no_span_is_refused():
    with pytest.raises(InputError, match=r"not 0 and 1; threshold them"):
        directions.sign_free_auc(normal(4, D), UNIT[None], [0, 1, 2, 1])
    with pytest.raises(InputError, match="one label a prompt"):
        directions.published_accuracy(normal(4, D), UNIT[None], [0, 1])
    generator = torch.Generator()
    for options in ({}, {"width": D, "within": UNIT[None]}, {"within": UNIT[None][:0]}):
        with pytest.raises(InputError, match="not both"):
            directions.random_directions(2, generator, **options)


@pytest.mark.parametrize(("layers", "half"), [(6, [3, 4, 5]), (2, [1]), (5, [3, 4]), (32, range(16, 32))])
def test_the_later_half_as_the_registry_defines_it(layers, half):
    assert list(residual.later_half(layers)) == list(half)
    assert all(2 * block >= layers for block in half)
