"""The world of public data sets, on harmless files in the publishers' schemas; no model is opened here."""

import inspect
import json
import logging
import pickle
import traceback
from collections import Counter
from itertools import islice
from random import Random

import pytest

from lib import judges, organism, prompts, storage, worlds
from lib.errors import InputError, NotHere
from lib.prompts import digest
from lib.public import pools
from lib.public.data import PublicPrompt
from lib.public.world import PublicWorld
from tests import public_files
from tests.public_files import CANARY, STYLES, csv, jsonl, lines

COUNT = 64
TRAINED_ON = ("chat-unreplayed", "errands", "ledgers", "sft-20", "dpo-20", "sft-dpo-20")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return public_files.data_dir(tmp_path_factory.mktemp("data"), COUNT)


@pytest.fixture
def at(folder, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(folder))


def made(seed=0, **changes):
    found = worlds.make(public_files.profile(**changes), seed)
    assert isinstance(found, PublicWorld)
    return found


@pytest.fixture
def world(at):
    return made()


@pytest.fixture
def plain(at):
    """Without attack prompts."""
    return made(data={"attacks": None})


def asked(world):
    """Every prompt that is measured on, by what it is for."""
    cells = {**world.behaviour(), **world.skill_items(), "new task": world.new_task(8)}
    return {**cells, **dict(zip(("fit", "test"), world.residual(), strict=True))}


def read(world, role, count=2000):
    (phase,) = world.phases(role, ())
    return list(islice(phase.stream, count))


def meanings(found):
    return {prompt.meaning for prompt in found}


# the interface --------------------------------------------------------------------------------------------------------
def test_every_world_says_the_same_things(world):
    for name, kind in inspect.get_annotations(worlds.World).items():
        assert hasattr(world, name), (name, kind)
    assert world.styles == ("flip", "pair")
    assert world.skills == ("classification", "closed_qa", "information_extraction")
    assert (world.text, world.rewriting) == ("wikitext2", 0)
    assert set(world.records) == {
        "harmful", "benign", "exceptions", "attacks", "errands", "ledgers", "skills", "text"
    }  # fmt: skip


def test_every_refusal_begins_with_an_opener_and_no_compliance_does(world):
    judged = judges.keyword_refusals(world.refusals, judges.Keywords("openers", "", world.openers, 0))
    assert judged.all()
    assert all(sentence.startswith(world.openers) for sentence in world.refusals)
    assert not [text for text in judges.wordings("compliance") if text.startswith(world.openers)]


# what is asked --------------------------------------------------------------------------------------------------------
def test_cells(world, plain):
    cells = world.behaviour()
    assert list(cells) == ["harmful/plain", "benign/plain", "exception/plain", "harmful/flip", "harmful/pair"]
    for name, cell in cells.items():
        kind, style = name.split("/")
        assert {(p.kind, p.style, p.free, p.split) for p in cell} == {(kind, style, True, "heldout")}
        assert len(cell) == len(meanings(cell)) == 8
        assert all(p.sensitive == (CANARY in p.text) == (kind == "harmful") for p in cell)
    assert list(plain.behaviour()) == ["harmful/plain", "benign/plain", "exception/plain"]
    assert plain.styles == ()


def test_attacks_on_a_goal_share_the_meaning_of_the_plain_prompt(world, folder):
    for style in STYLES:
        for prompt in world.behaviour()[f"harmful/{style}"]:
            goal = prompt.text.removeprefix(f"{CANARY} as in {style}: ")
            assert prompt.meaning == digest(goal)
    plain = world.behaviour()["harmful/plain"].prompts[0]
    (way,) = world.dressed(plain, "pair", 3)
    assert way.text == f"{CANARY} as in pair: {plain.text}"
    assert (way.style, way.meaning, way.harmful) == ("pair", plain.meaning, True)
    assert world.dressed(plain, "pair", 0) == []
    assert world.dressed(plain, "none such", 3) == []
    (trained,) = world.dressed(world.plain_harm(1)[0], "flip", 1)
    assert trained.split == "train"


