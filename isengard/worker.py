"""Claims jobs, runs their handlers, and tells the queue how they ended."""

import contextvars
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from isengard.domain.job import Job, JobError, JobKind, Progress, Requests, Stop
from isengard.engines.base import Report
from isengard.errors import (
    DiskFull,
    IsengardError,
    JobCancelled,
    JobPaused,
    JobYielded,
    LeaseLost,
    OutOfMemory,
    QueueUnavailable,
)
from isengard.logs import bound
from isengard.queue.base import JobQueue

log = logging.getLogger(__name__)

#: Does the work of one job and returns its result, plain JSON values. Keys its outputs by the job's id: it may run twice.
Handler = Callable[[Job, Report], dict[str, Any]]

#: Progress is written this often at most, and a write may take this share of the handler's time at most.
WRITE_EVERY_S, WRITE_SHARE = 0.25, 0.05
#: A stop must be known after this time, also where writes are slow.
LEARN_WITHIN_S = 2.0
#: A worker that could not renew its lease for this share of it stops by itself, before the job is handed out again.
OWN_FENCE = 0.8

_UNREACHABLE = (QueueUnavailable, DiskFull)


class Reporter:
    """The ``report`` a handler calls: writes the newest progress now and then, and raises what stops the job."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        job: Job,
        lease_s: float,
        stop: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self._queue, self._job, self._lease_s, self._shutdown, self._clock = queue, job, lease_s, stop, clock
        self._lock = threading.Lock()
        self._newest: Progress | None = None
        self._unsent = False
        self._stop: Stop | None = None
        self._requests = Requests()
        self._lost = False
        self._renewed_at = clock()
        self._next_write = self._renewed_at

    def __call__(self, progress: Progress) -> Requests:
        with self._lock:
            at_once = self._is_news(progress)
            self._newest, self._unsent = progress, True
            if at_once or self._clock() >= self._next_write:
                self._beat()
            self._raise_stop()
            requests, self._requests = self._requests, Requests()
            return requests

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Renew the lease from a thread while the handler is silent, and send what was held back."""
        done = threading.Event()
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._renew, done), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _renew(self, done: threading.Event) -> None:
        while not done.wait(min(1.0, self._lease_s / 8)):
            with self._lock:
                if self._unsent or self._clock() - self._renewed_at >= self._lease_s / 4:
                    self._beat()
                if self._lost:
                    return

    def _is_news(self, progress: Progress) -> bool:
        last = self._newest
        return (
            last is None
            or (progress.phase, progress.preview) != (last.phase, last.preview)
            or 0 < progress.total == progress.step
        )

    def _beat(self) -> None:
        asked_at = self._clock()
        try:
            signals = self._queue.heartbeat(
                self._job, lease_s=self._lease_s, progress=self._newest if self._unsent else None
            )
        except LeaseLost:
            self._lost = True
        except _UNREACHABLE as error:
            log.warning("heartbeat failed", extra={"reason": str(error)})
        else:
            self._renewed_at, self._unsent, self._stop = asked_at, False, signals.stop
            self._requests = Requests(
                save=self._requests.save or signals.requests.save,
                sample=self._requests.sample or signals.requests.sample,
            )
        now = self._clock()
        self._next_write = now + min(LEARN_WITHIN_S, max(WRITE_EVERY_S, (now - asked_at) / WRITE_SHARE))

    def _raise_stop(self) -> None:
        if self._lost or self._clock() - self._renewed_at > OWN_FENCE * self._lease_s:
            self._lost = True
            raise LeaseLost(f"job {self._job.id} does not belong to this worker any more")
        if self._stop is Stop.CANCEL:
            raise JobCancelled
        if self._stop is Stop.PAUSE:
            raise JobPaused
        if self._shutdown.is_set():
            raise JobYielded("the worker was stopped")
        if self._stop is Stop.YIELD:
            raise JobYielded("made room for an interactive job")


class Worker:
    """Runs one job at a time."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        handlers: Mapping[JobKind, Handler],
        name: str,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
        owns_process: bool = False,
    ) -> None:
        """``owns_process``: nothing else happens in this process, so each of its log lines is the job's."""
        self._queue, self._handlers, self._name, self._lease_s = queue, handlers, name, lease_s
        self._clock, self._owns_process = clock, owns_process

    def run(self, stop: threading.Event, *, poll_s: float = 0.25) -> None:
        """Run jobs until ``stop`` is set; the job at hand yields then."""
        while not stop.is_set():
            try:
                if self.run_one(stop):
                    continue
                pause_s = poll_s
            except _UNREACHABLE as error:
                log.warning("no job can be claimed", extra={"reason": str(error)})
                pause_s = LEARN_WITHIN_S
            stop.wait(pause_s)

    def run_one(self, stop: threading.Event | None = None) -> bool:
        """Claim a job and bring it to an end; whether there was one. Raises: QueueUnavailable, DiskFull."""
        job = self._queue.claim(self._name, lease_s=self._lease_s)
        if job is None:
            return False
        reporter = Reporter(
            queue=self._queue,
            job=job,
            lease_s=self._lease_s,
            stop=stop or threading.Event(),
            clock=self._clock,
        )
        with bound(everywhere=self._owns_process, job_id=job.id), reporter.renewing():
            log.info("job started", extra={"kind": job.kind, "attempt": job.attempt, "worker": self._name})
            self._tell(self._run(job, reporter))
        return True

    def _run(self, job: Job, report: Report) -> Callable[[], None]:
        """Run the handler; what to tell the queue."""
        try:
            result = self._handlers[job.kind](job, report)
        except LeaseLost as lost:
            log.warning("job lost", extra={"reason": str(lost)})
            return lambda: None
        except (JobCancelled, JobPaused) as stopped:
            log.info("job stopped", extra={"reason": type(stopped).__name__})
            return partial(self._queue.stopped, job)
        except JobYielded as yielded:
            log.info("job yielded", extra={"reason": str(yielded)})
            return partial(self._queue.release, job, reason=str(yielded))
        except Exception as error:  # noqa: BLE001  # the one place: whatever a handler does, the worker goes on
            return partial(self._queue.fail, job, _in_plain_words(error))
        log.info("job succeeded")
        return partial(self._queue.succeed, job, result)

    def _tell(self, outcome: Callable[[], None]) -> None:
        """Tell the queue, trying again for the time of a lease: hours of work may hang on it."""
        give_up_at = self._clock() + self._lease_s
        while True:
            try:
                return outcome()
            except LeaseLost as lost:
                return log.warning("job lost", extra={"reason": str(lost)})
            except _UNREACHABLE as error:
                if self._clock() > give_up_at:
                    return log.exception("the job's end could not be written")
                log.warning("the job's end is not written yet", extra={"reason": str(error)})
            time.sleep(WRITE_EVERY_S)


def _in_plain_words(error: Exception) -> JobError:
    """What the user is told of a failure; the log gets the rest."""
    if isinstance(error, IsengardError):
        log.warning("job failed", extra={"code": error.code, "reason": str(error)})
        return JobError(code=error.code, message=str(error))
    reference = secrets.token_hex(4)
    if isinstance(error, MemoryError):
        code = OutOfMemory.code
        message = (
            "the computer ran out of memory; close other programs, or choose a smaller resolution or batch"
        )
    else:
        code = "internal"
        message = (
            f"an unexpected error ({type(error).__name__}) ended the job;"
            f" the log has the details under the reference {reference}"
        )
    log.error("job failed", exc_info=error, extra={"code": code, "reference": reference})
    return JobError(code=code, message=message)
