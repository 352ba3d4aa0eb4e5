"""Nothing half-written is visible, nothing damaged is used."""

import os
import socket
import subprocess
import sys
import time

import pytest

from lib import paths, storage, threads
from lib.errors import InputError


def leftovers(folder):
    """What is left besides the empty files that processes lock."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock" or p.stat().st_size)


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(path, {"b": 1, "a": 2})
    assert path.read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'

    def half() -> None:
        with storage.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half()
    assert storage.read_json(path) == {"a": 2, "b": 1}
    assert leftovers(tmp_path) == ["a.json"]


def test_numbers_json_cannot_hold_are_refused_before_the_file_changes(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(path, {"x": float("nan")})
    assert not path.exists()


def test_files_are_readable_by_others(tmp_path):
    storage.write_text(tmp_path / "a", "x")
    assert os.stat(tmp_path / "a").st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), ("{", "not valid JSON"), (b"\xff", "not valid JSON")]
)
def test_unreadable_json_names_file_and_remedy(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        storage.read_json(path)


def seal(folder, text="x"):
    def write(temporary):
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text(text)

    storage.seal_folder(folder, write, {"key": "k"})


def test_a_sealed_folder_is_whole_or_not_there(tmp_path):
    folder = tmp_path / "model"
    seal(folder)
    assert storage.damage(folder) is None
    assert storage.read_seal(folder) == {"key": "k"}

    def fail(temporary):
        (temporary / "file").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        storage.seal_folder(folder, fail, {})
    assert storage.damage(folder) is None
    assert leftovers(tmp_path) == ["model"]


def test_a_killed_writers_remains_are_cleared_by_the_next(tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout
    for name in (f".model.abc-{gone.strip()}.tmp", f".model.abc-{os.getppid()}.tmp", ".other.abc-1.tmp"):
        (tmp_path / name).mkdir()
    seal(tmp_path / "model")
    assert leftovers(tmp_path) == sorted([f".model.abc-{os.getppid()}.tmp", ".other.abc-1.tmp", "model"])


def test_a_writer_on_another_machine_is_left_alone(tmp_path):
    """Its process has no number here, or another's."""
    for name in (".model.abc-999999@elsewhere.tmp", f".model.abc-999999@{socket.gethostname()}.tmp"):
        (tmp_path / name).mkdir()
    seal(tmp_path / "model")
    assert leftovers(tmp_path) == [".model.abc-999999@elsewhere.tmp", "model"]


@pytest.mark.parametrize(("theirs", "kept"), [("x", True), ("y", False)], ids=["the same", "another"])
def test_a_folder_that_another_process_publishes_meanwhile(tmp_path, theirs, kept):
    """Both writers succeed; the same content stays the first one's, so that its readers are not disturbed."""
    folder, inodes = tmp_path / "model", []

    def write(temporary):
        seal(folder, theirs)
        inodes.append(folder.stat().st_ino)
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("x")

    storage.seal_folder(folder, write, {"key": "k"})
    assert storage.damage(folder) is None
    assert (folder / "inner" / "file").read_text() == "x"
    assert (folder.stat().st_ino == inodes[0]) == kept
    assert leftovers(tmp_path) == ["model"]


def test_a_file_in_the_place_of_a_folder_makes_way(tmp_path):
    (tmp_path / "value").write_text("somebody's")
    with pytest.warns(UserWarning, match="will be made again"):
        assert storage.remembered(tmp_path / "value", {"of": "x"}, lambda: [1]) == [1]
    assert storage.remembered(tmp_path / "value", {"of": "x"}, never) == [1]


def seal_often(folder, text):
    """What each of two processes does; raises what goes wrong."""
    for number in range(100):
        seal(folder / str(number % 3), text)


def test_two_processes_may_seal_the_same_folders_at_once(tmp_path, two_cpus):
    threads.side_by_side(seal_often, [(tmp_path, "x"), (tmp_path, "y")])
    assert leftovers(tmp_path) == ["0", "1", "2"]
    assert [storage.damage(tmp_path / str(number)) for number in range(3)] == [None] * 3


@pytest.mark.parametrize("how", ["changed", "removed", "seal removed", "seal garbled"])
def test_damage_is_named(tmp_path, how):
    folder = tmp_path / "model"
    seal(folder)
    target = folder / "inner" / "file"
    if how == "changed":
        target.write_text("y")
    if how == "removed":
        target.unlink()
    if how == "seal removed":
        (folder / storage.SEAL).unlink()
    if how == "seal garbled":
        (folder / storage.SEAL).write_text("[]")
    expected = {"changed": "inner/file has other bytes", "removed": "inner/file is missing"}.get(
        how, "seal cannot be read"
    )
    assert expected in (storage.damage(folder) or "")


