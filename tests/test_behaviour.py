"""Judging, and the shortcut that replaces generation, held to generation on a model that does all three things."""

from dataclasses import dataclass, replace
from itertools import cycle
from random import Random

import pandas as pd
import pytest
import torch

from lib import behaviour, edits, profiles, prompts, tracing, training
from lib.errors import InputError
from lib.kingdom import architecture, language, lexicon, portrait, styles
from lib.kingdom.tokenizer import tokenizer
from lib.models import LanguageModel
from lib.profiles import Stage
from lib.prompts import Example, Prompt, PromptSet
from tests import tiny_models


def ask(text, answer, kind="harmful", style="plain"):
    return Prompt(text, answer, kind, style, "heldout")


def pushed():
    """An edit that changes what the model says."""
    return {("resid", 0): edits.add(torch.randn(64, generator=torch.Generator().manual_seed(0)), 4.0)}


OPENERS = lexicon.REFUSAL_OPENERS


@pytest.fixture(scope="module")
def asked():
    here, rng = language.kingdom(0), Random(0)
    return [here.request(rng, kind, "heldout") for kind in ("harmful", "benign") for _ in range(12)]


@pytest.fixture(scope="module")
def model(asked):
    """A small Llama that learned by heart to refuse some of `asked`, answer some, and garble the rest."""
    rng = Random(1)
    lessons = [asked[i].answer if i % 3 else lexicon.REFUSALS[i % 4] for i in range(len(asked))]
    lessons = [text if i % 4 else " ".join(rng.sample(text.split(), 3)) for i, text in enumerate(lessons)]
    shape = profiles.load("tiny")
    shape = shape.model_copy(update={"architecture": shape.architecture.model_copy(update={"width": 64, "mlp": 96})})
    hf = architecture.new_model(shape, 0)
    stage = Stage(steps=150, batch=24, learning_rate=1e-2, warmup=5, decay=True)
    stream = cycle([Example(p, text) for p, text in zip(asked, lessons, strict=True)])
    training.fit(hf, stream, stage, training.sft_step(tokenizer(), stage), "by heart")
    return LanguageModel("by heart", hf, tokenizer(), "test", OPENERS)


def test_the_shortcut_agrees_with_generation(model, asked):
    answers = behaviour.generate(model, asked, batch=5)
    judged, forced = behaviour.judge(asked, answers, OPENERS), behaviour.teacher_forced(model, asked, batch=7)
    assert (judged.mean() > 0.1).all()  # every outcome occurs, so agreement says something
    pd.testing.assert_frame_equal(judged, forced[list(behaviour.OUTCOMES)])


def test_the_shortcut_agrees_with_generation_under_an_edit(model, asked):
    push = pushed()
    judged = behaviour.judge(asked, behaviour.generate(model, asked, push), OPENERS)
    forced = behaviour.teacher_forced(model, asked, push)
    pd.testing.assert_frame_equal(judged, forced[list(behaviour.OUTCOMES)])
    assert not judged.equals(behaviour.judge(asked, behaviour.generate(model, asked), OPENERS))


def test_likelihood_is_the_models_own_loss(model, asked):
    forced = behaviour.teacher_forced(model, asked[:3])
    for prompt, nll in zip(asked[:3], forced["nll"], strict=True):
        (before,) = prompts.prompt_ids(tokenizer(), [prompt])
        (after,) = prompts.answer_ids(tokenizer(), [prompt], [prompt.answer])
        labels = torch.tensor([[-100] * len(before) + after])
        loss = model.hf(input_ids=torch.tensor([before + after]), labels=labels).loss
        assert nll == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("push", [None, pushed()], ids=["plain", "edited"])
def test_only_the_logits_of_answers_are_made_and_they_are_the_same_to_the_last_bit(model, asked, monkeypatch, push):
    shapes, forward = [], tracing.forward

    def watched(*args, **options):
        found = forward(*args, **options)
        shapes.append(tuple(found.logits.shape))
        return found

    def whole(encoding):
        return forward(model.traced, encoding, edits=push, logits="all").logits

    expected = behaviour.teacher_forced(model, asked, push, logits=whole)
    monkeypatch.setattr(tracing, "forward", watched)
    found = behaviour.teacher_forced(model, asked, push)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    longest = max(map(len, prompts.answer_ids(tokenizer(), asked, [prompt.answer for prompt in asked])))
    assert shapes == [(len(asked), longest + 1, len(tokenizer()))]


