"""The embedded job list is damaged: it is said so, nothing else is harmed, and its last copy takes its place."""

import sqlite3
from contextlib import closing

import pytest
import typer
from filelock import FileLock
from typer.testing import CliRunner

import app as page
from isengard.cli import app
from isengard.domain.job import JobKind, JobStatus
from isengard.errors import Conflict, QueueUnavailable
from isengard.queue.sqlite import SqliteQueue
from isengard.queue.sqlite_copy import copy_of, keeping_a_copy, recover, snapshot
from isengard.settings import Settings
from isengard.wiring import backups, keeping_job_list
from tests.redis_servers import free_port
from tests.waiting import until

FULL = 40


def garbage(path):
    path.write_bytes(b"this is no database at all" * 1000)


def truncated(path):
    path.write_bytes(path.read_bytes()[:9000])


def wrong_page(path):
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\x55" * (len(content) - 12288)
    path.write_bytes(content)


def foreign(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.commit()


def foreign_of_our_version(path):
    foreign(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")


DAMAGES = [garbage, truncated, wrong_page, foreign, foreign_of_our_version]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.db"


@pytest.fixture
def queue(path):
    queue = SqliteQueue(path)
    for number in range(FULL):
        queue.enqueue(JobKind.TRAIN_LORA, {"n": number, "text": "x" * 1000})
    return queue


@pytest.fixture
def service(tmp_path):
    return backups(Settings(data_dir=tmp_path))


def copied(path, *, newer=lambda: True):
    with keeping_a_copy(path, every_s=0.01):
        until(lambda: copy_of(path).exists() and newer(), every_s=0.005)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_is_said_to_be_damaged_with_the_way_out(path, queue, damage):
    damage(path)
    with pytest.raises(QueueUnavailable, match=r"is damaged .* are whole.*`python -m isengard jobs recover`"):
        SqliteQueue(path).jobs(limit=FULL)
    with pytest.raises(QueueUnavailable, match="is damaged"):
        queue.jobs(limit=FULL)


@pytest.mark.parametrize("damage", DAMAGES)
def test_its_last_copy_takes_its_place_and_the_damaged_file_is_kept(path, queue, service, damage):
    running = queue.claim("w", lease_s=60)
    copied(path)
    damage(path)
    damaged = path.read_bytes()
    said = service.recover()
    (aside,) = path.parent.glob("jobs.db.damaged-*")
    assert f"The damaged one is now {aside}" in said
    assert aside.read_bytes() == damaged
    jobs = SqliteQueue(path).jobs(limit=100)
    assert (len(jobs), jobs[0].id, jobs[0].status) == (FULL, running.id, JobStatus.QUEUED)


def test_without_a_copy_it_begins_anew(path, queue, service):
    garbage(path)
    assert "it begins anew, empty" in service.recover()
    assert SqliteQueue(path).jobs() == []


def test_an_unfinished_write_of_the_damaged_list_is_not_played_into_the_copy(path, queue):
    copied(path)
    path.with_name("jobs.db-journal").write_bytes(b"left by a crash")
    recover(path)
    assert len(SqliteQueue(path).jobs(limit=100)) == FULL
    (journal,) = path.parent.glob("jobs.db.damaged-*-journal")
    assert journal.read_bytes() == b"left by a crash"


def test_a_list_that_is_whole_is_not_replaced(path, queue, service, tmp_path):
    before = path.read_bytes()
    with pytest.raises(Conflict, match="nothing to recover"):
        service.recover()
    assert path.read_bytes() == before
    with pytest.raises(Conflict, match="nothing to recover"):
        backups(Settings(data_dir=tmp_path / "nothing")).recover()


def test_a_list_on_a_server_is_not_recovered_here(path, queue, tmp_path):
    service = backups(Settings(data_dir=tmp_path, redis_url="redis://nowhere.example"))
    with pytest.raises(Conflict, match="on the Redis server"):
        service.recover()
    assert path.exists()


def test_what_changes_is_copied_and_a_damaged_list_is_not(path, queue, caplog):
    def has_the_new_job():
        return len(SqliteQueue(copy_of(path)).jobs(limit=100)) == FULL + 1

    copied(path)
    queue.enqueue(JobKind.TRAIN_LORA, {})
    copied(path, newer=has_the_new_job)
    garbage(path)
    copied(path, newer=lambda: "job list not copied" in caplog.text)
    assert has_the_new_job()


@pytest.mark.parametrize("begun", [False, True])
def test_a_list_that_is_not_there_yet_is_no_trouble(path, *, begun):
    if begun:
        path.touch()
    with keeping_a_copy(path, every_s=0.01):
        pass
    assert snapshot(path) is None
    assert not copy_of(path).exists()


def test_a_list_on_a_server_needs_no_copy(tmp_path):
    with keeping_job_list(Settings(data_dir=tmp_path, redis_url="redis://nowhere.example")):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_page_does_not_start_on_a_damaged_list_and_says_why(path, queue, damage):
    damage(path)
    started = typer.Typer()
    started.command()(page.main)
    said = CliRunner().invoke(started, ["--data-dir", str(path.parent), "--port", str(free_port())])
    assert (said.exit_code, "jobs.db is damaged" in said.output) == (1, True)


def test_the_command_line_recovers_but_not_under_a_running_worker(path, queue, tmp_path):
    garbage(path)
    lock = FileLock(tmp_path / "workers" / "vm_cpu.lock")
    (tmp_path / "workers").mkdir()
    with lock:
        refused = CliRunner().invoke(app, ["--data-dir", str(tmp_path), "jobs", "recover"])
    assert (refused.exit_code, "vm_cpu" in refused.output) == (1, True)
    done = CliRunner().invoke(app, ["--data-dir", str(tmp_path), "jobs", "recover"])
    assert (done.exit_code, "begins anew" in done.output) == (0, True)
