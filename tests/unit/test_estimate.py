import json

import pytest

from isengard.domain.disk import kept_checkpoints
from isengard.domain.job import JobError, Phase, Progress
from isengard.services.estimate import Estimator, pixels_per_step
from tests.tiny_app import submit_training, tiny_app

CHOICE = {"character_id": "mira", "base_model": "tiny", "preset": "quick"}


@pytest.fixture
def app(tmp_path, tiny_flux):
    return tiny_app(tmp_path, tiny_flux)


@pytest.fixture
def estimate(app):
    estimator = Estimator(jobs=app.jobs, card=app.catalog.model, free=lambda: 1_000_000)

    def make(**overrides):
        return estimator.estimate(app.training.planned(**CHOICE, overrides=overrides))

    return make


def trained(app, monkeypatch, *, worked_s=12.0, **overrides):
    job_id = submit_training(app, **overrides)
    job = app.queue.claim("w", lease_s=60)
    app.queue.succeed(job, {})
    known = app.jobs.worked_s
    monkeypatch.setattr(app.jobs, "worked_s", lambda other: worked_s if other == job_id else known(other))
    return job_id


def checkpoint(app, job_id, step, size):
    folder = app.jobs.run_dir(job_id) / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"x" * size)


def test_nothing_measured_is_nothing_said(estimate):
    found = estimate()
    assert (found.seconds, found.memory_gb, found.disk_bytes) == (None, None, None)
    assert not found.lacks_disk


def test_the_same_training_takes_the_same_time(app, estimate, monkeypatch):
    trained(app, monkeypatch)
    found = estimate()
    assert (found.seconds.value, found.seconds.exact) == (pytest.approx(12), True)
    assert estimate(steps=12).seconds.value == pytest.approx(24)


def test_another_batch_is_scaled_and_says_so(app, estimate, monkeypatch):
    trained(app, monkeypatch)
    found = estimate(batch_size=4)
    assert (found.seconds.value, found.seconds.exact) == (pytest.approx(24), False)
    assert found.seconds.origin == "a training of 6 steps at batch 2, 64 px"


def test_the_closest_training_counts(app, estimate, monkeypatch):
    trained(app, monkeypatch, worked_s=60, batch_size=8)
    trained(app, monkeypatch, worked_s=12)
    trained(app, monkeypatch, worked_s=99, batch_size=16)
    assert estimate().seconds.value == pytest.approx(12)


def test_another_precision_is_no_measure(app, estimate, monkeypatch):
    trained(app, monkeypatch)
    assert estimate(precision="bf16").seconds is None


def test_a_failed_training_measured_its_bare_speed(app, estimate):
    submit_training(app)
    job = app.queue.claim("w", lease_s=60)
    progress = Progress(phase=Phase.TRAINING, step=3, total=6, steps_per_s=0.5, memory_bytes=2 * 1024**3)
    app.queue.heartbeat(job, lease_s=60, progress=progress)
    app.queue.fail(job, JobError(code="training_failed", message="no"))
    found = estimate()
    assert (found.seconds.value, found.memory_gb.value) == (pytest.approx(12), pytest.approx(2))
    assert estimate(rank=8).memory_gb is None


def test_a_continued_training_counts_its_own_steps_only(app, estimate, monkeypatch):
    job_id = trained(app, monkeypatch)
    checkpoint(app, job_id, 6, 10)
    (app.jobs.run_dir(job_id) / "metrics.jsonl").write_text(json.dumps({"step": 6, "loss": 1}) + "\n")
    longer = app.training.extend(job_id, 8)
    app.queue.succeed(app.queue.claim("w", lease_s=60), {})
    monkeypatch.setattr(app.jobs, "worked_s", lambda other: 8.0 if other == longer.id else 0.0)
    assert estimate().seconds.value == pytest.approx(8 / 2 * 6)


def test_disk_is_checkpoints_kept_times_their_size(app, estimate, monkeypatch):
    checkpoint(app, trained(app, monkeypatch), 6, 1000)
    assert estimate().disk_bytes.value == 3000
    assert estimate(rank=8).disk_bytes.value == 6000
    assert not estimate(rank=8).disk_bytes.exact
    assert estimate(targets="attention").disk_bytes is None


def test_a_checkpoint_that_is_removed_while_it_is_looked_at_is_no_measure(app, estimate, monkeypatch):
    folder = app.jobs.run_dir(trained(app, monkeypatch)) / "checkpoints" / "step-00000006"
    folder.mkdir(parents=True)
    (folder / "state.pt").symlink_to("gone")
    assert estimate().disk_bytes is None


def test_too_little_disk_is_noticed(app, estimate, monkeypatch):
    checkpoint(app, trained(app, monkeypatch), 6, 400_000)
    assert estimate().lacks_disk
    assert not estimate(save_every=6).lacks_disk


def test_checkpoints_that_stay_are_counted(training_spec):
    assert kept_checkpoints(training_spec) == 3
    assert kept_checkpoints(training_spec.model_copy(update={"keep_checkpoints": 1})) == 2
    assert kept_checkpoints(training_spec.model_copy(update={"save_every": 4})) == 2


def test_pixels_grow_with_batch_and_area(training_spec):
    assert pixels_per_step(training_spec) == 2 * 64 * 64
    both = training_spec.model_copy(update={"resolutions": (64, 128)})
    assert pixels_per_step(both) == 2 * (64 * 64 + 128 * 128) / 2


def test_working_time_leaves_out_the_waiting(app):
    job_id = submit_training(app)
    job = app.queue.claim("w", lease_s=60)
    app.queue.release(job, reason="an image")
    app.queue.succeed(app.queue.claim("w", lease_s=60), {})
    at = [(event.kind, event.at) for event in app.jobs.history(job_id)]
    claimed = [time for kind, time in at if kind == "claimed"]
    assert len(claimed) == 2
    total = at[-1][1] - at[0][1]
    assert 0 <= app.jobs.worked_s(job_id) <= total