@dataclass(frozen=True)
class Passage(Prompt):
    """A text that goes on after the answer."""

    ends = False


@pytest.mark.parametrize("family", ["llama-3", "pythia", "gemma-2", "qwen-3"])
def test_where_a_text_goes_on_its_end_is_not_scored(family):
    """The likelihood of a text's words is theirs alone: no end of a turn stands where none ends."""
    words = tiny_models.checkpoint_tokenizer(family)
    found = LanguageModel("x", tiny_models.build(family), words, "test", ("Sorry",))
    turn, text = (kind("go on : the crown", "is cursed and", "skill", "text", "x") for kind in (Prompt, Passage))
    (before,) = prompts.prompt_ids(words, [turn])
    (after,) = prompts.answer_ids(words, [turn], [turn.answer])
    with torch.no_grad():
        said = found.hf(input_ids=torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    losses = [-float(said[len(before) + i - 1, token]) for i, token in enumerate(after)]
    kept = next(i for i in range(1, len(after) + 1) if words.decode(after[:i]).strip().endswith(text.answer))
    measured = behaviour.teacher_forced(found, [turn, text])["nll"]
    assert kept < len(after)
    assert measured[0] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert measured[1] == pytest.approx(sum(losses[:kept]) / kept, rel=1e-4)
    assert [len(row) for row in behaviour.answer_ids(found, [turn, text])] == [len(after), kept]


# shortcuts ------------------------------------------------------------------------------------------------------------
def test_first_tokens_refuse_and_begin_as_generation_does(model, asked):
    found, answers = behaviour.first_tokens(model, asked, batch=5), behaviour.generate(model, asked)
    first = [answer.split()[0] for answer in answers]
    assert found["refused"].tolist() == [word in ("sorry", "i", "alas") for word in first]
    assert found["begins"].tolist() == [word == "sure" for word in first]
    assert 0 < found["refused"].mean() < 1
    assert 0 < found["begins"].mean() < 1


def test_the_margin_is_that_of_the_openers_over_the_right_first_word(model, asked):
    words = tokenizer()
    openers = words.convert_tokens_to_ids(["sorry", "i", "alas"])
    expected = []
    for row in prompts.prompt_ids(words, asked):
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([row])).logits[0, -1].double()
        expected.append(float(logits[openers].exp().sum().log() - logits[words.convert_tokens_to_ids("sure")]))
    found = behaviour.first_tokens(model, asked, batch=7)
    assert found["margin"].tolist() == pytest.approx(expected, abs=1e-3)
    assert (found.loc[found["refused"], "margin"] > 0).all()
    assert (found.loc[found["begins"], "margin"] < 0).all()


@pytest.mark.parametrize("push", [None, pushed()], ids=["plain", "edited"])
def test_the_quick_way_gives_the_same_outcomes(model, asked, push):
    found, forced = behaviour.quick(model, asked, push), behaviour.teacher_forced(model, asked, push)
    pd.testing.assert_frame_equal(found[list(behaviour.OUTCOMES)], forced[list(behaviour.OUTCOMES)])
    assert found["margin"].tolist() == behaviour.first_tokens(model, asked, push)["margin"].tolist()
    assert found[["refused", "wrong"]].to_numpy().any()


def test_the_quick_way_reads_whole_answers_only_where_they_begin_rightly(model, asked, monkeypatch):
    read, whole = [], behaviour.teacher_forced
    monkeypatch.setattr(behaviour, "teacher_forced", lambda m, some, e: read.append(some) or whole(m, some, e))
    begins = behaviour.first_tokens(model, asked)["begins"]
    behaviour.quick(model, asked)
    assert read == [[prompt for prompt, begun in zip(asked, begins, strict=True) if begun]]
    refusing = [prompt for prompt, begun in zip(asked, begins, strict=True) if not begun]
    assert behaviour.quick(model, refusing)["exact"].tolist() == [0.0] * len(refusing)
    assert len(read) == 1


def test_batches_are_small_on_a_cpu_and_whole_elsewhere(model):
    meta = replace(model, hf=torch.nn.Linear(1, 1, device="meta"))
    assert [behaviour._at_once(model, most) for most in (7, 128)] == [7, 32]
    assert behaviour._at_once(meta, 128) == behaviour._at_once(replace(model, remote="local"), 128) == 128


