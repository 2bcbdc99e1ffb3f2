"""The shared job queue: one Redis or Valkey server, for workers and pages on any number of machines.

**Lines.** Jobs of one lane with equal `Needs` are in one line. **Two ledgers** for each line: jobs that wait are in a sorted
set, whose scores are their places: a user moves and pauses waiting jobs, and a stream keeps no order but that of arrival.
Jobs that run are entries in a stream, and their pending records say everything about the ownership: the consumer is the
worker, and the delivery time is the end of the lease, less a day. A claim takes the first of the sorted set, appends it to
the stream and delivers it to the worker (XADD, XCLAIM FORCE); a heartbeat moves the delivery time (XCLAIM); XAUTOCLAIM
finds the entries idle for a day and more, whose leases ended, whatever their lengths; XACK and XDEL end it.

**Keys**, each beginning with the prefix; ``<line>`` is ``<lane>:<needs as JSON>``:

- ``job:<id>``: a hash, the truth about the job. ``events:<id>``: a list, three items for each event of its history.
- ``waiting:<line>``, ``running:<line>``: the two ledgers. ``lines:<lane>``: the needs of the lines that hold a job, by the
  place of the first that waits. ``places:<lane>``: the places of all jobs that have not ended, so that a paused or released
  job comes back to its own. Places are numbered across lanes and lines.
- ``earliest``: no lease ends before it, so most calls need not look at the streams.
- ``paused``, ``ended:<status>:<kind>``: for the list. ``unserved:<needs>``: see `YIELD_AFTER_S`.
- ``worker:<name>``: a hash, what a worker said of itself. ``held:<name>``: the jobs it owns. ``workers``, ``memory``,
  ``idle:<warm model>``: where placement finds workers. ``resting``, ``bell:<name>``: see below.
- ``tally``: a hash, how many jobs ever ended and in what time: ``<kind> <status> <class of duration>``, and ``seconds`` for
  the class. ``writable``: nothing; it is written to see whether that can be done.
- ``format``, ``volume``: of which layout the keys are, and which data folder goes with the jobs.
- ``changes:<id>``: a channel. It only says that something changed; the hash says what.

**Placement.** A claim goes through the lines of the most urgent lane in the order of their first jobs, and takes from the
first that the worker serves. What it costs grows with the lines that wait, not with jobs or workers.

**Bells.** A worker whose claim found nothing rests, and waits for its bell (BLPOP). A job that begins to wait calls one
resting worker that serves it. Of many that rest only some are looked at, and a bell may go unheard: each worker also looks
by itself now and then.

**Atomic.** Each method is one Lua script (``lua/*.lua``), with the fence checked in it. A refused call changes nothing.

**Again.** A request whose answer was lost is sent again, and may so be obeyed twice. Each call has a token; the job
keeps the token of the last change, so that the second is answered like the first and does nothing. A claim, a heartbeat or
the end of a job that got no answer at all keeps its token for the next try of the same worker: the job that was claimed
unheard is then found, and a wish that was handed over unheard is handed over again.

**Time** is the server's, so that the clocks of the machines do not matter.

**On disk** means what the server makes of it: with ``appendonly yes`` and ``appendfsync always`` every answer; with
``everysec`` a crash of the machine may cost the last second. Redis Cluster is not supported, as a script touches the keys
of many jobs.
"""

import json
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from isengard.domain.tally import Ended, Standing, Tally
from isengard.domain.worker import WorkerState
from isengard.errors import Conflict, LeaseLost, NotFound, QueueUnavailable
from isengard.logs import bound_field
from isengard.queue.base import ANY_WORKER, progress_mark
from isengard.queue.redis_server import RedisServer
from isengard.queue.shared import ServerFacts

log = logging.getLogger(__name__)

_REFUSALS: dict[str, type[Exception]] = {
    "not_found": NotFound,
    "conflict": Conflict,
    "lease_lost": LeaseLost,
}


