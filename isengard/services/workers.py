"""What the page and the command line may do with workers, and what jobs can have wherever they run."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from isengard.domain.job import Job, JobStatus, Needs
from isengard.domain.memory import Machine
from isengard.domain.worker import WorkerState, largest_memory, serves
from isengard.errors import Conflict, DiskFull, NotFound, QueueUnavailable
from isengard.queue.base import ALIVE_S, JobQueue
from isengard.store.configs import Catalog
from isengard.store.weights import Weights

#: Plans and lists ask what workers have many times a second; an answer holds for so long.
LOOK_EVERY_S = 1.0
#: And so long what a worker's own disk has of models.
TAKE_STOCK_EVERY_S = 10.0

NO_WORKER = "no worker is running; start one where the GPU is: `python -m isengard worker`"


class WorkerService:
    """The registry of workers. Every answer is a snapshot; errors are those of `JobQueue`."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        machine: Callable[[], Machine],
        shared: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``machine``: this one's facts. ``shared``: workers may be on other machines, and say what they have."""
        self._queue, self._machine, self._shared, self._clock = queue, machine, shared, clock
        self._looked_at = 0.0
        self._seen: tuple[WorkerState, ...] = ()

    def workers(self) -> Sequence[WorkerState]:
        """Living ones first, then by name."""
        return sorted(self._queue.workers(), key=lambda worker: (not self.is_alive(worker), worker.name))

    def is_alive(self, worker: WorkerState) -> bool:
        """Whether it announced itself lately."""
        # What is ahead of a clock that was set back is no news either.
        return abs(self._clock() - worker.seen_at) < ALIVE_S

    def drain(self, name: str) -> WorkerState:
        """Let a worker finish its job and take no more. Raises: NotFound."""
        return self._queue.drain(name)

    def take_jobs(self, name: str) -> WorkerState:
        """Let a draining worker take jobs again. Raises: NotFound."""
        return self._queue.drain(name, draining=False)

    def forget(self, name: str) -> None:
        """Take a worker that is gone out of the list.

        Raises:
            NotFound, Conflict: no such worker; it is alive.
        """
        known = {worker.name: worker for worker in self._queue.workers()}
        if name not in known:
            raise NotFound(
                f"there is no worker {name!r}; `python -m isengard workers list` shows all of them"
            )
        if self.is_alive(known[name]):
            raise Conflict(
                f"worker {name} is alive and would be back at once; end it on its machine, with Ctrl-C or SIGTERM,"
                f" or let it take no more jobs: python -m isengard workers drain {name}"
            )
        self._queue.leave(name)

    def why_waiting(self, job: Job) -> str:
        """Why no living worker will take a queued job, with the way out; empty when one will."""
        if job.status is not JobStatus.QUEUED:
            return ""
        return next(_obstacles(job.needs, self._living()), "")

    def facts(self) -> Machine:
        """What plans are made for: the machine of the largest worker that takes jobs; without one, this machine."""
        if not self._shared:
            return self._machine()
        offered = [
            (worker.memory_gb, worker.machine.room(), worker.machine)
            for worker in self._living()
            if worker.machine and not worker.draining
        ]
        return max(offered, key=lambda entry: entry[:2])[2] if offered else self._machine()

    def have_model(self, name: str) -> bool:
        """Whether a living worker, wherever it is, has the base model on its disk."""
        return self._shared and any(name in worker.models for worker in self._living())

    def absence(self, engine: str, *, here: Callable[[], str]) -> str:
        """Why no training can use an engine, with the way out; empty when one can.

        What the living workers have counts, where there are any; else ``here``, which says it of this machine.
        """
        living = self._living() if self._shared else ()
        if not living:
            return here()
        return "" if any(engine in worker.engines for worker in living) else _no_engine(engine)

    def _living(self) -> tuple[WorkerState, ...]:
        """As they were a moment ago; while the queue cannot be asked, as they were last."""
        if abs(self._clock() - self._looked_at) >= LOOK_EVERY_S:
            self._looked_at = self._clock()
            with suppress(QueueUnavailable, DiskFull):
                self._seen = tuple(worker for worker in self._queue.workers() if self.is_alive(worker))
        return self._seen


class ModelsHere:
    """Names of the models that jobs get on this machine."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        weights: Weights,
        shared: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``shared``: only those that are on the disk; a job waits for a worker that has its model.

        Without workers elsewhere nobody is helped by waiting: the job is run, and fails with the way to get the model.
        """
        self._catalog, self._weights, self._shared, self._clock = catalog, weights, shared, clock
        self._seen: tuple[float, tuple[str, ...]] | None = None

    def names(self) -> tuple[str, ...]:
        """In the order of the cards; looked up now and then, as there are many files."""
        now = self._clock()
        if self._seen is None or now - self._seen[0] >= TAKE_STOCK_EVERY_S:
            ready = [
                card for card in self._catalog.cards() if not self._shared or self._weights.status(card).ready
            ]
            self._seen = now, tuple(card.name for card in ready)
        return self._seen[1]


def _obstacles(needs: Needs, living: Sequence[WorkerState]) -> Iterator[str]:
    """What keeps all workers from a job; only the first is meaningful."""
    if not living:
        yield NO_WORKER
    able = [worker for worker in living if needs.engine in ("", *worker.engines)]
    if not able:
        yield _no_engine(needs.engine)
    have = [worker for worker in able if needs.model in ("", *worker.models)]
    if not have:
        yield (
            f"no running worker{' with its engine' if len(able) < len(living) else ''} has the model {needs.model!r} on its disk;"
            f" get it on the machine of {_named(able)} with `python -m isengard models download {needs.model}`"
        )
    largest_gb = largest_memory(living)
    fit = [worker for worker in have if serves(worker, needs, largest_gb=largest_gb)]
    if not fit:
        yield (
            f"it needs {needs.memory_gb} GB of memory, and who could run it otherwise has less: {_named(have)};"
            " give a larger worker what it lacks (its model or its engine),"
            " or cancel it and choose a smaller resolution, batch or model"
        )
    if all(worker.draining for worker in fit):
        yield (
            f"all workers that could run it take no more jobs ({_named(fit)}); `python -m isengard workers resume"
            f" {fit[0].name}` changes that"
        )


def _no_engine(engine: str) -> str:
    return (
        f"no running worker has the engine {engine!r}; install it on the machine of one with"
        f" `python -m isengard {engine} install`"
    )


def _named(workers: Sequence[WorkerState]) -> str:
    return ", ".join(worker.name for worker in workers)
