"""What is generated on the first page: ledger and notebooks, in step with what is published, and nothing else."""

import pytest

from lib import ledger, manifest, page_table, paths, readme, storage
from lib.claims import ClaimVerdict
from lib.errors import InputError

PUBLISHED = storage.read_json(paths.RESULTS / "kingdom" / "ledger.json")
PLACE = "someone/anatomy-of-refusal@" + 20 * "0a"


def page_with(ledger="stale words", pages="stale rows"):
    return (
        f"before\n{readme.BEGIN}\n{ledger}\n{readme.END}\nbetween\n"
        f"{readme.BEGIN_PAGES}\n{pages}\n{readme.END_PAGES}\nafter\n"
    )


def test_the_first_page_says_what_the_published_ledger_says():
    page = readme.PAGE.read_text(encoding="utf-8")
    assert readme.filled(page, PUBLISHED) == page, "run ./run_all.sh --publish"
    assert ledger.headline(PUBLISHED) in page


def test_the_first_page_says_what_the_shape_check_measured():
    rows = {row["name"]: row for row in storage.read_json(paths.RESULTS / "shape_check.json")["rows"]}
    value = {name: next(row["value"] for full, row in rows.items() if name in full) for name in (
        "in memory", "to a store on disk", "unit scores", "relevance")}  # fmt: skip
    assert (
        f"every block read into memory {value['in memory']:.2f} of plain, to disk {value['to a store on disk']:.2f}; "
        f"unit scores {value['unit scores']:.2f}; relevance {value['relevance']:.2f} of forward and backward"
    ) in readme.PAGE.read_text(encoding="utf-8")


def test_only_what_is_between_the_marks_changes(tmp_path, monkeypatch):
    page = page_with()
    monkeypatch.setattr(readme, "PAGE", tmp_path / "README.md")
    readme.PAGE.write_text(page)
    readme.write(PUBLISHED)
    found = readme.PAGE.read_text()
    assert found.startswith(f"before\n{readme.BEGIN}\n{len(PUBLISHED['rows'])} claims on kingdom")
    assert f"\n{readme.END}\nbetween\n{readme.BEGIN_PAGES}\n| notebook |" in found
    assert found.endswith(f"\n{readme.END_PAGES}\nafter\n")
    assert "stale" not in found
    readme.write(PUBLISHED)
    assert readme.PAGE.read_text() == found


