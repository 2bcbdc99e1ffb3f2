"""Keeps a worker in the registry: what it is and has, every few seconds, also while a job runs."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from isengard.domain.worker import WorkerState
from isengard.errors import IsengardError
from isengard.queue.base import JobQueue

log = logging.getLogger(__name__)

#: A quarter of the time after which a silent worker counts as gone.
ANNOUNCE_EVERY_S = 5.0


class Announcer:
    """A thread that announces one worker."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        name: str,
        describe: Callable[[str], WorkerState],
        every_s: float = ANNOUNCE_EVERY_S,
    ) -> None:
        """``describe`` gives the worker of a name as it is now."""
        self._queue, self._name, self._describe, self._every_s = queue, name, describe, every_s
        self._wake = threading.Event()
        self._done = self._is_unheard = self._is_draining = False

    @contextmanager
    def announcing(self, *, comes_back: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Be in the registry while the block runs.

        ``comes_back`` is asked at the end: whether this worker is about to start anew, and stays in it. Who leaves is
        not draining any more when he returns.

        Raises:
            QueueUnavailable, DiskFull: it could not be entered.
        """
        self._announce()
        thread = threading.Thread(target=self._go_on, name="announcer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done = True
            self._wake.set()
            thread.join()
            if not comes_back():
                self._try(lambda: self._queue.leave(self._name))

    def soon(self) -> None:
        """Announce it at once: something of it has changed."""
        self._wake.set()

    def _go_on(self) -> None:
        while True:
            self._wake.wait(self._every_s)
            self._wake.clear()
            if self._done:
                return
            self._try(self._announce)

    def _announce(self) -> None:
        known = self._queue.announce(self._describe(self._name))
        if known.draining != self._is_draining:
            said = "worker drains" if known.draining else "worker takes jobs again"
            log.info(said, extra={"worker": self._name})
        self._is_draining = known.draining

    def _try(self, tell: Callable[[], None]) -> None:
        """A queue that is away is mentioned once; what was last said of the worker holds for a while."""
        try:
            tell()
        except (IsengardError, OSError) as error:
            if not self._is_unheard:
                log.warning("worker not announced", extra={"worker": self._name, "reason": str(error)})
            self._is_unheard = True
        else:
            self._is_unheard = False
