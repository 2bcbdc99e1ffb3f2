"""Images are measured against the characters whose LoRAs made them, and the best of them are kept."""

import random

import pytest

from isengard.domain.generation import ImageSpec
from isengard.domain.identity import ScorerKind
from isengard.domain.model import Family
from isengard.errors import JobCancelled
from isengard.handlers.generation import generate_images
from isengard.handlers.memory import MemoryBook
from isengard.queue.sqlite import SqliteQueue
from isengard.services.images import ImageService
from isengard.services.machine import Machine
from isengard.services.planning import Planning
from isengard.services.room import Room
from isengard.settings import ASSETS, ROOT
from isengard.store.artifacts import Images, Loras
from isengard.store.characters import CharacterStore
from isengard.store.configs import Catalog
from isengard.store.memory import Peaks
from isengard.store.weights import Weights
from isengard.wiring import open_scorer
from scripts.demo_model.draw import draw, random_look, random_person
from tests.engines.demo_model import Reports, likenesses, write_lora

PHOTOS, COUNT = 3, 3


@pytest.fixture
def images(tmp_path):
    return Images(images_dir=tmp_path / "images", trash_dir=tmp_path / "trash" / "images")


@pytest.fixture
def loras(tmp_path):
    kept = Loras(loras_dir=tmp_path / "loras", runs_dir=tmp_path / "runs", trash_dir=tmp_path / "trash")
    facts = {"trigger": "ohwx", "class_word": "woman", "base_model": "demo", "steps": 1, "details": {}}
    source = write_lora(tmp_path / "trained.safetensors").path
    kept.add(lora_id="job1", name="Mira", character="mira", source=source, **facts)
    return kept


@pytest.fixture
def measuring(tmp_path, loras):
    """What measures a job's images, with a scorer that the test may take the place of."""

    def made(scorers=open_scorer):
        return likenesses(tmp_path, loras, scorers)

    return made


@pytest.fixture
def mira(tmp_path, measuring):
    """A drawn person with three pictures; returns a function that says what tells her apart."""
    made = measuring()
    made.characters.create("Mira", trigger="ohwx")
    rng = random.Random(1)
    person = random_person(rng)
    for number in range(PHOTOS):
        draw(person, random_look(rng), size=256).save(tmp_path / f"{number}.png")
    assert len(list(made.characters.add_files("mira", sorted(tmp_path.glob("?.png"))))) == PHOTOS
    store = CharacterStore(characters_dir=tmp_path / "characters", trash_dir=tmp_path / "trash")

    def told_apart_by(kind):
        store.update("mira", lambda character: character.model_copy(update={"scorer": kind}))

    told_apart_by(ScorerKind.DRAWN_FIGURES)
    return told_apart_by


@pytest.fixture
def run(tmp_path, generator, images, loras, measuring):
    """Submit and run a request for images with Mira's LoRA; its job and its result."""
    queue, catalog = SqliteQueue(tmp_path / "jobs.db"), Catalog(ROOT / "configs")
    planning = Planning(machine=Machine(device="cpu").facts, corrections=Peaks(tmp_path / "memory.json").read)
    room = Room(queue=queue, catalog=catalog, folder=tmp_path, runs_dir=tmp_path / "runs")
    book = MemoryBook(planning=planning, peaks=Peaks(tmp_path / "memory.json"), reset=lambda: None)
    parts = {
        "catalog": catalog,
        "weights": Weights(models_dir=tmp_path / "models", assets_dir=ASSETS),
        "loras": loras,
        "images": images,
        "room": room,
    }
    service = ImageService(queue=queue, families=[Family.FLUX], planning=planning, **parts)

    def ran(job=None, *, reports=None, scorers=open_scorer, **changes):
        values = {
            "base_model": "demo", "prompt": "[trigger]", "width": 64, "height": 64, "num_inference_steps": 1,
            "count": COUNT, "loras": [{"lora": "job1"}],
        }  # fmt: skip
        job = job or service.submit(ImageSpec(**values | changes))
        result = generate_images(
            job,
            Reports() if reports is None else reports,
            generator=generator,
            runs_dir=tmp_path / "runs",
            memory=book,
            likenesses=measuring(scorers),
            **parts,
        )
        return job, result

    return ran


def cosines(saved):
    return {image.id: image.record.likeness[0].cosine for image in saved}