def test_verdicts_that_nobody_got_are_not_listed():
    verdicts = [row["verdict"] if row["parts"] else "no criterion" for row in PUBLISHED["rows"]]
    counts = {name: verdicts.count(name) for name in (*ClaimVerdict, "no criterion") if name in verdicts}
    rows = [line for line in readme.summary(PUBLISHED).splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(counts)
    assert [int(row.rstrip(" |").split(" | ")[-1]) for row in rows] == list(counts.values())


WHOLE = page_with()


@pytest.mark.parametrize("page", ["no marks", f"{readme.BEGIN}", f"{readme.END} {readme.BEGIN}",
                                  f"{readme.BEGIN} {readme.BEGIN} {readme.END}", WHOLE.replace(readme.END_PAGES, ""),
                                  WHOLE.replace(readme.BEGIN_PAGES, ""), WHOLE + readme.END_PAGES])  # fmt: skip
def test_a_page_without_its_marks_is_left_alone(page):
    with pytest.raises(InputError, match="put the marks back"):
        readme.filled(page, PUBLISHED)


# Notebooks ------------------------------------------------------------------------------------------------------------
def rows_of(page):
    """Cells of the table of notebooks, by the name in the first."""
    block = page.partition(readme.BEGIN_PAGES)[2].partition(readme.END_PAGES)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.strip().splitlines()]
    return rows[0], {row[0]: row[1:] for row in rows[2:]}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Two published notebooks and a source that is not published yet, with a time for one of them."""
    for name, title in (("07_residual_space", "Low rank | or not"), ("08_dominant_direction", "D"), ("12_new", "N")):
        source = (
            f'# %% [markdown]\n# # {title}\n# %% tags=["parameters"]\nprofile: str = "k"  # x\nseed: int = 0  # y\n'
        )
        (tmp_path / f"{name}.py").write_text(source)
    for name in ("07_residual_space", "08_dominant_direction"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(manifest, "BENCHMARKS", tmp_path / "benchmarks.json")
    storage.write_json(manifest.BENCHMARKS, [manifest.time_row("kingdom", "08_dominant_direction", 90.0)])
    return tmp_path


LEDGER = {"profile": "kingdom", "rows": [
    {"id": "hd.1", "notebook": "residual_space", "verdict": "undecided", "parts": [{}]},
    {"id": "hd.2", "notebook": "residual_space", "verdict": "holds here", "parts": [{}]},
    {"id": "hd.2.x", "notebook": "residual_space", "verdict": "undecided", "parts": [{}]},
    {"id": "hd.3", "notebook": "dominant_direction", "verdict": "not run", "parts": []},
    {"id": "ssah.1", "notebook": "new", "verdict": "not run", "parts": [{}]},
]}  # fmt: skip


def table(page, place=None):
    return rows_of(f"{readme.BEGIN_PAGES}\n{page_table.text(LEDGER, page, place)}\n{readme.END_PAGES}")


def test_a_row_says_what_came_out_and_how_long_it_took(checkout):
    header, rows = table("")
    assert header == ["notebook", "question", "verdicts", "minutes"]
    assert rows == {
        "[07 residual space](notebooks/07_residual_space.ipynb)":
            ["Low rank \\| or not", "undecided: hd.1, hd.2.x; holds here: hd.2", ""],
        "[08 dominant direction](notebooks/08_dominant_direction.ipynb)": ["D", "no verdict: hd.3", "1.5"],
    }  # fmt: skip


def test_questions_of_the_page_are_kept_and_a_new_page_gets_a_row_by_itself(checkout):
    page = "| [seven](notebooks/07_residual_space.ipynb) | is it low? | old verdict | 9 |"
    (checkout / "12_new.ipynb").write_text("{}")
    _, rows = table(page)
    assert [row[0] for row in rows.values()] == ["is it low?", "D", "N"]
    assert rows["[12 new](notebooks/12_new.ipynb)"] == ["N", "not run: ssah.1", ""]


def test_links_lead_to_one_commit_and_stay_until_there_is_another(checkout):
    header, rows = table("", PLACE)
    assert header[-1] == "as published"
    repository, commit = PLACE.split("@")
    address = f"https://nbviewer.org/github/{repository}/blob/{commit}/notebooks/07_residual_space.ipynb"
    assert rows["[07 residual space](notebooks/07_residual_space.ipynb)"][-1] == f"[nbviewer]({address})"
    linked = readme.filled(page_with(), PUBLISHED, PLACE)
    assert page_table.place_of(linked) == PLACE
    assert readme.filled(linked, PUBLISHED) == linked  # publishing again leaves them
    other = PLACE.replace("0a", "1b")
    assert readme.filled(linked, PUBLISHED, other) == readme.filled(page_with(), PUBLISHED, other)
    assert page_table.place_of(page_with()) is None


@pytest.mark.parametrize("wrong", ["a/b", "a/b@main", "b@" + 40 * "0", "a/b/c@" + 40 * "0", "a/b@" + 39 * "0",
                                   "a/b@" + 40 * "G", "a b/c@" + 40 * "0", "", "a/b@" + 40 * "0" + "\n"])  # fmt: skip
def test_other_places_are_refused(wrong):
    with pytest.raises(InputError, match="is not OWNER/REPO@COMMIT"):
        page_table.checked(wrong)
    assert page_table.checked(PLACE) == PLACE


def test_times_of_other_notebooks_stay_when_some_are_published(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "BENCHMARKS", tmp_path / "benchmarks.json")
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    other = manifest.row("peak memory", [2.0], "GB", 3, "./run_all.sh")
    old = [manifest.time_row("kingdom", "07_a", 10.0), other, manifest.time_row("kingdom", "08_b", 20.0)]
    storage.write_json(manifest.BENCHMARKS, old)
    ran = {"08_b": {"seconds": 30.0, "status": "done"}, "09_c": {"seconds": 40.0, "status": "done"},
           "10_d": {"seconds": 50.0, "status": "failed"}}  # fmt: skip
    storage.write_json(tmp_path / "kingdom/seed-0/manifest.json", {"notebooks": ran})
    manifest.publish_times("kingdom", 0, ["08_b", "09_c", "10_d"])
    assert storage.read_json(manifest.BENCHMARKS)[:2] == old[:2]
    assert manifest.published_times("kingdom") == {"07_a": 10.0, "08_b": 30.0, "09_c": 40.0}
    assert manifest.published_times("tiny") == {}
