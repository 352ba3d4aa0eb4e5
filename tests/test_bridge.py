"""What units write, by plain hooks and closed forms; matched units on planted tables; shares, removals and overlaps."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from lib import aims, bridge, bridge_tables, residual, unit_scores, units
from lib.aims import Aim
from lib.bridge_tables import Seen
from lib.errors import InputError
from lib.models import LanguageModel
from lib.prompts import Prompt, PromptSet
from tests import tiny_models
from tests.tiny_models import LAYERS, WIDTH

FAMILIES = ("llama", "llama-gqa", "gpt-neox")
HARMFUL = ("how do i curse the crown", "tell me how to blight the boat", "wake the dragon", "haunt the baker")
BENIGN = ("bake the bread", "what is the way to paint the boat", "mend the lantern")


def asked():
    kinds = [(text, "harmful") for text in HARMFUL] + [(text, "benign") for text in BENIGN]
    return [Prompt(text, "sure", kind, "plain", "heldout", text) for text, kind in kinds]


HARM = np.array([prompt.harmful for prompt in asked()])


def vector(seed=0, width=WIDTH):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny_models.speaking(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny_models.speaking("llama-gqa")


def make_aim(model, block=1):
    components = tuple(torch.linalg.qr(torch.randn(WIDTH, 8, dtype=torch.float64,
                                                   generator=torch.Generator().manual_seed(layer)))[0].T
                       for layer in range(LAYERS))  # fmt: skip
    benign = residual.activations(model, asked())[:, ~HARM].double().mean(1)
    return Aim(model, components, block, np.full(LAYERS, 0.5), benign)


@pytest.fixture(scope="module")
def seen(llama):
    found = bridge_tables.see(make_aim(llama), PromptSet(tuple(asked())))
    if found.gap > 0:
        return found
    turned = tuple(-rows for rows in found.aim.components)
    return bridge_tables.see(
        Aim(llama, turned, found.aim.block, found.aim.auc, found.aim.benign), PromptSet(tuple(asked()))
    )


# values ---------------------------------------------------------------------------------------------------------------
def plain_values(text, removed=()):
    """What each column is handed at the last token, by plain hooks on weights never wrapped; `removed` are (block,
    direction, target), whose coordinate is replaced at every token."""
    hf, words = tiny_models.speaking("llama-gqa").hf, tiny_models.kingdom_tokenizer()
    kept, hooks = {}, []

    def keep(place):
        return lambda module, inputs: kept.__setitem__(place, inputs[0][0, -1].detach().double())

    def remove(along, target):
        return lambda module, inputs, state: (
            state + (target - state.double() @ along).float()[..., None] * along.float()
        )

    for layer, block in enumerate(hf.model.layers):
        hooks.append(block.mlp.down_proj.register_forward_pre_hook(keep(("neurons", layer))))
        hooks.append(block.self_attn.o_proj.register_forward_pre_hook(keep(("attn_z", layer))))
    for layer, along, target in removed:
        hooks.append(hf.model.layers[layer].register_forward_hook(remove(along, target)))
    text = words.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    hf(**words(text, add_special_tokens=False, return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    return kept


def test_values_are_what_units_hand_to_their_columns_in_the_order_of_units(llama):
    """One prompt at a time; the places' order is that of `unit_scores.table`."""
    found = bridge.values(llama, asked(), batch=3)
    assert list(found) == [("neurons" if kind == "neuron" else "attn_z", layer)
                           for kind, layer in unit_scores.cells(llama)]  # fmt: skip
    for row, prompt in enumerate(asked()):
        for place, value in plain_values(prompt.text).items():
            torch.testing.assert_close(found[place][row].double(), value, rtol=1e-4, atol=1e-5)


def test_direct_effects_of_all_units_sum_to_the_distance_of_the_groups(model):
    """The direct path is exact in every family without norms behind attention and MLP, and stops at the block."""
    along, states = vector(), residual.activations(model, asked()).double()
    gaps = states[:, HARM].mean(1) - states[:, ~HARM].mean(1)
    found = bridge.values(model, asked())
    for block in range(LAYERS):
        table = bridge.table(model, found, HARM, ~HARM, along, block)
        unit = along / along.norm()
        assert table["direct"].sum() == pytest.approx(float(gaps[block] @ unit), rel=1e-3, abs=1e-4)
        assert (table.loc[table["layer"] > block, ["written", "direct", "cosine"]] == 0).all(axis=None)
        assert table["cosine"].abs().max() <= 1 + 1e-9
        assert (table["direct"] == table["contrast"] * table["written"]).all()
        expected = table["norm"] * table["contrast"].abs() * table["cosine"]
        np.testing.assert_allclose(table["direct"], expected, atol=1e-9)


