"""``python -m isengard doctor``: is everything here that a training needs?"""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import typer
from rich.table import Table
from rich.text import Text

from isengard import files
from isengard.cli.common import application, err, out, print_json
from isengard.domain.base import Frozen
from isengard.domain.job import JobStatus
from isengard.domain.memory import gb
from isengard.errors import IsengardError
from isengard.queue.shared import ServerFacts, SharedLedger
from isengard.services.checks import FREE_BYTES_NEEDED
from isengard.services.pod import WAY_OUT, at_risk, check_stop
from isengard.services.volume import SKEW_S
from isengard.settings import ROOT, Settings, WorkerMode
from isengard.store.ai_toolkit import OURS, CheckoutState, Matter
from isengard.store.packages import packages
from isengard.store.volume import check_file_system, check_locking, check_replacing
from isengard.supervisor import is_held, lock_of, lock_path
from isengard.wiring import Application

GB = 10**9
#: A run with all its checkpoints and its cache needs a few; a base model needs more.
FREE_BYTES_ADVISED = 5 * GB
PROBE = ["-m", "isengard.engines.probe"]
PROBE_TIMEOUT_S = 120
#: Trains a tiny model for two steps with AI-Toolkit; ends with 0 when that works.
SMOKE = ["-m", "isengard.engines.ai_toolkit.smoke"]
SMOKE_TIMEOUT_S = 600


class Verdict(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"  # works, but the user should know
    BROKEN = "broken"  # the doctor ends with exit code 1


Subject = TypeVar("Subject")
COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.BROKEN: "red"}


class Finding(Frozen):
    """One line of the report."""

    what: str
    verdict: Verdict
    detail: str


def doctor(
    context: typer.Context,
    *,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Also train a tiny model for two steps with AI-Toolkit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on stdout.")] = False,
) -> None:
    """Check this machine: Python and packages, the device, the data folder, configs, base models, engines, the worker.

    Ends with exit code 1 when something is broken. A warning is no hindrance: a base model that is missing only
    matters when you want to use it. When all is well, go on with: python -m isengard demo
    """
    shared = context.obj.redis_url is not None
    findings = [
        finding
        for part in (_packages, _torch, _data_folder, _file_locks, *(() if shared else (_sqlite,)))
        for finding in _safely(part, context.obj)
    ]
    try:
        app = application(context)
    except (IsengardError, OSError, sqlite3.Error) as error:
        findings.append(_broken("application", error))
    else:
        parts = (_configs, _base_models, _memory, _ai_toolkit, *((_smoke,) if smoke else ()), _jobs, _pod)
        parts += (_file_system, _job_server, _volume, _clocks, _locks_between_machines) if shared else ()
        findings += [finding for part in parts for finding in _safely(part, app)]
    broken = sum(finding.verdict is Verdict.BROKEN for finding in findings)
    if as_json:
        print_json([finding.model_dump(mode="json") for finding in findings])
    else:
        _show(findings)
        err.print(f"{broken} broken" if broken else "ready; next: python -m isengard demo")
    if broken:
        raise typer.Exit(1)


def _show(findings: list[Finding]) -> None:
    table = Table("", "What", "Found", box=None)
    for finding in findings:
        colour = COLOURS[finding.verdict]
        table.add_row(Text(finding.verdict, colour), finding.what, finding.detail)
    out.print(table)


def _packages(_: Settings) -> Iterator[Finding]:
    running = ".".join(map(str, sys.version_info[:3]))
    verdict = Verdict.OK if sys.version_info >= (3, 11) else Verdict.BROKEN
    yield Finding(what="python", verdict=verdict, detail=f"{running} (3.11 or newer is needed)")
    wrong = [package.complaint for package in packages(OURS) if not package.fits]
    if wrong:
        detail = f"{', '.join(wrong)}; run: pip install -r requirements.txt"
        yield Finding(what="packages", verdict=Verdict.BROKEN, detail=detail)
    else:
        yield Finding(what="packages", verdict=Verdict.OK, detail="as requirements.txt asks for")


def _torch(settings: Settings) -> Iterator[Finding]:
    """In a process of its own: an import that crashes is just what the user needs to hear about."""
    command = [sys.executable, *PROBE, settings.device]
    done = subprocess.run(  # noqa: S603  # our own module
        command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, cwd=ROOT, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise OSError(f"torch does not start: {last}; run: pip install -r requirements.txt")
    found = json.loads(done.stdout)
    yield Finding(what="torch", verdict=Verdict.OK, detail=f"{found['torch']}, built for {found['build']}")
    if "error" in found:
        yield Finding(what="device", verdict=Verdict.BROKEN, detail=found["error"])
        return
    detail = f"{found['device']}: {found['title']}, {found['memory_bytes'] / GB:.1f} GB"
    small = found["device"] == "cpu"
    if small:
        detail += "; enough for the demo model, other base models need a GPU"
    yield Finding(what="device", verdict=Verdict.WARNING if small else Verdict.OK, detail=detail)


def _data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    try:
        files.write_text(folder / "doctor.txt", "can be removed")  # fsync and rename
        (folder / "doctor.txt").unlink()
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error}; choose another with --data-dir") from error
    yield Finding(what="data folder", verdict=Verdict.OK, detail=str(folder))
    free = shutil.disk_usage(folder).free
    verdict = Verdict.OK if free >= FREE_BYTES_ADVISED else Verdict.WARNING
    if free < FREE_BYTES_NEEDED:
        verdict = Verdict.BROKEN
    detail = f"{free / GB:.1f} GB free ({FREE_BYTES_ADVISED / GB:.0f} GB or more are advised)"
    yield Finding(what="disk space", verdict=verdict, detail=detail)


