import random
from collections import Counter

import pytest

from isengard.engines.native.buckets import BatchOrder, Bucket, bucket_for


@pytest.mark.parametrize(
    ("image", "resolution", "expected"),
    [
        ((1024, 1024), 512, (512, 512)),
        ((4000, 3000), 512, (576, 448)),
        ((3000, 4000), 512, (448, 576)),
        ((4000, 3000), 1024, (1152, 896)),
        ((128, 128), 128, (128, 128)),
        ((6000, 400), 512, (1984, 128)),
    ],
)
def test_a_bucket_keeps_the_shape_and_the_area(image, resolution, expected):
    bucket = bucket_for(*image, resolution=resolution, max_upscale=1)
    assert (bucket.width, bucket.height) == expected


def test_a_small_image_is_trained_small_rather_than_enlarged():
    assert bucket_for(300, 200, resolution=512, max_upscale=1) == Bucket(width=288, height=192)
    assert bucket_for(300, 200, resolution=512, max_upscale=1.5) == Bucket(width=448, height=288)


def test_no_bucket_enlarges_beyond_the_limit_or_loses_much():
    draw = random.Random(1)
    for _ in range(2000):
        width, height = draw.randint(64, 5000), draw.randint(64, 5000)
        limit = draw.choice((1, 1.25, 2))
        bucket = bucket_for(width, height, resolution=draw.choice((128, 512, 768, 1024)), max_upscale=limit)
        assert bucket.width % 16 == 0
        assert bucket.height % 16 == 0
        assert bucket.width <= max(16, width * limit)
        assert bucket.height <= max(16, height * limit)


SIZES = [Bucket(width=64, height=64)] * 5 + [Bucket(width=64, height=96)] * 3


def test_every_batch_is_full_and_of_one_size():
    order = BatchOrder(SIZES, batch_size=4, seed=0)
    for number in range(40):
        batch = order.batch(number)
        assert len(batch) == 4
        assert len({SIZES[index] for index in batch}) == 1


def test_a_round_shows_every_example_equally_often():
    order = BatchOrder(SIZES, batch_size=4, seed=0)
    assert order.batches_per_round == 8
    for start in (0, 8):
        seen = Counter(index for number in range(start, start + 8) for index in order.batch(number))
        assert seen == Counter(dict.fromkeys(range(8), 4))


def test_the_order_depends_on_the_seed_and_the_number_only():
    numbers = [*range(30), 3, 17, 0]
    one, two = (BatchOrder(SIZES, batch_size=2, seed=5) for _ in range(2))
    in_order = {number: one.batch(number) for number in sorted(numbers)}
    assert {number: two.batch(number) for number in reversed(numbers)} == in_order
    other = BatchOrder(SIZES, batch_size=2, seed=6)
    assert [other.batch(number) for number in range(30)] != [in_order[number] for number in range(30)]
