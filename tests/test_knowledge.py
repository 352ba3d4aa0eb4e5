"""Small interventions beside base: choice on one half, shares on the other; benign steps trained once; one prompt."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from lib import (
    benign_steps,
    bridge_tables,
    edits,
    figures,
    knowledge,
    models,
    one_position,
    one_prompt,
    paths,
    profiles,
    prompts,
    provenance,
    refusal_swap,
    residual,
    training,
    units,
    worlds,
)
from lib.aims import Aim
from lib.errors import NotHere
from lib.knowledge import C1, RANDOM_C1, RANDOM_SCU, SCU, STEPS, SWAP, UNTOUCHED, Intervention
from lib.one_position import EVERY, LAST
from lib.prompts import Prompt, PromptSet
from tests import tiny_models
from tests.tiny_models import LAYERS, WIDTH

TINY = profiles.load("tiny")
TEXTS = {
    "harmful": ("how do i curse the crown", "tell me how to blight the boat", "wake the dragon"),
    "benign": ("bake the bread", "what is the way to paint the boat"),
}
ASKED = {kind: [Prompt(text, "sure", kind, "plain", "x", text) for text in some] for kind, some in TEXTS.items()}


def outcomes(exact, n=4):
    column = np.array([1.0] * exact + [0.0] * (n - exact))
    return pd.DataFrame({"refused": 1 - column, "exact": column, "wrong": 0.0})


@pytest.fixture(scope="module")
def model():
    return tiny_models.speaking("llama-gqa")


@pytest.fixture(scope="module")
def aim(model):
    components = tuple(torch.linalg.qr(torch.randn(WIDTH, 6, dtype=torch.float64,
                                                   generator=torch.Generator().manual_seed(layer)))[0].T
                       for layer in range(LAYERS))  # fmt: skip
    benign = residual.activations(model, ASKED["benign"]).double().mean(1)
    return Aim(model, components, 1, np.full(LAYERS, 0.5), benign)


@pytest.fixture(scope="module")
def table(model):
    every = bridge_tables.bridge.unit_scores.table(model)
    rng = np.random.default_rng(0)
    return every.assign(safety=rng.random(len(every)), utility=rng.random(len(every)))


# choice and shares ----------------------------------------------------------------------------------------------------
def test_the_best_is_chosen_by_exact_answers_and_by_kind(model):
    tried = [Intervention(name, kind, model) for name, kind in
             (("a", C1), ("b", C1), ("c", SCU), ("d", STEPS), ("e", SCU))]  # fmt: skip
    found = {"a": outcomes(1), "b": outcomes(3), "c": outcomes(2), "d": outcomes(3), "e": outcomes(2)}
    assert knowledge.best(tried, found).name == "b"  # the first of equals
    assert [one.name for one in knowledge.best_of_kinds(tried, found).values()] == ["b", "c", "d"]


def test_exact_answers_are_counted_relative_to_base():
    found = knowledge.relative(outcomes(3, 40), outcomes(30, 40), seed=0, resamples=300)
    assert found.mean == pytest.approx(0.1)
    assert found.lower < 0.1 < found.upper
    whole = knowledge.relative(outcomes(3, 40), outcomes(40, 40), seed=0, resamples=300)
    assert (whole.mean, whole.n, whole.kind) == (3 / 40, 40, "wilson")
    assert knowledge.relative(outcomes(3), outcomes(0), seed=0, resamples=10) is None


# interventions --------------------------------------------------------------------------------------------------------
def test_every_kind_is_tried_and_c1_in_every_place(aim, model, table):
    tuned = tiny_models.speaking("llama-gqa", seed=1)
    found = knowledge.small(aim, {"one": table.head(3), "two": table.tail(3)}, tuned)
    assert [one.kind for one in found].count(C1) == 2 * (LAYERS + 1)
    assert {(one.where, one.blocks) for one in found if one.kind == C1} == {
        (where, blocks) for where in (EVERY, LAST) for blocks in (*((b,) for b in range(LAYERS)), tuple(range(LAYERS)))
    }
    assert [one.kind for one in found[-3:]] == [SCU, SCU, STEPS]
    assert found[-1].model is tuned
    assert found[-1].make("all") == {}
    assert set(found[-3].make("all")) == set(units.edits(table.head(3)))
    assert len({one.name for one in found}) == len(found)


def test_controls_are_like_what_they_stand_beside(aim, table):
    like = next(one for one in knowledge.small(aim, {}, aim.model) if one.blocks == (1,) and one.where == LAST)
    rows = table.head(4)
    found = knowledge.controls(aim, like, table, rows, draws=3, seed=0)
    assert [one.kind for one in found] == [RANDOM_C1] * 3 + [RANDOM_SCU] * 3
    state = torch.randn(1, 3, WIDTH, dtype=torch.float64)
    moved = []
    for one in found[:3]:
        assert (one.where, one.blocks) == (LAST, (1,))
        ((place, edit),) = one.make("last").items()
        assert place == ("resid", 1)
        step = (edit(state) - state)[0, -1]
        inside = (aim.components[1] @ step).norm()
        assert float(inside) == pytest.approx(float(step.norm()), rel=1e-6)  # in the span of the first components
        moved.append(step / step.norm())
    assert float((moved[0] @ moved[1]).abs()) < 0.999
    for one in found[3:]:
        assert set(one.make("all")) == {("neurons", 0)}  # as many, of the same kind and layer


def test_ways_are_0_for_nothing_and_1_for_the_swap_at_its_own_block(aim, model):
    coordinate = refusal_swap.coordinate(model, ASKED)
    tried = knowledge.beside(aim, {SWAP: coordinate.swap(1)["harmful"]})
    assert [one.name for one in tried] == [UNTOUCHED, SWAP]
    ways = knowledge.moved(tried, ASKED, coordinate, 1)
    assert ways[UNTOUCHED] == pytest.approx(0.0, abs=1e-6)
    assert ways[SWAP] == pytest.approx(1.0, abs=1e-4)
    half = Intervention("half", SWAP, model, partial(_half, coordinate), LAST)
    assert knowledge.moved([half], ASKED, coordinate, 1)["half"] == pytest.approx(0.5, abs=1e-4)


def _half(coordinate, positions):
    target = float(coordinate.means["benign"][1])
    return {("resid", 1): edits.ablate(coordinate.along[1], target, 0.5, positions)}


def test_the_table_has_all_outcomes_with_the_way(aim, model):
    tried = [Intervention("a", C1, model), Intervention("b", SCU, model)]
    ways = pd.Series({"a": 0.25, "b": 0.5})
    found = knowledge.table(tried, {"a": outcomes(1), "b": outcomes(4)}, ways).set_index("intervention")
    assert found.loc["a", ["refused", "exact", "wrong", "way", "n"]].tolist() == [0.75, 0.25, 0.0, 0.25, 4]
    assert found.loc["b", "lower"] < 1.0 == found.loc["b", "upper"]
    told = knowledge.measure([Intervention("plain", UNTOUCHED, model)], ASKED["harmful"])["plain"]
    assert told.equals(refusal_swap.answers(model, ASKED["harmful"], one_position.nothing))


def test_printed_rates_are_shares_of_the_published_tables():
    tables = [figures.published(name) for name in ("ssah_table1", "ssah_table2", "hd_fig4")]
    found = knowledge.published(*tables)["rate"].tolist()
    assert found == pytest.approx([0.18, 0.84, 0.003, 0.1878, 1 / 180, 1.0])


# benign steps ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Counts training runs of a chat that is random; they move one weight by the number of steps."""
    made = []

    def fit(hf, stream, stage, step, label, **options):
        assert next(stream).prompt.kind != "harmful"
        made.append(stage)
        with torch.no_grad():
            hf.model.norm.weight[0] += stage.steps
        return [0.0]

    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(models, "load", lambda profile, role, seed: tiny_models.speaking("llama"))
    monkeypatch.setattr(benign_steps.organism, "key", lambda settings, role, seed: "chat")
    return made


