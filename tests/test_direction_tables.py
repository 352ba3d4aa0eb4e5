"""Curves, parts and edits of single directions on planted activations, on untrained models and on a folder of
Hugging Face files; what was planted is known, so is what must come out."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import (
    claims,
    direction_effects,
    direction_tables,
    directions,
    edits,
    models,
    profiles,
    prompt_sets,
    prompts,
    residual,
    second_direction,
    stats,
    tracing,
)  # fmt: skip
from lib.charts import directions as charts
from lib.direction_tables import Readings, Seen
from lib.errors import InputError
from lib.kingdom import architecture
from lib.kingdom.tokenizer import tokenizer
from lib.models import LanguageModel
from lib.prompts import Prompt
from tests import registry, tiny_models

N, D, LAYERS = 300, 20, 4
GROUPS = [[row, row + 1, row + 2] for row in range(0, N, 3)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BASIS = torch.linalg.qr(normal(D, D, seed=99))[0].T
COMMON, VERDICT = BASIS[0], BASIS[1]  # where tuning moves all prompts; where it tells them apart


def seen_pair(seed, gap=(0.0, 0.0, 6.0, 6.0)):
    """Before: noise. After: moved by 20 along COMMON, and by plus or minus gap/2 along VERDICT as the prompt is refused
    or not; noise in the shift is small."""
    refused = np.random.default_rng(seed).permutation(np.arange(N) % 2 == 0)
    sign = torch.tensor(np.where(refused, 0.5, -0.5))[None, :, None]
    before = normal(LAYERS, N, D, seed=seed)
    sizes = torch.tensor(gap, dtype=torch.float64)[:, None, None]
    after = before + 20 * COMMON + sizes * sign * VERDICT + 0.05 * normal(LAYERS, N, D, seed=seed + 1)
    was = refused & (np.arange(N) % 3 > 0)  # before tuning some of those were answered
    return Seen(before, was), Seen(after, refused)


@pytest.fixture(scope="module")
def planted():
    (before_fit, after_fit), (before_test, after_test) = seen_pair(10), seen_pair(20)
    return Readings(before_fit, before_test), Readings(after_fit, after_test)


@pytest.fixture(scope="module")
def blocks(planted):
    before, after = planted
    return direction_tables.estimate(before.fit, after.fit, draws=40, seed=0)


@pytest.fixture(scope="module")
def weights():
    return direction_tables.meaning_weights(GROUPS, 300, seed=0)


# hd.3 -----------------------------------------------------------------------------------------------------------------
def test_uncentred_c1_is_the_common_part_and_c2_what_tells_prompts_apart(blocks):
    for block in blocks[2:]:
        assert directions.cosines(block.single["C1"][None], COMMON)[0] > 0.99
        assert directions.cosines(block.single["C2"][None], VERDICT)[0] > 0.99
        assert directions.cosines(block.single["C1, centred"][None], VERDICT)[0] > 0.99
        assert directions.cosines(block.single["mean shift"][None], COMMON)[0] > 0.99
        assert torch.equal(block.sets["shift"], directions.oriented(block.sets["shift"]))
        assert torch.allclose(block.sets["beside C1"] @ block.single["C1"], torch.zeros(40).double(), atol=1e-7)


def test_held_out_auc_finds_what_was_planted_and_only_there(planted, blocks, weights):
    _, after = planted
    late = residual.later_half(LAYERS)
    sure = stats.scipy.stats.norm.cdf(6 / np.sqrt(2))  # AUC of two unit normals 6 apart
    for name in ("C2", "C1, centred", "difference of means", "probe"):
        values = direction_tables.by_block(blocks, name, after.test)[:, 0]
        assert (values[2:] > sure - 0.02).all(), name
        assert (values[:2] < 0.6).all(), name
    first = direction_tables.mean_auc(blocks, "C1", after.test, late, weights)
    assert first.mean == pytest.approx(direction_tables.by_block(blocks, "C1", after.test)[2:].mean())
    assert first.mean < 0.6
    assert first.lower <= first.mean <= first.upper
    assert first.n == N


def test_intervals_are_over_meanings(planted, blocks):
    """When prompts of one meaning are copies of each other, the interval is as wide as with one prompt a meaning."""
    _, after = planted
    copies = np.repeat(np.arange(0, N, 3), 3)
    twins = Seen(after.test.states[:, copies], after.test.refused[copies])
    alone = Seen(after.test.states[:, ::3], after.test.refused[::3])
    widths = {}
    for name, one, groups in (
        ("together", twins, GROUPS),
        ("ignored", twins, [[i] for i in range(N)]),
        ("one each", alone, [[i] for i in range(N // 3)]),
    ):
        drawn = direction_tables.meaning_weights(groups, 400, seed=1)
        found = direction_tables.mean_auc(blocks, "C1", one, [2], drawn)
        widths[name] = found.upper - found.lower
    assert widths["together"] == pytest.approx(widths["one each"], rel=0.15)
    assert widths["together"] > 1.3 * widths["ignored"]


def test_weights_draw_whole_meanings(weights):
    assert weights.shape == (300, N)
    assert (weights.sum(1) == N).all()  # equal groups: as many prompts as there were
    assert (weights[:, 0::3] == weights[:, 1::3]).all()
    assert weights.mean() == 1
    assert weights.max() > 2


def test_controls_reach_their_theoretical_level(planted, blocks):
    """In a block where nothing was planted, shuffled labels and random directions both score the null's AUC."""
    _, after = planted
    table = direction_tables.control_curves(blocks, after.test, draws=200, seed=0)
    sd = np.sqrt((N + 1) / (12 * (N / 2) ** 2))
    level = 0.5 + sd * np.sqrt(2 / np.pi)
    shuffled = table[table["series"] == "C1, shuffled labels"]
    assert np.allclose(shuffled["auc"], level, atol=0.008)
    nothing = table[table["block"] < 2].groupby("series")["auc"].mean()
    assert (nothing - level).abs().max() < 0.015
    assert (table["lower"] <= table["auc"]).all()
    assert (table["auc"] <= table["upper"]).all()
    there = table[(table["series"] == "random in the span") & (table["block"] >= 2)]
    assert (there["auc"] > level + 0.05).all()  # a span that holds the verdict leaks it to random directions


