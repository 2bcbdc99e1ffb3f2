"""Whom pictures show, and how much they look like a character."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import Resampling
from pydantic import TypeAdapter

from isengard.domain.cast import character_in
from isengard.domain.character import Character
from isengard.domain.evaluation import centroid, left_out
from isengard.domain.identity import Portrait, ScorerKind, Sighting, likeness
from isengard.engines.base import IdentityScorer
from isengard.files import write_text
from isengard.services.characters import CharacterService
from isengard.store import looks

_SIGHTINGS = TypeAdapter(tuple[Sighting, ...])

#: The demo model draws on 128 pixels, and photographs that small are not worth a training.
DRAWN_SIDE = 256
#: Of neighbouring pixels in the middle of a picture, the share that hardly differ: 0.68 and more in the example characters'
#: pictures, 0.41 and more in the demo model's own, at most 0.42 and in the median 0.34 in portraits before a plain wall.
FLAT = 0.4


class LikenessService:
    """Finds whom a character's images show, once for each image, and measures pictures against them."""

    def __init__(
        self,
        *,
        characters: CharacterService,
        scorers: Callable[[ScorerKind], IdentityScorer],
        cache_dir: Path,
    ) -> None:
        """``scorers``: opens one, which may take seconds the first time; it raises MissingWeights."""
        self._characters, self._scorers, self._cache_dir = characters, scorers, cache_dir
        self._suggested: dict[tuple[str, tuple[str, ...]], ScorerKind] = {}

    def kind(self, character: Character, *, on_image: Callable[[], None] = lambda: None) -> ScorerKind:
        """The scorer that fits: the character's own choice, or what its images suggest.

        The first time after a change of its images it looks for faces in each, and calls ``on_image`` after each.

        Raises: NotFound, MissingWeights.
        """
        if character.scorer:
            return character.scorer
        key = (character.id, tuple(image.id for image in character.images))
        if key not in self._suggested:
            self._suggested[key] = self._suggest(character, on_image)
        return self._suggested[key]

    def sightings(
        self, character: Character, kind: ScorerKind, *, on_image: Callable[[], object] = lambda: None
    ) -> Mapping[str, tuple[Sighting, ...]]:
        """Whom each of its images shows, by the image's id. ``on_image`` is called after each.

        Raises:
            NotFound: an image's file is missing. MissingWeights.
        """
        found: dict[str, tuple[Sighting, ...]] = {}
        for image in character.images:
            found[image.id] = self._seen(kind, self._characters.image_path(character.id, image.id))
            on_image()
        return found

    def portrait(self, character: Character, *, on_image: Callable[[], object] = lambda: None) -> Portrait:
        """What its pictures are measured against. ``on_image`` is called after each of its images.

        Raises:
            InvalidSpec: no image shows anybody clearly. MissingWeights.
        """
        kind = self.kind(character)
        seen = self.sightings(character, kind, on_image=on_image)
        clear = character_in(seen, kind)
        embeddings = [one.embedding for one in clear.values()]
        return Portrait(
            scorer=kind,
            centroid=centroid(embeddings),
            ceiling=left_out(embeddings) if len(embeddings) > 1 else (),
            images=tuple(clear),
        )

    def score(self, portrait: Portrait, paths: Sequence[Path]) -> list[float | None]:
        """Of each picture, the cosine to the character; None where nobody is seen. Raises: MissingWeights."""
        with ExitStack() as stack:
            return self.score_images(portrait, [stack.enter_context(Image.open(path)) for path in paths])

    def score_images(self, portrait: Portrait, images: Sequence[Image.Image]) -> list[float | None]:
        """The same of pictures that are not files yet. Raises: MissingWeights."""
        found = self._scorers(portrait.scorer).find(images)
        return [likeness(one, portrait.centroid) for one in found]

    def _suggest(self, character: Character, on_image: Callable[[], None]) -> ScorerKind:
        paths = [self._characters.image_path(character.id, image.id) for image in character.images]
        if sum(_is_drawn(path) for path in paths) * 2 > len(paths):
            return ScorerKind.DRAWN_FIGURES
        seen = self.sightings(character, ScorerKind.FACES, on_image=on_image).values()
        with_face = sum(any(one.reliable for one in found) for found in seen)
        return ScorerKind.FACES if with_face * 2 >= len(paths) else ScorerKind.LOOK

    def _seen(self, kind: ScorerKind, path: Path) -> tuple[Sighting, ...]:
        """The sightings of an image whose file is named by its content."""
        kept = self._cache_dir / kind / f"{path.stem}.json"
        if (known := looks.read(kept, _SIGHTINGS.validate_json)) is not None:
            return known
        with Image.open(path) as image:
            (found,) = self._scorers(kind).find([image])
        write_text(kept, _SIGHTINGS.dump_json(found).decode())
        return found


def _is_drawn(path: Path) -> bool:
    """Whether a picture is small and in flat colours, as the demo model draws."""
    with Image.open(path) as image:
        if max(image.size) > DRAWN_SIDE:
            return False
        width, height = image.size
        middle = image.convert("RGB").resize(
            (64, 64), Resampling.BOX, box=(width / 4, height / 4, width * 3 / 4, height * 3 / 4)
        )
    pixels = np.asarray(middle, dtype=np.int16)
    down, right = np.diff(pixels, axis=0), np.diff(pixels, axis=1)
    steps = np.concatenate([np.abs(each).max(axis=2).ravel() for each in (down, right)])
    return float((steps <= 2).mean()) >= FLAT
