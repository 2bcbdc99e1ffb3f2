"""Downloads of base models: only what is needed, resumed after a break, and verified by size and hash."""

import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from isengard.domain.base import Frozen
from isengard.errors import Conflict, DiskFull, DownloadFailed, HubUnreachable
from isengard.files import disk_full_as_error
from isengard.store import manifest
from isengard.store.hub import Hub
from isengard.store.manifest import RemoteFile, Snapshot
from isengard.store.pipeline_files import INDEX, needed, needed_of_network

log = logging.getLogger(__name__)

UNFINISHED = ".incomplete"
#: Stays free for the job list, the logs and checkpoints.
RESERVE_BYTES = 1_000_000_000
#: Breaks in a row, without a byte between them, after which it is given up.
MAX_BREAKS = 6
#: Seconds between two reports, and over which the speed is taken.
REPORT_EVERY_S, SPEED_OVER_S = 0.2, 8.0


class DownloadProgress(Frozen):
    """How far a download or a check is."""

    file: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float | None = None
    eta_s: float | None = None
    message: str = ""


Report = Callable[[DownloadProgress], None]


@dataclass(frozen=True)
class Source:
    """A repository and the folder it goes to: a pipeline, one file of it, or a single network."""

    repository: str
    folder: Path
    only: str | None = None
    is_network: bool = False
    without_weights: tuple[str, ...] = ()


