"""A backup made while a training runs: it goes on elsewhere from its checkpoint, and here as if nothing had been."""

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from isengard.cli import app as cli
from isengard.domain.job import JobStatus, Phase
from isengard.wiring import build
from tests.forked_workers import start_worker
from tests.tiny_app import submit_training, tiny_app
from tests.waiting import until

COURSE = {"steps": 48, "save_every": 4, "keep_checkpoints": 2, "validate_every": 8, "sample_every": 0}


def run_to_the_end(app, job_id, process):
    try:
        until(lambda: app.jobs.get(job_id).status.ended, alive=process.is_alive)
    finally:
        process.kill()
        process.join()
    return app.jobs.get(job_id)


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured_children")
def test_a_training_goes_on_from_a_backup_that_was_made_while_it_ran(tmp_path, tiny_flux):
    here = tiny_app(tmp_path, tiny_flux)
    job_id, file = submit_training(here, **COURSE), tmp_path / "backup.tar"
    process = start_worker(here.settings)

    def is_well_on_its_way():
        now = here.jobs.get(job_id).progress
        return now is not None and now.phase is Phase.TRAINING and now.step > 5

    until(is_well_on_its_way, alive=process.is_alive, every_s=0.002)
    made = CliRunner().invoke(cli, ["--data-dir", str(here.settings.data_dir), "backup", str(file)])
    assert made.exit_code == 0, made.output
    assert here.jobs.get(job_id).status is JobStatus.RUNNING
    original = run_to_the_end(here, job_id, process)

    folder = tmp_path / "elsewhere"
    assert CliRunner().invoke(cli, ["restore", str(file), str(folder)]).exit_code == 0
    there = build(here.settings.model_copy(update={"data_dir": folder}))
    waiting = there.jobs.get(job_id)
    saved = max(there.jobs.checkpoints(job_id))
    assert (waiting.status, waiting.attempt) == (JobStatus.QUEUED, 1)
    assert 4 <= saved < 48
    went_on = run_to_the_end(there, job_id, start_worker(there.settings))

    for app, job in ((here, original), (there, went_on)):
        assert (job.status, job.error, job.attempt) == (JobStatus.SUCCEEDED, None, 1)
        assert [row["step"] for row in app.jobs.metrics(job_id) if "loss" in row] == list(range(1, 49))
    assert there.jobs.metrics(job_id) == here.jobs.metrics(job_id)
    one, other = (load_file(app.images.lora_path(job_id)) for app in (here, there))
    assert all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())
    log = (folder / "logs" / "worker.jsonl").read_text().splitlines()
    assert any('"training goes on"' in line and f'"step": {saved}' in line for line in log)
