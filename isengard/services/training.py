"""What the page and the command line may do with trainings."""

import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isengard.domain import ai_toolkit
from isengard.domain.ai_toolkit_import import MAX_CHARACTERS, ImportedSettings, from_yaml
from isengard.domain.base import validated
from isengard.domain.job import Job, JobKind, JobStatus, Lane
from isengard.domain.model import Family, ModelCard
from isengard.domain.planner import PLANNED, TrainingPlan, changes
from isengard.domain.presets import resolve_spec
from isengard.domain.training import AI_TOOLKIT, NATIVE, RESUMABLE_FIELDS, TrainingImage, TrainingSpec
from isengard.errors import Conflict, InvalidSpec, MissingWeights, NotFound, OutOfMemory
from isengard.files import replacing, write_text
from isengard.queue.base import JobQueue
from isengard.services.characters import CharacterService
from isengard.services.planning import Planning
from isengard.services.room import Room
from isengard.store.configs import Catalog
from isengard.store.weights import Weights


@dataclass(frozen=True)
class Engine:
    """A trainer that a training can name."""

    families: Collection[Family]
    absence: Callable[[], str] = lambda: ""
    """Why it cannot be used just now, with the way out; empty when it can. Asked often."""


@dataclass(frozen=True)
class Remedy:
    """How a training that ran out of memory can go on."""

    changes: Mapping[str, Any]
    words: str


