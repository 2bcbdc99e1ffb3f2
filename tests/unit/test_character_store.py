import json
import os
import threading
from functools import partial

import pytest
from filelock import FileLock

from isengard import files
from isengard.domain.character import Character, ReferenceImage
from isengard.errors import Conflict, ImageRefused, InvalidSpec, NotFound
from isengard.files import write_text
from isengard.store.characters import CharacterStore
from isengard.store.decoding import difference_hash, pixel_hash
from isengard.store.looks import FOLDERS, forget
from tests.unit.character_pictures import picture


@pytest.fixture
def store(tmp_path):
    return CharacterStore(characters_dir=tmp_path / "characters", trash_dir=tmp_path / "trash")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "characters" / "anna"


def create(store, character_id="anna", trigger="nnxq"):
    made = Character(
        id=character_id,
        name=character_id.title(),
        trigger=trigger,
        class_word="woman",
        created_at=1,
        updated_at=1,
    )
    return store.create(lambda ids, triggers: made)


def add(store, seed=0, caption="[trigger]"):
    pixels = picture(seed)
    sha256 = pixel_hash(pixels)
    image = ReferenceImage(
        id=sha256[:16],
        sha256=sha256,
        dhash=difference_hash(pixels),
        width=96,
        height=80,
        filename=f"{seed}.jpg",
        added_at=2,
        caption=caption,
    )
    store.add_image("anna", image, pixels)
    return image


def kinds(store):
    return {finding.kind: finding for finding in store.findings("anna")}


def test_a_character_is_read_back_with_its_images_and_captions(store):
    character = create(store)
    image = add(store)
    assert store.get("anna") == character.model_copy(update={"images": (image,), "updated_at": 2})
    assert store.scan() == ((store.get("anna"),), ())


def test_the_folder_is_what_every_trainer_reads(store, folder):
    create(store)
    image = add(store, caption="[trigger] smiles")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == ["character.json", f"images/{image.id}.png", f"images/{image.id}.txt"]
    assert (folder / "images" / f"{image.id}.txt").read_text() == "[trigger] smiles"
    assert "caption" not in (folder / "character.json").read_text()


@pytest.mark.parametrize("character_id", ["bob", "../characters/anna", "", "..", ".", "ANNA"])
def test_an_unknown_id_is_refused_with_those_that_exist(store, character_id):
    create(store)
    with pytest.raises(NotFound, match="there are: anna"):
        store.get(character_id)


def test_the_same_pixels_are_kept_once(store):
    create(store)
    add(store)
    with pytest.raises(ImageRefused, match=r"there already, as '0.jpg'"):
        add(store)
    assert len(store.get("anna").images) == 1


def test_any_change_makes_another_version(store):
    versions = [store.version()]
    create(store)
    versions.append(store.version())
    image = add(store)
    versions.append(store.version())
    store.set_captions("anna", lambda anna: {image.id: "at the sea"}, now=4)
    versions.append(store.version())
    store.update("anna", lambda anna: anna.model_copy(update={"notes": "new"}))
    versions.append(store.version())
    store.delete("anna", now=5)
    versions.append(store.version())
    assert len(set(versions[:-1])) == len(versions) - 1
    assert versions[-1] == versions[0] != versions[-2]


def test_a_change_by_a_machine_whose_clock_is_behind_makes_another_version(store, folder):
    create(store)
    os.utime(folder, (9e9, 9e9))
    before = store.version()
    os.utime(folder, (5, 5))
    assert store.version() != before


def test_a_character_that_is_there_already_is_never_replaced(store, folder):
    create(store)
    with pytest.raises(Conflict, match="'anna' was made by another program just now"):
        create(store, trigger="other")
    assert store.get("anna").trigger == "nnxq"


def test_a_trigger_belongs_to_one_character(store):
    create(store)
    with pytest.raises(Conflict, match=r"'NNXQ' belongs to 'anna' already; take another, such as"):
        create(store, "bob", "NNXQ")
    create(store, "bob", "bbxq")
    with pytest.raises(Conflict, match="belongs to 'anna'"):
        store.update("bob", lambda bob: bob.model_copy(update={"trigger": "nnxq"}))
    assert store.get("bob").trigger == "bbxq"


