"""Cancel, pause, resume and yield, asked for in every phase of a real training, act at once and lose nothing."""

import time

import pytest

from isengard.domain.job import JobKind, JobStatus, Phase
from isengard.equipment import equip
from isengard.worker import Worker
from tests.tiny_app import submit_training, tiny_app

PHASES = [
    Phase.LOADING, Phase.CACHING, Phase.TRAINING, Phase.VALIDATING, Phase.SAVING, Phase.SAMPLING, Phase.VERIFYING,
]  # fmt: skip
#: Alone it takes less than 2; beside another test process the disk may hold a checkpoint up.
OBEYED_WITHIN_S = 6.0


class Interrupted:
    """A worker that runs the real handlers and does something at the first report of a phase."""

    def __init__(self, app, phase, do):
        self.obeyed_after_s = None
        self.phase, self.do, self.fired_at = phase, do, None
        self.handlers = dict(equip(app.settings, app).handlers)
        self._train = self.handlers[JobKind.TRAIN_LORA]
        self.handlers[JobKind.TRAIN_LORA] = self.train
        self.worker = Worker(queue=app.queue, handlers=self.handlers, name="w", lease_s=60)

    def train(self, job, report):
        def watched(progress):
            if progress.phase is self.phase and self.fired_at is None:
                self.fired_at = time.monotonic()
                self.do(job.id)
            return report(progress)

        try:
            return self._train(job, watched)
        finally:
            if self.fired_at is not None and self.obeyed_after_s is None:
                self.obeyed_after_s = time.monotonic() - self.fired_at


@pytest.fixture
def app(tmp_path, tiny_flux):
    return tiny_app(tmp_path, tiny_flux)


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_acts_at_once_and_the_training_can_be_taken_up_again(app, phase):
    job_id = submit_training(app)
    interrupted = Interrupted(app, phase, app.jobs.cancel)
    assert interrupted.worker.run_one()
    assert app.jobs.get(job_id).status is JobStatus.CANCELLED
    assert interrupted.obeyed_after_s < OBEYED_WITHIN_S
    assert not interrupted.worker.run_one()

    app.training.resume(job_id, {})
    assert interrupted.worker.run_one()
    finished(app, job_id)


@pytest.mark.parametrize("phase", PHASES)
def test_pause_acts_at_once_and_resume_goes_on(app, phase):
    job_id = submit_training(app)
    interrupted = Interrupted(app, phase, app.jobs.pause)
    assert interrupted.worker.run_one()
    assert app.jobs.get(job_id).status is JobStatus.PAUSED
    assert interrupted.obeyed_after_s < OBEYED_WITHIN_S
    assert not interrupted.worker.run_one()

    app.jobs.resume(job_id)
    assert interrupted.worker.run_one()
    finished(app, job_id)


@pytest.mark.parametrize("phase", PHASES)
def test_a_training_makes_room_for_an_image_in_every_phase_and_goes_on(app, phase, monkeypatch):
    monkeypatch.setattr("isengard.queue.sqlite_workers.YIELD_AFTER_S", 0.0)
    training = submit_training(app)
    images = []

    def ask(_job_id):
        spec = app.images.plan(overrides={"prompt": "a person", "base_model": "tiny", "seed": 1})
        images.append(app.images.submit(spec).id)

    interrupted = Interrupted(app, phase, ask)
    assert interrupted.worker.run_one()
    assert app.jobs.get(training).status is JobStatus.QUEUED
    assert interrupted.obeyed_after_s < OBEYED_WITHIN_S

    assert interrupted.worker.run_one()
    assert app.jobs.get(images[0]).status is JobStatus.SUCCEEDED
    assert app.jobs.get(training).status is JobStatus.QUEUED
    assert len(app.images.of_job(images[0])) == 1

    assert interrupted.worker.run_one()
    finished(app, training)


def finished(app, job_id):
    """The training succeeded, with each step done once."""
    job = app.jobs.get(job_id)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    assert [row["step"] for row in app.jobs.metrics(job_id) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert app.images.lora(job_id).details["verification"]["image_difference"] > 0
