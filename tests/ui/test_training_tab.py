"""The training tab without a browser: what it shows, and what its buttons do to the queue."""

import json
import re
from types import SimpleNamespace

import gradio as gr
import pytest
import yaml
from starlette.applications import Starlette
from starlette.testclient import TestClient

from isengard.domain.job import JobError, JobKind, JobStatus, Lane, Phase, Progress, Stop
from isengard.domain.presets import IDENTITY_FIELDS
from isengard.domain.training import TrainingSpec
from isengard.errors import Conflict, InvalidSpec, NotFound
from isengard.services.machine import Machine
from isengard.store.artifacts import Loras
from tabs import training, training_fields, training_lists, training_live
from tabs.common import WEB, Page, words
from tabs.http import files
from tabs.pictures import Pictures
from tabs.progress import figures
from tabs.training_actions import Actions
from tabs.training_setup import Choice
from tabs.training_view import View, filled
from tests.tiny_app import submit_training, tiny_app

CHOICE = Choice("mira", "tiny", "quick")
NAMES = {"titles": {"tiny": "Tiny FLUX"}, "presets": {"quick": "Quick"}}


@pytest.fixture
def app(tmp_path, tiny_flux):
    return tiny_app(tmp_path, tiny_flux)


@pytest.fixture
def page(app):
    settings = app.settings
    pictures = Pictures(folder=settings.cache_dir / "pictures", gallery=settings.images_dir)
    return Page(app=app, machine=Machine(device="cpu"), pictures=pictures)


@pytest.fixture
def actions(page):
    return Actions(page)


@pytest.fixture
def view(page):
    return View(page)


def claim(app):
    job = app.queue.claim("w", lease_s=60)
    app.queue.heartbeat(
        job,
        lease_s=60,
        progress=Progress(phase=Phase.TRAINING, step=2, total=6, loss=0.5, steps_per_s=4.0, eta_s=9),
    )
    return job


def ended(app, how, **options):
    """A training that ended: ``succeeded``, ``failed`` with a code, or ``cancelled``."""
    job_id = submit_training(app, **options.pop("overrides", {}))
    job = claim(app)
    if how == "succeeded":
        losses = [[0, 0.5], [3, 0.3], [6, 0.4]]
        app.queue.succeed(job, {"steps": 6, "validation_losses": losses, "best_step": 6})
    elif how == "cancelled":
        app.jobs.cancel(job_id)
        app.queue.stopped(job)
    else:
        app.queue.fail(job, JobError(code=how, message="in plain words"))
    return job_id


def card_of(app, job_id, **options):
    return training_live.card(app.jobs.get(job_id), **NAMES, **options)


# The form


def test_the_form_has_every_setting_but_those_the_choices_make():
    in_form = [name for names in training_fields.GROUPS.values() for name in names]
    assert sorted(in_form) == sorted(set(TrainingSpec.model_fields) - IDENTITY_FIELDS)


@pytest.mark.parametrize("name", sorted(set(TrainingSpec.model_fields) - IDENTITY_FIELDS))
def test_every_setting_is_explained(name):
    field = training_fields.describe(name, ("native",))
    assert field["explain"]
    assert field["kind"] in {"number", "numbers", "lines", "text", "switch", "choice"}
    assert bool(field["choices"]) == (field["kind"] == "choice")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("steps", "1 to 100,000 steps"),
        ("learning_rate", "above 0, at most 10"),
        ("ema_decay", "0 to below 1"),
        ("seed", "0 to 4,294,967,295"),
        ("save_every", "1 or more steps"),
        ("resolutions", "64 to 2,048 pixels, in steps of 16"),
        ("flip", ""),
    ],
)
def test_ranges_are_said_in_words(name, words):
    assert training_fields.describe(name)["range"] == words


def test_the_form_shows_a_spec_and_gives_it_back(app):
    spec = app.training.plan(character_id="mira", base_model="tiny", preset="quick", overrides={})
    shown = training_fields.values(spec)
    changes = training_fields.overrides({"overrides": shown})
    again = app.training.plan(character_id="mira", base_model="tiny", preset="quick", overrides=changes)
    assert again == spec


def test_lists_are_read_from_lines_and_commas():
    given = {"resolutions": "64, 128", "sample_prompts": " one \n\n two, more"}
    assert training_fields.overrides({"overrides": given}) == {
        "resolutions": ["64", "128"],
        "sample_prompts": ["one", "two, more"],
    }


@pytest.mark.parametrize("form", [None, "", {}, {"overrides": "no"}, [1]])
def test_a_strange_form_changes_nothing(form):
    assert training_fields.overrides(form) == {}


