"""``python -m isengard backup`` and ``restore``: the whole data folder in one file, and back."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn

from isengard.cli.common import err, out
from isengard.services.backup import JOBS
from isengard.settings import Settings
from isengard.store.archive import Manifest, Report
from isengard.wiring import backups


def backup(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(help="The .tar file to make, or a folder for it.", show_default=False)
    ],
    *,
    models: Annotated[bool, typer.Option("--models", help="With the downloaded base models.")] = False,
    token: Annotated[bool, typer.Option("--token", help="With the Hugging Face token.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Make none: read the one that is there and compare its hashes.")
    ] = False,
) -> None:
    """Write the whole data folder into one file, as it is at one moment; jobs may run meanwhile.

    What can be made or fetched again is left out: caches, AI-Toolkit, and base models without --models.
    """
    settings: Settings = context.obj
    service = backups(settings)
    with _reporting() as report:
        if check:
            manifest = service.check(path, report=report)
        else:
            path, manifest = service.make(path, models=models, token=token, report=report)
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created_at))
    out.print(
        f"{path} is whole: {len(manifest.files)} files, {decimal(manifest.total_bytes)}, as of {moment}"
    )
    if not check and settings.is_shared:
        err.print(
            "the job list is on the Redis server and not in it: keep a copy of that server's files, too"
        )
    _say_what_is_missing(manifest)


def restore(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="What `backup` has made.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
) -> None:
    """Put a backup into a new or empty folder, which is a data folder then. Jobs that ran go on from their last checkpoint."""
    with _reporting() as report:
        manifest = backups(context.obj).restore(path, into=folder, report=report)
    out.print(f"{folder} holds {len(manifest.files)} files; start with: python app.py --data-dir {folder}")
    if not manifest.holds(JOBS):
        err.print("it holds no job list: the jobs are on the Redis server, or there were none")
    _say_what_is_missing(manifest)


def _say_what_is_missing(manifest: Manifest) -> None:
    for name in manifest.left_out:
        err.print(f"base model {name} is not in it: python -m isengard models download {name}")


@contextmanager
def _reporting() -> Iterator[Report]:
    words = TextColumn("{task.fields[said]}", markup=False)
    bar = (TextColumn("{task.percentage:>3.0f} %"), BarColumn(), words)
    with Progress(*bar, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("", total=None, said="")

        def report(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, said=f"{decimal(done)} of {decimal(total)}")

        yield report
