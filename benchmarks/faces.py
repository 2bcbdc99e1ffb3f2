"""How well faces in photographs are told apart: cosines of one person's photos, and of two people's.

Run it as ``python -m benchmarks.faces FOLDER``: a picture's name up to the first ``_`` says who it shows, which is the
largest face in it. Pictures without a face are counted and left out.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from isengard.domain.identity import Embedding, ScorerKind, Sighting
from isengard.engines.base import IdentityScorer
from isengard.wiring import open_scorer

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class Separation(NamedTuple):
    """Cosines of all pairs of photos, in rising order."""

    same: tuple[float, ...]
    different: tuple[float, ...]

    @property
    def is_clean(self) -> bool:
        return self.same[0] > self.different[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faces", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the photos, looked through to the bottom")
    folder = parser.parse_args(arguments).folder
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    scorer, people, without = open_scorer(ScorerKind.FACES), dict[str, list[Embedding]](), 0
    for file in files:
        if found := faces(scorer, file):
            people.setdefault(file.stem.partition("_")[0], []).append(found[0].embedding)
        else:
            without += 1
    print(f"{len(files) - without} photos of {len(people)} people, {without} more without a face")
    print("\n".join(lines(separation(people))))


def faces(scorer: IdentityScorer, file: Path, *, quarter_turns: int = 0) -> tuple[Sighting, ...]:
    """Whom a photo shows, the largest first. ``quarter_turns``: to the left, of a photo that lies on its side."""
    with Image.open(file) as opened:
        upright = ImageOps.exif_transpose(opened).rotate(90 * quarter_turns, expand=True)
    return scorer.find([upright])[0]


def separation(people: Mapping[str, Sequence[Embedding]]) -> Separation:
    """Compare all photos with each other."""
    taken = [(name, np.asarray(embedding)) for name, found in people.items() for embedding in found]
    same: list[float] = []
    different: list[float] = []
    for (name, one), (other_name, other) in combinations(taken, 2):
        (same if name == other_name else different).append(float(one @ other))
    return Separation(tuple(sorted(same)), tuple(sorted(different)))


def lines(found: Separation) -> list[str]:
    rows = [
        f"{name:10} {len(cosines):7} pairs: {cosines[0]:5.2f} to {cosines[-1]:4.2f}, median {np.median(cosines):4.2f}"
        for name, cosines in (("same", found.same), ("different", found.different))
    ]
    return [*rows, "no overlap" if found.is_clean else "they overlap"]


if __name__ == "__main__":
    main()
