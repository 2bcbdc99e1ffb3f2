"""Another program, run to its end or killed with everything it started."""

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

import psutil

#: Seconds of silence after which the caller is asked whether to go on.
ASK_EVERY_S = 0.25


class Run(Protocol):
    """How `run` is called; tests give another."""

    def __call__(self, command: Sequence[str], *, said: Callable[[str], None]) -> int: ...


def run(
    command: Sequence[str],
    *,
    said: Callable[[str], None],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> int:
    """Run a program and return its exit code.

    Args:
        command: The program and its arguments. It gets no input, and no terminal to ask at.
        said: Called with each line of its output and of its errors, and with "" while it is silent. What this raises
            kills the program and is let through.
        env: Its environment; that of this process when None.
        cwd: Its working directory; that of this process when None.

    Raises:
        OSError: the program cannot be started.
    """
    process = subprocess.Popen(  # noqa: S603  # commands of our own
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # also makes a line of what ends with a carriage return, as progress does
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        env=env,
        cwd=cwd,
    )
    lines: SimpleQueue[str | None] = SimpleQueue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    try:
        while (line := _next(lines)) is not None:
            said(line)
        return process.wait()
    finally:
        _kill(process)
        reader.join(timeout=1)


def _read(process: subprocess.Popen[str], lines: "SimpleQueue[str | None]") -> None:
    if process.stdout is not None:
        with process.stdout:
            for line in process.stdout:
                lines.put(line.rstrip())
    lines.put(None)


def _next(lines: "SimpleQueue[str | None]") -> str | None:
    try:
        return lines.get(timeout=ASK_EVERY_S)
    except Empty:
        return ""


def _kill(process: subprocess.Popen[str]) -> None:
    """End it and its children, if it still runs."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.wait()
