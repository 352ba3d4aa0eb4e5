"""Writing so that nothing half-written is ever visible, and reading so that nothing damaged is ever used.

Owns temp file -> fsync -> rename, content hashes, sealed folders (a folder whose `seal.json` holds the hash of every
file in it) and the lock under which one of several processes makes what all want. It does not know what the files mean.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from lib import plain_data
from lib.errors import InputError

SEAL = "seal.json"
_VALUE = "value.json"


def digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends without an error, else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Stable bytes: sorted keys, two spaces, NaN refused (JSON has none)."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The parsed file, see `plain_data.json_of`; `InputError` with the remedy when it is missing or not JSON."""
    try:
        return plain_data.json_of(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run the notebook that writes it") from None
    except (OSError, ValueError) as problem:
        raise InputError(f"{path} is not valid JSON ({problem}); delete it and run again") from None


def _alive(pid: str) -> bool:
    """Whether a process of that number runs, so that the work of another living writer is left alone."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _abandoned(temporary: Path) -> bool:
    """Whether the writer of a temporary folder has ended. Of one on another machine, which shares the file system,
    nothing can be told, so it is left alone."""
    writer = re.search(r"-(\d+)(?:@(.+))?\.tmp$", temporary.name)
    return not writer or (writer[2] in (None, socket.gethostname()) and not _alive(writer[1]))


def _publish(temporary: Path, folder: Path) -> None:
    """Rename to `folder`, in place of an older one. One with the same seal is left as it is: another process has made
    the same, and somebody may be reading it."""
    while True:
        try:
            temporary.replace(folder)
            return
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if folder.is_file():
            folder.unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileNotFoundError):  # yet another process is moving it
            if damage(folder) is None and (folder / SEAL).read_bytes() == (temporary / SEAL).read_bytes():
                return
        aside = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=_writer())
        with contextlib.suppress(FileNotFoundError):
            folder.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _writer() -> str:
    """How the name of a temporary folder ends."""
    return f"-{os.getpid()}@{socket.gethostname()}.tmp"


def seal_folder(folder: Path, write: Callable[[Path], None], about: dict[str, Any]) -> None:
    """Make `folder` by `write(temporary)` and publish it by rename, sealed with the hash of every file.

    `about` is kept in the seal. Several processes may make the same folder at once, also on several machines (see
    `alone` for how to make it once). An older folder of that name is replaced; a killed writer leaves only a hidden
    temporary folder, which the next writer of the same folder on its machine clears away.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in filter(_abandoned, folder.parent.glob(f".{folder.name}.*.tmp")):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=_writer()))
    try:
        write(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        write_json(
            temporary / SEAL,
            {
                "about": about,
                "files": {p.relative_to(temporary).as_posix(): digest(p) for p in files},
                "name": folder.name,
            },
        )
        for path in files:
            _sync(path)
        temporary.chmod(0o755)
        _publish(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_sealed(folder: Path, target: Path) -> None:
    """A copy of a sealed folder under another name, visible only when whole."""
    about = read_seal(folder)
    names = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]

    def write(temporary: Path) -> None:
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, temporary / name)

    seal_folder(target, write, about)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, or None when every file is there with the bytes it was sealed with, and
    no other: what opens a model looks at all of them. Hidden ones, which systems leave everywhere, do not matter."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        files: dict[str, str] = seal["files"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return f"its seal cannot be read ({problem.__class__.__name__})"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if digest(path) != expected:
            return f"{name} has other bytes than when it was written"
    there = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    strange = [name for name in there if name not in files and name != SEAL and not Path(name).name.startswith(".")]
    return f"{min(strange)} was put there afterwards" if strange else None


def wrong(folder: Path) -> str | None:
    """What is wrong with a sealed folder whose name says what it holds: damage, or that it was made under another."""
    problem = damage(folder)
    if problem:
        return problem
    made = json.loads((folder / SEAL).read_text(encoding="utf-8")).get("name", folder.name)  # older seals have none
    return None if made == folder.name else f"it was made as {made}"


def read_seal(folder: Path) -> dict[str, Any]:
    """What `seal_folder` was told about an undamaged folder."""
    return json.loads((folder / SEAL).read_text(encoding="utf-8"))["about"]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make `folder` inside: one process at a time may, others wait here, also on other machines that share the disk.

    Who has waited must look again whether the folder is there now. A process that ends, however it does, lets the next
    one in. An empty hidden file beside the folder stays. Not to be entered twice for one folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock", poll_interval=0.2):
        yield


def remembered(folder: Path, about: dict[str, Any], make: Callable[[], Any]) -> Any:
    """The JSON value sealed in `folder`, made and sealed first when it is missing or damaged.

    The folder's name must hold a key of everything the value depends on. Of several processes that ask for the same,
    one makes it and the others wait for it.
    """
    problem = wrong(folder)
    if problem and folder.exists():
        warnings.warn(f"{folder.parent.name}/{folder.name} is not used: {problem}; it will be made again", stacklevel=2)
    if problem:
        with alone(folder):
            if wrong(folder):  # else another process has made it meanwhile
                value = make()
                seal_folder(folder, lambda temporary: write_json(temporary / _VALUE, value), about)
    return read_json(folder / _VALUE)


def free_bytes(path: Path) -> int:
    """Free space where `path` is or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_space(path: Path, needed: int, what: str) -> None:
    """Refuse to start work whose output would not fit."""
    free = free_bytes(path)
    if free < needed:
        raise InputError(
            f"{what} needs {needed / 1e6:.0f} MB free at {path.name!r}, but {free / 1e6:.0f} MB are left; "
            "free some space or move the checkout"
        )
