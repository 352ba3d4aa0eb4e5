"""Faults at the n-th write of a program, for every n: a full disk, a tree that cannot be written, a kill.

What counts as a write is what Python's audit hooks see of it (a file opened for writing, a folder made, a rename, a
removal, a mode) and every fsync. Only writes below `under` count. Bytes written in between are cut by `limited`.

This module imports nothing of the project, because a copy of it is the `sitecustomize` of checkouts in which workers
and kernels are to fail: the fault is then in the environment variable FAULT.
"""

import contextlib
import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

VARIABLE = "FAULT"
FULL, READ_ONLY, KILL = "full", "read-only", "kill"
NUMBERS = {FULL: errno.ENOSPC, READ_ONLY: errno.EROFS}
TAKES_SPACE = ("open", "os.mkdir", "fsync")  # a full disk still renames and removes
_WRITES = (*TAKES_SPACE, "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.symlink", "os.link")
_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Fault:
    """What happens at write number `at` below the folder `under`, and, but for a kill, at every one after it."""

    kind: str
    at: int
    under: str
    seen: int = 0
    named: list[str] = field(default_factory=list)  # the writes seen, for messages of failing tests

    def meets(self, event: str, args: tuple) -> None:
        path = os.fspath(args[0]) if args and isinstance(args[0], str | bytes | os.PathLike) else None
        if event not in _WRITES or path is None or (event == "open" and not (args[2] or 0) & _FLAGS):
            return
        if isinstance(path, bytes) or not os.path.abspath(path).startswith(self.under):
            return
        if self.kind == FULL and event not in TAKES_SPACE:
            return
        self.seen += 1
        self.named.append(f"{event} {os.path.basename(path)}")
        if self.seen < self.at:
            return
        if self.kind == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(NUMBERS[self.kind], os.strerror(NUMBERS[self.kind]), path)


_now: list[Fault] = []


def _hook(event: str, args: tuple) -> None:
    if _now:
        fault = _now.pop()  # what the fault itself opens is none
        try:
            fault.meets(event, args)
        finally:
            _now.append(fault)


def _fsync(handle: int, really: Callable[[int], None] = os.fsync) -> None:
    path = "/"
    with contextlib.suppress(OSError):  # not on Linux: fsyncs of files are not counted
        path = os.readlink(f"/proc/self/fd/{handle}")
    if _now and not os.path.isdir(path):
        _hook("fsync", (path,))
    really(handle)


def install() -> None:
    """Audit hooks stay for good; without a fault they do nothing."""
    if not getattr(sys, "_faults_installed", False):
        sys.addaudithook(_hook)
        sys._faults_installed = True  # type: ignore[attr-defined]


@contextlib.contextmanager
def at(kind: str, number: int, under: object) -> Iterator[Fault]:
    """Inside, write `number` below `under` meets the fault; 0 only counts."""
    install()
    fault = Fault(kind, number or sys.maxsize, os.path.abspath(str(under)))
    really, os.fsync = os.fsync, lambda handle: _fsync(handle, really)
    _now.append(fault)
    try:
        yield fault
    finally:
        _now.remove(fault)
        os.fsync = really


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """Inside, no file grows beyond `size` bytes: what a write was cut to is really there, and it fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def killed(number: int, under: object, work: Callable[[], object]) -> bool:
    """Whether `work`, in a process of its own, was killed at its write `number`; False when it has fewer. Whatever
    else it meets is an error."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with at(KILL, number, under):
                work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def from_environment() -> None:
    """As `sitecustomize`: the fault of FAULT for processes of whose command line a word holds `in`."""
    text = os.environ.get(VARIABLE)
    spec = json.loads(text) if text else None
    if spec and any(spec["in"] in word for word in sys.orig_argv):
        install()
        really = os.fsync
        os.fsync = lambda handle: _fsync(handle, really)
        _now.append(Fault(spec["kind"], spec["at"], spec["under"]))


if __name__ == "sitecustomize":
    from_environment()
