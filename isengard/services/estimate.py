"""What a training will take, from what trainings on this machine took; never a guess."""

from collections.abc import Callable, Iterable

from pydantic import Field

from isengard.domain import disk
from isengard.domain.base import Frozen
from isengard.domain.disk import kept_checkpoints
from isengard.domain.job import Job, JobKind, JobStatus, Phase
from isengard.domain.model import ModelCard
from isengard.domain.planner import TrainingPlan
from isengard.domain.training import TrainingSpec
from isengard.errors import InvalidSpec
from isengard.services.jobs import JobService
from isengard.services.training import read_payload

GIB = 1024**3
#: What decides the time of a step beside the number of pixels.
_SPEED_FIELDS = ("base_model", "engine", "precision", "quantization", "gradient_checkpointing")
#: What decides the size of a checkpoint beside the rank.
_SIZE_FIELDS = ("base_model", "engine", "targets", "optimizer")
#: Trainings that are looked at, newest first.
LOOK_BACK = 30


class Measured(Frozen):
    """A figure with its origin."""

    value: float
    origin: str = Field(description="a few words: what it was measured on")
    exact: bool = Field(description="false when it was scaled from other settings")


class Estimate(Frozen):
    """What is known before the start. None means that nothing was measured yet."""

    seconds: Measured | None
    memory_gb: Measured | None
    disk_bytes: Measured | None
    free_bytes: int

    @property
    def lacks_disk(self) -> bool:
        return self.disk_bytes is not None and self.disk_bytes.value > self.free_bytes


class Estimator:
    """Compares a plan with the trainings that were run here."""

    def __init__(
        self,
        *,
        jobs: JobService,
        card: Callable[[str], ModelCard],
        free: Callable[[], int],
    ) -> None:
        """``card``: a base model's, by its name. ``free``: room on the disk that no job was promised."""
        self._jobs, self._card, self.free_bytes = jobs, card, free

    def estimate(self, plan: TrainingPlan) -> Estimate:
        """Time, memory and disk of a training."""
        spec = plan.spec
        past = list(self._past())
        return Estimate(
            seconds=self._seconds(spec, past),
            memory_gb=_memory(spec, past) or _expected(plan),
            disk_bytes=self._disk(spec, past) or self._counted(spec),
            free_bytes=self.free_bytes(),
        )

    def _past(self) -> Iterable[tuple[Job, TrainingSpec]]:
        for job in self._jobs.jobs(kinds=[JobKind.TRAIN_LORA], limit=LOOK_BACK):
            try:
                yield job, read_payload(job)[0]
            except InvalidSpec:
                continue

    def _seconds(self, spec: TrainingSpec, past: list[tuple[Job, TrainingSpec]]) -> Measured | None:
        """The closest training of the same model with the same precision: by pixels per step, then by length."""
        found = []
        for age, (job, other) in enumerate(past):
            if not _same(spec, other, _SPEED_FIELDS):
                continue
            step_s = self._step_seconds(job, other)
            if step_s:
                factor = pixels_per_step(spec) / pixels_per_step(other)
                length = spec.steps / other.steps
                near = (
                    max(factor, 1 / factor),
                    job.status is not JobStatus.SUCCEEDED,
                    max(length, 1 / length),
                )
                found.append(((*near, age), step_s * factor, other, job))
        if not found:
            return None
        closest, step_s, other, job = min(found, key=lambda entry: entry[0])
        exact = closest[0] == 1
        whole = job.status is JobStatus.SUCCEEDED
        origin = f"a training of {other.steps} steps" if whole else "the speed of a training that did not end"
        if not exact:
            origin += f" at batch {other.batch_size}, {', '.join(map(str, other.resolutions))} px"
        return Measured(value=step_s * spec.steps, origin=origin, exact=exact)

    def _step_seconds(self, job: Job, spec: TrainingSpec) -> float | None:
        """With loading, samples and checkpoints where the job went through to its end; else the bare step."""
        if job.status is JobStatus.SUCCEEDED:
            worked = self._jobs.worked_s(job.id)
            trained = int((job.result or {}).get("steps", spec.steps))  # fewer where it ended early
            steps = trained - int(job.payload.get("from_step", 0))
            return worked / steps if worked > 0 and steps > 0 else None
        progress = job.progress
        bare = progress and progress.phase is not Phase.VERIFYING and progress.steps_per_s
        return 1 / bare if bare else None

    def _disk(self, spec: TrainingSpec, past: list[tuple[Job, TrainingSpec]]) -> Measured | None:
        """Checkpoints that stay, times the size of one that such a training wrote; grows with the rank."""
        for job, other in sorted(past, key=lambda entry: entry[1].rank != spec.rank):
            if not _same(spec, other, _SIZE_FIELDS) or bool(spec.ema_decay) != bool(other.ema_decay):
                continue
            folders = self._jobs.checkpoints(job.id)
            if not folders:
                continue
            try:
                size = sum(file.stat().st_size for file in folders[max(folders)].iterdir())
            except FileNotFoundError:  # a worker has removed it just now
                continue
            return Measured(
                value=size * spec.rank / other.rank * kept_checkpoints(spec),
                origin=f"a checkpoint of {size / 1024**2:.1f} MiB at rank {other.rank}",
                exact=spec.rank == other.rank,
            )
        return None

    def _counted(self, spec: TrainingSpec) -> Measured | None:
        parts = self._card(spec.base_model).parts
        if parts is None:
            return None
        value = disk.checkpoint_bytes(parts, spec) * kept_checkpoints(spec)
        return Measured(value=value, origin="the sizes of the layers", exact=False)


def _memory(spec: TrainingSpec, past: list[tuple[Job, TrainingSpec]]) -> Measured | None:
    """The peak that a training with the same settings reported."""
    fields = (*_SPEED_FIELDS, *_SIZE_FIELDS, "rank", "batch_size", "resolutions")
    for job, other in past:
        if job.progress and job.progress.memory_bytes and _same(spec, other, fields):
            return Measured(
                value=job.progress.memory_bytes / GIB, origin="a training with these settings", exact=True
            )
    return None


def _expected(plan: TrainingPlan) -> Measured | None:
    """What the plan counts with."""
    if not plan.expected_peak_bytes:
        return None
    origin = "these settings on this machine" if plan.measured else "counted, not measured here yet"
    return Measured(value=plan.expected_peak_bytes / GIB, origin=origin, exact=plan.measured)


def pixels_per_step(spec: TrainingSpec) -> float:
    """Pixels that go through the model for one optimizer step, on average over the resolutions."""
    area = sum(side * side for side in spec.resolutions) / len(spec.resolutions)
    return area * spec.batch_size * spec.gradient_accumulation_steps


def _same(one: TrainingSpec, other: TrainingSpec, names: Iterable[str]) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in names)
