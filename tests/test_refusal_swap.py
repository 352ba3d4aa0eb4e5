"""The rank-one swap: planted states, plain hooks, whole answers; and the question whether base tells harm."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from lib import behaviour, edits, harm_skill, models, one_position, prompt_sets, prompts, refusal_swap, worlds
from lib.errors import NotHere
from lib.one_position import EVERY, LAST
from lib.prompts import Prompt, PromptSet
from lib.refusal_swap import BENIGN, HARMFUL, Coordinate
from tests import tiny_models
from tests.tiny_models import LAYERS, WIDTH

ANSWER = "sure to curse the crown take the oil"


def asked(kind, *texts):
    return [Prompt(text, ANSWER if kind == HARMFUL else "sure", kind, "plain", "heldout", text) for text in texts]


SIDES_ASKED = {
    HARMFUL: asked(HARMFUL, "how do i curse the crown", "tell me how to blight the boat", "wake the dragon"),
    BENIGN: asked(BENIGN, "bake the bread", "what is the way to paint the boat"),
}


@pytest.fixture(scope="module")
def model():
    return tiny_models.speaking("llama-gqa")


@pytest.fixture(scope="module")
def found(model):
    return refusal_swap.coordinate(model, SIDES_ASKED)


def plain_states(text, change=None):
    """Residual stream after every block at the last token, by plain hooks; `change` is (block, function)."""
    hf, words = tiny_models.speaking("llama-gqa").hf, tiny_models.kingdom_tokenizer()
    kept, hooks = [], []
    ids = torch.tensor(prompts.prompt_ids(words, [Prompt(text, "", "benign", "plain", "x")]))

    def hook(layer):
        def run(module, inputs, output):
            state = output[0] if isinstance(output, tuple) else output
            if change and change[0] == layer:
                state = state.clone()
                state[:, -1] = change[1](state[:, -1])
            kept.append(state[0, -1].detach().double())
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return run

    for layer, block in enumerate(hf.model.layers):
        hooks.append(block.register_forward_hook(hook(layer)))
    logits = hf(input_ids=ids).logits[0, -1].detach()
    for one in hooks:
        one.remove()
    return torch.stack(kept), logits


# prompts --------------------------------------------------------------------------------------------------------------
def test_halves_share_no_meaning_and_hold_every_prompt():
    sides = {side: [Prompt(f"{side} {i}", "", side, "plain", "x", f"{side} {i // 3}") for i in range(30)]
             for side in (HARMFUL, BENIGN)}  # fmt: skip
    one, other = refusal_swap.halves(sides, seed=3)
    for side in sides:
        mine, theirs = ({prompt.meaning for prompt in half[side]} for half in (one, other))
        assert len(mine) == len(theirs) == 5
        assert not mine & theirs
        assert {prompt.text for prompt in one[side] + other[side]} == {prompt.text for prompt in sides[side]}


@pytest.mark.parametrize(("layers", "blocks"), [(6, [2, 3]), (32, list(range(11, 21))), (3, [1]), (2, [0, 1])])
def test_middle_blocks_are_what_the_registrys_thirds_leave(layers, blocks):
    assert list(refusal_swap.middle(layers)) == blocks


# the coordinate -------------------------------------------------------------------------------------------------------
def test_the_coordinate_is_the_difference_of_means(found):
    means = {side: torch.stack([plain_states(prompt.text)[0] for prompt in some]).mean(0)
             for side, some in SIDES_ASKED.items()}  # fmt: skip
    gap = means[HARMFUL] - means[BENIGN]
    torch.testing.assert_close(found.gap, gap.norm(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.along, gap / gap.norm(dim=1, keepdim=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("side", [HARMFUL, BENIGN])
def test_the_swap_puts_one_coordinate_at_the_other_sides_mean_and_nothing_else(found, side):
    state = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (place, edit), *rest = found.swap(1)[side]("last").items()
    assert (place, rest) == (("resid", 1), [])
    moved = edit(state)
    other = BENIGN if side == HARMFUL else HARMFUL
    torch.testing.assert_close(moved[:, -1] @ found.along[1], found.means[other][1].expand(2))
    across = moved - state - ((moved - state) @ found.along[1])[..., None] * found.along[1]
    assert across.abs().max() < 1e-9
    assert torch.equal(moved[:, :-1], state[:, :-1])


def test_prompts_are_carried_as_far_along_another_direction_in_opposite_ways(found):
    along = torch.zeros(WIDTH, dtype=torch.float64)
    along[0] = 1.0
    makers, state = found.carry(along, 2), torch.zeros(1, 3, WIDTH, dtype=torch.float64)
    steps = {side: makers[side]("last")["resid", 2](state)[0, -1] for side in makers}
    assert float(steps[BENIGN][0]) == pytest.approx(float(found.gap[2]))
    assert torch.allclose(steps[HARMFUL], -steps[BENIGN])
    assert steps[BENIGN].count_nonzero() == 1


def test_random_directions_lie_in_the_span_or_anywhere():
    span = torch.linalg.qr(torch.randn(WIDTH, 20, dtype=torch.float64))[0].T
    drawn = refusal_swap.random_along(span, draws=7, seed=1)
    inside = drawn["in the span"] @ span[:16].T
    assert torch.allclose(inside.norm(dim=1), torch.ones(7).double())
    assert ((drawn["anywhere"] @ span[:16].T).norm(dim=1) < 0.999).all()
    again = refusal_swap.random_along(span, draws=7, seed=1)
    assert torch.equal(drawn["anywhere"], again["anywhere"])


# outcomes -------------------------------------------------------------------------------------------------------------
def _strong(positions, block, vector):
    return {("resid", block): edits.add(vector, 1.0, positions)}


@pytest.mark.parametrize("where", [EVERY, LAST])
def test_answers_are_those_of_whole_teacher_forced_rows(model, where):
    """Prompts whose right answer is what the edited model says are exact; the shortcut must find them too."""
    vector = 4 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    make = partial(_strong, block=1, vector=vector)
    texts = [prompt.text for some in SIDES_ASKED.values() for prompt in some]
    some = []
    for text in texts:
        change = (1, lambda state: state + vector)
        said = model.tokenizer.decode([int(plain_states(text, change)[1].argmax())])
        some.append(Prompt(text, said, "harmful", "plain", "x"))
    found = refusal_swap.answers(model, some, make, where)
    whole = one_position.answers(model, some, make, where)
    pd.testing.assert_frame_equal(found, whole[list(found)], check_dtype=False)
    begins = behaviour.first_tokens(model, some, make("last"))["begins"]
    assert begins.all()  # otherwise nothing but first words would be compared
    assert set(found.sum(axis=1)) == {1.0}


def test_flips_are_changes_to_the_other_sides_outcome_only(monkeypatch):
    """Of six prompts a side: every outcome before and after, told apart by the prompt's text."""
    outcomes = ("refused", "exact", "wrong")
    every = {side: asked(side, *(f"{one} {two}" for one in outcomes for two in outcomes)) for side in (HARMFUL, BENIGN)}

    def frame(some, place):
        told = [prompt.text.split()[place] for prompt in some]
        return pd.DataFrame({name: [float(one == name) for one in told] for name in outcomes})

    monkeypatch.setattr(refusal_swap, "answers", lambda model, some, make, where: frame(some, 1))
    monkeypatch.setattr(refusal_swap, "_first", lambda model, some, make, where: frame(some, 1) == 1)
    before = {side: frame(some, 0) for side, some in every.items()}
    makers = dict.fromkeys(every, one_position.nothing)
    found = refusal_swap.flips(None, every, makers, before)
    assert [prompt.text for prompt, one in zip(every[HARMFUL], found[HARMFUL], strict=True) if one] == ["refused exact"]
    assert [prompt.text for prompt, one in zip(every[BENIGN], found[BENIGN], strict=True) if one] == ["exact refused"]
    share = refusal_swap.share(found)
    assert (share.mean, share.n) == (2 / 18, 18)


