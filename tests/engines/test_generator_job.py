"""A generation job run by its handler on the bundled model."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from PIL import Image

from isengard.domain.generation import ImageSpec
from isengard.domain.model import Family
from isengard.engines.pipelines.preview import write_picture
from isengard.errors import DiskFull, JobSuspended, JobYielded, LeaseLost
from isengard.files import PARTIAL, checked
from isengard.handlers import room as handlers_room
from isengard.handlers.generation import generate_images
from isengard.handlers.memory import MemoryBook
from isengard.queue.sqlite import SqliteQueue
from isengard.services.images import ImageService
from isengard.services.machine import Machine
from isengard.services.planning import Planning
from isengard.services.room import Room
from isengard.settings import ASSETS, ROOT
from isengard.store.artifacts import Images, Loras
from isengard.store.configs import Catalog
from isengard.store.memory import Peaks
from isengard.store.weights import Weights
from isengard.wiring import open_scorer
from tests.engines.demo_model import Reports, likenesses, write_lora

SPEC = ImageSpec(
    base_model="demo",
    prompt="a portrait",
    width=64,
    height=64,
    num_inference_steps=2,
    seed=2**32 - 2,
    count=3,
)


@pytest.fixture
def parts(tmp_path, generator):
    return {
        "catalog": Catalog(ROOT / "configs"),
        "weights": Weights(models_dir=tmp_path / "models", assets_dir=ASSETS),
        "loras": Loras(
            loras_dir=tmp_path / "loras", runs_dir=tmp_path / "runs", trash_dir=tmp_path / "trash"
        ),
        "images": Images(images_dir=tmp_path / "images", trash_dir=tmp_path / "trash"),
    }


@pytest.fixture
def peaks(tmp_path):
    return Peaks(tmp_path / "memory.json")


@pytest.fixture
def planning(peaks):
    return Planning(machine=Machine(device="cpu").facts, corrections=peaks.read)


@pytest.fixture
def queue(tmp_path):
    return SqliteQueue(tmp_path / "jobs.db")


@pytest.fixture
def disk(tmp_path):
    """What is free, by how often it was asked for; the last value stays."""
    return [10**12]


@pytest.fixture
def room(tmp_path, queue, parts, disk):
    def free(_):
        return disk.pop(0) if len(disk) > 1 else disk[0]

    return Room(queue=queue, catalog=parts["catalog"], folder=tmp_path, runs_dir=tmp_path / "runs", free=free)


@pytest.fixture
def submit(parts, planning, queue, room):
    return ImageService(queue=queue, families=[Family.FLUX], planning=planning, room=room, **parts).submit


@pytest.fixture
def run(tmp_path, parts, generator, planning, peaks, room):
    beside = {
        "memory": MemoryBook(planning=planning, peaks=peaks, reset=lambda: None),
        "room": room,
        "likenesses": likenesses(tmp_path, parts["loras"], open_scorer),
    }

    def ran(job, report=None):
        report = Reports() if report is None else report
        return generate_images(
            job, report, generator=generator, runs_dir=tmp_path / "runs", **beside, **parts
        )

    return ran


def pixels(tmp_path):
    return {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}


def test_each_image_is_kept_with_its_seed_and_nothing_else_is_left(submit, run, parts, tmp_path):
    job = submit(SPEC)
    assert run(job) == {"images": [f"{job.id}-{index}" for index in range(3)]}
    assert [saved.record.seed for saved in parts["images"].of_job(job.id)] == [2**32 - 2, 2**32 - 1, 0]
    assert not (tmp_path / "runs" / job.id).exists()


def test_a_job_taken_over_makes_only_what_is_missing(submit, run, parts, tmp_path):
    job = submit(SPEC)
    stopping = Reports(JobYielded(), lambda progress: progress.step == 3 and progress.total == 6)
    with pytest.raises(JobYielded):
        run(job, stopping)
    first = pixels(tmp_path)
    assert list(first) == [f"{job.id}-0.png"]
    reports = Reports()
    assert len(run(job, reports)["images"]) == 3
    assert [(p.step, p.total, p.message) for p in reports] == [
        (3, 6, "image 2 of 3"),
        (4, 6, "image 2 of 3"),
        (5, 6, "image 3 of 3"),
        (6, 6, "image 3 of 3"),
    ]
    assert pixels(tmp_path)[f"{job.id}-0.png"] == first[f"{job.id}-0.png"]


def test_a_disk_that_fills_keeps_the_images_so_far_and_the_job_goes_on_behind_them(
    submit, run, disk, tmp_path, monkeypatch
):
    run(submit(SPEC.model_copy(update={"count": 1})))  # the pipeline is loaded now, which reports, too
    monkeypatch.setattr(handlers_room, "LOOK_EVERY_S", 0.0)
    job = submit(SPEC)
    disk[:] = [10**12] * 3 + [0]  # at the start, and at three looks
    with pytest.raises(JobSuspended):
        run(job)
    assert [name for name in pixels(tmp_path) if job.id in name] == [f"{job.id}-0.png"]
    with pytest.raises(DiskFull, match="2 images of 64 x 64 need"):
        run(job)
    disk[:] = [10**12]
    assert len(run(job)["images"]) == 3


def test_what_a_killed_worker_left_unfinished_is_swept_by_the_next(submit, run, tmp_path):
    job = submit(SPEC)
    for left in (f"images/{job.id}-0.png", f"runs/{job.id}/preview.png"):
        path = tmp_path / f"{left}{PARTIAL}1"
        path.parent.mkdir(parents=True)
        path.touch()
    run(job.model_copy(update={"attempt": 2}))
    assert not list(tmp_path.rglob(f"*{PARTIAL}*"))


def test_a_finished_job_delivered_again_makes_nothing(submit, run, tmp_path):
    job = submit(SPEC)
    result = run(job)
    before = pixels(tmp_path)
    reports = Reports()
    left = tmp_path / "runs" / job.id / f"preview.png{PARTIAL}of-one-that-was-killed"
    left.parent.mkdir(parents=True)
    left.touch()
    assert run(job, reports) == result
    assert pixels(tmp_path) == before
    assert reports == []
    assert not left.parent.exists()


def test_the_former_owner_of_a_job_and_the_new_one_may_write_previews_at_once(tmp_path):
    path, picture = tmp_path / "run" / "preview.png", Image.new("RGB", (64, 64))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_picture(picture, path), range(40)))
    assert [entry.name for entry in path.parent.iterdir()] == ["preview.png"]


def test_the_lora_is_used_and_named_in_the_image(submit, run, parts, tmp_path):
    source = write_lora(tmp_path / "trained.safetensors").path
    parts["loras"].add(
        lora_id="job1",
        name="mira",
        character="mira",
        trigger="ohwx",
        class_word="woman",
        base_model="demo",
        steps=1,
        source=source,
        details={},
    )
    spec = SPEC.model_copy(update={"count": 1})
    plain, adapted = submit(spec), submit(ImageSpec(**{**spec.model_dump(), "loras": [{"lora": "job1"}]}))
    run(plain)
    run(adapted)
    saved = parts["images"].get(f"{adapted.id}-0")
    assert saved.record.loras[0].name == "mira"
    assert len(saved.record.loras[0].hash) == 12
    assert saved.path.read_bytes() != parts["images"].get(f"{plain.id}-0").path.read_bytes()


def test_who_has_lost_a_job_touches_no_preview_of_the_next_owner(submit, run, tmp_path):
    def refuse():
        raise LeaseLost("of another now")

    job = submit(SPEC)
    run(job)
    preview = tmp_path / "runs" / job.id / "preview.png"
    with checked(refuse), pytest.raises(LeaseLost):
        write_picture(Image.new("RGB", (64, 64)), preview)
    assert not preview.parent.exists()
    preview.parent.mkdir(parents=True)
    preview.write_text("of the next owner")
    for late in (partial(write_picture, Image.new("RGB", (64, 64)), preview), partial(run, job)):
        with checked(refuse), pytest.raises(LeaseLost):
            late()
    assert [path.read_text() for path in preview.parent.iterdir()] == ["of the next owner"]
