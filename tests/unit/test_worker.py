"""What a worker makes of a job, and what a handler hears from ``report``."""

import json
import logging
import threading
import time

import pytest

from isengard import files, logs
from isengard import worker as worker_module
from isengard.domain.job import JobKind, JobStatus, Lane, Phase, Progress, Requests
from isengard.errors import (
    DiskFull,
    JobCancelled,
    JobPaused,
    JobSuspended,
    JobYielded,
    LeaseLost,
    QueueUnavailable,
    TrainingFailed,
    VolumeUnfit,
)
from isengard.queue.base import YIELD_AFTER_S
from isengard.queue.sqlite import SqliteQueue
from isengard.worker import OWN_FENCE, Reporter, Worker

LEASE = 60.0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class Unreliable:
    """A queue that cannot be reached while ``down``, and counts what it is asked."""

    def __init__(self, queue):
        self._queue, self.down, self.beats = queue, False, 0

    def __getattr__(self, name):
        def call(*arguments, **options):
            if name == "heartbeat":
                self.beats += 1
            if self.down:
                raise QueueUnavailable("the disk is gone")
            return getattr(self._queue, name)(*arguments, **options)

        return call


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(tmp_path, clock):
    return Unreliable(SqliteQueue(tmp_path / "jobs.db", clock=clock))


def training(step=1, total=100, **more):
    return Progress(phase=Phase.TRAINING, step=step, total=total, **more)


def worker(queue, handler, *, clock=time.monotonic, lease_s=LEASE):
    return Worker(queue=queue, handlers={JobKind.TRAIN_LORA: handler}, name="w", lease_s=lease_s, clock=clock)


def run(queue, handler, **options):
    """The job after one worker has run it once."""
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    assert worker(queue, handler, **options).run_one()
    return queue.get(job.id)


@pytest.fixture
def reporter(queue, clock):
    """The reporter of a claimed job, without its thread: it talks to the queue when its last answer is old."""
    queue.enqueue(JobKind.TRAIN_LORA, {})
    return make_reporter(queue, clock)


def make_reporter(queue, clock, *, stop=None, lease_s=LEASE):
    claimed_at = clock()
    job = queue.claim("w", lease_s=lease_s)
    made = Reporter(
        queue=queue,
        job=job,
        lease_s=lease_s,
        stop=stop or threading.Event(),
        clock=clock,
        claimed_at=claimed_at,
    )
    made.job = job
    return made


def until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen within 5 seconds")


# How a job ends


def test_without_a_job_there_is_nothing_to_do(queue):
    assert not worker(queue, lambda job, report: {}).run_one()


def test_the_handlers_result_is_kept(queue):
    job = run(queue, lambda job, report: {"lora": job.id})
    assert (job.status, job.result) == (JobStatus.SUCCEEDED, {"lora": job.id})


def test_the_last_progress_is_kept_however_short_the_job(queue):
    def handler(job, report):
        for step in range(1, 8):
            report(training(step))
        return {}

    assert run(queue, handler).progress.step == 7


def raising(error):
    def handler(job, report):
        raise error

    return handler


def test_an_expected_failure_is_told_in_its_own_words(queue):
    job = run(queue, raising(TrainingFailed("an image has vanished")))
    assert (job.status, job.error.code, job.error.message) == (
        JobStatus.FAILED,
        "training_failed",
        "an image has vanished",
    )


def test_a_full_disk_that_nobody_has_put_into_words_pauses_too(queue):
    job = run(queue, raising(OSError(28, "No space left on device")))
    assert job.status is JobStatus.PAUSED
    assert (
        job.error.message
        == "the disk is full ([Errno 28] No space left on device); free some space, then resume this"
    )


@pytest.mark.parametrize("error", [DiskFull, JobSuspended])
def test_a_job_without_room_on_the_disk_is_paused_with_the_reason_and_can_go_on(queue, error):
    job = run(queue, raising(error("no space left on /data")))
    assert (job.status, job.error.code, job.error.message) == (
        JobStatus.PAUSED,
        "disk_full",
        "no space left on /data",
    )
    queue.resume(job.id)
    assert worker(queue, lambda job, report: {}).run_one()
    assert queue.get(job.id).status is JobStatus.SUCCEEDED


