"""Which ends of jobs are still to be told: small files, which outlive the worker that made them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from isengard import files


class Outbox:
    """A file for each claim of a job, named by the job and the claim's fence, from the claim on until its end was told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, job_id: str, fence: int) -> None:
        """Raises: DiskFull, OSError."""
        files.write_text(self._folder / f"{job_id}.{fence}", "")

    def entries(self) -> Sequence[tuple[str, int]]:
        """Job and fence of each."""
        if not self._folder.exists():
            return ()
        names = sorted(path.name for path in self._folder.iterdir())
        parts = [name.rpartition(".") for name in names if files.PARTIAL not in name]
        return [(job_id, int(fence)) for job_id, _, fence in parts if job_id and fence.isdecimal()]

    def remove(self, job_id: str, fence: int) -> None:
        (self._folder / f"{job_id}.{fence}").unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other process, on whatever machine, empties it while the block runs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / "sending.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
