"""The implementations of `JobQueue`, on a clock that tests move."""

import pytest

from isengard.queue.base import JobQueue
from isengard.queue.sqlite import SqliteQueue


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["sqlite"])
def queue(request, tmp_path, clock) -> JobQueue:
    return SqliteQueue(tmp_path / "jobs.db", clock=clock)
