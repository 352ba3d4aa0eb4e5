"""Units, freezing and the alignment budget on a checkpoint profile: free requests, harm that must not be shown, no
attacks, half precision; and pages 03 to 06 from end to end."""

import contextlib
import json

import pandas as pd
import pytest
import torch

from lib import (
    ability,
    behaviour,
    budget,
    budget_tables,
    claims,
    freezing,
    freezing_tables,
    models,
    one_position,
    paths,
    profiles,
    prompt_sets,
    prompts,
    threads,
    training,
    unit_scores,
    unit_tables,
    unit_weights,
    units,
)
from lib.errors import InputError, NotHere
from lib.freezing import Arm
from lib.prompts import Example
from lib.unit_tables import BENIGN, HARM, SYSTEM
from tests import pages, toy_checkpoint

PAGES = ("03_unit_classification", "04_attribute_transfer", "05_freezing", "06_alignment_budget")
STYLES = toy_checkpoint.STYLES[:2]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    with toy_checkpoint.shelf(tmp_path_factory) as take:
        yield take


@pytest.fixture
def toy(shelf):
    """Random models without attacks, as a user begins."""
    return shelf(learned=False)


@pytest.fixture
def half(shelf):
    """With attacks, in half precision, and padded on the other side."""
    return shelf(learned=False, dtype="bfloat16", family="qwen-2.5", styles=STYLES)


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Installs a profile that a test may spoil."""
    return lambda **changes: toy_checkpoint.install(tmp_path, monkeypatch, learned=False, **changes)


# pages ----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow  # `test_every_page` runs them on public data sets by default
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_to_its_end_and_shows_and_keeps_no_sensitive_word(shelf, page):
    toy = shelf()
    shown, reason = pages.run(page, toy.name)
    assert reason is None
    assert toy.leaks(shown) == []
    assert "nan" not in shown.lower().split()
    found = json.loads(paths.result_file(paths.run_folder(toy.name, 0) / "results", page).read_text())
    wanted = {part.id for one in claims.registry().values() if one.notebook == page[3:] for part in one.parts}
    assert set(found["parts"]) == wanted
    assert len(list((paths.run_folder(toy.name, 0) / "figures").glob(f"{page}*.png"))) > 1


def test_a_page_that_needs_weights_stops_where_there_are_none(other, monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "a key")
    remote = other(remote=True)
    for page in PAGES:
        assert "its weights are on a server" in pages.run(page, remote.name)[1]
    assert not [path for path in (remote.folder / "cache").rglob("[!.]*") if path.is_file()]  # locks are hidden files


# scores and panels ----------------------------------------------------------------------------------------------------
def test_a_free_request_is_scored_by_refusing_against_every_other_token(toy):
    """By plain hooks; `harmful` has mostly no answer at all."""
    chat = models.load(toy.name, "chat", 0)
    asked = prompt_sets.behaviour(toy.name, 0)["harmful/plain"].prompts[:4]
    assert all(prompt.free for prompt in asked)
    openers = {next(iter(chat.tokenizer(text, add_special_tokens=False)["input_ids"])) for text in chat.openers}
    names = {f"model.layers.{layer}.mlp.down_proj": ("neuron", layer) for layer in range(chat.layers)}
    plain, total = models.load(toy.name, "chat", 0).hf.requires_grad_(True), dict.fromkeys(names.values(), 0.0)
    for prompt in asked:
        kept = {}

        def keep(_, inputs, key, kept=kept):
            inputs[0].retain_grad()
            kept[key] = inputs[0]

        hooks = [
            plain.get_submodule(name).register_forward_pre_hook(lambda m, x, key=key: keep(m, x, key))
            for name, key in names.items()
        ]
        logits = plain(input_ids=torch.tensor(prompts.prompt_ids(chat.tokenizer, [prompt]))).logits[0, -1]
        refusing = logits[sorted(openers)].exp().sum()
        (refusing.log() - (logits.exp().sum() - refusing).log()).backward()
        for key, value in kept.items():
            total[key] = total[key] + (value * value.grad)[0, -1].detach().double()
        for hook in hooks:
            hook.remove()
    found = unit_scores.table(chat).assign(score=unit_scores.taylor(chat, [Example(p, "") for p in asked]))
    for (kind, layer), summed in total.items():
        mine = found[(found["kind"] == kind) & (found["layer"] == layer)]["score"]
        torch.testing.assert_close(torch.tensor(mine.to_numpy()), summed / len(asked), rtol=2e-3, atol=1e-5)
    assert found["score"].abs().max() > 1e-3


def test_held_out_panels_have_the_profiles_own_skills_and_no_system_line(toy):
    whole, large = unit_tables.heldout(toy.name, 0, "whole"), unit_tables.heldout(toy.name, 0)
    assert whole.skills == large.skills == ("count", "copy")
    assert whole.text == "page"
    assert SYSTEM not in whole.cells
    found = unit_tables.observe(models.load(toy.name, "chat", 0), whole)
    assert {"count", "copy", "skills", "utility", "story_nll"} <= set(found)
    three = found.loc[0, ["count", "copy", "benign_exact"]].mean()
    assert found.loc[0, "utility"] == pytest.approx(three)
    table = unit_tables.removal_table({"chat": found}, ["utility", "refusal_system", "refusal"])
    assert list(table) == ["utility", "refusal"]


def test_the_cut_search_asks_skills_that_calibration_does_not_hold(toy):
    practice, heldout = unit_tables.practice(toy.name, 0), unit_tables.heldout(toy.name, 0)
    assert {example.prompt.kind for example in prompt_sets.calibration(toy.name, 0)["utility"]} == {"benign"}
    assert list(practice.cells) == [HARM, BENIGN, "count", "copy"]
    assert {prompt.split for cell in practice.cells.values() for prompt in cell} == {"train"}
    assert len(practice.cells["count"]) == profiles.load(toy.name).measure.skill_items
    held = {prompt.text for cell in heldout.cells.values() for prompt in cell}
    assert not held & {prompt.text for cell in practice.cells.values() for prompt in cell}


def test_a_cut_cannot_be_searched_without_any_skill(other, monkeypatch):
    bare = other()
    stream = toy_checkpoint.ToyWorld._forever
    monkeypatch.setattr(toy_checkpoint.ToyWorld, "safety", lambda self, *_: stream(self, "x", ("harmful", "benign")))
    with pytest.raises(NotHere, match="no questions of a skill"):
        unit_tables.practice(bare.name, 0)


def test_ability_is_of_the_profiles_own_skills_and_text(toy):
    chat = models.load(toy.name, "chat", 0)
    calm = ability.measure(chat, toy.name, 0, one_position.nothing)
    assert set(calm.loc[calm["running"], "cell"]) == {"page"}
    worse = calm.assign(exact=0.0, nll=calm["nll"] + 1.5)
    table = ability.table(calm.assign(exact=1.0), {"worse": worse})
    assert table.loc["worse"].to_dict() == pytest.approx(
        {"count": 1, "copy": 1, "mean of skills": 1, "story loss": 1.5}
    )


def test_derived_models_go_on_refusing_as_their_origin_does(toy):
    chat = models.load(toy.name, "chat", 0)
    rows = unit_scores.table(chat).iloc[[3, 40]]
    weight = {"model.layers.0.mlp.up_proj.weight": torch.zeros(48, 32, dtype=torch.bool)}
    for derived in (units.without(chat, rows), unit_weights.without(chat, weight)):
        assert derived.openers == chat.openers
        assert derived.hf is not chat.hf
        assert derived.traced.model is not chat.traced.model


def test_a_number_of_skills_in_words():
    assert [unit_tables.in_words(count) for count in (2, 6, 12, 13)] == ["two", "six", "twelve", "13"]


# freezing -------------------------------------------------------------------------------------------------------------
def test_without_attacks_a_path_asks_no_styles_and_tables_have_none(toy):
    asked = freezing.questions(toy.name, 0, "errands")
    assert set(asked) == set(freezing.NO_STYLES)
    path = freezing.follow(toy.name, 0, Arm("free", {}), "errands").assign(corpus="errands", arm="free")
    table = freezing_tables.step_table(path)
    assert "success in styles" not in table
    assert table.notna().all(axis=None)


def test_with_attacks_a_path_asks_every_style(half):
    assert set(freezing.questions(half.name, 0, "errands")) == {*freezing.NO_STYLES, *STYLES}
    assert budget.STYLED in budget.questions(half.name, 0)


def test_a_corpus_of_which_everything_is_trained_on_is_refused(other, monkeypatch):
    small = other()
    one = next(toy_checkpoint.ToyWorld.corpus(small.world, "errands", "x"))
    monkeypatch.setattr(toy_checkpoint.ToyWorld, "corpus", lambda *_: iter([one] * 100_000))
    with pytest.raises(InputError, match="are all there are"):
        freezing.questions(small.name, 0, "errands")


def test_what_is_kept_of_a_path_holds_numbers_only(toy):
    freezing.follow(toy.name, 0, Arm("kept", {}), "ledgers")
    budget.follow(toy.name, 0, budget.Arm("kept", None))
    kept = [path for path in (toy.folder / "cache").rglob("*.json") if path.parent.name.find("kept") >= 0]
    assert len(kept) == 4  # a value and a seal of each
    assert toy.leaks() == []


def test_runs_of_checkpoints_are_not_trained_side_by_side(toy, monkeypatch, two_cpus):
    """Those of the default models would be: they start processes. Those of checkpoints wait until each is asked for."""

    class Started(Exception):
        pass

    def started(*_, **__):
        raise Started

    monkeypatch.setattr(threads, "ProcessPoolExecutor", started)
    for name, expected in (("tiny", pytest.raises(Started)), (toy.name, contextlib.nullcontext())):
        with expected:
            freezing.prepare(name, 0, [Arm("a", {}), Arm("b", {})], "errands")
        with expected:
            budget.prepare(name, 0, [budget.Arm("a", None), budget.Arm("b", None)])
    assert not [*(toy.folder / "cache").glob("*/*/0-*a-*")]
    freezing.follow(toy.name, 0, Arm("a", {}), "errands")
    assert len([*(toy.folder / "cache").glob("*/*/0-*a-*")]) == 1


def test_frozen_units_stay_as_they_are_in_half_precision(half, monkeypatch):
    chat, seen, fit = models.load(half.name, "chat", 0), {}, training.fit
    assert chat.hf.dtype == torch.bfloat16
    rows = unit_scores.table(chat).sample(frac=0.3, random_state=0)
    masks = freezing.masks(chat, rows)

    def spy(model, *rest, **options):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        fit(model, *rest, **options)
        for name, parameter in model.named_parameters():
            seen[name] = (parameter.detach() != before[name]).nonzero()

    monkeypatch.setattr(training, "fit", spy)
    path = pd.DataFrame(freezing._train(half.name, 0, Arm("some", masks), "errands"))
    assert set(masks) < set(seen)
    for name, mask in masks.items():
        assert not mask[tuple(seen[name].T)].any()
        assert len(seen[name]) > 0
    assert path["loss"].map(float).notna().all()


@pytest.mark.parametrize("arm", [Arm("lora", {}, adapter="lora"), Arm("prefix", {}, adapter="prefix")], ids=str)
def test_adapters_train_in_half_precision(half, arm):
    path = pd.DataFrame(freezing._train(half.name, 0, arm, "errands"))
    assert path["loss"].iloc[-1] < path["loss"].iloc[0]
    assert set(STYLES) < set(path["cells"].dropna().iloc[0])


def test_a_path_is_measured_as_its_model_is_elsewhere(half, monkeypatch):
    """With nothing to train, and where padding is on the other side. What it says to one prompt is called a refusal."""
    chat, asked = models.load(half.name, "chat", 0), freezing.questions(half.name, 0, "errands")["plain"]
    ids = torch.tensor(prompts.prompt_ids(chat.tokenizer, asked[:1]))
    said = int(chat.hf(input_ids=ids).logits[0, -1].argmax())
    monkeypatch.setattr(behaviour, "refusal_openers", lambda model: {said})
    every = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in chat.hf.named_parameters()}
    path = pd.DataFrame(freezing._train(half.name, 0, Arm("all", every), "errands"))
    plain = behaviour.teacher_forced(chat, asked)
    assert path["refused"].tolist() == [plain["refused"].astype(int).tolist()] * len(path)
    assert plain["refused"][0] == 1


# the budget -----------------------------------------------------------------------------------------------------------
def test_alignment_of_a_few_units_in_half_precision(half):
    base, settings = models.load(half.name, "base", 0), profiles.load(half.name)
    rows = unit_scores.table(base).sample(frac=0.2, random_state=0)
    path = pd.DataFrame(budget._train(half.name, 0, budget.Arm("few", rows)))
    assert path["step"].iloc[[0, -1]].tolist() == [0, 2 * settings.budget.stage.steps]
    asked = unit_tables.heldout(half.name, 0)
    found = budget_tables.attributes(budget_tables.points(path)[0], asked)
    assert {"count", "copy", "refusal_styled"} <= set(found)
    answered = unit_tables.observe(base, asked)
    assert found["refusal"].tolist() == pytest.approx(answered["refusal"].tolist())


def test_without_attacks_a_table_has_no_refusal_in_styles(toy):
    asked, arms = unit_tables.heldout(toy.name, 0), {budget_tables.FULL: [budget.Arm("all", None, twice=False)]}
    paths_of = budget_tables.follow(toy.name, 0, arms)
    table = budget_tables.table(paths_of, asked, budget_tables.ends(paths_of))
    assert "refusal_styled" not in table
    assert list(table)[-2:] == ["count", "copy"]
    assert table.notna().all(axis=None)
