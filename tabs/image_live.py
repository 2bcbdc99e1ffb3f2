"""The generation that is under way or was the last: what the page shows of it, and waiting for its end."""

import asyncio
import base64
import html
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol

import gradio as gr

from isengard.domain.generation import ImageSpec, SavedImage
from isengard.domain.job import Job, JobKind, JobStatus, Phase
from isengard.domain.likeness import lacks
from isengard.errors import Conflict, InvalidSpec, IsengardError, QueueUnavailable
from isengard.services.images import read_payload
from isengard.services.jobs import JobService
from tabs.common import Page, duration
from tabs.fleet import fleet_of, why_waiting
from tabs.image_gallery import items

#: A handler answers after this time at the latest; the page goes on by itself.
PATIENCE_S = 50.0
LOOK_EVERY_S = 0.5
RECENT = 100
#: With less than that, a higher strength is what helps.
STRONG = 0.8
#: Running generations whose figures move.
MOVING = 24


class Tell(Protocol):
    """What `gr.Progress` can be called with."""

    def __call__(self, progress: Any, *, desc: str | None = None, unit: str = "steps") -> Any: ...


async def attach(
    jobs: JobService,
    job_id: str,
    tell: Tell,
    *,
    leaving: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Job:
    """Tell how the job gets on until it has ended or is paused, the page goes away, or the patience is over."""
    until = clock() + PATIENCE_S
    job = await asyncio.to_thread(jobs.get, job_id)
    with ExitStack() as listening, suppress(QueueUnavailable):  # then the page goes on by itself
        changed = await asyncio.to_thread(listening.enter_context, jobs.listening(job_id))
        while not (job.status.ended or job.status is JobStatus.PAUSED or leaving() or clock() >= until):
            done = _steps(job)
            tell(done if done[1] else (0, None), desc=headline(job))
            await asyncio.to_thread(changed, LOOK_EVERY_S)
            job = await asyncio.to_thread(jobs.get, job_id)
    return job


def say_how_it_ended(job: Job) -> None:
    """A toast, for a person who looks elsewhere on the page."""
    if job.status in (JobStatus.FAILED, JobStatus.PAUSED) and job.error:
        paused = job.status is JobStatus.PAUSED
        gr.Warning(html.escape(job.error.message), title="Paused" if paused else "No image was made")
    elif not job.status.ended:
        gr.Info("The generation goes on; this page keeps showing it.", title="Still at work")


def cancel(page: Page, job_id: str) -> Job | None:
    """End a generation; None when it has ended already. Raises: NotFound, InvalidSpec for a job of another kind."""
    if page.app.jobs.get(job_id).kind is not JobKind.GENERATE_IMAGES:
        raise InvalidSpec(f"job {job_id!r} is no generation; trainings are cancelled on their own tab")
    try:
        return page.app.jobs.cancel(job_id)
    except Conflict:
        return None


def stage(page: Page) -> dict[str, Any]:
    """The generation that runs, else the one that waits first, else the last one; with its images."""
    generations = page.app.jobs.jobs(kinds=(JobKind.GENERATE_IMAGES,), limit=RECENT)
    if not generations:
        return {"state": "empty"}
    job = generations[0]
    try:
        spec, prompt = read_payload(job)
    except IsengardError as error:
        return {"state": "failed", "headline": "No image was made", "detail": str(error)}
    active = not job.status.ended
    made = page.app.images.of_job(job.id)
    why = why_waiting(page)
    return {
        "state": "active" if active else str(job.status),
        "job": job.id,
        "headline": headline(job),
        "detail": job.error.message if job.error else prompt,
        "note": why(job) or (training_note(page, job) if active else ""),
        "where": fleet_of(page, page.app.workers.workers(), generations).where(job),
        "items": items(page, made),
        "unlike": _unlike(made),
        **_left_out(job, made),
        "none": "" if active or made else _why_none(job),
        "others": [_other(each) for each in generations[1:] if each.status is JobStatus.RUNNING],
        "waiting": [_waiting(each, why(each)) for each in generations[1:] if each.status is JobStatus.QUEUED],
        "ratio": f"{spec.width} / {spec.height}",
        "active": active,
        "paused": job.status is JobStatus.PAUSED,
        "stopping": job.stop is not None,
        **_moving(page, job, spec),
    }


def restore(page: Page, job_id: str) -> None:
    """Bring back the images that were less alike. Raises: NotFound."""
    page.app.images.restore((page.app.jobs.get(job_id).result or {}).get("left_out", ()))


def _unlike(made: Sequence[SavedImage]) -> list[dict[str, Any]]:
    """The characters that the images do not look like, and the strength that was used."""
    strength = min((lora.strength for image in made for lora in image.record.loras), default=1.0)
    return [
        {"name": lack.name, "percent": lack.percent, "weak": strength < STRONG, "strength": strength}
        for lack in lacks(image.record.likeness for image in made)
    ]


def _left_out(job: Job, made: Sequence[SavedImage]) -> dict[str, Any]:
    """How many images of the job lie in the trash as they are less alike, and how many were kept for it."""
    ids = (job.result or {}).get("left_out", ())
    away = len(set(ids) - {image.id for image in made})
    return {"left_out": away, "kept": len(made)} if away else {}


def watcher(page: Page) -> Callable[..., dict[str, Any]]:
    """Return the function that the stage's script calls while a generation runs."""

    def watch(_: Any = None) -> dict[str, Any]:
        try:
            jobs = page.app.jobs.jobs(
                kinds=(JobKind.GENERATE_IMAGES,), statuses=(JobStatus.RUNNING,), limit=MOVING
            )
        except QueueUnavailable:  # the header says so
            jobs = ()
        if not jobs:
            return {"job": ""}
        spec, _prompt = read_payload(jobs[0])
        others = {job.id: _figures(job) for job in jobs[1:]}
        return {
            "job": jobs[0].id,
            "headline": headline(jobs[0]),
            "others": others,
            **_moving(page, jobs[0], spec),
        }

    return watch


def still(shown: dict[str, Any]) -> dict[str, Any]:
    """What of the stage makes it worth painting anew; the rest moves by the stage's own script."""
    moving = {"headline", "percent", "steps", "preview"} if shown.get("active") else set()
    fixed = {name: value for name, value in shown.items() if name not in moving}
    return {**fixed, "others": [each["id"] for each in shown.get("others", ())]}


def headline(job: Job) -> str:
    """A job's state in a few words."""
    words = {
        JobStatus.QUEUED: "Waiting for its turn",
        JobStatus.PAUSED: "Paused",
        JobStatus.SUCCEEDED: "Result",
        JobStatus.FAILED: "No image was made",
        JobStatus.CANCELLED: "Cancelled",
    }
    if job.status in words:
        return words[job.status]
    if job.stop is not None:
        return "Stopping after this step"
    progress = job.progress
    if progress is None or progress.phase is Phase.LOADING:
        return "Loading the model"
    return f"Painting {progress.message}".strip()


def training_note(page: Page, job: Job) -> str:
    """What this generation means for a training on the same device."""
    trainings = page.app.jobs.jobs(
        kinds=(JobKind.TRAIN_LORA,), statuses=(JobStatus.RUNNING, JobStatus.QUEUED), limit=RECENT
    )
    running = next((each for each in trainings if each.status is JobStatus.RUNNING), None)
    saved = next((each for each in trainings if _has_yielded(each)), None)
    if len(page.app.workers.workers()) > 1:
        running = None  # which of them makes room, if one has to, is not known yet
    if running is not None and job.status is JobStatus.QUEUED:
        return f"{_training(running)} saves its state and lets this image go first; it goes on by itself."
    if saved is not None and running is None:
        return f"{_training(saved)} is saved and waits; it goes on by itself."
    return ""


def _has_yielded(training: Job) -> bool:
    return training.status is JobStatus.QUEUED and training.started_at is not None


def _training(job: Job) -> str:
    return f"The training of {job.payload.get('name') or 'a character'}"


def _steps(job: Job) -> tuple[int, int]:
    progress = job.progress
    painting = progress is not None and progress.phase is Phase.GENERATING
    return (progress.step, progress.total) if progress and painting else (0, 0)


def _figures(job: Job) -> dict[str, Any]:
    done, total = _steps(job) if not job.status.ended else (0, 0)
    parts = [f"step {done} of {total}"] if total else []
    if job.progress is not None and job.progress.eta_s is not None and job.status is JobStatus.RUNNING:
        parts.append(f"{duration(job.progress.eta_s)} left")
    return {"percent": 100 * done // total if total else 0, "steps": " · ".join(parts)}


def _moving(page: Page, job: Job, spec: ImageSpec) -> dict[str, Any]:
    return {
        **_figures(job),
        "preview": _preview(page, job),
        "ratio": f"{spec.width} / {spec.height}",
    }


def _preview(page: Page, job: Job) -> str:
    """The newest preview as a data address: it changes every half second, so no copy of it is kept."""
    if job.progress is None or job.progress.preview is None or job.status is not JobStatus.RUNNING:
        return ""
    try:
        content = (page.app.jobs.run_dir(job.id) / job.progress.preview).read_bytes()
    except OSError:
        return ""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _why_none(job: Job) -> str:
    words = {
        JobStatus.SUCCEEDED: "Its images were deleted.",
        JobStatus.CANCELLED: "It was cancelled before an image was finished.",
    }
    return words.get(job.status, "")


def _other(job: Job) -> dict[str, Any]:
    return {"id": job.id, "prompt": _prompt(job), **_figures(job)}


def _waiting(job: Job, why: str) -> dict[str, Any]:
    return {"id": job.id, "prompt": _prompt(job), "why": why}


def _prompt(job: Job) -> str:
    return str(job.payload.get("prompt", ""))


def newest_seed(images: Sequence[Any]) -> str:
    """The seed of the last image. Raises: InvalidSpec when there is none."""
    if not images:
        raise InvalidSpec("there is no image yet whose seed could be used again")
    return str(images[0].record.seed)
