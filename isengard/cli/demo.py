"""``python -m isengard demo``: the main job with the bundled model and character, from nothing to pictures."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from isengard.cli.common import application, err, out, print_json
from isengard.cli.follow import finish, working
from isengard.cli.train import summary
from isengard.domain.character import Character
from isengard.domain.generation import SavedImage
from isengard.domain.identity import Embedding, IdentityGain, ScorerKind, gain, largest
from isengard.engines.base import IdentityScorer
from isengard.services.examples import example
from isengard.settings import ASSETS
from isengard.store.contact_sheet import write_contact_sheet
from isengard.wiring import Application, open_scorer

CHARACTER = "nova"
PROMPTS = (
    "a portrait of [trigger] [class], laughing, wearing a blue hoodie, on a beach",
    "a portrait of [trigger] [class], smiling, wearing a spacesuit, navy background",
    "a portrait of [trigger] [class], sad, wearing a white t-shirt, in a forest",
    "a portrait of [trigger] [class], surprised eyes, wearing a suit, pink background",
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
            [image for prompt in PROMPTS for image in make(app, prompt, loras, character, seed=SEED)]
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
    identity = likeness(app, character, before=before, after=after)
    seconds = time.monotonic() - began
    if as_json:
        scores = {**identity.model_dump(), "share": identity.share}
        print_json({"seconds": seconds, "picture": str(sheet), "lora": job.id, "identity": scores, **result})
        return
    err.print(
        f"identity: {identity.before:.2f} before, {identity.after:.2f} after; {character.name}'s own pictures are alike "
        f"by {identity.ceiling:.2f}"
    )
    out.print(str(sheet))
    err.print(f"done in {seconds:.0f} s. Look at the picture above; then try it with your own photos:")
    err.print(
        '  python -m isengard characters create "My name"\n  python -m isengard characters add my-name photos/*',
        markup=False,
    )


def make(
    app: Application, prompt: str, loras: list[dict[str, Any]], character: Character, *, seed: int
) -> tuple[SavedImage, ...]:
    """Make one image, with the trigger in the prompt also where no LoRA brings it."""
    text = prompt.replace("[trigger]", character.trigger).replace("[class]", character.class_word)
    spec = app.images.plan(overrides={"prompt": text, "base_model": "demo", "loras": loras, "seed": seed})
    job = finish(app, app.images.submit(spec).id)
    return app.images.of_job(job.id)


def likeness(
    app: Application, character: Character, *, before: Sequence[SavedImage], after: Sequence[SavedImage]
) -> IdentityGain:
    """Compare pictures without and with the LoRA to the character's own."""
    scorer = open_scorer(ScorerKind.DRAWN_FIGURES)
    references = [app.characters.image_path(character.id, image.id) for image in character.images]
    return gain(
        references=_embedded(scorer, references),
        before=_embedded(scorer, [image.path for image in before]),
        after=_embedded(scorer, [image.path for image in after]),
    )


def _embedded(scorer: IdentityScorer, paths: Sequence[Path]) -> Sequence[Embedding]:
    with ExitStack() as stack:
        return largest(scorer.find([stack.enter_context(Image.open(path)) for path in paths]))
