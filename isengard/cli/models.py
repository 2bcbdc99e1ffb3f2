"""``python -m isengard models``: the base models: see, get, check and remove them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from isengard.cli.common import application, err, out, print_json
from isengard.cli.follow import duration
from isengard.domain.captioner import CaptionerCard
from isengard.domain.image_planner import ImagePlan
from isengard.domain.planner import TrainingPlan
from isengard.errors import DownloadFailed
from isengard.services.machine import GIB
from isengard.services.models import ModelState
from isengard.store.download import DownloadProgress, Report
from isengard.wiring import GENERATES, Application

app = typer.Typer()

Name = Annotated[str, typer.Argument(help="As `models list` shows it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
AsLines = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, progress too.")]


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Base models and captioners: list, download, check and remove them, or use your own files."""
    if context.invoked_subcommand is None:
        list_models(context)


@app.command("list")
def list_models(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Argument(help="Say more about this one.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the models: their size where they are here, what can be done with them, memory to train/generate, licence.

    The demo model comes with Isengard. Captioners describe images. With a name it says how to get that model:

      python -m isengard models list flux1-dev
    """
    app = application(context)
    states = app.models.list() if name is None else (app.models.get(name),)
    if as_json:
        print_json([_as_json(state) for state in states])
        return
    table = Table(box=None)
    for heading in ("Model", "Here?", "Trains", "Images", "GB here", "Licence"):
        table.add_column(heading, no_wrap=heading != "Licence")
    for state in states:
        table.add_row(*_row(app, state))
    out.print(table)
    if name is not None:
        out.print(_about(states[0]))


@app.command()
def download(
    context: typer.Context,
    name: Name,
    *,
    for_checkpoint: Annotated[
        bool,
        typer.Option("--for-checkpoint", help="Leave out the weights that a single-file checkpoint brings."),
    ] = False,
    as_lines: AsLines = False,
) -> None:
    """Fetch a model from the Hugging Face hub: only what is needed, each file checked by its hash.

    Ctrl-C ends it and keeps what has come; the next download goes on from there.
    """
    models = application(context).models
    with _reporting(as_lines=as_lines) as report:
        state = models.download(name, report, for_checkpoint=for_checkpoint)
    if as_lines:
        return
    out.print(_about(state))
    if state.partner:
        err.print(
            f"its LoRAs make images with {state.partner}; get it too: python -m isengard models download {state.partner}"
        )


@app.command()
def verify(context: typer.Context, name: Name, *, as_lines: AsLines = False) -> None:
    """Read a model's files and compare them with the hub's hashes; damaged ones of a download are thrown away."""
    with _reporting(as_lines=as_lines) as report:
        damaged = application(context).models.verify(name, report)
    if as_lines:
        _print_line({"damaged": damaged})
    elif damaged:
        raise DownloadFailed(
            f"damaged or missing: {', '.join(damaged)}; get them again with: python -m isengard models download {name}"
        )
    else:
        out.print(f"{name} is whole")


@app.command()
def remove(
    context: typer.Context,
    name: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete what was downloaded of a model. It can be downloaded again; your own folders are never touched."""
    if not yes:
        typer.confirm(f"delete the downloaded files of {name}?", abort=True)
    out.print(f"{_gigabytes(application(context).models.remove(name))} are free again")


@app.command()
def use(
    context: typer.Context,
    name: Name,
    path: Annotated[
        Path | None, typer.Argument(help="A folder or a .safetensors file.", show_default=False)
    ] = None,
    *,
    forget: Annotated[bool, typer.Option("--forget", help="Use your own folder no longer.")] = False,
) -> None:
    """Use your own files for a model: a folder in diffusers' layout, or a checkpoint as ComfyUI and Forge keep them.

    A folder is used where it is. A checkpoint is turned into diffusers' layout once, in the data folder; it brings the
    transformer (FLUX) or all weights (SDXL), and what it lacks has to be there before: `models download --for-checkpoint`.
    """
    models = application(context).models
    if forget == (path is not None):
        raise typer.BadParameter("give either a path or --forget")
    if path is None:
        models.forget(name)
        out.print(_about(models.get(name)))
    else:
        out.print(_about(models.use(name, path)))


@app.command()
def token(
    context: typer.Context,
    *,
    forget: Annotated[bool, typer.Option("--forget", help="Remove the one that was typed.")] = False,
) -> None:
    """Try a Hugging Face token for gated models, and keep it in the data folder, readable by you only.

    It is asked for, without showing it; a script gives it on stdin. HF_TOKEN works too and is not kept.
    """
    models = application(context).models
    if forget:
        models.token.forget()
        out.print(
            f"a token is still given by {models.token.origin}" if models.token.origin else "no token is set"
        )
        return
    out.print(models.keep_token(typer.prompt("Token", hide_input=True, err=True)).sentence)


def _row(app: Application, state: ModelState) -> tuple[str, ...]:
    card = state.card
    here = _gigabytes(state.size_bytes) if state.state == "ready" else state.state
    if isinstance(card, CaptionerCard):
        return card.name, here, "no", "captions", "-", card.licence
    trains = "no"
    if card.trainable:
        trains = "yes" if app.training.available_engines(card) else "not yet"
    return (
        card.name,
        here,
        trains,
        "yes" if card.family in GENERATES else "not yet",
        "/".join(_peak(plan) for plan in (app.training.fit(card), app.planning.makes_images(card))),
        card.licence,
    )


def _peak(plan: TrainingPlan | ImagePlan | None) -> str:
    """Gigabytes of the device, as the planner would hold the model here."""
    return f"{plan.peak_bytes / GIB:.1f}" if plan and plan.peak_bytes else "-"


def _about(state: ModelState) -> str:
    if state.state == "ready":
        return f"{state.path} ({state.place})"
    begun = f"{_gigabytes(state.begun_bytes)} of {_gigabytes(state.promised_bytes)} have come. "
    return (begun if state.promised_bytes else "") + state.advice


def _as_json(state: ModelState) -> dict[str, object]:
    """The card's fields, as before there was more to say, and the state's."""
    told = state.model_dump(mode="json")
    return {**told.pop("card"), **told}


def _print_line(value: object) -> None:
    """One object on one line, at once, for a program that reads along."""
    typer.echo(json.dumps(value, ensure_ascii=False))


@contextmanager
def _reporting(*, as_lines: bool) -> Iterator[Report]:
    """Tell the progress: as lines for a program, or as a bar."""
    if as_lines:
        yield lambda told: _print_line(told.model_dump(mode="json"))
        return
    words = TextColumn("{task.fields[said]}", markup=False)
    with Progress(
        TextColumn("{task.percentage:>3.0f} %"), BarColumn(), words, console=err, transient=True
    ) as bars:
        task = bars.add_task("", total=None, said="")

        def report(told: DownloadProgress) -> None:
            bars.update(task, total=told.total_bytes or None, completed=told.done_bytes, said=_words(told))

        yield report


def _words(told: DownloadProgress) -> str:
    parts = [f"{_gigabytes(told.done_bytes)} of {_gigabytes(told.total_bytes)}"] if told.total_bytes else []
    if told.bytes_per_s:
        parts.append(f"{told.bytes_per_s / 1e6:.1f} MB/s")
    if told.eta_s is not None:
        parts.append(f"{duration(told.eta_s)} left")
    return " · ".join([*parts, told.message or told.file])


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