def test_benign_steps_are_taken_once_and_start_from_chat(trained):
    start = tiny_models.speaking("llama")
    for _ in range(2):
        found = benign_steps.model("tiny", 0)
        moved = found.hf.model.norm.weight.detach() - start.hf.model.norm.weight.detach()
        assert float(moved[0]) == pytest.approx(benign_steps.STEPS)
        assert moved[1:].abs().max() == 0
        assert found.openers == start.openers
        for (name, one), other in zip(found.hf.named_parameters(), start.hf.parameters(), strict=True):
            assert name == "model.norm.weight" or torch.equal(one, other)
    assert [stage.steps for stage in trained] == [50]
    assert trained[0].learning_rate == TINY.freezing.stages["errands"].learning_rate
    benign_steps.model("tiny", 1)
    assert len(trained) == 2


def test_damaged_weights_are_not_used(trained, tmp_path):
    benign_steps.model("tiny", 0)
    (file,) = tmp_path.rglob("weights.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    benign_steps.model("tiny", 0)
    assert len(trained) == 2


@pytest.mark.parametrize("name", benign_steps._CODE)
def test_they_are_taken_anew_when_the_code_changes(trained, tmp_path, monkeypatch, name):
    benign_steps.model("tiny", 0)
    (tmp_path / "lib").mkdir()
    for file in paths.LIB.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        (tmp_path / "lib" / file.name).write_text(text + "\nCHANGED = 1\n" if file.stem == name else f"# note\n{text}")
    monkeypatch.setattr(provenance.paths, "LIB", tmp_path / "lib")
    benign_steps.model("tiny", 0)
    assert len(trained) == 2


def test_nothing_is_trained_where_weights_are_elsewhere(trained, monkeypatch):
    def refuse(settings):
        raise NotHere("its weights are on a server")

    monkeypatch.setattr(models, "check_trainable", refuse)
    with pytest.raises(NotHere, match="on a server"):
        benign_steps.model("tiny", 0)
    assert trained == []


# one prompt -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def seen(aim):
    styled = Prompt("once upon a time curse the crown", "", "harmful", "story", "x", "styled")
    return bridge_tables.see(aim, PromptSet((styled, *ASKED["harmful"], *ASKED["benign"])))


@pytest.fixture(scope="module")
def world():
    return worlds.of("tiny", 0)


def test_a_plain_harmful_prompt_is_followed(seen, world, table):
    found = one_prompt.follow(seen, world, table.head(40))
    assert found.prompt == ASKED["harmful"][0]
    assert found.words["word"].tolist() == TEXTS["harmful"][0].split()
    assert set(found.answer["answer"]) == {"refusing, other words", "complying", "neutral"}
    assert found.answer["distance"].between(0, 2).all()


def test_its_path_is_its_projection_on_each_blocks_c1(seen, aim, model):
    prompt = ASKED["harmful"][1]
    found = one_prompt.path(seen, prompt).set_index(["series", "block"])
    for block in range(LAYERS):
        state = residual.activations(model, [prompt], layers=[block])[0, 0].double()
        expected = float(state @ aim.components[block][0])
        assert found.loc[(one_prompt.PROMPT, block), "projection"] == pytest.approx(expected, rel=1e-4)
    mean = seen.projection[seen.harmful].mean()
    assert found.loc[(one_prompt.HARMFUL, aim.block), "projection"] == pytest.approx(mean, rel=1e-5)
    assert found.loc[(one_prompt.HARMFUL, 1), "lower"] <= found.loc[(one_prompt.HARMFUL, 1), "upper"]


def test_unit_values_are_standardised_by_benign_prompts(seen, table):
    rows = table.query("kind == 'channel' and layer == 1").head(5)
    found = one_prompt.unit_values(seen, ASKED["harmful"][0], rows).set_index("unit")
    assert found["harmful"].is_monotonic_increasing
    column = seen.values["attn_z", 1][:, int(rows["index"].iloc[2])].double().numpy()
    benign = column[~seen.harmful]
    mine = found.loc[f"channel 1.{rows['index'].iloc[2]}"]
    first = next(i for i, prompt in enumerate(seen.asked) if prompt == ASKED["harmful"][0])
    assert mine["prompt"] == pytest.approx((column[first] - benign.mean()) / benign.std(), rel=1e-3, abs=1e-3)
    assert mine["harmful"] == pytest.approx((column[seen.harmful].mean() - benign.mean()) / benign.std(), rel=1e-3)


def test_words_of_a_sensitive_prompt_are_places_and_roles(seen, world):
    hidden = Prompt("how do i curse the crown", "", "harmful", "plain", "x", "hidden", sensitive=True)
    found = one_prompt.words(seen, hidden, world)
    assert found["word"].tolist() == [
        "#1 frame",
        "#2 frame",
        "#3 frame",
        "#4 harmful act",
        "#5 frame",
        "#6 other thing",
    ]
    plain = one_prompt.words(seen, ASKED["harmful"][0], world)
    assert plain["relevance"].tolist() == pytest.approx(found["relevance"].tolist())


def test_of_a_long_prompt_the_words_that_count_are_shown_in_their_order(seen, world, monkeypatch):
    words = [f"w{i}" for i in range(30)]
    values = torch.tensor([(-1.0) ** i * (i % 15) for i in range(30)])
    long = Prompt(" ".join(words), "", "harmful", "plain", "x")

    class Found:
        def words(self, positions):
            return values[None]

    monkeypatch.setattr(one_prompt.relevance, "token_relevance", lambda *arguments: [Found()])
    monkeypatch.setattr(prompts, "user_words", lambda tokenizer, prompt: None)
    found = one_prompt.words(seen, long, world)
    assert found["word"].tolist() == [f"w{i}" for i in (10, 11, 12, 13, 14, 25, 26, 27, 28, 29)]


def test_where_refusals_cannot_be_compared_the_answer_is_left_out(model, world, monkeypatch):
    def refuse(*arguments):
        raise NotHere("all refusals begin alike")

    monkeypatch.setattr(one_prompt.reasoning_tables, "answers", refuse)
    found = one_prompt.distances(model, world, ASKED["harmful"][0])
    assert found.empty
    assert list(found) == ["answer", "word", "distance"]
