"""What a webhook is told of runs, and when."""

import logging
import threading

import pytest

from isengard import logs
from isengard.domain.job import JobError, JobKind, JobStatus, Lane
from isengard.errors import InvalidSpec, QueueUnavailable, TrainingFailed
from isengard.queue.base import MAX_STALLED
from isengard.queue.sqlite import SqliteQueue
from isengard.services.notices import FIRST_PAUSE_S, GIVE_UP_S, LAST_PAUSE_S, LONG_S, LOOK_EVERY_S, Notices
from isengard.settings import Settings
from isengard.store.outbox import Outbox
from isengard.store.webhook import Outcome, Webhook
from isengard.wiring import build
from isengard.worker import Worker
from tests.receiver import receiving

PAGE = "https://pod-7860.proxy.example"


@pytest.fixture
def queue(tmp_path, clock):
    return SqliteQueue(tmp_path / "jobs.db", clock=clock)


@pytest.fixture
def notices(tmp_path, queue, clock):
    """As many as wanted, each as if it were in another process."""

    def make(post, outbox=tmp_path / "untold"):
        return Notices(queue=queue, outbox=Outbox(outbox), post=post, page=PAGE, clock=clock)

    return make


def kept(messages, outcome=Outcome.TAKEN):
    def post(message):
        messages.append(message)
        return outcome

    return post


def train(queue, notices, handler, **payload):
    """The id of a training that one worker has claimed and run."""
    job = queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova", **payload})
    run_one(queue, notices, handler)
    return job.id


def run_one(queue, notices, handler, kind=JobKind.TRAIN_LORA):
    worker = Worker(queue=queue, handlers={kind: notices.watched(handler)}, name="w", lease_s=60)
    assert worker.run_one()


def succeeds(job, report):
    return {"lora": job.id, "steps": 6}


def fails(job, report):
    raise TrainingFailed("the loss is not a number; token=abc123secret")


# What is told


def test_the_end_of_a_training_arrives_as_json_with_its_character_and_its_lora(queue, notices, clock):
    with receiving(204) as receiver:
        ours = notices(Webhook(f"{receiver.url}/hook?token=x").post)
        job_id = train(queue, ours, succeeds)
        ours.send(Webhook(f"{receiver.url}/hook?token=x").post)
    ((path, headers, message),) = receiver.requests
    assert path == "/hook?token=x"
    assert headers["content-type"] == "application/json"
    said = "Nova: training done"
    assert message == {
        "event": "job_ended", "job": job_id, "kind": "train_lora", "status": "succeeded", "character": "Nova",
        "lora": job_id, "error": None, "finished_at": clock.now, "url": PAGE, "text": said, "content": said,
    }  # fmt: skip


def test_a_failure_is_told_in_the_words_of_the_page_and_without_secrets(queue, notices):
    messages = []
    train(queue, notices(kept(messages)), fails)
    notices(None).send(kept(messages))
    (message,) = messages
    assert message["status"] == "failed"
    assert message["text"].startswith("Nova: training failed: the loss is not a number")
    assert "abc123secret" not in str(message)


def test_a_cancelled_training_is_told_as_such(queue, notices):
    messages = []
    job = queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova"})
    ours = notices(kept(messages))

    def is_cancelled(job, report):
        queue.cancel(job.id)
        queue.stopped(job)
        return {}

    run_one(queue, ours, is_cancelled)
    ours.send(kept(messages))
    assert queue.get(job.id).status is JobStatus.CANCELLED
    assert messages[0]["text"] == "Nova: training cancelled"


@pytest.mark.parametrize(("seconds", "told"), [(LONG_S - 1, 0), (LONG_S, 1)])
def test_of_images_only_long_work_is_told(queue, notices, clock, seconds, told):
    messages = []
    queue.enqueue(JobKind.GENERATE_IMAGES, {"prompt": "at sea"}, lane=Lane.INTERACTIVE)
    ours = notices(kept(messages))

    def takes_its_time(job, report):
        clock.now += seconds
        return {}

    run_one(queue, ours, takes_its_time, kind=JobKind.GENERATE_IMAGES)
    ours.send(kept(messages))
    ours.send(kept(messages))
    assert [message["text"] for message in messages] == ["Images done"] * told


