"""The folder that uploads pass through: it stays below a size, and what nobody fetched from it is removed."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isengard.errors import TooMany

MOST_BYTES = 4 * 2**30
#: Seconds after which a file that still lies here was abandoned. The page takes an upload at once.
KEPT_S = 2 * 3600.0
#: Seconds for which a look at the folder holds, but for what has come since.
LOOK_S = 60.0
#: Seconds after which it is worth while to try again when the folder is full.
FULL_S = 60


class UploadFolder:
    """Says whether one more upload fits, before it comes."""

    def __init__(
        self, folder: Path, *, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._most, self._clock = folder, most_bytes, clock
        self._lock = threading.Lock()
        self._coming = 0
        self._found, self._since, self._looked_at = 0, 0, float("-inf")

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Keep room for an upload of at most this many bytes while it comes. Raises: TooMany: there is none."""
        with self._lock:
            stale = not 0 <= self._clock() - self._looked_at < LOOK_S
            if stale or self._found + self._since + size > self._most:
                self._look()
            if self._found + self._since + size > self._most:
                raise TooMany(
                    f"the folder for uploads is full ({self._most / 2**30:.1f} GB): wait {FULL_S} s, then try again",
                    retry_after_s=FULL_S,
                )
            self._coming += size
            self._since += size
        try:
            yield
        finally:
            with self._lock:
                self._coming -= size

    def sweep(self) -> int:
        """Remove what was abandoned; how many bytes are left."""
        oldest, left = self._clock() - KEPT_S, 0
        for folder, _, names in os.walk(self._folder, topdown=False):
            for name in names:
                left += _kept(Path(folder, name), oldest)
            if Path(folder) != self._folder:
                with suppress(OSError):  # it is not empty, or another page was quicker
                    if Path(folder).lstat().st_ctime < oldest:
                        Path(folder).rmdir()
        return left

    def _look(self) -> None:
        self._found, self._since, self._looked_at = self.sweep(), self._coming, self._clock()


def _kept(path: Path, oldest: float) -> int:
    """The bytes of a file, or 0 when it was older and is removed. A copy's time of change is that of the copying."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if status.st_ctime >= oldest:
            return status.st_size
        path.unlink()
    return 0
