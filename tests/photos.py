"""The photographs that ``python -m scripts.photos`` fetches, and whom they show."""

from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.photos import FOLDER


class Face(NamedTuple):
    """One face of a photo."""

    file: str
    middle: float = 0.5
    """Where it is from left to right, as a share of the width."""
    quarter_turns: int = 0
    """To the left, until the photo is upright."""


#: From the front, at least 40 pixels wide, and of one time of life.
CLEAR = {
    "obama": [Face("obama.jpg"), Face("obama2.jpg"), Face("obama3.jpg")],
    "biden": [Face("biden.jpg")],
    "collins": [Face("astronaut.png")],
    "hopper": [Face("grace_hopper.jpg")],
    "jesper": [
        Face("bar55.jpg", 0.51),
        Face("bar55_2.jpg", 0.54),
        Face("cold_water.jpg", 0.58),
        Face("grand_canyon_1.jpg", 0.20, 2),
        Face("jesper_2.jpg"),
        Face("qt-logo.jpg", 0.51),
    ],
    "anne_helene": [
        Face("anne_helene.jpg"),
        Face("bar55.jpg", 0.40),
        Face("bar55_2.jpg", 0.40),
        Face("grand_canyon_1.jpg", 0.46, 2),
    ],
    "jim": [Face("qt-logo.jpg", 0.79)],
    "wayne": [Face("qt-logo.jpg", 0.27), Face("wayne.jpg", 0.32, 3)],
}
#: The same Jesper: as a teenager, in profile, half in profile at sunset.
UNCLEAR = [Face("new_wave_2.jpg"), Face("pool.jpg", 0.38), Face("grand_canyon_2.jpg")]


def photo(name: str) -> Path:
    """The file of a photo; its test is skipped where it was not fetched."""
    if not (FOLDER / name).is_file():
        pytest.skip(f"{name} is not here: run python -m scripts.photos")
    return FOLDER / name
