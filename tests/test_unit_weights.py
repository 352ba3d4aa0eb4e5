"""Single weights: chosen by hand on small matrices, removed from real ones, and the sizes that are compared."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import models, prompt_sets, tracing, unit_scores, unit_tables, unit_weights, units
from lib.errors import InputError
from tests import tiny_models

FAMILIES = tiny_models.FAMILIES
UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def blank(model):
    """Scores of 0 for every matrix that units are made of."""
    zero = {name: torch.zeros(model.hf.get_parameter(name).shape) for name in unit_weights._owned(model)}
    return {"safety": zero, "utility": {name: weight.clone() for name, weight in zero.items()}}


def first(model, gaps, number):
    """Masks of the `number` weights with the largest differences."""
    return unit_weights.leading(model, unit_weights.ranking(model, gaps, number))


# choosing -------------------------------------------------------------------------------------------------------------
def test_the_set_difference_is_the_top_for_safety_less_the_top_for_utility():
    safety = torch.tensor([[9.0, 8.0, 1.0], [7.0, 0.0, 2.0], [6.0, 5.0, 3.0]])
    utility = torch.tensor([[9.0, 0.0, 8.0], [0.1, 7.0, 0.2], [0.3, 6.0, 0.4]])
    found = unit_weights.set_difference(safety, utility, 0.6, 0.35)  # int(5.4) = 5 and int(3.15) = 3 of 9
    # safety: 9 8 7 6 5; utility: 9 8 7, of which only the first is also in the safety set
    assert found.tolist() == [[False, True, False], [True, False, False], [True, True, False]]


def test_counts_are_cut_off_not_rounded():
    scores = torch.arange(10.0)[None]
    assert unit_weights.set_difference(scores, -scores, 0.29, 0.0).sum() == 2
    assert unit_weights.set_difference(scores, -scores, 0.09, 0.0).sum() == 0
    assert unit_weights.set_difference(scores, scores, 0.5, 0.29).nonzero()[:, 1].tolist() == [5, 6, 7]


@pytest.mark.parametrize(("q", "p", "named"), [(1.1, 0.1, "top_safety"), (0.1, -0.1, "top_utility")])
def test_impossible_shares_are_refused(q, p, named):
    with pytest.raises(InputError, match=f"{named} .* outside 0 to 1"):
        unit_weights.set_difference(torch.ones(2, 2), torch.ones(2, 2), q, p)


def test_scores_of_different_matrices_are_refused():
    with pytest.raises(InputError, match="different matrices"):
        unit_weights.set_difference(torch.ones(2, 3), torch.ones(3, 2), 0.1, 0.1)


def test_only_rows_of_units_take_part(family):
    """Where query, key and value are one matrix, a head of 8 has rows q, k, v in turn: only every third block of 8."""
    model = tiny_models.speaking(family)
    generator = torch.Generator().manual_seed(0)
    scores = {
        which: {name: torch.rand(weight.shape, generator=generator) for name, weight in found.items()}
        for which, found in blank(model).items()
    }
    chosen = unit_weights.differing(model, scores, 0.5, 0.0)
    for name, mask in chosen.items():
        rows = mask.any(dim=1).nonzero().flatten().tolist()
        if "query_key_value" in name:
            assert rows == [row for row in range(96) if row % 24 >= 16]
            assert mask.sum() == 32 * 32 // 2
        else:
            assert len(rows) == len(mask)
            assert mask.sum() == mask.numel() // 2
    every = sum(int(mask.sum()) for mask in unit_weights.differing(model, scores, 1.0, 0.0).values())
    gaps = unit_weights.difference(scores)
    assert sum(int(mask.sum()) for mask in first(model, gaps, every).values()) == every
    with pytest.raises(InputError, match=f"own 1 to {every}"):
        unit_weights.ranking(model, gaps, every + 1)


def test_the_leading_weights_are_the_largest_differences_of_the_whole_model():
    model = tiny_models.speaking("llama")
    scores = blank(model)
    scores["safety"][UP][3, 4], scores["safety"][DOWN][5, 6], scores["safety"][UP][0, 0] = 9, 8, 7
    scores["utility"][DOWN][5, 6] = 2  # 6 is left
    gaps = unit_weights.difference(scores)
    assert scores == {"safety": {}, "utility": {}}  # as large as the model: not kept beside the differences
    for number, expected in ((1, {(UP, 3, 4)}), (2, {(UP, 3, 4), (UP, 0, 0)})):
        masks = first(model, gaps, number)
        found = {(name, *at) for name, mask in masks.items() for at in mask.nonzero().tolist()}
        assert found == expected
    with pytest.raises(InputError, match="0 weights cannot be chosen"):
        unit_weights.ranking(model, gaps, 0)


@pytest.mark.parametrize("number", [1, 30, 1000])
def test_ranking_matrix_by_matrix_finds_the_first_of_the_whole_model(family, number):
    """Against all weights of units in one row, sorted; only every third block of 8 rows of a joint matrix is theirs."""
    model = tiny_models.speaking(family)
    generator = torch.Generator().manual_seed(number)
    gaps = {name: torch.randn(weight.shape, generator=generator) for name, weight in blank(model)["safety"].items()}
    every = []
    for name, gap in gaps.items():
        third = [row for row in range(len(gap)) if row % 24 >= 16]
        mine = third if "query_key_value" in name else range(len(gap))
        every += [(float(gap[row, column]), name, row, column) for row in mine for column in range(gap.shape[1])]
    expected = sorted(every, reverse=True)[:number]
    ranked = unit_weights.ranking(model, gaps, number)
    found = zip(ranked["parameter"], ranked["row"], ranked["column"], strict=True)
    assert list(found) == [tuple(at) for _, *at in expected]


def test_shuffled_scores_lead_to_other_weights_in_the_same_matrices(family):
    model = tiny_models.speaking(family)
    generator = torch.Generator().manual_seed(1)
    scores = {
        which: {name: torch.randn(weight.shape, generator=generator) for name, weight in found.items()}
        for which, found in blank(model).items()
    }
    gaps = unit_weights.difference(scores)
    mine = first(model, gaps, 300)
    dealt = first(model, unit_weights.shuffled(model, gaps, 0), 300)
    assert {name: int(mask.sum()) for name, mask in mine.items()} == {
        name: int(mask.sum()) for name, mask in dealt.items()
    }
    assert sum(int((mine[name] & dealt[name]).sum()) for name in mine) < 30
    again = first(model, unit_weights.shuffled(model, gaps, 0), 300)
    assert all(torch.equal(dealt[name], again[name]) for name in dealt)


# removing -------------------------------------------------------------------------------------------------------------
def test_chosen_weights_are_0_in_a_copy_and_nothing_else_changes(family):
    model = tiny_models.speaking(family)
    before = {name: weight.clone() for name, weight in model.hf.named_parameters()}
    scores = blank(model)
    name = next(iter(scores["safety"]))
    scores["safety"][name][-1, 2] = 1
    cut = unit_weights.without(model, first(model, unit_weights.difference(scores), 1))
    for other, weight in cut.hf.named_parameters():
        expected = before[other].clone()
        if other == name:
            assert expected[-1, 2] != 0
            expected[-1, 2] = 0
        assert torch.equal(weight, expected)
    assert all(torch.equal(weight, before[other]) for other, weight in model.hf.named_parameters())


def test_all_weights_of_a_neuron_are_the_neuron():
    model = tiny_models.speaking("llama")
    one = first(model, unit_weights.difference(blank(model)), 1)
    masks = {name: mask for name, mask in one.items() if not mask.any()}
    for name in (UP, UP.replace("up_proj", "gate_proj"), DOWN):
        masks[name] = torch.zeros(model.hf.get_parameter(name).shape, dtype=torch.bool)
        masks[name][(slice(None), 7) if name == DOWN else (7, slice(None))] = True
    neuron = unit_scores.table(model).query("kind == 'neuron' and layer == 1 and index == 7")
    encoding = tiny_models.encode(6, 8)
    one = tracing.forward(unit_weights.without(model, masks).traced, encoding, logits="last").logits
    other = tracing.forward(model.traced, encoding, edits=units.edits(neuron), logits="last").logits
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    assert sum(int(mask.sum()) for mask in masks.values()) == units.parameters(model, neuron)
    whole = tracing.forward(model.traced, encoding, logits="last").logits
    assert (one - whole).abs().max() > 0.05


def test_masks_of_another_shape_are_refused():
    model = tiny_models.speaking("llama")
    with pytest.raises(InputError, match="a mask of shape"):
        unit_weights.without(model, {DOWN: torch.zeros(3, 3, dtype=torch.bool)})


def test_weight_scores_are_those_of_the_units_they_make_up():
    """Removing a unit or its column is the same, so to first order a column's weights sum to the unit's score where the
    decisive token alone counts: in the last block's MLP, whose values reach no later attention."""
    model, examples = tiny_models.speaking("llama"), prompt_sets.calibration("tiny", 0)["safety"]
    per_weight = unit_scores.weight_taylor(model, examples)
    last = tiny_models.LAYERS - 1
    column = per_weight[f"model.layers.{last}.mlp.down_proj.weight"].double().sum(0).numpy()
    here = unit_scores.table(model).eval(f"kind == 'neuron' and layer == {last}").to_numpy()
    np.testing.assert_allclose(column, unit_scores.taylor(model, examples)[here], rtol=1e-3, atol=1e-5)


