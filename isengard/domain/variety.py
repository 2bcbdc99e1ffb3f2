"""Judges a character's photos together: what is the same in all of them, a LoRA learns as if it were the character."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import pstdev

from isengard.domain.cast import Cast
from isengard.domain.character import ADVISED_IMAGES, Character, ReferenceImage
from isengard.domain.colours import largest_group, main_colour
from isengard.domain.doctor import Finding, FindingKind, SetFacts
from isengard.domain.identity import ScorerKind
from isengard.domain.photo import Palette, Photo, Seen

#: Fewer photos repeat themselves by chance.
MIN_PHOTOS = 5
#: Shares of the photos that show the character.
REPEATED, NOT_FRONTAL, ONE_DISTANCE, ONE_EXPRESSION = 0.6, 1 / 3, 0.85, 0.8
#: Standard deviation of the brightness of the face, 0 to 1. Two windows and a lamp give 0.1.
ONE_LIGHT = 0.03
#: How far a face is turned, see `Sighting.turn`.
THREE_QUARTER, PROFILE = 0.3, 0.9
#: Shares of the picture's height that the face takes, and what such a picture shows.
_DISTANCES = ((0.5, "face"), (0.22, "head and shoulders"), (0.1, "upper body"), (0.0, "far"))
#: Of all the picture's brightness.
_LIGHTS = ((0.65, "bright"), (0.3, "medium"), (0.0, "dark"))
_EXPRESSIONS = (
    ("smiling", r"smil\w*|grin\w*|happy|cheerful"),
    ("laughing", r"laugh\w*"),
    ("serious", r"serious|neutral|stern|calm|straight face"),
    ("sad", r"sad|crying|frown\w*"),
    ("surprised", r"surprised|open mouth|talking|shouting|scream\w*|tongue out"),
)
_GARMENT = re.compile(
    r"\b(?:[\w-]+ )?(?:jacket|coat|shirt|t-shirt|blouse|sweater|hoodie|dress|suit|blazer|top|robe|uniform|vest|overalls|"
    r"spacesuit|scarf|hat)\b",
    re.IGNORECASE,
)


def set_facts(character: Character, photos: Mapping[str, Photo], cast: Cast, kind: ScorerKind) -> SetFacts:
    """The photos in numbers."""
    shown = _shown(character, photos, cast)
    faces = list(shown.values()) if kind is ScorerKind.FACES else None
    outfits = _outfits(shown)
    return SetFacts(
        scorer=kind,
        photos=len(character.images),
        showing=len(cast.place),
        views=None if faces is None else _counted([_view(seen) for _, seen in faces]),
        expressions=_counted(expressions) if (expressions := _expressions(character.images, cast)) else None,
        distances=None if faces is None else _counted([_distance(*each) for each in faces]),
        light=_counted([_named(photo.whole.mean, _LIGHTS) for photo, _ in shown.values()]),
        backgrounds=_counted([main_colour(photo.background) for photo, _ in shown.values()]),
        outfits=_counted([main_colour(outfit) for outfit in outfits.values()]) if outfits else None,
    )


def set_findings(
    character: Character, photos: Mapping[str, Photo], cast: Cast, kind: ScorerKind
) -> Iterator[Finding]:
    """What all photos together lack or have too much of."""
    yield from _unsure(character, cast)
    if len(cast.place) < ADVISED_IMAGES:
        yield Finding(
            kind=FindingKind.FEW_PHOTOS,
            reason=f"{len(cast.place)} photos show the character; {ADVISED_IMAGES} to 30 varied ones teach a face better",
            number=len(cast.place),
            limit=ADVISED_IMAGES,
        )
    shown = _shown(character, photos, cast)
    if len(shown) < MIN_PHOTOS:
        return
    if kind is ScorerKind.FACES:
        yield from _angles(shown)
        yield from _distances(shown)
        yield from _light(shown)
    yield from _one_expression(character.images, cast)
    backgrounds = {key: photo.background for key, (photo, _) in shown.items()}
    yield from _repeated(FindingKind.SAME_BACKGROUND, "background", backgrounds, len(shown))
    captions = {image.id: image.caption for image in character.images}
    yield from _repeated(FindingKind.SAME_OUTFIT, "clothes", _outfits(shown), len(shown), captions)


def _unsure(character: Character, cast: Cast) -> Iterator[Finding]:
    if cast.rivals:
        yield Finding(
            kind=FindingKind.UNSURE_WHO,
            images=cast.rivals,
            reason=f"{len(cast.place)} photos show one person and {len(cast.rivals)} another: remove those that are not of"
            " the character",
            number=len(cast.rivals),
            limit=len(cast.place),
        )
    elif cast.centroid is None and len(character.images) > 1:
        yield Finding(
            kind=FindingKind.UNSURE_WHO,
            reason=f"no two of the {len(character.images)} photos show the same person clearly: nobody can tell which one is"
            " meant",
            number=0,
            limit=len(character.images),
        )


def _shown(character: Character, photos: Mapping[str, Photo], cast: Cast) -> dict[str, tuple[Photo, Seen]]:
    """The photos that show the character upright, and where."""
    return {
        image.id: (photos[image.id], photos[image.id].seen[cast.place[image.id]])
        for image in character.images
        if cast.shows(image.id) and not cast.quarter_turns.get(image.id)
    }


def _angles(shown: Mapping[str, tuple[Photo, Seen]]) -> Iterator[Finding]:
    frontal = tuple(key for key, (_, seen) in shown.items() if _view(seen) == "frontal")
    others = len(shown) - len(frontal)
    if others < NOT_FRONTAL * len(shown):
        yield Finding(
            kind=FindingKind.FEW_ANGLES,
            images=frontal,
            reason=f"{others} of {len(shown)} show the face from the side: a third or more should, or the LoRA knows"
            " the front only",
            number=others,
            limit=len(shown),
        )


def _distances(shown: Mapping[str, tuple[Photo, Seen]]) -> Iterator[Finding]:
    (name, number), *_ = Counter(_distance(*each) for each in shown.values()).most_common()
    if number >= ONE_DISTANCE * len(shown):
        yield Finding(
            kind=FindingKind.SAME_DISTANCE,
            reason=f"{number} of {len(shown)} are taken from one distance ({name}): add nearer and farther ones",
            number=number,
            limit=len(shown),
            subject=name,
        )


def _light(shown: Mapping[str, tuple[Photo, Seen]]) -> Iterator[Finding]:
    spread = pstdev(seen.region.mean for _, seen in shown.values())
    if spread < ONE_LIGHT:
        yield Finding(
            kind=FindingKind.SAME_LIGHT,
            reason=f"the light on the face is the same in all {len(shown)} (it differs by {spread:.1%}): add other light",
            number=spread,
            limit=ONE_LIGHT,
        )


def _one_expression(images: Sequence[ReferenceImage], cast: Cast) -> Iterator[Finding]:
    expressions = _expressions(images, cast)
    if len(expressions) < MIN_PHOTOS:
        return
    (name, number), *_ = Counter(expressions).most_common()
    if number >= ONE_EXPRESSION * len(cast.place):
        yield Finding(
            kind=FindingKind.SAME_EXPRESSION,
            reason=f"{number} of {len(cast.place)} captions say {name!r}: the LoRA will learn it as part of the face",
            number=number,
            limit=len(cast.place),
            subject=name,
        )


def _repeated(
    kind: FindingKind,
    what: str,
    palettes: Mapping[str, Palette],
    total: int,
    captions: Mapping[str, str] | None = None,
) -> Iterator[Finding]:
    same = largest_group(palettes)
    if len(same) < max(MIN_PHOTOS - 1, REPEATED * total):
        return
    colour = Counter(main_colour(palettes[key]) for key in same).most_common(1)[0][0]
    subject = _garment([captions[key] for key in same]) if captions else ""
    subject = subject or f"{colour} {what}"
    yield Finding(
        kind=kind,
        images=same,
        reason=f"{len(same)} of {total} show the same {subject}: the LoRA will learn it",
        number=len(same),
        limit=total,
        subject=subject,
    )


def _garment(captions: Sequence[str]) -> str:
    """What most of the captions call the clothes; empty when they do not agree."""
    named = Counter(match.group(0).lower() for text in captions for match in [_GARMENT.search(text)] if match)
    return next((name for name, number in named.most_common(1) if number > len(captions) / 2), "")


def _expressions(images: Sequence[ReferenceImage], cast: Cast) -> list[str]:
    """What captions call the expression; a photo whose caption says nothing of it is left out."""
    captions = [image.caption for image in images if cast.shows(image.id)]
    found = (
        next(
            (name for name, words in _EXPRESSIONS if re.search(rf"\b(?:{words})\b", text, re.IGNORECASE)), ""
        )
        for text in captions
    )
    return [name for name in found if name]


def _outfits(shown: Mapping[str, tuple[Photo, Seen]]) -> dict[str, Palette]:
    return {key: seen.outfit for key, (_, seen) in shown.items() if seen.outfit is not None}


def _view(seen: Seen) -> str:
    turn = seen.sighting.turn
    return "frontal" if turn < THREE_QUARTER else "three-quarter" if turn < PROFILE else "profile"


def _distance(photo: Photo, seen: Seen) -> str:
    return _named(seen.sighting.box.height / photo.height, _DISTANCES)


def _named(value: float, names: Sequence[tuple[float, str]]) -> str:
    return next(name for least, name in names if value >= least)


def _counted(names: Sequence[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
