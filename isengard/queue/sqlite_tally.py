"""Counting the jobs of the embedded queue, inside a transaction."""

import sqlite3
from collections.abc import Sequence
from itertools import groupby

from isengard.domain.job import JobKind, JobStatus
from isengard.domain.tally import Ended, Standing, Tally, duration_class
from isengard.queue.sqlite_rows import row_of


def count_ended(connection: sqlite3.Connection, job_id: str, now: float) -> None:
    """Count a job that has just ended, unless no worker ever had it."""
    row = row_of(connection, job_id)
    if row["started_at"] is not None:
        seconds = max(0.0, now - row["started_at"])
        connection.execute(
            """INSERT INTO ended (kind, status, up_to, jobs, seconds) VALUES (?, ?, ?, 1, ?)
                ON CONFLICT (kind, status, up_to) DO UPDATE SET jobs = jobs + 1, seconds = seconds + excluded.seconds""",
            (row["kind"], row["status"], duration_class(seconds), seconds),
        )


def tally(connection: sqlite3.Connection) -> Tally:
    standing = connection.execute(
        """SELECT lane, status, COUNT(*) AS jobs FROM jobs WHERE status IN ('queued', 'running', 'paused')
            GROUP BY status, lane"""
    ).fetchall()
    counted = connection.execute("SELECT * FROM ended ORDER BY kind, status, up_to").fetchall()
    return Tally(
        standing=tuple(Standing(**row) for row in standing),
        ended=tuple(
            _ended(*key, list(classes))
            for key, classes in groupby(counted, key=lambda row: (row["kind"], row["status"]))
        ),
    )


def _ended(kind: str, result: str, classes: Sequence[sqlite3.Row]) -> Ended:
    durations = {row["up_to"]: row["jobs"] for row in classes}
    return Ended(
        kind=JobKind(kind),
        result=JobStatus(result),
        durations=durations,
        seconds=sum(row["seconds"] for row in classes),
    )
