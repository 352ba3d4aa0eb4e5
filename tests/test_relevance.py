"""Relevance against messages passed by the published rules, plain autograd, closed forms and planted structure."""

import dataclasses
import sys
from functools import partial

import nnsight
import numpy as np
import pytest
import torch
from nnsight.intervention import serialization
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lib import prompts, relevance, tracing
from lib.errors import InputError
from lib.models import LanguageModel
from lib.prompts import Prompt
from tests import tiny_models
from tests.tiny_models import HEADS, LAYERS, WIDTH

FAMILIES = ("llama", "llama-gqa")
RULES = ("attnlrp", "conservative", "gradient")
LAST = LAYERS - 1
HEAD = WIDTH // HEADS
PLACES = (("embed", 0), ("resid", 0), ("neurons", 1), ("attn_z", 1), ("resid", LAST), ("final", 0))


def words():
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = "{{ bos_token }} w50 {{ messages[0]['content'] }} w51"
    return tokenizer


def wrapped(hf):
    return LanguageModel("tiny", hf, words(), "test")


def prompt(text):
    return Prompt(text, "", "benign", "plain", "heldout")


ASKED = [prompt(text) for text in ("w3 w4 w5 w6", "w8", "w9 w10 w11 w12 w13 w14 w15", "w16 w17", "w18 w19 w3 w4")]


def directions(count, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return wrapped(tiny_models.build(family))


@pytest.fixture
def exact(family):
    return wrapped(tiny_models.build(family).double())


def close(actual, expected, tolerance):
    """Within a share of the largest expected value: relevances of one prompt are compared with each other."""
    scale = expected.abs().max()
    assert scale > 0
    assert (actual - expected).abs().max() <= tolerance * scale


# The reference: relevance itself is sent backwards, message by message, without any gradient x activation -------------


class Message(torch.autograd.Function):
    """y = f(*inputs), multilinear. Input i receives share_i x_i (df/dx_i)^T (R / y), the epsilon rule at epsilon 0."""

    @staticmethod
    def forward(ctx, f, shares, *inputs):
        ctx.f, ctx.shares = f, shares
        ctx.save_for_backward(*inputs)
        return f(*inputs)

    @staticmethod
    def backward(ctx, arriving):
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            output = ctx.f(*inputs)
            quotient = torch.where(arriving == 0, 0.0, arriving / output.detach())
            slopes = torch.autograd.grad(output, inputs, quotient)
        return None, None, *(s * x * g for s, x, g in zip(ctx.shares, ctx.saved_tensors, slopes, strict=True))


class Identity(torch.autograd.Function):
    """y_i = f(x)_i gives all its relevance to x_i: norms and activation functions."""

    @staticmethod
    def forward(ctx, f, x):
        return f(x)

    @staticmethod
    def backward(ctx, arriving):
        return None, arriving


class Softmax(torch.autograd.Function):
    """AttnLRP proposition 3.1: R_x = x (R - s sum R). Masked scores have no relevance."""

    @staticmethod
    def forward(ctx, scores, mask):
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        ctx.save_for_backward(scores * mask, weights)
        return weights

    @staticmethod
    def backward(ctx, arriving):
        scores, weights = ctx.saved_tensors
        return scores * (arriving - weights * arriving.sum(-1, keepdim=True)), None


def rotate(x):
    """Rotary positions, theta 10000, halves of a head paired; the angles in float32, as Hugging Face has them."""
    angles = torch.arange(x.shape[-2])[:, None] * (1 / 10000 ** (torch.arange(0, HEAD, 2) / HEAD))
    cosine, sine = angles.cos().double(), angles.sin().double()
    one, other = x.chunk(2, -1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], -1)


def normalise(x):
    """In float32 and back, as Hugging Face does in a float64 model too."""
    return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)).double()


