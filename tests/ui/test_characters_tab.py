"""The characters tab without a browser: what it shows, and what its scripts and buttons do."""

import os
import re
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import unquote

import gradio as gr
import pytest
import yaml

from isengard.domain.character import AddedImage
from isengard.domain.identity import ScorerKind
from isengard.errors import Conflict, InvalidSpec, NotFound
from isengard.services.examples import add_examples
from isengard.services.machine import Machine
from isengard.settings import ASSETS, Settings
from isengard.wiring import build
from tabs import characters, characters_view
from tabs.characters_changes import Changes, answering
from tabs.characters_intake import Intakes, safe_name
from tabs.characters_roster import OLD_S, Reader
from tabs.common import WEB, Page, words
from tabs.pictures import Pictures
from tests.unit.character_pictures import encoded, picture, write, zipped
from tests.waiting import PATIENCE_S


@pytest.fixture
def page(tmp_path):
    settings = Settings(data_dir=tmp_path / "data", device="cpu")
    pictures = Pictures(folder=settings.cache_dir / "pictures", gallery=settings.images_dir)
    return Page(app=build(settings), machine=Machine(device="cpu"), pictures=pictures)


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """The folder that Gradio puts uploads into."""
    folder = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder


@pytest.fixture
def changes(page):
    return Changes(page.app, Reader(page.app))


@pytest.fixture
def mira(page, tmp_path):
    """A character with two pictures that look alike, another, and one caption."""
    character = page.app.characters.create("Mira", trigger="mrxq", class_word="woman")
    files = [
        write(tmp_path / "photos", "first.png", encoded(picture(1, (400, 500)))),
        write(tmp_path / "photos", "first.txt", b"a photo of [trigger] in a park"),
        write(tmp_path / "photos", "twin.png", encoded(picture(1, (320, 400)))),
        write(tmp_path / "photos", "other.png", encoded(picture(2, (96, 100)))),
    ]
    assert all(isinstance(each, AddedImage) for each in page.app.characters.add_files(character.id, files))
    return character.id


def now(page):
    return Reader(page.app).read(fresh=True)


def uploaded_file(uploads, name, content):
    return write(uploads / "abc", name, content)


def names_of(page, character_id):
    return [image.filename for image in page.app.characters.get(character_id).images]


def end_of(changes, answer):
    """The whole result of an upload."""
    results = list(answer["results"])
    while not answer["done"]:
        answer = changes.more(answer["intake"], len(results))
        results += answer["results"]
    return results, answer["error"]


# What is shown


def test_without_characters_nothing_is_chosen_and_the_head_is_empty(page):
    painted = characters.paint(page, Reader(page.app), "", "")
    assert painted[:3] == ["", [], {}]
    assert characters_view.grid(page, now(page), "") == {"character": "", "images": []}


def test_an_unknown_character_of_a_link_gives_way_to_the_first(page, mira):
    assert characters_view.present(now(page), "nobody") == mira


def test_a_card_has_name_count_picture_and_badge(page, mira):
    page.app.characters.create("Zoe", trigger="zxqv")
    first, second = characters_view.cards(page, now(page), mira)
    assert (first["name"], first["count"], first["badge"], first["chosen"]) == (
        "Mira",
        "3 images",
        "ready",
        True,
    )
    assert first["picture"].startswith("/gradio_api/file=")
    assert (second["count"], second["badge"], second["picture"]) == ("0 images", "draft", "")


def test_a_character_that_is_being_trained_says_so(page, mira):
    page.app.training.submit(character_id=mira, base_model="demo", preset="quick", overrides={})
    assert characters_view.cards(page, now(page), mira)[0]["badge"] == "queued"
    page.app.queue.claim("w1", lease_s=60)
    assert characters_view.cards(page, now(page), mira)[0]["badge"] == "training"


def test_a_damaged_character_is_shown_with_its_reason_and_hides_no_other(page, mira):
    write(page.app.settings.characters_dir / "broken", "character.json", b"{")
    whole, damaged = characters_view.cards(page, now(page), "broken")
    assert whole["id"] == mira
    assert damaged["badge"] == "damaged"
    assert "character.json cannot be read" in damaged["count"]
    head = characters_view.heading(now(page), "broken")
    assert head["damaged"]
    assert "repair the file" in head["findings"][0]["text"]


def test_the_head_tells_the_words_and_how_ready_the_character_is(page, mira):
    head = characters_view.heading(now(page), mira)
    assert (head["name"], head["trigger"], head["class_word"], head["ready"]) == (
        "Mira",
        "mrxq",
        "woman",
        True,
    )
    assert head["summary"] == "3 images, 2 without a caption, 1 near duplicate"
    assert not [finding for finding in head["findings"] if finding["blocks"]]