def test_choosing_on_the_judging_prompts_never_looks_worse(planted, blocks):
    _, after = planted
    table = direction_tables.best_curves(blocks, after).pivot(index="series", columns="block", values="auc")
    for what in ("shift", "activations"):
        name = f"best of 16 of the {what}, chosen on "
        assert (table.loc[name + "the same prompts"] >= table.loc[name + "other prompts"]).all()
        assert (table.loc[name + "the same prompts", :1] > 0.55).all()  # the best of 16 that know nothing
    picks = direction_tables.best_curves(blocks, after).set_index(["series", "block"])["component"]
    chosen = picks["best of 16 of the shift, chosen on other prompts"].to_numpy() - 1
    assert (chosen[2:] == 1).all()
    assert chosen.tolist() == direction_tables.by_block(blocks, "shift", after.fit).argmax(axis=1).tolist()
    judged = direction_tables.by_block(blocks, "shift", after.test)[range(LAYERS), chosen]
    assert np.allclose(table.loc["best of 16 of the shift, chosen on other prompts"], judged)


def test_published_curves_use_the_model_before_tuning_on_its_own_prompts(planted, blocks):
    before, _ = planted
    table = direction_tables.published_curves(blocks, before.fit, blocks).pivot(
        index="series", columns="block", values="accuracy"
    )
    v, x, y = blocks[2].single["C2"], before.fit.states[2], before.fit.refused
    assert table.loc["C2", 2] == directions.published_accuracy(x, v[None], y)[0]
    assert table.loc["C1", 2] == directions.published_accuracy(x, blocks[2].single["C1"][None], y)[0]
    assert table.loc["C1, other sign", 2] == directions.published_accuracy(x, -blocks[2].single["C1"][None], y)[0]
    assert (table.loc["best of N"] >= table.loc[["C1", "C2"]].max()).all()
    assert np.allclose(table.loc["C1, DPO"], table.loc["C1"])
    assert table.loc["probe", 2] == directions.stacked_probe_accuracy(before.fit.states, y)[2]


