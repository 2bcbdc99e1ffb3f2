"""Which of several cards a worker takes. The ids are a driver's; whether a card is free is a lock in the data folder."""

from contextlib import ExitStack

import pytest
from typer.testing import CliRunner

from isengard.cli import app
from isengard.domain.job import JobKind
from isengard.equipment import cards_for
from isengard.queue.sqlite import SqliteQueue
from isengard.settings import Settings
from isengard.supervisor import WorkerRunning, own_card
from tests.equipment import trains_with

CARDS = ("91f0", "22ab")


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


@pytest.fixture
def take(settings):
    """Take a card as a worker of its own would; all are given back in the end."""
    with ExitStack() as taken:
        yield (
            lambda device="auto", cards=CARDS: (
                taken.enter_context(own_card(settings.model_copy(update={"device": device}), cards)).device
            )
        )


def test_each_worker_takes_a_card_that_no_other_has(take):
    assert [take(), take()] == ["cuda:0", "cuda:1"]
    with pytest.raises(WorkerRunning, match="each of the 2 cards here has a worker on"):
        take()


def test_a_card_is_the_same_one_at_another_index(take):
    assert take(cards=("22ab",)) == "auto"
    assert take() == "cuda:0"


def test_the_only_card_is_taken_by_one_worker_and_needs_no_number(take):
    assert take(cards=("91f0",)) == "auto"
    with pytest.raises(WorkerRunning):
        take(cards=("91f0",))


def test_a_card_that_was_asked_for_is_taken_or_refused_but_not_replaced(take):
    assert take("cuda:1") == "cuda:1"
    assert take() == "cuda:0"
    for device in ("cuda:1", "cuda"):
        with pytest.raises(WorkerRunning, match=f"{device} has a worker on"):
            take(device)


def test_a_card_is_free_again_when_its_worker_has_ended(settings):
    for _ in range(2):
        with own_card(settings, CARDS) as ours:
            assert ours.device == "cuda:0"


@pytest.mark.parametrize(("device", "cards"), [("auto", ()), ("cpu", ()), ("cuda:2", CARDS)])
def test_where_there_is_no_such_card_the_device_stays_as_it_was_asked_for(take, device, cards):
    assert [take(device, cards), take(device, cards)] == [device, device]


def test_a_worker_that_does_without_cards_asks_nobody_for_them(settings):
    assert cards_for(settings.model_copy(update={"device": "cpu"})) == ()


def test_the_command_works_on_the_card_that_was_free(settings, take, monkeypatch):
    def equip(settings, application):
        assert application.settings == settings
        return trains_with(lambda job, report: {"device": settings.device})

    monkeypatch.setattr("isengard.cli.worker.equip", equip)
    monkeypatch.setattr("isengard.cli.worker.cards_for", lambda settings: CARDS)
    queue = SqliteQueue(settings.jobs_db)
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    take("cuda:0")
    result = CliRunner().invoke(app, ["--data-dir", str(settings.data_dir), "worker", "--once"])
    assert "/cuda:1 is ready" in result.stderr
    assert queue.get(job.id).result == {"device": "cuda:1"}
