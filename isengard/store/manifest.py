"""What a download promised, kept beside it: by this it is resumed, found whole and verified."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from isengard.domain.base import Frozen
from isengard.files import write_text

NAME = ".isengard.json"
BLOCK = 4 * 1024**2


class RemoteFile(Frozen):
    """A file as the hub describes it. ``sha256`` of a large one, ``blob_id`` (git's) of a small one."""

    path: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None


class Snapshot(Frozen):
    """The files of one commit of a repository."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]


def read(folder: Path) -> Snapshot | None:
    """What was promised; None when nothing was downloaded into this folder by us."""
    try:
        return Snapshot.model_validate_json((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def write(folder: Path, snapshot: Snapshot) -> None:
    write_text(folder / NAME, snapshot.model_dump_json(indent=1))


def lacking(folder: Path) -> tuple[str, ...]:
    """Promised files that are not here, or have another length."""
    snapshot = read(folder)
    if snapshot is None:
        return ()
    return tuple(file.path for file in snapshot.files if length(folder / file.path) != file.size)


def length(path: Path) -> int:
    """Bytes of a file; -1 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


class Digest:
    """The hash that the hub gives for a file: SHA-256 of a large one, git's of a small one; none of any other."""

    def __init__(self, file: RemoteFile) -> None:
        self._wanted = file.sha256 or file.blob_id
        self._hash: Any = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
        if not file.sha256:
            self._hash.update(b"blob %d\0" % file.size)

    def update(self, content: bytes) -> None:
        self._hash.update(content)

    @property
    def fits(self) -> bool:
        return self._wanted is None or self._hash.hexdigest() == self._wanted


def digest_of(path: Path, file: RemoteFile, *, read_bytes: Callable[[int], None]) -> Digest:
    """Read what is there of a file; ``read_bytes`` is called with the length of each block."""
    digest = Digest(file)
    with path.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
            read_bytes(len(block))
    return digest
