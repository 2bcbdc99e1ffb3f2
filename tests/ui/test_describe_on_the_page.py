"""Captions by a model on the characters tab: what it shows, and in Chromium what its buttons do."""

import threading
import time
from functools import partial

import pytest
from playwright.sync_api import expect

from isengard.domain.job import JobKind, JobStatus
from isengard.handlers.captioning import caption_images
from isengard.services.model_tasks import Action, Outcome, Task
from isengard.settings import Settings
from isengard.wiring import build
from isengard.worker import Worker
from tabs import characters_describe
from tabs.characters_describe import value
from tests.ui.chromium import chromium, new_view, problems_of
from tests.ui.conftest import running_page
from tests.unit.character_pictures import encoded, picture, write
from tests.unit.test_captioner_models import FILES
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("unmeasured_children")
WORDS = "A young woman with blue eyes in a red coat."
CAPTION = "[trigger] [class] in a red coat"


class Says:
    """A `Captioner` that says the same of each image, and stops after so many until it is cancelled."""

    def __init__(self, *, at_once=100):
        self.at_once, self.said, self.waits = at_once, 0, threading.Event()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def caption(self, images, *, instruction, on_token):
        for _ in images:
            while self.said >= self.at_once:
                self.waits.set()
                on_token()
                time.sleep(0.02)
            self.said += 1
            yield WORDS


def filled(data_dir, folder):
    """The services with a captioner, and a character of three images, the first with a caption."""
    app = build(Settings(data_dir=data_dir, device="cpu"))
    own = folder / "captioner"
    for name, content in FILES.items():
        write(own, name, content)
    app.models.use("joycaption", own)
    app.weights.hub_cache = folder / "hub"
    app.characters.create("Anna", class_word="woman")
    files = [write(folder / "in", f"{seed}.png", encoded(picture(seed))) for seed in range(3)]
    files.append(write(folder / "in", "0.txt", b"my own words"))
    assert len(list(app.characters.add_files("anna", files))) == 3
    return app


def work(app, captioner):
    """Run the job that waits."""
    handler = partial(
        caption_images,
        open_captioner=lambda _folder: captioner,
        make_room=lambda: None,
        characters=app.characters,
        catalog=app.catalog,
        weights=app.weights,
    )
    worker = Worker(queue=app.queue, handlers={JobKind.CAPTION_IMAGES: handler}, name="w", lease_s=60)
    assert worker.run_one(threading.Event())


@pytest.fixture
def app(tmp_path):
    return filled(tmp_path / "data", tmp_path)


def test_the_widget_knows_which_captioners_are_here_and_how_many_captions_lack(app):
    shown = value(app, "anna")
    assert [(each["name"], each["here"]) for each in shown["models"]] == [
        ("florence2-large", False),
        ("qwen2.5-vl-7b", False),
        ("joycaption", True),
    ]
    assert (shown["bare"], shown["images"], shown["job"], shown["undo"]) == (2, 3, None, 0)


def test_a_job_is_told_of_until_an_hour_after_its_end(app):
    job = app.captioning.submit("anna")
    assert value(app, "anna")["job"]["status"] is JobStatus.QUEUED
    work(app, Says())
    shown = value(app, "anna")
    assert (shown["job"]["status"], shown["job"]["written"], shown["undo"]) == (JobStatus.SUCCEEDED, 2, 2)
    later = app.jobs.get(job.id).finished_at + characters_describe.TOLD_S + 1
    assert value(app, "anna", clock=lambda: later)["job"] is None


def test_a_failed_job_says_why(app, monkeypatch):
    app.captioning.submit("anna")
    app.models.forget("joycaption")
    work(app, Says())
    assert "models download joycaption" in value(app, "anna")["job"]["error"]


