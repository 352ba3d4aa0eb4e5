"""The contract battery for tracing, over every family, against plain PyTorch hooks and Hugging Face's own outputs.

The plain model never meets nnsight: it is built twice from one seed.
"""

import contextlib
import copy
import dataclasses
import gc
import sys
import warnings
import weakref

import nnsight
import psutil
import pytest
import torch
from nnsight.intervention import serialization

from lib import edits, tracing
from lib.errors import InputError
from tests import tiny_models
from tests.tiny_models import EOS, HEADS, LAYERS, PAD, VOCABULARY, WIDTH, encode

NEW = 8  # tokens to generate
BLOCKS = range(LAYERS)
LAST = LAYERS - 1


@pytest.fixture(params=tiny_models.FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def traced(family):
    return tiny_models.traced(family)


@pytest.fixture
def plain(family):
    return tiny_models.plain(family)


def everything(traced):
    """Every place, in an order the model does not have."""
    return [place for site in reversed(tracing.SITES) for place in reversed(traced.every(site))]


def ablation(traced, site="resid", **options):
    return dict.fromkeys(traced.every(site), edits.ablate(tiny_models.direction(), **options))


def prompts():
    return encode(7, 4, 5, 7)


def run(model, encoding, **options):
    """A plain forward with positions counted from each prompt's first token."""
    positions = tiny_models.positions_of(encoding["attention_mask"])
    with torch.no_grad():
        return model(**encoding, position_ids=positions, **options)


@contextlib.contextmanager
def hooks(model, sites, changes):
    """Plain PyTorch hooks that pass the activation at each place through `changes[place]`."""
    handles = []
    for (site, layer), change in changes.items():
        path, end = getattr(sites, site).split(":")
        prefix = f"{sites.blocks}.{layer}" if site in tracing.IN_BLOCK else ""
        module = model.get_submodule(f"{prefix}.{path}".strip("."))

        def after(module, args, output, change=change):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        def before(module, args, change=change):
            return (change(args[0]), *args[1:])

        handles.append(
            module.register_forward_hook(after) if end == "output" else module.register_forward_pre_hook(before)
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def recorders(places, kept):
    """Changes that change nothing and append what passes to `kept[place]`."""

    def keep(place):
        return lambda x: kept.setdefault(place, []).append(x) or x

    return {place: keep(place) for place in places}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


# What is read ---------------------------------------------------------------------------------------------------------


def test_reads_are_hugging_faces_hidden_states(traced, plain):
    encoding = prompts()
    states = run(plain, encoding, output_hidden_states=True).hidden_states
    read = tracing.forward(traced, encoding, everything(traced)).activations
    assert torch.equal(read["embed", 0], states[0])
    for layer in BLOCKS:
        assert torch.equal(read["resid_pre", layer], states[layer])
    for layer in BLOCKS[:-1]:
        assert torch.equal(read["resid", layer], states[layer + 1])
    assert torch.equal(read["final", 0], states[-1])
    assert (read["resid", LAYERS - 1] - states[-1]).abs().max() > 0.1  # before the norm
    norm = plain.get_submodule(traced.sites.final.split(":")[0])
    with torch.no_grad():
        close(norm(read["resid", LAYERS - 1]), states[-1])


def test_sites_are_the_parts_they_are_called(traced, plain, family):
    """Attention and MLP add up to the block; `attn_z` and `neurons` are what their projections receive."""
    read = tracing.forward(traced, prompts(), everything(traced)).activations
    attention, mlp = traced.sites.attn_z.split(":")[0], traced.sites.neurons.split(":")[0]
    for layer in BLOCKS:
        close(read["resid_pre", layer] + read["attn_out", layer] + read["mlp_out", layer], read["resid", layer], 1e-5)
        block = plain.get_submodule(f"{traced.sites.blocks}.{layer}")
        with torch.no_grad():
            close(block.get_submodule(attention)(read["attn_z", layer]), read["attn_out", layer])
            close(block.get_submodule(mlp)(read["neurons", layer]), read["mlp_out", layer])


@pytest.mark.parametrize("logits", ["none", "last", "all"])
def test_reads_and_logits_equal_plain_hooks(traced, plain, logits):
    encoding, kept = prompts(), {}
    with hooks(plain, traced.sites, recorders(everything(traced), kept)):
        expected = run(plain, encoding).logits
    trace = tracing.forward(traced, encoding, everything(traced), logits=logits)
    assert set(trace.activations) == set(everything(traced))
    for place, value in trace.activations.items():
        assert torch.equal(value, kept[place][0]), place
        assert not value.requires_grad
    if logits == "none":
        assert trace.logits is None
    else:
        close(trace.logits, expected if logits == "all" else expected[:, -1])
        assert not trace.logits.requires_grad


def test_last_is_the_last_token_and_pins_nothing_else(traced):
    full = tracing.forward(traced, prompts(), everything(traced), logits="all")
    last = tracing.forward(traced, prompts(), everything(traced), positions="last", logits="last")
    for place, value in last.activations.items():
        assert torch.equal(value, full.activations[place][:, -1])
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    close(last.logits, full.logits[:, -1])


def test_logits_of_so_many_last_tokens(traced, plain):
    encoding = prompts()
    expected, width = run(plain, encoding).logits, encoding["input_ids"].shape[1]
    for number in (1, 3, width):
        found = tracing.forward(traced, encoding, logits=number).logits
        assert found.shape == (len(expected), number, expected.shape[2])
        close(found, expected[:, -number:])
    for wrong in (0, -2, "first", None):
        with pytest.raises(InputError, match=r"unknown logits .*; known: none, last, all, a number of tokens"):
            tracing.forward(traced, encoding, logits=wrong)


def test_reading_many_batches_keeps_the_order_of_prompts(traced):
    batches = [encode(5, 3), encode(6), encode(4, 4, 2, seed=1)]
    places = [("resid", 1), ("neurons", 0)]
    rows = tracing.read_many(traced, iter(batches), iter(places))
    assert set(rows) == set(places)
    for place in places:
        one = [tracing.forward(traced, batch, places, positions="last").activations[place] for batch in batches]
        assert torch.equal(rows[place], torch.cat(one))
    changed = tracing.read_many(traced, batches, places, ablation(traced, target=3.0))
    unit = tiny_models.direction() / tiny_models.direction().norm()
    close(changed["resid", 1] @ unit, torch.full((6,), 3.0), 1e-5)


def test_reading_many_batches_gives_float32_on_the_cpu(family):
    half = tracing.wrap(tiny_models.build(family).bfloat16(), tiny_models.tokenizer(), tiny_models.sites(family))
    rows = tracing.read_many(half, [prompts()], half.every("resid"), ablation(half))
    exact = tracing.read_many(tiny_models.traced(family), [prompts()], half.every("resid"), ablation(half))
    for place, value in rows.items():
        assert value.dtype == torch.float32
        assert (value - exact[place]).norm() / exact[place].norm() < 0.05


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*tiny_models.FAMILIES, tiny_models.ABSOLUTE])
def test_padded_prompts_read_as_they_do_alone(name):
    traced, encoding, change = tiny_models.traced(name), prompts(), ablation(tiny_models.traced(name), target=1.0)
    together = tracing.forward(traced, encoding, everything(traced), change, logits="all")
    written = tracing.generate(traced, encoding, NEW, change)
    for row, length in enumerate(encoding["attention_mask"].sum(1).tolist()):
        single = {key: value[row : row + 1, -length:] for key, value in encoding.items()}
        alone = tracing.forward(traced, single, everything(traced), change, logits="all")
        for place, value in alone.activations.items():
            close(together.activations[place][row : row + 1, -length:], value, 1e-5)
        close(together.logits[row : row + 1, -length:], alone.logits, 1e-5)
        assert torch.equal(written[row : row + 1], tracing.generate(traced, single, NEW, change))


