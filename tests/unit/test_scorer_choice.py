"""What a character is told apart by: its own choice, or what its images suggest."""

import pytest
from PIL import Image

from isengard.domain.identity import ScorerKind
from isengard.errors import InvalidSpec
from isengard.settings import ASSETS, Settings
from isengard.wiring import build
from tests.photos import photo
from tests.unit.character_pictures import encoded, picture, write


@pytest.fixture
def app(tmp_path):
    return build(Settings.load({}, data_dir=tmp_path / "data"))


@pytest.fixture
def suggested(app):
    """What is suggested for a character with these pictures."""

    def suggest(*files):
        character = app.characters.create("Anna")
        for result in app.characters.add_files(character.id, files):
            assert hasattr(result, "image"), result
        return app.likeness.kind(app.characters.get(character.id))

    return suggest


def test_a_character_without_pictures_is_taken_for_a_person(suggested):
    assert suggested() is ScorerKind.FACES


def test_photos_of_a_person_suggest_faces(suggested):
    assert suggested(photo("obama.jpg"), photo("biden.jpg"), photo("sunset.jpg")) is ScorerKind.FACES


def test_small_photos_of_people_are_not_taken_for_drawings(suggested, tmp_path):
    small = []
    for name in ("obama.jpg", "astronaut.png", "grace_hopper.jpg"):
        with Image.open(photo(name)) as opened:
            opened.thumbnail((256, 256))
            small.append(write(tmp_path, f"{name}.png", encoded(opened.convert("RGB"))))
    assert suggested(*small) is ScorerKind.FACES


def test_photos_of_a_dog_suggest_the_whole_picture(suggested):
    assert suggested(photo("donna.jpg"), photo("spiff.jpg"), photo("obama.jpg")) is ScorerKind.LOOK


@pytest.mark.parametrize("name", ["odin", "nova", "marisol"])
def test_pictures_of_an_example_character_suggest_drawn_figures(suggested, name):
    drawn = sorted((ASSETS / "characters" / name).glob("*.png"))
    assert suggested(*drawn[:3]) is ScorerKind.DRAWN_FIGURES


def test_the_suggestion_follows_the_pictures(app, tmp_path):
    anna = app.characters.create("Anna")
    list(app.characters.add_files(anna.id, [write(tmp_path, "1.png", encoded(picture(1)))]))
    assert app.likeness.kind(app.characters.get(anna.id)) is ScorerKind.LOOK
    drawn = sorted((ASSETS / "characters" / "odin").glob("*.png"))
    list(app.characters.add_files(anna.id, drawn[:2]))
    assert app.likeness.kind(app.characters.get(anna.id)) is ScorerKind.DRAWN_FIGURES


def test_what_somebody_chose_wins_and_can_be_taken_back(app, tmp_path):
    anna = app.characters.create("Anna")
    list(app.characters.add_files(anna.id, [write(tmp_path, "1.png", encoded(picture(1)))]))
    chosen = app.characters.edit(anna.id, scorer="drawn_figures")
    assert app.likeness.kind(chosen) is ScorerKind.DRAWN_FIGURES
    assert app.characters.edit(anna.id, name="Anne").scorer is ScorerKind.DRAWN_FIGURES
    assert app.characters.edit(anna.id, scorer="").scorer is None


def test_a_scorer_that_does_not_exist_is_refused_with_those_that_do(app):
    anna = app.characters.create("Anna")
    with pytest.raises(InvalidSpec, match=r"scorer.*'faces', 'drawn_figures' or 'look'.*'palm'"):
        app.characters.edit(anna.id, scorer="palm")