def test_both_rules_are_shown_with_both_labels(planted, blocks):
    before, after = planted
    table = direction_tables.both_rules(blocks, before, after)
    v = blocks[3].single["C1"][None]
    expected = {
        ("published accuracy, same prompts", "before", "before"): directions.published_accuracy(
            before.fit.states[3], v, before.fit.refused
        ),
        ("published accuracy, same prompts", "before", "tuned"): directions.published_accuracy(
            before.fit.states[3], v, after.fit.refused
        ),
        ("AUC, other prompts", "before", "tuned"): directions.sign_free_auc(
            before.test.states[3], v, after.test.refused
        ),
        ("AUC, other prompts", "tuned", "tuned"): directions.sign_free_auc(after.test.states[3], v, after.test.refused),
    }
    assert len(table) == 5
    for row, value in expected.items():
        assert table.loc[row, 3] == value[0], row


def test_the_gap_behind_the_covariance_score_does_not_grow_with_length(planted, blocks):
    before, _ = planted
    longer = Seen(5 * before.fit.states, before.fit.refused)
    one, other = (direction_tables.covariance_table(blocks, seen) for seen in (before.fit, longer))
    assert np.allclose(other.iloc[0], 5 * one.iloc[0])
    assert np.allclose(other.iloc[2], one.iloc[2])


@pytest.mark.parametrize(
    ("before", "after", "met", "reason"),
    [
        ([0, 0, 0, 0], [1, 1, 0, 0], True, "tuned refuses 1.00 of harmful prompts, chat 0.00"),
        ([1, 1, 0, 0], [1, 1, 0, 0], False, "chat 1.00"),
        ([0, 0, 0, 0], [0, 0, 1, 1], False, "tuned refuses 0.00"),
        ([0, 1, 0, 0], [1, 1, 1, 1], False, "the same decision on every prompt"),
    ],
)
def test_what_makes_the_claims_untestable(before, after, met, reason):
    states = torch.zeros(1, 4, 2)
    first, second = (Seen(states, np.array(refused, dtype=bool)) for refused in (before, after))
    found, why = direction_tables.testable(Readings(first, first), Readings(second, second), [True, True, False, False])
    assert found is met
    assert reason in why


def test_two_equal_models_are_refused():
    before, _ = seen_pair(1)
    with pytest.raises(InputError, match="fewer than two components"):
        direction_tables.estimate(before, before, draws=2, seed=0)


# hd.4 -----------------------------------------------------------------------------------------------------------------
def test_c2_saves_the_whole_log_loss_where_c1_knows_nothing(planted, blocks):
    _, after = planted
    found = second_direction.gains(blocks, after)
    saved = found.second.mean(axis=1)
    assert saved[2:] == pytest.approx(np.log(2), abs=0.05)  # from a coin's loss to nearly none
    assert np.abs(saved[:2]).max() < 0.03
    assert (found.margin[2:].mean(axis=1) > 0.3).all()
    assert np.allclose(found.margin, found.second - found.random.mean(axis=1))
    pair = torch.stack([blocks[3].single["C1"], blocks[3].sets["beside C1"][0]], dim=1)
    fit, test = ((seen.states[3] @ pair).numpy() for seen in (after.fit, after.test))
    alone, both = (
        directions.log_losses(fit[:, :k], after.fit.refused, test[:, :k], after.test.refused) for k in (1, 2)
    )
    assert np.allclose(found.random[3, 0], alone - both)


