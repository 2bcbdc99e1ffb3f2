"""Whether this app could do its work just now: what an orchestrator and an operator ask again and again."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from isengard.domain.base import Frozen
from isengard.errors import DiskFull, IsengardError, QueueUnavailable
from isengard.services.jobs import JobService
from isengard.services.machine import Machine
from isengard.services.volume import VolumeService
from isengard.services.workers import WorkerService

log = logging.getLogger(__name__)

#: Less is not even enough for the files around a job.
FREE_BYTES_NEEDED = 200_000_000
#: An answer holds for so long, as many may ask.
LOOK_EVERY_S = 2.0
#: And who asks while a disk or a server makes everything wait is told so after this time.
PATIENCE_S = 2.0


class Check(Frozen):
    """What was looked at, and why it is not well. The reason tells a stranger nothing of the machine."""

    name: str
    ok: bool
    reason: str = ""


class Checks:
    """Looks at the job list, the workers, the disk and the GPU."""

    def __init__(
        self,
        *,
        folder: Path,
        jobs: JobService,
        workers: WorkerService,
        volume: VolumeService,
        machine: Machine | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``machine``: where a worker of this app runs; None when workers are elsewhere."""
        self._folder, self._jobs, self._workers, self._volume = folder, jobs, workers, volume
        self._machine, self._clock = machine, clock
        self._lock = threading.Lock()
        self._found: tuple[Check, ...] = ()
        self._looked_at = -LOOK_EVERY_S

    def look(self) -> tuple[Check, ...]:
        """Each check, as it was at most `LOOK_EVERY_S` ago."""
        if not self._lock.acquire(timeout=PATIENCE_S):
            return (Check(name="jobs", ok=False, reason="the job list or the disk makes everything wait"),)
        try:
            if self._clock() - self._looked_at >= LOOK_EVERY_S:
                self._tell(found := tuple(self._all()))
                self._found, self._looked_at = found, self._clock()
            return self._found
        finally:
            self._lock.release()

    def _all(self) -> Iterator[Check]:
        for name, look in (
            ("jobs", self._job_list),
            ("worker", self._worker),
            ("data", self._data),
            ("disk", self._disk),
            ("gpu", self._gpu),
        ):
            reason = look()
            yield Check(name=name, ok=not reason, reason=reason)

    def _tell(self, found: tuple[Check, ...]) -> None:
        """Log what has changed."""
        before = {check.name: check.ok for check in self._found}
        for check in found:
            if check.ok != before.get(check.name, True):
                say = log.info if check.ok else log.warning
                facts = {"check": check.name, "reason": check.reason}
                say("check passes again" if check.ok else "check failed", extra=facts)

    def _job_list(self) -> str:
        return _failure(self._jobs.check_writable, "the job list cannot be written just now")

    def _worker(self) -> str:
        try:
            alive = any(map(self._workers.is_alive, self._workers.workers()))
        except (QueueUnavailable, DiskFull):
            return "the job list does not tell whether a worker is alive"
        return "" if alive else "no worker is alive"

    def _data(self) -> str:
        return _failure(self._volume.check_still_there, "the data folder is not there")

    def _disk(self) -> str:
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError:
            return "the disk cannot be looked at"
        return "" if free >= FREE_BYTES_NEEDED else "the disk is full"

    def _gpu(self) -> str:
        lacking = self._machine is not None and self._machine.lacks_gpu()
        return "a GPU is expected and none is visible" if lacking else ""


def _failure(look: Callable[[], None], reason: str) -> str:
    try:
        look()
    except IsengardError as error:
        log.debug("check raised", extra={"reason": str(error)})
        return f"{reason} ({error.code})"
    return ""
