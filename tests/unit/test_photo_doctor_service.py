import json
import logging

import numpy as np
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from isengard.cli import app
from isengard.domain.doctor import FindingKind
from isengard.domain.identity import Box, ScorerKind, Sighting
from isengard.errors import JobCancelled, NotFound
from isengard.services.characters import CharacterService
from isengard.services.doctor import DoctorService
from isengard.services.likeness import LikenessService
from isengard.store.characters import CharacterStore
from tests.unit.character_pictures import encoded, picture, write


class Faces:
    """Finds one face in the middle of each picture, and counts the pictures."""

    def __init__(self):
        self.looked_at = 0

    def find(self, images):
        self.looked_at += len(images)
        return [(self.face(image),) for image in images]

    def face(self, image):
        box = Box(left=image.width / 4, top=image.height / 4, width=image.width / 2, height=image.height / 2)
        return Sighting(box=box, embedding=(1.0, 0.0), confidence=0.95)


@pytest.fixture
def faces():
    return Faces()


@pytest.fixture
def store(tmp_path):
    return CharacterStore(characters_dir=tmp_path / "characters", trash_dir=tmp_path / "trash")


@pytest.fixture
def characters(store):
    return CharacterService(store=store)


@pytest.fixture
def doctor(tmp_path, characters, faces):
    return new_doctor(tmp_path, characters, faces)


def new_doctor(tmp_path, characters, faces):
    scorers = {ScorerKind.FACES: faces, ScorerKind.DRAWN_FIGURES: faces}.__getitem__
    likeness = LikenessService(characters=characters, scorers=scorers, cache_dir=tmp_path / "seen")
    return DoctorService(
        characters=characters,
        likeness=likeness,
        scorers=scorers,
        cache_dir=tmp_path / "cache",
        clock=lambda: 9.0,
    )


@pytest.fixture
def anna(characters, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels), picture(1, (300, 300)).filter(ImageFilter.GaussianBlur(9))]
    paths = [write(tmp_path / "in", f"{n}.png", encoded(each)) for n, each in enumerate(pictures)]
    character = characters.create("Anna", class_word="woman")
    list(characters.add_files(character.id, paths))
    characters.edit(character.id, scorer=ScorerKind.FACES)
    return character.id


def kinds(examination):
    return {finding.kind for finding in examination.findings}


def test_each_photo_is_looked_at_once(doctor, anna, faces, characters, tmp_path):
    first = doctor.examine(anna)
    assert faces.looked_at == 2
    assert FindingKind.BLURRED in kinds(first)
    assert new_doctor(tmp_path, characters, faces).examine(anna) == first
    assert faces.looked_at == 2


def test_progress_is_told_before_each_photo_and_may_stop_it(doctor, anna):
    told = []
    doctor.examine(anna, report=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]

    def stop(done, total):
        raise JobCancelled

    with pytest.raises(JobCancelled):
        doctor.examine(anna, report=stop)


def test_the_progress_never_goes_back_when_the_kind_of_character_has_to_be_found_out(doctor, anna, store):
    store.update(anna, lambda character: character.model_copy(update={"scorer": None}))
    told = []
    doctor.examine(anna, report=lambda done, total: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 2


def test_the_last_result_is_kept_over_a_restart(doctor, anna, characters, faces, tmp_path):
    examination = doctor.examine(anna)
    again = new_doctor(tmp_path, characters, faces)
    assert again.last(anna) == examination
    assert again.is_current(anna)


def test_findings_of_photos_that_are_gone_are_no_more_told(doctor, anna, characters):
    examination = doctor.examine(anna)
    (blurred,) = [finding.image for finding in examination.findings if finding.kind is FindingKind.BLURRED]
    characters.remove_image(anna, blurred)
    assert FindingKind.BLURRED not in kinds(doctor.last(anna))
    assert not doctor.is_current(anna)


def test_a_caption_that_was_put_right_is_no_more_told(doctor, anna, characters):
    image = characters.get(anna).images[0].id
    characters.set_caption(anna, image, "a woman with blue eyes")
    assert {FindingKind.TRAIT_IN_CAPTION, FindingKind.NO_TRIGGER} <= kinds(doctor.examine(anna))
    characters.set_caption(anna, image, "a [class] with blue eyes")
    (finding,) = [one for one in doctor.last(anna).findings if one.kind is FindingKind.NO_TRIGGER]
    assert finding.fix.caption == "a [trigger] [class]"
    characters.set_caption(anna, image, "a [trigger] [class]")
    assert not {FindingKind.TRAIT_IN_CAPTION, FindingKind.NO_TRIGGER} & kinds(doctor.last(anna))


def test_nothing_is_told_of_what_nobody_examined(doctor, anna, characters):
    assert doctor.last(anna) is None
    assert not doctor.is_current(anna)
    doctor.examine(anna)
    for image in characters.get(anna).images:
        characters.remove_image(anna, image.id)
    assert doctor.last(anna) is None


def test_a_damaged_record_counts_as_none(doctor, anna, faces, tmp_path):
    doctor.examine(anna)
    for kept in (tmp_path / "cache").rglob("*.json"):
        kept.write_text("{")
    assert doctor.last(anna) is None
    assert doctor.examine(anna).facts.photos == 2


def test_a_photo_that_vanished_is_named(doctor, anna, characters):
    image = characters.get(anna).images[0].id
    characters.image_path(anna, image).unlink()
    with pytest.raises(NotFound, match=f"{image}.png cannot be read: put it back or remove the image"):
        doctor.examine(anna)


def test_the_command_line_tells_the_findings_and_how_to_put_them_right(tmp_path):
    handlers = logging.getLogger().handlers[:]

    def run(*arguments):
        command = ["--data-dir", str(tmp_path / "data"), "characters", *map(str, arguments)]
        result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.stdout

    run("create", "Anna")
    run("edit", "anna", "--scorer", "faces")
    run("add", "anna", write(tmp_path / "in", "blank.png", encoded(Image.new("RGB", (320, 320), "white"))))
    told = run("examine", "anna")
    document = json.loads(run("examine", "anna", "--json"))
    for handler in set(logging.getLogger().handlers) - set(handlers):
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert "- blank.png " in told
    assert "no face can be seen clearly (0.00 sure, and 0.8 is the least)" in told
    assert "(leave out)" in told
    assert "0 of 1 photos show the character" in told
    assert document["findings"][0]["kind"] == "nobody"
