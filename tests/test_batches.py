"""Running out of memory, planted at given sizes: the work goes on with smaller batches and finds the same."""

import gc
import warnings
import weakref

import numpy as np
import pandas as pd
import pytest
import torch

from lib import (
    batches,
    behaviour,
    judges,
    prompt_sets,
    prompts,
    reasoning,
    relevance,
    residual,
    tracing,
    unit_scores,
    utility,
)
from lib.errors import InputError
from tests import tiny_models

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
)
CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
HANDLE = RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
DRIVER = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
SETS = prompt_sets.calibration("tiny", 0)
EXAMPLES = [*SETS["safety"], *SETS["utility"]][:21]
ASKED = [example.prompt for example in EXAMPLES]


def squares(most, problem=CUDA, seen=None):
    """Work that squares its rows and has memory for `most` of them."""

    def work(rows):
        if seen is not None:
            seen.append(len(rows))
        if len(rows) > most:
            raise problem
        return [row**2 for row in rows]

    return work


def gathered(found):
    return {row: value for rows, values in found for row, value in zip(rows, values, strict=True)}


@pytest.mark.parametrize("problem", [CUDA, CPU, CUBLAS, HANDLE, DRIVER])
@pytest.mark.parametrize(
    ("most", "sizes", "new"),
    [(4, [8, 4, 4, 4, 4, 2], 4), (3, [8, 4, *[2] * 9], 2), (1, [8, 4, 2, *[1] * 18], 1)],
)
def test_the_batch_is_halved_until_it_fits_and_the_work_goes_on_from_the_same_place(problem, most, sizes, new):
    seen = []
    with pytest.warns(UserWarning, match=f"out of memory with 8 prompts in a batch: going on with {new},") as told:
        found = list(batches.halving(batches.in_order(18, 8), [1] * 18, squares(most, problem, seen)))
    assert len(told) == 1
    assert [row for rows, _ in found for row in rows] == list(range(18))  # each once, in the order given
    assert gathered(found) == {row: row**2 for row in range(18)}
    assert seen == sizes


