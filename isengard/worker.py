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

#: Progress that is no news is written this often.
WRITE_EVERY_S = 0.25
#: A report waits for the queue's answer when the last one is older: it may hold a stop.
ANSWER_AGE_S = 1.0
#: After the queue could not be reached.
TRY_AGAIN_S = 1.0
#: A worker that could not renew its lease for this share of it stops by itself, before the job is handed out again.
OWN_FENCE = 0.8

_UNREACHABLE = (QueueUnavailable, DiskFull)


class Reporter:
    """The ``report`` a handler calls: keeps the newest progress for the queue, and raises what stops the job.

    A thread does the writing, so a handler with short steps never waits for the disk. It also renews the lease while
    the handler is silent.
    """

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
        self._answer_age_s = min(ANSWER_AGE_S, lease_s / 4)
        self._state = threading.Condition()  # guards what follows
        self._beating = threading.Lock()  # one heartbeat at a time
        self._newest: Progress | None = None
        self._unsent = self._news = self._lost = self._done = False
        self._stop: Stop | None = None
        self._requests = Requests()
        self._renewed_at = self._next_write = clock()
        self._next_try = 0.0

    def __call__(self, progress: Progress) -> Requests:
        with self._state:
            self._news |= self._is_news(progress)
            self._newest, self._unsent = progress, True
            old = self._may_try() and self._clock() - self._renewed_at >= self._answer_age_s
            if not old and self._has_to_write():
                self._state.notify()
        if old:
            self._beat()
        with self._state:
            self._raise_stop()
            requests, self._requests = self._requests, Requests()
            return requests

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Run the thread that talks to the queue."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._renew,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._state:
                self._done = True
                self._state.notify()
            thread.join()

    def _renew(self) -> None:
        while True:
            with self._state:
                if not self._done and not self._has_to_write():
                    self._state.wait(min(1.0, self._lease_s / 8))
                if self._done or self._lost:
                    return
                silent = self._clock() - self._renewed_at >= self._lease_s / 4
                due = self._has_to_write() or (silent and self._may_try())
            if due:
                self._beat()

    def flush(self) -> None:
        """Write what was not written yet."""
        if self._unsent and not self._lost:
            self._beat()

    def _may_try(self) -> bool:
        return not self._lost and self._clock() >= self._next_try

    def _has_to_write(self) -> bool:
        return self._unsent and self._may_try() and (self._news or self._clock() >= self._next_write)

    def _is_news(self, progress: Progress) -> bool:
        last = self._newest
        return (
            last is None
            or (progress.phase, progress.preview) != (last.phase, last.preview)
            or 0 < progress.total == progress.step
        )

    def _beat(self) -> None:
        with self._beating:
            with self._state:
                progress = self._newest if self._unsent else None
                self._unsent = self._news = False
            asked_at = self._clock()
            signals, lost = None, False
            try:
                signals = self._queue.heartbeat(self._job, lease_s=self._lease_s, progress=progress)
            except LeaseLost:
                lost = True
            except _UNREACHABLE as error:
                log.warning("heartbeat failed", extra={"reason": str(error)})
            with self._state:
                self._lost |= lost
                self._next_write = asked_at + WRITE_EVERY_S
                if signals is None:
                    self._unsent |= progress is not None
                    self._next_try = self._clock() + TRY_AGAIN_S
                    return
                self._renewed_at, self._stop = asked_at, signals.stop
                self._requests = Requests(
                    save=self._requests.save or signals.requests.save,
                    sample=self._requests.sample or signals.requests.sample,
                )

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
        spent: Callable[[], bool] = lambda: False,
    ) -> None:
        """``owns_process``: nothing else happens in this process, so each of its log lines is the job's.

        ``spent``: whether a job has left things behind in the process, so that the next needs another one.
        """
        self._queue, self._handlers, self._name, self._lease_s = queue, handlers, name, lease_s
        self._clock, self._owns_process, self._spent = clock, owns_process, spent

    def run(self, stop: threading.Event, *, poll_s: float = 0.25) -> None:
        """Run jobs until ``stop`` is set, when the job at hand yields, or until the process is spent."""
        while not stop.is_set() and not self._spent():
            try:
                if self.run_one(stop):
                    continue
                pause_s = poll_s
            except _UNREACHABLE as error:
                log.warning("no job can be claimed", extra={"reason": str(error)})
                pause_s = TRY_AGAIN_S
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
        fields = {"job_id": job.id, "correlation_id": job.correlation_id}
        with (
            bound(everywhere=self._owns_process, **{name: value for name, value in fields.items() if value}),
            reporter.renewing(),
        ):
            log.info("job started", extra={"kind": job.kind, "attempt": job.attempt, "worker": self._name})
            outcome = self._run(job, reporter)
            reporter.flush()
            self._tell(outcome)
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