def test_the_block_is_chosen_on_one_half_and_measured_on_the_other(planted, blocks):
    gains = np.zeros((LAYERS, N))
    chosen, confirm = second_direction.halves(GROUPS, seed=3)
    assert not {row for group in chosen for row in group} & {row for group in confirm for row in group}
    assert len(chosen) == len(confirm) == len(GROUPS) // 2
    gains[2, [row for group in chosen for row in group]] = 1.0  # only the half that chooses likes block 2
    gains[3, [row for group in confirm for row in group]] = 5.0
    found = second_direction.Gains(gains, np.full((LAYERS, 7, N), 0.25))
    part = second_direction.second_part(found, [2, 3], GROUPS, seed=3, resamples=100)
    assert part.block == 2
    assert part.margin.mean == pytest.approx(-0.25)
    assert part.margin.n == N // 2
    assert part.draws == pytest.approx([0.25] * 7)
    curve = second_direction.gain_curves(found, GROUPS, seed=0, resamples=100)
    assert curve[curve["series"] == "C2"]["gain"].tolist() == pytest.approx([0, 0, 0.5, 2.5])


def test_cosines_and_the_probes_interval(planted, blocks):
    before, after = planted
    table = second_direction.cosine_table(blocks).set_index(["first", "second", "block"])["cosine"]
    assert table["C1", "mean shift", 3] > 0.99
    assert table["C1", "probe", 3] < 0.2
    assert table["C2", "probe", 3] > 0.9  # noise is even, so the probe points where classes differ
    again = direction_tables.meaning_weights(GROUPS, 20, seed=0)
    for layers in ([3], [2, 3]):
        part = second_direction.probe_part(blocks, before.fit, after.fit, layers, again)
        assert part.mean == pytest.approx(np.mean([table["C1", "probe", layer] for layer in layers]))
        assert 0 <= part.lower <= part.mean <= part.upper < 0.4
    drawn = second_direction.probe_with_random(blocks)
    assert drawn.shape == (LAYERS, 40)
    assert table["random in the span", "probe", 3] == pytest.approx(drawn[3].mean())


def test_the_probes_interval_decomposes_the_resampled_shift():
    """Half of the prompts move along one axis, the others further along another: a resample of the first half alone
    has the first axis as C1, which is where the probe points."""
    half = torch.arange(N) < N // 2
    refused = np.arange(N) % 2 == 0
    before = Seen(normal(1, N, D), refused)
    labels = torch.tensor(np.where(refused, 3.0, -3.0))[:, None] * VERDICT
    moved = torch.where(half[:, None], VERDICT, 4 * COMMON) + 0.01 * normal(N, D, seed=1)
    base = Seen(before.states + labels, refused)
    after = Seen(base.states + moved, refused)
    blocks = direction_tables.estimate(base, after, draws=3, seed=0)
    only = np.where(half, 2, 0)[None].repeat(5, axis=0)
    part = second_direction.probe_part(blocks, base, after, [0], only)
    assert part.mean < 0.3
    assert part.upper > 0.9


# edits ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def plan(planted, blocks):
    _, after = planted
    benign = ~after.fit.refused
    named = direction_effects.candidates(blocks[3], draws=5) | {"nowhere": torch.zeros(D)}
    return direction_effects.steering(3, named, after.fit, benign)


def test_directions_are_turned_towards_refusal_and_empty_ones_left_out(planted, plan):
    _, after = planted
    x, refused = after.fit.states[3], torch.tensor(after.fit.refused)
    assert set(plan.along) == {*(f"C{i}" for i in range(1, 7)), "probe", "difference of means",
                               *(f"random {i}" for i in range(1, 6))}  # fmt: skip
    for name, v in plan.along.items():
        assert float(v.norm()) == pytest.approx(1)
        assert (x[refused] @ v).mean() > (x[~refused] @ v).mean(), name
    assert plan.length == pytest.approx(float((x[refused].mean(0) - x[~refused].mean(0)).norm()))
    assert plan.target["C1"][3] == pytest.approx(float((x[~refused] @ plan.along["C1"]).mean()))


