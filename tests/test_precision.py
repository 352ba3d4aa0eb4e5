"""Weights that are in float32 for a while are afterwards what they were, or what they became, rounded once."""

import copy

import pytest
import torch

from lib import precision
from tests import tiny_models


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_unchanged_model_comes_back_bit_for_bit(dtype):
    model = tiny_models.build("llama-3").to(dtype)
    before, held = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    with precision.in_float32(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert not precision.narrow(model)
    assert precision.narrow(model)
    assert all(torch.equal(before[name], after) for name, after in model.state_dict().items())
    assert all(parameter is held[name] for name, parameter in model.named_parameters())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # tied, as before


def test_what_is_smaller_than_a_gap_adds_up_inside():
    """From 1 the next bfloat16 is 1 + 1/128: sixty-four steps of 1/8192 reach it, and each alone is rounded away."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    model.weight.data.fill_(1)
    with torch.no_grad():
        for _ in range(64):
            model.weight += 1 / 8192
        assert model.weight.item() == 1
        with precision.in_float32(model):
            for _ in range(64):
                model.weight += 1 / 8192
    assert model.weight.item() == 1 + 1 / 128


def test_wider_weights_are_left_alone_and_types_can_be_mixed():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, dtype=torch.float64), torch.nn.Linear(2, 2).half())
    with precision.in_float32(model, model), precision.in_float32(model):
        assert [layer.weight.dtype for layer in model] == [torch.float64, torch.float32]
    assert [layer.weight.dtype for layer in model] == [torch.float64, torch.float16]


def test_weights_are_given_back_after_an_error():
    model = torch.nn.Linear(2, 2).half()
    with pytest.raises(RuntimeError, match="stop"), precision.in_float32(model):
        raise RuntimeError("stop")
    assert model.weight.dtype == torch.float16
