"""What uses the disk, on the training tab, and removing what nobody needs."""

import asyncio
import os
import re
import time

import gradio as gr
import pytest
from playwright.sync_api import expect

from isengard.domain.job import JobError, JobStatus
from isengard.domain.storage import DAY_S, Part, Policy
from isengard.errors import Conflict, InvalidSpec
from isengard.services.machine import Machine
from isengard.settings import Settings
from isengard.wiring import build
from tabs import image_live, status, training, training_lists, training_live, training_storage
from tabs.common import WEB, Page, words
from tabs.image import ImageTab
from tabs.pictures import Pictures
from tabs.training_setup import Choice
from tabs.training_view import View
from tests.tiny_app import submit_training, tiny_app
from tests.ui.camera import Camera
from tests.ui.chromium import chromium, new_view
from tests.ui.conftest import running_page


@pytest.fixture
def page(tmp_path, tiny_flux):
    app = tiny_app(tmp_path, tiny_flux)
    pictures = Pictures(folder=app.settings.cache_dir / "pictures", gallery=app.settings.images_dir)
    yield Page(app=app, machine=Machine(device="cpu"), pictures=pictures)
    app.storage.wait(10)


def throw_away(data, name="20250101T000000Z-a-0.png", size=2_000_000):
    path = data / "trash" / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def value(page):
    return View(page).parts(Choice("mira", "tiny", "quick"), {}, "")["storage"]


class Event:
    def __init__(self, **told):
        self.__dict__ = told


@pytest.fixture
def act(page):
    with gr.Blocks() as demo:
        training.build(page)
    known = {each.name: each.fn for each in demo.fns.values() if each.fn}

    def acted(name, **told):
        known[name](Event(**told))
        page.app.storage.wait(10)

    return acted


def test_nothing_is_counted_before_somebody_looks(page, act):
    assert value(page) == {"counting": False, "look": 0}
    act("look", days=None)
    assert value(page)["look"] == 1


def test_the_list_says_what_uses_what_and_what_can_go(page, act):
    throw_away(page.app.settings.data_dir)
    page.app.storage._quota = 10**9
    act("look", days=None)
    seen = value(page)
    assert (seen["days"], seen["quota"], seen["beyond"], seen["percent"]) == (None, "1.0 GB", False, 0)
    assert {"part": Part.TRASH, "size": "2.0 MB"}.items() <= seen["parts"][0].items()
    assert seen["entries"][0]["name"] == "images"
    assert {"part": Part.CHARACTERS, "name": "Mira", "inside": {}}.items() <= seen["entries"][1].items()
    trash = next(each for each in seen["policies"] if each["policy"] is Policy.TRASH)
    assert (trash["bytes"], trash["lines"], trash["more"]) == (2_000_000, ["2.0 MB · image a-0.png"], 0)


def test_what_was_chosen_and_shown_goes(page, act):
    gone, name = throw_away(page.app.settings.data_dir), str(Policy.TRASH)
    act("look", days=7)
    act("clean", look=1, policies=[name, "../etc"])
    assert not gone.exists()
    assert (value(page)["days"], value(page)["look"]) == (7, 3)
    with pytest.raises(gr.Error, match="look at it again"):
        act("clean", look=1, policies=[name])


@pytest.mark.parametrize(("number", "names"), [(1, ["etc"]), (1, None), ("1", ["trash"]), (None, [])])
def test_an_event_that_names_nothing_to_remove_is_refused(page, number, names):
    with pytest.raises(InvalidSpec):
        training_storage.cleaned(page.app.storage, number, names)
    with pytest.raises(Conflict):
        training_storage.cleaned(page.app.storage, 7, ["trash"])


def test_what_came_into_use_meanwhile_is_said(page, monkeypatch):
    said = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: said.append(text))
    entry = page.app.characters.delete("mira")
    look = page.app.storage.look(0)
    page.app.characters.restore(entry.id)
    training_storage.cleaned(page.app.storage, look.number, ["trash"])
    assert said[0].startswith("character mira stays")


def test_a_new_count_paints_every_page_anew(page):
    look = status.looker(page)
    before = look()["key"]
    page.app.storage.look()
    assert look()["key"] != before


