"""Captions on request, from the question to the files, by a tiny model."""

import threading
import time
from functools import partial

import pytest
import torch

from isengard.domain.captioner import CaptionerCard
from isengard.domain.job import JobKind, JobStatus, Phase
from isengard.engines import captioner
from isengard.engines.captioner import open_captioner
from isengard.errors import Conflict, JobYielded, MissingWeights, NotFound
from isengard.handlers.captioning import caption_images
from isengard.services.captioning import LIST_AGE_S
from isengard.settings import Settings
from isengard.wiring import build
from isengard.worker import Worker
from tests.engines.demo_model import Reports
from tests.tiny_captioners import save_tiny_captioner
from tests.unit.character_pictures import encoded, picture, write


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner") / "llava"
    save_tiny_captioner("llava", folder)
    return folder


@pytest.fixture
def app(tmp_path, model, monkeypatch):
    """With a captioner, and a character of four pictures, the first with a caption."""
    monkeypatch.setattr(captioner, "MAX_TOKENS", 6)
    app = build(Settings(data_dir=tmp_path / "data", device="cpu"))
    app.models.use("joycaption", model)
    app.characters.create("Anna", class_word="woman")
    files = [write(tmp_path / "in", f"{seed}.png", encoded(picture(seed))) for seed in range(4)]
    files.append(write(tmp_path / "in", "0.txt", b"my own words"))
    assert len(list(app.characters.add_files("anna", files))) == 4
    return app


@pytest.fixture
def run(app):
    def ran(job, report=None):
        return caption_images(
            job,
            Reports() if report is None else report,
            open_captioner=partial(open_captioner, device=torch.device("cpu")),
            make_room=lambda: None,
            characters=app.characters,
            catalog=app.catalog,
            weights=app.weights,
        )

    return ran


def captions(app):
    return [image.caption for image in app.characters.get("anna").images]


def when(phase, step, act):
    """A report that does something once, at a step of a phase."""
    done = []

    def report(progress):
        if not done and (progress.phase, progress.step) == (phase, step):
            done.append(progress)
            act()

    return report


def test_each_image_without_a_caption_gets_one_that_begins_with_the_trigger(app, run):
    report = Reports()
    assert run(app.captioning.submit("anna"), report) == {"written": 3, "passed_over": 0}
    assert captions(app)[0] == "my own words"
    assert all(caption.startswith("[trigger] [class]") for caption in captions(app)[1:])


def test_the_job_says_how_far_it_is(app, run):
    report = Reports()
    run(app.captioning.submit("anna"), report)
    told = [(each.phase, each.step, each.total) for each in report]
    assert told[0] == (Phase.LOADING, 0, 3)
    assert dict.fromkeys(told[1:]).keys() == {(Phase.CAPTIONING, step, 3) for step in range(4)}


def test_when_told_to_every_caption_is_replaced_and_can_come_back(app, run):
    run(app.captioning.submit("anna", overwrite=True))
    assert captions(app)[0].startswith("[trigger] [class]")
    assert app.characters.undo_captions("anna") == 4
    assert captions(app) == ["my own words", "", "", ""]


def test_what_a_person_writes_meanwhile_stays(app, run):
    last = app.characters.get("anna").images[3].id
    write = when(Phase.CAPTIONING, 1, lambda: app.characters.set_caption("anna", last, "typed meanwhile"))
    assert run(app.captioning.submit("anna"), write) == {"written": 2, "passed_over": 1}
    assert captions(app)[3] == "typed meanwhile"


def test_what_a_person_writes_while_the_model_looks_at_that_very_image_stays(app, run):
    looked, last = [], app.characters.get("anna").images[3].id

    def write(progress):
        if (progress.phase, progress.step) == (Phase.CAPTIONING, 2):
            looked.append(progress)
            if len(looked) == 3:
                app.characters.set_caption("anna", last, "typed meanwhile")

    run(app.captioning.submit("anna"), write)
    assert captions(app)[3] == "typed meanwhile"


