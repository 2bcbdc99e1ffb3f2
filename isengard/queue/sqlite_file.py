"""The file behind the embedded queue: its tables, its transactions, and what can be wrong with it.

Every transaction opens its own connection (0.2 ms), so there is nothing to share between threads, to close, or to break
by a fork. The rollback journal is used because a write-ahead log does not work on network filesystems.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from isengard.errors import Conflict, DiskFull, QueueUnavailable

#: Migration i brings a file from version i to i + 1. Never change one that was released; append.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE jobs (
            id TEXT PRIMARY KEY,
            kind TEXT NOT NULL,
            lane TEXT NOT NULL,
            status TEXT NOT NULL,
            payload TEXT NOT NULL,
            position INTEGER NOT NULL,          -- order of claiming within the lane
            attempt INTEGER NOT NULL DEFAULT 0,
            fence INTEGER NOT NULL DEFAULT 0,
            losses INTEGER NOT NULL DEFAULT 0,  -- workers that died or went silent
            stalled INTEGER NOT NULL DEFAULT 0, -- of these, in a row, without progress
            mark INTEGER NOT NULL DEFAULT 0,    -- best progress ever, see _mark
            worker TEXT,
            stop TEXT,                          -- cancel or pause, asked for by the user
            save INTEGER NOT NULL DEFAULT 0,
            sample INTEGER NOT NULL DEFAULT 0,
            correlation_id TEXT,
            created_at REAL NOT NULL,
            waiting_since REAL NOT NULL,
            started_at REAL,
            finished_at REAL,
            lease_until REAL,
            progress TEXT,
            result TEXT,
            error TEXT,
            yielder TEXT,                       -- the training asked to make room for this interactive job,
            yielder_fence INTEGER               -- and its fence then
        )""",
        "CREATE INDEX jobs_by_status ON jobs (status, lane, position)",
        """CREATE TABLE events (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            at REAL NOT NULL,
            kind TEXT NOT NULL,
            detail TEXT NOT NULL
        )""",
        "CREATE INDEX events_by_job ON events (job_id, number)",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN needs TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE jobs ADD COLUMN ran_on TEXT",
        """CREATE TABLE workers (
            name TEXT PRIMARY KEY,
            state TEXT NOT NULL,
            seen_at REAL NOT NULL,
            draining INTEGER NOT NULL DEFAULT 0
        )""",
    ),
    (
        """CREATE TABLE ended (                    -- all jobs that ever ended, also those removed since
            kind TEXT NOT NULL,
            status TEXT NOT NULL,
            up_to REAL NOT NULL,                -- upper end of the class of their durations
            jobs INTEGER NOT NULL,
            seconds REAL NOT NULL,
            PRIMARY KEY (kind, status, up_to)
        )""",
    ),
)
#: SQLite's waiting is not fair: with eight busy writers on a slow disk, one of them waited for more than 5 seconds.
BUSY_TIMEOUT_S = 20.0


class SqliteFile:
    """Opens the file for one transaction at a time; creates it and brings it up to date first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QueueUnavailable(f"the folder for the job list cannot be made: {error}") from error
        with self.transaction() as connection:
            self._migrate(connection)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Open the file; whatever is not committed when the block ends is undone.

        Raises:
            QueueUnavailable, DiskFull: instead of any sqlite3.Error.
        """
        try:
            with closing(
                sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            ) as connection:
                connection.row_factory = sqlite3.Row
                for setting in ("journal_mode = TRUNCATE", "synchronous = FULL", "foreign_keys = ON"):
                    connection.execute(f"PRAGMA {setting}")
                yield connection
        except sqlite3.Error as error:
            raise explained(self._path, error) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Be the only writer; what the block changed is on disk when it ends, or nothing of it when it raises."""
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def check_writable(self) -> None:
        """Write what is there already, and see it on disk. Raises: QueueUnavailable, DiskFull."""
        with self.transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            connection.execute(f"PRAGMA user_version = {version}")

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise damaged(self._path, "it is the database of another program")
        if version > len(MIGRATIONS):
            raise Conflict(
                f"{self._path} was written by a newer Isengard (format {version}, this one knows"
                f" {len(MIGRATIONS)}); update Isengard, or choose another data folder"
            )
        for migration in MIGRATIONS[version:]:
            for statement in migration:
                connection.execute(statement)
        if version < len(MIGRATIONS):
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def explained(path: Path, error: sqlite3.Error) -> QueueUnavailable | DiskFull:
    """What an error of SQLite means to the user, and the way out."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return DiskFull(f"no space left on the disk for {path}; free some space and start again")
    if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or str(error).startswith("no such"):
        return damaged(path, str(error))
    if code & 0xFF == sqlite3.SQLITE_READONLY:
        return QueueUnavailable(
            f"the job list {path} is read-only: see that its disk is mounted for writing, and that this user may write to it"
        )
    return QueueUnavailable(f"the job list {path} cannot be used just now ({error}); try again")


def damaged(path: Path, reason: str) -> QueueUnavailable:
    return QueueUnavailable(
        f"the job list {path} is damaged ({reason}). Characters, LoRAs, images and checkpoints are kept elsewhere and"
        " are whole. End Isengard, then `python -m isengard jobs recover` puts the last copy of the list in its place"
    )
