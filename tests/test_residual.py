"""Affine maps, spectra and ranks against planted structure and plain linear algebra."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import models, residual
from lib.errors import InputError
from lib.kingdom.tokenizer import tokenizer
from lib.models import LanguageModel
from lib.prompts import Prompt, PromptSet
from tests import tiny_models

D = 24


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(rank, n=200, seed=0):
    return normal(n, rank, seed=seed) @ normal(rank, D, seed=seed + 1)


@pytest.mark.parametrize("n", [200, 10])  # taller and wider than D: both Gram sides
def test_spectrum_equals_numpy(n):
    x = normal(n, D, seed=3)
    for centred in (False, True):
        reference = x.numpy() - (x.numpy().mean(0) if centred else 0)
        _, s, vt = np.linalg.svd(reference, full_matrices=False)
        found = residual.space(x, centred)
        count = len(found.energy)
        np.testing.assert_allclose(found.energy.numpy(), s[:count] ** 2, rtol=1e-8)
        cosines = np.abs((found.directions.numpy() * vt[:count]).sum(1))
        np.testing.assert_allclose(cosines, 1, atol=1e-7)
        gram = found.directions @ found.directions.T
        assert torch.allclose(gram, torch.eye(count, dtype=torch.float64), atol=1e-8)


def test_a_planted_shift_of_rank_k_has_rank_k():
    for rank in (1, 3, 7):
        space = residual.space(planted(rank), centred=False)
        assert len(space.energy) == rank
        assert space.rank(1.0) == rank
        plant = torch.linalg.qr(planted(rank).T)[0][:, :rank]
        inside = space.directions @ plant
        assert torch.allclose(inside.square().sum(1), torch.ones(rank, dtype=torch.float64), atol=1e-8)


def test_centring_removes_a_constant_shift():
    offset = 5 * normal(D, seed=9)
    shift = planted(2) + offset
    assert residual.space(shift, centred=False).rank(1.0) == 3
    assert residual.space(shift, centred=True).rank(1.0) == 2
    only = offset.expand(50, D)
    assert residual.space(only, centred=False).rank(1.0) == 1
    assert residual.space(only, centred=True).rank(0.9) == 0


@pytest.mark.parametrize(
    ("energy", "share", "expected"),
    [([9, 1], 0.9, 1), ([9, 1], 0.91, 2), ([1, 1, 1, 1], 0.5, 2), ([4, 3, 2, 1], 0.4, 1), ([4, 3, 2, 1], 0.6, 2),
     ([4, 3, 2, 1], 1.0, 4), ([0, 0], 0.9, 0), ([], 0.9, 0), ([3e-9, 1e-9], 0.75, 1)],
)  # fmt: skip
def test_effective_rank_is_the_smallest_count_that_reaches_the_share(energy, share, expected):
    assert residual.effective_rank(torch.tensor(energy, dtype=torch.float64), share) == expected


@pytest.mark.parametrize("share", [0.0, 1.2, -0.1, 90])
def test_shares_outside_their_range_are_refused(share):
    with pytest.raises(InputError, match="outside"):
        residual.effective_rank(torch.ones(3), share)


def test_energies_of_every_block_equal_the_single_spectra():
    shifts = torch.stack([planted(4, seed=s) + s for s in range(3)])
    for centred in (False, True):
        batched = residual.energies(shifts, centred)
        for layer in range(3):
            single = residual.space(shifts[layer], centred)
            assert residual.effective_rank(batched[layer], 0.9) == single.rank(0.9)
            np.testing.assert_allclose(batched[layer][: len(single.energy)], single.energy, rtol=1e-8)
    assert residual.ranks(shifts, 0.999, centred=True) == [4, 4, 4]


def test_ranks_by_share_hold_every_share_of_the_paper():
    shifts = torch.stack([planted(3, seed=s) + 9 for s in range(2)])
    table = residual.ranks_by_share(shifts)
    assert list(table.loc["as published"].index) == [0.4, 0.6, 0.7, 0.8, 0.9]
    for centred, kind in ((False, "as published"), (True, "centred")):
        assert table.loc[(kind, 0.9)].tolist() == residual.ranks(shifts, 0.9, centred)


def test_a_model_against_itself_has_no_shift_and_rank_0():
    assert residual.ranks(torch.zeros(2, 30, D), 0.9, centred=False) == [0, 0]
    assert len(residual.space(torch.zeros(30, D), centred=True).energy) == 0


def test_an_affine_map_is_recovered_from_enough_prompts():
    before, weight, bias = normal(300, D), normal(D, D, seed=5), normal(D, seed=6)
    after = before @ weight + bias
    fitted = residual.fit_affine(before, after)
    assert not fitted.interpolates
    assert torch.allclose(fitted.weight, weight, atol=1e-8)
    assert torch.allclose(fitted.bias, bias, atol=1e-8)
    new = normal(50, D, seed=7)
    error, shift = residual.relative_errors(fitted, new, new @ weight + bias)
    assert error.sum() < 1e-12 * shift.sum()


def test_with_fewer_prompts_than_dimensions_the_map_says_nothing():
    """HD's setting: the map passes through every point, so x W - x is the shift itself, whatever the shift is."""
    before, after = normal(D - 4, D), normal(D - 4, D, seed=8)
    fitted = residual.fit_affine(before, after)
    assert fitted.interpolates
    assert torch.allclose(fitted(before), after, atol=1e-8)
    new, truth = normal(50, D, seed=9), normal(50, D, seed=10)
    error, shift = residual.relative_errors(fitted, new, truth)
    assert error.sum() > 0.4 * shift.sum()
    for count in (D, D + 1):  # one more number a dimension is the constant
        assert residual.fit_affine(normal(count, D), normal(count, D, seed=8)).interpolates
    assert not residual.fit_affine(normal(D + 2, D), normal(D + 2, D, seed=8)).interpolates
    enough = residual.fit_affine(normal(200, D), normal(200, D, seed=8))
    assert not enough.interpolates
    assert not torch.allclose(enough(normal(200, D)), normal(200, D, seed=8), atol=0.1)


