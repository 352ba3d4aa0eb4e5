"""Groups of units on planted scores; removal in a running model against weight surgery and plain reasoning."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import behaviour, families, models, prompt_sets, tracing, unit_scores, units
from lib.errors import InputError
from tests import tiny_models

FAMILIES = tiny_models.FAMILIES
KINDS = {"neuron": "neurons", "channel": "attn_z"}


def planted(safety, utility, kind="neuron", layer=0):
    """A table of one kind and layer with these scores."""
    frame = pd.DataFrame({"safety": safety, "utility": utility}, dtype=float)
    return frame.assign(kind=kind, layer=layer, index=range(len(frame)), mean=np.arange(len(frame)) / 10)


def random_table(seed=0, layers=3, neurons=20, channels=8):
    rng = np.random.default_rng(seed)
    parts = [
        planted(rng.gamma(0.5, size=n), rng.gamma(0.5, size=n), kind, layer)
        for layer in range(layers)
        for kind, n in (("neuron", neurons), ("channel", channels))
    ]
    return pd.concat(parts, ignore_index=True)


# slices ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def seen(model, kind, layer):
    encoding = tiny_models.encode(7, 4)
    place = (KINDS[kind], layer)
    return tracing.forward(model.traced, encoding, [place]).activations[place][:, -4:]  # no pads


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_reader_rows_a_unit_is_silent_and_only_those_that_share_them(family, kind):
    before, silenced = tiny_models.speaking(family), tiny_models.speaking(family)
    *readers, _ = families.unit_slices(silenced.hf, kind, 1)
    unit = 21
    with torch.no_grad():
        for name, dim, index in readers:
            silenced.hf.get_parameter(name).select(dim, int(index[unit])).zero_()
    sharing = {unit}
    if (family, kind) == ("llama-gqa", "channel"):
        sharing = {unit, unit + 8 if unit % 16 < 8 else unit - 8}  # two heads of 8 channels share each value head
    one, other = seen(before, kind, 1), seen(silenced, kind, 1)
    assert set((other == 0).all(0).all(0).nonzero().flatten().tolist()) == sharing
    rest = [j for j in range(one.shape[-1]) if j not in sharing]
    torch.testing.assert_close(one[..., rest], other[..., rest])


@pytest.mark.parametrize("kind", KINDS)
def test_slices_cover_every_unit_with_parameters_of_its_block(family, kind):
    model = tiny_models.speaking(family)
    width = {"neuron": 48, "channel": tiny_models.WIDTH}[kind]
    for layer in range(tiny_models.LAYERS):
        slices = families.unit_slices(model.hf, kind, layer)
        assert [dim for _, dim, _ in slices] == [0] * (len(slices) - 1) + [1]
        for name, dim, index in slices:
            weight = model.hf.get_parameter(name)
            assert f".{layer}." in name
            assert len(index) == width
            assert 0 <= int(index.min()) <= int(index.max()) < weight.shape[dim]
    biases = [name for name, _, _ in slices if name.endswith("bias")]
    assert bool(biases) == (family == "gpt-neox")  # what a reader adds by itself belongs to the unit as well


def test_unknown_kinds_and_blocks_are_refused():
    hf = tiny_models.speaking("llama").hf
    with pytest.raises(InputError, match="known: neuron, channel"):
        families.unit_slices(hf, "head", 0)
    with pytest.raises(InputError, match="blocks go from 0 to 2"):
        families.unit_slices(hf, "neuron", 3)


# score ----------------------------------------------------------------------------------------------------------------
def test_normalisations_are_what_their_names_say():
    raw = planted([1, 2, 3, 6], [0, 0, 4, 4])
    score = {name: units.score(raw, name) for name in units.NORMALISATIONS}
    np.testing.assert_allclose(score["z"]["safety"], (np.array([1, 2, 3, 6]) - 3) / np.std([1, 2, 3, 6], ddof=1))
    np.testing.assert_allclose(score["share"]["safety"], np.array([1, 2, 3, 6]) / 12)
    np.testing.assert_allclose(score["rank"]["safety"], [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(score["rank"]["utility"], [0.375, 0.375, 0.875, 0.875])
    np.testing.assert_allclose(score["log_ratio"]["safety"], np.log(np.array([1, 2, 3, 6]) / 3))
    np.testing.assert_allclose(score["log_ratio"]["utility"], np.log([1e-6, 1e-6, 2, 2]))
    pd.testing.assert_frame_equal(score["raw"], raw)


def test_each_kind_and_layer_is_normalised_by_itself():
    table = random_table()
    scaled = table.assign(safety=table["safety"] * (1 + 9 * table["layer"]))
    for name in ("z", "share", "rank", "log_ratio"):
        pd.testing.assert_frame_equal(units.score(table, name), units.score(scaled, name))
    assert not units.score(table, "raw").equals(units.score(scaled, "raw"))


@pytest.mark.parametrize("name", units.NORMALISATIONS)
def test_equal_scores_stay_finite(name):
    for value in (0.0, 2.0):
        score = units.score(planted([value] * 3, [value] * 3), name)
        assert np.isfinite(score[["safety", "utility"]]).all(axis=None)
        assert score["safety"].nunique() == 1


# groups ---------------------------------------------------------------------------------------------------------------
def test_the_four_groups_are_the_papers_in_its_order():
    #                 RU   RU   SCU  UCU  CU   CU
    table = planted([0.1, 0.0, 5.0, 1.0, 3.0, 4.0], [0.0, 0.2, 1.0, 6.0, 3.0, 3.5])
    found = units.groups(table, ru=2 / 6, scu=1 / 6, ucu=1 / 6)["group"].tolist()
    assert found == ["ru", "ru", "scu", "ucu", "cu", "cu"]


def test_redundant_units_are_taken_before_critical_ones():
    """Unit 0 has both the smallest sum and the largest difference."""
    table = planted([1, 2, 9], [0, 4, 9])
    assert units.groups(table, ru=1 / 3, scu=1 / 3)["group"].tolist() == ["ru", "cu", "scu"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.34), st.floats(0, 0.33), st.floats(0, 0.33))
def test_groups_are_a_partition_of_the_asked_sizes(seed, ru, scu, ucu):
    table = units.groups(random_table(seed), ru=ru, scu=scu, ucu=ucu)
    sizes = table["group"].value_counts().to_dict()
    for name, share in {"ru": ru, "scu": scu, "ucu": ucu}.items():
        assert sizes.get(name, 0) == (max(1, round(share * len(table))) if share else 0)
    assert sum(sizes.values()) == len(table) == 84
    total, gap = table["safety"] + table["utility"], table["safety"] - table["utility"]
    of = {name: table["group"] == name for name in units.GROUPS}
    rest = of["scu"] | of["ucu"] | of["cu"]
    if of["ru"].any() and rest.any():
        assert total[of["ru"]].max() <= total[rest].min()
    for more, less in (("scu", "ucu"), ("scu", "cu"), ("cu", "ucu")):
        if of[more].any() and of[less].any():
            assert gap[of[more]].min() >= gap[of[less]].max()


def test_regrouping_replaces_the_groups():
    table = units.groups(random_table(), ru=0.5)
    assert (units.groups(table, scu=0.1)["group"] == "ru").sum() == 0


@pytest.mark.parametrize("shares", [{"ru": -0.1}, {"scu": 1.2}, {"ru": 0.5, "ucu": 0.6}, {"scu": float("nan")}])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(InputError, match="from 0 to 1 and not overlap"):
        units.groups(random_table(), **shares)


def test_top_cu_are_the_complex_units_with_the_largest_safety_score():
    table = units.groups(random_table(), ru=0.2, scu=0.05, ucu=0.1)
    top = units.top_cu(table, 0.06)
    assert len(top) == round(0.06 * len(table))
    left = table.drop(top.index).query("group == 'cu'")
    assert set(top["group"]) == {"cu"}
    assert top["safety"].min() >= left["safety"].max()
    with pytest.raises(InputError, match="complex ones; lower it"):
        units.top_cu(table, 0.9)
    with pytest.raises(InputError, match="no groups yet"):
        units.top_cu(random_table(), 0.06)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (planted([1, float("nan")], [1, 1]), "unit neuron, 0, 1 are not finite"),
        (planted([1, float("inf")], [1, 1]), "not finite"),
        (pd.concat([planted([1], [1])] * 2, ignore_index=True), "twice"),
        (planted([1], [1]).drop(columns="utility"), "lacks utility"),
    ],
)
def test_spoiled_tables_are_refused(table, message):
    for use in (units.score, units.groups):
        with pytest.raises(InputError, match=message):
            use(table)


def test_signed_scores_have_no_shares_and_no_ratios():
    signed = planted([-1, 2], [1, 1])
    for name in ("share", "log_ratio"):
        with pytest.raises(InputError, match="signed; use z, rank or raw"):
            units.score(signed, name)
    assert units.score(signed, "z")["safety"].iloc[0] < 0


# controls -------------------------------------------------------------------------------------------------------------
def test_matched_units_are_as_many_in_every_cell_and_others():
    table = random_table()
    rows = units.groups(table, scu=0.1).query("group == 'scu'")
    drawn = [units.matched(table, rows, [3, draw]) for draw in range(20)]
    for one in drawn:
        pd.testing.assert_series_equal(one.groupby(["kind", "layer"]).size(), rows.groupby(["kind", "layer"]).size())
        assert not set(one.index) & set(rows.index)
        assert not one.index.has_duplicates
    assert len({tuple(sorted(one.index)) for one in drawn}) > 15
    pd.testing.assert_frame_equal(units.matched(table, rows, [3, 0]), drawn[0])


def test_matching_falls_back_on_the_group_only_where_too_few_others_are_left():
    table = planted(range(10), range(10))
    drawn = units.matched(table, table.head(7), 0)
    assert len(drawn) == 7
    assert not drawn.index.has_duplicates
    assert {7, 8, 9} <= set(drawn.index)


def test_controls_are_drawn_from_the_models_own_table():
    with pytest.raises(InputError, match="not in the table"):
        units.matched(planted([1], [1]), planted([1, 2], [1, 2]), 0)


# removal --------------------------------------------------------------------------------------------------------------
def exact(family):
    """In float64, so that what is equal is equal to 1e-6 whatever the size of the logits."""
    model = tiny_models.speaking(family)
    model.hf.double()
    return model


def some(model, share=0.2, seed=0):
    table = unit_scores.table(model)
    return table.assign(mean=np.linspace(-1, 1, len(table))).sample(frac=share, random_state=seed)


def logits(model, edits=None):
    return tracing.forward(model.traced, tiny_models.encode(9, 5, 7), edits=edits, logits="last").logits


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_taking_units_out_of_the_trace_or_of_the_weights_is_the_same(family, how):
    model = exact(family)
    rows = some(model)
    edited, cut = logits(model, units.edits(rows, how)), logits(units.without(model, rows, how))
    torch.testing.assert_close(edited, cut, atol=1e-6, rtol=0)
    assert (edited - logits(model)).abs().max() > 0.5


def test_dropping_the_down_column_is_zeroing_the_gate_and_up_rows(family):
    model = exact(family)
    rows = some(model).query("kind == 'neuron'")
    silent = copy.deepcopy(model.hf)
    with torch.no_grad():
        for layer, part in rows.groupby("layer"):
            *readers, _ = families.unit_slices(silent, "neuron", int(layer))
            for name, _, index in readers:
                silent.get_parameter(name)[index[torch.tensor(part["index"].to_numpy())]] = 0
    other = models.LanguageModel("silent", silent, model.tokenizer, "test")
    torch.testing.assert_close(logits(units.without(model, rows)), logits(other), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["llama", "llama-gqa"])
def test_a_whole_head_is_its_channels(name):
    """Removing all channels of query head 2 is removing that head: zero its share of the attention output by hand."""
    model, plain = exact(name), exact(name)
    rows = unit_scores.table(model).query("kind == 'channel' and layer == 1 and 16 <= index < 24")
    attention = plain.hf.model.layers[1].self_attn

    def drop(_, inputs):
        z = inputs[0].view(*inputs[0].shape[:-1], 4, 8).clone()
        z[..., 2, :] = 0
        return (z.flatten(-2),)

    attention.o_proj.register_forward_pre_hook(drop)
    encoding = tiny_models.encode(6)
    with torch.no_grad():
        expected = plain.hf(**encoding).logits[:, -1]
    found = tracing.forward(model.traced, encoding, edits=units.edits(rows), logits="last").logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    # under GQA, the other head of the group still reads the value rows
    kept = units.without(model, rows).hf.model.layers[1].self_attn.v_proj.weight
    assert torch.equal(kept, plain.hf.model.layers[1].self_attn.v_proj.weight)


def test_flaps_bias_is_mean_replacement_also_where_there_is_a_bias(family):
    model = exact(family)
    rows = some(model).query("layer == 2")
    cut = units.without(model, rows, "mean").hf
    for kind, part in rows.groupby("kind"):
        name = families.unit_slices(model.hf, kind, 2)[-1][0]
        before, after = (hf.get_submodule(name.removesuffix(".weight")) for hf in (model.hf, cut))
        lost = before.weight[:, torch.tensor(part["index"].to_numpy())] @ torch.tensor(part["mean"].to_numpy())
        start = torch.zeros_like(lost) if before.bias is None else before.bias.double()
        torch.testing.assert_close(after.bias.double(), start + lost, atol=1e-9, rtol=0)


def test_removing_nothing_changes_nothing_and_the_model_is_never_touched(family):
    model = exact(family)
    start, before = logits(model), {name: w.clone() for name, w in model.hf.state_dict().items()}
    none = some(model).iloc[:0]
    for how in ("zero", "mean"):
        assert units.edits(none, how) == {}
        assert torch.equal(logits(units.without(model, none, how)), start)
    units.without(model, some(model), "mean")
    assert torch.equal(logits(model), start)
    assert all(torch.equal(w, before[name]) for name, w in model.hf.state_dict().items())


def test_resampling_puts_the_pools_own_columns_in_place(family):
    model = tiny_models.speaking(family)
    width = {"neurons": 48, "attn_z": tiny_models.WIDTH}
    pool = {
        (site, layer): torch.arange(2.0 * n).reshape(2, n)
        for site, n in width.items()
        for layer in range(tiny_models.LAYERS)
    }
    rows = unit_scores.table(model).query("kind == 'neuron' and layer == 1 and index in [40, 3]")
    place = ("neurons", 1)
    edits = units.edits(rows, "resample", pool)
    found = tracing.forward(model.traced, tiny_models.encode(6), [place], edits).activations[place]
    assert found[0, :, 40].tolist() == [88, 40, 88, 40, 88, 40]
    assert found[0, :, 3].tolist() == [51, 3, 51, 3, 51, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: units.edits(rows, "half"), "known: zero, mean, resample"),
        (lambda rows: units.edits(rows, "resample"), "needs a pool"),
        (lambda rows: units.edits(rows, "zero", {}), "uses no pool"),
        (lambda rows: units.edits(rows.drop(columns="mean"), "mean"), "lacks mean"),
        (lambda rows: units.edits(pd.concat([rows, rows])), "twice"),
        (lambda rows: units.without(tiny_models.speaking("llama"), rows, "resample"), "known: zero, mean"),
        (
            lambda rows: units.without(tiny_models.speaking("llama"), rows.assign(layer=rows["layer"] + 3)),
            "no unit .* another shape",
        ),
        (lambda rows: units.check(rows, tiny_models.speaking("llama"), whole=True), "of another model"),
    ],
)
def test_what_cannot_be_removed_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(some(tiny_models.speaking("llama")))


def test_parameters_count_a_shared_value_row_once():
    mha, gqa = tiny_models.speaking("llama"), tiny_models.speaking("llama-gqa")
    table = unit_scores.table(mha)
    neuron, pair = table.query("kind == 'neuron'").head(1), table.query("kind == 'channel' and layer == 0")
    pair = pair[pair["index"].isin([3, 11])]  # under GQA, heads 0 and 1 share their value row
    width = tiny_models.WIDTH
    assert units.parameters(mha, neuron) == 3 * width
    assert units.parameters(mha, pair) == 4 * width
    assert units.parameters(gqa, pair) == 3 * width


# from a folder to behaviour -------------------------------------------------------------------------------------------
def test_a_hugging_face_folder_is_scored_grouped_and_cut(tmp_path):
    made = tiny_models.speaking("llama-gqa")
    made.hf.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    model = replace(models.open_checkpoint(str(tmp_path / "model")), openers=made.openers)
    sets = prompt_sets.calibration("tiny", 0)
    raw = unit_scores.calibrate(model, sets, [unit_scores.PAPER]).raw[unit_scores.PAPER]
    table = units.groups(units.score(raw, "z"), ru=0.148, scu=0.013, ucu=0.133)
    units.check(table, model, whole=True)
    assert table["group"].value_counts().to_dict() == {"cu": 169, "ru": 36, "ucu": 32, "scu": 3}
    asked = list(prompt_sets.behaviour("tiny", 0)["harmful/plain"])
    scu = table[table["group"] == "scu"]
    dense, cut = behaviour.teacher_forced(model, asked), behaviour.teacher_forced(model, asked, units.edits(scu))
    weights = behaviour.teacher_forced(units.without(model, scu), asked)
    assert (dense["nll"] - cut["nll"]).abs().max() > 1e-4
    np.testing.assert_allclose(cut["nll"], weights["nll"], rtol=1e-4)


def test_the_tiny_chat_is_scored_grouped_and_cut():
    chat = models.load("tiny", "chat", 0)
    found = unit_scores.calibrate(chat, prompt_sets.calibration("tiny", 0))
    asked = list(prompt_sets.behaviour("tiny", 0)["harmful/plain"])
    dense = behaviour.teacher_forced(chat, asked)
    for raw in found.raw.values():
        table = units.groups(units.score(raw), ru=0.1, scu=0.1, ucu=0.1)
        cut = behaviour.teacher_forced(chat, asked, units.edits(table[table["group"] == "scu"]))
        assert (dense["nll"] - cut["nll"]).abs().max() > 1e-4
