"""A machine that is paid by the hour: whether its data are safe there, what it costs, and how it ends when nobody needs it."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isengard.domain.base import Frozen
from isengard.domain.job import Job, JobStatus
from isengard.domain.worker import largest_memory, serves
from isengard.errors import InvalidSpec, IsengardError, PodNotStopped
from isengard.queue.base import JobQueue
from isengard.services.workers import WorkerService
from isengard.settings import RUNPOD_VOLUMES, Settings, variable
from isengard.store.volume import Mount, mount_of

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
#: An idle machine that costs money is mentioned after so long; its end is announced so long before.
MENTIONED_S, ANNOUNCED_S = 1200.0, 300.0
#: Nothing is announced right after somebody did something.
QUIET_S = 5.0
#: Between two tries to stop the pod.
TRY_AGAIN_S = 300.0
#: Jobs that are looked at.
LOOKED_AT = 1000
#: File systems in memory or of a container's own disk.
FLEETING = frozenset({"overlay", "tmpfs", "ramfs", "aufs"})
#: What Docker makes of a VOLUME that nobody has mounted, and removes with the container.
ANONYMOUS = re.compile(r"/volumes/[0-9a-f]{64}/_data")


def check_stop(settings: Settings) -> None:
    """Raises: InvalidSpec: a stop is wanted, and this is no pod that can stop itself."""
    lacking = [variable(name) for name in ("runpod_pod_id", "runpod_api_key") if not getattr(settings, name)]
    if settings.stop_when_idle_minutes and lacking:
        raise InvalidSpec(
            f"{variable('stop_when_idle_minutes')} is {settings.stop_when_idle_minutes}, and {' and '.join(lacking)} not"
            " set: only a pod of RunPod can be stopped, where RunPod sets both; unset the former, or set what is missing"
        )


def idle_message(idle_s: float, *, per_hour: float | None, page: str | None) -> dict[str, Any]:
    """What a webhook is told of a machine that costs money for nothing."""
    price = "" if per_hour is None else f" and costs ${per_hour:.2f} an hour"
    said = f"Isengard's machine has been idle for {idle_s / 60:.0f} min{price}"
    return {
        "event": "idle",
        "idle_minutes": round(idle_s / 60),
        "price_per_hour": per_hour,
        "url": page,
        "text": said,
        "content": said,
    }


class Idleness(Frozen):
    """How long nothing has happened, and what comes of it."""

    idle_s: float = 0.0
    mentioned: bool = False
    stops_in_s: float | None = None
    stopping: bool = False
    trouble: str = ""


WAY_OUT = (
    "attach a volume disk or a network volume to the pod (RunPod mounts it at /workspace) and set ISENGARD_DATA_DIR to a"
    " folder on it, or leave it unset"
)


def at_risk(settings: Settings) -> str:
    """The data folder, when RunPod wipes it with the pod's end; else empty."""
    return str(settings.data_dir) if settings.runpod_pod_id and is_wiped(settings.data_dir) else ""


def is_wiped(
    folder: Path,
    *,
    volumes: tuple[Path, ...] = RUNPOD_VOLUMES,
    mount: Callable[[Path], Mount | None] = mount_of,
) -> bool:
    """Whether a folder of a RunPod pod is lost when the pod stops: it lies on the container's disk, not on a volume."""
    found = mount(folder)
    if found is None or found.point in volumes:
        return False
    return found.point == Path("/") or found.kind in FLEETING or bool(ANONYMOUS.search(found.root))


class Work:
    """Whether there is something to do for this machine."""

    def __init__(self, *, queue: JobQueue, workers: WorkerService, machine: str, shared: bool) -> None:
        """``machine``: the first part of its workers' names. ``shared``: there may be others."""
        self._queue, self._workers, self._machine, self._shared = queue, workers, machine, shared

    def __call__(self) -> bool:
        """Also where the one who would do it is away for a moment. Raises: QueueUnavailable, DiskFull."""
        jobs = self._queue.jobs(statuses=(JobStatus.RUNNING, JobStatus.QUEUED), limit=LOOKED_AT)
        living = [worker for worker in self._workers.workers() if self._workers.is_alive(worker)]
        ours = [worker for worker in living if self._is_here(worker.name)]
        if not ours:
            return bool(jobs)
        largest_gb = largest_memory(living)

        def is_for_us(job: Job) -> bool:
            if job.status is JobStatus.RUNNING:
                return self._is_here(job.worker or "")
            return any(not one.draining and serves(one, job.needs, largest_gb=largest_gb) for one in ours)

        return any(map(is_for_us, jobs))

    def _is_here(self, worker: str) -> bool:
        return not self._shared or worker.partition("/")[0] == self._machine


class IdleWatch:
    """Notices that nothing happens: no work, and nobody at the page. It may then stop the pod."""

    def __init__(
        self,
        *,
        busy: Callable[[], bool],
        mention: Callable[[float], None],
        stop: Callable[[], None] = lambda: None,
        stop_after_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``mention``: told once of each long idle time, in seconds. ``stop``: may raise PodNotStopped."""
        self._busy, self._stop, self._stop_after_s = busy, stop, stop_after_s
        self._mention, self._clock = mention, clock
        self._lock = threading.Lock()
        self._used_at = clock()
        self._next_try = 0.0
        self._mentioned = self._stopping = False
        self._trouble = ""

    def used(self, ago_s: float = 0.0) -> None:
        """Somebody did something so many seconds ago."""
        with self._lock:
            self._used_at = max(self._used_at, self._clock() - max(0.0, ago_s))

    def state(self) -> Idleness:
        idle_s = self._idle_s()
        left_s = None if self._stop_after_s is None else max(0.0, self._stop_after_s - idle_s)
        soon = left_s is not None and left_s <= ANNOUNCED_S and idle_s >= QUIET_S
        return Idleness(
            idle_s=idle_s,
            mentioned=idle_s >= MENTIONED_S,
            stops_in_s=left_s if soon else None,
            stopping=self._stopping,
            trouble=self._trouble,
        )

    def look(self) -> None:
        """See whether there is work, and do what is due."""
        try:
            busy = self._busy()
        except IsengardError:  # who cannot be asked may have work
            busy = True
        if busy:
            self.used()
        idle_s = self._idle_s()
        if idle_s < QUIET_S:
            self._mentioned = self._stopping = False
            self._trouble, self._next_try = "", 0.0
        if idle_s >= MENTIONED_S and not self._mentioned:
            self._mentioned = True
            self._mention(idle_s)
        if (
            self._stop_after_s is not None
            and idle_s >= self._stop_after_s
            and self._clock() >= self._next_try
        ):
            self._next_try = self._clock() + TRY_AGAIN_S
            self._end(idle_s)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look now and then while the block runs."""
        done = threading.Event()

        def go_on() -> None:
            while not done.wait(LOOK_EVERY_S):
                self.look()

        thread = threading.Thread(target=go_on, name="idle", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()

    def _idle_s(self) -> float:
        with self._lock:
            return max(0.0, self._clock() - self._used_at)

    def _end(self, idle_s: float) -> None:
        log.warning("pod is stopped", extra={"idle_s": round(idle_s)})
        try:
            self._stop()
        except PodNotStopped as error:
            self._trouble = str(error)
            log.warning("pod is not stopped", extra={"reason": str(error)})
        else:
            self._stopping, self._trouble = True, ""
