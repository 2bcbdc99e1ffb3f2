"""Changes of many captions can be taken back, and no caption that a person wrote is lost by one."""

import pytest

from isengard.errors import Conflict, NotFound
from isengard.services.characters import CharacterService
from isengard.store import caption_changes
from isengard.store.characters import CharacterStore
from tests.unit.character_pictures import encoded, picture, write


@pytest.fixture
def store(tmp_path):
    return CharacterStore(characters_dir=tmp_path / "characters", trash_dir=tmp_path / "trash")


@pytest.fixture
def service(store, tmp_path):
    service = CharacterService(store=store, clock=lambda: 100.0)
    service.create("Anna")
    files = [write(tmp_path / "in", f"{seed}.png", encoded(picture(seed))) for seed in range(3)]
    files.append(write(tmp_path / "in", "0.txt", b"by the sea"))
    assert len(list(service.add_files("anna", files))) == 3
    return service


def captions(service):
    return [image.caption for image in service.get("anna").images]


def ids(service):
    return [image.id for image in service.get("anna").images]


def test_a_template_that_replaced_captions_is_taken_back(service):
    service.caption_all("anna", "a photo")
    assert service.captions_to_undo("anna") == 3
    assert service.undo_captions("anna") == 3
    assert captions(service) == ["by the sea", "", ""]


def test_a_replacement_is_taken_back(service):
    service.replace_in_captions("anna", "sea", "lake")
    service.undo_captions("anna")
    assert captions(service)[0] == "by the sea"


def test_the_last_change_is_taken_back_first(service):
    service.caption_all("anna", "first")
    service.caption_all("anna", "second")
    service.undo_captions("anna")
    assert captions(service) == ["first"] * 3
    service.undo_captions("anna")
    assert captions(service) == ["by the sea", "", ""]


def test_what_a_person_wrote_since_stays(service):
    service.caption_all("anna", "a photo")
    service.set_caption("anna", ids(service)[1], "my own words")
    assert service.undo_captions("anna") == 2
    assert captions(service) == ["by the sea", "my own words", ""]


def test_a_change_in_several_steps_is_taken_back_at_once(service):
    first, second, _ = ids(service)
    service.replace_captions("anna", {first: ("by the sea", "described")}, change="job")
    service.replace_captions("anna", {second: ("", "described, too")}, change="job")
    assert service.captions_to_undo("anna") == 2
    assert service.undo_captions("anna") == 2
    assert captions(service) == ["by the sea", "", ""]


def test_of_a_caption_changed_twice_in_one_change_the_first_comes_back(service):
    first = ids(service)[0]
    service.replace_captions("anna", {first: ("by the sea", "one")}, change="job")
    service.replace_captions("anna", {first: ("one", "two")}, change="job")
    service.undo_captions("anna")
    assert captions(service)[0] == "by the sea"


def test_a_caption_that_is_not_the_expected_one_any_more_is_not_replaced(service):
    first = ids(service)[0]
    assert service.replace_captions("anna", {first: ("", "described")}, change="job") == 0
    assert captions(service)[0] == "by the sea"
    assert service.captions_to_undo("anna") == 0


def test_an_image_that_was_removed_stays_away(service):
    service.caption_all("anna", "a photo")
    service.remove_image("anna", ids(service)[0])
    assert service.undo_captions("anna") == 2


def test_without_a_change_nothing_is_taken_back(service):
    with pytest.raises(Conflict, match="no change of captions of 'anna'"):
        service.undo_captions("anna")
    with pytest.raises(NotFound):
        service.captions_to_undo("../anna")


def test_the_oldest_changes_are_forgotten(service):
    for number in range(caption_changes.KEPT + 2):
        service.caption_all("anna", f"number {number}")
    for _ in range(caption_changes.KEPT):
        service.undo_captions("anna")
    assert service.captions_to_undo("anna") == 0
    assert captions(service) == ["number 1"] * 3


def test_a_damaged_record_of_changes_only_costs_the_way_back(service, store):
    service.caption_all("anna", "a photo")
    (store.characters_dir / "anna" / caption_changes.NAME).write_text("{")
    assert service.captions_to_undo("anna") == 0
    assert captions(service) == ["a photo"] * 3


def test_the_record_of_changes_is_not_reported_as_a_strange_file(service):
    service.caption_all("anna", "a photo")
    assert [finding for finding in service.readiness("anna").findings if finding.kind == "extra_files"] == []
