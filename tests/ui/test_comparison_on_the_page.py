"""Choosing the checkpoint on the training tab: what it shows of a comparison, and what its buttons do."""

import re
import shutil

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from isengard.domain import comparison
from isengard.domain.evaluation import Fault, Reference, Shot, evaluate
from isengard.domain.identity import ScorerKind
from isengard.domain.job import JobError, JobKind, JobStatus, Phase, Progress
from isengard.services.examples import example
from isengard.services.machine import Machine
from isengard.settings import ASSETS, Settings
from isengard.store.comparisons import Comparisons
from isengard.wiring import build, loras_of
from tabs import page as whole_page
from tabs import pod, progress, status, training, training_compare
from tabs.common import WEB, Page, words
from tabs.image import ImageTab
from tabs.image_form import FIELDS
from tabs.image_layout import NEVER
from tabs.pictures import Pictures
from tabs.training_setup import Choice
from tabs.training_view import View
from tests.tiny_app import submit_training, tiny_app
from tests.ui.camera import Camera
from tests.ui.chromium import chromium, new_view
from tests.ui.conftest import running_page

STEPS = (50, 100, 150)
#: Mean cosine of the pictures: each step is better, and the last one no better than the one before.
MEANS = {50: 0.35, 100: 0.71, 150: 0.712}


def train(app, run):
    """End a training that waits, with checkpoints and a LoRA; their files are of no use to a model."""
    app.queue.succeed(app.queue.claim("w", lease_s=60), {"lora": run, "steps": STEPS[-1]})
    folder = app.jobs.run_dir(run) / "checkpoints"
    for step in STEPS:
        (folder / f"step-{step:08d}").mkdir(parents=True)
        (folder / f"step-{step:08d}" / "lora.safetensors").write_bytes(b"weights")
    spec = app.jobs.get(run).payload["spec"]
    loras_of(app.settings).add(
        lora_id=run,
        name="Someone",
        character=spec["character"],
        trigger=spec["trigger"],
        class_word=spec["class_word"],
        base_model=spec["base_model"],
        steps=STEPS[-1],
        source=folder / f"step-{STEPS[-1]:08d}" / "lora.safetensors",
        details={},
    )
    return run


def shots(spec, mean, *, of=0, **changes):
    keys = [(prompt, seed) for prompt in range(len(spec.prompts)) for seed in spec.seeds]
    noise = np.random.default_rng(of).normal(0, 0.03, len(keys))
    known = {"nearest": 0.3, "variety": 0.4, "spread": 0.5, "change": 0.3}
    return tuple(
        Shot(prompt=prompt, seed=seed, likeness=mean + each - noise.mean(), **known | changes)
        for (prompt, seed), each in zip(keys, noise, strict=True)
    )


def compare(
    app, run, *, means=MEANS, ceiling=(0.78, 0.8, 0.82, 0.8), faulty=(0.8,), adherence=0.3, **changes
):
    """Keep what a comparison leaves behind, but its pictures; a strength of ``faulty`` copies photos."""
    spec = app.comparison.plan(run, **changes)
    tested = [
        comparison.Tested(
            candidate=candidate,
            adherence=0.24,
            shots=shots(
                spec,
                means[candidate.step] - 0.3 * abs(1 - candidate.strength),
                of=candidate.step,
                nearest=0.95 if candidate.strength in faulty else 0.3,
            ),
        )
        for candidate in spec.candidates
        if candidate.step in means
    ]
    reference = Reference(ceiling=ceiling, twins=0.8, floor=shots(spec, 0.1))
    Comparisons(app.settings.runs_dir).write(
        comparison.Comparison(
            spec=spec,
            scorer=ScorerKind.DRAWN_FIGURES,
            reference=reference,
            tested=tuple(tested),
            adherence=adherence,
            verdict=evaluate(reference, {one.candidate: one.shots for one in tested}),
            complete=len(tested) == len(spec.candidates),
            made_at=1.0,
        )
    )
    return spec


def draw(app, spec):
    """Keep the pictures of a comparison, each of one colour."""
    kept = Comparisons(app.settings.runs_dir)
    for candidate in (None, *spec.candidates):
        shade = 90 if candidate is None else candidate.step
        for prompt in range(len(spec.prompts)):
            for seed in spec.seeds:
                picture = Image.new("RGB", (64, 64), (shade, 25 * prompt, 9 * seed))
                kept.keep(picture, kept.picture(spec, candidate, prompt=prompt, seed=seed))


