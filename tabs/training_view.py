"""The whole training tab as plain values, made from the services at every look."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isengard.domain.job import Job, JobEvent, JobKind, JobStatus
from isengard.domain.worker import WorkerState
from isengard.errors import IsengardError, NotFound
from isengard.services.ai_toolkit import AiToolkitService
from isengard.services.jobs import owners
from tabs import (
    training_compare,
    training_fields,
    training_lists,
    training_live,
    training_storage,
    training_workers,
)
from tabs.common import Page
from tabs.fleet import Fleet, fleet_of, why_waiting
from tabs.money import course, dollars
from tabs.pictures import address
from tabs.progress import compared
from tabs.training_models import ModelsView
from tabs.training_setup import Choice, Setup

#: Ended trainings in the history.
HISTORY = 40
#: How the texts name the two parts of an installation.
STAGES = {"source": "source", "packages": "pip"}


class View:
    """Answers what each part of the tab shows. It keeps nothing but caches."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.setup = Setup(page)
        self._models = ModelsView(page.app)
        self._compare = training_compare.CompareView(page)
        self._worked: dict[tuple[str, float | None], float] = {}
        self._metrics: dict[Path, tuple[Any, list[dict[str, Any]]]] = {}

    def parts(self, asked: Choice, form: Any, chosen: str) -> dict[str, Any]:
        """Every part by name; ``chosen``: the run a user picked, empty to follow the current one."""
        jobs, job = self._jobs(chosen)
        workers = self._page.app.workers.workers()
        fleet = fleet_of(self._page, workers, jobs)
        choices = self.setup.choices()
        if job is None and not asked.model:  # what can be tried at once
            asked = replace(asked, model=self.setup.first_ready())
        choice = filled(asked, choices, job)
        given = training_fields.overrides(form)
        stamp = tuple((one.id, one.status) for one in jobs)
        setup = self.setup.view(choice, given, stamp)
        titles, presets = self.setup.titles(), self.setup.presets()
        return {
            "characters": {"choices": choices["characters"], "value": choice.character},
            "models": {"choices": choices["models"], "value": choice.model},
            "presets": {
                "choices": choices["presets"],
                "value": choice.preset,
                "about": choices["about"].get(choice.preset, ""),
            },
            "form": setup["form"],
            "engine": engine_notice(self._page.app.ai_toolkit),
            "estimate": setup["estimate"],
            "start": bool(choice.character) and setup["startable"],
            "weights": self._models.value(),
            "get_model": self.setup.lacks_model(choice.model),
            "workers": training_workers.value(self._page, fleet, self._running(workers), titles),
            "storage": training_storage.value(self._page.app),
            "others": training_lists.other_rows(jobs, job, titles, presets, fleet.where),
            **self._run(job, titles, presets, fleet),
            "latest": _is_former(job, chosen, jobs),
            "generate": self._made(job, choice.character),
            "queue": training_lists.waiting_rows(jobs, titles, presets, why_waiting(self._page)),
            "history": training_lists.history_rows(
                jobs,
                titles,
                presets,
                self._worked_s(jobs),
                self._page.app.jobs.checkpoints,
                fleet.where,
                self._cost,
            ),
            "shown": "" if job is None else job.id,
            "character": choice.character,
        }

    def _jobs(self, chosen: str) -> tuple[list[Job], Job | None]:
        """The trainings, and which of them is shown."""
        jobs = list(self._page.app.jobs.jobs(kinds=[JobKind.TRAIN_LORA], limit=HISTORY + 20))
        return jobs, shown(jobs, chosen or self._compared_last(jobs))

    def _compared_last(self, jobs: Sequence[Job]) -> str:
        """The run whose checkpoints were compared since the last training ended; empty when none was."""
        newest = self._page.app.jobs.jobs(kinds=[JobKind.EVALUATE_CHECKPOINTS], limit=1)
        ended = jobs[0].finished_at if jobs else None
        return compared(newest[0]) if newest and ended and newest[0].created_at > ended else ""

    def course(self, chosen: str) -> dict[str, Any]:
        """What moves while a run goes on; ``chosen`` as in `parts`."""
        jobs, job = self._jobs(chosen)
        fleet = fleet_of(self._page, self._page.app.workers.workers(), jobs)
        return self._course(job, self._checkpoints(job), self.setup.titles(), self.setup.presets(), fleet)

    def _checkpoints(self, job: Job | None) -> Mapping[int, Path]:
        return self._page.app.jobs.checkpoints(job.id) if job else {}

    def _running(self, workers: Sequence[WorkerState]) -> Sequence[Job]:
        """What the workers do, of every kind."""
        busy = sum(worker.job is not None for worker in workers)
        return self._page.app.jobs.jobs(statuses=(JobStatus.RUNNING,), limit=busy) if busy else ()

    def _run(
        self, job: Job | None, titles: Mapping[str, str], presets: Mapping[str, str], fleet: Fleet
    ) -> dict[str, Any]:
        """What is shown of one run."""
        checkpoints = self._checkpoints(job)
        pictures = {
            key: (self._page.pictures.thumbnail(path), self._page.pictures.whole(path))
            for key, path in (self._page.app.jobs.samples(job.id) if job else {}).items()
        }
        return {
            **self._course(job, checkpoints, titles, presets, fleet),
            "can": training_live.can(job),
            "samples": training_live.sample_grid(training_live.spec_of(job) if job else None, pictures),
            "compare": self._compare.value(job, checkpoints) if job else training_compare.NOTHING,
        }

    def _course(
        self,
        job: Job | None,
        checkpoints: Mapping[int, Path],
        titles: Mapping[str, str],
        presets: Mapping[str, str],
        fleet: Fleet,
    ) -> dict[str, Any]:
        if job is None:
            return {
                "card": training_live.card(None, titles=titles, presets=presets),
                "curves": training_live.curves((), 0),
                "log": [],
            }
        jobs, spec = self._page.app.jobs, training_live.spec_of(job)
        rows = self._rows(jobs.run_dir(job.id) / "metrics.jsonl", job.id)
        card = training_live.card(
            job,
            titles=titles,
            presets=presets,
            ahead=jobs.ahead(job.id) if job.status is JobStatus.QUEUED else 0,
            last_step=max((row["step"] for row in rows), default=0),
            checkpoints=tuple(checkpoints),
            remedy=self._page.app.training.remedy(job.id),
            why_waiting=why_waiting(self._page)(job),
        )
        history = self._events(job.id)
        return {
            "card": {
                **card,
                "where": fleet.where(job),
                "file": self._file(job),
                "figures": {**card["figures"], "cost": course(self._page.app.costs, job)},
            },
            "curves": training_live.curves(rows, spec.steps if spec else 0),
            "log": training_live.log_lines(self._logs(history), job.id, history),
        }

    def _file(self, job: Job) -> str:
        """The address of the LoRA; empty when there is none, or none any more."""
        if job.status is not JobStatus.SUCCEEDED:
            return ""
        try:
            return address(self._page.app.images.lora_path(job.id))
        except NotFound:
            return ""

    def _logs(self, history: list[JobEvent]) -> set[Path]:
        """Those of the machines that have had the job."""
        machines = (owner.rpartition("/")[0] for owner in owners(history))
        return {self._page.app.settings.log_file("worker", machine=machine) for machine in machines}

    def _events(self, job_id: str) -> list[JobEvent]:
        try:
            return list(self._page.app.jobs.history(job_id))
        except IsengardError:  # removed a moment ago
            return []

    def _rows(self, path: Path, job_id: str) -> list[dict[str, Any]]:
        """The metrics, read again only when the file has changed."""
        try:
            known = path.stat()
            stamp = (known.st_mtime_ns, known.st_size)
            if self._metrics.get(path, (None, []))[0] != stamp:
                if len(self._metrics) > 16:
                    self._metrics.clear()
                self._metrics[path] = (stamp, self._page.app.jobs.metrics(job_id))
            return self._metrics[path][1]
        except (OSError, IsengardError):
            return []

    def _worked_s(self, jobs: list[Job]) -> Any:
        finished = {job.id: job.finished_at for job in jobs}

        def worked(job_id: str) -> float:
            key = (job_id, finished[job_id])
            if key not in self._worked:
                self._worked[key] = self._page.app.jobs.worked_s(job_id)
            return self._worked[key]

        return worked

    def _cost(self, seconds: float) -> str:
        return dollars(self._page.app.costs.of(seconds))

    def _made(self, job: Job | None, character: str) -> bool:
        """Whether the run shown has made a LoRA of the character that is chosen."""
        if job is None or job.status is not JobStatus.SUCCEEDED:
            return False
        spec = training_live.spec_of(job)
        return spec is not None and spec.character == character


