"""The files of the data folder, read quickly, and removing them."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from isengard.domain.storage import File
from isengard.files import PARTIAL


def files_in(folder: Path) -> Iterator[File]:
    """All files below, each asked for once; links count as nothing, and so does what vanishes meanwhile."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with suppress(OSError), os.scandir(folder / inside) as entries:
            for entry in entries:
                path = f"{inside}{entry.name}"
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{path}/")
                    elif entry.is_file(follow_symlinks=False):
                        found = entry.stat(follow_symlinks=False)
                        yield File(path, found.st_size, found.st_mtime)


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.size for file in files_in(folder))


def remove(path: Path) -> None:
    """Remove a file or a folder. A folder is gone from its place at once, also when this is interrupted.

    Raises:
        OSError: it stays.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    doomed = path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex[:8]}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
