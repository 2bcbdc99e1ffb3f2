"""The clock is set back or forward under the embedded queue."""

import pytest

from isengard.domain.job import Job, JobKind, JobStatus, Lane, Needs, Stop
from isengard.domain.worker import WorkerState
from isengard.errors import LeaseLost
from isengard.queue.sqlite import SqliteQueue
from isengard.services.workers import NO_WORKER, WorkerService
from tabs.progress import figures
from tests.clock import Clock

DAY_S = 86_400.0


@pytest.fixture
def clock():
    return Clock(1_000_000_000.0)


@pytest.fixture
def queue(tmp_path, clock):
    return SqliteQueue(tmp_path / "jobs.db", clock=clock)


def test_an_image_asked_for_before_the_clock_was_set_back_is_made_room_for(queue, clock):
    queue.enqueue(JobKind.TRAIN_LORA, {})
    training = queue.claim("w", lease_s=60)
    queue.enqueue(JobKind.GENERATE_IMAGES, {}, lane=Lane.INTERACTIVE)
    assert queue.heartbeat(training, lease_s=60).stop is None  # it has not waited for long
    clock.now -= DAY_S
    assert queue.heartbeat(training, lease_s=60).stop is Stop.YIELD


def test_it_is_not_left_to_a_worker_that_is_warm_for_a_day(queue, clock):
    needs = Needs(model="demo")
    queue.announce(WorkerState(name="warm", models=("demo",), warm="demo"))
    queue.announce(WorkerState(name="cold", models=("demo",)))
    job = queue.enqueue(JobKind.GENERATE_IMAGES, {}, lane=Lane.INTERACTIVE, needs=needs)
    assert queue.claim("cold", lease_s=60) is None
    clock.now -= DAY_S
    queue.announce(WorkerState(name="warm", models=("demo",), warm="demo"))
    assert queue.claim("cold", lease_s=60).id == job.id


def test_a_worker_that_died_before_the_clock_was_set_back_is_not_alive(queue, clock):
    service = WorkerService(queue=queue, machine=lambda: None, shared=False, clock=clock)
    queue.announce(WorkerState(name="w"))
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    assert service.why_waiting(job) == ""
    clock.now -= DAY_S
    assert service.why_waiting(job) == NO_WORKER


def test_the_job_of_a_dead_worker_waits_again_as_soon_as_that_is_back_whatever_the_clock_says(queue, clock):
    queue.enqueue(JobKind.TRAIN_LORA, {})
    queue.claim("w", lease_s=60)
    clock.now -= DAY_S
    assert queue.claim("w", lease_s=60) is None
    assert queue.release_worker("w") == 1
    assert queue.claim("w", lease_s=60).attempt == 2


def test_a_living_worker_keeps_its_job_when_the_clock_is_set_forward_and_nobody_has_taken_it(queue, clock):
    queue.enqueue(JobKind.TRAIN_LORA, {})
    job = queue.claim("w", lease_s=60)
    clock.now += DAY_S
    queue.heartbeat(job, lease_s=60)
    assert queue.claim("other", lease_s=60) is None


def test_who_has_lost_its_job_to_another_clock_is_refused(queue, clock):
    queue.enqueue(JobKind.TRAIN_LORA, {})
    job = queue.claim("w", lease_s=60)
    clock.now += DAY_S
    assert queue.claim("other", lease_s=60).attempt == 2
    with pytest.raises(LeaseLost):
        queue.heartbeat(job, lease_s=60)


def test_no_time_that_is_shown_is_less_than_nothing(clock):
    job = Job(
        id="a", kind=JobKind.TRAIN_LORA, lane=Lane.TRAINING, status=JobStatus.RUNNING, payload={}, created_at=clock(),
        started_at=clock(),
    )  # fmt: skip
    clock.now -= DAY_S
    assert figures(job, clock=clock)["elapsed"] == "0 s"
