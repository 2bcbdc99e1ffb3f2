"""How a job of the embedded queue leaves its worker: ended, paused, waiting again, or lost."""

import sqlite3
from typing import Any

from isengard.domain.job import JobError, JobStatus, Stop
from isengard.queue.base import MAX_STALLED, worker_lost
from isengard.queue.sqlite_rows import add_event, set_columns
from isengard.queue.sqlite_tally import count_ended


def leave(
    connection: sqlite3.Connection,
    job_id: str,
    now: float,
    status: JobStatus,
    event: str,
    detail: str = "",
    **columns: Any,
) -> None:
    """Nobody owns the job any more."""
    finished_at = now if status.ended else None
    gone = dict.fromkeys(("worker", "lease_until", "stop"))
    set_columns(
        connection, job_id, status=status, finished_at=finished_at, waiting_since=now, **{**gone, **columns}
    )
    if status.ended:
        count_ended(connection, job_id, now)
    add_event(connection, job_id, now, event, detail)


def fail(connection: sqlite3.Connection, job_id: str, now: float, error: JobError) -> None:
    leave(connection, job_id, now, JobStatus.FAILED, "failed", error=error.model_dump_json())


def let_go(connection: sqlite3.Connection, row: sqlite3.Row, now: float) -> None:
    """running -> what the user asked for, or waiting again at its old place."""
    after = {
        Stop.CANCEL: (JobStatus.CANCELLED, "cancelled"),
        Stop.PAUSE: (JobStatus.PAUSED, "paused"),
        None: (JobStatus.QUEUED, "queued"),
    }
    leave(connection, row["id"], now, *after[row["stop"]])


def take_back_ended_leases(connection: sqlite3.Connection, now: float) -> None:
    for row in connection.execute(
        "SELECT * FROM jobs WHERE status = ? AND lease_until <= ?", (JobStatus.RUNNING, now)
    ).fetchall():
        lose(connection, row, now, f"no word from {row['worker']}")


def lose(connection: sqlite3.Connection, row: sqlite3.Row, now: float, why: str) -> None:
    add_event(connection, row["id"], now, "lost", why)
    stalled = row["stalled"] + 1
    set_columns(connection, row["id"], losses=row["losses"] + 1, stalled=stalled)
    if row["stop"] is None and stalled >= MAX_STALLED:
        fail(connection, row["id"], now, worker_lost(stalled))
    else:
        let_go(connection, row, now)
