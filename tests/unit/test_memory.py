"""The machine's facts, measured peaks on disk, and what a job that ran out of memory leaves behind."""

import logging
import os

import pytest

from isengard.domain.generation import ImageSpec
from isengard.domain.job import JobError, Phase, Progress, Requests
from isengard.domain.memory import GB, Corrections, Kind, Peak, Task, training_key
from isengard.errors import DiskFull, InvalidSpec, OutOfMemory
from isengard.handlers.memory import MemoryBook
from isengard.services.machine import Machine
from isengard.services.planning import Planning
from isengard.store import memory as store
from isengard.store.memory import Peaks
from tests.tiny_app import submit_training, tiny_app
from tests.unit.test_planner import CARDS, machine, wishes

GIB = 2**30


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A driver's tool that says what it is told to."""
    folder = tmp_path / "driver"
    folder.mkdir()
    tool = folder / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")

    def says(text):
        tool.write_text(f"#!/bin/sh\necho '{text}'\n")
        tool.chmod(0o755)

    return says


def test_free_is_counted_from_the_least_that_was_seen_in_use(driver):
    now = [0.0]
    driver("NVIDIA GeForce RTX 4090, 1024, 24576, 8.9, 2, 35")
    asked = Machine(device="auto", clock=lambda: now[0])
    first = asked.facts()
    now[0] = 10
    driver("NVIDIA GeForce RTX 4090, 20480, 24576, 8.9, 2, 35")  # a job of ours runs
    assert asked.facts().free_bytes == first.free_bytes == 23 * GIB
    assert (first.kind, first.compute_capability, first.gpus) == (Kind.CUDA, (8, 9), 2)
    assert asked.state().used_gb == 20


def test_a_mac_shares_its_memory():
    facts = Machine(device="auto", system="Darwinarm64").facts()
    assert (facts.kind, facts.name) == (Kind.MPS, "Apple GPU")
    assert facts.total_bytes == facts.system_total_bytes


def test_a_machine_without_a_gpu_is_a_cpu():
    assert Machine(device="cpu", system="Darwinarm64").facts().kind is Kind.CPU


def peak(number=0, model="demo"):
    return Peak(
        task=Task.TRAINING, model=model, device="d", settings=f"s{number}", expected_bytes=1, measured_bytes=2 + number
    )  # fmt: skip


def test_peaks_are_kept_and_a_newer_one_takes_the_place_of_the_older(tmp_path):
    peaks = Peaks(tmp_path / "memory.json")
    assert peaks.read() == Corrections()
    peaks.add(peak())
    peaks.add(peak(1))
    newer = peak().model_copy(update={"measured_bytes": 9})
    peaks.add(newer)
    assert Peaks(tmp_path / "memory.json").read().peaks == (peak(1), newer)
    assert peaks.read() is peaks.read()


def test_a_peak_that_came_within_a_tick_of_the_clock_is_read(tmp_path):
    ours, theirs = Peaks(tmp_path / "memory.json"), Peaks(tmp_path / "memory.json")
    for measured in (1, 2):
        theirs.add(peak().model_copy(update={"measured_bytes": measured}))
        os.utime(tmp_path / "memory.json", ns=(5, 5))
        assert ours.read().peaks[0].measured_bytes == measured


def test_only_the_newest_peaks_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MOST", 3)
    peaks = Peaks(tmp_path / "memory.json")
    for number in range(5):
        peaks.add(peak(number))
    assert peaks.read().peaks == tuple(map(peak, (2, 3, 4)))


def test_a_damaged_file_is_passed_over_with_a_line_in_the_log(tmp_path, caplog):
    path = tmp_path / "memory.json"
    path.write_text('{"peaks": [')
    with caplog.at_level(logging.WARNING):
        assert Peaks(path).read() == Corrections()
    assert "memory file damaged" in caplog.text
    Peaks(path).add(peak())
    assert Peaks(path).read().peaks == (peak(),)


@pytest.fixture
def peaks(tmp_path):
    return Peaks(tmp_path / "memory.json")


@pytest.fixture
def resets():
    return []


@pytest.fixture
def book(peaks, resets):
    planning = Planning(machine=lambda: machine(24), corrections=peaks.read)
    return MemoryBook(planning=planning, peaks=peaks, reset=lambda: resets.append(1))


def reported(phase, gb):
    return Progress(phase=phase, memory_bytes=int(gb * GB))


def test_the_peak_of_a_training_is_recorded_without_that_of_its_verification(book, peaks, resets):
    asked = []
    with book.training(
        CARDS["flux1-dev"], wishes(), lambda progress: asked.append(progress) or Requests()
    ) as watch:
        for phase, gb in (
            (Phase.CACHING, 9),
            (Phase.TRAINING, 17),
            (Phase.TRAINING, 16),
            (Phase.VERIFYING, 30),
        ):
            watch(reported(phase, gb))
    (found,) = peaks.read().peaks
    assert (found.measured_bytes, found.settings) == (17 * GB, training_key(wishes()))
    assert found.expected_bytes > 0
    assert (len(asked), len(resets)) == (4, 1)


