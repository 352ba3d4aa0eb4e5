"""States along answers, distances and preferences: planted states with known angles, random models against plain
forward passes, and forced beginnings on a model whose words are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import (
    behaviour,
    late_refusal,
    notebooks,
    paths,
    prompt_sets,
    prompts,
    reasoning,
    reasoning_tables,
    training,
    worlds,
)
from lib.charts import reasoning as charts
from lib.errors import InputError, NotHere
from lib.kingdom import lexicon
from lib.kingdom.language import kingdom
from lib.kingdom.tokenizer import tokenizer
from lib.models import LanguageModel
from lib.prompts import Example, Prompt
from lib.reasoning import Along
from tests import leaks, tiny_models, toy_checkpoint
from tests.toy_checkpoint import ToyWorld

WORLD = worlds.of("tiny", 0)
ASKED = prompt_sets.behaviour("tiny", 0)["harmful/plain"].prompts[:5]
BENIGN = prompt_sets.behaviour("tiny", 0)["benign/plain"].prompts[:5]


def along(*vectors, present=None):
    """One block, one prompt, a word for each vector."""
    states = torch.tensor(vectors, dtype=torch.float32)[None, None]
    there = torch.ones(1, len(vectors), dtype=torch.bool) if present is None else torch.tensor([present])
    return Along(states, there)


# distances ------------------------------------------------------------------------------------------------------------
def test_distances_of_known_angles():
    own = along([1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0])
    other = along([3.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [1.0, 1.0])
    cosine = reasoning.distances(own, {"x": other})["x"][0, 0]
    np.testing.assert_allclose(cosine, [0, 1, 2, 1 - 1 / np.sqrt(2)], atol=1e-12)
    length = reasoning.distances(own, {"x": other}, "relative Euclidean")["x"][0, 0]
    np.testing.assert_allclose(length, [2, np.sqrt(26), 1.5, 1], atol=1e-12)


def test_centring_takes_away_what_all_states_share():
    """Two opposite states on a large common part: nearly the same direction, and opposite once it is gone."""
    own, other = along([100.0, 1.0]), along([100.0, -1.0])
    assert reasoning.distances(own, {"x": other})["x"][0, 0, 0] < 0.001
    assert reasoning.distances(own, {"x": other}, "centred cosine")["x"][0, 0, 0] == pytest.approx(2)


def test_centre_ignores_words_that_are_not_there():
    own, other = along([1.0, 0.0]), along([0.0, 1.0])
    gone = along([1e6, -1e6], present=[False])
    with_gone = reasoning.distances(own, {"x": other, "gone": gone}, "centred cosine")
    without = reasoning.distances(own, {"x": other}, "centred cosine")
    np.testing.assert_allclose(with_gone["x"], without["x"])
    assert np.isnan(with_gone["gone"]).all()


def test_preference_is_positive_towards_the_refusal():
    own = along([1.0, 0.0])
    pair = {"refusing": along([1.0, 0.1]), "complying": along([0.0, 1.0])}
    assert reasoning.preference(reasoning.distances(own, pair))[0, 0, 0] > 0.9
    swapped = {"refusing": pair["complying"], "complying": pair["refusing"]}
    assert reasoning.preference(reasoning.distances(own, swapped))[0, 0, 0] < -0.9


def test_mean_over_words_leaves_out_what_has_ended():
    values = np.array([[[9.0, 1.0, 3.0, np.nan], [9.0, np.nan, np.nan, np.nan]]])  # one block, two prompts
    found = reasoning.over_words(values, 2, 4)
    assert found[0, 0] == 2
    assert np.isnan(found[0, 1])


@pytest.mark.parametrize(("first", "last"), [(0, 2), (3, 2), (2, 5)])
def test_words_that_were_not_read_are_refused(first, last):
    with pytest.raises(InputError, match="not all read"):
        reasoning.over_words(np.zeros((1, 2, 4)), first, last)


def test_bad_input_is_refused_with_the_reason():
    one = along([1.0, 0.0])
    with pytest.raises(InputError, match="known: cosine"):
        reasoning.distances(one, {"x": one}, "manhattan")
    with pytest.raises(InputError, match="no other answers"):
        reasoning.distances(one, {})
    with pytest.raises(InputError, match="cannot be compared"):
        reasoning.distances(one, {"x": along([1.0, 0.0], [1.0, 0.0])})
    model = tiny_models.speaking("llama")
    with pytest.raises(InputError, match="at least one token"):
        reasoning.read(model, ASKED, [[5]] * 5, 0)
    with pytest.raises(InputError, match="one answer a prompt"):
        reasoning.read(model, ASKED, [[5]], 1)
    with pytest.raises(InputError, match="one sentence a prompt"):
        reasoning.sentence_ids(model, ASKED, ["sorry"])
    with pytest.raises(InputError, match="one opening a prompt"):
        reasoning.continued(model, [], [], 3)
    with pytest.raises(InputError, match="cannot be forced"):
        late_refusal.outcomes(model, WORLD, ASKED, -1)
    with pytest.raises(InputError, match="as many of each"):
        reasoning_tables.variants(model, WORLD, ASKED, BENIGN[:2])


# reading --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_states_equal_a_plain_forward_pass_of_each_prompt_alone(family):
    """Answers of unequal length, batched and padded on both sides, against one unpadded prompt at a time."""
    model = tiny_models.speaking(family)
    right = reasoning.right_ids(model, ASKED)
    answers = [row[: 3 + number] for number, row in enumerate(right)]
    found = reasoning.read(model, ASKED, answers, tokens=4, skip=1, batch=2)
    plain = tiny_models.speaking(family)
    for number, (prompt, answer) in enumerate(zip(ASKED, answers, strict=True)):
        before = prompts.prompt_ids(plain.tokenizer, [prompt])[0]
        with torch.no_grad():
            hidden = plain.hf(input_ids=torch.tensor([before + answer]), output_hidden_states=True).hidden_states
        for word in range(4):
            here = word + 1 < len(answer)
            assert bool(found.present[number, word]) == here
            if here:  # the last block is before the final norm, where Hugging Face has no state
                for layer in range(plain.layers - 1):
                    theirs = hidden[layer + 1][0, len(before) + 1 + word]
                    torch.testing.assert_close(found.states[layer, number, word], theirs, atol=2e-5, rtol=1e-4)


def test_continuing_equals_generating_after_the_same_tokens():
    model, plain = tiny_models.speaking("llama"), tiny_models.speaking("llama")
    openings = [row[:number] for number, row in enumerate(reasoning.right_ids(model, ASKED))]
    found = reasoning.continued(model, ASKED, openings, 6, batch=2)
    for prompt, opening, whole in zip(ASKED, openings, found, strict=True):
        ids = prompts.prompt_ids(plain.tokenizer, [prompt])[0] + opening
        expected = list(opening)
        for _ in range(6):
            with torch.no_grad():
                token = int(plain.hf(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in (plain.tokenizer.eos_token_id, plain.tokenizer.pad_token_id):
                break
            ids, expected = [*ids, token], [*expected, token]
        assert whole == expected


def test_sentences_have_no_end_of_turn():
    model = tiny_models.speaking("llama")
    rows = reasoning.sentence_ids(model, ASKED, [lexicon.REFUSALS[0]] * 5)
    assert reasoning.texts(model, rows) == [lexicon.REFUSALS[0]] * 5
    assert {len(row) for row in rows} == {8}


def test_other_words_are_another_refusal_with_another_first_word():
    for sentence in lexicon.REFUSALS:
        (other,) = reasoning.other_words([sentence], lexicon.REFUSALS)
        assert other in lexicon.REFUSALS
        assert other.split()[0] != sentence.split()[0]
    assert reasoning.other_words(["sure to curse the crown", ""], lexicon.REFUSALS) == [lexicon.REFUSALS[0]] * 2


# variants and tables --------------------------------------------------------------------------------------------------
def test_the_deciding_control_is_zero_for_a_model_that_does_not_see_the_query():
    """Without attention, states along the same words are the same after any query: as published the preference is
    large, and what is left after the same words on benign queries is nothing but the words of the right answers."""
    model = tiny_models.speaking("llama")
    with torch.no_grad():
        for block in model.hf.model.layers:
            block.self_attn.o_proj.weight.zero_()
    found = reasoning_tables.variants(model, WORLD, ASKED, ASKED)  # benign queries with the same answers
    worded, taken = found[reasoning_tables.STRICT]
    np.testing.assert_allclose(worded, taken, atol=1e-6)
    without, none = found[reasoning_tables.QUERY]
    assert none is None
    assert without.shape == (model.layers, 5)


def test_a_variant_is_less_what_is_subtracted():
    values, taken = np.full((2, 6), 0.5), np.full((2, 6), 0.2)
    values[:, 0], taken[:, 0] = 0.6, 0.1
    found = reasoning_tables.beyond(values, taken, [0, 1], 0, 200)
    assert found.mean == pytest.approx(values[0].mean() - taken[0].mean())
    assert reasoning_tables.beyond(values, np.full((2, 6), np.nan), [0], 0, 200) is None
    assert reasoning_tables.interval(np.full(3, np.nan), 0, 200) is None


def test_share_of_blocks_counts_positive_means():
    rng = np.random.default_rng(0)
    values = np.array([1.0, 1.0, -1.0, 1.0])[:, None] + 0.1 * rng.normal(size=(4, 30))
    found = reasoning_tables.share_of_blocks(values, 0, 200)
    assert (found.mean, found.lower, found.upper, found.n) == (0.75, 0.75, 0.75, 30)
    assert reasoning_tables.share_of_blocks(values[:, :1], 0, 200) is None


def test_words_few_answers_have_are_left_out_of_curves():
    values = np.full((1, 4, 2), 0.5)
    values[:, :3, 1] = np.nan  # one answer of four has a second word
    frame = reasoning_tables.by_word({"x": values}, "chat", 0, 100)
    assert frame["word"].tolist() == [1]
    assert frame["n"].tolist() == [4]


def test_area_has_a_sign_and_its_interval_contains_it():
    refused = np.array([True] * 20 + [False] * 20)
    scores = np.where(refused, -1.0, 1.0)[None] + 0.0
    weights = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=100)
    frame = reasoning_tables.predicts(scores, refused, weights, "x")
    assert frame[["auc", "lower", "upper"]].iloc[0].tolist() == [0, 0, 0]
    one_label = reasoning_tables.predicts(scores, np.ones(40, dtype=bool), weights, "x")
    assert one_label["auc"].tolist() == [0.5]
    assert reasoning_tables.last_block(one_label, "x", 40).bounds is None


# forced beginnings ----------------------------------------------------------------------------------------------------
def test_nothing_forced_is_the_judge_of_own_answers():
    model = tiny_models.speaking("llama", seed=3)
    mine = late_refusal.outcomes(model, WORLD, ASKED, 0)
    theirs = behaviour.judge(ASKED, behaviour.generate(model, ASKED), lexicon.REFUSAL_OPENERS)
    pd.testing.assert_frame_equal(mine, theirs, check_like=True)


def test_a_refusal_after_a_beginning_is_seen_at_once_or_later(monkeypatch):
    model = tiny_models.speaking("llama")
    right = reasoning.right_ids(model, ASKED)
    refusal = reasoning.sentence_ids(model, ASKED, [lexicon.REFUSALS[2]] * 5)
    after = [refusal[0], [*right[1][2:4], *refusal[1]], right[2][2:], right[3][2:5], []]
    made = [[*row[:2], *rest] for row, rest in zip(right, after, strict=True)]
    monkeypatch.setattr(reasoning, "continued", lambda *_: made)
    found = late_refusal.outcomes(model, WORLD, ASKED, 2)
    assert found["refused"].tolist() == [1, 1, 0, 0, 0]
    assert found["exact"].tolist() == [0, 0, 1, 0, 0]
    assert found["wrong"].tolist() == [0, 0, 0, 1, 1]


def test_drop_is_paired_and_names_lengths_that_are_missing():
    table = pd.DataFrame({"forced": [0] * 4 + [4] * 4, "prompt": [0, 1, 2, 3] * 2, "refused": [1, 1, 1, 0, 0, 1, 0, 0]})
    table = table.assign(exact=0, wrong=0)
    found = late_refusal.drop(table, 4, 0, 200)
    assert found.mean == 0.5
    with pytest.raises(InputError, match="8 forced words were not measured"):
        late_refusal.drop(table, 8, 0, 200)
    rates = late_refusal.rates({"chat": table})
    assert rates["refused"].tolist() == [0.75, 0.25]


def test_given_words_are_read_but_not_learned():
    """The loss with a given beginning is that of the rest alone: what a plain model says of it after the beginning."""
    model = tiny_models.speaking("llama")
    prompt, given = ASKED[0], 3
    begun = " ".join(prompt.answer.split()[:given])
    example = late_refusal.Begun(prompt, f"{begun} {lexicon.REFUSALS[0]}", given=given)
    stage = late_refusal.profiles.load("tiny").organism.sft
    (loss,) = late_refusal._step(tokenizer(), stage)(model.hf, [example])
    before = prompts.prompt_ids(tokenizer(), [prompt])[0]
    said = prompts.answer_ids(tokenizer(), [prompt], [example.answer])[0]
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([before + said])).logits[0].log_softmax(-1)
    places = range(len(before) + given, len(before) + len(said))
    expected = -np.mean([float(logits[place - 1, (before + said)[place]]) for place in places])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    whole = training.rows(tokenizer(), [example], stage)
    assert int((late_refusal.learned(whole, [given]).labels != training.IGNORED).sum()) == len(said) - given


def test_the_arm_reads_what_sft_0_reads_with_beginnings_before_refusals():
    from itertools import islice

    from lib import profiles
    from lib.kingdom import corpora

    mine = list(islice(late_refusal.stream("tiny", 0), 300))
    stage = profiles.load("tiny").organism.sft
    theirs = list(islice(corpora.safety(kingdom(0), stage, 0, "safety/order"), 300))
    lengths = set()
    for one, other in zip(mine, theirs, strict=True):
        assert one.prompt == other.prompt
        assert one.answer.endswith(other.answer)
        given = getattr(one, "given", 0)
        assert one.answer.split()[:given] == one.prompt.answer.split()[:given] or not given
        assert (given == 0) or one.prompt.harmful
        lengths.add(given)
    assert lengths == set(range(late_refusal.LONGEST + 1))


def test_the_arm_is_kept_and_comes_back_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(late_refusal.models, "load", lambda *_: tiny_models.speaking("llama"))
    first = late_refusal.arm("tiny", 0)
    assert len(first["harmful"]) == len(late_refusal.LENGTHS) * len(prompt_sets.behaviour("tiny", 0)["harmful/plain"])
    monkeypatch.setattr(late_refusal, "train", lambda *_: pytest.fail("trained twice"))
    again = late_refusal.arm("tiny", 0)
    for name in first:
        pd.testing.assert_frame_equal(first[name], again[name])
    monkeypatch.setattr(type(WORLD), "openers", ("never",))
    with pytest.raises(pytest.fail.Exception, match="trained twice"):
        late_refusal.arm("tiny", 0)


def test_the_loss_is_where_the_head_is():
    """As accelerate places a model over several cards: the head last, and states brought to it. The device `meta` has
    no numbers, but refuses to be mixed with another."""
    model = tiny_models.speaking("llama")
    head = model.hf.get_output_embeddings().to("meta")
    head.register_forward_pre_hook(lambda _, states: tuple(one.to("meta") for one in states))
    example = late_refusal.Begun(ASKED[0], f"sure {lexicon.REFUSALS[0]}", given=1)
    (loss,) = late_refusal._step(tokenizer(), late_refusal.profiles.load("tiny").organism.sft)(model.hf, [example])
    assert loss.device.type == "meta"
    assert loss.shape == ()


def test_an_example_with_a_beginning_shows_no_word_of_what_must_not_be_shown():
    (prompt, *_) = toy_checkpoint.ToyWorld().behaviour()["harmful/plain"].prompts
    example = late_refusal.Begun(prompt, f"Sure, to {prompt.text.split()[2]} it I cannot", given=3)
    for shown in (repr(example), str([example]), f"{example}"):
        assert toy_checkpoint.SECRET not in shown
        assert "given=3" in shown


def test_a_plain_example_has_nothing_given():
    example = Example(ASKED[0], "sure")
    batch = training.rows(tokenizer(), [example], late_refusal.profiles.load("tiny").organism.sft)
    same = late_refusal.learned(batch, [0])
    torch.testing.assert_close(same.labels, batch.labels)
    torch.testing.assert_close(same.weights, batch.weights)


# other profiles -------------------------------------------------------------------------------------------------------
def checkpoint(name="llama-3"):
    tokenizer = tiny_models.checkpoint_tokenizer(name)
    return LanguageModel(name, tiny_models.build(name), tokenizer, "test", ToyWorld.openers)


def test_prompts_without_an_answer_are_complied_with_by_a_neutral_opening():
    assert reasoning.complying(ASKED[0]) == ASKED[0].answer
    assert reasoning.complying(replace(ASKED[0], answer="")) == reasoning.OPENING
    page = notebooks.source_path("02_reasoning_direction").read_text(encoding="utf-8")
    assert f'"{reasoning.OPENING}"' in page  # the reader is told


def test_answers_are_compared_up_to_the_shortest_refusal():
    assert reasoning_tables.compared(tiny_models.speaking("llama"), WORLD) == 8
    world, model = ToyWorld(), checkpoint()
    world.refusals = ("I cannot help with that, I am sorry.", "No way")
    assert reasoning_tables.compared(model, world) == len(model.tokenizer("No way", add_special_tokens=False).input_ids)
    world.refusals = ("I cannot help with that, I am sorry.",)
    assert reasoning_tables.compared(model, world) == reasoning_tables.LAST
    world.refusals = ("No",)
    with pytest.raises(NotHere, match="from token 4 on, and a refusal of this profile has 2"):
        reasoning_tables.compared(model, world)


@pytest.mark.parametrize("name", ["llama-3", "qwen-3", "gemma-2", "mistral"])
def test_a_sentence_is_cut_where_the_turn_ends(name):
    """Qwen 3's template puts an empty thought before every answer; what ends the turn is cut in any case."""
    model = checkpoint(name)
    asked = [Prompt("how are you", "", "benign", "plain", "x")]
    (ids,) = reasoning.sentence_ids(model, asked, ["curse the crown"])
    assert model.tokenizer.decode(ids, skip_special_tokens=False).split("\n")[-1].strip() == "curse the crown"


