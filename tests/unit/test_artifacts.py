"""LoRAs and images on disk."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from isengard.domain.generation import ImageSpec, LoraRef
from isengard.errors import ImageRefused, NotFound
from isengard.store.artifacts import Images, Loras, read_settings, slug

SPEC = ImageSpec(base_model="demo", prompt="a photo of [trigger]", width=64, height=96, seed=7, count=3)


@pytest.fixture
def loras(tmp_path, clock):
    return Loras(
        loras_dir=tmp_path / "loras", runs_dir=tmp_path / "runs", trash_dir=tmp_path / "trash", clock=clock
    )


@pytest.fixture
def images(tmp_path, clock):
    return Images(images_dir=tmp_path / "images", trash_dir=tmp_path / "trash", clock=clock)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "trained.safetensors"
    save_file({"x": np.zeros(1)}, path, {"sshs_model_hash": "abcdef0123456789"})
    return path


def add(loras, source, lora_id="job1", **changes):
    facts = {
        "name": "Mira Vance",
        "character": "mira",
        "trigger": "ohwx",
        "class_word": "woman",
        "base_model": "demo",
        "steps": 300,
        "details": {"loss": 0.1},
    } | changes
    return loras.add(lora_id=lora_id, source=source, **facts)


def save(images, index=0, *, job_id="job9", loras=(), spec=SPEC):
    return images.add(
        Image.new("RGB", (spec.width, spec.height), "red"),
        job_id=job_id,
        index=index,
        spec=spec,
        prompt="a photo of ohwx",
        loras=loras,
        seed=spec.seed + index,
        seconds=1.23456,
    )


def test_an_added_lora_is_a_folder_of_its_own_with_a_readable_file_name(loras, source, tmp_path):
    lora = add(loras, source)
    assert loras.get("job1") == lora
    assert loras.path(lora) == tmp_path / "loras" / "job1" / "mira-vance.safetensors"
    assert loras.path(lora).read_bytes() == source.read_bytes()


def test_adding_twice_replaces(loras, source, tmp_path):
    add(loras, source)
    add(loras, source, name="Other")
    assert [lora.name for lora in loras.list()] == ["Other"]
    files = sorted(path.name for path in (tmp_path / "loras" / "job1").iterdir())
    assert files == ["lora.json", "other.safetensors"]


def test_what_a_killed_process_left_is_not_listed_and_is_removed(loras, source, tmp_path):
    leftover = tmp_path / "loras" / "job0.partial-12345678"
    leftover.mkdir(parents=True)
    assert loras.list() == ()
    add(loras, source)
    assert not leftover.exists()


def test_loras_are_listed_newest_first_and_by_character(loras, source, clock):
    add(loras, source, "job1")
    clock.now += 1
    add(loras, source, "job2", character="bo")
    assert [lora.id for lora in loras.list()] == ["job2", "job1"]
    assert [lora.id for lora in loras.list(character="mira")] == ["job1"]


@pytest.mark.parametrize("lora_id", ["nobody", "../job1", "", "a/b"])
def test_an_unknown_lora_is_answered_with_those_there_are(loras, source, lora_id):
    with pytest.raises(NotFound, match="known: none yet"):
        loras.get(lora_id)
    add(loras, source)
    with pytest.raises(NotFound, match="known: job1"):
        loras.get(lora_id)


def test_a_damaged_record_hides_only_its_own_lora(loras, source, tmp_path):
    for lora_id in ("job1", "job2", "job3", "job4"):
        add(loras, source, lora_id)
    (tmp_path / "loras" / "job1" / "lora.json").write_text("{")
    (tmp_path / "loras" / "job2" / "lora.json").write_text(json.dumps({"id": "job2"}))
    (tmp_path / "loras" / "job3" / "mira-vance.safetensors").unlink()
    assert [lora.id for lora in loras.list()] == ["job4"]
    for lora_id in ("job1", "job2", "job3"):
        with pytest.raises(NotFound, match=rf"LoRA '{lora_id}' is damaged: .*lora\.json.*from a backup"):
            loras.get(lora_id)


@pytest.mark.parametrize(
    "value", ["../../secret.safetensors", "/etc/passwd", "..", "a/b.safetensors", "x.pt"]
)
def test_a_record_that_names_a_file_elsewhere_is_none(loras, source, tmp_path, value):
    add(loras, source)
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    file = tmp_path / "loras" / "job1" / "lora.json"
    whole = json.loads(file.read_text())
    for field in ("id", "filename"):
        file.write_text(json.dumps(whole | {field: value}))
        assert loras.list() == ()
        with pytest.raises(NotFound):
            loras.resolve(LoraRef(lora="job1"))


def test_a_removed_lora_goes_to_the_trash_also_twice_in_a_second(loras, source, tmp_path):
    for _ in range(2):
        add(loras, source)
        loras.remove("job1")
    assert loras.list() == ()
    assert [path.name for path in sorted((tmp_path / "trash").iterdir())] == [
        "19700101T001640Z-job1",
        "19700101T001641Z-job1",
    ]


def test_a_reference_resolves_to_the_file_and_its_words(loras, source):
    lora = add(loras, source)
    found = loras.resolve(LoraRef(lora="job1", strength=0.8))
    assert (found.path, found.strength) == (loras.path(lora), 0.8)
    assert (found.trigger, found.class_word) == ("ohwx", "woman")


def test_a_step_resolves_to_the_checkpoint_of_the_run(loras, source, tmp_path):
    add(loras, source)
    with pytest.raises(NotFound, match="no checkpoint of step 250 \\(there are: none\\)"):
        loras.resolve(LoraRef(lora="job1", step=250))
    folder = tmp_path / "runs" / "job1" / "checkpoints" / "step-00000250"
    folder.mkdir(parents=True)
    (folder / "lora.safetensors").write_bytes(b"x")
    assert loras.resolve(LoraRef(lora="job1", step=250)).path == folder / "lora.safetensors"
    with pytest.raises(NotFound, match="step 99 \\(there are: 250\\)"):
        loras.resolve(LoraRef(lora="job1", step=99))


def test_a_saved_image_holds_how_it_was_made(images, loras, source):
    add(loras, source)
    saved = save(images, 1, loras=[loras.resolve(LoraRef(lora="job1", strength=0.8))])
    assert saved.id == "job9-1"
    assert images.get("job9-1") == saved
    assert saved.record.loras[0].hash == "abcdef012345"
    with Image.open(saved.path) as file:
        assert file.text["parameters"] == (
            "a photo of ohwx <lora:Mira Vance:0.8>\n"
            "Steps: 28, Sampler: Euler, CFG scale: 3.5, Seed: 8, Size: 64x96, Model: demo,"
            ' Lora hashes: "Mira Vance: abcdef012345", Version: isengard 0.1.0'
        )
        assert str(saved.path.parent) not in str(file.text)


def test_a_lora_whose_file_cannot_be_read_has_no_hash(images, loras, source):
    lora = add(loras, source)
    ref = loras.resolve(LoraRef(lora="job1"))
    loras.path(lora).write_bytes(b"broken")
    assert save(images, loras=[ref]).record.loras[0].hash == ""


def test_our_settings_make_this_very_image_again(images):
    saved = save(images, 2)
    found = read_settings(saved.path)
    assert (found.origin, found.unmapped) == ("isengard", ())
    assert ImageSpec(**found.settings) == SPEC.model_copy(update={"seed": 9, "count": 1})


def test_saving_the_same_image_twice_gives_one_file(images, tmp_path):
    save(images)
    save(images)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["job9-0.png"]


def test_images_are_listed_newest_first_without_strangers(images, tmp_path):
    assert images.list() == ()
    for index in range(3):
        save(images, index)
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "holiday.png")
    assert [saved.id for saved in images.list()] == ["job9-2", "job9-1", "job9-0"]
    assert [saved.id for saved in images.list(limit=1)] == ["job9-2"]


def test_images_of_a_job_come_in_its_order(images):
    for index in (10, 2):
        save(images, index)
    save(images, 0, job_id="job9-1")
    assert [saved.record.index for saved in images.of_job("job9")] == [2, 10]


def test_the_images_a_job_has_kept_are_those_under_its_names(images, tmp_path):
    assert images.kept("job9", count=3) == ()
    for index in (0, 2, 3):
        save(images, index)
    assert [saved.record.index for saved in images.kept("job9", count=3)] == [0, 2]


def test_a_removed_image_goes_to_the_trash(images, tmp_path):
    save(images)
    images.remove("job9-0")
    with pytest.raises(NotFound, match="no image 'job9-0'"):
        images.get("job9-0")
    with pytest.raises(NotFound):
        images.get("../job9-0")
    assert [path.name for path in (tmp_path / "trash").iterdir()] == ["19700101T001640Z-job9-0.png"]


def test_a_picture_without_settings_says_so(tmp_path):
    path = tmp_path / "holiday.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ImageRefused, match="holds no settings"):
        read_settings(path)


@pytest.mark.parametrize(("name", "expected"), [("Mira Vance", "mira-vance"), ("Ωß", "lora"), ("../x", "x")])
def test_names_become_safe_file_names(name, expected):
    assert slug(name) == expected


def test_the_checkpoints_of_a_run_are_listed_by_step(loras, source, tmp_path):
    add(loras, source)
    for step in (250, 50):
        folder = tmp_path / "runs" / "job1" / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "lora.safetensors").touch()
    (tmp_path / "runs" / "job1" / "checkpoints" / "step-00000300").mkdir()
    assert loras.checkpoints("job1") == (50, 250)
    assert loras.checkpoints("unknown") == ()


def test_a_file_that_changed_or_went_is_noticed(images, tmp_path):
    facts = {"job_id": "j", "index": 0, "spec": SPEC, "loras": (), "seed": 7, "seconds": 1}
    saved = images.add(Image.new("RGB", (64, 96)), prompt="one", **facts)
    assert [one.record.prompt for one in images.list(limit=None)] == ["one"]
    images.add(Image.new("RGB", (64, 96)), prompt="two", **facts)
    os.utime(saved.path, ns=(5, 5))
    assert [one.record.prompt for one in images.list(limit=None)] == ["two"]
    saved.path.unlink()
    assert images.list() == ()


def test_another_file_of_the_same_time_is_noticed(images):
    facts = {"job_id": "j", "index": 0, "spec": SPEC, "loras": (), "seed": 7, "seconds": 1}
    for prompt in ("one", "two"):
        os.utime(images.add(Image.new("RGB", (64, 96)), prompt=prompt, **facts).path, ns=(5, 5))
        assert [one.record.prompt for one in images.list()] == [prompt]


def test_a_folder_that_is_not_there_yet_is_empty(tmp_path):
    assert Images(images_dir=tmp_path / "none", trash_dir=tmp_path).list() == ()
