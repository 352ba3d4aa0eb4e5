"""Results that another version left, met by a run: of other code they are named stale, of another registry they are
left out by part, of another format they are refused with the file and what to do.

`test_ledger` has the same for `ledger.make` alone, `test_pipeline` the page that runs again when its code changes and
the result that no finished run left.
"""

import json

import pytest

from lib import paths, provenance, storage
from tests import checkouts
from tests.faults import toys

PAGE = "07_residual_space"  # has not run here: its result is another version's
RUN = ("--only", "14")  # a page that needs no model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout in which the page without models has run."""
    tree = checkouts.make(tmp_path_factory.mktemp("versions") / "tree", ["14_published_numbers", PAGE])
    code, out, err = toys.ran(tree, *RUN)
    assert code == 0, out + err
    return tree


@pytest.fixture
def planted(finished):
    """Puts a changed result of the page where that of seed 1 is published; the tree and the file."""
    path = finished / f"data/results/tiny/seed-1/{PAGE}.json"
    right = provenance.code_hash(PAGE, "tiny", finished)

    def plant(change):
        found = storage.read_json(paths.published_results("kingdom", 0) / path.name)
        found |= {"profile": "tiny", "seed": 1, "code": right}
        change(found)
        storage.write_json(path, found)
        return finished, path

    yield plant
    path.unlink(missing_ok=True)


def rows(tree):
    found = json.loads((tree / "build/tiny/ledger.json").read_text())["rows"]
    return [row for row in found if row["notebook"] == PAGE[3:]]


def test_of_other_code_it_is_named_stale_and_of_the_same_it_is_not(planted):
    for code, stale in (("0" * 64, [1]), (None, [])):
        tree, _ = planted(lambda found, code=code: found.update({"code": code} if code else {}))
        assert toys.ran(tree, *RUN)[0] == 0
        assert rows(tree)
        assert all(row["seeds"] == [1] and row["stale_seeds"] == stale for row in rows(tree))


@pytest.mark.slow
def test_of_another_registry_its_parts_are_left_out_by_name(planted):
    tree, _ = planted(lambda found: found.update(parts={"hd.1.of_old": next(iter(found["parts"].values()))}))
    assert toys.ran(tree, *RUN)[0] == 0
    parts = [part for row in rows(tree) for part in row["parts"]]
    assert parts
    for part in parts:
        assert part["verdict"] == "not run"
        assert part["reason"] == "seed 1 left out: not recorded; run the notebook"
        assert part["seeds"] == {}


def newer(found):
    found.update(format=2)


def older(found):
    found.pop("requires")


def another_type(found):
    next(iter(found["parts"].values())).update(value="0.5 (95 %)")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (newer, "format: Extra inputs are not permitted"),
        pytest.param(older, "requires: Field required", marks=pytest.mark.slow),
        pytest.param(another_type, "value: Input should be a valid number", marks=pytest.mark.slow),
    ],
)
def test_of_another_format_it_is_refused_and_the_old_ledger_stays(planted, change, why):
    tree, path = planted(change)
    before = (tree / "build/tiny/ledger.json").read_bytes()
    code, out, err = toys.ran(tree, *RUN)
    assert code == 1, out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert f"{path.relative_to(tree)}, a result to delete and to make again by {PAGE}, cannot be used" in err
    assert why in err
    assert (tree / "build/tiny/ledger.json").read_bytes() == before
    path.unlink()
    assert toys.ran(tree, *RUN)[0] == 0


@pytest.mark.slow
def test_cut_in_the_middle_it_is_refused_too(planted):
    tree, path = planted(lambda found: None)
    path.write_bytes(path.read_bytes()[:200])
    code, _, err = toys.ran(tree, *RUN)
    assert code == 1
    assert f"{path.name} is not valid JSON" in err
    assert "delete it and run again" in err
