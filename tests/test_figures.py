"""Figures: the same data gives the same bytes, every figure has its data and its words."""

import pandas as pd
import pytest

from lib import figures, paths, tables
from lib.charts import residual as charts
from lib.errors import InputError
from lib.kingdom import styles


@pytest.fixture(autouse=True)
def displayed(tmp_path, monkeypatch):
    """What figures show, in order."""
    seen = []
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setattr(figures, "display", seen.append)
    return seen


def simple(height=1.0):
    figure, axes = figures.canvas(4, 3, columns=1)
    data = pd.DataFrame({"x": [0, 1, 2], "y": [0, height, 0], "series": "a", "lower": -0.1, "upper": 0.1})
    figures.curves(axes[0, 0], data, "x", "y", "series")
    axes[0, 0].legend()
    return figure, data


def test_png_svg_and_data_are_saved_and_the_same_twice(displayed):
    written = []
    for _ in range(2):
        figure, data = simple()
        figures.save(figure, "07_x.hd.2", data, "a line", "tiny", 0)
        folder = paths.run_folder("tiny", 0) / "figures"
        written.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert set(written[0]) == {"07_x.hd.2.png", "07_x.hd.2.svg", "07_x.hd.2.csv"}
    assert written[0] == written[1]
    assert [image.data for image in displayed] == [written[0]["07_x.hd.2.png"]] * 2
    assert b"date" not in written[0]["07_x.hd.2.svg"].lower().split(b"<style")[0].replace(b"metadata", b"")
    figure, data = simple(height=2.0)
    figures.save(figure, "07_x.hd.2", data, "a line", "tiny", 0)
    assert (folder / "07_x.hd.2.png").read_bytes() != written[0]["07_x.hd.2.png"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "07_x.hd.2.csv"), data, check_dtype=False)


def test_alt_text_is_required_and_is_also_the_caption(displayed):
    figure, data = simple()
    caption = figures.save(figure, "07_x.hd.2", data, "a line that rises", "tiny", 0)
    _, metadata = displayed[0]._repr_png_()
    assert metadata["alt"] == "a line that rises"
    assert caption.data == "*a line that rises*"
    with pytest.raises(InputError, match="no alt text"):
        figures.save(figure, "07_x.hd.2", data, " ", "tiny", 0)


def test_published_tables_name_their_sources(tmp_path, monkeypatch):
    for path in paths.PUBLISHED.glob("*.csv"):
        table = figures.published(path.stem)
        assert not table.isna().any().any()
        assert set(table["reliability"]) <= {"printed", "released", "digitised", "read by eye", "derived"}
    with pytest.raises(InputError, match="no published table 'nothing'; there are: hd_fig12, hd_fig2_rank"):
        figures.published("nothing")
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path)
    (tmp_path / "bad.csv").write_text("claim,value\nhd.1,2\n")
    with pytest.raises(InputError, match="lacks the columns reliability, source, version"):
        figures.published("bad")


def test_published_ranks_say_what_the_paper_shows():
    """Spot values of HD Fig. 2 as the fact sheet lists them."""
    table = figures.published("hd_fig2_rank").set_index(["series", "tau", "hidden_state"])["rank"]
    assert table["SSFT", 0.9, 20] == 72
    assert table["SSFT", 0.9, 32] == 4
    assert table["DPO", 0.9, 31] == 143
    assert table["DPO", 0.6, 32] == 4
    assert all(table["SSFT", 0.9, k] == 1 for k in range(12))


def test_depth_is_shared_by_models_of_any_size():
    assert figures.relative_depth([0, 5], 6).tolist() == [pytest.approx(1 / 6), 1.0]
    assert figures.relative_depth([31], 32).tolist() == [1.0]


def test_outcome_bars_stack_to_one_and_draw_the_given_interval():
    rates = pd.DataFrame(
        [("harmful/plain", "refused", 0.7, 0.6, 0.8), ("harmful/plain", "exact", 0.2, 0.1, 0.35),
         ("harmful/plain", "wrong", 0.1, 0.05, 0.2)],
        columns=["cell", "outcome", "share", "lower", "upper"],
    )  # fmt: skip
    _, axes = figures.canvas(4, 3, columns=1)
    figures.outcomes(axes[0, 0], rates, ["harmful/plain"], "chat")
    heights = {bar.get_y(): bar.get_height() for bar in axes[0, 0].patches}
    assert sum(heights.values()) == pytest.approx(1)
    assert heights[0] == pytest.approx(0.2)
    (segment,) = axes[0, 0].collections[0].get_segments()
    assert segment[:, 1].tolist() == pytest.approx([0.1, 0.35])


def test_the_map_has_a_panel_for_each_model_and_colouring():
    points = pd.DataFrame({
        "first": [0.0, 1.0] * 2, "second": [1.0, 2.0] * 2, "kind": ["harmful", "benign"] * 2,
        "style": ["plain", next(iter(styles.JAILBREAKS))] * 2, "outcome": ["refused", "exact"] * 2,
        "model": ["before", "before", "after", "after"],
    })  # fmt: skip
    figure = charts.prompt_map(points, 4, tuple(styles.JAILBREAKS))
    assert len(figure.axes) == 6
    assert all(sum(len(c.get_offsets()) for c in axis.collections) == 2 for axis in figure.axes)
    assert figure.axes[-1].get_xlabel() == "L4-C1"


def test_tables_of_words_are_whole_aligned_left_and_the_same_twice():
    frame = pd.DataFrame({"says": ["word " * 60]}, index=["hd.1"])
    html = [tables.text(frame).to_html() for _ in range(2)]
    assert html[0] == html[1]
    assert "word " * 60 in html[0]
    assert "text-align: left" in html[0]