def test_what_keeps_a_training_from_starting_comes_first(page, mira):
    image = page.app.characters.get(mira).images[0]
    page.app.characters.image_path(mira, image.id).unlink()
    findings = characters_view.heading(now(page), mira)["findings"]
    assert [finding["blocks"] for finding in findings] == sorted(
        (finding["blocks"] for finding in findings), reverse=True
    )
    assert "missing" in findings[0]["text"]


def test_each_picture_has_its_own_flags(page, mira):
    shown = {image["name"]: image for image in characters_view.grid(page, now(page), mira)["images"]}
    kinds = {name: [flag["kind"] for flag in image["flags"]] for name, image in shown.items()}
    assert kinds == {
        "first.png": ["near_duplicates"],
        "twin.png": ["near_duplicates", "no_caption"],
        "other.png": ["no_caption", "small"],
    }
    assert shown["first.png"]["caption"] == "a photo of [trigger] in a park"


def test_a_picture_that_is_none_any_more_has_no_address(page, mira):
    image = page.app.characters.get(mira).images[0]
    page.app.characters.image_path(mira, image.id).write_bytes(b"no picture")
    (first, *_) = characters_view.grid(page, now(page), mira)["images"]
    assert first["picture"] == ""
    assert "image_changed" in [flag["kind"] for flag in first["flags"]]


def test_viewers_share_one_reading_and_who_changes_something_sees_the_truth(page, mira):
    clock = [0.0]
    reader = Reader(page.app, clock=lambda: clock[0])
    first = reader.read(fresh=False)
    page.app.characters.edit(mira, name="Mira Two")
    assert reader.read(fresh=False) is first
    assert reader.read(fresh=True).known[mira][0].name == "Mira Two"
    page.app.characters.edit(mira, name="Mira Three")
    clock[0] += OLD_S + 0.1
    assert reader.read(fresh=False).known[mira][0].name == "Mira Three"


def test_the_fields_are_filled_again_only_when_the_record_has_changed(page, mira):
    first = characters.paint(page, Reader(page.app), mira, "")
    assert first[7:12] == ["Mira", "mrxq", "woman", "", ""]
    again = characters.paint(page, Reader(page.app), mira, first[12])
    assert all(value["__type__"] == "update" for value in again[7:12])
    page.app.characters.edit(mira, name="Mira Two", scorer="look")
    assert characters.paint(page, Reader(page.app), mira, first[12])[7:12:4] == ["Mira Two", "look"]


# What is done


def test_a_trigger_is_suggested_until_one_is_typed(changes):
    word, suggested = changes.suggest("Tess", "", "")
    assert word == suggested != ""
    assert changes.suggest("Tessa", word, suggested)[0].startswith("tss")
    assert changes.suggest("Tessa", "mine", suggested) == ("mine", suggested)


def test_a_common_trigger_is_warned_of(changes):
    assert "common word" in changes.warn("woman")
    assert changes.warn("qxzv") == ""


def test_a_created_character_is_there(page, changes):
    character_id = changes.create("Anna-Lena", "woman", "")
    character = page.app.characters.get(character_id)
    assert (character.name, character.class_word) == ("Anna-Lena", "woman")
    assert character.trigger


def test_edit_changes_the_record(page, changes, mira):
    changes.edit(mira, "Mira Two", "mzzq", "person", "red hair", "faces")
    character = page.app.characters.get(mira)
    assert (character.name, character.trigger, character.notes) == ("Mira Two", "mzzq", "red hair")
    assert character.scorer is ScorerKind.FACES
    with pytest.raises(InvalidSpec, match="one word"):
        changes.edit(mira, "Mira", "two words", "person", "", "")


def test_what_the_photos_suggest_is_said_whatever_is_chosen(page, changes, mira):
    page.app.characters.edit(mira, scorer="drawn_figures")
    assert changes.suggested(mira) == {"scorer": "look"}
    assert changes.suggested("") == {}


def test_a_caption_is_kept_and_its_flags_come_back(page, changes, mira):
    other = page.app.characters.get(mira).images[2]
    answer = answering(changes.caption)({"character": mira, "image": other.id, "text": "at the [sea]"})
    assert [flag["kind"] for flag in answer["flags"]] == ["no_trigger", "unknown_placeholder", "small"]
    assert page.app.characters.get(mira).images[2].caption == "at the [sea]"


def test_a_refused_caption_says_why(changes, mira):
    answer = answering(changes.caption)({"character": mira, "image": "0" * 16, "text": "<b>"})
    assert answer["error"].startswith("'mira' has no image")


def test_a_script_that_sends_nonsense_is_told_so(changes):
    assert "error" in answering(changes.caption)(["no", "mapping"])


def test_removing_an_image_forgets_it(page, changes, mira):
    changes.remove_image(mira, page.app.characters.get(mira).images[1].id)
    assert names_of(page, mira) == ["first.png", "other.png"]