def test_with_enough_memory_batches_are_those_given_and_nothing_is_said():
    given = [[3, 1], [0], [2, 4, 5]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [rows for rows, _ in batches.halving(given, [1] * 6, squares(3))] == given


def test_a_second_shortage_is_halved_again_without_another_warning():
    longest = 9

    def work(rows):
        if len(rows) > (4 if longest not in rows else 1):
            raise CUDA
        return rows

    with pytest.warns(UserWarning, match="going on with 4") as told:
        found = list(batches.halving(batches.in_order(10, 8), [1] * 10, work))
    assert len(told) == 1
    assert [row for rows, _ in found for row in rows] == list(range(10))


def test_one_prompt_that_does_not_fit_is_refused_with_its_length_and_the_longest():
    with pytest.raises(InputError, match=r"one prompt of 70 tokens \(the longest has 900\).*shorten"):
        list(batches.halving([[0, 1, 2]], [70, 900, 5], squares(0)))


@pytest.mark.parametrize("problem", [RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(problem):
    seen = []
    with pytest.raises(type(problem)):
        list(batches.halving([[0, 1, 2, 3]], [1] * 4, squares(0, problem, seen)))
    assert seen == [4]


def test_what_the_allocator_of_the_cpu_says_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert batches.out_of_memory(caught.value)
    assert not batches.out_of_memory(RuntimeError("shape mismatch"))


def test_a_failed_try_and_a_finished_batch_leave_nothing_in_memory():
    class Large:
        pass

    alive = []

    def work(rows):
        gc.collect()
        assert not any(reference() for reference in alive), "something of an earlier batch is still there"
        large = Large()
        alive.append(weakref.ref(large))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")  # a new one: errors hold the frames they passed
        return large

    found = batches.halving(batches.in_order(8, 8), [1] * 8, work)
    with pytest.warns(UserWarning, match="going on with 2"):
        next(found)
    while next(found, None) is not None:  # a loop's variable would hold what it was given last
        pass
    assert len(alive) == 6  # 8, 4 and four times 2


# on models ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model():
    return tiny_models.speaking("llama-gqa")


@pytest.fixture
def scarce(model):
    """A function that gives the model memory for so many prompts at once; more fail in the middle of the second block,
    where some places have been read and others not."""
    most = [10**6]

    def fail(_, inputs):
        if len(inputs[0]) > most[0]:
            raise CUDA

    hook = model.hf.model.layers[1].mlp.down_proj.register_forward_pre_hook(fail)
    yield lambda count: most.__setitem__(0, count)
    hook.remove()


def test_activations_are_those_of_an_undisturbed_run(model, scarce):
    whole = residual.activations(model, ASKED, batch=16)
    scarce(5)
    with pytest.warns(UserWarning, match="with 16 prompts in a batch: going on with 4,") as told:
        found = residual.activations(model, ASKED, batch=16)
    assert len(told) == 1
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_unit_scores_are_those_of_an_undisturbed_run(model, scarce):
    sets = {"safety": EXAMPLES[:11], "utility": EXAMPLES[5:]}
    whole = unit_scores.calibrate(model, sets, batch=8)
    scarce(3)
    with pytest.warns(UserWarning, match="going on with 2"):
        found = unit_scores.calibrate(model, sets, batch=8)
    for rule in unit_scores.RULES:
        for name in ("safety", "utility", "mean"):
            expected = whole.raw[rule][name].to_numpy()
            np.testing.assert_allclose(found.raw[rule][name], expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    for place, pool in whole.pool.items():
        torch.testing.assert_close(found.pool[place], pool, rtol=1e-4, atol=1e-4)


def test_gradients_of_weights_are_those_of_an_undisturbed_run(model, scarce):
    whole = unit_scores.weight_taylor(model, EXAMPLES, batch=8)
    scarce(3)
    with pytest.warns(UserWarning, match="going on with 2"):
        found = unit_scores.weight_taylor(model, EXAMPLES, batch=8)
    for name, expected in whole.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-6)


def test_relevance_is_that_of_an_undisturbed_run(model, scarce):
    direction = tiny_models.direction()[None]
    whole = relevance.token_relevance(model, ASKED, 2, direction, batch=8)
    scarce(3)
    with pytest.warns(UserWarning, match="going on with 2"):
        found = relevance.token_relevance(model, ASKED, 2, direction, batch=8)
    for one, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(one.tokens, expected.tokens, rtol=1e-3, atol=1e-3)


IDS = [[5, 6, 7], [8], [9, 10]] * 7
ASKING = {
    "behaviour.generate": lambda model: behaviour.generate(model, ASKED, batch=8, tokens=4),
    "behaviour.teacher_forced": lambda model: behaviour.teacher_forced(model, ASKED, batch=8),
    "behaviour.first_tokens": lambda model: behaviour.first_tokens(model, ASKED, batch=8),
    "judges.first_token_refusals": lambda model: judges.first_token_refusals(model, ASKED, ["sorry"], batch=8),
    "judges.replies_of": lambda model: judges.replies_of(model, 4, batch=8)([prompt.text for prompt in ASKED]),
    "reasoning.continued": lambda model: reasoning.continued(model, ASKED, IDS, 4, batch=8),
    "reasoning.read": lambda model: reasoning.read(model, ASKED, IDS, 2, batch=8).states,
    "utility.text_perplexity": lambda model: utility.text_perplexity(model, ["bake the bread"] * 60, 6, batch=8),
}


@pytest.mark.parametrize("name", ASKING)
def test_whatever_asks_a_model_goes_on_with_smaller_batches(model, scarce, name):
    whole = ASKING[name](model)
    scarce(3)
    with pytest.warns(UserWarning, match="with 8 prompts in a batch: going on with 2,") as told:
        found = ASKING[name](model)
    assert len(told) == 1
    if isinstance(whole, pd.DataFrame):
        pd.testing.assert_frame_equal(found, whole, rtol=1e-4, atol=1e-5)
    elif isinstance(whole, list):
        assert found == whole
    else:
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_one_prompt_too_many_names_its_tokens(model, scarce):
    scarce(0)
    longest = max(len(row) for row in prompts.prompt_ids(model.tokenizer, ASKED))
    with pytest.raises(InputError, match=f"one prompt of .* tokens .the longest has {longest}."):
        residual.activations(model, ASKED)
    with pytest.raises(InputError, match="use a device with more memory"):
        unit_scores.saliency(model, EXAMPLES)


def test_a_shortage_while_sums_are_added_counts_nothing_twice(model, monkeypatch):
    """Half of the places have taken the batch in when memory runs out: the next try must not add to those."""
    whole = unit_scores.activations(model, EXAMPLES, batch=8).score(model, "second_moment", "all")
    add, calls = unit_scores._Sums.add, [0]

    def failing(self, values, chosen):
        calls[0] += 1
        if calls[0] == 3:
            raise CPU
        add(self, values, chosen)

    monkeypatch.setattr(unit_scores._Sums, "add", failing)
    with pytest.warns(UserWarning, match="going on with 4"):
        found = unit_scores.activations(model, EXAMPLES, batch=8).score(model, "second_moment", "all")
    np.testing.assert_allclose(found, whole, rtol=1e-5)


# streams of unit scores -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [8, 20])
def test_memory_of_unit_scores_does_not_grow_with_the_set(model, monkeypatch, count):
    forward, alive, most = tracing.forward, [], [0]

    def watched(*arguments, **options):
        gc.collect()
        most[0] = max(most[0], sum(reference() is not None for reference in alive))
        found = forward(*arguments, **options)
        alive.extend(weakref.ref(values) for values in found.activations.values())
        return found

    monkeypatch.setattr(tracing, "forward", watched)
    found = unit_scores.activations(model, EXAMPLES[:count], batch=2)
    assert len(alive) == count // 2 * 2 * model.layers
    assert most[0] == 0  # nothing of a batch is left when the next is read
    sums = next(iter(found.sums.values()))
    assert {tuple(x.shape) for x in (sums.total, sums.squares, sums.fluctuation)} == {(3, 48)} or sums.total.ndim == 2


def test_bfloat16_models_are_summed_in_float64_and_their_gradients_in_float32(monkeypatch):
    """Values of 1 + 2^-7 on 4,000 tokens: in bfloat16 sums would stop growing at 256 or 512."""
    sums, values = unit_scores._Sums(), torch.full((40, 100, 2), 1 + 2**-7, dtype=torch.bfloat16)
    for part in values.split(8):
        sums.add(part, torch.ones(3, *part.shape[:2]).double())
    np.testing.assert_allclose(sums.of("mean"), 1 + 2**-7, rtol=1e-12)
    np.testing.assert_allclose(sums.of("second_moment"), (1 + 2**-7) ** 2, rtol=1e-12)

    half = tiny_models.speaking("llama-gqa")
    half.hf.bfloat16()
    once = unit_scores.saliency(half, EXAMPLES[:1])
    often = unit_scores.saliency(half, EXAMPLES[:1] * 600)  # equal addends: the exact sum is 600 times one
    for name, one in once.items():
        assert one.dtype == torch.float32
        torch.testing.assert_close(often[name], 600 * one, rtol=1e-4, atol=1e-30)
    for found in (unit_scores.taylor(half, EXAMPLES[:3]), unit_scores.of_units(half, once)):
        assert found.dtype == np.float64
        assert np.isfinite(found).all()


def test_weights_are_scored_where_they_are_and_stay_as_they_were(model):
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    flags = [weight.requires_grad for weight in model.hf.parameters()]
    weights, _ = unit_scores._weights(model)
    own = dict(model.hf.named_parameters())
    assert all(weight.data_ptr() == own[name].data_ptr() for name, weight in weights.items())  # no copy of the model
    unit_scores.saliency(model, EXAMPLES[:2])
    unit_scores.weight_taylor(model, EXAMPLES[:2])
    assert all(torch.equal(weight, before[name]) for name, weight in model.hf.state_dict().items())
    assert [weight.requires_grad for weight in model.hf.parameters()] == flags
    assert all(weight.grad is None for weight in model.hf.parameters())


def test_what_is_read_without_gradients_can_be_used_with_them(model):
    """Reading runs in inference mode, whose tensors cannot be saved for a backward pass or changed in place."""
    states = residual.activations(model, ASKED[:3])
    weight = torch.ones(model.width, requires_grad=True)
    (states @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, states.sum((0, 1)))
    states.add_(1.0)
    pool = unit_scores.activations(model, EXAMPLES[:3]).pool
    assert not any(values.is_inference() for values in [states, *pool.values()])
