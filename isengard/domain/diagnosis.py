"""Judges what was measured of single photos. Every limit is here, with where it comes from."""

from collections.abc import Iterator, Mapping
from statistics import median

from isengard.domain.captions import has_trigger
from isengard.domain.cast import SURE, Cast
from isengard.domain.character import Character, ReferenceImage
from isengard.domain.doctor import Finding, FindingKind, Fix, FixKind
from isengard.domain.identity import Box, ScorerKind, Sighting
from isengard.domain.photo import Photo, Region
from isengard.domain.traits import traits, with_trigger, without_traits
from isengard.domain.twins import ALIKE, twins

LEAVE_OUT = Fix(kind=FixKind.LEAVE_OUT)

#: Photos and drawn portraits that are sharp have 0.14 to 0.48; blurred with a sigma of 2 of 1024 pixels 0.72 and more. In a
#: set of flat drawings, which have 0.2, less is striking already.
BLUR_MOST, BLUR_LEAST, BLUR_OVER_MEDIAN = 0.62, 0.42, 0.22
#: Brightness, 0 to 1, of the brightest 5 % of a dark photo, and of the darkest 5 % of a bright one: whatever the skin, a
#: face that is lit has highlights, and one that is not blown out has shadows.
DARK, BRIGHT = 0.25, 0.75
#: Pixels, where the longer side has 1024 (which a training sees at most).
SMALL_FACE, SEEN_SIDE = 48, 1024
#: Somebody else whose face is smaller than this part of the character's is background.
BYSTANDER = 0.35
#: In widths of the face: one as near to the picture's edge is cut off.
EDGE = 0.01
#: Of a side of the picture: a face that takes more has lost its hair or chin.
CLOSE = 0.8
#: A crop with a shorter side is too small to learn from, and one with less of the photo's is no crop.
MIN_CROP = 384


def photo_findings(
    character: Character, photos: Mapping[str, Photo], cast: Cast, kind: ScorerKind
) -> Iterator[Finding]:
    """What is wrong with each photo and its caption, in the photos' order."""
    sharp = _usual_blur(photos, cast)
    gone = _twins(character, photos)
    for image in character.images:
        photo = photos[image.id]
        yield from _who(image, photo, cast, kind)
        if kind is ScorerKind.FACES and not cast.quarter_turns.get(image.id):
            yield from _framing(image, photo, cast)
        yield from _quality(image, photo, cast, kind, sharp)
        if image.id in gone:
            yield _twin(image, *gone[image.id])
        yield from caption_findings(image, character)


def _who(image: ReferenceImage, photo: Photo, cast: Cast, kind: ScorerKind) -> Iterator[Finding]:
    turns = cast.quarter_turns.get(image.id, 0)
    if cast.centroid is None or cast.shows(image.id):
        if turns:
            yield Finding(
                kind=FindingKind.SIDEWAYS,
                image=image.id,
                reason=f"it lies on its side or upside down: {90 * turns}° clockwise make it upright",
                number=90 * turns,
                limit=0,
                fix=Fix(kind=FixKind.ROTATE, quarter_turns=turns),
            )
    elif image.id in cast.likeness and image.id not in cast.rivals:
        yield _stranger(image, cast, kind)
    if not _is_seen(image, photo, cast):
        surest = max((one.sighting.confidence for one in photo.seen), default=0.0)
        yield Finding(
            kind=FindingKind.NOBODY,
            image=image.id,
            reason=f"no face can be seen clearly ({surest:.2f} sure, and {SURE} is the least): it teaches nothing about who"
            " it is",
            number=surest,
            limit=SURE,
            fix=LEAVE_OUT,
        )


def _is_seen(image: ReferenceImage, photo: Photo, cast: Cast) -> bool:
    """Whether anybody is, clearly or small."""
    sure = any(one.sighting.confidence >= SURE for one in photo.seen)
    return sure or image.id in cast.likeness or bool(cast.quarter_turns.get(image.id))


