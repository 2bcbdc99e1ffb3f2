"""AI-Toolkit in the worker process: killed at random, and the process that starts anew after it."""

import random
import subprocess
import sys
from contextlib import contextmanager

import pytest
from safetensors.torch import load_file

from isengard.domain.job import JobStatus, Phase
from isengard.domain.training import AI_TOOLKIT
from isengard.settings import ROOT
from tests.e2e.test_kills import kill_at, worker_process
from tests.forked_workers import Moment
from tests.tiny_app import submit_training, tiny_app
from tests.waiting import until

pytestmark = [pytest.mark.aitoolkit, pytest.mark.slow]

STEPS, KILLS = 60, 5


@pytest.fixture
def app(tmp_path, tiny_flux, ai_toolkit_checkout):
    return tiny_app(tmp_path, tiny_flux, ai_toolkit=ai_toolkit_checkout)


def test_five_kills_at_random_and_every_step_is_done_once(app):
    job_id = submit_training(
        app, engine=AI_TOOLKIT, steps=STEPS, save_every=7, validate_every=10, sample_every=20
    )
    for at in sorted(random.sample(range(1, STEPS), KILLS)):
        kill_at(app, job_id, Moment((Phase.TRAINING, Phase.SAVING), step=at))
    with worker_process(app) as process:
        until(lambda: app.jobs.get(job_id).status.ended, alive=process.is_alive)
    job = app.jobs.get(job_id)
    assert (job.status, job.error, job.attempt) == (JobStatus.SUCCEEDED, None, KILLS + 1)
    assert [row["step"] for row in app.jobs.metrics(job_id) if "loss" in row] == list(range(1, STEPS + 1))
    assert job.result["verification"]["image_difference"] > 0
    assert load_file(app.images.lora_path(job_id))
    run = app.settings.runs_dir / job_id
    assert not list(run.rglob("*.partial-*"))


@contextmanager
def a_program_of_its_own(app):
    """A worker that can start its program anew; what is given waits until a job has ended."""
    command = [sys.executable, "-m", "isengard", "worker"]
    with subprocess.Popen(command, env=app.settings.child_environment(), cwd=ROOT) as process:

        def is_alive():
            return process.poll() is None

        try:
            yield lambda job_id: until(lambda: app.jobs.get(job_id).status.ended, alive=is_alive)
        finally:
            process.terminate()
            process.wait(30)


def test_the_worker_starts_anew_and_goes_on_with_what_waits(app):
    training = submit_training(app, engine=AI_TOOLKIT)
    spec = app.images.plan(overrides={"prompt": "a person", "base_model": "tiny", "seed": 1})
    with a_program_of_its_own(app) as ends:
        ends(training)
        image = app.images.submit(spec).id
        ends(image)
    assert app.jobs.get(training).status is JobStatus.SUCCEEDED
    assert app.jobs.get(image).status is JobStatus.SUCCEEDED
    log = (app.settings.logs_dir / "worker.jsonl").read_text()
    assert log.count("worker starts anew") == 1
    assert log.count("worker ready") == 2
