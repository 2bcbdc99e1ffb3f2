"""The notice about AI-Toolkit on the training tab, and the choice of the engine."""

import json
import re
from dataclasses import replace

import gradio as gr
import pytest

from isengard.errors import InstallFailed
from isengard.services.ai_toolkit import AiToolkitService
from isengard.services.machine import Machine
from isengard.store.ai_toolkit import Checkout, Matter, Stage
from tabs import status, training, training_fields
from tabs.common import WEB, Page, words
from tabs.pictures import Pictures
from tabs.training_actions import Actions
from tabs.training_setup import Choice
from tabs.training_view import STAGES, View, engine_notice
from tests.checkouts import whole
from tests.tiny_app import tiny_app

CHOICE = Choice("mira", "tiny", "quick")
TIMEOUT_S = 20


class Held(Checkout):
    """An installation that ends when it is cancelled, or at once with ``error``."""

    error = None

    def install(self, report):
        if self.error:
            raise self.error
        while self.error is None:
            report(Stage.SOURCE, 0.25, "Receiving objects:  25%")
        return self.state()


@pytest.fixture
def page_with(tmp_path, tiny_flux):
    """A page with this checkout; its installation is ended with the test."""
    app = tiny_app(tmp_path, tiny_flux)
    pictures = Pictures(folder=app.settings.cache_dir / "pictures", gallery=app.settings.images_dir)
    services = []

    def page_with(checkout):
        services.append(AiToolkitService(checkout=checkout))
        return Page(
            app=replace(app, ai_toolkit=services[-1]), machine=Machine(device="cpu"), pictures=pictures
        )

    yield page_with
    for service in services:
        service.cancel()
        service.wait(TIMEOUT_S)


@pytest.fixture
def absent(tmp_path, page_with):
    return page_with(Held(tmp_path / "nothing", owned=True, lock=tmp_path / "lock"))


def notice(page):
    return View(page).parts(CHOICE, {}, "")["engine"]


def test_absence_is_noticed_and_a_usable_one_needs_no_words(absent, page_with, tmp_path):
    assert notice(absent)["matter"] == "absent"
    assert notice(page_with(whole(tmp_path / "a")))["matter"] == ""


def test_missing_packages_are_named(page_with, tmp_path):
    (tmp_path / "list.txt").write_text("no-such-package-xyz\n")
    shown = notice(page_with(whole(tmp_path / "a", requirements=tmp_path / "list.txt")))
    assert (shown["matter"], shown["missing"]) == ("packages", ("no-such-package-xyz",))


def test_our_own_old_one_is_noticed_and_the_users_choice_of_another_is_not(page_with, tmp_path):
    assert notice(page_with(whole(tmp_path / "a", commit="f" * 40)))["matter"] == "commit"
    assert notice(page_with(whole(tmp_path / "b", commit="f" * 40, owned=False)))["matter"] == ""


def test_a_variable_that_names_no_checkout_is_explained(page_with, tmp_path):
    shown = notice(page_with(Checkout(tmp_path / "x", owned=False, lock=tmp_path / "lock")))
    assert "ISENGARD_AI_TOOLKIT" in shown["error"]


def test_an_installation_is_shown_to_every_page_and_can_be_cancelled(absent):
    actions, look = Actions(absent), status.looker(absent)
    before = look()
    actions.install_engine()
    while not notice(absent).get("message"):
        pass
    shown = View(absent).parts(CHOICE, {}, "")["engine"]  # as a page that was loaded anew sees it
    assert (shown["installing"], shown["stage"], shown["percent"], shown["ended"]) == (True, "source", 25, 0)
    during = status.looker(absent)()  # its first question: no turn of another page is before it
    assert during["key"] != before["key"]
    assert during["again_s"] < before["again_s"]
    actions.stop_installing()
    absent.app.ai_toolkit.wait(TIMEOUT_S)
    assert (notice(absent)["ended"], notice(absent)["error"]) == (1, "")
    assert look()["key"] != during["key"]
    assert not actions.installed_engine()