def _stranger(image: ReferenceImage, cast: Cast, kind: ScorerKind) -> Finding:
    likeness, limit = cast.likeness[image.id], cast.limits[image.id]
    who = "somebody else" if kind is ScorerKind.FACES else "somebody else, or nobody"
    return Finding(
        kind=FindingKind.ANOTHER_PERSON,
        image=image.id,
        reason=f"shows {who}: its likeness to the character of the other photos is {likeness:.2f}, and {limit:.2f}"
        " is the least",
        number=likeness,
        limit=limit,
        fix=LEAVE_OUT,
    )


def _framing(image: ReferenceImage, photo: Photo, cast: Cast) -> Iterator[Finding]:
    """What is wrong with where the character and others are in a photo with faces."""
    if not photo.seen or (
        cast.centroid is not None and image.id in cast.likeness and not cast.shows(image.id)
    ):
        return
    place = cast.place.get(image.id, 0)
    own = photo.seen[place].sighting.box
    others = [one.sighting for at, one in enumerate(photo.seen) if at != place]
    if (found := _small(image, photo, own)) or (found := _cut_off(image, photo, own)):
        yield found
    if cast.shows(image.id) and (found := _company(image, photo, own, others)):
        yield found


def _small(image: ReferenceImage, photo: Photo, face: Box) -> Finding | None:
    size = min(face.width, face.height) * min(1.0, SEEN_SIDE / max(photo.width, photo.height))
    if size >= SMALL_FACE:
        return None
    crop = _around(photo, face)
    return Finding(
        kind=FindingKind.SMALL_FACE,
        image=image.id,
        reason=f"the face is {size:.0f} pixels wide at the size it is trained with; it takes {SMALL_FACE}",
        number=size,
        limit=SMALL_FACE,
        fix=Fix(kind=FixKind.CROP, box=crop) if crop else LEAVE_OUT,
    )


def _cut_off(image: ReferenceImage, photo: Photo, face: Box) -> Finding | None:
    gaps = (
        face.left,
        face.top,
        photo.width - face.left - face.width,
        photo.height - face.top - face.height,
    )
    gap = min(gaps) / max(1.0, face.width)
    share = max(face.width / photo.width, face.height / photo.height)
    if gap > EDGE and share < CLOSE:
        return None
    close = gap > EDGE
    reason = (
        f"the face fills {share:.0%} of the picture: hair and chin are cut off"
        if close
        else f"the picture's edge cuts the face off: {gap:.2f} widths of the face are left to it"
    )
    return Finding(
        kind=FindingKind.CUT_OFF,
        image=image.id,
        reason=reason,
        number=share if close else gap,
        limit=CLOSE if close else EDGE,
        subject="close" if close else "edge",
        fix=LEAVE_OUT,
    )


def _company(image: ReferenceImage, photo: Photo, own: Box, others: list[Sighting]) -> Finding | None:
    near = [one.box for one in others if one.reliable and one.box.height >= BYSTANDER * own.height]
    if not near:
        return None
    crop = _around(photo, own, without=near)
    largest = max(near, key=lambda box: box.width * box.height)
    fix = (
        Fix(kind=FixKind.CROP, box=crop) if crop else Fix(kind=FixKind.MASK, box=photo.inside(_head(largest)))
    )
    people = "1 other person is" if len(near) == 1 else f"{len(near)} other people are"
    return Finding(
        kind=FindingKind.MORE_PEOPLE,
        image=image.id,
        reason=f"{people} beside the character: the LoRA would learn them, too",
        number=len(near),
        limit=0,
        fix=fix,
    )


def _quality(
    image: ReferenceImage, photo: Photo, cast: Cast, kind: ScorerKind, sharp: float
) -> Iterator[Finding]:
    region = _region(photo, cast, image.id)
    limit = min(BLUR_MOST, max(BLUR_LEAST, sharp + BLUR_OVER_MEDIAN))
    values = {"image": image.id, "fix": LEAVE_OUT}
    where = "the face" if kind is ScorerKind.FACES and photo.seen else "the picture"
    if region.blur > limit:
        reason = f"{where} is blurred: {region.blur:.2f} of 1, where the set's others have {sharp:.2f}"
        yield Finding(kind=FindingKind.BLURRED, reason=reason, number=region.blur, limit=limit, **values)
    if region.bright < DARK:
        reason = (
            f"{where} is too dark: its brightest parts reach {region.bright:.0%}, and {DARK:.0%} is the least"
        )
        yield Finding(kind=FindingKind.TOO_DARK, reason=reason, number=region.bright, limit=DARK, **values)
    elif region.dark > BRIGHT:
        reason = (
            f"{where} is too bright: its darkest parts have {region.dark:.0%}, and {BRIGHT:.0%} is the most"
        )
        yield Finding(kind=FindingKind.TOO_BRIGHT, reason=reason, number=region.dark, limit=BRIGHT, **values)


