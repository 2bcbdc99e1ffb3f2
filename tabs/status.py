"""The state of everything, as the header shows it: one small answer that each open page asks for again and again."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from isengard.domain.job import Job, JobKind, JobStatus, Phase
from isengard.errors import DiskFull, QueueUnavailable
from tabs import pod, training_models, training_workers
from tabs.common import Page
from tabs.fleet import Fleet, fleet_of, sentence, summary
from tabs.money import course
from tabs.progress import comparing, figures, in_short

#: How often all open pages together ask, at most: more would take from a training on the same processor.
QUESTIONS_PER_S = 5.0
#: Seconds between a page's questions while a job runs, and while none does, when few pages are open.
WHILE_RUNNING_S, WHILE_IDLE_S = 1.2, 4.0
#: Jobs that are looked at, besides one for each worker; of those that do not run, changes of so many are noticed.
LISTED, WATCHED = 50, 12
#: Running jobs in the header, and running trainings whose figures move.
IN_HEADER, MOVING = 2, 24


class Turns:
    """Gives each page the moment of its next question, one after the other, so that many pages ask less often each."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock, self._free_at = clock, threading.Lock(), 0.0

    def wait(self, least_s: float) -> float:
        """Seconds until the caller's next turn, at least ``least_s``."""
        with self._lock:
            now = self._clock()
            turn = max(self._free_at, now + least_s)
            self._free_at = turn + 1 / QUESTIONS_PER_S
            return turn - now


def looker(page: Page) -> Callable[..., dict[str, Any]]:
    """Return the function that the header's script calls by its name.

    It is told whether the workers are in sight: only then are they told one by one; whether the page wants to know of
    ended runs; and how long nobody has touched it.
    """
    turns = Turns()

    def look(asked: Any = None) -> dict[str, Any]:
        wish = asked if isinstance(asked, dict) else {}
        pod.touched(page, wish)
        try:
            ended = pod.ended(page) if wish.get("ended") is True else None
            workers = page.app.workers.workers()
            jobs = page.app.jobs.jobs(limit=LISTED + len(workers))
        except (QueueUnavailable, DiskFull) as error:
            return {"trouble": sentence(str(error)), "again_s": turns.wait(WHILE_IDLE_S)}
        fleet = fleet_of(page, workers, jobs)
        seen = wish.get("workers") is True
        tasks = page.app.model_tasks.tasks()
        busy = page.app.ai_toolkit.installation().running or page.app.model_tasks.running()
        shown = running(jobs, fleet, lambda job: course(page.app.costs, job))
        return {
            **summary(page, fleet),
            **shown,
            "queue": _queue(jobs, full=len(jobs) == LISTED + len(workers)),
            "workers": training_workers.rows(fleet, jobs) if seen else None,
            "models": training_models.live(tasks),
            "pod": pod.told(page),
            "ended": ended,
            "again_s": turns.wait(WHILE_RUNNING_S if shown["jobs"] or busy else WHILE_IDLE_S),
            "key": _key(page, fleet, jobs),
        }

    return look


def running(jobs: Sequence[Job], fleet: Fleet, cost: Callable[[Job], list[str]]) -> dict[str, Any]:
    """All that moves: the jobs for the header, and the figures of trainings and comparisons by their ids."""
    run = [job for job in jobs if job.status is JobStatus.RUNNING]
    trainings = [job for job in run if job.kind is JobKind.TRAIN_LORA]
    return {
        "jobs": [{**in_short(job), "where": fleet.where(job)} for job in run[:IN_HEADER]],
        "more": len(run[IN_HEADER:]),
        "generating": any(job.kind is JobKind.GENERATE_IMAGES for job in run),
        "trainings": {job.id: {**figures(job), "cost": cost(job)} for job in trainings[:MOVING]},
        "comparisons": {job.id: comparing(job) for job in run if job.kind is JobKind.EVALUATE_CHECKPOINTS},
    }


def _queue(jobs: Sequence[Job], *, full: bool) -> str:
    waiting = sum(job.status is JobStatus.QUEUED for job in jobs)
    return f"{waiting}{'+' if full else ''} in queue" if waiting else "Queue empty"


def _key(page: Page, fleet: Fleet, jobs: Sequence[Job]) -> str:
    """Another one says that the page is worth painting again."""
    app = page.app
    run = sum(job.status is JobStatus.RUNNING for job in jobs)
    state = [
        app.characters.version(),
        app.ai_toolkit.absence(),
        app.ai_toolkit.installation().model_dump(mode="json"),
        app.models.version(),
        [app.storage.counting, app.storage.latest and app.storage.latest.number],
        training_models.changes(app.model_tasks.tasks()),
        fleet.stamp(),
        *(_changes(job) for job in jobs[: run + WATCHED]),
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def _changes(job: Job) -> list[Any]:
    """What makes the page worth painting again."""
    preview = job.progress.preview if job.progress else None
    phase = job.progress.phase if job.progress else None
    compared = None
    if job.progress and job.kind is JobKind.EVALUATE_CHECKPOINTS:
        compared = job.progress.message.partition(":")[0]  # who is next: the one before has its numbers
    saved = phase in (Phase.SAMPLING, Phase.SAVING)
    return [job.id, job.status, job.attempt, job.stop, preview, saved, compared]
