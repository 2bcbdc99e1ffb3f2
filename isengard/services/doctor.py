"""Examines a character's photos and says what is wrong with them."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from isengard.domain.cast import cast
from isengard.domain.character import Character, ReferenceImage
from isengard.domain.diagnosis import caption_findings, photo_findings
from isengard.domain.doctor import CAPTION_KINDS, Examination, Finding, SetFacts
from isengard.domain.identity import ScorerKind, Sighting
from isengard.domain.photo import Photo
from isengard.domain.variety import set_facts, set_findings
from isengard.engines.base import IdentityScorer
from isengard.errors import NotFound
from isengard.files import Stamp, stamp, write_text
from isengard.services.characters import CharacterService
from isengard.services.likeness import LikenessService
from isengard.services.photo_measures import measure, turned
from isengard.store import looks

#: Of the kept measures; others are measured again.
VERSION = 1
#: A face found with less confidence may be on its side: upright ones have 0.94 and more.
UPRIGHT_CONFIDENCE = 0.92


class DoctorService:
    """Looks at each photo once; asked again, it only looks at what is new. Changes nothing of the character."""

    def __init__(
        self,
        *,
        characters: CharacterService,
        likeness: LikenessService,
        scorers: Callable[[ScorerKind], IdentityScorer],
        cache_dir: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``scorers``: opens one, which may take seconds the first time; it raises MissingWeights."""
        self._characters, self._likeness, self._scorers = characters, likeness, scorers
        self._cache_dir, self._clock = cache_dir, clock
        self._read: dict[str, tuple[Stamp, str, Examination | None]] = {}

    def examine(
        self, character_id: str, *, report: Callable[[int, int], None] = lambda _done, _all: None
    ) -> Examination:
        """Look at all photos and keep the result.

        ``report`` is called before each photo and after the last, with how many are done; it may raise to stop.

        Raises: NotFound, InvalidSpec, MissingWeights.
        """
        character = self._characters.get(character_id)
        total, seen = len(character.images), 0

        def on_image() -> None:
            nonlocal seen
            seen += 1
            report(seen // 2, total)

        kind = self._likeness.kind(character, on_image=on_image)
        photos: dict[str, Photo] = {}
        for image in character.images:
            report(max(seen // 2, len(photos)), total)
            photos[image.id] = self._photo(kind, character, image)
        report(total, total)
        findings, facts = judge(character, photos, kind)
        examination = Examination(
            findings=findings,
            facts=facts,
            photos=tuple(photos),
            examined=_fingerprint(character),
            made_at=self._clock(),
        )
        write_text(self._kept(character_id), examination.model_dump_json())
        return examination

    def last(self, character_id: str) -> Examination | None:
        """The last result, as far as it is still true: without findings of photos and captions that are gone.

        Cheap enough for a page that asks twice a second while nothing changes. Raises: NotFound, InvalidSpec.
        """
        try:
            found = stamp(self._kept(character_id).stat())
        except FileNotFoundError:
            return None
        version = self._characters.version()
        known = self._read.get(character_id)
        if known is None or known[:2] != (found, version):
            known = (found, version, self._still_true(self._characters.get(character_id)))
            self._read[character_id] = known
        return known[2]

    def is_current(self, character_id: str) -> bool:
        """Whether the last result is of the photos and captions as they are now. Raises: NotFound, InvalidSpec."""
        last = self.last(character_id)
        character = self._characters.get(character_id)
        return last is not None and last.examined == _fingerprint(character)

    def _still_true(self, character: Character) -> Examination | None:
        examination = looks.read(self._kept(character.id), Examination.model_validate_json)
        if examination is None or not any(character.image(image_id) for image_id in examination.photos):
            return None
        findings = tuple(_of_now(examination.findings, character))
        return examination.model_copy(update={"findings": findings})

    def _photo(self, kind: ScorerKind, character: Character, image: ReferenceImage) -> Photo:
        """The measures of an image, which is named by its content."""
        kept = self._cache_dir / "measures" / f"{kind}-{VERSION}" / f"{image.id}.json"
        if (known := looks.read(kept, Photo.model_validate_json)) is not None:
            return known
        path = self._characters.image_path(character.id, image.id)
        try:
            only = character.model_copy(update={"images": (image,)})
            found = self._likeness.sightings(only, kind)[image.id]
            with Image.open(path) as picture:
                photo = look(self._scorers(kind), kind, picture, found=found)
        except OSError as error:
            raise NotFound(f"{path} cannot be read: put it back or remove the image {image.id}") from error
        write_text(kept, photo.model_dump_json())
        return photo

    def _kept(self, character_id: str) -> Path:
        return self._cache_dir / "examinations" / f"{character_id}.json"


def look(
    scorer: IdentityScorer, kind: ScorerKind, picture: Image.Image, *, found: Sequence[Sighting]
) -> Photo:
    """Put a photo into numbers. ``found``: whom it shows; from the other sides it is looked at when that leaves doubts."""
    sure = kind is ScorerKind.FACES and any(one.confidence >= UPRIGHT_CONFIDENCE for one in found)
    others = () if sure else tuple(scorer.find(turned(picture)))
    return measure(picture, kind=kind, found=found, others=others)


def judge(
    character: Character, photos: Mapping[str, Photo], kind: ScorerKind
) -> tuple[tuple[Finding, ...], SetFacts]:
    """What is wrong with the character's photos, and what they are like all together."""
    people = cast(photos, kind)
    facts = set_facts(character, photos, people, kind)
    if not photos:
        return (), facts
    of_photos = photo_findings(character, photos, people, kind)
    return (*of_photos, *set_findings(character, photos, people, kind)), facts


def _of_now(findings: tuple[Finding, ...], character: Character) -> Iterator[Finding]:
    """What still holds, with the captions judged anew."""
    by_id = {image.id: image for image in character.images}
    captions = {image.id: list(caption_findings(image, character)) for image in character.images}
    for finding in findings:
        if finding.image is None:
            yield finding
        elif finding.image in by_id and finding.kind in CAPTION_KINDS:
            yield from (now for now in captions[finding.image] if now.kind is finding.kind)
        elif finding.image in by_id:
            yield finding


def _fingerprint(character: Character) -> str:
    parts = [
        str(character.scorer),
        character.trigger,
        *(f"{image.id} {image.caption}" for image in character.images),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
