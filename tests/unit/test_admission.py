"""How much an address gets, and how long it is told to wait."""

import pytest

from isengard.domain.job import JobKind
from isengard.domain.limits import Limits, Rate
from isengard.errors import Conflict, TooMany
from isengard.queue.sqlite import SqliteQueue
from isengard.services import admission
from isengard.services.admission import Admission, Asked, Buckets, Place
from isengard.settings import Settings
from isengard.wiring import build


@pytest.fixture
def queue(tmp_path):
    return SqliteQueue(tmp_path / "jobs.db")


@pytest.fixture
def admit(queue, clock):
    """``admit(waiting_jobs=2)``: an `Admission` with limits other than the usual."""
    return lambda **limits: Admission(queue=queue, limits=Limits(**limits), clock=clock)


def making(queue):
    return lambda: queue.enqueue(JobKind.TRAIN_LORA, {})


def test_a_burst_is_let_through_and_then_one_at_a_time(clock):
    buckets = Buckets(Rate(burst=3, per_minute=60), clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 1]
    clock.now += 1
    assert [buckets.take("a") for _ in range(2)] == [0, 1]


def test_who_rests_gets_its_whole_burst_back_and_no_more(clock):
    buckets = Buckets(Rate(burst=3, per_minute=60), clock=clock)
    for _ in range(3):
        buckets.take("a")
    clock.now += 10_000
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 1]


def test_a_refused_request_costs_nothing(clock):
    buckets = Buckets(Rate(burst=1, per_minute=60), clock=clock)
    assert [buckets.take("a") for _ in range(5)] == [0, 1, 1, 1, 1]
    clock.now += 1
    assert buckets.take("a") == 0


def test_each_address_has_a_bucket_of_its_own(clock):
    buckets = Buckets(Rate(burst=1, per_minute=60), clock=clock)
    assert [buckets.take("a"), buckets.take("b"), buckets.take("a")] == [0, 0, 1]


def test_the_memory_for_addresses_is_bounded(clock, monkeypatch):
    monkeypatch.setattr(admission, "REMEMBERED", 2)
    buckets = Buckets(Rate(burst=1, per_minute=60), clock=clock)
    assert [buckets.take(name) for name in "abc"] == [0, 0, 0]
    assert [buckets.take(name) for name in "bca"] == [1, 1, 0]


def test_the_refusal_says_who_what_and_how_long(admit):
    some = admit(uploads=Rate(burst=1, per_minute=2))
    some.count(Asked.UPLOADS, "10.0.0.7")
    with pytest.raises(TooMany, match=r"too many uploads from 10\.0\.0\.7 .* wait 30 s") as caught:
        some.count(Asked.UPLOADS, "10.0.0.7")
    assert (caught.value.code, caught.value.retry_after_s) == ("too_many", 30)


def test_kinds_of_requests_are_counted_apart(admit):
    some = admit(uploads=Rate(burst=1, per_minute=1), changes=Rate(burst=1, per_minute=1))
    some.count(Asked.UPLOADS, "a")
    some.count(Asked.CHANGES, "a")
    with pytest.raises(TooMany):
        some.count(Asked.CHANGES, "a")


def test_a_place_is_free_again_when_the_request_has_ended(admit):
    some = admit(uploads_at_once=1)
    with some.place(Place.UPLOADS, "a"):
        with some.place(Place.UPLOADS, "b"), some.place(Place.REQUESTS, "a"):
            pass
        with (
            pytest.raises(TooMany, match="a has 1 uploads under way already"),
            some.place(Place.UPLOADS, "a"),
        ):
            pass
    with some.place(Place.UPLOADS, "a"):
        pass


def test_an_address_may_have_so_many_waiting_jobs_and_another_its_own(admit, queue):
    some = admit(waiting_jobs=2)
    for _ in range(2):
        some.submit("a", making(queue))
    with pytest.raises(TooMany, match="2 jobs from a are waiting"):
        some.submit("a", making(queue))
    some.submit("b", making(queue))
    assert len(queue.jobs()) == 3


@pytest.mark.parametrize("ending", ["claim", "cancel"])
def test_a_job_that_begins_or_is_cancelled_makes_room_for_another(admit, queue, ending):
    some = admit(waiting_jobs=1)
    job = some.submit("a", making(queue))
    if ending == "claim":
        queue.claim("w", lease_s=60)
    else:
        queue.cancel(job.id)
    assert some.submit("a", making(queue)).id != job.id


def test_pausing_jobs_makes_no_room(admit, queue):
    some = admit(waiting_jobs=1)
    queue.pause(some.submit("a", making(queue)).id)
    with pytest.raises(TooMany):
        some.submit("a", making(queue))


def test_all_addresses_together_have_a_limit(admit, queue):
    some = admit(all_waiting_jobs=2)
    for address in "ab":
        some.submit(address, making(queue))
    with pytest.raises(TooMany, match="2 jobs are waiting, as many as this queue takes"):
        some.submit("c", making(queue))


def test_jobs_are_also_counted_over_time(admit, queue, clock):
    some = admit(jobs=Rate(burst=1, per_minute=60))
    some.submit("a", making(queue))
    with pytest.raises(TooMany, match="too many trainings and generations from a"):
        some.submit("a", making(queue))
    clock.now += 1
    some.submit("a", making(queue))


def test_a_job_that_was_refused_for_another_reason_is_not_counted_as_waiting(admit, queue):
    some = admit(waiting_jobs=1)

    def refused():
        raise Conflict("no")

    with pytest.raises(Conflict):
        some.submit("a", refused)
    some.submit("a", making(queue))


def test_the_setting_widens_all_limits_of_an_address(tmp_path):
    wide = Limits().times(2)
    assert (wide.uploads, wide.jobs.burst) == (Rate(burst=1200, per_minute=1200), 240)
    assert (wide.waiting_jobs, wide.requests_at_once) == (400, 800)
    some = build(Settings.load({"ISENGARD_LIMITS": "0.1"}, data_dir=tmp_path)).admission
    for _ in range(6):
        some.count(Asked.CHANGES, "a")
    with pytest.raises(TooMany):
        some.count(Asked.CHANGES, "a")
