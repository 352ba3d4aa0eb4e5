"""The processes of a run: one worker `python -m lib.execute SPEC` a job, here or where the command in RUNNER puts it.

Owns starting and ending them and what is said about one that ended without a report. RUNNER is an environment
variable, such as `srun -c4`, whose words come before a worker's own; no shell reads them. A runner must hand on the
three standard streams: the report comes back on stdout, the log on stderr, and a worker ends when its stdin closes.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib import cpus, paths
from lib.errors import InputError

_TAIL = 4000  # bytes of a log among which its last lines are looked for


def runner() -> list[str]:
    """The words of RUNNER, none when it is not set; `InputError` when there is no such program.

    Whether the program would start a job is not tried: on a cluster that can mean hours in a queue.
    """
    text = os.environ.get("RUNNER", "")
    try:
        words = shlex.split(text)
    except ValueError as problem:
        raise InputError(f"RUNNER={text!r} cannot be split into words ({problem}); close its quotes") from None
    if not words:
        return []
    program = shutil.which(words[0])
    if program is None:
        raise InputError(f"RUNNER={text!r}: there is no program {words[0]!r} here; correct RUNNER or unset it")
    return [os.path.abspath(program), *words[1:]]


class Workers:
    """The processes of a run. `stop` ends them all, with their kernels; they also end when this process does."""

    def __init__(self, prefix: Sequence[str] = (), parallel: int = 1) -> None:
        """`prefix`: the words of a runner, which gives each job its CPUs. Without one, notebooks share those of this
        machine evenly, `parallel` at a time; models come first, and alone, so they have all."""
        self.prefix = list(prefix)
        self._share = max(1, cpus.available() // parallel)
        self._alive: set[subprocess.Popen[str]] = set()
        self._lock, self._closed = threading.Lock(), False

    def call(self, spec: dict[str, Any], log: Path, local: bool = False) -> dict[str, Any]:
        """Run one worker and return its report; `message` is None when all went well. `local`: without the runner."""
        log.parent.mkdir(parents=True, exist_ok=True)
        prefix, pipe = [] if local else self.prefix, subprocess.PIPE
        command = [*prefix, sys.executable, "-m", "lib.execute", json.dumps(spec)]
        shared = {cpus.SHARE: str(self._share)} if spec["kind"] == "notebook" and not prefix else {}
        with log.open("w") as stream:
            with self._lock:
                if self._closed:
                    return _failure("the run was stopped", 0.0)
                try:
                    process = subprocess.Popen(
                        command,
                        cwd=paths.ROOT,
                        env=os.environ | shared,
                        text=True,
                        start_new_session=True,
                        stdin=pipe,
                        stdout=pipe,
                        stderr=stream,
                    )
                except OSError as problem:  # such as a script without its first line
                    return _failure(f"{spec['name']}: {command[0]} cannot be started ({problem.strerror})", 0.0)
                self._alive.add(process)
            start = time.monotonic()
            with process:
                assert process.stdout is not None
                text = process.stdout.read()
                process.wait()
        self._alive.discard(process)
        report = _report(text)
        if report is None:
            said = _ended(spec["name"], prefix, process.returncode, log)
            return _failure(said, round(time.monotonic() - start, 2))
        return report

    def stop(self) -> None:
        """End all workers, and start none from now on."""
        with self._lock:
            self._closed, alive = True, [p for p in self._alive if p.poll() is None]
        for process in alive:
            assert process.stdin is not None
            process.stdin.close()  # reaches the worker also where a runner keeps signals to itself
            process.terminate()
        for process in alive:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def shown(path: Path) -> str:
    """A file of this checkout as messages name it."""
    return path.relative_to(paths.ROOT).as_posix()


def _failure(message: str, seconds: float) -> dict[str, Any]:
    return {"message": message, "seconds": seconds, "peak_mb": 0.0}


def _report(text: str) -> dict[str, Any] | None:
    """The last line of stdout that is a report: a runner or a cluster's prologue may print there, too."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "peak_mb" in found:
            return found
    return None


def _ended(name: str, prefix: Sequence[str], code: int, log: Path) -> str:
    """What is said about a worker that made no report."""
    end = signal.Signals(-code).name if code < 0 else str(code)
    if not prefix:
        return f"{name} was ended from outside ({end}), perhaps for want of memory; see {shown(log)}"
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines()]
    last = " / ".join([line for line in lines if line][-2:]) or "it said nothing"
    return f"{name}: {Path(prefix[0]).name} ended ({end}) before the job had reported: {last}; see {shown(log)}"