def test_an_unexpected_failure_is_a_sentence_with_a_reference_into_the_log(queue, tmp_path):
    logs.configure(level="INFO", path=tmp_path / "log", terminal_level="CRITICAL")
    job = run(queue, raising(ZeroDivisionError("secret details")))
    assert job.error.code == "internal"
    assert "ZeroDivisionError" in job.error.message
    assert "secret details" not in job.error.message
    reference = job.error.message.rsplit(" ", 1)[1]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    failure = next(line for line in lines if line.get("reference") == reference)
    assert "secret details" in failure["exception"]


def test_a_failure_in_words_of_ours_shows_no_secret_either(queue):
    logs.hide(["tower-of-glass"])
    job = run(queue, raising(TrainingFailed("no picture at /data/tower-of-glass")))
    assert job.error.message == "no picture at /data/***"


def test_running_out_of_memory_says_what_to_change(queue):
    job = run(queue, raising(MemoryError()))
    assert job.error.code == "out_of_memory"
    assert "smaller resolution" in job.error.message


def test_a_job_whose_files_went_away_is_handed_back_and_none_is_claimed_until_they_are_there(queue):
    away = threading.Event()

    def check_files():
        if away.is_set():
            raise VolumeUnfit("the volume is not there any more")

    def lose(job, report):
        away.set()
        raise FileNotFoundError("a picture")

    jobs = [queue.enqueue(JobKind.TRAIN_LORA, {}) for _ in range(2)]
    ours = Worker(
        queue=queue, handlers={JobKind.TRAIN_LORA: lose}, name="w", lease_s=LEASE, check_files=check_files
    )
    assert ours.run_one()
    with pytest.raises(VolumeUnfit):
        ours.run_one()
    assert [queue.get(job.id).status for job in jobs] == [JobStatus.QUEUED] * 2
    assert "the volume is not there any more" in [event.detail for event in queue.events(jobs[0].id)]
    away.clear()
    assert ours.run_one()


def test_a_job_that_had_to_ask_a_queue_that_was_away_is_done_again_and_fails_not(queue, monkeypatch):
    monkeypatch.setattr(worker_module, "TRY_AGAIN_S", 0.0)
    answers = [QueueUnavailable("the server is away"), None]

    def ask(job, report):
        if error := answers.pop(0):
            raise error
        return {}

    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    ours = worker(queue, ask)
    assert ours.run_one()
    assert queue.get(job.id).status is JobStatus.QUEUED
    assert "the server is away" in [event.detail for event in queue.events(job.id)]
    assert ours.run_one()
    assert (queue.get(job.id).status, queue.get(job.id).attempt) == (JobStatus.SUCCEEDED, 1)


def test_a_kind_of_job_nobody_knows_fails_and_the_worker_goes_on(queue):
    job = queue.enqueue(JobKind.GENERATE_IMAGES, {})
    assert worker(queue, lambda job, report: {}).run_one()
    assert queue.get(job.id).status is JobStatus.FAILED


def test_every_line_logged_during_a_job_carries_its_id_its_fence_and_the_request(queue, tmp_path):
    logs.configure(level="INFO", path=tmp_path / "log", terminal_level="CRITICAL")

    def handler(job, report):
        logging.getLogger("diffusers.models").warning("from a library")
        return {}

    with logs.bound(correlation_id="request-7"):
        job = queue.enqueue(JobKind.TRAIN_LORA, {})
    worker(queue, handler).run_one()
    logging.getLogger("other").warning("afterwards")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    during = [line for line in lines if line["message"] != "afterwards"]
    assert "from a library" in {line["message"] for line in during}
    assert {(line["job_id"], line["correlation_id"]) for line in during} == {(job.id, "request-7")}
    assert {line["fence"] for line in during if line["message"] != "job queued"} == {1}
    assert "job_id" not in lines[-1]


@pytest.mark.parametrize(
    ("ask", "error", "status"),
    [("cancel", JobCancelled, JobStatus.CANCELLED), ("pause", JobPaused, JobStatus.PAUSED)],
)
def test_a_stop_ends_the_job_as_was_asked(queue, ask, error, status):
    def handler(job, report):
        getattr(queue, ask)(job.id)
        with pytest.raises(error):
            step_until_told(report)
        raise error

    assert run(queue, handler).status is status


