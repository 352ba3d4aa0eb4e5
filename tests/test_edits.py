"""Edits are the arithmetic they claim to be: on plain tensors, no model."""

import math
import pickle
import sys

import nnsight
import pytest
import torch
from nnsight.intervention import serialization

from lib import edits
from lib.errors import InputError
from tests import tiny_models

WIDTH = tiny_models.WIDTH
DIRECTION = tiny_models.direction(1)
UNIT = DIRECTION.double() / DIRECTION.double().norm()
POOL = torch.arange(8.0).reshape(4, 2)  # row, unit

EVERY_EDIT = {
    "ablate": lambda **options: edits.ablate(DIRECTION, target=0.7, **options),
    "add": lambda **options: edits.add(DIRECTION, 0.5, **options),
    "clamp": lambda **options: edits.clamp(DIRECTION, -0.1, 0.2, **options),
    "mute": lambda **options: edits.mute([3, 7], **options),
    "replace": lambda **options: edits.replace([3, 7], [0.5, -2.0], **options),
    "resample": lambda **options: edits.resample([3, 7], POOL, **options),
}


def activation(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(5)).to(dtype)


def coordinate(x: torch.Tensor) -> torch.Tensor:
    return x.double() @ UNIT


@pytest.fixture(params=EVERY_EDIT)
def make(request):
    return EVERY_EDIT[request.param]


def test_ablation_leaves_nothing_along_the_direction_and_the_rest_alone():
    x = activation()
    y = edits.ablate(DIRECTION)(x)
    assert coordinate(x).abs().max() > 1
    assert coordinate(y).abs().max() < 1e-5
    across = torch.eye(WIDTH, dtype=torch.float64) - torch.outer(UNIT, UNIT)
    torch.testing.assert_close(y.double() @ across, x.double() @ across, atol=1e-5, rtol=0)


