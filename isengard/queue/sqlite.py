"""The embedded job queue: one SQLite file, safe for many threads and processes of one machine or shared volume."""

import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isengard.domain.job import (
    Job,
    JobError,
    JobEvent,
    JobKind,
    JobStatus,
    Lane,
    Progress,
    Requests,
    Signals,
    Stop,
)
from isengard.errors import Conflict, LeaseLost, NotFound
from isengard.logs import bound_field
from isengard.queue.base import MAX_STALLED, YIELD_AFTER_S, progress_mark, worker_lost
from isengard.queue.sqlite_file import SqliteFile

log = logging.getLogger(__name__)

_ENDED_BADLY = (JobStatus.FAILED, JobStatus.CANCELLED)


class SqliteQueue:
    """`JobQueue` in one file."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open or create the file and bring it up to date.

        Raises:
            QueueUnavailable: the file cannot be written, is damaged, or is no job list.
            Conflict: the file was written by a newer version.
        """
        self._file = SqliteFile(path)
        self._clock = clock

    def enqueue(
        self, kind: JobKind, payload: dict[str, Any], *, lane: Lane = Lane.TRAINING, job_id: str | None = None
    ) -> Job:
        now, job_id = self._clock(), job_id or secrets.token_hex(6)
        request = bound_field("correlation_id")
        with self._file.transaction() as connection:
            if _find(connection, job_id):
                raise Conflict(f"there is a job {job_id!r} already")
            connection.execute(
                """INSERT INTO jobs (id, kind, lane, status, payload, correlation_id, position, created_at, waiting_since)
                    SELECT ?, ?, ?, ?, ?, ?, COALESCE(MAX(position), 0) + 1, ?, ? FROM jobs""",
                (job_id, kind, lane, JobStatus.QUEUED, json.dumps(payload), request, now, now),
            )
            _event(connection, job_id, now, "queued")
            job = _job(_row(connection, job_id))
        log.info("job queued", extra={"job_id": job_id, "kind": kind, "lane": lane})
        return job

    def claim(self, worker: str, *, lease_s: float, lanes: Collection[Lane] = tuple(Lane)) -> Job | None:
        now = self._clock()
        with self._file.transaction() as connection:
            _take_back_ended_leases(connection, now)
            row = connection.execute(
                f"""UPDATE jobs SET status = ?, worker = ?, fence = fence + 1, attempt = losses + 1, lease_until = ?,
                        started_at = COALESCE(started_at, ?), yielder = NULL
                    WHERE id = (SELECT id FROM jobs WHERE status = ? AND lane IN ({_marks(lanes)})
                        ORDER BY lane = ?, position LIMIT 1)
                    RETURNING *""",  # noqa: S608  # question marks only
                (JobStatus.RUNNING, worker, now + lease_s, now, JobStatus.QUEUED, *lanes, Lane.TRAINING),
            ).fetchone()
            if row is None:
                return None
            _event(connection, row["id"], now, "claimed", f"by {worker}, attempt {row['attempt']}")
            return _job(row)

    def heartbeat(self, job: Job, *, lease_s: float, progress: Progress | None = None) -> Signals:
        now = self._clock()
        with self._file.transaction() as connection:
            row = _owned(connection, job)
            stop = Stop(row["stop"]) if row["stop"] else None
            if stop is None and row["lane"] == Lane.TRAINING and _has_to_yield(connection, job, now):
                stop = Stop.YIELD
            # Who stops does not save or sample any more: the wishes wait for the next owner.
            requests = Requests() if stop else Requests(save=bool(row["save"]), sample=bool(row["sample"]))
            mark = progress_mark(progress)
            changes: dict[str, Any] = {"lease_until": now + lease_s}
            if requests != Requests():
                changes |= {"save": 0, "sample": 0}
            if progress is not None:
                changes |= {"progress": progress.model_dump_json()}
            if mark > row["mark"]:
                changes |= {"mark": mark, "stalled": 0}
            _set(connection, job.id, **changes)
            return Signals(stop=stop, requests=requests)

    def succeed(self, job: Job, result: dict[str, Any]) -> None:
        now = self._clock()
        with self._file.transaction() as connection:
            _owned(connection, job)
            _leave(connection, job.id, now, JobStatus.SUCCEEDED, "succeeded", result=json.dumps(result))

    def fail(self, job: Job, error: JobError) -> None:
        now = self._clock()
        with self._file.transaction() as connection:
            _owned(connection, job)
            _fail(connection, job.id, now, error)

    def release(self, job: Job, *, reason: str) -> None:
        now = self._clock()
        with self._file.transaction() as connection:
            row = _owned(connection, job)
            _event(connection, job.id, now, "yielded", reason)
            _let_go(connection, row, now)
            # The worker that made room claims next; until then no other training has to yield as well.
            connection.execute("UPDATE jobs SET waiting_since = ? WHERE yielder = ?", (now, job.id))

    def stopped(self, job: Job) -> None:
        now = self._clock()
        with self._file.transaction() as connection:
            _let_go(connection, _owned(connection, job), now)

    def release_worker(self, worker: str) -> int:
        now = self._clock()
        with self._file.transaction() as connection:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE status = ? AND worker = ?", (JobStatus.RUNNING, worker)
            ).fetchall()
            for row in rows:
                _lose(connection, row, now, f"{worker} ended without a word")
            return len(rows)

    def cancel(self, job_id: str) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if JobStatus(row["status"]).ended:
                raise Conflict(f"job {job_id} has ended already ({row['status']}) and cannot be cancelled")
            if row["status"] != JobStatus.RUNNING:
                _leave(connection, job_id, now, JobStatus.CANCELLED, "cancelled")
            elif row["stop"] != Stop.CANCEL:
                _set(connection, job_id, stop=Stop.CANCEL)
                _event(connection, job_id, now, "cancel requested")
            return _job(_row(connection, job_id))

    def pause(self, job_id: str) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if row["status"] not in (JobStatus.QUEUED, JobStatus.RUNNING):
                raise Conflict(
                    f"job {job_id} is {row['status']}; only a waiting or running job can be paused"
                )
            if row["stop"] == Stop.CANCEL:
                raise Conflict(f"job {job_id} is being cancelled and cannot be paused any more")
            if row["status"] == JobStatus.QUEUED:
                _leave(connection, job_id, now, JobStatus.PAUSED, "paused")
            elif row["stop"] is None:
                _set(connection, job_id, stop=Stop.PAUSE)
                _event(connection, job_id, now, "pause requested")
            return _job(_row(connection, job_id))

    def resume(self, job_id: str) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if row["status"] == JobStatus.PAUSED:
                _set(connection, job_id, status=JobStatus.QUEUED, waiting_since=now)
            elif row["stop"] == Stop.PAUSE:
                _set(connection, job_id, stop=None)
            else:
                raise Conflict(f"job {job_id} is {row['status']}, not paused; there is nothing to resume")
            _event(connection, job_id, now, "resumed")
            return _job(_row(connection, job_id))

    def requeue(self, job_id: str, payload: dict[str, Any]) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if row["status"] not in _ENDED_BADLY:
                raise Conflict(
                    f"job {job_id} is {row['status']}; only a failed or cancelled job can be queued again"
                )
            last = connection.execute("SELECT MAX(position) FROM jobs").fetchone()[0]
            fresh = dict.fromkeys(("started_at", "finished_at", "progress", "error"))
            counters = dict.fromkeys(("mark", "stalled", "save", "sample"), 0)
            _set(
                connection,
                job_id,
                status=JobStatus.QUEUED,
                payload=json.dumps(payload),
                position=last + 1,
                waiting_since=now,
                **fresh,
                **counters,
            )
            _event(connection, job_id, now, "queued", "again")
            return _job(_row(connection, job_id))

    def request(self, job_id: str, *, save: bool = False, sample: bool = False) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if row["status"] != JobStatus.RUNNING:
                raise Conflict(f"job {job_id} is {row['status']}; only a running job can save or sample")
            for name, wanted in (("save", save), ("sample", sample)):
                if wanted:
                    _set(connection, job_id, **{name: 1})
                    _event(connection, job_id, now, f"{name} requested")
            return _job(_row(connection, job_id))

    def move(self, job_id: str, *, before: str | None) -> Job:
        with self._changing(job_id) as (connection, row, now):
            others = [row] if before is None else [row, _row(connection, before)]
            for other in others:
                if other["status"] != JobStatus.QUEUED:
                    raise Conflict(f"job {other['id']} is {other['status']}; only waiting jobs have a place")
            if others[-1]["lane"] != row["lane"]:
                raise Conflict(f"jobs {job_id} ({row['lane']}) and {before} wait in different lanes")
            if before is None:
                place = connection.execute("SELECT MAX(position) + 1 FROM jobs").fetchone()[0]
            else:
                place = others[-1]["position"]
                connection.execute("UPDATE jobs SET position = position + 1 WHERE position >= ?", (place,))
            _set(connection, job_id, position=place)
            _event(connection, job_id, now, "moved", f"before {before}" if before else "to the end")
            return _job(_row(connection, job_id))

    def remove(self, job_id: str) -> None:
        with self._changing(job_id) as (connection, row, _):
            if not JobStatus(row["status"]).ended:
                raise Conflict(f"job {job_id} is {row['status']}; cancel it before you remove it")
            connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def get(self, job_id: str) -> Job:
        with self._file.reading() as connection:
            return _job(_row(connection, job_id))

    def jobs(
        self,
        *,
        statuses: Collection[JobStatus] | None = None,
        kinds: Collection[JobKind] | None = None,
        limit: int = 100,
    ) -> Sequence[Job]:
        statuses = tuple(JobStatus) if statuses is None else statuses
        kinds = tuple(JobKind) if kinds is None else kinds
        with self._file.reading() as connection:
            rows = connection.execute(
                f"""SELECT * FROM jobs WHERE status IN ({_marks(statuses)}) AND kind IN ({_marks(kinds)})
                    ORDER BY CASE status WHEN 'running' THEN 0 WHEN 'queued' THEN 1 WHEN 'paused' THEN 2 ELSE 3 END,
                        status = 'queued' AND lane = 'training',
                        CASE status WHEN 'running' THEN started_at WHEN 'queued' THEN position
                            WHEN 'paused' THEN position ELSE -finished_at END,
                        rowid DESC
                    LIMIT ?""",  # noqa: S608  # question marks only
                (*statuses, *kinds, limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def events(self, job_id: str) -> Sequence[JobEvent]:
        with self._file.reading() as connection:
            _row(connection, job_id)
            rows = connection.execute(
                "SELECT job_id, at, kind, detail FROM events WHERE job_id = ? ORDER BY number", (job_id,)
            ).fetchall()
        return [JobEvent(**row) for row in rows]

    @contextmanager
    def _changing(self, job_id: str) -> Iterator[tuple[sqlite3.Connection, sqlite3.Row, float]]:
        """A user's change of one job. A lost job counts as waiting here as well. Raises: NotFound."""
        now = self._clock()
        with self._file.transaction() as connection:
            _take_back_ended_leases(connection, now)
            yield connection, _row(connection, job_id), now


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


def _find(connection: sqlite3.Connection, job_id: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return row


def _row(connection: sqlite3.Connection, job_id: str) -> sqlite3.Row:
    row = _find(connection, job_id)
    if row is None:
        raise NotFound(f"there is no job {job_id!r}; `python -m isengard jobs list` shows all of them")
    return row


def _owned(connection: sqlite3.Connection, job: Job) -> sqlite3.Row:
    """The row of a job whose owner speaks with the fence he was given. Raises: LeaseLost."""
    row = _find(connection, job.id)
    if row is None or row["fence"] != job.fence or row["status"] != JobStatus.RUNNING:
        raise LeaseLost(f"job {job.id} has another owner or has ended")
    return row


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in Job.model_fields}
    for name in ("payload", "progress", "result", "error"):
        values[name] = json.loads(values[name]) if values[name] else None
    return Job.model_validate(values)


def _set(connection: sqlite3.Connection, job_id: str, **columns: Any) -> None:
    assignments = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*columns.values(), job_id))  # noqa: S608  # our names


