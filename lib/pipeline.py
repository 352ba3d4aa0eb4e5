"""The command line: `./run_all.sh` is `python -m lib.pipeline`.

Owns the options, what is shown before and after a run, and that one run at a time works in a checkout. The tasks
themselves are in `dodo`, what readers get of them in `publishing`. It imports no tensor library, so a run with nothing
to do takes a second or two.
"""

import argparse
import contextlib
import errno
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lib import cpus, dodo, notebooks, paths, profiles, provenance, publishing, run_profiles, storage, workers
from lib.errors import InputError, unknown
from lib.execute import Slot, quiet_warnings
from lib.jobs import Job
from lib.manifest import MODELS, expected
from lib.notebooks import Notebook, Value
from lib.profiles import Checkpoint, Profile

ABOUT_RUNNER = """\
environment variable RUNNER: a command put before that of every models and notebook job, split into words like a shell's
but run without one, such as RUNNER="srun -n1 -c4 --gres=gpu:1" with --jobs 10 on a SLURM cluster. The checkout and its
environment must be on a file system that the nodes share, under the same path. -n1 matters inside an allocation."""
CALLED_FROM = "CALLED_FROM"  # where the user is: run_all.sh works in the checkout, and models may be named from there
MOST_SEEDS = 1000
RUN_BYTES = 400e6  # what the models, activations and outputs of one profile and seed may take, generously


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run_all.sh", description="Train models, run notebooks, judge the claims.", epilog=ABOUT_RUNNER
    )
    add = parser.add_argument
    add("--profile", default="kingdom", help="which model family, a file of data/profiles (default: kingdom)")
    for name, text in (
        ("--base", "your own models, with --profile checkpoint: the one before alignment, a folder or id[@revision]"),
        ("--model", "the aligned one, a folder or id[@revision]; needs --base"),
        ("--tuned", "the same with further safety tuning, where you have one (else it is tuned here)"),
    ):
        add(name, metavar="MODEL", help=text)
    add("--seed", "--seeds", dest="seeds", default="0", metavar="SEEDS", help="0, 0-4 or 0,2,5 (default: 0)")
    add("--only", action="append", default=[], metavar="NOTEBOOK", help="number or name; repeatable, or a comma list")
    add("--from", dest="start", metavar="NOTEBOOK", help="leave out the notebooks before this one")
    add("--param", action="append", default=[], metavar="NAME=VALUE", help="a notebook's parameter; repeatable")
    add("--jobs", metavar="N", help="notebooks at once (default: one a CPU for models trained here, otherwise 1)")
    add("--html", action="store_true", help="also write the executed notebooks as HTML that needs no network")
    add("--publish", action="store_true", help="then copy notebooks, figures, results and ledger into the repository")
    other = parser.add_mutually_exclusive_group()
    for name, text in (
        ("--list", "show the notebooks and whether they are up to date; those on request run only with --only"),
        ("--dry-run", "show what would run, why, and what it would take"),
        ("--clean", "delete what this profile and these seeds left in build/ (trained models stay in .cache/)"),
        ("--lab", "open JupyterLab in this environment"),
        ("--bench", "measure what things cost, after a full run of kingdom seed 0 from nothing; takes ten minutes"),
    ):
        other.add_argument(name, action="store_true", help=text)
    about = "let README.md link to what that commit holds, on nbviewer; runs nothing"
    other.add_argument("--links", metavar="OWNER/REPO@COMMIT", help=about)
    return parser


