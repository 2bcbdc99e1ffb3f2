import zipfile

import pytest
from PIL import Image

from isengard.domain.character import AddedImage, RefusedImage
from isengard.errors import Conflict, InvalidSpec, NotFound
from isengard.services import characters
from isengard.services.characters import CharacterService
from isengard.store.characters import CharacterStore
from tests.unit.character_pictures import encoded, picture, write, zipped


@pytest.fixture
def now():
    return [100.0]


@pytest.fixture
def service(tmp_path, now):
    store = CharacterStore(characters_dir=tmp_path / "characters", trash_dir=tmp_path / "trash")
    return CharacterService(store=store, clock=lambda: now[0])


@pytest.fixture
def files(tmp_path):
    """Three pictures, the first with a caption."""
    paths = [write(tmp_path / "in", f"{seed}.png", encoded(picture(seed))) for seed in range(3)]
    return [*paths, write(tmp_path / "in", "0.txt", b"[trigger] by the sea")]


@pytest.fixture
def anna(service, files):
    anna = service.create("Anna Smith", class_word="woman")
    assert len(list(service.add_files(anna.id, files))) == 3
    return service.get(anna.id)


def captions(service):
    return [image.caption for image in service.get("anna-smith").images]


def test_a_new_character_gets_an_id_and_a_trigger(service):
    first, second = service.create("Anna Smith"), service.create("Anna Smith", notes="her twin")
    assert (first.id, first.trigger, first.class_word, first.created_at) == (
        "anna-smith",
        "nnsxq",
        "person",
        100.0,
    )
    assert (second.id, second.notes) == ("anna-smith-2", "her twin")
    assert second.trigger != first.trigger
    assert service.list() == (first, second)


def test_a_given_trigger_is_used_or_refused(service):
    assert service.create("Anna", trigger="ohwx").trigger == "ohwx"
    with pytest.raises(Conflict, match="belongs to 'anna'"):
        service.create("Bob", trigger="ohwx")
    with pytest.raises(InvalidSpec, match="trigger"):
        service.create("Bob", trigger="")
    assert len(service.list()) == 1


def test_an_edit_changes_what_is_given(service, anna, now):
    now[0] = 200.0
    changed = service.edit(anna.id, name="Anne", notes="x")
    assert changed == anna.model_copy(update={"name": "Anne", "notes": "x", "updated_at": 200.0})
    assert service.get(anna.id) == changed
    with pytest.raises(InvalidSpec, match="class_word"):
        service.edit(anna.id, class_word="")


def test_added_files_are_there_as_soon_as_they_are_yielded(service, files):
    service.create("Anna Smith")
    results = service.add_files("anna-smith", files)
    first = next(results)
    assert isinstance(first, AddedImage)
    assert service.get("anna-smith").images == (first.image,)
    assert (first.image.filename, first.image.caption) == ("0.png", "[trigger] by the sea")
    assert service.image_path("anna-smith", first.image.id).is_file()
    results.close()


def test_bad_files_are_refused_one_by_one(service, files, tmp_path):
    service.create("Anna Smith")
    bad = write(tmp_path, "bad.png", b"<html>")
    small = write(tmp_path, "small.png", encoded(picture(7, (40, 99))))
    results = list(service.add_files("anna-smith", [bad, small, files[1], files[1], files[2], tmp_path]))
    assert [type(result) for result in results] == [RefusedImage] * 2 + [
        AddedImage,
        RefusedImage,
        AddedImage,
        RefusedImage,
    ]
    assert "there already, as '1.png'" in results[3].reason
    assert len(service.get("anna-smith").images) == 2
    assert service.count_files([bad, small, *files]) == 5


def test_files_for_nobody_are_refused_before_the_first_is_read(service, files):
    with pytest.raises(NotFound):
        next(service.add_files("nobody", files))


def test_notes_tell_of_near_duplicates_and_small_pictures(service, files, tmp_path):
    service.create("Anna Smith")
    copy = write(tmp_path, "copy.jpg", encoded(picture(0), "JPEG", quality=80))
    results = list(service.add_files("anna-smith", [files[0], copy], resolution=128))
    assert [result.notes for result in results] == [
        ("96 x 80 is under the model's 128 pixels",),
        ("96 x 80 is under the model's 128 pixels", "looks nearly like 0.png"),
    ]
    assert "1 near duplicate" in service.readiness("anna-smith").summary


def test_captions_by_template(service, anna):
    assert service.caption_all(anna.id, "a photo of [trigger]", only_empty=True) == 2
    assert captions(service) == ["[trigger] by the sea", "a photo of [trigger]", "a photo of [trigger]"]
    assert service.caption_all(anna.id, "[caption], 2026") == 3
    assert captions(service)[0] == "[trigger] by the sea, 2026"
    assert service.caption_all(anna.id, "same") == 3
    assert captions(service) == ["same"] * 3


def test_find_and_replace_in_captions(service, anna):
    assert service.replace_in_captions(anna.id, "sea", "lake") == 1
    assert captions(service)[0] == "[trigger] by the lake"
    assert service.replace_in_captions(anna.id, "SEA", "x") == 0
    with pytest.raises(InvalidSpec, match="empty"):
        service.replace_in_captions(anna.id, "", "x")