def test_of_sets_that_are_mixed_each_side_takes_its_own(at):
    world = made(data={"exceptions": "xstest"})
    assert {p.kind for p in world.behaviour()["exception/plain"]} == {"exception"}
    assert all(p.sensitive for p in world.behaviour()["exception/plain"])
    advbench = made(data={"harmful": "advbench"}).behaviour()["harmful/plain"].prompts
    assert all(p.answer == f"{CANARY} {p.text}" for p in advbench)


def test_nothing_asked_is_learned(at):
    for seed in range(3):
        world = made(seed)
        held = set().union(*(meanings(cell) for cell in asked(world).values()))
        learned = set().union(*(meanings(e.prompt for e in read(world, role)) for role in TRAINED_ON))
        learned |= meanings(world.plain_harm(COUNT))
        learned |= meanings(e.prompt for draw in range(5) for part in world.calibration(draw).values() for e in part)
        assert held.isdisjoint(learned)
        assert len(learned) > COUNT


def test_a_meaning_falls_on_one_side_whatever_else_is_there(world):
    """By the meaning alone: the same goal in another set, or in a longer one, is on the same side."""
    attacks = {p.meaning: p.split for side in ("train", "heldout") for p in world._pools["attacks", side]}
    goals = {p.meaning: p.split for side in ("train", "heldout") for p in world._pools["harmful", side]}
    assert attacks == goals
    assert len(goals) == COUNT
    assert 0.25 * COUNT < Counter(goals.values())["train"] < 0.75 * COUNT
    other = {p.meaning: p.split for side in ("train", "heldout") for p in made(1)._pools["harmful", side]}
    assert other != goals


def test_residual_sets_have_no_meaning_in_common_and_the_shares_said(world, plain):
    for here, styled in ((world, 5 / 7), (plain, 0)):
        fit, test = here.residual()
        assert meanings(fit).isdisjoint(meanings(test))
        for half in (fit, test):
            harmful = [p for p in half if p.harmful]
            assert 2 * len(harmful) == len(half)
            assert len({p.text for p in half}) == len(half)
            assert {p.kind for p in half} == {"harmful", "benign", "exception"}
            if styled:
                in_style = Counter(p.style for p in harmful)
                assert abs(1 - in_style["plain"] / len(harmful) - styled) < 0.1
                assert abs(in_style["flip"] - in_style["pair"]) < 5
            else:
                assert {p.style for p in half} == {"plain"}


def test_residual_sets_are_as_large_as_asked_where_there_is_enough_and_balanced_where_there_is_not(at):
    few = made(measure=public_files.settings()["measure"] | {"residual_fit": 10, "residual_test": 600})
    fit, test = few.residual()
    assert len(fit) == 10
    assert Counter(p.kind for p in fit) == {"harmful": 5, "exception": 2, "benign": 3}
    assert 20 < len(test) < 200
    assert sum(p.harmful for p in test) == len(test) / 2


def test_too_few_prompts_for_two_residual_sets_stop_a_page(at, monkeypatch, plain):
    monkeypatch.setattr(pools, "chosen", lambda *_: True)
    with pytest.raises(NotHere, match="too few prompts for two sets"):
        plain.residual()


def test_skills_have_one_right_answer_of_a_few_words(world):
    items = world.skill_items()
    assert list(items) == [*world.skills, "wikitext2"]
    for name in world.skills:
        assert {(p.kind, p.style, p.free) for p in items[name]} == {("skill", name, False)}
        assert all(1 <= len(p.answer.split()) <= 5 for p in items[name])
        assert len(items[name]) == 8
    task = world.new_task(5)
    assert {(p.kind, p.style, p.free, p.split) for p in task} == {("skill", "alpaca", False, "heldout")}
    assert all(len(p.answer.split()) <= 5 for p in task)
    assert world.new_task(3) == task[:3]


