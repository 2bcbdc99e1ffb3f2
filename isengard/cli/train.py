"""``python -m isengard train`` and ``jobs retry``."""

from typing import Annotated, Any

import typer
import yaml

from isengard.cli.common import application, err, out, print_json
from isengard.cli.follow import finish, working
from isengard.domain.image_planner import ImagePlan
from isengard.domain.job import Job
from isengard.domain.memory import gb
from isengard.domain.planner import TrainingPlan
from isengard.domain.presets import differences
from isengard.wiring import Application

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A field of what is made, listed by --plan, as NAME=VALUE; several are allowed.",
        metavar="NAME=VALUE",
    ),
]
Detach = Annotated[bool, typer.Option("--detach", help="Only queue the job and print its id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def train(
    context: typer.Context,
    character: Annotated[str, typer.Argument(help="Id of the character; see: characters list")],
    *,
    model: Annotated[str, typer.Option(help="Base model; see: models")] = "demo",
    preset: Annotated[
        str, typer.Option(help="quick, balanced or best: a file in configs/training")
    ] = "quick",
    settings: Settings = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be trained, and end.")] = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA of a character and try it out.

      python -m isengard train nova

      python -m isengard train nova --model flux1-dev --preset balanced --set rank=32 --set learning_rate=2e-4

    A training survives everything: it goes on from its last checkpoint when the worker or the machine dies, and makes
    room for images asked for in the meantime. `jobs pause`, `jobs resume`, `jobs cancel` and `jobs retry` steer it.
    """
    app = application(context)
    choice: dict[str, Any] = {
        "character_id": character,
        "base_model": model,
        "preset": preset,
        "overrides": parsed(settings or []),
    }
    app.volume.same()
    planned = app.training.planned(**choice)
    if plan:
        if as_json:
            print_json(planned.spec.model_dump(mode="json"))
        else:
            for name, value in differences(planned.spec).items():
                out.print(f"{name}: {value}")
    if planned.expected_peak_bytes and not as_json:
        tell(planned, app.planning.machine().total_bytes)
    if plan:
        return
    carry_out(app, app.training.submit(**choice), detach=detach, as_json=as_json)


def tell(planned: TrainingPlan | ImagePlan, total_bytes: int) -> None:
    """Say on stderr how a job is fitted to this machine."""
    err.print(f"plan: {planned.words}; expected {gb(planned.peak_bytes)} of {gb(total_bytes)}")
    for reason in planned.reasons:
        err.print(f"  {reason}")


def retry(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="Id of a failed or cancelled training; see: jobs list")],
    *,
    settings: Settings = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Let a failed or cancelled training go on from its last checkpoint.

    python -m isengard jobs retry JOB_ID --set batch_size=1 --set gradient_checkpointing=true
    """
    app = application(context)
    carry_out(app, app.training.resume(job, parsed(settings or [])), detach=detach, as_json=as_json)


def parsed(settings: list[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs; values are YAML, so ``[512, 768]``, ``true`` and ``0.0001`` mean what they say."""
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"must look like rank=32, got {setting!r}", param_hint="--set")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"the value is not readable: {setting!r}", param_hint="--set") from None
    return found


def carry_out(app: Application, job: Job, *, detach: bool, as_json: bool) -> None:
    """Wait for a queued training, unless detached, and say what came of it."""
    if detach:
        if as_json:
            print_json({"job": job.id})
        else:
            out.print(job.id)
        return
    with working(app):
        job = finish(app, job.id)
    result = job.result or {}
    path = app.images.lora_path(job.id)
    if as_json:
        print_json({"job": job.id, "path": str(path), **result})
        return
    out.print(str(path))
    err.print(
        summary(result) + "\nMake an image with it:\n"
        f'  python -m isengard generate --lora {job.id} --prompt "a portrait of [trigger] [class]"',
    )


def summary(result: dict[str, Any]) -> str:
    """Say in two lines what a training reached and how it was verified."""
    lines = [f"trained for {result['steps']} steps"]
    if result.get("stopped_early"):
        lines[0] += ", when the likeness had stopped rising"
    losses = result["validation_losses"]
    if losses:
        lines[0] += f"; validation loss {losses[0][1]:.4f} -> {losses[-1][1]:.4f}"
        lines[0] += f" (lowest checkpoint: step {result['best_step']})"
    proof = result["verification"]
    lines.append(
        f"verified: all {proof['modules']} modules load, weights changed by {proof['delta_norm']:.3g}, "
        f"the image changed by {proof['image_difference']:.1f} of 255"
    )
    return "\n".join(lines)