# What was asked for ---------------------------------------------------------------------------------------------------
def parse_seeds(text: str) -> list[int]:
    """`0`, `0-4` and `0,2,5`, in any mixture, as ascending numbers."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip())
        chosen = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not chosen:
            raise InputError(f"seeds {text!r} are not valid; give whole numbers such as 0, 0-4 or 0,2,5")
        if len(chosen) > MOST_SEEDS:
            raise InputError(f"seeds {text!r} are {len(chosen)}; give at most {MOST_SEEDS} at once")
        seeds.update(chosen)
    return sorted(seeds)


def parallel(text: str | None, profile: Profile) -> int:
    """How many notebooks at once: what `--jobs` says, or as many one-thread processes as there are CPUs and memory for.

    By default one where a runner gives each its CPUs, and where models may be large.
    """
    if text is None:
        return 1 if workers.runner() or isinstance(profile, Checkpoint) else cpus.processes()
    if not re.fullmatch(r"[1-9]\d{0,2}", text):
        raise InputError(f"--jobs {text!r} is not valid; give a whole number from 1 to 999")
    return int(text)


def _chosen(options: argparse.Namespace) -> list[Notebook]:
    names = provenance.notebooks()
    if not names:
        raise InputError("there are no notebooks (notebooks/NN_name.py); restore them from git")
    tokens = [token.strip() for text in options.only for token in text.split(",")]
    only = {notebooks.find(token) for token in tokens}
    start = notebooks.find(options.start) if options.start is not None else names[0]
    chosen = [notebooks.read(name) for name in names if name in (only or names) and name >= start]
    if not chosen:
        raise InputError(f"--only {','.join(tokens)} leaves nothing from {start} on; drop one of the two options")
    return [book for book in chosen if only or options.list or not book.on_request]


def _given(text: str, chosen: Sequence[Notebook]) -> tuple[str, dict[str, Value]]:
    """A `--param` as its name and its typed value for every chosen notebook that has it."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--param {text!r} is not NAME=VALUE")
    if name in ("profile", "seed"):
        raise InputError(f"give the {name} as --{name} {value}")
    declared = {book.name: parameter for book in chosen if (parameter := book.parameter(name))}
    if not declared:
        known = {p.name for book in chosen for p in book.parameters} - {"profile", "seed"}
        raise unknown("parameter", name, sorted(known) or ["none in these notebooks"])
    return name, {book: parameter.typed(value) for book, parameter in declared.items()}


def choose_profile(options: argparse.Namespace) -> str:
    """The profile asked for, made first where models are named; `InputError` where models are missing."""
    if any(given is not None for given in (options.base, options.model, options.tuned)):
        here = Path(os.environ.get(CALLED_FROM) or Path.cwd())
        return run_profiles.make(options.profile, options.base, options.model, options.tuned, here)
    profile = profiles.load(options.profile)
    if isinstance(profile, Checkpoint) and profile.models is None:
        raise InputError(f"profile {profile.name!r} names no models; give --base and --model (and perhaps --tuned)")
    return profile.name


def plan(options: argparse.Namespace) -> list[Job]:
    """Everything asked for, checked; `InputError` before anything starts."""
    profile, seeds = profiles.load(options.profile), parse_seeds(options.seeds)
    chosen = _chosen(options)
    given = [_given(text, chosen) for text in options.param]
    named = [name for name, _ in given]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise InputError(f"--param {twice} is given {named.count(twice)} times; give it once")
    wanted = []
    for seed in seeds:
        for book in chosen:
            values = {name: value[book.name] for name, value in given if book.name in value}
            wanted.append(Job(book, profile.name, seed, values))
    if options.publish and not profile.published:
        raise InputError(f"profile {profile.name!r} is not published (its file says so); leave out --publish")
    if options.publish and any(job.custom for job in wanted):
        raise InputError("only notebooks with their own parameters are published; leave out --publish or --param")
    if any(job.custom for job in wanted):  # the ledger is left alone, so notebooks that show it have nothing new
        wanted = [job for job in wanted if job.custom or not job.notebook.reads_results]
    return wanted


# Looking --------------------------------------------------------------------------------------------------------------
def show_list(wanted: Sequence[Job]) -> None:
    width = max(len(job.notebook.name) for job in wanted)
    for job in wanted:
        state = "up to date" if job.stale() is None else "on request" if job.notebook.on_request else "to run"
        print(f"{job.notebook.name:{width}}  seed {job.seed}  {state:10}  {job.notebook.title}")


def show_plan(wanted: Sequence[Job]) -> int:
    """What a run would do, why, and what it would take; 1 when something it needs is missing, else 0."""
    reasons = [(job, reason) for job in wanted if (reason := job.stale())]
    runs = sorted({(job.profile, job.seed) for job, _ in reasons if not job.notebook.reads_results})
    profile = profiles.load(wanted[0].profile)
    given = isinstance(profile, Checkpoint)
    models = "those given are checked, others made when asked for" if given else "those not in the cache"
    lines = [(f"{MODELS}  {p} seed {s}", models, expected(p, s, MODELS)) for p, s in runs]
    lines += [(job.label, why, job.expected()) for job, why in reasons]
    for label, why, seconds in lines:
        print(f"would run {label}: {why}" + ("" if seconds is None else f"; about {seconds:.0f} s"))
    known = [seconds for *_, seconds in lines if seconds is not None]
    minutes = f"expected {sum(known) / 60:.1f} minutes"
    if len(known) < len(lines):
        minutes += f" and {len(lines) - len(known)} of unknown length"
    needed, free = len(runs) * RUN_BYTES / 1e6, storage.free_bytes(paths.BUILD) / 1e6
    disk = f"up to {needed:.0f} MB of disk, {free:.0f} MB are free"
    print(f"{len(lines)} to run, {len(wanted) - len(reasons)} notebooks up to date; {minutes}; {disk}")
    return _show_needs(profile, needed * 1e6) if isinstance(profile, Checkpoint) else 0


