"""The shared job queue: one Redis or Valkey server, for workers and pages on any number of machines.

**Two ledgers.** Jobs that wait are in a sorted set for each lane, whose scores are their places: a user moves and pauses
waiting jobs, and a stream keeps no order but that of arrival. Jobs that run are entries in a stream for each lane, and
their pending records say everything about the ownership: the consumer is the worker, and the delivery time is the end of
the lease, less a day. A claim takes the first of the sorted set, appends it to the stream and delivers it to the worker
(XADD, XCLAIM FORCE); a heartbeat moves the delivery time (XCLAIM); XAUTOCLAIM finds the entries idle for a day and more,
whose leases ended, whatever their lengths; XPENDING lists the jobs of a dead worker; XACK and XDEL end it.

**Keys**, each beginning with the prefix:

- ``job:<id>``: a hash, the truth about the job. ``events:<id>``: a list, three items for each event of its history.
- ``waiting:<lane>``, ``running:<lane>``: the two ledgers. ``places:<lane>``: the places of all jobs that have not ended,
  so that a paused or released job comes back to its own.
- ``paused``, ``ended:<status>:<kind>``: for the list. ``unserved``: see `YIELD_AFTER_S`.
- ``changes:<id>``: a channel. It only says that something changed; the hash says what.

**Atomic.** Each method is one Lua script (``lua/commands.lua``), with the fence checked in it. A refused call changes nothing.

**Again.** A request whose answer was lost is sent again, and may so be obeyed twice. Each call has a token; the job
keeps the token of the last change, so that the second is answered like the first and does nothing. A claim, a heartbeat or
the end of a job that got no answer at all keeps its token for the next try of the same worker: the job that was claimed
unheard is then found, and a wish that was handed over unheard is handed over again.

**Time** is the server's, so that the clocks of the machines do not matter.

**On disk** means what the server makes of it: with ``appendonly yes`` and ``appendfsync always`` every answer; with
``everysec`` a crash of the machine may cost the last second. Redis Cluster is not supported, as a script touches the keys
of many jobs.

**Placement**, when it comes: a lane is only a name in two keys. A queue of jobs for one memory size or engine is a lane of
its own, such as ``training/24gb``, and a worker names those it can serve in its claim; of queues that are equally urgent
the script takes the one whose first place is the smallest, as places are numbered across lanes.
"""

import json
import logging
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
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
from isengard.errors import Conflict, LeaseLost, NotFound, QueueUnavailable
from isengard.logs import bound_field
from isengard.queue.base import progress_mark
from isengard.queue.redis_server import RedisServer

log = logging.getLogger(__name__)

_REFUSALS: dict[str, type[Exception]] = {
    "not_found": NotFound,
    "conflict": Conflict,
    "lease_lost": LeaseLost,
}


