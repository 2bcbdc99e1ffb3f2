"""The data folder in one file, and back. The job list is in it, where that is a file of the folder."""

import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from isengard import __version__
from isengard.domain.job import JobStatus
from isengard.errors import BackupRefused, Conflict, DiskFull, QueueUnavailable
from isengard.files import PARTIAL, adopt, disk_full_as_error, sweep
from isengard.queue.base import JobQueue
from isengard.queue.sqlite_copy import copy_of, recover
from isengard.store import archive
from isengard.store.archive import Manifest, Report
from isengard.store.download import UNFINISHED

JOBS = "jobs.db"
MODELS = "models"
TOKEN = "hub-token"  # noqa: S105  # a file's name
#: In the root of the data folder: made anew or fetched again, this machine's alone, or copied in another way.
LEFT_OUT = {
    "cache",
    "workers",
    "ai-toolkit",
    "volume-id",
    "lost+found",
    JOBS,
    "jobs.db-journal",
    "jobs-copy.db",
    "closed-sessions.json",
    "session.key",  # whoever has a backup could log in with it; without it, all log in again
}
#: What AI-Toolkit makes for itself in the folder of a run, and makes again.
SCRATCH = "runs/*/ai-toolkit"
#: In an empty folder, these may be.
NOTHING = {"lost+found"}


class OpenList(Protocol):
    """How the job list in a file is opened."""

    def __call__(self, path: Path) -> JobQueue: ...


class BackupService:
    """Makes, checks and restores backups; jobs may run meanwhile."""

    def __init__(
        self,
        *,
        folder: Path,
        snapshot: Callable[[], bytes | None] | None,
        open_list: OpenList,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``snapshot``: the job list of this moment, as the content of a file; None where it is on a server."""
        self._folder, self._snapshot, self._open_list, self._clock = folder, snapshot, open_list, clock

    def make(self, path: Path, *, models: bool, token: bool, report: Report) -> tuple[Path, Manifest]:
        """Write a backup, into a folder under a name of its own; where it is and what it holds.

        Raises:
            BackupRefused: there is nothing to back up; the file is there already, or would be in the data folder.
            DiskFull, Conflict: as `archive.write`.
            QueueUnavailable: the job list is damaged.
        """
        if not self._folder.is_dir():
            raise BackupRefused(f"there is no data folder {self._folder}; name it with --data-dir")
        if path.is_dir():
            path = path / f"isengard-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(self._clock()))}.tar"
        if path.exists():
            raise BackupRefused(f"{path} is there already; choose another name, or a folder")
        if path.resolve().is_relative_to(self._folder):
            raise BackupRefused(
                f"{path} would be in the data folder itself; choose a place outside of {self._folder}"
            )
        manifest = archive.write(
            path,
            folder=self._folder,
            keep=lambda file: wanted(file, models=models, token=token),
            moment=self._moment,
            version=__version__,
            left_out=() if models else self._models(),
            report=report,
            clock=self._clock,
        )
        return path, manifest

    def check(self, path: Path, *, report: Report) -> Manifest:
        """Read a backup to its end. Raises: BackupRefused: it is not whole."""
        return archive.check(path, report=report)

    def restore(self, path: Path, *, into: Path, report: Report) -> Manifest:
        """Put everything of a backup into an empty or new folder, once all of it is there and was checked.

        Jobs that ran when the backup was made are waiting again.

        Raises:
            BackupRefused: the backup is not whole.
            Conflict: the folder holds something.
            DiskFull.
        """
        manifest = archive.read_manifest(path)
        is_new = not into.exists()
        if not is_new:
            _check_empty(into)
        staging = into / f"restore{PARTIAL}{secrets.token_hex(4)}"
        try:
            with disk_full_as_error(into):
                into.mkdir(parents=True, exist_ok=True)
                _check_room(into, manifest)
                archive.unpack(path, into=staging, report=report)
                if manifest.holds(JOBS):
                    self._wait_again(staging / JOBS)
                adopt(staging, into)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            if is_new:
                shutil.rmtree(into, ignore_errors=True)
            raise
        return manifest

    def recover(self) -> str:
        """Put the last copy of a damaged job list in its place; what was done, in a sentence. Nothing may run meanwhile.

        Raises: Conflict: the job list is whole, or is on a server.
        """
        path = self._folder / JOBS
        if self._snapshot is None:
            raise Conflict("the job list is on the Redis server: recover it there")
        with suppress(QueueUnavailable):
            self._snapshot()
            raise Conflict(f"there is nothing to recover: no job list in {self._folder} is damaged")
        aside, had_copy = recover(path, clock=self._clock)
        self._wait_again(path)
        if not had_copy:
            return f"there was no copy of the job list: it begins anew, empty. The damaged one is now {aside}"
        moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(copy_of(path).stat().st_mtime))
        return f"the job list is that of {moment} again. The damaged one is now {aside}"

    def _moment(self) -> Mapping[str, bytes]:
        content = self._snapshot() if self._snapshot else None
        return {} if content is None else {JOBS: content}

    def _models(self) -> tuple[str, ...]:
        """The base models that are here, whole or not."""
        folder = self._folder / MODELS
        return (
            tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
            if folder.is_dir()
            else ()
        )

    def _wait_again(self, path: Path) -> None:
        queue = self._open_list(path)
        for job in queue.jobs(statuses=(JobStatus.RUNNING,), limit=10_000):
            queue.release(job, reason="it ran when the copy of the job list was made")
        for worker in queue.workers():
            queue.leave(worker.name)


def wanted(path: str, *, models: bool, token: bool) -> bool:
    """Whether a file or folder of the data folder belongs into a backup."""
    first, _, inside = path.partition("/")
    if first in LEFT_OUT or (first == TOKEN and not token):
        return False
    if (
        first == MODELS and "/" in inside and not models
    ):  # files beside the models say which folders of one's own are used
        return False
    name = PurePosixPath(path).name
    unfinished = PARTIAL in name or name.endswith((UNFINISHED, ".lock"))
    return not unfinished and not PurePosixPath(path).match(SCRATCH)


def _check_empty(folder: Path) -> None:
    """Raises: Conflict. What a killed restore left is removed."""
    if not folder.is_dir():
        raise Conflict(f"{folder} is a file; choose a new or empty folder")
    if found := sorted(
        entry.name for entry in folder.iterdir() if PARTIAL not in entry.name and entry.name not in NOTHING
    ):
        raise Conflict(
            f"{folder} is not empty (it holds {', '.join(found[:3])}); choose a new or empty folder, and start with"
            " `python app.py --data-dir FOLDER`"
        )
    sweep(folder)


def _check_room(folder: Path, manifest: Manifest) -> None:
    free = shutil.disk_usage(folder).free
    if free < manifest.total_bytes:
        raise DiskFull(
            f"the backup needs {manifest.total_bytes / 1e6:.0f} MB and {folder} has room for {free / 1e6:.0f} MB; free some"
            " space, or choose another folder"
        )
