"""The registry of workers, and which jobs each of them is given: the promises of `JobQueue`, on every implementation."""

import pytest

from isengard.domain.job import JobKind, JobStatus, Lane, Needs, Stop
from isengard.domain.worker import WorkerState
from isengard.errors import NotFound
from isengard.queue.base import ALIVE_S, PREFER_WARM_S, YIELD_AFTER_S
from tests.machines import gpu, processor

LEASE = 60.0
LARGE, SMALL = Needs(memory_gb=40), Needs(memory_gb=10)


def worker(queue, name, gb=24, **facts):
    return queue.announce(WorkerState(name=name, **{"models": ("flux", "sdxl"), "machine": gpu(gb), **facts}))


def train(queue, needs=SMALL):
    return queue.enqueue(JobKind.TRAIN_LORA, {}, needs=needs)


def images(queue, needs=SMALL):
    return queue.enqueue(JobKind.GENERATE_IMAGES, {}, lane=Lane.INTERACTIVE, needs=needs)


def claim(queue, name):
    return queue.claim(name, lease_s=LEASE)


def claimed(queue, name):
    job = claim(queue, name)
    return job and job.id


def stop_of(queue, job):
    return queue.heartbeat(job, lease_s=LEASE).stop


def test_nobody_is_in_a_new_registry(queue):
    assert list(queue.workers()) == []


def test_a_worker_is_known_as_it_announced_itself(queue, clock):
    card = gpu(24, name="RTX 4090")
    said = worker(
        queue, "b/cuda:0", machine=card, free_bytes=5, warm="flux", engines=("native",), version="1"
    )
    worker(queue, "a/cuda:0")
    clock.advance(3)
    first, second = queue.workers()
    assert (first.name, second) == ("a/cuda:0", said)
    assert (second.machine, second.free_bytes, second.warm) == (card, 5, "flux")
    assert (second.seen_at, second.draining, second.job) == (clock.now - 3, False, None)


def test_a_later_word_of_a_worker_replaces_the_former(queue, clock):
    worker(queue, "w", warm="flux")
    clock.advance(5)
    worker(queue, "w", warm="sdxl")
    (known,) = queue.workers()
    assert (known.warm, known.seen_at) == ("sdxl", clock.now)


def test_the_registry_says_what_each_worker_runs(queue):
    job = train(queue)
    worker(queue, "w")
    worker(queue, "idle")
    assert claimed(queue, "w") == job.id
    assert {known.name: known.job for known in queue.workers()} == {"w": job.id, "idle": None}


def test_a_worker_that_has_left_is_forgotten(queue):
    worker(queue, "w")
    queue.leave("w")
    queue.leave("w")
    assert list(queue.workers()) == []


def test_a_job_says_where_it_ran_last(queue):
    job = train(queue)
    assert queue.get(job.id).ran_on is None
    queue.succeed(claim(queue, "pod-a"), {})
    ended = queue.get(job.id)
    assert (ended.worker, ended.ran_on) == (None, "pod-a")


def test_a_job_keeps_its_needs(queue):
    needs = Needs(memory_gb=24, engine="native", model="flux")
    job = train(queue, needs)
    assert job.needs == queue.get(job.id).needs == needs
    assert queue.enqueue(JobKind.TRAIN_LORA, {}).needs == Needs()


def test_a_job_that_is_queued_again_has_the_needs_it_is_given_then(queue):
    job = train(queue, LARGE)
    queue.cancel(job.id)
    assert queue.requeue(job.id, {}, needs=SMALL).needs == SMALL
    worker(queue, "big", gb=80)
    worker(queue, "small", gb=12)
    assert claimed(queue, "small") == job.id


def test_a_draining_worker_is_given_nothing_until_it_may_again(queue):
    job = train(queue)
    worker(queue, "w")
    assert queue.drain("w").draining
    assert claim(queue, "w") is None
    assert worker(queue, "w").draining
    assert not queue.drain("w", draining=False).draining
    assert claimed(queue, "w") == job.id


