"""``python -m isengard ai-toolkit``: the engine for real base models, fetched on request."""

from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from isengard.cli.common import application, err, out, print_json
from isengard.store.ai_toolkit import REPOSITORY, CheckoutState, Stage

app = typer.Typer(
    help="AI-Toolkit: the engine for real base models. Get it, or see whether it is here.",
    no_args_is_help=True,
)

TITLES = {Stage.SOURCE: "1/2 fetching AI-Toolkit", Stage.PACKAGES: "2/2 installing its packages"}


@app.command()
def install(context: typer.Context) -> None:
    """Fetch AI-Toolkit (MIT licence) into the data folder, and install the packages it needs into this Python.

    It is one tested commit of github.com/ostris/ai-toolkit. What is here already stays; with ISENGARD_AI_TOOLKIT only
    the packages are installed. Isengard's own packages are never replaced. Ctrl-C ends it and leaves nothing half.
    """
    toolkit = application(context).ai_toolkit
    words = TextColumn("{task.fields[said]}", markup=False)
    with Progress(TextColumn("{task.description}"), BarColumn(), words, console=err, transient=True) as bars:
        task = bars.add_task(TITLES[Stage.SOURCE], total=None, said="")

        def report(stage: Stage, fraction: float | None, message: str) -> None:
            total = None if fraction is None else 1
            bars.update(task, description=TITLES[stage], total=total, completed=fraction or 0, said=message)

        state = toolkit.install(report)
    out.print(_where(state))
    err.print("ready; see: python -m isengard ai-toolkit status" if not state.reason else state.reason)


@app.command()
def status(
    context: typer.Context,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Say which commit is here, whether it is the tested one, and which packages there are."""
    state = application(context).ai_toolkit.state()
    if as_json:
        extra = {
            name: getattr(state, name) for name in ("present", "is_pinned", "missing", "usable", "reason")
        }
        print_json({**state.model_dump(mode="json"), **extra, "repository": REPOSITORY})
        return
    out.print(_where(state) if state.present else state.reason)
    table = Table("Package", "Wanted", "Installed", box=None)
    for package in state.packages:
        table.add_row(package.name, package.wanted, package.installed or "no")
    out.print(table)
    if state.present and state.reason:
        out.print(state.reason)


def _where(state: CheckoutState) -> str:
    tested = "the tested one" if state.is_pinned else f"tested is {state.pinned[:10]}"
    return f"AI-Toolkit in {state.path}, commit {(state.commit or 'unknown')[:10]} ({tested})"
