"""The lists of the training tab: what else runs, what waits, and what has ended."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from isengard.domain.job import Job, JobStatus
from tabs.common import duration
from tabs.progress import figures, name_of
from tabs.training_live import BADGES, result_words, spec_of, summary


def other_rows(
    jobs: Sequence[Job],
    shown: Job | None,
    titles: Mapping[str, str],
    presets: Mapping[str, str],
    where: Callable[[Job], str],
) -> list[dict[str, Any]]:
    """Running trainings beside the one that is shown; their figures move by the header's script."""
    return [
        {**_row(job, titles, presets), "where": where(job), "figures": figures(job)}
        for job in jobs
        if job.status is JobStatus.RUNNING and job is not shown
    ]


def waiting_rows(
    jobs: Sequence[Job],
    titles: Mapping[str, str],
    presets: Mapping[str, str],
    why_waiting: Callable[[Job], str],
) -> list[dict[str, Any]]:
    """Waiting trainings in their order, then paused ones; with the neighbours they can change places with."""
    waiting = [job for job in jobs if job.status is JobStatus.QUEUED]
    rows = []
    for place, job in enumerate(waiting):
        after = waiting[place + 2].id if place + 2 < len(waiting) else ""
        rows.append(
            {
                **_row(job, titles, presets),
                "why": why_waiting(job),
                "place": place + 1,
                "up": waiting[place - 1].id if place else "",
                "down": after,
                "can_down": place + 1 < len(waiting),
            }
        )
    paused = [job for job in jobs if job.status is JobStatus.PAUSED]
    return rows + [
        {**_row(job, titles, presets), "why": _why(job), "place": 0, "up": "", "down": "", "can_down": False}
        for job in paused
    ]


def history_rows(
    jobs: Sequence[Job],
    titles: Mapping[str, str],
    presets: Mapping[str, str],
    worked: Callable[[str], float],
    checkpoints: Callable[[str], Collection[int]],
    where: Callable[[Job], str],
    cost: Callable[[float], str] = lambda _worked_s: "",
) -> list[dict[str, Any]]:
    """Ended trainings, newest first."""
    return [
        {
            **_row(job, titles, presets),
            "at": job.finished_at,
            "result": _outcome(job, worked(job.id), cost),
            "where": where(job),
            "error": _why(job),
            "again": spec_of(job) is not None,
            "more": spec_of(job) is not None and bool(checkpoints(job.id)),
        }
        for job in jobs
        if job.status.ended
    ]


def _why(job: Job) -> str:
    """How a job failed, or why it was paused where no user did it."""
    return job.error.message if job.error else ""


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


def _outcome(job: Job, worked_s: float, cost: Callable[[float], str]) -> str:
    work = (f"worked {duration(worked_s)}", cost(worked_s)) if worked_s >= 1 else ()
    return ", ".join(filter(None, (result_words(job), *work)))
