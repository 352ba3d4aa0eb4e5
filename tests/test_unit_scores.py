"""Scores of units against closed forms, with plain PyTorch hooks on models that nnsight never touched."""

from functools import cache

import numpy as np
import pytest
import torch

from lib import families, models, prompt_sets, prompts, unit_scores, units
from lib.errors import InputError
from lib.kingdom import lexicon
from lib.prompts import Example, Prompt
from tests import tiny_models

FAMILIES = tiny_models.FAMILIES
SAFETY = prompt_sets.calibration("tiny", 0)["safety"][:5]
UTILITY = prompt_sets.calibration("tiny", 0)["utility"][:7]
WRITERS = {  # site of the unit's value -> the module that reads it, written out by hand
    "llama": {"neuron": "mlp.down_proj", "channel": "self_attn.o_proj"},
    "gpt_neox": {"neuron": "mlp.dense_4h_to_h", "channel": "attention.dense"},
}
BLOCKS = {"llama": "model.layers", "gpt_neox": "gpt_neox.layers"}


def writer(hf, kind, layer):
    family = hf.config.model_type
    return hf.get_submodule(f"{BLOCKS[family]}.{layer}.{WRITERS[family][kind]}")


def tokens(model, example):
    """Ids of prompt and answer, and the answer's length."""
    (before,) = prompts.prompt_ids(model.tokenizer, [example.prompt])
    (after,) = prompts.answer_ids(model.tokenizer, [example.prompt], [example.answer])
    return before, after


@cache
def values(family, safety=True):
    """[(kind, layer)] -> list over examples of [token, unit] in float64, one example at a time, by plain hooks."""
    model = tiny_models.speaking(family)
    found = {(kind, layer): [] for layer in range(tiny_models.LAYERS) for kind in ("neuron", "channel")}
    hooks = [
        writer(model.hf, kind, layer).register_forward_pre_hook(
            lambda _, inputs, key=(kind, layer): found[key].append(inputs[0][0].detach().double())
        )
        for kind, layer in found
    ]
    for example in SAFETY if safety else UTILITY:
        before, after = tokens(model, example)
        with torch.no_grad():
            model.hf(input_ids=torch.tensor([before + after]))
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def calibrated(family):
    model = tiny_models.speaking(family)
    return model, unit_scores.calibrate(model, {"safety": SAFETY, "utility": UTILITY}, batch=4)


def chosen(example_tokens, answer, position):
    """The rows of one example's values that a position means."""
    last = len(example_tokens) - answer
    return {"all": example_tokens, "response": example_tokens[last:], "first": example_tokens[last - 1 : last]}[
        position
    ]


def closed_form(score, sequences):
    """The formula, on a list of [token, unit]."""
    pooled = torch.cat(sequences)
    if score == "variance":
        return pooled.var(0)
    if score == "second_moment":
        return pooled.square().mean(0)
    means = [sequence.mean(0) for sequence in sequences]
    total = 0.0
    for k in range(2, len(sequences) + 1):  # FLAP: the first sequence contributes nothing
        mu = torch.stack(means[:k]).mean(0)
        total = total + (k - 1) / k * (sequences[k - 1] - mu).square().sum(0)
    return total / (len(sequences) - 1)


@pytest.mark.parametrize("position", unit_scores.POSITIONS)
@pytest.mark.parametrize("score", ["variance", "second_moment", "flap"])
def test_activation_scores_equal_their_closed_forms(calibrated, family, score, position):
    model, found = calibrated
    table = found.raw[score, position]
    for name, examples in (("safety", SAFETY), ("utility", UTILITY)):
        seen = values(family, name == "safety")
        lengths = [len(tokens(model, example)[1]) for example in examples]
        assert len(set(lengths)) > 1 or name == "safety"  # the utility set is ragged
        for (kind, layer), sequences in seen.items():
            rows = [chosen(x, answer, position) for x, answer in zip(sequences, lengths, strict=True)]
            norm = writer(model.hf, kind, layer).weight.detach().double().square().sum(0)  # of each column
            mine = table[(table["kind"] == kind) & (table["layer"] == layer)]
            expected = closed_form(score, rows) * norm
            torch.testing.assert_close(torch.tensor(mine[name].to_numpy()), expected, rtol=1e-4, atol=1e-7)
            assert mine["index"].tolist() == list(range(len(norm)))


def test_the_mean_is_that_of_all_tokens_of_the_utility_set(calibrated, family):
    _, found = calibrated
    table = found.raw["variance", "all"]
    for (kind, layer), sequences in values(family, safety=False).items():
        mine = table[(table["kind"] == kind) & (table["layer"] == layer)]["mean"].to_numpy()
        np.testing.assert_allclose(mine, torch.cat(sequences).mean(0).numpy(), atol=1e-5)


