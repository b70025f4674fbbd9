"""One way to write: whole or not at all, nothing of the dead left behind, nothing of the living touched."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vertebra.spec import VertebraError, files

DEAD = 2**22 + 1
"""More than Linux numbers processes."""


def run(code: str, *arguments: object, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_room(call: Callable[[], object]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_as_given_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    files.write_whole(path, b"first")
    with pytest.raises(OSError, match="too large"):
        no_room(lambda: files.write_whole(path, b"second"))
    assert path.read_bytes() == b"first"
    files.write_whole(path, b"third")
    assert path.read_bytes() == b"third"
    assert names(path.parent) == ["file"]


def test_what_is_written_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with files.beside(tmp_path / "file") as folder:
        (folder / "file").touch(mode=0o600)
        files.put([folder / "file"], tmp_path)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("there", [True, False])
def test_of_several_files_all_are_put_or_none(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if there:
        for name in ("a.bin", "a.xml"):
            (tmp_path / name).write_text(f"old {name}")
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target == tmp_path / "a.xml":
            raise PermissionError("no")
        return replace(self, target)

    with files.beside(tmp_path / "a.xml") as folder:
        for name in ("a.bin", "a.xml"):
            (folder / name).write_text(f"new {name}")
        new = [folder / "a.bin", folder / "a.xml"]
        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(PermissionError):
            files.put(new, tmp_path)
        monkeypatch.setattr(Path, "replace", replace)
        assert [p.read_text() for p in sorted(tmp_path.glob("a.*"))] == (["old a.bin", "old a.xml"] if there else [])
        (folder / "a.bin").write_text("new a.bin")
        files.put(new, tmp_path)
    assert [p.read_text() for p in sorted(tmp_path.iterdir())] == ["new a.bin", "new a.xml"]


def test_a_folder_in_the_way_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.xml").mkdir()
    (tmp_path / "a.bin").write_text("old")
    with files.beside(tmp_path / "a.xml") as folder:
        for name in ("a.bin", "a.xml"):
            (folder / name).write_text("new")
        with pytest.raises(IsADirectoryError):
            files.put([folder / "a.bin", folder / "a.xml"], tmp_path)
    assert (tmp_path / "a.bin").read_text() == "old"


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with files.beside(tmp_path / "made") as folder:
            (folder / "made").mkdir()
            (folder / "made" / "file").write_text(content)
            assert files.put_folder(folder / "made", tmp_path / "made") == (content == "first")
    assert (tmp_path / "made" / "file").read_text() == "first"
    assert names(tmp_path) == ["made"]


WRITES = """
import sys, time
from pathlib import Path
from vertebra.spec import files
with files.beside(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder.name, flush=True)
    sys.stdin.readline()
"""


def test_halves_of_the_dead_go_and_of_the_living_stay(tmp_path: Path) -> None:
    killed, living = run(WRITES, tmp_path / "a"), run(WRITES, tmp_path / "b")
    theirs, half = said(killed), said(living)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    ours = tmp_path / f"{files.prefix_of(os.getpid())}abc"  # of a process that had our number in an earlier container
    ours.mkdir()
    assert (tmp_path / theirs).exists()
    with files.beside(tmp_path / "c") as folder:
        assert names(tmp_path) == sorted([half, folder.name])
        with files.beside(tmp_path / "d") as second:
            assert names(tmp_path) == sorted([half, folder.name, second.name])
    living.communicate("\n")
    assert names(tmp_path) == []


def test_halves_of_another_host_go_after_a_day(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f"{files.PREFIX}00000000-{DEAD}-{name}").mkdir()
    day = time.time() - files.FORGOTTEN - 60
    os.utime(tmp_path / f"{files.PREFIX}00000000-{DEAD}-old", (day, day))
    (tmp_path / f"{files.PREFIX}mine").write_text("a file that only begins so")
    files.sweep(tmp_path)
    assert names(tmp_path) == [f"{files.PREFIX}00000000-{DEAD}-new", f"{files.PREFIX}mine"]


def test_a_file_goes_only_when_that_was_said_and_never_the_source(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    files.refuse_to_overwrite(path, force=False, source=path)
    path.touch()
    link.hardlink_to(path)
    with pytest.raises(VertebraError, match=r"a is there already; name another file, or .*--force"):
        files.refuse_to_overwrite(path, force=False)
    files.refuse_to_overwrite(path, force=True)
    with pytest.raises(VertebraError, match="link is the file that is read; name another one"):
        files.refuse_to_overwrite(link, force=True, source=path)
    with pytest.raises(VertebraError, match="is a folder"):
        files.refuse_to_overwrite(tmp_path, force=True)


# --- locks

HOLDS = """
import sys
from pathlib import Path
from vertebra.spec.files import Lock
lock = Lock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.readline()
lock.release()
"""
OPENED = """
import fcntl, sys
waited = []
def late(name):
    original = getattr(fcntl, name)
    def call(*arguments):
        if not waited:
            waited.append(1)
            print("opened", flush=True)
            sys.stdin.readline()
        return original(*arguments)
    setattr(fcntl, name, call)
late("flock"), late("lockf")
"""


def test_a_lock_is_one_processs_and_falls_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = run(HOLDS, path)
    assert said(other) == "True"
    lock = files.Lock(path)
    assert not lock.acquire()
    assert lock.holder == str(other.pid)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert lock.acquire()
    lock.release()
    assert not path.exists()


def test_a_second_handle_of_the_same_process_neither_gets_the_lock_nor_loosens_it(tmp_path: Path) -> None:
    first, second = files.Lock(tmp_path / "lock"), files.Lock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    assert second.holder == str(os.getpid())
    other = run(HOLDS, tmp_path / "lock")
    assert said(other) == "False"
    other.communicate("\n")
    first.release()
    assert second.acquire()
    second.release()


def test_who_opened_the_file_before_it_was_removed_does_not_get_a_second_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, next_ = files.Lock(path), files.Lock(path)
    assert first.acquire()
    late = run(OPENED + HOLDS, path)
    assert said(late) == "opened"
    first.release()
    assert next_.acquire()
    assert late.stdin is not None
    late.stdin.write("\n")
    late.stdin.flush()
    assert said(late) == "False"
    late.communicate("\n")
    next_.release()


def test_what_is_forked_holds_no_lock(tmp_path: Path) -> None:
    """As workers that outlive a run which was killed alone."""
    forks = HOLDS.replace(
        "sys.stdin",
        'import os, time\nif os.fork() == 0:\n    print("forked", flush=True)\n    time.sleep(60)\nsys.stdin',
    )
    process = run(forks, tmp_path / "lock", start_new_session=True)
    try:
        assert [said(process), said(process)] == ["True", "forked"]
        process.kill()
        process.wait()
        lock = files.Lock(tmp_path / "lock")
        assert lock.acquire()
        lock.release()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
