"""``python -m isengard worker``: runs the jobs of one device."""

import logging
import os
import sys
from typing import Annotated

import typer

from isengard.cli.common import application, err
from isengard.supervisor import end_with_parent, only_worker, stopping
from isengard.wiring import build_handlers, is_spent
from isengard.worker import Worker

log = logging.getLogger(__name__)


def worker(
    context: typer.Context,
    *,
    once: Annotated[bool, typer.Option("--once", help="End when no job is waiting any more.")] = False,
    parent: Annotated[int | None, typer.Option(hidden=True, help="End with this process.")] = None,
) -> None:
    """Run waiting jobs on one device, until Ctrl-C or SIGTERM: the job at hand is saved then and goes on later.

    The other commands start a worker by themselves, so you need this one only to keep jobs going without them,
    or for a second device:

      python -m isengard --device cuda:1 worker
    """
    app = application(context)
    settings = app.settings
    with stopping() as stop, only_worker(settings, app.queue) as name:
        if parent is not None:
            end_with_parent(parent, stop)
        ours = Worker(
            queue=app.queue,
            handlers=build_handlers(settings, app),
            name=name,
            lease_s=settings.lease_s,
            owns_process=True,
            spent=is_spent,
        )
        err.print(f"worker {name} is ready; Ctrl-C saves and ends")
        if once:
            while not stop.is_set() and not is_spent() and ours.run_one(stop):
                pass
        else:
            ours.run(stop)
    if is_spent() and not stop.is_set():
        log.info("worker starts anew")
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # our own command line