def test_a_failed_installation_is_a_toast_and_stays_to_be_read(absent, monkeypatch):
    monkeypatch.setattr(Held, "error", InstallFailed("git is not installed"))
    actions = Actions(absent)
    actions.install_engine()
    absent.app.ai_toolkit.wait(TIMEOUT_S)
    with pytest.raises(InstallFailed, match="git is not installed"):
        actions.installed_engine()
    assert notice(absent)["error"] == "git is not installed"


def handlers(page):
    with gr.Blocks() as demo:
        training.build(page)
    return {each.name: each for each in demo.fns.values()}


def test_the_handlers_are_private_and_tell_how_it_ended(absent, monkeypatch):
    said = []
    monkeypatch.setattr(gr, "Info", lambda message, duration: said.append(message))
    monkeypatch.setattr(Held, "error", InstallFailed("no <network>"))
    known = handlers(absent)
    names = ("install_engine", "stop_installing", "tell_installed")
    assert {known[name].api_visibility for name in names} == {"private"}
    known["install_engine"].fn()
    absent.app.ai_toolkit.wait(TIMEOUT_S)
    with pytest.raises(gr.Error, match="no &lt;network&gt;"):
        known["tell_installed"].fn()
    monkeypatch.setattr(Held, "error", None)
    known["install_engine"].fn()
    known["stop_installing"].fn()
    absent.app.ai_toolkit.wait(TIMEOUT_S)
    known["tell_installed"].fn()
    monkeypatch.setattr(Held, "error", False)
    known["install_engine"].fn()
    absent.app.ai_toolkit.wait(TIMEOUT_S)
    known["tell_installed"].fn()
    assert [message.partition(";")[0] for message in said] == [
        "The installation was cancelled",
        "AI-Toolkit is installed",
    ]


def test_a_second_press_is_refused_while_the_first_still_works(absent):
    known = handlers(absent)
    known["install_engine"].fn()
    with pytest.raises(gr.Error, match="being installed already"):
        known["install_engine"].fn()


def test_the_engine_is_chosen_by_a_readable_name(absent):
    field = training_fields.describe("engine", absent.app.training.engine_names)
    assert field["choices"] == [("Isengard", "native"), ("AI-Toolkit", "ai-toolkit")]
    assert training_fields.describe("precision")["choices"][0] == ("fp32", "fp32")


def test_choosing_what_is_absent_is_said_before_the_start(absent):
    parts = View(absent).parts(CHOICE, {"overrides": {"engine": "ai-toolkit"}}, "")
    assert "'ai-toolkit' cannot be used" in parts["estimate"]["problems"][0]


def test_the_settings_follow_when_ai_toolkit_comes(absent, monkeypatch):
    view, service = View(absent), absent.app.training
    assert view.parts(CHOICE, {}, "")["form"]["base"]["engine"] == "native"
    monkeypatch.setattr(service, "available_engines", lambda card: ("native", "ai-toolkit"))
    monkeypatch.setattr(service, "default_engine", lambda card: "ai-toolkit")
    monkeypatch.setattr(service, "_check_engine", lambda spec, card: None)
    assert view.parts(CHOICE, {}, "")["form"]["base"]["engine"] == "ai-toolkit"


def test_every_matter_and_stage_is_written():
    written = words("training")["en"]
    used = {str(matter) for matter in Matter if matter} | {STAGES[stage] for stage in Stage}
    assert {f"training.say.engine.{word}" for word in used} <= written.keys()


def test_the_script_asks_for_a_toast_and_for_what_the_buttons_do(absent):
    script = (WEB / "training_engine.js").read_text(encoding="utf-8")
    assert set(re.findall(r'trigger\("(\w+)"', script)) == {"install", "halt", "ended"}
    assert json.dumps(engine_notice(absent.app.ai_toolkit))
