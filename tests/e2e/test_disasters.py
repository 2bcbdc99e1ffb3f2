"""A full disk, a disk that turns read-only, a job list that is damaged at work, a clock that jumps.

Each ends in a clear state, and nothing that was reported as saved is lost. The kills have tests of their own: of workers in
test_kills.py and test_worker_process.py, of workers and the server in test_chaos.py.
"""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isengard.cli import app as cli
from isengard.domain.job import JobStatus, Phase
from isengard.equipment import equip
from isengard.errors import DiskReadOnly, IsengardError, QueueUnavailable
from isengard.queue.sqlite import SqliteQueue
from isengard.supervisor import only_worker
from isengard.wiring import build, check_job_list, keeping_job_list
from isengard.worker import Worker
from tests.small_disk import on_a_small_disk
from tests.tiny_app import submit_training, tiny_app

COURSE = {"steps": 6, "save_every": 2, "validate_every": 0, "sample_every": 0}
#: Less than a checkpoint of the tiny model, and more than the job list needs to say what became of a job.
ROOM = 100_000


class Watched:
    """A worker that runs the real handlers, and does something when a phase is at a step."""

    def __init__(self, app, *, lease_s=60.0):
        self.app, self.at, self.do = app, None, None
        handlers = {
            kind: self._watching(handler) for kind, handler in equip(app.settings, app).handlers.items()
        }
        self.worker = Worker(queue=app.queue, handlers=handlers, name="w", lease_s=lease_s)

    def run(self, at=None, do=None):
        self.at, self.do = at, do
        return self.worker.run_one()

    def _watching(self, handler):
        def watching(job, report):
            def watched(progress):
                if (progress.phase, progress.step) == self.at:
                    self.at = None
                    self.do()
                return report(progress)

            return handler(job, watched)

        return watching


def take_up_again(app, job_id):
    """As the user does, whatever the job waits for."""
    job = app.jobs.get(job_id)
    if job.status is JobStatus.PAUSED:
        app.jobs.resume(job_id)
    elif job.status is JobStatus.FAILED:
        app.training.resume(job_id, {})


def ended(app, job_id):
    """What is known of a training at its end, for a test elsewhere."""
    job = app.jobs.get(job_id)
    losses = [row["step"] for row in app.jobs.metrics(job_id) if "loss" in row]
    return {"status": job.status, "steps": losses, "checkpoints": list(app.jobs.checkpoints(job_id))}


def partials(app):
    return [str(path) for path in app.settings.data_dir.rglob("*.partial-*")]


def said_by(action):
    try:
        action()
    except IsengardError as error:
        return [error.code, str(error)]
    return ["nothing", ""]


TO_THE_END = {"status": "succeeded", "steps": [1, 2, 3, 4, 5, 6], "checkpoints": [2, 4, 6]}


def fills_while_it_trains(disk, model):
    app = tiny_app(disk.root, Path(model))
    job_id, worker = submit_training(app, **COURSE), Watched(app)
    worker.run((Phase.TRAINING, 3), lambda: disk.fill(but=ROOM))
    job = app.jobs.get(job_id)
    stopped = {
        "status": job.status,
        "said": job.error.model_dump() if job.error else {},
        "checkpoints": list(app.jobs.checkpoints(job_id)),
        "partials": partials(app),
    }
    disk.clear()
    take_up_again(app, job_id)
    worker.run()
    return {"stopped": stopped, "ended": ended(app, job_id)}


@pytest.mark.slow
def test_a_training_on_a_disk_that_fills_keeps_its_checkpoint_and_goes_on_when_there_is_room(
    tmp_path, tiny_flux
):
    told = on_a_small_disk(tmp_path / "disk", fills_while_it_trains, str(tiny_flux))
    stopped = told["stopped"]
    assert (stopped["status"], stopped["said"]["code"]) == ("paused", "disk_full")
    assert (stopped["checkpoints"], stopped["partials"]) == ([2], [])
    assert told["ended"] == TO_THE_END


def is_full_to_the_last_byte(disk, model):
    app = tiny_app(disk.root, Path(model))
    images = app.images.submit(app.images.plan(overrides=TWO_IMAGES)).id
    job_id, worker = submit_training(app, **COURSE), Watched(app, lease_s=1.0)
    picture = app.characters.get("mira").images[0].id
    worker.run((Phase.GENERATING, 3), disk.fill)  # of two steps each: the first image is kept by then
    before = [image.id for image in app.images.of_job(images)]
    refused = {
        "enqueue": said_by(lambda: submit_training(app)),
        "caption": said_by(lambda: app.characters.set_caption("mira", picture, "new")),
        "character": said_by(lambda: app.characters.create("Berta")),
    }
    whole = [len(app.characters.get("mira").images), app.characters.list()[0].id, app.jobs.get(job_id).status]
    disk.clear()
    worker.run()
    worker.run()
    return {
        "refused": refused,
        "whole": whole,
        "kept": [before, [image.id for image in app.images.of_job(images)]],
        "images": app.jobs.get(images).status,
        "ended": ended(app, job_id),
        "partials": partials(app),
    }