def _file_locks(settings: Settings) -> Iterator[Finding]:
    """One worker for each device, and no two changes at once, hang on them."""
    yield Finding(what="file locks", verdict=Verdict.OK, detail=check_locking(settings.data_dir))


def _sqlite(_: Settings) -> Iterator[Finding]:
    """UPDATE ... RETURNING, which claims jobs, came with 3.35."""
    verdict = Verdict.OK if sqlite3.sqlite_version_info >= (3, 35) else Verdict.BROKEN
    yield Finding(
        what="sqlite", verdict=verdict, detail=f"{sqlite3.sqlite_version} (3.35 or newer is needed)"
    )


def _configs(app: Application) -> Iterator[Finding]:
    catalog = app.catalog
    counts = (
        f"{len(catalog.models())} base models, {len(catalog.presets())} training presets,"
        f" {len(catalog.templates())} generation templates"
    )
    yield Finding(what="configs", verdict=Verdict.OK, detail=f"{counts} in {catalog.configs_dir}")


def _base_models(app: Application) -> Iterator[Finding]:
    for card in app.catalog.models():
        found = app.weights.status(card)
        verdict, detail = Verdict.OK, str(found.path)
        if not found.ready:
            verdict = Verdict.BROKEN if card.path else Verdict.WARNING
            detail = f"{found.state}; get it with: python -m isengard models download {card.name}"
        yield Finding(what=f"model {card.name}", verdict=verdict, detail=detail)


def _memory(app: Application) -> Iterator[Finding]:
    """What the planner would do here; nothing is tried."""
    machine = app.planning.machine()
    room = f"{machine.name}: {gb(machine.room())} for a job, {gb(machine.system_room())} of system memory"
    yield Finding(what="memory", verdict=Verdict.OK, detail=room)
    for card in app.catalog.models():
        trained, made = app.training.fit(card), app.planning.makes_images(card)
        said = [f"images with {made.words}" if made.fits else made.reasons[0]]
        if trained is not None:
            said.insert(0, f"trains with {trained.words}" if trained.fits else trained.reasons[0])
        yield Finding(what=f"fits {card.name}", verdict=Verdict.OK, detail="; ".join(said))


def _ai_toolkit(app: Application) -> Iterator[Finding]:
    """It is optional: without it our own engine trains."""
    state = app.ai_toolkit.state()
    if state.matter is Matter.ABSENT:
        detail = state.reason if not state.owned else f"not installed; {state.reason.partition('; ')[2]}"
        yield Finding(
            what="ai-toolkit", verdict=Verdict.OK if state.owned else Verdict.WARNING, detail=detail
        )
        return
    detail = f"commit {(state.commit or 'unknown')[:10]} in {state.path}"
    if state.is_pinned:
        yield Finding(what="ai-toolkit", verdict=Verdict.OK, detail=f"{detail}, the tested one")
    else:
        detail += f"; tested is {state.pinned[:10]}"
        yield Finding(what="ai-toolkit", verdict=Verdict.WARNING, detail=detail)
    yield _its_packages(state)


def _its_packages(state: CheckoutState) -> Finding:
    if state.missing:
        return Finding(what="ai-toolkit packages", verdict=Verdict.WARNING, detail=state.reason)
    versions = ", ".join(f"{package.name} {package.installed}" for package in state.packages)
    return Finding(what="ai-toolkit packages", verdict=Verdict.OK, detail=versions)


