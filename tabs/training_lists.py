"""The two lists of the training tab: what waits, and what has ended."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from isengard.domain.job import Job, JobStatus
from tabs.common import duration
from tabs.status import name_of
from tabs.training_live import BADGES, result_words, spec_of, summary


def waiting_rows(
    jobs: Sequence[Job], titles: Mapping[str, str], presets: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Waiting trainings in their order, then paused ones; with the neighbours they can change places with."""
    waiting = [job for job in jobs if job.status is JobStatus.QUEUED]
    rows = []
    for place, job in enumerate(waiting):
        after = waiting[place + 2].id if place + 2 < len(waiting) else ""
        rows.append(
            {
                **_row(job, titles, presets),
                "place": place + 1,
                "up": waiting[place - 1].id if place else "",
                "down": after,
                "can_down": place + 1 < len(waiting),
            }
        )
    paused = [job for job in jobs if job.status is JobStatus.PAUSED]
    return rows + [
        {**_row(job, titles, presets), "place": 0, "up": "", "down": "", "can_down": False} for job in paused
    ]


def history_rows(
    jobs: Sequence[Job],
    titles: Mapping[str, str],
    presets: Mapping[str, str],
    worked: Callable[[str], float],
    checkpoints: Callable[[str], Collection[int]],
) -> list[dict[str, Any]]:
    """Ended trainings, newest first."""
    return [
        {
            **_row(job, titles, presets),
            "at": job.finished_at,
            "result": _outcome(job, worked(job.id)),
            "error": job.error.message if job.error else "",
            "again": spec_of(job) is not None,
            "more": spec_of(job) is not None and bool(checkpoints(job.id)),
        }
        for job in jobs
        if job.status.ended
    ]


def _row(job: Job, titles: Mapping[str, str], presets: Mapping[str, str]) -> dict[str, Any]:
    badge, tone = BADGES[job.status]
    return {
        "job": job.id,
        "status": job.status,
        "badge": badge,
        "tone": tone,
        "name": name_of(job) or "Training",
        "about": summary(job, titles, presets),
    }


def _outcome(job: Job, worked_s: float) -> str:
    return ", ".join(
        filter(None, [result_words(job), f"worked {duration(worked_s)}" if worked_s >= 1 else ""])
    )