def reference(hf, ids, layer, rule):
    """(states, last hidden state) of one prompt in float64: [embedding, after block 0, ...], with rules backwards."""
    weights = {name: value.double() for name, value in hf.state_dict().items()}
    product, attend = ((0.5, 0.5), (0.5, 0.5)) if rule == "attnlrp" else ((0.0, 1.0), (0.0, 1.0))

    def linear(x, name):
        return Message.apply(lambda x: x @ weights[f"{name}.weight"].T, (1.0,), x)

    def norm(x, name):
        scale = weights[f"{name}.weight"]
        return Identity.apply(lambda x: scale * normalise(x), x)

    def heads(x):
        x = x.view(len(ids), -1, HEAD).transpose(0, 1)
        return x.repeat_interleave(HEADS // len(x), 0)  # a copied key or value adds up what its copies receive

    x = weights["model.embed_tokens.weight"][torch.tensor(ids)].requires_grad_()
    states = [x]
    mask = torch.ones(len(ids), len(ids)).tril().bool()
    for block in (f"model.layers.{i}" for i in range(layer + 1)):
        y = norm(x, f"{block}.input_layernorm")
        q, k, v = (heads(linear(y, f"{block}.self_attn.{part}_proj")) for part in "qkv")
        q, k = (Message.apply(rotate, (1.0,), part) for part in (q, k))
        scores = Message.apply(lambda q, k: q @ k.mT / HEAD**0.5, (0.5, 0.5), q, k)
        z = Message.apply(lambda a, v: a @ v, attend, Softmax.apply(scores, mask), v)
        out = linear(z.transpose(0, 1).reshape(len(ids), -1), f"{block}.self_attn.o_proj")
        x = Message.apply(lambda a, b: a + b, (1.0, 1.0), x, out)
        y = norm(x, f"{block}.post_attention_layernorm")
        gate = Identity.apply(torch.nn.functional.silu, linear(y, f"{block}.mlp.gate_proj"))
        hidden = Message.apply(lambda a, b: a * b, product, gate, linear(y, f"{block}.mlp.up_proj"))
        x = Message.apply(lambda a, b: a + b, (1.0, 1.0), x, linear(hidden, f"{block}.mlp.down_proj"))
        states.append(x)
    return states


def messages(hf, ids, layer, direction, rule, at=0):
    """Relevance [token d] of state `at` (0: embeddings, i: after block i - 1), started with h_i v_i; and h . v."""
    states = reference(hf, ids, layer, rule)
    seed = torch.zeros_like(states[-1])
    seed[-1] = states[-1][-1].detach() * direction
    return torch.autograd.grad(states[-1], states[at], seed)[0], seed.sum()


def ids_of(model, asked=None):
    return prompts.prompt_ids(model.tokenizer, ASKED if asked is None else asked)


def state(model, ids, layer):
    """The residual stream at the last token of one prompt, from Hugging Face's own module."""
    kept = []
    handle = model.hf.model.layers[layer].register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        model.hf(torch.tensor([ids]))
    handle.remove()
    return kept[0][0, -1].double()


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("implementation", "batch", "tolerance"), [("sdpa", 3, 1e-9), ("eager", 1, 1e-5)])
@pytest.mark.parametrize("rule", ["attnlrp", "conservative"])
@pytest.mark.parametrize("layer", [0, LAST])
def test_tokens_receive_what_the_published_rules_send_them(exact, implementation, batch, tolerance, rule, layer):
    """Hugging Face's eager softmax is in float32 also in a float64 model, and all NaN there for pads: no padding."""
    exact.hf.set_attn_implementation(implementation)
    along = directions(2)
    found = relevance.token_relevance(exact, ASKED, layer, along, rule, batch=batch)
    for ids, one in zip(ids_of(exact), found, strict=True):
        assert one.tokens.shape == (2, len(ids))
        for row in range(2):
            expected, projection = messages(exact.hf, ids, layer, along[row], rule)
            assert one.projection[row].item() == pytest.approx(projection.item(), rel=tolerance)
            close(one.tokens[row], expected.sum(-1), tolerance)