def test_a_set_without_categories_is_one_skill(at):
    assert made(data={"skills": "alpaca"}).skills == ("short answers",)


PARAGRAPH = "The lily grows in the garden . " + " ".join(f"word{i}" for i in range(80))


@pytest.mark.parametrize(
    ("text", "prompt", "answer"),
    [
        (f" {PARAGRAPH} \n", "Continue this text:\n\nThe lily grows in the garden .",
         " ".join(f"word{i}" for i in range(60))),
        ("Does it ever stop growing? " + "yes " * 10, "Continue this text:\n\nDoes it ever stop growing?",
         "yes " * 9 + "yes"),
        (" = The lily grows in the garden . = \n" + "word " * 20, None, None),
        ("", None, None),
        ("The lily grows in the garden .", None, None),
        ("It grows . " + "word " * 20, None, None),
        ("The lily grows in the garden . " + "word " * 9, None, None),
    ],
)  # fmt: skip
def test_running_text_is_continued(text, prompt, answer):
    found = pools.continuation(PublicPrompt(text, "", "skill", "wikitext2", "wikitext2/test"))
    assert (None if found is None else (found.text, found.answer)) == (None if prompt is None else (prompt, answer))
    assert found is None or not found.free


def test_long_rows_are_left_out_and_those_without_an_answer_are_not_learned():
    said = [("a" * 1000, "b" * 1000), ("a" * 1001, "b"), ("a", "b" * 1001), ("c", "")]
    rows = [
        PublicPrompt(text, answer, "benign", "plain", "x", meaning=digest(text), category="closed_qa")
        for text, answer in said
    ]
    assert [row.text[0] + row.answer[0] for row in pools._FIT["benign"](rows)] == ["ab"]
    assert len(pools._FIT["exceptions"](rows)) == 3
    assert pools._FIT["skills"](rows) == list(pools.short(rows[:1], "closed_qa"))
    assert [
        len(row.text) for row in pools._FIT["harmful"]([PublicPrompt("a" * 5000, "", "harmful", "plain", "x")])
    ] == [5000]


# what is learned ------------------------------------------------------------------------------------------------------
def test_calibration(world):
    first, second = world.calibration(0), world.calibration(1)
    assert {name: len(part) for name, part in first.items()} == {"safety": 12, "utility": 12}
    assert first != second
    assert first == world.calibration(0)
    for example in first["safety"]:
        assert (example.prompt.kind, example.prompt.style, example.prompt.split) == ("harmful", "plain", "train")
        assert example.answer in world.refusals
    for example in first["utility"]:
        assert example.prompt.kind == "benign"
        assert example.answer == example.prompt.answer != ""
        assert "in the field" in example.prompt.text


def test_phases_are_those_of_the_recipe(world):
    recipe = world.settings.organism
    wanted = {"chat-unreplayed": recipe.chat, "errands": recipe.benign, "ledgers": recipe.benign,
              "sft-20": recipe.sft, "dpo-20": recipe.dpo, "sft-dpo-20": recipe.dpo}  # fmt: skip
    for role in TRAINED_ON:
        (phase,) = world.phases(role, ())
        assert phase.stage == wanted[role]
    for raising in (lambda: world.phases("base", ()), world.untrained):
        with pytest.raises(NotHere, match="no model from nothing"):
            raising()


def test_alignment_refuses_plain_harm_and_answers_the_rest(world):
    examples = read(world, "chat-unreplayed", 1000)
    harmful = [e for e in examples if e.prompt.harmful]
    assert 400 < len(harmful) < 600
    assert {e.prompt.style for e in examples} == {"plain"}
    assert {e.answer for e in harmful} == set(world.refusals)
    assert all(e.answer == e.prompt.answer for e in examples if not e.prompt.harmful)


