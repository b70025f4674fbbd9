"""How every file and folder is written: beside its place, synced, renamed; and how a folder is one process's own.

What is half written lies in a folder `.vertebra-HOST-PID-...` beside the place it is for. Its name says who writes, so
that whoever writes there next removes what the dead left, and nothing of the living.
"""

import errno
import hashlib
import os
import platform
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import FileIO
from pathlib import Path

from vertebra.spec.errors import VertebraError

PREFIX = ".vertebra-"
FORGOTTEN = 24 * 3600
"""Seconds after which nobody on another host writes any more."""
_UNKNOWN = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems say that cannot sync a folder."""

_ours = set[str]()
"""Names of the folders that this process writes in now."""
_turn = threading.Lock()
"""Of threads that make such a folder, or ask whose one is."""


@contextmanager
def beside(target: Path) -> Generator[Path]:
    """An empty folder on the disk of `target`, whose own folder is made where it is not there; gone at the end.

    Raises OSError, as all here do: what to do about it is the caller's to say.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    with _turn:
        folder = Path(tempfile.mkdtemp(prefix=prefix_of(os.getpid()), dir=target.parent))
        _ours.add(folder.name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _ours.discard(folder.name)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """The file as given, or as it was before."""
    with beside(path) as folder:
        (folder / path.name).write_bytes(content)
        put([folder / path.name], path.parent)


def put(files: Sequence[Path], folder: Path) -> None:
    """Move files, which were written beside, to `folder` under their own names, in this order: all of them or none.

    They get the rights of any new file. A process that is killed meanwhile may leave some of them: whoever writes
    several names the last one by what is in the others.
    """
    for file in files:
        if (folder / file.name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / file.name))
        _as_any_new_file(file)
        _sync(file)
    undo = list[tuple[Path, Path | None]]()
    try:
        for file in files:
            target = folder / file.name
            if file != files[-1]:
                undo.append((target, _copy(target, file.parent)))
            file.replace(target)
    except BaseException:
        for target, old in reversed(undo):
            if old is not None:
                old.replace(target)
            else:
                target.unlink(missing_ok=True)
        raise
    _sync_folder(folder)


def put_folder(made: Path, target: Path) -> bool:
    """Move a folder, which was made beside, to `target`; False where there is one already, which stays."""
    for path in (*made.rglob("*"), made):
        _sync(path)
    try:
        made.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    _sync_folder(target.parent)
    return True


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Remove what the dead left half written in `folder`. Of those that write now, nothing is touched."""
    with suppress(OSError), os.scandir(folder) as entries:
        halves = [Path(entry.path) for entry in entries if entry.name.startswith(PREFIX)]
        for half in halves:
            if _is_dead(half):
                shutil.rmtree(half, ignore_errors=True)


def drop(folder: Path, process: int) -> None:
    """Remove what a process of this host that was ended left half written in `folder`."""
    for half in folder.glob(f"{prefix_of(process)}*"):
        shutil.rmtree(half, ignore_errors=True)


def prefix_of(process: int) -> str:
    """How the folders begin that a process of this host writes in."""
    return f"{PREFIX}{_host()}-{process}-"


def is_half(path: Path) -> bool:
    """Whether a name is of something half written."""
    return path.name.startswith(PREFIX)


def _is_dead(half: Path) -> bool:
    host, _, rest = half.name.removeprefix(PREFIX).partition("-")
    number = rest.partition("-")[0]
    if host != _host() or not number.isdigit() or os.name != "posix":
        with suppress(OSError):
            return time.time() - half.stat().st_mtime > FORGOTTEN
        return False
    if int(number) == os.getpid():  # in a container, the dead one may have had our number
        with _turn:
            return half.name not in _ours
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@cache
def _host() -> str:
    """The machine, or the container on it: where a process's number means that process."""
    numbers = Path("/proc/self/ns/pid")
    within = numbers.stat().st_ino if numbers.exists() else ""
    return hashlib.sha256(f"{platform.node()} {within}".encode()).hexdigest()[:8]


def _as_any_new_file(file: Path) -> None:
    """Some libraries give what they write to its owner alone."""
    sample = file.with_name(f"{file.name[:50]}.new")
    sample.touch()
    file.chmod(stat.S_IMODE(sample.stat().st_mode))
    sample.unlink()


def _copy(file: Path, folder: Path) -> Path | None:
    """Where it can be had back from; None where there is no such file."""
    if not file.exists():
        return None
    kept = Path(tempfile.mkdtemp(dir=folder)) / file.name
    try:
        kept.hardlink_to(file)
    except OSError:
        shutil.copy2(file, kept)
    return kept


def _sync(path: Path) -> None:
    if path.is_dir():
        _sync_folder(path)
        return
    with path.open("rb" if os.name == "posix" else "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The new name, too, must be on the disk."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(handle)


def refuse_to_overwrite(target: Path, *, force: bool, source: str | Path | None = None) -> None:
    """Raise `VertebraError` where a file is there and nobody said that it may go; or where it is the `source`."""
    if source is not None and target.exists() and Path(source).exists() and target.samefile(source):
        raise VertebraError(f"{target} is the file that is read; name another one to write")
    if target.is_dir():
        raise VertebraError(f"{target} is a folder; give a file's name")
    if not force and (target.exists() or target.is_symlink()):
        raise VertebraError(f"{target} is there already; name another file, or write over it with --force (force=True)")


class Lock:
    """A file that one process at a time has locked, gone when it lets go. A process that dies lets go; what it forked
    holds nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def acquire(self) -> bool:
        """False where somebody has it, this process in another place, too. Raises OSError."""
        while True:
            file = self.path.open("ab+", buffering=0)
            if not _lock(file):
                file.close()
                return False
            if _is_at(file, self.path):
                break
            file.close()  # its holder removed it between our opening it and its letting go
        self._file = file
        _held.add(self)
        with suppress(OSError):  # a full disk: the number is only for the message
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        return True

    @property
    def held(self) -> bool:
        """Whether it is ours."""
        return self._file is not None

    @property
    def holder(self) -> str:
        """The number of the process that has it, where it can be read."""
        with suppress(OSError):
            return self.path.read_bytes()[:20].decode(errors="replace").strip()
        return ""

    def release(self) -> None:
        """Does nothing where it is not held."""
        if self._file is None:
            return
        with suppress(OSError):  # Windows keeps what is open
            self.path.unlink(missing_ok=True)  # while it is held: who has opened it sees that it is another file
        self.close()

    def close(self) -> None:
        """Let go, and leave the file."""
        _held.discard(self)
        if self._file is not None:
            self._file.close()
        self._file = None


_held = set[Lock]()
"""Of this process."""


def _lock(file: FileIO) -> bool:
    try:
        import fcntl
    except ImportError:
        return True  # Windows
    try:
        # Not lockf, whose locks a process has but once: they fall when any handle of it to that file is closed.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # others: a file system without locks
    return True


def _is_at(file: FileIO, path: Path) -> bool:
    if os.name != "posix":
        return True
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _after_fork() -> None:
    """What is forked has the same open files, and would hold the locks when its parent is long gone."""
    global _turn  # noqa: PLW0603 - another thread may have had it
    _turn = threading.Lock()
    for lock in [*_held]:
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