class RedisQueue:
    """`JobQueue` on a Redis or Valkey server."""

    def __init__(
        self, url: str, *, prefix: str = "isengard:", clock: Callable[[], float] | None = None
    ) -> None:
        """Connect and see whether the queue can live there.

        ``url``: ``redis://user:password@host:port/database``, or ``rediss://`` for TLS.
        ``clock``: instead of the server's, for tests.

        Raises:
            QueueUnavailable: the server is away, refuses the login or a command, is too old, or would drop jobs.
            Conflict: it holds jobs of a newer version.
        """
        self._server = RedisServer(url, prefix=prefix)
        self._clock = clock
        self._unanswered: dict[tuple[str, ...], str] = {}
        self._server.check()

    def enqueue(
        self, kind: JobKind, payload: dict[str, Any], *, lane: Lane = Lane.TRAINING, job_id: str | None = None
    ) -> Job:
        job_id = job_id or secrets.token_hex(6)
        request = bound_field("correlation_id") or ""
        (values,) = self._run("enqueue", job_id, kind, lane, json.dumps(payload), request)
        log.info("job queued", extra={"job_id": job_id, "kind": kind, "lane": lane})
        return _job(values)

    def claim(self, worker: str, *, lease_s: float, lanes: Collection[Lane] = tuple(Lane)) -> Job | None:
        in_order = [lane for lane in Lane if lane in lanes]
        found = self._run_on("claim", (worker, *in_order), worker, str(lease_s), *in_order)
        return _job(found[0]) if found else None

    def heartbeat(self, job: Job, *, lease_s: float, progress: Progress | None = None) -> Signals:
        said = "" if progress is None else progress.model_dump_json()
        values = (str(lease_s), said, str(progress_mark(progress)))
        stop, save, sample = self._of_owner("heartbeat", job, *values)
        return Signals(
            stop=Stop(stop) if stop else None, requests=Requests(save=save == "1", sample=sample == "1")
        )

    def succeed(self, job: Job, result: dict[str, Any]) -> None:
        self._of_owner("succeed", job, json.dumps(result))

    def fail(self, job: Job, error: JobError) -> None:
        self._of_owner("fail", job, error.model_dump_json())

    def release(self, job: Job, *, reason: str) -> None:
        self._of_owner("release", job, reason)

    def stopped(self, job: Job) -> None:
        self._of_owner("stopped", job)

    def release_worker(self, worker: str) -> int:
        return int(self._run("release_worker", worker)[0])

    def cancel(self, job_id: str) -> Job:
        return _job(self._run("cancel", job_id)[0])

    def pause(self, job_id: str) -> Job:
        return _job(self._run("pause", job_id)[0])

    def resume(self, job_id: str) -> Job:
        return _job(self._run("resume", job_id)[0])

    def requeue(self, job_id: str, payload: dict[str, Any]) -> Job:
        return _job(self._run("requeue", job_id, json.dumps(payload))[0])

    def request(self, job_id: str, *, save: bool = False, sample: bool = False) -> Job:
        wishes = [name for name, wanted in (("save", save), ("sample", sample)) if wanted]
        return _job(self._run("request", job_id, *wishes)[0])

    def move(self, job_id: str, *, before: str | None) -> Job:
        return _job(self._run("move", job_id, before or "")[0])

    def remove(self, job_id: str) -> None:
        self._run("remove", job_id)

    def get(self, job_id: str) -> Job:
        return _job(self._run("get", job_id)[0])

    def jobs(
        self,
        *,
        statuses: Collection[JobStatus] | None = None,
        kinds: Collection[JobKind] | None = None,
        limit: int = 100,
    ) -> Sequence[Job]:
        asked = {
            "limit": limit,
            "statuses": list(JobStatus if statuses is None else statuses),
            "kinds": list(JobKind if kinds is None else kinds),
            "all_kinds": kinds is None,
        }
        return [_job(values) for values in self._run("jobs", json.dumps(asked))[0]]

    def events(self, job_id: str) -> Sequence[JobEvent]:
        items = iter(self._run("events", job_id)[0])
        return [
            JobEvent(job_id=job_id, at=float(at), kind=kind, detail=detail)
            for at, kind, detail in zip(items, items, items, strict=True)
        ]

    @contextmanager
    def listening(self, job_id: str | None = None) -> Iterator[Callable[[float], str | None]]:
        """Hear of changes at once, of one job or of all: a function that waits so many seconds for the id of a changed job.

        What is said while nobody listens is not kept: ask `get` first. Raises: QueueUnavailable, then listen anew.
        """
        with self._server.listening(job_id) as next_change:
            yield next_change

    def _run(self, command: str, *values: str) -> list[Any]:
        return self._answer(command, secrets.token_hex(6), *values)

    def _of_owner(self, command: str, job: Job, *values: str) -> list[Any]:
        said = (job.id, str(job.fence))
        return self._run_on(command, said, *said, *values)

    def _run_on(self, command: str, about: tuple[str, ...], *values: str) -> list[Any]:
        """Run a command with the token of the last one like it that got no answer."""
        call = (command, *about)
        token = self._unanswered.pop(call, None) or secrets.token_hex(6)
        try:
            return self._answer(command, token, *values)
        except QueueUnavailable:
            self._unanswered[call] = token
            raise

    def _answer(self, command: str, token: str, *values: str) -> list[Any]:
        now = "" if self._clock is None else repr(self._clock())
        answer: list[Any]
        code, *answer = self._server.run(command, now, token, *values)
        if code != "ok":
            raise _REFUSALS[code](answer[0])
        return answer


def _job(values: Sequence[str | None]) -> Job:
    known: dict[str, Any] = {
        name: value for name, value in zip(Job.model_fields, values, strict=True) if value is not None
    }
    for name in ("payload", "progress", "result", "error"):
        if name in known:
            known[name] = json.loads(known[name])
    return Job.model_validate(known)