# The live card


def test_without_a_training_the_card_is_empty():
    assert training_live.card(None, **NAMES) == {"job": ""}
    assert not any(training_live.can(None).values())


def test_a_waiting_training_says_how_many_are_before_it(app):
    job_id = submit_training(app)
    assert card_of(app, job_id, ahead=2)["said"] == "2 before it"
    assert card_of(app, job_id)["badge"] == "Waiting"
    can = training_live.can(app.jobs.get(job_id))
    assert can == {"cancel": True, "pause": True, "resume": False, "save": False, "sample": False}


def test_a_running_training_shows_its_figures(app):
    job_id = submit_training(app)
    claim(app)
    card = card_of(app, job_id, last_step=2)
    assert (card["badge"], card["title"]) == ("Running", "Mira")
    assert card["about"] == "Tiny FLUX · Quick · 6 steps · rank 4 · 64 px"
    said = card["figures"]
    assert (said["at"], said["steps"], said["loss"], said["speed"], said["left"]) == (2, 6, 0.5, 4.0, "9 s")
    can = training_live.can(app.jobs.get(job_id))
    assert can == {"cancel": True, "pause": True, "resume": False, "save": True, "sample": True}


def test_a_pausing_training_can_be_resumed_and_nothing_else_but_cancelled(app):
    job_id = submit_training(app)
    claim(app)
    job = app.jobs.pause(job_id)
    assert job.stop is Stop.PAUSE
    can = training_live.can(job)
    assert can == {"cancel": True, "pause": False, "resume": True, "save": False, "sample": False}
    assert card_of(app, job_id)["said"] == "Pausing: it saves first"


def test_a_training_being_cancelled_cannot_be_steered(app):
    job_id = submit_training(app)
    claim(app)
    assert not any(training_live.can(app.jobs.cancel(job_id)).values())


def test_a_paused_training_can_be_resumed(app):
    job_id = submit_training(app)
    app.jobs.pause(job_id)
    assert card_of(app, job_id)["badge"] == "Paused"
    assert training_live.can(app.jobs.get(job_id))["resume"]


def test_a_succeeded_training_says_what_it_reached(app):
    card = card_of(app, ended(app, "succeeded"))
    assert card["result"] == "6 steps, lowest validation loss 0.3000 at step 3 (base model 0.5000)"
    assert (card["badge"], card["remedies"], card["error"]) == ("Done", [], "")


def test_a_failed_training_says_why_and_how_to_mend_it(app):
    card = card_of(app, ended(app, "training_failed"), checkpoints=(2, 4))
    assert (card["badge"], card["error"]) == ("Failed", "in plain words")
    assert card["remedies"] == [{"label": "Retry from step 4", "changes": {}}]


def test_too_little_memory_is_mended_by_smaller_settings(app):
    ways = card_of(app, ended(app, "out_of_memory"))["remedies"]
    assert [way["label"] for way in ways] == [
        "Retry with gradient checkpointing",
        "Retry with batch size 1",
        "Retry from the start",
    ]
    assert ways[1]["changes"] == {"batch_size": 1, "gradient_accumulation_steps": 2}


def test_a_cancelled_training_can_be_continued(app):
    card = card_of(app, ended(app, "cancelled"), checkpoints=(2,))
    assert (card["badge"], card["remedies"][0]["label"]) == ("Cancelled", "Continue from step 2")


def test_figures_of_an_aside_do_not_pretend_to_be_steps(app):
    submit_training(app)
    job = app.queue.claim("w", lease_s=60)
    app.queue.heartbeat(
        job, lease_s=60, progress=Progress(phase=Phase.SAMPLING, step=3, total=20, message="sample 1")
    )
    said = figures(app.jobs.get(job.id))
    assert (said["at"], said["part"], said["phase"], said["message"]) == (
        None,
        [3, 20],
        "making samples",
        "sample 1",
    )


# Chart, samples, log


def test_the_chart_has_raw_smoothed_and_validation_points():
    rows = [{"step": 0, "validation_loss": 0.9}, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.0}]
    curves = training_live.curves(rows, 10)
    assert curves["validation"] == [[0, 0.9]]
    assert curves["loss"] == [[1, 1.0], [2, 0.0]]
    assert curves["smooth"] == [[1, 1.0], [2, 0.95]]


def test_a_long_run_sends_few_points_and_the_last_one():
    points = training_live.thinned([(step, 0.5) for step in range(10_001)])
    assert len(points) <= training_live.POINTS + 1
    assert points[-1] == [10_000, 0.5]


