"""What is particular to placement on the shared queue: calling workers that wait, and promises of room."""

import threading

import pytest
from redis import Redis

from isengard.domain.job import JobKind, Lane, Needs, Stop
from isengard.domain.worker import WorkerState
from isengard.queue import redis_server
from isengard.queue.base import ALIVE_S, YIELD_AFTER_S
from isengard.queue.redis import RedisQueue
from tests.contract.conftest import Clock
from tests.machines import gpu
from tests.redis_servers import Server, new_prefix

TRAIN, IMAGES = JobKind.TRAIN_LORA, JobKind.GENERATE_IMAGES
FLUX = Needs(model="flux")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("valkey"))
    yield one
    one.kill()


def claim(queue, worker, lease_s=60.0):
    return queue.claim(worker, lease_s=lease_s)


def announced(queue, name, **facts):
    return queue.announce(WorkerState(name=name, **{"machine": gpu(24), "models": ("flux",), **facts}))


def resting(queue, name, **facts):
    """A worker that looked for work in vain."""
    announced(queue, name, **facts)
    assert claim(queue, name) is None


def images(queue, needs=FLUX):
    return queue.enqueue(IMAGES, {}, lane=Lane.INTERACTIVE, needs=needs)


@pytest.fixture
def called(server):
    """A queue on a clock that tests move, and a function that takes the names of the workers that were called since."""
    prefix = new_prefix()
    with Redis.from_url(server.url, decode_responses=True) as keys:

        def names():
            bells = list(keys.scan_iter(f"{prefix}bell:*"))
            if bells:
                keys.delete(*bells)
            return {bell.rpartition(":")[2] for bell in bells}

        clock = Clock()
        yield RedisQueue(server.url, prefix=prefix, clock=clock), names, clock


def test_a_worker_that_waits_is_woken_by_a_job_that_it_serves(server, monkeypatch):
    monkeypatch.setattr(redis_server, "TIMEOUT_S", 120.0)
    queue = RedisQueue(server.url, prefix=new_prefix())
    resting(queue, "w")
    waiting = threading.Thread(target=queue.wait, args=("w", 60.0), daemon=True)
    waiting.start()
    job = images(queue)
    waiting.join(20)
    assert not waiting.is_alive()
    assert claim(queue, "w").id == job.id


def test_who_leaves_an_image_to_a_warm_worker_looks_again_when_it_is_left_no_longer(server, monkeypatch):
    monkeypatch.setattr(redis_server, "TIMEOUT_S", 120.0)
    queue = RedisQueue(server.url, prefix=new_prefix())
    announced(queue, "warm", warm="flux")
    announced(queue, "cold")
    images(queue, FLUX)
    images(queue, Needs(memory_gb=1, model="flux"))
    assert claim(queue, "cold") is None
    waiting = threading.Thread(target=queue.wait, args=("cold", 60.0), daemon=True)
    waiting.start()
    waiting.join(20)
    assert not waiting.is_alive()


def test_each_job_calls_one_worker_first_the_warm_one(called):
    queue, names, _ = called
    for name, warm in (("a", ""), ("b", "flux"), ("c", "")):
        resting(queue, name, warm=warm)
    seen = []
    for _ in range(4):
        images(queue)
        seen.append(names())
    assert seen[0] == {"b"}
    assert seen[1:] in ([{"a"}, {"c"}, set()], [{"c"}, {"a"}, set()])


def test_nobody_is_called_who_is_busy_dead_gone_draining_or_cannot_serve(called):
    queue, names, clock = called
    resting(queue, "dead")
    clock.advance(ALIVE_S)
    for name in ("busy", "gone", "draining"):
        resting(queue, name)
    resting(queue, "without", models=())
    queue.enqueue(TRAIN, {})
    assert claim(queue, "busy") is not None
    queue.leave("gone")
    queue.drain("draining")
    assert claim(queue, "draining") is None
    names()
    images(queue)
    assert names() == set()


@pytest.mark.parametrize("how", ["released", "resumed", "queued again", "lost"])
def test_a_job_that_waits_again_calls_a_worker(called, how):
    queue, names, _ = called
    announced(queue, "first")
    job = queue.enqueue(TRAIN, {}, needs=FLUX)
    if how in ("released", "lost"):
        owned = claim(queue, "first")
        resting(queue, "second")
        queue.release(owned, reason="x") if how == "released" else queue.release_worker("first")
    elif how == "resumed":
        queue.pause(job.id)
        resting(queue, "second")
        queue.resume(job.id)
    else:
        queue.cancel(job.id)
        resting(queue, "second")
        queue.requeue(job.id, {}, needs=FLUX)
    assert names() == {"second"}


# Making room


def test_a_promise_of_room_is_void_once_the_worker_would_not_be_given_the_job(server):
    clock = Clock()
    queue = RedisQueue(server.url, prefix=new_prefix(), clock=clock)
    trainings = {}
    for name in ("first", "second"):
        announced(queue, name)
        queue.enqueue(TRAIN, {})
        trainings[name] = claim(queue, name)
    images(queue)
    clock.advance(YIELD_AFTER_S)
    assert queue.heartbeat(trainings["first"], lease_s=60).stop is Stop.YIELD
    assert queue.heartbeat(trainings["second"], lease_s=60).stop is None
    queue.drain("first")
    assert queue.heartbeat(trainings["first"], lease_s=60).stop is None
    assert queue.heartbeat(trainings["second"], lease_s=60).stop is Stop.YIELD


def test_a_promise_of_a_silent_training_passes_only_to_one_that_is_given_the_job(server):
    clock = Clock()
    queue = RedisQueue(server.url, prefix=new_prefix(), clock=clock)
    for name, models in (("silent", ("flux",)), ("without", ()), ("with", ("flux",))):
        announced(queue, name, models=models)
    held = {}
    for name, lease_s in (("silent", 2), ("without", 60), ("with", 60)):
        queue.enqueue(TRAIN, {})
        held[name] = claim(queue, name, lease_s=lease_s)
    images(queue)
    clock.advance(YIELD_AFTER_S)
    assert queue.heartbeat(held["silent"], lease_s=2).stop is Stop.YIELD
    clock.advance(2)
    assert queue.heartbeat(held["without"], lease_s=60).stop is None
    assert queue.heartbeat(held["with"], lease_s=60).stop is Stop.YIELD
