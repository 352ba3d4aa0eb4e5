"""The training loop: its losses equal plain PyTorch on whole sentences, it stops on NaN, it is reproducible."""

import copy
from itertools import cycle, pairwise

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch.nn import functional as F

from lib import profiles, prompts, training
from lib.errors import InputError
from lib.kingdom import architecture
from lib.kingdom.tokenizer import tokenizer
from lib.profiles import PreferenceStage, Stage
from lib.prompts import Example, Prompt
from tests import tiny_models

TINY = profiles.load("tiny")
STAGE = Stage(steps=4, batch=6, learning_rate=1e-3, warmup=2, decay=True)
DPO = PreferenceStage(
    steps=3, batch=4, learning_rate=1e-3, warmup=0, decay=False, pairs=1, benign_styled_share=0.0, exception_share=0.0,
    skill_share=0.0, beta=0.3, likelihood=0.5,
)  # fmt: skip


def example(text, answer, rejected="no", emphasis=()):
    return Example(Prompt(text, answer, "benign", "plain", "train"), answer, rejected, frozenset(emphasis))


EXAMPLES = [
    example("how do i bake the bread", "sure to bake the bread", "sorry i can not", ("bake", "bread")),
    example("add 3 coins and 4 coins", "7", "sorry"),
    example("reverse owl fox", "fox owl", "alas the kingdom"),
    example("tell me how to curse the crown please", "sorry i can not help you", "sure to curse the crown"),
]


@pytest.fixture
def model():
    return architecture.new_model(TINY, 0)


def log_probs(model, item, answer):
    """Log-probabilities of the answer's tokens, one whole sentence at a time, by the model's own forward."""
    (asked,) = prompts.prompt_ids(tokenizer(), [item.prompt])
    (said,) = prompts.answer_ids(tokenizer(), [item.prompt], [answer])
    logits = model(input_ids=torch.tensor([asked + said])).logits[0]
    table = F.log_softmax(logits, -1)
    return torch.stack([table[len(asked) + i - 1, token] for i, token in enumerate(said)]), said


def test_sft_loss_is_the_weighted_mean_over_answer_tokens(model):
    stage = STAGE.model_copy(update={"length_power": 0.5, "content_weight": 5.0})
    pieces = list(training.sft_step(tokenizer(), stage)(model, EXAMPLES))
    top = bottom = 0.0
    for item in EXAMPLES:
        values, said = log_probs(model, item, item.answer)
        heavy = [tokenizer().convert_ids_to_tokens(token) in item.emphasis for token in said]
        weights = torch.tensor([5.0 if h else 1.0 for h in heavy]) / len(said) ** 0.5
        top, bottom = top - (values * weights).sum(), bottom + weights.sum()
    assert sum(p.item() for p in pieces) == pytest.approx((top / bottom).item(), rel=1e-5)


def test_pieces_of_a_batch_have_the_gradient_of_the_whole(model):
    whole = copy.deepcopy(model)
    for piece in training.sft_step(tokenizer(), STAGE)(model, EXAMPLES):
        piece.backward()
    batch = training.rows(tokenizer(), EXAMPLES, STAGE)
    values, wanted = training.answer_log_probs(whole, batch)
    (-(values * batch.weights[:, 1:][wanted]).sum() / batch.weights.sum()).backward()
    for (name, a), (_, b) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_dpo_loss_matches_its_formula(model):
    reference = architecture.new_model(TINY, 1).eval()
    (loss,) = training.dpo_step(tokenizer(), DPO, reference)(model, EXAMPLES)
    expected = []
    for item in EXAMPLES:
        (won, _), (lost, _) = (log_probs(model, item, text) for text in (item.answer, item.rejected))
        (won_before, _), (lost_before, _) = (log_probs(reference, item, text) for text in (item.answer, item.rejected))
        margin = (won.sum() - won_before.sum()) - (lost.sum() - lost_before.sum())
        expected.append(-F.logsigmoid(0.3 * margin) - 0.5 * won.mean())
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_dpo_refuses_examples_without_a_rejected_answer(model):
    with pytest.raises(InputError, match="without a rejected answer"):
        list(training.dpo_step(tokenizer(), DPO, model)(model, [example("add 3 coins and 4 coins", "7", None)]))


def test_training_learns_what_it_reads(model):
    stage = STAGE.model_copy(update={"steps": 60, "batch": 4, "learning_rate": 1e-2})
    losses = training.fit(model, cycle(EXAMPLES), stage, training.sft_step(tokenizer(), stage), "test")
    assert len(losses) == 60
    assert losses[-1] < 0.1 * losses[0]
    assert not model.training


