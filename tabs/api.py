"""What other programs may call, by `gradio_client` for example. The names are stable; every other event is the page's own."""

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from isengard.domain.character import AddedImage
from isengard.errors import IsengardError, NotAvailable
from isengard.logs import bound
from isengard.services.admission import Asked
from isengard.wiring import Application
from tabs.common import Page, asked_by, request_id, typed, uploaded
from tabs.http.jobs import in_public

NAMES = (
    "create_character",
    "add_images",
    "caption_images",
    "describe_images",
    "examine_images",
    "train",
    "compare_checkpoints",
    "comparison",
    "generate",
    "job_status",
    "cancel_job",
    "job_images",
    "generate_video",
)
#: A program that only looks does not keep a rented machine awake.
READS = ("job_status", "job_images", "comparison")


def add(page: Page) -> None:
    """Add the endpoints to the open block."""
    made = Endpoints(page.app)
    # What `job_images` names is fetched from where it lies.
    gr.set_static_paths([page.app.settings.images_dir])
    for name in NAMES:
        function = getattr(made, name)
        used = page.app.idle.used if name not in READS else None
        api(_plainly(function, used), api_name=name, api_description=function.__doc__, concurrency_limit=16)


class Endpoints:
    """The functions by their public names."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def create_character(
        self, request: gr.Request, name: str, trigger: str = "", class_word: str = "person"
    ) -> dict[str, Any]:
        """Add a character; without a trigger it gets a rare word. Returns its id, name, trigger and class word."""
        self._app.admission.count(Asked.CHANGES, asked_by(request))
        character = self._app.characters.create(name, trigger=trigger or None, class_word=class_word)
        return character.model_dump(include={"id", "name", "trigger", "class_word"})

    def add_images(self, character: str, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add uploaded pictures, captions (.txt) or zip archives. Returns for each file whether it was taken, and why not."""
        paths = uploaded(file.get("path") for file in files)
        try:
            return [
                {"filename": each.filename, "added": isinstance(each, AddedImage)}
                | ({"notes": list(each.notes)} if isinstance(each, AddedImage) else {"reason": each.reason})
                for each in self._app.characters.add_files(character, paths)
            ]
        finally:  # an original says where it was taken, and Gradio would keep it for a day
            for path in paths:
                path.unlink(missing_ok=True)

    def caption_images(self, character: str, template: str, only_empty: bool = True) -> int:  # noqa: FBT001, FBT002
        """Give images a caption; [trigger] and [class] stand for the character's words. Returns how many changed."""
        return self._app.characters.caption_all(character, template, only_empty=only_empty)

    def describe_images(
        self,
        request: gr.Request,
        character: str,
        captioner: str = "",
        overwrite: bool = False,  # noqa: FBT001, FBT002
    ) -> str:
        """Enqueue captions by a model that looks at the images; without a name, the first that is here. Returns the job's id."""
        make = partial(self._app.captioning.submit, character, captioner=captioner, overwrite=overwrite)
        return self._app.admission.submit(asked_by(request), make).id

    def examine_images(self, request: gr.Request, character: str) -> dict[str, Any]:
        """Look at each image, and change nothing. Returns the findings, each with a number and its limit, and facts of the set."""
        self._app.admission.count(Asked.JOBS, asked_by(request))
        return self._app.doctor.examine(character).model_dump(mode="json", include={"findings", "facts"})

    def train(
        self,
        request: gr.Request,
        character: str,
        base_model: str = "demo",
        preset: str = "quick",
        overrides: dict[str, Any] | None = None,
    ) -> str:
        """Enqueue a training. ``overrides`` are fields of the training spec. Returns the job's id, which names the LoRA too."""
        make = partial(
            self._app.training.submit,
            character_id=character,
            base_model=base_model,
            preset=preset,
            overrides=overrides or {},
        )
        return self._app.admission.submit(asked_by(request), make).id

    def compare_checkpoints(
        self, request: gr.Request, training: str, overrides: dict[str, Any] | None = None
    ) -> str:
        """Enqueue a comparison of a training's checkpoints. ``overrides`` are fields of its spec. Returns the job's id."""
        service = self._app.comparison
        make = lambda: service.submit(service.plan(training, **(overrides or {})))  # noqa: E731
        return self._app.admission.submit(asked_by(request), make).id

    def comparison(self, training: str) -> dict[str, Any] | None:
        """What is known so far: a score for each checkpoint and strength, and which is recommended, or why none is.

        Returns None before the first was tested. The images of what is recommended: generate(loras=[{"lora": ID, **recommended}]).
        """
        self._app.jobs.get(training)
        found = self._app.comparison.of_run(training)
        return (
            None if found is None else {"complete": found.complete, **found.verdict.model_dump(mode="json")}
        )

    def generate(
        self,
        request: gr.Request,
        prompt: str,
        base_model: str = "",
        loras: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> str:
        """Enqueue images. ``loras``: [{"lora": id, "strength": 1.0, "step": a checkpoint's}]; ``options``: further fields of the image spec. Returns the job's id."""
        given = {"prompt": prompt, "base_model": base_model, "loras": loras or [], **(options or {})}
        images = self._app.images
        return self._app.admission.submit(
            asked_by(request), lambda: images.submit(images.plan(overrides=given))
        ).id

    def job_status(self, job: str) -> dict[str, Any]:
        """Return a job's status, progress, result and error."""
        return in_public(self._app.jobs.get(job))

    def cancel_job(self, job: str) -> dict[str, Any]:
        """End a job; a running one at its next step. Returns its status."""
        return in_public(self._app.jobs.cancel(job))

    def job_images(self, job: str) -> list[dict[str, Any]]:
        """Return what a generation has made so far, as files."""
        self._app.jobs.get(job)
        return [_file(image.path) for image in self._app.images.of_job(job)]

    def generate_video(self, prompt: str) -> str:  # noqa: ARG002  # the signature it will have
        """Not made yet: always refused with the code not_available."""
        raise NotAvailable("video is in development and cannot be made yet; images can: call generate")


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def _plainly(function: Callable[..., Any], used: Callable[[], None] | None) -> Callable[..., Any]:
    """Let our errors reach the caller as ``code: words``. ``used``: is told of each call."""
    checked = typed(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if used is not None:
            used()
        with bound(correlation_id=request_id()):
            try:
                return checked(*args, **kwargs)
            except IsengardError as error:
                raise gr.Error(f"{error.code}: {error}", print_exception=False) from error

    return call
