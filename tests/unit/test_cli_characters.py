import json
import logging

import pytest
from typer.testing import CliRunner

from isengard.cli import app
from tests.unit.character_pictures import encoded, picture, write


@pytest.fixture
def run(tmp_path):
    handlers = logging.getLogger().handlers[:]

    def run(*arguments, expect=0, answer=None):
        command = ["--data-dir", str(tmp_path / "data"), "characters", *map(str, arguments)]
        result = CliRunner().invoke(app, command, input=answer, env={"COLUMNS": "200"})
        assert result.exit_code == expect, (result.output, result.exception)
        return result

    yield run
    for handler in logging.getLogger().handlers:
        if handler not in handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


@pytest.fixture
def photos(tmp_path):
    paths = [write(tmp_path / "in", f"{seed}.jpg", encoded(picture(seed), "JPEG")) for seed in range(2)]
    return [*paths, write(tmp_path / "in", "0.txt", b"[trigger] by the sea")]


@pytest.fixture
def anna(run, photos):
    run("create", "Anna Smith", "--class-word", "woman")
    run("add", "anna-smith", *photos)
    return "anna-smith"


def shown(run, name="anna-smith"):
    return json.loads(run("show", name, "--json").stdout)


def test_help_shows_the_placeholders_and_the_way(run):
    assert "[trigger]" in run("--help").output
    assert "[trigger], [caption]" in run("caption", "--help").output


def test_create_prints_the_id_for_scripts_and_the_next_step_for_people(run):
    result = run("create", "Anna Smith")
    assert result.stdout == "anna-smith\n"
    assert "trigger word: nnsxq; now add photos: characters add anna-smith FILES" in result.stderr
    assert json.loads(run("create", "Bob", "--trigger", "bbxq", "--json").stdout)["trigger"] == "bbxq"


def test_what_tells_a_character_apart_is_chosen_and_left_to_its_photos(run, anna):
    assert (
        "told apart by: drawn figures, as you chose" in run("edit", anna, "--scorer", "drawn_figures").stdout
    )
    assert shown(run)["scorer"] == "drawn_figures"
    assert "told apart by: look, as the photos suggest" in run("edit", anna, "--scorer", "automatic").stdout
    assert shown(run)["scorer"] is None
    refused = run("edit", anna, "--scorer", "palm", expect=1)
    assert "scorer: must be 'faces', 'drawn_figures' or 'look', got 'palm'" in refused.stderr


def test_a_common_trigger_is_taken_with_a_warning(run):
    assert "careful: the trigger 'woman' is a common word" in run("create", "X", "--trigger", "woman").stderr


def test_a_refused_value_ends_with_one_line_and_exit_code_1(run):
    result = run("create", "Anna", "--trigger", "two words", expect=1)
    assert result.stderr.startswith("error: trigger: must be one word")
    assert "there is no character 'nobody'" in run("show", "nobody", expect=1).stderr


def test_the_list_shows_characters_and_damage(run, anna, tmp_path):
    (tmp_path / "data" / "characters" / "odd").mkdir()
    result = run("list")
    assert "anna-smith" in result.stdout
    assert "damaged: odd:" in result.stderr
    listed = json.loads(run("list", "--json").stdout)
    assert [(one["id"], one["images"]) for one in listed["characters"]] == [("anna-smith", 2)]
    assert listed["damaged"][0]["id"] == "odd"


def test_an_empty_list_says_how_to_begin(run):
    assert "no characters yet" in run("list").stdout
    assert "the trash is empty" in run("trash").stdout


def test_show_tells_of_images_captions_and_readiness(run, anna):
    run("edit", anna, "--notes", "likes [hats]")
    text = run("show", anna).stdout
    for part in (
        "Anna Smith (anna-smith)",
        "[hats]",
        "96 x 80",
        "[trigger] by the sea",
        "without a caption: ready",
    ):
        assert part in text
    found = shown(run)
    assert found["readiness"]["ready"] is True
    assert found["images"][0]["caption"] == "[trigger] by the sea"
    run("create", "Bob")
    assert "0 images: not ready" in run("show", "bob").stdout


def test_edit_changes_and_says_so(run, anna):
    assert (
        run("edit", anna, "--name", "Anne", "--trigger", "nnzzq").stdout == "Anne (anna-smith): nnzzq woman\n"
    )


def test_add_tells_of_each_refused_file_and_succeeds_with_the_others(run, photos, tmp_path):
    run("create", "Anna Smith")
    bad = write(tmp_path, "bad[red].png", b"<html>")
    small = write(tmp_path, "copy.png", encoded(picture(0)))
    result = run("add", "anna-smith", *photos, bad, small, "--model", "demo")
    assert "refused bad[red].png: the file is a web page" in result.stderr
    assert "copy.png: looks nearly like 0.jpg" in result.stderr
    assert "96 x 80 is under the model's 128 pixels" in result.stderr
    assert result.stdout == "3 added, 1 refused\n"


def test_add_ends_with_1_when_nothing_was_taken(run, anna, tmp_path):
    bad = write(tmp_path, "bad.png", b"")
    result = run("add", anna, bad, "--json", expect=1)
    assert json.loads(result.stdout)["refused"] == [
        {"filename": "bad.png", "reason": "the file is empty (0 bytes)"}
    ]
    assert run("add", anna, tmp_path / "none.png", expect=1).stdout == "0 added, 1 refused\n"


def test_captions_by_command(run, anna):
    image = shown(run)["images"][1]["id"]
    assert run("caption", anna, "a [class]", "--only-empty").stdout == "1 captions written\n"
    assert run("caption", anna, "[trigger], [caption]").stdout == "2 captions written\n"
    assert run("replace", anna, "sea", "lake").stdout == "1 captions changed\n"
    captions = [image["caption"] for image in shown(run)["images"]]
    assert captions == ["[trigger], [trigger] by the lake", "[trigger], a [class]"]
    run("caption", anna, "alone", "--image", image)
    assert shown(run)["images"][1]["caption"] == "alone"


def test_removing_images_asks_first(run, anna):
    image = shown(run)["images"][0]["id"]
    run("remove", anna, image, answer="n\n", expect=1)
    assert len(shown(run)["images"]) == 2
    run("remove", anna, image, "--yes")
    assert len(shown(run)["images"]) == 1


def test_delete_and_restore(run, anna):
    entry = run("delete", anna).stdout.strip()
    assert [one["id"] for one in json.loads(run("trash", "--json").stdout)] == [entry]
    assert entry in run("trash").stdout
    run("create", "Eve", "--trigger", "nnsxq")
    assert "belongs to 'eve'" in run("restore", entry, expect=1).stderr
    assert run("restore", entry, "--trigger", "nnsxw", "--new-id", "anna").stdout == "anna\n"
    assert shown(run, "anna")["trigger"] == "nnsxw"


def test_purge_asks_and_is_for_good(run, anna):
    run("delete", anna)
    run("purge", expect=2)
    run("purge", anna, "--all", expect=2)
    run("purge", anna, answer="n\n", expect=1)
    assert run("purge", anna, answer="y\n").stdout.endswith("1 character deleted\n")
    run("create", "Bob")
    run("delete", "bob")
    assert run("purge", "--all", "--yes").stdout == "1 characters deleted\n"


def test_export_writes_a_zip(run, anna, tmp_path):
    path = tmp_path / "anna.zip"
    assert run("export", anna, path, "--resolve").stdout == f"{path}\n"
    run("create", "Copy")
    run("add", "copy", path)
    assert shown(run, "copy")["images"][0]["caption"] == "nnsxq by the sea"