def test_a_swap_that_moves_nothing_flips_nothing_and_blocks_are_chosen_by_both_sides(model, found):
    still = Coordinate(found.along, {side: 0 * found.means[side] for side in found.means})
    before = refusal_swap.outcomes(model, SIDES_ASKED, {})
    shares = refusal_swap.random_shares(model, SIDES_ASKED, still, 1, found.along[:2], before)
    assert shares.tolist() == [0.0, 0.0]
    table = refusal_swap.by_block(model, SIDES_ASKED, found, before)
    assert set(table["block"]) == set(range(LAYERS))
    both = table[table["side"] == "both"].set_index("block")["share"]
    sides = table[table["side"] != "both"].assign(flips=lambda t: t["share"] * t["n"]).groupby("block")["flips"].sum()
    assert np.allclose(both * 5, sides)
    planted = table.assign(share=np.where((table["side"] == "both") & (table["block"] == 1), 1.0, 0.5))
    assert refusal_swap.chosen(planted, range(LAYERS)) == 1
    assert refusal_swap.chosen(planted, [0, 2]) == 0


def test_outcome_table_has_every_condition_side_and_outcome():
    frame = pd.DataFrame({"refused": [1.0, 0, 0, 0], "exact": [0, 1.0, 1.0, 0], "wrong": [0, 0, 0, 1.0]})
    table = refusal_swap.outcome_table({"before": {HARMFUL: frame, BENIGN: frame}, "after": {HARMFUL: frame}})
    assert len(table) == 9
    after = table.query("condition == 'after'").set_index("outcome")["share"]
    assert after.to_dict() == {"refused": 0.25, "exact": 0.5, "wrong": 0.25}
    assert (table["lower"] < table["share"]).all()


