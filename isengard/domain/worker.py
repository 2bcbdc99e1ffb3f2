"""Workers as the queue knows them, and which jobs each of them can serve."""

from collections.abc import Iterable

from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.job import Needs
from isengard.domain.memory import Kind, Machine

GIB = 2**30


class WorkerState(Frozen):
    """What a worker says of itself every few seconds, and what the queue adds. Times are seconds since the epoch."""

    name: str = Field(description="host/device: the same at every start")
    machine: Machine | None = Field(None, description="what plans for its jobs are made for")
    free_bytes: int = Field(0, ge=0, description="of the device's memory, just now")
    load: float | None = Field(None, description="share of the last moments in which its GPU was at work")
    engines: tuple[str, ...] = Field((), description="training engines that work there")
    models: tuple[str, ...] = Field((), description="base models on its disk")
    warm: str = Field("", description="the base model whose pipeline is loaded")
    version: str = Field("", description="of Isengard")
    started_at: float = 0.0
    seen_at: float = Field(0.0, description="when it last announced itself; set by the queue")
    draining: bool = Field(False, description="it finishes its job and takes no more; set by the queue")
    job: str | None = Field(None, description="the job it runs; set by the queue")

    @property
    def device(self) -> str:
        """The name of its card, or of its processor."""
        return self.machine.name if self.machine else ""

    @property
    def total_bytes(self) -> int:
        """Memory of the device."""
        return self.machine.total_bytes if self.machine else 0

    @property
    def memory_gb(self) -> int:
        """GiB of a GPU that a job can have when nothing else runs; 0 without one.

        So a processor, however large its memory, takes what no GPU is there for, and what needs none.
        """
        if self.machine is None or self.machine.kind is Kind.CPU:
            return 0
        return self.machine.room() // GIB


def largest_memory(workers: Iterable[WorkerState]) -> int:
    """GiB of the largest device among workers that take jobs."""
    return max((worker.memory_gb for worker in workers if not worker.draining), default=0)


def serves(worker: WorkerState, needs: Needs, *, largest_gb: int) -> bool:
    """Whether the worker can run a job with such needs.

    A job that is too large for every device is tried on the largest, ``largest_gb``: what a job needs is an estimate.
    """
    enough = worker.memory_gb >= min(needs.memory_gb, largest_gb)
    return enough and needs.engine in ("", *worker.engines) and needs.model in ("", *worker.models)
