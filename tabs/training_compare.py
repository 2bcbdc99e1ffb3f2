"""Choosing the checkpoint on the training tab: asking for a comparison, its course, and what came of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from isengard.domain.base import Frozen, Name, validated
from isengard.domain.comparison import Comparison
from isengard.domain.evaluation import NO_CLEAR_WINNER, Candidate, Score, Shot, Verdict
from isengard.domain.job import Job, JobStatus
from isengard.errors import IsengardError, NotFound
from tabs.common import PRIVATE, Page, asked_by, handled, scripted
from tabs.progress import comparing

#: Offered beside those that a comparison has anyway.
STRENGTHS = (0.6, 0.8, 1.0, 1.2)
#: A training that is at work makes further checkpoints: it is compared when it has ended, or waits.
AT_WORK = (JobStatus.QUEUED, JobStatus.RUNNING)

#: Of a run that has nothing to compare.
NOTHING: dict[str, Any] = {"run": ""}


class CompareView:
    """What the widget shows of one run. A comparison is planned again only when something of it has changed."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._offers: dict[str, tuple[Any, dict[str, Any]]] = {}

    def value(self, training: Job, checkpoints: Mapping[int, Path]) -> dict[str, Any]:
        """``checkpoints``: those that are there, by their step."""
        app, run = self._page.app, training.id
        found, job = app.comparison.of_run(run), app.comparison.job_of(run)
        if not checkpoints and found is None:
            return NOTHING
        return {
            "run": run,
            "offer": self._offer(training, tuple(checkpoints), found, job),
            "job": comparing(job) if job else None,
            "result": self._result(found, tuple(checkpoints)) if found else None,
            "usable": training.status is JobStatus.SUCCEEDED and self._has_lora(run),
        }

    def _offer(
        self, training: Job, steps: Sequence[int], found: Comparison | None, job: Job | None
    ) -> dict[str, Any] | None:
        if training.status in AT_WORK or not steps:
            return None
        made_at, state = found and found.made_at, job and (job.id, job.status)
        key = (steps, made_at, state, self._page.app.characters.version())
        if self._offers.get(training.id, (None, {}))[0] != key:
            if len(self._offers) > 16:
                self._offers.clear()
            self._offers[training.id] = (key, self._planned(training.id, steps, found))
        return self._offers[training.id][1]

    def _planned(self, run: str, steps: Sequence[int], found: Comparison | None) -> dict[str, Any]:
        service = self._page.app.comparison
        try:
            spec = service.plan(run)
            if found and not found.complete and set(found.spec.steps) <= {*steps}:
                spec = found.spec  # it goes on with what was not finished
        except IsengardError as error:
            chosen: dict[str, list[Any]] = {"steps": list(steps), "strengths": [1.0]}
            return {**_choices(steps, chosen), "each": 0, "seconds": None, "refused": str(error)}
        missing, seconds = service.missing(spec), service.seconds(spec)
        return {
            **_choices(steps, {"steps": list(spec.steps), "strengths": list(spec.strengths)}),
            "each": len(spec.prompts) * len(spec.seeds),
            "seconds": seconds / missing if seconds and missing else None,
            "refused": "",
        }

    def _result(self, found: Comparison, there: Sequence[int]) -> dict[str, Any]:
        pinned = self._page.app.training.pinned(found.spec.run)
        rows = [
            {
                **_row(score),
                "followed": found.followed(score.candidate),
                "gone": score.candidate.step not in there,
                "pinned": score.candidate.step in pinned,
                "small": self._small(found, score.candidate),
            }
            for score in found.verdict.scores
        ]
        return {**_words(found), "rows": rows}

    def _small(self, found: Comparison, candidate: Candidate) -> str:
        """The address of the first of a candidate's pictures; empty when it is gone."""
        spec = found.spec
        try:
            path = self._page.app.comparison.picture(spec.run, candidate, prompt=0, seed=spec.seeds[0])
        except NotFound:
            return ""
        return self._page.pictures.thumbnail(path)

    def _has_lora(self, run: str) -> bool:
        try:
            self._page.app.images.lora(run)
        except NotFound:
            return False
        return True


def _choices(steps: Sequence[int], chosen: dict[str, list[Any]]) -> dict[str, Any]:
    strengths = sorted({*STRENGTHS, *chosen["strengths"]})
    return {"steps": list(steps), "strengths": strengths, "chosen": chosen}


def _words(found: Comparison) -> dict[str, Any]:
    """What the page says of all candidates."""
    verdict, best = found.verdict, _best(found.verdict)
    return {
        "partial": not found.complete,
        "scorer": found.scorer,
        "finding": _finding(verdict, best),
        "best": best.candidate.step if best else None,
        "recommended": _named(verdict.recommended) if verdict.recommended else None,
        "reason": verdict.reason,
        "floor": _rounded(found.floor),
        "ceiling": _rounded(found.ceiling),
    }


