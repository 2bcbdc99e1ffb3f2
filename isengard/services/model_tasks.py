"""Downloads and checks of base models in the background of the page: each is a process of its own.

A training does not wait for one, nor it for a training; it goes on when the page is closed, and every page shows it.
"""

import json
import logging
import threading
from collections.abc import Sequence
from enum import StrEnum

from isengard.domain.base import Frozen
from isengard.errors import Conflict, JobCancelled, NotFound
from isengard.store.child import Run
from isengard.store.download import DownloadProgress

log = logging.getLogger(__name__)

#: In front of what the command line says of an expected failure.
ERROR = "error: "


class Action(StrEnum):
    """What is done with a model; also the word of the command line for it."""

    DOWNLOAD = "download"
    VERIFY = "verify"


class Outcome(StrEnum):
    """How a task ended."""

    NONE = ""  # it still runs
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Task(Frozen):
    """A download or a check, running or ended."""

    model: str
    action: Action
    number: int
    outcome: Outcome = Outcome.NONE
    progress: DownloadProgress = DownloadProgress()
    damaged: tuple[str, ...] = ()
    error: str = ""

    @property
    def running(self) -> bool:
        return self.outcome is Outcome.NONE


class ModelTasks:
    """One task for each model at a time; of each model the last is remembered.

    Args:
        run: Runs a program, as `store.child.run`.
        command: ``models`` of the command line: the action and the model are added.
    """

    def __init__(self, *, run: Run, command: Sequence[str]) -> None:
        self._run, self._command = run, tuple(command)
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._cancelled: set[int] = set()
        self._number = 0

    def tasks(self) -> dict[str, Task]:
        """The last task of each model, by the model's name."""
        return dict(self._tasks)

    def running(self) -> bool:
        return any(task.running for task in self._tasks.values())

    def start(self, model: str, action: Action) -> None:
        """Begin in the background.

        Raises:
            Conflict: one of this model's runs already.
        """
        with self._lock:
            former = self._tasks.get(model)
            if former is not None and former.running:
                raise Conflict(f"a {former.action} of {model} runs already; wait for its end, or cancel it")
            self._number += 1
            task = self._tasks[model] = Task(model=model, action=action, number=self._number)
            thread = threading.Thread(target=self._work, args=(task,), name=f"{action}-{model}", daemon=True)
            self._threads[model] = thread
            thread.start()

    def cancel(self, model: str) -> None:
        """End it at once; what has come stays, and the next download goes on from there. Raises: NotFound."""
        task = self._tasks.get(model)
        if task is None or not task.running:
            raise NotFound(f"nothing of {model} is being downloaded or checked here")
        self._cancelled.add(task.number)

    def end(self, timeout_s: float) -> None:
        """Cancel everything, and return when it has ended or after this time."""
        for task in self.tasks().values():
            self._cancelled.add(task.number)
        for thread in list(self._threads.values()):
            thread.join(timeout_s)

    def wait(self, model: str, timeout_s: float) -> Task:
        """The model's last task, when it has ended or after this time."""
        self._threads[model].join(timeout_s)
        return self._tasks[model]

    def _work(self, task: Task) -> None:
        said: list[str] = []

        def listen(line: str) -> None:
            if task.number in self._cancelled:
                raise JobCancelled
            if line:
                self._hear(task.model, line, said)

        command = [*self._command, task.action, task.model, "--json"]
        outcome, error = Outcome.FAILED, "this is a bug in Isengard; the log has the details"
        try:
            code = self._run(command, said=listen)
            outcome = Outcome.DONE if code == 0 else Outcome.FAILED
            error = "" if code == 0 else "\n".join(said[-3:]) or f"it ended with exit code {code}"
        except JobCancelled:
            outcome, error = Outcome.CANCELLED, ""
        except OSError as failure:
            error = f"it cannot be started: {failure}"
        finally:
            if error:
                log.info("model task failed", extra={"model": task.model, "error": error})
            self._change(task.model, outcome=outcome, error=error)

    def _hear(self, model: str, line: str, said: list[str]) -> None:
        """A line is a JSON object (progress, or what was found), or words: an error, or a warning of a library."""
        try:
            told = json.loads(line) if line.startswith("{") else None
        except ValueError:
            told = None
        if told is None:
            said.append(line.removeprefix(ERROR))
        elif "done_bytes" in told:
            self._change(model, progress=DownloadProgress.model_validate(told))
        elif "damaged" in told:
            self._change(model, damaged=tuple(told["damaged"]))

    def _change(self, model: str, **changes: object) -> None:
        self._tasks[model] = self._tasks[model].model_copy(update=changes)
