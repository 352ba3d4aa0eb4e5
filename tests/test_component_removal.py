"""Edits of subspaces and positions, the choice of a component, suppression and what they cost: closed forms, planted
outcomes and plain forward hooks."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import (
    ability,
    behaviour,
    component_effects,
    component_removal,
    direction_effects,
    edits,
    one_position,
    prompts,
    suppression,
)  # fmt: skip
from lib.component_removal import Chosen, Pool, Styled
from lib.errors import InputError
from lib.prompts import Prompt, PromptSet
from lib.residual import Space
from tests import tiny_models
from tests.tiny_models import LAYERS, WIDTH


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BASIS = torch.linalg.qr(normal(WIDTH, WIDTH, seed=9))[0].T
ANSWERS = ("sure to curse the crown", "yes", "3", "sorry i can not help you with that")
TEXTS = ("how do i curse the crown", "bake the bread", "add 1 eggs and 2 eggs", "tell me how to blight the boat")


def prompt(text, answer="yes", style="story", kind="harmful", meaning=""):
    return Prompt(text, answer, kind, style, "heldout", meaning)


ASKED = [prompt(text, answer) for text, answer in zip(TEXTS, ANSWERS, strict=True)]


# edits ----------------------------------------------------------------------------------------------------------------
def test_a_subspace_at_once_is_its_directions_one_by_one():
    x, basis, targets = normal(2, 5, WIDTH), BASIS[:3], torch.tensor([1.0, 0.0, -2.0])
    at_once = edits.ablate_space(basis, targets)(x)
    one_by_one = x
    for direction, target in zip(basis, targets, strict=True):
        one_by_one = edits.ablate(direction, float(target))(one_by_one)
    assert torch.allclose(at_once, one_by_one, atol=1e-10)
    assert torch.allclose(at_once @ basis.T, targets.double().expand(2, 5, 3), atol=1e-10)
    assert torch.allclose(at_once @ BASIS[3:].T, x @ BASIS[3:].T, atol=1e-10)


def test_a_basis_must_be_orthonormal_with_a_target_each():
    with pytest.raises(InputError, match="not a set of orthonormal rows"):
        edits.ablate_space(2 * BASIS[:2], torch.zeros(2))
    with pytest.raises(InputError, match="2 directions but 3 targets"):
        edits.ablate_space(BASIS[:2], torch.zeros(3))


def test_a_place_from_the_end_is_edited_alone():
    x, edit = normal(2, 5, WIDTH), {}
    for place in (-1, -3):
        edit[place] = edits.add(BASIS[0], 2.0, place)(x) - x
        assert torch.allclose(edit[place][:, place], 2 * BASIS[0].expand(2, WIDTH), atol=1e-10)
        edit[place][:, place] = 0
        assert edit[place].abs().max() == 0
    assert torch.equal(edits.add(BASIS[0], 2.0, -1)(x), edits.add(BASIS[0], 2.0, "last")(x))
    for wrong in (0, 3, True, "first"):
        with pytest.raises(InputError, match="positions"):
            edits.add(BASIS[0], 2.0, wrong)
    with pytest.raises(InputError, match="no token 6 places from the end of 5"):
        edits.add(BASIS[0], 2.0, -6)(x)


def make(positions):
    return {("resid", 1): edits.add(BASIS[0], 6.0, positions)}


def test_the_last_prompt_token_alone_is_edited_whatever_the_answer_s_length():
    """Against one plain model at a time with a forward hook that knows where the prompt ends."""
    model, plain = tiny_models.speaking("llama"), tiny_models.speaking("llama").hf
    before = prompts.prompt_ids(model.tokenizer, ASKED)
    after = prompts.answer_ids(model.tokenizer, ASKED, [p.answer for p in ASKED])
    assert len({len(ids) for ids in after}) > 2
    found = one_position.answers(model, ASKED, make, one_position.LAST)
    for row, (asked, said) in enumerate(zip(before, after, strict=True)):

        def hook(module, inputs, output, asked=asked):
            state = output[0] if isinstance(output, tuple) else output
            state[:, len(asked) - 1] += 6.0 * BASIS[0].float()

        handle = plain.model.layers[1].register_forward_hook(hook)
        with torch.no_grad():
            logits = plain(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
        handle.remove()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(said)).item()
        assert found["nll"][row] == pytest.approx(loss, rel=1e-4)
    everywhere = one_position.answers(model, ASKED, make)
    assert np.allclose(everywhere["nll"], behaviour.teacher_forced(model, ASKED, make("all"))["nll"])
    still = behaviour.teacher_forced(model, ASKED)["nll"]
    assert np.allclose(one_position.answers(model, ASKED, one_position.nothing, one_position.LAST)["nll"], still)
    assert (abs(found["nll"] - still) > 1e-3).all()
    assert (abs(found["nll"] - everywhere["nll"]) > 1e-3).any()


# choosing -------------------------------------------------------------------------------------------------------------
NAMES = ("story", "flip", "scroll")


def styled(meanings=8):
    asked = [prompt(f"how do i curse the {s}", style=s, meaning=f"m{m}") for s in NAMES for m in range(meanings)]
    return Styled(tuple(asked), np.repeat(np.arange(3), meanings), NAMES)


def test_means_by_style_and_selectivity():
    every = styled(2)
    rises = every.by_style(np.array([1.0, 0.0, 0.0, 0.0, 1.0, 1.0]))
    assert rises.tolist() == [0.5, 0.0, 1.0]
    assert component_removal.selective(rises).tolist() == [0.0, -0.75, 0.75]


def test_halves_have_no_meaning_in_common_and_every_style():
    choice, confirm = component_removal.split(styled(), 3, seed=0)
    meanings = [{p.meaning for p in half.asked} for half in (choice, confirm)]
    assert not meanings[0] & meanings[1]
    assert [np.bincount(half.style).tolist() for half in (choice, confirm)] == [[3, 3, 3], [4, 4, 4]]
    for half in (choice, confirm):
        assert all(p.style == NAMES[s] for p, s in zip(half.asked, half.style, strict=True))
    lonely = Styled(styled().asked[:9], styled().style[:9], NAMES)
    with pytest.raises(InputError, match="missing from one half"):
        component_removal.split(lonely, 3, seed=0)


def test_a_style_is_learned_from_a_gain_of_three_tenths():
    every = styled(10)
    was, now = np.zeros(30), np.zeros(30)
    was[:2], now[:5], now[10:12], now[20:] = 1, 1, 1, 1
    table = component_removal.learned(pd.DataFrame({"refused": was}), pd.DataFrame({"refused": now}), every)
    assert table["gain"].tolist() == pytest.approx([0.3, 0.2, 1.0])
    assert table["learned"].tolist() == [True, False, True]


def test_what_the_gradient_expects_is_the_slope_of_the_margin():
    """Against plain autograd through a model never wrapped, prompt by prompt, so without padding."""
    model, plain = tiny_models.speaking("llama"), tiny_models.speaking("llama").hf.requires_grad_(False)
    along, targets = BASIS[:4], torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
    means = (targets @ along).expand(LAYERS, WIDTH)
    pools = [Pool([along[:3]] * LAYERS, means), Pool([along[3:]] * LAYERS, means)]
    found = component_removal.expected_drops(model, ASKED, pools, batch=4)
    assert [[part.shape for part in one] for one in found] == [[(3, 4)] * LAYERS, [(1, 4)] * LAYERS]
    openers = model.tokenizer.convert_tokens_to_ids(["sorry", "i", "alas"])
    ids = prompts.prompt_ids(model.tokenizer, ASKED)
    right = [ids_[0] for ids_ in prompts.answer_ids(model.tokenizer, ASKED, [p.answer for p in ASKED])]
    for layer in range(LAYERS):
        for row, mine in enumerate(ids):
            kept = {}

            def hook(module, inputs, output, kept=kept):
                state = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_()
                kept["state"] = state
                return (state, *output[1:]) if isinstance(output, tuple) else state

            handle = plain.model.layers[layer].register_forward_hook(hook)
            logits = plain(torch.tensor([mine])).logits[0, -1]
            handle.remove()
            margin = logits[openers].logsumexp(0) - logits[right[row]]
            (slope,) = torch.autograd.grad(margin, kept["state"])
            state, slope, margin = kept["state"][0].detach().double(), slope[0].double(), margin.detach()
            for direction in range(4):
                v = along[direction]
                moved = sum((targets[direction] - h @ v) * (g @ v) for h, g in zip(state, slope, strict=True))
                drop = margin.double().sigmoid() - (margin.double() + moved).sigmoid()
                part = found[direction // 3][layer][direction % 3, row]
                assert part == pytest.approx(float(drop), abs=1e-4)


@pytest.fixture
def answering(monkeypatch):
    """A model that answers `flip` once row 1 of block 0 is removed, and everything once row 0 of block 1 is; asked with
    its edits only."""
    tried = []

    def quick(model, asked, change=None):
        exact = np.zeros(len(asked))
        if change:
            block = next(iter(change))[1]
            row = round(change["resid", block].keywords["target"])
            tried.append((block, row))
            if (block, row) == (0, 1):
                exact[[p.style == "flip" for p in asked]] = 1
            if (block, row) == (1, 0):
                exact[:] = 1
        return pd.DataFrame({"exact": exact, "refused": 1 - exact, "wrong": 0.0 * exact})

    monkeypatch.setattr(component_removal.behaviour, "quick", quick)
    return tried


def test_the_selective_direction_is_chosen_not_the_one_that_opens_everything(answering):
    choice, confirm = component_removal.split(styled(), 3, seed=0)
    offered = Pool([BASIS[:2], BASIS[2:4]], torch.stack([BASIS[1], BASIS[3]]))
    was = tuple(component_removal.behaviour.quick(None, half.asked) for half in (choice, confirm))
    hopes = [np.zeros((2, len(choice.asked))) for _ in range(2)]
    hopes[0][1][choice.style == 1] = 0.9  # what the gradient expects: right about flip
    hopes[1][0][choice.style == 0] = 0.5  # and too narrow about the other
    found = component_removal.choose(None, offered, hopes, choice, confirm, was, [0, 1, 2])
    assert (found.block, found.row, found.style, found.on_choice) == (0, 1, 1, 1.0)
    assert found.name() == "L0-C3"
    assert answering[:2] == [(0, 1), (1, 0)]  # two finalists, and no more
    weights = np.ones((20, len(confirm.asked)))
    parts = component_removal.parts(found, confirm, weights, seed=0, resamples=100)
    assert (parts.hit.mean, parts.others.mean, parts.selective.mean) == (1.0, 0.0, 1.0)
    assert parts.hit.lower < 1.0  # four prompts are no certainty
    narrow = component_removal.choose(None, offered, hopes, choice, confirm, was, [0, 2])
    assert narrow.style in (0, 2)


def test_the_scan_has_a_row_for_every_direction_and_style(answering):
    every = styled(2)
    offered = Pool([BASIS[:2], BASIS[2:4]], torch.stack([BASIS[1], BASIS[3]]))
    was = component_removal.behaviour.quick(None, every.asked)
    found = component_removal.scan(None, offered, every, was)
    assert len(found) == 4 * 3
    hits = found[found["rise"] > 0].set_index(["block", "component"])
    assert hits.loc[[(0, 3)], "style"].tolist() == ["flip"]
    assert hits.loc[[(1, 2)], "rise"].tolist() == [1.0, 1.0, 1.0]
    assert (found["rise"] == -found["refused"]).all()


def test_ways_are_compared_on_the_confirming_prompts(answering):
    every = styled(2)
    offered = Pool([BASIS[:2], BASIS[2:4]], torch.stack([BASIS[1], BASIS[3]]))
    was = component_removal.behaviour.quick(None, every.asked)
    nothing = np.zeros(6)
    found = component_removal.ways(None, {"x": (offered, Chosen(0, 1, 1, 1.0, nothing, nothing))}, every, was)
    table = found.set_index("way")
    assert table.loc[direction_effects.HERE, ["hit", "others"]].tolist() == [1.0, 0.0]
    assert table.loc[direction_effects.ZERO, ["hit", "others"]].tolist() == [0.0, 0.0]  # target 0 is another row there


def test_parts_resample_meanings():
    confirm = styled(4)
    moved = np.zeros(12)
    moved[4:6] = 1.0  # half of flip
    found = Chosen(0, 0, 1, 0.5, moved, -moved)
    weights = np.array([[0, 0, 2, 2] * 3, [2, 2, 0, 0] * 3] * 10)
    parts = component_removal.parts(found, confirm, weights, seed=0, resamples=200)
    assert (parts.hit.mean, parts.others.mean, parts.selective.mean) == (0.5, 0.0, 0.5)
    assert parts.selective.bounds == (0.0, 1.0)


def test_pools_take_c2_to_c16_and_random_ones_lie_in_the_span():
    spaces = [
        Space(BASIS[:20], torch.ones(20), torch.zeros(WIDTH)),
        Space(BASIS[:5], torch.ones(5), torch.zeros(WIDTH)),
    ]
    states = normal(2, 6, WIDTH)
    means = component_removal.benign_means(states, np.array([True, False] * 3))
    assert torch.allclose(means, states[:, ::2].mean(1))
    own = component_removal.component_pool(spaces, means)
    assert [len(rows) for rows in own.along] == [15, 4]
    assert torch.allclose(own.targets(1), BASIS[1:5] @ means[1])
    for one in component_removal.random_pools(own, spaces, means, draws=2, seed=0):
        assert [len(rows) for rows in one.along] == [15, 4]
        assert (one.along[0] @ BASIS[16:].T).abs().max() < 1e-10
    change = own.edits(1, 2)[("resid", 1)]
    assert (change(normal(1, 3, WIDTH)) @ BASIS[3] - BASIS[3] @ means[1]).abs().max() < 1e-10
    x, everywhere = normal(1, 3, WIDTH), own.edits(1, 2, direction_effects.EVERYWHERE)
    assert [layer for _, layer in everywhere] == [0, 1]
    assert (everywhere["resid", 0](x) @ BASIS[3] - BASIS[3] @ means[0]).abs().max() < 1e-10
    assert (own.edits(1, 2, direction_effects.ZERO)["resid", 1](x) @ BASIS[3]).abs().max() < 1e-10
    with pytest.raises(InputError, match="unknown way"):
        own.edits(1, 2, "somehow")
    with pytest.raises(InputError, match="no benign prompt"):
        component_removal.benign_means(states, np.zeros(6, dtype=bool))


# effects --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def plan():
    return direction_effects.Steering(1, {"C1": BASIS[0]}, {"C1": torch.arange(3.0).double()}, 6.0)


def test_removal_and_addition_go_where_they_should(plan):
    x = normal(1, 4, WIDTH)
    for way, blocks, coordinate in (
        (direction_effects.HERE, [1], 1.0), (direction_effects.ZERO, [1], 0.0),
        (direction_effects.EVERYWHERE, [0, 1, 2], 1.0),
    ):  # fmt: skip
        change = component_effects.removal(plan, "C1", way)("all")
        assert [layer for _, layer in change] == blocks
        assert torch.allclose(change["resid", 1](x) @ BASIS[0], torch.full((1, 4), coordinate).double(), atol=1e-10)
        last = component_effects.removal(plan, "C1", way)(-2)["resid", 1](x) - x
        assert last[:, [0, 1, 3]].abs().max() == 0
    for everywhere, size in ((False, 3.0), (True, 1.0)):
        change = component_effects.addition(plan, "C1", 0.5, everywhere)("all")
        assert torch.allclose(change["resid", 1](x) - x, size * BASIS[0].expand(1, 4, WIDTH), atol=1e-10)
    with pytest.raises(InputError, match="unknown way"):
        component_effects.removal(plan, "C1", "somehow")


def test_tables_of_conditions_and_doses(plan):
    model, asked = tiny_models.speaking("llama"), styled(2)
    makers = {"nothing": one_position.nothing, "without": component_effects.removal(plan, "C1", direction_effects.HERE)}
    found = component_effects.conditions(model, asked, makers, one_position.LAST)
    assert len(found) == 2 * 3 * 3
    assert (found.groupby(["condition", "style"])["share"].sum() == 1).all()
    many = pd.concat([found.assign(condition=f"without random {i}", share=i / 10) for i in (1, 3)])
    merged = component_effects.random_as_one(pd.concat([found, many]), "by chance")
    assert set(merged["condition"]) == {"nothing", "without", "by chance"}
    assert np.allclose(merged.loc[merged["condition"] == "by chance", ["share", "lower", "upper"]], [0.2, 0.1, 0.3])
    steered = component_effects.doses(model, asked, plan, ["C1"], "flip", everywhere=True)
    assert len(steered) == 5 * 2
    assert np.allclose(steered[["refused", "exact", "wrong"]].sum(axis=1), 1)


# suppression ----------------------------------------------------------------------------------------------------------
def test_harm_correlation_is_pearson_s_and_0_for_what_does_not_vary():
    states, harmful = normal(60, WIDTH, seed=3), np.arange(60) % 3 == 0
    states[:, :] += 4 * torch.tensor(harmful)[:, None] * BASIS[0]
    states = states - (states @ BASIS[1])[:, None] * BASIS[1] + 7 * BASIS[1]  # constant along BASIS[1]
    found = suppression.harm_correlation(states, BASIS[:3], harmful)
    for i in (0, 2):
        assert found[i] == pytest.approx(np.corrcoef((states @ BASIS[i]).numpy(), harmful)[0, 1])
    assert found[0] > 0.8
    assert found[1] == 0
    assert (suppression.harm_correlation(states, BASIS[:3], np.ones(60)) == 0).all()


@pytest.fixture(scope="module")
def planted():
    """C1 tells harm, C2 and C3 do not, and C4 is beyond 99 % of the energy; in block 1, C1 alone has it all."""
    harmful = np.arange(80) % 2 == 0
    states = normal(2, 80, WIDTH, seed=4)
    states += 10 * torch.tensor(harmful)[None, :, None] * BASIS[0]
    spaces = [
        Space(BASIS[:4], torch.tensor([50.0, 40.0, 9.5, 0.5]), torch.zeros(WIDTH)),
        Space(BASIS[:4], torch.tensor([100.0, 0.3, 0.2, 0.1]), torch.zeros(WIDTH)),
    ]
    means = normal(2, WIDTH, seed=5)
    return suppression.named_set(spaces, states, harmful, means), means


def test_the_named_set_keeps_what_tells_harm_and_stops_at_the_energy(planted):
    found, means = planted
    assert found.sizes() == [2, 0]
    assert torch.equal(found.basis[0], BASIS[1:3])
    assert torch.allclose(found.targets[0], BASIS[1:3] @ means[0])
    assert found.table[["block", "component", "suppressed"]].to_numpy().tolist() == [
        [0, 1, False], [0, 2, True], [0, 3, True], [1, 1, False],
    ]  # fmt: skip
    assert suppression.set_table(found)["suppressed"].tolist() == [2, 0]
    assert suppression.set_table(found)["kept"][1].startswith("C1 (+")


def test_suppression_edits_only_blocks_with_something_to_suppress(planted):
    found, means = planted
    assert list(found.edits()) == [("resid", 0)]
    assert found.edits(before=0) == {}
    x = normal(1, 3, WIDTH)
    assert torch.allclose(found.edits()["resid", 0](x) @ BASIS[1:3].T, (BASIS[1:3] @ means[0]).expand(1, 3, 2))
    assert (found.edits(zero=True)["resid", 0](x) @ BASIS[1:3].T).abs().max() < 1e-10
    last = suppression.maker(found)(-1)["resid", 0](x) - x
    assert last[:, :-1].abs().max() == 0
    random = suppression.random_like(found, means, seed=0)
    assert random.sizes() == [2, 0]
    assert torch.allclose(random.targets[0], random.basis[0] @ means[0])


def test_a_spared_component_is_kept(planted):
    harmful = np.arange(80) % 2 == 0
    space = Space(BASIS[:4], torch.tensor([50.0, 40.0, 9.5, 0.5]), torch.zeros(WIDTH))
    states, means = normal(1, 80, WIDTH, seed=4), torch.zeros(1, WIDTH).double()
    assert suppression.named_set([space], states, harmful, means).sizes() == [3]
    assert suppression.named_set([space], states, harmful, means, spared=[1]).sizes() == [2]


def test_token_means_are_over_real_tokens_of_a_plain_model():
    model, plain = tiny_models.speaking("llama"), tiny_models.speaking("llama").hf
    rows = [torch.tensor([ids]) for ids in prompts.prompt_ids(model.tokenizer, ASKED)]
    with torch.no_grad():
        states = torch.cat([torch.cat(plain(ids, output_hidden_states=True).hidden_states[1:3]) for ids in rows], dim=1)
    found = suppression.token_means(model, ASKED)
    assert torch.allclose(found[:2].float(), states.mean(1), atol=1e-4)


def test_nothing_is_suppressed_where_a_shift_is_zero():
    empty = Space(torch.zeros(0, WIDTH).double(), torch.zeros(0), torch.zeros(WIDTH))
    found = suppression.named_set([empty], normal(1, 6, WIDTH), [0, 1] * 3, torch.zeros(1, WIDTH))
    assert found.edits() == {}
    assert suppression.random_like(found, torch.zeros(1, WIDTH), seed=0).edits() == {}
    assert suppression.set_table(found).loc[0].tolist() == [0, 0, "none"]
    with pytest.raises(InputError, match="outside"):
        suppression.named_set([empty], normal(1, 6, WIDTH), [0, 1] * 3, torch.zeros(1, WIDTH), kept=0)


def test_drops_are_means_over_cells_with_meanings_resampled():
    cells = ["a", "a", "b", "b", "b", "b"]
    before = pd.DataFrame({"cell": cells, "meaning": ["m", "n", "m", "n", "o", "p"], "refused": [1.0] * 6})
    after = before.assign(refused=[0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    found = suppression.drop(before, after, "refused", ["a", "b"], seed=0, resamples=200)
    assert found.mean == pytest.approx((1 + 0.25) / 2)
    alone = suppression.drop(before, before, "refused", ["b"], seed=0, resamples=200)
    assert alone.mean == 0
    assert alone.upper > 0.1  # four prompts without a change are no certainty
    table = suppression.rates({"x": after.assign(exact=0.0, wrong=0.0)}, {"both": ["a", "b"]})
    assert table["refused"].tolist() == pytest.approx([0.375])


# ability --------------------------------------------------------------------------------------------------------------
def items(**exact):
    rows = [(cell, value, 1.0) for cell, values in exact.items() for value in values]
    rows += [("story", 1.0, nll) for nll in (1.0, 2.0)]
    table = pd.DataFrame(rows, columns=["cell", "exact", "nll"])
    return table.assign(running=table["cell"] == "story")


def test_the_largest_drop_and_rise_are_over_edits_and_skills():
    names = ("add", "reverse", "opposite", "category", "lookup", "judge")
    before = items(**dict.fromkeys(names, [1.0] * 4))
    mild = items(**dict.fromkeys(names, [1.0] * 4) | {"judge": [1.0, 1.0, 1.0, 0.0]})
    harsh = items(**dict.fromkeys(names, [1.0] * 4) | {"add": [1.0, 0.0, 0.0, 1.0]})
    harsh.loc[harsh["cell"] == "story", "nll"] += 0.5
    drop = ability.largest_drop(before, {"mild": mild, "harsh": harsh}, seed=0, resamples=300)
    assert drop.mean == 0.5
    assert 0 <= drop.lower <= 0.5 <= drop.upper <= 1
    assert ability.largest_rise(before, {"mild": mild, "harsh": harsh}, seed=0, resamples=300).mean == 0.5
    table = ability.table(before, {"mild": mild, "harsh": harsh})
    assert table.loc["mild", "judge"] == 0.25
    assert table.loc["harsh", "mean of skills"] == pytest.approx(0.5 / 6)
    assert table["story loss"].tolist() == [0.0, 0.5]


def test_cells_are_measured_under_an_edit():
    model, cells = tiny_models.speaking("llama"), {"x": PromptSet(tuple(ASKED[:2])), "y": PromptSet(tuple(ASKED[2:]))}
    found = one_position.measure(model, cells, make, one_position.LAST)
    assert found["cell"].tolist() == ["x", "x", "y", "y"]
    assert np.allclose(found["nll"], one_position.answers(model, ASKED, make, one_position.LAST)["nll"])