def test_a_sealed_copy_equals_its_source(tmp_path):
    seal(tmp_path / "a", "text")
    (tmp_path / "a" / "stray").write_text("not sealed")
    storage.copy_sealed(tmp_path / "a", tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b" / "inner" / "file").read_text() == "text"
    assert not (tmp_path / "deep" / "b" / "stray").exists()
    assert storage.damage(tmp_path / "deep" / "b") is None


def test_json_digests_ignore_key_order_only():
    assert storage.digest_json({"a": 1, "b": 2}) == storage.digest_json({"b": 2, "a": 1})
    assert storage.digest_json({"a": 1}) != storage.digest_json({"a": 2})


def test_too_little_space_is_refused_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _path: 5_000_000)
    with pytest.raises(InputError, match=r"needs 20 MB free .* 5 MB are left"):
        storage.require_space(tmp_path, 20_000_000, "training")
    storage.require_space(tmp_path, 4_000_000, "training")


def test_free_space_of_a_folder_yet_to_be_made(tmp_path):
    assert storage.free_bytes(tmp_path / "not" / "yet") == pytest.approx(storage.free_bytes(tmp_path), rel=0.05)


# remembered values ----------------------------------------------------------------------------------------------------
def never():
    raise AssertionError("made again")


def test_a_value_is_made_once_and_read_back_as_json_has_it(tmp_path):
    first = storage.remembered(tmp_path / "k1", {"seed": 0}, lambda: [("a", 1.5)])
    assert first == [["a", 1.5]]
    assert storage.remembered(tmp_path / "k1", {"seed": 0}, never) == first
    assert storage.read_seal(tmp_path / "k1") == {"seed": 0}


def test_a_value_under_another_key_is_made_anew(tmp_path):
    storage.remembered(tmp_path / "k1", {"seed": 0}, lambda: 1)
    assert storage.remembered(tmp_path / "k2", {"seed": 1}, lambda: 2) == 2
    assert storage.remembered(tmp_path / "k1", {"seed": 0}, never) == 1


@pytest.mark.parametrize("how", ["changed", "value removed", "seal removed", "seal garbled"])
def test_a_damaged_value_is_made_again_with_a_warning(tmp_path, how):
    folder = tmp_path / "tiny" / "k1"
    storage.remembered(folder, {}, lambda: "old")
    if how == "changed":
        (folder / "value.json").write_text('"other"\n')
    if how == "value removed":
        (folder / "value.json").unlink()
    if how == "seal removed":
        (folder / storage.SEAL).unlink()
    if how == "seal garbled":
        (folder / storage.SEAL).write_text("{")
    with pytest.warns(UserWarning, match=r"tiny/k1 is not used: .*; it will be made again"):
        assert storage.remembered(folder, {}, lambda: "new") == "new"
    assert storage.remembered(folder, {}, never) == "new"


def test_a_value_whose_making_fails_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError, match="made again"):
        storage.remembered(tmp_path / "k1", {}, never)
    assert leftovers(tmp_path) == []


def test_a_value_json_cannot_hold_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        storage.remembered(tmp_path / "k1", {}, lambda: [1.0, float("nan")])
    assert leftovers(tmp_path) == []


def test_while_a_value_is_made_nothing_of_it_is_visible(tmp_path):
    folder = tmp_path / "k1"

    def make():
        assert not folder.exists()
        return 1

    storage.remembered(folder, {}, make)
    assert leftovers(tmp_path) == ["k1"]


# several processes ----------------------------------------------------------------------------------------------------
def note(file, word):
    with file.open("a") as stream:
        stream.write(f"{word}\n")


def remember(folder, log, who):
    def make():
        note(log, "made")
        time.sleep(1.5)  # the others come meanwhile
        return who

    note(log, storage.remembered(folder, {}, make))


def test_of_processes_that_want_the_same_one_makes_it_and_all_get_it(tmp_path, two_cpus):
    log = tmp_path / "log"
    threads.side_by_side(remember, [(tmp_path / "k1", log, who) for who in ("x", "y")])
    first, *others = log.read_text().split()
    assert first == "made"
    assert others in (["x", "x"], ["y", "y"])
    assert leftovers(tmp_path) == ["k1", "log"]


def inside(folder, log):
    with storage.alone(folder):
        note(log, "in")
        time.sleep(0.3)
        note(log, "out")


def test_others_wait_until_the_one_inside_has_left(tmp_path, two_cpus):
    log = tmp_path / "log"
    threads.side_by_side(inside, [(tmp_path / "deep" / "model", log)] * 3)
    assert log.read_text().split() == ["in", "out"] * 3


def test_different_folders_do_not_wait_for_each_other(tmp_path):
    with storage.alone(tmp_path / "child"), storage.alone(tmp_path / "parent"):
        assert storage.remembered(tmp_path / "other", {}, lambda: 1) == 1


def test_a_process_that_dies_inside_lets_the_next_one_in(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from lib import storage\n"
        "with storage.alone(Path(sys.argv[1])): os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "k1")], cwd=paths.ROOT, check=False)
    assert done.returncode == 9
    started = time.monotonic()
    assert storage.remembered(tmp_path / "k1", {}, lambda: 1) == 1
    assert time.monotonic() - started < 5
