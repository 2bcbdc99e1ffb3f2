"""Finished images are measured against the characters whose LoRAs made them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from isengard.domain.character import Character
from isengard.domain.generation import LoraRef
from isengard.domain.identity import Portrait
from isengard.domain.job import Phase, Progress
from isengard.domain.likeness import STRANGERS, Likeness, measured
from isengard.engines.base import Report
from isengard.errors import JobStopped, LeaseLost, NotFound
from isengard.services.characters import CharacterService
from isengard.services.likeness import LikenessService
from isengard.store.artifacts import Loras

log = logging.getLogger(__name__)

Measure = Callable[[Image.Image], tuple[Likeness, ...]]


@dataclass(frozen=True, kw_only=True)
class Likenesses:
    """Measures what a job makes. An image that cannot be measured is kept without a number, and the log says why."""

    likeness: LikenessService
    characters: CharacterService
    loras: Loras
    runs_dir: Path

    def of_job(self, refs: Sequence[LoraRef], report: Report) -> Measure:
        """Look at the characters' photos; return what measures an image. Raises: JobStopped, LeaseLost."""
        looking = Progress(phase=Phase.LOADING, message="looking at the photos")
        sought: dict[str, tuple[Character, Portrait, float | None]] = {}
        for ref in refs:
            lora = self.loras.get(ref.lora)
            if lora.character in sought:
                continue
            with _without_harm(lora.character), suppress(NotFound):  # a LoRA outlives its character
                character = self.characters.get(lora.character)
                portrait = self.likeness.portrait(character, on_image=lambda: report(looking))
                sought[character.id] = (character, portrait, self._floor(portrait, lora.id))

        def measure(image: Image.Image) -> tuple[Likeness, ...]:
            found: list[Likeness] = []
            for character, portrait, floor in sought.values():
                with _without_harm(character.id):
                    (cosine,) = self.likeness.score_images(portrait, [image])
                    found.append(measured(character, portrait, cosine, floor=floor))
            return tuple(found)

        return measure

    def _floor(self, portrait: Portrait, run: str) -> float | None:
        """The likeness of pictures without the LoRA: known of strangers, or that of the run's picture before it."""
        before = self.runs_dir / run / "before.png"
        if portrait.scorer in STRANGERS or not before.is_file():
            return STRANGERS.get(portrait.scorer)
        return self.likeness.score(portrait, [before])[0]


@contextmanager
def _without_harm(character: str) -> Iterator[None]:
    """Let nothing that goes wrong in here cost an image, which took longer to make than it does to measure."""
    try:
        yield
    except (JobStopped, LeaseLost):
        raise
    except Exception:  # scorers are libraries of others, and an image is worth more than its number
        log.warning("likeness not measured", exc_info=True, extra={"character": character})