@pytest.fixture
def page(tmp_path, tiny_flux):
    app = tiny_app(tmp_path, tiny_flux)
    pictures = Pictures(folder=app.settings.pictures_dir, gallery=app.settings.images_dir)
    return Page(app=app, machine=Machine(device="cpu"), pictures=pictures)


@pytest.fixture
def app(page):
    return page.app


@pytest.fixture
def run(app):
    return train(app, submit_training(app))


@pytest.fixture
def value(page):
    view = View(page)
    return lambda: view.parts(Choice("mira", "tiny", "quick"), {}, "")["compare"]


class Event:
    def __init__(self, **told):
        self.__dict__ = told


@pytest.fixture
def act(page, monkeypatch):
    monkeypatch.setattr(training_compare, "asked_by", lambda _request: "here")
    with gr.Blocks() as demo:
        training.build(page)
    known = {each.name: each.fn for each in demo.fns.values() if each.fn}
    return lambda name, *more, **told: known[name](Event(**told), *more)


# What is shown


def test_without_a_checkpoint_there_is_nothing_to_compare(app, value):
    assert value() == {"run": ""}
    submit_training(app)
    assert value() == {"run": ""}


def test_a_training_that_is_done_offers_a_comparison_of_its_checkpoints(run, value):
    shown = value()
    assert (shown["run"], shown["job"], shown["result"], shown["usable"]) == (run, None, None, True)
    assert shown["offer"] == {
        "steps": [50, 100, 150],
        "strengths": [0.6, 0.8, 1.0, 1.2],
        "chosen": {"steps": [50, 100, 150], "strengths": [1.0, 0.8]},
        "each": 16,
        "seconds": None,
        "refused": "",
    }


def test_a_training_at_work_is_not_compared_before_it_has_ended(app, value):
    run = submit_training(app)
    (app.jobs.run_dir(run) / "checkpoints" / "step-00000050").mkdir(parents=True)
    assert value()["offer"] is None


def test_a_comparison_that_cannot_be_planned_says_why(app, run, value):
    app.characters.delete("mira")
    assert "there is no character" in value()["offer"]["refused"]


def test_the_offer_says_how_long_a_picture_takes_where_that_was_measured(app, run, value):
    spec = app.comparison.plan(run)
    app.comparison.submit(spec)
    job = app.queue.claim("w", lease_s=60)
    told = Progress(phase=Phase.GENERATING, step=4, total=400, steps_per_s=4.0)
    app.queue.heartbeat(job, lease_s=60, progress=told)
    app.queue.fail(job, JobError(code="disk_full", message="no room"))
    shown = value()
    assert shown["offer"]["seconds"] == pytest.approx(spec.num_inference_steps / 4)
    assert (shown["job"]["error"], shown["job"]["active"]) == ("no room", False)


def test_a_comparison_is_planned_anew_only_when_something_has_changed(app, run, value, monkeypatch):
    value()
    monkeypatch.setattr(app.comparison, "plan", lambda _run: pytest.fail("planned again"))
    assert value()["offer"]["each"] == 16


def test_the_run_that_was_compared_last_is_shown_again_after_a_reload(app, run, value):
    later = train(app, submit_training(app))
    assert value()["run"] == later
    app.comparison.submit(app.comparison.plan(run))
    assert value()["run"] == run
    submit_training(app)
    assert value()["run"] != run


def test_the_result_names_the_earliest_of_the_best_and_what_is_wrong_with_the_others(app, run, value):
    compare(app, run)
    result = value()["result"]
    assert (result["finding"], result["best"], result["partial"]) == ("earliest", 150, False)
    assert result["recommended"] == {"step": 100, "strength": 1.0}
    assert (result["floor"], result["ceiling"]) == (0.1, 0.8)
    rows = {(row["step"], row["strength"]): row for row in result["rows"]}
    assert rows[100, 1.0]["low"] < rows[100, 1.0]["value"] < rows[100, 1.0]["high"]
    assert (rows[100, 0.8]["faults"], rows[100, 0.8]["copied"]) == ([Fault.COPYING], 1.0)


@pytest.mark.parametrize(("adherence", "followed"), [(0.3, 0.8), (None, None)])
def test_how_well_prompts_are_followed_is_said_where_somebody_knows(app, run, value, adherence, followed):
    compare(app, run, adherence=adherence)
    rows = value()["result"]["rows"]
    assert [row["followed"] for row in rows] == [followed and pytest.approx(followed)] * len(rows)


