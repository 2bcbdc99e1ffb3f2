"""One zip with everything that helps to find out what went wrong, and no secret that this process knows."""

import io
import json
import platform
import re
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

from isengard import __version__, logs
from isengard.domain.job import Job
from isengard.errors import IsengardError
from isengard.services.jobs import JobService
from isengard.settings import Settings
from isengard.store.child import Run
from isengard.store.log_files import LogFiles, tail

#: Of each log, and of all lines about the job.
TAIL_BYTES = 400_000
LINES = 5000
#: Jobs that are told of when none is named.
JOBS = 20

README = """What this is: a report of a problem with Isengard, made on {made}{about}.

about.json      versions of Isengard, Python and the packages, and what machine this is
settings.json   how Isengard is set; of secrets only whether they are set
doctor.txt      what `python -m isengard doctor` found
jobs.json       the job{plural}: settings with prompts and the character's name, progress, error, history
logs            the ends of the logs{lines}

Passwords, tokens and keys were replaced by ***. No photo, image or LoRA is in here. Have a look at it before you
give it to somebody: prompts, texts of errors and names of folders are as they were.
"""


class ReportService:
    """Makes reports. It works also where the job list does not: that is then what the report says."""

    def __init__(
        self,
        *,
        settings: Settings,
        jobs: JobService | None,
        secrets: Callable[[], Collection[str]],
        run: Run,
        doctor: Sequence[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``jobs``: None when the job list cannot be opened. ``run`` runs ``doctor``, a program that prints its findings."""
        self._settings, self._jobs, self._secrets = settings, jobs, secrets
        self._run, self._doctor, self._clock = run, tuple(doctor), clock

    def name(self) -> str:
        """A file name for a report that is made now."""
        return f"isengard-report-{datetime.fromtimestamp(self._clock(), UTC):%Y%m%d-%H%M%S}.zip"

    def content(self, job_id: str | None = None) -> bytes:
        """The zip, about one job or about the newest ones; takes some seconds. Raises: NotFound."""
        if job_id and self._jobs is not None:
            self._jobs.get(job_id)
        clean = Redaction(self._secrets())
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in self._parts(job_id):
                archive.writestr(name, clean(text))
        return written.getvalue()

    def _parts(self, job_id: str | None) -> Iterator[tuple[str, str]]:
        yield "README.txt", self._readme(job_id)
        yield "about.json", _json(_about())
        yield "settings.json", _json(self._settings.public())
        yield "jobs.json", _json(self._told(job_id))
        if job_id:
            found = LogFiles(self._settings.logs_dir).news(job_id)[-LINES:]
            lines = (json.dumps({"log": line.log, **line.record}, ensure_ascii=False) for line in found)
            yield f"logs/job-{job_id}.jsonl", "\n".join(lines)
        for log in sorted(self._settings.logs_dir.glob("*.jsonl")):
            yield f"logs/{log.name}", _end_of(log)
        for output in sorted(self._settings.logs_dir.glob("*.log")):
            yield f"logs/{output.name}", logs.redact(tail(output, TAIL_BYTES))
        yield "doctor.txt", logs.redact(self._examined())

    def _readme(self, job_id: str | None) -> str:
        made = datetime.fromtimestamp(self._clock(), UTC)
        return README.format(
            made=f"{made:%Y-%m-%d %H:%M} UTC",
            about=f", about job {job_id}" if job_id else "",
            plural="" if job_id else f"s, the newest {JOBS}",
            lines=", and all lines about the job" if job_id else "",
        )

    def _told(self, job_id: str | None) -> Any:
        if self._jobs is None:
            return {"error": "the job list cannot be opened; doctor.txt says why"}
        try:
            jobs = [self._jobs.get(job_id)] if job_id else self._jobs.jobs(limit=JOBS)
            return [self._with_history(self._jobs, job) for job in jobs]
        except IsengardError as error:
            return {"error": str(error)}

    def _with_history(self, jobs: JobService, job: Job) -> dict[str, Any]:
        events = [event.model_dump(exclude={"job_id"}) for event in jobs.history(job.id)]
        return {**logs.clean(job.model_dump(mode="json")), "history": logs.clean(events)}

    def _examined(self) -> str:
        said: list[str] = []
        try:
            self._run(self._doctor, said=said.append)
        except OSError as error:
            said.append(f"the doctor cannot be started: {error}")
        return "\n".join(filter(None, said))


class Redaction:
    """Takes secrets out of a text that are known by their value; what looks like one is no line of a log from the start."""

    def __init__(self, secrets: Collection[str]) -> None:
        written = {form for secret in secrets for form in logs.written(secret)}
        longest_first = sorted(written, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if written else None

    def __call__(self, text: str) -> str:
        return self._known.sub(logs.HIDDEN, text) if self._known else text


def _end_of(log: Path) -> str:
    """The end of a log, also where its file was just begun."""
    text = tail(log, TAIL_BYTES)
    former = "".join(tail(full, TAIL_BYTES - len(text)) for full in logs.full_files(log)[-1:])
    return former + text


def _about() -> dict[str, Any]:
    packages = {package.name: package.version for package in distributions()}
    return {
        "isengard": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "packages": dict(sorted(packages.items(), key=lambda entry: entry[0].lower())),
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
