"""How far a job is, in words and figures, wherever the page shows it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from isengard.domain.job import Job, JobKind, JobStatus, Phase, Progress, Stop
from isengard.errors import InvalidSpec
from isengard.services.comparison import read_payload
from tabs.common import duration

PHASES: Mapping[Phase, str] = {
    Phase.LOADING: "loading",
    Phase.CACHING: "preparing images",
    Phase.TRAINING: "training",
    Phase.VALIDATING: "validating",
    Phase.SAVING: "saving",
    Phase.SAMPLING: "making samples",
    Phase.VERIFYING: "checking the LoRA",
    Phase.GENERATING: "generating",
    Phase.CAPTIONING: "describing images",
}

#: What the header says of a job.
DOING: Mapping[JobKind, str] = {
    JobKind.TRAIN_LORA: "Training",
    JobKind.GENERATE_IMAGES: "Generating",
    JobKind.EVALUATE_CHECKPOINTS: "Comparing checkpoints of",
    JobKind.CAPTION_IMAGES: "Captions of",
}


def in_short(job: Job) -> dict[str, Any]:
    """A running job in one line."""
    progress = job.progress
    what = DOING[job.kind]
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
        "elapsed": None if job.started_at is None or waits else duration(max(0, until - job.started_at)),
        "memory": None if progress.memory_bytes is None else f"{progress.memory_bytes / 1024**3:.1f} GB",
        "attempt": job.attempt,
        "stop": job.stop,
    }


def comparing(job: Job) -> dict[str, Any]:
    """How far a comparison of checkpoints is. ``percent`` and ``done``: None in phases that make no picture."""
    progress = job.progress or Progress(phase=Phase.LOADING)
    share = progress.step / progress.total if progress.phase is Phase.GENERATING and progress.total else None
    pictures = _pictures(job)
    return {
        "id": job.id,
        "status": job.status,
        "active": not job.status.ended,
        "pictures": pictures,
        "done": None if share is None else int(pictures * share),
        "percent": None if share is None else int(100 * share),
        "left": "" if progress.eta_s is None or job.status.ended else duration(progress.eta_s),
        "error": job.error.message if job.error else "",
        "stopping": job.stop in (Stop.CANCEL, Stop.PAUSE),
    }


def _pictures(job: Job) -> int:
    """How many a comparison has; 0 when its record is of another time and cannot be read."""
    try:
        return read_payload(job).pictures
    except InvalidSpec:
        return 0


def compared(job: Job) -> str:
    """The id of the training whose checkpoints a comparison compares."""
    return str(job.payload.get("spec", {}).get("run", ""))


def name_of(job: Job) -> str:
    """Whose job it is: the character of a training or a comparison."""
    return str(job.payload.get("name", ""))
