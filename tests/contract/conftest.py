"""The implementations of `JobQueue`, on a clock that tests move.

SQLite, every Redis or Valkey server there is, and Valkey behind a network on which every few requests are lost, or obeyed
without an answer: nothing of that may be seen.
"""

import random

import pytest

from isengard.queue import redis_server
from isengard.queue.base import JobQueue
from isengard.queue.redis import RedisQueue
from isengard.queue.sqlite import SqliteQueue
from tests.redis_servers import PROGRAMS, Network, Server, new_prefix


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


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Start each program once: a function from its name to the running server."""
    running: dict[str, Server] = {}

    def of(program: str) -> Server:
        if program not in running:
            running[program] = Server(tmp_path_factory.mktemp(program), program=program)
        return running[program]

    yield of
    for one in running.values():
        one.kill()


@pytest.fixture
def bad_network(server, monkeypatch):
    monkeypatch.setattr(redis_server, "PAUSES_S", (0.0,) * 8)
    network, dice = Network(server("valkey").port), random.Random(7)
    network.breaks = lambda: dice.choices(["", "before", "half", "after"], [12, 1, 1, 2])[0]
    yield network
    network.close()


@pytest.fixture(params=["sqlite", *PROGRAMS, "bad network"])
def queue(request, tmp_path, clock, server) -> JobQueue:
    if request.param == "sqlite":
        return SqliteQueue(tmp_path / "jobs.db", clock=clock)
    if request.param == "bad network":
        url = request.getfixturevalue("bad_network").url
    else:
        url = server(request.param).url
    return RedisQueue(url, prefix=new_prefix(), clock=clock)
