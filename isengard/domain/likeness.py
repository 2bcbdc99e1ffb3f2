"""How much images look like the characters whose LoRAs made them, and which of them are worth keeping."""

from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean

from pydantic import Field

from isengard.domain.base import Frozen, Name
from isengard.domain.character import Character
from isengard.domain.evaluation import MIN_ROOM
from isengard.domain.identity import Portrait, ScorerKind

#: Cosine: what strangers have on average, by scorers that were trained to tell people apart.
STRANGERS = {ScorerKind.FACES: 0.0, ScorerKind.DRAWN_FIGURES: 0.0}
#: Shares of the way. Half of it is, for faces, a cosine of about 0.36, from which SFace's authors take two for one person;
#: 97 % of drawn strangers stay below.
UNLIKE, ALIKE = 0.5, 0.8
#: Below any cosine: an image that shows nobody is the least like.
_NOBODY = -2.0


class Likeness(Frozen):
    """How much one image looks like a character."""

    character: Name = Field(description="its id")
    name: str = Field(description="of the character, at that time")
    scorer: ScorerKind
    cosine: float | None = Field(
        description="to the centroid of the character's photos; None when nobody is seen"
    )
    share: float | None = Field(
        None,
        description="part of the way from a stranger (0) to the photos among each other (1); None when unknown",
    )

    @property
    def value(self) -> float:
        """For comparing images with each other."""
        if self.cosine is None:
            return _NOBODY
        return self.cosine if self.share is None else self.share

    @property
    def percent(self) -> int | None:
        """The share as people read it."""
        return None if self.share is None else percent(self.share)


class Lack(Frozen):
    """A character that the images of a request do not look like."""

    name: str
    percent: int = Field(description="of the way; the images' mean")


def measured(
    character: Character, portrait: Portrait, cosine: float | None, *, floor: float | None
) -> Likeness:
    """``floor``: the cosine of pictures that are not of the character; None when nobody knows."""
    share = None
    if floor is not None and portrait.ceiling and (room := fmean(portrait.ceiling) - floor) >= MIN_ROOM:
        share = 0.0 if cosine is None else (cosine - floor) / room
    return Likeness(
        character=character.id, name=character.name, scorer=portrait.scorer, cosine=cosine, share=share
    )


def percent(share: float) -> int:
    """Chance makes a share end a little beyond both ends of the way: that is as good as the end."""
    return round(100 * min(1.0, max(0.0, share)))


def worth(likeness: Iterable[Likeness]) -> float | None:
    """One image's likeness to the character that it is least like; None when it was not measured."""
    return min((one.value for one in likeness), default=None)


def surplus(worths: Sequence[float | None], *, keep: int) -> tuple[int, ...]:
    """The places of all but the ``keep`` most alike; of equal ones the earlier is kept.

    What was not measured may be the best of all: it is neither counted nor left out.
    """
    known = [(-value, place) for place, value in enumerate(worths) if value is not None]
    return tuple(sorted(place for _, place in sorted(known)[keep:]))


def lacks(images: Iterable[Sequence[Likeness]]) -> tuple[Lack, ...]:
    """The characters that the images of one request look like no more than strangers may."""
    shares: dict[str, list[float]] = {}
    names: dict[str, str] = {}
    for one in chain.from_iterable(images):
        if one.share is not None:
            shares.setdefault(one.character, []).append(one.share)
            names[one.character] = one.name
    means = {character: fmean(each) for character, each in shares.items()}
    return tuple(Lack(name=names[key], percent=percent(mean)) for key, mean in means.items() if mean < UNLIKE)
