"""Jobs for machines that have what this one lacks."""

import pytest

from isengard.domain.generation import ImageSpec
from isengard.domain.job import JobError, Needs
from isengard.domain.model import Family
from isengard.errors import MissingWeights
from isengard.services.images import ImageService
from isengard.services.training import Engine, TrainingService
from isengard.settings import ASSETS
from isengard.store.artifacts import Images, Loras
from isengard.store.weights import Weights
from tests.tiny_app import tiny_app


@pytest.fixture
def app(tmp_path):
    """Its one model is not on this machine."""
    app = tiny_app(tmp_path, ASSETS / "demo-base")
    cards = app.settings.configs_dir / "models.yaml"
    cards.write_text(cards.read_text().replace(f"path: {ASSETS / 'demo-base'}", "repository: example/tiny"))
    return app


@pytest.fixture
def at_workers():
    """Names of models that workers have."""
    return {"tiny"}


@pytest.fixture
def collaborators(app, tmp_path, at_workers):
    weights = Weights(
        models_dir=tmp_path / "models", assets_dir=ASSETS, hub_cache=tmp_path / "hub", shared=True
    )
    common = {"queue": app.queue, "catalog": app.catalog, "weights": weights, "planning": app.planning,
              "room": app.room}  # fmt: skip
    return {**common, "elsewhere": at_workers.__contains__}


@pytest.fixture
def training(app, collaborators):
    engines = {"native": Engine((Family.FLUX,)), "ai-toolkit": Engine((Family.FLUX,))}
    return TrainingService(
        characters=app.characters, engines=engines, runs_dir=app.settings.runs_dir, **collaborators
    )


@pytest.fixture
def images(tmp_path, collaborators):
    trash = {"trash_dir": tmp_path / "trash"}
    return ImageService(
        loras=Loras(loras_dir=tmp_path / "loras", runs_dir=tmp_path / "runs", **trash),
        images=Images(images_dir=tmp_path / "images", **trash),
        families=tuple(Family),
        **collaborators,
    )


def submit(training, **overrides):
    return training.submit(character_id="mira", base_model="tiny", preset="quick", overrides=overrides)


def card(app):
    return app.catalog.model("tiny")


def test_a_training_with_a_model_of_a_worker_waits_for_who_has_it(training, app):
    assert training.lacking(card(app)) == ""
    assert submit(training).needs == Needs(engine="ai-toolkit", model="tiny")


def test_a_model_that_is_nowhere_is_refused_with_the_ways_to_get_it(training, app, at_workers):
    at_workers.clear()
    with pytest.raises(
        MissingWeights,
        match="on the machine of a worker, or here if jobs are run here, with: python -m isengard models download tiny",
    ):
        submit(training)
    assert "is not on this machine" in training.lacking(card(app))


def test_a_training_that_goes_on_still_asks_for_what_it_needs(training, app):
    job = submit(training, engine="native")
    app.queue.fail(app.queue.claim("w", lease_s=60), JobError(code="internal", message="power cut"))
    assert training.resume(job.id, {}).needs == job.needs == Needs(engine="native", model="tiny")


def test_a_training_that_is_extended_asks_for_what_the_first_one_needed(training, app):
    job = submit(training)
    app.queue.succeed(app.queue.claim("w", lease_s=60), {})
    run = app.jobs.run_dir(job.id)
    (run / "checkpoints" / "step-00000006").mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    assert training.extend(job.id, 12).needs == job.needs


def test_images_with_a_model_of_a_worker_wait_for_who_has_it(images, app):
    asked = ImageSpec(base_model="tiny", prompt="a harbour", width=64, height=64)
    assert images.submit(asked).needs == Needs(model="tiny")
    assert images.models() == ((card(app), True),)


def test_images_with_a_model_that_is_nowhere_are_refused(images, app, at_workers):
    at_workers.clear()
    with pytest.raises(MissingWeights):
        images.submit(ImageSpec(base_model="tiny", prompt="a harbour", width=64, height=64))
    assert images.models() == ((card(app), False),)
