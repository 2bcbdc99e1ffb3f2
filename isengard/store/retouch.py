"""Changes to the pixels of a character's picture: each gives a new picture."""

from math import ceil, floor, isfinite
from pathlib import Path

from PIL import Image

from isengard.domain.doctor import Fix, FixKind
from isengard.domain.identity import Box
from isengard.errors import InvalidSpec, NotFound
from isengard.store.decoding import DECODE_ERRORS, MIN_SIDE, CleanImage, cleaned

_TURNS = {
    1: Image.Transpose.ROTATE_270,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_90,
}

Corners = tuple[int, int, int, int]


def retouched(path: Path, fix: Fix) -> CleanImage:
    """What a cleaned picture becomes by a fix of its pixels. Raises: NotFound, InvalidSpec."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            pixels = image.convert("RGB")
    except FileNotFoundError:
        raise NotFound(f"{path} is missing: put it back or remove the image") from None
    except DECODE_ERRORS as error:
        raise InvalidSpec(
            f"{path} cannot be read ({error}): remove the image and add the file anew"
        ) from error
    if fix.kind is FixKind.ROTATE:
        return cleaned(turned(pixels, fix.quarter_turns))
    if fix.box is None:
        raise InvalidSpec(f"to {fix.kind} a picture, say where: its box is missing")
    return cleaned((cropped if fix.kind is FixKind.CROP else masked)(pixels, fix.box))


def cropped(image: Image.Image, box: Box) -> Image.Image:
    """What is inside the box, as far as the picture reaches. Raises: InvalidSpec."""
    corners = _within(image, box)
    width, height = corners[2] - corners[0], corners[3] - corners[1]
    if (width, height) == image.size:
        raise InvalidSpec(
            f"the box covers the whole picture of {width} x {height}: there is nothing to cut away"
        )
    if min(width, height) < MIN_SIDE:
        raise InvalidSpec(
            f"{width} x {height} pixels would be left, the shorter side needs {MIN_SIDE}: leave the picture out"
        )
    return image.crop(corners)


def turned(image: Image.Image, quarter_turns: int) -> Image.Image:
    """Turned clockwise so many times by 90 degrees. Raises: InvalidSpec."""
    if quarter_turns % 4 == 0:
        raise InvalidSpec(f"{quarter_turns} quarter turns leave the picture as it is: give 1, 2 or 3")
    return image.transpose(_TURNS[quarter_turns % 4])


def masked(image: Image.Image, box: Box) -> Image.Image:
    """Cover what is inside the box with the colours around it, without an edge that could be learned.

    The picture is halved again and again without the hole, until the hole has colour; then each size fills the holes of
    the next larger one. Source: the pull-push of Gortler et al., The Lumigraph (1996), section 3.4.

    Raises:
        InvalidSpec: nothing of the picture would be left.
    """
    hole = _within(image, box)
    width, height = hole[2] - hole[0], hole[3] - hole[1]
    if (width, height) == image.size:
        raise InvalidSpec("the mask covers the whole picture: leave it out")
    around = (hole[0] - width, hole[1] - height, hole[2] + width, hole[3] + height)
    near = (max(0, around[0]), max(0, around[1]), min(image.width, around[2]), min(image.height, around[3]))
    part = image.crop(near).convert("RGBA")
    part.paste((0, 0, 0, 0), (hole[0] - near[0], hole[1] - near[1], hole[2] - near[0], hole[3] - near[1]))
    result = image.copy()
    result.paste(_filled(part), near[:2])
    return result


def _filled(image: Image.Image) -> Image.Image:
    """Give the transparent part of an RGBA picture the colours around it."""
    sizes = [image]
    while max(sizes[-1].size) > 1:
        half = (ceil(sizes[-1].width / 2), ceil(sizes[-1].height / 2))
        sizes.append(sizes[-1].resize(half, Image.Resampling.BOX))  # weighs each pixel by its alpha
    filled = sizes.pop().convert("RGB")
    for finer in reversed(sizes):
        filled = filled.resize(finer.size, Image.Resampling.BILINEAR)
        filled.paste(finer.convert("RGB"), mask=finer.getchannel("A"))
    return filled


def _within(image: Image.Image, box: Box) -> Corners:
    """The corners of the box in whole pixels of the picture. Raises: InvalidSpec: it lies outside."""
    if not all(map(isfinite, (box.left, box.top, box.width, box.height))):
        raise InvalidSpec(f"the box has no place and size in pixels: {box!r}")
    left, top = max(0, floor(box.left)), max(0, floor(box.top))
    right = min(image.width, ceil(box.left + box.width))
    bottom = min(image.height, ceil(box.top + box.height))
    if right <= left or bottom <= top:
        raise InvalidSpec(
            f"the box at {box.left:.0f}, {box.top:.0f} lies outside of the picture: give one inside"
        )
    return left, top, right, bottom
