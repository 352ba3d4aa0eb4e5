"""Costs of analyses: the timing on a planted clock, and that both sides of a ratio do the same work."""

import numpy as np
import pytest
import torch

from lib import analysis_costs as costs
from lib import tracing


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for `work`."""
    now = {"at": 0.0}
    monkeypatch.setattr(costs.time, "process_time", lambda: now["at"])
    return lambda seconds: lambda: now.update(at=now["at"] + seconds)


def test_ratios_compare_the_two_sides(clock):
    assert costs.ratios(clock(3.0), clock(2.0), rounds=4) == [1.5] * 4


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, -0.5])
def test_a_power_law_is_found_again(power):
    sizes = [64, 128, 256, 512]
    assert costs.slope(sizes, [7.0 * size**power for size in sizes]) == pytest.approx(power)


def test_a_matrix_product_is_counted_as_two_operations_a_multiplication(clock, monkeypatch):
    work = clock(0.5)
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda *_: work())
    assert costs._matrix_rate(10) == pytest.approx(2 * 10**3 / 0.5)


def test_hooks_see_what_a_trace_reads():
    """Else the two would not be two ways to the same numbers."""
    model, plain = costs._model(), costs._model().hf
    asked, encoding = costs._asked(model, 5)
    assert len(asked) == 5
    kept = costs._hooked(plain, encoding)
    read = tracing.forward(model.traced, encoding, model.traced.every("resid"), logits="all").activations
    assert len(kept) == model.layers
    for layer, value in kept.items():
        torch.testing.assert_close(value, read["resid", layer])
    assert not any(block._forward_hooks for block in plain.model.layers)


@pytest.mark.parametrize(("layers", "width"), [(2, 64), (3, 128)])
def test_grown_models_have_the_size_asked_for(layers, width):
    model = costs._grown(layers, width)
    assert (model.layers, model.width, model.hf.config.intermediate_size) == (layers, width, 3 * width)


@pytest.mark.slow
def test_every_cost_is_measured_and_named_once(monkeypatch):
    """With one round of little: the numbers mean nothing."""
    monkeypatch.setattr(costs, "_ROUNDS", 1)
    monkeypatch.setattr(costs, "_STEPS", 1)
    monkeypatch.setattr(costs, "_peak_bytes", lambda times: 100 + times)
    rows = costs.measure()
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    assert all(np.isfinite(row["value"]) for row in rows)
    budgets = {row["name"]: row["budget"] for row in rows}
    assert budgets["trace reading every layer / plain forward, batch 64"] == 1.10
    assert {1.25, 1.5} <= set(budgets.values())
    memory = next(row for row in rows if "memory" in row["name"])
    assert memory["value"] == pytest.approx(104 / 101, rel=1e-3)
    shares = [row["value"] for row in rows if row["name"].startswith("training")]
    assert len(shares) == 2
    assert all(value > 0 for value in shares)