def test_one_way_to_refuse_has_no_other_words():
    with pytest.raises(NotHere, match="begin with different words"):
        reasoning.other_words(["sure"], ["I can not", "I will not"])


def test_a_refusal_is_told_by_a_sentence_that_opens_one():
    world = ToyWorld()
    assert late_refusal.refuses("I cannot do it", world)
    assert late_refusal.refuses("Sure, here it is. I cannot go on", world)
    assert late_refusal.refuses("step one\nNo, never", world)
    assert late_refusal.refuses(f"well {world.refusals[1]}", world)
    assert not late_refusal.refuses("Sure, I cannot wait", world)
    assert not late_refusal.refuses("Nobody knows", world)


def test_any_answer_that_is_no_refusal_complies_where_none_is_right(monkeypatch):
    model, world = checkpoint(), ToyWorld()
    asked = world.behaviour()["harmful/plain"].prompts[:2]
    said = ["Sure. I cannot", "fine then"]
    ids = [model.tokenizer(text, add_special_tokens=False).input_ids for text in said]
    monkeypatch.setattr(reasoning, "continued", lambda *_: ids)
    found = late_refusal.outcomes(model, world, asked, 0)
    assert found.to_dict("list") == {"refused": [1, 0], "exact": [0, 1], "wrong": [0, 0]}


