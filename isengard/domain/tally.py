"""How many jobs stand where, and how long those took that ended: numbers for an operator."""

from collections.abc import Sequence
from math import inf

from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.job import JobKind, JobStatus, Lane

#: Upper ends of the classes that durations are counted in, in seconds; the last class has none. A list that has counted
#: with others keeps them.
DURATIONS_S: tuple[float, ...] = (1, 2, 5, 10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)


class Standing(Frozen):
    """Jobs of a lane that have not ended and are in one state."""

    lane: Lane
    status: JobStatus
    jobs: int


class Ended(Frozen):
    """All jobs of a kind that ever ended so, after a worker had begun them."""

    kind: JobKind
    result: JobStatus
    durations: dict[float, int] = Field(description="how many by the upper end of their class; not summed up")
    seconds: float = Field(
        description="of all of them together, from the first claim to the end, pauses included"
    )


class Tally(Frozen):
    """One look at a job list."""

    standing: tuple[Standing, ...] = ()
    ended: tuple[Ended, ...] = ()


def duration_class(seconds: float, bounds: Sequence[float] = DURATIONS_S) -> float:
    """The upper end of the class of a duration."""
    return next((bound for bound in bounds if seconds <= bound), inf)
