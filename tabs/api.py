"""What other programs may call, by `gradio_client` for example. The names are stable; every other event is the page's own."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from isengard.domain.character import AddedImage
from isengard.domain.job import Job
from isengard.errors import IsengardError, NotAvailable
from isengard.wiring import Application
from tabs.common import Page, uploaded

NAMES = (
    "create_character",
    "add_images",
    "caption_images",
    "train",
    "generate",
    "job_status",
    "cancel_job",
    "job_images",
    "generate_video",
)


def add(page: Page) -> None:
    """Add the endpoints to the open block."""
    made = Endpoints(page.app)
    for name in NAMES:
        function = getattr(made, name)
        api(_plainly(function), api_name=name, api_description=function.__doc__, concurrency_limit=16)


class Endpoints:
    """The functions by their public names."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def create_character(self, name: str, trigger: str = "", class_word: str = "person") -> dict[str, Any]:
        """Add a character; without a trigger it gets a rare word. Returns its id, name, trigger and class word."""
        character = self._app.characters.create(name, trigger=trigger or None, class_word=class_word)
        return character.model_dump(include={"id", "name", "trigger", "class_word"})

    def add_images(self, character: str, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add uploaded pictures, captions (.txt) or zip archives. Returns for each file whether it was taken, and why not."""
        paths = uploaded(file["path"] for file in files)
        return [
            {"filename": each.filename, "added": isinstance(each, AddedImage)}
            | ({"notes": list(each.notes)} if isinstance(each, AddedImage) else {"reason": each.reason})
            for each in self._app.characters.add_files(character, paths)
        ]

    def caption_images(self, character: str, template: str, only_empty: bool = True) -> int:  # noqa: FBT001, FBT002
        """Give images a caption; [trigger] and [class] stand for the character's words. Returns how many changed."""
        return self._app.characters.caption_all(character, template, only_empty=only_empty)

    def train(
        self,
        character: str,
        base_model: str = "demo",
        preset: str = "quick",
        overrides: dict[str, Any] | None = None,
    ) -> str:
        """Enqueue a training. ``overrides`` are fields of the training spec. Returns the job's id, which names the LoRA too."""
        return self._app.training.submit(
            character_id=character, base_model=base_model, preset=preset, overrides=overrides or {}
        ).id

    def generate(
        self,
        prompt: str,
        base_model: str = "",
        loras: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> str:
        """Enqueue images. ``loras``: [{"lora": id, "strength": 1.0}]; ``options``: further fields of the image spec. Returns the job's id."""
        given = {"prompt": prompt, "base_model": base_model, "loras": loras or [], **(options or {})}
        return self._app.images.submit(self._app.images.plan(overrides=given)).id

    def job_status(self, job: str) -> dict[str, Any]:
        """Return a job's status, progress, result and error."""
        return _in_public(self._app.jobs.get(job))

    def cancel_job(self, job: str) -> dict[str, Any]:
        """End a job; a running one at its next step. Returns its status."""
        return _in_public(self._app.jobs.cancel(job))

    def job_images(self, job: str) -> list[dict[str, Any]]:
        """Return what a generation has made so far, as files."""
        self._app.jobs.get(job)
        return [_file(image.path) for image in self._app.images.of_job(job)]

    def generate_video(self, prompt: str) -> str:  # noqa: ARG002  # the signature it will have
        """Not made yet: always refused with the code not_available."""
        raise NotAvailable("video is in development and cannot be made yet; images can: call generate")


def _in_public(job: Job) -> dict[str, Any]:
    shown = {
        "id",
        "kind",
        "status",
        "attempt",
        "created_at",
        "started_at",
        "finished_at",
        "progress",
        "result",
        "error",
    }
    return job.model_dump(mode="json", include=shown)


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def _plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let our errors reach the caller as ``code: words``."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except IsengardError as error:
            raise gr.Error(f"{error.code}: {error}", print_exception=False) from error

    return call
