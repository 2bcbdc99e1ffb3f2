"""Several workers, as the page shows them: the header, the section, and jobs that run at the same time."""

import dataclasses
import re

import gradio as gr
import pytest
from pydantic import SecretStr

from isengard.domain.job import JobError, JobKind, Lane, Needs, Phase, Progress
from isengard.domain.memory import Kind, Machine
from isengard.domain.worker import GIB, WorkerState
from isengard.errors import QueueUnavailable
from isengard.queue.base import ALIVE_S
from isengard.services.machine import Machine as OwnMachine
from isengard.services.workers import WorkerService
from isengard.settings import WorkerMode
from tabs import image_live, status, training_workers
from tabs import page as whole_page
from tabs.common import WEB, Page, words
from tabs.fleet import fleet_of, summary, why_waiting
from tabs.pictures import Pictures
from tabs.training_setup import Choice
from tabs.training_view import View
from tests.clock import Clock
from tests.tiny_app import submit_training, tiny_app

CHOICE = Choice("mira", "tiny", "quick")


@pytest.fixture
def clock():
    return Clock(1_000_000.0)


@pytest.fixture
def page(tmp_path, tiny_flux, clock):
    app = tiny_app(tmp_path, tiny_flux)
    app.queue._clock = clock
    service = WorkerService(queue=app.queue, machine=app.machine.facts, shared=False, clock=clock)
    app = dataclasses.replace(app, workers=service)
    pictures = Pictures(folder=app.settings.cache_dir / "pictures", gallery=app.settings.images_dir)
    return Page(app=app, machine=OwnMachine(device="cpu"), pictures=pictures)


def with_settings(page, **changes):
    settings = page.app.settings.model_copy(update=changes)
    return dataclasses.replace(page, app=dataclasses.replace(page.app, settings=settings))


def announce(page, name, device="RTX 4090", *, models=("tiny",), **facts):
    memory = {
        "total_bytes": 24 * GIB,
        "free_bytes": 23 * GIB,
        "system_total_bytes": 0,
        "system_free_bytes": 0,
    }
    machine = Machine(kind=Kind.CUDA, name=device, **memory)
    given = {"free_bytes": 20 * GIB, "engines": ("native",), "models": models, **facts}
    return page.app.queue.announce(WorkerState(name=name, machine=machine, **given))


def train(page, worker, **progress):
    """A training that the worker runs."""
    job_id = submit_training(page.app)
    page.app.queue._clock.now += 1
    job = page.app.queue.claim(worker, lease_s=600)
    assert job.id == job_id
    if progress:
        report(page, job, phase=Phase.TRAINING, **progress)
    return job


def report(page, job, **progress):
    page.app.queue.heartbeat(job, lease_s=600, progress=Progress(**progress))


def generate(page, prompt, worker=None):
    """A generation; claimed, when a worker is named."""
    submitted = page.app.images.submit(
        page.app.images.plan(overrides={"prompt": prompt, "base_model": "tiny"})
    )
    page.app.queue._clock.now += 1
    job = page.app.queue.claim(worker, lease_s=600) if worker else submitted
    assert job.id == submitted.id
    return job


def fleet(page):
    return fleet_of(page, page.app.workers.workers(), page.app.jobs.jobs())


def parts(page, chosen=""):
    return View(page).parts(CHOICE, {}, chosen)


# The header


def test_with_one_worker_the_header_is_about_its_machine(page):
    before = summary(page, fleet(page))
    assert (before["device"].endswith("CPU"), before["fleet"]) == (True, None)
    announce(page, "pod-a/auto")
    assert summary(page, fleet(page)) == {"device": "RTX 4090", "memory": "4.0 / 24 GB", "fleet": None}


def test_with_several_workers_the_header_counts_and_names_them(page, clock):
    announce(page, "old/auto", "GTX 1080")
    clock.now += ALIVE_S
    announce(page, "pod-a/auto")
    announce(page, "pod-b/auto", "H100")
    train(page, "pod-b/auto")
    assert summary(page, fleet(page)) == {
        "device": "",
        "memory": "",
        "fleet": {
            "living": 2,
            "busy": 1,
            "silent": 1,
            "named": [
                ["pod-a", "RTX 4090", "idle"],
                ["pod-b", "H100", "busy"],
                ["old", "GTX 1080", "silent"],
            ],
        },
    }


def test_a_machine_that_once_had_another_name_is_one_machine(page, clock):
    announce(page, "container-1/auto")
    clock.now += ALIVE_S
    announce(page, "container-2/auto")
    assert summary(page, fleet(page))["fleet"] is None
    shared = with_settings(page, redis_url=SecretStr("redis://127.0.0.1"))
    assert summary(shared, fleet(shared))["fleet"]["silent"] == 1


def test_without_a_worker_the_header_says_so_where_the_page_starts_none(page):
    assert summary(page, fleet(page))["fleet"] is None
    alone = with_settings(page, worker=WorkerMode.NONE)
    assert summary(alone, fleet(alone))["fleet"] == {"living": 0, "busy": 0, "silent": 0, "named": []}