def test_caption_tools_change_all_captions(page, changes, mira):
    changes.caption_all(mira, "[trigger] [class], [caption]", only_empty=True)
    changes.replace(mira, "park", "garden")
    captions = [image.caption for image in page.app.characters.get(mira).images]
    assert captions == ["a photo of [trigger] in a garden", "[trigger] [class]", "[trigger] [class]"]
    with pytest.raises(InvalidSpec, match="template is empty"):
        changes.caption_all(mira, "  ", only_empty=False)


def test_an_export_is_a_zip_at_an_address_that_cannot_be_guessed(page, changes, mira):
    path = Path(unquote(changes.export(mira, resolve=True).partition("file=")[2]))
    assert path.parent.parent == page.app.settings.exports_dir
    assert re.fullmatch(r"[0-9a-f]{32}/mira\.zip", f"{path.parent.name}/{path.name}")
    with zipfile.ZipFile(path) as archive:
        texts = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".txt")]
    assert texts == ["a photo of mrxq in a park", "mrxq woman", "mrxq woman"]


def test_an_old_export_is_removed_with_the_next_one(changes, mira, uploads):
    old, new = (Path(unquote(changes.export(mira, resolve=False).partition("file=")[2])) for _ in range(2))
    os.utime(old.parent, (0, 0))
    changes.export(mira, resolve=False)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_character_without_images_is_not_exported(changes, uploads):
    with pytest.raises(Conflict, match="add some first"):
        changes.export(changes.create("Zoe", "woman", "zxqv"), resolve=False)


def test_a_deleted_character_can_be_restored_and_deleted_for_good(page, changes, mira):
    changes.delete(mira)
    (entry,) = characters_view.trash(page.app)
    assert (entry["name"], entry["count"]) == ("Mira", "3 images")
    assert changes.restore(entry["id"]) == {"id": mira}
    changes.delete(mira)
    changes.purge(characters_view.trash(page.app)[0]["id"])
    assert characters_view.trash(page.app) == []


def test_a_question_answered_with_no_deletes_nothing(page, changes, mira):
    changes.delete("")
    assert [character.id for character in page.app.characters.list()] == [mira]


def test_restoring_with_a_taken_trigger_offers_a_free_one(page, changes, mira):
    changes.delete(mira)
    changes.create("Other", "woman", "mrxq")
    entry = page.app.characters.trashed()[0].id
    answer = changes.restore(entry)
    assert "belongs to 'other'" in answer["error"]
    assert changes.restore(entry, answer["trigger"]) == {"id": mira}


# Uploads


def test_an_upload_is_taken_under_the_name_the_user_knows(page, changes, mira, uploads):
    path = uploaded_file(uploads, "cleaned.png", encoded(picture(7)))
    answer = changes.take(mira, [{"path": str(path), "name": "Am See <1>.png"}])
    results, error = end_of(changes, answer)
    assert (results, error) == ([{"file": "Am See <1>.png", "added": True, "notes": []}], "")
    assert names_of(page, mira)[-1] == "Am See <1>.png"
    assert not path.exists()


def test_a_picture_is_taken_with_its_caption(page, changes, mira, uploads):
    files = [
        {"path": str(uploaded_file(uploads, "a.png", encoded(picture(7)))), "name": "IMG 7.png"},
        {"path": str(uploaded_file(uploads, "b.txt", b"on a [trigger] boat")), "name": "IMG 7.txt"},
    ]
    end_of(changes, changes.take(mira, files))
    assert page.app.characters.get(mira).images[-1].caption == "on a [trigger] boat"


def test_a_caption_that_comes_later_finds_its_picture_by_its_name(page, changes, mira):
    answer = answering(changes.describe)
    assert answer({"character": mira, "name": "OTHER.txt", "text": "by [trigger]"}) == {"captions": 1}
    assert page.app.characters.get(mira).images[2].caption == "by [trigger]"
    assert "nobody's caption" in answer({"character": mira, "name": "gone.txt", "text": "x"})["error"]


def test_near_duplicates_are_noted_and_broken_files_refused(changes, mira, uploads):
    entries = {"near.png": encoded(picture(2, (90, 95))), "bad.png": b"nothing"}
    uploads.mkdir()
    path = zipped(uploads / "all.zip", entries)
    results, _ = end_of(changes, changes.take(mira, [{"path": str(path), "name": "all.zip"}]))
    assert [(each["file"], each["added"]) for each in results] == [("near.png", True), ("bad.png", False)]
    assert "looks nearly like other.png" in results[0]["notes"][0]
    assert "no picture can be read" in results[1]["notes"][0]


