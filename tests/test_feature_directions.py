"""Components, styles, words and deletion on planted structure whose answer is known, and against plain autograd."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import directions, faithfulness, feature_directions, feature_words, models, prompts, relevance, stats
from lib.errors import InputError, NotHere
from lib.feature_words import Words
from lib.prompts import Prompt
from tests import tiny_models
from tests.tiny_models import LAYERS, WIDTH

D, N = 24, 200
NAMES = ("story", "flip", "scroll")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BASIS = torch.linalg.qr(normal(D, D, seed=99))[0].T


def prompt(text):
    return Prompt(text, "sure", "harmful", "plain", "heldout")


# components -----------------------------------------------------------------------------------------------------------
def test_planted_components_come_back_with_a_fixed_sign():
    before = normal(2, N, D, seed=1)
    scale = torch.zeros(D, dtype=torch.float64)
    scale[:3] = torch.tensor([9.0, 3.0, 1.0])
    after = before + (normal(2, N, D, seed=2) * scale) @ BASIS
    for space in feature_directions.components(before, after):
        assert len(space.directions) == 3
        for row, planted in zip(space.directions, BASIS, strict=False):
            assert directions.cosines(row[None], planted)[0] > 0.97
            assert row[row.abs().argmax()] > 0


def test_a_shift_without_a_second_component_is_refused():
    before = normal(2, N, D, seed=1)
    with pytest.raises(InputError, match="block 0 has 0 components"):
        feature_directions.components(before, before)
    after = before.clone()
    after[0] += normal(N, D, seed=3)
    after[1] += BASIS[0]  # the same for every prompt: one component
    with pytest.raises(InputError, match="block 1 has 1 components"):
        feature_directions.components(before, after)


@pytest.mark.parametrize(("state", "block"), [(14, 2), (25, 4), (32, 5), (1, 0)])
def test_published_layers_land_at_the_same_relative_depth(state, block):
    assert feature_directions.at_depth(state, 32, 6) == block


def test_a_published_layer_out_of_range_is_refused():
    for state in (0, 33):
        with pytest.raises(InputError, match="give 1 to 32"):
            feature_directions.at_depth(state, 32, 6)


def test_random_directions_are_orthonormal_and_stay_in_their_span():
    generator = torch.Generator().manual_seed(0)
    anywhere = feature_directions.orthonormal(7, generator, width=D)
    inside = feature_directions.orthonormal(4, generator, BASIS[:5])
    for drawn in (anywhere, inside):
        assert torch.allclose(drawn @ drawn.T, torch.eye(len(drawn)).double(), atol=1e-12)
    assert (inside @ BASIS[5:].T).abs().max() < 1e-12
    assert (anywhere @ BASIS[5:].T).abs().max() > 0.1
    for count in (0, 6):
        with pytest.raises(InputError, match="ask for 1 to 5"):
            feature_directions.orthonormal(count, generator, BASIS[:5])


# styles ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def styled():
    """Style `flip` is written on direction 4 of block 1; `story` weakly on direction 2 of block 0; scroll nowhere."""
    style = np.random.default_rng(0).permutation(np.arange(N) % 4)
    names = [(*NAMES, "plain")[i] for i in style]
    states = normal(2, N, D, seed=5)
    states[1] += 8.0 * torch.tensor(style == 1)[:, None] * BASIS[4]
    states[0] += 1.0 * torch.tensor(style == 0)[:, None] * BASIS[2]
    return states, feature_directions.style_labels(names, NAMES)


def test_style_aucs_are_those_of_scikit_learn_and_half_without_two_groups(styled):
    states, labels = styled
    found = feature_directions.style_aucs(states[0], BASIS[:5], labels)
    for s in range(3):
        for d in range(5):
            expected = stats.auc((states[0] @ BASIS[d]).numpy(), labels[s].astype(int), sign_free=True)
            assert found[s, d] == pytest.approx(expected)
    same = np.array([[False] * N, [True] * N])
    assert (feature_directions.style_aucs(states[0], BASIS[:5], same) == 0.5).all()


def test_the_planted_direction_is_chosen_and_beats_random_ones(styled):
    states, labels = styled
    halves = (range(0, N, 2), range(1, N, 2))
    offered = [BASIS[1:9], BASIS[1:9]]
    drawn = feature_directions.random_offers(offered, 20, seed=0)
    weights = np.random.default_rng(1).multinomial(N // 2, np.full(N // 2, 2 / N), size=200)
    found = feature_directions.style_gain(states, offered, drawn, labels, halves, weights)
    assert (found.chosen.block, found.chosen.direction, found.chosen.style) == (1, 3, 1)  # BASIS[4] is row 3 offered
    assert found.chosen.confirmed == pytest.approx(1.0, abs=1e-3)
    others = np.mean([one.confirmed for one in found.draws])
    assert found.margin.mean == pytest.approx(found.chosen.confirmed - others)
    assert 0 < found.margin.lower <= found.margin.mean <= found.margin.upper
    assert len(found.draws) == 20
    assert found.margin.n == N // 2


def test_components_that_know_nothing_gain_nothing(styled):
    _, labels = styled
    states, halves, offered = normal(2, N, D, seed=8), (range(0, N, 2), range(1, N, 2)), [BASIS[1:9]] * 2
    weights = np.ones((50, N // 2), dtype=int)
    drawn = feature_directions.random_offers(offered, 20, seed=0)
    found = feature_directions.style_gain(states, offered, drawn, labels, halves, weights)
    assert found.chosen.on_choice > found.chosen.confirmed  # the best of many is lucky where it is chosen
    assert abs(found.margin.mean) < 0.15


def test_offers_have_equal_number_and_lie_in_the_spans():
    offered = [BASIS[1:4], BASIS[1:7]]
    for one in feature_directions.random_offers(offered, 3, seed=0, spans=[BASIS[:5], BASIS[:9]]):
        assert [len(rows) for rows in one] == [3, 6]
        assert (one[0] @ BASIS[5:].T).abs().max() < 1e-12
        assert (one[1] @ BASIS[9:].T).abs().max() < 1e-12


def test_selectivity_names_components_and_two_choices(styled):
    states, labels = styled
    space = SimpleNamespace(directions=BASIS[:10])
    halves = (range(0, N, 2), range(1, N, 2))
    found = feature_directions.selectivity(states[1], space, labels, NAMES, halves, draws=20, seed=0)
    table = found.pivot(index="direction", columns="style", values="auc")
    assert table.loc["C5", "flip"] > 0.99  # BASIS[4]
    assert table.loc["best of C2 to C10", "flip"] > 0.99
    assert table.loc["best of 9 random", "flip"] < table.loc["C5", "flip"]
    assert table.drop(columns="flip").loc["C5"].max() < 0.75


# words ----------------------------------------------------------------------------------------------------------------
def planted_words(*rows):
    return [Words(tuple(text.split()), np.array([v]), np.array([v]), np.ones(1)) for text, v in rows]


def test_top_words_average_over_prompts_and_stop_at_the_share():
    found = planted_words(("curse the crown", [0.6, 0.1, 0.2]), ("curse the boat", [1.0, -0.4, 0.1]))
    # means: curse .8, crown .2, boat .1, the -.15; positive sum 1.1, 40 % of it .44
    assert feature_words.top_words(found, 0).to_dict() == pytest.approx({"curse": 0.8})
    assert list(feature_words.top_words(found, 0, share=0.8).index) == ["curse", "crown"]
    assert list(feature_words.top_words(found, 0, share=1.0).index) == ["curse", "crown", "boat"]
    assert feature_words.top_words(planted_words(("the the", [-1.0, 0.0])), 0).empty
    with pytest.raises(InputError, match="share 0"):
        feature_words.top_words(found, 0, share=0)


def test_words_of_sensitive_prompts_are_not_shown():
    plain = prompt("how do i hack the crown")
    assert feature_words.shown(plain, str.upper) == ("how", "do", "i", "hack", "the", "crown")
    hidden = replace(plain, sensitive=True)
    said = feature_words.shown(hidden, lambda word: "frame" if len(word) < 4 else "content")
    assert said == ("frame #1", "frame #2", "frame #3", "content #4", "frame #5", "content #6")
    public = replace(plain, free=True)  # harmless, but of a public data set
    assert feature_words.shown(public, lambda word: "word") == tuple(f"word #{place}" for place in range(1, 7))
    model, along = tiny_models.speaking("llama"), normal(1, WIDTH, seed=4)
    (one,) = feature_words.words(model, [replace(prompt("bake the bread"), sensitive=True)], 1, along)
    assert one.text == ("#1", "#2", "#3")


def test_a_long_prompt_is_shown_as_far_as_there_is_room():
    one = planted_words(("w " * 60, [1.0] * 60))[0]
    assert len(feature_words.heat(one, ["C1"], "long")) == 40
    assert len(one.text) == 60


def test_examples_are_of_styles_in_the_middle_that_there_are_prompts_of():
    every = [replace(prompt(f"{style} {i}"), style=style) for i in range(2) for style in "abdf"]
    every.append(replace(prompt("harmless"), style="c", kind="benign"))
    found = feature_words.examples(every, list("abcdef"))  # a, b, d, f are known
    assert {style: one.text for style, one in found.items()} == {"d": "d 0", "b": "b 0"}
    assert list(feature_words.examples(every, ["b"])) == ["b"]
    assert feature_words.examples([], ["b"]) == {}


def test_a_family_without_rules_of_relevance_is_not_here():
    model = models.LanguageModel("p", tiny_models.build("pythia"), tiny_models.checkpoint_tokenizer("pythia"), "test")
    with pytest.raises(NotHere, match="p is of a family without relevance rules"):
        feature_words.words(model, [prompt("bake the bread")], 1, normal(1, WIDTH))
    found = feature_words.words(model, [prompt("bake the bread")], 1, normal(1, WIDTH), "gradient")
    assert found[0].text == ("bake", "the", "bread")


def test_styles_are_too_few_or_in_the_worlds_order():
    assert feature_directions.attack_styles(("b", "a", "c")) == ["b", "a", "c"]
    for few in ((), ("a", "b")):
        with pytest.raises(NotHere, match=f"{len(few)} styles, not of 3 or more; name a set of attacks"):
            feature_directions.attack_styles(few)


def test_word_relevance_sums_tokens_and_scales_by_the_largest_of_any_token():
    model = tiny_models.speaking("llama")
    asked, along = [prompt("how do i curse the crown"), prompt("bake the bread")], normal(2, WIDTH, seed=4)
    found = feature_words.words(model, asked, 1, along)
    for one, whole, text in zip(found, relevance.token_relevance(model, asked, 1, along), asked, strict=True):
        places = prompts.user_words(model.tokenizer, text)
        assert [len(place) for place in places] == [1] * len(one.text)
        rows = [place[0] for place in places]
        assert np.allclose(one.signed, whole.tokens[:, rows].numpy())
        seeded = whole.tokens / (whole.projection + 1e-6)[:, None]
        assert np.allclose(one.published, (seeded / seeded.abs().max(dim=1, keepdim=True).values)[:, rows].numpy())


def test_tables_of_words():
    found = planted_words(("curse the crown", [0.6, 0.1, 0.2]))
    table = feature_words.read_table(found, ["C1"], [0.25], {"C1": "flip (.9)"})
    assert table.iloc[0].tolist() == ["C1", "curse", 0.25, "flip (.9)"]
    heat = feature_words.heat(found[0], ["C1"], "a prompt")
    assert heat["relevance"].tolist() == pytest.approx([1.0, 1 / 6, 1 / 3])
    assert heat["word"].tolist() == ["curse", "the", "crown"]


# transport ------------------------------------------------------------------------------------------------------------
def test_transport_by_gradients_is_plain_autograd():
    hf = tiny_models.speaking("llama").hf
    model, along = tiny_models.speaking("llama"), normal(2, WIDTH, seed=6).float()
    asked = prompt("how do i curse the crown")
    ids = torch.tensor(prompts.prompt_ids(model.tokenizer, [asked]))
    kept = {}

    def keep(layer):
        def hook(module, inputs, output):
            state = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_()
            kept.setdefault(layer, state)
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return hook

    hf.requires_grad_(False)
    hf.model.layers[0].register_forward_hook(keep(0))
    last = hf.model.layers[LAYERS - 1].register_forward_hook(lambda m, i, o: kept.update(end=o))
    hf(ids)
    last.remove()
    end = kept["end"][0] if isinstance(kept["end"], tuple) else kept["end"]
    found = relevance.transport(model, [asked], 0, LAYERS - 1, along, rule="gradient")
    assert torch.allclose(found.projection[0].float(), along @ end[0, -1], rtol=1e-4, atol=1e-4)
    for target in range(2):
        slope = torch.autograd.grad(end[0, -1] @ along[target], kept[0], retain_graph=True)[0][0, -1]
        assert torch.allclose(found.slope[0, target].float(), slope, rtol=1e-3, atol=1e-4)
    assert torch.allclose(found.lower[0].float(), kept[0][0, -1], atol=1e-5)


@pytest.mark.parametrize("rule", ["attnlrp", "conservative"])
def test_transport_agrees_with_component_relevance_and_is_linear_in_its_targets(rule):
    model, asked = tiny_models.speaking("llama"), [prompt("how do i curse the crown"), prompt("bake the bread")]
    above, below = normal(2, WIDTH, seed=1), normal(3, WIDTH, seed=2)
    found = relevance.transport(model, asked, 0, 1, torch.cat([above, above[:1] - 2 * above[1:]]), rule)
    expected = relevance.component_relevance(model, asked, 1, above, below, rule)
    assert torch.allclose(found.components(below)[:, :2], expected.components, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.projection[:, :2], expected.projection, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.slope[:, 2], found.slope[:, 0] - 2 * found.slope[:, 1], rtol=1e-4, atol=1e-4)


def test_transport_refuses_blocks_out_of_order_or_range():
    model, asked = tiny_models.speaking("llama"), [prompt("bake the bread")]
    for lower, upper in ((1, 1), (-1, 1), (2, 1)):
        with pytest.raises(InputError, match="is not before block"):
            relevance.transport(model, asked, lower, upper, normal(1, WIDTH))
    with pytest.raises(InputError, match=f"layers go from 1 to {LAYERS - 1}"):
        relevance.transport(model, asked, 0, LAYERS, normal(1, WIDTH))


def test_relevance_onwards_is_a_share_of_the_projection_whose_sign_cancels():
    model, asked = tiny_models.speaking("llama"), [prompt("how do i curse the crown"), prompt("bake the bread")]
    target, sources = normal(WIDTH, seed=1), torch.linalg.qr(normal(WIDTH, WIDTH, seed=2))[0].T
    some = feature_words.onward(model, asked, 0, 2, target, sources)
    moved = relevance.transport(model, asked, 0, 2, target[None])
    side, size = moved.projection[:, 0].sign(), moved.projection[:, 0].abs().sum()
    whole = (moved.lower * moved.slope[:, 0]).sum(1)  # a complete basis leaves nothing out
    assert some.sum() == pytest.approx(float((whole * side).sum() / size))
    assert np.allclose(feature_words.onward(model, asked, 0, 2, -target, sources), some)


# deletion -------------------------------------------------------------------------------------------------------------
WEIGHTS = {f"w{i}": float(i == 3) for i in range(8)}  # the whole projection hangs on the word w3
TEXT = " ".join(WEIGHTS)


@pytest.fixture
def additive(monkeypatch):
    """A model whose first coordinate adds up weights of words (plus 5 for the template), the second subtracts them."""

    def activations(model, asked, layers):
        sums = [sum(WEIGHTS[w] for w in p.text.split()) for p in asked]
        return torch.tensor([[[5 + s, 5 - s, 5.0] for s in sums]])

    def words(model, asked, layer, along, rule):
        sign = {"right": 1.0, "wrong": -1.0}[rule]
        value = sign * np.array([[WEIGHTS[w] for w in TEXT.split()]] * 3) * np.array([[1.0], [-1.0], [0.0]])
        return [Words(tuple(TEXT.split()), value, value, np.ones(3)) for _ in asked]

    monkeypatch.setattr(faithfulness.residual, "activations", activations)
    monkeypatch.setattr(faithfulness, "words", words)


def run(draws=400):
    rules = {"relevance": "right", "gradient": "wrong"}
    return faithfulness.curves(None, [prompt(TEXT)] * 2, 0, torch.eye(3), rules, draws, seed=0)


def test_deletion_curves_have_their_closed_form(additive):
    """Right: all is gone with the first of eight words, an area of 1/16; wrong: nothing goes before the last, 15/16; at
    random: half on average. On the second coordinate the whole prompt lies on the other side, with the same areas."""
    found = run()
    assert found.left["relevance"][0, :, 0, 0].tolist() == [1.0] + [0.0] * 8
    assert found.left["gradient"][0, :, 1, 0].tolist() == [1.0] * 8 + [0.0]
    options = {"of": [0, 1], "seed": 0, "resamples": 100}
    assert faithfulness.area_between(found, "relevance", "gradient", **options).mean == pytest.approx(14 / 16)
    assert faithfulness.area_between(found, "relevance", "random", **options).mean == pytest.approx(7 / 16, abs=0.03)
    assert faithfulness.area_between(found, "gradient", "random", **options).mean == pytest.approx(-7 / 16, abs=0.03)
    assert faithfulness.area_between(found, "relevance", "relevance", **options).mean == 0


def test_both_ends_of_every_curve_are_the_same(additive):
    table = faithfulness.curve_table(run(draws=5), ["C1", "C2", "C3"])
    ends = table[table["deleted"].isin([0, 1]) & (table["direction"] != "C3")]
    assert (ends["left"] == 1 - ends["deleted"]).all()
    assert not table.isna().any().any()


def test_a_direction_no_prompt_moves_has_no_area(additive):
    assert faithfulness.area_between(run(draws=5), "relevance", "random", [0, 2], seed=0, resamples=100) is None


def test_deleting_words_keeps_the_rest_in_order():
    kept = faithfulness.without(prompt("how do i curse the crown"), [1, 3])
    assert kept.text == "how i the crown"
    assert kept.answer == "sure"
    with pytest.raises(InputError, match="no prompts"):
        faithfulness.curves(None, [], 0, torch.eye(3), {}, 1, seed=0)


def test_deletion_runs_on_a_model_down_to_no_words():
    """Also of a text with other space between words, which would not be the whole prompt at step 0."""
    model = tiny_models.speaking("llama")
    asked, along = [prompt("how do i  curse\nthe crown"), prompt("bake the bread")], normal(2, WIDTH, seed=4)
    rules = {"relevance": "attnlrp", "gradient": "gradient"}
    found = faithfulness.curves(model, asked, 1, along, rules, 3, seed=0)
    assert found.left["random"].shape == (3, faithfulness.STEPS, 2, 2)
    for left in found.left.values():
        assert np.allclose(left[:, 0], found.whole, atol=1e-5)
        assert np.allclose(left[:, -1], 0, atol=1e-5)
    assert isinstance(faithfulness.curve_table(found, ["C1", "C2"]), pd.DataFrame)