def test_permuted_prompts_give_permuted_rows(traced):
    encoding, order = prompts(), torch.tensor([2, 0, 3, 1])
    shuffled = {key: value[order] for key, value in encoding.items()}
    straight = tracing.forward(traced, encoding, everything(traced), ablation(traced), logits="last")
    mixed = tracing.forward(traced, shuffled, everything(traced), ablation(traced), logits="last")
    for place, value in straight.activations.items():
        real = encoding["attention_mask"][order].bool()
        close(mixed.activations[place][real], value[order][real])
    close(mixed.logits, straight.logits[order])
    written = tracing.generate(traced, encoding, NEW, ablation(traced))
    assert torch.equal(tracing.generate(traced, shuffled, NEW, ablation(traced)), written[order])


# Edits ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", tracing.SITES)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_an_edited_forward_equals_plain_hooks(traced, plain, site, positions):
    width = 48 if site == "neurons" else WIDTH
    change = dict.fromkeys(traced.every(site), edits.add(tiny_models.direction(2, width), 0.5, positions))
    encoding, kept = prompts(), {}
    before = run(plain, encoding).logits
    with hooks(plain, traced.sites, change), hooks(plain, traced.sites, recorders(everything(traced), kept)):
        expected = run(plain, encoding).logits
    trace = tracing.forward(traced, encoding, everything(traced), change, logits="all")
    for place, value in trace.activations.items():  # read after the edit
        close(value, kept[place][0])
    close(trace.logits, expected)
    assert (trace.logits[:, -1] - before[:, -1]).abs().max() > 0.1


def test_edits_after_the_last_read_may_be_left_out(traced):
    places = traced.every("resid")[:1]
    one = tracing.forward(traced, prompts(), places, ablation(traced)).activations
    alone = tracing.forward(traced, prompts(), places, dict(list(ablation(traced).items())[:1])).activations
    assert torch.equal(one["resid", 0], alone["resid", 0])


