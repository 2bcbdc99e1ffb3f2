"""The worker process is killed again and again: the training ends as if nothing had happened."""

import signal
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from isengard.domain.job import JobStatus, Phase
from tests.forked_workers import Moment, start_worker
from tests.tiny_app import submit_training, tiny_app
from tests.waiting import until

LONG = {
    "steps": 60,
    "save_every": 7,
    "validate_every": 10,
    "sample_every": 15,
    "sample_steps": 8,
    "ema_decay": 0.9,
    "lr_scheduler": "cosine",
}


@contextmanager
def worker_process(app, *, dies=None):
    """A real worker, killed at the end if it is still there."""
    process = start_worker(app.settings, dies=dies)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def kill_at(app, job_id, moment):
    """Run a worker that kills itself with SIGKILL at ``moment`` of the job."""
    with worker_process(app, dies=moment) as process:
        until(lambda: not process.is_alive() or app.jobs.get(job_id).status.ended)
        assert process.exitcode == -signal.SIGKILL, f"the job ended without {moment}"


def run_to_the_end(app, job_id):
    with worker_process(app) as process:
        until(lambda: app.jobs.get(job_id).status.ended, alive=process.is_alive)
    return app.jobs.get(job_id)


@pytest.mark.slow
def test_seven_kills_in_every_phase_change_no_bit_of_the_result(tmp_path, tiny_flux):
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    straight = tiny_app(tmp_path / "straight", tiny_flux)
    calm = run_to_the_end(straight, submit_training(straight, **LONG))
    assert calm.status is JobStatus.SUCCEEDED

    app = tiny_app(tmp_path / "killed", tiny_flux)
    job_id = submit_training(app, **LONG)
    run = app.settings.runs_dir / job_id

    for moment in (
        Moment((Phase.CACHING,)),
        Moment((Phase.TRAINING,), step=3),
        Moment(writing=run / "checkpoints"),
        Moment((Phase.TRAINING,), step=17),
        Moment((Phase.SAMPLING,), step=1),
        Moment((Phase.TRAINING,), step=38),
        Moment((Phase.VERIFYING,)),
    ):
        kill_at(app, job_id, moment)
    job = run_to_the_end(app, job_id)

    assert (job.status, job.error, job.attempt) == (JobStatus.SUCCEEDED, None, 8)
    assert job.result["validation_losses"] == calm.result["validation_losses"]
    assert app.jobs.metrics(job_id) == straight.jobs.metrics(calm.id)
    assert [row["step"] for row in app.jobs.metrics(job_id) if "loss" in row] == list(range(1, 61))
    one, other = (load_file(a.images.lora_path(j)) for a, j in ((app, job_id), (straight, calm.id)))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    names = {path.name for path in (run / "samples").iterdir()}
    assert names == {path.name for path in (straight.settings.runs_dir / calm.id / "samples").iterdir()}
    assert not list(run.rglob("*.partial-*"))
