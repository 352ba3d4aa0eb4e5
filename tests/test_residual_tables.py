"""The parts of hd.1 and hd.2 on planted shifts whose error, gain and rank are known; meanings are what is resampled."""

import numpy as np
import pytest
import torch

from lib import residual, residual_tables
from lib.errors import InputError

D, N = 12, 240
GROUPS = [[row, row + 1] for row in range(0, N, 2)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def errors():
    """Three blocks: a pure offset, an affine map, and an affine map plus noise of a tenth of the shift's energy."""
    weight, offset = 0.3 * normal(D, D, seed=1), normal(D, seed=2)
    before, test = normal(3, N, D, seed=3), normal(3, N, D, seed=4)

    def tuned(x, seed):
        mapped = x[1:] + x[1:] @ weight + offset
        noise = normal(N, D, seed=seed) * (mapped[1] - x[2]).square().mean().sqrt() * 0.1**0.5
        return torch.stack([x[0] + offset, mapped[0], mapped[1] + noise])

    mixed = np.random.default_rng(0).permutation(N)
    return residual.map_errors(before, tuned(before, 5), test, tuned(test, 6), mixed)


def test_the_three_maps_leave_what_was_planted(errors):
    curves = residual_tables.error_curves(errors, GROUPS, seed=0, resamples=100).pivot(
        index="map", columns="block", values="error"
    )
    assert curves.loc["affine", [0, 1]].max() < 1e-12
    assert curves.loc["affine", 2] == pytest.approx(0.1 / 1.1, rel=0.15)
    assert curves.loc["constant", 0] < 1e-12
    assert curves.loc["constant", 1] > 0.2
    assert curves.loc["shuffled", 0] > 0.5  # it cannot know which prompt it is fitted on
    assert (curves.loc["shuffled"] > curves.loc["affine"] + 0.3).all()


def test_error_and_gain_have_intervals_around_them(errors):
    error = residual_tables.relative_error(errors, "affine", 2, GROUPS, seed=0, resamples=200)
    affine, moved = (values[2].sum().item() for values in errors["affine"])
    constant = errors["constant"][0][2].sum().item()
    assert error.mean == pytest.approx(affine / moved)
    gain = residual_tables.gain_over_constant(errors, 2, GROUPS, seed=0, resamples=200)
    assert gain.mean == pytest.approx((constant - affine) / moved)
    for interval in (error, gain):
        assert interval.lower < interval.mean < interval.upper


def test_prompts_of_one_meaning_are_resampled_together(errors):
    """With twins as one group the interval is wider than with every prompt on its own."""
    error, moved = (values.clone() for values in errors["affine"])
    twins = {"affine": (error.repeat_interleave(2, dim=1), moved.repeat_interleave(2, dim=1))}
    together = [[2 * row, 2 * row + 1] for row in range(N)]
    apart = [[row] for row in range(2 * N)]
    wide, narrow = (
        residual_tables.relative_error(twins, "affine", 2, groups, seed=0, resamples=400)
        for groups in (together, apart)
    )
    assert (wide.upper - wide.lower) > 1.2 * (narrow.upper - narrow.lower)


def planted(ranks, seed=0):
    """A shift of exactly these ranks, block by block, all directions of one size."""
    return torch.stack(
        [
            normal(N, D, seed=seed + b)[:, :rank] @ torch.eye(D, dtype=torch.float64)[:rank]
            for b, rank in enumerate(ranks)
        ]
    )


def test_rank_parts_follow_the_registrys_words():
    shifts = {"SFT": planted([1, 1, 2, 6, 2, 2]), "DPO": planted([1, 1, 1, 3, 5, 6], seed=50)}
    ranks = {
        kind: {name: residual.ranks(shift, 0.999, centred) for name, shift in shifts.items()}
        for kind, centred in residual_tables.KINDS.items()
    }
    draws = {
        kind: residual_tables.resampled_ranks(shifts, GROUPS, 0.999, centred, 30, seed=0)
        for kind, centred in residual_tables.KINDS.items()
    }
    parts = residual_tables.rank_parts(ranks, draws, width=D, n=N)
    assert parts["hd.2.low"].mean == pytest.approx(6 / 12)
    assert parts["hd.2.shape"].mean == pytest.approx(6 / 1)  # first third of six blocks: the first two
    assert parts["hd.2.dpo"].mean == pytest.approx((3 + 4) / 2)  # last third: the last two
    assert parts["hd.2.centred.low"].mean == pytest.approx(6 / 12)
    benign = residual_tables.specific_part(
        {"SFT": [1, 2], "benign": [3, 5]}, {"SFT": np.ones((9, 2)), "benign": np.full((9, 2), 4.0)}, N
    )
    assert benign.mean == 2.5
    assert (benign.lower, benign.upper) == (2.5, 3.0)


def test_rank_curves_bound_every_block():
    shift = {"SFT": planted([1, 3])}
    ranks = {"uncentred": {"SFT": residual.ranks(shift["SFT"], 0.9, False), "random": [9, 9]}}
    draws = {"uncentred": residual_tables.resampled_ranks(shift, GROUPS, 0.9, False, 25, seed=0)}
    curves = residual_tables.rank_curves(ranks, draws)
    assert len(curves) == 4
    assert (curves["lower"] <= curves["rank"]).all()
    assert (curves["upper"] >= curves["rank"]).all()
    random = curves[curves["series"] == "random"]
    assert random["lower"].tolist() == random["upper"].tolist() == [9, 9]


def test_shifts_and_meanings_must_belong_together():
    with pytest.raises(InputError, match="do not belong together"):
        residual_tables.resampled_ranks({"SFT": planted([1])}, GROUPS[:-1], 0.9, False, 5, seed=0)