def test_a_draining_worker_finishes_its_job(queue):
    train(queue)
    worker(queue, "w")
    job = claim(queue, "w")
    queue.drain("w")
    assert stop_of(queue, job) is None
    queue.succeed(job, {})
    assert queue.get(job.id).status is JobStatus.SUCCEEDED


def test_a_draining_worker_makes_no_room_as_it_would_not_take_the_image(queue, clock):
    train(queue)
    worker(queue, "w")
    job = claim(queue, "w")
    queue.drain("w")
    images(queue)
    clock.advance(YIELD_AFTER_S)
    assert stop_of(queue, job) is None


def test_who_left_while_draining_comes_back_ready(queue):
    worker(queue, "w")
    queue.drain("w")
    queue.leave("w")
    assert not worker(queue, "w").draining


def test_an_unknown_worker_cannot_be_drained(queue):
    with pytest.raises(NotFound, match="'nobody'"):
        queue.drain("nobody")


def test_a_job_waits_for_a_worker_with_enough_memory(queue):
    large, small = train(queue, LARGE), train(queue, SMALL)
    worker(queue, "big", gb=80)
    worker(queue, "small", gb=12)
    assert claimed(queue, "small") == small.id
    assert claim(queue, "small") is None
    assert claimed(queue, "big") == large.id


def test_what_is_too_large_for_all_is_tried_on_the_largest(queue):
    job = train(queue, Needs(memory_gb=400))
    worker(queue, "small", gb=12)
    worker(queue, "big", gb=80)
    assert claim(queue, "small") is None
    assert claimed(queue, "big") == job.id


def test_a_processor_takes_what_needs_no_memory_of_a_gpu_or_what_no_gpu_is_there_for(queue, clock):
    small, any_will_do = train(queue, SMALL), train(queue, Needs())
    worker(queue, "gpu", gb=12)
    worker(queue, "processor", machine=processor(500))
    assert claimed(queue, "processor") == any_will_do.id
    assert claim(queue, "processor") is None
    clock.advance(ALIVE_S)
    worker(queue, "processor", machine=processor(500))
    assert claimed(queue, "processor") == small.id


def test_a_dead_or_draining_worker_is_not_the_largest(queue, clock):
    first, second = train(queue, LARGE), train(queue, LARGE)
    worker(queue, "draining", gb=80)
    queue.drain("draining")
    worker(queue, "small", gb=12)
    assert claimed(queue, "small") == first.id
    queue.drain("draining", draining=False)
    assert claim(queue, "small") is None
    clock.advance(ALIVE_S)
    worker(queue, "small", gb=12)
    assert claimed(queue, "small") == second.id


@pytest.mark.parametrize("needs", [Needs(engine="ai-toolkit"), Needs(model="flux2")], ids=["engine", "model"])
def test_a_job_waits_for_a_worker_with_its_engine_and_its_model(queue, needs):
    job, other = train(queue, needs), train(queue)
    worker(queue, "without", engines=("native",))
    worker(queue, "with", engines=("native", "ai-toolkit"), models=("flux2",))
    assert claimed(queue, "without") == other.id
    assert claim(queue, "without") is None
    assert claimed(queue, "with") == job.id


def test_a_worker_that_said_nothing_of_itself_is_given_everything(queue):
    job = train(queue, Needs(memory_gb=40, engine="ai-toolkit", model="flux"))
    worker(queue, "other")
    assert claimed(queue, "unknown") == job.id


def test_what_a_worker_learns_to_do_it_is_given_from_then_on(queue):
    job = train(queue, Needs(model="flux2"))
    worker(queue, "w")
    assert claim(queue, "w") is None
    worker(queue, "w", models=("flux", "flux2"))
    assert claimed(queue, "w") == job.id


