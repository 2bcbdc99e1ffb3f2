"""What a character's photos say of its looks, on photographs with other people in them."""

import pytest

from isengard.domain.cast import character_in
from isengard.domain.identity import Box, ScorerKind, Sighting
from isengard.errors import InvalidSpec
from isengard.settings import Settings
from isengard.wiring import build
from tests.photos import photo

FACES = ScorerKind.FACES
EAST, NORTH, UP = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return build(Settings.load({}, data_dir=tmp_path_factory.mktemp("portrait")))


def portrait(app, name, *files):
    character = app.characters.create(name)
    app.characters.edit(character.id, scorer="faces")
    list(app.characters.add_files(character.id, [photo(file) for file in files]))
    return app.likeness.portrait(app.characters.get(character.id))


def seen(*embeddings, reliable=True):
    box = Box(left=0, top=0, width=50, height=50)
    return tuple(Sighting(box=box, embedding=each, reliable=reliable) for each in embeddings)


def test_somebody_larger_in_one_photo_is_not_taken_for_the_character(app):
    """In the last two, Jim's face and Barack Obama's are the largest."""
    found = portrait(app, "Jesper", "bar55.jpg", "bar55_2.jpg", "jesper_2.jpg", "qt-logo.jpg", "obama.jpg")
    assert len(found.images) == 4
    assert min(found.ceiling) > 0.6
    jesper, obama = app.likeness.score(found, [photo("cold_water.jpg"), photo("obama2.jpg")])
    assert jesper is not None
    assert obama is not None
    assert jesper > 0.35 > 0.2 > obama


def test_who_is_in_the_most_photos_is_the_character():
    found = {"a": seen(NORTH, EAST), "b": seen(EAST), "c": seen(UP, EAST), "d": seen(NORTH)}
    assert {key: one.embedding for key, one in character_in(found, FACES).items()} == dict.fromkeys(
        "abc", EAST
    )


def test_the_largest_is_taken_where_no_two_photos_show_the_same_one():
    found = {"a": seen(EAST, NORTH), "b": seen(UP), "c": ()}
    assert {key: one.embedding for key, one in character_in(found, FACES).items()} == {"a": EAST, "b": UP}


def test_a_face_too_small_to_be_trusted_is_nobody():
    found = {"a": seen(EAST, reliable=False), "b": seen(NORTH), "c": seen(NORTH)}
    assert list(character_in(found, FACES)) == ["b", "c"]


def test_whole_pictures_all_count():
    found = {"a": seen(EAST), "b": seen(NORTH), "c": seen(UP)}
    assert list(character_in(found, ScorerKind.LOOK)) == ["a", "b", "c"]


def test_photos_that_show_nobody_are_refused(app):
    with pytest.raises(InvalidSpec, match="no photo shows the character"):
        portrait(app, "Nobody", "sunset.jpg", "skagen.jpg")
