"""Write the example characters in ``isengard/assets/characters``; the same files every time.

Run it as ``python -m scripts.demo_model.examples``.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import python_avatars as pa
import yaml

from isengard.files import replacing
from scripts.demo_model.draw import Person, draw, look_words, random_look

FOLDER = Path(__file__).parents[2] / "isengard" / "assets" / "characters"
IMAGES = 12


@dataclass(frozen=True)
class Example:
    """A character that ships with the package; ``seed`` draws its looks."""

    name: str
    trigger: str
    class_word: str
    notes: str
    person: Person
    seed: int


EXAMPLES = (
    Example(
        name="Nova",
        trigger="ohwx",  # one token in both tokenizers of the demo model
        class_word="person",
        notes="Wild pink hair, tanned skin and dark glasses. The demo model has never seen this hair style.",
        person=Person(
            hair=pa.HairType.EINSTEIN_HAIR,
            hair_color=pa.HairColor.PASTEL_PINK,
            skin=pa.SkinColor.TANNED,
            glasses=pa.AccessoryType.WAYFARERS,
        ),
        seed=5600,
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
            caption = f"a portrait of [trigger] {example.class_word}, {look_words(look)}\n"
            (temporary / f"{number:02}.txt").write_text(caption, encoding="utf-8")
        about = {
            "name": example.name,
            "trigger": example.trigger,
            "class_word": example.class_word,
            "notes": example.notes,
        }
        (temporary / "about.yaml").write_text(
            yaml.safe_dump(about, sort_keys=False, width=200), encoding="utf-8"
        )


def main() -> None:
    for example in EXAMPLES:
        folder = FOLDER / example.name.lower()
        write(example, folder)
        print(f"{IMAGES} images in {folder}")


if __name__ == "__main__":
    main()
