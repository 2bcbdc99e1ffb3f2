"""Write the example characters in ``isengard/assets/characters``; the same files every time.

Run it as ``python -m scripts.demo_model examples``.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from isengard.files import replacing
from isengard.settings import ASSETS
from scripts.demo_model.draw import Person, draw, random_look
from scripts.demo_model.words import look_caption

IMAGES = 10


@dataclass(frozen=True)
class Example:
    """A character that ships with the package; ``seed`` draws its looks."""

    name: str
    trigger: str
    class_word: str
    notes: str
    person: Person
    seed: int

    @property
    def folder(self) -> Path:
        return ASSETS / "characters" / self.name.lower()


#: Each has a hair style and a pair of colours that the demo model has never seen.
EXAMPLES = (
    Example(
        name="Nova",
        trigger="ohwx",
        class_word="person",
        notes="Wild pink hair, tanned skin and sunglasses. The demo model has never seen this hair style.",
        person=Person(hair="tousled", hair_color="pink", skin="tanned", glasses="sunglasses"),
        seed=5600,
    ),
    Example(
        name="Marisol",
        trigger="sks",
        class_word="woman",
        notes="Flowers in her black hair, brown skin. The demo model has never seen these flowers.",
        person=Person(hair="flower", hair_color="black", skin="brown"),
        seed=5700,
    ),
    Example(
        name="Odin",
        trigger="zwx",
        class_word="man",
        notes="A red mohawk, a long beard and round glasses. The demo model has never seen a mohawk.",
        person=Person(
            hair="mohawk", hair_color="red", skin="pale", glasses="round glasses", facial_hair="long beard"
        ),
        seed=5800,
    ),
)


def write(example: Example, folder: Path) -> None:
    """Write ``01.png`` and ``01.txt`` and so on, and ``about.yaml``. Captions tell what varies, never who it is."""
    rng = random.Random(example.seed)  # noqa: S311  # not for secrets
    with replacing(folder) as temporary:
        temporary.mkdir()
        for number in range(1, IMAGES + 1):
            look = random_look(rng)
            draw(example.person, look).save(temporary / f"{number:02}.png", optimize=True)
            caption = look_caption(look, f"[trigger] {example.class_word}")
            (temporary / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")
        about = {
            "name": example.name,
            "trigger": example.trigger,
            "class_word": example.class_word,
            "notes": example.notes,
        }
        (temporary / "about.yaml").write_text(
            yaml.safe_dump(about, sort_keys=False, width=200), encoding="utf-8"
        )
