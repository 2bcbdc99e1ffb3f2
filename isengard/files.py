"""Writes that are whole or absent, also after a power cut."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from isengard.errors import Conflict, DiskFull, DiskReadOnly, IsengardError, JobStopped, LeaseLost

#: Unfinished files and folders carry this in their name; nothing reads them and `sweep` removes them.
PARTIAL = ".partial-"

_check: ContextVar[Callable[[], None]] = ContextVar("isengard_write_check", default=lambda: None)


@contextmanager
def checked(check: Callable[[], None]) -> Iterator[None]:
    """Inside the block nothing takes its place and nothing is swept away before ``check`` was asked; it may raise.

    A process can be stopped at any instruction, and wake when another one does its work: it must not write over that.
    What stays is the moment between the answer and the rename, some microseconds. Who takes the work over sweeps away what
    the former owner had not finished: a rename that is held up in that moment finds nothing to move.
    """
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def check_now() -> None:
    """Ask the check of `checked`, before a change that the functions here do not make."""
    _check.get()()


#: Seconds to wait for another process that changes the same things, which takes milliseconds. A server of NFS keeps the
#: locks of a machine that broke down for 90.
LOCK_TIMEOUT_S = 120.0

#: Another value after a file was replaced, also within one tick of a coarse clock.
Stamp = tuple[int, int, int]


def stamp(found: os.stat_result) -> Stamp:
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextmanager
def alone(lock: FileLock, what: str) -> Iterator[None]:
    """Hold a lock. Raises: Conflict when another process has held it for `LOCK_TIMEOUT_S`; DiskFull, DiskReadOnly."""
    try:
        with disk_full_as_error(Path(lock.lock_file)):
            lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        raise Conflict(
            f"another program has been changing {what} for {LOCK_TIMEOUT_S:.0f} s; try again later"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary name beside ``path``; a file or folder written there takes its place when the block ends.

    The content is on disk (fsync) before the rename, and the rename before this returns; not so when it need not be
    ``durable``, to survive a power cut. When the block raises, ``path`` stays as it was and nothing else is left.

    Raises:
        DiskFull: instead of the OSError.
    """
    temporary, former = (path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex[:8]}") for _ in range(2))
    try:
        with disk_full_as_error(path):
            check_now()  # the folder may be gone for good
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if durable:
                _fsync_tree(temporary)
            is_folder = path.is_dir()
            check_now()
            if is_folder:
                path.rename(former)
            temporary.replace(path)
            if durable:
                _fsync(path.parent)
            _discard(former)  # what is still read of it on a network file system may stay, for `sweep`
    except FileNotFoundError:
        check_now()  # the next owner may have swept it away
        raise
    finally:
        _discard(temporary)


@contextmanager
def disk_full_as_error(path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" while writing ``path`` into `DiskFull`, "read-only" into `DiskReadOnly`."""
    try:
        yield
    except (IsengardError, JobStopped, LeaseLost):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            raise DiskReadOnly(
                f"{path} cannot be written: its disk is read-only; mount it for writing (after a fault of the disk the system"
                " makes it so: `backup` still works)"
            ) from error
        if not is_full(error):
            raise
        raise DiskFull(f"no space left on the disk for {path}; free some space, and go on") from error


def is_full(error: BaseException | None) -> bool:
    """Whether the disk is full or a quota used up; also where a library has put an error of its own in the place of that."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if str(error).endswith(f"(os error {errno.ENOSPC})"):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or leave the old one. Raises: DiskFull."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave the old one. Raises: DiskFull."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def adopt(source: Path, folder: Path) -> None:
    """Move what is in ``source`` into ``folder`` on the same file system, where nothing has its names.

    All of it is on disk before the first of it takes its place. Raises: DiskFull.
    """
    with disk_full_as_error(folder):
        _fsync_tree(source)
        for entry in sorted(source.iterdir()):
            entry.rename(folder / entry.name)
        source.rmdir()
        _fsync(folder)


def sweep(folder: Path, name: str = "*") -> int:
    """Remove what killed processes left unfinished directly in ``folder``, of this name only; how many."""
    found = list(folder.glob(f"{name}{PARTIAL}*"))
    if found:
        check_now()
    for entry in found:
        _discard(entry)
    return len(found)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # on a disk that has become read-only: what went wrong before is what is told
            path.unlink()


def _fsync_tree(path: Path) -> None:
    if path.is_dir():
        for entry in path.iterdir():
            _fsync_tree(entry)
    _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
