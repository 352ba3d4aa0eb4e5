"""What is generated on the repository's first page, between marks: the ledger in short, and the table of notebooks.
Nothing else of that page is touched."""

from lib import ledger, ledger_tables, page_table, paths, storage
from lib.claims import Row
from lib.errors import InputError

PAGE = paths.ROOT / "README.md"
BEGIN, END = "<!-- ledger: written by ./run_all.sh --publish -->", "<!-- end of ledger -->"
BEGIN_PAGES, END_PAGES = "<!-- notebooks: written by ./run_all.sh --publish -->", "<!-- end of notebooks -->"


def summary(found: Row) -> str:
    """How many claims came out how, by paper, and the three that matter most, as Markdown."""
    table = ledger_tables.counts(found)
    table = table[table["all"] > 0]
    lines = ["| claims | " + " | ".join(table.columns) + " |", "|---" * (1 + len(table.columns)) + "|"]
    lines += [f"| {verdict} | " + " | ".join(map(str, row)) + " |" for verdict, *row in table.itertuples()]
    points = [f"- {sentence}" for sentence in ledger_tables.sentences(found).values()]
    return "\n".join([ledger.headline(found), "", *lines, "", *points])


def filled(page: str, found: Row, place: str | None = None) -> str:
    """The page with this ledger and its notebooks between the marks; `InputError` unless each mark stands there once.

    `place` is the commit that nbviewer is to show, as `OWNER/REPO@COMMIT`; None leaves links as they are, or out.
    """
    table = page_table.text(found, page, place or page_table.place_of(page))
    page = _between(page, BEGIN, summary(found), END)
    return _between(page, BEGIN_PAGES, table, END_PAGES)


def _between(page: str, begin: str, text: str, end: str) -> str:
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise InputError(f"{PAGE.name} must hold {begin} once and {end} once after it; put the marks back")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def write(found: Row, place: str | None = None) -> None:
    """Put what this ledger says on the page; see `filled`."""
    storage.write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), found, place))