def test_the_header_says_that_the_job_list_is_away(page, monkeypatch):
    def fails(**_):
        raise QueueUnavailable("the server at 10.0.0.1 does not answer")

    monkeypatch.setattr(page.app.queue, "jobs", fails)
    answer = status.looker(page)()
    assert (answer["trouble"], answer["again_s"] > 0) == ("The server at 10.0.0.1 does not answer", True)
    assert image_live.watcher(page)() == {"job": ""}


def test_all_that_runs_moves_at_once(page):
    for number in range(3):
        announce(page, f"pod-{number}/auto")
    first, second = train(page, "pod-0/auto", step=3, total=6), train(page, "pod-1/auto")
    generate(page, "at sea", "pod-2/auto")
    look = status.looker(page)()
    assert [job["id"] for job in look["jobs"]] == [first.id, second.id]
    assert (look["more"], look["generating"]) == (1, True)
    assert look["jobs"][0]["where"] == "pod-0 · RTX 4090"
    assert {name: each["at"] for name, each in look["trainings"].items()} == {first.id: 3, second.id: None}


def test_a_long_queue_is_counted_as_far_as_it_was_looked_at(page, monkeypatch):
    monkeypatch.setattr(status, "LISTED", 2)
    for _ in range(3):
        submit_training(page.app)
    assert status.looker(page)()["queue"] == "2+ in queue"


def test_what_happens_to_a_worker_is_worth_painting(page, clock):
    look = status.looker(page)
    keys = [look()["key"]]
    announce(page, "pod-a/auto")
    keys.append(look()["key"])
    page.app.workers.drain("pod-a/auto")
    keys.append(look()["key"])
    clock.now += ALIVE_S
    keys.append(look()["key"])
    assert len(set(keys)) == 4


def test_workers_are_told_one_by_one_only_to_who_sees_them(page):
    announce(page, "pod-a/auto")
    look = status.looker(page)
    assert look({"workers": False})["workers"] is None
    assert look("nonsense")["workers"] is None
    (row,) = look({"workers": True})["workers"]
    assert row["worker"] == "pod-a/auto"


# The section


def test_each_worker_says_what_it_has_and_does(page, clock):
    announce(page, "old/auto")
    clock.now += 179
    for name in ("shelf/cuda:0", "shelf/cuda:1"):
        announce(page, name, warm="tiny")
    announce(page, "idle/auto")
    job = train(page, "shelf/cuda:0", step=3, total=6)
    for name in ("shelf/cuda:0", "idle/auto"):
        page.app.workers.drain(name)
    clock.now += 1
    rows = training_workers.rows(fleet(page), page.app.jobs.jobs(), clock=clock)
    assert [(row["name"], row["state"], row["ago_s"]) for row in rows] == [
        ("idle", "drained", 2),
        ("shelf/cuda:0", "draining", 2),
        ("shelf/cuda:1", "idle", 2),
        ("old", "silent", 181),
    ]
    busy, old = rows[1], rows[3]
    assert (busy["device"], busy["memory"], busy["used"], busy["warm"]) == (
        "RTX 4090",
        "4.0 / 24 GB",
        16,
        "tiny",
    )
    assert (busy["job"]["id"], busy["job"]["text"]) == (job.id, "Training Mira · 50 %")
    assert (old["memory"], old["job"]) == ("", None)


def test_the_section_knows_the_jobs_of_all_kinds(page):
    announce(page, "pod-a/auto")
    assert parts(page)["workers"]["rows"][0]["job"] is None
    generate(page, "at sea", "pod-a/auto")
    value = parts(page)["workers"]
    assert value["rows"][0]["job"]["kind"] == JobKind.GENERATE_IMAGES
    assert (value["titles"]["tiny"], value["shared"]) == ("Tiny FLUX", False)


class Event:
    def __init__(self, **told):
        self.__dict__ = told


def test_the_buttons_take_a_worker_out_of_service_and_back(page, clock):
    announce(page, "pod-a/auto")
    act = {
        name: training_workers._on_worker(getattr(page.app.workers, name))
        for name in ("drain", "take_jobs", "forget")
    }
    act["drain"](Event(worker="pod-a/auto"))
    assert page.app.workers.workers()[0].draining
    act["take_jobs"](Event(worker="pod-a/auto"))
    assert not page.app.workers.workers()[0].draining
    with pytest.raises(gr.Error, match="is alive"):
        act["forget"](Event(worker="pod-a/auto"))
    clock.now += ALIVE_S
    act["forget"](Event(worker="pod-a/auto"))
    assert page.app.workers.workers() == []
    with pytest.raises(gr.Error, match="there is no worker"):
        act["drain"](Event())


def test_every_word_of_the_scripts_is_written():
    for section, names in (
        ("workers", ("workers",)),
        ("header", ("status",)),
        ("training", ("training_others",)),
    ):
        written = {key.removeprefix(f"{section}.say.") for key in words(section)["en"]}
        for name in names:
            script = (WEB / f"{name}.js").read_text(encoding="utf-8")
            used = set(re.findall(r'(?:say|button)\((?:[^()"]*\? )?"([a-z._]+)"', script))
            assert used
            assert {word for word in used if not word.endswith(".")} <= written


