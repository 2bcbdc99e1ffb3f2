"""Jobs: durable requests for work, and what is known about their course."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from isengard.domain.base import Frozen


class JobKind(StrEnum):
    """What a worker can be asked to do."""

    TRAIN_LORA = "train_lora"
    GENERATE_IMAGES = "generate_images"
    EVALUATE_CHECKPOINTS = "evaluate_checkpoints"
    CAPTION_IMAGES = "caption_images"


class Lane(StrEnum):
    """Interactive jobs are claimed before waiting trainings, and a running training yields to them."""

    INTERACTIVE = "interactive"
    TRAINING = "training"


class JobStatus(StrEnum):
    """Where a job stands; ``docs`` of `JobQueue` state the transitions."""

    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # a worker holds its lease
    PAUSED = "paused"  # waits for the user
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class Phase(StrEnum):
    """What a running job is doing, in the order of a training."""

    LOADING = "loading"
    CACHING = "caching"
    TRAINING = "training"
    VALIDATING = "validating"
    SAVING = "saving"
    SAMPLING = "sampling"
    VERIFYING = "verifying"
    GENERATING = "generating"
    CAPTIONING = "captioning"


class Progress(Frozen):
    """One report of a running job."""

    phase: Phase
    step: int = Field(0, ge=0, description="steps done of this phase; optimizer steps while training")
    total: int = Field(0, ge=0, description="steps of this phase; 0 when unknown")
    message: str = Field("", description="a few words for a person")
    loss: float | None = Field(None, description="smoothed training loss")
    validation_loss: float | None = Field(None, description="newest loss on the fixed validation set")
    steps_per_s: float | None = None
    eta_s: float | None = Field(None, description="seconds until the job ends, estimated")
    memory_bytes: int | None = Field(None, description="peak memory of the device, or of the process on CPU")
    preview: str | None = Field(None, description="file name inside the job's folder of the newest picture")


class Requests(Frozen):
    """What the user asked of a running job since the last report; each is delivered once."""

    save: bool = False
    sample: bool = False
    finish: bool = False
    """End the training at this step, as if it were the last. Asked by a handler, not by the user."""


class Stop(StrEnum):
    """Why a running job has to stop."""

    CANCEL = "cancel"
    PAUSE = "pause"
    YIELD = "yield"


class Signals(Frozen):
    """A queue's answer to a heartbeat."""

    stop: Stop | None = None
    requests: Requests = Requests()


class JobError(Frozen):
    """How a failed job failed, or what a paused one lacks. ``message`` is plain words for the user."""

    code: str
    message: str


class Needs(Frozen):
    """What a job asks of its worker. Jobs with equal needs wait in one line."""

    memory_gb: int = Field(0, ge=0, description="whole GiB of the device's memory; 0 when any will do")
    engine: str = Field("", description="the training engine; empty when any will do")
    model: str = Field("", description="the base model that is loaded; empty when any will do")


class Job(Frozen):
    """A job as the queue knows it. Times are seconds since the epoch."""

    id: str
    kind: JobKind
    lane: Lane
    status: JobStatus
    payload: dict[str, Any]
    needs: Needs = Needs()
    attempt: int = Field(0, description="1 for the first claim, one more each time a worker was lost")
    fence: int = Field(0, description="grows at every claim; an owner with an old fence is refused")
    worker: str | None = Field(None, description="who owns it now")
    ran_on: str | None = Field(None, description="the worker that owned it last")
    stop: Stop | None = Field(None, description="a stop that was requested and not yet obeyed")
    correlation_id: str | None = Field(None, description="of the request that asked for it, for the logs")
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    lease_until: float | None = None
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    error: JobError | None = None


class JobEvent(Frozen):
    """One line of a job's history."""

    job_id: str
    at: float
    kind: str = Field(description="queued, claimed, lost, yielded, paused, resumed, cancelled, moved, ...")
    detail: str = ""