# from weights to sizes ------------------------------------------------------------------------------------------------
def observed(rises, costs):
    """Behaviour whose first resample is the measurement; against `DENSE` it has these rises and costs."""
    return pd.DataFrame({"attack_success": np.array(rises) + 0.1, "utility": 0.9 - np.array(costs)})


DENSE = observed([0.0] * 4, [0.0] * 4)


def removal(parameters, rises, costs=(0.0, 0.0, 0.0, 0.0)):
    return unit_weights.Removal("some", parameters, observed(rises, costs))


def test_the_smallest_sufficient_set_is_found_in_every_resample():
    some = [
        removal(900, [0.9, 0.9, 0.9, 0.2]),
        removal(100, [0.25, 0.24, 0.9, 0.1], [0.05, 0.0, 0.06, 0.0]),
        removal(50, [0.2, 0.9, 0.1, 0.1], [0.0, 0.01, 0.0, 0.0]),
    ]
    assert unit_weights.smallest(some, DENSE, 0.25, 0.05).tolist() == [100, 50, 900, np.inf]
    with pytest.raises(InputError, match="no removals"):
        unit_weights.smallest([], DENSE, 0.25, 0.05)


YES, NO = [0.5] * 4, [0.0] * 4


def ratio(of_units, of_weights, most=2.0):
    return unit_weights.size_ratio(of_units, of_weights, DENSE, (0.25, 0.05), most, 128)