# Where a job ran, and why it waits


def test_one_machine_is_not_named(page):
    announce(page, "pod-a/auto")
    job = train(page, "pod-a/auto")
    assert fleet(page).where(page.app.jobs.get(job.id)) == ""
    assert parts(page)["card"]["where"] == ""


def test_a_job_says_on_which_of_several_machines_it_ran(page):
    announce(page, "pod-a/auto")
    announce(page, "pod-b/auto", "H100")
    job = train(page, "pod-b/auto")
    assert parts(page)["card"]["where"] == "pod-b · H100"
    page.app.queue.fail(job, JobError(code="x", message="y"))
    assert parts(page)["history"][0]["where"] == "pod-b · H100"


def test_a_worker_that_has_left_a_shared_queue_is_still_named(page):
    page = with_settings(page, redis_url=SecretStr("redis://127.0.0.1"))
    announce(page, "pod-a/auto")
    announce(page, "pod-b/auto")
    job = train(page, "pod-b/auto")
    page.app.queue.leave("pod-b/auto")
    assert fleet(page).where(page.app.jobs.get(job.id)) == "pod-b"


def test_a_job_that_nobody_can_run_says_why_wherever_it_waits(page):
    announce(page, "pod-a/auto")
    payload = train(page, "pod-a/auto").payload
    page.app.queue.enqueue(JobKind.TRAIN_LORA, payload, needs=Needs(model="flux1-dev"))
    spec = generate(page, "at sea").payload
    page.app.queue.enqueue(
        JobKind.GENERATE_IMAGES, spec, lane=Lane.INTERACTIVE, needs=Needs(model="flux1-dev")
    )
    why = "No running worker has the model 'flux1-dev' on its disk"
    (waits,) = parts(page)["queue"]
    assert waits["why"].startswith(why)
    assert parts(page, waits["job"])["card"]["said"].startswith(why)
    (stuck,) = image_live.stage(page)["waiting"]
    assert stuck["why"].startswith(why)
    page.app.jobs.cancel(image_live.stage(page)["job"])
    assert image_live.stage(page)["note"].startswith(why)


def test_a_page_that_starts_its_worker_does_not_miss_it(page):
    job = page.app.jobs.get(submit_training(page.app))
    assert why_waiting(page)(job) == ""
    assert why_waiting(with_settings(page, worker=WorkerMode.NONE))(job).startswith("No worker is running")


# Several at once


def test_trainings_beside_the_one_that_is_shown_are_rows(page):
    for name in ("pod-a/auto", "pod-b/auto"):
        announce(page, name)
    first, second = train(page, "pod-a/auto"), train(page, "pod-b/auto", step=3, total=6)
    shown = parts(page)
    assert (shown["card"]["job"], [row["job"] for row in shown["others"]]) == (first.id, [second.id])
    assert (shown["others"][0]["figures"]["at"], shown["others"][0]["where"]) == (3, "pod-b · RTX 4090")
    shown = parts(page, second.id)
    assert (shown["card"]["job"], [row["job"] for row in shown["others"]]) == (second.id, [first.id])
    assert not shown["latest"]


def test_a_job_in_the_header_leads_to_where_it_is_shown():
    strip, chosen = whole_page._job_opener(None)(Event(job="ab12", kind="train_lora"))
    assert (strip.selected, chosen) == ("training", "ab12")
    assert whole_page._job_opener(None)(Event(job="ab12", kind="generate_images"))[0].selected == "image"


def test_generations_beside_the_first_are_rows_that_move(page):
    for name in ("pod-a/auto", "pod-b/auto"):
        announce(page, name)
    first, second = generate(page, "at sea", "pod-a/auto"), generate(page, "in a forest", "pod-b/auto")
    report(page, second, phase=Phase.GENERATING, step=1, total=2)
    shown = image_live.stage(page)
    assert (shown["job"], shown["where"]) == (first.id, "pod-a · RTX 4090")
    assert shown["others"] == [
        {"id": second.id, "prompt": "in a forest", "percent": 50, "steps": "step 1 of 2"}
    ]
    assert image_live.watcher(page)()["others"] == {second.id: {"percent": 50, "steps": "step 1 of 2"}}
    assert image_live.still(shown)["others"] == [second.id]


def test_which_of_several_trainings_makes_room_is_not_guessed(page):
    announce(page, "pod-a/auto")
    train(page, "pod-a/auto")
    generate(page, "at sea")
    assert image_live.stage(page)["note"].startswith("The training of Mira saves its state")
    announce(page, "pod-b/auto")
    assert image_live.stage(page)["note"] == ""


def test_a_training_that_made_room_on_one_of_several_workers_is_named(page):
    for name in ("pod-a/auto", "pod-b/auto"):
        announce(page, name)
    train(page, "pod-a/auto")
    yielding = train(page, "pod-b/auto")
    generate(page, "at sea")
    page.app.queue.release(yielding, reason="made room")
    page.app.queue.claim("pod-b/auto", lease_s=600)
    assert image_live.stage(page)["note"] == "The training of Mira is saved and waits; it goes on by itself."
