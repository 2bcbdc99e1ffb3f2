"""How much an address gets of what costs others something. It is kept in memory, by the page that was asked."""

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from isengard.domain.job import Job, JobStatus
from isengard.domain.limits import Limits, Rate
from isengard.errors import TooMany
from isengard.queue.base import JobQueue

#: Addresses that are remembered; then the one is forgotten that has not asked for longest.
REMEMBERED = 10_000
#: Seconds after which it is worth while to try again when places or the queue are full.
AGAIN_S = 10


class Asked(StrEnum):
    """What is counted over time."""

    UPLOADS = "uploads"
    JOBS = "trainings and generations"
    CHANGES = "new characters and archives"


class Place(StrEnum):
    """What is counted while it lasts."""

    UPLOADS = "uploads"
    REQUESTS = "requests"


class Buckets:
    """A token bucket for each name: full at first, refilled at a rate. Of each, only when it will be full is kept."""

    def __init__(self, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._step_s = 60 / rate.per_minute
        self._slack_s = (rate.burst - 1) * self._step_s
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, name: str) -> float:
        """Take a token, which gives 0.0; or the seconds until there is one."""
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.get(name, now), now)
            if (wait := full_at - now - self._slack_s) > 0:
                return wait
            self._full_at[name] = full_at + self._step_s
            self._full_at.move_to_end(name)
            if len(self._full_at) > REMEMBERED:
                self._full_at.popitem(last=False)
            return 0.0


class Admission:
    """Says yes, or raises `TooMany` with the time to wait."""

    def __init__(
        self, *, queue: JobQueue, limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue, self._limits = queue, limits
        rates = {Asked.UPLOADS: limits.uploads, Asked.JOBS: limits.jobs, Asked.CHANGES: limits.changes}
        self._buckets = {asked: Buckets(rate, clock=clock) for asked, rate in rates.items()}
        self._places = {Place.UPLOADS: limits.uploads_at_once, Place.REQUESTS: limits.requests_at_once}
        self._taken: Counter[tuple[Place, str]] = Counter()
        self._jobs: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def count(self, asked: Asked, address: str) -> None:
        """Count one request of this kind. Raises: TooMany."""
        wait = math.ceil(self._buckets[asked].take(address))
        if wait:
            raise TooMany(
                f"too many {asked} from {address} in a short time: wait {wait} s, then try again",
                retry_after_s=wait,
            )

    @contextmanager
    def place(self, place: Place, address: str) -> Iterator[None]:
        """Hold one of the address's places. Raises: TooMany: all are held."""
        with self._lock:
            if self._taken[place, address] >= self._places[place]:
                raise TooMany(
                    f"{address} has {self._places[place]} {place} under way already: wait {AGAIN_S} s, then try again",
                    retry_after_s=AGAIN_S,
                )
            self._taken[place, address] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[place, address] -= 1
                if not self._taken[place, address]:
                    del self._taken[place, address]

    def submit(self, address: str, make: Callable[[], Job]) -> Job:
        """Let an address have one more job, the one that ``make`` enqueues. Raises: TooMany, and what that raises."""
        self._check_waiting(address)
        self.count(Asked.JOBS, address)
        job = make()
        with self._lock:
            self._jobs.setdefault(address, set()).add(job.id)
        return job

    def _check_waiting(self, address: str) -> None:
        """Raises: TooMany: so many of its jobs, or of all, have not begun."""
        most = self._limits.all_waiting_jobs
        found = self._queue.jobs(statuses=(JobStatus.QUEUED, JobStatus.PAUSED), limit=most)
        waiting = {job.id for job in found}
        with self._lock:
            self._jobs = {name: left for name, ids in self._jobs.items() if (left := ids & waiting)}
            own = len(self._jobs.get(address, ()))
        if own >= self._limits.waiting_jobs:
            raise TooMany(
                f"{own} jobs from {address} are waiting, as many as one address may have: wait until one of them"
                " begins, or cancel some",
                retry_after_s=AGAIN_S,
            )
        if len(waiting) >= most:
            raise TooMany(
                f"{most} jobs are waiting, as many as this queue takes: wait until some of them have begun",
                retry_after_s=AGAIN_S,
            )