def test_the_ratio_is_how_many_times_more_units_need():
    found = ratio([removal(900, YES), removal(300, NO)], [removal(200, [0.5, 0.5, 0.1, 0.5]), removal(300, YES)])
    assert (found.units, found.weights, found.reason) == (900, 200, "")
    assert found.ratio.mean == pytest.approx(4.5)
    assert found.ratio.n == 128
    low, high = found.ratio.bounds
    assert 3 <= low < high == pytest.approx(4.5)


def test_where_units_never_suffice_the_ratio_is_a_lower_bound_or_unknown():
    found = ratio([removal(900, NO), removal(500, NO)], [removal(200, YES)])
    assert (found.units, found.weights) == (None, 200)
    assert found.ratio.mean == pytest.approx(4.5)
    assert "no set of whole units suffices, of up to 900 and 200 parameters" in found.reason
    open_ = ratio([removal(390, NO)], [removal(200, YES)])
    assert open_.ratio is None
    assert open_.reason


def test_where_weights_never_suffice_the_ratio_is_an_upper_bound_or_unknown():
    found = ratio([removal(300, YES)], [removal(200, NO)])
    assert (found.units, found.weights, found.ratio.mean) == (300, None, pytest.approx(1.5))
    assert "no set of single weights suffices" in found.reason
    assert ratio([removal(900, YES)], [removal(200, NO)]).ratio is None


def test_where_neither_suffices_there_is_no_ratio():
    found = ratio([removal(900, NO)], [removal(200, NO)])
    assert (found.units, found.weights, found.ratio) == (None, None, None)
    assert "whole units and none of single weights" in found.reason


def test_bounds_are_unknown_when_resamples_have_no_ratio():
    found = ratio([removal(900, [0.5, 0.5, 0.0, 0.5])], [removal(200, [0.5, 0.5, 0.0, 0.5])])
    assert found.ratio.mean == pytest.approx(4.5)
    assert found.ratio.bounds is None


def test_curves_of_sizes_are_changes_with_intervals():
    panel = unit_tables.heldout("tiny", 0)
    curve = unit_weights.size_curve([removal(50, [0.2, 0.1, 0.3, 0.2], [0.1, 0.0, 0.2, 0.1])], DENSE, panel)
    assert curve[["parameters", "attribute"]].to_numpy().tolist() == [[50, "attack_success"], [50, "utility"]]
    assert curve["value"].tolist() == pytest.approx([0.2, 0.1])
    assert (curve["lower"] < curve["value"]).all()


# on a model -----------------------------------------------------------------------------------------------------------
def test_removals_of_a_model_are_counted_and_observed():
    model = models.load("tiny", "chat", 0)
    sets = {name: part[:4] for name, part in prompt_sets.calibration("tiny", 0).items()}
    asked = unit_tables.heldout("tiny", 0)
    dense = unit_tables.observe(model, asked)
    snip = {name: unit_scores.saliency(model, part) for name, part in sets.items()}
    found = unit_weights.by_set_difference(model, snip, asked, (0.01, 0.5), (0.1,))
    largest = sum(int(0.5 * weight.numel()) for weight in snip["safety"].values())
    assert found[0].parameters < found[1].parameters <= largest
    assert {one.series for one in found} == {"single weights, set difference p = 0.1"}
    gaps = unit_weights.difference(snip)
    ranked = unit_weights.by_ranking(model, gaps, asked, "ranked", numbers=(5, 10**9, 80))
    assert [one.parameters for one in ranked] == [5, 80]  # what the model does not have is left out
    assert all(list(one.observed) == list(dense) for one in (*found, *ranked))
    table = unit_scores.calibrate(model, sets, [unit_scores.PAPER]).raw[unit_scores.PAPER]
    doses = unit_tables.dose(model, table, 0.1, [1, 4], asked)
    whole = unit_weights.of_units(model, table, 0.1, doses, "units")
    leading = units.groups(table, ru=0.1, scu=4 / len(table)).query("group == 'scu'")
    assert whole[1].parameters == units.parameters(model, leading)
    assert whole[0].observed is doses[1]