def test_coefficient_0_changes_nothing_and_1_moves_the_logits(traced):
    base = tracing.forward(traced, prompts(), logits="all").logits
    nothing = tracing.forward(traced, prompts(), edits=ablation(traced, target=2.0, coefficient=0), logits="all").logits
    full = tracing.forward(traced, prompts(), edits=ablation(traced, target=2.0), logits="all").logits
    assert torch.equal(nothing, base)
    assert ((full - base)[:, -1].abs().amax(-1) > 0.1).all()  # every prompt, not just one


def test_ablating_what_is_written_equals_editing_the_weights():
    """Llama, whose writing matrices have no bias: embeddings, output and down projections made orthogonal."""
    for name in ("llama", "llama-gqa"):
        model, traced, encoding = tiny_models.build(name), tiny_models.traced(name), prompts()
        before = run(model, encoding).logits
        unit = tiny_models.direction() / tiny_models.direction().norm()
        with torch.no_grad():
            weight = model.model.embed_tokens.weight
            weight -= torch.outer(weight @ unit, unit)
            for block in model.model.layers:
                for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                    weight -= torch.outer(unit, unit @ weight)
        change = {**ablation(traced, "embed"), **ablation(traced, "attn_out"), **ablation(traced, "mlp_out")}
        trace = tracing.forward(traced, encoding, traced.every("resid"), change, logits="all")
        expected = run(model, encoding)
        real = encoding["attention_mask"].bool()
        close(trace.logits[real], expected.logits[real], 1e-5)
        assert (expected.logits - before)[real].abs().max() > 0.1
        for value in trace.activations.values():
            assert (value @ unit).abs().max() < 1e-5


def test_a_muted_neuron_is_a_zeroed_row_and_a_dropped_column(family, traced):
    units, encoding = [0, 5, 47], prompts()
    muted = tracing.forward(traced, encoding, edits={("neurons", 1): edits.mute(units)}, logits="all").logits
    assert (muted - run(tiny_models.plain(family), encoding).logits).abs().max() > 0.01
    rows, column = tiny_models.build(family), tiny_models.build(family)
    with torch.no_grad():
        if family == "gpt-neox":
            rows.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[units] = 0
            rows.gpt_neox.layers[1].mlp.dense_h_to_4h.bias[units] = 0
            column.gpt_neox.layers[1].mlp.dense_4h_to_h.weight[:, units] = 0
        else:
            rows.model.layers[1].mlp.gate_proj.weight[units] = 0
            rows.model.layers[1].mlp.up_proj.weight[units] = 0
            column.model.layers[1].mlp.down_proj.weight[:, units] = 0
    close(muted, run(rows, encoding).logits)
    close(muted, run(column, encoding).logits)


