"""Whether there is room on the disk for what is asked for, beside what is promised to other jobs already."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from isengard.domain import disk
from isengard.domain.base import validated
from isengard.domain.comparison import ComparisonSpec
from isengard.domain.disk import size
from isengard.domain.generation import ImageSpec
from isengard.domain.job import Job, JobKind, JobStatus
from isengard.domain.model import ModelCard
from isengard.domain.training import TrainingSpec
from isengard.errors import DiskFull, InvalidSpec, JobSuspended, NotFound
from isengard.queue.base import JobQueue
from isengard.store.configs import Catalog
from isengard.store.usage import size_of

#: Stays free for the job list and the logs.
RESERVE_BYTES = 32 * 2**20
#: What is promised is counted anew after this time, where much is asked.
PROMISE_AGE_S = 2.0

WAY_OUT = 'free some space: "Storage" on the Training tab, or python -m isengard cleanup'


class Room:
    """The disk of the data folder, and the quota if there is one."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        catalog: Catalog,
        folder: Path,
        runs_dir: Path,
        quota: int | None = None,
        used: Callable[[], int] = lambda: 0,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``quota``: bytes that the folder may hold. ``used``: what it holds; asked for only where there is a quota."""
        self._queue, self._catalog, self._folder, self._runs_dir = queue, catalog, folder, runs_dir
        self._quota, self._used, self._free, self._clock = quota, used, free, clock
        self._promise: tuple[float, int] | None = None

    def free(self, folder: Path | None = None) -> int:
        """Bytes that can still be written, on the disk and by the quota; below 0 where there are too many."""
        on_disk = self.on_disk(folder or self._folder)
        return on_disk if self._quota is None else min(on_disk, self._quota - self._used())

    def on_disk(self, folder: Path) -> int:
        """Free bytes of the disk of a folder, which need not be there yet."""
        while not folder.exists():
            folder = folder.parent
        return self._free(folder)

    def unpromised(self, folder: Path | None = None) -> int:
        """Free bytes that no job was promised."""
        now = self._clock()
        if self._promise is None or now - self._promise[0] >= PROMISE_AGE_S:
            self._promise = now, self._promised(JobStatus.RUNNING, JobStatus.QUEUED)
        return self.free(folder) - self._promise[1]

    def check_training(
        self, card: ModelCard, spec: TrainingSpec, *, images: int, job: str = "", begins: bool = False
    ) -> None:
        """See that a training fits beside those that run, and those that wait, too, unless it begins now.

        ``job``: its id, if it has one: what that has written already is not needed again.

        Raises:
            DiskFull: how much it needs, how much there is, and the way out.
        """
        needed = disk.training_bytes(card, spec, images=images)
        if job:
            needed = max(0, needed - size_of(self._runs_dir / job))
        kept, each = disk.kept_checkpoints(spec), card.parts and disk.checkpoint_bytes(card.parts, spec)
        what = f"this training needs about {size(needed)}" + (
            f" ({kept} checkpoints of {size(each)} and the rest)" if each else ""
        )
        fewer = ", or keep fewer checkpoints (keep_checkpoints)" if kept > 1 else ""
        self._check(needed, what, fewer, others=self._others(job, begins=begins))

    def check_images(self, spec: ImageSpec, *, job: str = "", begins: bool = False) -> None:
        """As `check_training`, of the images of a request. Raises: DiskFull."""
        needed = disk.images_bytes(spec)
        what = f"{spec.count} images of {spec.width} x {spec.height} need about {size(needed)}"
        self._check(needed, what, others=self._others(job, begins=begins))

    def check_comparison(self, spec: ComparisonSpec, *, job: str = "", begins: bool = False) -> None:
        """As `check_training`, of the pictures of a comparison. Raises: DiskFull."""
        needed = self._pictures_left(spec)
        what = f"{spec.pictures} pictures of {spec.width} x {spec.height} need about {size(needed)}"
        self._check(needed, what, others=self._others(job, begins=begins))

    def _pictures_left(self, spec: ComparisonSpec) -> int:
        needed = spec.pictures * disk.picture_bytes(spec.width, spec.height)
        return max(0, needed - size_of(self._runs_dir / spec.run / "comparison"))

    def check_upload(self, needed: int) -> None:
        """See that uploaded files fit. Raises: DiskFull."""
        self._check(needed, f"these files take {size(needed)}")

    def check_floor(self, floor: int) -> None:
        """See that a running job can save its state, which takes ``floor`` bytes. Raises: JobSuspended."""
        free = self.on_disk(self._folder)
        if free < floor + RESERVE_BYTES:
            raise JobSuspended(
                f"the disk of {self._folder} is nearly full ({size(free)} free), so this was saved and paused;"
                f" {WAY_OUT}, then resume it"
            )

    def _others(self, job: str, *, begins: bool) -> int:
        waiting = () if begins else (JobStatus.QUEUED,)
        return self._promised(JobStatus.RUNNING, *waiting, besides=job)

    def _check(self, needed: int, what: str, more: str = "", *, others: int = 0) -> None:
        free = self.free()
        if needed + others + RESERVE_BYTES <= free:
            return
        promised = f", of which {size(others)} are promised to other jobs" if others else ""
        if self._quota is None or self.on_disk(self._folder) <= free:
            found = f"{self._folder} has {size(free)} free{promised}"
        else:
            left = f"{size(free)} are left" if free > 0 else f"it holds {size(self._quota - free)} already"
            found = f"of the {size(self._quota)} that ISENGARD_QUOTA_GB allows {left}{promised}"
            more += ", or raise the quota"
        spared = "" if needed + others > free else f", and {size(RESERVE_BYTES)} should stay free"
        raise DiskFull(f"{what}, and {found}{spared}; {WAY_OUT}{more}")

    def _promised(self, *statuses: JobStatus, besides: str = "") -> int:
        jobs = self._queue.jobs(statuses=statuses, limit=1000)
        return sum(self._rest(job) for job in jobs if job.id != besides)

    def _rest(self, job: Job) -> int:
        """What a job may still write; nothing where its record cannot be read."""
        try:
            given = job.payload["spec"]
            if job.kind is JobKind.GENERATE_IMAGES:
                return disk.images_bytes(validated(ImageSpec, given))
            if job.kind is JobKind.EVALUATE_CHECKPOINTS:
                return self._pictures_left(validated(ComparisonSpec, given))
            spec = validated(TrainingSpec, given)
            card, images = self._catalog.model(spec.base_model), job.payload["images"]
        except (KeyError, InvalidSpec, NotFound):
            return 0
        needed = disk.training_bytes(card, spec, images=len(images))
        return max(0, needed - size_of(self._runs_dir / job.id))