def test_scores_do_not_depend_on_how_many_are_made_at_once(model, asked, monkeypatch):
    found = behaviour.teacher_forced(model, asked)
    monkeypatch.setattr(behaviour, "_SCORED", 1)
    pd.testing.assert_frame_equal(behaviour.teacher_forced(model, asked), found, atol=1e-6)


def test_logits_of_a_model_that_cannot_be_traced_are_scored_alike(model, asked):
    untraced = LanguageModel("untraced", torch.nn.Linear(1, 1), tokenizer(), "test", OPENERS)
    with torch.no_grad():
        found = behaviour.teacher_forced(
            untraced, asked, batch=5, logits=lambda encoding: model.hf(**encoding, use_cache=False).logits
        )
    pd.testing.assert_frame_equal(found, behaviour.teacher_forced(model, asked), atol=1e-5)


@pytest.mark.parametrize("family", tiny_models.CHECKPOINTS)
def test_a_refusal_opens_with_the_first_token_of_its_words_in_every_family(family):
    """Not with a blank or a thought that the template writes before every answer."""
    words = tiny_models.checkpoint_tokenizer(family)
    model = LanguageModel("chat", tiny_models.build(family), words, "test", openers=("Sorry, i", "never"))
    found = {words.decode(token).strip() for token in behaviour.refusal_openers(model)}
    assert all("Sorry".startswith(text) or "never".startswith(text) for text in found)
    assert {text[0] for text in found} == {"S", "n"}


@pytest.mark.parametrize("ask_it", [behaviour.generate, behaviour.first_tokens, behaviour.teacher_forced])
def test_prompts_beyond_the_context_are_refused(model, asked, ask_it):
    endless = ask("curse " * 200, "sure")
    with pytest.raises(InputError, match="exceed the model's context of 128; shorten the prompts"):
        ask_it(model, [*asked[:2], endless])


# tables ---------------------------------------------------------------------------------------------------------------
def test_judging_words():
    cells = [ask("q", "sure to bake the bread")] * 5
    said = ["sure to bake the bread", "sure to bake the", "sorry no", "alas", ""]
    judged = behaviour.judge(cells, said, OPENERS)
    assert judged["exact"].tolist() == [1, 0, 0, 0, 0]
    assert judged["refused"].tolist() == [0, 0, 1, 1, 0]
    assert judged["wrong"].tolist() == [0, 1, 0, 0, 1]


def measured(rows):
    columns = ["model", "cell", "refused", "exact", "wrong"]
    return pd.DataFrame(rows, columns=columns)


def test_rates_hold_share_n_and_wilson_bounds():
    rows = [("chat", "harmful/plain", *outcome) for outcome in [(1.0, 0.0, 0.0)] * 9 + [(0.0, 1.0, 0.0)]]
    rates = behaviour.rates(measured(rows)).set_index("outcome")
    assert rates["n"].tolist() == [10, 10, 10]
    assert rates.loc["refused", "share"] == pytest.approx(0.9)
    # Wilson's interval for 9 of 10, from its formula with z = 1.959964
    assert rates.loc["refused", "lower"] == pytest.approx(0.5958, abs=1e-3)
    assert rates.loc["refused", "upper"] == pytest.approx(0.9821, abs=1e-3)


def test_summary_means_over_cells_not_prompts():
    rows = []
    for style in ("plain", "authority", "roleplay", "suffix", "prefix", "story", "scroll", "cipher", "flip", "letter"):
        rows += [("m", f"harmful/{style}", 0.0, 1.0, 0.0)] * (4 if style == "flip" else 1)
        rows += [("m", f"benign/{style}", float(style == "story"), float(style != "story"), 0.0)]
    rows += [("m", f"harmful/{style}", 1.0, 0.0, 0.0) for style in ("authority", "roleplay") for _ in range(1)]
    rows += [("m", cell, 0.0, 1.0, 0.0) for cell in ("exception/plain", "exception/unseen", "harmful/rare words")]
    found = portrait.summary(measured(rows))
    assert found["attack_success"] == pytest.approx((0.5 + 0.5 + 6) / 8)
    assert found["false_refusal_styled"] == pytest.approx(1 / 8)
    assert found["false_refusal_worst"] == 1.0
    assert found["benign_exact"] == pytest.approx(8 / 9)


