"""What uses what on the disk, counted in the background, and cleaning up by what the last count found."""

import logging
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from isengard.domain.job import Job, JobKind
from isengard.domain.storage import Cleaned, Entry, File, Look, Part, Policy, Usage, part_of
from isengard.errors import Conflict, IsengardError, NotFound
from isengard.queue.base import JobQueue
from isengard.services.cleanup import Cleanup
from isengard.store.characters import CharacterStore
from isengard.store.usage import files_in

log = logging.getLogger(__name__)

#: Parts whose folders are told one by one.
TOLD = (Part.CHARACTERS, Part.RUNS, Part.LORAS, Part.MODELS, Part.CACHE, Part.TRASH)
#: An older count is made anew in the background, and a very old one at once.
OLD_S, VERY_OLD_S = 60.0, 600.0


class StorageService:
    """Looks at the data folder. Errors are those of `JobQueue`."""

    def __init__(
        self,
        *,
        folder: Path,
        queue: JobQueue,
        characters: CharacterStore,
        quota: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``quota``: bytes that the folder may hold."""
        self._folder, self._queue, self._characters = folder, queue, characters
        self._quota, self._clock = quota, clock
        self._cleanup = Cleanup(folder=folder, queue=queue, characters=characters, clock=clock)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._number = 0
        self.latest: Look | None = None

    @property
    def counting(self) -> bool:
        """Whether a count is under way in the background."""
        return self._thread is not None and self._thread.is_alive()

    def look(self, days: float | None = None) -> Look:
        """Count everything now: 100,000 files in a second or two, on a network volume in a minute or two.

        ``days``: what can go is older than this; None for the days of each policy.
        """
        started = time.monotonic()
        files = tuple(files_in(self._folder))
        jobs = self._trainings(files)
        items = self._cleanup.items(files, jobs, days=days)
        found = {
            "usage": self._usage(files, jobs),
            "items": tuple(sorted(items, key=lambda item: (item.policy, -item.size))),
            "days": days,
            "at": self._clock(),
            "took_s": time.monotonic() - started,
        }
        with self._lock:
            self._number += 1
            self.latest = Look(number=self._number, **found)
            return self.latest

    def refresh(self, days: float | None = None) -> None:
        """Count in the background; `latest` has it then. While one count runs no other is begun."""
        with self._lock:
            if self.counting:
                return
            self._thread = threading.Thread(target=self._count, args=(days,), name="storage", daemon=True)
            self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Return when no count is under way any more, or after this time."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def used(self) -> int:
        """Bytes that the data folder holds, by a count that is some minutes old at most."""
        if self.latest is None and self.counting:
            self.wait(VERY_OLD_S)
        last = self.latest
        if last is None or self._clock() - last.at > VERY_OLD_S:
            return self.look(None if last is None else last.days).usage.used
        if self._clock() - last.at > OLD_S:
            self.refresh(last.days)
        return last.usage.used

    def clean(self, number: int, policies: Collection[Policy]) -> Cleaned:
        """Remove what look ``number`` found, of these policies. What there is then is known after the next count.

        Raises:
            Conflict: it is not the last look: what would go is not what was shown.
        """
        with self._lock:
            look = self.latest
            if look is None or look.number != number:
                raise Conflict("the list of what would go has changed meanwhile; look at it again")
            going = [item for item in look.items if item.policy in policies]
            stays = tuple(item for item in look.items if item.policy not in policies)
            self._number += 1
            self.latest = look.model_copy(update={"number": self._number, "items": stays})
        cleaned = self._cleanup.remove(going)
        log.info("storage cleaned", extra={"bytes": cleaned.size, "items": cleaned.items})
        return cleaned

    def _count(self, days: float | None) -> None:
        try:
            self.look(days)
        except IsengardError as error:  # the job list is away: the last count stays
            log.warning("storage not counted", extra={"reason": str(error)})

    def _trainings(self, files: Sequence[File]) -> Mapping[str, Job]:
        """The jobs that have a folder; asked for one by one, as the whole list may be a long one."""
        names = {tuple(file.path.split("/", 2)[:2]) for file in files if file.path.count("/") > 1}
        found = {}
        for job_id in {name for top, name in names if top in (Part.RUNS, Part.LORAS)}:
            with suppress(NotFound):
                job = self._queue.get(job_id)
                if job.kind is JobKind.TRAIN_LORA:
                    found[job_id] = job
        return found

    def _usage(self, files: Sequence[File], jobs: Mapping[str, Job]) -> Usage:
        parts = dict.fromkeys(Part, 0)
        sizes: dict[tuple[Part, str], int] = defaultdict(int)
        counts: dict[tuple[Part, str], int] = defaultdict(int)
        inside: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for file in files:
            part = part_of(file.path)
            _, *rest = file.path.split("/")
            parts[part] += file.size
            if part in TOLD and len(rest) > 1:
                sizes[part, rest[0]] += file.size
                counts[part, rest[0]] += 1
            if part is Part.RUNS and len(rest) > 2:
                inside[rest[0]][rest[1]] += file.size
        titles = self._titles(jobs)
        entries = [
            Entry(
                part=part,
                name=name,
                title=titles.get((part, name), ""),
                size=each,
                files=counts[part, name],
                inside=dict(inside[name]) if part is Part.RUNS else {},
            )
            for (part, name), each in sizes.items()
        ]
        disk = shutil.disk_usage(self._folder)
        return Usage(
            parts=parts,
            files=len(files),
            entries=tuple(sorted(entries, key=lambda entry: (-entry.size, entry.name))),
            disk_free=disk.free,
            disk_total=disk.total,
            quota=self._quota,
        )

    def _titles(self, jobs: Mapping[str, Job]) -> Mapping[tuple[Part, str], str]:
        characters = {(Part.CHARACTERS, one.id): one.name for one in self._characters.scan()[0]}
        names = {job_id: str(job.payload.get("name", "")) for job_id, job in jobs.items()}
        runs = {(part, job): name for job, name in names.items() for part in (Part.RUNS, Part.LORAS)}
        return {**characters, **runs}