class Meter:
    """Counts bytes, and tells them now and then with speed and remaining time."""

    def __init__(
        self, *, total: int, done: int, report: Report, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self.file, self._report, self._clock = total, done, "", report, clock
        self._came: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._fetched = 0
        self._told = float("-inf")

    def add(self, count: int) -> None:
        """These bytes have come."""
        self.done += count
        self._fetched += count
        if self._clock() - self._told >= REPORT_EVERY_S:
            self.tell()

    def tell(self, message: str = "") -> None:
        self._told = now = self._clock()
        self._came.append((now, self._fetched))
        while len(self._came) > 2 and now - self._came[1][0] > SPEED_OVER_S:
            self._came.popleft()
        then, before = self._came[0]
        elapsed = now - then
        speed = (self._fetched - before) / elapsed if elapsed > 0 else 0.0
        left = (self.total - self.done) / speed if speed else None
        self._report(
            DownloadProgress(
                file=self.file,
                done_bytes=self.done,
                total_bytes=self.total,
                bytes_per_s=speed or None,
                eta_s=left,
                message=message,
            )
        )


class Downloader:
    """Fetches into folders, one process at a time for each."""

    def __init__(
        self,
        *,
        hub: Hub,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hub, self._free, self._sleep, self._clock = hub, free, sleep, clock

    def download(self, sources: Sequence[Source], report: Report) -> None:
        """Fetch what is not here yet. What ``report`` raises ends it at once; what has come stays for the next time.

        Raises:
            Conflict: another process fetches one of these.
            DiskFull: before the first byte when it can be known then.
            DownloadFailed: a file came with a wrong hash (it is thrown away), or the connection broke too often.
            HubRefused: licence or token.
            HubUnreachable: no answer to the first question.
        """
        with locked([source.folder for source in sources]):
            report(DownloadProgress(message="asking the hub for the list of files"))
            plans = [(source, self._promised(source)) for source in sources]
            missing = [
                (source.folder, promised, file)
                for source, promised in plans
                for file in promised.files
                if not self._here(source.folder, file, report)
            ]
            for source, promised in plans:
                manifest.write(source.folder, promised)
            there = sum(_begun(folder, file) for folder, _, file in missing)
            left = sum(file.size for _, _, file in missing) - there
            self._check_room([source.folder for source in sources], left)
            total = sum(file.size for _, promised in plans for file in promised.files)
            meter = Meter(total=total, done=total - left - there, report=report, clock=self._clock)
            for folder, promised, file in missing:
                self._fetch(folder, promised, file, meter)
            for source in sources:
                _sweep(source.folder)
            meter.tell("complete")

    def _promised(self, source: Source) -> Snapshot:
        snapshot = self.hub.snapshot(source.repository)
        if source.only is not None:
            files = tuple(file for file in snapshot.files if file.path == source.only)
        elif source.is_network:
            files = needed_of_network(snapshot.files)
        else:
            index = self._index(snapshot)
            files = needed(snapshot.files, index, without_weights=source.without_weights)
        if not files:
            raise DownloadFailed(f"{source.repository} holds no {source.only or INDEX}")
        return snapshot.model_copy(update={"files": files})

    def _index(self, snapshot: Snapshot) -> dict[str, object]:
        file = next((file for file in snapshot.files if file.path == INDEX), None)
        if file is None:
            raise DownloadFailed(f"{snapshot.repository} holds no {INDEX}: it is not in diffusers' layout")
        with self.hub.stream(snapshot, file) as chunks:
            content = b"".join(chunks)
        try:
            index = json.loads(content)
        except ValueError:
            index = None
        if not isinstance(index, dict):
            raise DownloadFailed(f"{INDEX} of {snapshot.repository} cannot be read; try again")
        return index

    def _here(self, folder: Path, file: RemoteFile, report: Report) -> bool:
        """Whether it is here, as it is promised now; a file nobody has promised before is read and hashed."""
        if manifest.length(folder / file.path) != file.size:
            return False
        before = manifest.read(folder)
        if before is not None and file in before.files:
            return True
        report(DownloadProgress(file=file.path, message="checking what is here"))
        return manifest.digest_of(folder / file.path, file, read_bytes=lambda _: None).fits

    def _check_room(self, folders: Sequence[Path], left: int) -> None:
        if not left:
            return
        free = self._free(folders[0])
        if left + RESERVE_BYTES > free:
            raise DiskFull(
                f"the download needs {left / 1e9:.1f} GB, and {RESERVE_BYTES / 1e9:.0f} GB should stay free, but"
                f" {folders[0].parent} has {free / 1e9:.1f} GB left for it; free some space (python -m"
                " isengard cleanup), or set ISENGARD_DATA_DIR to a larger disk"
            )

    def _fetch(self, folder: Path, snapshot: Snapshot, file: RemoteFile, meter: Meter) -> None:
        partial, breaks = _partial(folder, file), 0
        meter.file = file.path
        partial.parent.mkdir(parents=True, exist_ok=True)
        digest = self._resumed(partial, file, meter)
        while (start := max(manifest.length(partial), 0)) < file.size or not partial.exists():
            try:
                self._append(snapshot, file, partial, digest, meter)
                error: Exception = HubUnreachable("the file came short")
            except HubUnreachable as unreachable:
                error = unreachable
            breaks = 0 if manifest.length(partial) > start else breaks + 1
            if manifest.length(partial) < file.size:
                self._wait(breaks, error, file, meter)
        self._accept(partial, folder / file.path, digest, file)

    def _resumed(self, partial: Path, file: RemoteFile, meter: Meter) -> manifest.Digest:
        """The hash of what came earlier; what is longer than the file can be is thrown away."""
        if manifest.length(partial) > file.size:
            partial.unlink()
        if manifest.length(partial) <= 0:
            return manifest.Digest(file)
        meter.tell("reading what came earlier")
        return manifest.digest_of(partial, file, read_bytes=lambda count: _raise_done(meter, count))

    def _append(
        self, snapshot: Snapshot, file: RemoteFile, partial: Path, digest: manifest.Digest, meter: Meter
    ) -> None:
        start = max(manifest.length(partial), 0)
        with (
            self.hub.stream(snapshot, file, start=start) as chunks,
            disk_full_as_error(partial),
            partial.open("ab") as content,
        ):
            left = file.size - start
            for chunk in chunks:
                taken = chunk[:left]
                content.write(taken)
                digest.update(taken)
                left -= len(taken)
                meter.add(len(taken))

    def _wait(self, breaks: int, error: Exception, file: RemoteFile, meter: Meter) -> None:
        if breaks >= MAX_BREAKS:
            raise DownloadFailed(
                f"the connection broke {breaks} times in a row at {file.path}: {error}. {meter.done / 1e9:.2f} of"
                f" {meter.total / 1e9:.2f} GB are here and stay; start the download again and it goes on from there"
            ) from error
        log.info("connection broke", extra={"file": file.path, "breaks": breaks, "error": str(error)})
        meter.tell("the connection broke; trying again")
        if breaks:
            self._sleep(2.0 ** (breaks - 1))

    def _accept(self, partial: Path, target: Path, digest: manifest.Digest, file: RemoteFile) -> None:
        if not digest.fits:
            partial.unlink()
            raise DownloadFailed(
                f"{file.path} came with a wrong hash and was thrown away; start the download again. If it happens"
                " again, something between here and the hub changes files (a proxy, a mirror)"
            )
        with partial.open("rb") as content:
            os.fsync(content.fileno())
        partial.replace(target)


def _raise_done(meter: Meter, count: int) -> None:
    """Bytes that came earlier: they count, and say nothing of the speed."""
    meter.done += count


@contextmanager
def locked(folders: Sequence[Path]) -> Iterator[None]:
    """Hold the lock of each folder's model. Raises: Conflict when another process does."""
    held: list[FileLock] = []
    try:
        for folder in folders:
            lock = lock_of(folder)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise Conflict(
                    f"{folder.name} is being downloaded or checked by another process; wait until that has ended"
                ) from None
            held.append(lock)
        yield
    finally:
        for lock in held:
            lock.release()


def lock_of(folder: Path) -> FileLock:
    """The lock of a model's folder: a file beside it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def come(folder: Path) -> tuple[int, int]:
    """Bytes that have come of a download, and bytes that were promised."""
    snapshot = manifest.read(folder)
    files = snapshot.files if snapshot else ()
    done = sum(max(manifest.length(folder / file.path), _begun(folder, file)) for file in files)
    return done, sum(file.size for file in files)


def _partial(folder: Path, file: RemoteFile) -> Path:
    """Named by its hash, so that a file that changed meanwhile is not continued."""
    digest = (file.sha256 or file.blob_id or "")[:12]
    return folder / f"{file.path}.{digest}{UNFINISHED}"


def _begun(folder: Path, file: RemoteFile) -> int:
    return max(manifest.length(_partial(folder, file)), 0)


def _sweep(folder: Path) -> None:
    """Remove what was begun of files that have changed since."""
    for left in folder.rglob(f"*{UNFINISHED}"):
        left.unlink()
