"""What the page shows of plans: before a training, after one ran out of memory, and beside an image's size."""

import re

import pytest
import yaml

from isengard.domain.job import JobError, JobStatus
from isengard.domain.memory import Corrections, Peak, Task, training_key
from isengard.services.machine import Machine
from tabs import image_fit, training_live
from tabs.common import WEB, Page
from tabs.pictures import Pictures
from tabs.training_actions import Actions
from tabs.training_setup import Choice
from tabs.training_view import View
from tests.tiny_app import submit_training, tiny_app
from tests.unit.test_planner import CARDS, machine

CHOICE = Choice("mira", "tiny", "quick")


@pytest.fixture
def app(tmp_path, tiny_flux, monkeypatch):
    """A card of 12 GB, and the tiny model said to be as large as FLUX.1-dev; and one that is not on the machine."""
    app = tiny_app(tmp_path, tiny_flux)
    cards = app.settings.configs_dir / "models.yaml"
    given = cards.read_text() + f"  parts: {CARDS['flux1-dev'].parts.model_dump_json()}\n"
    hub = given.replace("tiny:", "hub:").replace(f"path: {tiny_flux}", "repository: example/hub")
    cards.write_text(given + hub.replace("Tiny FLUX", "Hub FLUX"))
    monkeypatch.setattr(app.planning, "_machine", lambda: machine(12))
    return app


@pytest.fixture
def page(app):
    settings = app.settings
    pictures = Pictures(folder=settings.cache_dir / "pictures", gallery=settings.images_dir)
    return Page(app=app, machine=Machine(device="cpu"), pictures=pictures)


@pytest.fixture
def view(page):
    return View(page)


def of_size(app, monkeypatch, size_gib):
    monkeypatch.setattr(app.planning, "_machine", lambda: machine(size_gib))


def test_the_plan_is_shown_with_its_share_of_the_memory_and_its_reasons(view):
    parts = view.parts(CHOICE, {}, "")
    plan = parts["estimate"]["plan"]
    assert plan["words"].startswith("8-bit weights, activations computed twice")
    assert (plan["total"], plan["fits"], plan["measured"]) == ("12 GB", True, False)
    assert 0 < plan["percent"] <= 100
    assert float(plan["peak"]) < 12
    assert plan["reasons"]
    assert parts["start"]
    assert parts["form"]["base"]["quantization"] == "int8"


def test_a_choice_that_does_not_fit_is_a_problem_and_cannot_be_started(view):
    form = {"overrides": {"quantization": "none", "streamed_blocks": "0"}}
    parts = view.parts(CHOICE, form, "")
    assert not parts["start"]
    assert not parts["estimate"]["plan"]["fits"]
    assert "does not fit" in parts["estimate"]["problems"][-2]
    assert "stands in the way" in parts["estimate"]["problems"][-1]


def test_the_recommended_model_comes_first_and_is_marked_but_one_that_is_here_is_chosen(view):
    models = view.parts(Choice("mira", "", ""), {}, "")["models"]
    assert models["choices"] == [("Hub FLUX · recommended here", "hub"), ("Tiny FLUX", "tiny")]
    assert models["value"] == "tiny"


def test_a_model_that_cannot_work_here_is_marked_and_comes_last(app, view, monkeypatch):
    of_size(app, monkeypatch, 2)
    parts = view.parts(CHOICE, {}, "")
    assert [label for label, _ in parts["models"]["choices"]] == [
        "Tiny FLUX · does not fit here", "Hub FLUX · does not fit here",
    ]  # fmt: skip
    assert not parts["start"]


def test_a_peak_that_was_measured_is_said_to_be(app, view, monkeypatch):
    spec = app.training.plan(character_id="mira", base_model="tiny", preset="quick", overrides={})
    seen = Peak(
        task=Task.TRAINING, model="tiny", device="12 GiB", settings=training_key(spec),
        expected_bytes=100, measured_bytes=100,
    )  # fmt: skip
    monkeypatch.setattr(app.planning, "_corrections", lambda: Corrections(peaks=(seen,)))
    estimate = view.parts(CHOICE, {}, "")["estimate"]
    assert estimate["plan"]["measured"]
    assert estimate["figures"][1]["origin"] == "measured: these settings on this machine"


def test_a_training_that_ran_out_of_memory_is_restarted_with_what_fits(app, page, view):
    job_id = submit_training(app)
    job = app.queue.claim("w", lease_s=60)
    app.queue.fail(job, JobError(code="out_of_memory", message="too big"))
    ways = view.parts(CHOICE, {}, "")["card"]["remedies"]
    assert ways[0]["label"].startswith("Restart with 8-bit weights")
    assert ways[0]["changes"]
    Actions(page).mend(job_id, 0)
    assert app.jobs.get(job_id).status is JobStatus.QUEUED
    spec = training_live.spec_of(app.jobs.get(job_id)).model_dump(mode="json")
    assert {name: spec[name] for name in ways[0]["changes"]} == ways[0]["changes"]


def test_an_image_shows_its_plan_near_the_size(page):
    line = image_fit.view(page, "tiny", 1024, 1024, 1)
    assert line["words"].startswith("4-bit weights")
    assert (line["fits"], line["total"]) == (True, "12 GB")


def test_an_image_that_does_not_fit_says_why(app, page, monkeypatch):
    of_size(app, monkeypatch, 2)
    line = image_fit.view(page, "tiny", 64, 64, 1)
    assert not line["fits"]
    assert "does not fit" in line["words"]
    assert image_fit.label(page, app.catalog.model("tiny"), ready=True) == "Tiny FLUX · does not fit here"


@pytest.mark.parametrize("given", [("", 64, 64, 1), ("nothing", 64, 64, 1), ("tiny", None, 64, 1)])
def test_while_a_value_makes_no_sense_no_plan_is_shown(page, given):
    assert image_fit.view(page, *given) == {}


def test_models_in_the_list_say_whether_they_are_here(page):
    card = page.app.catalog.model("tiny")
    assert image_fit.label(page, card, ready=True) == "Tiny FLUX"
    assert image_fit.label(page, card, ready=False) == "Tiny FLUX · not on this machine"


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_plan_has_words_in_both_languages(language):
    folder = WEB / "texts" / language
    said = {key for file in folder.glob("*.yaml") for key in yaml.safe_load(file.read_text(encoding="utf-8"))}
    for section, script in (("training", "training_estimate.js"), ("image", "image_fit.js")):
        keys = re.findall(r'"((?:plan|fit)\.\w+)"', (WEB / script).read_text(encoding="utf-8"))
        assert {f"{section}.say.{key}" for key in keys} <= said
