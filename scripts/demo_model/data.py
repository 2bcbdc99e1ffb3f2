"""The training data: portraits of many people in several looks each, drawn once and kept as arrays."""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from scripts.demo_model.draw import Look, Person, draw, random_look, random_person, sibling

#: Images in one file.
CHUNK = 2000
SIZE = 128


@dataclass(frozen=True)
class Portrait:
    person: Person
    look: Look


@dataclass(frozen=True)
class Drawings:
    """``people`` x ``looks`` portraits, a pure function of the seed; those of one person stand side by side.

    Every second person differs from the one before in a single trait.
    """

    folder: Path
    seed: int
    people: int
    looks: int

    @cached_property
    def portraits(self) -> Sequence[Portrait]:
        rng = random.Random(self.seed)  # noqa: S311  # not for secrets
        person, found = random_person(rng), []
        for number in range(self.people):
            person = sibling(person, rng) if number % 2 else random_person(rng)
            found += [Portrait(person, random_look(rng)) for _ in range(self.looks)]
        return found

    def __len__(self) -> int:
        return self.people * self.looks

    @property
    def _files(self) -> Sequence[Path]:
        return [self.folder / f"{start:06}.npy" for start in range(0, len(self), CHUNK)]

    def draw(self) -> None:
        """Draw what is missing, on all cores."""
        missing = [(number, file) for number, file in enumerate(self._files) if not file.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            chunks = [self.portraits[number * CHUNK : (number + 1) * CHUNK] for number, _ in missing]
            drawing = pool.map(_draw_chunk, chunks, [file for _, file in missing])
            for _ in tqdm(drawing, desc="drawing", total=len(missing), unit="file", disable=not missing):
                pass

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """All of them, (n, 128, 128, 3)."""
        images = np.empty((len(self), SIZE, SIZE, 3), np.uint8)
        for number, file in enumerate(self._files):
            images[number * CHUNK : (number + 1) * CHUNK] = np.load(file)
        return images


def _draw_chunk(portraits: Sequence[Portrait], file: Path) -> None:
    images = np.stack([np.asarray(draw(each.person, each.look, size=SIZE)) for each in portraits])
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as opened:
        np.save(opened, images)
    temporary.replace(file)
