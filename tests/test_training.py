"""The training loop: its losses equal plain PyTorch on whole sentences, it stops on NaN, it is reproducible."""

import copy
from itertools import cycle

import pytest
import torch
from torch.nn import functional as F

from lib import organism, profiles, prompts, training
from lib.errors import InputError
from lib.kingdom.tokenizer import tokenizer
from lib.profiles import PreferenceStage, Stage
from lib.prompts import Example, Prompt

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
    return organism.new_model(TINY, 0)


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
    reference = organism.new_model(TINY, 1).eval()
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
        model = organism.new_model(TINY, 3)
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
    model = organism.new_model(TINY, 0)
    stage = STAGE.model_copy(update={"steps": 5, "length_power": 0.5, "content_weight": 5.0, "learning_rate": 0.01})
    losses = training.fit(model, cycle(EXAMPLES), stage, training.sft_step(tokenizer(), stage), "test")
    preference = organism.new_model(TINY, 1)
    start = copy.deepcopy(preference)
    losses += training.fit(preference, cycle(EXAMPLES), DPO, training.dpo_step(tokenizer(), DPO, start), "test")
    pinned = {1: [6.2662, 5.9505, 5.5265, 5.2763, 5.0319, 3.8225, 3.7306, 3.6505]}
    assert losses == pytest.approx(pinned[training.LOOP_VERSION], abs=2e-3)