def step_until_told(report):
    for step in range(1, 1000):
        report(training(step, total=0))
        time.sleep(0.01)


def test_a_job_that_was_taken_over_is_left_alone(queue):
    def handler(job, report):
        queue.release_worker("w")
        queue.claim("other", lease_s=LEASE)
        step_until_told(report)

    job = run(queue, handler)
    assert (job.status, job.worker) == (JobStatus.RUNNING, "other")


def test_a_result_of_a_job_that_was_taken_over_is_dropped(queue):
    def handler(job, report):
        queue.release_worker("w")
        return {}

    assert run(queue, handler).status is JobStatus.QUEUED


def test_a_result_is_told_again_until_the_queue_is_back(queue):
    def handler(job, report):
        queue.down = True
        threading.Timer(0.05, setattr, (queue, "down", False)).start()
        return {}

    assert run(queue, handler).status is JobStatus.SUCCEEDED


def test_a_result_that_cannot_be_told_for_the_time_of_a_lease_is_given_up(queue):
    def handler(job, report):
        queue.down = True
        return {}

    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    assert worker(queue, handler, lease_s=0.1).run_one()
    queue.down = False
    assert queue.get(job.id).status is JobStatus.RUNNING


# Loop and shutdown


def test_a_worker_runs_job_after_job_until_it_is_stopped(queue):
    stop, ids = threading.Event(), [queue.enqueue(JobKind.TRAIN_LORA, {}).id for _ in range(3)]

    def handler(job, report):
        if job.id == ids[-1]:
            stop.set()
        return {}

    worker(queue, handler).run(stop)
    assert {job.status for job in queue.jobs()} == {JobStatus.SUCCEEDED}


def test_a_worker_whose_job_left_things_behind_runs_no_other(queue):
    first, second = (queue.enqueue(JobKind.TRAIN_LORA, {}) for _ in range(2))
    ran = []
    ours = Worker(
        queue=queue,
        handlers={JobKind.TRAIN_LORA: lambda job, report: ran.append(job.id) or {}},
        name="w",
        lease_s=LEASE,
        spent=lambda: bool(ran),
    )
    ours.run(threading.Event())
    assert ran == [first.id]
    assert (queue.get(first.id).status, queue.get(second.id).status) == (
        JobStatus.SUCCEEDED,
        JobStatus.QUEUED,
    )


def test_a_stopped_worker_hands_its_job_back(queue):
    stop = threading.Event()

    def handler(job, report):
        stop.set()
        report(training())

    queue.enqueue(JobKind.TRAIN_LORA, {})
    worker(queue, handler).run(stop)
    job = queue.jobs()[0]
    assert (job.status, queue.events(job.id)[-2].detail) == (JobStatus.QUEUED, "the worker was stopped")


def test_an_idle_worker_outlives_an_unreachable_queue(queue, monkeypatch):
    monkeypatch.setattr("isengard.worker.TRY_AGAIN_S", 0.01)
    stop = threading.Event()
    thread = threading.Thread(
        target=worker(queue, lambda job, report: {}).run, args=(stop,), kwargs={"poll_s": 0.01}
    )
    queue.down = True
    thread.start()
    try:
        time.sleep(0.05)
        queue.down = False
        queue.enqueue(JobKind.TRAIN_LORA, {})
        until(lambda: queue.jobs()[0].status is JobStatus.SUCCEEDED)
    finally:
        stop.set()
        thread.join()


def test_a_worker_without_a_job_waits_until_the_queue_calls_it_or_cannot_be_reached(queue, monkeypatch):
    monkeypatch.setattr("isengard.worker.TRY_AGAIN_S", 0.01)
    stop, waits = threading.Event(), []

    def wait(name, seconds):
        waits.append((name, seconds))
        if len(waits) == 1:
            raise QueueUnavailable("the server is gone")
        stop.set()

    queue.wait = wait
    worker(queue, lambda job, report: {}).run(stop, poll_s=7)
    assert waits == [("w", 7), ("w", 7)]