def test_an_image_says_in_its_file_how_much_it_looks_like_the_character(run, images, mira):
    job, result = run(count=1)
    (likeness,) = images.get(f"{job.id}-0").record.likeness
    assert (likeness.character, likeness.name, likeness.scorer) == ("mira", "Mira", ScorerKind.DRAWN_FIGURES)
    assert -1 <= likeness.cosine <= 1
    assert likeness.share == pytest.approx(likeness.cosine, abs=0.1)  # the ceiling of one person is nearly 1
    assert result["likeness"] == {f"{job.id}-0": [likeness.model_dump(mode="json")]}


def test_of_several_images_the_most_alike_are_kept_and_the_others_lie_in_the_trash(run, images, mira):
    job, result = run(keep_best=1)
    kept, left_out = cosines(images.of_job(job.id)), cosines(images.trashed(job.id))
    assert (list(kept), list(left_out)) == (result["images"], result["left_out"])
    assert (len(kept), len(left_out)) == (1, COUNT - 1)
    assert max(left_out.values()) <= min(kept.values())


def test_what_was_left_out_can_be_brought_back(run, images, mira):
    job, result = run(keep_best=1)
    for image_id in result["left_out"] * 2:  # pressed twice
        images.restore(image_id)
    assert len(images.of_job(job.id)) == COUNT
    assert images.trashed(job.id) == ()


def test_a_worker_killed_while_it_leaves_images_out_loses_none_and_the_next_decides_the_same(
    run, images, mira
):
    job, result = run(keep_best=1)
    for image_id in result["left_out"][1:]:
        images.restore(image_id)
    reports = Reports()
    assert run(job, reports=reports)[1] == result
    assert reports == []
    assert len(images.trashed(job.id)) == COUNT - 1


def test_an_image_deleted_while_the_others_are_made_is_not_missed(run, images, mira):
    def delete(progress):
        for saved in images.list() if progress.message == f"image {COUNT} of {COUNT}" else ():
            images.remove(saved.id)
        return False

    _, result = run(keep_best=1, reports=Reports(JobCancelled(), delete))
    assert len(result["left_out"]) == COUNT - 1


def test_what_could_not_be_measured_is_kept_and_no_image_is_lost(run, images, mira):
    class Broken:
        def find(self, images):
            raise RuntimeError("CUDA error")

    job, result = run(keep_best=1, scorers=lambda kind: Broken())
    assert result == {"images": [f"{job.id}-{index}" for index in range(COUNT)], "left_out": []}
    assert all(image.record.likeness == () for image in images.of_job(job.id))


def test_an_image_that_the_scorer_breaks_on_is_kept_without_a_number(run, images, mira):
    class BreaksOnSmall:
        def find(self, images):
            if images[0].width == 64:
                raise RuntimeError("too small for me")
            return open_scorer(ScorerKind.DRAWN_FIGURES).find(images)

    job, result = run(count=1, scorers=lambda kind: BreaksOnSmall())
    assert result == {"images": [f"{job.id}-0"]}


def test_the_lora_of_a_character_that_is_gone_makes_images_without_a_number(run, images):
    job, result = run(count=1)
    assert result == {"images": [f"{job.id}-0"]}


def test_two_checkpoints_of_one_character_are_measured_once(run, images, mira, tmp_path):
    folder = tmp_path / "runs" / "job1" / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    write_lora(folder / "lora.safetensors")
    job, _ = run(
        count=1, loras=[{"lora": "job1", "strength": 0.5}, {"lora": "job1", "step": 10, "strength": 0.1}]
    )
    assert len(images.get(f"{job.id}-0").record.likeness) == 1


def test_a_cancel_is_obeyed_while_the_photos_are_looked_at(run, images, mira):
    looking = Reports(JobCancelled(), lambda progress: progress.message == "looking at the photos")
    with pytest.raises(JobCancelled):
        run(reports=looking)
    assert images.list() == ()


def test_the_look_of_a_whole_picture_counts_from_the_runs_picture_without_the_lora(
    run, images, mira, tmp_path
):
    def scorers(kind):
        return open_scorer(ScorerKind.DRAWN_FIGURES)

    mira(ScorerKind.LOOK)
    job, _ = run(count=1, scorers=scorers)
    without = images.get(f"{job.id}-0")
    assert without.record.likeness[0].share is None
    (tmp_path / "runs" / "job1").mkdir(parents=True)
    without.path.rename(tmp_path / "runs" / "job1" / "before.png")
    run(job, scorers=scorers)
    assert images.get(f"{job.id}-0").record.likeness[0].share == pytest.approx(0, abs=1e-3)