@pytest.mark.parametrize("layer", [0, LAST])
def test_the_gradient_rule_is_gradient_times_embedding_of_the_plain_model(family, layer):
    model, plain, along = wrapped(tiny_models.build(family)), tiny_models.plain(family), directions(2).float()
    states = []
    handle = plain.model.layers[layer].register_forward_hook(lambda module, args, output: states.append(output))
    try:
        found = relevance.token_relevance(model, ASKED, layer, along, "gradient", batch=2)
        for ids, one in zip(ids_of(model), found, strict=True):
            x = plain.model.embed_tokens(torch.tensor([ids])).detach().requires_grad_()
            plain(inputs_embeds=x)
            for row in range(2):
                (slope,) = torch.autograd.grad(states[-1][0, -1] @ along[row], x, retain_graph=True)
                close(one.tokens[row].float(), (slope * x).sum(-1)[0], 1e-5)
    finally:
        handle.remove()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_conservative_relevance_sums_to_the_projection(family, dtype, tolerance, implementation):
    model, along = wrapped(tiny_models.build(family).to(dtype)), directions(3)
    model.hf.set_attn_implementation(implementation)
    for layer in range(LAYERS):
        found = relevance.token_relevance(model, ASKED, layer, along, "conservative", batch=1)
        for ids, one in zip(ids_of(model), found, strict=True):
            h = state(model, ids, layer)
            torch.testing.assert_close(one.projection, along @ h, rtol=1e-6, atol=1e-5)
            gap = (one.tokens.sum(1) - one.projection).abs()
            assert (gap <= tolerance * h.norm() * along.norm(dim=1)).all()
            assert (one.tokens.abs() > 1e-3).any(1).all()


def test_the_other_rules_do_not_conserve(model):
    """So that conservation is not true of whatever is computed."""
    for rule in ("attnlrp", "gradient"):
        found = relevance.token_relevance(model, ASKED, LAST, directions(3), rule)
        assert max(float((one.published().sum(1) - 1).abs().max()) for one in found) > 0.05


@pytest.mark.parametrize("rule", RULES)
def test_batches_padding_and_order_change_nothing(exact, rule):
    alone = [relevance.token_relevance(exact, [one], LAST, directions(2), rule)[0] for one in ASKED]
    shuffled = [3, 0, 4, 2, 1]
    mixed = relevance.token_relevance(exact, [ASKED[i] for i in shuffled], LAST, directions(2), rule)
    for batch in (2, 64):
        together = relevance.token_relevance(exact, ASKED, LAST, directions(2), rule, batch=batch)
        for i, (one, many) in enumerate(zip(alone, together, strict=True)):
            assert many.tokens.shape == (2, len(ids_of(exact)[i]))
            close(many.tokens, one.tokens, 1e-9)
            close(mixed[shuffled.index(i)].tokens, one.tokens, 1e-9)


def test_the_published_normalisation_sums_to_1_and_loses_the_sign(exact):
    along = directions(2)
    found = relevance.token_relevance(exact, ASKED, LAST, torch.cat([along, -along]), "conservative")
    for one in found:
        # the published 1e-6 in the denominator leaves a gap of 1e-6 / (h . v)
        assert ((one.published().sum(1) - 1).abs() <= 1.01e-6 / one.projection.abs() + 1e-10).all()
        close(one.published()[2:], one.published()[:2], 1e-5)
        close(one.tokens[2:], -one.tokens[:2], 1e-9)
    assert min(float(one.projection.min()) for one in found) < -0.5


