"""The commands around jobs, and what is shown while one runs."""

import io
import json
import threading
import time
from dataclasses import replace

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from isengard.cli import app
from isengard.cli.follow import Bars, Lines, duration, facts, follow
from isengard.domain.job import JobError, JobKind, JobStatus, Lane, Phase, Progress
from isengard.errors import QueueUnavailable
from isengard.services.jobs import JobService
from isengard.settings import Settings, WorkerMode
from isengard.supervisor import only_worker
from isengard.wiring import build
from isengard.worker import Worker
from tests.equipment import trains_with


@pytest.fixture
def application(tmp_path):
    return build(Settings(data_dir=tmp_path, worker=WorkerMode.NONE))


@pytest.fixture
def queue(application):
    return application.queue


@pytest.fixture
def call(tmp_path):
    def invoke(*words, stdin=None):
        return CliRunner().invoke(app, ["--data-dir", str(tmp_path), "--worker", "none", *words], input=stdin)

    return invoke


def waiting(queue):
    return queue.enqueue(JobKind.TRAIN_LORA, {"spec": {"character": "nova"}})


def running(queue):
    waiting(queue)
    return queue.claim("w", lease_s=60)


def training(step, **more):
    return Progress(phase=Phase.TRAINING, step=step, total=10, **more)


# Commands


def test_the_list_shows_each_job_in_one_line(call, queue):
    job = running(queue)
    queue.heartbeat(job, lease_s=60, progress=training(3))
    queue.cancel(job.id)
    spec = {"prompt": "a photo of [trigger] " + "x" * 100}
    image = queue.enqueue(JobKind.GENERATE_IMAGES, {"spec": spec}, lane=Lane.INTERACTIVE)
    said = call("jobs", "list")
    lines = said.stdout.splitlines()
    assert said.exit_code == 0
    assert lines[1].split()[:-2] == f"{job.id} training of nova cancelling training 3/10".split()
    assert lines[2].startswith(f" {image.id}  images: a photo")
    assert "…" in said.stdout


def test_an_empty_list_says_so_and_is_empty_for_a_script(call):
    assert call("jobs", "list").stdout == "no jobs yet\n"
    assert json.loads(call("jobs", "list", "--json").stdout) == []


def test_the_list_can_be_read_by_a_script(call, queue):
    jobs = [waiting(queue) for _ in range(3)]
    listed = json.loads(call("jobs", "list", "--json", "--limit", "2").stdout)
    assert [job["id"] for job in listed] == [job.id for job in jobs[:2]]


def test_one_job_is_shown_with_its_course_and_history(call, queue, tmp_path):
    job = running(queue)
    queue.heartbeat(job, lease_s=60, progress=training(3, loss=0.25))
    queue.fail(job, JobError(code="disk_full", message="no space left"))
    said = call("jobs", "show", job.id).stdout
    for part in ("nova", "failed", "training 3/10", "loss 0.2500", "no space left", "claimed by w", "took"):
        assert part in said
    assert str(tmp_path / "runs" / job.id) in said


def test_one_job_can_be_read_by_a_script(call, queue):
    job = waiting(queue)
    shown = json.loads(call("jobs", "show", job.id, "--json").stdout)
    assert (shown["id"], [event["kind"] for event in shown["history"]]) == (job.id, ["queued"])


def test_a_waiting_job_is_shown_without_what_it_has_not_got(call, queue):
    said = call("jobs", "show", waiting(queue).id).stdout
    assert "error" not in said
    assert "course" not in said


def test_waiting_jobs_change_at_once(call, queue):
    job = waiting(queue)
    assert call("jobs", "pause", job.id).stdout == f"job {job.id} is paused\n"
    assert call("jobs", "resume", job.id).stdout == f"job {job.id} waits again\n"
    assert call("jobs", "cancel", job.id).stdout == f"job {job.id} is cancelled\n"


