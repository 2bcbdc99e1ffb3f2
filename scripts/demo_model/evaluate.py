"""What the finished model can do, in numbers: prompts followed, people learned, seconds taken."""

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FluxPipeline
from PIL import Image

from isengard.cli.demo import make
from isengard.cli.follow import finish, working
from isengard.domain.character import Character
from isengard.domain.identity import gain, largest
from isengard.engines.base import IdentityScorer
from isengard.engines.drawn_figures import FigureEncoder
from isengard.services.examples import example as character_of
from isengard.settings import Settings
from isengard.wiring import Application, build
from scripts.demo_model.data import Drawings, Portrait
from scripts.demo_model.draw import Look, random_look, random_person
from scripts.demo_model.examples import EXAMPLES, Example
from scripts.demo_model.judge import accuracy, judged
from scripts.demo_model.painting import paint
from scripts.demo_model.words import caption, look_caption

PROMPTS = 500
#: Of the fixed prompts for each example character.
LOOKS = 16


def judge_on_drawings(judge: FigureEncoder, validation: Drawings, device: torch.device) -> dict[str, float]:
    """The judge's own accuracy, on drawings of people it has not seen."""
    return accuracy(judged(judge, validation.images, device), validation.portraits)


def prompt_following(
    pipe: FluxPipeline, judge: FigureEncoder, device: torch.device, *, guidance: float, count: int = PROMPTS
) -> tuple[dict[str, float], Sequence[str], npt.NDArray[np.uint8]]:
    """Make an image for each of ``count`` full captions of new people; return accuracies, captions and images."""
    rng = random.Random(11)  # noqa: S311  # not for secrets
    portraits = [Portrait(random_person(rng), random_look(rng)) for _ in range(count)]
    captions = [caption(each.person, each.look, rng, kind="full") for each in portraits]
    images = paint(pipe, captions, seed=1000, guidance=guidance)
    return accuracy(judged(judge, images, device), portraits), captions, images


def seconds_per_image(pipe: FluxPipeline, *, guidance: float, runs: int = 7) -> float:
    """The median time of one image, the pipeline being loaded."""
    found = []
    for run in range(runs):
        began = time.perf_counter()
        paint(pipe, ["a portrait of a person"], seed=run, guidance=guidance)
        found.append(time.perf_counter() - began)
    return sorted(found)[runs // 2]


def fixed_looks() -> list[Look]:
    """Looks for the prompts of the examples: each background and clothes with a colour, so that both can be judged."""
    rng = random.Random(12)  # noqa: S311  # not for secrets
    looks: list[Look] = []
    while len(looks) < LOOKS:
        look = random_look(rng)
        if look.clothing_color:
            looks.append(look)
    return looks


def learn_examples(
    data_dir: Path, judge: FigureEncoder, scorer: IdentityScorer, device: torch.device
) -> dict[str, Mapping[str, Any]]:
    """Train each example's LoRA by the app's Quick preset, and compare the fixed prompts without and with it."""
    app = build(Settings.load(data_dir=data_dir))
    with working(app):
        return {each.name: _learn(app, each, judge, scorer, device) for each in EXAMPLES}


def _learn(
    app: Application, example: Example, judge: FigureEncoder, scorer: IdentityScorer, device: torch.device
) -> Mapping[str, Any]:
    character = character_of(app.characters, example.folder)
    began = time.monotonic()
    job = app.training.submit(character_id=character.id, base_model="demo", preset="quick", overrides={})
    finish(app, job.id)
    seconds = time.monotonic() - began
    before, after = (_pictures(app, character, loras) for loras in ([], [{"lora": job.id}]))
    references = [_opened(app.characters.image_path(character.id, image.id)) for image in character.images]
    found = gain(
        references=largest(scorer.find(references)),
        before=largest(scorer.find(before)),
        after=largest(scorer.find(after)),
    )
    shares = accuracy(
        judged(judge, np.stack([np.asarray(image) for image in after]), device),
        [Portrait(example.person, look) for look in fixed_looks()],
    )
    return {
        "seconds": round(seconds, 1),
        **found.model_dump(),
        "share": found.share,
        **{name: shares[name] for name in ("background", "scene", "clothing", "clothing_color")},
        "pictures": {"references": references[:8], "before": before[:8], "after": after[:8]},
    }


def _pictures(app: Application, character: Character, loras: list[dict[str, Any]]) -> list[Image.Image]:
    prompts = [look_caption(look, "[trigger] [class]") for look in fixed_looks()]
    saved = [make(app, prompt, loras, character, seed=100 + place) for place, prompt in enumerate(prompts)]
    return [_opened(image.path) for images in saved for image in images]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")


def sheet(rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """Write pictures of one size as a grid."""
    width, height = rows[0][0].size
    grid = Image.new("RGB", (max(map(len, rows)) * (width + 2), len(rows) * (height + 2)), "white")
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            grid.paste(image, (across * (width + 2), down * (height + 2)))
    grid.save(path, optimize=True)


def mean_over(found: Mapping[str, Mapping[str, Any]], name: str) -> float:
    return fmean(each[name] for each in found.values())