def _smoke(app: Application) -> Iterator[Finding]:
    """In a process of its own, as a training in this one would change how everything after it runs."""
    what = "ai-toolkit smoke"
    if absence := app.ai_toolkit.absence():
        yield Finding(what=what, verdict=Verdict.WARNING, detail=f"not tried: {absence}")
        return
    done = subprocess.run(  # noqa: S603  # our own module
        [sys.executable, *SMOKE, str(app.ai_toolkit.state().path), app.settings.device],
        capture_output=True,
        text=True,
        timeout=SMOKE_TIMEOUT_S,
        cwd=ROOT,
        env=app.settings.child_environment(),
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding(what=what, verdict=Verdict.BROKEN, detail=f"AI-Toolkit does not train: {last}")
    else:
        yield Finding(what=what, verdict=Verdict.OK, detail="two steps on a tiny model")


def _jobs(app: Application) -> Iterator[Finding]:
    jobs = app.queue.jobs(statuses=(JobStatus.QUEUED, JobStatus.RUNNING))
    running = sum(job.status is JobStatus.RUNNING for job in jobs)
    waiting = len(jobs) - running
    yield Finding(what="jobs", verdict=Verdict.OK, detail=f"{running} running, {waiting} waiting")
    if is_held(lock_path(app.settings)):
        yield Finding(what="worker", verdict=Verdict.OK, detail=f"running for device {app.settings.device}")
    elif names := ", ".join(worker.name for worker in app.workers.workers() if app.workers.is_alive(worker)):
        yield Finding(
            what="worker", verdict=Verdict.OK, detail=f"none is running here, and elsewhere: {names}"
        )
    elif jobs or app.settings.worker is WorkerMode.NONE:
        detail = "none is running here; start one with: python -m isengard worker"
        yield Finding(what="worker", verdict=Verdict.WARNING, detail=detail)
    else:
        yield Finding(what="worker", verdict=Verdict.OK, detail="starts with the next job")


def _pod(app: Application) -> Iterator[Finding]:
    """Nothing is said where nothing is rented and nothing was asked for."""
    settings = app.settings
    if settings.runpod_pod_id:
        folder = at_risk(settings)
        found = (
            f"{folder} is lost when the pod stops; {WAY_OUT}" if folder else "the data folder is on a volume"
        )
        yield Finding(what="runpod", verdict=Verdict.WARNING if folder else Verdict.OK, detail=found)
    if settings.stop_when_idle_minutes:
        check_stop(settings)
        detail = f"after {settings.stop_when_idle_minutes} min; that RunPod agrees is seen when it is tried"
        yield Finding(what="stop when idle", verdict=Verdict.OK, detail=detail)
    if settings.webhook_url:
        host = urlsplit(settings.webhook_url.get_secret_value()).hostname
        yield Finding(what="webhook", verdict=Verdict.OK, detail=f"the ends of runs are told to {host}")


def _file_system(app: Application) -> Iterator[Finding]:
    detail = f"{check_file_system(app.settings.data_dir)}; renames {check_replacing(app.settings.data_dir)}"
    yield Finding(what="file system", verdict=Verdict.OK, detail=detail)


def _job_server(app: Application) -> Iterator[Finding]:
    """Whether it loses nothing. Its version and its commands were looked at when the job list was opened."""
    if isinstance(app.queue, SharedLedger):
        server = app.queue.server_facts()
        detail = f"{server.program}, {server.where}"
        yield Finding(what="job server", verdict=Verdict.OK, detail=detail)
        yield _on_disk(server)


def _on_disk(server: ServerFacts) -> Finding:
    advice = "; set: appendonly yes, appendfsync always"
    if not server.appends:
        found = "does not tell whether it keeps them" if server.appends is None else "keeps no log of them"
        detail = f"a restart of the server may lose jobs: it {found}{advice}"
        return Finding(what="jobs on disk", verdict=Verdict.WARNING, detail=detail)
    if server.syncs != "always":
        detail = f"appendonly yes, appendfsync {server.syncs or 'not told'}: a crash of its machine may cost a second"
        return Finding(what="jobs on disk", verdict=Verdict.WARNING, detail=detail + advice)
    return Finding(what="jobs on disk", verdict=Verdict.OK, detail="appendonly yes, appendfsync always")


def _volume(app: Application) -> Iterator[Finding]:
    detail = f"{app.volume.same()}, the one that goes with the job list"
    yield Finding(what="volume", verdict=Verdict.OK, detail=detail)


def _clocks(app: Application) -> Iterator[Finding]:
    if skews := list(app.volume.skews()):
        yield Finding(what="clocks", verdict=Verdict.WARNING, detail="; ".join(skews))
    else:
        yield Finding(what="clocks", verdict=Verdict.OK, detail=f"agree within {SKEW_S:.0f} s")


def _locks_between_machines(app: Application) -> Iterator[Finding]:
    """A worker that has a job holds its lock: it has to be seen from here, wherever the worker is."""
    jobs = app.queue.jobs(statuses=(JobStatus.RUNNING,))
    working = sorted({job.worker for job in jobs if job.worker})
    unseen = [worker for worker in working if not is_held(lock_of(app.settings, worker))]
    if unseen:
        detail = (
            f"{', '.join(unseen)}: at work, but the lock in {app.settings.data_dir / 'workers'} is free as seen from here;"
            " if it did not die in this minute, locks do not reach this machine: docs/several-machines.md"
        )
        yield Finding(what="locks of workers", verdict=Verdict.WARNING, detail=detail)
    else:
        detail = f"seen from here: {', '.join(working) or 'no worker has a job just now'}"
        yield Finding(what="locks of workers", verdict=Verdict.OK, detail=detail)


def _safely(part: Callable[[Subject], Iterator[Finding]], subject: Subject) -> list[Finding]:
    """What one part found; an error ends the part and is itself a finding."""
    findings: list[Finding] = []
    try:
        findings.extend(part(subject))
    except (IsengardError, OSError, sqlite3.Error, subprocess.SubprocessError, ValueError) as error:
        findings.append(_broken(part.__name__.strip("_").replace("_", " "), error))
    return findings


def _broken(what: str, error: Exception) -> Finding:
    return Finding(what=what, verdict=Verdict.BROKEN, detail=str(error) or type(error).__name__)