def test_the_token_whose_embedding_is_read_ranks_first():
    """One block that attends to all tokens alike and copies what it reads; only w7 has a part along the direction."""
    hf = tiny_models.build("llama")
    along = torch.nn.functional.normalize(directions(1), dim=1)
    with torch.no_grad():
        embeddings = hf.model.embed_tokens.weight
        embeddings -= embeddings @ along[0].float()[:, None] * along.float()
        embeddings[7] += 3 * along[0].float()
        block = hf.model.layers[0]
        block.input_layernorm.weight.fill_(1)
        for weight in (block.self_attn.q_proj.weight, block.self_attn.k_proj.weight, block.mlp.down_proj.weight):
            weight.zero_()
        for weight in (block.self_attn.v_proj.weight, block.self_attn.o_proj.weight):
            weight.copy_(torch.eye(WIDTH))
    asked = [prompt("w3 w7 w4 w5"), prompt("w9 w10 w11 w12 w13 w7")]
    model = wrapped(hf)
    for rule in RULES:
        for one, text in zip(relevance.token_relevance(model, asked, 0, along, rule), asked, strict=True):
            positions = prompts.user_words(model.tokenizer, text)
            by_word = one.words(positions)[0]
            read = text.text.split().index("w7")
            assert by_word.argmax() == read
            others = torch.cat([one.tokens[0, : positions[read][0]], one.tokens[0, positions[read][0] + 1 :]])
            if rule != "gradient":  # the gradient also passes through the norm's scale, to which every token adds
                assert others.abs().max() < 1e-5 * by_word[read]
            if rule == "conservative":  # its value, normalised, is averaged over all tokens
                norm = hf.model.embed_tokens.weight[7].detach().double().square().mean().add(1e-6).sqrt()
                assert by_word[read].item() == pytest.approx(3 / norm.item() / one.tokens.shape[1], rel=1e-5)


def test_relevance_of_words_sums_their_tokens():
    one = relevance.TokenRelevance(torch.arange(10.0).reshape(2, 5), torch.ones(2))
    assert one.words([[1, 2], [], [4]]).tolist() == [[3, 0, 4], [13, 0, 9]]
    assert one.words([]).shape == (2, 0)


# Components -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["attnlrp", "conservative"])
def test_components_share_the_relevance_of_the_lower_state(exact, rule):
    above, below = directions(2), directions(5, seed=1)  # neither unit nor orthogonal
    found = relevance.component_relevance(exact, ASKED, 1, above, below, rule, batch=2)
    assert found.components.shape == (len(ASKED), 2, 5)
    for i, ids in enumerate(ids_of(exact)):
        x = reference(exact.hf, ids, 0, rule)[-1][-1].detach()
        z = np.linalg.lstsq(below.T.numpy(), x.numpy(), rcond=None)[0]
        for j in range(2):
            whole, projection = messages(exact.hf, ids, 1, above[j], rule, at=1)
            expected = torch.tensor(z) * (below @ (whole[-1] / x))  # the published step, without its stabiliser
            close(found.components[i, j], expected, 1e-8)
            together = found.components[i, j].sum() + found.residual[i, j]
            assert together.item() == pytest.approx(whole[-1].sum().item(), rel=1e-8)
            assert found.elsewhere[i, j].item() == pytest.approx(whole[:-1].sum().item(), rel=1e-8)
            assert found.projection[i, j].item() == pytest.approx(projection.item(), rel=1e-8)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", range(1, LAYERS))
def test_an_identity_block_hands_components_their_own_projection(exact, rule, layer):
    above, below = directions(3), directions(4, seed=1)
    block = exact.hf.model.layers[layer]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    found = relevance.component_relevance(exact, ASKED, layer, above, below, rule)
    for i, ids in enumerate(ids_of(exact)):
        h = state(exact, ids, layer)
        z = torch.tensor(np.linalg.lstsq(below.T.numpy(), h.numpy(), rcond=None)[0])
        projection = above @ h
        expected = z * (above @ below.T) / (projection + 1e-6)[:, None]
        close(found.published()[i], expected, 1e-9)
        assert torch.allclose(found.residual[i], above @ (h - z @ below), atol=1e-9)
        assert (found.elsewhere[i] == 0).all()


def test_conservative_parts_sum_to_the_projection_and_do_not_depend_on_batches(exact):
    above, below = directions(2), directions(6, seed=1)
    found = relevance.component_relevance(exact, ASKED, LAST, above, below, "conservative", batch=2)
    together = found.components.sum(-1) + found.residual + found.elsewhere
    assert torch.allclose(together, found.projection, rtol=0, atol=1e-10 * float(found.components.abs().sum()))
    assert found.elsewhere.abs().max() > 1e-3
    one = relevance.component_relevance(exact, ASKED[2:3], LAST, above, below, "conservative")
    close(one.components[0], found.components[2], 1e-6)