@pytest.mark.parametrize(
    ("finding", "changes"),
    [
        ("best", {"means": {50: 0.3, 100: 0.4, 150: 0.7}}),
        ("tie", {"means": dict.fromkeys(STEPS, 0.7), "strengths": [1.0]}),
        ("faulty", {"faulty": (1.0, 0.8)}),
        ("unknown", {"ceiling": (0.8, 0.8)}),
    ],
)
def test_each_verdict_has_a_sentence_of_its_own(app, run, value, finding, changes):
    compare(app, run, **changes)
    assert value()["result"]["finding"] == finding
    assert f"finding.{finding}" in {key.removeprefix("compare.say.") for key in words("compare")["de"]}


def test_an_unfinished_comparison_is_offered_as_it_was(app, run, value):
    compare(app, run, means={50: 0.35}, steps=[50, 100], strengths=[0.7])
    offer = value()["offer"]
    assert offer["chosen"] == {"steps": [50, 100], "strengths": [0.7]}
    assert 0.7 in offer["strengths"]
    shutil.rmtree(app.jobs.run_dir(run) / "checkpoints" / "step-00000100")
    assert value()["offer"]["chosen"] == {"steps": [50, 150], "strengths": [1.0, 0.8]}


def test_what_is_known_so_far_is_shown_and_said_to_be_in_part(app, run, value):
    compare(app, run, means={50: 0.35})
    result = value()["result"]
    assert (result["partial"], len(result["rows"])) == (True, 2)


def test_a_checkpoint_that_is_gone_is_said_to_be_gone(app, run, value):
    compare(app, run)
    shutil.rmtree(app.jobs.run_dir(run) / "checkpoints" / "step-00000100")
    gone = {row["step"]: row["gone"] for row in value()["result"]["rows"]}
    assert gone == {50: False, 100: True, 150: False}


def test_without_its_lora_a_run_cannot_be_used_for_images(app, run, value):
    compare(app, run)
    app.images.remove_lora(run)
    assert not value()["usable"]


# What the buttons do


def test_a_comparison_of_what_was_chosen_is_enqueued_and_can_be_cancelled(app, run, value, act):
    act("compare", None, run=run, steps=[50, 150], strengths=[1, 0.6])
    job = app.comparison.job_of(run)
    assert job.payload["spec"]["steps"] == [50, 150]
    assert job.payload["spec"]["strengths"] == [1.0, 0.6]
    assert (value()["job"]["status"], value()["job"]["pictures"]) == (JobStatus.QUEUED, 80)
    with pytest.raises(gr.Error, match="compared already"):
        act("compare", None, run=run, steps=[50], strengths=[1])
    app.jobs.pause(job.id)
    act("resume_comparison", job=job.id)
    assert app.jobs.get(job.id).status is JobStatus.QUEUED
    act("cancel_comparison", job=job.id)
    assert not value()["job"]["active"]


@pytest.mark.parametrize("told", [{}, {"run": "nobody"}, {"steps": "x", "strengths": None}])
def test_an_event_that_asks_for_nonsense_is_refused(act, run, told):
    with pytest.raises(gr.Error):
        act("compare", None, **{"run": run, **told})


def test_a_checkpoint_is_pinned_and_let_go(run, app, value, act):
    compare(app, run)
    act("pin_checkpoint", run=run, step=100, pinned=True)
    assert [row["step"] for row in value()["result"]["rows"] if row["pinned"]] == [100, 100]
    act("pin_checkpoint", run=run, step=100, pinned=False)
    assert not any(row["pinned"] for row in value()["result"]["rows"])
    with pytest.raises(gr.Error, match="step"):
        act("pin_checkpoint", run=run, step="../..", pinned=True)


def test_the_pictures_of_a_candidate_come_with_their_likeness_and_those_of_the_base_model(
    page, app, run, value
):
    spec = compare(app, run, steps=[100], strengths=[1.0])
    assert value()["result"]["rows"][0]["small"] == ""
    draw(app, spec)
    assert value()["result"]["rows"][0]["small"].endswith(".webp")
    rows = training_compare.picturing(page)({"run": run, "step": 100, "strength": 1.0})["rows"]
    assert [row["prompt"] for row in rows] == list(spec.prompts)
    (first, second) = rows[0]["cells"]
    assert (first["seed"], second["seed"]) == spec.seeds
    assert 0.6 < first["likeness"] < 0.8
    assert all(
        cell[name].endswith(".webp") for cell in (first, second) for name in ("small", "whole", "base")
    )
    assert first["base"] != first["whole"]


