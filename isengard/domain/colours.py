"""The main colours of a part of a photo, in words, and how much two parts have the same."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from isengard.domain.photo import Palette

_HUES = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
#: Where a hue ends, in degrees of the colour circle; beyond the last it is red again.
_ENDS = (18, 45, 70, 160, 195, 255, 290, 345)
_DARK = {"orange": "brown", "yellow": "olive", "pink": "dark purple"}
NAMES = (
    "black",
    "grey",
    "white",
    *_HUES,
    *(_DARK.get(hue, f"dark {hue}") for hue in _HUES),
)
#: Of saturation; below it a colour is black, grey or white.
_GREY = 0.18
#: Of brightness.
_BLACK, _DARKER, _WHITE = 0.2, 0.55, 0.8
#: Two palettes with so much in common are the same colours.
SAME = 0.6


def palette(pixels: NDArray[np.uint8]) -> Palette:
    """Return the share of each colour of `NAMES`. ``pixels``: (n, 3), RGB, at least one."""
    rgb = pixels.reshape(-1, 3).astype(np.float64) / 255
    high, low = rgb.max(axis=1), rgb.min(axis=1)
    chroma = high - low
    saturation = chroma / np.maximum(high, 1e-9)
    hue = np.searchsorted(_ENDS, _degrees(rgb, high, chroma), side="right") % len(_HUES)
    coloured = 3 + hue + np.where(high < _DARKER, len(_HUES), 0)
    grey = np.where(high < _BLACK, 0, np.where(high < _WHITE, 1, 2))
    field = np.where((saturation < _GREY) | (high < _BLACK), grey, coloured)
    shares = np.bincount(field, minlength=len(NAMES)) / len(rgb)
    return tuple(np.round(shares, 4).tolist())


def main_colour(shares: Palette) -> str:
    """The name of the colour that there is most of."""
    return NAMES[int(np.argmax(shares))]


def alike(one: Palette, other: Palette) -> bool:
    """Whether two parts have mostly the same colours."""
    return sum(map(min, one, other)) >= SAME


def largest_group(palettes: Mapping[str, Palette]) -> tuple[str, ...]:
    """The most photos, by id, that have the colours of one of them."""
    groups: Sequence[tuple[str, ...]] = [
        tuple(key for key, other in palettes.items() if alike(one, other)) for one in palettes.values()
    ]
    return max(groups, key=len, default=())


def _degrees(
    rgb: NDArray[np.float64], high: NDArray[np.float64], chroma: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The hue, 0 to 360."""
    red, green, blue = rgb.T
    width = np.maximum(chroma, 1e-9)
    sextants = np.select(
        [high == red, high == green],
        [(green - blue) / width % 6, (blue - red) / width + 2],
        (red - green) / width + 4,
    )
    degrees: NDArray[np.float64] = 60 * sextants
    return degrees
