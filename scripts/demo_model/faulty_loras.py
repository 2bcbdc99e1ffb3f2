"""LoRAs of the example character Nova that are good, over-cooked and copying, for tests that tell them apart.

Run it as ``python -m scripts.demo_model loras``: some ten minutes on two cores.
"""

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageEnhance
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from isengard.cli.follow import finish, working
from isengard.files import replacing
from isengard.services.examples import example
from isengard.settings import Settings
from isengard.wiring import Application, build
from scripts.demo_model.draw import random_look
from scripts.demo_model.examples import EXAMPLES
from scripts.demo_model.words import look_caption

NOVA = EXAMPLES[0]
#: Of the copying one: so many photos, each with so many captions that tell of something else.
FEW, CAPTIONS = 3, 8
_SMALL: Mapping[str, Any] = {"rank": 4, "alpha": 4, "sample_every": 0}


@dataclass(frozen=True)
class Recipe:
    name: str
    overrides: Mapping[str, Any]
    of_few: bool = False


RECIPES = (
    Recipe("good", {"steps": 150, "learning_rate": 0.004, "validate_every": 50, "save_every": 100_000}),
    Recipe(
        "overcooked",
        {"steps": 80, "learning_rate": 0.4, "lr_scheduler": "constant", "batch_size": 4, "validate_every": 0},
    ),
    Recipe(
        "copying",
        {
            "steps": 160,
            "learning_rate": 0.01,
            "lr_scheduler": "constant",
            "batch_size": 4,
            "validate_every": 0,
            "targets": "all_linear",
        },
        of_few=True,
    ),
)


def write(folder: Path) -> None:
    """Train them and write them, in half precision."""
    with tempfile.TemporaryDirectory() as name:
        app = build(Settings.load(data_dir=Path(name)))
        characters = {False: example(app.characters, NOVA.folder).id, True: _few(app, Path(name))}
        with working(app):
            for recipe in RECIPES:
                job = app.training.submit(
                    character_id=characters[recipe.of_few],
                    base_model="demo",
                    preset="quick",
                    overrides={**_SMALL, **recipe.overrides},
                )
                finish(app, job.id)
                halved(app.images.lora_path(job.id), folder / f"{recipe.name}.safetensors")


def halved(source: Path, path: Path) -> None:
    """The same LoRA in half precision, with what its file says of itself."""
    with safe_open(source, framework="pt") as file:
        about = file.metadata()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file({key: tensor.half() for key, tensor in load_file(source).items()}, temporary, about)


def _few(app: Application, folder: Path) -> str:
    """A character of a few of Nova's pictures whose captions lie about them: nothing but the pictures can be learned."""
    character = app.characters.create("Few", trigger="sks", class_word=NOVA.class_word)
    pictures = folder / "few"
    pictures.mkdir()
    rng = random.Random(1)  # noqa: S311  # not for secrets
    for number in range(FEW * CAPTIONS):
        source = sorted(NOVA.folder.glob("*.png"))[number % FEW]
        with Image.open(source) as image:  # no two alike: the app takes no picture twice
            brightness = 1 - 0.004 * (number // FEW)
            ImageEnhance.Brightness(image.convert("RGB")).enhance(brightness).save(
                pictures / f"{number:02}.png"
            )
        caption = look_caption(random_look(rng), f"{NOVA.trigger} {NOVA.class_word}")
        (pictures / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")
    list(app.characters.add_files(character.id, sorted(pictures.iterdir())))
    return character.id
