"""What a job list on a server says to the machines that share it, beside `JobQueue`."""

from typing import Protocol, runtime_checkable

from isengard.domain.base import Frozen


class ServerFacts(Frozen):
    """What an operator wants to know of the server. ``appends`` None and ``syncs`` empty: it does not tell this user."""

    where: str
    program: str
    appends: bool | None
    syncs: str


@runtime_checkable
class SharedLedger(Protocol):
    """Every method raises QueueUnavailable."""

    def claim_volume(self, volume_id: str) -> str:
        """Say which data folder goes with the jobs, unless that was said before; the one that does."""
        ...

    def server_time(self) -> float:
        """Seconds since the epoch, as the server counts: all times of jobs are its."""
        ...

    def server_facts(self) -> ServerFacts:
        """What the server says of itself."""
        ...