def test_running_jobs_change_at_their_next_step(call, queue):
    job = running(queue)
    assert call("jobs", "pause", job.id).stdout == f"job {job.id} saves and pauses at its next step\n"
    assert call("jobs", "resume", job.id).stdout == f"job {job.id} goes on\n"
    assert call("jobs", "cancel", job.id).stdout == f"job {job.id} ends at its next step\n"
    assert call("jobs", "save", job.id).exit_code == 0
    assert call("jobs", "sample", job.id).exit_code == 0
    assert queue.get(job.id).stop == "cancel"


def test_a_job_is_moved_before_another_or_to_the_end(call, queue):
    first, second = waiting(queue), waiting(queue)
    assert "before" in call("jobs", "move", second.id, "--before", first.id).stdout
    assert [job.id for job in queue.jobs()] == [second.id, first.id]
    assert "at the end" in call("jobs", "move", second.id).stdout
    assert [job.id for job in queue.jobs()] == [first.id, second.id]


def test_an_impossible_wish_is_one_line_and_exit_code_1(call, queue):
    said = call("jobs", "pause", "nowhere")
    assert said.exit_code == 1
    assert said.stderr.splitlines() == [
        "error: there is no job 'nowhere'; `python -m isengard jobs list` shows all of them"
    ]


def test_removing_asks_first(call, queue, tmp_path):
    job = waiting(queue)
    queue.cancel(job.id)
    (tmp_path / "runs" / job.id).mkdir(parents=True)
    assert call("jobs", "remove", job.id, stdin="n\n").exit_code == 1
    assert queue.get(job.id)
    assert call("jobs", "remove", job.id, stdin="y\n").exit_code == 0
    assert not (tmp_path / "runs" / job.id).exists()


def test_removing_can_be_told_not_to_ask(call, queue):
    job = waiting(queue)
    assert call("jobs", "remove", job.id, "--yes").exit_code == 1
    queue.cancel(job.id)
    assert call("jobs", "remove", job.id, "--yes").exit_code == 0
    assert queue.jobs() == []


def test_the_worker_command_refuses_to_be_the_second(call, application):
    with only_worker(application.settings, application.queue):
        said = call("worker", "--once")
    assert said.exit_code == 1
    assert "is running already" in said.stderr


@pytest.fixture
def counting(monkeypatch):
    """Handlers that come without the engines, whose import takes seconds."""
    monkeypatch.setattr("isengard.cli.worker.equip", lambda *_: trains_with(steps))


def test_a_worker_can_end_when_nothing_waits_any_more(call, queue, counting):
    jobs = [waiting(queue) for _ in range(2)]
    said = call("worker", "--once")
    assert (said.exit_code, "is ready" in said.stderr) == (0, True)
    assert [queue.get(job.id).status for job in jobs] == [JobStatus.SUCCEEDED] * 2


def test_a_worker_of_a_dead_parent_ends_by_itself(call, queue, counting):
    job = waiting(queue)
    assert call("worker", "--parent", "1000000000").exit_code == 0
    assert queue.get(job.id).status is JobStatus.QUEUED


# Following


@pytest.fixture
def working(queue):
    """Give a function that runs a worker with one handler beside the test."""
    stop, threads = threading.Event(), []

    def start(handler):
        worker = Worker(queue=queue, handlers={JobKind.TRAIN_LORA: handler}, name="w", lease_s=60)
        threads.append(threading.Thread(target=worker.run, args=(stop,), kwargs={"poll_s": 0.01}))
        threads[0].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def steps(job, report):
    for step in range(11):
        report(training(step, loss=0.5))
        time.sleep(0.05)
    return {}


def test_watching_ends_with_the_job(call, queue, working):
    job = waiting(queue)
    working(steps)
    said = call("jobs", "watch", job.id)
    assert (said.exit_code, said.stdout) == (0, f"job {job.id} is succeeded\n")
    assert "training" in said.stderr
    assert "loss 0.5000" in said.stderr


def test_watching_a_job_that_fails_says_why_and_ends_with_1(call, queue):
    job = running(queue)
    queue.fail(job, JobError(code="disk_full", message="no space left"))
    said = call("jobs", "watch", job.id)
    assert (said.exit_code, said.stderr) == (1, f"error: no space left (job {job.id})\n")