def _best(verdict: Verdict) -> Score | None:
    """The highest score of those without a fault."""
    sound = [score for score in verdict.scores if not score.faults]
    return max(sound, key=lambda score: score.value, default=None)


def _finding(verdict: Verdict, best: Score | None) -> str:
    """Which of the page's sentences tells the verdict; its own words are English."""
    if not verdict.scores:
        return "unknown"
    if verdict.recommended is None or best is None:
        return "faulty"
    if verdict.reason.startswith(NO_CLEAR_WINNER):
        return "tie"
    return "best" if verdict.recommended == best.candidate else "earliest"


def _row(score: Score) -> dict[str, Any]:
    shares = {
        name: round(getattr(score, name), 4)
        for name in ("value", "low", "high", "faceless", "copied", "variety", "spread")
    }
    return {
        **_named(score.candidate),
        **shares,
        "faults": list(score.faults),
    }


def _named(candidate: Candidate) -> dict[str, Any]:
    return {"step": candidate.step, "strength": candidate.strength}


def _rounded(likeness: float | None) -> float | None:
    return None if likeness is None else round(likeness, 2)


# The pictures


class Asked(Frozen):
    """Whose pictures a script asks for."""

    run: Name
    step: int
    strength: float


def picturing(page: Page) -> Callable[[Any], dict[str, Any]]:
    """Return the function that the widget's script calls for the pictures of one candidate."""

    def pictures(given: Any) -> dict[str, Any]:
        try:
            return {"rows": _pictures(page, validated(Asked, given))}
        except IsengardError as error:
            return {"error": str(error)}

    return pictures


def _pictures(page: Page, asked: Asked) -> list[dict[str, Any]]:
    """A row for each prompt, a cell for each seed. Raises: NotFound."""
    candidate = Candidate(step=asked.step, strength=asked.strength)
    found = page.app.comparison.of_run(asked.run)
    known = () if found is None else found.tested
    tested = next((one for one in known if one.candidate == candidate), None)
    if found is None or tested is None:
        raise NotFound(
            f"step {asked.step} at strength {asked.strength:g} of {asked.run!r} was not compared; compare its"
            " checkpoints anew"
        )
    return [
        {
            "prompt": prompt,
            "cells": [
                _cell(page, asked.run, candidate, shot) for shot in tested.shots if shot.prompt == place
            ],
        }
        for place, prompt in enumerate(found.spec.prompts)
    ]


def _cell(page: Page, run: str, candidate: Candidate, shot: Shot) -> dict[str, Any]:
    def at(whose: Candidate | None) -> Path:
        return page.app.comparison.picture(run, whose, prompt=shot.prompt, seed=shot.seed)

    made = at(candidate)
    return {
        "seed": shot.seed,
        "likeness": _rounded(shot.likeness),
        "small": page.pictures.thumbnail(made),
        "whole": page.pictures.whole(made),
        "base": page.pictures.whole(at(None)),
    }


# Laying out and wiring


def lay(page: Page) -> gr.HTML:
    """Make the widget inside the open block."""
    return scripted(
        "compare",
        "training_dom",
        "compare",
        NOTHING,
        shares=["chart_dom"],
        elem_id="training-compare",
        server_functions=[picturing(page)],
    )


def wire(widget: gr.HTML, page: Page, *, again: Callable[[Any], Any]) -> None:
    """Let the buttons work; ``again`` paints the tab anew after an event."""
    app = page.app

    @handled
    def compare(event: gr.EventData, request: gr.Request) -> None:
        wishes = {name: getattr(event, name, None) for name in ("steps", "strengths")}
        run = str(getattr(event, "run", ""))
        app.admission.submit(
            asked_by(request), lambda: app.comparison.submit(app.comparison.plan(run, **wishes))
        )

    @handled
    def cancel_comparison(event: gr.EventData) -> None:
        app.jobs.cancel(str(getattr(event, "job", "")))

    @handled
    def resume_comparison(event: gr.EventData) -> None:
        app.jobs.resume(str(getattr(event, "job", "")))

    @handled
    def pin_checkpoint(event: gr.EventData) -> None:
        asked = validated(Pin, {name: getattr(event, name, None) for name in Pin.model_fields})
        app.training.pin(asked.run, asked.step, pinned=asked.pinned)

    for listen, act in (
        (widget.compare, compare),
        (widget.halt, cancel_comparison),
        (widget.resume, resume_comparison),
        (widget.pin, pin_checkpoint),
    ):
        again(listen(act, None, None, show_progress="hidden", **PRIVATE))


class Pin(Frozen):
    """A checkpoint that is to be kept, or no longer."""

    run: Name
    step: int
    pinned: bool