def _event(connection: sqlite3.Connection, job_id: str, now: float, kind: str, detail: str = "") -> None:
    connection.execute(
        "INSERT INTO events (job_id, at, kind, detail) VALUES (?, ?, ?, ?)", (job_id, now, kind, detail)
    )


def _leave(
    connection: sqlite3.Connection, job_id: str, now: float, status: JobStatus, event: str, **columns: Any
) -> None:
    """Nobody owns the job any more."""
    finished_at = now if status.ended else None
    gone = dict.fromkeys(("worker", "lease_until", "stop"))
    _set(connection, job_id, status=status, finished_at=finished_at, waiting_since=now, **{**gone, **columns})
    _event(connection, job_id, now, event)


def _fail(connection: sqlite3.Connection, job_id: str, now: float, error: JobError) -> None:
    _leave(connection, job_id, now, JobStatus.FAILED, "failed", error=error.model_dump_json())


def _let_go(connection: sqlite3.Connection, row: sqlite3.Row, now: float) -> None:
    """running -> what the user asked for, or waiting again at its old place."""
    after = {
        Stop.CANCEL: (JobStatus.CANCELLED, "cancelled"),
        Stop.PAUSE: (JobStatus.PAUSED, "paused"),
        None: (JobStatus.QUEUED, "queued"),
    }
    _leave(connection, row["id"], now, *after[row["stop"]])


