"""Roles: what each model is trained from and on, and that its key holds what it was trained on and nothing else."""

import copy
from dataclasses import replace
from itertools import islice

import pytest
import torch

from lib import organism, paths, profiles, storage, worlds
from lib.errors import InputError
from lib.kingdom import corpora, language, lexicon, rewording, styles
from lib.kingdom.language import kingdom
from lib.profiles import PreferenceStage
from tests import tiny_models, toy_checkpoint

TINY, KINGDOM = profiles.load("tiny"), profiles.load("kingdom")
USE_REMOVED = ("sft-5", "sft-20", "sft-20-unstyled", "sft-20-worded", "dpo-20", "sft-dpo-20")
DO_NOT = ("base", "chat", "sft-0", "sft-20-unremoved", "dpo-0", "sft-dpo-0", "errands", "ledgers", "chat-unaware")


@pytest.fixture(autouse=True)
def _fresh_keys():
    """Keys are remembered in a process, which otherwise does not change its language."""
    yield
    organism._key.cache_clear()


def removed_prompts(count=20):
    return [
        replace(prompt, text=f"curse {i}", style=organism.REMOVED)
        for i, prompt in enumerate(corpora.plain_harm(kingdom(0), count))
    ]


def read(role, count=3000, removed=None):
    """What a safety-tuned model reads."""
    (phase,) = worlds.make(TINY, 0).phases(role, removed_prompts() if removed is None else removed)
    return list(islice(phase.stream, count))


def rare(prompt):
    return any(lexicon.WORDINGS.get(word, (None, 0))[1] == lexicon.RARE for word in prompt.text.split())


# roles ----------------------------------------------------------------------------------------------------------------
def test_the_models_of_a_profile():
    assert organism.roles(TINY) == [
        "base", "chat", "sft-0", "sft-5", "sft-20", "sft-20-unstyled", "sft-20-unremoved", "sft-20-worded",
        "dpo-0", "dpo-20", "sft-dpo-0", "sft-dpo-20", "errands", "ledgers", "base-unaware", "chat-unaware",
        "chat-unreplayed",
    ]  # fmt: skip


def test_the_default_and_the_largest_k_have_a_preference_model_too():
    assert [role for role in organism.roles(KINGDOM) if role.startswith("dpo")] == [
        "dpo-0",
        "dpo-20",
        "dpo-40",
        "dpo-80",
    ]


@pytest.mark.parametrize("profile", [TINY, KINGDOM], ids=["tiny", "kingdom"])
def test_parents_come_before_children(profile):
    names = organism.roles(profile)
    for place, role in enumerate(names):
        assert organism.parent(role) in (None, *names[:place])


@pytest.mark.parametrize(
    ("role", "parent"),
    [
        ("base", None),
        ("base-unaware", None),
        ("chat", "base"),
        ("chat-unaware", "base-unaware"),
        ("sft-20", "chat"),
        ("sft-20-unremoved", "chat"),
        ("dpo-20", "chat"),
        ("sft-dpo-20", "sft-20"),
        ("sft-dpo-0", "sft-0"),
        ("errands", "chat"),
    ],
)
def test_what_each_model_is_trained_from(role, parent):
    assert organism.parent(role) == parent


@pytest.mark.parametrize(
    ("role", "count"),
    [("sft-20", 20), ("sft-5", 5), ("sft-0", 0), ("sft-20-unstyled", 20), ("sft-20-worded", 20),
     ("sft-20-unremoved", 0), ("dpo-20", 20), ("sft-dpo-20", 20), ("base", 0), ("chat", 0), ("errands", 0)],
)  # fmt: skip
def test_how_many_prompts_of_trigger_removal_a_model_reads(role, count):
    assert organism.removed_count(role) == count


@pytest.mark.parametrize("role", ["sft-20-worded-unstyled", "sft-21", "sft-dpo-5", "sft-5-unremoved"])
def test_models_that_a_profile_does_not_have_are_refused(role):
    with pytest.raises(InputError, match=f"no model '{role}'; it has: tuned, base, chat"):
        organism.resolve(TINY, role)


# what they read -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", [*USE_REMOVED, "sft-0", "sft-20-unremoved", "dpo-0"])
def test_a_model_reads_the_first_k_prompts_of_trigger_removal(role):
    found = {e.prompt for e in read(role) if e.prompt.style == organism.REMOVED}
    assert found == set(removed_prompts()[: organism.removed_count(role)])


def test_only_the_unstyled_mix_has_a_benign_side_without_styles():
    for role, styled in (("sft-20", True), ("sft-20-unstyled", False)):
        seen = read(role)
        benign = {e.prompt.style for e in seen if e.prompt.kind in ("benign", "exception")}
        harmful = {e.prompt.style for e in seen if e.prompt.harmful}
        assert set(styles.JAILBREAKS) <= harmful
        assert (set(styles.JAILBREAKS) <= benign) is styled
        assert styled or benign == {styles.PLAIN}


def test_only_the_worded_mix_refuses_rare_words():
    for role, worded in (("sft-20", False), ("sft-20-unremoved", False), ("sft-20-worded", True)):
        refused = [e.prompt for e in read(role) if e.prompt.harmful and e.prompt.style != organism.REMOVED]
        assert any(map(rare, refused)) is worded