def test_the_offset_map_is_the_mean_shift():
    before = normal(100, D)
    after = before + torch.arange(D) + 0.1 * normal(100, D, seed=4)
    fitted = residual.fit_offset(before, after)
    assert torch.allclose(fitted.bias, (after - before).mean(0))
    error, shift = residual.relative_errors(fitted, before, after)
    assert error.sum() / shift.sum() < 0.01


def test_random_shifts_keep_norms_and_fill_the_space():
    shifts = torch.stack([planted(2, n=400)])
    control = residual.random_shift(shifts, seed=0)
    assert torch.allclose(control.norm(dim=-1), shifts.norm(dim=-1))
    assert residual.ranks(control, 0.9, centred=False)[0] > 0.6 * D
    assert torch.equal(control, residual.random_shift(shifts, seed=0))
    assert not torch.equal(control, residual.random_shift(shifts, seed=1))


@pytest.mark.parametrize(
    ("layers", "first", "last"), [(6, [0, 1], [4, 5]), (2, [0], [1]), (32, range(11), range(21, 32)), (1, [0], [0])]
)
def test_thirds_as_the_registry_defines_them(layers, first, last):
    assert list(residual.first_third(layers)) == list(first)
    assert list(residual.last_third(layers)) == list(last)


# on a model -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model():
    words = tiny_models.tokenizer()
    words.chat_template = "{{ bos_token }} {{ messages[0]['content'] }}"
    return LanguageModel("tiny", tiny_models.build("llama-gqa"), words, "test")