def test_an_image_that_is_removed_meanwhile_is_passed_over(app, run):
    second = app.characters.get("anna").images[2].id
    remove = when(Phase.LOADING, 0, lambda: app.characters.remove_image("anna", second))
    assert run(app.captioning.submit("anna"), remove) == {"written": 2, "passed_over": 1}


def test_an_interrupted_job_goes_on_where_it_was(app, run):
    def stop():
        raise JobYielded

    job = app.captioning.submit("anna")
    with pytest.raises(JobYielded):
        run(job, when(Phase.CAPTIONING, 1, stop))
    before = captions(app)
    assert [bool(caption) for caption in before] == [True, True, False, False]
    assert run(job) == {"written": 2, "passed_over": 1}
    assert captions(app)[:2] == before[:2]
    assert app.characters.undo_captions("anna") == 3


def test_a_worker_runs_the_job_and_a_cancelled_one_keeps_what_it_wrote(app, run):
    job = app.captioning.submit("anna")
    queue = app.queue

    def handler(job, report):
        def cancelling(progress):
            if (progress.phase, progress.step) == (Phase.CAPTIONING, 1):
                queue.cancel(job.id)
                while True:  # the answer comes with one of the next heartbeats
                    report(progress)
                    time.sleep(0.02)
            return report(progress)

        return run(job, cancelling)

    worker = Worker(queue=queue, handlers={JobKind.CAPTION_IMAGES: handler}, name="w", lease_s=60)
    assert worker.run_one(threading.Event())
    assert queue.get(job.id).status is JobStatus.CANCELLED
    assert captions(app)[1].startswith("[trigger] [class]")


def test_a_character_whose_images_all_have_a_caption_is_not_described(app):
    app.characters.caption_all("anna", "a photo", only_empty=True)
    with pytest.raises(Conflict, match="Anna has a caption for each image already"):
        app.captioning.submit("anna")


def test_a_character_without_images_is_not_described(app):
    app.characters.create("Bob")
    with pytest.raises(Conflict, match="Bob has no images"):
        app.captioning.submit("bob", overwrite=True)


def test_a_character_is_described_once_at_a_time(app):
    job = app.captioning.submit("anna")
    with pytest.raises(Conflict, match=job.id):
        app.captioning.submit("anna")
    app.jobs.cancel(job.id)
    assert app.captioning.submit("anna").id != job.id


def test_a_captioner_that_is_not_here_is_named_with_the_way_to_it(app):
    with pytest.raises(MissingWeights, match="models download florence2-large"):
        app.captioning.submit("anna", captioner="florence2-large")
    with pytest.raises(NotFound, match="no captioner 'flux'"):
        app.captioning.submit("anna", captioner="flux")


def test_a_captioner_that_a_worker_elsewhere_has_will_do(app):
    app.captioning._elsewhere = lambda name: name == "florence2-large"
    job = app.captioning.submit("anna")
    assert (job.payload["captioner"], job.needs.model) == ("florence2-large", "florence2-large")


def test_without_any_captioner_the_way_to_one_is_said(app):
    app.models.forget("joycaption")
    with pytest.raises(MissingWeights, match=r"known: florence2-large, .*models download NAME"):
        app.captioning.submit("anna")


def test_which_captioners_are_here_is_looked_up_now_and_then(app, tmp_path):
    now = [0.0]
    app.captioning._clock = lambda: now[0]

    def here():
        return [card.name for card, is_here in app.captioning.captioners() if is_here]

    assert here() == ["joycaption"]
    app.models.forget("joycaption")
    assert here() == ["joycaption"]
    now[0] = LIST_AGE_S + 1
    assert here() == []


def test_a_captioner_in_use_is_not_removed(app):
    job = app.captioning.submit("anna")
    with pytest.raises(Conflict, match=f"is used by job {job.id}"):
        app.models.remove("joycaption")


def test_a_card_of_a_captioner_is_a_whole_one(app):
    assert all(isinstance(card, CaptionerCard) for card, _ in app.captioning.captioners())
