"""``memory.json`` in the data folder: what jobs took of this machine's memory."""

import logging
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from isengard import files
from isengard.domain.memory import Corrections, Peak
from isengard.files import LOCK_TIMEOUT_S, Stamp

log = logging.getLogger(__name__)

#: The newest that are kept.
MOST = 200


class Peaks:
    """One measurement for each way to run each model; a newer one takes the place of the older. For many processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[Stamp, Corrections] | None = None

    def read(self) -> Corrections:
        """All that was measured; nothing where the file is absent or damaged."""
        try:
            stamp = files.stamp(self._path.stat())
        except OSError:
            return Corrections()
        if self._known is None or self._known[0] != stamp:
            self._known = (stamp, self._content())
        return self._known[1]

    def add(self, peak: Peak) -> None:
        """Keep a measurement. Raises: DiskFull."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S):
            others = [one for one in self._content().peaks if _way(one) != _way(peak)]
            kept = Corrections(peaks=(*others, peak)[-MOST:])
            files.write_text(self._path, kept.model_dump_json(indent=1))

    def _content(self) -> Corrections:
        try:
            return Corrections.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return Corrections()
        except (OSError, ValidationError):
            log.warning("memory file damaged", extra={"path": str(self._path)})
            return Corrections()


def _way(peak: Peak) -> tuple[str, ...]:
    return (peak.task, peak.model, peak.device, peak.settings)
