"""Flow tables that close, and what is read off them: planted groups, and the cut search on an untrained model."""

import itertools

import numpy as np
import pandas as pd
import pytest

from lib import organism, profiles, prompt_sets, transfer, unit_scores, unit_stability, unit_tables, units, worlds
from lib.charts import transfer as charts
from lib.errors import InputError
from lib.transfer import ORDER, Draws
from tests import tiny_models


def table(groups, shift=0):
    return pd.DataFrame({"kind": "neuron", "layer": 0, "index": np.arange(len(groups)) + shift, "group": groups})


def random_tables(seed, number=400):
    rng = np.random.default_rng(seed)
    return [table(rng.choice(ORDER, number, p=p)) for p in ([0.2, 0.5, 0.02, 0.28], [0.3, 0.5, 0.05, 0.15])]


def test_flows_count_planted_moves():
    before = table(["scu", "scu", "scu", "ucu", "ru", "ru", "cu"])
    after = table(["cu", "scu", "ru", "ucu", "ru", "cu", "cu"])
    counts = transfer.flow(before, after)
    assert counts.loc["scu"].to_dict() == {"ucu": 0, "cu": 1, "scu": 1, "ru": 1}
    assert counts.loc["ru", "cu"] == 1
    assert transfer.leaving(counts, "scu") == pytest.approx(2 / 3)
    assert transfer.lost(counts) == 0
    assert transfer.lost(transfer.flow(after, before)) == pytest.approx(2 / 4)  # of cu, ucu, cu, cu: to scu and ru


@pytest.mark.parametrize("seed", range(5))
def test_flows_close_exactly(seed):
    before, after = random_tables(seed)
    counts = transfer.flow(before, after.sample(frac=1, random_state=seed))  # order of rows does not matter
    sizes = [one["group"].value_counts().reindex(ORDER, fill_value=0) for one in (before, after)]
    assert counts.sum(axis=1).tolist() == sizes[0].tolist()
    assert counts.sum(axis=0).tolist() == sizes[1].tolist()
    assert counts.to_numpy().sum() == len(before)
    shares = transfer.closed(transfer.mean_shares([counts, counts]))
    assert shares.loc["all, after", "all, before"] == pytest.approx(100)
    same = transfer.flow(before, before)
    assert all(transfer.leaving(same, group) == 0 for group in ORDER)


def test_random_groups_leave_as_chance_says():
    rng = np.random.default_rng(0)
    groups = np.array(["scu"] * 400 + ["cu"] * 3600)
    found = [
        transfer.leaving(transfer.flow(table(rng.permutation(groups)), table(rng.permutation(groups))), "scu")
        for _ in range(30)
    ]
    assert np.mean(found) == pytest.approx(0.9, abs=0.01)


def test_draws_are_paired_in_a_circle_and_never_with_themselves():
    first = [table(["scu", "cu", "ru"]), table(["cu", "scu", "ru"]), table(["cu", "ru", "scu"])]
    draws = Draws(tuple(first), ({},) * 3)
    found = transfer.flows(draws, draws)
    assert [transfer.leaving(one, "scu") for one in found] == [1, 1, 1]
    for counts, (i, j) in zip(found, ((0, 1), (1, 2), (2, 0)), strict=True):
        pd.testing.assert_frame_equal(counts, transfer.flow(first[i], first[j]))
    with pytest.raises(InputError, match="at least two"):
        transfer.flows(Draws(tuple(first[:1]), ({},)), Draws(tuple(first[:1]), ({},)))


def test_before_alignment_there_are_two_groups():
    draws = Draws((table(["scu", "cu", "ru", "ucu"]),), ({"ru": 0.25},))
    assert transfer.unaligned(draws).tables[0]["group"].tolist() == ["ucu", "ucu", "ru", "ucu"]


def test_summary_has_mean_interval_and_draws():
    before, after = random_tables(1)
    found = {"x": [transfer.flow(before, after), transfer.flow(after, before)]}
    row = transfer.summary(found, "leaving").iloc[0]
    assert row["share"] == pytest.approx(np.mean(row["draws"]))
    assert row["lower"] <= row["share"] <= row["upper"]
    assert transfer.summary(found, "lost").iloc[0]["draws"] == [transfer.lost(one) for one in found["x"]]
    with pytest.raises(InputError, match="known: leaving, lost"):
        transfer.summary(found, "gone")


def test_what_training_adds_is_paired_by_draw():
    """Noise that differs much by draw, and a fixed excess over it: the difference is certain."""
    half = table(["scu"] * 10 + ["cu"] * 90)
    leaves = [table(["cu"] * n + ["scu"] * (10 - n) + ["cu"] * 90) for n in (1, 5, 8)]
    more = [table(["cu"] * (n + 1) + ["scu"] * (9 - n) + ["cu"] * 90) for n in (1, 5, 8)]
    noise, found = ([transfer.flow(half, one) for one in tables] for tables in (leaves, more))
    one = transfer.beyond(found, noise, "leaving")
    assert (one.mean, one.lower, one.upper) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(InputError, match="as many of each"):
        transfer.beyond(found, noise[:2], "leaving")


def test_fixed_sizes_lose_to_safety_by_the_way_of_counting_alone():
    """Base against itself with as many redundant units: what is lost is the new safety group and nothing else."""
    rng = np.random.default_rng(0)
    keys = {"kind": "neuron", "layer": 0, "index": np.arange(1000)}
    one = pd.DataFrame({**keys, "safety": rng.normal(size=1000), "utility": rng.normal(size=1000)})
    raw = {name: [one, one] for name in ("base", "chat", "errands", "ledgers", "unreplayed")}
    shares = {"ru": 0.2, "scu": 0.1, "ucu": 0.1}
    table = transfer.sensitivity({("x", "z"): raw, ("y", "raw"): raw}, shares)
    for label in ("x", "y"):
        found = table.loc[label]
        assert found["SCU that leave"].tolist() == [0, 0, 0]
        assert list(found["utility-serving lost"].index) == ["without replay", "with replay", transfer.NONE]
        assert found["utility-serving lost", transfer.NONE] == pytest.approx(0.1 / 0.8)


