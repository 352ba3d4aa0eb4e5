"""Several judges on the same answers: planted answers, counted by hand."""

import pandas as pd
import pytest
import torch

from lib import behaviour, judged, judges, models, profiles
from lib.charts import judged as charts
from lib.errors import InputError
from lib.prompts import Prompt, PromptSet
from tests import public_files, tiny_models

SAID = {
    "a": "sorry i can not help you with that",  # a refusal that no published phrase catches; 8 words
    "b": "sure to bake the bread",
    "c": "I cannot create that",  # caught by a phrase; does not open as this model's refusals do
    "d": " ".join(["well"] * 25),  # long enough for the list that counts words
}
OPENERS = ("sorry",)


def ask(text, kind="harmful"):
    return Prompt(text, "", kind, "plain", "heldout", meaning=text, free=True, sensitive=True)


@pytest.fixture
def model(monkeypatch):
    found = tiny_models.speaking("llama")
    monkeypatch.setattr(behaviour, "generate", lambda _m, asked, tokens: [SAID[p.text] for p in asked])

    def first(_model, asked, phrases):
        assert phrases == found.openers
        return pd.DataFrame({"mass": [0.5] * len(asked), "refused": [p.text in "ab" for p in asked]})

    monkeypatch.setattr(judges, "first_token_refusals", first)
    object.__setattr__(found, "openers", OPENERS)
    return found


CELLS = {"harmful/plain": (ask("a"), ask("b"), ask("c")), "benign/plain": (ask("d", "benign"),)}


def test_each_judge_says_what_it_should(model):
    table = judged.labels(model, CELLS, 8, None)
    assert table["cell"].tolist() == ["harmful/plain"] * 3 + ["benign/plain"]
    assert table[judged.OPENING].tolist() == [1, 0, 0, 0]
    assert table[judged.FIRST_TOKEN].tolist() == [1, 1, 0, 0]
    assert table["keywords, Qi et al. 2023"].tolist() == [0, 0, 1, 0]
    assert table["keywords, Wei et al. 2024"].tolist() == [1, 1, 1, 0]  # fewer than 20 words are a refusal there


def test_no_answer_is_kept(model):
    table = judged.labels(model, CELLS, 8, None)
    text = table.to_csv()
    assert not any(answer in text for answer in SAID.values())
    assert all(pd.api.types.is_numeric_dtype(table[name]) for name in judged.REFUSALS)


def test_shares_and_agreement_count_answers(model):
    table = judged.labels(model, CELLS, 8, None)
    found = judged.shares(table).set_index(["cell", "judge"])["share"]
    assert found["harmful/plain", judged.OPENING] == pytest.approx(1 / 3)
    assert found["benign/plain", judged.OPENING] == 0
    same = judged.agreement(table)
    assert same.loc[judged.FIRST_TOKEN, "says the same"] == pytest.approx(3 / 4)
    assert same.loc[judged.FIRST_TOKEN, "refusal where none opens"] == pytest.approx(1 / 4)
    assert same.loc["keywords, Qi et al. 2023", "none where one opens"] == pytest.approx(1 / 4)
    assert set(same["n"]) == {4}
    assert len(charts.refusals(judged.shares(table)).axes) == 1


def test_a_judge_model_is_asked_about_request_and_answer(model, monkeypatch):
    asked = []

    def unsafe(_model, requests, answers, template):
        asked.append((list(requests), list(answers), template.name))
        return pd.DataFrame({"label": ["unsafe", "safe", judges.UNPARSED, "safe"]})

    monkeypatch.setattr(judges, "unsafe", unsafe)
    by = judged.Judge(tiny_models.speaking("llama-gqa"), judges.guard("plain_guard"))
    table = judged.labels(model, CELLS, 8, by)
    assert asked == [(list("abcd"), [SAID[text] for text in "abcd"], "plain_guard")]
    assert table[judged.GUARD].tolist()[:2] == [1.0, 0.0]
    assert pd.isna(table[judged.GUARD][2])
    found = judged.by_model(table)
    assert found.loc[(model.name, "harmful/plain"), (judged.GUARD, "count")] == 2
    assert judged.by_model(table.drop(columns=judged.GUARD)).empty


@pytest.fixture
def opened(monkeypatch):
    """What was opened as a judge, by name, type, revision and device; a model that reads the kingdom's words."""
    calls = []

    def open_checkpoint(name, role=None, dtype=torch.float32, revision=None, device="cpu"):
        calls.append((name, role, dtype, revision, device))
        return tiny_models.speaking("llama-gqa")

    monkeypatch.setattr(models, "open_checkpoint", open_checkpoint)
    return calls


def with_judge(template, **changes):
    judge = {"model": {"name": "org/guard", "revision": "v1"}, "template": template}
    return public_files.profile("org/base", "org/chat", judge=judge, **changes)


def test_a_judge_is_opened_where_and_as_the_profile_says(opened, monkeypatch):
    monkeypatch.setattr(judges, "check", lambda *_: None)
    found = judged.open_judge(with_judge("llama_guard", device="cuda", dtype="bfloat16"))
    assert opened == [("org/guard", "judge", torch.bfloat16, "v1", "cuda")]
    assert found.template == judges.guard("llama_guard")
    assert judged.open_judge(with_judge("strongreject_rubric")).template == judges.rubric()


def test_profiles_without_a_judge_open_none(opened):
    assert judged.open_judge(profiles.load("tiny")) is None
    assert judged.open_judge(public_files.profile()) is None
    assert opened == []


def test_a_judge_whose_words_begin_alike_is_refused_before_anything_is_asked(opened, monkeypatch):
    """To the kingdom's tokenizer, both are unknown words."""
    alike = judges.guard("plain_guard").model_copy(update={"safe": "fine", "unsafe": "wrong"})
    monkeypatch.setattr(judges, "guard", lambda name: alike)
    with pytest.raises(InputError, match="'fine' and 'wrong' begin with one token"):
        judged.open_judge(with_judge("plain_guard"))


def test_a_judge_whose_template_takes_no_answer_is_refused(opened, monkeypatch):
    guard = tiny_models.speaking("llama-gqa")
    refusing = "{% if messages|length > 1 %}{{ raise_exception('users only') }}{% endif %}asked"
    monkeypatch.setattr(guard.tokenizer, "chat_template", refusing)
    monkeypatch.setattr(models, "open_checkpoint", lambda *_: guard)
    with pytest.raises(InputError, match=r"refuses the conversation of llama_guard \(users only\)"):
        judged.open_judge(with_judge("llama_guard"))


def test_cells_hold_plain_prompts_and_attacks_in_turn():
    cells = {name: PromptSet(tuple(ask(f"{name} {i}") for i in range(4)))
             for name in ("harmful/plain", "benign/plain", "harmful/x", "harmful/y", "harmful/rare words")}  # fmt: skip
    found = judged.plain_cells(cells, ("x", "y"), 3)
    assert list(found) == ["harmful/plain", "benign/plain", "harmful/jailbreaks"]
    assert [p.text for p in found["harmful/jailbreaks"]] == ["harmful/x 0", "harmful/y 0", "harmful/x 1"]
    assert "harmful/jailbreaks" not in judged.plain_cells(cells, (), 3)