def test_a_muted_attention_channel_belongs_to_its_head(family, traced):
    """Channel h * head_dim + i is query head h; with shared keys, a value row feeds every query head of its group."""
    size, encoding = WIDTH // HEADS, prompts()
    head, channel = 2, 3
    column = tiny_models.build(family)
    projection = column.get_submodule(f"{traced.sites.blocks}.1.{traced.sites.attn_z.split(':')[0]}")
    with torch.no_grad():
        projection.weight[:, head * size + channel] = 0
    one = {("attn_z", 1): edits.mute([head * size + channel])}
    base = run(tiny_models.plain(family), encoding).logits
    muted = tracing.forward(traced, encoding, edits=one, logits="all").logits
    close(muted, run(column, encoding).logits)
    assert (muted - base).abs().max() > 0.01

    group = 2 if family == "llama-gqa" else 1
    rows = tiny_models.build(family)
    with torch.no_grad():
        if family == "gpt-neox":  # query, key and value of a head lie side by side
            value = rows.gpt_neox.layers[1].attention.query_key_value
            value.weight[head * 3 * size + 2 * size + channel] = 0
            value.bias[head * 3 * size + 2 * size + channel] = 0
        else:
            rows.model.layers[1].self_attn.v_proj.weight[head // group * size + channel] = 0
    sharing = [other * size + channel for other in range(HEADS) if other // group == head // group]
    assert len(sharing) == group
    change = {("attn_z", 1): edits.mute(sharing)}
    close(tracing.forward(traced, encoding, edits=change, logits="all").logits, run(rows, encoding).logits)


# Generation -----------------------------------------------------------------------------------------------------------


def written(model, encoding, **options):
    ids = model.generate(
        **encoding, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD, **{"eos_token_id": -1, **options}
    )
    return ids[:, encoding["input_ids"].shape[1] :]


def end_that_splits(completions):
    """A token that, taken as end of sequence, stops some rows early and others never."""
    for token in completions[:, : NEW - 2].unique().tolist():
        ends = (completions == token).any(1)
        if ends.any() and not ends.all():
            return token
    raise AssertionError("no token separates the rows; choose other prompts")


@pytest.mark.parametrize("site", ["resid", "neurons"])
def test_edited_completions_equal_plain_hooks_at_every_step(traced, plain, site, monkeypatch):
    width = 48 if site == "neurons" else WIDTH
    change = dict.fromkeys(traced.every(site), edits.ablate(tiny_models.direction(4, width), target=4.0))
    first = {place: lambda x, edit=edit: edit(x) if x.shape[1] > 1 else x for place, edit in change.items()}
    encoding = prompts()
    with hooks(plain, traced.sites, change):
        completions = written(plain, encoding)
    end = end_that_splits(completions)
    with hooks(plain, traced.sites, change):
        expected = written(plain, encoding, eos_token_id=end)
    with hooks(plain, traced.sites, first):
        prompt_only = written(plain, encoding, eos_token_id=end)
    monkeypatch.setattr(traced.model._module.generation_config, "eos_token_id", end)
    ids = tracing.generate(traced, encoding, NEW, change)
    assert torch.equal(ids, expected)
    stopped = (expected == end).any(1)
    assert stopped.any()
    assert not stopped.all()
    for row in expected[stopped]:
        assert (row[(row == end).nonzero()[0, 0] + 1 :] == PAD).all()
    assert not torch.equal(expected, prompt_only)  # the later steps matter
    assert not torch.equal(expected, written(plain, encoding, eos_token_id=end))  # the edit matters


def test_every_step_passes_through_the_edit_with_the_values_of_plain_hooks(traced, plain):
    encoding, seen, kept = prompts(), {}, {}
    places = [*traced.every("resid"), *traced.every("attn_z")]
    with hooks(plain, traced.sites, recorders(places, kept)):
        expected = written(plain, encoding, eos_token_id=EOS)
    ids = tracing.generate(traced, encoding, NEW, recorders(places, seen))
    assert torch.equal(ids, expected)
    for place in places:
        assert [x.shape[1] for x in seen[place]] == [7] + [1] * (NEW - 1)
        for actual, truth in zip(seen[place], kept[place], strict=True):
            close(actual, truth)


@pytest.mark.parametrize("edited", [False, True])
def test_completions_end_where_every_row_has_ended(traced, plain, monkeypatch, edited):
    change = ablation(traced, target=1.0) if edited else {}
    encoding = encode(6)
    with hooks(plain, traced.sites, change):
        end = written(plain, encoding)[0, 2].item()
    monkeypatch.setattr(traced.model._module.generation_config, "eos_token_id", end)
    ids = tracing.generate(traced, encoding, NEW, change)
    assert ids.shape == (1, NEW)
    length = ids[0].tolist().index(end) + 1
    assert length <= 3
    assert (ids[0, length:] == PAD).all()
    assert tracing.generate(traced, encoding, 1, change).tolist() == ids[:, :1].tolist()


def test_unedited_completions_are_hugging_faces_greedy_ones(traced, plain):
    assert torch.equal(tracing.generate(traced, prompts(), NEW), written(plain, prompts(), eos_token_id=EOS))


def test_sampling_settings_of_a_checkpoint_are_overruled(family):
    model = tiny_models.build(family)
    settings = {"do_sample": True, "temperature": 5.0, "top_p": 0.3, "repetition_penalty": 3.0, "eos_token_id": None}
    expected = tracing.generate(tiny_models.traced(family), prompts(), NEW)
    first = expected[0, 0].item()
    settings |= {"no_repeat_ngram_size": 1, "min_new_tokens": NEW, "suppress_tokens": [first]}
    model.generation_config.update(**settings, bad_words_ids=[[first]], begin_suppress_tokens=[first])
    sampling = tracing.wrap(model, tiny_models.tokenizer(), tiny_models.sites(family))
    for _ in range(2):
        assert torch.equal(tracing.generate(sampling, prompts(), NEW), expected)


def test_a_base_model_ends_where_the_tokenizer_it_is_read_with_ends(family):
    """Its own end is another token; either of the two ends an answer."""
    plain = tracing.generate(tiny_models.traced(family), prompts(), NEW)[0].tolist()
    words, model = copy.deepcopy(tiny_models.tokenizer()), tiny_models.build(family)
    model.generation_config.eos_token_id = [plain[1], EOS]
    words.eos_token = words.convert_ids_to_tokens(plain[0])
    ended = tracing.wrap(model, words, tiny_models.sites(family))
    assert tracing.generate(ended, prompts(), NEW)[0].tolist() == [plain[0]] + [PAD] * (NEW - 1)
    words.eos_token = words.convert_ids_to_tokens(EOS)
    whole = tracing.generate(ended, prompts(), NEW)[0].tolist()
    end = plain.index(plain[1]) + 1
    assert whole == plain[:end] + [PAD] * (NEW - end)


# Gradients ------------------------------------------------------------------------------------------------------------


def objective(logits):
    return logits[:, 5] - logits[:, 9].square()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("edited", [False, True])
def test_gradients_equal_autograd_on_the_plain_model(family, frozen, edited):
    model = tiny_models.build(family, frozen=frozen)
    traced = tracing.wrap(model, tiny_models.tokenizer(), tiny_models.sites(family))
    plain, encoding, kept = tiny_models.plain(family), prompts(), {}
    change = ablation(traced, target=1.0) if edited else {}
    with hooks(plain, traced.sites, change), hooks(plain, traced.sites, recorders(everything(traced), kept)):
        positions = tiny_models.positions_of(encoding["attention_mask"])
        total = objective(plain(**encoding, position_ids=positions).logits[:, -1]).sum()
        truth = torch.autograd.grad(total, [kept[place][0] for place in everything(traced)])
    with torch.no_grad():  # a caller's no_grad does not matter
        pairs = tracing.gradients(traced, encoding, everything(traced), objective, change)
    assert set(pairs) == set(everything(traced))
    for place, expected in zip(everything(traced), truth, strict=True):
        value, slope = pairs[place]
        close(value, kept[place][0].detach())
        scale = max(1.0, float(expected.abs().max()))
        close(slope / scale, expected / scale, 1e-5)
        assert not value.requires_grad
        assert not slope.requires_grad
        assert slope.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad != frozen for parameter in model.parameters())
    assert (pairs["final", 0][1][:, :-1] == 0).all()  # only the last token's logits count


def test_a_gradient_predicts_a_small_step(traced):
    """Not autograd against itself: a difference of two edited forwards (Llama's norm computes in float32)."""
    family = next(name for name in tiny_models.FAMILIES if tiny_models.traced(name) is traced)
    model = tiny_models.build(family, frozen=True).double()
    exact = tracing.wrap(model, tiny_models.tokenizer(), tiny_models.sites(family))
    step, place = 1e-3 * tiny_models.direction(3).double(), ("resid", 0)
    slope = tracing.gradients(exact, prompts(), [place], objective)[place][1]
    sides = [
        objective(tracing.forward(exact, prompts(), edits={place: edits.add(step, sign, "last")}, logits="last").logits)
        for sign in (1, -1)
    ]
    predicted = slope[:, -1] @ step
    assert ((sides[0] - sides[1]) / 2 - predicted).abs().max() < 0.01 * predicted.abs().max()


def test_a_place_behind_a_constant_has_gradient_0(traced):
    cut = {("resid", 1): torch.zeros_like}
    pairs = tracing.gradients(traced, prompts(), [("resid", 0), ("resid", 1)], objective, cut)
    assert (pairs["resid", 0][1] == 0).all()
    assert pairs["resid", 1][1].abs().sum() > 0


def coordinates(x):
    """Three targets of every prompt, [target prompt]."""
    return torch.stack([x[:, 5], x[:, 9].square(), x.sum(-1)])


@pytest.mark.parametrize("of", [("resid", 0), ("resid", 1), ("neurons", 1), ("attn_out", 2), ("final", 0)])
@pytest.mark.parametrize("edited", [False, True])
def test_gradients_of_a_place_equal_autograd_on_the_plain_model(family, of, edited):
    model = tiny_models.build(family, frozen=True)
    traced = tracing.wrap(model, tiny_models.tokenizer(), tiny_models.sites(family))
    plain, encoding, kept = tiny_models.plain(family), prompts(), {}
    change = ablation(traced, target=1.0) if edited else {}
    at = [of, ("embed", 0), ("attn_z", 0)]
    with hooks(plain, traced.sites, change), hooks(plain, traced.sites, recorders(at, kept)):
        plain(**encoding, position_ids=tiny_models.positions_of(encoding["attention_mask"]))
    values = coordinates(kept[of][0][:, -1])
    pairs = tracing.gradients(traced, encoding, at, coordinates, change, of=of)
    assert list(pairs) == at
    single = tracing.gradients(traced, encoding, at[1:2], lambda x: x[:, 9].square(), change, of=of)
    for place in at:
        close(pairs[place][0], kept[place][0].detach())
        assert pairs[place][1].shape == (3, *kept[place][0].shape)
        for target in range(3):
            (expected,) = torch.autograd.grad(values[target].sum(), kept[place][0], retain_graph=True)
            close(pairs[place][1][target], expected, 1e-5)
            assert expected.abs().sum() > 0
    close(single["embed", 0][1], pairs["embed", 0][1][1], 1e-5)
    assert (pairs[of][1][:, :, :-1] == 0).all()  # only the last token counts


def test_gradients_of_a_place_end_the_pass_there(traced):
    ran = []
    blocks = traced.model._module.get_submodule(traced.sites.blocks)
    handles = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(blocks)]
    try:
        later = {("resid", LAST): torch.zeros_like}  # an edit of what does not run any more
        tracing.gradients(traced, prompts(), [("embed", 0)], coordinates, later, of=("mlp_out", 1))
        assert LAST not in ran
        tracing.gradients(traced, prompts(), [("embed", 0)], objective)
        assert LAST in ran
    finally:
        for handle in handles:
            handle.remove()


