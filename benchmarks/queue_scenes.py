"""What the simulated workers, and the page, of the benchmark of the queue do."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from isengard.domain.base import Frozen
from isengard.domain.job import JobKind, JobStatus, Lane, Needs, Phase, Progress
from isengard.domain.memory import Kind, Machine
from isengard.domain.worker import GIB, WorkerState
from isengard.errors import LeaseLost, QueueUnavailable
from isengard.queue.base import JobQueue
from isengard.queue.redis import RedisQueue
from isengard.queue.sqlite import SqliteQueue

LEASE_S = 60.0
#: While at work.
HOLD_S, REPORT_EVERY_S, LOOK_EVERY_S = 1.0, 0.25, 0.25
ANNOUNCE_EVERY_S = 5.0
#: The processes of the workers take some seconds to start.
START_S = 120.0
#: While idle: an idle worker asks so often at least, and so many images a second are asked for.
POLL_S, IMAGES_PER_S = 1.0, 40
MODELS = ("flux", "flux2", "sdxl")
#: The workers have these in turn, and the jobs need them.
SIZES_GB = (24, 48, 80)
NEEDS = [Needs(memory_gb=gb, model=model) for gb in (12, 24, 40) for model in MODELS]
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


class Claim(NamedTuple):
    """When a claim was answered, and after how many seconds."""

    at: float
    seconds: float


#: The claims of a worker, and how often the queue could not be reached.
Talk = tuple[list[Claim], int]
Work = Callable[[JobQueue, str, float], Talk]


def ask(queue: JobQueue, number: int) -> None:
    """Enqueue a training, or an image when the number is odd."""
    kind, lane = (
        (JobKind.GENERATE_IMAGES, Lane.INTERACTIVE) if number % 2 else (JobKind.TRAIN_LORA, Lane.TRAINING)
    )
    queue.enqueue(kind, PAYLOAD, lane=lane, needs=NEEDS[number % len(NEEDS)])


def announce(queue: JobQueue, name: str) -> None:
    size = (SIZES_GB[int(name.rpartition("-")[2]) % len(SIZES_GB)] + 1) * GIB
    machine = Machine(
        kind=Kind.MPS,
        name="simulated",
        total_bytes=size,
        free_bytes=size,
        system_total_bytes=size,
        system_free_bytes=size,
    )
    warm = MODELS[int(name.rpartition("-")[2]) % len(MODELS)]
    queue.announce(WorkerState(name=name, machine=machine, models=MODELS, warm=warm))


def patiently(call: Callable[[], None]) -> None:
    """Two hundred writers of one SQLite file do not all get their turn in time."""
    while True:
        try:
            return call()
        except QueueUnavailable:
            time.sleep(POLL_S)


def share(work: Work, place: Place, names: Sequence[str], seconds: float) -> Talk:
    """The workers of one process."""
    queue = place.queue()
    for name in names:
        patiently(partial(announce, queue, name))
    with ThreadPoolExecutor(len(names)) as pool:
        parts = list(pool.map(lambda name: work(queue, name, seconds), names))
    for name in names:
        patiently(partial(queue.leave, name))
    return [claim for claims, _ in parts for claim in claims], sum(refused for _, refused in parts)


def run_all(queue: JobQueue, name: str, _: float) -> Talk:
    """Claim, report once and succeed, until no job waits."""
    claims: list[Claim] = []
    refused = 0
    while True:
        try:
            began = time.monotonic()
            job = queue.claim(name, lease_s=LEASE_S)
            if job is None and not queue.jobs(statuses=(JobStatus.QUEUED,), limit=1):
                break
            if job is None:
                queue.wait(name, POLL_S)
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
    announce_at = time.monotonic() + ANNOUNCE_EVERY_S
    while time.monotonic() < until:
        try:
            if time.monotonic() > announce_at:
                announce(queue, name)
                announce_at += ANNOUNCE_EVERY_S
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


def rest(queue: JobQueue, name: str, seconds: float) -> Talk:
    """Wait for images; of each, for how long it waited for a worker."""
    until, refused = time.monotonic() + seconds, 0
    starts: list[Claim] = []
    while time.monotonic() < until:
        try:
            job = queue.claim(name, lease_s=LEASE_S)
            if job is None:
                queue.wait(name, POLL_S)
                continue
            starts.append(Claim(time.monotonic(), time.time() - job.created_at))
            time.sleep(HOLD_S)
            queue.succeed(job, {})
        except (QueueUnavailable, LeaseLost):
            refused += 1
    return starts, refused


def ask_for_images(place: Place, workers: int, seconds: float) -> None:
    """Ask for them as soon as all workers are there."""
    queue, number = place.queue(), 1
    while len(queue.workers()) < workers:
        time.sleep(0.1)
    until = time.monotonic() + 0.9 * seconds
    while time.monotonic() < until:
        patiently(partial(ask, queue, number))
        number += 2
        time.sleep(1 / IMAGES_PER_S)


def progress(step: int) -> Progress:
    """Carries the time at which it was sent."""
    return Progress(phase=Phase.TRAINING, step=step, total=100_000, message=repr(time.time()))


def follow(place: Place, seconds: float) -> list[float]:
    """Be a page that shows the first worker's job; the age of each progress when it arrived."""
    queue = place.queue()
    job_id = held_by_the_first(queue, time.monotonic() + START_S)
    until = time.monotonic() + seconds
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
    raise SystemExit("the first worker got no job in time; give the benchmark fewer --workers")


def looks(queue: JobQueue, job_id: str, until: float) -> Iterator[None]:
    """Yield when it is time to look at the job."""
    with queue.listening(job_id) as may_have_changed:
        while time.monotonic() < until:
            if may_have_changed(LOOK_EVERY_S):
                yield
