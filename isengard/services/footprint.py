"""How much of the disk the parts of the data folder take."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from isengard.domain.storage import Part, part_of
from isengard.store.usage import files_in

#: There may be very many files, on a slow disk.
LOOK_EVERY_S = 600.0


class Footprint:
    """Looks in the background; whoever asks is told at once what was found last."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._lock = threading.Lock()
        self._looked_at = -LOOK_EVERY_S
        self._sizes: dict[Part, int] = {}
        self._thread = threading.Thread()

    def sizes(self) -> dict[Part, int]:
        """Bytes by part; nothing before the first look has ended."""
        with self._lock:
            if self._clock() - self._looked_at >= LOOK_EVERY_S and not self._thread.is_alive():
                self._looked_at = self._clock()
                self._thread = threading.Thread(target=self._look, name="footprint", daemon=True)
                self._thread.start()
            return self._sizes

    def wait(self, timeout_s: float) -> None:
        """Until the look at hand has ended, or for this time."""
        self._thread.join(timeout_s)

    def _look(self) -> None:
        sizes = dict.fromkeys(Part, 0)
        for file in files_in(self._folder):
            sizes[part_of(file.path)] += file.size
        self._sizes = sizes
