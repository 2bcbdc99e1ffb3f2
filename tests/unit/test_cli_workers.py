"""The commands around workers."""

import json
import time

import pytest
from typer.testing import CliRunner

from isengard.cli import app
from isengard.cli.follow import waiting
from isengard.domain.job import JobKind, Needs
from isengard.domain.worker import WorkerState
from isengard.queue.base import ALIVE_S
from isengard.queue.sqlite import SqliteQueue
from isengard.settings import Settings, WorkerMode
from isengard.wiring import build
from tests.machines import gpu


@pytest.fixture
def application(tmp_path):
    return build(Settings(data_dir=tmp_path, worker=WorkerMode.NONE))


@pytest.fixture
def queue(application):
    return application.queue


@pytest.fixture
def call(tmp_path):
    return lambda *words: CliRunner().invoke(app, ["--data-dir", str(tmp_path), *words])


def announce(queue, name="pod/cuda:0", **facts):
    return queue.announce(WorkerState(name=name, machine=gpu(24, name="RTX 4090"), **facts))


@pytest.fixture
def gone(tmp_path, queue):
    announce(SqliteQueue(tmp_path / "jobs.db", clock=lambda: time.time() - ALIVE_S - 1), name="gone/cuda:0")


def rows(said):
    return [line.split() for line in said.stdout.splitlines()]


def test_without_workers_the_list_says_how_to_start_one(call):
    assert "python -m isengard worker" in call("workers", "list").stdout


def test_the_list_shows_each_worker_with_its_card_memory_job_and_last_word(call, queue, gone):
    announce(queue, free_bytes=20 * 2**30)
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    queue.claim("pod/cuda:0", lease_s=60)
    _, first, second = rows(call("workers", "list"))
    memory = ["20.0", "GB", "of", "24.9", "GB"]
    assert first == ["pod/cuda:0", "RTX", "4090", *memory, job.id, "0", "s", "ago", "works"]
    assert (second[0], second[-1]) == ("gone/cuda:0", "gone")


def test_the_list_can_be_read_by_a_script(call, queue, gone):
    announce(queue, models=("sdxl",))
    found = json.loads(call("workers", "list", "--json").stdout)
    assert [(each["name"], each["alive"]) for each in found] == [("pod/cuda:0", True), ("gone/cuda:0", False)]
    assert found[0]["models"] == ["sdxl"]


def test_a_worker_is_drained_and_takes_jobs_again(call, queue):
    announce(queue)
    assert call("workers", "drain", "pod/cuda:0").stdout == "worker pod/cuda:0 takes no more jobs\n"
    assert rows(call("workers", "list"))[1][-4:] == ["idle,", "takes", "no", "more"]
    assert call("workers", "resume", "pod/cuda:0").stdout == "worker pod/cuda:0 takes jobs\n"
    assert not queue.workers()[0].draining


def test_a_busy_worker_is_drained_after_its_job(call, queue):
    announce(queue)
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    queue.claim("pod/cuda:0", lease_s=60)
    assert f"after job {job.id}" in call("workers", "drain", "pod/cuda:0").stdout


def test_a_worker_that_is_gone_is_forgotten(call, queue, gone):
    assert call("workers", "forget", "gone/cuda:0").exit_code == 0
    assert queue.workers() == []


def test_a_worker_that_is_not_there_is_named(call):
    said = call("workers", "drain", "nobody")
    assert (said.exit_code, "'nobody'" in said.stderr) == (1, True)


def test_jobs_say_why_they_wait_and_where_they_ran(call, queue):
    job = queue.enqueue(JobKind.TRAIN_LORA, {}, needs=Needs(model="sdxl"))
    announce(queue)
    said = "no running worker has the model 'sdxl' on its disk"
    assert f"job {job.id} waits: {said}" in call("jobs", "list").stdout
    assert f"waits  {said}" in call("jobs", "show", job.id).stdout
    announce(queue, models=("sdxl",))
    assert "waits" not in call("jobs", "list").stdout
    queue.claim("pod/cuda:0", lease_s=60)
    assert "runs on  pod/cuda:0" in call("jobs", "show", job.id).stdout
    queue.release_worker("pod/cuda:0")
    assert "ran on  pod/cuda:0" in call("jobs", "show", job.id).stdout


def test_who_watches_a_job_is_told_why_it_waits(application, queue):
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    assert waiting(application, job).startswith("waiting: no worker is running")


def test_who_watches_with_a_worker_of_their_own_waits_for_it_to_start(tmp_path):
    application = build(Settings(data_dir=tmp_path))
    jobs = [application.queue.enqueue(JobKind.TRAIN_LORA, {}) for _ in range(2)]
    said = [waiting(application, job) for job in jobs]
    assert said == ["waiting for a worker", "waiting, 1 before it"]