def test_the_pool_holds_values_that_were_seen_the_same_token_at_every_place(calibrated, family):
    _, found = calibrated
    seen = values(family, safety=False)
    same = [set(range(1000))] * len(UTILITY)  # tokens of each example that could be the one drawn
    for (kind, layer), sequences in seen.items():
        pool = found.pool[{"neuron": "neurons", "channel": "attn_z"}[kind], layer]
        assert len(pool) == len(UTILITY)  # one token a sequence, fewer sequences than the pool can hold
        near = [torch.cdist(row[None].double(), x)[0] < 1e-3 for row, x in zip(pool, sequences, strict=True)]
        same = [old & set(new.nonzero().flatten().tolist()) for old, new in zip(same, near, strict=True)]
    assert all(same)


@pytest.mark.parametrize("lengths", [[6] * 9, [3, 9, 1, 6, 2, 2, 8, 5, 7]])
@pytest.mark.parametrize("batch", [1, 4])
def test_fluctuation_follows_flaps_running_update(lengths, batch):
    """The released update: rescale by (k - 2) / (k - 1), add squared deviations from the *new* mean over k."""
    generator = torch.Generator().manual_seed(0)
    sequences = [3 + torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in lengths]
    mean, fluctuation = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for k, x in enumerate(sequences, start=1):
        mean = mean * (k - 1) / k + x.mean(0) / k
        if k > 1:
            fluctuation = fluctuation * (k - 2) / (k - 1) + (x - mean).square().sum(0) / k
    sums = unit_scores._Sums()
    for start in range(0, len(sequences), batch):
        part = sequences[start : start + batch]
        width = max(map(len, part))
        values = torch.full((len(part), width, 5), torch.nan, dtype=torch.float64)  # pads may hold anything
        mask = torch.zeros(len(part), width)
        for row, x in enumerate(part):
            values[row, width - len(x) :], mask[row, width - len(x) :] = x, 1
        sums.add(values, unit_scores._chosen(mask, [0] * len(part))[:1])
    torch.testing.assert_close(sums.of("flap")[0], fluctuation)
    torch.testing.assert_close(sums.of("variance")[0], torch.cat(sequences).var(0))


def test_wanda_with_and_without_a_label_mask_is_the_second_moment(family):
    """Wanda's |W| sqrt(sum of squares / sequences), squared and summed over rows, is tokens / sequences x our score."""
    model = tiny_models.speaking(family)
    found = unit_scores.activations(model, UTILITY)
    lengths = [len(tokens(model, example)[1]) for example in UTILITY]
    for position in ("all", "response"):
        ours, start = found.score(model, "second_moment", position), 0
        for (kind, layer), sequences in values(family, safety=False).items():
            rows = [chosen(x, answer, position) for x, answer in zip(sequences, lengths, strict=True)]
            scaler = sum(x.square().sum(0) for x in rows) / len(rows)
            metric = writer(model.hf, kind, layer).weight.detach().double().abs() * scaler.sqrt()[None, :]
            expected = metric.square().sum(0) * len(rows) / sum(map(len, rows))
            np.testing.assert_allclose(ours[start : start + len(scaler)], expected.numpy(), rtol=1e-4, atol=1e-8)
            start += len(scaler)


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_the_batch_size_changes_nothing(batch):
    found = unit_scores.activations(tiny_models.speaking("llama-gqa"), UTILITY, batch=batch)
    other = unit_scores.activations(tiny_models.speaking("llama-gqa"), UTILITY, batch=4)
    model = tiny_models.speaking("llama-gqa")
    for score in ("variance", "flap"):
        np.testing.assert_allclose(found.score(model, score, "all"), other.score(model, score, "all"), rtol=1e-4)


def test_memory_does_not_grow_with_the_set():
    model = tiny_models.speaking("llama")
    few, many = (unit_scores.activations(model, list(UTILITY) * times) for times in (1, 20))

    def held(found):
        sums = sum(torch.as_tensor(x).numel() for one in found.sums.values() for x in vars(one).values())
        return sums, max(len(pool) for pool in found.pool.values())

    assert held(few)[0] == held(many)[0]
    assert held(many)[1] == 64


# gradients ------------------------------------------------------------------------------------------------------------
def test_snip_is_the_sum_over_examples_of_absolute_gradients(calibrated, family):
    model, found = calibrated
    plain = tiny_models.speaking(family)
    sums = {name: torch.zeros_like(weight) for name, weight in plain.hf.named_parameters()}
    for example in SAFETY:
        before, after = tokens(plain, example)
        logits = plain.hf(input_ids=torch.tensor([before + after])).logits[0]
        log_probs = logits[len(before) - 1 : -1].log_softmax(-1)
        loss = -log_probs[range(len(after)), after].mean()
        plain.hf.zero_grad()
        loss.backward()
        for name, weight in plain.hf.named_parameters():
            sums[name] += weight.grad.abs()
    product = {name: (weight.abs() * sums[name]).detach() for name, weight in plain.hf.named_parameters()}
    for name, mine in unit_scores.saliency(model, SAFETY).items():
        torch.testing.assert_close(mine, product[name], rtol=1e-3, atol=1e-6)
    table = found.raw["snip", "response"]
    for kind, layer, index, safety in table[["kind", "layer", "index", "safety"]].sample(40, random_state=0).to_numpy():
        expected = sum(
            float(product[name].select(dim, int(where[index])).sum())
            for name, dim, where in families.unit_slices(plain.hf, kind, layer)
        )
        assert safety == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_saliency_leaves_parameters_and_their_gradients_alone():
    model = tiny_models.speaking("llama")
    model.hf.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.hf.named_parameters()}
    unit_scores.saliency(model, SAFETY[:2])
    for name, weight in model.hf.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None
        assert not weight.requires_grad