def test_directions_that_span_the_space_leave_no_residual(exact):
    found = relevance.component_relevance(exact, ASKED, 1, directions(2), torch.eye(WIDTH))
    assert found.residual.abs().max() < 1e-10 * found.components.abs().sum(-1).max()


# The forward pass is left alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("rule", RULES)
def test_rules_leave_the_forward_pass_to_the_last_bit(model, rule, implementation):
    model.hf.set_attn_implementation(implementation)
    encoding = prompts.encode(model.tokenizer, ASKED)
    expected = tracing.forward(model.traced, encoding, PLACES).activations
    found = tracing.gradients(model.traced, encoding, PLACES, total, rules=relevance.RULES[rule])
    plain = tracing.gradients(model.traced, encoding, PLACES, total)
    for place in PLACES:
        real = encoding["attention_mask"].bool()
        assert torch.equal(found[place][0][real], expected[place][real])
    same = torch.allclose(found["embed", 0][1], plain["embed", 0][1], rtol=1e-3)
    assert same == (rule == "gradient")


def total(logits):
    return logits.logsumexp(-1)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_left_behind(model, family, rule):
    encoding = prompts.encode(model.tokenizer, ASKED)
    first = tracing.forward(model.traced, encoding, PLACES, logits="all")
    relevance.token_relevance(model, ASKED, LAST, directions(2), rule)
    relevance.component_relevance(model, ASKED, LAST, directions(2), directions(3), rule)
    again = tracing.forward(model.traced, encoding, PLACES, logits="all")
    assert torch.equal(first.logits, again.logits)
    slopes = tracing.gradients(model.traced, encoding, [("embed", 0)], total)["embed", 0][1]
    fresh = tracing.gradients(tiny_models.traced(family), encoding, [("embed", 0)], total)["embed", 0][1]
    assert torch.equal(slopes, fresh)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.hf.modules())
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_one_forward_a_batch_and_one_backward_a_direction_and_batch(model, monkeypatch):
    backward, forward = [], []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: backward.append(1) or grad(*args, **options))
    handles = [
        model.traced.model._module.model.layers[i].register_forward_hook(lambda *_, i=i: forward.append(i))
        for i in range(LAYERS)
    ]
    relevance.token_relevance(model, ASKED, 1, directions(3), batch=2)
    for handle in handles:
        handle.remove()
    assert len(backward) == 3 * 3  # five prompts in three batches
    assert forward.count(0) == 3
    assert LAST not in forward  # the pass ends with block 1


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("module", [torch.nn.SiLU(), torch.nn.GELU(), LlamaRMSNorm(6)], ids=["silu", "gelu", "norm"])
def test_the_ratio_at_and_near_zero(module, share):
    x = torch.tensor([[0.0, 2.0, -0.0, -3.0, 1e-30, -1e-30], [0.0] * 6]).requires_grad_()
    y = module(x)
    found = relevance._ratio(x, y, share)
    assert torch.equal(found, y)
    (slope,) = torch.autograd.grad(found.sum(), x)
    if isinstance(module, LlamaRMSNorm):
        expected = (module.weight * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).detach()
    else:  # both activations are x times something that is 1/2 at 0
        expected = torch.where(x.abs() < 1e-20, 0.5, y / x).detach()
    torch.testing.assert_close(slope, share * expected.expand_as(slope))


@pytest.mark.parametrize("rule", RULES)
def test_zeros_in_the_embedding_give_finite_relevance_that_sums(rule):
    hf = tiny_models.build("llama").double()
    with torch.no_grad():
        hf.model.embed_tokens.weight[5] = 0
        hf.model.embed_tokens.weight[:, 3] = 0
    for one in relevance.token_relevance(wrapped(hf), ASKED, LAST, directions(2), rule):
        assert one.tokens.isfinite().all()
        if rule == "conservative":
            assert ((one.tokens.sum(1) - one.projection).abs() < 1e-10 * one.tokens.abs().sum(1)).all()


