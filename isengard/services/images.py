"""What the page and the command line may do with images."""

import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from isengard.domain.base import validated
from isengard.domain.generation import (
    FoundSettings,
    GenerationTemplate,
    ImageSpec,
    LocalLora,
    LoraRef,
    SavedImage,
    resolve_prompt,
    with_trigger,
)
from isengard.domain.image_planner import ImagePlan
from isengard.domain.job import Job, JobKind, Lane
from isengard.domain.lora import Lora
from isengard.domain.model import Family, ModelCard
from isengard.domain.performance import StepCache
from isengard.errors import InvalidSpec, NotFound
from isengard.queue.base import JobQueue
from isengard.services.planning import Planning
from isengard.services.room import Room
from isengard.store.artifacts import Images, Loras, read_settings
from isengard.store.configs import Catalog
from isengard.store.weights import Weights

#: An image may be at most so many times larger per side than its model was made for.
MAX_ENLARGEMENT = 2
#: Seconds for which the list of models and templates holds.
OFFER_AGE_S = 2.0

_Offer = tuple[tuple[tuple[ModelCard, bool], ...], tuple[GenerationTemplate, ...]]


class ImageService:
    """Makes generation jobs, and keeps the gallery and the list of LoRAs."""

    def __init__(  # noqa: PLR0913  # each is a collaborator
        self,
        *,
        queue: JobQueue,
        catalog: Catalog,
        weights: Weights,
        loras: Loras,
        images: Images,
        families: Collection[Family],
        planning: Planning,
        room: Room,
        elsewhere: Callable[[str], bool] = lambda _model: False,
        has_photos: Callable[[str], bool] = lambda _character: True,
        draw_seed: Callable[[], int] = lambda: secrets.randbelow(2**32),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``elsewhere``: whether a worker on another machine has a base model. ``has_photos``: whether a character has."""
        self._queue = queue
        self._catalog = catalog
        self._weights = weights
        self._loras = loras
        self._images = images
        self._families = families
        self._planning = planning
        self._room = room
        self._elsewhere = elsewhere
        self._has_photos = has_photos
        self._draw_seed = draw_seed
        self._clock = clock
        self._offered: tuple[float, _Offer] | None = None

    def plan(self, *, template: str = "", overrides: Mapping[str, Any]) -> ImageSpec:
        """Resolve a template to a whole spec, without starting anything.

        What is not given comes from the model's card; the seed is drawn. Without a model, the one that the first LoRA
        was made for is taken.

        Raises:
            NotFound: the template, the model or the LoRA that names the model.
            InvalidSpec: names each wrong value.
        """
        given = {**(self._catalog.template(template).settings if template else {}), **overrides}
        if not given.get("base_model"):
            given["base_model"] = self._model_for(given.get("loras") or ())
        card = self._catalog.model(given["base_model"])
        side = card.resolutions[-1]
        defaults = {
            "width": side,
            "height": side,
            "num_inference_steps": card.num_inference_steps,
            "guidance_scale": card.guidance_scale,
            "seed": self._draw_seed(),
            "template": template,
        }
        return validated(ImageSpec, {**defaults, **given})

    def submit(self, spec: ImageSpec) -> Job:
        """Enqueue a generation.

        Raises:
            NotFound: the model, a LoRA or a checkpoint.
            InvalidSpec: a model that makes no images here or does not fit into this machine, a size it was not made
                for, a step cache that does not work with it, a LoRA of another family, a placeholder nobody fills, the
                best to keep of a character without photos.
            MissingWeights: the base model is not on this machine, nor at a worker.
            DiskFull: the images would fill the disk, or go beyond the quota.
        """
        card = self._catalog.model(spec.base_model)
        if card.family not in self._families:
            raise InvalidSpec(
                f"base_model: images are made with the families {', '.join(sorted(self._families))} so far, "
                f"and {card.title} is of the family {card.family}"
            )
        _check_size(spec, card)
        _check_cache(spec, card)
        self.check_here(card)
        loras = [self._loras.get(ref.lora) for ref in spec.loras]
        for lora in loras:
            self._check_family(lora, card)
        self._check_best(spec, loras)
        prompt = resolve_prompt(spec.prompt, self.local_loras(spec))
        fit = self._planning.images(card, spec)
        if not fit.fits:
            raise InvalidSpec(" ".join(fit.reasons))
        self._room.check_images(spec)
        payload = {"spec": spec.model_dump(mode="json"), "prompt": prompt}
        needs = self._planning.image_needs(card, spec)
        return self._queue.enqueue(JobKind.GENERATE_IMAGES, payload, lane=Lane.INTERACTIVE, needs=needs)

    def fit(self, spec: ImageSpec) -> ImagePlan:
        """How the request would be made on this machine. Raises: NotFound."""
        return self._planning.images(self._catalog.model(spec.base_model), spec)

    def with_trigger(self, spec: ImageSpec) -> str:
        """The prompt with ``[trigger] [class]`` in front when it calls up none of the LoRAs. Raises: NotFound."""
        return with_trigger(spec.prompt, self.local_loras(spec))

    def local_loras(self, spec: ImageSpec) -> tuple[LocalLora, ...]:
        """The files of the spec's LoRAs. Raises: NotFound."""
        return tuple(self._loras.resolve(ref) for ref in spec.loras)

    def prompt_as_sent(self, spec: ImageSpec) -> str:
        """The prompt as the model gets it: `with_trigger`, with every placeholder filled. Raises: NotFound, InvalidSpec."""
        loras = self.local_loras(spec)
        return resolve_prompt(with_trigger(spec.prompt, loras), loras)

    def models(self) -> tuple[tuple[ModelCard, bool], ...]:
        """The models that make images here, each with whether a job can have it; looked up every few seconds."""
        return self._offer()[0]

    def templates(self) -> tuple[GenerationTemplate, ...]:
        """The templates whose model makes images here; looked up every few seconds."""
        return self._offer()[1]

    def _offer(self) -> _Offer:
        """Models and templates. Every open page asks for them all the time, and they are files."""
        now = self._clock()
        if self._offered is None or now - self._offered[0] > OFFER_AGE_S:
            cards = [card for card in self._catalog.models() if card.family in self._families]
            names = {None, *(card.name for card in cards)}
            models = tuple((card, self._is_ready(card)) for card in cards)
            found = self._catalog.templates()
            templates = tuple(one for one in found if one.settings.get("base_model") in names)
            self._offered = (now, (models, templates))
        return self._offered[1]

    def model_for(self, lora_id: str) -> str:
        """The model a LoRA is used with: the partner of the one it was trained on. Raises: NotFound."""
        return self._model_for([{"lora": lora_id}])

    def checkpoints(self, lora_id: str) -> tuple[int, ...]:
        """The steps of a LoRA's run that can be used in its place, lowest first."""
        return self._loras.checkpoints(lora_id)

    def image(self, image_id: str) -> SavedImage:
        """Raises: NotFound."""
        return self._images.get(image_id)

    def all_with_characters(self) -> tuple[tuple[SavedImage, frozenset[str]], ...]:
        """All images, newest first, each with the ids of the characters whose LoRAs made it.

        Where a LoRA is gone, its name stands for its character.
        """
        loras = self._loras.list()
        by_id = {lora.id: lora.character for lora in loras}
        by_name = {lora.name: lora.character for lora in loras}
        found = []
        for image in self._images.list(limit=None):
            names = ((used.id, _without_step(used.name)) for used in image.record.loras)
            owners = frozenset(by_id.get(lora_id, by_name.get(name, name)) for lora_id, name in names)
            found.append((image, owners))
        return tuple(found)

    def gallery(self, *, limit: int = 100) -> tuple[SavedImage, ...]:
        """The newest images first."""
        return self._images.list(limit=limit)

    def of_job(self, job_id: str) -> tuple[SavedImage, ...]:
        """What a job has made so far."""
        return self._images.of_job(job_id)

    def remove(self, image_id: str) -> None:
        """Move an image into the trash. Raises: NotFound."""
        self._images.remove(image_id)

    def restore(self, image_ids: Sequence[str]) -> None:
        """Bring images back from the trash, as far as they are there. Raises: NotFound when none is."""
        there = [self._images.restore(image_id) for image_id in image_ids]
        if not any(there):
            raise NotFound(
                f"these images are not in the trash any more ({', '.join(image_ids) or 'none'}): they were deleted for"
                " good; the same settings and seeds make them again"
            )

    def loras(self, *, character: str | None = None) -> tuple[Lora, ...]:
        """All LoRAs, or those of one character; newest first."""
        return self._loras.list(character=character)

    def lora(self, lora_id: str) -> Lora:
        """Raises: NotFound."""
        return self._loras.get(lora_id)

    def lora_path(self, lora_id: str) -> Path:
        """The file of a LoRA, for other programs. Raises: NotFound."""
        return self._loras.path(self._loras.get(lora_id))

    def remove_lora(self, lora_id: str) -> None:
        """Move a LoRA into the trash. Raises: NotFound."""
        self._loras.remove(lora_id)

    def read_settings(self, path: Path) -> FoundSettings:
        """How a PNG was made, as far as a spec can say it. Raises: ImageRefused."""
        return read_settings(path)

    def _model_for(self, loras: Sequence[Any]) -> str:
        """The model a LoRA is used with; the one it was trained on while its partner is not here."""
        if not loras:
            known = ", ".join(card.name for card in self._catalog.models())
            raise InvalidSpec(f"base_model is missing: choose a model ({known}) or a LoRA")
        first = loras[0]
        ref = first if isinstance(first, LoraRef) else validated(LoraRef, first)
        return self.made_with(self._catalog.model(self._loras.get(ref.lora).base_model)).name

    def made_with(self, card: ModelCard) -> ModelCard:
        """The model that LoRAs of this one are used with: its partner; itself while that is not here. Raises: NotFound."""
        if card.generates_with is None:
            return card
        partner = self._catalog.model(card.generates_with)
        alone = self._is_ready(card) and not self._is_ready(partner)
        return card if alone else partner

    def check_here(self, card: ModelCard) -> None:
        """See that a job can have the model. Raises: MissingWeights."""
        if not self._elsewhere(card.name):
            self._weights.locate(card)

    def _is_ready(self, card: ModelCard) -> bool:
        return self._elsewhere(card.name) or self._weights.status(card).ready

    def _check_family(self, lora: Lora, card: ModelCard) -> None:
        trained_on = self._catalog.model(lora.base_model)
        if trained_on.family is not card.family:
            raise InvalidSpec(
                f"LoRA {lora.id!r} was trained on {trained_on.name} ({trained_on.family}) and does not fit {card.name}"
                f" ({card.family}); choose a model of the family {trained_on.family}"
            )

    def _check_best(self, spec: ImageSpec, loras: Sequence[Lora]) -> None:
        if spec.keep_best and not any(self._has_photos(lora.character) for lora in loras):
            names = ", ".join(repr(lora.character) for lora in loras)
            raise InvalidSpec(
                f"keep_best: images are measured against a character's photos, and there are none of {names};"
                " leave keep_best out, or add the character's photos again"
            )


def _without_step(name: str) -> str:
    """The name of a LoRA, of that of one of its checkpoints."""
    return re.sub(r"-step\d+$", "", name)


def read_payload(job: Job) -> tuple[ImageSpec, str]:
    """The spec and the resolved prompt of a generation job. Raises: InvalidSpec."""
    try:
        return validated(ImageSpec, job.payload["spec"]), str(job.payload["prompt"])
    except KeyError as error:
        raise InvalidSpec(f"generation {job.id!r} has no {error} in its record; start it anew") from None


def _check_size(spec: ImageSpec, card: ModelCard) -> None:
    largest = card.resolutions[-1] * MAX_ENLARGEMENT
    for name, value in (("width", spec.width), ("height", spec.height)):
        if value > largest:
            raise InvalidSpec(
                f"{name}: {card.title} was made for {card.resolutions[-1]} pixels and makes at most {largest}, got {value}"
            )


def _check_cache(spec: ImageSpec, card: ModelCard) -> None:
    if spec.cache is StepCache.NONE or spec.cache in card.step_caches:
        return
    unknown = spec.cache is StepCache.MAG and card.family is not Family.SDXL
    reason = "its card has no mag_ratios" if unknown else f"it cannot skip blocks of the family {card.family}"
    usable = ", ".join([*card.step_caches, StepCache.NONE])
    raise InvalidSpec(
        f"cache: {spec.cache} does not work with {card.title}: {reason}; choose one of: {usable}"
    )
