"""The workers on the training tab: what each has and does, and taking one out of service."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from isengard.domain.job import Job
from isengard.domain.worker import WorkerState
from isengard.wiring import Application
from tabs.common import PRIVATE, Page, Section, handled
from tabs.fleet import Fleet, memory
from tabs.progress import in_short

#: Brings the section into sight, as soon as its tab and it are open.
SHOW = """() => {
  let tries = 40;
  const show = () => {
    const list = document.querySelector("#training-workers .workers");
    if (list && list.offsetParent) document.getElementById("workers").scrollIntoView({ behavior: "smooth" });
    else if (tries--) setTimeout(show, 100);
  };
  setTimeout(show, 100);
}"""


def wire(section: Section, app: Application, *, again: Callable[[Any], Any]) -> None:
    """Let the buttons work; ``again`` paints the tab anew after an event."""
    for event, act in (
        (section.list.drain, app.workers.drain),
        (section.list.take, app.workers.take_jobs),
        (section.list.forget, app.workers.forget),
    ):
        again(event(_on_worker(act), None, None, show_progress="hidden", **PRIVATE))


def _on_worker(act: Callable[[str], Any]) -> Callable[[gr.EventData], None]:
    def on_worker(event: gr.EventData) -> None:
        act(str(getattr(event, "worker", "") or ""))

    return handled(on_worker)


def value(page: Page, fleet: Fleet, jobs: Sequence[Job], titles: Mapping[str, str]) -> dict[str, Any]:
    """What the script paints; ``rows`` come again with each look of a page that shows them."""
    return {
        "rows": rows(fleet, jobs),
        "titles": dict(titles),
        "shared": page.app.settings.redis_url is not None,
    }


def rows(
    fleet: Fleet, jobs: Sequence[Job], *, clock: Callable[[], float] = time.time
) -> list[dict[str, Any]]:
    """Living workers first. ``jobs``: at least those that run."""
    known, now = {job.id: job for job in jobs}, clock()
    return [_row(worker, fleet, known.get(worker.job or ""), now) for worker in fleet.workers]


def _row(worker: WorkerState, fleet: Fleet, job: Job | None, now: float) -> dict[str, Any]:
    state, total = fleet.state(worker), worker.total_bytes
    known = total > 0 and state != "silent"
    return {
        "worker": worker.name,
        "name": fleet.name(worker.name),
        "device": worker.device,
        "state": state,
        "memory": memory(total, worker.free_bytes) if known else "",
        "used": 100 * (total - worker.free_bytes) // total if known else 0,
        "ago_s": max(0, round(now - worker.seen_at)),
        "warm": worker.warm,
        "job": in_short(job) if job else None,
    }