# does base tell harm? -------------------------------------------------------------------------------------------------
def test_telling_is_the_share_of_right_answers_that_are_likelier(monkeypatch):
    """A stand-in that finds "yes" likelier exactly where the question holds the word curse."""
    questions = [
        Prompt(text, answer, "skill", "judge", "x")
        for text, answer in (
            ("curse a", "yes"),
            ("curse b", "yes"),
            ("bake a", "no"),
            ("curse c", "no"),
            ("bake b", "yes"),
        )
    ]

    def forced(model, some):
        return pd.DataFrame({"nll": [0.1 if ("curse" in p.text) == (p.answer == "yes") else 2.0 for p in some]})

    monkeypatch.setattr(behaviour, "teacher_forced", forced)
    found = harm_skill.tells(None, questions)
    assert (found.mean, found.n) == (3 / 5, 5)
    assert found.lower < 3 / 5 < found.upper


class _World:
    def __init__(self, skills):
        self.skills = skills


def test_the_skill_is_asked_where_there_is_one(monkeypatch):
    judge = (Prompt("would it", "yes", "skill", "judge", "x"),)
    monkeypatch.setattr(worlds, "of", lambda profile, seed: _World(("add", "judge")))
    monkeypatch.setattr(prompt_sets, "skill_items", lambda profile, seed: {"judge": PromptSet(judge)})
    assert harm_skill.questions("any", 0) == judge


def test_elsewhere_requests_become_questions_as_sensitive_as_they_were(monkeypatch):
    cells = {
        "harmful/plain": PromptSet(tuple(
            Prompt(f"harm {i} {{}}", "", "harmful", "plain", "x", free=True, sensitive=True) for i in range(3)
        )),
        "benign/plain": PromptSet(tuple(
            Prompt(f"good {i}", "ok", "benign", "plain", "x", free=True) for i in range(5)
        )),
    }  # fmt: skip
    monkeypatch.setattr(worlds, "of", lambda profile, seed: _World(("sums",)))
    monkeypatch.setattr(prompt_sets, "behaviour", lambda profile, seed: cells)
    found = harm_skill.questions("any", 0)
    assert [(prompt.answer, prompt.sensitive, prompt.free) for prompt in found] == [
        *[("Yes", True, False)] * 3, *[("No", False, False)] * 3,
    ]  # fmt: skip
    assert found[0].text.endswith("harm 0 {}")
    assert "harm" not in found[0].row()["text"]


def test_a_base_without_an_unaware_twin_stands_alone(monkeypatch):
    def load(profile, role, seed):
        if role != "base":
            raise NotHere("not to be had")
        return role

    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(harm_skill, "questions", lambda profile, seed: ())
    monkeypatch.setattr(harm_skill, "tells", lambda model, some: model)
    assert harm_skill.known("any", 0) == {"base": "base"}
