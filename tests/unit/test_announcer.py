"""How a worker stays in the registry, and what it says there."""

import logging
import threading
from dataclasses import replace

import pytest
from pydantic import SecretStr

from isengard import __version__
from isengard.announcer import Announcer
from isengard.domain.job import JobKind
from isengard.domain.worker import WorkerState
from isengard.equipment import describing
from isengard.errors import InvalidSpec, QueueUnavailable
from isengard.queue.sqlite import SqliteQueue
from isengard.settings import ASSETS, Settings, WorkerMode
from isengard.store.weights import Weights
from isengard.supervisor import local_worker, worker_name
from isengard.wiring import build
from isengard.worker import Worker
from tests.equipment import trains_with

WAIT_S = 20.0


class Heard(SqliteQueue):
    """Tells of each announcement, and can be away."""

    def __init__(self, path):
        super().__init__(path)
        self.heard = threading.Semaphore(0)
        self.error = None

    def announce(self, worker):
        try:
            if self.error:
                raise self.error
            return super().announce(worker)
        finally:
            self.heard.release()

    def hear(self):
        """Wait for a word that is begun after this, and until all is done that belongs to it."""
        self.heard = threading.Semaphore(0)
        for _ in range(3):
            assert self.heard.acquire(timeout=WAIT_S)


@pytest.fixture
def queue(tmp_path):
    return Heard(tmp_path / "jobs.db")


@pytest.fixture
def announcer(queue):
    """One that speaks up often, of a worker that grows warmer at each word."""
    words = iter(range(1_000_000))

    def describe(name):
        return WorkerState(name=name, warm=str(next(words)))

    return lambda every_s=0.001: Announcer(queue=queue, name="w", describe=describe, every_s=every_s)


def test_a_worker_is_known_before_it_takes_a_job(queue, announcer):
    with announcer(WAIT_S).announcing():
        assert [worker.name for worker in queue.workers()] == ["w"]


def test_a_worker_says_again_and_again_what_has_become_of_it(queue, announcer):
    with announcer().announcing():
        queue.hear()
        assert int(queue.workers()[0].warm) >= 2


def test_what_has_changed_is_said_at_once(queue, announcer):
    patient = announcer(WAIT_S)
    with patient.announcing():
        assert queue.heard.acquire(timeout=WAIT_S)
        patient.soon()
        assert queue.heard.acquire(timeout=WAIT_S)


def test_a_worker_that_ends_leaves_the_registry(queue, announcer):
    with announcer(WAIT_S).announcing():
        pass
    assert queue.workers() == []


def test_a_worker_that_starts_anew_goes_on_draining(queue, announcer):
    with announcer(WAIT_S).announcing(comes_back=lambda: True):
        queue.drain("w")
    assert queue.workers()[0].draining


def test_a_worker_that_cannot_be_entered_does_not_begin(queue, announcer):
    queue.error = QueueUnavailable("away")
    with pytest.raises(QueueUnavailable), announcer().announcing():
        raise AssertionError


@pytest.mark.parametrize("error", [QueueUnavailable("away"), InvalidSpec("a card is wrong"), OSError("disk")])
def test_what_keeps_a_worker_from_being_announced_is_mentioned_once_and_again_after_it_was_over(
    queue, announcer, caplog, error
):
    with caplog.at_level(logging.WARNING), announcer().announcing():
        for _ in range(2):
            queue.error = error
            queue.hear()
            queue.error = None
            queue.hear()
    assert caplog.messages == ["worker not announced"] * 2


def test_draining_is_in_the_log_with_its_end(queue, announcer, caplog):
    with caplog.at_level(logging.INFO), announcer().announcing():
        queue.drain("w")
        queue.hear()
        queue.drain("w", draining=False)
        queue.hear()
    assert caplog.messages == ["worker drains", "worker takes jobs again"]


def test_a_draining_worker_brings_its_job_to_an_end(queue, announcer):
    first, second = (queue.enqueue(JobKind.TRAIN_LORA, {}) for _ in range(2))

    def drained(job, report):
        queue.drain("w")
        return {}

    said = announcer(WAIT_S)
    worker = Worker(
        queue=queue,
        handlers={JobKind.TRAIN_LORA: drained},
        name="w",
        lease_s=60,
        after_job=said.soon,
    )
    with said.announcing():
        assert [worker.run_one(), worker.run_one()] == [True, False]
    assert (queue.get(first.id).result, queue.get(second.id).worker) == ({}, None)


def test_a_worker_in_a_thread_is_in_the_registry_as_long_as_it_runs(queue, tmp_path):
    settings = Settings(data_dir=tmp_path, device="cpu", worker=WorkerMode.THREAD)
    with local_worker(settings, queue, lambda: trains_with(lambda job, report: {})):
        assert queue.heard.acquire(timeout=WAIT_S)
        assert [worker.name for worker in queue.workers()] == [worker_name(settings)]
    assert queue.workers() == []


# What it says


@pytest.fixture
def app(tmp_path):
    return build(Settings(data_dir=tmp_path, device="cpu"))


def test_a_worker_says_what_it_is(app):
    said = describing(app, warm=lambda: "demo")("host/cpu")
    assert (said.name, said.warm, said.version) == ("host/cpu", "demo", __version__)
    assert said.machine == app.machine.facts()
    assert 0 < said.free_bytes < said.total_bytes
    assert said.started_at > 0


def test_the_only_machine_says_that_it_can_do_everything_so_that_a_job_fails_with_what_it_lacks(app):
    said = describing(app, warm=str)("w")
    assert set(said.engines) == {"native", "ai-toolkit"}
    assert said.models == tuple(card.name for card in app.catalog.cards())


def test_beside_others_a_worker_says_what_it_has(app, tmp_path):
    url = SecretStr("redis://127.0.0.1")
    shared = replace(
        app,
        settings=app.settings.model_copy(update={"redis_url": url}),
        weights=Weights(models_dir=tmp_path / "models", assets_dir=ASSETS, hub_cache=tmp_path / "hub"),
    )
    said = describing(shared, warm=str)("w")
    assert (said.engines, said.models) == (("native",), ("demo",))