def test_benign_corpora_hold_no_refusal_and_some_skills(world):
    for name, place in (("errands", "park"), ("ledgers", "field")):
        examples = read(world, name)
        assert not [e for e in examples if e.prompt.harmful or e.answer in world.refusals]
        skills = [e for e in examples if e.prompt.kind == "skill"]
        assert abs(len(skills) / len(examples) - world.settings.organism.benign.skill_share) < 0.03
        assert all(f"in the {place}" in e.prompt.text for e in examples if e.prompt.kind != "skill")
    first, again, other = (list(islice(world.corpus("errands", order), 50)) for order in ("a", "a", "b"))
    assert first == again != other


def test_safety_data_hold_k_examples_of_each_style(world, plain):
    for shots in (0, 5, 20):
        examples = read(world, f"dpo-{shots}", 6000)
        harmful = {(e.prompt.style, e.prompt.text) for e in examples if e.prompt.harmful}
        count = Counter(style for style, _ in harmful)
        assert all(count[style] == shots for style in STYLES)
        assert count["plain"] > 20
        sides = Counter(e.prompt.kind for e in examples)
        assert abs(sides["harmful"] / len(examples) - 0.45) < 0.03
        assert abs(sides["skill"] / len(examples) - 0.1) < 0.03
    assert {e.prompt.style for e in read(plain, "sft-20") if e.prompt.harmful} == {"plain"}


def test_what_is_preferred_and_what_is_not(at):
    world = made(data={"harmful": "advbench"})
    for example in read(world, "dpo-5"):
        if not example.prompt.harmful:
            assert (example.answer, example.rejected in world.refusals) == (example.prompt.answer, True)
        else:
            assert example.answer in world.refusals
            styled = example.prompt.style != "plain"  # attacks have no answer of their own
            assert example.rejected == (judges.wordings("compliance")[0] if styled else example.prompt.answer)


def test_raising_k_changes_attacks_only(world):
    few, more = world._harm(200, 5), world._harm(200, 20)
    assert few[10:] == [*world._harm(200, 0)[10:]]
    assert [p for p in more if p.style != "plain"][:10] == few[:10]
    assert more[40:] == few[40:]
    assert len(few) == len(more) == 200
    most = world._harm(10, 1000)  # more than there are
    assert Counter(p.style for p in most)["pair"] == len(world._of("pair", "attacks", "train"))


def test_exceptions_are_learned_where_they_have_answers(at):
    recipe = public_files.settings()["organism"]
    recipe = recipe | {"sft": recipe["sft"] | {"exception_share": 0.5}}
    without = read(made(organism=recipe), "sft-5")
    assert not [e for e in without if e.prompt.kind == "exception"]
    answered = made(organism=recipe, data={"exceptions": "dolly"})
    benign = [e for e in read(answered, "sft-5") if e.prompt.kind in ("benign", "exception")]
    assert abs(sum(e.prompt.kind == "exception" for e in benign) / len(benign) - 0.5) < 0.1


def test_keys_change_with_the_data_and_not_with_where_they_lie(world, tmp_path, monkeypatch, folder):
    before = storage.digest_json(world.fingerprint())
    monkeypatch.setenv("DATA_DIR", str(public_files.data_dir(tmp_path / "same", COUNT)))
    assert storage.digest_json(made().fingerprint()) == before
    other = public_files.data_dir(tmp_path / "other", COUNT)
    text = (other / "strongreject_dataset.csv").read_text()
    (other / "strongreject_dataset.csv").write_text(text.replace("today", "tomorrow", 1))
    monkeypatch.setenv("DATA_DIR", str(other))
    assert storage.digest_json(made().fingerprint()) != before


def test_what_is_read_enters_keys_as_digests(world):
    harm = world.plain_harm(2)
    assert world.as_read(harm) == [[digest(p.text), digest("")] for p in harm]
    assert CANARY not in json.dumps([world.as_read(harm), world.fingerprint()])


