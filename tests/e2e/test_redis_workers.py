"""Worker processes that share a Valkey server: killed, stopped, cut off, and a page that follows them."""

import json
import signal
import subprocess
import sys

import pytest

from isengard.domain.job import JobKind, JobStatus, Phase
from isengard.queue.redis import RedisQueue
from isengard.settings import ROOT, Settings
from isengard.wiring import build
from tabs.training_live import log_lines
from tests.forked_workers import Moment, start_worker
from tests.redis_servers import Server
from tests.tiny_app import submit_training, tiny_app
from tests.waiting import until


@pytest.fixture
def server(tmp_path):
    one = Server(tmp_path / "valkey", durable=True)
    yield one
    one.kill()


@pytest.fixture
def settings(tmp_path, server):
    return Settings(data_dir=tmp_path / "data", device="cpu", redis_url=server.url)


@pytest.fixture
def start(settings):
    """Start a worker that counts; whatever is left of it is killed in the end."""
    started = []

    def start_one(device, *, lease_s=60.0):
        values = [str(settings.data_dir), device, str(lease_s), "0.01"]
        environment = settings.child_environment()
        command = [sys.executable, "-m", "tests.e2e.small_worker", *values]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def now(settings, job):
    """(attempt, step) of a counting job."""
    path = settings.runs_dir / job.id / "now"
    text = path.read_text() if path.exists() else ""
    return tuple(map(int, text.split())) or (0, 0)


def messages(settings):
    return [
        json.loads(line)["message"] for line in (settings.logs_dir / "worker.jsonl").read_text().splitlines()
    ]


def test_a_killed_workers_job_goes_on_with_another_without_a_missing_step(settings, server, start):
    queue = RedisQueue(server.url)
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 200})
    first = start("cuda:0", lease_s=1)
    until(lambda: now(settings, job) > (1, 9))
    first.kill()
    start("cuda:1", lease_s=1)
    until(lambda: queue.get(job.id).status is JobStatus.SUCCEEDED)
    ended = queue.get(job.id)
    assert ended.result == {"lines": [f"step {number}" for number in range(1, 201)]}
    assert ended.attempt >= 2


def test_a_worker_stopped_for_longer_than_its_lease_finds_its_job_taken(settings, server, start):
    queue = RedisQueue(server.url)
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 100_000})
    stopped = start("cuda:0", lease_s=1)
    until(lambda: now(settings, job) > (1, 3))
    stopped.send_signal(signal.SIGSTOP)
    start("cuda:1", lease_s=1)
    until(lambda: now(settings, job) >= (2, 1))
    stopped.send_signal(signal.SIGCONT)
    until(lambda: "job lost" in messages(settings))
    assert queue.get(job.id).attempt >= 2


def test_a_worker_outlives_a_server_that_is_killed_and_comes_back(settings, server, start):
    queue = RedisQueue(server.url)
    job = queue.enqueue(JobKind.TRAIN_LORA, {"steps": 500})
    start("cpu")
    until(lambda: now(settings, job) > (1, 3))
    for _ in range(2):
        server.kill()
        before = now(settings, job)
        until(lambda before=before: now(settings, job) > before)  # it works on
        server.start()
    until(lambda: queue.get(job.id).status is JobStatus.SUCCEEDED)
    ended = queue.get(job.id)
    assert (ended.attempt, len(ended.result["lines"])) == (1, 500)


@pytest.mark.slow
def test_a_real_training_is_taken_over_where_the_volume_is_mounted_elsewhere(tmp_path, server, tiny_flux):
    app = tiny_app(tmp_path, tiny_flux, redis_url=server.url, lease_s=2)
    job_id = submit_training(app, steps=30, save_every=5)
    assert not app.settings.jobs_db.exists()

    first = start_worker(
        app.settings.model_copy(update={"machine": "first"}), dies=Moment((Phase.TRAINING,), step=7)
    )
    until(lambda: not first.is_alive())
    elsewhere = app.settings.data_dir.rename(tmp_path / "elsewhere")
    page = build(app.settings.model_copy(update={"data_dir": elsewhere}))
    second = start_worker(page.settings.model_copy(update={"machine": "second"}))
    try:
        until(lambda: page.jobs.get(job_id).status.ended, alive=second.is_alive)
    finally:
        second.kill()
        second.join()
    job = page.jobs.get(job_id)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    assert job.attempt >= 2
    steps = [row["step"] for row in page.jobs.metrics(job_id) if "loss" in row]
    assert steps == list(range(1, 31))
    assert not app.settings.data_dir.exists()
    logs = [page.settings.log_file("worker", machine=machine) for machine in ("first", "second")]
    said = [line["text"] for line in log_lines(logs, job_id)]
    assert "A worker has started it, attempt 1" in said
    assert said[-1] == "Done"
