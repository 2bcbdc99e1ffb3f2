"""Copies of the embedded job list, taken while others write to it: for a backup, and against damage."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from isengard.errors import IsengardError
from isengard.files import Stamp, stamp, write_bytes
from isengard.queue.sqlite_file import BUSY_TIMEOUT_S, damaged, explained

log = logging.getLogger(__name__)

#: What may be lost of a list that is damaged.
COPY_EVERY_S = 600.0


def copy_of(path: Path) -> Path:
    """Where the last whole copy of a job list lies."""
    return path.with_name(f"{path.stem}-copy{path.suffix}")


@contextmanager
def keeping_a_copy(path: Path, *, every_s: float = COPY_EVERY_S) -> Iterator[None]:
    """While the block runs, copy the job list now and then. A damaged list takes no copy's place."""
    done = threading.Event()

    def keep() -> None:
        copied: Stamp | None = None
        while True:
            try:
                if (now := stamp(path.stat())) != copied and (content := snapshot(path)):
                    write_bytes(copy_of(path), content)
                    copied = now
            except (IsengardError, OSError) as error:
                log.warning("job list not copied", extra={"reason": str(error)})
            if done.wait(every_s):
                return

    thread = threading.Thread(target=keep, name="job list copy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(1.0)  # another process may keep the list locked for longer


def recover(path: Path, *, clock: Callable[[], float] = time.time) -> tuple[Path, bool]:
    """Set a damaged job list aside, and put its last copy in its place: where it is now, and whether there was a copy."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(clock()))}")
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists() and journal.stat().st_size:  # first: SQLite would play it back into the copy
        journal.rename(f"{aside}-journal")
    path.rename(aside)
    try:
        write_bytes(path, copy_of(path).read_bytes())
    except FileNotFoundError:
        return aside, False
    return aside, True


def snapshot(path: Path) -> bytes | None:
    """The content of a file that holds the jobs as they are at one moment; None when there is no list yet.

    Nothing is written, so that it also works on a disk that has become read-only.

    Raises:
        QueueUnavailable: the list is damaged, or cannot be read just now.
    """
    if not path.exists():
        return None
    try:
        with (
            closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as list_,
            closing(sqlite3.connect(":memory:")) as copy,
        ):
            list_.backup(copy)
            if (said := copy.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise damaged(path, said)
            if not copy.execute("SELECT 1 FROM sqlite_master").fetchone():
                return None
            copy.execute("SELECT id, status, payload, fence FROM jobs LIMIT 1")
            return copy.serialize()
    except sqlite3.Error as error:
        raise explained(path, error) from error
