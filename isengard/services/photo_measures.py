"""Measures one photo: sharpness, light and colours of its parts. Judges nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isengard.domain.colours import palette
from isengard.domain.identity import Box, ScorerKind, Sighting
from isengard.domain.photo import Palette, Photo, Region, Seen
from isengard.domain.twins import SIDE, encoded

#: What a training sees of a photo at most; what is blurred at a larger size does not matter.
LONGEST_SIDE = 1024
#: More people are not looked at one by one.
MOST_PEOPLE = 8
_CLOCKWISE = (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90)
#: Pixels over which brightness is averaged to see whether that changes anything.
_WINDOW = 9

Light = NDArray[np.float64]


def turned(image: Image.Image) -> tuple[Image.Image, ...]:
    """The picture after 1, 2 and 3 clockwise quarter turns."""
    return tuple(image.transpose(turn) for turn in _CLOCKWISE)


def measure(
    image: Image.Image,
    *,
    kind: ScorerKind,
    found: Sequence[Sighting],
    others: tuple[tuple[Sighting, ...], ...],
) -> Photo:
    """Put a photo into numbers. ``found`` and ``others``: whom it shows as it is, and after quarter turns."""
    plain = image.convert("RGB")
    thumbnail = plain.resize((SIDE, SIDE), Image.Resampling.BOX)
    scale = min(1.0, LONGEST_SIDE / max(plain.size))
    if scale < 1:
        plain = plain.resize(
            (max(1, round(plain.width * scale)), max(1, round(plain.height * scale))),
            Image.Resampling.LANCZOS,
        )
    pixels = np.asarray(plain)
    light = np.asarray(plain.convert("L"), dtype=np.float64) / 255
    people = [
        Seen(
            sighting=one,
            region=_region(_part(light, _grown(one.box, 0.15), scale)),
            outfit=_outfit(pixels, one.box, scale, kind),
        )
        for one in found[:MOST_PEOPLE]
    ]
    return Photo(
        width=image.width,
        height=image.height,
        seen=tuple(people),
        turned=others,
        whole=_region(light),
        background=_background(pixels, found[0].box if found else None, scale, kind),
        thumbnail=encoded(np.asarray(thumbnail)),
    )


def blur(light: Light) -> float:
    """How little a further blur changes the brightness: about 0.2 to 0.5 where something is sharp, to 1 where nothing is.

    Source: Crete et al., "The blur effect: perception and estimation with a new no-reference perceptual blur metric"
    (2007).
    """
    if min(light.shape) <= 2 * _WINDOW:
        return 0.0
    return max(_blur_along(light), _blur_along(light.T))


def _blur_along(light: Light) -> float:
    """Of the changes from row to row, the part that stays when rows are averaged."""
    sums = np.cumsum(np.pad(light, ((1, 0), (0, 0))), axis=0)
    averaged = (sums[_WINDOW:] - sums[:-_WINDOW]) / _WINDOW
    half = _WINDOW // 2
    before = np.abs(np.diff(light[half : half + len(averaged)], axis=0))
    after = np.abs(np.diff(averaged, axis=0))
    total = float(before.sum())
    return 1 - float(np.maximum(0, before - after).sum()) / total if total else 0.0


def _region(light: Light) -> Region:
    dark, bright = np.quantile(light, (0.05, 0.95))
    return Region(
        blur=round(blur(light), 4),
        dark=round(float(dark), 4),
        mean=round(float(light.mean()), 4),
        bright=round(float(bright), 4),
    )


def _grown(box: Box, share: float) -> Box:
    wider, higher = box.width * share, box.height * share
    return Box(
        left=box.left - wider,
        top=box.top - higher,
        width=box.width + 2 * wider,
        height=box.height + 2 * higher,
    )


def _part(pixels: NDArray[Any], box: Box, scale: float) -> NDArray[Any]:
    """What of a box is in the picture, at least one pixel."""
    height, width = pixels.shape[:2]
    left, top = (
        min(max(0, int(value * scale)), most - 1) for value, most in ((box.left, width), (box.top, height))
    )
    right = max(left + 1, round((box.left + box.width) * scale))
    bottom = max(top + 1, round((box.top + box.height) * scale))
    return pixels[top:bottom, left:right]


def _outfit(pixels: NDArray[np.uint8], box: Box, scale: float, kind: ScorerKind) -> Palette | None:
    """The colours below the head; None where less than half of that is in the picture."""
    if kind is ScorerKind.LOOK:
        return None
    if kind is ScorerKind.DRAWN_FIGURES:  # they are drawn head and chest, which the box is of
        chest = Box(
            left=box.left + 0.3 * box.width,
            top=box.top + 0.84 * box.height,
            width=0.4 * box.width,
            height=0.16 * box.height,
        )
    else:
        chest = Box(
            left=box.left - 0.5 * box.width,
            top=box.top + 1.5 * box.height,
            width=2 * box.width,
            height=1.2 * box.height,
        )
    bottom = pixels.shape[0] / scale
    if chest.top + chest.height / 2 > bottom:
        return None
    return palette(_part(pixels, chest, scale).reshape(-1, 3))


def _background(pixels: NDArray[np.uint8], box: Box | None, scale: float, kind: ScorerKind) -> Palette:
    """The colours left and right of the head, or at both sides of the picture."""
    height, width = pixels.shape[:2]
    margin = max(1, round(0.15 * width))
    left, right, bottom = margin, width - margin, max(1, round(0.6 * height))
    if kind is ScorerKind.FACES and box:
        left = max(margin, int((box.left - 0.7 * box.width) * scale))
        right = min(width - margin, int((box.left + 1.7 * box.width) * scale))
        bottom = min(height, max(1, int((box.top + box.height) * scale)))
    sides = (pixels[:bottom, :left], pixels[:bottom, right:])
    return palette(np.concatenate([side.reshape(-1, 3) for side in sides]))
