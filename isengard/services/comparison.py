"""What the page and the command line may do with comparisons of a training's checkpoints."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isengard.domain.base import validated
from isengard.domain.captions import resolve_caption
from isengard.domain.comparison import PROMPTS, Comparison, ComparisonSpec, spread
from isengard.domain.evaluation import Candidate
from isengard.domain.generation import ImageSpec
from isengard.domain.job import Job, JobKind, JobStatus, Lane
from isengard.domain.model import ModelCard
from isengard.domain.training import TrainingSpec
from isengard.errors import Conflict, InvalidSpec, IsengardError, NotFound, QueueUnavailable
from isengard.queue.base import JobQueue
from isengard.services.characters import CharacterService
from isengard.services.likeness import LikenessService
from isengard.services.planning import Planning
from isengard.services.room import Room
from isengard.services.training import read_payload as read_training
from isengard.store.comparisons import Comparisons
from isengard.store.configs import Catalog

log = logging.getLogger(__name__)

#: Jobs that are looked at for the speed of a model, newest first.
LOOK_BACK = 30
_GOES_ON = (JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.PAUSED)


class ComparisonService:
    """Makes comparison jobs, and reads what came of them."""

    def __init__(  # noqa: PLR0913  # each is a collaborator
        self,
        *,
        queue: JobQueue,
        catalog: Catalog,
        characters: CharacterService,
        likeness: LikenessService,
        comparisons: Comparisons,
        planning: Planning,
        room: Room,
        made_with: Callable[[ModelCard], ModelCard],
        check_model: Callable[[ModelCard], None],
    ) -> None:
        """``made_with``: the model that a LoRA of this one is used with. ``check_model``: raises MissingWeights."""
        self._queue, self._catalog, self._characters = queue, catalog, characters
        self._likeness, self._comparisons = likeness, comparisons
        self._planning, self._room = planning, room
        self._made_with, self._check_model = made_with, check_model

    def plan(self, run: str, /, **overrides: Any) -> ComparisonSpec:
        """The comparison of a training's checkpoints, without starting anything.

        ``overrides``: fields of the spec; prompts may hold ``[trigger]`` and ``[class]``.

        Raises:
            NotFound: the training, or its character.
            Conflict: it has no checkpoints.
            InvalidSpec: names each wrong value.
        """
        trained = self._training(run)
        steps = self._comparisons.steps(run)
        if not steps:
            raise Conflict(f"training {run!r} has no checkpoint that could be compared; train first")
        card = self._made_with(self._catalog.model(trained.base_model))
        kind = self._likeness.kind(self._characters.get(trained.character))
        given = {
            "run": run,
            "character": trained.character,
            "base_model": card.name,
            "steps": spread(steps),
            "prompts": PROMPTS[kind],
            "width": trained.sample_resolution,
            "height": trained.sample_resolution,
            "num_inference_steps": card.num_inference_steps,
            "guidance_scale": card.guidance_scale,
            **overrides,
        }
        if isinstance(given["prompts"], list | tuple):
            given["prompts"] = [
                resolve_caption(str(prompt), trained.trigger, trained.class_word)
                for prompt in given["prompts"]
            ]
        spec = validated(ComparisonSpec, given)
        if spec.run != run:
            raise InvalidSpec(f"run: it is the training {run!r} that is compared, and not {spec.run!r}")
        if gone := sorted(set(spec.steps) - set(steps)):
            raise InvalidSpec(f"steps: {gone} have no checkpoint (there are: {', '.join(map(str, steps))})")
        return spec

    def submit(self, spec: ComparisonSpec, *, job_id: str | None = None) -> Job:
        """Enqueue a comparison. What earlier ones have made already is not made again.

        Raises:
            NotFound: the training, its character, or the model.
            Conflict: this training is being compared already.
            InvalidSpec: the model does not fit into this machine.
            MissingWeights: the model is not on this machine, nor at a worker.
            DiskFull.
        """
        self._training(spec.run)
        self._characters.get(spec.character)
        if (former := self.job_of(spec.run)) and former.status in _GOES_ON:
            raise Conflict(
                f"the checkpoints of {spec.run} are being compared already (job {former.id}, {former.status});"
                " wait for it, resume it or cancel it"
            )
        card = self._catalog.model(spec.base_model)
        self._check_model(card)
        asked = image_spec(spec, prompt=0, seed=spec.seeds[0], count=len(spec.seeds))
        fit = self._planning.images(card, asked)
        if not fit.fits:
            raise InvalidSpec(" ".join(fit.reasons))
        self._room.check_comparison(spec)
        name = self._queue.get(spec.run).payload.get("name", "")
        return self._queue.enqueue(
            JobKind.EVALUATE_CHECKPOINTS,
            {"spec": spec.model_dump(mode="json"), "name": name},
            lane=Lane.TRAINING,
            needs=self._planning.image_needs(card, asked),
            job_id=job_id,
        )

    def after_training(self, run: str) -> None:
        """Enqueue the usual comparison, once however often the training is delivered. What hinders it is logged.

        Raises: QueueUnavailable.
        """
        try:
            self.submit(self.plan(run), job_id=f"{run}-comparison")
        except QueueUnavailable:
            raise
        except IsengardError as error:
            log.warning("checkpoints are not compared", extra={"run": run, "reason": str(error)})

    def of_run(self, run: str) -> Comparison | None:
        """What came of the newest comparison so far; None before the first candidate was tested. Cheap when asked again."""
        return self._comparisons.read(run)

    def job_of(self, run: str) -> Job | None:
        """The job that compares the training's checkpoints, or has done so last."""
        jobs = self._queue.jobs(kinds=(JobKind.EVALUATE_CHECKPOINTS,), limit=1000)
        return next((job for job in jobs if job.payload.get("spec", {}).get("run") == run), None)

    def picture(self, run: str, candidate: Candidate | None, *, prompt: int, seed: int) -> Path:
        """A picture of the newest comparison, of the base model without a candidate; ``prompt``: its place in the spec.

        Raises: NotFound.
        """
        comparison = self.of_run(run)
        if comparison is not None and 0 <= prompt < len(comparison.spec.prompts):
            path = self._comparisons.picture(comparison.spec, candidate, prompt=prompt, seed=seed)
            if path.is_file():
                return path
        raise NotFound(f"there is no such picture in the comparison of {run!r}; compare its checkpoints anew")

    def missing(self, spec: ComparisonSpec) -> int:
        """How many pictures have still to be made."""
        return sum(
            not path.is_file()
            for candidate in (None, *spec.candidates)
            for path in self._comparisons.pictures(spec, candidate)
        )

    def seconds(self, spec: ComparisonSpec) -> float | None:
        """How long the missing pictures will take, from the newest that this model made; None when it made none."""
        kinds = (JobKind.EVALUATE_CHECKPOINTS, JobKind.GENERATE_IMAGES)
        for job in self._queue.jobs(kinds=kinds, limit=LOOK_BACK):
            given, rate = job.payload.get("spec", {}), job.progress and job.progress.steps_per_s
            if given.get("base_model") == spec.base_model and rate:
                pixels = spec.width * spec.height / (int(given["width"]) * int(given["height"]))
                return self.missing(spec) * spec.num_inference_steps * pixels / rate
        return None

    def _training(self, run: str) -> TrainingSpec:
        job = self._queue.get(run)
        if job.kind is not JobKind.TRAIN_LORA:
            raise InvalidSpec(f"job {run!r} is no training: name one whose checkpoints are to be compared")
        return read_training(job)[0]


def image_spec(spec: ComparisonSpec, *, prompt: int, seed: int, count: int = 1) -> ImageSpec:
    """The request for pictures of one prompt with ``seed``, ``seed + 1``, ..."""
    return ImageSpec(
        base_model=spec.base_model,
        prompt=spec.prompts[prompt],
        width=spec.width,
        height=spec.height,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        seed=seed,
        count=count,
    )


def read_payload(job: Job) -> ComparisonSpec:
    """The spec of a comparison job. Raises: InvalidSpec."""
    return validated(ComparisonSpec, job.payload.get("spec", {}))
