"""Records what jobs take of the memory, so that the next plan knows better."""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from isengard.domain import memory
from isengard.domain.generation import ImageSpec
from isengard.domain.job import Phase, Progress, Requests
from isengard.domain.memory import Machine, Peak, Task
from isengard.domain.model import ModelCard
from isengard.domain.performance import GenerationPlan
from isengard.domain.training import TrainingSpec
from isengard.engines.base import Report
from isengard.errors import DiskFull, DiskReadOnly, OutOfMemory
from isengard.services.planning import Planning
from isengard.store.memory import Peaks

log = logging.getLogger(__name__)

#: An attempt that ran out of memory took at least all there is.
BEYOND = 1.02


@dataclass
class Watch:
    """A ``report`` that remembers the highest memory of some phases."""

    report: Report
    phases: Collection[Phase]
    highest: int = field(default=0, init=False)

    def __call__(self, progress: Progress) -> Requests:
        if progress.phase in self.phases and progress.memory_bytes:
            self.highest = max(self.highest, progress.memory_bytes)
        return self.report(progress)


@dataclass(frozen=True, kw_only=True)
class MemoryBook:
    """Measures one job at a time."""

    planning: Planning
    peaks: Peaks
    reset: Callable[[], None]
    """Forgets the device's former peak."""

    @contextmanager
    def training(self, card: ModelCard, spec: TrainingSpec, report: Report) -> Iterator[Watch]:
        """Watch a training; an `OutOfMemory` leaves with the plan that should fit."""
        machine = self.planning.machine()
        counted = memory.training_bytes(card.parts, spec, machine.kind) if card.parts else 0
        key = memory.training_key(spec)
        phases = (Phase.CACHING, Phase.TRAINING, Phase.VALIDATING, Phase.SAVING, Phase.SAMPLING)
        with self._watching(Watch(report, phases), Task.TRAINING, card, key, counted, machine) as watch:
            try:
                yield watch
            except OutOfMemory as error:
                way = self.planning.after_out_of_memory(card, spec)
                if card.parts is None or not way.fits:
                    raise
                raise OutOfMemory(f"{error}. This should fit: {way.words}") from error

    @contextmanager
    def images(self, card: ModelCard, spec: ImageSpec, report: Report) -> Iterator[Watch]:
        """Watch a request for images; after an `OutOfMemory` the next plan for such a request is a smaller one."""
        machine, plan = self.planning.machine(), self.planning.images(card, spec).plan
        counted = _counted(card, spec, plan, machine)
        key = memory.generation_key(spec, plan)
        watch = Watch(report, (Phase.GENERATING,))
        try:
            with self._watching(watch, Task.GENERATION, card, key, counted, machine):
                yield watch
        except OutOfMemory as error:
            way = self.planning.images(card, spec)
            if card.parts is None or not way.fits:
                raise
            raise OutOfMemory(f"{error}. Ask for it again: it is then made with {way.words}") from error

    @contextmanager
    def _watching(
        self, watch: Watch, task: Task, card: ModelCard, key: str, counted: int, machine: Machine
    ) -> Iterator[Watch]:
        self.reset()
        try:
            yield watch
        except OutOfMemory:
            watch.highest = max(watch.highest, int(machine.room() * BEYOND))
            raise
        finally:
            if counted and watch.highest:
                self._keep(
                    Peak(
                        task=task,
                        model=card.name,
                        device=machine.name,
                        settings=key,
                        expected_bytes=counted,
                        measured_bytes=watch.highest,
                    )
                )

    def _keep(self, peak: Peak) -> None:
        try:
            self.peaks.add(peak)
        except (DiskFull, DiskReadOnly, OSError):
            log.warning("memory peak not kept", exc_info=True)
        log.info(
            "memory measured",
            extra={"model": peak.model, "expected": peak.expected_bytes, "measured": peak.measured_bytes},
        )


def _counted(card: ModelCard, spec: ImageSpec, plan: GenerationPlan, machine: Machine) -> int:
    if card.parts is None:
        return 0
    megapixels = spec.width * spec.height / memory.MIB
    return memory.generation_bytes(card.parts, plan, megapixels=megapixels, kind=machine.kind)