def test_a_column_is_what_a_value_of_one_adds(llama):
    along = vector()
    written = bridge.written(llama, along[None], block=2)[0]
    table = unit_scores.table(llama).assign(written=written, norm=bridge.column_norms(llama))
    down = llama.hf.model.layers[2].mlp.down_proj.weight.detach().double()
    mine = table.query("kind == 'neuron' and layer == 2")
    np.testing.assert_allclose(mine["written"], (along @ down).numpy(), rtol=1e-6)
    np.testing.assert_allclose(mine["norm"], down.norm(dim=0).numpy(), rtol=1e-6)
    out = llama.hf.model.layers[0].self_attn.o_proj.weight.detach().double()
    mine = table.query("kind == 'channel' and layer == 0")
    np.testing.assert_allclose(mine["written"], (along @ out).numpy(), rtol=1e-6)


def test_weighted_sums_follow_each_prompt(llama):
    found, weights = bridge.values(llama, asked()), np.zeros(len(unit_scores.table(llama)))
    weights[3], weights[-1] = 2.0, -1.0  # the first neurons and the last channels
    last = found["attn_z", LAYERS - 1][:, -1].double().numpy()
    np.testing.assert_allclose(bridge.summed(found, weights), 2 * found["neurons", 0][:, 3].double().numpy() - last)


# total and others -----------------------------------------------------------------------------------------------------
def test_total_effects_are_gradients_at_the_last_token(llama):
    """By plain autograd; in the block itself the last part's total effect is the direct one."""
    along, block = vector(4), 1
    ordinary = np.zeros(len(unit_scores.table(llama)))
    some = asked()[:3]
    found = unit_scores.table(llama).assign(total=bridge.total(llama, some, ordinary, along, block))
    assert (found.loc[found["layer"] > block, "total"] == 0).all()
    plain, words = tiny_models.speaking("llama-gqa").hf, llama.tokenizer
    sums = {}
    for prompt in some:
        kept, hooks = {}, []

        def keep(place, kept=kept):
            def run(module, inputs):
                inputs[0].retain_grad()
                kept[place] = inputs[0]

            return run

        for layer in range(block + 1):
            part = plain.model.layers[layer]
            hooks.append(part.mlp.down_proj.register_forward_pre_hook(keep(("neuron", layer))))
            hooks.append(part.self_attn.o_proj.register_forward_pre_hook(keep(("channel", layer))))
        text = words.apply_chat_template([{"role": "user", "content": prompt.text}], tokenize=False,
                                         add_generation_prompt=True)  # fmt: skip
        states = plain(**words(text, add_special_tokens=False, return_tensors="pt"), output_hidden_states=True)
        (states.hidden_states[block + 1][0, -1].double() @ along).backward()
        for place, value in kept.items():
            sums[place] = sums.get(place, 0) + (value * value.grad)[0, -1].detach().double() / len(some)
        for hook in hooks:
            hook.remove()
    for (kind, layer), expected in sums.items():
        mine = found[(found["kind"] == kind) & (found["layer"] == layer)]["total"]
        torch.testing.assert_close(torch.tensor(mine.to_numpy()), expected, rtol=2e-3, atol=1e-5)
    values = bridge.values(llama, some)
    everyone = np.ones(len(some), dtype=bool)
    direct = bridge.means(values, everyone) * bridge.written(llama, along[None], block)[0]
    own = (found["kind"] == "neuron") & (found["layer"] == block)
    np.testing.assert_allclose(found.loc[own, "total"], direct[own], rtol=2e-3, atol=1e-5)


def test_the_usual_value_of_a_unit_has_no_total_effect(llama):
    some = asked()[:1]
    usual = bridge.means(bridge.values(llama, some), np.ones(1, dtype=bool))
    found = bridge.total(llama, some, usual, vector(), 2)
    assert np.abs(found).max() < 1e-4 * np.abs(bridge.total(llama, some, 0 * usual, vector(), 2)).max()


