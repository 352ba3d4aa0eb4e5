"""The ledger's summary on the first page: in step with what is published, and careful with the rest of the page."""

import pytest

from lib import ledger, paths, readme, storage
from lib.claims import ClaimVerdict
from lib.errors import InputError

PUBLISHED = storage.read_json(paths.RESULTS / "kingdom" / "ledger.json")


def test_the_first_page_says_what_the_published_ledger_says():
    page = readme.PAGE.read_text(encoding="utf-8")
    assert readme.filled(page, PUBLISHED) == page, "run ./run_all.sh --publish"
    assert ledger.headline(PUBLISHED) in page


def test_only_what_is_between_the_marks_changes(tmp_path, monkeypatch):
    page = f"before\n{readme.BEGIN}\nstale words\n{readme.END}\nafter\n"
    monkeypatch.setattr(readme, "PAGE", tmp_path / "README.md")
    readme.PAGE.write_text(page)
    readme.write(PUBLISHED)
    found = readme.PAGE.read_text()
    assert found.startswith(f"before\n{readme.BEGIN}\n{len(PUBLISHED['rows'])} claims on kingdom")
    assert found.endswith(f"\n{readme.END}\nafter\n")
    assert "stale words" not in found
    readme.write(PUBLISHED)
    assert readme.PAGE.read_text() == found


def test_verdicts_that_nobody_got_are_not_listed():
    verdicts = [row["verdict"] if row["parts"] else "no criterion" for row in PUBLISHED["rows"]]
    counts = {name: verdicts.count(name) for name in (*ClaimVerdict, "no criterion") if name in verdicts}
    rows = [line for line in readme.summary(PUBLISHED).splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(counts)
    assert [int(row.rstrip(" |").split(" | ")[-1]) for row in rows] == list(counts.values())


@pytest.mark.parametrize("page", ["no marks", f"{readme.BEGIN}", f"{readme.END} {readme.BEGIN}",
                                  f"{readme.BEGIN} {readme.BEGIN} {readme.END}"])  # fmt: skip
def test_a_page_without_its_marks_is_left_alone(page):
    with pytest.raises(InputError, match="put the marks back"):
        readme.filled(page, PUBLISHED)
