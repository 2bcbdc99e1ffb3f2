"""A real disk of a few megabytes, for a process of its own: a file system in memory that nobody else sees."""

import ctypes
import json
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.forked_workers import COPIES

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
READ_ONLY, REMOUNT, PRIVATE = 1, 32, 0x44000
LIBC = ctypes.CDLL(None, use_errno=True)


class Disk:
    """What a scenario may do to its disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._filler = root / "filler"

    def fill(self, *, but: int = 0) -> None:
        """Leave so many bytes of room."""
        with self._filler.open("wb", buffering=0) as filler:
            for size in (65536, 4096, 1):
                try:
                    while filler.write(b"\0" * size):
                        pass
                except OSError:
                    continue
            filler.truncate(max(filler.tell() - but, 0))

    def clear(self) -> None:
        self._filler.unlink()

    def read_only(self, *, really: bool = True) -> None:
        _called(LIBC.mount(b"none", bytes(self.root), b"tmpfs", REMOUNT | really * READ_ONLY, None))


def on_a_small_disk(
    root: Path, scenario: Callable[..., dict[str, Any]], *arguments: Any, megabytes: int = 64
) -> dict[str, Any]:
    """Run ``scenario(disk, *arguments)`` in a process that has a disk of this size at ``root``; what it returned.

    Where the system lets nobody mount, the test is skipped and says so.
    """
    root.mkdir()
    ours, theirs = COPIES.Pipe()
    process = COPIES.Process(target=_run, args=(theirs, root, megabytes, scenario, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        kind, value = json.loads(ours.recv_bytes())
    finally:
        process.join(30)
        process.kill()
    if kind == "refused":
        pytest.skip(
            f"nothing can be mounted here ({value}): no test on a disk that is really full or read-only"
        )
    assert kind == "done", value
    return dict(value)


def _run(answer: Connection, root: Path, megabytes: int, scenario: Any, arguments: Any) -> None:
    try:
        _mount(root, megabytes)
    except OSError as error:
        return answer.send_bytes(json.dumps(["refused", str(error)]).encode())
    try:
        said = ["done", scenario(Disk(root), *arguments)]
    except BaseException:  # noqa: BLE001  # told to the test
        said = ["failed", traceback.format_exc()]
    return answer.send_bytes(json.dumps(said).encode())


def _mount(root: Path, megabytes: int) -> None:
    user, group = os.getuid(), os.getgid()
    _called(LIBC.unshare(NEW_USER | NEW_MOUNTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _called(LIBC.mount(b"none", b"/", None, PRIVATE, None))
    _called(LIBC.mount(b"none", bytes(root), b"tmpfs", 0, f"size={megabytes}m".encode()))


def _called(code: int) -> None:
    if code:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
