"""Captions by a model, on the characters tab: which model, how far it is, and the way back."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gradio as gr

from isengard.domain.captioner import CaptionerCard
from isengard.domain.job import Job, JobStatus
from isengard.errors import NotFound
from isengard.services.model_tasks import Action, Task
from isengard.wiring import Application
from tabs.characters_view import counted
from tabs.common import PRIVATE, QUIET, asked_by, handled, spoken
from tabs.training_models import course

#: Seconds for which a job that has ended is told of.
TOLD_S = 3600.0


def lay() -> gr.HTML:
    """Lay out the widget inside the open block."""
    return spoken("characters", "characters_describe", {}, elem_id="characters-describe")


def wire(app: Application, widget: gr.HTML, selected: gr.Textbox) -> list[Any]:
    """Let its buttons work; the events after which something else is true."""

    def start(character_id: str, request: gr.Request, event: gr.EventData) -> None:
        make = partial(
            app.captioning.submit, character_id, captioner=str(event.model), overwrite=event.overwrite is True
        )
        app.admission.submit(asked_by(request), make)

    def cancel(event: gr.EventData) -> None:
        app.jobs.cancel(str(event.job))

    def fetch(event: gr.EventData) -> None:
        app.model_tasks.start(app.catalog.captioner(str(event.model)).name, Action.DOWNLOAD)

    def undo(character_id: str) -> None:
        gr.Info(f"{counted(app.characters.undo_captions(character_id), 'caption')} taken back.", duration=4)

    return [
        widget.start(handled(start), selected, None, **PRIVATE),
        widget.cancel(handled(cancel), None, None, **PRIVATE),
        widget.fetch(handled(fetch), None, None, **PRIVATE),
        widget.undo(handled(undo), selected, None, **PRIVATE),
        widget.settled(lambda: None, None, None, **QUIET),
    ]


def value(app: Application, character_id: str, *, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """What the widget shows of a character."""
    tasks = app.model_tasks.tasks()
    try:
        character, undo = app.characters.get(character_id), app.characters.captions_to_undo(character_id)
    except NotFound:  # deleted a moment ago
        return {}
    job = app.captioning.last(character_id)
    return {
        "character": character_id,
        "models": [
            _model(card, tasks.get(card.name), here=here) for card, here in app.captioning.captioners()
        ],
        "job": None if job is None or _is_old(job, clock()) else told(job),
        "bare": sum(not image.caption for image in character.images),
        "images": len(character.images),
        "undo": undo,
    }


def told(job: Job) -> dict[str, Any]:
    """A job as the widget shows it."""
    progress, result = job.progress, job.result or {}
    running = job.status is JobStatus.RUNNING and progress is not None and progress.total
    return {
        "id": job.id,
        "status": job.status,
        "percent": 100 * progress.step // progress.total if running and progress else 0,
        "written": result.get("written", 0),
        "error": job.error.message if job.error else "",
    }


def _is_old(job: Job, now: float) -> bool:
    return job.finished_at is not None and now - job.finished_at > TOLD_S


def _model(card: CaptionerCard, task: Task | None, *, here: bool) -> Mapping[str, Any]:
    return {
        "name": card.name,
        "title": card.title,
        "here": here,
        "licence": card.licence,
        "licence_url": card.licence_url,
        "course": course(task) if task and task.running else None,
        "error": task.error if task else "",
    }