def _show_needs(profile: Checkpoint, outputs: float) -> int:
    from lib import preflight  # here, because most profiles need nothing

    found = preflight.needs(profile, outputs)
    print("\n".join(["", *found.lines, *(f"missing: {what}" for what in found.missing)]))
    print("it could start" if not found.missing else f"it could not start: {len(found.missing)} missing")
    return 1 if found.missing else 0


# Changing -------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold this checkout's lock; a second run says that it waits, and for whom."""
    paths.BUILD.mkdir(exist_ok=True)
    lock, owner = FileLock(paths.BUILD / ".lock"), paths.BUILD / ".lock.owner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "unknown"
        print(f"waiting for another run in this checkout (process {pid})", flush=True)
        lock.acquire(poll_interval=0.2)
    try:
        storage.write_text(owner, f"{os.getpid()}\n")
        dodo.sweep()
        yield
    finally:
        lock.release()


def clean(profile: str, seeds: Sequence[int], chosen: Sequence[Notebook], everything: bool) -> None:
    """Delete what runs left: whole run folders, or only the chosen notebooks' files in them."""
    for seed in seeds:
        folder = paths.run_folder(profile, seed)
        if everything:
            shutil.rmtree(folder, ignore_errors=True)
            print(f"deleted {folder.relative_to(paths.ROOT).as_posix()}")
        for book in () if everything else chosen:
            slot = Slot(folder, book.name)
            slot.clear()
            slot.log.unlink(missing_ok=True)
            print(f"deleted the outputs of {book.name} seed {seed}")
    if not list((paths.BUILD / profile).glob("seed-*")):
        shutil.rmtree(paths.BUILD / profile, ignore_errors=True)
        (paths.RUN_PROFILES / f"{profile}.yaml").unlink(missing_ok=True)


def run(wanted: Sequence[Job], options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Bring everything up to date; 0 when it is, 1 when something failed."""
    with alone():
        at_once = parallel(options.jobs, profiles.load(options.profile))
        current = dodo.Run(wanted, at_once, arguments, workers.runner())
        if current.progress.pending:
            runs = len(current.runs)
            storage.require_space(paths.BUILD, int(runs * RUN_BYTES), f"a run of {runs} seed(s)")
        good = current.execute()
        done, failed = current.progress.done, current.progress.failed
        print(f"{done - failed} done, {current.progress.current} notebooks up to date, {failed} failed")
        if options.html:
            publishing.write_html(wanted)
        if options.publish and good:
            publishing.publish(wanted)
        elif options.publish:
            print("error: nothing was published, because something failed", file=sys.stderr)
        return 0 if good else 1


def lab_command() -> list[str]:
    return [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={paths.ROOT}"]


def dispatch(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if options.lab:
        os.chdir(paths.ROOT)
        os.environ["PYTHONWARNINGS"] = quiet_warnings()
        os.execv(sys.executable, lab_command())
    if options.bench:
        os.chdir(paths.ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "lib.benchmarks"])
    if options.links is not None:
        publishing.check_links(options)
        with alone():
            publishing.link(options.profile, options.links)
        return 0
    workers.runner()
    options.profile = choose_profile(options)
    parallel(options.jobs, profiles.load(options.profile))
    wanted = plan(options)
    if options.list:
        show_list(wanted)
    elif options.dry_run:
        return show_plan(wanted)
    elif options.clean:
        with alone():
            everything = not options.only and not options.start
            clean(options.profile, sorted({job.seed for job in wanted}), [job.notebook for job in wanted], everything)
    else:
        return run(wanted, options, arguments)
    return 0


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(*_: Any) -> None:
    """Stop the run; a second signal would interrupt the clearing up, so it is ignored."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all is well, 1 when a notebook failed, 2 for something the user can mend, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    try:
        return dispatch(options, arguments)
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        if problem.errno not in UNWRITABLE:
            raise
        what = f"{problem.filename} cannot be written" if problem.filename else "what was made cannot be written"
        print(f"error: {what} ({problem.strerror}); what had finished is kept, run again to go on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what had finished is kept, run again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