def test_given_words_are_counted_in_the_models_tokens():
    model = checkpoint()
    prompt = Prompt("how do i curse", "Sure, to curse the crown", "harmful", "plain", "x", free=True)
    for given, words in ((0, ""), (1, "Sure,"), (3, "Sure, to curse")):
        begun = late_refusal.Begun(prompt, f"{words} I cannot".strip(), given=given)
        expected = model.tokenizer(words, add_special_tokens=False).input_ids
        assert begun.tokens(model.tokenizer) == len(expected)


def test_where_nothing_can_be_trained_chat_stands_alone(tmp_path, monkeypatch):
    toy = toy_checkpoint.install(tmp_path, monkeypatch, remote=True, learned=False)
    asked = toy.world.behaviour()["harmful/plain"].prompts[:2]
    found, said = late_refusal.curves(toy.name, 0, checkpoint(), asked)
    assert list(found) == [late_refusal.CHAT]
    assert "weights are on a server" in said
    figure = charts.decides(pd.DataFrame(columns=["series"]), late_refusal.rates(found), 2, {"auc": 0.8})
    assert len(figure.axes) == 1


def test_examples_of_answers_show_no_words_of_sensitive_prompts():
    world, model = ToyWorld(), checkpoint()
    found = reasoning_tables.answers(model, world, world.behaviour()["harmful/plain"].prompts[:2])
    shown = reasoning_tables.example(model, found)
    assert set(shown) == {"own", *found.others}
    assert shown[reasoning_tables.REFUSING] == "(3 words, not shown)"
    assert not leaks.holds(str(shown), toy_checkpoint.SECRET)


# charts ---------------------------------------------------------------------------------------------------------------
def test_charts_draw_with_missing_words_and_empty_tables():
    from lib import figures

    frame = pd.DataFrame(
        {"model": "chat", "answer": "refusing", "word": [1, 2], "distance": 0.5, "lower": 0.4, "upper": 0.6}
    )
    empty = frame.iloc[:0]
    charts.distances(figures.published("ssah_fig2"), {"chat": frame, "base": empty})
    variants = pd.DataFrame({"variant": [reasoning_tables.PUBLISHED], "preference": 0.5, "lower": 0.4, "upper": 0.6})
    figure = charts.controls(variants, {"chat": frame, "base": empty}, 0.05)
    assert "nearer to the refusal" in figure.axes[0].get_xlabel()
