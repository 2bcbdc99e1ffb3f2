"""How much pictures look like somebody, in numbers. The embeddings come from an `IdentityScorer`."""

from collections.abc import Sequence
from statistics import fmean

from isengard.domain.base import Frozen

#: Of unit length, so that the dot product of two is their cosine similarity.
Embedding = tuple[float, ...]


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
