"""``python -m isengard logs``: what all processes wrote about one job, or about one failed request."""

import json
import re
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import typer

from isengard.cli.common import application, out
from isengard.errors import NotFound, QueueUnavailable
from isengard.services.jobs import JobService
from isengard.settings import Settings
from isengard.store.log_files import IDS, LogFiles, LogLine

LOOK_EVERY_S = 0.3
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: What is not repeated behind the message.
SHOWN_OTHERWISE = {"time", "level", "logger", "message", "pid", "thread", "fence", "exception", *IDS}


def logs(
    context: typer.Context,
    about: Annotated[
        str,
        typer.Argument(
            metavar="JOB", help="A job's id, or the reference that an error named.", show_default=False
        ),
    ],
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until the job has ended.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The lines as they were written, one JSON object each.")
    ] = False,
) -> None:
    """Show what page, workers and commands logged about a job, on all machines, the oldest first."""
    settings: Settings = context.obj
    files = LogFiles(settings.logs_dir)
    found = files.news(about)
    if not found and not follow:
        raise NotFound(
            f"nothing is logged about {about!r} in {settings.logs_dir}; `python -m isengard jobs list` shows all jobs"
        )
    _show(found, as_json=as_json)
    jobs = application(context).jobs if follow else None
    while jobs is not None:
        is_over = _is_over(jobs, about)
        _show(files.news(about), as_json=as_json)
        if is_over:
            break
        time.sleep(LOOK_EVERY_S)


def _is_over(jobs: JobService, job_id: str) -> bool:
    """Whether the job has ended; what is no job never does."""
    try:
        return jobs.get(job_id).status.ended
    except (NotFound, QueueUnavailable):
        return False


def _show(lines: Iterable[LogLine], *, as_json: bool) -> None:
    for line in lines:
        if as_json:
            typer.echo(json.dumps(line.record, ensure_ascii=False))
        else:
            out.print(in_words(line))


def in_words(line: LogLine) -> str:
    """``2026-11-23 12:01:02 worker info: job started kind=train_lora attempt=1``; a traceback in lines of its own."""
    record = line.record
    facts = " ".join(f"{key}={_plain(value)}" for key, value in record.items() if key not in SHOWN_OTHERWISE)
    said = f"{_moment(record)} {line.log} {str(record.get('level', '')).lower()}: {record.get('message', '')}"
    trace = str(record.get("exception", "")).splitlines()
    return "\n".join(map(_visible, [f"{said} {facts}".rstrip(), *(f"    {each}" for each in trace)]))


def _visible(text: str) -> str:
    """One line without a sign that a terminal obeys: what strangers type is in logs."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _moment(record: dict[str, Any]) -> str:
    try:
        return f"{datetime.fromisoformat(str(record.get('time'))).astimezone():%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return str(record.get("time", ""))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
