"""The state of everything, as the header shows it: one small answer that each open page asks for again and again."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from isengard.domain.job import Job, JobKind, JobStatus, Phase
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
ACTIVE = (JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.PAUSED)


def looker(page: Page) -> Callable[..., dict[str, Any]]:
    """Return the function that the header's script calls by its name."""

    def look(_: Any = None) -> dict[str, Any]:
        machine = page.machine.state()
        jobs = page.app.jobs.jobs(limit=50)
        running = next((job for job in jobs if job.status is JobStatus.RUNNING), None)
        waiting = sum(job.status is JobStatus.QUEUED for job in jobs)
        return {
            "device": machine.device,
            "memory": f"{machine.used_gb:.1f} / {machine.total_gb:.0f} GB",
            "queue": f"{waiting} in queue" if waiting else "Queue empty",
            "job": None if running is None else in_short(running),
            "key": json.dumps([_changes(job) for job in jobs[:12]]),
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


def name_of(job: Job) -> str:
    """Whose job it is: the character of a training."""
    return str(job.payload.get("name", ""))


def _changes(job: Job) -> list[Any]:
    """What makes the page worth painting again."""
    preview = job.progress.preview if job.progress else None
    phase = job.progress.phase if job.progress else None
    return [job.id, job.status, job.attempt, job.stop, preview, phase in (Phase.SAMPLING, Phase.SAVING)]