def test_samples_are_rows_of_prompts_and_columns_of_steps(training_spec):
    pictures = {(0, 0): ("a", "A"), (3, 0): ("b", "B"), (3, 1): ("c", "C")}
    rows = training_live.sample_grid(training_spec, pictures)["rows"]
    assert [row["prompt"] for row in rows] == ["a portrait of ohwx", "prompt 2"]
    assert [cell["step"] for cell in rows[0]["cells"]] == [0, 3]


def test_the_log_holds_only_lines_of_the_job_in_plain_words(tmp_path):
    path = tmp_path / "worker.jsonl"
    base = {"time": "2026-11-22T18:00:00.000+00:00", "level": "INFO", "job_id": "abc"}
    lines = [
        {**base, "message": "checkpoint written", "step": 80, "reason": "scheduled", "pid": 7},
        {**base, "message": "of another", "job_id": "def"},
        {**base, "message": "names abc", "job_id": "def"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"job_id": "abc", "cut', encoding="utf-8")
    assert [line["text"] for line in training_live.log_lines([path], "abc")] == [
        "Checkpoint at step 80 (scheduled)"
    ]


def test_a_line_of_the_log_may_hold_braces(tmp_path):
    path = tmp_path / "worker.jsonl"
    record = {
        "time": "2026-11-22T18:00:00.000+00:00",
        "level": "INFO",
        "job_id": "abc",
        "message": "{ printed",
    }
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert [line["text"] for line in training_live.log_lines([path], "abc")] == ["{ printed"]


def test_without_a_log_there_are_no_lines(tmp_path):
    assert training_live.log_lines([tmp_path / "none"], "abc") == []


# Lists


def test_waiting_trainings_know_their_neighbours(app):
    first, second, third = (submit_training(app) for _ in range(3))
    rows = training_lists.waiting_rows(app.jobs.jobs(), **NAMES, why_waiting=lambda _: "")
    assert [(row["job"], row["up"], row["down"], row["can_down"]) for row in rows] == [
        (first, "", third, True),
        (second, first, "", True),
        (third, second, "", False),
    ]


def test_the_history_says_how_trainings_ended(app):
    failed, done = ended(app, "disk_full"), ended(app, "succeeded")
    rows = training_lists.history_rows(
        app.jobs.jobs(), **NAMES, worked=lambda _: 61.0, checkpoints={done: [6]}.get, where=lambda _: ""
    )
    assert [row["job"] for row in rows] == [done, failed]
    assert [(row["again"], row["more"]) for row in rows] == [(True, True), (True, False)]
    assert rows[0]["result"].endswith("worked 1 min 01 s")
    assert (rows[1]["badge"], rows[1]["error"]) == ("Failed", "in plain words")


def test_a_record_that_cannot_be_read_is_listed_all_the_same(app):
    job = app.queue.enqueue(JobKind.TRAIN_LORA, {"spec": {"steps": 3}}, lane=Lane.TRAINING)
    app.jobs.cancel(job.id)
    (row,) = training_lists.history_rows(
        [app.jobs.get(job.id)], **NAMES, worked=lambda _: 0, checkpoints=lambda _: [3], where=lambda _: ""
    )
    assert (row["again"], row["more"], row["about"]) == (False, False, "its settings cannot be read any more")


# The buttons


def test_start_queues_only_what_was_changed(app, actions):
    job = actions.start(CHOICE, {"overrides": {"rank": "8", "resolutions": "64"}})
    assert job.status is JobStatus.QUEUED
    assert (job.payload["spec"]["rank"], job.payload["spec"]["steps"]) == (8, 6)


def test_a_wrong_value_is_refused_in_the_services_words(actions, app):
    with pytest.raises(InvalidSpec, match="steps: must be a valid integer"):
        actions.start(CHOICE, {"overrides": {"steps": "many"}})
    assert app.jobs.jobs() == []


def test_start_without_a_character_says_where_to_make_one(actions):
    with pytest.raises(InvalidSpec, match="Characters tab"):
        actions.start(Choice("", "tiny", "quick"), {})


def test_cancel_pause_and_resume_reach_the_queue(app, actions):
    job_id = submit_training(app)
    assert actions.pause(job_id).status is JobStatus.PAUSED
    assert actions.resume(job_id).status is JobStatus.QUEUED
    assert actions.cancel(job_id).status is JobStatus.CANCELLED
    with pytest.raises(Conflict):
        actions.pause(job_id)


def test_save_and_sample_reach_a_running_training(app, actions):
    job_id = submit_training(app)
    job = claim(app)
    actions.save(job_id)
    actions.sample(job_id)
    asked = app.queue.heartbeat(job, lease_s=60).requests
    assert (asked.save, asked.sample) == (True, True)


def test_waiting_trainings_change_places(app, actions):
    first, second, third = (submit_training(app) for _ in range(3))
    actions.move(third, first)
    assert [job.id for job in app.jobs.jobs()] == [third, first, second]
    actions.move(third, "")
    assert [job.id for job in app.jobs.jobs()] == [first, second, third]


def test_an_unknown_job_is_refused_by_every_button(actions):
    for act in (
        actions.cancel,
        actions.pause,
        actions.resume,
        actions.save,
        actions.sample,
        actions.forget,
        actions.again,
    ):
        with pytest.raises(NotFound):
            act("../../etc")


def test_mending_applies_the_change_of_its_button(app, actions):
    job_id = ended(app, "out_of_memory")
    job = actions.mend(job_id, 0)
    assert job.status is JobStatus.QUEUED
    assert job.payload["spec"]["gradient_checkpointing"] is True


def test_a_remedy_that_is_not_offered_is_refused(app, actions):
    with pytest.raises(InvalidSpec):
        actions.mend(ended(app, "succeeded"), 0)


def test_a_cancelled_training_goes_on_for_more_steps(app, actions):
    job_id = ended(app, "cancelled")
    job = actions.more(job_id, 4)
    assert (job.id, job.payload["spec"]["steps"]) == (job_id, 10)


def test_a_succeeded_training_goes_on_as_a_new_one_from_its_last_checkpoint(app, actions):
    job_id = ended(app, "succeeded")
    run = app.jobs.run_dir(job_id)
    (run / "checkpoints" / "step-00000006").mkdir(parents=True)
    (run / "checkpoints" / "step-00000006" / "state.pt").write_bytes(b"state")
    (run / "metrics.jsonl").write_text('{"step": 6, "loss": 0.5}\n')
    job = actions.more(job_id, 4)
    assert (job.id != job_id, job.payload["spec"]["steps"], job.payload["from_step"]) == (True, 10, 6)
    assert list(app.jobs.checkpoints(job.id)) == [6]
    assert app.jobs.metrics(job.id) == [{"step": 6, "loss": 0.5}]
    assert app.jobs.get(job_id).status is JobStatus.SUCCEEDED


def test_a_succeeded_training_without_its_checkpoint_cannot_go_on(app, actions):
    with pytest.raises(Conflict, match="no checkpoint at step 6"):
        actions.more(ended(app, "succeeded"), 4)
    with pytest.raises(InvalidSpec):
        actions.more(ended(app, "succeeded"), 0)


def test_again_gives_the_choices_and_what_was_changed(app, actions):
    choice, changes = actions.again(ended(app, "succeeded", overrides={"rank": 8, "resolutions": [64, 80]}))
    assert (choice, changes) == (CHOICE, {"rank": "8", "resolutions": "64, 80"})


def test_forget_removes_an_ended_training_with_its_files(app, actions):
    job_id = ended(app, "cancelled")
    app.jobs.run_dir(job_id).mkdir(parents=True)
    actions.forget(job_id)
    assert app.jobs.jobs() == []
    assert not app.jobs.run_dir(job_id).exists()


# The whole tab


def test_the_parts_follow_the_running_training_or_the_one_picked(app, view):
    done, running = ended(app, "succeeded"), submit_training(app)
    claim(app)
    assert view.parts(CHOICE, {}, "")["shown"] == running
    picked = view.parts(CHOICE, {}, done)
    assert (picked["shown"], picked["latest"], picked["generate"]) == (done, True, True)
    assert view.parts(CHOICE, {}, "gone")["shown"] == running


def test_a_lora_can_be_downloaded_as_long_as_it_is_there(app, view, tmp_path):
    job_id = ended(app, "succeeded")
    (tmp_path / "lora").write_bytes(b"weights")
    loras = Loras(
        loras_dir=app.settings.loras_dir,
        runs_dir=app.settings.runs_dir,
        trash_dir=app.settings.trash_dir / "loras",
    )
    facts = {
        "name": "Mira",
        "character": "mira",
        "trigger": "ohwx",
        "class_word": "person",
        "base_model": "tiny",
    }
    loras.add(lora_id=job_id, steps=6, source=tmp_path / "lora", details={}, **facts)
    link = view.parts(CHOICE, {}, job_id)["card"]["file"]
    served = TestClient(Starlette(routes=files.routes(app)))
    assert served.get(link).content == b"weights"
    app.images.remove_lora(job_id)
    assert view.parts(CHOICE, {}, job_id)["card"]["file"] == ""


def test_nothing_chosen_means_what_was_trained_last(app, view):
    ended(app, "succeeded")
    parts = view.parts(Choice("", "", ""), None, "")
    assert (parts["character"], parts["models"]["value"], parts["presets"]["value"]) == (
        "mira",
        "tiny",
        "quick",
    )


def test_what_does_not_exist_any_more_is_not_chosen():
    known = {"characters": [], "models": [("T", "tiny")], "presets": [("Q", "quick")]}
    assert filled(Choice("gone", "gone", "gone"), known, None) == Choice("", "tiny", "quick")


def test_a_character_without_images_is_said_before_the_start(app, view):
    app.characters.create("Empty", trigger="zwx")
    parts = view.parts(Choice("empty", "tiny", "quick"), {}, "")
    assert "not ready" in parts["estimate"]["problems"][0]


def test_a_wrong_value_is_said_before_the_start_and_stays_in_the_form(app, view):
    parts = view.parts(CHOICE, {"overrides": {"steps": "many"}}, "")
    assert "steps" in parts["estimate"]["problems"][0]
    assert "overrides" not in parts["form"]
    assert parts["form"]["base"]["steps"] == "6"


def test_a_broken_config_file_is_named_and_the_rest_of_the_tab_stays(app, view):
    job_id = submit_training(app)
    (app.settings.configs_dir / "models.yaml").write_text("tiny: {title: 3")
    parts = view.parts(CHOICE, {}, "")
    assert "models.yaml is not valid YAML" in parts["estimate"]["problems"][0]
    assert parts["shown"] == job_id


def test_without_a_measured_run_no_time_is_named(view):
    time, memory, disk = view.parts(CHOICE, {}, "")["estimate"]["figures"]
    assert (time["value"], disk["value"]) == ("not measured yet", "not measured yet")
    assert "trained here yet" in memory["origin"]


@pytest.fixture
def built(page):
    with gr.Blocks():
        yield training.build(page)


def test_what_has_not_changed_is_not_painted_again(app, built):
    submit_training(app)
    first = built.refresh("", "", "", {}, "", "")
    assert len(first) == len(built.outputs)
    painted = first[-1]
    again = built.refresh("mira", "tiny", "quick", {"overrides": {}}, "", painted)
    shown_and_painted = again[-2:]
    for component, answer in zip(built.outputs[:-2], again[:-2], strict=True):
        assert (answer == gr.skip()) != isinstance(component, gr.HTML)
    assert shown_and_painted == [app.jobs.jobs()[0].id, painted]


def test_what_moves_is_painted_without_the_rest_of_the_tab(app, built, view):
    job = submit_training(app)
    whole = view.parts(CHOICE, {}, "")
    assert built.course.refresh("") == [whole[name] for name in ("card", "curves", "log")]
    assert built.course.refresh(job) == built.course.refresh("")
    assert set(built.course.outputs) < set(built.outputs)


def test_what_is_remembered_as_painted_is_not_believed_blindly(built):
    for nonsense in ("", "[]", "{", '"x"'):
        assert len(built.refresh("", "", "", None, "", nonsense)) == len(built.outputs)


def test_the_tab_leads_to_the_images(built):
    assert list(built.leads) == ["image"]


def test_the_labels_are_there_in_both_languages():
    english, german = (
        yaml.safe_load((WEB / "texts" / language / "training.yaml").read_text(encoding="utf-8"))
        for language in ("en", "de")
    )
    assert english.keys() == german.keys()
    assert all(key.startswith("training.") for key in english)


def test_every_word_of_the_scripts_is_written():
    used = {f"status.{status}" for status in JobStatus} | {f"live.{stop}" for stop in Stop}
    for file in WEB.glob("training_*"):
        used |= set(
            re.findall(
                r'(?:say\("|data-say="|data-label=")([a-z._]+[a-z])"', file.read_text(encoding="utf-8")
            )
        )
    written = words("training")["en"]
    assert {f"training.say.{word}" for word in used} <= written.keys()
    assert len(used) > 40


def test_what_an_event_says_is_read_with_care():
    event = SimpleNamespace(job="abc", steps="12", number=None)
    assert training._said(event, "job") == "abc"
    assert training._said(event, "missing") == ""
    assert (training._number(event, "steps"), training._number(event, "number")) == (12, -1)