TWO_IMAGES = {"prompt": "a person", "base_model": "tiny", "seed": 1, "count": 2}


@pytest.mark.slow
def test_a_disk_that_is_full_to_the_last_byte_refuses_in_plain_words_and_loses_nothing(tmp_path, tiny_flux):
    told = on_a_small_disk(tmp_path / "disk", is_full_to_the_last_byte, str(tiny_flux))
    assert {code for code, _ in told["refused"].values()} == {"disk_full"}
    assert all("free some space" in text for _, text in told["refused"].values())
    assert told["whole"] == [9, "mira", "queued"]
    before, after = told["kept"]
    assert set(before) <= set(after)
    assert told["images"] in ("succeeded", "failed", "queued")
    assert told["ended"] == TO_THE_END
    assert told["partials"] == []


def turns_read_only(disk, model, archive):
    app = tiny_app(disk.root, Path(model))
    job_id, worker = submit_training(app, **COURSE), Watched(app, lease_s=1.0)
    worker.run((Phase.TRAINING, 3), disk.read_only)
    job = app.jobs.get(job_id)
    refused = {
        "enqueue": said_by(lambda: submit_training(app)),
        "character": said_by(lambda: app.characters.create("Berta")),
        "worker": said_by(lambda: only_worker(app.settings, app.queue).__enter__()),
    }
    again = build(app.settings)  # what is there can be looked at
    seen = [job.status, list(again.jobs.checkpoints(job_id)), len(again.characters.get("mira").images)]
    made = CliRunner().invoke(cli, ["--data-dir", str(app.settings.data_dir), "backup", archive])
    disk.read_only(really=False)
    worker.run()
    take_up_again(app, job_id)
    worker.run()
    return {"refused": refused, "seen": seen, "backup": made.output, "ended": ended(app, job_id)}


@pytest.mark.slow
def test_a_disk_that_turns_read_only_is_named_can_be_read_and_backed_up_and_the_training_goes_on(
    tmp_path, tiny_flux
):
    told = on_a_small_disk(tmp_path / "disk", turns_read_only, str(tiny_flux), str(tmp_path / "backup.tar"))
    for code, text in told["refused"].values():
        assert code in (DiskReadOnly.code, QueueUnavailable.code)
        assert "read-only" in text
        assert "mount" in text
    assert told["seen"] == ["running", [2], 9]  # until its lease ends: that it stopped could not be written
    assert "is whole" in told["backup"]
    assert (tmp_path / "backup.tar").exists()
    assert told["ended"] == TO_THE_END


def damage(app):
    path = app.settings.jobs_db
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.fixture
def app(tmp_path, tiny_flux):
    return tiny_app(tmp_path, tiny_flux)


def test_a_training_under_which_the_job_list_is_damaged_goes_on_from_its_checkpoint_when_that_is_recovered(
    app,
):
    run = ["--data-dir", str(app.settings.data_dir), "jobs"]
    images = app.images.submit(app.images.plan(overrides=TWO_IMAGES)).id
    worker = Watched(app, lease_s=1.0)
    worker.run()
    job_id = submit_training(app, **COURSE)
    with keeping_job_list(app.settings):
        pass
    worker.run((Phase.TRAINING, 5), lambda: damage(app))

    with pytest.raises(QueueUnavailable, match=r"jobs recover"):
        app.jobs.get(job_id)
    with pytest.raises(QueueUnavailable, match=r"jobs recover"):
        check_job_list(app.settings)
    assert [len(app.images.of_job(images)), len(app.characters.get("mira").images)] == [2, 9]
    assert 4 in app.jobs.checkpoints(job_id)

    done = CliRunner().invoke(cli, [*run, "recover"])
    assert done.exit_code == 0, done.output
    again = build(app.settings)
    assert again.jobs.get(images).status is JobStatus.SUCCEEDED
    Watched(again).run()
    assert ended(again, job_id) == TO_THE_END


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_a_clock_that_jumps_under_a_training_costs_no_step(app, jump_s):
    ahead = [0.0]
    queue = SqliteQueue(app.settings.jobs_db, clock=lambda: time.time() + ahead[0])
    job_id, worker = submit_training(app, **COURSE), Watched(replace(app, queue=queue))
    seen = []

    def jump():
        ahead[0] = jump_s
        seen.append(queue.claim("another", lease_s=60))  # set forward, the lease seems to have ended long ago
        if seen[0]:
            queue.release(seen[0], reason="it is shut down")

    worker.run((Phase.TRAINING, 3), jump)
    assert (seen[0] is not None) == (jump_s > 0)
    if jump_s > 0:
        assert (app.jobs.get(job_id).status, app.jobs.checkpoints(job_id).keys()) == ("queued", {2})
        worker.run()
    assert ended(app, job_id) == TO_THE_END
    assert partials(app) == []