# Remote ---------------------------------------------------------------------------------------------------------------


def test_the_rehearsed_server_gives_the_same_relevance(model, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # the rehearsal reorders it
    rehearsed, gradients, asked_of = dataclasses.replace(model, remote="local"), tracing.gradients, []
    monkeypatch.setattr(
        tracing,
        "gradients",
        lambda traced, *args, **options: asked_of.append(traced.remote) or gradients(traced, *args, **options),
    )
    for rule in RULES:
        here = relevance.token_relevance(model, ASKED, 1, directions(2), rule)
        there = relevance.token_relevance(rehearsed, ASKED, 1, directions(2), rule)
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(here, there, strict=True))
    here = relevance.component_relevance(model, ASKED, 1, directions(2), directions(3))
    there = relevance.component_relevance(rehearsed, ASKED, 1, directions(2), directions(3))
    assert torch.equal(here.components, there.components)
    assert asked_of == [False, "local"] * 4


def test_rules_travel_without_this_project_or_jaxtyping(monkeypatch):
    nnsight.register("lib")
    payload = serialization.dumps((relevance.RULES["attnlrp"], partial(relevance._project, directions=directions(2))))
    for name in [name for name in sys.modules if name.split(".")[0] in ("lib", "jaxtyping")]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    rules, objective = serialization.loads(payload)
    x = torch.tensor([2.0], requires_grad=True)
    rules["gate"](x, x**3).backward()
    assert x.grad.item() == pytest.approx(0.5 * 8 / 2)
    assert objective(torch.ones(3, WIDTH)).shape == (2, 3)


# Refusals -------------------------------------------------------------------------------------------------------------


def tokens(model, **changes):
    return relevance.token_relevance(model, **{"asked": ASKED, "layer": 1, "directions": directions(2), **changes})


def components(model, **changes):
    options = {"asked": ASKED, "layer": 1, "above": directions(2), "below": directions(3), **changes}
    return relevance.component_relevance(model, **options)


ZERO, ENDLESS = torch.stack([torch.ones(WIDTH), torch.zeros(WIDTH)]), torch.full((1, WIDTH), torch.inf)
LONG = [*ASKED, prompt(" ".join(["w3"] * 62))]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: tokens(m, layer=LAYERS), "layer 3 is not possible; here layers go from 0 to 2"),
        (lambda m: tokens(m, layer=-1), "layer -1"),
        (lambda m: components(m, layer=0), "layer 0 is not possible; here layers go from 1 to 2"),
        (lambda m: tokens(m, directions=directions(2)[:, 1:]), r"shape \(2, 31\); they must be \[direction, 32\]"),
        (lambda m: tokens(m, directions=directions(1)[0]), r"v\[None\]"),
        (lambda m: tokens(m, directions=directions(2)[:0]), "at least one"),
        (lambda m: tokens(m, directions=ZERO), "row 1 of directions is zero"),
        (lambda m: components(m, below=ZERO), "row 1 of below is zero"),
        (lambda m: components(m, above=ENDLESS), "row 0 of above is zero or not finite"),
        (lambda m: tokens(m, asked=[]), "no prompts to explain"),
        (lambda m: components(m, asked=[]), "no prompts to explain"),
        (lambda m: tokens(m, rule="lrp"), "unknown rule 'lrp'; known: attnlrp, conservative, gradient"),
        (lambda m: tokens(m, asked=LONG, batch=2), "65 tokens exceed the model's context of 64"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(call, message):
    model, ran = wrapped(tiny_models.build("llama")), []
    model.traced.model._module.model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(InputError, match=message):
        call(model)
    assert not ran


def test_a_family_without_rules_is_refused_with_the_reason_and_has_gradients():
    model = wrapped(tiny_models.build("gpt-neox"))
    for rule in ("attnlrp", "conservative"):
        with pytest.raises(
            InputError, match=r"GPTNeoXForCausalLM has no relevance rules, which need norms without bias"
        ):
            tokens(model, rule=rule)
    assert len(tokens(model, rule="gradient")) == len(ASKED)
