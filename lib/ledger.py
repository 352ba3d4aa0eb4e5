"""The ledger: every claim of both papers judged from results, and the tables in which it is read.

Owns reading result files by seed, `ledger.json` and its display. How one claim is judged is in `claims`; nothing but
results is read here, and nothing is measured.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lib import claims, notebooks, paths, plain_data, provenance, stats, storage
from lib.claims import ClaimVerdict, ResultFile, Row, judge_claim
from lib.errors import InputError
from lib.stats import Verdict

FINAL_SEEDS = 5  # with fewer, a row is provisional
SSAH, HD, OURS = "SSAH", "HD", "ours"
PAPERS = (SSAH, HD, OURS)  # whose a claim is
DECIDED = (Verdict.HOLDS, Verdict.FAILS)


def _result(folders: Sequence[Path], profile: str, seed: int, notebook: str) -> ResultFile | None:
    """The result file of the first folder that has one; `InputError` when it contradicts its place."""
    places = (place for folder in folders for place in (folder / f"seed-{seed}" / "results", folder / f"seed-{seed}"))
    path = next((file for place in places if (file := paths.result_file(place, notebook)).is_file()), None)
    if path is None:
        return None
    result = claims.checked(
        ResultFile, storage.read_json(path), f"{path}, a result to delete and to make again by {notebook},", strict=True
    )
    for field, expected in (("profile", profile), ("seed", seed), ("notebook", notebook)):
        if getattr(result, field) != expected:
            says = f"{field} {getattr(result, field)!r}"
            raise InputError(f"{path} says {says} where {expected!r} belongs; delete it and run {notebook} again")
    return result


def make(profile: str, folders: Sequence[Path], seeds: Sequence[int], *, root: Path = paths.ROOT) -> Row:
    """Every claim judged from the result files of `seeds`, as JSON; nothing but results is read.

    `folders`: `build/<profile>` or `data/results/<profile>`; for each seed and notebook the first that has the file
    counts. A row names `stale_seeds`, made by other code than today's, and is `provisional` with fewer than 5 seeds.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {list(seeds)} are none or not distinct; give each seed once")
    rows, published = [], _published()
    for one in claims.registry().values():
        notebook = provenance.full_name(one.notebook, root)
        files = {seed: _result(folders, profile, seed, notebook) for seed in seeds} if notebook else {}
        runs = {seed: file for seed, file in files.items() if file is not None}
        code = provenance.code_hash(notebook, profile, root) if notebook and runs else None
        stale = sorted(seed for seed, file in runs.items() if file.code != code)
        provisional = bool(one.parts) and len(runs) < FINAL_SEEDS
        row = judge_claim(one, runs, profile) | {"stale_seeds": stale, "provisional": provisional}
        rows.append(row | {"published": published.get(one.id, [])})
    decided = sum(row["verdict"] in DECIDED for owner in rows for row in owner["parts"])
    head = {"profile": profile, "seeds": list(seeds), "provisional": any(row["provisional"] for row in rows)}
    counts = {verdict.value: sum(row["verdict"] == verdict for row in rows) for verdict in ClaimVerdict}
    return head | {"counts": counts, "decided_parts": decided, "rows": rows}


def _published() -> dict[str, list[str]]:
    """Which tables of `data/published` hold the papers' numbers for a claim: claim id -> ["hd_table4: HD Table 4"]."""
    found: dict[str, list[str]] = {}
    for path in sorted(paths.PUBLISHED.glob("*.csv")):
        for claim, source in plain_data.read_table(path)[["claim", "source"]].drop_duplicates().values.tolist():
            found.setdefault(claim, []).append(f"{path.stem}: {source}")
    return found


def write(path: Path, found: Row) -> None:
    """Stable bytes, all or nothing."""
    storage.write_json(path, found)


# --- display ----------------------------------------------------------------------------------------------------------
def shown(profile: str) -> Row:
    """The ledger to show: this checkout's own run if there is one, else the published one."""
    places = [paths.BUILD / profile / "ledger.json", paths.RESULTS / profile / "ledger.json"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"profile {profile!r} has no ledger yet; ./run_all.sh --profile {profile} makes it")
    return storage.read_json(path)