def test_a_training_that_ran_out_of_memory_says_what_fits_and_is_not_planned_so_again(book, peaks):
    spec = book.planning.training(CARDS["flux1-dev"], wishes()).spec
    with (
        pytest.raises(OutOfMemory, match=r"too small\. This should fit: .*512"),
        book.training(CARDS["flux1-dev"], spec, lambda _: Requests()),
    ):
        raise OutOfMemory("too small")
    assert book.planning.training(CARDS["flux1-dev"], wishes()).spec != spec


def test_images_that_ran_out_of_memory_are_planned_smaller(book, peaks):
    spec = ImageSpec(base_model="flux1-dev", prompt="x")
    before = book.planning.images(CARDS["flux1-dev"], spec).plan
    with (
        pytest.raises(OutOfMemory, match="Ask for it again: it is then made with"),
        book.images(CARDS["flux1-dev"], spec, lambda _: Requests()),
    ):
        raise OutOfMemory("too small")
    assert book.planning.images(CARDS["flux1-dev"], spec).plan != before


def test_without_a_plan_the_error_stays_as_it_is(book, peaks):
    card = CARDS["flux1-dev"].model_copy(update={"parts": None})
    for watched in (
        lambda: book.training(card, wishes(), lambda _: Requests()),
        lambda: book.images(card, ImageSpec(base_model="x", prompt="x"), lambda _: Requests()),
    ):
        with pytest.raises(OutOfMemory, match=r"^too small$"), watched():
            raise OutOfMemory("too small")
    assert peaks.read() == Corrections()


def test_a_full_disk_does_not_end_a_job_that_is_done(book, peaks, monkeypatch, caplog):
    def full(_):
        raise DiskFull("no space")

    monkeypatch.setattr(peaks, "add", full)
    with book.training(CARDS["flux1-dev"], wishes(), lambda _: Requests()) as watch:
        watch(reported(Phase.TRAINING, 5))
    assert "memory peak not kept" in caplog.text


# The training service


@pytest.fixture
def app(tmp_path, tiny_flux, monkeypatch):
    """The tiny model, which is said to be as large as FLUX.1-dev, on a card of 12 GB."""
    app = tiny_app(tmp_path / "app", tiny_flux)
    cards = app.settings.configs_dir / "models.yaml"
    parts = CARDS["flux1-dev"].parts.model_dump_json()
    cards.write_text(cards.read_text() + f"  parts: {parts}\n")
    monkeypatch.setattr(app.planning, "_machine", lambda: machine(12))
    return app


def out_of_memory(app, job_id):
    job = app.queue.claim("w", lease_s=60)
    assert job.id == job_id
    app.queue.fail(job, JobError(code=OutOfMemory.code, message="too big"))


def test_the_service_fits_a_training_and_keeps_what_the_user_chose(app):
    spec = app.training.plan(
        character_id="mira",
        base_model="tiny",
        preset="quick",
        overrides={"resolutions": [1024], "batch_size": 1},
    )
    assert (spec.quantization, spec.resolutions, spec.batch_size) == ("nf4", (1024,), 1)


def test_a_training_that_cannot_fit_is_not_started(app):
    with pytest.raises(InvalidSpec, match=r"Tiny FLUX does not fit: .*12 GiB has"):
        submit_training(app, quantization="none", streamed_blocks=0, precision="bf16")
    assert app.jobs.jobs() == []


def test_a_file_for_elsewhere_does_not_know_this_machine(app):
    said = app.training.export_ai_toolkit(
        character_id="mira", base_model="tiny", preset="quick", overrides={"engine": "native"}
    )
    assert "quantize: false" in said


def test_the_remedy_of_a_training_can_be_resumed_with(app):
    job_id = submit_training(app)
    assert app.training.remedy(job_id) is None
    out_of_memory(app, job_id)
    remedy = app.training.remedy(job_id)
    assert remedy.changes
    assert "px" in remedy.words
    app.training.resume(job_id, remedy.changes)
    assert app.jobs.get(job_id).status == "queued"


def test_without_a_known_model_there_is_no_remedy(app):
    job_id = submit_training(app)
    out_of_memory(app, job_id)
    cards = app.settings.configs_dir / "models.yaml"
    cards.write_text(cards.read_text().replace("tiny:", "other:"))
    assert app.training.remedy(job_id) is None


def test_the_largest_model_that_fits_and_needs_no_licence_page_is_recommended(app):
    cards = app.settings.configs_dir / "models.yaml"
    hub = cards.read_text().replace(f"path: {app.catalog.model('tiny').path}", "repository: example/tiny")
    small = hub.replace("tiny:", "small:").replace('"denoiser":11901408320', '"denoiser":11901408319')
    cards.write_text(hub + small)
    assert app.training.recommended() == "tiny"
    cards.write_text(hub + "  gated: true\n" + small)
    assert app.training.recommended() == "small"
    assert app.training.fit(app.catalog.model("small")).fits
    cards.write_text(hub + "  trains: false\n")
    assert (app.training.fit(app.catalog.model("tiny")), app.training.recommended()) == (None, "")


def test_an_image_that_cannot_fit_is_not_asked_for(app, monkeypatch):
    monkeypatch.setattr(app.planning, "_machine", lambda: machine(2))
    spec = app.images.plan(overrides={"base_model": "tiny", "prompt": "x"})
    assert not app.images.fit(spec).fits
    with pytest.raises(InvalidSpec, match="Tiny FLUX at 64 x 64 does not fit"):
        app.images.submit(spec)
