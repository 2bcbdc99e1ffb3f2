"""``python -m isengard report``: what to attach when you tell of a problem."""

from pathlib import Path
from typing import Annotated

import typer

from isengard.cli.common import application, err, out
from isengard.errors import IsengardError
from isengard.files import write_bytes
from isengard.wiring import reporting


def report(
    context: typer.Context,
    job_id: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="The job it is about.", show_default=False)
    ] = None,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The zip to write; else one here, named after now.")
    ] = None,
) -> None:
    """Write a zip for whoever is to find out what went wrong: versions, settings, the doctor's findings, logs, the job.

    Passwords, tokens and keys are left out, and so are photos, images and LoRAs. Look into it before you give it away.
    """
    try:
        service = application(context).reports
    except IsengardError as error:
        err.print(f"{error}; the report is made without the jobs")
        service = reporting(context.obj, jobs=None)
    err.print("asking the doctor, which takes some seconds")
    path = output or Path(service.name())
    write_bytes(path, service.content(job_id))
    out.print(str(path))
