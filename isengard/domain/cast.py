"""Who is who in a character's photos: the one that most photos show is the character."""

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.evaluation import centroid
from isengard.domain.identity import Embedding, ScorerKind, Sighting
from isengard.domain.photo import Photo

#: Cosine to the character from which somebody is the character. Faces: what SFace's authors give for two photos; drawn
#: figures: of 480 portraits of other people 98 % were below 0.55, drawn ones of the same person all above 0.85, and those that
#: a LoRA made of them 97 % above 0.55.
ALIKE = {ScorerKind.FACES: 0.363, ScorerKind.DRAWN_FIGURES: 0.55}
#: A face seen from the side is less like those from the front: the same man has 0.33 to 0.42 to the centroid of his other
#: photos, strangers 0.26 at most.
TURNED, ALIKE_TURNED = 0.4, 0.3
#: Where nobody knows such a number: so far below the median, and so many times the usual distance from it.
LOOK_MARGIN, LOOK_DEVIATIONS = 0.15, 6.0
#: A face that is found upside down or sideways is found with less confidence than upright.
SURE, TURN_CONFIDENCE = 0.8, 0.03
#: What else is found by its likeness: it is so much more after the turn, and not far from the usual, which a stranger's is.
TURN_LIKENESS, TURN_USUAL = 0.02, 0.8
#: Somebody else who is in so many photos for one of the character leaves it open which of the two is meant.
RIVAL = 0.6


class Cast(Frozen):
    """Who the character is, and where."""

    centroid: Embedding | None = Field(description="None when no two photos show the same one")
    likeness: dict[str, float] = Field(
        description="of each photo that shows somebody clearly, the highest likeness to the character"
    )
    limits: dict[str, float] = Field(
        description="of the same photos: from which likeness on it is the character"
    )
    place: dict[str, int] = Field(description="which one of those seen is the character, by the photo's id")
    quarter_turns: dict[str, int] = Field(description="of each photo that is not upright, clockwise")
    rivals: tuple[str, ...] = Field((), description="photos of somebody else who could be meant as well")

    def shows(self, image_id: str) -> bool:
        return image_id in self.place


def cast(photos: Mapping[str, Photo], kind: ScorerKind) -> Cast:
    """Find the character: whoever is in the most photos."""
    turns = _by_confidence(photos) if kind is ScorerKind.FACES else {}
    clear = {key: _clear(_after(photo, turns.get(key, 0))) for key, photo in photos.items()}
    members = _most_common(clear, ALIKE.get(kind, -1.0))
    if not members:
        return Cast(centroid=None, likeness={}, limits={}, place={}, quarter_turns=turns)
    center = centroid([clear[key][place].embedding for key, place in members.items()])
    if kind is not ScorerKind.FACES:
        turns = _by_likeness(photos, center)
        clear = {key: _clear(_after(photo, turns.get(key, 0))) for key, photo in photos.items()}
    best = {key: _best(found, center) for key, found in clear.items() if found}
    likeness = {key: value for key, (_, value) in best.items()}
    usual = ALIKE[kind] if kind in ALIKE else _far(list(likeness.values()))
    limits = {key: min(usual, _limit(clear[key][at])) for key, (at, _) in best.items()}
    place = {key: at for key, (at, value) in best.items() if value >= limits[key]}
    others = {key: found for key, found in clear.items() if key not in place}
    rivals = tuple(_most_common(others, ALIKE.get(kind, 1.0)))
    return Cast(
        centroid=center,
        likeness=likeness,
        limits=limits,
        place={
            key: _place(_after(photos[key], turns.get(key, 0)), clear[key][at]) for key, at in place.items()
        },
        quarter_turns=turns,
        rivals=rivals if len(rivals) >= RIVAL * len(place) else (),
    )


def character_in(found: Mapping[str, Sequence[Sighting]], kind: ScorerKind) -> dict[str, Sighting]:
    """Of each photo that shows the character clearly, which one of those seen it is: whoever is in the most photos.

    Where no two photos show the same one, the largest in each.
    """
    clear = {key: several for key, each in found.items() if (several := _clear(each))}
    alike = ALIKE.get(kind, -1.0)
    members = _most_common(clear, alike)
    if not members:
        return {key: several[0] for key, several in clear.items()}
    center = centroid([clear[key][place].embedding for key, place in members.items()])
    best = {key: _best(several, center) for key, several in clear.items()}
    return {key: clear[key][place] for key, (place, value) in best.items() if value >= alike}


def cosine(one: Embedding, other: Embedding) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _after(photo: Photo, quarter_turns: int) -> tuple[Sighting, ...]:
    return photo.turned[quarter_turns - 1] if quarter_turns else tuple(one.sighting for one in photo.seen)


def _clear(found: Sequence[Sighting]) -> tuple[Sighting, ...]:
    return tuple(one for one in found if one.reliable and one.confidence >= SURE)


def _place(found: Sequence[Sighting], one: Sighting) -> int:
    return list(found).index(one)


def _limit(one: Sighting) -> float:
    return ALIKE_TURNED if one.turn >= TURNED else 1.0


def _best(found: Sequence[Sighting], reference: Embedding) -> tuple[int, float]:
    """Which one is the most like ``reference``, and how much."""
    values = [cosine(one.embedding, reference) for one in found]
    at = max(range(len(values)), key=values.__getitem__)
    return at, values[at]


def _most_common(found: Mapping[str, Sequence[Sighting]], alike: float) -> dict[str, int]:
    """Of the one that the most photos show: these photos, and which one there. Empty unless there are two."""
    shown = {key: np.array([one.embedding for one in several]) for key, several in found.items() if several}
    if not shown:
        return {}
    everybody = np.concatenate(list(shown.values()))
    to_each = [everybody @ several.T for several in shown.values()]  # (everybody, those in the photo)
    nearest = np.stack([values.max(axis=1) for values in to_each], axis=1)
    which = np.stack([values.argmax(axis=1) for values in to_each], axis=1)
    member = nearest >= alike
    weight = (
        member.sum(axis=1) + (nearest * member).mean(axis=1) / 2
    )  # the likeness decides between equal counts
    seed = int(weight.argmax())
    places = {key: int(which[seed, at]) for at, key in enumerate(shown) if member[seed, at]}
    return places if len(places) > 1 else {}


def _by_confidence(photos: Mapping[str, Photo]) -> dict[str, int]:
    turns = {}
    for key, photo in photos.items():
        sure = [max((one.confidence for one in found), default=0.0) for found in photo.turned]
        upright = max((one.sighting.confidence for one in photo.seen), default=0.0)
        if sure and max(sure) >= max(SURE, upright + TURN_CONFIDENCE):
            turns[key] = sure.index(max(sure)) + 1
    return turns


def _by_likeness(photos: Mapping[str, Photo], center: Embedding) -> dict[str, int]:
    upright = {
        key: max((cosine(one.sighting.embedding, center) for one in photo.seen), default=-1.0)
        for key, photo in photos.items()
    }
    usual = TURN_USUAL * median(upright.values())
    turns = {}
    for key, photo in photos.items():
        values = [_best(found, center)[1] if found else -1.0 for found in photo.turned]
        if values and max(values) > max(usual, upright[key] + TURN_LIKENESS):
            turns[key] = values.index(max(values)) + 1
    return turns


def _far(values: Sequence[float]) -> float:
    """What is so low that it does not belong to the others."""
    middle = median(values)
    usual = 1.5 * median(abs(value - middle) for value in values)
    return middle - max(LOOK_MARGIN, LOOK_DEVIATIONS * usual)
