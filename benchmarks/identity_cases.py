"""The held-out characters of the identity benchmark: whom the demo model has never seen, and how long they are trained."""

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isengard.domain.character import Character
from isengard.domain.job import JobKind
from isengard.services.training import read_payload
from isengard.wiring import Application
from scripts.demo_model.draw import Person, draw, random_look
from scripts.demo_model.words import look_caption

PHOTOS = 10


@dataclass(frozen=True)
class Case:
    """A character and a training that goes on for too long; ``seed`` draws the looks of its photos."""

    name: str
    trigger: str
    class_word: str
    person: Person
    seed: int
    photos: int = PHOTOS
    overrides: Mapping[str, Any] = field(default_factory=dict)


#: Each has a hair style that neither the demo model nor the identity encoder has seen, on nobody of the examples.
CASES = (
    Case(
        name="Vera",
        trigger="nvxq",
        class_word="woman",
        person=Person(hair="braids", hair_color="platinum", skin="dark", glasses="eyepatch"),
        seed=6100,
        overrides={"learning_rate": 0.002},
    ),
    Case(
        name="Ilka",
        trigger="tok",
        class_word="woman",
        person=Person(hair="flower", hair_color="red", skin="pale", glasses="square glasses"),
        seed=6200,
        overrides={"learning_rate": 0.003, "targets": "all_linear"},
    ),
    Case(
        name="Bruno",
        trigger="ohwx",
        class_word="man",
        person=Person(hair="mohawk", hair_color="black", skin="brown", facial_hair="goatee"),
        seed=6300,
        photos=6,
        overrides={"learning_rate": 0.004},
    ),
)
#: Of every training: nine checkpoints, at a learning rate that does not fall.
TRAINING: Mapping[str, Any] = {
    "steps": 360,
    "save_every": 40,
    "lr_scheduler": "constant",
    "validate_every": 40,
    "sample_every": 0,
}


def character_of(app: Application, case: Case) -> Character:
    """The character in this data folder, drawn where it is not there yet."""
    for known in app.characters.list():
        if known.name == case.name:
            return known
    character = app.characters.create(case.name, trigger=case.trigger, class_word=case.class_word)
    rng = random.Random(case.seed)  # noqa: S311  # not for secrets
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(1, case.photos + 1):
            look = random_look(rng)
            draw(case.person, look).save(folder / f"{number:02}.png")
            caption = look_caption(look, f"[trigger] {case.class_word}")
            (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")
        list(app.characters.add_files(character.id, sorted(folder.iterdir())))
    return app.characters.get(character.id)


def training_of(app: Application, case: Case) -> str:
    """The id of the case's training, which is submitted where there is none yet."""
    character = character_of(app, case)
    for job in app.jobs.jobs(kinds=(JobKind.TRAIN_LORA,)):
        if read_payload(job)[0].character == character.id:
            return job.id
    overrides = {**TRAINING, **case.overrides}
    return app.training.submit(
        character_id=character.id, base_model="demo", preset="quick", overrides=overrides
    ).id