def engine_notice(toolkit: AiToolkitService) -> dict[str, Any]:
    """What is said of AI-Toolkit: nothing when it can be used, or when the user chose another version of it."""
    state, installation = toolkit.state(), toolkit.installation()
    matter = "" if state.usable and (state.is_pinned or not state.owned) else state.matter
    if installation.running:
        share = installation.fraction
        return {
            "installing": True,
            "stage": STAGES.get(str(installation.stage), ""),
            "percent": None if share is None else round(100 * share),
            "message": installation.message,
            "ended": installation.ended,
        }
    error = installation.error or (state.reason if matter and not state.owned else "")
    return {
        "matter": matter,
        "missing": state.missing,
        "error": error if matter else "",
        "ended": installation.ended,
    }


def shown(jobs: list[Job], chosen: str) -> Job | None:
    """The run a user picked, as long as it is there; else the running, next, paused or last one."""
    picked = next((job for job in jobs if job.id == chosen), None)
    return picked or next(iter(jobs), None)


def _is_former(job: Job | None, chosen: str, jobs: list[Job]) -> bool:
    """Whether a user has picked a run that does not run any more: from there a button leads back."""
    picked = job is not None and job.id == chosen and job.status is not JobStatus.RUNNING
    return picked and shown(jobs, "") is not job


def filled(asked: Choice, choices: Mapping[str, Any], job: Job | None) -> Choice:
    """What is chosen, with something sensible where nothing is, or where it does not exist any more."""
    characters = [value for _, value in choices["characters"]]
    models = [value for _, value in choices["models"]]
    presets = [value for _, value in choices["presets"]]
    spec = training_live.spec_of(job) if job else None
    wish = Choice(spec.character, spec.base_model, spec.preset) if spec else Choice("", "", "quick")
    return Choice(
        _first(asked.character, wish.character, known=characters),
        _first(asked.model, wish.model, known=models),
        _first(asked.preset, wish.preset, known=presets),
    )


def _first(*wishes: str, known: list[str]) -> str:
    return next((wish for wish in wishes if wish in known), known[0] if known else "")


def key_of(value: Any) -> str:
    """A short name of a value: equal values have the same."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]
