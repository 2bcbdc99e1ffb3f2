"""Captions written by a model: which models there are, and a job that describes the images of a character."""

import time
from collections.abc import Callable

from isengard.domain.captioner import CaptionerCard, CaptionRequest, digest
from isengard.domain.job import Job, JobKind, JobStatus, Lane, Needs
from isengard.errors import Conflict, MissingWeights
from isengard.queue.base import JobQueue
from isengard.services.characters import CharacterService
from isengard.store.configs import Catalog
from isengard.store.weights import Weights

#: Seconds for which the list of captioners holds: every open page asks for it, and each is many files.
LIST_AGE_S = 5.0
#: Jobs among which a character's last one is looked for.
RECENT = 50
UNENDED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED)


class CaptioningService:
    """Captions by a model. What a user has written is only replaced when asked for, and can be brought back."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        catalog: Catalog,
        weights: Weights,
        characters: CharacterService,
        elsewhere: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``elsewhere``: whether a worker on another machine has a model."""
        self._queue, self._catalog, self._weights = queue, catalog, weights
        self._characters, self._elsewhere, self._clock = characters, elsewhere, clock
        self._listed: tuple[float, tuple[tuple[CaptionerCard, bool], ...]] | None = None

    def captioners(self) -> tuple[tuple[CaptionerCard, bool], ...]:
        """All captioners, each with whether a job can have it; looked up every few seconds."""
        now = self._clock()
        if self._listed is None or now - self._listed[0] > LIST_AGE_S:
            self._listed = now, tuple((card, self._is_here(card)) for card in self._catalog.captioners())
        return self._listed[1]

    def submit(self, character_id: str, *, captioner: str = "", overwrite: bool = False) -> Job:
        """Enqueue a job that gives the images captions; those that have one are left out, unless ``overwrite``.

        Args:
            character_id: Whose images they are.
            captioner: A card's name; empty for the first that is here.
            overwrite: Also where there is a caption; it can be brought back: `CharacterService.undo_captions`.

        Raises:
            NotFound: the character, or the captioner.
            MissingWeights: it is not here; says how to get it.
            Conflict: no image lacks a caption, or such a job is under way.
        """
        character = self._characters.get(character_id)
        card = self._catalog.captioner(captioner or self._first())
        if not self._elsewhere(card.name):
            self._weights.locate_files(card)
        captions = {
            image.id: digest(image.caption) for image in character.images if overwrite or not image.caption
        }
        if not captions:
            told = "has no images" if not character.images else "has a caption for each image already"
            raise Conflict(f"{character.name} {told}: there is nothing to describe")
        under_way = self.last(character_id)
        if under_way is not None and not under_way.status.ended:
            raise Conflict(
                f"the images of {character.name} are being described already (job {under_way.id}): wait for its end, or cancel it"
            )
        request = CaptionRequest(
            character=character.id,
            name=character.name,
            class_word=character.class_word,
            captioner=card.name,
            captions=captions,
        )
        return self._queue.enqueue(
            JobKind.CAPTION_IMAGES,
            request.model_dump(mode="json"),
            lane=Lane.INTERACTIVE,
            needs=Needs(model=card.name),
        )

    def last(self, character_id: str) -> Job | None:
        """The character's job that is under way, or else the one that was asked for last."""
        jobs = self._queue.jobs(kinds=(JobKind.CAPTION_IMAGES,), limit=RECENT)
        return next((job for job in jobs if job.payload.get("character") == character_id), None)

    def _first(self) -> str:
        """The first captioner that is here. Raises: MissingWeights."""
        cards = self._catalog.captioners()
        found = next((card.name for card in cards if self._is_here(card)), None)
        if found is None:
            names = (
                ", ".join(card.name for card in cards) or "none is known: configs/captioners.yaml is missing"
            )
            raise MissingWeights(
                f"no model that describes pictures is on this machine (known: {names}). Get one on the Training tab"
                ' under "Base models", or with: python -m isengard models download NAME'
            )
        return found

    def _is_here(self, card: CaptionerCard) -> bool:
        return self._elsewhere(card.name) or self._weights.status(card).ready
