"""A generation job run by its handler on the bundled model."""

import gc

import pytest
import torch

from isengard.domain.generation import ImageSpec
from isengard.domain.model import Family
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.errors import JobYielded
from isengard.handlers.generation import generate_images
from isengard.handlers.memory import MemoryBook
from isengard.queue.sqlite import SqliteQueue
from isengard.services.images import ImageService
from isengard.services.machine import Machine
from isengard.services.planning import Planning
from isengard.settings import ASSETS, ROOT
from isengard.store.artifacts import Images, Loras
from isengard.store.configs import Catalog
from isengard.store.memory import Peaks
from isengard.store.weights import Weights
from tests.engines.demo_model import Reports, write_lora

SPEC = ImageSpec(
    base_model="demo",
    prompt="a portrait",
    width=64,
    height=64,
    num_inference_steps=2,
    seed=2**32 - 2,
    count=3,
)


@pytest.fixture(scope="module")
def generator():
    made = PipelineGenerator(device=torch.device("cpu"))
    yield made
    made.unload()
    gc.collect()


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
def submit(tmp_path, parts, planning):
    queue = SqliteQueue(tmp_path / "jobs.db")
    return ImageService(queue=queue, families=[Family.FLUX], planning=planning, **parts).submit


@pytest.fixture
def run(tmp_path, parts, generator, planning, peaks):
    book = MemoryBook(planning=planning, peaks=peaks, reset=lambda: None)

    def ran(job, report=None):
        report = Reports() if report is None else report
        return generate_images(
            job, report, generator=generator, runs_dir=tmp_path / "runs", memory=book, **parts
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


def test_a_finished_job_delivered_again_makes_nothing(submit, run, tmp_path):
    job = submit(SPEC)
    result = run(job)
    before = pixels(tmp_path)
    reports = Reports()
    assert run(job, reports) == result
    assert pixels(tmp_path) == before
    assert reports == []


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