@pytest.mark.parametrize(
    ("given", "words_said"),
    [
        (None, "valid dictionary"),
        ({"run": "x"}, "step is missing"),
        ({"run": "../x", "step": 1, "strength": 1}, "was not compared"),
        ({"step": 51, "strength": 1}, "was not compared"),
    ],
)
def test_pictures_that_are_not_there_are_refused_in_words(page, app, run, given, words_said):
    compare(app, run)
    asked = {"run": run, **given} if given and "step" in given else given
    assert words_said in training_compare.picturing(page)(asked)["error"]


# The image form


@pytest.fixture
def fill(page):
    """Choose a checkpoint; returns the form's fields. ``filled``: for whom the form was filled before."""
    with gr.Blocks():
        tab = ImageTab(page)
    handlers = []
    tab.tab().takes(lambda handler, *_rest, **_options: handlers.append(handler))

    def filled_with(*, filled=NEVER, typed=None, **told):
        given = {**dict.fromkeys(tab.parts.fields.values()), tab.parts.filled: filled}
        given |= {tab.parts.fields[name]: value for name, value in (typed or {}).items()}
        painted = handlers[0](given, Event(**told))
        return {name: painted[field] for name, field in tab.parts.fields.items()}

    return filled_with


@pytest.mark.parametrize(("step", "key"), [(100, "{0}@100"), (150, "{0}")])
def test_a_chosen_checkpoint_is_in_the_form_of_images_with_its_strength(fill, run, step, key):
    form = fill(run=run, step=step, strength=0.8, draft=None)
    assert form["lora"].value == key.format(run)
    assert (form["strength"].value, form["base_model"].value) == (0.8, "tiny")


def test_what_was_typed_stays_when_a_checkpoint_is_chosen(fill, run):
    typed = {"prompt": "at sea", "base_model": "tiny", "strength": 0.5}
    assert fill(filled="", typed=typed, run=run, step=100, strength=1.0)["prompt"] == "at sea"


def test_what_this_browser_kept_of_the_form_stays_when_a_checkpoint_is_chosen(fill, run):
    known = fill(run=run, step=100, strength=1.0)
    draft = [getattr(field, "value", field) for field in known.values()]
    draft[FIELDS.index("prompt")] = "at sea"
    assert fill(run=run, step=100, strength=1.0, draft=draft)["prompt"] == "at sea"


@pytest.mark.parametrize(("step", "strength"), [(75, 1.0), (None, 1.0), (100, None), (100, "strong")])
def test_a_checkpoint_that_is_not_there_is_not_put_into_the_form(fill, run, step, strength):
    with pytest.raises(gr.Error):
        fill(run=run, step=step, strength=strength)


# The header


def test_the_header_tells_of_a_comparison_and_leads_to_its_training(page, app, run):
    job = app.comparison.submit(app.comparison.plan(run))
    app.queue.heartbeat(
        app.queue.claim("w", lease_s=60),
        lease_s=60,
        progress=Progress(phase=Phase.GENERATING, step=28, total=224, eta_s=70),
    )
    look = status.looker(page)()
    assert look["jobs"][0]["text"] == "Comparing checkpoints of Mira · 12 % · 1 min 10 s left"
    told = look["comparisons"][job.id]
    assert (told["done"], told["pictures"], told["percent"], told["left"]) == (14, 112, 12, "1 min 10 s")
    assert not look["generating"]
    strip, chosen = whole_page._job_opener(page)(Event(job=job.id, kind="evaluate_checkpoints"))
    assert (strip.selected, chosen) == ("training", run)


def test_the_page_is_painted_anew_with_each_candidate_and_not_with_each_picture(page, app, run):
    app.comparison.submit(app.comparison.plan(run))
    job = app.queue.claim("w", lease_s=60)
    look, keys = status.looker(page), []
    for message in (
        "step 50 at 1: picture 1 of 9",
        "step 50 at 1: picture 2 of 9",
        "step 100 at 1: picture 3 of 9",
    ):
        told = Progress(phase=Phase.GENERATING, step=1, total=9, message=message)
        app.queue.heartbeat(job, lease_s=60, progress=told)
        keys.append(look()["key"])
    assert keys[0] == keys[1] != keys[2]


def test_a_comparison_whose_record_cannot_be_read_does_not_hide_the_page(app):
    job = app.queue.enqueue(JobKind.EVALUATE_CHECKPOINTS, {"spec": {"run": "r", "of": "another time"}})
    assert progress.comparing(job)["pictures"] == 0