# Once, and whatever happens


def test_an_end_is_told_once_by_however_many_workers(queue, notices):
    messages = []
    train(queue, notices(kept(messages)), succeeds)
    for _ in range(3):
        notices(None).send(kept(messages))
    assert len(messages) == 1


def test_while_one_worker_sends_another_does_not(queue, notices):
    messages = []
    train(queue, notices(kept(messages)), succeeds)

    def looks_meanwhile(message):
        notices(None).send(kept(messages))
        return kept(messages)(message)

    notices(None).send(looks_meanwhile)
    assert len(messages) == 1


def test_the_end_that_a_killed_worker_could_not_tell_is_told_by_the_next_one(queue, notices):
    messages = []
    train(queue, notices(kept(messages)), succeeds)  # and killed here
    assert messages == []
    with notices(kept(messages)).sending():
        pass
    assert len(messages) == 1


def test_a_run_that_goes_on_with_another_worker_is_told_at_its_end_only(queue, notices, clock):
    messages = []
    ours = notices(kept(messages))
    job = queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova"})
    lost = queue.claim("w1", lease_s=60)
    ours.watched(succeeds)(lost, None)  # killed before the queue took the end
    ours.send(kept(messages))
    clock.now += 61
    ours.send(kept(messages))
    assert messages == []
    run_one(queue, ours, succeeds)
    ours.send(kept(messages))
    assert [message["job"] for message in messages] == [job.id]


def test_a_failure_that_no_worker_lived_to_see_is_told_too(queue, notices, clock):
    messages = []
    ours = notices(kept(messages))
    queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova"})
    for _ in range(MAX_STALLED):
        ours.watched(succeeds)(queue.claim("w", lease_s=60), None)
        clock.now += 61
    assert queue.claim("w", lease_s=60) is None
    ours.send(kept(messages))
    assert [message["status"] for message in messages] == ["failed"]


def test_the_end_of_a_second_try_is_told_again(queue, notices):
    messages = []
    ours = notices(kept(messages))
    job_id = train(queue, ours, fails)
    ours.send(kept(messages))
    queue.requeue(job_id, {"name": "Nova"})
    ours.send(kept(messages))
    run_one(queue, ours, succeeds)
    ours.send(kept(messages))
    assert [message["status"] for message in messages] == ["failed", "succeeded"]


def test_a_job_that_was_removed_before_it_was_told_is_forgotten(queue, notices, tmp_path):
    job_id = train(queue, notices(kept([])), succeeds)
    queue.remove(job_id)
    notices(None).send(kept([]))
    assert not Outbox(tmp_path / "untold").entries()


def test_a_note_that_cannot_be_written_does_not_stop_the_job(queue, notices, tmp_path, caplog):
    (tmp_path / "file").touch()
    job_id = train(queue, notices(kept([]), outbox=tmp_path / "file" / "untold"), succeeds)
    assert queue.get(job_id).status is JobStatus.SUCCEEDED
    assert "end will not be told" in caplog.text


def test_without_a_webhook_nothing_is_noted_and_nothing_sent(queue, notices, tmp_path):
    ours = notices(None)
    with ours.sending():
        train(queue, ours, succeeds)
        ours.soon()
    assert not (tmp_path / "untold").exists()


# When the receiver is away


def test_a_receiver_that_is_away_is_tried_again_with_growing_pauses(queue, notices):
    with receiving(503, 429, 200) as receiver:
        post = Webhook(receiver.url).post
        ours = notices(post)
        train(queue, ours, succeeds)
        assert [ours.send(post) for _ in range(4)] == [
            FIRST_PAUSE_S,
            2 * FIRST_PAUSE_S,
            LOOK_EVERY_S,
            LOOK_EVERY_S,
        ]
    assert len(receiver.requests) == 3


def test_the_pauses_have_an_end_and_after_an_hour_it_is_given_up(queue, notices, clock, caplog):
    messages = []
    away = kept(messages, Outcome.AWAY)
    ours = notices(away)
    train(queue, ours, succeeds)
    assert [ours.send(away) for _ in range(9)][-1] == LAST_PAUSE_S
    clock.now += GIVE_UP_S
    assert ours.send(away) == LOOK_EVERY_S
    assert "end was not told" in caplog.text
    tries = len(messages)
    ours.send(away)
    assert len(messages) == tries