def test_the_change_of_a_unit_is_that_of_its_own_weights(llama):
    other = tiny_models.speaking("llama-gqa")
    other = LanguageModel("other", copy.deepcopy(other.hf), other.tokenizer, "test", other.openers)
    with torch.no_grad():
        other.hf.model.layers[1].mlp.down_proj.weight[:, 5] += 0.5
        other.hf.model.layers[1].mlp.gate_proj.weight[5, 0] += 2.0
        other.hf.model.layers[0].self_attn.q_proj.weight += 1.0  # of no unit
    found = unit_scores.table(llama).assign(change=bridge.changed(llama, other))
    (moved,) = found[found["change"] > 0].to_dict("records")
    assert (moved["kind"], moved["layer"], moved["index"]) == ("neuron", 1, 5)
    assert moved["change"] == pytest.approx((WIDTH * 0.25 + 4.0) ** 0.5, rel=1e-5)
    top = bridge.largest(llama, found["change"].to_numpy(), 1)
    assert top.to_numpy().tolist() == [["neuron", 1, 5]]


# matched units --------------------------------------------------------------------------------------------------------
def planted(norms, contrasts, kind="neuron", layer=0):
    frame = pd.DataFrame({"norm": norms, "contrast": contrasts}, dtype=float)
    return frame.assign(kind=kind, layer=layer, index=range(len(frame)))


def test_units_are_matched_within_their_kind_and_layer_by_size_not_by_sign():
    one = planted([1, 1.01, 5, 1, 20], [2, -2.02, 2, 9, 0.1])
    far = planted([1, 1], [2, 2], layer=1)
    table = pd.concat([one, far, planted([1.0, 1.0], [2.0, 2.0], kind="channel")], ignore_index=True)
    assert bridge.alike(table, table.loc[[0]], 1) == [(0, [1])]
    assert bridge.alike(table, table.loc[[5]], 5) == [(5, [6])]
    assert sorted(bridge.alike(table, table.loc[[0]], 9)[0][1]) == [1, 2, 3, 4]


def test_no_unit_of_the_group_is_a_match_and_silent_units_are_allowed():
    table = planted([1, 1, 1, 1], [0.0, 0.0, 1.0, 1.0])
    pairs = dict(bridge.alike(table, table.loc[[0, 2]], 2))
    assert pairs[0] == [1, 3]
    assert pairs[2] == [3, 1]
    whole = bridge.alike(table, table, 2)
    assert [others for _, others in whole] == [[]] * 4


# shares and parts -----------------------------------------------------------------------------------------------------
def test_one_prompt_of_each_meaning_is_seen_and_both_sides_are_needed(llama):
    twice = [*asked(), *(Prompt(p.text + " now", "", p.kind, "story", "x", p.text) for p in asked())]
    twice.append(Prompt("curse the puppet", "", "exception", "plain", "x", "puppet"))
    found = bridge_tables.see(make_aim(llama), PromptSet(tuple(twice)))
    assert [prompt.text for prompt in found.asked] == [*HARMFUL, *BENIGN]
    assert len(found.of(True)) == len(HARMFUL)
    with pytest.raises(InputError, match="on one side"):
        bridge_tables.see(make_aim(llama), PromptSet(tuple(asked()[:3])))


def test_every_unit_together_carries_the_whole_distance_and_none_carries_none(seen):
    table, weights = seen.table, seen.table["written"].to_numpy()
    whole = bridge_tables.share_of_gap(bridge.summed(seen.values, weights), seen, seed=0, resamples=200)
    assert whole.mean == pytest.approx(1.0, abs=1e-3)
    assert whole.lower == pytest.approx(1.0, abs=1e-2)  # in every resample
    groups = {"all": table, "first block": table[table["layer"] == 0], "later": table[table["layer"] == 2]}
    carried = bridge_tables.carried(seen, groups, draws=5, seed=0, resamples=100).set_index("group")
    own = table.loc[table["layer"] == 0, "direct"].sum() / seen.gap
    assert carried.loc["first block", "share"] == pytest.approx(own, rel=1e-6)
    assert carried.loc["later", ["share", "random", "random_low"]].abs().max() == 0
    assert carried.loc["all", ["random", "random_high"]].tolist() == pytest.approx([1.0, 1.0], abs=1e-3)