def _take_back_ended_leases(connection: sqlite3.Connection, now: float) -> None:
    for row in connection.execute(
        "SELECT * FROM jobs WHERE status = ? AND lease_until <= ?", (JobStatus.RUNNING, now)
    ).fetchall():
        _lose(connection, row, now, f"no word from {row['worker']}")


def _lose(connection: sqlite3.Connection, row: sqlite3.Row, now: float, why: str) -> None:
    _event(connection, row["id"], now, "lost", why)
    stalled = row["stalled"] + 1
    _set(connection, row["id"], losses=row["losses"] + 1, stalled=stalled)
    if row["stop"] is None and stalled >= MAX_STALLED:
        _fail(connection, row["id"], now, worker_lost(stalled))
    else:
        _let_go(connection, row, now)


def _has_to_yield(connection: sqlite3.Connection, training: Job, now: float) -> bool:
    """Whether an interactive job that waits for long is promised this training's device; promises one if not."""
    waiting = connection.execute(
        """SELECT waits.id, yields.id AS promised_by FROM jobs AS waits
            LEFT JOIN jobs AS yields ON yields.id = waits.yielder AND yields.fence = waits.yielder_fence
                AND yields.status = 'running' AND yields.lease_until > :now
            WHERE waits.lane = 'interactive' AND (yields.id IS NULL OR yields.id = :training)
                AND (waits.status = 'queued' AND waits.waiting_since <= :since
                    OR waits.status = 'running' AND waits.lease_until <= :since)
            ORDER BY yields.id IS NULL, waits.position LIMIT 1""",
        {"now": now, "since": now - YIELD_AFTER_S, "training": training.id},
    ).fetchone()
    if waiting is None:
        return False
    if waiting["promised_by"] is None:
        _set(connection, waiting["id"], yielder=training.id, yielder_fence=training.fence)
        _event(connection, training.id, now, "yield requested", f"for job {waiting['id']}")
    return True