def test_a_path_outside_the_uploads_is_refused(page, changes, mira, uploads, tmp_path):
    secret = write(tmp_path, "secret.png", encoded(picture(8)))
    answer = answering(changes.take)({"character": mira, "files": [{"path": str(secret), "name": "x.png"}]})
    assert answer == {"error": "This file was not uploaded here."}
    inside = uploads / "abc" / ".." / ".." / "secret.png"
    (uploads / "abc").mkdir(parents=True)
    with pytest.raises(gr.Error):
        changes.take(mira, [{"path": str(inside)}])
    assert secret.exists()
    assert len(names_of(page, mira)) == 3


def test_an_upload_for_nobody_is_refused(changes, uploads):
    path = uploaded_file(uploads, "a.png", encoded(picture(7)))
    with pytest.raises(NotFound):
        changes.take("nobody", [{"path": str(path), "name": "a.png"}])
    assert path.exists()


def test_no_file_is_refused(changes, mira):
    with pytest.raises(InvalidSpec, match="no file"):
        changes.take(mira, [])


def test_a_long_intake_answers_in_parts_and_goes_on_unasked(uploads):
    go_on = threading.Event()

    def slowly(character_id, paths):
        yield from_file(paths[0])
        go_on.wait(PATIENCE_S)
        yield from_file(paths[0])

    intakes = Intakes(slowly, wait_s=0.02)
    answer = intakes.start("mira", [(uploaded_file(uploads, "a.png", b"x"), "a.png")])
    while not answer["results"]:
        answer = intakes.look(answer["intake"], seen=0)
    assert not answer["done"]
    assert intakes.look(answer["intake"], seen=1)["results"] == []
    go_on.set()
    end = time.monotonic() + PATIENCE_S
    while not answer["done"] and time.monotonic() < end:
        answer = intakes.look(answer["intake"], seen=1)
    assert len(answer["results"]) == 1


def test_an_intake_that_breaks_says_so(uploads, caplog):
    def broken(character_id, paths):
        raise NotFound("the character is <gone>")
        yield

    intakes = Intakes(broken)
    answer = intakes.start("mira", [(uploaded_file(uploads, "a.png", b"x"), "a.png")])
    assert (answer["done"], answer["error"]) == (True, "the character is <gone>")


def test_an_unknown_intake_says_what_to_do():
    with pytest.raises(NotFound, match="send it again"):
        Intakes(lambda *_: iter(())).look("unknown", seen=0)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("IMG 1.jpg", "IMG 1.jpg"),
        ("../../etc/passwd", "passwd"),
        ("..", "instead.png"),
        ("", "instead.png"),
        (".hidden.png", "hidden.png"),
        ("a\0\nb.png", "ab.png"),
        ("ä" * 300 + ".jpeg", "ä" * 50 + ".jpeg"),
    ],
)
def test_a_name_from_a_browser_becomes_a_plain_file_name(given, kept):
    assert safe_name(given, "instead.png") == kept


def from_file(path):
    from isengard.domain.character import RefusedImage

    return RefusedImage(filename=path.name, reason="just so")


# Examples and labels


def test_examples_are_there_once_and_do_not_come_back(page):
    service, marker = page.app.characters, page.app.settings.data_dir / "examples.json"
    where = {"examples_dir": ASSETS / "characters", "marker": marker}
    names = add_examples(service, **where)
    assert names == ("marisol", "nova", "odin")
    for name in names:
        assert len(service.get(name).images) == 10
        service.delete(name)
    assert add_examples(service, **where) == ()
    assert service.list() == ()


def test_an_example_deleted_before_its_marker_was_written_stays_deleted(page):
    service = page.app.characters
    service.delete(service.create("Nova").id)
    added = add_examples(service, examples_dir=ASSETS / "characters", marker=page.app.settings.data_dir / "m")
    assert added == ("marisol", "odin")


def test_an_example_whose_trigger_is_taken_is_left_out(page):
    service = page.app.characters
    trigger = yaml.safe_load((ASSETS / "characters" / "nova" / "about.yaml").read_text())["trigger"]
    service.create("Mine", trigger=trigger)
    added = add_examples(service, examples_dir=ASSETS / "characters", marker=page.app.settings.data_dir / "m")
    assert added == ("marisol", "odin")
    assert {character.id for character in service.list()} == {"mine", "marisol", "odin"}


def test_both_languages_have_the_same_labels():
    english, german = (
        yaml.safe_load((WEB / "texts" / language / "characters.yaml").read_text(encoding="utf-8"))
        for language in ("en", "de")
    )
    assert english.keys() == german.keys()
    assert all(key.startswith("characters.") for key in english)


def test_every_flag_badge_and_state_has_words():
    said = words("characters")["en"]
    for kind in {*characters_view.FLAGS, "small"}:
        assert f"characters.say.flag.{kind}" in said
    for badge in ("ready", "training", "queued", "draft", "damaged"):
        assert f"characters.say.badge.{badge}" in said
