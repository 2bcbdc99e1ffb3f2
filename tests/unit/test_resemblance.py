"""How much pictures look the same: what counts as a copy, and what counts as variety."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from isengard.domain.character import ReferenceImage
from isengard.domain.evaluation import NEARLY_THE_SAME
from isengard.services.resemblance import nearest, resemblance, shots, sketch, twins
from isengard.settings import ASSETS

PHOTOS = sorted((ASSETS / "characters" / "nova").glob("*.png"))
KEYS = [(0, 1), (0, 2), (1, 1), (1, 2)]


def flat(*colour):
    return np.full((32, 32, 3), colour, dtype=float)


def image(dhash):
    return ReferenceImage(
        id="0" * 16, sha256="0", dhash=dhash, width=64, height=64, filename="a.png", added_at=0.0
    )


def found(*colours, photos=(), base=(0.0, 0.0, 0.0, 0.0)):
    sketches, unchanged = ([flat(colour, 0, 0) for colour in each] for each in (colours, base))
    return shots(KEYS, likeness=[0.5, None, 0.5, 0.5], sketches=sketches, base=unchanged, photos=photos)


def test_a_mirrored_photo_is_the_photo(tmp_path):
    with Image.open(PHOTOS[0]) as photo:
        photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    assert nearest(sketch(tmp_path / "mirrored.png"), [sketch(PHOTOS[0])]) == pytest.approx(1)


def test_a_photo_that_is_moved_is_the_photo():
    photo = np.random.default_rng(0).random((32, 32, 3))
    moved = np.roll(photo, (1, -1), axis=(0, 1))
    assert nearest(moved, [flat(0, 0, 0), photo]) == pytest.approx(1)
    assert resemblance(moved, photo) < 0.7


def test_without_photos_nothing_is_near():
    assert nearest(flat(0, 0, 0), []) == 0


def test_resemblance_falls_with_the_difference_of_colours():
    assert resemblance(flat(0, 0, 0), flat(1, 1, 1)) == pytest.approx(0)
    assert resemblance(flat(0.5, 0.5, 0.5), flat(0.5, 0.5, 0.7)) == pytest.approx(1 - 0.2 / 3**0.5)


def test_a_blurred_and_moved_copy_is_called_one_and_another_photo_of_the_person_is_not(tmp_path):
    with Image.open(PHOTOS[0]) as photo:
        copy = photo.convert("RGB").transform((128, 128), Image.Transform.AFFINE, (1, 0, 4, 0, 1, 2))
        copy.filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "copy.png")
    images = [image(f"{number:x}" * 16) for number in range(len(PHOTOS))]
    sketches = [sketch(path) for path in PHOTOS]
    likest = twins(images, sketches)
    limit = likest + NEARLY_THE_SAME * (1 - likest)
    assert nearest(sketch(tmp_path / "copy.png"), sketches) > limit
    assert nearest(sketches[0], sketches[1:]) < limit


def test_photos_that_are_nearly_the_same_do_not_count_as_twins():
    one, other = (np.random.default_rng(number).random((32, 32, 3)) for number in (1, 2))
    near = [image("0" * 16), image("0" * 15 + "1"), image("f" * 16)]
    assert twins(near, [one, one, other]) < 0.2
    assert twins(near[:2], [one, one]) == 1


def test_the_nearest_photo_is_told_of_each_picture():
    photos = [sketch(path) for path in PHOTOS[:3]]
    likeness = [0.5, None, 0.5, 0.5]
    made = shots(
        KEYS, likeness=likeness, sketches=[*photos, flat(0, 0, 0)], base=[flat(0, 0, 0)] * 4, photos=photos
    )
    assert [shot.nearest for shot in made] == pytest.approx([1, 1, 1, 0])
    assert [(shot.prompt, shot.seed, shot.likeness) for shot in made[:2]] == [(0, 1, 0.5), (0, 2, None)]


def test_variety_is_between_seeds_of_a_prompt_and_spread_between_prompts_of_a_seed():
    first = found(0.0, 0.2, 0.5, 0.9)[0]
    assert (first.variety, first.spread) == (pytest.approx(0.2 / 3**0.5), pytest.approx(0.5 / 3**0.5))


def test_the_change_is_the_distance_to_the_base_models_picture_of_the_same_prompt_and_seed():
    made = found(0.0, 0.2, 0.5, 0.9, base=(0.0, 0.2, 0.3, 0.9))
    assert [shot.change for shot in made] == pytest.approx([0, 0, 0.2 / 3**0.5, 0])
