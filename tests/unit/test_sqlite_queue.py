"""What is particular to the embedded queue: its file."""

import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from subprocess import Popen

import pytest

from isengard.domain.job import JobKind, JobStatus
from isengard.errors import Conflict, DiskFull, QueueUnavailable
from isengard.queue import sqlite_file
from isengard.queue.sqlite import SqliteQueue

CLAIMER = """
import sys
from pathlib import Path
from isengard.queue.sqlite import SqliteQueue
queue = SqliteQueue(Path(sys.argv[1]))
done = Path(sys.argv[2])
input()
while job := queue.claim(sys.argv[3], lease_s=60):
    with done.open("a") as file:
        file.write(job.id + "\\n")
    queue.succeed(job, {})
"""


def test_jobs_are_still_there_after_a_restart(tmp_path):
    job = SqliteQueue(tmp_path / "deep" / "jobs.db").enqueue(JobKind.TRAIN_LORA, {"a": 1})
    assert SqliteQueue(tmp_path / "deep" / "jobs.db").get(job.id) == job


def test_the_file_needs_no_write_ahead_log(tmp_path):
    queue = SqliteQueue(tmp_path / "jobs.db")
    queue.enqueue(JobKind.TRAIN_LORA, {})
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal"


def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "jobs.db"
    SqliteQueue(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(Conflict, match=r"newer Isengard \(format 99"):
        SqliteQueue(path)
    assert path.read_bytes() == before


def test_an_older_file_is_brought_up_to_date_with_its_jobs(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    job = SqliteQueue(path).enqueue(JobKind.TRAIN_LORA, {})
    monkeypatch.setattr(
        sqlite_file, "MIGRATIONS", (*sqlite_file.MIGRATIONS, ("ALTER TABLE jobs ADD COLUMN colour TEXT",))
    )
    assert SqliteQueue(path).get(job.id) == job
    SqliteQueue(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT colour FROM jobs").fetchall() == [(None,)]


def test_a_damaged_file_is_said_to_be_damaged(tmp_path):
    path = tmp_path / "jobs.db"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(QueueUnavailable, match=r"jobs.db is damaged .*jobs recover"):
        SqliteQueue(path)


def test_a_page_damaged_later_is_said_as_well(tmp_path):
    path = tmp_path / "jobs.db"
    queue = SqliteQueue(path)
    queue.enqueue(JobKind.TRAIN_LORA, {})
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(QueueUnavailable, match="damaged"):
        queue.jobs()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QueueUnavailable, match="file"):
        SqliteQueue(tmp_path / "file" / "jobs.db")


def test_a_locked_file_is_waited_for_and_then_said_to_be_busy(tmp_path, monkeypatch):
    queue = SqliteQueue(tmp_path / "jobs.db")
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.05)
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(QueueUnavailable, match="locked"):
            queue.enqueue(JobKind.TRAIN_LORA, {})
    assert queue.jobs() == []


def test_a_full_disk_is_said_to_be_full(tmp_path, monkeypatch):
    queue = SqliteQueue(tmp_path / "jobs.db")

    class Small(sqlite3.Connection):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.execute("PRAGMA max_page_count = 1")  # raised by SQLite to the size the file has

    monkeypatch.setattr(sqlite3, "connect", Small)
    with pytest.raises(DiskFull, match=r"no space left .*jobs.db"):
        queue.enqueue(JobKind.TRAIN_LORA, {"much": "x" * 100_000})
    assert queue.jobs() == []


def test_readers_do_not_stop_a_writer(tmp_path):
    queue = SqliteQueue(tmp_path / "jobs.db")
    queue.enqueue(JobKind.TRAIN_LORA, {})
    job, done = queue.claim("w", lease_s=60), threading.Event()

    def read():
        while not done.is_set():
            queue.jobs()

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for _ in range(20):
            queue.heartbeat(job, lease_s=60)
        done.set()
        assert [reader.result() for reader in readers] == [None, None]


@pytest.mark.slow
def test_eight_processes_run_two_hundred_jobs_and_none_of_them_twice(tmp_path):
    queue = SqliteQueue(tmp_path / "jobs.db")
    ids = {queue.enqueue(JobKind.GENERATE_IMAGES, {}).id for _ in range(200)}
    claimers = [
        Popen(
            [
                sys.executable,
                "-c",
                CLAIMER,
                str(tmp_path / "jobs.db"),
                str(tmp_path / f"done-{number}"),
                f"w{number}",
            ],
            stdin=-1,
        )
        for number in range(8)
    ]
    for claimer in claimers:
        claimer.stdin.write(b"go\n")
        claimer.stdin.close()
    assert [claimer.wait(60) for claimer in claimers] == [0] * 8
    done = [job_id for file in tmp_path.glob("done-*") for job_id in file.read_text().split()]
    assert len(done) == 200
    assert set(done) == ids
    assert len(queue.jobs(statuses=[JobStatus.SUCCEEDED], limit=500)) == 200
