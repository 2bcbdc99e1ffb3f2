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
    JobSuspended,
    JobYielded,
    LeaseLost,
    OutOfMemory,
    QueueUnavailable,
    VolumeUnfit,
)
from isengard.files import checked, is_full
from isengard.logs import bound, conceal
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


def seconds() -> float:
    """Seconds that pass also while the machine sleeps, as its leases do; those of `time.monotonic` do not."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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
        claimed_at: float,
    ) -> None:
        """``claimed_at``: the clock before the job was claimed; a stopped process may be told of it much later."""
        self._queue, self._job, self._lease_s, self._shutdown, self._clock = queue, job, lease_s, stop, clock
        self._answer_age_s = min(ANSWER_AGE_S, lease_s / 4)
        self._state = threading.Condition()  # guards what follows
        self._beating = threading.Lock()  # one heartbeat at a time
        self._newest: Progress | None = None
        self._unsent = self._news = self._lost = self._done = False
        self._stop: Stop | None = None
        self._requests = Requests()
        self._renewed_at = self._next_write = claimed_at
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

    def check(self) -> None:
        """Raise LeaseLost unless the job is ours now: asked before each file takes its place."""
        with self._state:
            ask = self._is_overdue() and self._may_try()
        if ask:
            self._beat()
        with self._state:
            self._raise_lost()

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

    def _is_overdue(self) -> bool:
        return self._clock() - self._renewed_at > OWN_FENCE * self._lease_s

    def _raise_lost(self) -> None:
        if self._lost or self._is_overdue():
            self._lost = True
            raise LeaseLost(f"job {self._job.id} does not belong to this worker any more")

    def _raise_stop(self) -> None:
        self._raise_lost()
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

    def __init__(  # noqa: PLR0913  # each is a collaborator
        self,
        *,
        queue: JobQueue,
        handlers: Mapping[JobKind, Handler],
        name: str,
        lease_s: float,
        clock: Callable[[], float] = seconds,
        owns_process: bool = False,
        spent: Callable[[], bool] = lambda: False,
        after_job: Callable[[], None] = lambda: None,
        check_files: Callable[[], None] = lambda: None,
    ) -> None:
        """``owns_process``: nothing else happens in this process, so each of its log lines is the job's.

        ``spent``: whether a job has left things behind in the process, so that the next needs another one.
        ``check_files``: raises VolumeUnfit while the data folder is not there. Without it one machine whose volume came
        loose would claim and fail the jobs of all.
        """
        self._check_files = check_files
        self._queue, self._handlers, self._name, self._lease_s = queue, handlers, name, lease_s
        self._clock, self._owns_process, self._spent = clock, owns_process, spent
        self._after_job = after_job

    def run(self, stop: threading.Event, *, poll_s: float = 1.0) -> None:
        """Run jobs until ``stop`` is set, when the job at hand yields, or until the process is spent.

        ``poll_s``: a queue that does not call this worker is asked so often at least.
        """
        while not stop.is_set() and not self._spent():
            try:
                if not self.run_one(stop):
                    self._queue.wait(self._name, poll_s)
            except (*_UNREACHABLE, VolumeUnfit) as error:
                log.warning("no job can be claimed", extra={"reason": str(error)})
                stop.wait(TRY_AGAIN_S)

    def run_one(self, stop: threading.Event | None = None) -> bool:
        """Claim a job and bring it to an end; whether there was one. Raises: QueueUnavailable, DiskFull, VolumeUnfit."""
        self._check_files()
        claimed_at = self._clock()
        job = self._queue.claim(self._name, lease_s=self._lease_s)
        if job is None:
            return False
        reporter = Reporter(
            queue=self._queue,
            job=job,
            lease_s=self._lease_s,
            stop=stop or threading.Event(),
            clock=self._clock,
            claimed_at=claimed_at,
        )
        fields = {"job_id": job.id, "fence": job.fence, "correlation_id": job.correlation_id}
        with (
            bound(everywhere=self._owns_process, **{name: value for name, value in fields.items() if value}),
            reporter.renewing(),
        ):
            log.info("job started", extra={"kind": job.kind, "attempt": job.attempt, "worker": self._name})
            outcome = self._run(job, reporter)
            reporter.flush()
            self._tell(outcome)
        self._after_job()
        return True

    def _run(self, job: Job, reporter: Reporter) -> Callable[[], None]:
        """Run the handler; what to tell the queue."""
        try:
            with checked(reporter.check):
                reporter.check()
                result = self._handlers[job.kind](job, reporter)
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
            return self._failed(job, error)
        log.info("job succeeded")
        return partial(self._queue.succeed, job, result)

    def _failed(self, job: Job, error: Exception) -> Callable[[], None]:
        """What to tell the queue.

        A job that lacks room on the disk waits for the user, and one whose files went away for them, or for another machine.
        One that had to ask the queue while it was away is done again.
        """
        if isinstance(error, QueueUnavailable):
            log.warning("job released", extra={"reason": str(error)})
            time.sleep(TRY_AGAIN_S)
            return partial(self._queue.release, job, reason=str(error))
        if isinstance(error, DiskFull | JobSuspended) or is_full(error):
            known = isinstance(error, DiskFull | JobSuspended)
            reason = str(error) if known else f"the disk is full ({error}); free some space, then resume this"
            log.warning("job suspended", exc_info=None if known else error, extra={"reason": reason})
            return partial(self._queue.suspend, job, JobError(code=DiskFull.code, message=reason))
        try:
            self._check_files()
        except VolumeUnfit as away:
            log.warning("job released", exc_info=error, extra={"reason": str(away)})
            return partial(self._queue.release, job, reason=str(away))
        return partial(self._queue.fail, job, _in_plain_words(error))

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
        return JobError(code=error.code, message=conceal(str(error)))
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
