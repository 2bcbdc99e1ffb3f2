"""Sessions that were closed before their end: refused by every page of the data folder, also after a restart."""

import logging
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from isengard.errors import IsengardError
from isengard.files import Stamp, alone, stamp, write_text

log = logging.getLogger(__name__)

_FILE = TypeAdapter(dict[str, float])


class ClosedSessions:
    """Numbers of sessions, each with its end in seconds since 1970; past that it is nobody's anyway."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ours: dict[str, float] = {}
        """Also where the disk did not take them."""
        self._read: tuple[Stamp | None, dict[str, float]] = (None, {})

    def __contains__(self, number: str) -> bool:
        return number in self._ours or number in self._kept()

    def add(self, number: str, end: float, *, now: float) -> None:
        """Refuse this session from now on."""
        self._ours = {each: until for each, until in {**self._ours, number: end}.items() if until > now}
        try:
            with alone(FileLock(f"{self._path}.lock"), "closed sessions"):
                kept = {each: until for each, until in self._kept().items() if until > now}
                write_text(self._path, _FILE.dump_json({**kept, **self._ours}).decode())
        except IsengardError as error:
            log.warning("a closed session is good again after a restart", extra={"reason": str(error)})

    def _kept(self) -> dict[str, float]:
        """What the file holds; read again only when it has changed."""
        try:
            changed = stamp(self._path.stat())
            if changed != self._read[0]:
                self._read = changed, _FILE.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError):
            log.warning("closed sessions cannot be read", extra={"file": str(self._path)})
        return self._read[1]
