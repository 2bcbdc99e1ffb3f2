"""The registry of the embedded queue, and which of the waiting jobs a worker is given."""

import json
import sqlite3
from collections.abc import Collection

from isengard.domain.job import Job, Lane, Needs
from isengard.domain.worker import WorkerState, largest_memory, serves
from isengard.errors import NotFound
from isengard.queue.base import ALIVE_S, PREFER_WARM_S, YIELD_AFTER_S
from isengard.queue.sqlite_rows import add_event, set_columns

#: More than the time between asking the clock and being the only writer, when another one was it meanwhile.
AHEAD_S = 30.0


def is_recent(moment: float, now: float, *, within_s: float) -> bool:
    """Whether it was so lately. What seems to lie ahead was before the clock was set back, who knows when."""
    return now - within_s < moment <= now + AHEAD_S


def workers(connection: sqlite3.Connection) -> list[WorkerState]:
    rows = connection.execute(
        """SELECT workers.*, jobs.id AS job FROM workers
            LEFT JOIN jobs ON jobs.worker = workers.name AND jobs.status = 'running'
            GROUP BY workers.name ORDER BY workers.name"""
    ).fetchall()
    return [
        WorkerState.model_validate(
            {
                **json.loads(row["state"]),
                "seen_at": row["seen_at"],
                "draining": bool(row["draining"]),
                "job": row["job"],
            }
        )
        for row in rows
    ]


def registered(connection: sqlite3.Connection, name: str) -> WorkerState:
    for worker in workers(connection):
        if worker.name == name:
            return worker
    raise NotFound(f"there is no worker {name!r}; `python -m isengard workers list` shows all of them")


class Placement:
    """Which waiting jobs a worker is given, as `JobQueue.claim` says."""

    def __init__(self, connection: sqlite3.Connection, worker: str, now: float) -> None:
        known = workers(connection)
        alive = [one for one in known if is_recent(one.seen_at, now, within_s=ALIVE_S)]
        self._now = now
        self._worker = next((one for one in known if one.name == worker), None)
        self._largest_gb = largest_memory(alive)
        self._idle = [one for one in alive if one.job is None and not one.draining]

    def serves(self, row: sqlite3.Row) -> bool:
        if self._worker is None:
            return True
        needs = Needs.model_validate_json(row["needs"])
        return not self._worker.draining and serves(self._worker, needs, largest_gb=self._largest_gb)

    def leaves_to_warm(self, row: sqlite3.Row) -> bool:
        needs = Needs.model_validate_json(row["needs"])
        is_new = row["lane"] == Lane.INTERACTIVE and is_recent(
            row["waiting_since"], self._now, within_s=PREFER_WARM_S
        )
        if not is_new or self._worker is None or needs.model in ("", self._worker.warm):
            return False
        return any(
            one.warm == needs.model and serves(one, needs, largest_gb=self._largest_gb) for one in self._idle
        )


def first_for(connection: sqlite3.Connection, worker: str, lanes: Collection[Lane], now: float) -> str | None:
    placement = Placement(connection, worker, now)
    for lane in [lane for lane in Lane if lane in lanes]:
        waiting = connection.execute(  # one lane at a time: its order is that of an index
            """SELECT id, lane, needs, waiting_since FROM jobs WHERE status = 'queued' AND lane = ?
                ORDER BY position""",
            (lane,),
        )
        for row in waiting:
            if placement.serves(row) and not placement.leaves_to_warm(row):
                return str(row["id"])
    return None


def _unserved(connection: sqlite3.Connection, training: Job, now: float) -> sqlite3.Row | None:
    """An interactive job that has waited for long, and that the training's worker would be given.

    ``promised_by`` is the training if it is asked already to make room for it, else None.
    """
    waiting = connection.execute(
        """SELECT waits.*, yields.id AS promised_by FROM jobs AS waits
            LEFT JOIN jobs AS yields ON yields.id = waits.yielder AND yields.fence = waits.yielder_fence
                AND yields.status = 'running' AND yields.lease_until > :now
            WHERE waits.lane = 'interactive' AND (yields.id IS NULL OR yields.id = :training)
                AND (waits.status = 'queued' AND (waits.waiting_since <= :since OR waits.waiting_since > :ahead)
                    OR waits.status = 'running' AND waits.lease_until <= :since)
            ORDER BY yields.id IS NULL, waits.position""",
        {"now": now, "since": now - YIELD_AFTER_S, "ahead": now + AHEAD_S, "training": training.id},
    ).fetchall()
    placement = Placement(connection, training.worker or "", now) if waiting else None
    return next((row for row in waiting if placement and placement.serves(row)), None)


def has_to_yield(connection: sqlite3.Connection, training: Job, now: float) -> bool:
    """Whether an interactive job that waits for long is promised this training's device; promises one if not."""
    waiting = _unserved(connection, training, now)
    if waiting is None:
        return False
    if waiting["promised_by"] is None:
        set_columns(connection, waiting["id"], yielder=training.id, yielder_fence=training.fence)
        add_event(connection, training.id, now, "yield requested", f"for job {waiting['id']}")
    return True