def test_removal_leaves_every_prompt_at_the_target_and_nothing_else_changed(planted, plan):
    _, after = planted
    states = after.test.states
    for way, wanted in (
        (direction_effects.HERE, plan.target["C1"]),
        (direction_effects.EVERYWHERE, plan.target["C1"]),
        (direction_effects.ZERO, torch.zeros(LAYERS)),
    ):
        found = direction_effects.removal(plan, "C1", way)
        assert sorted(found) == [("resid", i) for i in (range(LAYERS) if way == direction_effects.EVERYWHERE else [3])]
        for (_, layer), change in found.items():
            moved = change(states[layer][None])[0]
            along = plan.along["C1"]
            assert torch.allclose(moved @ along, wanted[layer].double().expand(N), atol=1e-9)
            rest = states[layer] - (states[layer] @ along)[:, None] * along
            assert torch.allclose(moved - (moved @ along)[:, None] * along, rest, atol=1e-9)


def test_doses_have_equal_length_for_every_direction_and_in_total(plan):
    for name in ("C1", "random 2", "difference of means"):
        for everywhere in (False, True):
            found = direction_effects.addition(plan, name, -0.5, everywhere)
            moves = [change(torch.zeros(1, 1, D).double())[0, 0] for change in found.values()]
            assert len(moves) == (LAYERS if everywhere else 1)
            assert torch.allclose(sum(moves), -0.5 * plan.length * plan.along[name])


def test_one_prompt_of_each_meaning_and_only_that_style():
    asked = [
        Prompt(f"{meaning} {style} {kind}", "", kind, style, "heldout", f"{meaning} {kind}")
        for meaning in "abc" for style in ("story", "plain", "plain") for kind in ("harmful", "benign", "exception")
    ]  # fmt: skip
    found = direction_effects.one_each(asked, "plain")
    assert sorted(p.meaning for p in found) == sorted(f"{m} {k}" for m in "abc" for k in ("harmful", "benign"))
    assert {p.style for p in found} == {"plain"}


def test_changes_pair_what_a_direction_knows_with_what_its_removal_does(planted, blocks):
    _, after = planted
    named = {"C1": blocks[3].single["C1"], "C2": blocks[3].single["C2"]}
    rows = [("nothing", "none", 0.9), ("C1", direction_effects.HERE, 0.9), ("C2", direction_effects.HERE, 0.1)]
    removed = pd.DataFrame(
        [{"direction": d, "way": w, "kind": kind, "n": 50, "refused": share if kind == "harmful" else 0.0,
          "exact": 0.0, "wrong": 1 - share} for d, w, share in rows for kind in ("harmful", "benign")]
    )  # fmt: skip
    found = direction_effects.changes(removed, named, after.test, 3).set_index("direction")
    assert found["change"].to_dict() == pytest.approx({"C1": 0.0, "C2": -0.8})
    assert found["auc"]["C2"] > 0.99 > 0.6 > found["auc"]["C1"]
    assert found["lower"]["C2"] == pytest.approx(stats.wilson(5, 50).lower - 0.9)
    shown = direction_effects.removal_table(pd.concat([removed, removed.assign(direction="random 1").iloc[2:4]]))
    assert shown.loc[(direction_effects.HERE, "C2"), ("harmful", "refused")] == pytest.approx(0.1)
    assert (direction_effects.HERE, "random, mean of 1") in shown.index


