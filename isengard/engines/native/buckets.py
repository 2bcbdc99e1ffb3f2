"""Sizes at which images are trained, and the order in which they come. No tensors here."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence

from pydantic import Field

from isengard.domain.base import Frozen

#: Width and height of every bucket are multiples of this: 8 by the VAE, 2 by FLUX's packing.
MULTIPLE = 16


class Bucket(Frozen):
    """A size in pixels that a batch shares."""

    width: int = Field(multiple_of=MULTIPLE)
    height: int = Field(multiple_of=MULTIPLE)


def bucket_for(width: int, height: int, *, resolution: int, max_upscale: float) -> Bucket:
    """Choose the size at which an image is trained: its aspect ratio, the area ``resolution ** 2``.

    An image that would have to be enlarged by more than ``max_upscale`` is trained smaller. Sides are multiples of
    about an eighth of the resolution, so that similar shapes share a bucket and can share a batch.
    """
    allowed = math.sqrt(width * height) * max_upscale
    side = min(resolution, allowed)
    grid = max(MULTIPLE, int(side) // 8 // MULTIPLE * MULTIPLE)
    aspect = math.sqrt(width / height)
    return Bucket(
        width=_round(side * aspect, grid=grid, limit=width * max_upscale),
        height=_round(side / aspect, grid=grid, limit=height * max_upscale),
    )


def _round(value: float, *, grid: int, limit: float) -> int:
    rounded = max(grid, round(value / grid) * grid)
    if rounded > limit:
        rounded = int(limit) // MULTIPLE * MULTIPLE
    return max(MULTIPLE, rounded)


class BatchOrder:
    """The order of batches, a pure function of the seed: batch n is the same before and after a restart.

    One round is ``batch_size`` passes over the examples, so that every batch is full, holds one bucket only, and
    every example is seen equally often.
    """

    def __init__(self, buckets: Sequence[Bucket], *, batch_size: int, seed: int) -> None:
        self._members: dict[Bucket, list[int]] = defaultdict(list)
        for index, bucket in enumerate(buckets):
            self._members[bucket].append(index)
        self._batch_size = batch_size
        self._seed = seed
        self._round: tuple[int, list[list[int]]] = (-1, [])
        self.batches_per_round = len(buckets)

    def batch(self, number: int) -> list[int]:
        """Return the example indices of batch ``number``, counted from 0 since the first step."""
        wanted, offset = divmod(number, self.batches_per_round)
        if self._round[0] != wanted:
            self._round = (wanted, self._shuffled(wanted))
        return self._round[1][offset]

    def _shuffled(self, round_number: int) -> list[list[int]]:
        draw = random.Random(f"{self._seed}/{round_number}")  # noqa: S311  # not for secrets
        batches = []
        for members in self._members.values():
            passes = [index for _ in range(self._batch_size) for index in draw.sample(members, len(members))]
            batches += [passes[i : i + self._batch_size] for i in range(0, len(passes), self._batch_size)]
        draw.shuffle(batches)
        return batches