def test_captions_change_together_and_are_counted(store):
    create(store)
    one, two = add(store, 1, ""), add(store, 2, "kept")
    assert store.set_captions("anna", lambda anna: {one.id: "new", two.id: "kept"}, now=5) == 1
    assert [image.caption for image in store.get("anna").images] == ["new", "kept"]
    assert store.get("anna").updated_at == 5
    assert store.set_captions("anna", lambda anna: {one.id: "new"}, now=9) == 0
    assert store.get("anna").updated_at == 5


def test_a_removed_image_leaves_nothing(store, folder):
    create(store)
    image = add(store)
    assert store.remove_image("anna", image.id, now=7).images == ()
    assert list((folder / "images").iterdir()) == []
    with pytest.raises(NotFound, match="it has: none"):
        store.remove_image("anna", image.id, now=8)


def test_what_a_killed_process_left_is_cleaned_up_at_the_next_change(store, folder):
    create(store)
    image = add(store)
    leftovers = [folder / "images" / f"{image.id}.png.partial-1", folder / "character.json.partial-2"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    assert store.findings("anna") == ()
    add(store, 1)
    assert not any(leftover.exists() for leftover in leftovers)


def test_a_half_written_character_is_not_listed(store, folder):
    create(store)
    (folder.parent / "bob.partial-12").mkdir()
    assert [character.id for character in store.scan()[0]] == ["anna"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "is missing"),
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "damaged"),
        (b'{"id": "anna"}', "name is missing"),
        (b'{"id": "anna", "nmae": "Anna"}', "did you mean 'name'"),
    ],
)
def test_a_damaged_record_is_reported_and_hides_no_other_character(store, folder, record, reason):
    create(store)
    create(store, "bob", "bbxq")
    (folder / "character.json").unlink()
    if record is not None:
        (folder / "character.json").write_bytes(record)
    characters, damaged = store.scan()
    assert [character.id for character in characters] == ["bob"]
    assert [one.id for one in damaged] == ["anna"]
    assert reason in damaged[0].reason
    with pytest.raises(InvalidSpec, match="delete the character"):
        store.get("anna")


def test_a_renamed_folder_is_reported(store, folder):
    create(store)
    folder.rename(folder.parent / "eve")
    assert "has the id 'anna'" in store.scan()[1][0].reason


def test_a_damaged_character_can_be_deleted_and_purged(store, folder):
    create(store)
    (folder / "character.json").write_text("{")
    entry = store.delete("anna", now=0)
    assert (entry.character_id, entry.name, entry.images) == ("anna", "", 0)
    assert store.trashed() == (entry,)
    with pytest.raises(InvalidSpec, match="cannot be read"):
        store.restore(entry.id)
    store.purge(entry.id)
    assert store.trashed() == ()


def test_a_healthy_folder_has_no_findings(store):
    create(store)
    assert store.findings("anna") == ()
    add(store)
    assert store.findings("anna") == ()


def test_a_missing_picture_is_found(store, folder):
    create(store)
    image = add(store)
    (folder / "images" / f"{image.id}.png").unlink()
    finding = kinds(store)["image_missing"]
    assert (finding.images, finding.blocks) == ((image.id,), True)


@pytest.mark.parametrize("content", [b"", b"no png", "other size"])
def test_a_picture_changed_by_hand_is_found(store, folder, content):
    create(store)
    image = add(store)
    path = folder / "images" / f"{image.id}.png"
    if content == "other size":
        picture(0, (64, 64)).save(path)
    else:
        path.write_bytes(content)
    finding = kinds(store)["image_changed"]
    assert (finding.images, finding.blocks) == ((image.id,), True)


@pytest.mark.parametrize("content", [b"\xff\xff", b"a\x00b", "folder"])
def test_an_unreadable_caption_is_found_and_counts_as_empty(store, folder, content):
    create(store)
    image = add(store)
    path = folder / "images" / f"{image.id}.txt"
    path.unlink()
    if content == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    assert kinds(store)["caption_damaged"].images == (image.id,)
    assert store.get("anna").images[0].caption == ""


def test_a_missing_caption_file_is_an_empty_caption(store, folder):
    create(store)
    image = add(store)
    (folder / "images" / f"{image.id}.txt").unlink()
    assert store.get("anna").images[0].caption == ""
    assert store.findings("anna") == ()