def test_a_download_is_told_of_at_its_captioner(app, monkeypatch):
    task = Task(model="joycaption", action=Action.DOWNLOAD, number=1)
    monkeypatch.setattr(app.model_tasks, "_tasks", {"joycaption": task})
    assert value(app, "anna")["models"][2]["course"]["action"] == "download"
    ended = task.model_copy(update={"outcome": Outcome.FAILED, "error": "no room"})
    monkeypatch.setattr(app.model_tasks, "_tasks", {"joycaption": ended})
    assert (value(app, "anna")["models"][2]["course"], value(app, "anna")["models"][2]["error"]) == (
        None,
        "no room",
    )


def test_of_a_character_that_is_gone_nothing_is_shown(app):
    assert value(app, "bob") == {}


@pytest.fixture(scope="module")
def living(tmp_path_factory):
    """A page of the app, and Chromium."""
    folder = tmp_path_factory.mktemp("describe")
    app = filled(folder / "data", folder)
    with (
        running_page(folder / "data", "--worker", "none", "--device", "cpu") as page,
        chromium() as browser,
    ):
        yield app, browser, page.url


@pytest.fixture
def view(living):
    """The open tools of the character; nothing may go wrong in the console."""
    app, browser, url = living
    view = new_view(browser, locale="de-DE")
    problems = problems_of(view)
    view.goto(f"{url}/?tab=characters&character=anna")
    view.locator("#characters-tools button").first.click()
    yield view
    view.close()
    assert problems == []
    while app.characters.captions_to_undo("anna"):
        app.characters.undo_captions("anna")


def test_one_click_describes_the_images_without_a_caption_and_another_takes_it_back(living, view):
    app, *_ = living
    widget, texts = view.locator("#characters-describe"), view.locator("#characters-grid textarea")
    widget.get_by_role("button", name="Bilder beschreiben").click()
    expect(widget.get_by_text("Wartet auf einen Worker")).to_be_visible()
    work(app, Says())
    expect(widget.get_by_text("Fertig: 2 Bildtexte geschrieben.")).to_be_visible()
    expect(texts.nth(0)).to_have_value("my own words")
    expect(texts.nth(2)).to_have_value(CAPTION)
    view.reload()
    view.locator("#characters-tools button").first.click()
    widget.get_by_role("button", name="Letzte Änderung zurücknehmen (2)").click()
    expect(texts.nth(2)).to_have_value("")
    expect(texts.nth(0)).to_have_value("my own words")


def test_a_running_job_is_cancelled_and_keeps_what_it_wrote_and_what_is_typed(living, view):
    app, *_ = living
    widget, texts = view.locator("#characters-describe"), view.locator("#characters-grid textarea")
    widget.get_by_label("Auch vorhandene Bildtexte ersetzen").check()
    widget.get_by_role("button", name="Bilder beschreiben").click()
    expect(widget.get_by_role("progressbar")).to_be_visible()
    captioner = Says(at_once=1)
    worker = threading.Thread(target=work, args=(app, captioner))
    worker.start()
    assert captioner.waits.wait(60)
    texts.nth(1).fill("typed meanwhile")
    until(lambda: app.characters.get("anna").images[1].caption)
    widget.get_by_role("button", name="Abbrechen").click()
    worker.join(60)
    expect(widget.get_by_text("Abgebrochen.")).to_be_visible()
    expect(texts.nth(0)).to_have_value(CAPTION)
    expect(texts.nth(1)).to_have_value("typed meanwhile")
    expect(widget.get_by_role("progressbar")).to_be_hidden()
    images = app.characters.get("anna").images
    assert [image.caption for image in images] == [CAPTION, "typed meanwhile", ""]
    app.characters.set_caption("anna", images[1].id, "")


def test_a_captioner_that_is_not_here_is_offered_for_download_with_its_licence(view):
    widget = view.locator("#characters-describe")
    widget.get_by_label("Modell, das die Bilder beschreibt").select_option("florence2-large")
    expect(widget.get_by_role("button", name="Dieses Modell herunterladen")).to_be_enabled()
    expect(widget.get_by_role("link", name="MIT")).to_have_attribute(
        "href", "https://huggingface.co/florence-community/Florence-2-large"
    )
