"""Reading the logs of all processes, and the command that shows them."""

import json
import threading

import pytest
from typer.testing import CliRunner

from isengard import supervisor
from isengard.cli import app, log_lines
from isengard.domain.job import JobKind
from isengard.settings import Settings
from isengard.store.log_files import LogFiles, tail
from isengard.supervisor import Supervisor
from isengard.wiring import build


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "logs"
    made.mkdir()
    return made


@pytest.fixture
def write(folder):
    """Append a line to a log; ``at`` is the second of its time."""

    def write(name, message="a line", at=0, level="INFO", **fields):
        line = {"time": f"2026-11-23T12:00:{at:02}.000+00:00", "level": level, "message": message, **fields}
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return write


def said(lines):
    return [(line.log, line.record["message"]) for line in lines]


def test_the_lines_about_a_job_are_gathered_from_all_files_by_their_time(folder, write):
    write("worker.jsonl", "fourth", 4, job_id="a1")
    write("worker.jsonl.20261123T115900.000000-7", "second", 2, job_id="a1")
    write("page.jsonl", "first", 1, job_id="a1")
    write("worker-pod-2.jsonl", "third", 3, job_id="a1")
    write("page.jsonl", "another job", 1, job_id="b2")
    write("page.jsonl", "named in passing", 1, other="a1")
    assert said(LogFiles(folder).news("a1")) == [
        ("page", "first"),
        ("worker", "second"),
        ("worker-pod-2", "third"),
        ("worker", "fourth"),
    ]


@pytest.mark.parametrize("field", ["correlation_id", "reference"])
def test_a_failed_request_is_found_by_the_reference_that_the_user_was_told(folder, write, field):
    write("page.jsonl", "handler crashed", **{field: "c0ffee"})
    assert said(LogFiles(folder).news("c0ffee")) == [("page", "handler crashed")]


def test_each_line_is_told_once_also_when_its_file_was_set_aside_meanwhile(folder, write):
    files = LogFiles(folder)
    write("worker.jsonl", "first", job_id="a1")
    assert len(files.news("a1")) == 1
    write("worker.jsonl", "second", job_id="a1")
    (folder / "worker.jsonl").rename(folder / "worker.jsonl.20261123T120000.000000-7")
    write("worker.jsonl", "third", job_id="a1")
    assert said(files.news("a1")) == [("worker", "second"), ("worker", "third")]
    assert files.news("a1") == []


def test_a_line_is_told_when_it_is_whole(folder, write):
    files = LogFiles(folder)
    write("worker.jsonl", "first", job_id="a1")
    whole = (folder / "worker.jsonl").read_bytes()
    (folder / "worker.jsonl").write_bytes(whole[:-20])
    assert files.news("a1") == []
    (folder / "worker.jsonl").write_bytes(whole + b'no JSON "a1"\n["a1"]\n')
    assert len(files.news("a1")) == 1


def test_a_file_that_was_begun_anew_is_read_from_its_start(folder, write):
    files = LogFiles(folder)
    write("worker.jsonl", "a long line of another time", job_id="a1")
    files.news("a1")
    (folder / "worker.jsonl").write_text("")
    write("worker.jsonl", "new", job_id="a1")
    assert said(files.news("a1")) == [("worker", "new")]


def test_the_end_of_a_file_is_its_last_whole_lines(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("first\nsecond\nthird\n")
    assert tail(path, 100) == "first\nsecond\nthird\n"
    assert tail(path, 9) == "third\n"
    assert tail(tmp_path / "none", 9) == ""


# The command


@pytest.fixture
def call(tmp_path):
    return lambda *words: CliRunner().invoke(app, ["--data-dir", str(tmp_path), "logs", *words])


def test_lines_are_shown_with_their_facts_and_a_traceback(call, write):
    write("worker.jsonl", "job started", 1, job_id="a1", kind="train_lora", attempt=1, pid=7, fence=3)
    write("worker.jsonl", "job failed", 2, "ERROR", job_id="a1", exception="Traceback\n  boom")
    first, second, *trace = call("a1").stdout.splitlines()
    assert first.endswith(":01 worker info: job started kind=train_lora attempt=1")
    assert second.endswith(":02 worker error: job failed")
    assert trace == ["    Traceback", "      boom"]


def test_what_a_stranger_typed_is_no_command_for_the_terminal_and_no_line_of_its_own(call, write):
    write("page.jsonl", "refused", job_id="a1", error="\x1b[2J\nworker info: all is well")
    (line,) = call("a1").stdout.splitlines()
    assert line.endswith(r"error=\x1b[2J\nworker info: all is well")


def test_lines_are_given_as_json_as_they_were_written(call, write):
    write("worker.jsonl", "[job] größer", job_id="a1")
    assert json.loads(call("a1", "--json").stdout)["message"] == "[job] größer"


def test_a_line_without_a_time_is_shown_all_the_same(call, folder):
    (folder / "worker.jsonl").write_text('{"job_id": "a1", "time": "yesterday", "message": "odd"}\n')
    assert call("a1").stdout == "yesterday worker : odd\n"


def test_a_job_nobody_wrote_about_is_said_not_to_be_found(call):
    result = call("a1")
    assert result.exit_code == 1
    assert "nothing is logged about 'a1'" in result.stderr


def test_an_ended_job_is_followed_to_its_last_line(call, tmp_path, write, monkeypatch):
    queue = build(Settings(data_dir=tmp_path)).queue
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    write("worker.jsonl", "first", job_id=job.id)
    monkeypatch.setattr(log_lines, "LOOK_EVERY_S", 0.01)

    def end():
        write("worker.jsonl", "last", 1, job_id=job.id)
        queue.cancel(job.id)

    ending = threading.Timer(0.05, end)
    ending.start()
    shown = call(job.id, "--follow").stdout
    ending.join()
    assert [line.split()[-1] for line in shown.splitlines()] == ["first", "last"]


def test_following_goes_on_while_the_id_is_no_jobs(tmp_path):
    jobs = build(Settings(data_dir=tmp_path)).jobs
    assert not log_lines._is_over(jobs, "c0ffee")


def test_what_a_worker_prints_for_weeks_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_OUTPUT_BYTES", 100)
    output = tmp_path / "worker-output.log"
    made = Supervisor(command=["worker"], environment={}, lock=tmp_path / "lock", output=output)
    made._bound_output()  # there is none yet
    with output.open("ab") as printed:
        for size in (100, 101):
            printed.write(b"x" * (size - printed.tell()))
            printed.flush()
            made._bound_output()
            assert output.stat().st_size == (size if size == 100 else 0)
        printed.write(b"on")
    assert output.read_bytes() == b"on"
