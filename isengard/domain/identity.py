"""How much pictures look like somebody, in numbers. The embeddings come from an `IdentityScorer`."""

from collections.abc import Sequence
from enum import StrEnum
from statistics import fmean

from pydantic import Field

from isengard.domain.base import Frozen
from isengard.errors import InvalidSpec

#: Of unit length, so that the dot product of two is their cosine similarity.
Embedding = tuple[float, ...]


class ScorerKind(StrEnum):
    """What tells a character apart from others."""

    FACES = "faces"  # of people in photographs
    DRAWN_FIGURES = "drawn_figures"  # as the demo model draws them
    LOOK = "look"  # of the whole picture: animals, objects, other styles of drawing


class Box(Frozen):
    """A part of a picture, in its pixels; it may reach beyond the edges."""

    left: float
    top: float
    width: float
    height: float


class Sighting(Frozen):
    """Somebody, or something, that an `IdentityScorer` found in a picture."""

    box: Box
    embedding: Embedding
    confidence: float = 1.0
    turn: float = 0.0
    """How far a face is turned to the side: 0 from the front, about 1 and more in profile."""
    reliable: bool = True
    """Large enough for its embedding to be trusted."""


class Portrait(Frozen):
    """What a character's photos say of its looks: what pictures are measured against."""

    scorer: ScorerKind
    centroid: Embedding
    ceiling: tuple[float, ...] = Field(
        description="of each photo that shows the character, the cosine to the centroid of the others"
    )
    images: tuple[str, ...] = Field(description="ids of those photos, in the same order")


class IdentityGain(Frozen):
    """What a LoRA did for the likeness. All are mean cosine similarities to the character's own pictures, -1 to 1."""

    before: float
    """Of pictures made without the LoRA: what the base model reaches by chance."""
    after: float
    """Of the same prompts and seeds with the LoRA."""
    ceiling: float
    """Of the character's pictures to each other: no picture can be expected to do better."""

    @property
    def share(self) -> float:
        """The part of the way from ``before`` to ``ceiling`` that was gone; 1 is all of it."""
        way = self.ceiling - self.before
        return (self.after - self.before) / way if way > 0 else 1.0


def similarity(embedding: Embedding, references: Sequence[Embedding]) -> float:
    """Return the mean cosine similarity to the reference pictures."""
    return fmean(_cosine(embedding, reference) for reference in references)


def largest(found: Sequence[tuple[Sighting, ...]]) -> list[Embedding]:
    """Return, of each picture, the embedding of the largest that it shows. Raises: InvalidSpec when it shows nobody."""
    for place, one in enumerate(found):
        if not one:
            raise InvalidSpec(f"picture {place + 1} of {len(found)} shows nobody: leave it out")
    return [one[0].embedding for one in found]


def likeness(found: Sequence[Sighting], reference: Embedding) -> float | None:
    """Return the cosine of whoever is most like ``reference`` (a centroid); None when nobody is seen well enough."""
    return max((_cosine(one.embedding, reference) for one in found if one.reliable), default=None)


def gain(
    *, references: Sequence[Embedding], before: Sequence[Embedding], after: Sequence[Embedding]
) -> IdentityGain:
    """Compare pictures without and with a LoRA to at least two pictures of the character."""
    others = [
        similarity(one, [other for place, other in enumerate(references) if place != index])
        for index, one in enumerate(references)
    ]
    return IdentityGain(
        before=fmean(similarity(each, references) for each in before),
        after=fmean(similarity(each, references) for each in after),
        ceiling=fmean(others),
    )


def _cosine(one: Embedding, other: Embedding) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