def test_jobs_of_different_needs_are_given_in_the_order_they_came(queue):
    made = [
        train(queue, needs) for needs in (SMALL, Needs(model="sdxl"), SMALL, Needs(model="flux"), Needs())
    ]
    queue.move(made[3].id, before=made[0].id)
    worker(queue, "w")
    expected = [made[number].id for number in (3, 0, 1, 2, 4)]
    assert [job.id for job in queue.jobs()] == expected
    assert [claimed(queue, "w") for _ in made] == expected


def test_images_go_before_trainings_whatever_they_need(queue):
    train(queue, Needs(model="flux"))
    image = images(queue, Needs(model="sdxl"))
    worker(queue, "w")
    assert claimed(queue, "w") == image.id


def test_a_released_job_comes_back_to_its_place_among_all_needs(queue):
    first, second = train(queue, Needs(model="flux")), train(queue, Needs(model="sdxl"))
    worker(queue, "w")
    queue.release(claim(queue, "w"), reason="test")
    assert [claimed(queue, "w"), claimed(queue, "w")] == [first.id, second.id]


def test_a_lost_job_is_given_to_a_worker_that_can_run_it(queue, clock):
    job = train(queue, Needs(model="flux2"))
    worker(queue, "with", models=("flux2",))
    assert claimed(queue, "with") == job.id
    clock.advance(LEASE)
    worker(queue, "without")
    worker(queue, "another", models=("flux2",))
    assert claim(queue, "without") is None
    assert claimed(queue, "another") == job.id


def test_an_image_is_left_to_an_idle_worker_that_has_its_model_loaded(queue):
    image = images(queue, Needs(model="flux"))
    worker(queue, "cold")
    worker(queue, "warm", warm="flux")
    assert claim(queue, "cold") is None
    assert claimed(queue, "warm") == image.id


def test_an_image_is_not_left_for_long(queue, clock):
    image = images(queue, Needs(model="flux"))
    worker(queue, "cold")
    worker(queue, "warm", warm="flux")
    clock.advance(PREFER_WARM_S)
    assert claimed(queue, "cold") == image.id


def test_an_image_is_left_to_nobody_who_is_busy_dead_draining_or_too_small(queue, clock):
    worker(queue, "dead", warm="flux")
    clock.advance(ALIVE_S)
    train(queue)
    worker(queue, "busy", warm="flux")
    assert claim(queue, "busy") is not None
    worker(queue, "draining", warm="flux")
    queue.drain("draining")
    worker(queue, "small", gb=8, warm="flux")
    worker(queue, "cold")
    image = images(queue, Needs(model="flux", memory_gb=20))
    assert claimed(queue, "cold") == image.id


def test_an_image_that_needs_no_model_is_left_to_nobody(queue):
    image = images(queue)
    worker(queue, "loaded", warm="flux")
    worker(queue, "empty")
    assert claimed(queue, "loaded") == image.id


def test_a_training_is_left_to_nobody(queue):
    job = train(queue, Needs(model="flux"))
    worker(queue, "cold")
    worker(queue, "warm", warm="flux")
    assert claimed(queue, "cold") == job.id


def test_who_leaves_an_image_takes_another_one_meanwhile(queue):
    images(queue, Needs(model="flux"))
    other = images(queue, Needs(model="sdxl"))
    worker(queue, "cold")
    worker(queue, "warm", warm="flux")
    assert claimed(queue, "cold") == other.id


def test_a_training_makes_room_only_for_an_image_that_its_worker_can_make(queue, clock):
    train(queue)
    worker(queue, "w")
    training = claim(queue, "w")
    images(queue, Needs(model="flux2"))
    worker(queue, "other", models=("flux2",))
    clock.advance(YIELD_AFTER_S)
    assert stop_of(queue, training) is None
    images(queue, Needs(model="flux"))
    clock.advance(YIELD_AFTER_S)
    assert stop_of(queue, training) is Stop.YIELD


def test_waiting_for_work_ends_in_time(queue):
    queue.wait("w", 0.01)
