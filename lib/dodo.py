"""The tasks of a run for doit: models, then notebooks, then the ledger, then the notebooks that show it.

Owns what depends on what and the progress lines; `workers` starts the processes. What is up to date is for `jobs` to
say, by content: doit's own database is thrown away before every run.
"""

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from doit.cmd_base import ModuleTaskLoader
from doit.dependency import JsonDB
from doit.doit_cmd import DoitMain
from doit.exceptions import UnmetDependency
from doit.reporter import ZeroReporter

from lib import jobs, paths, profiles
from lib.execute import Slot
from lib.jobs import Job
from lib.manifest import MODELS, Manifest, expected
from lib.workers import Workers

GROUP = "make"  # doit's name for all tasks of a run; a task is GROUP:name
DATABASE = paths.BUILD / ".doit.json"


# Progress -------------------------------------------------------------------------------------------------------------
class Progress(ZeroReporter):
    """doit's reporter: one line for what has finished and, on a terminal, one that shows what is running."""

    def __init__(self, pending: set[str]) -> None:
        """`pending`: names of the tasks that will run, as far as can be told."""
        super().__init__(sys.stdout, {})
        self.pending, self.done, self.current, self.failed = set(pending), 0, 0, 0
        self.reports: dict[str, dict[str, Any]] = {}  # by task, left there by its action
        self._running: dict[str, tuple[str, float]] = {}
        self._lock, self._finished = threading.RLock(), threading.Event()
        if sys.stdout.isatty():
            threading.Thread(target=self._tick, daemon=True).start()

    def execute_task(self, task: Any) -> None:
        with self._lock:
            if task.meta:
                self._running[task.name] = (task.meta["label"], time.monotonic())

    def skip_uptodate(self, task: Any) -> None:
        self.pending.discard(task.name)
        self.current += "notebook" in (task.meta or {})

    def add_success(self, task: Any) -> None:
        report = self.reports.get(task.name)
        if report:
            self._end(task, self._took(report, task.meta["expected"]))

    def add_failure(self, task: Any, fail: Any) -> None:
        if not task.meta:  # the group of all tasks
            return
        self.failed += 1
        report = self.reports.get(task.name)
        if isinstance(fail, UnmetDependency):
            self._end(task, "not run: its models failed")
            return
        self._end(task, f"FAILED after {report['seconds']:.0f} s" if report else "FAILED")
        own = f"{task.meta['label']}: {fail.get_msg().strip().splitlines()[-1]}"  # such as a full disk, after a report
        message = (report or {}).get("message") or own
        print(f"error: {message}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        self._finished.set()

    def _end(self, task: Any, text: str) -> None:
        with self._lock:
            self._running.pop(task.name, None)
            self.pending.discard(task.name)
            self.done += 1
            self._erase()
            print(f"[{self.done}/{self.done + len(self.pending)}] {task.meta['label']}  {text}", flush=True)

    @staticmethod
    def _took(report: dict[str, Any], expected: float | None) -> str:
        return f"{report['seconds']:.0f} s" + ("" if expected is None else f" (expected {expected:.0f} s)")

    def _erase(self) -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\r\x1b[K")

    def _tick(self) -> None:
        while not self._finished.wait(1):
            with self._lock:
                parts = [f"{label}, {time.monotonic() - start:.0f} s" for label, start in self._running.values()]
                self._erase()
                sys.stdout.write(f"running {'; '.join(parts)}"[:118] if parts else "")
                sys.stdout.flush()


# The run --------------------------------------------------------------------------------------------------------------
class InMemory(JsonDB):
    """What doit remembers of its tasks, never written: nobody reads it again, and a full disk is no error of doit's."""

    def dump(self) -> None:
        pass


class Run:
    """The jobs, done in dependency order. `command`: the arguments of the command line, for the manifest; `runner`: the
    words before the command of models and notebooks. The ledger is made here: it takes seconds and reads what all
    others left."""

    def __init__(
        self, wanted: Sequence[Job], parallel: int, command: Sequence[str], runner: Sequence[str] = ()
    ) -> None:
        self.jobs, self.parallel = wanted, parallel
        self.workers = Workers(runner, parallel)
        self._lock, self._told = threading.Lock(), False  # whether the runner's CPUs have been spoken of
        self.runs = sorted({(job.profile, job.seed) for job in wanted})
        self.manifests = {run: Manifest(*run, command) for run in self.runs}
        self.judge = not any(job.custom for job in wanted)  # a run with other parameters leaves the ledger alone
        self.progress = Progress(self._pending())

    def _users(self, profile: str, seed: int) -> list[Job]:
        """The notebooks of a run that measure; the others show results."""
        mine = [job for job in self.jobs if (job.profile, job.seed) == (profile, seed)]
        return [job for job in mine if not job.notebook.reads_results]

    def _needed(self, profile: str, seed: int) -> bool:
        """Whether models are wanted: nothing loads them while every notebook is up to date."""
        users = [job for job in self._users(profile, seed) if job.notebook.uses_models]
        missing = not (paths.run_folder(profile, seed) / "models.json").is_file()
        return bool(users) and (missing or any(job.slot.stale(job.key()) for job in users))

    def _pending(self) -> set[str]:
        """The tasks that are to run, as far as can be told before they have."""
        making = {_models_task(*run) for run in self.runs if self._needed(*run)}
        ledgers = {job.profile for job in self.jobs if self.judge and (making or jobs.ledger_stale(job.profile))}
        notebooks = {_task_name(job) for job in self.jobs if job.stale() or (ledgers and job.notebook.reads_results)}
        return {f"{GROUP}:{name}" for name in making | notebooks | {f"ledger/{profile}" for profile in ledgers}}

    def execute(self) -> bool:
        """Whether everything asked for is now up to date. However it ends, nothing half-made and no process stays."""
        try:
            for tasks in (self._making(), self._judging()):
                DATABASE.unlink(missing_ok=True)
                loader, own = ModuleTaskLoader(self._namespace(tasks)), {"BACKEND": {"memory": "lib.dodo:InMemory"}}
                code = DoitMain(loader, config_filenames=(), extra_config=own).run(["run"])
                if code == 3:  # an error of this program, which doit has printed
                    self.progress.failed += 1
                    break
        finally:
            self.workers.stop()
            self.progress.finish()
            sweep()
        return self.progress.failed == 0

    def _namespace(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        config: dict[str, Any] = {"dep_file": str(DATABASE), "backend": "memory", "reporter": self.progress}
        config |= {"continue": True, "verbosity": 0}
        if self.parallel > 1:
            config |= {"num_process": self.parallel, "par_type": "thread"}

        def tasks_made() -> Iterator[dict[str, Any]]:
            yield from tasks

        return {"DOIT_CONFIG": config, f"task_{GROUP}": tasks_made}

    def _making(self) -> list[dict[str, Any]]:
        """Of every seed in turn its models and the notebooks that use them."""
        tasks: list[dict[str, Any]] = []
        for profile, seed in self.runs:
            name = _models_task(profile, seed)
            task = _task(name, f"{MODELS}  {profile} seed {seed}", expected(profile, seed, MODELS))
            task["actions"] = [(self._models, [name, profile, seed])]
            task["uptodate"] = [(lambda *run: not self._needed(*run), [profile, seed])]
            tasks.append(task)
            users = self._users(profile, seed)
            if self.parallel > 1:  # else one that takes long may start last, and run alone
                users.sort(key=lambda job: -(job.expected() or 0.0))
            for job in users:  # one that is up to date does not care whether models can be made
                waits = job.notebook.uses_models and job.slot.stale(job.key())
                tasks.append(self._one(job, name if waits else None))
        return tasks

    def _judging(self) -> list[dict[str, Any]]:
        """The ledger and the notebooks that show it, whatever became of the others: it says what was not run."""
        tasks: list[dict[str, Any]] = []
        for profile in sorted({job.profile for job in self.jobs} if self.judge else ()):
            task = _task(name := f"ledger/{profile}", f"ledger  {profile}", None)
            task["actions"] = [(self._ledger, [name, profile])]
            task["uptodate"] = [(lambda one: not jobs.ledger_stale(one), [profile])]
            tasks.append(task)
        shows = [job for job in self.jobs if job.notebook.reads_results]
        return tasks + [self._one(job, f"ledger/{job.profile}" if self.judge else None) for job in shows]

    def _one(self, job: Job, after: str | None) -> dict[str, Any]:
        name = _task_name(job)
        task = _task(name, job.label, job.expected())
        task["actions"], task["task_dep"] = [(self._notebook, [name, job])], [f"{GROUP}:{after}"] if after else []
        task["meta"]["notebook"], task["uptodate"] = job, [lambda: job.stale() is None]
        return task

    def _call(self, name: str, spec: dict[str, Any], log: Path, local: bool = False) -> dict[str, Any]:
        report = self.workers.call(spec, log, local)
        self.progress.reports[f"{GROUP}:{name}"] = report
        return report

    def _compare_cpus(self, profile: str, report: dict[str, Any]) -> None:
        """Say once when the runner gives a job fewer CPUs than the profile has threads, or more than it has use for.
        The profile's number stays, because results rest on it to their last bit."""
        settings = profiles.load(profile)
        threads = settings.threads
        given = report.get("cpus", threads)
        useful = given > threads and ("slurm_job" not in report or isinstance(settings, profiles.Trained))
        if not self.workers.prefix or given == threads or useful:  # small models are trained side by side
            return
        with self._lock:
            told, self._told = self._told, True
        if not told:
            remedy = f"that is slow; for srun, add -c{threads}" if given < threads else "the others stay idle"
            text = f"RUNNER gives a job {given} CPU(s), profile {profile} always computes on {threads} thread(s)"
            print(f"warning: {text}: {remedy}", file=sys.stderr, flush=True)

    def _models(self, name: str, profile: str, seed: int) -> bool:
        arguments = ["build", "--profile", profile, "--seed", str(seed)]
        spec = {"kind": "module", "name": MODELS, "module": "lib.models", "arguments": arguments}
        report = self._call(name, spec, Slot(paths.run_folder(profile, seed), MODELS).log)
        self._compare_cpus(profile, report)
        self.manifests[profile, seed].record(MODELS, _entry(report))
        return report["message"] is None

    def _notebook(self, name: str, job: Job) -> bool:
        slot, key = job.slot, job.key()
        spec = {"kind": "notebook", "name": slot.name, "notebook": slot.name, "profile": job.profile, "seed": job.seed}
        spec |= {"key": key, "parameters": job.changed, "custom": job.custom, "reword": slot.stale(key) is None}
        report = self._call(name, spec, slot.log)
        self._compare_cpus(job.profile, report)
        if slot.running.exists():  # the worker was killed
            slot.running.replace(slot.failed)
            slot.result.unlink(missing_ok=True)
        if report["message"] is None and job.key() != key:
            slot.stamp.unlink(missing_ok=True)
            report["message"] = f"{slot.name}: its code changed while it ran, so it is not up to date; run again"
        if not spec["reword"]:
            self.manifests[job.profile, job.seed].record(slot.name, _entry(report) | {"key": key})
        return report["message"] is None

    def _ledger(self, name: str, profile: str) -> bool:
        aside = jobs.set_aside(profile)
        if aside:
            print(f"left out of the ledger, because no finished run made them: {', '.join(aside)}", flush=True)
        seeds, folders = profiles.load(profile).seeds, [str(folder) for folder in jobs.ledger_folders(profile)]
        spec = {"kind": "ledger", "name": "ledger", "profile": profile, "seeds": seeds, "folders": folders}
        key, path = jobs.ledger_key(profile), jobs.ledger_file(profile)
        report = self._call(name, spec | {"path": str(path)}, path.with_suffix(".log"), local=True)
        if report["message"] is None:
            jobs.seal_ledger(profile, key)
        return report["message"] is None


def _models_task(profile: str, seed: int) -> str:
    return f"{MODELS}/{profile}/{seed}"


def _task_name(job: Job) -> str:
    return f"{job.notebook.name}/{job.profile}/{job.seed}"


def _task(name: str, label: str, seconds: float | None) -> dict[str, Any]:
    return {"name": name, "meta": {"label": label, "expected": seconds}, "io": {"capture": False}}


def _entry(report: dict[str, Any]) -> dict[str, Any]:
    """What the manifest keeps of a report: when it came (seconds since 1970), and where it ran if the worker came to
    say so."""
    kept: dict[str, Any] = {"ended": round(time.time(), 1)}
    kept |= {name: report[name] for name in ("seconds", "peak_mb", "cpus", "slurm_job") if name in report}
    return kept | {"status": "done" if report["message"] is None else "failed"}


def sweep() -> None:
    """Remove what a killed run left half-made."""
    for path in paths.BUILD.glob("*/seed-*/notebooks/*.running.ipynb"):
        Slot(path.parents[1], path.name.removesuffix(".running.ipynb")).clear()
    for folder in paths.BUILD.glob("*/seed-*/.kernels"):
        shutil.rmtree(folder, ignore_errors=True)
    own = (paths.BUILD, paths.FIGURES, paths.NOTEBOOKS, paths.RESULTS)
    for path in (*paths.ROOT.glob(".*.tmp"), *(path for folder in own for path in folder.rglob(".*.tmp"))):
        if path.is_file():  # it was being written, see `storage.replacing`: nobody else writes here now
            path.unlink(missing_ok=True)
    DATABASE.unlink(missing_ok=True)
