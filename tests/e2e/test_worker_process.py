"""Workers as processes: killed, stopped, continued, doubled, supervised."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from isengard.domain.job import JobKind, JobStatus
from isengard.errors import QueueUnavailable
from isengard.queue.sqlite import SqliteQueue
from isengard.settings import ROOT, Settings, WorkerMode
from isengard.supervisor import Supervisor, is_held, local_worker, lock_path, worker_name
from tests.equipment import trains_with
from tests.waiting import PATIENCE_S, until

SMALL_WORKER = [sys.executable, "-m", "tests.e2e.small_worker"]


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data", device="cpu")


@pytest.fixture
def queue(settings):
    return SqliteQueue(settings.jobs_db)


def command(settings, *, device="cpu", lease_s=60.0, step_s=0.01):
    return [*SMALL_WORKER, str(settings.data_dir), device, str(lease_s), str(step_s)]


@pytest.fixture
def start(settings):
    """Start a small worker; whatever is left of it is killed in the end."""
    started = []

    def start_one(**options):
        process = subprocess.Popen(command(settings, **options), stderr=subprocess.PIPE, cwd=ROOT)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def now(settings, job):
    """(attempt, step) of a counting job."""
    path = settings.runs_dir / job.id / "now"
    text = path.read_text() if path.exists() else ""
    return tuple(map(int, text.split())) or (0, 0)


def log_lines(settings):
    return [json.loads(line) for line in (settings.logs_dir / "worker.jsonl").read_text().splitlines()]


def test_a_job_killed_five_times_misses_and_doubles_no_step(settings, queue, start):
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 200})
    for kill in range(1, 6):
        worker = start()
        until(lambda kill=kill: now(settings, job) > (kill, 0) and now(settings, job)[1] >= 9 * kill)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    start()
    until(lambda: queue.get(job.id).status is JobStatus.SUCCEEDED)
    ended = queue.get(job.id)
    assert ended.result == {"lines": [f"step {number}" for number in range(1, 201)]}
    assert ended.attempt == 6
    assert [event.kind for event in queue.events(job.id)].count("lost") == 5


def test_a_worker_stopped_for_longer_than_its_lease_is_refused(settings, queue, start):
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 100_000})
    stopped = start(lease_s=1, device="cpu")
    until(lambda: now(settings, job) > (1, 3))
    stopped.send_signal(signal.SIGSTOP)
    start(lease_s=1, device="cuda:0")
    until(lambda: now(settings, job) >= (2, 1))
    stopped.send_signal(signal.SIGCONT)
    until(lambda: "job lost" in [line["message"] for line in log_lines(settings)])
    running = queue.get(job.id)
    assert (running.status, running.attempt) == (JobStatus.RUNNING, 2)
    assert running.worker.endswith("/cuda:0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_told_to_end_saves_its_job_and_hands_it_back(settings, queue, start, number):
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 100_000})
    worker = start()
    until(lambda: now(settings, job) > (1, 3))
    worker.send_signal(number)
    assert worker.wait(10) == 0
    back = queue.get(job.id)
    assert (back.status, back.attempt) == (JobStatus.QUEUED, 1)
    saved = (settings.runs_dir / job.id / "saved").read_text().splitlines()
    assert len(saved) == now(settings, job)[1]
    assert queue.events(job.id)[-2].detail == "the worker was stopped"


def test_a_cancel_from_another_process_is_obeyed_within_two_seconds(settings, queue, start):
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 100_000})
    start()
    until(lambda: now(settings, job) > (1, 3))
    queue.cancel(job.id)
    asked_at = time.monotonic()
    until(lambda: queue.get(job.id).status is JobStatus.CANCELLED)
    assert time.monotonic() - asked_at < 2


def test_a_second_worker_of_the_same_name_is_refused_in_plain_words(settings, queue, start):
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 100_000})
    start()
    until(lambda: now(settings, job) > (1, 1))
    _, said = start().communicate(timeout=PATIENCE_S)
    assert f"a worker for {worker_name(settings)} is running already" in said.decode()
    assert queue.get(job.id).attempt == 1


# Supervision


def supervise(settings, command, **options):
    output = settings.logs_dir / "output"
    environment = settings.child_environment()
    return Supervisor(
        command=command, environment=environment, lock=lock_path(settings), output=output, **options
    )


def test_a_worker_that_dies_is_started_again_and_ended_in_the_end(settings, queue, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the app may be started from anywhere
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 100_000})
    supervisor = supervise(settings, command(settings), first_pause_s=0.01)
    supervisor.start()
    try:
        until(lambda: now(settings, job) > (1, 3))
        os.kill(log_lines(settings)[-1]["pid"], signal.SIGKILL)
        until(lambda: now(settings, job) >= (2, 1))
    finally:
        supervisor.stop()
    assert queue.get(job.id).status is JobStatus.QUEUED
    assert not is_held(lock_path(settings))


def test_a_worker_that_dies_at_once_is_started_again_ever_more_slowly(settings, caplog):
    pauses = []
    supervisor = supervise(settings, [sys.executable, "-S", "-c", "print('x')"], first_pause_s=0.01)
    wait = supervisor._stop.wait

    def noting(seconds):
        pauses.append(seconds)
        return wait(seconds)

    supervisor._stop.wait = noting
    supervisor.start()
    until(lambda: 0.04 in pauses)
    supervisor.stop()
    assert [pause for pause in pauses if pause < 0.1][:3] == [0.01, 0.02, 0.04]
    assert (settings.logs_dir / "output").read_text().startswith("x\nx\n")
    assert caplog.records[0].returncode == 0


def test_a_worker_that_cannot_be_started_on_this_disk_just_now_is_tried_again(settings, caplog):
    settings.logs_dir.parent.mkdir(parents=True)
    settings.logs_dir.write_text("a file where a folder has to be")
    supervisor = supervise(settings, [sys.executable, "-S", "-c", "print('x')"], first_pause_s=0.01)
    supervisor.start()
    until(lambda: "no worker can start" in caplog.text)
    settings.logs_dir.unlink()
    until(lambda: (settings.logs_dir / "output").exists())
    supervisor.stop()


def test_a_worker_that_lived_long_is_started_again_without_delay(settings):
    ticks = iter(range(0, 10_000, 100))
    pauses = []
    supervisor = supervise(
        settings, [sys.executable, "-S", "-c", ""], first_pause_s=0.01, clock=lambda: next(ticks)
    )
    wait = supervisor._stop.wait

    def noting(seconds):
        pauses.append(seconds)
        return wait(seconds)

    supervisor._stop.wait = noting
    supervisor.start()
    until(lambda: pauses.count(0.01) >= 3)
    supervisor.stop()
    assert 0.02 not in pauses


def test_a_worker_that_does_not_end_in_time_is_killed(settings):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    supervisor = supervise(settings, [sys.executable, "-S", "-c", stubborn], grace_s=0.05)
    supervisor.start()
    output = settings.logs_dir / "output"
    until(lambda: output.exists() and output.read_text())
    began = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began < 5


def test_a_worker_ends_with_the_process_that_started_it(settings, queue):
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 100_000})
    line = [*command(settings), "PARENT"]
    script = f"import os, subprocess; subprocess.Popen([str(os.getpid()) if a == 'PARENT' else a for a in {line!r}]).wait()"
    parent = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: now(settings, job) > (1, 3))
    parent.kill()
    parent.wait()
    until(lambda: queue.get(job.id).status is JobStatus.QUEUED)
    until(lambda: not is_held(lock_path(settings)))


# The worker of a command


def done(job, report):
    return {}


def with_mode(settings, mode):
    return settings.model_copy(update={"worker": mode})


def test_a_local_worker_in_a_thread_runs_jobs_while_the_block_lasts(settings, queue):
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    ours = with_mode(settings, WorkerMode.THREAD)
    with local_worker(ours, queue, lambda: trains_with(done)):
        until(lambda: queue.get(job.id).status is JobStatus.SUCCEEDED)
    assert not is_held(lock_path(ours))


def test_a_job_that_does_not_end_in_time_does_not_hold_the_program_up(settings, queue, monkeypatch):
    monkeypatch.setattr("isengard.supervisor.GRACE_S", 0.05)
    begun, enough = threading.Event(), threading.Event()

    def stubborn(job, report):
        begun.set()
        enough.wait(60)
        return {}

    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    try:
        with local_worker(with_mode(settings, WorkerMode.THREAD), queue, lambda: trains_with(stubborn)):
            assert begun.wait(PATIENCE_S)
        assert queue.get(job.id).status is JobStatus.RUNNING
    finally:
        enough.set()
    until(lambda: queue.get(job.id).status is JobStatus.SUCCEEDED)
    until(lambda: not is_held(lock_path(settings)))


def test_a_local_thread_waits_while_another_process_is_the_worker_and_then_takes_over(
    settings, queue, start, monkeypatch
):
    monkeypatch.setattr("isengard.supervisor.LOOK_EVERY_S", 0.02)
    other = start()
    until(lambda: is_held(lock_path(settings)))
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 100_000})
    until(lambda: now(settings, job) > (1, 3))
    with local_worker(with_mode(settings, WorkerMode.THREAD), queue, lambda: trains_with(done)):
        time.sleep(0.1)
        assert queue.get(job.id).status is JobStatus.RUNNING
        other.kill()
        until(lambda: queue.get(job.id).result == {})


def test_a_supervisor_starts_nothing_while_another_process_is_the_worker(settings, queue, start):
    start()
    until(lambda: is_held(lock_path(settings)))
    supervisor = supervise(settings, [sys.executable, "-S", "-c", "print(1)"])
    supervisor.start()
    time.sleep(0.1)
    supervisor.stop()
    assert not (settings.logs_dir / "output").exists()


def test_a_local_worker_may_be_switched_off(settings, queue):
    with local_worker(with_mode(settings, WorkerMode.NONE), queue, dict):
        assert not is_held(lock_path(settings))


@pytest.mark.slow
def test_a_local_worker_is_a_process_of_its_own_by_default(settings, queue):
    with local_worker(settings, queue, lambda: trains_with(done)):
        until(lambda: is_held(lock_path(settings)))
    assert not is_held(lock_path(settings))


def test_a_thread_outlives_a_queue_that_cannot_be_reached_at_first(settings, queue):
    failures = iter([QueueUnavailable("busy"), None])

    class Busy:
        def __getattr__(self, name):
            return getattr(queue, name)

        def release_worker(self, name):
            if error := next(failures):
                raise error
            return queue.release_worker(name)

    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    with local_worker(with_mode(settings, WorkerMode.THREAD), Busy(), lambda: trains_with(done)):
        until(lambda: queue.get(job.id).status is JobStatus.SUCCEEDED)
