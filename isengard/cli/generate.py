"""``python -m isengard generate``: images, with or without LoRAs."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from isengard.cli.common import application, err, out, print_json
from isengard.cli.follow import finish, working
from isengard.cli.train import parsed, tell
from isengard.domain.generation import SavedImage
from isengard.domain.likeness import lacks
from isengard.domain.performance import StepCache
from isengard.services.images import ImageService

_LORA = re.compile(r"(?P<lora>[\w-]+)(:(?P<strength>-?\d+(\.\d+)?))?(@(?P<step>\d+))?")
_SIZE = re.compile(r"(\d+)x(\d+)")


def _loras(texts: list[str]) -> list[dict[str, Any]]:
    found = []
    for text in texts:
        match = _LORA.fullmatch(text)
        if match is None:
            raise typer.BadParameter(
                f"must look like ID, ID:0.8 or ID:0.8@250, got {text!r}", param_hint="--lora"
            )
        found.append({name: value for name, value in match.groupdict().items() if value is not None})
    return found


def _size(text: str) -> dict[str, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"must look like 768x1024, got {text!r}", param_hint="--size")
    return {"width": int(match[1]), "height": int(match[2])}


def _settings_of(images: ImageService, path: Path) -> dict[str, Any]:
    found = images.read_settings(path)
    for rest in found.unmapped:
        err.print(f"not taken over from {path.name}: {rest}", markup=False)
    return found.settings


def _tell_likeness(made: Sequence[SavedImage]) -> None:
    """Say on stderr how much each image looks like its characters, and when that is no more than strangers may."""
    for image in made:
        for one in image.record.likeness:
            said = "shows nobody" if one.cosine is None else f"cosine {one.cosine:.2f}"
            share = "" if one.share is None else f", {one.percent} % of the way"
            err.print(f"{image.id}: likeness to {one.name}: {said}{share}", markup=False)
    for lack in lacks(image.record.likeness for image in made):
        err.print(
            f"these images do not look like {lack.name} ({lack.percent} % of the way on average): use a higher"
            " strength or another checkpoint, or train longer",
            markup=False,
        )


def generate(  # noqa: PLR0913 - each is an option
    context: typer.Context,
    *,
    prompt: Annotated[
        str | None, typer.Option(help="What to show; [trigger] stands for the LoRAs' trigger words.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="ID, ID:STRENGTH or ID:STRENGTH@STEP for an earlier checkpoint; several are added up."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model; that of the LoRA when left out.")] = None,
    template: Annotated[str, typer.Option(help="Start from configs/generation/TEMPLATE.yaml.")] = "",
    like: Annotated[
        Path | None,
        typer.Option(help="Start from the settings inside this PNG.", exists=True, dir_okay=False),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Width x height in pixels, such as 768x1024.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same image; drawn when left out.")] = None,
    count: Annotated[int | None, typer.Option(help="Images to make, with seed, seed + 1, ...")] = None,
    keep_best: Annotated[
        int | None,
        typer.Option(help="Keep so many, the most like the character; the others go to the trash folder."),
    ] = None,
    cache: Annotated[
        StepCache | None,
        typer.Option(help="first_block or mag: faster, and details differ a little; none is exact."),
    ] = None,
    performance: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="How the model is held and run, instead of what is planned: quantization, offload, text_encoders,"
            " attention, compile, vae_tiling, batch_size; several are allowed.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Only queue the job and print its id.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Make images, and print where they are.

      python -m isengard generate --model demo --prompt "a portrait of a person, pink background"

      python -m isengard generate --lora JOB_ID:0.9 --prompt "a photo of [trigger] [class] in the rain" --count 4

      python -m isengard generate --lora JOB_ID --prompt "[trigger] [class] at the sea" --count 8 --keep-best 2

      python -m isengard generate --like image.png --seed 7

      python -m isengard generate --model flux1-dev --prompt "a harbour" --cache first_block --set quantization=int8

    `python -m isengard lora list` shows the LoRAs.
    """
    app = application(context)
    app.volume.same()
    given = {
        "prompt": prompt,
        "base_model": model,
        "loras": _loras(lora) if lora else None,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "count": count,
        "keep_best": keep_best,
        "cache": cache,
        **(_size(size) if size else {}),
    }
    overrides = _settings_of(app.images, like) if like else {}
    overrides |= {name: value for name, value in given.items() if value is not None}
    if performance:
        overrides["performance"] = {**overrides.get("performance", {}), **parsed(performance)}
    spec = app.images.plan(template=template, overrides=overrides)
    if app.images.with_trigger(spec) != spec.prompt:
        err.print(
            "the prompt calls up no LoRA; put [trigger] [class] where the character should be", markup=False
        )
    fit = app.images.fit(spec)
    job = app.images.submit(spec)
    if fit.peak_bytes and not as_json:
        tell(fit, app.planning.machine().total_bytes)
    if not detach:
        with working(app):
            finish(app, job.id)
    made = app.images.of_job(job.id)
    if not as_json:
        _tell_likeness(made)
        if left_out := (app.jobs.get(job.id).result or {}).get("left_out"):
            folder = app.settings.trash_dir / "images"
            err.print(f"{len(left_out)} less alike were moved to {folder}", markup=False)
    if as_json:
        print_json({"job": job.id, "images": [image.model_dump(mode="json") for image in made]})
    else:
        out.print("\n".join(str(image.path) for image in made) or job.id, markup=False)