def double(before, after):
    """Twice the gradient, the output as it is."""
    return 2 * after - after.detach()


def straight(before, after):
    """The output as it is, all of its gradient to the input: only where both have one shape."""
    return after.detach() + (before - before.detach())


def rules(name):
    norms = ("attn_norm", "mlp_norm", "final_norm")
    return {name: straight if name in (*norms, "gate") else double} if name != "all" else dict.fromkeys(norms, double)


@pytest.mark.parametrize("name", [*tiny_models.LLAMA.rules, "all"])
@pytest.mark.parametrize("family", ["llama", "llama-gqa"], indirect=True)
def test_rules_equal_plain_hooks_on_the_modules_they_are_called(family, traced, name):
    plain, encoding, kept = tiny_models.build(family), prompts(), {}
    wanted, at, handles = rules(name), everything(traced), []
    modules = {
        "attn_norm": "input_layernorm", "query": "self_attn.q_proj", "key": "self_attn.k_proj",
        "value": "self_attn.v_proj", "mlp_norm": "post_attention_layernorm", "gate": "mlp.act_fn", "up": "mlp.up_proj",
    }  # fmt: skip
    for path, module in plain.named_modules():
        for site, rule in wanted.items():
            if (path == "model.norm") if site == "final_norm" else path.endswith(f".{modules[site]}"):
                hook = module.register_forward_hook(lambda _, args, output, rule=rule: rule(args[0], output))
                handles.append(hook)
    assert len(handles) == sum(1 if site == "final_norm" else LAYERS for site in wanted)
    change = ablation(traced, target=1.0)
    with hooks(plain, traced.sites, change), hooks(plain, traced.sites, recorders(at, kept)):
        positions = tiny_models.positions_of(encoding["attention_mask"])
        total = objective(plain(**encoding, position_ids=positions).logits[:, -1]).sum()
        truth = torch.autograd.grad(total, [kept[place][0] for place in at])
    with_rules = tracing.gradients(traced, encoding, at, objective, change, rules=wanted)
    without = tracing.gradients(traced, encoding, at, objective, change)
    for place, expected in zip(at, truth, strict=True):
        close(with_rules[place][0], kept[place][0].detach())
        close(with_rules[place][0], without[place][0])
        close(with_rules[place][1], expected, 1e-5)
    assert (with_rules["embed", 0][1] - without["embed", 0][1]).abs().max() > 1e-3


