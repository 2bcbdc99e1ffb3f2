import pytest

from isengard.domain.job import JobError, JobKind, JobStatus, Lane
from isengard.errors import Conflict, InvalidSpec, MissingWeights, NotFound
from isengard.services.training import read_payload
from tests.tiny_app import submit_training, tiny_app


@pytest.fixture
def app(tmp_path, tiny_flux):
    return tiny_app(tmp_path, tiny_flux)


def fail(app, job_id):
    job = app.queue.claim("w", lease_s=60)
    assert job.id == job_id
    app.queue.fail(job, JobError(code="out_of_memory", message="too big"))


def test_a_training_carries_all_it_needs(app):
    job = app.jobs.get(submit_training(app, rank=8))
    spec, images, name = read_payload(job)
    assert (job.kind, job.lane) == (JobKind.TRAIN_LORA, Lane.TRAINING)
    assert (spec.rank, spec.trigger, spec.preset, name) == (8, "ohwx", "quick", "Mira")
    assert len(images) == 9
    assert {image.caption for image in images} >= {"ohwx person, picture 0", "ohwx person, picture 8"}
    assert all(image.under(app.settings.characters_dir).path.is_file() for image in images)


def test_edits_after_the_start_do_not_reach_the_training(app):
    job_id = submit_training(app)
    app.characters.caption_all("mira", "[trigger] something else")
    _, images, _ = read_payload(app.jobs.get(job_id))
    assert not any("something else" in image.caption for image in images)


def test_a_plan_starts_nothing(app):
    spec = app.training.plan(
        character_id="mira", base_model="tiny", preset="quick", overrides={"steps": 9, "learning_rate": 1e-3}
    )
    assert (spec.steps, spec.learning_rate) == (9, 1e-3)
    assert app.jobs.jobs() == []


@pytest.mark.parametrize(
    ("choice", "error", "said"),
    [
        ({"character_id": "nobody"}, NotFound, "nobody"),
        ({"base_model": "sd15"}, NotFound, "there is no base model 'sd15' \\(known: tiny\\)"),
        ({"preset": "slow"}, NotFound, "there is no training preset 'slow' \\(known: quick\\)"),
        ({"overrides": {"rnk": 3}}, InvalidSpec, "unknown setting 'rnk' \\(did you mean 'rank'\\?\\)"),
        ({"overrides": {"steps": 0}}, InvalidSpec, "steps: must be greater than or equal to 1, got 0"),
        (
            {"overrides": {"engine": "kohya"}},
            InvalidSpec,
            "engine must be one of ai-toolkit, native, got 'kohya'",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_waits(app, choice, error, said):
    sane = {"character_id": "mira", "base_model": "tiny", "preset": "quick", "overrides": {}}
    with pytest.raises(error, match=said):
        app.training.submit(**{**sane, **choice})
    assert app.jobs.jobs() == []


def test_a_model_of_a_family_that_the_engine_does_not_train_is_refused(app):
    cards = app.settings.configs_dir / "models.yaml"
    cards.write_text(cards.read_text().replace("family: flux", "family: flux2"))
    with pytest.raises(
        InvalidSpec, match="the engine 'ai-toolkit' trains the families flux, sdxl so far, and Tiny FLUX"
    ):
        submit_training(app, engine="ai-toolkit")


def test_a_model_that_is_not_there_is_refused_with_the_way_to_get_it(app, tiny_flux):
    cards = app.settings.configs_dir / "models.yaml"
    cards.write_text(cards.read_text().replace(f"path: {tiny_flux}", "repository: example/tiny"))
    with pytest.raises(MissingWeights, match="models download tiny"):
        submit_training(app)


def test_a_character_without_images_is_refused(app):
    app.characters.create("Empty")
    with pytest.raises(Conflict, match="no image"):
        app.training.submit(character_id="empty", base_model="tiny", preset="quick", overrides={})


def test_a_failed_training_goes_on_with_what_may_change(app):
    job_id = submit_training(app)
    fail(app, job_id)
    app.training.resume(job_id, {"batch_size": 1, "steps": 12})
    job = app.jobs.get(job_id)
    spec, images, _ = read_payload(job)
    assert job.status is JobStatus.QUEUED
    assert (spec.batch_size, spec.steps, spec.rank, len(images)) == (1, 12, 4, 9)


def test_what_the_checkpoint_fixes_cannot_change(app):
    job_id = submit_training(app)
    fail(app, job_id)
    with pytest.raises(
        InvalidSpec,
        match="rank cannot change in a training that has started; these can: attention, batch_size",
    ):
        app.training.resume(job_id, {"rank": 8, "steps": 9})
    with pytest.raises(InvalidSpec, match="batch_size: must be"):
        app.training.resume(job_id, {"batch_size": 0})
    assert app.jobs.get(job_id).status is JobStatus.FAILED


def test_only_trainings_that_ended_early_can_go_on(app):
    with pytest.raises(Conflict):
        app.training.resume(submit_training(app), {})
    image = app.images.submit(app.images.plan(overrides={"prompt": "a person", "base_model": "tiny"}))
    with pytest.raises(InvalidSpec, match="is no training"):
        app.training.resume(image.id, {})


def test_a_checkpoint_can_be_pinned_and_released(app):
    job_id = submit_training(app)
    folder = app.settings.runs_dir / job_id / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    app.training.pin(job_id, 4, pinned=True)
    assert (folder / "pinned").exists()
    app.training.pin(job_id, 4, pinned=False)
    assert not (folder / "pinned").exists()
    with pytest.raises(NotFound, match=r"no checkpoint at step 5 \(it has: \[4\]\)"):
        app.training.pin(job_id, 5, pinned=True)


def test_a_job_record_that_lacks_its_spec_says_so(app):
    job = app.jobs.get(submit_training(app))
    with pytest.raises(InvalidSpec, match="has no 'spec' in its record; start it anew"):
        read_payload(job.model_copy(update={"payload": {}}))
