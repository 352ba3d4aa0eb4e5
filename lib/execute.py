"""One notebook of one run: where it leaves what it makes, whether that is up to date, and the process that makes it.

Owns the files of `build/<profile>/seed-<n>/` and the worker `python -m lib.execute SPEC`, which the pipeline starts
for each notebook, so that memory is per notebook and an interrupted run leaves no kernel behind. Whether a notebook is
up to date is decided by content: its stamp, written last, holds the key it ran under and the hash of every output.
"""

import contextlib
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lib import cpus, notebooks, paths, storage
from lib.errors import InputError, NotHere


@dataclass(frozen=True)
class Slot:
    """The files of one notebook (or of `models`) in one run folder."""

    folder: Path
    name: str

    @property
    def executed(self) -> Path:
        return self.folder / "notebooks" / f"{self.name}.ipynb"

    @property
    def running(self) -> Path:
        return self.executed.with_suffix(".running.ipynb")

    @property
    def failed(self) -> Path:
        return self.executed.with_suffix(".failed.ipynb")

    @property
    def stamp(self) -> Path:
        return self.folder / "stamps" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def result(self) -> Path:
        return paths.result_file(self.folder / "results", self.name)

    @property
    def custom_result(self) -> Path:
        """Where the result of a run with other parameters is put, out of sight of the ledger."""
        return paths.result_file(self.folder / "results" / "custom", self.name)

    @property
    def figures(self) -> list[Path]:
        return sorted((self.folder / "figures").glob(f"{self.name}.*"))

    def outputs(self) -> list[Path]:
        """What a finished notebook has left."""
        return [p for p in (self.executed, self.result, self.custom_result, *self.figures) if p.is_file()]

    def clear(self) -> None:
        """Remove all of it, the stamp first, so that what is there is always of one run."""
        for path in (self.stamp, self.running, self.failed, *self.outputs()):
            path.unlink(missing_ok=True)

    def seal(self, key: str, source: str) -> None:
        """Write the stamp. `source`: hash of the text that the executed notebook shows."""
        outputs = {path.relative_to(self.folder).as_posix(): storage.digest(path) for path in self.outputs()}
        storage.write_json(self.stamp, {"key": key, "source": source, "outputs": outputs})

    def stale(self, key: str) -> str | None:
        """Why the notebook must run under `key`, or None when everything is there as that key left it."""
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
            if stamp["key"] != key:
                return "its code, settings or parameters changed"
            for name, expected in stamp["outputs"].items():
                path = self.folder / name
                if not path.is_file():
                    return f"{name} is missing"
                if storage.digest(path) != expected:
                    return f"{name} has changed"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "it failed last time" if self.failed.exists() else "it has not run yet"
        return None

    def vouched(self) -> bool:
        """Whether the result file is the one that a finished run of the notebook left."""
        try:
            outputs = json.loads(self.stamp.read_text(encoding="utf-8"))["outputs"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return outputs.get(self.result.relative_to(self.folder).as_posix()) == storage.digest(self.result)

    def reworded(self, source: str) -> bool:
        """Whether comments or prose changed since an otherwise up-to-date notebook ran."""
        return json.loads(self.stamp.read_text(encoding="utf-8")).get("source") != source


# The worker -----------------------------------------------------------------------------------------------------------
class Failure(Exception):
    """A notebook or module did not finish; the message is for the user."""


def _stop(*_: Any) -> None:
    """End this process and the kernel it started, at once: all that they write appears by rename."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(143)


def _end_with_parent() -> None:
    """Stop when the pipeline closes its end of our standard input, which it does by dying, too."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin: a thread inside its buffer breaks the interpreter's exit
            pass
        with contextlib.suppress(OSError):  # the log may be out of reach, too
            os.write(
                2, b"stopped: standard input was closed, by the pipeline or by a RUNNER that does not hand it on\n"
            )
        _stop()

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _stop)
    threading.Thread(target=watch, daemon=True).start()


