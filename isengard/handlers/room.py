"""Keeps a running job from filling the disk to its last byte."""

import time
from collections.abc import Callable

from isengard.domain.job import Progress, Requests
from isengard.engines.base import Report
from isengard.services.room import Room

#: Seconds between two looks at the disk.
LOOK_EVERY_S = 2.0


def watching(
    report: Report, room: Room, *, floor: int, clock: Callable[[], float] = time.monotonic
) -> Report:
    """A ``report`` that also raises JobSuspended, while ``floor`` bytes for saving the job's state are still there."""
    next_look = clock()

    def watched(progress: Progress) -> Requests:
        nonlocal next_look
        answer = report(progress)
        if clock() >= next_look:
            next_look = clock() + LOOK_EVERY_S
            room.check_floor(floor)
        return answer

    return watched