# What report does


def test_reports_in_quick_succession_do_not_wait_for_the_queue(reporter, queue):
    for step in range(100):
        reporter(training(step))
    assert queue.beats == 0


def test_a_report_asks_the_queue_when_its_last_answer_is_old(reporter, queue, clock):
    clock.advance(1)
    reporter(training(5))
    assert queue.get(reporter.job.id).progress.step == 5
    assert queue.get(reporter.job.id).lease_until == clock.now + LEASE


@pytest.mark.parametrize(("ask", "error"), [("cancel", JobCancelled), ("pause", JobPaused)])
def test_a_slow_step_hears_of_a_stop_in_its_next_report(reporter, queue, clock, ask, error):
    getattr(queue, ask)(reporter.job.id)
    clock.advance(5)
    with pytest.raises(error):
        reporter(training())
    with pytest.raises(error):
        reporter(training())


def test_a_pause_that_was_withdrawn_is_forgotten(reporter, queue, clock):
    queue.pause(reporter.job.id)
    clock.advance(1)
    with pytest.raises(JobPaused):
        reporter(training())
    queue.resume(reporter.job.id)
    clock.advance(1)
    reporter(training())


def test_a_training_is_told_to_make_room(reporter, queue, clock):
    queue.enqueue(JobKind.GENERATE_IMAGES, {}, lane=Lane.INTERACTIVE)
    clock.advance(YIELD_AFTER_S)
    with pytest.raises(JobYielded, match="made room"):
        reporter(training())


def test_a_shutdown_is_heard_in_the_next_report_and_after_the_users_own_wish(queue, clock):
    stop = threading.Event()
    queue.enqueue(JobKind.TRAIN_LORA, {})
    reporter = make_reporter(queue, clock, stop=stop)
    stop.set()
    with pytest.raises(JobYielded, match="the worker was stopped"):
        reporter(training())
    queue.cancel(reporter.job.id)
    clock.advance(1)
    with pytest.raises(JobCancelled):
        reporter(training())


def test_save_and_sample_requests_are_gathered_and_given_once(reporter, queue, clock):
    queue.request(reporter.job.id, save=True)
    clock.advance(1)
    reporter._beat()
    queue.request(reporter.job.id, sample=True)
    reporter._beat()
    assert reporter(training()) == Requests(save=True, sample=True)
    assert reporter(training()) == Requests()


def test_a_former_owner_hears_it_and_says_no_more(reporter, queue, clock):
    clock.advance(LEASE)
    queue.claim("other", lease_s=LEASE)
    for _ in range(2):
        with pytest.raises(LeaseLost):
            reporter(training())
        clock.advance(1)
    assert queue.beats == 1


def test_a_long_pause_of_the_whole_process_costs_nothing_when_nobody_took_over(reporter, queue, clock):
    clock.advance(10 * LEASE)
    reporter(training(3))
    assert queue.get(reporter.job.id).progress.step == 3


def test_an_unreachable_queue_does_not_stop_a_job_before_most_of_its_lease_is_over(reporter, queue, clock):
    queue.down = True
    for _ in range(int(LEASE * OWN_FENCE)):
        clock.advance(1)
        reporter(training(9))
    clock.advance(1)
    with pytest.raises(LeaseLost, match=reporter.job.id):
        reporter(training(9))
    queue.down = False
    with pytest.raises(LeaseLost):
        reporter(training(9))


def test_progress_that_could_not_be_written_is_written_later(reporter, queue, clock):
    queue.down = True
    clock.advance(1)
    reporter(training(4))
    queue.down = False
    clock.advance(0.5)
    reporter(training(5))
    assert queue.get(reporter.job.id).progress is None
    clock.advance(0.5)
    reporter(training(6))
    assert queue.get(reporter.job.id).progress.step == 6


def test_news_is_written_at_once_and_all_else_now_and_then(reporter, queue):
    def written():
        return queue.get(reporter.job.id).progress

    with reporter.renewing():
        for news in (
            training(1),
            Progress(phase=Phase.VALIDATING, step=1, total=4),
            Progress(phase=Phase.VALIDATING, step=4, total=4),
            training(2, preview="a.png"),
        ):
            reporter(news)
            until(lambda news=news: written() == news)
        beats = queue.beats
        reporter(training(3, preview="a.png"))
        reporter(training(4, preview="a.png"))
        time.sleep(0.05)
        assert queue.beats == beats