def quiet_warnings() -> str:
    """PYTHONWARNINGS for a kernel: the user's, and none of tqdm's on import without ipywidgets."""
    return ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found"]))


def _kernel_environment(home: Path) -> None:
    """What the kernel is to see: this checkout's `lib`, fixed hashes, and none of the user's start-up files."""
    home.mkdir(parents=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ["TQDM_DISABLE"] = "1"  # bars would be part of the executed notebook
    os.environ["PYTHONWARNINGS"] = quiet_warnings()
    os.environ["IPYTHONDIR"] = str(home / "ipython")
    os.environ["JUPYTER_RUNTIME_DIR"] = str(home / "runtime")
    os.environ.pop("MPLBACKEND", None)


def _source(name: str) -> Any:
    """The notebook of a percent-format source, with ids by position."""
    import jupytext

    notebook = jupytext.read(notebooks.source_path(name))
    notebooks.number_cells(notebook)
    return notebook


def _text(notebook: Any) -> str:
    import nbformat

    notebooks.clean(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def _keep_failed(slot: Slot) -> None:
    import nbformat

    storage.write_text(slot.failed, _text(nbformat.read(slot.running, as_version=4)))
    slot.running.unlink()
    slot.result.unlink(missing_ok=True)


def _where(slot: Slot, what: str) -> str:
    """The message for the cell at which the running notebook stopped."""
    import nbformat

    code = [cell for cell in nbformat.read(slot.running, as_version=4).cells if cell.cell_type == "code"]
    number = max((n for n, cell in enumerate(code, 1) if cell.metadata.papermill.get("start_time")), default=1)
    lines = code[number - 1].source.strip().splitlines() or [""]
    return f"{slot.name} stopped in cell [{number}] `{lines[0]}`: {what}"


def _run(slot: Slot, spec: dict[str, Any]) -> Any:
    """Execute the source; `Failure` names the cell, and what was executed so far is kept as `.failed.ipynb`."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    from lib import engine

    slot.executed.parent.mkdir(parents=True, exist_ok=True)
    running = slot.running.relative_to(paths.ROOT)  # papermill takes braces in a path for parameters
    try:
        notebook = papermill.execute_notebook(
            _source(slot.name),
            str(running),
            parameters=spec["parameters"],
            kernel_name="python3",
            language="python",
            progress_bar=False,
            engine_name=engine.NAME,
        )
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        if any(output.output_type == "error" for output in outputs):  # papermill takes sys.exit() for success
            raise Failure(_where(slot, "SystemExit"))
        return notebook
    except papermill.PapermillExecutionError as problem:
        if problem.ename == NotHere.__name__:
            return _stopped(slot, spec, str(problem.evalue))
        last = (f"{problem.ename}: {problem.evalue}".strip().splitlines() or [""])[-1]
        message = _where(slot, last if last.startswith(problem.ename) else f"{problem.ename}: ... {last}")
    except DeadKernelError:
        message = _where(slot, "the kernel died, most likely for want of memory")
    except CellTimeoutError:
        message = _where(slot, f"it was stopped, because it did not end within {engine.PATIENCE / 3600:g} hours")
    except RuntimeError as problem:
        log = slot.log.relative_to(paths.ROOT).as_posix()
        raise Failure(f"{slot.name}: its kernel did not start ({problem}); the reason may stand in {log}") from None
    except Failure as problem:
        message = str(problem)
    _keep_failed(slot)
    raise Failure(message)


def _stopped(slot: Slot, spec: dict[str, Any], reason: str) -> Any:
    """The notebook as far as it came before what it needs was not to be had, with a line that says so; its claims are
    recorded as not testable."""
    import nbformat
    from papermill.execute import ERROR_MARKER_TAG

    from lib import claims

    notebook = nbformat.read(slot.running, as_version=4)
    notebook.cells = [c for c in notebook.cells if ERROR_MARKER_TAG not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                text = f"This page stops here: {reason}\n"
                cell.outputs = [*cell.outputs[:-1], nbformat.v4.new_output("stream", name="stdout", text=text)]
    claims.stopped(slot.name, spec["profile"], spec["seed"], reason)
    return notebook


def _notebook(spec: dict[str, Any]) -> None:
    """Run a notebook, or only renew its prose when nothing else changed; either way it ends up sealed under the key."""
    import nbformat

    slot = Slot(paths.run_folder(spec["profile"], spec["seed"]), spec["notebook"])
    source = storage.digest(notebooks.source_path(slot.name))
    fresh = _source(slot.name)
    if spec["reword"] and notebooks.carry_outputs(fresh, nbformat.read(slot.executed, as_version=4)):
        executed = fresh
    else:
        slot.clear()
        home = slot.folder / ".kernels" / slot.name
        shutil.rmtree(home, ignore_errors=True)
        _kernel_environment(home)
        try:
            executed = _run(slot, spec)
        finally:
            shutil.rmtree(home, ignore_errors=True)
    if spec["custom"] and slot.result.exists():
        slot.custom_result.parent.mkdir(exist_ok=True)
        slot.result.replace(slot.custom_result)
    storage.write_text(slot.executed, _text(executed))
    slot.running.unlink(missing_ok=True)
    slot.seal(spec["key"], source)


class _Remembering:
    """Standard error that keeps its last line, which for a failed module is its message. Nothing is read back from the
    log: on a cluster, standard error is no file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text = stream, ""

    def write(self, text: str) -> int:
        self._text = (self._text + text)[-4000:]
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def last_line(self) -> str:
        lines = self._text.split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _module(spec: dict[str, Any]) -> None:
    """`python -m MODULE ARGUMENTS` in this process; its output goes to the log."""
    sys.argv = [spec["module"], *spec["arguments"]]
    said = _Remembering(sys.stderr)
    try:
        with contextlib.redirect_stderr(said):  # type: ignore[type-var]
            runpy.run_module(spec["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (0, None):
            last = end.code if isinstance(end.code, str) else said.last_line()
            raise Failure(f"{spec['module']} failed: {last}") from None


def _ledger(spec: dict[str, Any]) -> None:
    from lib import ledger

    found = ledger.make(spec["profile"], [Path(folder) for folder in spec["folders"]], spec["seeds"])
    ledger.write(Path(spec["path"]), found)


KINDS: dict[str, Callable[[dict[str, Any]], None]] = {"notebook": _notebook, "module": _module, "ledger": _ledger}


def peak_mb() -> float:
    """Memory of this process and of its largest child at their worst, in MB (the two peaks added)."""
    unit = 1 if sys.platform == "darwin" else 1024
    both = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(sum(both) * unit / 1e6, 1)


def _place() -> dict[str, Any]:
    """Where this worker runs, for the report."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID", "batch")
    return {"cpus": cpus.available()} | ({"slurm_job": f"{job}.{step}"} if job else {})


def _only_one(name: str) -> None:
    """Refuse to be one of several copies: in an allocation for n tasks, srun starts n of everything unless told."""
    copies = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if copies != "1":
        raise Failure(f"{name}: srun started {copies} copies of this; add -n1 to it in RUNNER")


def main() -> int:
    """Do what the JSON in the first argument says and print a report in JSON; all other output goes to stderr."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _end_with_parent()
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # an optional check of jsonschema, 1.3 s to import
    spec, start, message = json.loads(sys.argv[1]), time.monotonic(), None
    try:
        _only_one(spec["name"])
        KINDS[spec["kind"]](spec)
    except (Failure, InputError) as problem:
        message = str(problem)
    except Exception as problem:
        import traceback

        traceback.print_exc()
        message = f"{spec['name']} failed: {problem.__class__.__name__}: {problem}".splitlines()[0]
    found = {"message": message, "seconds": round(time.monotonic() - start, 2), "peak_mb": peak_mb()}
    print(json.dumps(found | _place()), file=report, flush=True)
    return 0 if message is None else 1


if __name__ == "__main__":
    raise SystemExit(main())
