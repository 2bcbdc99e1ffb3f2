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
    Needs,
    Progress,
    Requests,
    Signals,
    Stop,
)
from isengard.domain.tally import Tally
from isengard.domain.worker import WorkerState
from isengard.errors import Conflict
from isengard.logs import bound_field
from isengard.queue.base import ANY_WORKER, progress_mark
from isengard.queue.sqlite_ends import fail, leave, let_go, lose, take_back_ended_leases
from isengard.queue.sqlite_file import SqliteFile
from isengard.queue.sqlite_rows import add_event, as_job, find, marks, owned, row_of, set_columns
from isengard.queue.sqlite_tally import tally
from isengard.queue.sqlite_workers import first_for, has_to_yield, registered, workers

log = logging.getLogger(__name__)

#: Who waits for something looks this often.
LOOK_EVERY_S = 0.25

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
        self,
        kind: JobKind,
        payload: dict[str, Any],
        *,
        lane: Lane = Lane.TRAINING,
        needs: Needs = ANY_WORKER,
        job_id: str | None = None,
    ) -> Job:
        now, job_id = self._clock(), job_id or secrets.token_hex(6)
        request = bound_field("correlation_id")
        with self._file.transaction() as connection:
            if find(connection, job_id):
                raise Conflict(f"there is a job {job_id!r} already")
            connection.execute(
                """INSERT INTO jobs
                    (id, kind, lane, status, payload, needs, correlation_id, position, created_at, waiting_since)
                    SELECT ?, ?, ?, ?, ?, ?, ?, COALESCE(MAX(position), 0) + 1, ?, ? FROM jobs""",
                (
                    job_id,
                    kind,
                    lane,
                    JobStatus.QUEUED,
                    json.dumps(payload),
                    needs.model_dump_json(),
                    request,
                    now,
                    now,
                ),
            )
            add_event(connection, job_id, now, "queued")
            job = as_job(row_of(connection, job_id))
        log.info("job queued", extra={"job_id": job_id, "kind": kind, "lane": lane})
        return job

    def claim(self, worker: str, *, lease_s: float, lanes: Collection[Lane] = tuple(Lane)) -> Job | None:
        now = self._clock()
        with self._file.transaction() as connection:
            take_back_ended_leases(connection, now)
            job_id = first_for(connection, worker, lanes, now)
            if job_id is None:
                return None
            row = connection.execute(
                """UPDATE jobs SET status = ?, worker = ?, ran_on = ?, fence = fence + 1, attempt = losses + 1,
                        lease_until = ?, started_at = COALESCE(started_at, ?), yielder = NULL
                    WHERE id = ? RETURNING *""",
                (JobStatus.RUNNING, worker, worker, now + lease_s, now, job_id),
            ).fetchone()
            add_event(connection, row["id"], now, "claimed", f"by {worker}, attempt {row['attempt']}")
            return as_job(row)

    def heartbeat(self, job: Job, *, lease_s: float, progress: Progress | None = None) -> Signals:
        now = self._clock()
        with self._file.transaction() as connection:
            row = owned(connection, job)
            stop = Stop(row["stop"]) if row["stop"] else None
            if stop is None and row["lane"] == Lane.TRAINING and has_to_yield(connection, job, now):
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
            set_columns(connection, job.id, **changes)
            return Signals(stop=stop, requests=requests)

    def succeed(self, job: Job, result: dict[str, Any]) -> None:
        now = self._clock()
        with self._file.transaction() as connection:
            owned(connection, job)
            leave(connection, job.id, now, JobStatus.SUCCEEDED, "succeeded", result=json.dumps(result))

    def fail(self, job: Job, error: JobError) -> None:
        now = self._clock()
        with self._file.transaction() as connection:
            owned(connection, job)
            fail(connection, job.id, now, error)

    def release(self, job: Job, *, reason: str) -> None:
        now = self._clock()
        with self._file.transaction() as connection:
            row = owned(connection, job)
            add_event(connection, job.id, now, "yielded", reason)
            let_go(connection, row, now)
            # The worker that made room claims next; until then no other training has to yield as well.
            connection.execute("UPDATE jobs SET waiting_since = ? WHERE yielder = ?", (now, job.id))

    def stopped(self, job: Job) -> None:
        now = self._clock()
        with self._file.transaction() as connection:
            let_go(connection, owned(connection, job), now)

    def suspend(self, job: Job, error: JobError) -> None:
        now = self._clock()
        with self._file.transaction() as connection:
            row = owned(connection, job)
            if row["stop"] == Stop.CANCEL:
                let_go(connection, row, now)
                return
            said = error.model_dump_json()
            leave(connection, job.id, now, JobStatus.PAUSED, "paused", error.message, error=said)

    def release_worker(self, worker: str) -> int:
        now = self._clock()
        with self._file.transaction() as connection:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE status = ? AND worker = ?", (JobStatus.RUNNING, worker)
            ).fetchall()
            for row in rows:
                lose(connection, row, now, f"{worker} ended without a word")
            return len(rows)

    def cancel(self, job_id: str) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if JobStatus(row["status"]).ended:
                raise Conflict(f"job {job_id} has ended already ({row['status']}) and cannot be cancelled")
            if row["status"] != JobStatus.RUNNING:
                leave(connection, job_id, now, JobStatus.CANCELLED, "cancelled")
            elif row["stop"] != Stop.CANCEL:
                set_columns(connection, job_id, stop=Stop.CANCEL)
                add_event(connection, job_id, now, "cancel requested")
            return as_job(row_of(connection, job_id))

    def pause(self, job_id: str) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if row["status"] not in (JobStatus.QUEUED, JobStatus.RUNNING):
                raise Conflict(
                    f"job {job_id} is {row['status']}; only a waiting or running job can be paused"
                )
            if row["stop"] == Stop.CANCEL:
                raise Conflict(f"job {job_id} is being cancelled and cannot be paused any more")
            if row["status"] == JobStatus.QUEUED:
                leave(connection, job_id, now, JobStatus.PAUSED, "paused")
            elif row["stop"] is None:
                set_columns(connection, job_id, stop=Stop.PAUSE)
                add_event(connection, job_id, now, "pause requested")
            return as_job(row_of(connection, job_id))

    def resume(self, job_id: str) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if row["status"] == JobStatus.PAUSED:
                set_columns(connection, job_id, status=JobStatus.QUEUED, waiting_since=now, error=None)
            elif row["stop"] == Stop.PAUSE:
                set_columns(connection, job_id, stop=None)
            else:
                raise Conflict(f"job {job_id} is {row['status']}, not paused; there is nothing to resume")
            add_event(connection, job_id, now, "resumed")
            return as_job(row_of(connection, job_id))

    def requeue(self, job_id: str, payload: dict[str, Any], *, needs: Needs = ANY_WORKER) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if row["status"] not in _ENDED_BADLY:
                raise Conflict(
                    f"job {job_id} is {row['status']}; only a failed or cancelled job can be queued again"
                )
            last = connection.execute("SELECT MAX(position) FROM jobs").fetchone()[0]
            fresh = dict.fromkeys(("started_at", "finished_at", "progress", "error"))
            counters = dict.fromkeys(("mark", "stalled", "save", "sample"), 0)
            set_columns(
                connection,
                job_id,
                status=JobStatus.QUEUED,
                payload=json.dumps(payload),
                needs=needs.model_dump_json(),
                position=last + 1,
                waiting_since=now,
                **fresh,
                **counters,
            )
            add_event(connection, job_id, now, "queued", "again")
            return as_job(row_of(connection, job_id))

    def request(self, job_id: str, *, save: bool = False, sample: bool = False) -> Job:
        with self._changing(job_id) as (connection, row, now):
            if row["status"] != JobStatus.RUNNING:
                raise Conflict(f"job {job_id} is {row['status']}; only a running job can save or sample")
            for name, wanted in (("save", save), ("sample", sample)):
                if wanted:
                    set_columns(connection, job_id, **{name: 1})
                    add_event(connection, job_id, now, f"{name} requested")
            return as_job(row_of(connection, job_id))

    def move(self, job_id: str, *, before: str | None) -> Job:
        with self._changing(job_id) as (connection, row, now):
            others = [row] if before is None else [row, row_of(connection, before)]
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
            set_columns(connection, job_id, position=place)
            add_event(connection, job_id, now, "moved", f"before {before}" if before else "to the end")
            return as_job(row_of(connection, job_id))

    def remove(self, job_id: str) -> None:
        with self._changing(job_id) as (connection, row, _):
            if not JobStatus(row["status"]).ended:
                raise Conflict(f"job {job_id} is {row['status']}; cancel it before you remove it")
            connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def get(self, job_id: str) -> Job:
        with self._file.reading() as connection:
            return as_job(row_of(connection, job_id))

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
                f"""SELECT * FROM jobs WHERE status IN ({marks(statuses)}) AND kind IN ({marks(kinds)})
                    ORDER BY CASE status WHEN 'running' THEN 0 WHEN 'queued' THEN 1 WHEN 'paused' THEN 2 ELSE 3 END,
                        status = 'queued' AND lane = 'training',
                        CASE status WHEN 'running' THEN started_at WHEN 'queued' THEN position
                            WHEN 'paused' THEN position ELSE -finished_at END,
                        rowid DESC
                    LIMIT ?""",  # noqa: S608  # question marks only
                (*statuses, *kinds, limit),
            ).fetchall()
        return [as_job(row) for row in rows]

    def events(self, job_id: str) -> Sequence[JobEvent]:
        with self._file.reading() as connection:
            row_of(connection, job_id)
            rows = connection.execute(
                "SELECT job_id, at, kind, detail FROM events WHERE job_id = ? ORDER BY number", (job_id,)
            ).fetchall()
        return [JobEvent(**row) for row in rows]

    def tally(self) -> Tally:
        with self._file.reading() as connection:
            return tally(connection)

    def check_writable(self) -> None:
        self._file.check_writable()

    def announce(self, worker: WorkerState) -> WorkerState:
        now, said = self._clock(), worker.model_dump_json(exclude={"seen_at", "draining", "job"})
        with self._file.transaction() as connection:
            connection.execute(
                """INSERT INTO workers (name, state, seen_at) VALUES (?, ?, ?)
                    ON CONFLICT (name) DO UPDATE SET state = excluded.state, seen_at = excluded.seen_at""",
                (worker.name, said, now),
            )
            return registered(connection, worker.name)

    def leave(self, worker: str) -> None:
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM workers WHERE name = ?", (worker,))

    def drain(self, worker: str, *, draining: bool = True) -> WorkerState:
        with self._file.transaction() as connection:
            connection.execute("UPDATE workers SET draining = ? WHERE name = ?", (draining, worker))
            return registered(connection, worker)

    def workers(self) -> Sequence[WorkerState]:
        with self._file.reading() as connection:
            return workers(connection)

    @contextmanager
    def listening(self, job_id: str) -> Iterator[Callable[[float], bool]]:  # noqa: ARG002  # nobody is told here

        def look_again(seconds: float) -> bool:
            time.sleep(min(seconds, LOOK_EVERY_S))
            return True

        yield look_again

    def wait(self, worker: str, seconds: float) -> None:  # noqa: ARG002  # nobody is woken here
        time.sleep(min(seconds, LOOK_EVERY_S))

    @contextmanager
    def _changing(self, job_id: str) -> Iterator[tuple[sqlite3.Connection, sqlite3.Row, float]]:
        """A user's change of one job. A lost job counts as waiting here as well. Raises: NotFound."""
        now = self._clock()
        with self._file.transaction() as connection:
            take_back_ended_leases(connection, now)
            yield connection, row_of(connection, job_id), now