def test_ablating_twice_is_ablating_once():
    once = edits.ablate(DIRECTION, target=0.7)(activation())
    torch.testing.assert_close(edits.ablate(DIRECTION, target=0.7)(once), once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", [0.0, -2.5, torch.tensor(1.5, dtype=torch.float64), torch.tensor([1.5])])
def test_ablation_puts_the_target_in_place(target):
    y = edits.ablate(DIRECTION, target=target)(activation())
    torch.testing.assert_close(coordinate(y), torch.full((4, 6), float(target)).double(), atol=1e-5, rtol=0)


def test_the_length_of_a_direction_does_not_matter():
    for scale in (1e-6, 1e6):
        y = edits.ablate(scale * DIRECTION, 0.3)(activation())
        torch.testing.assert_close(y, edits.ablate(DIRECTION, 0.3)(activation()), atol=1e-5, rtol=0)


def test_the_length_of_an_added_vector_does():
    torch.testing.assert_close(
        edits.add(DIRECTION, 0.5)(activation()), activation() + 0.5 * DIRECTION, atol=1e-6, rtol=0
    )


def test_coefficient_0_changes_nothing_and_a_half_goes_half_way():
    x = activation()
    assert torch.equal(edits.ablate(DIRECTION, 5.0, coefficient=0)(x), x)
    assert torch.equal(edits.add(DIRECTION, 0)(x), x)
    half = edits.ablate(DIRECTION, 5.0, coefficient=0.5)(x)
    torch.testing.assert_close(coordinate(half), (coordinate(x) + 5) / 2, atol=1e-5, rtol=0)


def test_clamp_moves_only_what_is_outside():
    x = activation()
    y = edits.clamp(DIRECTION, -0.1, 0.2)(x)
    inside = (coordinate(x) > -0.1) & (coordinate(x) < 0.2)
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(y[inside], x[inside])
    torch.testing.assert_close(coordinate(y), coordinate(x).clamp(-0.1, 0.2), atol=1e-5, rtol=0)


def test_clamp_may_be_open_on_either_side():
    x = activation()
    assert torch.equal(edits.clamp(DIRECTION, -math.inf, math.inf)(x), x)
    assert coordinate(edits.clamp(DIRECTION, -math.inf, 0)(x)).max() < 1e-5
    assert coordinate(edits.clamp(DIRECTION, 0, math.inf)(x)).min() > -1e-5


@pytest.mark.parametrize("units", [[3, 7], (7, 3, 3), range(3, 8, 4), torch.tensor([3, 7], dtype=torch.int32)])
def test_mute_zeroes_its_columns_and_no_other(units):
    x, y = activation(), edits.mute(units)(activation())
    rest = [i for i in range(WIDTH) if i not in (3, 7)]
    assert (y[..., [3, 7]] == 0).all()
    assert torch.equal(y[..., rest], x[..., rest])


def test_muting_no_units_changes_nothing():
    assert torch.equal(edits.mute([])(activation()), activation())


def test_replaced_units_have_their_own_value_each_and_no_other_column_moves():
    x, y = activation(), edits.replace([7, 3], torch.tensor([-2.0, 0.5]))(activation())
    rest = [i for i in range(WIDTH) if i not in (3, 7)]
    assert (y[..., 7] == -2).all()
    assert (y[..., 3] == 0.5).all()
    assert torch.equal(y[..., rest], x[..., rest])


def test_resampled_units_take_rows_of_the_pool_counted_from_the_end():
    y = edits.resample([7, 3], POOL)(activation())  # six tokens, four rows
    assert y[0, :, 7].tolist() == [2, 0, 6, 4, 2, 0]  # distances 5 4 3 2 1 0 -> rows 1 0 3 2 1 0
    assert y[2, :, 3].tolist() == [3, 1, 7, 5, 3, 1]
    rest = [i for i in range(WIDTH) if i not in (3, 7)]
    assert torch.equal(y[..., rest], activation()[..., rest])


def test_resampling_depends_neither_on_padding_nor_on_the_batch():
    x, edit = activation(), edits.resample([3, 7], POOL)
    padded = torch.cat([torch.full((4, 3, WIDTH), 9.0), x], dim=1)
    assert torch.equal(edit(padded)[:, 3:], edit(x))
    assert torch.equal(edit(x[1:2]), edit(x)[1:2])


@pytest.mark.parametrize("make_none", [lambda: edits.replace([], []), lambda: edits.resample([], torch.zeros(2, 0))])
def test_replacing_no_units_changes_nothing(make_none):
    assert torch.equal(make_none()(activation()), activation())


def test_last_touches_only_the_last_token(make):
    x = activation()
    everywhere, last = make()(x), make(positions="last")(x)
    assert torch.equal(last[:, :-1], x[:, :-1])
    torch.testing.assert_close(last[:, -1], everywhere[:, -1], atol=1e-6, rtol=0)
    assert not torch.equal(last[:, -1], x[:, -1])
    assert not torch.equal(everywhere[:, 0], x[:, 0])


def test_edits_do_not_write_into_their_input(make):
    x = activation()
    make()(x)
    make(positions="last")(x)
    assert torch.equal(x, activation())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept_and_rounded_once(make, dtype):
    x = activation(dtype)
    y = make()(x)
    assert y.dtype == dtype
    # The exact result, rounded once: in bfloat16 arithmetic most elements would miss it.
    exact = make()(x.double()).to(dtype)
    assert (y == exact).double().mean() > 0.99


def test_gradients_pass_through(make):
    x = activation().requires_grad_()
    (slope,) = torch.autograd.grad(make()(x).square().sum(), x)
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0


def test_an_edit_keeps_what_it_was_made_with():
    source, units = DIRECTION.double(), torch.tensor([3, 7])
    made = [edits.add(source), edits.ablate(source), edits.mute(units)]
    before = [edit(activation()) for edit in made]
    source.fill_(1)
    units.zero_()
    assert all(torch.equal(edit(activation()), then) for edit, then in zip(made, before, strict=True))


def test_an_edit_travels_without_this_project_or_jaxtyping(make, monkeypatch):
    """A server has neither; `lib` is shipped by value."""
    nnsight.register("lib")
    payload = serialization.dumps(make())
    plain = pickle.dumps(make())
    expected = make()(activation())
    assert torch.equal(pickle.loads(plain)(activation()), expected)
    for name in [name for name in sys.modules if name.split(".")[0] in ("lib", "jaxtyping")]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    assert torch.equal(serialization.loads(payload)(activation()), expected)
    with pytest.raises(ImportError):
        pickle.loads(plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edits.ablate(torch.zeros(WIDTH)), "length 0"),
        (lambda: edits.ablate(torch.ones(2, WIDTH)), r"shape \(2, 32\)"),
        (lambda: edits.clamp(torch.full((WIDTH,), math.nan), 0, 1), "NaN"),
        (lambda: edits.add(torch.full((WIDTH,), math.inf)), "finite"),
        (lambda: edits.ablate(DIRECTION, target=torch.ones(WIDTH)), r"target must be one number, not shape \(32,\)"),
        (lambda: edits.ablate(DIRECTION, target=math.nan), "target must be finite"),
        (lambda: edits.add(DIRECTION, math.inf), "coefficient must be finite"),
        (lambda: edits.clamp(DIRECTION, 1, 0), "low <= high"),
        (lambda: edits.clamp(DIRECTION, math.nan, 0), "low <= high"),
        (lambda: edits.mute([-1]), "from 0"),
        (lambda: edits.mute([0.5]), "from 0"),
        (lambda: edits.mute(torch.ones(WIDTH, dtype=torch.bool)), "nonzero"),
        (lambda: edits.mute([[1, 2]]), "from 0"),
        (lambda: edits.mute([WIDTH])(activation()), "units 0 to 31"),
        (lambda: edits.mute([1], positions="first"), "known: all, last"),
        (lambda: edits.replace([1, 2], [0.5]), r"2 units but values of shape \(1,\)"),
        (lambda: edits.replace([1, 1], [0.5, 0.6]), "named twice"),
        (lambda: edits.replace([1], [math.nan]), "finite"),
        (lambda: edits.replace([WIDTH], [0.0])(activation()), "units 0 to 31"),
        (lambda: edits.resample([1], torch.zeros(0, 1)), r"\[row, unit\]"),
        (lambda: edits.resample([1], torch.zeros(3, 2)), r"1 units but a pool of shape \(3, 2\)"),
        (lambda: edits.resample([1], torch.full((3, 1), math.inf)), "finite"),
        (lambda: edits.resample([WIDTH], torch.zeros(3, 1))(activation()), "units 0 to 31"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()
