"""The workers at one look, and how the page speaks of them and of where a job ran."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isengard.domain.job import Job, JobStatus, Needs
from isengard.domain.worker import GIB, WorkerState
from isengard.settings import WorkerMode
from tabs.common import Page

#: The header names so many workers.
NAMED = 12


@dataclass(frozen=True)
class Fleet:
    """Every worker that is known, those that live, and whether there is more than one place where a job can have run."""

    workers: Sequence[WorkerState]
    living: frozenset[str]
    several: bool
    hosts: Counter[str]

    def name(self, worker: str) -> str:
        """The host, where it has one worker only; else the whole name."""
        return _host(worker) if self.hosts[_host(worker)] <= 1 else worker

    def where(self, job: Job) -> str:
        """Where a job runs or ran last, ``pod-a · RTX 4090``; empty when that is no news."""
        if not self.several or job.ran_on is None:
            return ""
        device = next((each.device for each in self.workers if each.name == job.ran_on), "")
        return " · ".join(filter(None, [self.name(job.ran_on), device]))

    def state(self, worker: WorkerState) -> str:
        if worker.name not in self.living:
            return "silent"
        if worker.draining:
            return "draining" if worker.job else "drained"
        return "busy" if worker.job else "idle"

    def stamp(self) -> list[Any]:
        """What makes the page worth painting again."""
        return [(each.name, self.state(each), each.job, each.models) for each in self.workers]


def fleet_of(page: Page, workers: Sequence[WorkerState], jobs: Sequence[Job]) -> Fleet:
    """The fleet, with ``jobs`` to know of workers that have left.

    Only of a shared queue: a container has another host name at each start, and is one machine all the same.
    """
    shared = page.app.settings.redis_url is not None
    names = {each.name for each in workers} | {job.ran_on for job in jobs if shared and job.ran_on}
    living = frozenset(each.name for each in workers if page.app.workers.is_alive(each))
    hosts = Counter(_host(each.name) for each in workers)
    return Fleet(workers=workers, living=living, several=len(names) > 1, hosts=hosts)


def summary(page: Page, fleet: Fleet) -> dict[str, Any]:
    """What the header says of the machine that runs the jobs, or of the machines.

    ``fleet``: the words are the script's: how many workers there are, or none; null when there is one, as on most machines.
    """
    living = [each for each in fleet.workers if each.name in fleet.living]
    settings = page.app.settings
    told = {"device": "", "memory": "", "fleet": None}
    if len(living) > 1 or (len(fleet.workers) > 1 and settings.redis_url is not None):
        states = [fleet.state(each) for each in fleet.workers]
        counts = {
            "living": len(living),
            "busy": sum(each.job is not None for each in living),
            "silent": states.count("silent"),
        }
        rows = list(zip(fleet.workers, states, strict=True))[:NAMED]
        named = [[fleet.name(each.name), each.device, state] for each, state in rows]
        return {**told, "fleet": {**counts, "named": named}}
    if living:
        (one,) = living
        return {**told, "device": one.device, "memory": memory(one.total_bytes, one.free_bytes)}
    if settings.worker is WorkerMode.NONE:
        return {**told, "fleet": {"living": 0, "busy": 0, "silent": 0, "named": []}}
    machine = page.machine.state()
    return {**told, "device": machine.device, "memory": f"{machine.used_gb:.1f} / {machine.total_gb:.0f} GB"}


def memory(total_bytes: int, free_bytes: int) -> str:
    """``21.4 / 24 GB``: how much is in use."""
    return f"{(total_bytes - free_bytes) / GIB:.1f} / {total_bytes / GIB:.0f} GB"


def why_waiting(page: Page) -> Callable[[Job], str]:
    """Ask why no worker will take a job, once for all jobs of equal needs; empty when one will.

    Also while there is none for a moment, where the page itself starts one.
    """
    service = page.app.workers
    starts_one = page.app.settings.worker is not WorkerMode.NONE
    known: dict[Needs, str] = {}

    def why(job: Job) -> str:
        if job.status is not JobStatus.QUEUED:
            return ""
        if job.needs not in known:
            alone = starts_one and not any(map(service.is_alive, service.workers()))
            said = "" if alone else service.why_waiting(job)
            known[job.needs] = sentence(said)
        return known[job.needs]

    return why


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _host(name: str) -> str:
    return name.partition("/")[0]
