"""Captions by a model and their way back, on the command line."""

import threading
from contextlib import nullcontext
from functools import partial

import pytest
from typer.testing import CliRunner

from isengard.cli import app as cli
from isengard.cli.jobs import subject
from isengard.domain.job import JobKind
from isengard.handlers.captioning import caption_images
from isengard.services.notices import message
from isengard.settings import Settings
from isengard.wiring import build
from isengard.worker import Worker
from tests.unit.character_pictures import encoded, picture, write
from tests.unit.test_captioner_models import FILES


class Says:
    """A `Captioner`."""

    def caption(self, images, *, instruction, on_token):
        return iter(["A woman by the sea." for _ in images])


@pytest.fixture
def app(tmp_path):
    app = build(Settings(data_dir=tmp_path / "data", device="cpu"))
    for name, content in FILES.items():
        write(tmp_path / "captioner", name, content)
    app.models.use("joycaption", tmp_path / "captioner")
    app.characters.create("Anna", class_word="woman")
    assert list(app.characters.add_files("anna", [write(tmp_path, "1.png", encoded(picture(1)))]))
    return app


@pytest.fixture
def run(app):
    """``run("describe", "anna")``: that command, with a worker beside it."""
    handler = partial(
        caption_images,
        open_captioner=lambda _folder: nullcontext(Says()),
        make_room=lambda: None,
        characters=app.characters,
        catalog=app.catalog,
        weights=app.weights,
    )
    worker = Worker(queue=app.queue, handlers={JobKind.CAPTION_IMAGES: handler}, name="w", lease_s=60)
    stop = threading.Event()
    thread = threading.Thread(target=partial(worker.run, stop, poll_s=0.05))
    thread.start()
    options = ["--data-dir", str(app.settings.data_dir), "--worker", "none", "characters"]
    yield lambda *arguments: CliRunner().invoke(cli, [*options, *arguments])
    stop.set()
    thread.join()


def test_a_character_is_described_and_it_can_be_taken_back(app, run):
    described = run("describe", "anna", "--with", "joycaption")
    assert (described.exit_code, described.stdout) == (0, "1 captions written\n")
    assert app.characters.get("anna").images[0].caption == "[trigger] [class] by the sea"
    assert run("undo", "anna").stdout == "1 captions are as before\n"
    assert app.characters.get("anna").images[0].caption == ""


def test_the_job_is_named_after_its_character(app):
    job = app.captioning.submit("anna")
    assert subject(job) == "captions of anna"
    ended = job.model_copy(update={"started_at": 0.0, "finished_at": 1e6, "status": "succeeded"})
    assert message(ended, page=None)["text"] == "Anna: captions done"
