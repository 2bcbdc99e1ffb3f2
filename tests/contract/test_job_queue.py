"""The promises of `JobQueue`, tried on every implementation."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from isengard.domain.job import JobError, JobKind, JobStatus, Lane, Phase, Progress, Requests, Signals, Stop
from isengard.errors import Conflict, LeaseLost, NotFound
from isengard.logs import bound
from isengard.queue.base import MAX_STALLED, YIELD_AFTER_S

TRAIN, IMAGES = JobKind.TRAIN_LORA, JobKind.GENERATE_IMAGES
LEASE = 60.0


def train(queue, **payload):
    return queue.enqueue(TRAIN, payload)


def images(queue):
    return queue.enqueue(IMAGES, {}, lane=Lane.INTERACTIVE)


def claim(queue, worker="w1"):
    return queue.claim(worker, lease_s=LEASE)


def beat(queue, job, phase=None, step=0):
    progress = None if phase is None else Progress(phase=phase, step=step)
    return queue.heartbeat(job, lease_s=LEASE, progress=progress)


def kinds(queue, job):
    return [event.kind for event in queue.events(job.id)]


def test_a_new_job_waits_with_everything_it_was_given(queue, clock):
    job = queue.enqueue(TRAIN, {"spec": {"rank": 4}}, lane=Lane.TRAINING, job_id="chosen")
    assert job == queue.get("chosen")
    assert (job.status, job.payload, job.created_at) == (JobStatus.QUEUED, {"spec": {"rank": 4}}, clock.now)
    assert (job.attempt, job.fence, job.worker, job.progress) == (0, 0, None, None)


def test_a_job_keeps_the_correlation_id_of_who_asked_for_it(queue):
    with bound(correlation_id="request-7"):
        asked = train(queue)
    assert claim(queue).correlation_id == asked.correlation_id == "request-7"
    assert train(queue).correlation_id is None


def test_ids_are_made_up_when_none_is_given(queue):
    assert len({train(queue).id for _ in range(5)}) == 5


def test_an_id_is_used_only_once(queue):
    queue.enqueue(TRAIN, {}, job_id="mine")
    with pytest.raises(Conflict, match="mine"):
        queue.enqueue(TRAIN, {}, job_id="mine")


def test_an_empty_queue_has_nothing_to_claim(queue):
    assert claim(queue) is None


def test_a_claim_gives_a_lease_a_fence_and_an_attempt(queue, clock):
    train(queue)
    job = claim(queue)
    assert (job.status, job.worker, job.attempt, job.fence) == (JobStatus.RUNNING, "w1", 1, 1)
    assert (job.started_at, job.lease_until) == (clock.now, clock.now + LEASE)


def test_a_job_is_owned_by_one_worker_only(queue):
    train(queue)
    assert claim(queue, "w1") is not None
    assert claim(queue, "w2") is None


def test_jobs_are_claimed_in_the_order_they_came(queue):
    ids = [train(queue).id for _ in range(3)]
    assert [claim(queue).id for _ in range(3)] == ids


def test_images_go_ahead_of_waiting_training(queue):
    training = train(queue)
    wanted = images(queue)
    assert [claim(queue).id, claim(queue).id] == [wanted.id, training.id]


def test_a_worker_may_claim_from_chosen_lanes_only(queue):
    train(queue)
    assert queue.claim("w1", lease_s=LEASE, lanes=(Lane.INTERACTIVE,)) is None
    assert queue.claim("w1", lease_s=LEASE, lanes=(Lane.TRAINING,)) is not None


def test_a_heartbeat_renews_the_lease_and_keeps_the_progress(queue, clock):
    train(queue)
    job = claim(queue)
    clock.advance(50)
    assert beat(queue, job, Phase.TRAINING, 7) == Signals()
    assert queue.get(job.id).progress == Progress(phase=Phase.TRAINING, step=7)
    clock.advance(50)
    assert claim(queue, "w2") is None


def test_a_heartbeat_without_progress_leaves_the_former_one(queue):
    train(queue)
    job = claim(queue)
    beat(queue, job, Phase.CACHING, 2)
    beat(queue, job)
    assert queue.get(job.id).progress == Progress(phase=Phase.CACHING, step=2)


def test_a_silent_workers_job_is_handed_out_again(queue, clock):
    train(queue)
    lost = claim(queue, "w1")
    clock.advance(LEASE)
    taken_over = claim(queue, "w2")
    assert (taken_over.id, taken_over.attempt, taken_over.worker) == (lost.id, 2, "w2")
    assert taken_over.fence > lost.fence
    assert kinds(queue, lost) == ["queued", "claimed", "lost", "queued", "claimed"]


@pytest.mark.parametrize(
    "say",
    [
        lambda queue, job: queue.heartbeat(job, lease_s=LEASE),
        lambda queue, job: queue.succeed(job, {}),
        lambda queue, job: queue.fail(job, JobError(code="x", message="y")),
        lambda queue, job: queue.release(job, reason="z"),
        lambda queue, job: queue.stopped(job),
    ],
    ids=["heartbeat", "succeed", "fail", "release", "stopped"],
)
def test_a_former_owner_is_refused(queue, clock, say):
    train(queue)
    lost = claim(queue, "w1")
    clock.advance(LEASE)
    taken_over = claim(queue, "w2")
    with pytest.raises(LeaseLost, match=lost.id):
        say(queue, lost)
    assert queue.get(lost.id) == taken_over


def test_an_owner_is_refused_after_the_job_was_removed(queue):
    train(queue)
    job = claim(queue)
    queue.succeed(job, {})
    queue.remove(job.id)
    with pytest.raises(LeaseLost):
        queue.heartbeat(job, lease_s=LEASE)


def test_a_late_heartbeat_counts_when_nobody_took_over(queue, clock):
    train(queue)
    job = claim(queue)
    clock.advance(2 * LEASE)
    beat(queue, job)
    assert claim(queue, "w2") is None


def test_success_keeps_the_result_and_ends_the_job(queue, clock):
    train(queue)
    job = claim(queue)
    clock.advance(5)
    queue.succeed(job, {"lora": "x"})
    ended = queue.get(job.id)
    assert (ended.status, ended.result, ended.finished_at) == (
        JobStatus.SUCCEEDED,
        {"lora": "x"},
        clock.now,
    )
    assert (ended.worker, ended.lease_until) == (None, None)
    assert claim(queue) is None


def test_failure_keeps_the_reason(queue):
    train(queue)
    job = claim(queue)
    error = JobError(code="disk_full", message="no space left")
    queue.fail(job, error)
    assert (queue.get(job.id).status, queue.get(job.id).error) == (JobStatus.FAILED, error)


def test_a_released_job_keeps_its_place_and_its_attempt(queue):
    first, second = train(queue), train(queue)
    queue.release(claim(queue), reason="made room")
    again = claim(queue)
    assert (again.id, again.attempt, again.fence) == (first.id, 1, 2)
    assert claim(queue).id == second.id
    assert ("yielded", "made room") in [(event.kind, event.detail) for event in queue.events(first.id)]


def test_the_start_of_a_job_is_that_of_its_first_claim(queue, clock):
    train(queue)
    job = claim(queue)
    clock.advance(9)
    queue.release(job, reason="")
    assert claim(queue).started_at == job.started_at


# Dead workers


def test_a_worker_known_to_be_dead_loses_all_its_jobs_at_once(queue):
    train(queue), train(queue), train(queue)
    mine, _, others = claim(queue, "w1"), claim(queue, "w1"), claim(queue, "w2")
    assert queue.release_worker("w1") == 2
    assert claim(queue, "w1").attempt == 2
    assert queue.get(others.id) == others
    with pytest.raises(LeaseLost):
        beat(queue, mine)


def test_a_job_that_kills_its_worker_again_and_again_is_failed(queue):
    job = train(queue)
    for attempt in range(1, MAX_STALLED + 1):
        assert claim(queue).attempt == attempt
        queue.release_worker("w1")
    assert claim(queue) is None
    failed = queue.get(job.id)
    assert (failed.status, failed.error.code) == (JobStatus.FAILED, "worker_lost")
    assert "died 5 times" in failed.error.message


def test_a_job_whose_leases_end_again_and_again_is_failed(queue, clock):
    job = train(queue)
    for _ in range(MAX_STALLED):
        claim(queue)
        clock.advance(LEASE)
    assert claim(queue) is None
    assert queue.get(job.id).status is JobStatus.FAILED


def lose(queue, *reports):
    job = claim(queue)
    for phase, step in reports:
        beat(queue, job, phase, step)
    queue.release_worker("w1")


def test_a_training_that_gets_further_each_time_survives_any_number_of_losses(queue):
    job = train(queue)
    for step in range(1, 3 * MAX_STALLED):
        lose(
            queue,
            (Phase.CACHING, 9),
            (Phase.TRAINING, step),
            (Phase.VALIDATING, 50),
            (Phase.SAVING, 1),
        )
    assert queue.get(job.id).status is JobStatus.QUEUED


@pytest.mark.parametrize(
    "reports",
    [
        [(Phase.TRAINING, 10)],
        [(Phase.CACHING, 99), (Phase.TRAINING, 10), (Phase.VALIDATING, 20), (Phase.SAMPLING, 30)],
        [(Phase.LOADING, 10)],
        [(Phase.TRAINING, 0)],
    ],
)
def test_a_training_that_never_gets_further_is_failed(queue, reports):
    job = train(queue)
    lose(queue, (Phase.TRAINING, 10))
    for _ in range(MAX_STALLED - 1):
        assert queue.get(job.id).status is JobStatus.QUEUED
        lose(queue, *reports)
    assert queue.get(job.id).status is JobStatus.FAILED


def test_progress_in_caching_counts_before_the_first_step(queue):
    job = train(queue)
    for step in range(1, 2 * MAX_STALLED):
        lose(queue, (Phase.CACHING, step))
    assert queue.get(job.id).status is JobStatus.QUEUED


def test_yielding_is_no_loss(queue):
    train(queue)
    for _ in range(2 * MAX_STALLED):
        queue.release(claim(queue), reason="room")
    assert claim(queue).attempt == 1


# Stopping


def test_a_waiting_job_is_cancelled_at_once(queue, clock):
    job = train(queue)
    cancelled = queue.cancel(job.id)
    assert (cancelled.status, cancelled.finished_at) == (JobStatus.CANCELLED, clock.now)
    assert claim(queue) is None


def test_a_paused_job_is_cancelled_at_once(queue):
    job = train(queue)
    queue.pause(job.id)
    assert queue.cancel(job.id).status is JobStatus.CANCELLED


FULL = JobError(code="disk_full", message="no space left")


def test_a_suspended_job_is_paused_with_its_reason_until_it_is_resumed(queue):
    train(queue)
    job = claim(queue)
    queue.suspend(job, FULL)
    paused = queue.get(job.id)
    assert (paused.status, paused.error, paused.worker) == (JobStatus.PAUSED, FULL, None)
    assert queue.events(job.id)[-1].detail == "no space left"
    assert claim(queue) is None
    with pytest.raises(LeaseLost):
        queue.suspend(job, FULL)
    resumed = queue.resume(job.id)
    assert (resumed.status, resumed.error) == (JobStatus.QUEUED, None)
    assert (claim(queue).id, kinds(queue, job)[-3:]) == (job.id, ["paused", "resumed", "claimed"])


def test_a_suspended_job_that_was_to_be_cancelled_is_cancelled(queue):
    train(queue)
    job = claim(queue)
    queue.cancel(job.id)
    queue.suspend(job, FULL)
    assert (queue.get(job.id).status, queue.get(job.id).error) == (JobStatus.CANCELLED, None)


@pytest.mark.parametrize(
    ("ask", "stop", "status"),
    [("cancel", Stop.CANCEL, JobStatus.CANCELLED), ("pause", Stop.PAUSE, JobStatus.PAUSED)],
)
def test_a_running_jobs_owner_is_asked_to_stop(queue, ask, stop, status):
    train(queue)
    job = claim(queue)
    asked = getattr(queue, ask)(job.id)
    assert (asked.status, asked.stop) == (JobStatus.RUNNING, stop)
    assert getattr(queue, ask)(job.id) == asked
    assert beat(queue, job).stop is stop
    assert beat(queue, job).stop is stop
    queue.stopped(job)
    ended = queue.get(job.id)
    assert (ended.status, ended.stop, ended.worker) == (status, None, None)
    assert kinds(queue, job) == ["queued", "claimed", f"{ask} requested", str(status)]


@pytest.mark.parametrize(("ask", "status"), [("cancel", JobStatus.CANCELLED), ("pause", JobStatus.PAUSED)])
@pytest.mark.parametrize("end", ["lease", "death", "release"])
def test_a_job_lost_while_it_was_asked_to_stop_is_not_handed_out_again(queue, clock, ask, status, end):
    train(queue)
    job = claim(queue)
    getattr(queue, ask)(job.id)
    if end == "lease":
        clock.advance(LEASE)
    elif end == "death":
        queue.release_worker("w1")
    else:
        queue.release(job, reason="shutdown")
    assert claim(queue) is None
    assert queue.get(job.id).status is status


def test_a_cancel_overrules_a_pause_and_not_the_other_way_round(queue):
    train(queue)
    job = claim(queue)
    queue.pause(job.id)
    assert queue.cancel(job.id).stop is Stop.CANCEL
    with pytest.raises(Conflict, match="being cancelled"):
        queue.pause(job.id)


def test_a_job_that_ends_before_it_hears_of_a_stop_has_succeeded(queue):
    train(queue)
    job = claim(queue)
    queue.cancel(job.id)
    queue.succeed(job, {})
    assert (queue.get(job.id).status, queue.get(job.id).stop) == (JobStatus.SUCCEEDED, None)


def test_a_waiting_job_is_paused_at_once_and_resumed_at_its_old_place(queue):
    first, second = train(queue), train(queue)
    assert queue.pause(first.id).status is JobStatus.PAUSED
    assert claim(queue).id == second.id
    assert queue.resume(first.id).status is JobStatus.QUEUED
    assert claim(queue).id == first.id
    assert kinds(queue, first) == ["queued", "paused", "resumed", "claimed"]


def test_a_pause_that_was_not_obeyed_yet_can_be_withdrawn(queue):
    train(queue)
    job = claim(queue)
    queue.pause(job.id)
    assert queue.resume(job.id).stop is None
    assert beat(queue, job).stop is None


def test_a_pause_withdrawn_while_the_owner_saves_lets_the_job_wait_again(queue):
    train(queue)
    job = claim(queue)
    queue.pause(job.id)
    queue.resume(job.id)
    queue.stopped(job)
    assert claim(queue).id == job.id


def test_a_user_can_stop_a_job_whose_worker_is_gone(queue, clock):
    job = train(queue)
    claim(queue)
    clock.advance(LEASE)
    assert queue.cancel(job.id).status is JobStatus.CANCELLED


def end(queue, status):
    job = train(queue)
    if status is JobStatus.CANCELLED:
        return queue.cancel(job.id)
    claimed = claim(queue)
    if status is JobStatus.SUCCEEDED:
        queue.succeed(claimed, {})
    else:
        queue.fail(claimed, JobError(code="x", message="y"))
    return queue.get(job.id)


@pytest.mark.parametrize("status", [status for status in JobStatus if status.ended])
def test_an_ended_job_cannot_be_changed(queue, status):
    job = end(queue, status)
    for change in (
        queue.cancel,
        queue.pause,
        queue.resume,
        lambda job_id: queue.request(job_id, save=True),
        lambda job_id: queue.move(job_id, before=None),
    ):
        with pytest.raises(Conflict, match=status):
            change(job.id)


def test_only_what_is_paused_can_be_resumed_and_only_once_paused(queue):
    job = train(queue)
    with pytest.raises(Conflict, match="not paused"):
        queue.resume(job.id)
    queue.pause(job.id)
    with pytest.raises(Conflict, match="paused"):
        queue.pause(job.id)
    claim(queue)


@pytest.mark.parametrize(
    "ask",
    [
        "get",
        "events",
        "cancel",
        "pause",
        "resume",
        "remove",
        "request",
        "move",
        "requeue",
    ],
)
def test_an_unknown_job_is_not_found(queue, ask):
    arguments = {"move": {"before": None}, "requeue": {"payload": {}}}.get(ask, {})
    with pytest.raises(NotFound, match="nowhere"):
        getattr(queue, ask)("nowhere", **arguments)


# Again


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_job_that_ended_badly_can_be_queued_again_with_a_changed_payload(queue, status):
    job = end(queue, status)
    waiting = train(queue)
    again = queue.requeue(job.id, {"steps": 2})
    assert (again.status, again.payload, again.error, again.finished_at) == (
        JobStatus.QUEUED,
        {"steps": 2},
        None,
        None,
    )
    assert [claim(queue).id, claim(queue).id] == [waiting.id, job.id]


def test_a_job_queued_again_gets_new_chances(queue):
    job = train(queue)
    for _ in range(MAX_STALLED):
        lose(queue)
    queue.requeue(job.id, {})
    lose(queue)
    again = claim(queue)
    assert (again.id, again.attempt) == (job.id, MAX_STALLED + 2)


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.QUEUED])
def test_other_jobs_are_not_queued_again(queue, status):
    job = train(queue) if status is JobStatus.QUEUED else end(queue, status)
    with pytest.raises(Conflict, match=status):
        queue.requeue(job.id, {})


# Requests


def test_a_save_or_sample_request_is_delivered_once(queue):
    train(queue)
    job = claim(queue)
    queue.request(job.id, save=True)
    queue.request(job.id, sample=True)
    assert beat(queue, job).requests == Requests(save=True, sample=True)
    assert beat(queue, job).requests == Requests()


def test_requests_wait_for_the_next_owner_when_the_job_has_to_stop(queue):
    train(queue)
    job = claim(queue)
    queue.request(job.id, sample=True)
    queue.pause(job.id)
    assert beat(queue, job).requests == Requests()
    queue.stopped(job)
    queue.resume(job.id)
    assert beat(queue, claim(queue)).requests == Requests(sample=True)


def test_a_waiting_job_cannot_save(queue):
    with pytest.raises(Conflict, match="queued"):
        queue.request(train(queue).id, save=True)


# Order


def test_a_waiting_job_can_be_moved_before_another_and_to_the_end(queue):
    a, b, c = train(queue), train(queue), train(queue)
    queue.move(c.id, before=a.id)
    assert [job.id for job in queue.jobs()] == [c.id, a.id, b.id]
    queue.move(c.id, before=b.id)
    assert [job.id for job in queue.jobs()] == [a.id, c.id, b.id]
    queue.move(a.id, before=None)
    queue.move(b.id, before=b.id)
    assert [claim(queue).id for _ in range(3)] == [c.id, b.id, a.id]


def test_jobs_keep_to_their_lane_and_running_ones_have_no_place(queue):
    running = train(queue)
    claim(queue)
    job, image = train(queue), images(queue)
    with pytest.raises(Conflict, match="different lanes"):
        queue.move(job.id, before=image.id)
    with pytest.raises(Conflict, match="running"):
        queue.move(job.id, before=running.id)
    with pytest.raises(NotFound):
        queue.move(job.id, before="nowhere")


def test_the_list_shows_running_then_waiting_then_paused_then_ended(queue, clock):
    def step(job):
        clock.advance(1)
        return job.id

    old, new = step(end(queue, JobStatus.SUCCEEDED)), step(end(queue, JobStatus.CANCELLED))
    first, second = step(train(queue)), step(train(queue))
    claim(queue), clock.advance(1), claim(queue)
    waits, paused, image = step(train(queue)), step(train(queue)), step(images(queue))
    queue.pause(paused)
    assert [job.id for job in queue.jobs()] == [first, second, image, waits, paused, new, old]
    assert [job.id for job in queue.jobs(limit=2)] == [first, second]
    assert [job.id for job in queue.jobs(kinds=[IMAGES])] == [image]
    assert [job.id for job in queue.jobs(statuses=[JobStatus.PAUSED, JobStatus.SUCCEEDED])] == [paused, old]
    assert queue.jobs(statuses=()) == []


def test_an_ended_job_can_be_forgotten(queue):
    job = end(queue, JobStatus.SUCCEEDED)
    queue.remove(job.id)
    assert queue.jobs() == []
    with pytest.raises(NotFound):
        queue.events(job.id)


@pytest.mark.parametrize("run", [False, True])
def test_a_job_that_has_not_ended_is_not_forgotten(queue, run):
    job = train(queue)
    if run:
        claim(queue)
    with pytest.raises(Conflict, match="cancel it before"):
        queue.remove(job.id)


# Yielding


def test_a_training_yields_to_an_image_that_waits_and_goes_on_after_it(queue, clock):
    train(queue)
    training = claim(queue)
    wanted = images(queue)
    assert beat(queue, training).stop is None
    clock.advance(YIELD_AFTER_S)
    assert beat(queue, training).stop is Stop.YIELD
    assert beat(queue, training).stop is Stop.YIELD
    assert queue.get(training.id).stop is None
    queue.release(training, reason="room")
    image = claim(queue)
    assert image.id == wanted.id
    queue.succeed(image, {})
    resumed = claim(queue)
    assert (resumed.id, resumed.attempt) == (training.id, 1)
    clock.advance(YIELD_AFTER_S)
    assert beat(queue, resumed).stop is None
    assert kinds(queue, training).count("yield requested") == 1


def test_one_waiting_image_makes_only_one_training_yield(queue, clock):
    train(queue), train(queue)
    first, second = claim(queue, "w1"), claim(queue, "w2")
    images(queue)
    clock.advance(YIELD_AFTER_S)
    assert beat(queue, second).stop is Stop.YIELD
    assert beat(queue, first).stop is None
    queue.release(second, reason="room")
    clock.advance(YIELD_AFTER_S / 2)
    assert beat(queue, first).stop is None


def test_two_waiting_images_make_two_trainings_yield(queue, clock):
    train(queue), train(queue)
    first, second = claim(queue, "w1"), claim(queue, "w2")
    images(queue), images(queue)
    clock.advance(YIELD_AFTER_S)
    assert [beat(queue, first).stop, beat(queue, second).stop] == [Stop.YIELD, Stop.YIELD]


def test_the_image_of_a_training_that_died_is_promised_to_another(queue, clock):
    train(queue), train(queue)
    first, second = claim(queue, "w1"), claim(queue, "w2")
    images(queue)
    clock.advance(YIELD_AFTER_S)
    assert beat(queue, first).stop is Stop.YIELD
    queue.release_worker("w1")
    assert beat(queue, second).stop is Stop.YIELD


def test_an_image_whose_worker_went_silent_makes_a_training_yield(queue, clock):
    train(queue), images(queue)
    lost, training = claim(queue, "w1"), claim(queue, "w2")
    clock.advance(LEASE + YIELD_AFTER_S - 0.1)
    assert beat(queue, training).stop is None
    clock.advance(0.1)
    assert beat(queue, training).stop is Stop.YIELD
    queue.release(training, reason="room")
    assert claim(queue, "w2").id == lost.id


def test_an_interactive_job_never_yields(queue, clock):
    images(queue), images(queue)
    job = claim(queue)
    clock.advance(YIELD_AFTER_S)
    assert beat(queue, job).stop is None


def test_a_users_stop_goes_before_yielding(queue, clock):
    train(queue)
    training = claim(queue)
    images(queue)
    clock.advance(YIELD_AFTER_S)
    queue.cancel(training.id)
    assert beat(queue, training).stop is Stop.CANCEL


# Many at once


def test_threads_that_claim_together_never_get_the_same_job(queue):
    ids = {train(queue).id for _ in range(40)}

    def work(worker):
        done = []
        while job := claim(queue, worker):
            queue.heartbeat(job, lease_s=LEASE, progress=Progress(phase=Phase.TRAINING, step=1))
            queue.succeed(job, {})
            done.append(job.id)
        return done

    with ThreadPoolExecutor(4) as pool:
        done = [job_id for some in pool.map(work, "abcd") for job_id in some]
    assert len(done) == 40
    assert set(done) == ids


def test_who_listens_to_a_job_hears_that_it_changed(queue):
    job = train(queue)
    with queue.listening(job.id) as changed:
        queue.cancel(job.id)
        assert changed(5)


def standing(queue):
    return {(each.lane, each.status): each.jobs for each in queue.tally().standing}


def ended(queue):
    return {
        (each.kind, each.result): (dict(each.durations), round(each.seconds, 3))
        for each in queue.tally().ended
    }


def test_the_tally_counts_the_jobs_of_each_lane_and_state(queue):
    assert standing(queue) == {}
    for _ in range(3):
        train(queue)
    images(queue)
    claim(queue)
    claim(queue)
    queue.pause(train(queue).id)
    assert standing(queue) == {
        (Lane.INTERACTIVE, JobStatus.RUNNING): 1,
        (Lane.TRAINING, JobStatus.RUNNING): 1,
        (Lane.TRAINING, JobStatus.QUEUED): 2,
        (Lane.TRAINING, JobStatus.PAUSED): 1,
    }


def test_the_tally_keeps_how_long_ended_jobs_took_also_when_they_are_gone(queue, clock):
    for seconds in (4, 5, 700):
        train(queue)
        job = claim(queue)
        queue.heartbeat(job, lease_s=1000)
        clock.advance(seconds)
        queue.succeed(job, {})
    before = ended(queue)
    assert before == {(TRAIN, JobStatus.SUCCEEDED): ({5: 2, 900: 1}, 709)}
    queue.remove(job.id)
    assert ended(queue) == before


def test_the_tally_counts_each_end_of_a_job_and_none_that_never_ran(queue, clock):
    queue.cancel(train(queue).id)
    assert ended(queue) == {}
    job = train(queue)
    for took in (2, 100_000):
        running = queue.claim("w1", lease_s=200_000)
        clock.advance(took)
        queue.fail(running, JobError(code="internal", message="no"))
        queue.requeue(job.id, {})
    assert ended(queue) == {(TRAIN, JobStatus.FAILED): ({2: 1, float("inf"): 1}, 100_002)}


def test_a_list_that_can_be_written_stays_as_it_is_when_that_is_tried(queue):
    job = train(queue)
    queue.check_writable()
    assert list(queue.jobs()) == [job]
