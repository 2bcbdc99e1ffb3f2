"""The whole training tab as plain values, made from the services at every look."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from isengard.domain.job import Job, JobKind, JobStatus
from isengard.errors import IsengardError
from isengard.services.ai_toolkit import AiToolkitService
from tabs import training_fields, training_lists, training_live
from tabs.common import Page
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
        self._worked: dict[tuple[str, float | None], float] = {}
        self._metrics: dict[Path, tuple[Any, list[dict[str, Any]]]] = {}

    def parts(self, asked: Choice, form: Any, chosen: str) -> dict[str, Any]:
        """Every part by name; ``chosen``: the run a user picked, empty to follow the current one."""
        jobs = list(self._page.app.jobs.jobs(kinds=[JobKind.TRAIN_LORA], limit=HISTORY + 20))
        job = shown(jobs, chosen)
        choices = self.setup.choices()
        if job is None and not asked.model:  # what can be tried at once
            asked = replace(asked, model=self.setup.first_ready())
        choice = filled(asked, choices, job)
        given = training_fields.overrides(form)
        stamp = tuple((one.id, one.status) for one in jobs)
        setup = self.setup.view(choice, given, stamp)
        titles, presets = self.setup.titles(), {name: title for title, name in choices["presets"]}
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
            **self._run(job, titles, presets),
            "latest": bool(chosen) and job is not None and job.id == chosen and shown(jobs, "") is not job,
            "generate": self._made(job, choice.character),
            "queue": training_lists.waiting_rows(jobs, titles, presets),
            "history": training_lists.history_rows(
                jobs, titles, presets, self._worked_s(jobs), self._page.app.jobs.checkpoints
            ),
            "shown": "" if job is None else job.id,
            "character": choice.character,
        }

    def _run(self, job: Job | None, titles: Mapping[str, str], presets: Mapping[str, str]) -> dict[str, Any]:
        """What is shown of one run."""
        if job is None:
            return {
                "card": training_live.card(None, titles=titles, presets=presets),
                "can": training_live.can(None),
                "curves": training_live.curves((), 0),
                "samples": training_live.sample_grid(None, {}),
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
            checkpoints=tuple(jobs.checkpoints(job.id)),
            remedy=self._page.app.training.remedy(job.id),
        )
        pictures = {
            key: (self._page.pictures.thumbnail(path), self._page.pictures.whole(path))
            for key, path in jobs.samples(job.id).items()
        }
        log = self._page.app.settings.logs_dir / "worker.jsonl"
        return {
            "card": card,
            "can": training_live.can(job),
            "curves": training_live.curves(rows, spec.steps if spec else 0),
            "samples": training_live.sample_grid(spec, pictures),
            "log": training_live.log_lines(log, job.id, self._events(job.id)),
        }

    def _events(self, job_id: str) -> list[Any]:
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
