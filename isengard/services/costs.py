"""What runs cost, on a machine whose price per hour is known."""

import time
from collections.abc import Callable

from isengard.domain.job import Job, JobStatus
from isengard.services.jobs import JobService


class Costs:
    """Dollars; None where no price was given."""

    def __init__(
        self, *, per_hour: float | None, jobs: JobService, clock: Callable[[], float] = time.time
    ) -> None:
        self.per_hour = per_hour
        self._jobs, self._clock = jobs, clock
        self._known: dict[tuple[str, int, JobStatus], tuple[float, float | None]] = {}

    def of(self, seconds: float) -> float | None:
        """What so much time costs."""
        return None if self.per_hour is None else self.per_hour * max(0.0, seconds) / 3600

    def so_far(self, job: Job) -> float | None:
        """What a job has cost: the time that workers had it, without that in which it waited."""
        if self.per_hour is None:
            return None
        worked, since = self._work(job)
        return self.of(worked + (self._clock() - since if since is not None else 0.0))

    def total(self, job: Job) -> float | None:
        """What it will have cost at its end; None while that cannot be told."""
        so_far, left = self.so_far(job), job.progress.eta_s if job.progress else None
        more = None if left is None else self.of(left)
        return (
            None if so_far is None or more is None or job.status is not JobStatus.RUNNING else so_far + more
        )

    def _work(self, job: Job) -> tuple[float, float | None]:
        """Asked of the history once for each time that a worker takes or leaves the job."""
        key = (job.id, job.fence, job.status)
        if key not in self._known:
            if len(self._known) > 256:
                self._known.clear()
            self._known[key] = self._jobs.work(job.id)
        return self._known[key]