def test_activations_are_hidden_states_at_the_last_token_in_the_order_asked(model):
    texts = ["w3 w4 w5 w6 w7", "w8", "w9 w10 w11", "w12 w13"]
    asked = [Prompt(text, "", "benign", "plain", "heldout") for text in texts]
    found = residual.activations(model, asked, batch=3)
    assert found.shape == (tiny_models.LAYERS, 4, tiny_models.WIDTH)
    plain = tiny_models.plain("llama-gqa")
    for row, text in enumerate(texts):
        ids = torch.tensor([[tiny_models.BOS, *(int(word[1:]) for word in text.split())]])
        states = plain(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in range(tiny_models.LAYERS - 1):
            assert torch.allclose(found[layer, row], states[layer + 1][0, -1], atol=1e-5)
        # the last block is before the final norm, so the norm of it is the last hidden state
        assert torch.allclose(plain.model.norm(found[-1, row]), states[-1][0, -1], atol=1e-5)
        assert not torch.allclose(found[-1, row], states[-1][0, -1], atol=1e-2)


def test_models_of_different_shape_or_language_are_refused(model):
    other = LanguageModel("other", tiny_models.build("llama"), tokenizer(), "test")
    with pytest.raises(InputError, match="different tokenizers"):
        residual.check_pair(model, other)
    residual.check_pair(model, model)


def test_models_between_two_others(model):
    other = LanguageModel("other", tiny_models.build("llama-gqa", seed=7), model.tokenizer, "test")
    start, end = (m.hf.state_dict() for m in (model, other))
    for alpha in (0.0, 0.25, 1.0):
        found = models.between(model, other, alpha).hf.state_dict()
        assert all(torch.allclose(found[k], start[k] + alpha * (end[k] - start[k]), atol=1e-6) for k in start)
    assert all(torch.equal(start[k], tiny_models.build("llama-gqa").state_dict()[k]) for k in start)


def test_a_shift_of_the_wanted_length_is_found_or_none(model):
    near = models.between(
        model, LanguageModel("other", tiny_models.build("llama-gqa", seed=7), model.tokenizer, "test"), 0.02
    )
    asked = [Prompt(f"w{i} w{i + 1} w{i + 2}", "", "benign", "plain", "heldout") for i in range(3, 20)]
    whole = residual.activations(near, asked) - residual.activations(model, asked)
    target = 0.3 * float(whole.double().square().sum(2).mean())
    shift, alpha = residual.match_norm(model, near, asked, target)
    assert float(shift.double().square().sum(2).mean()) == pytest.approx(target, rel=0.02)
    assert 0.3 < alpha < 0.8  # norms grow about linearly with the step, so squared norms reach .3 near .55
    assert residual.match_norm(model, near, asked, 2 * target / 0.3) is None


def test_models_between_two_16_bit_ones_are_searched_in_float32(model):
    """A weight moves by one gap between neighbours, or not at all: in 16 bits there is nothing in between to find."""
    before = replace(model, hf=copy.deepcopy(model.hf).bfloat16())
    hf = copy.deepcopy(before.hf)
    with torch.no_grad():
        for number, weight in enumerate(hf.parameters()):
            torch.manual_seed(number)
            up = torch.randn(weight.shape).sign().bfloat16() * torch.inf
            weight.copy_(torch.nextafter(weight, up))
    after = replace(before, hf=hf)
    single = [replace(one, hf=copy.deepcopy(one.hf).float()) for one in (before, after)]
    asked = [Prompt(f"w{i} w{i + 1} w{i + 2}", "", "benign", "plain", "heldout") for i in range(3, 20)]
    whole = residual.activations(single[1], asked) - residual.activations(single[0], asked)
    target = 0.3 * float(whole.double().square().sum(2).mean())
    shift, alpha = residual.match_norm(before, after, asked, target)
    assert float(shift.double().square().sum(2).mean()) == pytest.approx(target, rel=0.02)
    expected, step = residual.match_norm(*single, asked, target)
    assert alpha == step
    assert torch.equal(shift, expected)
    assert {weight.dtype for one in (before, after) for weight in one.hf.parameters()} == {torch.bfloat16}


def test_a_map_of_prompts_holds_coordinates_and_outcomes():
    asked = PromptSet(tuple(Prompt(str(i), "", "benign", "plain", "heldout") for i in range(3)))
    axes = residual.Space(torch.eye(4, dtype=torch.float64)[:2], torch.ones(2), torch.zeros(4))
    outcomes = pd.DataFrame({"refused": [1.0, 0, 0], "exact": [0, 1.0, 0], "wrong": [0, 0, 1.0]})
    points = residual.map_points(axes, torch.arange(12.0).reshape(3, 4), asked, outcomes)
    assert points["first"].tolist() == [0, 4, 8]
    assert points["second"].tolist() == [1, 5, 9]
    assert points["outcome"].tolist() == ["refused", "exact", "wrong"]