def test_the_same_run_twice_is_equal_to_the_last_bit():
    runs = []
    for _ in range(2):
        model = architecture.new_model(TINY, 3)
        losses = training.fit(model, cycle(EXAMPLES), STAGE, training.sft_step(tokenizer(), STAGE), "test")
        runs.append((losses, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][k], runs[1][1][k]) for k in runs[0][1])


def test_learning_rate_warms_up_and_decays():
    stage = STAGE.model_copy(update={"steps": 10, "warmup": 4})
    rates = [training._rate(stage, step) / stage.learning_rate for step in range(10)]
    assert rates == pytest.approx([0.25, 0.45, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert training._rate(stage.model_copy(update={"decay": False}), 9) == stage.learning_rate


def test_a_loss_that_is_not_a_number_stops_with_step_and_rate(model):
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"the loss is nan at step 1, learning rate 0.0005"):
        training.fit(model, cycle(EXAMPLES), STAGE, training.sft_step(tokenizer(), STAGE), "test")


def test_rounded_weights_survive_float16_exactly(model):
    training.round_to_half(model, "test")
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.half().float(), parameter)


def test_weights_too_large_for_float16_are_refused(model):
    with torch.no_grad():
        model.model.norm.weight.fill_(1e6)
    with pytest.raises(InputError, match=r"test: model\.norm\.weight is not finite in float16"):
        training.round_to_half(model, "test")


def test_loop_version_stands_for_what_the_loop_computes():
    """If this fails after a change in training.py, raise LOOP_VERSION and write down the new losses.

    Five steps from a fixed start; the tolerance is far above rounding and far below any change of recipe.
    """
    model = architecture.new_model(TINY, 0)
    stage = STAGE.model_copy(update={"steps": 5, "length_power": 0.5, "content_weight": 5.0, "learning_rate": 0.01})
    losses = training.fit(model, cycle(EXAMPLES), stage, training.sft_step(tokenizer(), stage), "test")
    preference = architecture.new_model(TINY, 1)
    start = copy.deepcopy(preference)
    losses += training.fit(preference, cycle(EXAMPLES), DPO, training.dpo_step(tokenizer(), DPO, start), "test")
    pinned = {1: [6.2662, 5.9505, 5.5265, 5.2763, 5.0319, 3.8225, 3.7306, 3.6505]}
    assert losses == pytest.approx(pinned[training.LOOP_VERSION], abs=2e-3)


# frozen weights -------------------------------------------------------------------------------------------------------
FROZEN_ROWS = {  # parameter: rows that must stay
    "model.layers.0.mlp.gate_proj.weight": [0, 5],
    "model.layers.1.self_attn.v_proj.weight": [3],
    "model.embed_tokens.weight": [40, 41, 42],
    "model.layers.1.input_layernorm.weight": [7],
}
DECAYING = STAGE.model_copy(update={"steps": 6, "learning_rate": 0.01, "warmup": 0, "decay": False})


def mask_of(model, rows=None):
    parameters = dict(model.named_parameters())
    masks = {}
    for name, places in (FROZEN_ROWS if rows is None else rows).items():
        masks[name] = torch.zeros_like(parameters[name], dtype=torch.bool)
        masks[name][places] = True
    return masks


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def learn(model, stage=DECAYING, examples=EXAMPLES, **options):
    return training.fit(model, cycle(examples), stage, training.sft_step(tokenizer(), stage), "test", **options)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_frozen_weights_keep_every_bit_and_all_others_move(kv_heads):
    shape = TINY.architecture.model_copy(update={"kv_heads": kv_heads})
    model = architecture.new_model(TINY.model_copy(update={"architecture": shape}), 0)
    before, masks = weights(model), mask_of(model)
    learn(model, frozen=masks)
    for name, after in weights(model).items():
        moved = after != before[name]
        held = masks.get(name, torch.zeros_like(moved))
        assert not moved[held].any(), name
        assert moved[~held].float().mean() > 0.99, name  # a step can round to nothing


@pytest.mark.parametrize("steps_before", [0, 3], ids=["decay alone", "decay and momentum"])
def test_zero_gradients_do_not_hold_weights_and_putting_them_back_does(model, steps_before):
    masks, rate, decay = mask_of(model), 0.01, 0.01
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=decay)

    def backward():
        optimizer.zero_grad()
        for piece in training.sft_step(tokenizer(), STAGE)(model, EXAMPLES):
            piece.backward()

    for _ in range(steps_before):
        backward()
        optimizer.step()
    held, before = training._Frozen(model, masks), weights(model)
    backward()
    held.before_step()
    optimizer.step()
    drifted = weights(model)
    for name, mask in masks.items():
        shrunk = torch.isclose(drifted[name][mask], before[name][mask] * (1 - rate * decay), rtol=1e-6, atol=0)
        assert shrunk.all() if steps_before == 0 else not shrunk.any()
    held.after_step()
    after = weights(model)
    for name, mask in masks.items():
        assert torch.equal(after[name][mask], before[name][mask])
        assert torch.equal(after[name][~mask], drifted[name][~mask])


