"""How much pictures look the same, whoever they show: to find copies, and a LoRA that always makes one picture.

On purpose no embedding: one person in the same clothes is no copy, the same picture is.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from isengard.domain.character import ReferenceImage
from isengard.domain.evaluation import Shot

#: Pixels per side of a small copy, and by how many of them a copied picture may be moved.
SIDE, MOVED = 32, 1

#: Prompt, by its place, and seed.
Key = tuple[int, int]
#: A small copy with colours from 0 to 1.
Sketch = NDArray[np.float64]


def sketch(path: Path) -> Sketch:
    with Image.open(path) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255


def resemblance(one: Sketch, other: Sketch) -> float:
    """1 for the same picture; else less by the root mean square difference of colours."""
    return 1 - float(np.sqrt(np.mean((one - other) ** 2)))


def nearest(one: Sketch, others: Sequence[Sketch]) -> float:
    """The highest correlation of colours, where each of the others may be moved a little and mirrored; 0 without others.

    The mean colour does not count: a LoRA that copies may well change the light or a plain background.
    """
    if not others:
        return 0.0
    stack = np.stack(others)
    both = np.concatenate([stack, stack[:, :, ::-1]])
    moves = range(-MOVED, MOVED + 1)
    found = [
        (_plain(one[None, _part(down), _part(right)]) @ _plain(both[:, _part(-down), _part(-right)]).T).max()
        for down, right in product(moves, moves)
    ]
    return float(max(found))


def _plain(sketches: Sketch) -> Sketch:
    """Without their mean colours, of unit length, one in a row."""
    rows: Sketch = (sketches - sketches.mean(axis=(1, 2), keepdims=True)).reshape(len(sketches), -1)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return rows


def _part(moved: int) -> slice:
    return slice(max(0, moved), SIDE + min(0, moved))


def twins(images: Sequence[ReferenceImage], sketches: Sequence[Sketch]) -> float:
    """The highest resemblance of two photos that are not nearly the same; 1 where there are no two."""
    found = []
    for place, image in enumerate(images):
        earlier = zip(images[:place], sketches[:place], strict=True)
        others = [theirs for other, theirs in earlier if not image.near(other)]
        found += [nearest(sketches[place], others)] if others else []
    return max(found, default=1.0)


def shots(
    keys: Sequence[Key],
    *,
    likeness: Sequence[float | None],
    sketches: Sequence[Sketch],
    base: Sequence[Sketch],
    photos: Sequence[Sketch],
) -> tuple[Shot, ...]:
    """The numbers of one candidate's pictures.

    Args:
        keys: Prompt, by its place, and seed of each picture.
        likeness: Of each, in the same order.
        sketches: Of each, in the same order.
        base: The base model's pictures, in the same order.
        photos: Of the training, in any order.
    """
    return tuple(
        Shot(
            prompt=prompt,
            seed=seed,
            likeness=likeness[place],
            nearest=nearest(sketches[place], photos),
            variety=_distance(place, sketches, [key[0] == prompt for key in keys]),
            spread=_distance(place, sketches, [key[1] == seed for key in keys]),
            change=1 - resemblance(sketches[place], base[place]),
        )
        for place, (prompt, seed) in enumerate(keys)
    )


def _distance(place: int, sketches: Sequence[Sketch], counts: Sequence[bool]) -> float:
    """Mean distance of a picture to those others that count."""
    return fmean(
        1 - resemblance(sketches[place], other)
        for number, other in enumerate(sketches)
        if counts[number] and number != place
    )
