"""The base models on the training tab, with a hub of our own on the loopback."""

import re
import shutil

import gradio as gr
import pytest
import yaml
from playwright.sync_api import expect

from isengard.domain.model import ModelCard
from isengard.errors import Conflict
from isengard.services.machine import Machine
from isengard.services.model_tasks import Action, Outcome, Task
from isengard.services.models import ModelState
from isengard.settings import ROOT
from isengard.store.download import DownloadProgress
from tabs import image_form, status, training, training_models
from tabs.common import WEB, Page, words
from tabs.pictures import Pictures
from tabs.training_models import ModelsView
from tabs.training_setup import Choice
from tabs.training_view import View
from tests.fake_hub import FakeHub
from tests.tiny_app import tiny_app
from tests.ui.camera import Camera
from tests.ui.chromium import chromium, new_view
from tests.ui.conftest import running_page

TOKEN = "hf_" + "good" * 3
SIZES = {"done_bytes": 50_000_000, "total_bytes": 2_000_000_000}


@pytest.fixture
def hub():
    hub = FakeHub()
    hub.add("acme/tiny", ROOT / "isengard" / "assets" / "demo-base")
    hub.gated, hub.tokens = {"acme/tiny"}, {TOKEN: {"acme/tiny"}}
    yield hub
    hub.close()


def add_card(configs, **changes):
    """A second card, ``far``, of a repository on the hub."""
    file = configs / "models.yaml"
    cards = yaml.safe_load(file.read_text())
    card = {key: value for key, value in next(iter(cards.values())).items() if key != "path"}
    cards["far"] = {**card, "title": "Far", "repository": "acme/tiny", "gated": True, **changes}
    file.write_text(yaml.safe_dump(cards))


@pytest.fixture
def page(tmp_path, tiny_flux, hub):
    app = tiny_app(tmp_path, tiny_flux, hub_endpoint=hub.url)
    add_card(app.settings.configs_dir)
    app.weights.hub_cache = tmp_path / "hub"
    pictures = Pictures(folder=app.settings.cache_dir / "pictures", gallery=app.settings.images_dir)
    app.models.token._library = tmp_path / "nothing"
    yield Page(app=app, machine=Machine(device="cpu"), pictures=pictures)
    app.model_tasks.end(5)


def value(page):
    return View(page).parts(Choice("mira", "tiny", "quick"), {}, "")["weights"]


def test_each_model_has_the_buttons_that_make_sense(page):
    far, tiny = value(page)["rows"]
    assert (far["state"], far["can"]) == (
        "missing", {"fetch": True, "halt": False, "check": False, "drop": False}
    )  # fmt: skip
    assert (tiny["state"], tiny["place"], tiny["can"]["check"], tiny["can"]["fetch"]) == (
        "ready",
        "bundled",
        True,
        False,
    )
    assert far["gated"] == "https://huggingface.co/acme/tiny"


CARD = ModelCard(
    name="far", title="Far", family="flux", repository="acme/tiny", licence="x", licence_url="https://x", resolutions=(64,),
    num_inference_steps=1, guidance_scale=1,
)  # fmt: skip


def test_a_running_download_is_shown_with_speed_and_remaining_time():
    told = DownloadProgress(file="vae/x", bytes_per_s=3e6, eta_s=650, **SIZES)
    task = Task(model="far", action=Action.DOWNLOAD, number=1, progress=told)
    row = training_models.row(ModelState(card=CARD, state="missing"), task, memory={"train": "9.9"})
    assert (row["state"], row["can"]["halt"], row["can"]["fetch"]) == ("download", True, False)
    assert row["course"] == {
        "action": "download", "percent": 2, "figures": "50.0 MB / 2.0 GB · 3.0 MB/s", "left": "10 min 50 s",
        "file": "vae/x",
    }  # fmt: skip
    assert training_models.live({"far": task}) == {"far": row["course"]}


def test_an_ended_check_names_what_is_damaged_and_an_ended_download_nothing():
    task = Task(model="far", action=Action.VERIFY, number=1, outcome=Outcome.DONE, damaged=("vae/x",))
    assert training_models.checked(task) == ["vae/x"]
    assert training_models.checked(replace_action(task)) is None
    assert training_models.live({"far": task}) == {}


def replace_action(task):
    return task.model_copy(update={"action": Action.DOWNLOAD})


def test_the_header_tells_every_page_of_a_download(page):
    look = status.looker(page)
    before = look()
    page.app.model_tasks._tasks["far"] = Task(model="far", action=Action.DOWNLOAD, number=1)
    during = look()
    assert (before["models"], list(during["models"])) == ({}, ["far"])
    assert during["key"] != before["key"]
    assert status.looker(page)()["again_s"] == pytest.approx(status.WHILE_RUNNING_S)
    page.app.model_tasks._tasks.clear()