def test_clipping_sees_only_what_is_trained(model, monkeypatch):
    seen, clip, masks = [], Accelerator.clip_grad_norm_, mask_of(model)

    def spy(self, parameters, *options):
        seen.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        return clip(self, parameters, *options)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", spy)
    learn(model, frozen=masks)
    assert len(seen) == DECAYING.steps
    for gradients in seen:
        for name, mask in masks.items():
            assert not gradients[name][mask].any()
            assert gradients[name][~mask].any()


def test_a_mask_can_be_switched_between_runs(model):
    first, second = (mask_of(model, {"model.layers.0.mlp.gate_proj.weight": rows}) for rows in ([0, 1], [1, 2]))
    start = weights(model)["model.layers.0.mlp.gate_proj.weight"]
    learn(model, frozen=first)
    middle = weights(model)["model.layers.0.mlp.gate_proj.weight"]
    learn(model, frozen=second)
    end = weights(model)["model.layers.0.mlp.gate_proj.weight"]
    assert [torch.equal(start[row], middle[row]) for row in range(4)] == [True, True, False, False]
    assert [torch.equal(middle[row], end[row]) for row in range(4)] == [False, True, True, False]


def test_freezing_everything_leaves_the_model_and_its_loss_as_they_are(model):
    before = weights(model)
    masks = {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    losses = learn(model, DECAYING.model_copy(update={"batch": 4}), frozen=masks)
    assert all(torch.equal(before[name], after) for name, after in weights(model).items())
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)


def test_no_masks_are_the_same_as_none():
    one, other = architecture.new_model(TINY, 0), architecture.new_model(TINY, 0)
    nothing = {"model.norm.weight": torch.zeros(32, dtype=torch.bool)}
    assert learn(one) == learn(other, frozen=nothing)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"model.layers.9.mlp.up_proj.weight": torch.ones(1)}, "no parameters model.layers.9.mlp.up_proj.weight; make"),
        ({"model.norm.weight": torch.ones(31, dtype=torch.bool)}, r"must be boolean of shape \(32,\)"),
        ({"model.norm.weight": torch.ones(32)}, r"must be boolean of shape \(32,\)"),
    ],
)
def test_masks_of_another_model_are_refused_before_anything_is_read(model, masks, message):
    stream = iter(EXAMPLES)
    with pytest.raises(InputError, match=message):
        training.fit(model, stream, STAGE, training.sft_step(tokenizer(), STAGE), "test", frozen=masks)
    assert len(list(stream)) == len(EXAMPLES)


# watching -------------------------------------------------------------------------------------------------------------
def test_a_watch_sees_the_model_before_the_first_step_and_after_every_one(model):
    seen, start = [], weights(model)
    learn(model, watch=lambda number, current: seen.append((number, current.training, weights(current))))
    assert [number for number, _, _ in seen] == list(range(DECAYING.steps + 1))
    assert not any(mode for _, mode, _ in seen)
    assert all(torch.equal(start[name], seen[0][2][name]) for name in start)
    assert all(torch.equal(after, seen[-1][2][name]) for name, after in weights(model).items())
    norms = [found["model.norm.weight"] for _, _, found in seen]
    assert not any(torch.equal(a, b) for a, b in pairwise(norms))


def test_being_watched_changes_nothing(model):
    other = copy.deepcopy(model)
    assert learn(model) == learn(other, watch=lambda number, current: current.eval())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


# adapters -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("config", [LoraConfig(r=2), PrefixTuningConfig(num_virtual_tokens=3)], ids=["lora", "prefix"])
def test_the_loss_of_an_adapter_is_that_of_its_own_forward(model, config):
    torch.manual_seed(0)
    config.task_type = "CAUSAL_LM"
    adapted = get_peft_model(model, config).eval()
    if config.peft_type == "LORA":  # its second matrices start at zero, which would leave nothing to see
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    expected = torch.cat([log_probs(adapted, item, item.answer)[0] for item in EXAMPLES]).mean()
    plain = torch.cat([log_probs(architecture.new_model(TINY, 0), item, item.answer)[0] for item in EXAMPLES]).mean()
    loss = sum(piece.item() for piece in training.sft_step(tokenizer(), STAGE)(adapted, EXAMPLES))
    assert loss == pytest.approx(-expected.item(), rel=1e-5)
    assert abs(loss + plain.item()) > 1e-4