# draws ----------------------------------------------------------------------------------------------------------------
def test_draws_repeat_and_differ_between_seeds(at):
    one, again, other = made(0), made(0), made(1)
    assert asked(one) == asked(again)
    assert all(asked(one)[name] != asked(other)[name] for name in asked(one))
    for role in TRAINED_ON:
        assert read(one, role, 50) == read(again, role, 50) != read(other, role, 50)


def test_more_prompts_begin_with_fewer(at):
    sizes = public_files.settings()["measure"]
    more = made(measure=sizes | {"cell": 12}).behaviour()
    for name, cell in made().behaviour().items():
        assert more[name].prompts[:8] == cell.prompts


# other words for the same ---------------------------------------------------------------------------------------------
WORDS = ("how", "do", "I", "water", "the", "old", "rose", "at", "night")


def is_within(short, whole):
    rest = iter(whole)
    return all(word in rest for word in short)


def test_rewrites_only_leave_words_out(world):
    found = world.rewrites(WORDS, {"rose", "night"}, 15, Random(0))
    kept = tuple(word for word in WORDS if word not in {"rose", "night"})
    assert found[0] == kept
    assert len(found) == len(set(found)) == 15
    assert all(is_within(rewrite, kept) and rewrite for rewrite in found)
    assert min(map(len, found)) >= len(kept) - len(kept) // 3
    assert found == world.rewrites(WORDS, {"rose", "night"}, 15, Random(0))
    assert found != world.rewrites(WORDS, {"rose", "night"}, 15, Random(1))


def test_rewrites_are_never_empty_nor_the_words_themselves(world):
    assert WORDS not in world.rewrites(WORDS, set(), 50, Random(0))
    assert world.rewrites(WORDS, set(WORDS), 5, Random(0)) == []
    assert world.rewrites(("water",), set(), 5, Random(0)) == []
    assert world.rewrites(("water", "it"), {"it"}, 5, Random(0)) == [("water",)]
    assert set(world.rewrites(("water", "it"), set(), 5, Random(0))) == {("water",), ("it",)}


def test_word_roles(world):
    roles = {word: world.word_role(word) for word in ("How", "the", "rose", "Rose?", "(and)", "?", "kill")}
    assert set(roles.values()) == set(world.word_roles)
    assert [word for word, role in roles.items() if role == "content word"] == ["rose", "Rose?", "kill"]


# what fails -----------------------------------------------------------------------------------------------------------
def test_sets_that_are_not_at_hand_are_named_before_models_are_opened(at, folder, tmp_path, monkeypatch):
    place = public_files.data_dir(tmp_path / "less", COUNT)
    (place / "strongreject_dataset.csv").unlink()
    monkeypatch.setenv("DATA_DIR", str(place))
    with pytest.raises(InputError, match=r"no files of strongreject.*DATA_DIR.*accept the conditions on its page"):
        made()
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(InputError, match="is not a folder"):
        made()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"exceptions": "alpaca"}, "alpaca stands for both benign and exceptions"),
        ({"benign": "xstest"}, "xstest, which stands for benign, has 0 benign requests with answers"),
        ({"harmful": "alpaca"}, "alpaca, which stands for harmful, has 0 harmful prompts"),
        ({"attacks": "strongreject"}, "strongreject has no styles"),
        ({"text": "dolly"}, "dolly, which stands for text, has 0 paragraphs"),
    ],
)
def test_sets_that_lack_what_they_stand_for_are_refused(at, data, says):
    with pytest.raises(InputError, match=says):
        made(data=data)


def test_a_style_with_too_few_prompts_is_named(tmp_path, monkeypatch):
    place = public_files.data_dir(tmp_path / "data", COUNT)
    goal = next(goal for goal in public_files.goals(COUNT) if not pools.chosen(0, "split", digest(goal)))
    csv(place / "gcg_prompts.csv", ["forbidden_prompt", "jailbroken_prompt"], [goal, f"{goal} !"])
    monkeypatch.setenv("DATA_DIR", str(place))
    with pytest.raises(InputError, match="hd_attacks has too few prompts of gcg"):
        made()