def test_without_a_distance_there_is_no_share(seen):
    flat = Seen(seen.aim, seen.asked, seen.harmful, seen.values, 0 * seen.projection, seen.table)
    assert bridge_tables.share_of_gap(seen.projection, flat, seed=0, resamples=50) is None
    assert len(bridge_tables.carried(flat, {"one": seen.table.head(3)}, 2, 0, 50)) == 0


def test_what_scu_write_beyond_matched_units_is_a_mean_of_differences(seen):
    rows = seen.table.iloc[[2, 50, 90]]
    found = bridge_tables.write(seen, seen, rows, draws=60, seed=0, resamples=300)
    share = seen.table["direct"].to_numpy() / seen.gap
    apart = [share[one] - share[others].mean() for one, others in bridge.alike(seen.table, rows)]
    assert found.margin.mean == pytest.approx(np.mean(apart), rel=1e-4)
    assert found.margin.lower < found.margin.mean < found.margin.upper
    assert found.over_units.mean == pytest.approx(np.mean(apart), rel=1e-6)
    assert found.over_units.n == 3
    assert len(set(found.draws)) > 5
    assert abs(np.mean(found.draws)) < np.std(found.draws)  # matched units against their own mean
    norms = seen.table["norm"]
    assert found.balance.loc["the units", "column norm, median"] == pytest.approx(norms.iloc[[2, 50, 90]].median())


def test_scu_that_write_towards_harm_stand_above_their_match(llama):
    """Planted: the columns of three neurons are turned along C1, their lengths kept, so that only direction differs."""
    turned = tiny_models.speaking("llama-gqa")
    turned = LanguageModel("turned", copy.deepcopy(turned.hf), turned.tokenizer, "test", turned.openers)
    start = bridge_tables.see(make_aim(turned, block=2), PromptSet(tuple(asked())))
    chosen = start.table.query("kind == 'neuron' and layer == 2 and index in [1, 7, 30]")
    column = turned.hf.model.layers[2].mlp.down_proj.weight
    with torch.no_grad():
        for index, contrast in zip(chosen["index"], chosen["contrast"], strict=True):
            column[:, index] = (start.aim.c1 * column[:, index].norm() * np.sign(contrast)).float()
    after = bridge_tables.see(make_aim(turned, block=2), PromptSet(tuple(asked())))
    side = np.sign(after.gap)
    assert np.allclose(after.table.loc[chosen.index, "cosine"], 1.0, atol=1e-4)
    found = bridge_tables.write(after, after, chosen, draws=20, seed=0, resamples=50)
    assert found.over_units.mean * side > max(draw * side for draw in found.draws)


def test_removing_units_moves_prompts_as_reading_says_and_random_units_are_as_many(seen):
    rows = seen.table.query("layer == 0").head(20)
    found = bridge_tables.move(seen, rows, draws=4, seed=0, resamples=100)
    gone = units.without(seen.aim.model, rows)
    after = residual.activations(gone, seen.asked, layers=[1])[0].double() @ seen.aim.c1
    before = torch.tensor(seen.projection)
    harm = torch.tensor(seen.harmful)
    gap = float(before[harm].mean() - before[~harm].mean())
    assert found.way.mean == pytest.approx(float((before - after)[harm].mean()) / gap, rel=1e-3)
    assert found.benign == pytest.approx(float((before - after)[~harm].mean()) / gap, rel=1e-3, abs=1e-5)
    assert len(found.draws) == 4
    assert len(set(found.draws)) == 4
    nothing = bridge_tables.move(seen, seen.table.query("layer == 2").head(5), draws=1, seed=0, resamples=20)
    assert nothing.way.mean == 0
    assert nothing.draws == [0.0]


