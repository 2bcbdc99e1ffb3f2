"""The logs of all processes, read: the files being written and those set aside, of every machine that shares the folder."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isengard.domain.base import Frozen

#: Fields that hold an id: of a job, of a request, and the one that an error names for the user.
IDS = ("job_id", "correlation_id", "reference")


class LogLine(Frozen):
    """One line, and the log it is of: ``worker``, ``page``, ``cli-pod-7``."""

    log: str
    record: dict[str, Any]


class LogFiles:
    """Reads forward, and remembers how far it has come in each file, whatever that is called by then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[tuple[int, int], int] = {}

    def news(self, about: str) -> list[LogLine]:
        """The lines with this id that have come since the last call, by their time."""
        before, self._read = self._read, {}
        found = [
            LogLine(log=path.name.partition(".jsonl")[0], record=record)
            for path in self._folder.glob("*.jsonl*")
            for record in self._lines(path, about, before)
        ]
        return sorted(found, key=lambda line: str(line.record.get("time", "")))

    def _lines(self, path: Path, about: str, before: dict[tuple[int, int], int]) -> Iterator[dict[str, Any]]:
        try:
            file = path.open("rb")
        except FileNotFoundError:  # removed a moment ago
            return
        needle = json.dumps(about, ensure_ascii=False).encode()
        with file:
            known = os.fstat(file.fileno())
            key = (known.st_dev, known.st_ino)
            # A number may be used again for a new file: that one is shorter.
            place = before.get(key, 0) if before.get(key, 0) <= known.st_size else 0
            file.seek(place)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                place += len(line)
                if needle in line and (record := _record(line)) and about in map(record.get, IDS):
                    yield record
            self._read[key] = place


def tail(path: Path, most_bytes: int) -> str:
    """The last whole lines of a file, so many bytes at most; empty when there is none."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - most_bytes)
            file.seek(start)
            content = file.read()
    except OSError:
        return ""
    return (content.partition(b"\n")[2] if start else content).decode("utf-8", "replace")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