def test_a_training_that_lacks_room_says_why_it_is_paused_and_what_to_do(page):
    job_id = submit_training(page.app)
    job = page.app.queue.claim("w", lease_s=60)
    page.app.queue.suspend(job, JobError(code="disk_full", message="the disk is nearly full"))
    paused = page.app.jobs.get(job_id)
    card = training_live.card(paused, titles={}, presets={})
    assert card["error"] == "the disk is nearly full"
    assert card["said"].startswith("Free some space first: Storage, below. It goes on from where it stopped")
    assert training_live.can(paused)["resume"]
    (row,) = training_lists.waiting_rows([paused], {}, {}, lambda _: "")
    assert row["why"] == "the disk is nearly full"
    page.app.jobs.resume(job_id)
    assert page.app.jobs.get(job_id).status is JobStatus.QUEUED


def test_images_that_lack_room_say_so_and_go_on_when_there_is_some(page):
    with gr.Blocks():
        tab = ImageTab(page)
    spec = page.app.images.plan(overrides={"prompt": "a person", "base_model": "tiny"})
    job = page.app.images.submit(spec)
    claimed = page.app.queue.claim("w", lease_s=60)
    page.app.queue.suspend(claimed, JobError(code="disk_full", message="the disk is nearly full"))
    paused = asyncio.run(
        image_live.attach(page.app.jobs, job.id, lambda *_, **__: None, leaving=lambda: False)
    )
    with pytest.warns(UserWarning, match="nearly full"):  # a toast, outside of a page
        image_live.say_how_it_ended(paused)
    shown = image_live.stage(page)
    assert (shown["paused"], shown["headline"], shown["detail"]) == (
        True,
        "Paused",
        "the disk is nearly full",
    )
    resumed = tab.go_on(gr.EventData(None, {"id": job.id}))
    assert (resumed["paused"], resumed["headline"]) == (False, "Waiting for its turn")
    with pytest.raises(gr.Error, match="nothing to resume"):
        tab.go_on(gr.EventData(None, {"id": job.id}))


def test_every_word_of_the_script_is_written_in_both_languages():
    script = (WEB / "storage.js").read_text(encoding="utf-8")
    template = (WEB / "storage.html").read_text(encoding="utf-8")
    used = {word for word in re.findall(r'say\("([a-z.]+)"', script) if not word.endswith(".")}
    used |= set(re.findall(r'data-(?:say|label)="([\w.]+)"', template))
    used |= {f"part.{part}" for part in Part} | {f"policy.{policy}" for policy in Policy}
    for language in ("en", "de"):
        written = {key.removeprefix("storage.say.") for key in words("storage")[language]}
        assert used <= written


def test_the_disk_is_cleaned_in_the_page(tmp_path):
    data = tmp_path / "data"
    app = build(Settings(data_dir=data))
    gone = throw_away(data)
    run = app.queue.enqueue("train_lora", {"name": "Nova", "spec": {"character": "nova"}}).id
    app.queue.succeed(app.queue.claim("w", lease_s=60), {"steps": 20, "best_step": 20})
    for step in (5, 10, 20):
        folder = data / "runs" / run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(b"x" * 700_000)
        (folder / "about.json").write_text("{}")
    upload = data / "cache" / "uploads" / "0" / "a.png"
    upload.parent.mkdir(parents=True)
    upload.touch()
    os.utime(upload, (time.time() - 9 * DAY_S,) * 2)
    with running_page(data, "--worker", "none") as page, chromium() as browser:
        view = new_view(browser)
        view.goto(f"{page.url}/?tab=training")
        view.get_by_role("button", name="Storage").click()
        section = view.locator("#training-storage")
        expect(section.locator(".parts")).to_contain_text("Trash")
        section.locator("select").select_option("0")
        checkpoints = section.get_by_role("checkbox", name=re.compile("Checkpoints of finished"))
        expect(checkpoints).to_be_enabled()
        checkpoints.check()
        section.get_by_role("checkbox", name=re.compile("Trash")).check()
        expect(section.locator("button.clean")).to_have_text("Remove 3.4 MB…")
        section.locator("summary").first.click()
        section.scroll_into_view_if_needed()
        camera = Camera(tmp_path / "screenshots")
        camera.shoot(view, "storage")
        assert camera.problems == []
        section.locator("button.clean").click()
        expect(view.get_by_text("3.4 MB are free again")).to_be_visible()
        expect(section.locator(".parts")).not_to_contain_text("Trash")
        assert not gone.exists()
        assert [path.name for path in (data / "runs" / run / "checkpoints").iterdir()] == ["step-00000020"]
