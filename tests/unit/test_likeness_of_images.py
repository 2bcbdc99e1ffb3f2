"""What an image's likeness is called, which images are the best, and when a LoRA gives no likeness."""

import pytest

from isengard.domain.base import validated
from isengard.domain.character import Character
from isengard.domain.generation import ImageSpec
from isengard.domain.identity import Portrait, ScorerKind
from isengard.domain.likeness import Likeness, lacks, measured, surplus, worth
from isengard.errors import InvalidSpec

PORTRAIT = Portrait(scorer=ScorerKind.FACES, centroid=(1.0, 0.0), ceiling=(0.7, 0.9), images=("a", "b"))


NOVA = Character(id="nova", name="Nova", trigger="nvx", class_word="person", created_at=0, updated_at=0)


def likeness(cosine, share=None, character="nova"):
    return Likeness(
        character=character, name=character.title(), scorer=ScorerKind.FACES, cosine=cosine, share=share
    )


def test_as_like_as_the_photos_are_to_each_other_is_the_whole_way():
    assert measured(NOVA, PORTRAIT, 0.8, floor=0.0).share == pytest.approx(1)
    assert measured(NOVA, PORTRAIT, 0.4, floor=0.0).share == pytest.approx(0.5)
    assert measured(NOVA, PORTRAIT, 0.6, floor=0.4).share == pytest.approx(0.5)


def test_an_image_that_shows_nobody_has_gone_nothing_of_the_way():
    one = measured(NOVA, PORTRAIT, None, floor=0.0)
    assert (one.cosine, one.share) == (None, 0.0)


@pytest.mark.parametrize(
    ("portrait", "floor"),
    [
        pytest.param(PORTRAIT, None, id="nobody-knows-the-floor"),
        pytest.param(PORTRAIT.model_copy(update={"ceiling": ()}), 0.0, id="one-photo-has-no-ceiling"),
        pytest.param(PORTRAIT, 0.79, id="no-room-between-floor-and-ceiling"),
    ],
)
def test_where_the_way_is_not_known_only_the_cosine_is_told(portrait, floor):
    assert measured(NOVA, portrait, 0.8, floor=floor) == likeness(0.8)


def test_an_image_is_worth_its_likeness_to_the_character_that_it_is_least_like():
    assert worth([likeness(0.7, 0.9), likeness(0.3, 0.4, "odin")]) == 0.4
    assert worth([likeness(0.6)]) == 0.6
    assert worth([]) is None


def test_nobody_is_less_alike_than_anybody():
    assert worth([likeness(None, 0.0)]) < worth([likeness(-0.9, -1.2)])


def test_all_but_the_most_alike_are_surplus_and_of_equals_the_later():
    assert surplus([0.1, 0.9, 0.5, 0.9, 0.9], keep=2) == (0, 2, 4)
    assert surplus([0.1], keep=2) == ()


def test_what_was_not_measured_is_never_surplus():
    assert surplus([None, 0.9, None, 0.5], keep=1) == (3,)


def test_a_character_is_lacking_when_its_images_go_less_than_half_of_the_way():
    images = [
        [likeness(0.2, 0.2), likeness(0.9, 0.9, "odin")],
        [likeness(0.3, 0.4), likeness(0.8, 0.8, "odin")],
    ]
    (lack,) = lacks(images)
    assert (lack.name, lack.percent) == ("Nova", 30)
    assert lacks([[likeness(0.1)], []]) == ()  # nobody knows


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 2, "keep_best": 3, "loras": [{"lora": "job1"}]}, "keep_best is 3, but only 2 are made"),
        ({"count": 4, "keep_best": 2}, "keep_best needs a LoRA"),
        ({"count": 4, "keep_best": 0, "loras": [{"lora": "job1"}]}, "keep_best: must be greater"),
    ],
)
def test_a_best_that_cannot_be_told_is_refused_in_words(values, words):
    with pytest.raises(InvalidSpec, match=words):
        validated(ImageSpec, {"base_model": "demo", "prompt": "x", **values})
