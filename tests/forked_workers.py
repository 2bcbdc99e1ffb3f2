"""Real workers, each a process that can be killed, without the seconds that Python takes to import what they need."""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess

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


def start_worker(settings: Settings) -> BaseProcess:
    """Do what ``python -m isengard worker`` does, in a process of its own."""
    process = COPIES.Process(target=_work, args=(settings.child_environment(),), daemon=True)
    process.start()
    return process


def _work(environment: dict[str, str]) -> None:
    from isengard.cli import app

    sys.settrace(None)  # who is killed cannot say which lines it ran
    os.environ.update(environment)  # noqa: TID251  # as a child process is given it
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    app(["worker"])
