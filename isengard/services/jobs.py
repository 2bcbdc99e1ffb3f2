"""What the page and the command line may do with jobs."""

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from isengard.domain.job import Job, JobEvent, JobKind, JobStatus
from isengard.domain.tally import Tally
from isengard.queue.base import JobQueue

#: Events after which no worker has the job any more.
LEAVES = frozenset({"succeeded", "failed", "cancelled", "paused", "queued", "yielded", "released", "lost"})


def owners(history: Iterable[JobEvent]) -> tuple[str, ...]:
    """The workers that have had a job, each once."""
    claims = (event.detail for event in history if event.kind == "claimed")
    return tuple(dict.fromkeys(detail.removeprefix("by ").rpartition(", attempt")[0] for detail in claims))


class JobService:
    """The job list. Every answer is a snapshot and is given at once; errors are those of `JobQueue`."""

    def __init__(self, *, queue: JobQueue, runs_dir: Path) -> None:
        self._queue = queue
        self._runs_dir = runs_dir

    def jobs(
        self,
        *,
        statuses: Collection[JobStatus] | None = None,
        kinds: Collection[JobKind] | None = None,
        limit: int = 100,
    ) -> Sequence[Job]:
        """Running first, then waiting in their order, then paused, then ended, newest first."""
        return self._queue.jobs(statuses=statuses, kinds=kinds, limit=limit)

    def tally(self) -> Tally:
        """How many jobs stand where, and how many ever ended how."""
        return self._queue.tally()

    def check_writable(self) -> None:
        """See that a change of the job list would be kept. Raises: QueueUnavailable, DiskFull."""
        self._queue.check_writable()

    def get(self, job_id: str) -> Job:
        return self._queue.get(job_id)

    def listening(self, job_id: str) -> AbstractContextManager[Callable[[float], bool]]:
        """A function that waits until the job may have changed, or so many seconds."""
        return self._queue.listening(job_id)

    def history(self, job_id: str) -> Sequence[JobEvent]:
        """What happened to the job, oldest first."""
        return self._queue.events(job_id)

    def ahead(self, job_id: str) -> int:
        """How many jobs come before a waiting one."""
        before = self._queue.jobs(statuses=(JobStatus.RUNNING, JobStatus.QUEUED), limit=1000)
        return next((place for place, job in enumerate(before) if job.id == job_id), 0)

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """The lines of the run's ``metrics.jsonl``, oldest first; a line that is being written is left out."""
        self._queue.get(job_id)
        path = self.run_dir(job_id) / "metrics.jsonl"
        if not path.exists():
            return []
        lines = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines

    def run_dir(self, job_id: str) -> Path:
        """Where the job keeps its checkpoints, samples and metrics."""
        return self._runs_dir / job_id

    def checkpoints(self, job_id: str) -> dict[int, Path]:
        """The folders of the run's checkpoints by step, ascending."""
        folders = (self.run_dir(job_id) / "checkpoints").glob("step-" + "[0-9]" * 8)
        return {int(folder.name[5:]): folder for folder in sorted(folders)}

    def samples(self, job_id: str) -> dict[tuple[int, int], Path]:
        """The run's sample pictures by step and number of the prompt, ascending."""
        pictures = (self.run_dir(job_id) / "samples").glob("[0-9]" * 8 + "-*.png")
        found = {}
        for picture in sorted(pictures):
            step, _, number = picture.stem.partition("-")
            if number.isdecimal():
                found[int(step), int(number)] = picture
        return dict(sorted(found.items()))

    def worked_s(self, job_id: str) -> float:
        """How long workers have worked on the job, without the times it waited; of an attempt that goes on, nothing."""
        return self.work(job_id)[0]

    def work(self, job_id: str) -> tuple[float, float | None]:
        """`worked_s`, and since when the attempt goes on; None when none does."""
        total, since = 0.0, None
        for event in self._queue.events(job_id):
            if event.kind == "claimed":
                since = event.at
            elif since is not None and event.kind in LEAVES:
                total, since = total + event.at - since, None
        return total, since

    def cancel(self, job_id: str) -> Job:
        """End a job; a running one at its next step."""
        return self._queue.cancel(job_id)

    def pause(self, job_id: str) -> Job:
        """Let a job wait until it is resumed; a running one saves first."""
        return self._queue.pause(job_id)

    def resume(self, job_id: str) -> Job:
        return self._queue.resume(job_id)

    def move(self, job_id: str, *, before: str | None) -> Job:
        """Put a waiting job in front of another, or at the end."""
        return self._queue.move(job_id, before=before)

    def save_now(self, job_id: str) -> Job:
        """Ask a running training for a checkpoint at its next step."""
        return self._queue.request(job_id, save=True)

    def sample_now(self, job_id: str) -> Job:
        """Ask a running training for sample images at its next step."""
        return self._queue.request(job_id, sample=True)

    def remove(self, job_id: str) -> None:
        """Forget an ended job, with its checkpoints, samples and metrics. A finished LoRA or image stays."""
        self._queue.remove(job_id)
        shutil.rmtree(self.run_dir(job_id), ignore_errors=True)
