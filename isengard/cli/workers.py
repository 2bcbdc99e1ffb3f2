"""``python -m isengard workers``: who runs jobs, and where."""

import time
from typing import Annotated

import typer
from rich.table import Table

from isengard.cli.common import application, out, print_json
from isengard.cli.follow import duration
from isengard.domain.memory import gb
from isengard.domain.worker import WorkerState

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="As `workers list` shows it.", show_default=False)]


@app.callback()
def main() -> None:
    """See the workers that run jobs, on this machine and on others, and steer them."""


@app.command("list")
def list_workers(
    context: typer.Context,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List workers, those that live first: their card, memory, job, and when they were last heard of."""
    service = application(context).workers
    found = [(worker, service.is_alive(worker)) for worker in service.workers()]
    if as_json:
        print_json([{**worker.model_dump(mode="json"), "alive": alive} for worker, alive in found])
        return
    table, now = Table(box=None), time.time()
    for title in ("Worker", "Card", "Free", "Job", "Heard of", "State"):
        table.add_column(title, no_wrap=title not in ("Card", "State"))
    for worker, alive in found:
        heard = f"{duration(max(0, now - worker.seen_at))} ago"
        memory = f"{gb(worker.free_bytes)} of {gb(worker.total_bytes)}"
        table.add_row(worker.name, worker.device, memory, worker.job or "", heard, state(worker, alive=alive))
    out.print(table if found else "no worker is known; start one with: python -m isengard worker")


@app.command()
def drain(context: typer.Context, name: Name) -> None:
    """Let a worker finish its job and take no more."""
    worker = application(context).workers.drain(name)
    out.print(
        f"worker {name} " + (f"takes no more after job {worker.job}" if worker.job else "takes no more jobs")
    )


@app.command()
def resume(context: typer.Context, name: Name) -> None:
    """Let a draining worker take jobs again."""
    application(context).workers.take_jobs(name)
    out.print(f"worker {name} takes jobs")


@app.command()
def forget(context: typer.Context, name: Name) -> None:
    """Take a worker that is gone out of the list; its job, if it had one, is given to another all the same."""
    application(context).workers.forget(name)
    out.print(f"worker {name} is forgotten")


def state(worker: WorkerState, *, alive: bool) -> str:
    if not alive:
        return "gone"
    doing = "works" if worker.job else "idle"
    return f"{doing}, takes no more" if worker.draining else doing