class RedisQueue:
    """`JobQueue`, and `SharedLedger`, on a Redis or Valkey server."""

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
        self._look_again_s: dict[str, float] = {}
        self._server.check()

    def enqueue(
        self,
        kind: JobKind,
        payload: dict[str, Any],
        *,
        lane: Lane = Lane.TRAINING,
        needs: Needs = ANY_WORKER,
        job_id: str | None = None,
    ) -> Job:
        job_id = job_id or secrets.token_hex(6)
        request = bound_field("correlation_id") or ""
        (values,) = self._run(
            "enqueue", job_id, kind, lane, needs.model_dump_json(), json.dumps(payload), request
        )
        log.info("job queued", extra={"job_id": job_id, "kind": kind, "lane": lane})
        return _job(values)

    def claim(self, worker: str, *, lease_s: float, lanes: Collection[Lane] = tuple(Lane)) -> Job | None:
        in_order = [lane for lane in Lane if lane in lanes]
        found, *look_again_s = self._run_on("claim", (worker, *in_order), worker, str(lease_s), *in_order)
        if look_again_s:
            self._look_again_s[worker] = float(look_again_s[0])
        return _job(found) if found else None

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

    def suspend(self, job: Job, error: JobError) -> None:
        self._of_owner("suspend", job, error.model_dump_json(), error.message)

    def release_worker(self, worker: str) -> int:
        return int(self._run("release_worker", worker)[0])

    def cancel(self, job_id: str) -> Job:
        return _job(self._run("cancel", job_id)[0])

    def pause(self, job_id: str) -> Job:
        return _job(self._run("pause", job_id)[0])

    def resume(self, job_id: str) -> Job:
        return _job(self._run("resume", job_id)[0])

    def requeue(self, job_id: str, payload: dict[str, Any], *, needs: Needs = ANY_WORKER) -> Job:
        return _job(self._run("requeue", job_id, json.dumps(payload), needs.model_dump_json())[0])

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

    def tally(self) -> Tally:
        standing, counts = self._run("tally")
        names = ("lane", "status", "jobs")
        return Tally(
            standing=tuple(Standing.model_validate(dict(zip(names, each, strict=True))) for each in standing),
            ended=_ended(dict(zip(counts[::2], counts[1::2], strict=True))),
        )

    def check_writable(self) -> None:
        self._run("check_writable")

    def announce(self, worker: WorkerState) -> WorkerState:
        said = worker.model_dump_json(exclude={"seen_at", "draining", "job"})
        names = (_between_lines(worker.engines), _between_lines(worker.models))
        facts = (said, str(worker.memory_gb), *names, worker.warm)
        return _worker(self._run("announce", worker.name, *facts)[0])

    def leave(self, worker: str) -> None:
        self._run("leave", worker)

    def drain(self, worker: str, *, draining: bool = True) -> WorkerState:
        return _worker(self._run("drain", worker, "1" if draining else "0")[0])

    def workers(self) -> Sequence[WorkerState]:
        known = [_worker(entry) for entry in self._run("workers")[0]]
        return sorted(known, key=lambda worker: worker.name)

    def wait(self, worker: str, seconds: float) -> None:
        """Wait until a job has begun to wait that the worker serves, and for which it was chosen: until its bell rings."""
        self._server.hear_bell(worker, min(seconds, self._look_again_s.pop(worker, seconds)))

    @contextmanager
    def listening(self, job_id: str) -> Iterator[Callable[[float], bool]]:
        with self._server.listening(f"changes:{job_id}") as next_change:
            yield next_change

    def claim_volume(self, volume_id: str) -> str:
        return self._server.agree("volume", volume_id)

    def server_time(self) -> float:
        return self._server.time()

    def server_facts(self) -> ServerFacts:
        return self._server.facts()

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
    for name in ("payload", "needs", "progress", "result", "error"):
        if name in known:
            known[name] = json.loads(known[name])
    return Job.model_validate(known)


def _ended(counts: Mapping[str, str]) -> tuple[Ended, ...]:
    """``counts``: the hash ``tally``."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, value in counts.items():
        kind, result, up_to = key.split()
        entry = found.setdefault((kind, result), {"kind": kind, "result": result, "durations": {}})
        if up_to == "seconds":
            entry["seconds"] = float(value)
        else:
            entry["durations"][float(up_to)] = int(value)
    return tuple(Ended.model_validate(found[each]) for each in sorted(found))


def _worker(entry: Sequence[str | None]) -> WorkerState:
    said, seen_at, draining, job = entry
    added = {"seen_at": seen_at, "draining": draining == "1", "job": job}
    return WorkerState.model_validate({**json.loads(said or ""), **added})


def _between_lines(names: Iterable[str]) -> str:
    return "".join(f"\n{name}\n" for name in names)
