"""Trainings on a disk that fills under them: a tmpfs of 64 MB, where one may be mounted."""

import shutil
import subprocess

import pytest

from isengard.domain.job import JobKind, JobStatus, Phase
from isengard.engines.native.checkpoint import Checkpoints
from isengard.equipment import equip
from isengard.errors import DiskFull
from isengard.handlers import room
from isengard.services.room import RESERVE_BYTES
from isengard.worker import Worker
from tests.tiny_app import submit_training, tiny_app

SIZE_MB = 64


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a real file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Ballast:
    """A file that takes all but so many bytes of a disk."""

    def __init__(self, disk):
        self._file = disk / "ballast"

    def leave(self, count):
        with self._file.open("ab", buffering=0) as file:
            left = shutil.disk_usage(self._file.parent).free - count
            file.write(b"\0" * left)

    def go(self):
        self._file.unlink()


class Telling:
    """A queue; when it cannot be told that a job is suspended, somebody frees the disk."""

    def __init__(self, queue, ballast):
        self._queue, self._ballast, self.refused = queue, ballast, 0

    def __getattr__(self, name):
        return getattr(self._queue, name)

    def suspend(self, job, error):
        try:
            self._queue.suspend(job, error)
        except DiskFull:
            self.refused += 1
            self._ballast.go()
            raise


class Run:
    """A training on the small disk, and what a worker makes of it."""

    def __init__(self, disk, model):
        self.app = tiny_app(disk, model)
        self.ballast = Ballast(disk)
        self.handlers = equip(self.app.settings, self.app).handlers
        self.queue = Telling(self.app.queue, self.ballast)
        self.id = submit_training(self.app)
        self.checkpoints = Checkpoints(self.app.jobs.run_dir(self.id))

    def work(self, fill_at=None, leaving=0):
        """Let a worker run it; at a step the disk fills but for ``leaving`` bytes."""

        def train(job, report):
            def told(progress):
                if (progress.phase, progress.step) == (Phase.TRAINING, fill_at):
                    self.ballast.leave(leaving)
                return report(progress)

            return self.handlers[JobKind.TRAIN_LORA](job, told)

        ours = Worker(queue=self.queue, handlers={JobKind.TRAIN_LORA: train}, name="w", lease_s=60)
        assert ours.run_one()
        return self.app.jobs.get(self.id)


@pytest.fixture
def run(small_disk, tiny_flux):
    return Run(small_disk, tiny_flux)


def test_a_disk_without_a_byte_left_pauses_a_training_which_goes_on_from_its_last_checkpoint(run):
    paused = run.work(fill_at=3)
    assert (paused.status, paused.error.code) == (JobStatus.PAUSED, "disk_full")
    assert run.queue.refused == 1  # the job list is on the full disk, too
    assert "no space left on the disk" in paused.error.message
    assert run.checkpoints.newest()[0] == 2
    run.app.jobs.resume(run.id)
    assert run.work().status is JobStatus.SUCCEEDED


def test_a_disk_that_is_nearly_full_pauses_a_training_at_its_last_whole_step(run, monkeypatch):
    monkeypatch.setattr(room, "LOOK_EVERY_S", 0.0)
    paused = run.work(fill_at=3, leaving=RESERVE_BYTES - 2**20)
    assert (paused.status, paused.error.code) == (JobStatus.PAUSED, "disk_full")
    assert "nearly full" in paused.error.message
    assert run.checkpoints.newest()[0] == 3
    run.app.jobs.resume(run.id)
    again = run.work()  # nobody has freed anything
    assert (again.status, run.checkpoints.newest()[0]) == (JobStatus.PAUSED, 3)
    run.ballast.go()
    run.app.jobs.resume(run.id)
    assert run.work().status is JobStatus.SUCCEEDED
