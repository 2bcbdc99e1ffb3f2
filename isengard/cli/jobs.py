"""``python -m isengard jobs``: what is running, what waits, and what became of the rest."""

import json
import shlex
import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from isengard.cli.common import application, err, out, print_json
from isengard.cli.follow import duration, facts, finish, working
from isengard.domain.job import Job, JobKind, JobStatus, Stop
from isengard.errors import Conflict
from isengard.services.training import Remedy
from isengard.settings import Settings
from isengard.supervisor import is_held
from isengard.wiring import backups

app = typer.Typer(no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="As `jobs list` shows it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.callback()
def main() -> None:
    """See and steer trainings and image requests. They outlive the command that started them."""


@app.command("list")
def list_jobs(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Show so many at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs: running first, then waiting in their order, then paused, then ended, newest first."""
    ours = application(context)
    found = ours.jobs.jobs(limit=limit)
    if as_json:
        print_json([job.model_dump(mode="json") for job in found])
        return
    table, now = Table(box=None), time.time()
    for title in ("Job", "What", "State", "Progress", "Age"):
        table.add_column(title, no_wrap=title != "What")
    for job in found:
        table.add_row(job.id, subject(job), state(job), steps(job), duration(max(0, now - job.created_at)))
    out.print(table if found else "no jobs yet")
    for job in found:
        if why := ours.workers.why_waiting(job):
            out.print(f"job {job.id} waits: {why}")


@app.command()
def show(context: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Say all about one job: its state, what it was asked to do, and its history."""
    ours = application(context)
    service = ours.jobs
    job, history = service.get(job_id), service.history(job_id)
    if as_json:
        events = [event.model_dump(mode="json") for event in history]
        print_json({**job.model_dump(mode="json"), "history": events})
        return
    lines = {
        "job": job.id,
        "what": subject(job),
        "state": state(job),
        "progress": steps(job),
        "course": facts(job.progress) if job.progress else "",
        "error": job.error.message if job.error else "",
        "took": duration(job.finished_at - job.started_at) if job.finished_at and job.started_at else "",
        "waits": ours.workers.why_waiting(job),
        "runs on" if job.worker else "ran on": job.ran_on or "",
        "folder": str(service.run_dir(job_id)),
        "way out": way_out(ours.training.remedy(job_id), job_id),
    }
    for name, value in lines.items():
        if value:
            out.print(f"{name:>9}  {value}")
    for event in history:
        out.print(f"{moment(event.at):>19}  {event.kind} {event.detail}".rstrip())


@app.command()
def watch(context: typer.Context, job_id: JobId) -> None:
    """Follow a job until it ends, with a worker for it if none is running. Ctrl-C stops watching, not the job."""
    ours = application(context)
    ours.jobs.get(job_id)
    with working(ours):
        out.print(said(finish(ours, job_id)))


@app.command()
def cancel(context: typer.Context, job_id: JobId) -> None:
    """End a job; a running one ends at its next step. What a training saved stays until the job is removed."""
    out.print(said(application(context).jobs.cancel(job_id)))


@app.command()
def pause(context: typer.Context, job_id: JobId) -> None:
    """Let a job wait until it is resumed; a running training saves first."""
    out.print(said(application(context).jobs.pause(job_id)))


@app.command()
def resume(context: typer.Context, job_id: JobId) -> None:
    """Let a paused job go on where it stopped."""
    out.print(said(application(context).jobs.resume(job_id)))


@app.command()
def move(
    context: typer.Context,
    job_id: JobId,
    *,
    before: Annotated[
        str | None, typer.Option(help="The waiting job to put it in front of; without it: to the end.")
    ] = None,
) -> None:
    """Change the place of a waiting job."""
    application(context).jobs.move(job_id, before=before)
    out.print(f"job {job_id} now waits {f'before {before}' if before else 'at the end'}")


@app.command()
def save(context: typer.Context, job_id: JobId) -> None:
    """Ask a running training for a checkpoint at its next step."""
    application(context).jobs.save_now(job_id)
    out.print(f"job {job_id} saves at its next step")


@app.command()
def sample(context: typer.Context, job_id: JobId) -> None:
    """Ask a running training for sample images at its next step."""
    application(context).jobs.sample_now(job_id)
    out.print(f"job {job_id} samples at its next step")


@app.command()
def remove(
    context: typer.Context,
    job_id: JobId,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget an ended job with its checkpoints, samples and metrics. Its finished LoRA or images stay."""
    service = application(context).jobs
    service.get(job_id)
    if not yes:
        err.print(f"this removes job {job_id} and all in {service.run_dir(job_id)}; there is no way back")
        typer.confirm("Remove it?", abort=True, err=True)
    service.remove(job_id)
    out.print(f"job {job_id} is removed")


@app.command("recover")
def recover(context: typer.Context) -> None:
    """Put the last copy of a damaged job list in its place. End Isengard first; the damaged file is kept beside it."""
    settings: Settings = context.obj
    held = [lock.stem for lock in sorted((settings.data_dir / "workers").glob("*.lock")) if is_held(lock)]
    if held:
        raise Conflict(f"a worker is running on {settings.data_dir} ({held[0]}); end it and the page first")
    out.print(backups(settings).recover())


def way_out(remedy: Remedy | None, job_id: str) -> str:
    """The command that lets a training go on with less memory."""
    if remedy is None:
        return ""
    changes = " ".join(
        shlex.quote(f"--set={name}={json.dumps(value)}") for name, value in remedy.changes.items()
    )
    return f"{remedy.words}: python -m isengard jobs retry {job_id} {changes}"


def subject(job: Job) -> str:
    """What the job is for, in one line."""
    spec = job.payload.get("spec", {})
    if job.kind is JobKind.TRAIN_LORA:
        return f"training of {spec.get('character', '?')}"
    if job.kind is JobKind.CAPTION_IMAGES:
        return f"captions of {job.payload.get('character', '?')}"
    if job.kind is JobKind.EVALUATE_CHECKPOINTS:
        return f"comparison of {spec.get('run', '?')}"
    prompt = " ".join(str(spec.get("prompt", "?")).split())
    return f"images: {prompt if len(prompt) <= 40 else prompt[:39] + '…'}"


def state(job: Job) -> str:
    return {Stop.CANCEL: "cancelling", Stop.PAUSE: "pausing"}.get(job.stop or Stop.YIELD, job.status)


def steps(job: Job) -> str:
    if job.progress is None:
        return ""
    done = f" {job.progress.step}/{job.progress.total}" if job.progress.total else ""
    return f"{job.progress.phase}{done}"


def moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M}"


def said(job: Job) -> str:
    """What became of the job, as a sentence."""
    if job.status is JobStatus.RUNNING:
        asked = {"cancel": "ends", "pause": "saves and pauses"}.get(job.stop or "", "goes on")
        return f"job {job.id} {asked}" + (" at its next step" if job.stop else "")
    return f"job {job.id} {'waits again' if job.status is JobStatus.QUEUED else f'is {job.status}'}"
