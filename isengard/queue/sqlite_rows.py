"""Reading and writing the rows of the embedded queue, inside a transaction."""

import json
import sqlite3
from collections.abc import Collection
from typing import Any

from isengard.domain.job import Job, JobStatus
from isengard.errors import LeaseLost, NotFound


def marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


def find(connection: sqlite3.Connection, job_id: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return row


def row_of(connection: sqlite3.Connection, job_id: str) -> sqlite3.Row:
    row = find(connection, job_id)
    if row is None:
        raise NotFound(f"there is no job {job_id!r}; `python -m isengard jobs list` shows all of them")
    return row


def owned(connection: sqlite3.Connection, job: Job) -> sqlite3.Row:
    """The row of a job whose owner speaks with the fence he was given. Raises: LeaseLost."""
    row = find(connection, job.id)
    if row is None or row["fence"] != job.fence or row["status"] != JobStatus.RUNNING:
        raise LeaseLost(f"job {job.id} has another owner or has ended")
    return row


def as_job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in Job.model_fields}
    for name in ("payload", "needs", "progress", "result", "error"):
        values[name] = json.loads(values[name]) if values[name] else None
    return Job.model_validate(values)


def set_columns(connection: sqlite3.Connection, job_id: str, **columns: Any) -> None:
    assignments = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*columns.values(), job_id))  # noqa: S608  # our names


def add_event(connection: sqlite3.Connection, job_id: str, now: float, kind: str, detail: str = "") -> None:
    connection.execute(
        "INSERT INTO events (job_id, at, kind, detail) VALUES (?, ?, ?, ?)", (job_id, now, kind, detail)
    )