# Nothing is left behind -----------------------------------------------------------------------------------------------


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_a_plain_run_after_edited_ones_equals_the_first(family, plain):
    model = tiny_models.build(family)
    traced = tracing.wrap(model, tiny_models.tokenizer(), tiny_models.sites(family))
    first = tracing.forward(traced, prompts(), everything(traced), logits="all")
    attached = count_hooks(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def broken(x):
        raise RuntimeError("broken edit")

    def short(x):
        return x[:, -1:]

    tracing.forward(traced, prompts(), edits=ablation(traced), logits="last")
    tracing.generate(traced, prompts(), NEW, ablation(traced))
    tracing.gradients(traced, prompts(), traced.every("resid"), objective, ablation(traced))
    tracing.gradients(traced, prompts(), [("embed", 0)], coordinates, ablation(traced), of=("resid", 1))
    if traced.sites.rules:
        tracing.gradients(traced, prompts(), [("embed", 0)], objective, rules=dict.fromkeys(tracing.RULE_SITES, double))
        with pytest.raises(RuntimeError, match="broken edit"):
            tracing.gradients(traced, prompts(), [("embed", 0)], objective, rules={"up": lambda x, y: broken(y)})
    for edit, error, message in ((broken, RuntimeError, "broken edit"), (short, InputError, "must keep the shape")):
        with pytest.raises(error, match=message):
            tracing.forward(traced, prompts(), edits={("resid", 1): edit}, logits="last")
        with pytest.raises(error, match=message):
            tracing.generate(traced, prompts(), NEW, {("resid", 1): edit})
        with pytest.raises(error, match=message):
            tracing.gradients(traced, prompts(), traced.every("resid"), objective, {("resid", 1): edit})

    again = tracing.forward(traced, prompts(), everything(traced), logits="all")
    for place, value in again.activations.items():
        assert torch.equal(value, first.activations[place])
    assert torch.equal(again.logits, first.logits)
    assert torch.equal(run(model, prompts()).logits, run(plain, prompts()).logits)
    assert count_hooks(model) == attached == 0
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_memory_stays_flat():
    traced, encoding = tiny_models.traced("llama"), encode(*[32] * 64)
    change = ablation(traced)

    def once():
        return tracing.forward(traced, encoding, everything(traced), change, logits="all")

    size = sum(value.nbytes for value in once().activations.values())
    assert size > 5e6  # kept over 100 traces this would be 500 MB, its smallest activation 26 MB
    process, growth = psutil.Process(), []
    for _ in range(4):  # what leaks grows in every round; the allocator may take some pages in one
        before = process.memory_info().rss
        for _ in range(100):
            trace = once()
        watched = [weakref.ref(value) for value in trace.activations.values()]
        del trace
        assert all(reference() is None for reference in watched)  # nothing else holds on, no cycle either
        gc.collect()
        growth.append(process.memory_info().rss - before)
    assert min(growth) < 16e6


def test_no_graph_is_built_where_none_is_asked_for(traced):
    kept = {}
    tracing.forward(traced, prompts(), edits=recorders([("resid", 0)], kept), logits="last")
    tracing.generate(traced, prompts(), 2, recorders([("resid", 0)], kept))
    assert [x.requires_grad for x in kept["resid", 0]] == [False] * 3


def test_a_forward_stops_after_the_last_read(traced):
    calls = []
    last = traced.model._module.get_submodule(f"{traced.sites.blocks}.{LAYERS - 1}")
    handle = last.register_forward_hook(lambda *_: calls.append(1))
    try:
        early = tracing.forward(traced, prompts(), [("resid", 0)], ablation(traced)).activations
        assert not calls
        full = tracing.forward(traced, prompts(), [("resid", 0)], ablation(traced), logits="last").activations
        assert calls
    finally:
        handle.remove()
    assert torch.equal(early["resid", 0], full["resid", 0])


def test_nothing_is_printed_and_no_warning_escapes(traced, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracing.forward(traced, prompts(), traced.every("resid"), ablation(traced))
        tracing.generate(traced, prompts(), NEW, ablation(traced))
        tracing.generate(traced, prompts(), NEW)
        tracing.gradients(traced, prompts(), traced.every("resid"), objective)
        tracing.gradients(traced, prompts(), [("embed", 0)], coordinates, of=("resid", 1))
    assert capfd.readouterr() == ("", "")


# Remote ---------------------------------------------------------------------------------------------------------------


def test_the_rehearsed_server_gives_the_same_numbers(traced, monkeypatch):
    """The real server's protocol and models without weights are tested in `test_remote`."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # the rehearsal reorders it
    there, reads = dataclasses.replace(traced, remote="local"), [("resid", 0), ("attn_z", 1), ("final", 0)]
    for edit in (
        edits.ablate(tiny_models.direction(), 1.0),
        edits.ablate_space(torch.eye(WIDTH)[:2], torch.ones(2)),
        edits.add(tiny_models.direction(), positions="last"),
        edits.clamp(tiny_models.direction(), -0.1, 0.1),
        edits.mute([1, 2]),
        edits.replace([1, 2], [0.5, 2.0], positions=-2),
        edits.resample([1, 2], torch.ones(3, 2)),
    ):
        change = dict.fromkeys(traced.every("resid"), edit)
        one, other = (tracing.forward(model, prompts(), reads, change, logits="last") for model in (traced, there))
        assert torch.equal(one.logits, other.logits)
        for place in reads:
            assert torch.equal(one.activations[place], other.activations[place])
    for edited in (change, None):
        one, other = (tracing.generate(model, prompts(), NEW, edited) for model in (traced, there))
        assert torch.equal(one, other)
    one, other = (tracing.read_many(model, [prompts()], reads[:1], change) for model in (traced, there))
    assert torch.equal(one["resid", 0], other["resid", 0])
    inside = {"at": reads[:2], "objective": coordinates, "edits": change, "of": ("resid", 1)}
    if traced.sites.rules:
        inside["rules"] = {"query": double, "mlp_norm": straight}
    for options in ({"at": reads, "objective": objective, "edits": change}, inside):
        one, other = (tracing.gradients(model, prompts(), **options) for model in (traced, there))
        for place in options["at"]:
            assert torch.equal(one[place][0], other[place][0])
            assert torch.equal(one[place][1], other[place][1])


def test_what_runs_inside_a_trace_travels_without_this_project_or_jaxtyping(monkeypatch):
    nnsight.register("lib")
    payload = serialization.dumps((tracing._visit, tracing._slopes))
    for name in [name for name in sys.modules if name.split(".")[0] in ("lib", "jaxtyping")]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    visit, slopes = serialization.loads(payload)
    assert visit(None, []) == {}
    x = torch.ones(2, requires_grad=True)
    assert slopes({("resid", 0): x}, (3 * x).sum())["resid", 0][1].tolist() == [3, 3]


# Refusals -------------------------------------------------------------------------------------------------------------


def without_mask():
    return {"input_ids": prompts()["input_ids"]}


def right_padded():
    return {key: value.flip(1) for key, value in prompts().items()}


def empty():
    return {key: value[:0] for key, value in prompts().items()}


def ragged():
    return {**prompts(), "attention_mask": torch.ones(4, 6)}


def no_tokens():
    return {key: value * torch.tensor([[1], [0], [1], [1]]) for key, value in prompts().items()}


READ = [("resid", 0)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: tracing.forward(t, prompts(), [("residual", 0)]), "known: embed, resid_pre, attn_z"),
        (lambda t: tracing.forward(t, prompts(), [("resid", LAYERS)]), "no layer 3; layers go from 0 to 2"),
        (lambda t: tracing.forward(t, prompts(), [("resid", -1)]), "no layer -1"),
        (lambda t: tracing.forward(t, prompts(), [("final", 1)]), "final has no layer 1; layers go from 0 to 0"),
        (lambda t: tracing.forward(t, prompts(), ("resid", 0)), r"a place is \(site, layer\)"),
        (lambda t: tracing.forward(t, prompts(), READ, {("mlp", 0): edits.mute([])}), "unknown site 'mlp'"),
        (lambda t: tracing.forward(t, prompts(), READ, {("resid", 0): None}), "make one with lib.edits"),
        (lambda t: tracing.forward(t, prompts()), "nothing to return"),
        (lambda t: tracing.forward(t, prompts(), edits={("resid", 0): edits.mute([])}), "nothing to return"),
        (lambda t: tracing.forward(t, prompts(), READ, positions="first"), "known: all, last"),
        (lambda t: tracing.forward(t, prompts(), logits="some"), "known: none, last, all"),
        (lambda t: tracing.forward(t, without_mask(), READ), "no attention_mask"),
        (lambda t: tracing.forward(t, {"attention_mask": torch.ones(1, 2)}, READ), "no input_ids"),
        (lambda t: tracing.forward(t, right_padded(), READ, positions="last"), "prompt 1 has .*padding_side = 'left'"),
        (lambda t: tracing.generate(t, right_padded(), 2), "padding_side = 'left'"),
        (lambda t: tracing.gradients(t, right_padded(), READ, objective), "padding_side = 'left'"),
        (lambda t: tracing.forward(t, no_tokens(), READ), "prompt 1"),
        (lambda t: tracing.forward(t, empty(), READ), "not empty"),
        (lambda t: tracing.forward(t, ragged(), READ), r"\(4, 7\) and \(4, 6\)"),
        (lambda t: tracing.forward(t, encode(65), READ), "65 tokens exceed the model's context of 64"),
        (lambda t: tracing.generate(t, encode(60), 5), "60 tokens and 5 to generate exceed"),
        (lambda t: tracing.generate(t, prompts(), 0), "at least 1, not 0"),
        (lambda t: tracing.gradients(t, prompts(), [], objective), "at least one"),
        (lambda t: tracing.gradients(t, prompts(), READ, objective, of=("resid", LAYERS)), "no layer 3"),
        (
            lambda t: tracing.gradients(t, prompts(), [*READ, ("neurons", 1)], coordinates, of=("attn_z", 1)),
            r"\('attn_z', 1\) cannot depend on \('neurons', 1\)",
        ),
        (
            lambda t: tracing.gradients(t, prompts(), READ, objective, rules={"norm": double}),
            "unknown rule site 'norm'; known: attn_norm, query",
        ),
        (lambda t: tracing.read_many(t, [], READ), "no encodings"),
        (lambda t: tracing.forward(t, prompts(), edits={("neurons", 0): edits.mute([99])}, logits="last"), "0 to 47"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call(tiny_models.traced("llama"))


def test_a_prompt_as_long_as_the_context_is_fine(traced):
    assert tracing.forward(traced, encode(64), logits="last").logits.shape == (1, VOCABULARY)
    assert tracing.generate(traced, encode(60), 4).shape == (1, 4)


def test_a_model_in_training_mode_is_refused(family):
    model = tiny_models.build(family)
    traced = tracing.wrap(model, tiny_models.tokenizer(), tiny_models.sites(family))
    model.train()
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        tracing.forward(traced, prompts(), logits="last")


def test_sites_that_lead_nowhere_are_refused():
    with pytest.raises(InputError, match=r"GPTNeoXForCausalLM has no module 'model\.layers'"):
        tracing.wrap(tiny_models.build("gpt-neox"), tiny_models.tokenizer(), tiny_models.LLAMA)
    wrong = tracing.Sites(**{**vars(tiny_models.LLAMA), "neurons": "mlp.down_proj"})
    with pytest.raises(InputError, match="must end in :input or :output"):
        tracing.wrap(tiny_models.build("llama"), tiny_models.tokenizer(), wrong)
    other = dataclasses.replace(tiny_models.LLAMA, rules={**tiny_models.LLAMA.rules, "gate": "mlp.activation"})
    with pytest.raises(InputError, match=r"no module 'model\.layers\.0\.mlp\.activation'"):
        tracing.wrap(tiny_models.build("llama"), tiny_models.tokenizer(), other)


def test_rules_for_a_family_without_them_are_refused_with_the_reason():
    with pytest.raises(InputError, match="GPTNeoXForCausalLM has no relevance rules, which need norms without bias"):
        tracing.gradients(tiny_models.traced("gpt-neox"), prompts(), READ, objective, rules={"query": double})
