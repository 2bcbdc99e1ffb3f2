"""``python -m isengard demo``: the main job with the bundled model and character, from nothing to pictures."""

import time
from typing import Annotated, Any

import typer

from isengard.cli.common import application, err, out, print_json
from isengard.cli.follow import finish, working
from isengard.cli.train import summary
from isengard.domain.character import Character
from isengard.domain.generation import SavedImage
from isengard.services.examples import example
from isengard.settings import ASSETS
from isengard.store.contact_sheet import write_contact_sheet
from isengard.wiring import Application

CHARACTER = "nova"
PROMPTS = (
    "a portrait of [trigger] [class], big smile mouth, pink background",
    "a portrait of [trigger] [class], wearing blue hoodie, beach",
    "a portrait of [trigger] [class], white background",
)
SEED = 7


def demo(
    context: typer.Context,
    *,
    preset: Annotated[str, typer.Option(help="quick, balanced or best")] = "quick",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Make a character from example pictures, train its LoRA, and make images with it. Needs no GPU and no network.

    It is the same code that trains FLUX.1-dev; only the bundled model is small. Everything it makes stays in the
    data folder and is shown by `characters list`, `jobs list` and `lora list`.
    """
    began = time.monotonic()
    app = application(context)
    character = example(app.characters, ASSETS / "characters" / CHARACTER)
    err.print(f"1/3 character {character.name}: {app.characters.readiness(character.id).summary}")
    with working(app):
        err.print("2/3 training its LoRA on the bundled model")
        job = app.training.submit(character_id=character.id, base_model="demo", preset=preset, overrides={})
        result = finish(app, job.id).result or {}
        err.print(summary(result))
        err.print("3/3 making the same images without and with it")
        before, after = (
            [image for prompt in PROMPTS for image in make(app, prompt, loras, character)]
            for loras in ([], [{"lora": job.id}])
        )
    sheet = app.settings.data_dir / "demo" / f"{job.id}.png"
    examples = [
        app.characters.image_path(character.id, image.id) for image in character.images[: len(PROMPTS)]
    ]
    write_contact_sheet(
        sheet,
        {
            f"{character.name}'s pictures": examples,
            "before": [image.path for image in before],
            "after": [image.path for image in after],
        },
    )
    seconds = time.monotonic() - began
    if as_json:
        print_json({"seconds": seconds, "picture": str(sheet), "lora": job.id, **result})
        return
    out.print(str(sheet))
    err.print(f"done in {seconds:.0f} s. Look at the picture above; then try it with your own photos:")
    err.print(
        '  python -m isengard characters create "My name"\n  python -m isengard characters add my-name photos/*',
        markup=False,
    )


def make(
    app: Application, prompt: str, loras: list[dict[str, Any]], character: Character
) -> tuple[SavedImage, ...]:
    """Make one image, with the trigger in the prompt also where no LoRA brings it."""
    text = prompt.replace("[trigger]", character.trigger).replace("[class]", character.class_word)
    spec = app.images.plan(overrides={"prompt": text, "base_model": "demo", "loras": loras, "seed": SEED})
    job = finish(app, app.images.submit(spec).id)
    return app.images.of_job(job.id)