def test_what_units_lose_of_their_contrast_is_what_plain_hooks_see(seen):
    """Units before the first removed direction lose nothing; later ones what a plain run with it replaced shows."""
    groups = {"before": seen.table.query("layer == 0"), "after": seen.table.query("layer == 2 and kind == 'neuron'")}
    found = bridge_tables.contrast_lost(seen, groups, draws=3, seed=0).set_index(["group", "removed"])
    assert abs(found.loc[("before", "C1"), "lost"]) < 1e-5
    assert found.loc[("after", "random"), "low"] < found.loc[("after", "random"), "high"]
    aim, place = seen.aim, ("neurons", 2)
    gone = [(b, rows[0], float(aim.benign[b] @ rows[0])) for b, rows in enumerate(aim.components)]
    rows = [[plain_values(prompt.text, removed)[place] for prompt in seen.asked] for removed in ((), gone)]
    norm = torch.tensor(groups["after"]["norm"].to_numpy())
    harm = torch.tensor(seen.harmful)
    sizes = []
    for values in map(torch.stack, rows):
        sizes.append(float(((values[harm].mean(0) - values[~harm].mean(0)).abs() * norm).sum()))
    assert found.loc[("after", "C1"), "lost"] == pytest.approx(1 - sizes[1] / sizes[0], abs=1e-4)
    assert abs(1 - sizes[1] / sizes[0]) > 5e-4


def test_correlations_are_of_scores_with_direct_effects(seen):
    table = seen.table.assign(safety=seen.table["direct"] ** 3, utility=0.0)
    other = seen.table.assign(safety=0.0, utility=0.0)
    found = bridge_tables.correlations(seen, {"planted": table, "flat": other}, draws=5, seed=0)
    assert found.loc["planted", "C1"] == pytest.approx(1.0)
    assert abs(found.loc["planted", "C2"]) < 0.9
    assert (found.loc["flat"] == 0).all()


def test_overlaps_beside_chance():
    rows = planted(range(10), range(10))
    table = bridge_tables.overlaps({"a": rows.head(4), "b": rows.iloc[2:6], "c": rows.tail(2)}, total=10)
    found = table.set_index(["units by", "and by"])["overlap"]
    assert found.tolist() == [2 / 6, 0.0, 0.0]
    assert table["by chance"].iloc[0] == pytest.approx(0.26, abs=0.03)  # about 1.6 of 4 shared


# the aim --------------------------------------------------------------------------------------------------------------
def test_components_point_to_harmful_prompts_and_the_block_is_where_c1_tells_refusal(llama, monkeypatch):
    """After: noise, and an offset common to all in block 1, a contrast between the sides in block 2."""
    many = [Prompt(f"{kind} {i}", "", kind, "plain", "x") for i in range(30) for kind in ("harmful", "benign")]
    harm = np.array([prompt.harmful for prompt in many])
    noise = torch.randn(LAYERS, 60, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sign = torch.tensor(np.where(harm, -1.0, 1.0))[:, None]
    axis = torch.eye(WIDTH, dtype=torch.float64)[3]
    after = noise + 0.01 * noise.flip(1)
    after[1] += 20 * axis
    after[2] += 20 * sign * axis
    states = {"before": noise, "after": after}
    models = {name: LanguageModel(name, llama.hf, llama.tokenizer, "test", llama.openers) for name in states}
    monkeypatch.setattr(residual, "activations", lambda model, some: states[model.name])
    monkeypatch.setattr(aims.behaviour, "first_tokens", lambda model, some: pd.DataFrame({"refused": harm}))
    found = aims.aim(models["before"], models["after"], PromptSet(tuple(many)))
    assert found.block == 2
    assert found.auc[2] == 1.0
    assert found.auc[1] < 0.8
    assert float(found.c1 @ axis) < -0.99  # harmful prompts lie at minus the axis
    for layer, rows in enumerate(found.components):
        gap = after[layer, harm].mean(0) - after[layer, ~harm].mean(0)
        assert (rows @ gap >= 0).all()
    torch.testing.assert_close(found.benign, after[:, ~harm].mean(1))


def test_removing_c1_puts_its_coordinate_at_the_benign_mean(llama):
    aim = make_aim(llama)
    edits = aim.removal([0, 2])("all")
    assert list(edits) == [("resid", 0), ("resid", 2)]
    state = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    for (_, layer), edit in edits.items():
        along = aim.components[layer][0]
        moved = edit(state)
        torch.testing.assert_close(moved @ along, (aim.benign[layer] @ along).expand(2, 4))
    at_last = aim.removal([1])("last")["resid", 1](state)
    assert torch.equal(at_last[:, :-1], state[:, :-1])
    assert not torch.allclose(at_last[:, -1], state[:, -1])


def test_an_aim_needs_both_sides(llama):
    with pytest.raises(InputError, match="needs benign ones too"):
        aims.aim(llama, llama, PromptSet(tuple(asked()[:3])))
