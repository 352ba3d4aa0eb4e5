"""The notebooks on the repository's first page: what each asks, what came out, what it takes, where it is read.

Owns that table's text, made of the executed notebooks, the published ledger and the published times; nothing is
measured. What a page asks is prose written in the table itself and kept; a new page starts with its title there. Which
part of the first page the table fills is for `readme` to say.
"""

import re
from collections.abc import Mapping
from typing import Any

from lib import manifest, notebooks, paths
from lib.errors import InputError

Row = dict[str, Any]  # of the ledger, as in `claims`, which brings pandas
_PLACE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})", re.ASCII)
_LINK = re.compile(r"https://nbviewer\.org/github/([\w.-]+/[\w.-]+)/blob/([0-9a-f]{40})/", re.ASCII)
_ASKED = re.compile(r"^\| \[[^\]]*\]\(notebooks/(\w+)\.ipynb\) \| (.*?) \|", re.MULTILINE)
NO_VERDICT = "no verdict"  # a claim without parts: arithmetic, or what no profile here can run


def checked(place: str) -> str:
    """`OWNER/REPO@COMMIT` as it is; `InputError` for anything else."""
    if not _PLACE.fullmatch(place):
        raise InputError(
            f"--links {place!r} is not OWNER/REPO@COMMIT, with all 40 digits of a commit that holds the published "
            "notebooks; `git rev-parse HEAD` prints it"
        )
    return place


def place_of(page: str) -> str | None:
    """Where the links of a page lead, as `OWNER/REPO@COMMIT`; None where it has none."""
    found = _LINK.search(page)
    return f"{found[1]}@{found[2]}" if found else None


def published() -> list[str]:
    """Full names of the notebooks that readers see, in order."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def text(found: Row, page: str, place: str | None) -> str:
    """The table as Markdown: one row a published notebook.

    `found` is the ledger, `page` the first page as it was, whose words on what a notebook asks are kept, and `place`
    the commit that nbviewer is to show (`OWNER/REPO@COMMIT`; None: no such links).
    """
    asked: Mapping[str, str] = dict(_ASKED.findall(page))
    seconds = manifest.published_times(found["profile"])
    columns = ["notebook", "question", "verdicts", "minutes", *(["as published"] if place else [])]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in published():
        question = asked.get(name) or _in_a_cell(notebooks.read(name).title)
        took = f"{seconds[name] / 60:.1f}" if name in seconds else ""
        cells = [f"[{name.replace('_', ' ')}](notebooks/{name}.ipynb)", question, _verdicts(found, name), took]
        lines.append(f"| {' | '.join([*cells, *([_nbviewer(place, name)] if place else [])])} |")
    return "\n".join(lines)


def _in_a_cell(title: str) -> str:
    return title.replace("|", "\\|")


def _verdicts(found: Row, name: str) -> str:
    """'undecided: ssah.2, ssah.3; holds here: ssah.12', verdicts in the order in which they first come."""
    grouped: dict[str, list[str]] = {}
    for row in found["rows"]:
        if row["notebook"] == name[3:]:
            grouped.setdefault(row["verdict"] if row["parts"] else NO_VERDICT, []).append(row["id"])
    return "; ".join(f"{verdict}: {', '.join(ids)}" for verdict, ids in grouped.items())


def _nbviewer(place: str, name: str) -> str:
    repository, _, commit = place.partition("@")
    return f"[nbviewer](https://nbviewer.org/github/{repository}/blob/{commit}/notebooks/{name}.ipynb)"
