"""A backup: one tar file that holds a folder as it was at one moment, though work in it went on meanwhile.

Files of ours are replaced whole, so nothing has to stand still for it: what has been copied is compared with a list taken
later, and copied again where it differs, until a list holds that was taken at one moment. The manifest, the last member,
says which of the copies count, and their hashes.
"""

import hashlib
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pydantic import ValidationError, field_validator

from isengard.domain.base import Frozen
from isengard.errors import BackupRefused, Conflict
from isengard.files import Stamp, replacing, stamp, sweep

MANIFEST = "isengard-backup.json"
FORMAT = 1
BLOCK = 4 * 1024**2
#: The first round copies everything, each further one what has changed since: they become shorter and shorter.
ROUNDS = 20
#: These are appended to. The others are replaced.
GROWING = (".jsonl", ".log")

#: Told of the bytes that are done, and of all there are.
Report = Callable[[int, int], None]


class Entry(Frozen):
    """A file of a backup, by its path from the folder's root."""

    path: str
    size: int
    sha256: str

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or str(path) != value or "\\" in value or "\0" in value:
            raise ValueError(f"{value!r} leads out of the folder")
        value.encode()  # of a name that is not UTF-8 this raises
        return value


class Manifest(Frozen):
    """What a backup holds. ``left_out``: base models that were there and are not in it."""

    format: int = FORMAT
    isengard: str
    created_at: float
    left_out: tuple[str, ...] = ()
    files: tuple[Entry, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def holds(self, path: str) -> bool:
        return any(file.path == path for file in self.files)


def write(
    archive: Path,
    *,
    folder: Path,
    keep: Callable[[str], bool],
    moment: Callable[[], Mapping[str, bytes]],
    version: str,
    left_out: tuple[str, ...],
    report: Report,
    clock: Callable[[], float] = time.time,
) -> Manifest:
    """Write a backup whole or not at all.

    Args:
        archive: The tar file to make.
        folder: What is backed up.
        keep: Whether a file or folder, by its path from the root, is wanted.
        moment: Gives files that are made for the backup, by path. They are taken before the list of those in the folder, so
            what they name is in that list.
        version: Of this program.
        left_out: See `Manifest`.
        report: Told of the progress.
        clock: Gives the time for the manifest.

    Raises:
        DiskFull.
        BackupRefused: a file cannot be read, or has a name that cannot be kept.
        Conflict: files change faster than they can be copied.
    """
    sweep(archive.parent, archive.name)
    with replacing(archive) as temporary, _private(temporary) as tar:
        copies = _Copies(tar, folder, report)
        for _ in range(ROUNDS):
            created_at, made = clock(), moment()
            listed = dict(_files(folder, keep))
            if copies.follow(listed):
                break
        else:
            raise Conflict(
                f"files in {folder} change faster than they can be copied; pause the running jobs and try again"
            )
        for path, content in made.items():
            copies.add(path, BytesIO(content), size=len(content), mtime=created_at)
        manifest = Manifest(
            isengard=version,
            created_at=created_at,
            left_out=left_out,
            files=tuple(copies.entries[path] for path in (*listed, *made)),
        )
        text = manifest.model_dump_json(indent=1).encode()
        copies.add(MANIFEST, BytesIO(text), size=len(text), mtime=created_at)
    return manifest


@contextmanager
def _private(path: Path) -> Iterator[tarfile.TarFile]:
    """A new tar file that only this user can read: there are photos in it, and perhaps a token."""
    try:
        path.touch(mode=0o600)
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            yield tar
    except PermissionError as error:
        raise BackupRefused(
            f"this user may not read or write there ({error}); back up as the user that runs Isengard"
        ) from error


class _Copies:
    """The members of a tar file so far. Of several copies of a file, the last counts."""

    def __init__(self, tar: tarfile.TarFile, folder: Path, report: Report) -> None:
        self._tar, self._folder, self._report = tar, folder, report
        self._stamps: dict[str, Stamp] = {}
        self._done = self._total = 0
        self.entries: dict[str, Entry] = {}

    def follow(self, listed: Mapping[str, Stamp]) -> bool:
        """Copy what is new or was changed; whether all of it was as listed."""
        todo = {path: seen for path, seen in listed.items() if self._stamps.get(path) != seen}
        self._total = self._done + sum(size for _, size, _ in todo.values())
        as_listed = [self._copy(path, seen) for path, seen in todo.items()]
        return all(as_listed)

    def _copy(self, path: str, listed: Stamp) -> bool:
        try:
            content = (self._folder / path).open("rb")
        except FileNotFoundError:
            return False
        with content:
            about = os.fstat(content.fileno())
            whole = self.add(
                path, content, size=about.st_size, mtime=about.st_mtime_ns / 1e9, mode=about.st_mode & 0o777
            )
            self._stamps[path] = stamp(about)
            stood_still = stamp(os.fstat(content.fileno())) == stamp(about) == listed
        if not whole:
            del self._stamps[path]
        return whole and (stood_still or path.endswith(GROWING))

    def add(self, path: str, content: IO[bytes], *, size: int, mtime: float, mode: int = 0o644) -> bool:
        """Append a member of this size; whether the content had so many bytes."""
        member = tarfile.TarInfo(path)
        member.size, member.mtime, member.mode = size, mtime, mode
        reader = _Reader(content, self._read)
        self._tar.addfile(member, reader)
        try:
            self.entries[path] = Entry(path=path, size=size, sha256=reader.digest.hexdigest())
        except ValidationError:  # of a user's own file: it is not UTF-8, or holds a backslash
            raise BackupRefused(
                f"a backup cannot hold a file of the name {path!r}; rename or remove it"
            ) from None
        return reader.whole

    def _read(self, count: int) -> None:
        self._done += count
        self._report(self._done, max(self._done, self._total))


class _Reader:
    """Hashes what is read. Of a file that has become shorter, zeros are read for the rest: its place in the tar is given."""

    def __init__(self, content: IO[bytes], read_bytes: Callable[[int], None]) -> None:
        self._content, self._read_bytes = content, read_bytes
        self.digest, self.whole = hashlib.sha256(), True

    def read(self, count: int = 0, /) -> bytes:
        block = self._content.read(count)
        if len(block) < count:
            self.whole = False
            block = block.ljust(count, b"\0")
        self.digest.update(block)
        self._read_bytes(count)
        return block


def _files(
    folder: Path,
    keep: Callable[[str], bool],
    *,
    inside: str = "",
    above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[tuple[str, Stamp]]:
    """Every wanted file below ``folder`` with its stamp; links are followed, but not in circles."""
    about = folder.stat()
    here = (about.st_dev, about.st_ino)
    if here in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = inside + entry.name
        if not keep(path):
            continue
        with suppress(FileNotFoundError):  # removed in the meantime
            if entry.is_dir():
                yield from _files(folder / entry.name, keep, inside=f"{path}/", above=above | {here})
            elif entry.is_file():
                yield path, stamp(entry.stat())


def read_manifest(archive: Path) -> Manifest:
    """What a backup holds. Raises: BackupRefused, NotFound."""
    with _opened(archive) as tar:
        return _contents(tar, archive)[0]


def check(archive: Path, *, report: Report) -> Manifest:
    """Read a backup to its end and compare each file's hash. Raises: BackupRefused: it is damaged, cut short or none of ours."""
    return _take_all(archive, None, report)


def unpack(archive: Path, *, into: Path, report: Report) -> Manifest:
    """The same, and write the files below ``into``, which is not there yet."""
    into.mkdir()
    return _take_all(archive, into, report)


def _take_all(archive: Path, into: Path | None, report: Report) -> Manifest:
    with _opened(archive) as tar:
        manifest, members = _contents(tar, archive)
        total, done = manifest.total_bytes, 0
        for file in sorted(manifest.files, key=lambda file: members[file.path].offset):
            _take(tar, members[file.path], file, into=into, archive=archive)
            done += file.size
            report(done, total)
    return manifest


def _take(
    tar: tarfile.TarFile, member: tarfile.TarInfo, file: Entry, *, into: Path | None, archive: Path
) -> None:
    target = Path(os.devnull) if into is None else into / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, content = hashlib.sha256(), tar.extractfile(member)
    with target.open("wb") as copy:
        while block := content.read(BLOCK) if content else b"":
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != file.sha256:
        raise BackupRefused(
            f"{archive} is damaged: {file.path} in it is not what was backed up; use another backup"
        )
    if into is not None:
        target.chmod(member.mode & 0o777)
        os.utime(target, (member.mtime, member.mtime))


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise BackupRefused(
            f"{archive} is no backup of Isengard, or was cut short ({error}); use another one"
        ) from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise BackupRefused(
            f"there is no backup at {archive}; name the .tar file that `backup` has made"
        ) from error


def _contents(tar: tarfile.TarFile, archive: Path) -> tuple[Manifest, Mapping[str, tarfile.TarInfo]]:
    """The manifest, and the member that counts for each path."""
    members = {member.name: member for member in tar.getmembers()}  # of several of a name, the last
    if odd := [name for name, member in members.items() if not member.isreg()]:
        raise BackupRefused(f"{archive} is no backup of Isengard: {odd[0]} in it is a link or a folder")
    content = tar.extractfile(MANIFEST) if MANIFEST in members else None
    if content is None:
        raise BackupRefused(
            f"{archive} is no backup of Isengard, or was cut short: it has no {MANIFEST}; use another one"
        )
    manifest = _parsed(content.read(), archive)
    if lacking := [file.path for file in manifest.files if file.path not in members]:
        raise BackupRefused(f"{archive} is damaged: it lacks {lacking[0]}; use another backup")
    return manifest, members


def _parsed(text: bytes, archive: Path) -> Manifest:
    try:
        told: Any = json.loads(text)
        if isinstance(told, dict) and told.get("format", 0) > FORMAT:
            raise BackupRefused(
                f"{archive} was made by Isengard {told.get('isengard')}, in a format this one cannot read; update Isengard"
            )
        return Manifest.model_validate(told)
    except (ValueError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BackupRefused(f"{archive} is damaged: its {MANIFEST} cannot be read ({reason})") from error
