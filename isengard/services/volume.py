"""The data folder of a shared job list: is it fit for several machines, and the same one on all of them?"""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from isengard.errors import VolumeUnfit
from isengard.queue.shared import SharedLedger
from isengard.store import volume

log = logging.getLogger(__name__)

#: Clocks that differ by less are called the same. What differs harms no job: the queue counts by its server's clock.
SKEW_S = 5.0


class VolumeService:
    """Checks at the start of whatever reads and writes the data folder; nothing where the job list is a file in it."""

    def __init__(
        self, *, folder: Path, ledger: SharedLedger | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._ledger, self._clock = folder, ledger, clock
        self._id = ""

    def check(self) -> None:
        """See in a fraction of a second that this machine can work with the others, and warn of a wrong clock.

        Raises:
            VolumeUnfit: it cannot, and why.
            QueueUnavailable: as `JobQueue`.
        """
        if self._ledger is None:
            return
        volume.check_file_system(self._folder)
        volume.check_locking(self._folder)
        volume.check_replacing(self._folder)
        self.same()
        for sentence in self.skews():
            log.warning("clocks differ", extra={"advice": sentence})

    def same(self) -> str:
        """The id of the data folder; empty where nobody shares it. Raises: VolumeUnfit: the others have another one."""
        if self._ledger is None:
            return ""
        found = self._id = volume.identity(self._folder)
        theirs = self._ledger.claim_volume(found)
        if found != theirs:
            path = self._folder / volume.VOLUME_ID
            raise VolumeUnfit(
                f"{self._folder} is not the data folder of the others at ISENGARD_REDIS_URL: its {volume.VOLUME_ID} is"
                f" {found}, theirs is {theirs}; mount their volume here and set ISENGARD_DATA_DIR to it (if instead all"
                f" are to move to this folder, write {theirs} into {path})"
            )
        return found

    def check_still_there(self) -> None:
        """See that the folder is the one it was: a volume may come loose. Costs the reading of a small file.

        Raises:
            VolumeUnfit: it is not; the first time as `same`.
        """
        if not self._id:
            self.same()
        elif volume.read_identity(self._folder) != self._id:
            raise VolumeUnfit(f"the volume of {self._folder} is not there any more; mount it again")

    def skews(self) -> Iterator[str]:
        """A sentence for each clock that is wrong."""
        if self._ledger is not None:
            before = self._clock()
            ahead = self._ledger.server_time() - (before + self._clock()) / 2
            if abs(ahead) > SKEW_S:
                yield _sentence("the clock of the Redis server", ahead)
        ahead = volume.clock_ahead(self._folder, clock=self._clock)
        if abs(ahead) > SKEW_S:
            yield _sentence(f"the clock that dates files in {self._folder}", ahead)


def _sentence(what: str, ahead_s: float) -> str:
    where = "ahead of" if ahead_s > 0 else "behind"
    return f"{what} is {abs(ahead_s):.0f} s {where} this machine's; ages and orders shown will be wrong: set the clocks by NTP"
