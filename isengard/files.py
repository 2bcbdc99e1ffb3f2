"""Writes that are whole or absent, also after a power cut."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isengard.errors import DiskFull

#: Unfinished files and folders carry this in their name; nothing reads them and `sweep` removes them.
PARTIAL = ".partial-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; a file or folder written there takes its place when the block ends.

    The content is on disk (fsync) before the rename, and the rename before this returns. When the block raises,
    ``path`` stays as it was and nothing else is left.

    Raises:
        DiskFull: instead of the OSError.
    """
    temporary = path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex[:8]}")
    try:
        with disk_full_as_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _fsync_tree(temporary)
            if path.is_dir():
                shutil.rmtree(path)
            temporary.replace(path)
            _fsync(path.parent)
    finally:
        _discard(temporary)


@contextmanager
def disk_full_as_error(path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" while writing ``path`` into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(f"no space left on the disk for {path}; free some space and start again") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or leave the old one. Raises: DiskFull."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave the old one. Raises: DiskFull."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def sweep(folder: Path, name: str = "*") -> int:
    """Remove what killed processes left unfinished directly in ``folder``, of this name only; how many."""
    found = list(folder.glob(f"{name}{PARTIAL}*"))
    for entry in found:
        _discard(entry)
    return len(found)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