def _region(photo: Photo, cast: Cast, image_id: str) -> Region:
    """What has to be sharp and well lit: the character, or all of the photo where nobody is seen upright."""
    if not photo.seen or cast.quarter_turns.get(image_id):
        return photo.whole
    return photo.seen[cast.place.get(image_id, 0)].region


def _usual_blur(photos: Mapping[str, Photo], cast: Cast) -> float:
    return median(_region(photo, cast, key).blur for key, photo in photos.items())


def _twins(character: Character, photos: Mapping[str, Photo]) -> dict[str, tuple[ReferenceImage, float]]:
    """Of each photo that could go: the one like it that stays, and how much they are alike."""
    by_id = {image.id: image for image in character.images}
    places = list(by_id)

    def quality(image: ReferenceImage) -> tuple[int, float, int]:
        return image.width * image.height, -round(photos[image.id].whole.blur, 2), -places.index(image.id)

    gone: dict[str, tuple[ReferenceImage, float]] = {}
    for (one, other), likeness in twins({key: photo.thumbnail for key, photo in photos.items()}).items():
        better, worse = sorted((by_id[one], by_id[other]), key=quality, reverse=True)
        gone.setdefault(worse.id, (better, likeness))
    return gone


def _twin(image: ReferenceImage, kept: ReferenceImage, likeness: float) -> Finding:
    return Finding(
        kind=FindingKind.NEAR_DUPLICATE,
        image=image.id,
        images=(kept.id,),
        reason=f"shows nearly the same as {kept.filename!r} ({likeness:.1%} alike), which is the better one to keep",
        number=likeness,
        limit=ALIKE,
        fix=LEAVE_OUT,
    )


def caption_findings(image: ReferenceImage, character: Character) -> Iterator[Finding]:
    """What is wrong with the text alone."""
    if words := traits(image.caption):
        subject = ", ".join(words)
        yield Finding(
            kind=FindingKind.TRAIT_IN_CAPTION,
            image=image.id,
            reason=f"the caption explains the looks ({subject}), so the trigger will not stand for them: {len(words)}"
            " too many",
            number=len(words),
            limit=0,
            subject=subject,
            fix=Fix(kind=FixKind.EDIT_CAPTION, caption=without_traits(image.caption)),
        )
    if not has_trigger(image.caption, character.trigger):
        yield Finding(
            kind=FindingKind.NO_TRIGGER,
            image=image.id,
            reason=f"the caption has no trigger (0 of 1): the photo teaches nothing about {character.trigger!r}",
            number=0,
            limit=1,
            subject=character.trigger,
            fix=Fix(
                kind=FixKind.EDIT_CAPTION,
                caption=with_trigger(without_traits(image.caption), character.trigger),
            ),
        )


def _head(face: Box) -> Box:
    """Hair, ears and neck with the face."""
    return Box(
        left=face.left - 0.4 * face.width,
        top=face.top - 0.5 * face.height,
        width=1.8 * face.width,
        height=1.8 * face.height,
    )


def _around(photo: Photo, face: Box, *, without: list[Box] | None = None) -> Box | None:
    """The person with this face, head and upper body; None where that would be too small or the others stay in it."""
    left, top = face.left - 1.5 * face.width, face.top - face.height
    right, bottom = face.left + 2.5 * face.width, face.top + 4 * face.height
    for other in map(_head, without or []):
        if other.left + other.width / 2 > face.left + face.width / 2:
            right = min(right, other.left)
        else:
            left = max(left, other.left + other.width)
    own = _head(face)
    if left > own.left + 0.2 * face.width or right < own.left + own.width - 0.2 * face.width:
        return None
    box = photo.inside(Box(left=left, top=top, width=right - left, height=bottom - top))
    return box if min(box.width, box.height) >= MIN_CROP else None