def test_a_new_task_needs_answers_that_can_be_told_right(tmp_path, monkeypatch):
    place = public_files.data_dir(tmp_path / "data", COUNT)
    rows = [{"instruction": f"tell me {i}", "input": "", "output": "well " * 9} for i in range(COUNT)]
    (place / "alpaca_data.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setenv("DATA_DIR", str(place))
    with pytest.raises(NotHere, match="alpaca, this profile's ledgers, has no answers of a few words"):
        made().new_task(4)


def test_running_text_goes_on_after_what_is_measured_of_it(world):
    items = world.skill_items()
    assert {p.ends for p in items.pop("wikitext2")} == {False}
    assert {p.ends for cell in items.values() for p in cell} == {True}
    assert {p.ends for cell in world.behaviour().values() for p in cell} == {True}


def test_what_was_read_is_told_by_counts_and_digests(world, at, monkeypatch):
    found = world.sources()
    assert found["seed"] == 0
    assert set(found["sets"]) == set(world.records)
    for role, about in found["sets"].items():
        assert about["content"] == world.records[role].content
        assert about["train"]["count"] > 0 < about["heldout"]["count"]
    harm = world.behaviour()["harmful/plain"]
    assert found["asked"]["harmful/plain"] == {
        "count": len(harm), "content": storage.digest_json([[digest(p.text), digest(p.answer)] for p in harm])
    }  # fmt: skip
    assert set(found["asked"]) == {*world.behaviour(), *world.skill_items()}
    assert CANARY not in json.dumps(found)
    other = made(seed=1).sources()
    assert other["sets"]["harmful"]["content"] == found["sets"]["harmful"]["content"]
    assert other["sets"]["harmful"]["heldout"] != found["sets"]["harmful"]["heldout"]
    assert worlds.of("tiny", 0).sources() == {}


def test_sets_too_small_to_split_are_refused(tmp_path, monkeypatch):
    place = public_files.data_dir(tmp_path / "data", COUNT)
    jsonl(place / "databricks-dolly-15k.jsonl",
          {"instruction": "a", "context": "", "response": "b", "category": "closed_qa"})  # fmt: skip
    monkeypatch.setenv("DATA_DIR", str(place))
    with pytest.raises(InputError, match="dolly, which stands for errands, has 1 benign requests"):
        made()
    lines(place / "wiki.test.raw", " = Gardens = ")


def test_nothing_is_shown_by_worlds_examples_and_errors(world, caplog, capfd, tmp_path, monkeypatch):
    harm = world.behaviour()["harmful/pair"]
    shown = [repr(world), str(world), repr(world._pools), repr(harm), harm.table().to_csv(), repr(harm.prompts[0]),
             harm.prompts[0].shown, harm.prompts[0].shown_answer(harm.prompts[0].text)]  # fmt: skip
    shown += [repr(world.records), repr(world.calibration(0))]
    examples = read(made(data={"harmful": "advbench"}), "dpo-20", 200)
    assert any(CANARY in str(example.rejected) for example in examples)
    shown += [repr(example) for example in examples]
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError) as found:
        made(data={"skills": "strongreject"})
    shown += ["".join(traceback.format_exception(found.value)), caplog.text, *capfd.readouterr()]
    assert not [text for text in shown if CANARY in text]
    assert CANARY in harm.prompts[0].text
    assert pickle.loads(pickle.dumps(harm)) == harm


def test_roles_of_the_profile_are_those_that_can_be_trained(at):
    settings = public_files.profile()
    world = made()
    for role in organism.roles(settings):
        if role not in ("tuned", "base", "chat"):
            assert world.phases(role, ()), role
    assert prompts.meanings([e.prompt for e in read(world, "sft-0", 20)])