def test_bad_tables_are_refused_with_the_reason():
    good = table(["scu", "cu"])
    with pytest.raises(InputError, match="no groups"):
        transfer.flow(good.drop(columns="group"), good)
    with pytest.raises(InputError, match="only in the table after"):
        transfer.flow(good, table(["scu", "cu", "ru"]))
    with pytest.raises(InputError, match="only in the table before"):
        transfer.flow(good, table(["scu", "cu"], shift=1).iloc[:1])
    with pytest.raises(InputError, match="groups esu"):
        transfer.flow(good, table(["esu", "cu"]))
    with pytest.raises(InputError, match="names a unit twice"):
        transfer.flow(pd.concat([good, good]), good)
    with pytest.raises(InputError, match="none can leave"):
        transfer.leaving(transfer.flow(good, good), "ru")
    with pytest.raises(InputError, match="unknown group"):
        transfer.leaving(transfer.flow(good, good), "esu")
    with pytest.raises(InputError, match="none can be lost"):
        transfer.lost(transfer.flow(table(["ru"]), table(["ru"])))
    raw = pd.DataFrame({"kind": "neuron", "layer": 0, "index": [0, 1], "safety": [np.nan, 1.0], "utility": 1.0})
    with pytest.raises(InputError, match="not finite"):
        transfer.at_shares([raw], "z", [{"ru": 0.5}])
    with pytest.raises(InputError, match="from 0 to 1"):
        transfer.at_shares([raw.assign(safety=1.0)], "z", [{"ru": 1.5}])
    with pytest.raises(InputError, match="one a draw"):
        transfer.at_shares([raw], "z", [])


def test_search_groups_every_draw_with_its_own_shares():
    model, settings = tiny_models.speaking("llama"), profiles.load("tiny")
    raw = unit_stability.redrawn(model, "tiny", 0, [unit_scores.PAPER], 2)[unit_scores.PAPER]
    practice = unit_tables.practice("tiny", 0)
    found = transfer.searched(model, raw, "z", settings.units.cuts, practice)
    for one, shares in zip(found.tables, found.shares, strict=True):
        sizes = one["group"].value_counts()
        for name, share in shares.items():
            assert sizes[name] == units.count(share, len(one))
    again = transfer.at_shares(raw, "z", found.shares)
    for one, other in zip(found.tables, again.tables, strict=True):
        pd.testing.assert_frame_equal(one, other)
    only_ru = transfer.searched(model, raw, "z", settings.units.cuts, practice, ("ru",))
    assert all(set(shares) == {"ru"} for shares in only_ru.shares)


def test_tax_is_accuracy_lost_of_the_same_prompts():
    asked = unit_tables.heldout("tiny", 0)
    model, other = tiny_models.speaking("llama"), tiny_models.speaking("llama", seed=1)
    before, after = unit_tables.observe(model, asked), unit_tables.observe(other, asked)
    frame = transfer.tax_table(before, {"a": after, "itself": before}, asked, ["add", "skills"])
    expected = before["add"].iloc[0] - after["add"].iloc[0]
    assert frame.query("series == 'a' and skill == 'add'")["tax"].iloc[0] == pytest.approx(expected)
    assert (frame.query("series == 'itself'")["tax"] == 0).all()
    assert (frame["lower"] <= frame["tax"]).all()
    assert (frame["tax"] <= frame["upper"]).all()


def test_published_flows_have_their_sizes():
    from lib import figures

    printed = figures.published("ssah_fig5_6")
    dolly, aligned = (transfer.published(printed[printed["figure"] == f]) for f in ("Fig. 5", "Fig. 6"))
    assert aligned.to_numpy().sum() == pytest.approx(1, abs=0.001)
    assert dolly.to_numpy().sum() == pytest.approx(1, abs=0.002)
    assert transfer.lost(aligned) == pytest.approx((1.14 + 2.8) / 85.09, abs=1e-4)
    assert transfer.leaving(dolly, "scu") == pytest.approx(0.85 / 1.3, abs=1e-4)


def test_the_unreplayed_model_is_chat_without_skills():
    settings = profiles.load("tiny")
    assert organism.parent("chat-unreplayed") == "base"
    (phase,) = worlds.make(settings, 0).phases("chat-unreplayed", ())
    assert phase.stage == settings.organism.chat.model_copy(update={"skill_share": 0.0})
    assert not any(example.prompt.kind == "skill" for example in itertools.islice(phase.stream, 500))
    assert organism.key(settings, "chat-unreplayed", 0) != organism.key(settings, "chat", 0)
    assert "chat-unreplayed" in organism.roles(settings)
    assert any(
        example.prompt.kind == "skill"
        for example in itertools.islice(worlds.make(settings, 0).phases("chat", ())[0].stream, 50)
    )


def test_charts_show_every_flow_and_close():
    before, after = random_tables(3)
    shares = transfer.mean_shares([transfer.flow(before, after)])
    found = transfer.summary({"x": [transfer.flow(before, after)] * 2}, "leaving")
    figure = charts.flows({"Measured": shares}, found, "share", chance=0.9)
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert sum(heights) == pytest.approx(2)
    assert prompt_sets.calibration("tiny", 0, 0) != prompt_sets.calibration("tiny", 0, 1)