def test_a_paused_job_is_not_waited_for(application, queue, call):
    job = waiting(queue)
    queue.pause(job.id)
    assert f"error: job {job.id} is paused" in call("jobs", "watch", job.id).stderr
    assert follow(application, job.id).status is JobStatus.PAUSED


def test_in_a_terminal_a_bar_moves(application, queue, working, capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    job = waiting(queue)
    working(steps)
    assert follow(application, job.id).status is JobStatus.SUCCEEDED
    assert "training" in capsys.readouterr().err


def test_a_lost_worker_is_mentioned(application, queue, working, capsys):
    def dying_once(job, report):
        if job.attempt == 1:
            queue.release_worker("w")
        return steps(job, report)

    job = waiting(queue)
    working(dying_once)
    follow(application, job.id)
    assert "the worker was lost; attempt 2" in capsys.readouterr().err


def test_a_worker_lost_long_ago_is_not(application, queue, working, capsys):
    job = running(queue)
    queue.release_worker("w")
    queue.claim("w", lease_s=60)
    queue.release_worker("w")
    queue.cancel(job.id)
    follow(application, job.id)
    assert "lost" not in capsys.readouterr().err


def test_a_job_list_that_goes_away_is_waited_for(application, queue, capsys):
    class Away(JobService):
        left = 3

        def listening(self, job_id):
            self.left -= 1
            if self.left:
                raise QueueUnavailable("the server is gone")
            return super().listening(job_id)

    job = running(queue)
    queue.succeed(job, {})
    jobs = Away(queue=queue, runs_dir=application.settings.runs_dir)
    assert follow(replace(application, jobs=jobs), job.id).status is JobStatus.SUCCEEDED
    assert capsys.readouterr().err.count("the server is gone") == 1


def test_ctrl_c_ends_the_watching_and_not_the_job(application, queue, capsys):
    class Interrupted(JobService):
        def ahead(self, job_id):
            raise KeyboardInterrupt

    job = waiting(queue)
    jobs = Interrupted(queue=queue, runs_dir=application.settings.runs_dir)
    with pytest.raises(typer.Exit) as ended:
        follow(replace(application, jobs=jobs), job.id)
    assert ended.value.exit_code == 130
    assert f"jobs cancel {job.id}" in capsys.readouterr().err
    assert queue.get(job.id).status is JobStatus.QUEUED


# Words


def screen(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=200, markup=False)


def test_lines_come_for_each_new_phase_and_then_now_and_then():
    now = [-2.0]
    console = screen(terminal=False)
    with Lines(console, clock=lambda: now[0]) as lines:
        lines.show("only for a moment", None)
        now[0] = 0.0
        lines.show("waiting for a worker", None)
        lines.show("", training(1))
        lines.show("", Progress(phase=Phase.SAVING))
        lines.show("", training(2))
        now[0] = 10.0
        lines.show("", training(2))
        lines.show("", training(3))
        lines.show("", training(4))
    assert console.file.getvalue().splitlines() == [
        "waiting for a worker",
        "training 1/10",
        "saving",
        "training 2/10",
    ]


def test_the_bar_stays_with_the_training_while_it_saves_or_validates():
    console = screen(terminal=True)
    with Bars(console) as bars:
        bars.show("waiting, 1 before it", None)
        bars.show("", training(7))
        bars.show("", Progress(phase=Phase.VALIDATING, step=1, total=2))
        bars.say("something happened")
        task = bars._bar.tasks[0]
        assert (task.description, task.completed, task.total) == (Phase.VALIDATING, 7, 10)
    assert "something happened" in console.file.getvalue()


def test_facts_say_what_is_known():
    assert facts(training(1)) == ""
    known = training(1, loss=0.5, validation_loss=0.25, steps_per_s=4, eta_s=69, message="rank [8]")
    assert facts(known) == "loss 0.5000, validation 0.2500, 4.0 steps/s, 1:09 min left, rank [8]"
    assert facts(training(1, steps_per_s=0.25)) == "4.0 s/step"
    assert facts(training(1, steps_per_s=0)) == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(7.6, "8 s"), (60, "1:00 min"), (3599.6, "1:00 h"), (7500, "2:05 h")]
)
def test_durations_are_short(seconds, said):
    assert duration(seconds) == said