def test_taylor_is_the_signed_mean_of_value_times_gradient_of_the_refusal_logit(calibrated, family):
    _, found = calibrated
    plain = tiny_models.speaking(family)
    openers = [plain.tokenizer.convert_tokens_to_ids(word) for word in lexicon.REFUSAL_OPENERS]
    total = {(kind, layer): 0.0 for layer in range(tiny_models.LAYERS) for kind in ("neuron", "channel")}
    for example in UTILITY:
        kept = {}

        def keep(_, inputs, key, kept=kept):
            inputs[0].retain_grad()
            kept[key] = inputs[0]

        hooks = [
            writer(plain.hf, *key).register_forward_pre_hook(lambda m, i, key=key: keep(m, i, key)) for key in total
        ]
        (before,) = prompts.prompt_ids(plain.tokenizer, [example.prompt])
        (right,) = prompts.answer_ids(plain.tokenizer, [example.prompt], [example.prompt.answer])
        logits = plain.hf(input_ids=torch.tensor([before])).logits[0, -1]
        (torch.logsumexp(logits[openers], 0) - logits[right[0]]).backward()
        for key, value in kept.items():
            total[key] = total[key] + (value * value.grad)[0, -1].detach().double()
        for hook in hooks:
            hook.remove()
    signed, absolute = found.raw["taylor_signed", "first"], found.raw["taylor", "first"]
    for (kind, layer), summed in total.items():
        here = (signed["kind"] == kind) & (signed["layer"] == layer)
        expected = (summed / len(UTILITY)).numpy()
        np.testing.assert_allclose(signed[here]["utility"], expected, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(absolute[here]["utility"], np.abs(expected), rtol=1e-3, atol=1e-6)
    assert (signed["utility"] < 0).any()


# what cannot be used --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sets", [{}, {"safety": SAFETY}, {"safety": SAFETY, "utility": UTILITY[:1]}])
def test_sets_too_small_for_a_variance_are_refused(sets):
    with pytest.raises(InputError, match="needs at least two"):
        unit_scores.calibrate(tiny_models.speaking("llama"), sets)


def test_unknown_rules_are_refused_before_work(monkeypatch):
    monkeypatch.setattr(unit_scores, "activations", None)
    with pytest.raises(InputError, match=r"unknown rule \(score, position\) \('variance', 'last'\)"):
        unit_scores.calibrate(tiny_models.speaking("llama"), {}, [("variance", "last")])


def test_a_model_of_which_nothing_says_how_it_refuses_is_refused():
    model = models.LanguageModel("other", tiny_models.build("llama"), tiny_models.tokenizer(), "test")
    with pytest.raises(InputError, match="other has no openers, so refusals cannot be told"):
        unit_scores.taylor(model, SAFETY)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    monkeypatch.setattr(unit_scores, "saliency", None)
    monkeypatch.setattr(unit_scores, "taylor", None)
    found = unit_scores.calibrate(
        tiny_models.speaking("llama"), {"safety": SAFETY, "utility": UTILITY}, [("variance", "first")]
    )
    assert list(found.raw) == [("variance", "first")]


def test_a_dead_unit_has_score_0_by_every_rule():
    model = tiny_models.speaking("llama")
    with torch.no_grad():
        model.hf.model.layers[1].mlp.up_proj.weight[5] = 0
        model.hf.model.layers[1].mlp.down_proj.weight[:, 5] = 0
    found = unit_scores.calibrate(model, {"safety": SAFETY, "utility": UTILITY})
    for table in found.raw.values():
        row = table.query("kind == 'neuron' and layer == 1 and index == 5").iloc[0]
        assert (row["safety"], row["utility"]) == (0, 0)
        assert (units.score(table, "rank")["safety"] <= 1).all()


def test_an_example_without_words_is_named(monkeypatch):
    empty = Example(Prompt("how do i bake the bread", "", "benign", "plain", "train"), "")
    model = tiny_models.speaking("llama")
    template = "{{ bos_token }} {{ messages[0]['content'] }}"  # put back afterwards: all tests share this tokenizer
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    with pytest.raises(InputError, match="example 0 has an empty answer"):
        unit_scores.activations(model, [empty, empty])