class TrainingService:
    """Makes training jobs, and lets stopped ones go on."""

    def __init__(  # noqa: PLR0913  # each is a collaborator
        self,
        *,
        queue: JobQueue,
        catalog: Catalog,
        weights: Weights,
        characters: CharacterService,
        engines: Mapping[str, Engine],
        planning: Planning,
        room: Room,
        elsewhere: Callable[[str], bool] = lambda _model: False,
        runs_dir: Path,
    ) -> None:
        """``elsewhere``: whether a worker on another machine has a base model."""
        self._queue = queue
        self._catalog = catalog
        self._weights = weights
        self._characters = characters
        self._engines = engines
        self._planning = planning
        self._room = room
        self._elsewhere = elsewhere
        self._runs_dir = runs_dir

    def plan(
        self, *, character_id: str, base_model: str, preset: str, overrides: Mapping[str, Any]
    ) -> TrainingSpec:
        """Resolve the preset to a whole spec that fits into this machine, without starting anything.

        Raises:
            NotFound: the character, model or preset.
            InvalidSpec: names each wrong override.
        """
        return self.planned(
            character_id=character_id, base_model=base_model, preset=preset, overrides=overrides
        ).spec

    def planned(
        self, *, character_id: str, base_model: str, preset: str, overrides: Mapping[str, Any]
    ) -> TrainingPlan:
        """The same with what is expected of the memory. What the user chose (``overrides``) stays.

        AI-Toolkit gives way to our own engine where it needs more memory than there is. Raises: as `plan`.
        """
        spec = self._resolved(
            character_id=character_id, base_model=base_model, preset=preset, overrides=overrides
        )
        card = self._catalog.model(base_model)
        plan = self._planning.training(card, spec, fixed=overrides.keys() & PLANNED)
        if plan.fits or spec.engine != AI_TOOLKIT or "engine" in overrides or not card.trainable:
            return plan
        if card.family not in self._engines[NATIVE].families:
            return plan
        ours = spec.model_copy(update={"engine": NATIVE})
        other = self._planning.training(card, ours, fixed=overrides.keys() & PLANNED)
        return other if other.fits else plan

    def _resolved(
        self, *, character_id: str, base_model: str, preset: str, overrides: Mapping[str, Any]
    ) -> TrainingSpec:
        character = self._characters.get(character_id)
        card = self._catalog.model(base_model)
        spec = resolve_spec(
            self._catalog.preset(preset),
            card,
            character=character.id,
            trigger=character.trigger,
            class_word=character.class_word,
            image_count=len(character.images),
            engine=self.default_engine(card),
            overrides=overrides,
        )
        self._check_engine(spec, card)
        return spec

    def default_engine(self, card: ModelCard) -> str:
        """AI-Toolkit for a model that has to be downloaded, where it can be used; else our own."""
        fits = card.repository is not None and AI_TOOLKIT in self.available_engines(card)
        return AI_TOOLKIT if fits else NATIVE

    def available_engines(self, card: ModelCard) -> tuple[str, ...]:
        """The engines that can train this model here and now."""
        return tuple(
            name
            for name, engine in self._engines.items()
            if card.trainable and card.family in engine.families and not engine.absence()
        )

    def _check_engine(self, spec: TrainingSpec, card: ModelCard) -> None:
        """Raises: InvalidSpec, with an engine that would do and how to get it."""
        engine = self._engines.get(spec.engine)
        if engine is None:
            known = ", ".join(sorted(self._engines))
            raise InvalidSpec(f"engine must be one of {known}, got {spec.engine!r}")
        others = {name: other for name, other in self._engines.items() if card.family in other.families}
        if card.family not in engine.families:
            known = ", ".join(sorted(engine.families))
            ways = [other.absence() or f"choose the engine {name!r}" for name, other in others.items()]
            raise InvalidSpec(
                f"base_model: the engine {spec.engine!r} trains the families {known} so far, "
                f"and {card.title} is of the family {card.family}" + "".join(f"; {way}" for way in ways)
            )
        if absence := engine.absence():
            ready = self.available_engines(card)
            way = f"; or choose the engine {ready[0]!r}" if ready else ""
            raise InvalidSpec(f"engine: {spec.engine!r} cannot be used: {absence}{way}")

    def submit(self, *, character_id: str, base_model: str, preset: str, overrides: Mapping[str, Any]) -> Job:
        """Enqueue a training. The images and captions are those of this moment.

        Raises:
            NotFound, InvalidSpec: as `plan`.
                Or the training cannot fit into this machine, says why.
            Conflict: the character is not ready, says why.
            MissingWeights: the base model is not on this machine, nor at a worker.
            DiskFull: it would fill the disk, or go beyond the quota.
        """
        plan = self.planned(
            character_id=character_id, base_model=base_model, preset=preset, overrides=overrides
        )
        spec, card = plan.spec, self._catalog.model(base_model)
        self._find(card)
        images = self._characters.training_images(character_id)
        if not plan.fits and not plan.possible:
            raise InvalidSpec(" ".join(plan.reasons))
        self._room.check_training(card, spec, images=len(images))
        name = self._characters.get(character_id).name
        needs = self._planning.training_needs(card, spec)
        return self._queue.enqueue(
            JobKind.TRAIN_LORA, payload(spec, images, name), lane=Lane.TRAINING, needs=needs
        )

    def lacking(self, card: ModelCard) -> str:
        """Why no training can have the base model, with the way out; empty when one can."""
        try:
            self._find(card)
        except MissingWeights as error:
            return str(error)
        return ""

    def _find(self, card: ModelCard) -> None:
        """Raises: MissingWeights."""
        if not self._elsewhere(card.name):
            self._weights.locate_to_train(card)

    def export_ai_toolkit(
        self, *, character_id: str, base_model: str, preset: str, overrides: Mapping[str, Any]
    ) -> str:
        """Return the same training as a file for AI-Toolkit, to be run elsewhere.

        Raises:
            NotFound, InvalidSpec: as `plan`; or a setting that AI-Toolkit has no counterpart for.
        """
        spec = self._resolved(  # it runs elsewhere: this machine's memory does not matter
            character_id=character_id, base_model=base_model, preset=preset, overrides=overrides
        )
        card = self._catalog.model(base_model)
        return ai_toolkit.to_yaml(spec, family=card.family, repository=card.repository, name=spec.character)

    def import_ai_toolkit(self, path: Path) -> ImportedSettings:
        """Read a file made for AI-Toolkit. Raises: InvalidSpec when it is none, or none of a LoRA."""
        with path.open("rb") as file:
            data = file.read(4 * MAX_CHARACTERS + 1)  # at most four bytes a character
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InvalidSpec(
                f"{path.name} is no text, or longer than a configuration can be: choose a .yaml file of AI-Toolkit"
            ) from None
        return from_yaml(text)

    def resume(self, job_id: str, changes: Mapping[str, Any]) -> Job:
        """Let a failed or cancelled training go on from its last checkpoint, with changed settings if need be.

        Raises:
            NotFound, Conflict: no such job; it has not ended, or has succeeded.
            InvalidSpec: a change that a started training cannot take, or a wrong value.
            DiskFull: as `submit`.
        """
        job = self._queue.get(job_id)
        if job.kind is not JobKind.TRAIN_LORA:
            raise InvalidSpec(f"job {job_id!r} is no training")
        if fixed := sorted(set(changes) - RESUMABLE_FIELDS):
            raise InvalidSpec(
                f"{', '.join(fixed)} cannot change in a training that has started; "
                f"these can: {', '.join(sorted(RESUMABLE_FIELDS))}"
            )
        spec, images, name = read_payload(job)
        changed = validated(TrainingSpec, {**spec.model_dump(mode="json"), **changes})
        card = self._catalog.model(changed.base_model)
        self._check_engine(changed, card)
        self._room.check_training(card, changed, images=len(images), job=job_id)
        needs = self._planning.training_needs(card, changed)
        return self._queue.requeue(job_id, {**job.payload, **payload(changed, images, name)}, needs=needs)

    def remedy(self, job_id: str) -> Remedy | None:
        """How a training that ran out of memory would fit: the changes for `resume`. None when nothing is known to.

        Raises:
            NotFound: no such job.
        """
        job = self._queue.get(job_id)
        if job.error is None or job.error.code != OutOfMemory.code or job.kind is not JobKind.TRAIN_LORA:
            return None
        try:
            tried = read_payload(job)[0]
            card = self._catalog.model(tried.base_model)
        except (InvalidSpec, NotFound):  # of another time
            return None
        plan = self._planning.after_out_of_memory(card, tried)
        made = changes(tried, plan.spec)
        return Remedy(changes=made, words=plan.words) if plan.fits and made else None

    def fit(self, card: ModelCard) -> TrainingPlan | None:
        """The plan of the smallest usual training of a model; None for a model that is not trained."""
        if not card.trainable:
            return None
        engine = NATIVE if card.family in self._engines[NATIVE].families else AI_TOOLKIT
        wishes = TrainingSpec(
            character="-",
            base_model=card.name,
            engine=engine,
            trigger="-",
            resolutions=(card.resolutions[0],),
            sample_resolution=card.resolutions[0],
        )
        return self._planning.training(card, wishes)

    def recommended(self) -> str:
        """The name of the largest model that can be trained here without a licence page; empty when there is none."""
        fitting = [
            card
            for card in self._catalog.models()
            if card.trains
            and card.repository
            and not card.gated
            and card.parts
            and self.available_engines(card)
            if (plan := self.fit(card)) and plan.fits
        ]
        return max(fitting, key=lambda card: card.parts.denoiser if card.parts else 0).name if fitting else ""

    def extend(self, job_id: str, steps: int) -> Job:
        """Train a succeeded LoRA further, to ``steps`` in all: a new job from the last checkpoint. The old one stays.

        Raises:
            NotFound, Conflict: no such job; it has not succeeded, or its checkpoints are gone.
            InvalidSpec: no more steps than it has already.
            DiskFull: as `submit`.
        """
        job = self._queue.get(job_id)
        spec, images, name = read_payload(job)
        if job.status is not JobStatus.SUCCEEDED:
            raise Conflict(f"job {job_id} is {job.status}, not succeeded; resume it instead")
        done = int((job.result or {}).get("steps", spec.steps))  # fewer where it ended early
        if steps <= done:
            raise InvalidSpec(f"steps: must be above the {done} it was trained for, got {steps}")
        longer = validated(
            TrainingSpec, {**spec.model_dump(mode="json"), "steps": steps, "stop_early": False}
        )
        card = self._catalog.model(longer.base_model)
        self._check_engine(longer, card)
        self._room.check_training(card, longer, images=len(images))
        source, new_id = self._runs_dir / job_id, secrets.token_hex(6)
        last = source / "checkpoints" / f"step-{done:08d}"
        if not last.is_dir():
            raise Conflict(f"training {job_id!r} has no checkpoint at step {done} any more; train again")
        with replacing(self._runs_dir / new_id) as folder:
            shutil.copytree(last, folder / "checkpoints" / last.name)
            shutil.copyfile(source / "metrics.jsonl", folder / "metrics.jsonl")
            if (source / "samples").is_dir():
                shutil.copytree(source / "samples", folder / "samples")
        request = {**payload(longer, images, name), "from_step": done}
        needs = self._planning.training_needs(card, longer)
        return self._queue.enqueue(
            JobKind.TRAIN_LORA, request, lane=Lane.TRAINING, needs=needs, job_id=new_id
        )

    @property
    def engine_names(self) -> tuple[str, ...]:
        """The engines a training can name."""
        return tuple(self._engines)

    def pinned(self, job_id: str) -> frozenset[int]:
        """The steps of the checkpoints that are kept whatever the retention says."""
        marks = (self._runs_dir / job_id / "checkpoints").glob("step-" + "[0-9]" * 8 + "/pinned")
        return frozenset(int(mark.parent.name[5:]) for mark in marks)

    def pin(self, job_id: str, step: int, *, pinned: bool) -> None:
        """Keep a checkpoint whatever the retention says, or no longer. Raises: NotFound."""
        folder = self._runs_dir / self._queue.get(job_id).id / "checkpoints" / f"step-{step:08d}"
        if not folder.is_dir():
            have = sorted(int(entry.name[5:]) for entry in folder.parent.glob("step-" + "[0-9]" * 8))
            raise NotFound(f"training {job_id!r} has no checkpoint at step {step} (it has: {have or 'none'})")
        if pinned:
            write_text(folder / "pinned", "")
        else:
            (folder / "pinned").unlink(missing_ok=True)


def payload(spec: TrainingSpec, images: Collection[TrainingImage], name: str) -> dict[str, Any]:
    """Return what a training job carries: all it needs to be run anywhere at any time."""
    return {
        "spec": spec.model_dump(mode="json"),
        "images": [image.model_dump(mode="json") for image in images],
        "name": name,
    }


def read_payload(job: Job) -> tuple[TrainingSpec, tuple[TrainingImage, ...], str]:
    """Return what `payload` packed. Raises: InvalidSpec when it is not readable any more."""
    try:
        spec, images, name = job.payload["spec"], job.payload["images"], job.payload["name"]
    except KeyError as error:
        raise InvalidSpec(f"training {job.id!r} has no {error} in its record; start it anew") from None
    return (
        validated(TrainingSpec, spec),
        tuple(validated(TrainingImage, image) for image in images),
        str(name),
    )
