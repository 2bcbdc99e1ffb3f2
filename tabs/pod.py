"""What the page says of the machine it runs on, where that is rented; and of runs that ended, for the browser to tell."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from isengard.domain.job import Job, JobKind, JobStatus
from isengard.services.notices import is_long
from isengard.services.pod import at_risk
from tabs.common import Page, scripted
from tabs.money import dollars
from tabs.progress import name_of

#: Runs that ended last, which a page is told of that wants to.
ENDED = 20
#: How the browser's words name an ended run, by its kind.
TOLD_AS = {
    JobKind.TRAIN_LORA: "training",
    JobKind.EVALUATE_CHECKPOINTS: "comparison",
    JobKind.CAPTION_IMAGES: "captions",
}
#: A person has not touched the page for longer: more is of no interest.
LONGEST_S = 10_000_000.0


def bell() -> gr.HTML:
    """The switch for notifications of the browser."""
    return scripted("bell", "training_dom", "bell", elem_id="bell", min_width=40)


def banner(page: Page) -> gr.HTML:
    """Warnings across the page, and what is going to happen to the machine."""

    def keep(_asked: Any = None) -> None:
        page.app.idle.used()

    return scripted("pod", "training_dom", "pod", elem_id="pod", server_functions=[keep])


def told(page: Page) -> dict[str, Any]:
    """For the banner and the header."""
    settings, state = page.app.settings, page.app.idle.state()
    return {
        "price": dollars(settings.price_per_hour),
        "wiped": at_risk(settings),
        "idle_min": round(state.idle_s / 60) if state.mentioned and settings.is_paid_by_the_hour else None,
        "stops_in_s": None if state.stops_in_s is None else round(state.stops_in_s),
        "stopping": state.stopping,
        "trouble": state.trouble,
    }


def touched(page: Page, asked: dict[str, Any]) -> None:
    """Hear from an open page how long nobody has touched it."""
    untouched_s = asked.get("untouched_s")
    if isinstance(untouched_s, int | float) and 0 <= untouched_s < LONGEST_S:
        page.app.idle.used(untouched_s)


def ended(page: Page) -> list[dict[str, Any]]:
    """The runs that ended last by themselves. Raises: QueueUnavailable, DiskFull."""
    jobs: Sequence[Job] = page.app.jobs.jobs(statuses=(JobStatus.SUCCEEDED, JobStatus.FAILED), limit=ENDED)
    return [
        {
            "key": f"{job.id} {job.finished_at}",
            "at": job.finished_at,
            "job": job.id,
            "kind": job.kind,
            "always": job.kind is JobKind.TRAIN_LORA or is_long(job),
            "what": TOLD_AS.get(job.kind, "images"),
            "failed": job.status is JobStatus.FAILED,
            "name": name_of(job),
            "said": job.error.message if job.error else str(job.payload.get("prompt", "")),
        }
        for job in jobs
    ]
