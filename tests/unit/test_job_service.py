"""What the page and the command line may do with jobs."""

import pytest

from isengard.domain.job import JobKind, JobStatus, Lane, Stop
from isengard.errors import Conflict, NotFound
from isengard.queue.sqlite import SqliteQueue
from isengard.services.jobs import JobService


@pytest.fixture
def queue(tmp_path):
    return SqliteQueue(tmp_path / "jobs.db")


@pytest.fixture
def service(queue, tmp_path):
    return JobService(queue=queue, runs_dir=tmp_path / "runs")


def running(queue):
    queue.enqueue(JobKind.TRAIN_LORA, {})
    return queue.claim("w", lease_s=60)


def test_it_lists_and_finds_jobs_with_their_history(service, queue):
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    image = queue.enqueue(JobKind.GENERATE_IMAGES, {}, lane=Lane.INTERACTIVE)
    assert [found.id for found in service.jobs()] == [image.id, job.id]
    assert [found.id for found in service.jobs(kinds=[JobKind.TRAIN_LORA], limit=1)] == [job.id]
    assert service.jobs(statuses=[JobStatus.PAUSED]) == []
    assert service.get(job.id) == job
    assert [event.kind for event in service.history(job.id)] == ["queued"]


def test_it_says_how_many_jobs_are_before_one(service, queue):
    running(queue)
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    queue.enqueue(JobKind.GENERATE_IMAGES, {}, lane=Lane.INTERACTIVE)
    assert service.ahead(job.id) == 2
    queue.cancel(job.id)
    assert service.ahead(job.id) == 0


def test_it_passes_the_users_wishes_on(service, queue):
    job = running(queue)
    service.save_now(job.id)
    service.sample_now(job.id)
    requests = queue.heartbeat(job, lease_s=60).requests
    assert (requests.save, requests.sample) == (True, True)
    assert service.pause(job.id).stop is Stop.PAUSE
    assert service.resume(job.id).stop is None
    assert service.cancel(job.id).stop is Stop.CANCEL


def test_it_moves_waiting_jobs(service, queue):
    first, second = (queue.enqueue(JobKind.TRAIN_LORA, {}) for _ in range(2))
    service.move(second.id, before=first.id)
    assert [job.id for job in service.jobs()] == [second.id, first.id]


def test_the_metrics_of_a_run_are_read_while_a_line_is_being_written(service, queue):
    job = running(queue)
    assert service.metrics(job.id) == []
    folder = service.run_dir(job.id)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert service.metrics(job.id) == [{"step": 1, "loss": 0.5}]
    with pytest.raises(NotFound):
        service.metrics("../runs")


def test_an_ended_job_is_removed_with_its_folder(service, queue):
    job = running(queue)
    folder = service.run_dir(job.id)
    (folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(Conflict):
        service.remove(job.id)
    assert folder.exists()
    queue.succeed(job, {})
    service.remove(job.id)
    assert not folder.exists()
    with pytest.raises(NotFound):
        service.get(job.id)
