"""The worker's command, and how it starts anew."""

import os
import signal
import sys
from types import ModuleType

import pytest
from typer.testing import CliRunner

from isengard.cli import app
from isengard.domain.job import JobKind, JobStatus
from isengard.equipment import is_spent
from isengard.queue.sqlite import SqliteQueue
from isengard.settings import Settings
from isengard.supervisor import is_held, lock_path
from tests.equipment import trains_with

COMMAND = ["python", "-m", "isengard", "--device", "cpu", "worker", "--once"]


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, device="cpu")


@pytest.fixture
def queue(settings):
    return SqliteQueue(settings.jobs_db)


@pytest.fixture
def work(settings, monkeypatch):
    """Run the command with a handler; what it put in its own place, if anything."""

    def work(handler, *options):
        replaced = []

        def execv(program, words):
            replaced.append((program, words, is_held(lock_path(settings))))

        monkeypatch.setattr("isengard.cli.worker.equip", lambda *_: trains_with(handler))
        monkeypatch.setattr("isengard.cli.worker.os.execv", execv)
        monkeypatch.setattr(sys, "orig_argv", COMMAND)
        words = ["--data-dir", str(settings.data_dir), "--device", "cpu", "worker", *options]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0
        return replaced

    return work


@pytest.fixture
def leave_traces(monkeypatch):
    return lambda: monkeypatch.setitem(sys.modules, "toolkit.accelerator", ModuleType("toolkit.accelerator"))


def test_a_process_is_spent_when_ai_toolkit_was_imported(leave_traces):
    assert not is_spent()
    leave_traces()
    assert is_spent()


def test_a_worker_without_traces_of_its_jobs_runs_them_all_and_ends(work, queue):
    jobs = [queue.enqueue(JobKind.TRAIN_LORA, {}) for _ in range(2)]
    assert work(lambda job, report: {}, "--once") == []
    assert {queue.get(job.id).status for job in jobs} == {JobStatus.SUCCEEDED}


@pytest.mark.parametrize("options", [["--once"], []])
def test_a_spent_worker_starts_its_own_command_line_anew_and_has_let_go_of_the_device(
    work, queue, leave_traces, options
):
    first, second = (queue.enqueue(JobKind.TRAIN_LORA, {}) for _ in range(2))
    replaced = work(lambda job, report: leave_traces() or {}, *options)
    assert replaced == [(sys.executable, COMMAND, False)]
    assert (queue.get(first.id).status, queue.get(second.id).status) == (
        JobStatus.SUCCEEDED,
        JobStatus.QUEUED,
    )


@pytest.mark.parametrize("options", [["--once"], []])
def test_a_spent_worker_that_is_told_to_stop_ends(work, queue, leave_traces, options):
    queue.enqueue(JobKind.TRAIN_LORA, {})

    def stopped(job, report):
        leave_traces()
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    assert work(stopped, *options) == []
