"""Pictures made of noise, for trainings."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from isengard.domain.training import TrainingImage


def picture(path: Path, number: int, *, size: tuple[int, int] = (64, 64)) -> TrainingImage:
    """Write one picture that depends on ``number`` only; size is (width, height)."""
    width, height = size
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return TrainingImage(
        path=path,
        sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        width=width,
        height=height,
        caption=f"ohwx person, picture {number}",
    )