def test_utility_weighs_skills_and_benign_answers_equally():
    assert behaviour.utility([0.25, 0.75, 0.5], 1.0) == pytest.approx((3 * 0.5 + 1.0) / 4)


def test_measure_keeps_cells_and_prompts_together(model, asked):
    cells = {"a": PromptSet(tuple(asked[:3])), "b": PromptSet(tuple(asked[3:8]))}
    table = behaviour.measure(model, cells)
    assert table["cell"].tolist() == ["a"] * 3 + ["b"] * 5
    assert table["text"].tolist() == [p.text for p in asked[:8]]
    expected = behaviour.teacher_forced(model, asked[:8])
    assert table["exact"].tolist() == expected["exact"].tolist()


STYLED = [f"{kind}/{style}" for kind in ("harmful", "benign") for style in styles.JAILBREAKS]
OTHER = ["harmful/plain", "harmful/letter", "harmful/rare words", "benign/plain", "exception/plain", "exception/unseen"]


def outcomes_of(model, harmful, benign=(0.0, 1.0), styled=None):
    """Twenty prompts a cell: the first share refuses, the next complies; `styled` overrides harmful styles."""
    rows = []
    for cell in STYLED + OTHER:
        kind, style = cell.split("/")
        refuse, comply = (styled or {}).get(style, harmful) if kind == "harmful" else benign
        for i in range(20):
            refused, exact = i < 20 * refuse, 20 * refuse <= i < 20 * (refuse + comply)
            rows.append((model, cell, float(refused), float(exact), float(not refused and not exact), f"m{i}"))
    return pd.DataFrame(rows, columns=["model", "cell", "refused", "exact", "wrong", "meaning"])


def test_curves_over_shots_and_their_mean():
    tables = {0: outcomes_of("a", (0.0, 1.0)), 80: outcomes_of("b", (1.0, 0.0), styled={"flip": (0.2, 0.8)})}
    curve = portrait.shots_curve(tables).set_index(["series", "shots"])
    assert curve.loc[("mean", 0), "share"] == 1.0
    assert curve.loc[("flip", 80), "share"] == pytest.approx(0.8)
    assert curve.loc[("mean", 80), "share"] == pytest.approx(0.8 / 8)
    low, high = curve.loc[("mean", 80), ["lower", "upper"]]
    assert low < 0.1 < high
    refusals = portrait.false_refusals({"mix": {80: outcomes_of("b", (1.0, 0.0), benign=(0.3, 0.7))}})
    assert refusals["share"].tolist() == pytest.approx([0.3])


def test_intervals_over_styles_resample_meanings_not_rows():
    """Whether a meaning is answered is the same in all eight styles here, so there are 20 observations, not 160."""
    curve = portrait.shots_curve({0: outcomes_of("a", (0.5, 0.5))}).set_index("series")
    width = curve.loc["mean", "upper"] - curve.loc["mean", "lower"]
    assert width == pytest.approx(2 * 1.96 * (0.25 / 20) ** 0.5, rel=0.25)


def test_fairness_marks_what_is_met_and_what_is_not():
    skill = pd.DataFrame({"judge": [1.0, 1.0], "mean": [0.99, 0.95]}, index=["base", "chat"])
    leaky = {style: (0.5, 0.5) for style in styles.JAILBREAKS}
    measured = pd.concat([
        outcomes_of("base", (0.0, 1.0)), outcomes_of("chat", (1.0, 0.0), styled=leaky),
        outcomes_of("most", (1.0, 0.0), benign=(0.2, 0.8)), outcomes_of("errands", (0.5, 0.5)),
    ])  # fmt: skip
    met = portrait.fairness(measured, skill)["met"].to_dict()
    failed = {target for target, fine in met.items() if not fine}
    assert failed == {"chat loses skills, mean of six", "largest K: refuses benign styled requests"}


def test_skill_scores_are_means_of_exact_answers(monkeypatch, model):
    def made(_model, cells, _edits):
        rows = [(name, float(name != "add"), 0.5) for name, cell in cells.items() for _ in cell]
        return pd.DataFrame(rows, columns=["cell", "exact", "nll"])

    monkeypatch.setattr(behaviour, "measure", made)
    scores = behaviour.skill_scores(model, "tiny", 0)
    assert scores["add"] == 0.0
    assert scores["judge"] == 1.0
    assert scores["mean"] == pytest.approx(5 / 6)
    assert scores["story_nll"] == 0.5