def test_the_newest_progress_is_written_though_nothing_follows(queue):
    queue.enqueue(JobKind.TRAIN_LORA, {})
    reporter = make_reporter(queue, time.monotonic, lease_s=0.8)
    with reporter.renewing():
        for step in range(1, 50):
            reporter(training(step))
        until(lambda: queue.get(reporter.job.id).progress == training(49))


def test_the_lease_of_a_silent_job_is_renewed(queue, tmp_path):
    queue._queue = SqliteQueue(tmp_path / "real-time.db")
    queue.enqueue(JobKind.TRAIN_LORA, {})
    reporter = make_reporter(queue, time.monotonic, lease_s=0.4)
    first = reporter.job.lease_until
    with reporter.renewing():
        until(lambda: queue.get(reporter.job.id).lease_until > first + 0.4)
    assert queue.claim("other", lease_s=1) is None


def test_the_thread_ends_when_the_job_has_another_owner(queue):
    queue.enqueue(JobKind.TRAIN_LORA, {})
    reporter = make_reporter(queue, time.monotonic, lease_s=0.4)
    with reporter.renewing():
        queue.release_worker("w")
        until(lambda: not any(thread.name == "lease" for thread in threading.enumerate()))
        with pytest.raises(LeaseLost):
            reporter(training())


# What a worker that was stopped may still write


@pytest.fixture
def run_stopped(queue, clock, tmp_path):
    """Run a job that is stopped for ``seconds`` just before a file takes its place; what happens then, may happen."""

    def run_it(*, seconds, then=lambda: None):
        def handler(job, report):
            with files.replacing(tmp_path / "made") as temporary:
                temporary.write_text("whole")
                clock.advance(seconds)
                then()
            return {}

        job = queue.enqueue(JobKind.TRAIN_LORA, {})
        assert worker(queue, handler, clock=clock).run_one()
        queue.down = False
        return queue.get(job.id)

    return run_it


def test_a_worker_that_was_stopped_and_replaced_puts_no_file_in_its_place(run_stopped, queue, tmp_path):
    job = run_stopped(seconds=LEASE, then=lambda: queue.claim("other", lease_s=LEASE))
    assert (job.status, job.worker, job.fence) == (JobStatus.RUNNING, "other", 2)
    assert list(tmp_path.glob("made*")) == []


def test_a_worker_that_was_stopped_and_finds_no_queue_puts_no_file_in_its_place(run_stopped, queue, tmp_path):
    run_stopped(seconds=LEASE, then=lambda: setattr(queue, "down", True))
    assert list(tmp_path.glob("made*")) == []


def test_a_worker_that_was_stopped_and_not_replaced_goes_on_writing(run_stopped, tmp_path):
    assert run_stopped(seconds=10 * LEASE).status is JobStatus.SUCCEEDED
    assert (tmp_path / "made").read_text() == "whole"


def test_a_worker_that_was_stopped_sweeps_nothing_of_the_next_owners(queue, clock, tmp_path):
    theirs = tmp_path / f"step{files.PARTIAL}1"

    def handler(job, report):
        clock.advance(LEASE)
        queue.claim("other", lease_s=LEASE)
        theirs.touch()
        files.sweep(tmp_path)

    run(queue, handler, clock=clock)
    assert theirs.exists()


def test_a_worker_that_was_stopped_while_it_claimed_a_job_does_not_begin_it_when_it_is_anothers(queue, clock):
    begun = []

    class Late:
        def __getattr__(self, name):
            return getattr(queue, name)

        def claim(self, name, *, lease_s):
            job = queue.claim(name, lease_s=lease_s)
            clock.advance(lease_s)
            queue.claim("other", lease_s=lease_s)
            return job

    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    assert worker(Late(), lambda job, report: begun.append(job), clock=clock).run_one()
    assert (begun, queue.get(job.id).worker) == ([], "other")