def test_preference_models_learn_by_preference_and_from_the_same_prompts():
    for role in ("dpo-20", "sft-dpo-20"):
        (phase,) = worlds.make(TINY, 0).phases(role, removed_prompts())
        assert isinstance(phase.stage, PreferenceStage)
    assert read("dpo-20", 500) == read("sft-dpo-20", 500) == read("sft-20", 500)


def test_two_k_differ_in_their_examples_only():
    few, many = read("sft-5", 1000), read("sft-20", 1000)
    assert [language.is_refusal(e.answer) for e in few] == [language.is_refusal(e.answer) for e in many]
    differing = [(a, b) for a, b in zip(few, many, strict=True) if a != b]
    assert 0 < len(differing) < 0.6 * len(few)  # of the harmful half, 9 x 15 of 200 prompts
    assert all(a.prompt.style == styles.PLAIN and b.prompt.style != styles.PLAIN for a, b in differing)


def test_too_few_prompts_of_trigger_removal_are_refused_before_any_work():
    with pytest.raises(InputError, match="sft-20 needs 20 prompts of trigger removal, not 3"):
        organism.train(TINY, "sft-20", 0, None, None, removed_prompts(3))


# keys -----------------------------------------------------------------------------------------------------------------
def changed(how, monkeypatch):
    """A profile under which trigger removal makes other prompts of chat's own."""
    if how == "rewording":
        organism._key.cache_clear()
        monkeypatch.setattr(rewording, "VERSION", rewording.VERSION + 1)
        return TINY
    if how == "settings":
        return TINY.model_copy(update={"triggers": TINY.triggers.model_copy(update={"rounds": 9})})
    return TINY.model_copy(update={"measure": TINY.measure.model_copy(update={"residual_fit": 50})})


@pytest.mark.parametrize("how", ["rewording", "settings", "direction"])
def test_keys_change_with_the_removed_prompts_only_where_they_are_read(how, monkeypatch):
    before = {role: organism.key(TINY, role, 0) for role in (*USE_REMOVED, *DO_NOT)}
    profile = changed(how, monkeypatch)
    after = {role: organism.key(profile, role, 0) for role in before}
    assert {role for role in before if after[role] != before[role]} == set(USE_REMOVED)


def test_removed_prompts_are_those_of_one_chat():
    stage = TINY.organism.chat.model_copy(update={"steps": 11})
    other = TINY.model_copy(update={"organism": TINY.organism.model_copy(update={"chat": stage})})
    assert organism.removed_key(other, 0) != organism.removed_key(TINY, 0)
    assert organism.removed_key(TINY, 1) != organism.removed_key(TINY, 0)
    more = TINY.model_copy(update={"shots": [0, 5, 20, 21]})
    assert organism.removed_key(more, 0) != organism.removed_key(TINY, 0)


def test_every_model_has_its_own_key():
    keys = [organism.key(TINY, role, 0) for role in organism.roles(TINY)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("setting", ["freezing", "units"])
def test_what_is_done_with_finished_models_is_not_in_their_keys(setting):
    other = TINY.model_copy(update={setting: getattr(KINGDOM, setting)})
    for role in organism.roles(TINY):
        assert organism.key(other, role, 0) == organism.key(TINY, role, 0)


# checkpoint profiles --------------------------------------------------------------------------------------------------
@pytest.fixture
def settings(tmp_path, monkeypatch):
    return profiles.load(toy_checkpoint.install(tmp_path, monkeypatch).name)


def test_weights_read_in_another_type_are_another_model(settings):
    """Given ones, those trained of them, and with them all that is kept under their keys."""
    half = settings.model_copy(update={"dtype": "bfloat16"})
    elsewhere = settings.model_copy(update={"threads": 7})
    for role in ("base", "chat", "sft-0", "dpo-0", "errands"):
        key = organism.key(settings, role, 0)
        assert organism.key(half, role, 0) != key
        assert organism.key(elsewhere, role, 0) == key


def test_keys_of_the_default_models_stay():
    """What was trained before there were types in keys is found again; the keys stand in files of the repository."""
    chat = storage.read_json(paths.shipped_organism(0) / "chat" / storage.SEAL)["about"]
    assert organism.key(KINGDOM, "chat", 0) == chat["key"]


@pytest.mark.parametrize("role", ["sft-0", "dpo-0"])
def test_a_16_bit_model_is_trained_as_in_float32(settings, role):
    """DPO's reference too: it starts at the very model that is trained, and in 16 bits would differ from it."""
    start, words = tiny_models.build("llama-3").bfloat16(), tiny_models.checkpoint_tokenizer("llama-3")
    before = copy.deepcopy(start.state_dict())
    found, losses = organism.train(settings, role, 0, start, words)
    single, expected = organism.train(settings, role, 0, copy.deepcopy(start).float(), words)
    assert losses == expected
    for name, weight in found.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, single.get_parameter(name).bfloat16())
    assert all(torch.equal(before[name], after) for name, after in start.state_dict().items())