def test_nobody_at_the_address_is_a_reason_to_try_again():
    with receiving() as gone:
        pass
    assert Webhook(gone.url).post({}) is Outcome.AWAY


@pytest.mark.parametrize("status", [301, 308, 400, 404])
def test_an_address_that_refuses_is_not_asked_again(queue, notices, status, caplog):
    with receiving() as elsewhere, receiving((status, {"location": elsewhere.url}, None)) as receiver:
        post = Webhook(receiver.url).post
        ours = notices(post)
        train(queue, ours, succeeds)
        ours.send(post)
        ours.send(post)
    assert (len(receiver.requests), elsewhere.requests) == (1, [])
    assert "end was not told" in caplog.text


def test_an_address_that_is_none_is_refused():
    assert Webhook("http://127.0.0.1/\x07").post({}) is Outcome.REFUSED


def test_while_the_job_list_is_away_nothing_is_told_and_nothing_lost(queue, notices):
    class Away:
        def get(self, _):
            raise QueueUnavailable("the disk is gone")

    messages = []
    train(queue, notices(kept(messages)), succeeds)
    away = notices(kept(messages))
    away._queue = Away()
    assert away.send(kept(messages)) == FIRST_PAUSE_S
    assert messages == []
    notices(None).send(kept(messages))
    assert len(messages) == 1


def test_a_worker_sends_beside_its_work(queue, notices):
    with receiving() as receiver:
        ours = notices(Webhook(receiver.url).post)
        with ours.sending():
            train(queue, ours, succeeds)
            ours.soon()
            assert receiver.came.wait(10)


def test_a_receiver_that_never_answers_holds_up_neither_the_job_nor_the_end_of_the_process(queue, notices):
    asked, answered = threading.Event(), threading.Event()

    def hangs(message):
        asked.set()
        answered.wait(20)
        return Outcome.AWAY

    ours = notices(hangs)
    with ours.sending():
        train(queue, ours, succeeds)
        ours.soon()
        assert asked.wait(10)
        assert queue.get(train(queue, ours, succeeds)).status is JobStatus.SUCCEEDED
    answered.set()


# Its address is a secret


def test_the_address_is_in_no_log_whatever_happens(tmp_path):
    logs.configure(level="DEBUG", path=tmp_path / "log.jsonl")
    with receiving(200, 500, 302) as receiver:
        webhook = Webhook(f"{receiver.url}/canary-path?key=canary-key")
        for _ in range(3):
            webhook.post({"text": "canary-text"})
    webhook.post({})
    logging.shutdown()
    said = (tmp_path / "log.jsonl").read_text()
    assert said.count("webhook answered") == 4
    assert "canary" not in said


@pytest.mark.parametrize(
    "url", ["ftp://h/hidden", "hidden", "http://", "file:///hidden", "https://h:99999/hidden"]
)
def test_an_address_that_is_not_of_the_web_is_refused_without_showing_it(url):
    with pytest.raises(InvalidSpec, match=r"ISENGARD_WEBHOOK_URL.*https://") as raised:
        Settings.load({"ISENGARD_WEBHOOK_URL": url})
    assert "hidden" not in str(raised.value)


def test_the_address_reaches_a_worker_and_is_not_shown(tmp_path):
    settings = Settings.load({"ISENGARD_WEBHOOK_URL": "https://h/hidden"}, data_dir=tmp_path)
    assert Settings.load(settings.child_environment()) == settings
    assert "hidden" not in f"{settings!r} {settings.model_dump()}"


def test_the_application_tells_the_address_of_its_settings(tmp_path):
    with receiving() as receiver:
        app = build(Settings(data_dir=tmp_path, device="cpu", webhook_url=receiver.url))
        app.queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova"})
        job = app.queue.claim("w", lease_s=60)
        app.notices.watched(succeeds)(job, None)
        app.queue.fail(job, JobError(code="disk_full", message="no space left"))
        with app.notices.sending():
            assert receiver.came.wait(10)
    assert receiver.messages[0]["error"] == "no space left"
