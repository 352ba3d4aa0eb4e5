"""Other sizes of the family: what they are, and the parts of hd.3 and hd.10 from planted models and attacks."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import direction_tables, models, paths, profiles, prompt_sets, sizes
from lib import trigger_tables as attack
from lib.claims import Requirement
from lib.direction_tables import Readings, Seen
from lib.errors import InputError, NotHere
from lib.kingdom import architecture, styles
from lib.kingdom.tokenizer import tokenizer

KINGDOM, TINY = profiles.load("kingdom"), profiles.load("tiny")
EVERY = [(family, name) for family, names in sizes.COMPARED.items() for name in names]


# the sizes ------------------------------------------------------------------------------------------------------------
def weights(shape):
    """Of a Llama whose head is its embedding and whose heads do not share keys: by hand."""
    kept = shape.kv_heads / shape.heads
    block = (2 + 2 * kept) * shape.width**2 + 3 * shape.width * shape.mlp + 2 * shape.width
    return len(tokenizer()) * shape.width + shape.layers * block + shape.width


def stages(settings):
    """Every training stage of the organism."""
    made = settings.organism
    return {**made.base, "chat": made.chat, "sft": made.sft, "dpo": made.dpo, "benign": made.benign}


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_a_size_differs_from_its_family_in_width_and_training_alone(family, name):
    mine, theirs = profiles.load(name).model_dump(), profiles.load(family).model_dump()
    for one in (mine, theirs):
        for what in ("name", "about", "published"):
            del one[what]
        for what in ("width", "mlp"):
            del one["architecture"][what]
        trained = one["organism"]
        for stage in (*trained["base"].values(), *(trained[what] for what in ("chat", "sft", "dpo", "benign"))):
            del stage["learning_rate"]
        for stage in trained["base"].values():
            del stage["steps"]
    assert mine == theirs
    assert not profiles.load(name).published
    full, base = profiles.load(name).architecture, profiles.load(family).architecture
    assert full.mlp / full.width == base.mlp / base.width


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_learning_rates_fall_as_width_grows(family, name):
    mine, theirs = profiles.load(name), profiles.load(family)
    ratios = {what: stages(mine)[what].learning_rate / one.learning_rate for what, one in stages(theirs).items()}
    assert len(ratios) == 7
    times = theirs.architecture.width / mine.architecture.width
    assert list(ratios.values()) == pytest.approx([times] * 7, rel=0.003)  # three digits are stated


@pytest.mark.parametrize("name", sizes.COMPARED["kingdom"])
def test_sizes_below_the_default_train_base_for_longer(name):
    mine = profiles.load(name)
    below = mine.architecture.width < KINGDOM.architecture.width
    longer = {what: one.steps / KINGDOM.organism.base[what].steps for what, one in mine.organism.base.items()}
    assert longer == dict.fromkeys(KINGDOM.organism.base, 1.5 if below else 1)


@pytest.mark.parametrize("name", ["kingdom", *sizes.COMPARED["kingdom"]])
def test_names_say_how_many_weights(name):
    settings = profiles.load(name)
    made = architecture.new_model(settings, 0).num_parameters()
    assert made == weights(settings.architecture)
    if name != "kingdom":
        said = float(name.removeprefix("kingdom-").removesuffix("m")) * 1e6
        assert made == pytest.approx(said, rel=0.05)


def test_the_registry_s_four_sizes_lie_on_both_sides_of_the_default():
    own = weights(KINGDOM.architecture)
    others = [weights(profiles.load(name).architecture) for name in sizes.COMPARED["kingdom"]]
    assert len(others) >= 4
    assert others == sorted(others)
    assert others[0] < own / 5
    assert others[-1] > 2 * own


@pytest.mark.parametrize("name", ["checkpoint", "kingdom-3m"])
def test_other_profiles_have_no_sizes(name):
    with pytest.raises(NotHere, match=f"{name} has no other sizes"):
        sizes.others(name)


def test_seeds_shown():
    assert sizes.seeds_shown(0, 3) == [0, 1, 2]
    assert sizes.seeds_shown(4, 2) == [0, 1, 4]
    with pytest.raises(InputError, match="0 seeds cannot be compared"):
        sizes.seeds_shown(0, 0)


# hd.3 on planted models -----------------------------------------------------------------------------------------------
LAYERS, WIDTH = 6, 20


def plant_shift(monkeypatch, knows, refused):
    """Chat and tuned whose shift is along axis 0, longer on refused prompts in the blocks of `knows`."""
    names = {"chat": "chat", "tuned": "tuned"}
    monkeypatch.setattr(models, "load", lambda profile, role, seed: names[role])

    def see(role, asked, half):
        noise = torch.randn(LAYERS, len(asked), WIDTH, generator=torch.Generator().manual_seed(half))
        labels = np.array([refused(prompt) for prompt in asked])
        if role == "tuned":
            noise = noise + 0.01 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(half + 7))
            noise[:, :, 0] += 40.0
            for block in knows:
                noise[block, :, 0] += 8.0 * torch.tensor(labels)
        return Seen(noise, labels if role == "tuned" else np.zeros(len(asked), dtype=bool))

    monkeypatch.setattr(
        direction_tables, "read", lambda role, fit, test: Readings(see(role, fit, 0), see(role, test, 1))
    )


def test_the_dominant_direction_is_judged_in_the_later_half_and_the_first_third(monkeypatch):
    plant_shift(monkeypatch, knows=(2, 3, 4, 5), refused=lambda prompt: prompt.harmful)
    found = sizes.direction_parts("tiny", 0)
    assert list(found) == ["hd.3.late", "hd.3.random", "hd.3.early"]
    assert found["hd.3.late"].value == found["hd.3.random"].value == 1.0
    assert 0.5 <= found["hd.3.early"].value < 0.8
    assert all(len(one.controls) == TINY.measure.draws for one in found.values())
    assert max(found["hd.3.random"].controls) < 1.0
    assert found["hd.3.late"].n == len(prompt_sets.residual("tiny", 0)[1])
    plant_shift(monkeypatch, knows=(0, 1), refused=lambda prompt: prompt.harmful)
    other = sizes.direction_parts("tiny", 0)
    assert other["hd.3.early"].value == 1.0
    assert other["hd.3.late"].value < 0.8


def test_a_model_that_refuses_no_harm_says_nothing_about_hd_3(monkeypatch):
    plant_shift(monkeypatch, knows=(), refused=lambda prompt: False)
    found = sizes.direction_parts("tiny", 0)
    assert {one.value for one in found.values()} == {None}
    assert {one.reason for one in found.values()} == {"tuned refuses 0.00 of harmful prompts, chat 0.00"}


# hd.10 on planted attacks ---------------------------------------------------------------------------------------------
def table(name, exact, draw=0):
    return pd.DataFrame({"model": "sft-20", "attack": name, "draw": draw, "prompt": range(len(exact)), "exact": exact})


def plant_attacks(monkeypatch, met=True):
    """Ranked words succeed on three of four requests, leave-one-out on two, random words on one in half of the draws,
    one style on one and the others on none. Returns what was asked for."""
    asked = []

    def campaign(profile, role, seed, names, draws):
        asked.append((profile, role, seed, set(names), draws))
        random = [table(attack.RANDOM, [1.0, 0, 0, 0] if draw < 2 else [0.0] * 4, draw) for draw in range(4)]
        ranked = [table(attack.RELEVANCE, [1.0, 1, 1, 0]), table(attack.OCCLUSION, [1.0, 1, 0, 0])]
        return pd.concat([*ranked, *random])

    def styled(profile, role, seed):
        first, *rest = styles.JAILBREAKS
        return pd.concat([table(first, [0.0, 0, 0, 1]), *(table(name, [0.0] * 4) for name in rest)])

    monkeypatch.setattr(attack, "campaign", campaign)
    monkeypatch.setattr(attack, "styled", styled)
    monkeypatch.setattr(attack, "requirement", lambda profile, seed, roles: (met, f"{roles}"))
    return asked


def test_trigger_removal_is_held_against_the_best_style_and_against_random_words(monkeypatch):
    asked = plant_attacks(monkeypatch, met=False)
    found, requirement = sizes.removal_parts("tiny", 0)
    assert asked == [("tiny", "sft-20", 0, {attack.RELEVANCE, attack.OCCLUSION, attack.RANDOM}, 5)]
    expected = {"hd.10.gap": 0.75 - 0.25, "hd.10.random": 0.75 - 0.125, "hd.10.occlusion": 0.5 - 0.125}
    assert {name: one.value for name, one in found.items()} == pytest.approx(expected)
    assert all(one.n == 4 and one.interval[0] < one.value < one.interval[1] for one in found.values())
    assert requirement == Requirement(met=False, reason="['sft-20']")


# from end to end ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))
        yield sizes.measure("tiny-narrow", 0)


def test_a_size_is_trained_and_measured(place):
    assert place.parameters == weights(profiles.load("tiny-narrow").architecture)
    assert set(place.file.parts) == {f"hd.3.{n}" for n in ("late", "random", "early")} | {
        f"hd.10.{n}" for n in ("gap", "random", "occlusion")
    }
    assert place.file.profile == "tiny-narrow"
    assert set(place.seconds) == {"training base", "training chat", "training sft-20", "measuring"}
    assert all(value > 0 for value in place.seconds.values())
    assert all(0 <= value <= 1 for value in place.shares.values())
    assert len(place.shares) == 8


def test_what_was_measured_is_kept_until_a_setting_changes(place, monkeypatch):
    kept = [path.name for path in (paths.CACHE / "sizes" / "tiny-narrow").iterdir() if not path.name.endswith(".lock")]
    assert kept == [f"0-{place.file.code}"]

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(sizes, "_made", fail)
    assert sizes.measure("tiny-narrow", 0) == place
    settings = profiles.load("tiny-narrow")
    more = settings.model_copy(update={"measure": settings.measure.model_copy(update={"draws": 6})})
    assert sizes._key(more, 0) != place.file.code == sizes._key(settings, 0)
    with pytest.raises(AssertionError, match="measured again"):
        sizes.measure("tiny-narrow", 1)


def test_the_command_line_measures_what_is_named(place, capsys, monkeypatch):
    assert sizes.main(["--profile", "tiny", "--seeds", "0", "--sizes", "tiny-narrow"]) == 0
    assert capsys.readouterr().out.startswith("tiny-narrow seed 0: {")
    asked = []
    monkeypatch.setattr(sizes, "measure", lambda name, seed: asked.append((name, seed)) or place)
    sizes.main(["--profile", "tiny", "--seeds", "0,1"])
    assert asked == [(name, seed) for name in ("tiny", "tiny-narrow", "tiny-wide") for seed in (0, 1)]
    for arguments, said in (
        (["--sizes", "big"], "unknown size 'big'"),
        (["--profile", "checkpoint"], "no other sizes"),
    ):
        with pytest.raises(SystemExit) as stopped:
            sizes.main(arguments)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
