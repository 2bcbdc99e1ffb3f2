"""The command line: options that hold for every command, logs, and how a command ends.

Exit codes: 0 done, 1 an expected failure (one line says what to do), 2 wrong usage, 70 a bug, 130 Ctrl-C.
"""

import logging
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from isengard import __version__, logs
from isengard.cli import (
    ai_toolkit,
    backup,
    characters,
    compare,
    demo,
    doctor,
    generate,
    jobs,
    log_lines,
    lora,
    models,
    password,
    report,
    storage,
    train,
    worker,
    workers,
)
from isengard.cli.common import err
from isengard.errors import IsengardError
from isengard.settings import Settings, WorkerMode

log = logging.getLogger(__name__)

BUG = 70

HELP = """Train an identity LoRA of a character and make images with it, on your own GPU or on none.

Everything is kept under one data folder, and jobs go on after a crash or a restart.
"""
EXAMPLES = """**First steps**

  python -m isengard doctor             is this machine ready?

  python -m isengard demo               all of it with the bundled model

  python -m isengard characters --help  a character from your own photos

  python -m isengard train --help       then its LoRA

  python -m isengard generate --help    then images with it
"""


class Guarded(TyperGroup):
    """Ends each command with one plain line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except IsengardError as error:
            err.print(f"error: {error}")
            log.info("command failed", extra={"code": error.code, "error": str(error)})
            raise typer.Exit(1) from error
        except (typer.TyperException, typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            log.exception("command crashed")
            err.print(f"error: {_bug(error, ctx.obj)}")
            raise typer.Exit(BUG) from error


app = typer.Typer(
    cls=Guarded,
    help=HELP,
    epilog=EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode="markdown",  # brackets stay as they are: [trigger]
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _bug(error: Exception, settings: Settings | None) -> str:
    where = f"; the details are in {settings.log_file('cli')}" if settings else ""
    return logs.redact(f"this is a bug in Isengard: {type(error).__name__}: {error}{where}")


def _version(asked: bool) -> None:  # noqa: FBT001  # typer calls it so
    if asked:
        typer.echo(f"isengard {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    *,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Everything is kept in here. ISENGARD_DATA_DIR, else ./data."),
    ] = None,
    worker_mode: Annotated[
        WorkerMode | None,
        typer.Option(
            "--worker",
            help="Run jobs in a process of their own, in a thread, or leave them to workers elsewhere.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, mps, cuda or cuda:1.")] = None,
    log_level: Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log to stderr too, as JSON lines.")] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    settings = Settings.load(data_dir=data_dir, worker=worker_mode, device=device, log_level=log_level)
    is_worker = context.invoked_subcommand == "worker"
    # Perhaps into the data folder, which has to be empty.
    is_restore = context.invoked_subcommand == "restore"
    logs.configure(
        level=settings.log_level,
        path=None if is_restore else settings.log_file("worker" if is_worker else "cli"),
        hidden=settings.secret_values(),
        terminal_level=settings.log_level if is_worker or log_json else "WARNING",
        terminal_json=log_json,
    )
    context.with_resource(logs.bound(everywhere=True, correlation_id=uuid.uuid4().hex[:12]))
    context.obj = settings


MAKE, KEPT, MACHINE = "From photos to images", "What there is", "This machine"
app.command("demo", rich_help_panel=MAKE)(demo.demo)
app.add_typer(characters.app, name="characters", rich_help_panel=MAKE)
app.command("train", rich_help_panel=MAKE)(train.train)
app.command("compare", rich_help_panel=MAKE)(compare.compare)
app.command("generate", rich_help_panel=MAKE)(generate.generate)
app.add_typer(lora.app, name="lora", rich_help_panel=KEPT)
jobs.app.command("retry")(train.retry)
app.add_typer(jobs.app, name="jobs", rich_help_panel=KEPT)
app.add_typer(models.app, name="models", rich_help_panel=KEPT)
app.command("storage", rich_help_panel=KEPT)(storage.storage)
app.command("cleanup", rich_help_panel=KEPT)(storage.cleanup)
app.add_typer(ai_toolkit.app, name="ai-toolkit", rich_help_panel=MACHINE)
app.command("password", rich_help_panel=MACHINE)(password.password)
app.command("backup", rich_help_panel=KEPT)(backup.backup)
app.command("restore", rich_help_panel=KEPT)(backup.restore)
app.command("logs", rich_help_panel=KEPT)(log_lines.logs)
app.command("doctor", rich_help_panel=MACHINE)(doctor.doctor)
app.command("report", rich_help_panel=MACHINE)(report.report)
app.command("worker", rich_help_panel=MACHINE)(worker.worker)
app.add_typer(workers.app, name="workers", rich_help_panel=KEPT)