def test_files_that_belong_to_nothing_are_found(store, folder):
    create(store)
    add(store)
    for number in range(6):
        (folder / "images" / f"mine-{number}.jpg").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"")
    assert "6 files" in kinds(store)["extra_files"].text
    assert "mine-4.jpg, ..." in kinds(store)["extra_files"].text


def test_a_deleted_character_comes_back_whole(store, tmp_path):
    create(store)
    add(store)
    before = store.get("anna")
    entry = store.delete("anna", now=1_700_000_000.5)
    assert entry.id == "20231114T221320Z-anna"
    assert (entry.name, entry.images, entry.deleted_at) == ("Anna", 1, 1_700_000_000)
    assert (tmp_path / "trash" / entry.id).is_dir()
    assert store.scan() == ((), ())
    assert store.restore(entry.id) == before
    assert store.get("anna") == before
    assert store.trashed() == ()


def test_two_deletions_in_one_second_are_two_entries(store):
    entries = []
    for _ in range(2):
        create(store)
        entries.append(store.delete("anna", now=100).id)
    assert [entry.id for entry in store.trashed()] == entries[::-1]


def test_a_taken_id_or_trigger_stops_the_restoration_until_another_is_given(store):
    create(store)
    entry = store.delete("anna", now=0)
    create(store)
    with pytest.raises(Conflict, match="the id 'anna' exists; restore as another, such as 'anna-2'"):
        store.restore(entry.id)
    with pytest.raises(Conflict, match="'nnxq' belongs to 'anna' already"):
        store.restore(entry.id, character_id="anna-2")
    restored = store.restore(entry.id, character_id="anna-2", trigger="nnzq")
    assert store.get("anna-2") == restored
    assert restored.trigger == "nnzq"


def test_a_restoration_under_a_bad_id_is_refused(store):
    create(store)
    entry = store.delete("anna", now=0)
    with pytest.raises(InvalidSpec, match="id:"):
        store.restore(entry.id, character_id="../anna")


@pytest.mark.parametrize("entry_id", ["anna", "..", "../characters/anna"])
def test_only_what_lies_in_the_trash_is_purged_or_restored(store, folder, entry_id):
    create(store)
    for act in (store.purge, store.restore):
        with pytest.raises(NotFound, match="it holds: nothing"):
            act(entry_id)
    assert folder.is_dir()


def test_a_strange_folder_in_the_trash_is_listed(store, tmp_path):
    (tmp_path / "trash" / "odd").mkdir(parents=True)
    (entry,) = store.trashed()
    assert (entry.id, entry.character_id, entry.images) == ("odd", "", 0)


def test_changes_from_many_threads_lose_nothing(store):
    create(store)
    threads = [threading.Thread(target=add, args=(store, seed)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.get("anna").images) == 6


def test_a_lock_that_is_never_released_ends_in_plain_words(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_TIMEOUT_S", 0.01)
    store = CharacterStore(characters_dir=tmp_path, trash_dir=tmp_path / "trash")
    with FileLock(tmp_path / ".lock"), pytest.raises(Conflict, match="another program has been changing"):
        create(store)


def test_a_new_character_gets_to_know_what_is_taken(store):
    create(store)
    create(store, "bob", "bbxq")
    store.delete("bob", now=0)
    seen = []

    def make(ids, triggers):
        seen.append((ids, triggers))
        return Character(id="eve", name="Eve", trigger="vxq", class_word="woman", created_at=0, updated_at=0)

    store.create(make)
    assert seen == [({"anna", "bob"}, {"nnxq"})]


def test_the_record_is_plain_json(store, folder):
    create(store)
    assert json.loads((folder / "character.json").read_text())["trigger"] == "nnxq"


@pytest.mark.parametrize("way", ["the image", "the character"])
def test_what_is_kept_of_looks_goes_with_the_image(tmp_path, way):
    cache = tmp_path / "cache"
    store = CharacterStore(
        characters_dir=tmp_path / "characters", trash_dir=tmp_path / "trash", forget=partial(forget, cache)
    )
    create(store)
    image = add(store)
    kept = [cache / folder / "faces" / f"{name}.json" for folder in FOLDERS for name in (image.id, "other")]
    for file in kept:
        write_text(file, "[]")
    if way == "the image":
        store.remove_image("anna", image.id, now=2.0)
    else:
        store.purge(store.delete("anna", now=2.0).id)
    assert [file.stem for file in kept if file.exists()] == ["other", "other"]