def test_the_browser_tells_that_checkpoints_are_compared(page, app, run):
    app.comparison.submit(app.comparison.plan(run))
    app.queue.succeed(app.queue.claim("w", lease_s=60), {})
    assert pod.ended(page)[0]["what"] == "comparison"
    for language in ("en", "de"):
        assert {"bell.say.comparison.done", "bell.say.comparison.failed"} <= words("bell")[language].keys()


def test_every_word_of_the_script_is_written_in_both_languages():
    script = (WEB / "compare.js").read_text(encoding="utf-8")
    template = (WEB / "compare.html").read_text(encoding="utf-8")
    used = {word for word in re.findall(r'say\("([a-z.]+)"', script) if not word.endswith(".")}
    used |= set(re.findall(r'data-(?:say|label)="([\w.]+)"', template))
    columns = ("checkpoint", "likeness", "faceless", "copied", "variety", "spread", "followed", "faults")
    used |= {f"{part}.{column}" for part in ("head", "hint") for column in columns}
    used |= {f"{part}.{fault}" for part in ("fault", "why") for fault in Fault}
    used |= {f"state.{state}" for state in ("queued", "running", "starting", "paused")}
    used |= {f"scorer.{kind}" for kind in ScorerKind}
    for language in ("en", "de"):
        written = {key.removeprefix("compare.say.") for key in words("compare")[language]}
        assert used <= written
    assert len(used) > 50


# In the browser


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A page without a worker, on a training whose checkpoints were compared."""
    data = tmp_path_factory.mktemp("compared") / "data"
    app = build(Settings(data_dir=data, device="cpu"))
    nova = example(app.characters, ASSETS / "characters" / "nova")
    run = app.training.submit(character_id=nova.id, base_model="demo", preset="quick", overrides={}).id
    draw(app, compare(app, train(app, run)))
    with running_page(data, "--worker", "none", "--device", "cpu") as page, chromium() as browser:
        yield app, run, page, browser


def opened(running, language):
    view = new_view(running[3], locale=language)
    view.goto(f"{running[2].url}/?tab=training")
    return view, view.locator("#training-compare")


def test_the_numbers_and_pictures_of_a_comparison_lead_to_images_with_the_chosen_checkpoint(
    running, tmp_path
):
    view, section = opened(running, "en-US")
    expect(section.locator(".hint")).to_contain_text("Measured on drawn figures. 0 %: as like")
    expect(section.locator(".words")).to_have_text(
        "Use step 100 at strength 1: it is the earliest that cannot be told from the best one, step 150."
    )
    row = section.locator("tr", has_text="Step 100, strength 1").first
    expect(row).to_contain_text("Recommended")
    section.get_by_role("button", name="Keep the checkpoint at step 100", exact=True).first.click()
    expect(row).to_contain_text("Pinned")
    view.reload()
    expect(row).to_contain_text("Pinned")
    section.get_by_role("button", name="Pictures of: Step 100, strength 1", exact=True).click()
    expect(section.locator(".pictures img")).to_have_count(16)
    section.scroll_into_view_if_needed()
    camera = Camera(tmp_path / "screenshots")
    camera.shoot(view, "compared")
    assert camera.problems == []
    section.locator(".pictures .strip button").first.click()
    expect(section.locator("dialog img")).to_have_count(2)
    section.get_by_role("button", name="Close", exact=True).click()
    section.get_by_role("button", name="Use this one").click()
    expect(view.get_by_role("tab", name="Image", exact=True).first).to_have_attribute("aria-selected", "true")
    expect(view.locator("#image-lora input")).to_have_value(re.compile("at step 100"))
    expect(view.locator("#image:not([inert])")).to_be_visible()
    expect(view.locator("#image-character input")).to_have_value("Nova")


def test_a_comparison_is_asked_for_and_cancelled_in_the_language_of_the_browser(running):
    app, run = running[:2]
    _view, section = opened(running, "de-DE")
    section.get_by_text("Was verglichen wird").click()
    section.get_by_role("checkbox", name="0,8").uncheck()
    expect(section.locator(".cost")).to_contain_text("3 Kandidaten und das Basismodell: 64 Bilder")
    section.get_by_role("button", name="Noch einmal vergleichen").click()
    expect(section.locator(".said")).to_have_text("Wartet auf einen Worker")
    assert app.comparison.job_of(run).payload["spec"]["strengths"] == [1.0]
    section.get_by_role("button", name="Abbrechen").click()
    expect(section.get_by_role("button", name="Noch einmal vergleichen")).to_be_visible()
