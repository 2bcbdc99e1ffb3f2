"""The contract of a job queue. Every implementation passes the one suite in ``tests/contract``."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from isengard.domain.job import (
    Job,
    JobError,
    JobEvent,
    JobKind,
    JobStatus,
    Lane,
    Needs,
    Phase,
    Progress,
    Signals,
)
from isengard.domain.tally import Tally
from isengard.domain.worker import WorkerState
from isengard.errors import WorkerLost

#: Of a job that every worker can run.
ANY_WORKER = Needs()


class JobQueue(Protocol):
    """Durable jobs, each owned by at most one worker at a time.

    A claim gives a lease (an end time) and a fence (a number that grows at every claim of the job). Delivery is
    at least once: when a lease ends without a heartbeat, the next `claim` hands the job out again. The former
    owner's fence is then old, and whatever it says is refused with `LeaseLost`.

    Transitions: queued -> running -> succeeded | failed | cancelled; running -> queued (released, yielded, lost);
    running -> paused (asked for, or suspended) -> queued; queued -> paused | cancelled;
    failed | cancelled -> queued (requeued).
    Everything returned by a method is on disk before it returns. Every method raises QueueUnavailable or DiskFull when
    the queue cannot be reached or written just now.
    """

    def enqueue(
        self,
        kind: JobKind,
        payload: dict[str, Any],
        *,
        lane: Lane = Lane.TRAINING,
        needs: Needs = ANY_WORKER,
        job_id: str | None = None,
    ) -> Job:
        """Add a job behind all others of its lane. It keeps the caller's correlation id (`isengard.logs.bound`).

        Raises:
            Conflict: there is a job ``job_id`` already.
        """
        ...

    def claim(self, worker: str, *, lease_s: float, lanes: Collection[Lane] = tuple(Lane)) -> Job | None:
        """Own the next job: interactive before training, then by position; None when there is nothing to do.

        A running job whose lease has ended counts as waiting, with ``attempt`` one higher. When its workers were
        lost `MAX_STALLED` times in a row without a step of progress in between, it is failed instead.
        A lost job with a pending cancel or pause is cancelled or paused instead of being handed out.

        A worker that has announced itself gets the first job that it `serves`, and none while it is draining; one that
        has not gets the first of all. For `PREFER_WARM_S` an interactive job is left to a living idle worker that serves it
        and has its model loaded.
        """
        ...

    def heartbeat(self, job: Job, *, lease_s: float, progress: Progress | None = None) -> Signals:
        """Renew the lease, keep the progress, and learn what the user wants. Save and sample requests come once.

        With a stop they are kept for the next owner instead. `Stop.YIELD` is signalled to one running training for
        each interactive job that has waited for `YIELD_AFTER_S` without a worker taking it, and that the training's
        worker would be given.

        Raises:
            LeaseLost: the job has another owner, or has ended.
        """
        ...

    def succeed(self, job: Job, result: dict[str, Any]) -> None:
        """running -> succeeded. Raises: LeaseLost."""
        ...

    def fail(self, job: Job, error: JobError) -> None:
        """running -> failed. Raises: LeaseLost."""
        ...

    def release(self, job: Job, *, reason: str) -> None:
        """running -> queued, with its old place, when it yielded or the worker shuts down. Raises: LeaseLost."""
        ...

    def stopped(self, job: Job) -> None:
        """running -> cancelled or paused, as was requested, once the owner has saved. Raises: LeaseLost.

        running -> queued when the request was withdrawn in the meantime.
        """
        ...

    def suspend(self, job: Job, error: JobError) -> None:
        """running -> paused, with the reason as its error until it is resumed; cancelled, if that was requested.

        Raises: LeaseLost.
        """
        ...

    def release_worker(self, worker: str) -> int:
        """Let go at once of all jobs of a worker that is known to be dead; how many. Counts as lost (`claim`)."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Waiting or paused: cancelled now. Running: the owner is asked. Raises: NotFound, Conflict when ended."""
        ...

    def pause(self, job_id: str) -> Job:
        """Waiting: paused now. Running: the owner is asked. Raises: NotFound, Conflict when ended or paused."""
        ...

    def resume(self, job_id: str) -> Job:
        """paused -> queued; withdraws a pause not yet obeyed. Raises: NotFound, Conflict when not paused."""
        ...

    def requeue(self, job_id: str, payload: dict[str, Any], *, needs: Needs = ANY_WORKER) -> Job:
        """failed | cancelled -> queued with a changed payload and its needs. Raises: NotFound, Conflict when not ended so."""
        ...

    def request(self, job_id: str, *, save: bool = False, sample: bool = False) -> Job:
        """Ask a running job to save or to sample at its next step. Raises: NotFound, Conflict when not running."""
        ...

    def move(self, job_id: str, *, before: str | None) -> Job:
        """Put a waiting job in front of another of its lane; to the end when None. Raises: NotFound, Conflict."""
        ...

    def remove(self, job_id: str) -> None:
        """Forget an ended job and its events. Raises: NotFound, Conflict when it has not ended."""
        ...

    def get(self, job_id: str) -> Job:
        """The job as it is now. Raises: NotFound."""
        ...

    def jobs(
        self,
        *,
        statuses: Collection[JobStatus] | None = None,
        kinds: Collection[JobKind] | None = None,
        limit: int = 100,
    ) -> Sequence[Job]:
        """Running first, then waiting in the order they will be claimed, then paused, then ended, newest first."""
        ...

    def events(self, job_id: str) -> Sequence[JobEvent]:
        """The job's history, oldest first. Raises: NotFound."""
        ...

    def tally(self) -> Tally:
        """How many jobs stand where now, and how many ever ended how, in what time.

        The latter are counted as part of the change that ends a job, so they never fall: not with a restart, and not when
        ended jobs are removed or queued again.
        """
        ...

    def check_writable(self) -> None:
        """Write something that changes nothing. Raises: QueueUnavailable, DiskFull."""
        ...

    def announce(self, worker: WorkerState) -> WorkerState:
        """Enter a worker into the registry, or renew its entry; the entry. It counts as living for `ALIVE_S`."""
        ...

    def leave(self, worker: str) -> None:
        """Take a worker out of the registry, if it is there. The next one of this name is not draining."""
        ...

    def drain(self, worker: str, *, draining: bool = True) -> WorkerState:
        """Let a worker finish its job and take no more; or let it take jobs again. Raises: NotFound."""
        ...

    def workers(self) -> Sequence[WorkerState]:
        """The registry, by name: also workers that died, until they are back or have left."""
        ...

    def listening(self, job_id: str) -> AbstractContextManager[Callable[[float], bool]]:
        """Hear of a job's changes: a function that waits so many seconds, or less, and says whether it may have changed.

        What changes while nobody listens is not told: ask `get` first. Raises: QueueUnavailable, then listen anew.
        """
        ...

    def wait(self, worker: str, seconds: float) -> None:
        """Wait so long, or less: until it is worth while for the worker to try a claim."""
        ...


#: A job whose workers were lost this often in a row without progress is failed.
MAX_STALLED = 5
#: Seconds an interactive job waits for an idle worker before a training is asked to yield.
YIELD_AFTER_S = 1.0
#: Seconds it waits for an idle worker that has its model loaded. Less than the above.
PREFER_WARM_S = 0.6
#: A worker that has announced itself counts as living for so many seconds.
ALIVE_S = 20.0


def worker_lost(times: int | str) -> JobError:
    """How a job failed whose workers died ``times`` times in a row."""
    message = (
        f"the worker died {times} times in a row without a step of progress; the log says more."
        " Often the memory of the machine is too small: choose a smaller resolution, batch or model"
    )
    return JobError(code=WorkerLost.code, message=message)


def progress_mark(progress: Progress | None) -> int:
    """How far a job has come, as one growing number; 0 for phases that come back again and again."""
    order = {Phase.CACHING: 1, Phase.TRAINING: 2, Phase.GENERATING: 2, Phase.VERIFYING: 3}
    if progress is None or progress.step == 0 or progress.phase not in order:
        return 0
    return order[progress.phase] * 10**12 + progress.step