def paper(where: str) -> str:
    """Whose claim it is, by where the registry says it stands: one of `PAPERS`."""
    return next((name for name in (SSAH, HD) if where.startswith(name)), OURS)


def contents(found: Row) -> pd.DataFrame:
    """The notebooks that exist, with their titles and what came of the claims of each."""
    rows = []
    for name in provenance.notebooks():
        mine = [f"{row['id']} {claims.verdict_of(row)}" for row in found["rows"] if row["notebook"] == name[3:]]
        rows.append((name[:2], notebooks.read(name).title, ", ".join(mine)))
    return pd.DataFrame(rows, columns=["notebook", "title", "claims"]).set_index("notebook")


def facts(found: Row, claim_id: str, *, root: Path = paths.ROOT) -> dict[int, dict[str, Any]]:
    """What the notebook of a claim noted beside its parts, by seed, of the seeds that its row rests on.

    From the run's own results, else from the published ones, as the ledger itself.
    """
    row, profile = next(row for row in found["rows"] if row["id"] == claim_id), found["profile"]
    folders = [paths.BUILD / profile, paths.RESULTS / profile]
    name = provenance.full_name(row["notebook"], root)
    files = {seed: _result(folders, profile, seed, name) for seed in row["seeds"]} if name else {}
    return {seed: file.facts for seed, file in files.items() if file is not None}


def _run(found: Row) -> list[Row]:
    return [row for row in found["rows"] if row["verdict"] != ClaimVerdict.NOT_RUN]


def chance(found: Row) -> str:
    """How many of the parts tested may have come out wrongly by chance, in a sentence."""
    verdicts = [part["verdict"] for row in found["rows"] for part in row["parts"]]
    tested, decided = (sum(one in chosen for one in verdicts) for chosen in (tuple(Verdict), DECIDED))
    wrong = min(float(decided), tested * stats.TAIL)
    return (
        f"{tested} parts were tested at 95 %, {100 * stats.TAIL:g} % a side: up to {wrong:.1f} of the {decided} that "
        "are decided can be expected to stand on the wrong side by chance."
    )


def headline(found: Row) -> str:
    """How many claims came out how, over which seeds, and what chance may have done to it."""
    verdicts = [claims.verdict_of(row) for row in found["rows"]]
    counts = {name: verdicts.count(name) for name in (*ClaimVerdict, claims.NO_CRITERION) if name in verdicts}
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    ours = sum(paper(row["where"]) == OURS for row in found["rows"])
    whose = f"{len(verdicts) - ours} of the papers, {ours} of ours"
    seeds = sorted({seed for row in _run(found) for seed in row["seeds"]})
    models = f"seeds {', '.join(map(str, seeds))}" if seeds else "no seed yet"
    return f"{len(verdicts)} claims on {found['profile']} ({whose}), {models}: {words}.{_few(found)} {chance(found)}"


def _few(found: Row) -> str:
    """Which claims rest on few seeds, in a sentence, or nothing."""
    few = [row["id"] for row in found["rows"] if row["provisional"]]
    if len(few) == sum(bool(row["parts"]) for row in found["rows"]):
        return f" Provisional: fewer than {FINAL_SEEDS} seeds."
    return f" Provisional, of fewer than {FINAL_SEEDS} seeds: {', '.join(few)}." if few else ""


def tested(found: Row) -> pd.DataFrame:
    """Claims that were run: verdict, the seeds it rests on, and what stands in the way where it does not hold."""
    rows = []
    for row in _run(found):
        stale = f"stale: seeds {row['stale_seeds']}" if row["stale_seeds"] else ""
        why = "; ".join(part for part in (row["reason"], stale) if part)
        rows.append((row["id"], row["claim"], row["verdict"], len(row["seeds"]), why))
    return pd.DataFrame(rows, columns=["claim", "says", "verdict", "seeds", "why"]).set_index("claim")
