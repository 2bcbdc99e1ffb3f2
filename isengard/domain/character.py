"""Characters and their reference images: the rules of names, trigger words and class words."""

import re
import unicodedata
from collections.abc import Collection, Iterator
from itertools import count, product

from pydantic import Field, field_validator

from isengard.domain.base import Frozen
from isengard.domain.doctor import Fix
from isengard.domain.identity import ScorerKind
from isengard.domain.twins import same_colours
from isengard.domain.words import COMMON_WORDS

CLASS_WORDS = ("woman", "man", "person", "dog")
MAX_TRIGGER = 32
#: Images a character should have before a training is worth its time.
ADVISED_IMAGES = 15
#: At most so many of 64 bits of two difference hashes differ between near duplicates. Measured on drawn portraits:
#: scaled, recompressed or slightly cropped copies differ in up to 7; so do some other portraits of one person, of which
#: the colours tell more.
NEAR_DUPLICATE_BITS = 8

_RARE_LETTERS = ("xzvqk", "qwjkx")


class ReferenceImage(Frozen):
    """One cleaned image of a character. Its caption is the ``.txt`` file beside the ``.png``."""

    id: str = Field(
        pattern=r"^[0-9a-f]{16}$", description="first 16 hex digits of sha256; also the stem of its files"
    )
    sha256: str = Field(description="of the decoded, rotated RGB pixels and their size")
    dhash: str = Field(pattern=r"^[0-9a-f]{16}$", description="64-bit difference hash, 16 hex digits")
    colours: str = Field(
        "", description="see `isengard.domain.twins.same_colours`; empty in records of earlier versions"
    )
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    filename: str = Field(description="what the user called it")
    added_at: float
    caption: str = Field("", description="may contain [trigger]")

    def near(self, other: "ReferenceImage") -> bool:
        """Whether another picture shows nearly the same."""
        if (int(self.dhash, 16) ^ int(other.dhash, 16)).bit_count() > NEAR_DUPLICATE_BITS:
            return False
        return not (self.colours and other.colours) or same_colours(self.colours, other.colours)


class FormerImage(Frozen):
    """A picture as it was before it was fixed; it can be brought back."""

    image: ReferenceImage = Field(description="with its caption")
    fix: Fix
    instead: str = Field("", description="id of the image that took its place; empty when it was left out")
    place: int = Field(ge=0, description="among the images")
    fixed_at: float


class Character(Frozen):
    """A person, animal or figure that a LoRA can learn."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)
    name: str = Field(min_length=1, max_length=80)
    trigger: str
    class_word: str = Field(min_length=1, max_length=40)
    notes: str = Field("", max_length=4000)
    scorer: ScorerKind | None = Field(
        None, description="what tells it apart from others; None for what its images suggest"
    )
    created_at: float
    updated_at: float
    images: tuple[ReferenceImage, ...] = ()
    former: tuple[FormerImage, ...] = Field((), description="pictures as they were, the latest fix last")

    @field_validator("name", "class_word")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if value != value.strip() or not value.isprintable() or set("[]") & set(value):
            raise ValueError("must be one line without [ ] and without spaces around it")
        return value

    @field_validator("trigger")
    @classmethod
    def _one_token(cls, value: str) -> str:
        if not re.fullmatch(rf"[A-Za-z0-9]{{1,{MAX_TRIGGER}}}", value):
            raise ValueError(
                f"must be one word of at most {MAX_TRIGGER} letters a-z and digits, for example 'ohwx'"
            )
        return value

    def image(self, image_id: str) -> ReferenceImage | None:
        """The image with this id."""
        return next((image for image in self.images if image.id == image_id), None)

    @property
    def undoable(self) -> tuple[FormerImage, ...]:
        """The fixes that no later one builds on, the latest first."""
        return tuple(
            entry
            for place, entry in enumerate(self.former)
            if not {entry.image.id, entry.instead} & {later.image.id for later in self.former[place + 1 :]}
        )[::-1]


class AddedImage(Frozen):
    """An uploaded file that is now an image of the character."""

    filename: str
    image: ReferenceImage
    notes: tuple[str, ...] = Field((), description="what the user may want to know, a sentence each")


class RefusedImage(Frozen):
    """An uploaded file that was not taken, and why."""

    filename: str
    reason: str


class DamagedCharacter(Frozen):
    """A folder among the characters whose record cannot be read."""

    id: str
    reason: str


class TrashedCharacter(Frozen):
    """A deleted character that can be restored."""

    id: str = Field(description="of the trash entry")
    character_id: str
    name: str
    deleted_at: float
    images: int


def slug(name: str) -> str:
    """The beginning of a character's id: 'Zoë Smith' becomes 'zoe-smith'."""
    words = re.findall(r"[a-z0-9]+", _ascii(name).lower())
    return "-".join(words)[:40].strip("-") or "character"


def free_id(name: str, taken: Collection[str]) -> str:
    """An id made from the name that no other character has."""
    base = slug(name)
    return next(
        candidate
        for candidate in (base if n == 1 else f"{base}-{n}" for n in count(1))
        if candidate not in taken
    )


def suggest_trigger(name: str, taken: Collection[str]) -> str:
    """A rare word for a name, free among ``taken``: some of its consonants and an ending no language has."""
    consonants = re.sub(r"[^a-z]|[aeiou]", "", _ascii(name).lower())[:3] or "chr"
    used = {trigger.lower() for trigger in taken} | COMMON_WORDS
    return next(trigger for ending in _endings() if (trigger := consonants + ending) not in used)


def trigger_warning(trigger: str) -> str:
    """Why a valid trigger word is a poor one; empty when it is fine."""
    if trigger.lower() not in COMMON_WORDS:
        return ""
    return (
        f"the trigger {trigger!r} is a common word: the base model knows it already and the LoRA would have to "
        f"fight that meaning; a made-up word such as {suggest_trigger(trigger, ())!r} works better"
    )


def near_duplicates(images: Collection[ReferenceImage]) -> tuple[tuple[str, str], ...]:
    """Pairs of image ids that show nearly the same, each pair once."""
    listed = list(images)
    return tuple(
        (one.id, other.id)
        for index, one in enumerate(listed)
        for other in listed[index + 1 :]
        if one.near(other)
    )


def _endings() -> Iterator[str]:
    for length in count(1):
        yield from map("".join, product(*_RARE_LETTERS * length))


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
