"""What a finished run leaves for readers: the published files of the repository, its first page, and HTML pages.

Owns what is copied where and when a link may be written. What stands on the first page is for `readme` and
`page_table` to say; nothing is run here. It imports no tensor library.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from lib import jobs, notebooks, page_table, paths, profiles, storage
from lib.errors import InputError
from lib.jobs import Job
from lib.manifest import publish_times


def _copy(source: Path, target: Path) -> None:
    with storage.replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def publish(wanted: Sequence[Job]) -> None:
    """Copy what finished runs made into the repository: results of every seed, and what readers see of seed 0, last.

    `InputError`, and nothing is replaced, when the first page cannot take the run's ledger.
    """
    from lib import readme  # here, because it brings matplotlib, and most calls publish nothing

    for profile in {job.profile for job in wanted}:  # the page is written last, so what stops it is looked for first
        readme.filled(readme.PAGE.read_text(encoding="utf-8"), storage.read_json(jobs.ledger_file(profile)))
    for job in wanted:
        if job.slot.result.is_file():
            _copy(job.slot.result, paths.result_file(paths.published_results(job.profile, job.seed), job.notebook.name))
    shown = [job for job in wanted if job.seed == 0]
    for job in shown:
        figures = {path.name: path for path in job.slot.figures if path.suffix in (".png", ".svg", ".csv")}
        for name, path in figures.items():
            _copy(path, paths.FIGURES / name)
        for old in paths.FIGURES.glob(f"{job.notebook.name}.*"):
            if old.name not in figures:
                old.unlink()
        _copy(job.slot.executed, paths.NOTEBOOKS / f"{job.notebook.name}.ipynb")
    for profile in {job.profile for job in wanted}:
        publish_times(profile, 0, [job.notebook.name for job in shown])
        _copy(jobs.ledger_file(profile), published_ledger(profile))
        readme.write(storage.read_json(published_ledger(profile)))
    print(f"published {len(wanted)} notebook runs into data/results, figures and notebooks")


def published_ledger(profile: str) -> Path:
    return paths.RESULTS / profile / "ledger.json"


def check_links(options: argparse.Namespace) -> None:
    """Refuse links that cannot be, or that are asked for together with a run."""
    page_table.checked(options.links)
    beside = ("base", "model", "tuned", "only", "start", "param", "html", "publish")
    if any(getattr(options, name) for name in beside):
        raise InputError("--links runs nothing and goes alone: publish, commit, then link to that commit")
    if not profiles.load(options.profile).published:
        raise InputError(f"profile {options.profile!r} is not published (its file says so); leave out --profile")
    if not published_ledger(options.profile).is_file():
        raise InputError("nothing is published yet; ./run_all.sh --publish does it")


def link(profile: str, place: str) -> None:
    """Write nbviewer links to `place` (`OWNER/REPO@COMMIT`) into the first page. That commit must hold what was
    published, so it is never the one that brings these links."""
    from lib import readme  # here, because it brings matplotlib

    readme.write(storage.read_json(published_ledger(profile)), place)
    print(f"README.md links to {place}")


def write_html(wanted: Sequence[Job]) -> None:
    """Every executed notebook of the run as a page of its own, and an index."""
    for seed in sorted({job.seed for job in wanted}):
        mine = [job for job in wanted if job.seed == seed and job.slot.executed.is_file()]
        folder = paths.run_folder(wanted[0].profile, seed) / "html"
        pages = {job.notebook.name: job.notebook.title for job in mine}
        for job in mine:
            storage.write_text(folder / f"{job.notebook.name}.html", notebooks.to_html(job.slot.executed))
        storage.write_text(folder / "index.html", notebooks.html_index(f"{wanted[0].profile}, seed {seed}", pages))
        print(f"HTML: {(folder / 'index.html').relative_to(paths.ROOT).as_posix()}")