# models ---------------------------------------------------------------------------------------------------------------
def test_an_untrained_model_gives_reasons_and_finite_tables(checkout):
    """On a model that refuses nothing every step of the notebook still runs, and no part gets a number."""
    profile = profiles.load("tiny")
    loaded = [LanguageModel(name, architecture.new_model(profile, seed).eval(), tokenizer(), "test", ("sorry",))
              for name, seed in (("chat", 0), ("tuned", 1))]  # fmt: skip
    fit, test = prompt_sets.residual("tiny", 0)
    before, after = (direction_tables.read(model, fit, test) for model in loaded)
    met, why = direction_tables.testable(before, after, test.table()["harmful"])
    assert not met
    assert "tuned refuses 0.00 of harmful prompts" in why
    blocks = direction_tables.estimate(before.fit, after.fit, draws=5, seed=0)
    groups = prompts.meanings(test)
    weights = direction_tables.meaning_weights(groups, 50, seed=0)
    again = direction_tables.meaning_weights(prompts.meanings(fit), 5, seed=0)
    first = direction_tables.mean_auc(blocks, "C1", after.test, [1], weights)
    assert (first.mean, first.bounds) == (0.5, None)
    gained = second_direction.gains(blocks, after)
    second = second_direction.second_part(gained, [1], groups, seed=0, resamples=50)
    angle = second_direction.probe_part(blocks, before.fit, after.fit, [1], again)
    assert (second.margin.mean, angle.mean) == (0, 0)
    frames = [
        direction_tables.curve(blocks, "C1", after.test, weights),
        direction_tables.control_curves(blocks, after.test, draws=5, seed=0),
        direction_tables.best_curves(blocks, after),
        direction_tables.published_curves(blocks, before.fit, blocks),
        direction_tables.both_rules(blocks, before, after),
        direction_tables.covariance_table(blocks, before.fit),
        second_direction.gain_curves(gained, groups, seed=0, resamples=50),
        second_direction.cosine_table(blocks),
    ]
    for frame in frames:
        assert np.isfinite(frame.select_dtypes("number").to_numpy()).all()

    results = registry.results(checkout, "dominant_direction")
    results.testable(met, why)
    for part, value in (
        ("hd.3.late", first),
        ("hd.3.early", first),
        ("hd.4.second", second.margin),
        ("hd.4.probe", angle),
    ):
        results.part(part, value.mean, len(test), interval=value)
    results.part("hd.3.random", first.mean, len(test), interval=first, controls=[0.5] * 5)
    shown = claims.verdict_table(results.verdicts())
    assert set(shown["verdict"]) == {"not testable here"}
    assert (shown["value"] == "").all()


def test_edits_along_directions_without_length_are_skipped():
    profile = profiles.load("tiny")
    loaded = [LanguageModel(name, architecture.new_model(profile, seed).eval(), tokenizer(), "test", ("sorry",))
              for name, seed in (("chat", 0), ("tuned", 1))]  # fmt: skip
    fit, test = prompt_sets.residual("tiny", 0)
    before, after = (direction_tables.read(model, fit, test) for model in loaded)
    blocks = direction_tables.estimate(before.fit, after.fit, draws=2, seed=0)
    assert direction_effects.strongest(blocks, "C1", after.fit, [1]) == 1
    named = direction_effects.candidates(blocks[1], draws=2)
    benign = (fit.table()["kind"] == "benign").to_numpy()
    plan = direction_effects.steering(1, named, after.fit, benign)
    assert "probe" in named
    assert "probe" not in plan.along
    asked = direction_effects.one_each(test, "plain")[:6]
    removed = direction_effects.removals(loaded[1], asked, plan)
    assert len(removed) == 2 * (1 + 3 * len(plan.along))
    assert (removed[["refused", "exact", "wrong"]].sum(axis=1).round(9) == 1).all()
    steered = direction_effects.doses(loaded[1], asked, plan, everywhere=True)
    assert len(steered) == 2 * 5 * len(plan.along)
    effects = direction_effects.changes(removed, named, after.test, 1)
    assert np.isfinite(effects.select_dtypes("number").to_numpy()).all()
    charts.causal(effects)
    charts.dose_response({"at every block": steered})
    with pytest.raises(InputError, match="no benign prompt"):
        direction_effects.steering(1, named, after.fit, benign & False)