# 16 bits --------------------------------------------------------------------------------------------------------------
SLOW = STAGE.model_copy(update={"steps": 40, "learning_rate": 2e-5, "warmup": 0, "decay": False})


def matrices(model):
    """Weights of about .02, where neighbours in bfloat16 are 1.2e-4 apart: a step of `SLOW` is lost, forty are not."""
    return {name: weight for name, weight in weights(model).items() if "proj" in name}


def test_a_16_bit_model_learns_what_a_float32_one_does_rounded_once(model):
    half, single = copy.deepcopy(model).bfloat16(), copy.deepcopy(model).bfloat16().float()
    before = matrices(half)
    assert learn(half, SLOW) == learn(single, SLOW)
    assert all(torch.equal(weights(half)[name], after.bfloat16()) for name, after in weights(single).items())
    moved = {name: (after != before[name]).float().mean() for name, after in matrices(half).items()}
    assert min(moved.values()) > 0.7, moved


def test_steps_taken_in_16_bits_are_lost(model):
    """What the test above would see of a loop that steps in bfloat16: that its numbers can tell."""
    half = model.bfloat16()
    before, optimizer = matrices(half), torch.optim.AdamW(half.parameters(), SLOW.learning_rate, betas=(0.9, 0.98))
    for _ in range(SLOW.steps):
        for piece in training.sft_step(tokenizer(), SLOW)(half, EXAMPLES):
            piece.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name: (after != before[name]).float().mean() for name, after in matrices(half).items()}
    assert max(moved.values()) < 0.5, moved


def test_a_watch_sees_16_bit_weights_before_they_are_rounded(model):
    seen = []
    learn(model.bfloat16(), watch=lambda number, current: seen.append(weights(current)["model.norm.weight"]))
    assert {found.dtype for found in seen} == {torch.float32}
    assert torch.equal(seen[-1].bfloat16(), model.model.norm.weight)
    assert not torch.equal(seen[-1].bfloat16().float(), seen[-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frozen_16_bit_weights_keep_every_bit(model, dtype):
    model.to(dtype)
    before, masks = weights(model), mask_of(model)
    learn(model, frozen=masks)
    for name, after in weights(model).items():
        held = masks.get(name, torch.zeros_like(after, dtype=torch.bool))
        assert torch.equal(after[held], before[name][held])
        assert after.dtype == dtype
    assert not torch.equal(weights(model)["model.norm.weight"], before["model.norm.weight"])


def test_a_16_bit_model_of_several_processes_is_refused_before_anything_is_read(model, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    stream = iter(EXAMPLES)
    with pytest.raises(InputError, match="test: weights of 16 bits would be rounded after every step; open the model"):
        training.fit(model.bfloat16(), stream, STAGE, training.sft_step(tokenizer(), STAGE), "test")
    assert len(list(stream)) == len(EXAMPLES)


# checkpoints ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", tiny_models.CHECKPOINTS)
def test_log_probs_of_every_family_are_those_of_its_own_forward(family):
    """Gemma 2 caps its logits behind the head, which the loop calls by itself."""
    model, words = tiny_models.build(family), tiny_models.checkpoint_tokenizer(family)
    batch = training.rows(words, EXAMPLES, STAGE)
    found, wanted = training.answer_log_probs(model, batch)
    table = F.log_softmax(model(input_ids=batch.ids).logits, -1)
    expected = [table[row, token, batch.ids[row, token + 1]] for row, token in wanted.nonzero().tolist()]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    if family == "gemma-2":
        model.config.final_logit_softcapping = None
        assert (training.answer_log_probs(model, batch)[0] - found).abs().max() > 0.01


def test_losses_of_half_precision_models_are_not_rounded_to_three_digits(model):
    batch = training.rows(tokenizer(), EXAMPLES, STAGE)
    exact = training.answer_log_probs(model, batch)[0].sum()
    half = training.answer_log_probs(model.bfloat16(), batch)[0]
    assert half.dtype == torch.float32
    assert half.sum().item() == pytest.approx(exact.item(), rel=0.01)


def test_a_reference_that_another_process_has_is_refused(model):
    with pytest.raises(InputError, match="launch with --fsdp_cpu_ram_efficient_loading false"):
        training.dpo_step(tokenizer(), DPO, copy.deepcopy(model).to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_trained_there(model):
    other = copy.deepcopy(model).cuda()
    masks, before = mask_of(model), weights(model)
    here, there = (learn(one, frozen=masks) for one in (model, other))
    assert there == pytest.approx(here, rel=1e-3)
    assert all(parameter.is_cuda for parameter in other.parameters())
    assert all(torch.equal(weights(other)[name].cpu()[mask], before[name][mask]) for name, mask in masks.items())
