"""The state of everything, as the header shows it: one small answer that each open page asks for again and again."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from isengard.domain.job import Job, JobKind, JobStatus, Phase, Progress
from tabs import training_models
from tabs.common import Page, duration

PHASES: Mapping[Phase, str] = {
    Phase.LOADING: "loading",
    Phase.CACHING: "preparing images",
    Phase.TRAINING: "training",
    Phase.VALIDATING: "validating",
    Phase.SAVING: "saving",
    Phase.SAMPLING: "making samples",
    Phase.VERIFYING: "checking the LoRA",
    Phase.GENERATING: "generating",
}
#: How often all open pages together ask, at most: more would take from a training on the same processor.
QUESTIONS_PER_S = 8.0
#: Seconds between a page's questions while a job runs, and while none does, when few pages are open.
WHILE_RUNNING_S, WHILE_IDLE_S = 1.2, 4.0
ACTIVE = (JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.PAUSED)


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
    """Return the function that the header's script calls by its name."""
    turns = Turns()

    def look(_: Any = None) -> dict[str, Any]:
        machine = page.machine.state()
        jobs = page.app.jobs.jobs(limit=50)
        installation, tasks = page.app.ai_toolkit.installation(), page.app.model_tasks.tasks()
        busy = installation.running or page.app.model_tasks.running()
        running = next((job for job in jobs if job.status is JobStatus.RUNNING), None)
        waiting = sum(job.status is JobStatus.QUEUED for job in jobs)
        return {
            "device": machine.device,
            "memory": f"{machine.used_gb:.1f} / {machine.total_gb:.0f} GB",
            "queue": f"{waiting} in queue" if waiting else "Queue empty",
            "job": None if running is None else in_short(running),
            "training": None
            if running is None or running.kind is not JobKind.TRAIN_LORA
            else figures(running),
            "models": training_models.live(tasks),
            "again_s": turns.wait(WHILE_RUNNING_S if running or busy else WHILE_IDLE_S),
            "key": json.dumps(
                [
                    page.app.characters.version(),
                    page.app.ai_toolkit.absence(),
                    installation.model_dump(mode="json"),
                    page.app.models.version(),
                    training_models.changes(tasks),
                    *(_changes(job) for job in jobs[:12]),
                ]
            ),
        }

    return look


def in_short(job: Job) -> dict[str, Any]:
    """A running job in one line."""
    progress = job.progress
    what = "Training" if job.kind is JobKind.TRAIN_LORA else "Generating"
    name = name_of(job)
    if progress is None:
        return {
            "id": job.id,
            "kind": job.kind,
            "percent": 0,
            "text": f"{what} {name} · starting".replace("  ", " "),
        }
    share = 100 * progress.step // progress.total if progress.total else 0
    parts = [f"{what} {name}".strip(), f"{share} %" if progress.total else PHASES[progress.phase]]
    if progress.eta_s is not None:
        parts.append(f"{duration(progress.eta_s)} left")
    return {"id": job.id, "kind": job.kind, "percent": share, "text": " · ".join(parts)}


def figures(job: Job, *, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """What is known of a training's course. ``at``: optimizer steps done, None in phases that do not say."""
    progress = job.progress or Progress(phase=Phase.LOADING)
    steps = int(job.payload.get("spec", {}).get("steps", 0))
    counts_steps = progress.phase in (Phase.TRAINING, Phase.SAVING)
    until, waits = job.finished_at or clock(), job.status in (JobStatus.QUEUED, JobStatus.PAUSED)
    return {
        "id": job.id,
        "phase": "starting" if job.progress is None else PHASES[progress.phase],
        "message": "" if counts_steps or progress.message == progress.preview else progress.message,
        "at": progress.step if counts_steps else steps if progress.phase is Phase.VERIFYING else None,
        "steps": steps,
        "part": [progress.step, progress.total],
        "loss": progress.loss,
        "validation": progress.validation_loss,
        "speed": progress.steps_per_s if progress.phase is not Phase.VERIFYING else None,
        "left": None if progress.eta_s is None or job.status.ended else duration(progress.eta_s),
        "elapsed": None if job.started_at is None or waits else duration(until - job.started_at),
        "memory": None if progress.memory_bytes is None else f"{progress.memory_bytes / 1024**3:.1f} GB",
        "attempt": job.attempt,
        "stop": job.stop,
    }


def name_of(job: Job) -> str:
    """Whose job it is: the character of a training."""
    return str(job.payload.get("name", ""))


def _changes(job: Job) -> list[Any]:
    """What makes the page worth painting again."""
    preview = job.progress.preview if job.progress else None
    phase = job.progress.phase if job.progress else None
    return [job.id, job.status, job.attempt, job.stop, preview, phase in (Phase.SAMPLING, Phase.SAVING)]