def test_the_files_are_looked_at_again_only_after_a_while_or_a_change(page):
    asked, now = [], [0.0]
    known = page.app.models.list()
    page.app.models.list = lambda: asked.append(1) or known
    view = ModelsView(page.app, clock=lambda: now[0])
    view.value()
    view.value()
    assert len(asked) == 1
    now[0] = 3.0
    view.value()
    (page.app.settings.models_dir / "far").mkdir(parents=True)
    view.value()
    assert len(asked) == 3


def test_a_broken_card_leaves_the_list_empty(page):
    (page.app.settings.configs_dir / "models.yaml").write_text("[")
    assert value(page)["rows"] == []


def test_a_form_without_its_model_leads_to_the_section(page):
    parts = View(page).parts(Choice("mira", "far", "quick"), {}, "")
    assert parts["get_model"]
    assert any('under "Base models"' in problem for problem in parts["estimate"]["problems"])
    assert not View(page).parts(Choice("mira", "tiny", "quick"), {}, "")["get_model"]


def test_the_image_tab_names_the_section_too(page):
    form = {"base_model": "far", "character": "", "lora": "", "cache": "none"}
    offered = image_form.choices(page, form)
    said = image_form.absent_model(form, offered)
    assert said["title"] == "Far is not on this machine"
    assert "under “Base models”" in said["text"]
    assert image_form.absent_model(form | {"base_model": "tiny"}, offered) is None


class Event:
    def __init__(self, **told):
        self.__dict__ = told


def handlers(page):
    with gr.Blocks() as demo:
        training.build(page)
    return {each.name: each.fn for each in demo.fns.values() if each.fn}


def test_a_token_is_tried_answered_and_never_sent_back(page):
    known = handlers(page)
    assert "does not know this token" in known["keep_token"](Event(token=TOKEN.upper())).value
    answer = known["keep_token"](Event(token=TOKEN))
    assert answer.value.startswith("All is well")
    kept = value(page)
    assert TOKEN not in str(kept)
    assert not known["forget_token"]().visible
    assert (page.app.models.token.origin, "typed here" in str(kept)) == ("", True)


def test_an_event_about_no_model_is_refused(page):
    act = training_models._on_model(lambda name: training_models._known(page.app, name))
    with pytest.raises(gr.Error, match="there is no base model"):
        act(Event(model="../etc"))


def test_a_removed_model_ends_its_download_first(page):
    page.app.model_tasks.start("far", Action.DOWNLOAD)
    with pytest.raises(Conflict, match="not on this machine"):
        training_models._remove(page.app, "far")
    assert not page.app.model_tasks.running()


def test_the_section_opens(page):
    assert training_models._open().open


def test_every_word_of_the_script_is_written():
    script = (WEB / "models.js").read_text(encoding="utf-8")
    template = (WEB / "models.html").read_text(encoding="utf-8")
    used = set(re.findall(r'say\("([a-z.]+)"', script) + re.findall(r'button\("(\w+)"', script))
    used |= set(re.findall(r'data-say="(\w+)"', template))
    written = {key.removeprefix("models.say.") for key in words("models")["en"]}
    assert {word for word in used if not word.endswith(".")} <= written


# In a browser


@pytest.fixture
def view(tmp_path, hub, monkeypatch):
    """The training tab of an app that knows one model of the hub, in Chromium."""
    configs = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    file = configs / "models.yaml"
    cards = yaml.safe_load(file.read_text())
    far = {**cards["flux1-dev"], "title": "Far", "repository": "acme/tiny"}
    file.write_text(yaml.safe_dump({"demo": cards["demo"], "far": far}, sort_keys=False))
    for preset in (configs / "training").glob("*.yaml"):
        told = yaml.safe_load(preset.read_text())
        told["models"] = {name: said for name, said in told["models"].items() if name == "demo"}
        preset.write_text(yaml.safe_dump(told))
    monkeypatch.setenv("ISENGARD_CONFIGS_DIR", str(configs))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    hub.pause_s = 0.02
    with running_page(tmp_path / "data", "--worker", "none") as page, chromium() as browser:
        view = new_view(browser)
        view.goto(f"{page.url}/?tab=training")
        yield view


def test_a_gated_model_is_fetched_checked_and_removed_in_the_page(view, tmp_path):
    view.get_by_role("button", name="Base models").click()
    far = view.locator('#training-models li[data-model="far"]')
    far.get_by_role("button", name="Download").click()
    expect(far.locator(".error")).to_contain_text("acme/tiny wants a token")
    view.locator("#training-models input[type=password]").fill(TOKEN)
    view.get_by_role("button", name="Try and keep").click()
    expect(view.locator("#models-answer textarea")).to_have_value(re.compile("All is well"))
    far.get_by_role("button", name="Download").click()
    expect(far.locator(".figures")).to_contain_text("MB/s")
    view.reload()
    view.get_by_role("button", name="Base models").click()
    expect(far.locator(".badge")).to_have_text("Ready")
    assert TOKEN not in view.content()
    camera = Camera(tmp_path / "screenshots")
    camera.shoot(view, "models")
    assert camera.problems == []
    far.get_by_role("button", name="Remove").click()
    expect(far.locator(".badge")).to_have_text("Not here")
