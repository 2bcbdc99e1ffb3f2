"""A training that asks to be compared when it is done, by its handler with a trainer that only says it is done."""

from dataclasses import dataclass

import pytest

from isengard.domain.job import Requests
from isengard.engines.base import TrainedLora, Verification
from isengard.handlers.memory import MemoryBook
from isengard.handlers.training import TrainLora
from isengard.wiring import build, loras_of, peaks_of
from tests.pictures import picture
from tests.tiny_app import tiny_settings


class Trainer:
    def train(self, *, run_dir, **_):
        (run_dir / "lora.safetensors").touch()
        return TrainedLora(path=run_dir / "lora.safetensors", steps=6)


class Verifier:
    def verify(self, **_):
        return Verification(modules=1, delta_norm=1, image_difference=1)


@dataclass
class Generator:
    def unload(self):
        pass


@pytest.fixture
def app(tmp_path, tiny_flux):
    made = build(tiny_settings(tmp_path, tiny_flux))
    made.characters.create("Mira", trigger="ohwx")
    list(made.characters.add_files("mira", [picture(tmp_path / "1.png", 1).path]))
    return made


@pytest.fixture
def train(app):
    asked = []
    handler = TrainLora(
        trainers={"native": Trainer()},
        generator=Generator(),
        verifier=Verifier(),
        catalog=app.catalog,
        weights=app.weights,
        loras=loras_of(app.settings),
        runs_dir=app.settings.runs_dir,
        characters_dir=app.settings.characters_dir,
        cache_dir=app.settings.cache_dir,
        characters=app.characters,
        likeness=app.likeness,
        memory=MemoryBook(planning=app.planning, peaks=peaks_of(app.settings), reset=lambda: None),
        room=app.room,
        compare=asked.append,
    )

    def trained(**overrides):
        job = app.training.submit(character_id="mira", base_model="tiny", preset="quick", overrides=overrides)
        handler(job, lambda _: Requests())
        return job.id, asked

    return trained


def test_a_training_that_asks_for_it_is_compared_when_its_lora_is_there(train):
    run, asked = train(compare_when_done=True)
    assert asked == [run]


def test_no_other_training_is_compared_by_itself(train):
    _, asked = train()
    assert asked == []