@pytest.fixture
def folders(tmp_path):
    """Two Llama checkpoints as Hugging Face writes them: a random one, and the same after a step in weight space."""
    words = tiny_models.tokenizer()
    words.chat_template = "{{ bos_token }} {{ messages[0]['content'] }}"
    other = tiny_models.build("llama-gqa", seed=5)
    for name, step in (("before", 0.0), ("after", 0.3)):
        model = tiny_models.build("llama-gqa")
        for mine, target in zip(model.parameters(), other.parameters(), strict=True):
            mine.data.lerp_(target.data, step)
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    return tmp_path


def test_directions_of_a_hugging_face_folder(folders):
    """C1 is numpy's first singular vector of the difference of Hugging Face's own hidden states; labels come from the
    model's own next token, and the difference of means tells them above random directions."""
    before, after = (models.open_checkpoint(str(folders / name)) for name in ("before", "after"))
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(3, 60, size=rng.integers(3, 9))) for _ in range(160)]
    asked = [Prompt(text, "", "benign", "plain", "heldout", str(row // 2)) for row, text in enumerate(texts)]

    def hidden(model):
        states, first = [], []
        for text in texts:
            ids = torch.tensor([model.tokenizer(f"<s> {text}", add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                out = model.hf(input_ids=ids, output_hidden_states=True)
            states.append(torch.stack([h[0, -1] for h in out.hidden_states[1:-1]]))
            first.append(float(out.logits[0, -1, 3] - out.logits[0, -1, 4]))
        return torch.stack(states, dim=1), np.array(first)

    (old, _), (new, margin) = hidden(before), hidden(after)
    labels = margin > np.median(margin)
    read = {model.name: residual.activations(model, asked) for model in (before, after)}
    fit, test = slice(0, 80), slice(80, 160)
    first = [Readings(Seen(s[:, fit], labels[fit]), Seen(s[:, test], labels[test])) for s in read.values()]
    blocks = direction_tables.estimate(first[0].fit, first[1].fit, draws=20, seed=0)
    for layer in range(tiny_models.LAYERS - 1):  # the last hidden state is after the final norm
        vt = np.linalg.svd((new - old)[layer, fit].double().numpy(), full_matrices=False)[2]
        assert abs(blocks[layer].single["C1"].numpy() @ vt[0]) == pytest.approx(1, abs=1e-4)
        assert torch.allclose(read["after"][layer], new[layer], atol=1e-4)
    values = direction_tables.by_block(blocks, "difference of means", first[1].test)[-1, 0]
    random = direction_tables.by_block(blocks, "anywhere", first[1].test)[-1]
    assert values > random.mean()
    gained = second_direction.gains(blocks, first[1])
    groups = prompts.meanings(asked[:80])
    part = second_direction.second_part(gained, residual.later_half(after.layers), groups, seed=0, resamples=60)
    assert np.isfinite(part.margin.mean)
    plan = direction_effects.steering(2, {"C1": blocks[2].single["C1"]}, first[1].fit, np.ones(80, dtype=bool))
    place = ("resid", 2)
    encoding = prompts.encode(after.tokenizer, asked[:4])
    change = direction_effects.removal(plan, "C1", direction_effects.HERE)
    moved = tracing.forward(after.traced, encoding, [place], change, "last").activations[place]
    assert torch.allclose(moved.double() @ plan.along["C1"], plan.target["C1"][2].expand(4), atol=1e-4)
    still = {place: edits.ablate(plan.along["C1"], 0.0, coefficient=0.0)}
    plain = tracing.forward(after.traced, encoding, [place], still, "last").activations[place]
    assert torch.allclose(plain, read["after"][2, :4], atol=1e-5)
