"""Shows how a job gets on, from the moment it waits until it ends."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar

from isengard.cli.common import err
from isengard.domain.job import Job, JobStatus, Phase, Progress
from isengard.equipment import equip
from isengard.errors import IsengardError, QueueUnavailable
from isengard.services.workers import NO_WORKER
from isengard.settings import WorkerMode
from isengard.supervisor import local_worker
from isengard.wiring import Application

LOOK_EVERY_S = 0.2
#: Without a terminal, lines of one phase come this far apart.
LINE_EVERY_S = 10.0
#: And a job that waits is only worth a line after this time.
MENTION_WAITING_AFTER_S = 1.0
#: These interrupt the training or the generation again and again; the bar stays with what they interrupt.
ASIDES = (Phase.VALIDATING, Phase.SAVING, Phase.SAMPLING)


def follow(application: Application, job_id: str) -> Job:
    """Show the job's progress on stderr until it has ended or is paused, and return it.

    Ctrl-C ends the watching and not the job: it exits with 130, after saying how to stop the job itself.

    Raises:
        NotFound: there is no such job.
    """
    jobs = application.jobs
    view: View = Bars(err) if err.is_terminal else Lines(err)
    attempt = max(jobs.get(job_id).attempt, 1)
    try:
        with view:
            for job, title in _states(application, job_id, view):
                if job.attempt > attempt:
                    attempt = job.attempt
                    view.say(f"the worker was lost; attempt {attempt} goes on from what was saved")
                if job.status.ended or job.status is JobStatus.PAUSED:
                    break
                view.show(title, None if job.status is JobStatus.QUEUED else job.progress)
            return job
    except KeyboardInterrupt:
        err.print(
            f"stopped watching job {job_id}; it was not cancelled. From here:\n"
            f"  python -m isengard jobs watch {job_id}    go on with it and watch\n"
            f"  python -m isengard jobs pause {job_id}    let it wait until resumed\n"
            f"  python -m isengard jobs cancel {job_id}   end it"
        )
        raise typer.Exit(130) from None


def _states(application: Application, job_id: str, view: "View") -> Iterator[tuple[Job, str]]:
    """Give the job now, and then each time it may have changed, with a title for it. A job list that cannot be reached is waited for."""
    jobs, is_away = application.jobs, False
    while True:
        try:
            with jobs.listening(job_id) as changed:
                while True:
                    job, is_away = jobs.get(job_id), False
                    waits = job.status is JobStatus.QUEUED
                    yield job, waiting(application, job) if waits else "starting"
                    changed(LOOK_EVERY_S)
        except QueueUnavailable as error:
            if not is_away:
                view.say(f"{error}; the job goes on, and this follows it again as soon as it can")
            is_away = True
            time.sleep(LOOK_EVERY_S)


def working(application: Application) -> AbstractContextManager[None]:
    """See to it that a worker runs while the block does, one of our own where there is none.

    Raises:
        VolumeUnfit: a worker elsewhere would not see what this machine wrote.
    """
    application.volume.check()
    return local_worker(
        application.settings, application.queue, lambda: equip(application.settings, application)
    )


def finish(application: Application, job_id: str) -> Job:
    """Follow a job to its end and return it, succeeded.

    Raises:
        IsengardError: it failed, was cancelled or paused; says what now.
    """
    job = follow(application, job_id)
    if job.error:
        raise IsengardError(f"{job.error.message} (job {job_id})")
    if job.status is not JobStatus.SUCCEEDED:
        raise IsengardError(f"job {job_id} is {job.status}; what it finished is kept")
    return job


def waiting(application: Application, job: Job) -> str:
    ahead, why = application.jobs.ahead(job.id), application.workers.why_waiting(job)
    ours_starts = why == NO_WORKER and application.settings.worker is not WorkerMode.NONE
    if why and not ours_starts:
        return f"waiting: {why}"
    return f"waiting, {ahead} before it" if ahead else "waiting for a worker"


def facts(progress: Progress) -> str:
    """What is known beside the steps, in a few words."""
    said = []
    if progress.loss is not None:
        said.append(f"loss {progress.loss:.4f}")
    if progress.validation_loss is not None:
        said.append(f"validation {progress.validation_loss:.4f}")
    if progress.steps_per_s:
        slow = progress.steps_per_s < 1
        said.append(
            f"{1 / progress.steps_per_s:.1f} s/step" if slow else f"{progress.steps_per_s:.1f} steps/s"
        )
    if progress.eta_s is not None:
        said.append(f"{duration(progress.eta_s)} left")
    if progress.message:
        said.append(progress.message)
    return ", ".join(said)


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds: 2:05 h, 1:09 min, 8 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02} h"
    return f"{whole // 60}:{whole % 60:02} min" if whole >= 60 else f"{whole} s"


class View(Protocol):
    """Where a job's course is shown."""

    def __enter__(self) -> object: ...
    def __exit__(self, *_: object) -> None: ...

    def show(self, title: str, progress: Progress | None) -> None:
        """Show where the job stands; ``title`` is used as long as it has no progress."""
        ...

    def say(self, text: str) -> None:
        """Leave a line that stays."""
        ...


class Bars:
    """One live line in a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=None, facts="")

    def __enter__(self) -> "Bars":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, title: str, progress: Progress | None) -> None:
        if progress is None:
            self._bar.update(self._task, description=title, facts="")
            return
        self._bar.update(self._task, description=progress.phase, facts=facts(progress))
        if progress.phase not in ASIDES:
            self._bar.update(self._task, completed=progress.step, total=progress.total or None)

    def say(self, text: str) -> None:
        self._console.print(text)


class Lines:
    """Plain lines for a log: one for each new phase, and one now and then."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._seen: set[str] = set()
        self._last, self._next_at = "", 0.0
        self._waits_since: float | None = None

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, title: str, progress: Progress | None) -> None:
        if progress is None:
            if self._waits_since is None:
                self._waits_since = self._clock()
            if self._clock() - self._waits_since < MENTION_WAITING_AFTER_S:
                return
            what, line = title, title
        else:
            self._waits_since = None
            what = progress.phase
            steps = f"{progress.step}/{progress.total}" if progress.total else ""
            line = " ".join(part for part in (what, steps, facts(progress)) if part)
        if line != self._last and (what not in self._seen or self._clock() >= self._next_at):
            self._seen.add(what)
            self.say(line)
            self._last, self._next_at = line, self._clock() + LINE_EVERY_S

    def say(self, text: str) -> None:
        self._console.print(text)
