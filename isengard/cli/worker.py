"""``python -m isengard worker``: runs the jobs of one device."""

import gc
import logging
import os
import sys
from typing import Annotated

import typer

from isengard.announcer import Announcer
from isengard.cli.common import application, err
from isengard.equipment import cards_for, equip, is_spent
from isengard.supervisor import end_with_parent, only_worker, own_card, stopping
from isengard.wiring import build
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
    or for a further device: each takes a GPU that no other worker has, or the one that you name:

      python -m isengard --device cuda:1 worker
    """
    app = application(context)
    app.volume.check()
    with (
        stopping() as stop,
        own_card(app.settings, cards_for(app.settings)) as settings,
        only_worker(settings, app.queue) as name,
    ):
        if parent is not None:
            end_with_parent(parent, stop)
        if settings != app.settings:
            app = build(settings)  # its facts are those of this card
        equipment = equip(settings, app)
        announcer = Announcer(queue=app.queue, name=name, describe=equipment.describe)

        def after_job() -> None:
            announcer.soon()
            equipment.after_job()

        ours = Worker(
            queue=app.queue,
            handlers=equipment.handlers,
            name=name,
            lease_s=settings.lease_s,
            owns_process=True,
            spent=is_spent,
            after_job=after_job,
            check_files=equipment.check_files,
        )
        gc.freeze()  # of all that is imported: a full collection, of which a training makes several, takes 0.3 s less
        with equipment.beside(), announcer.announcing(comes_back=lambda: is_spent() and not stop.is_set()):
            err.print(f"worker {name} is ready; Ctrl-C saves and ends")
            if once:
                while not stop.is_set() and not is_spent() and ours.run_one(stop):
                    pass
            else:
                ours.run(stop)
    if is_spent() and not stop.is_set():
        log.info("worker starts anew")
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # our own command line
