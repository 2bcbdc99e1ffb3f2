"""``/metrics`` for Prometheus: the jobs, workers, disk and requests as numbers."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import inf
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isengard import __version__
from isengard.domain.job import JobKind, JobStatus, Lane
from isengard.domain.memory import Kind
from isengard.domain.tally import DURATIONS_S, Ended, Tally
from isengard.domain.worker import WorkerState
from isengard.errors import DiskFull, QueueUnavailable
from isengard.wiring import Application

#: Running trainings whose speed is told: as many as there may be workers.
MOST_TRAININGS = 1000
STANDING = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED)
RESULTS = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)
STATES = ("busy", "idle", "draining", "silent")


def routes(app: Application) -> list[Route]:
    """``/metrics``. It is as private as the page: the middleware in front of it says who may ask."""
    registry = CollectorRegistry()
    registry.register(AppCollector(app))
    ProcessCollector(registry=registry)

    def metrics(request: Request) -> Response:
        both = generate_latest(registry) + generate_latest(request.state.meters.registry)
        return Response(both, headers={"content-type": CONTENT_TYPE_LATEST, "cache-control": "no-store"})

    return [Route("/metrics", metrics)]


class AppCollector(Collector):
    """Reads everything anew for each scrape. Each name is always there, also where there is nothing to tell."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        yield _gauge("isengard_info", "Which version this is.", ("version",), [((__version__,), 1)])
        checks = [((check.name,), check.ok) for check in self._app.checks.look()]
        yield _gauge("isengard_check_ok", "1 when a check of /ready passes.", ("check",), checks)
        yield from _jobs(*self._tally())
        workers = self._workers()
        yield self._by_state(workers)
        yield from _gpus([worker for worker in workers if self._app.workers.is_alive(worker)])
        yield self._speeds()
        yield from self._disk()

    def _tally(self) -> tuple[Tally, bool]:
        try:
            return self._app.jobs.tally(), True
        except (QueueUnavailable, DiskFull):
            return Tally(), False

    def _workers(self) -> Sequence[WorkerState]:
        try:
            return self._app.workers.workers()
        except (QueueUnavailable, DiskFull):
            return ()

    def _by_state(self, workers: Sequence[WorkerState]) -> Metric:
        counts = dict.fromkeys(STATES, 0)
        for worker in workers:
            alive = self._app.workers.is_alive(worker)
            doing = "draining" if worker.draining else "busy" if worker.job else "idle"
            counts[doing if alive else "silent"] += 1
        values = [((state,), number) for state, number in counts.items()]
        return _gauge("isengard_workers", "Workers that are known, by what they do.", ("state",), values)

    def _speeds(self) -> Metric:
        try:
            running = self._app.jobs.jobs(
                statuses=(JobStatus.RUNNING,), kinds=(JobKind.TRAIN_LORA,), limit=MOST_TRAININGS
            )
        except (QueueUnavailable, DiskFull):
            running = ()
        values = [
            ((job.worker or "",), job.progress.steps_per_s)
            for job in running
            if job.progress and job.progress.steps_per_s
        ]
        text = "Optimizer steps per second of the training that a worker runs."
        return _gauge("isengard_training_steps_per_second", text, ("worker",), values)

    def _disk(self) -> Iterator[Metric]:
        try:
            usage = shutil.disk_usage(self._app.settings.data_dir)
            sizes = [((), usage.free)], [((), usage.total)]
        except OSError:  # it is not there; the check says so
            sizes = [], []
        yield _gauge("isengard_disk_free_bytes", "Free on the disk of the data folder.", (), sizes[0])
        yield _gauge("isengard_disk_total_bytes", "Size of the disk of the data folder.", (), sizes[1])
        parts = [((part,), size) for part, size in self._app.footprint.sizes().items()]
        text = "What the parts of the data folder take, as of at most ten minutes ago."
        yield _gauge("isengard_data_bytes", text, ("part",), parts)


def _jobs(tally: Tally, known: bool) -> Iterator[Metric]:  # noqa: FBT001  # two halves of one answer
    numbers = {(each.lane, each.status): each.jobs for each in tally.standing}
    standing = [
        ((lane, status), numbers.get((lane, status), 0)) for lane in Lane for status in STANDING if known
    ]
    text = "Jobs that have not ended, by lane and state."
    yield _gauge("isengard_jobs", text, ("lane", "status"), standing)
    text = "From a job's first claim to its end, pauses included; counted by the job list itself, once for all pages."
    durations = HistogramMetricFamily("isengard_job_duration_seconds", text, labels=("kind", "result"))
    counted = {(each.kind, each.result): each for each in tally.ended}
    for kind, result in product(JobKind, RESULTS if known else ()):
        # Also what never happened: the rate of a number that begins with 1 is nothing.
        none = Ended(kind=kind, result=result, durations={}, seconds=0)
        ended = counted.get((kind, result), none)
        buckets = [(_bound(up_to), float(number)) for up_to, number in _summed(ended)]
        durations.add_metric((kind, result), buckets, ended.seconds)
    yield durations


def _summed(ended: Ended) -> Iterator[tuple[float, int]]:
    """The classes with the number of all jobs up to each."""
    total = 0
    for bound in sorted({*DURATIONS_S, *ended.durations, inf}):
        total += ended.durations.get(bound, 0)
        yield bound, total


def _bound(up_to: float) -> str:
    return "+Inf" if up_to == inf else str(float(up_to))


def _gpus(workers: Sequence[WorkerState]) -> Iterator[Metric]:
    """Of the cards of living workers, wherever they are."""
    cards = [worker for worker in workers if worker.machine and worker.machine.kind is Kind.CUDA]
    used = [((each.name,), each.total_bytes - each.free_bytes) for each in cards]
    yield _gauge("isengard_gpu_memory_used_bytes", "Memory of the GPU in use.", ("worker",), used)
    total = [((each.name,), each.total_bytes) for each in cards]
    yield _gauge("isengard_gpu_memory_total_bytes", "Memory of the GPU.", ("worker",), total)
    load = [((each.name,), each.load) for each in cards if each.load is not None]
    text = "Share of the last moments in which the GPU was at work."
    yield _gauge("isengard_gpu_load_ratio", text, ("worker",), load)


def _gauge(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[Any], float]]
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for said, value in values:
        family.add_metric([str(each) for each in said], float(value))
    return family
