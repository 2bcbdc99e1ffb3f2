"""What can go wrong, and the ways a job is asked to stop."""

from typing import ClassVar


class IsengardError(Exception):
    """An expected failure. Its text is shown to the user unchanged and says what to do next."""

    code: ClassVar[str] = "error"


class InvalidSpec(IsengardError):
    """A value is out of range, of the wrong kind, or misspelt."""

    code = "invalid_spec"


class NotFound(IsengardError):
    """No character, image, LoRA, job, model or preset has this name."""

    code = "not_found"


class Conflict(IsengardError):
    """The request does not fit the present state: a name is taken, a job has already ended."""

    code = "conflict"


class ImageRefused(IsengardError):
    """One uploaded file was refused; the others of its batch are not affected."""

    code = "image_refused"


class MissingWeights(IsengardError):
    """The base model is not, or not wholly, on this machine."""

    code = "missing_weights"


class HubRefused(IsengardError):
    """The Hugging Face hub does not give this: a licence is not accepted, the token is wrong, there is no such thing."""

    code = "hub_refused"


class HubUnreachable(IsengardError):
    """The Hugging Face hub cannot be asked: no network, offline by choice, or it does not answer."""

    code = "hub_unreachable"


class DownloadFailed(IsengardError):
    """A download came to an end before its end, or brought something else than was promised."""

    code = "download_failed"


class CheckpointRefused(IsengardError):
    """A file or folder cannot stand in for a base model."""

    code = "checkpoint_refused"


class LoraRefused(IsengardError):
    """A LoRA file cannot be used: unreadable, of another model, or without effect."""

    code = "lora_refused"


class OutOfMemory(IsengardError):
    """The device has too little memory for what was asked."""

    code = "out_of_memory"


class DiskFull(IsengardError):
    """There is no room left where a file had to be written."""

    code = "disk_full"


class DiskReadOnly(IsengardError):
    """The disk does not take any change: it was mounted so, or the system made it so after an error."""

    code = "disk_read_only"


class TrainingFailed(IsengardError):
    """The training cannot go on: the loss is not a number, an image has vanished."""

    code = "training_failed"


class VerificationFailed(IsengardError):
    """The training ended but its LoRA does not work."""

    code = "verification_failed"


class WorkerLost(IsengardError):
    """The worker died again and again without getting further."""

    code = "worker_lost"


class TooMany(IsengardError):
    """An address asks for more than its share."""

    code = "too_many"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueUnavailable(IsengardError):
    """The job list cannot be read or written just now, or at all."""

    code = "queue_unavailable"


class VolumeUnfit(IsengardError):
    """The data folder cannot be shared: its file system lacks something, or it is not the one the others use."""

    code = "volume_unfit"


class LoginMissing(IsengardError):
    """The page would be open to everybody, and nobody said that it shall be."""

    code = "login_missing"


class BackupRefused(IsengardError):
    """A file is no backup, or a damaged one, or cannot be made or used where it was asked for."""

    code = "backup_refused"


class NotAvailable(IsengardError):
    """This part of the product is not made yet."""

    code = "not_available"


class InstallFailed(IsengardError):
    """A program or package that Isengard can use could not be installed."""

    code = "install_failed"


class PodNotStopped(IsengardError):
    """RunPod did not stop this pod."""

    code = "pod_not_stopped"


class JobStopped(Exception):
    """Base of the stop requests raised by ``report``. An engine saves its state and lets it through."""


class JobCancelled(JobStopped):
    """The user does not want the job any more."""


class JobPaused(JobStopped):
    """The user wants the job to wait until resumed."""


class JobSuspended(JobStopped):
    """The disk is nearly full: the job waits until there is room and the user resumes it. Its text says so to the user."""


class JobYielded(JobStopped):
    """The device is needed for an interactive job, or the worker is shutting down; the job goes on later."""


class LeaseLost(Exception):
    """Another worker owns the job now. Nothing may be written any more: let it through at once."""