def test_one_caption_is_set(service, anna):
    service.set_caption(anna.id, anna.images[1].id, " one\nline ")
    assert captions(service)[1] == "one line"
    with pytest.raises(InvalidSpec):
        service.set_caption(anna.id, anna.images[1].id, "\x00")
    with pytest.raises(NotFound, match="has no image 'none'"):
        service.set_caption(anna.id, "none", "text")


def test_readiness_joins_what_is_known(service, anna):
    report = service.readiness(anna.id)
    assert report.summary == "3 images, 2 without a caption"
    assert report.ready
    service.image_path(anna.id, anna.images[0].id).unlink()
    assert "1 image files are missing" in service.readiness(anna.id).reason


def test_training_images_have_their_captions_resolved(service, anna):
    images = service.training_images(anna.id)
    assert [image.caption for image in images] == ["nnsxq by the sea", "nnsxq woman", "nnsxq woman"]
    sizes = [(image.width, image.height) for image in images]
    assert sizes == [(96, 80)] * 3
    assert [image.path.as_posix() for image in images] == [
        f"anna-smith/images/{image.id}.png" for image in anna.images
    ]
    assert [image.sha256 for image in images] == [image.sha256 for image in anna.images]


def test_a_character_that_is_not_ready_gives_no_training_images(service):
    service.create("Bob")
    with pytest.raises(Conflict, match="'bob' cannot be trained yet: the character has no images"):
        service.training_images("bob")


def test_an_export_can_be_taken_in_again(service, anna, tmp_path):
    path = service.export(anna.id, tmp_path / "anna.zip")
    service.create("Copy")
    assert len(list(service.add_files("copy", [path]))) == 3
    same = ("sha256", "caption")
    assert [image.model_dump(include=same) for image in service.get("copy").images] == [
        image.model_dump(include=same) for image in anna.images
    ]


def test_an_export_with_resolved_captions_is_for_other_trainers(service, anna, tmp_path):
    with zipfile.ZipFile(service.export(anna.id, tmp_path / "anna.zip", resolve=True)) as archive:
        assert archive.read(f"{anna.images[1].id}.txt") == b"nnsxq woman"
        assert len(archive.namelist()) == 6


def test_an_export_overwrites_nothing_and_is_whole_or_absent(service, anna, tmp_path):
    path = write(tmp_path, "anna.zip", b"mine")
    with pytest.raises(Conflict, match="exists already"):
        service.export(anna.id, path)
    assert path.read_bytes() == b"mine"
    service.image_path(anna.id, anna.images[2].id).unlink()
    with pytest.raises(Conflict, match="is missing"):
        service.export(anna.id, tmp_path / "other.zip")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["anna.zip", "characters", "in"]


def test_the_trash_gives_back_by_entry_or_by_id(service, anna, now):
    entry = service.delete(anna.id)
    assert service.trashed() == (entry,)
    assert service.restore(entry.id) == anna
    service.delete(anna.id)
    now[0] += 60
    assert service.restore(anna.id) == anna
    with pytest.raises(NotFound, match="there is no 'anna-smith' in the trash"):
        service.restore(anna.id)


def test_a_purge_is_for_good(service, anna):
    service.delete(anna.id)
    service.purge(anna.id)
    for name in ("One", "Two"):
        service.delete(service.create(name).id)
    assert service.purge_all() == 2
    assert service.trashed() == ()


def test_an_id_in_the_trash_is_not_given_again(service, anna):
    service.delete(anna.id)
    assert service.create("Anna Smith").id == "anna-smith-2"


def test_a_removed_image_is_gone(service, anna):
    left = service.remove_image(anna.id, anna.images[0].id)
    assert left.images == anna.images[1:]


def test_damaged_characters_are_listed_apart(service, anna, tmp_path):
    (tmp_path / "characters" / "odd").mkdir()
    assert service.list() == (anna,)
    assert [one.id for one in service.damaged()] == ["odd"]


def test_a_zip_of_pictures_is_taken(service, tmp_path):
    service.create("Bob")
    archive = zipped(
        tmp_path / "b.zip", {"a/1.webp": encoded(picture(), "WEBP"), "a/1.txt": b"hi", "x.md": b"?"}
    )
    added, refused = service.add_files("bob", [archive])
    assert (added.image.filename, added.image.caption, refused.filename) == ("a/1.webp", "hi", "x.md")


def test_a_replacement_that_would_grow_without_end_is_refused_before_it_does(service, anna):
    service.set_caption(anna.id, anna.images[0].id, "a" * 4000)
    with pytest.raises(InvalidSpec, match="at most 4000 characters, and would have 4000000000"):
        service.replace_in_captions(anna.id, "a", "b" * 10**6)
    assert captions(service)[0] == "a" * 4000


def test_pictures_that_unpack_to_far_more_than_was_sent_are_refused_and_the_first_ones_kept(
    service, tmp_path, monkeypatch
):
    monkeypatch.setattr(characters, "MAX_PIXELS", 2 * 1000 * 1000)
    service.create("Anna")
    flat = {f"{grey}.png": encoded(Image.new("L", (1000, 1000), grey)) for grey in range(6)}
    results = list(service.add_files("anna", [zipped(tmp_path / "a.zip", flat)]))
    kinds = [type(result) for result in results]
    assert kinds == sorted(kinds, key=(AddedImage, RefusedImage).index)
    assert 2 <= kinds.count(AddedImage) < 6
    assert "like a bomb; send this one alone" in results[-1].reason
