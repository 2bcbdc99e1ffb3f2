"""Real workers, each a process that can be killed, without the seconds that Python takes to import what they need."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from isengard.domain.job import Phase, Progress
from isengard.settings import Settings

#: Each worker is a copy of one process, which has imported this and done nothing else.
COPIES = multiprocessing.get_context("forkserver")
COPIES.set_forkserver_preload(
    [
        "isengard.cli",
        "isengard.engines.ai_toolkit.trainer",
        "isengard.engines.native.flux",
        "isengard.engines.native.flux2",
        "isengard.engines.native.sdxl",
        "isengard.engines.native.trainer",
        "isengard.engines.pipelines.generator",
        "isengard.engines.pipelines.verifier",
        "isengard.handlers.training",
    ]
)


@dataclass(frozen=True)
class Moment:
    """Where a worker kills itself with SIGKILL; who waits for it from outside can miss what lasts a millisecond.

    That is at its first report in one of ``phases`` with ``step`` or more, or as soon as something unfinished lies in
    the folder ``writing`` and is about to take its place.
    """

    phases: tuple[Phase, ...] = ()
    step: int = 0
    writing: Path | None = None

    def after_report(self, progress: Progress) -> None:
        if progress.phase in self.phases and progress.step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_rename(self) -> None:
        if self.writing is not None and any(self.writing.glob("*.partial-*")):
            os.kill(os.getpid(), signal.SIGKILL)

    def await_it(self) -> None:
        from isengard.worker import Reporter

        report: Callable[..., Any] = Reporter.__call__
        check: Callable[..., Any] = Reporter.check

        def report_and_die(reporter: Reporter, progress: Progress) -> Any:
            answer = report(reporter, progress)
            self.after_report(progress)
            return answer

        def check_and_die(reporter: Reporter) -> None:
            check(reporter)
            self.before_rename()

        Reporter.__call__, Reporter.check = report_and_die, check_and_die  # type: ignore[method-assign]


def start_worker(settings: Settings, *, dies: Moment | None = None) -> BaseProcess:
    """Do what ``python -m isengard worker`` does, in a process of its own."""
    process = COPIES.Process(target=_work, args=(settings.child_environment(), dies), daemon=True)
    process.start()
    return process


def _work(environment: dict[str, str], dies: Moment | None) -> None:
    from isengard.cli import app

    if dies is not None:
        dies.await_it()

    sys.settrace(None)  # who is killed cannot say which lines it ran
    os.environ.update(environment)  # noqa: TID251  # as a child process is given it
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    app(["worker"])
