"""What the right side of the training tab shows of one run."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from isengard.domain.base import validated
from isengard.domain.captions import resolve_caption
from isengard.domain.job import Job, JobEvent, JobStatus, Stop
from isengard.domain.training import TrainingSpec
from isengard.errors import InvalidSpec
from isengard.services.training import Remedy
from tabs.progress import figures, name_of

#: At most so many points of a curve are sent.
POINTS = 320
#: As in the trainer: weight of the former value in the smoothed loss.
SMOOTHING = 0.95
#: Lines of the worker's log in words for a person; others are shown as they are.
WORDS: Mapping[str, str] = {
    "job started": "A worker has started it, attempt {attempt}",
    "training goes on": "Goes on from the checkpoint at step {step}",
    "checkpoint written": "Checkpoint at step {step} ({reason})",
    "checkpoint damaged": "The checkpoint at step {step} is damaged and was passed over",
    "job succeeded": "Done",
    "job failed": "Failed: {reason}",
    "job stopped": "Stopped, its state is saved",
    "job suspended": "Paused: {reason}",
    "job yielded": "Makes room: {reason}",
    "job lost": "The worker lost it: {reason}",
}
#: The end of the worker's log that is looked at.
TAIL_BYTES = 400_000
LINES = 60

BADGES: Mapping[JobStatus, tuple[str, str]] = {
    JobStatus.QUEUED: ("Waiting", "wait"),
    JobStatus.RUNNING: ("Running", "run"),
    JobStatus.PAUSED: ("Paused", "wait"),
    JobStatus.SUCCEEDED: ("Done", "done"),
    JobStatus.FAILED: ("Failed", "bad"),
    JobStatus.CANCELLED: ("Cancelled", "wait"),
}
STOPS: Mapping[Stop, str] = {
    Stop.CANCEL: "Cancelling: it saves first",
    Stop.PAUSE: "Pausing: it saves first",
    Stop.YIELD: "Makes room for an image",
}


def spec_of(job: Job) -> TrainingSpec | None:
    """The settings of a training; None when its record is of another time and cannot be read."""
    try:
        return _spec(json.dumps(job.payload["spec"], sort_keys=True))
    except (KeyError, InvalidSpec):
        return None


@lru_cache(maxsize=256)
def _spec(text: str) -> TrainingSpec:
    return validated(TrainingSpec, json.loads(text))


def summary(job: Job, titles: Mapping[str, str], presets: Mapping[str, str]) -> str:
    """The settings in one line."""
    spec = spec_of(job)
    if spec is None:
        return "its settings cannot be read any more"
    sides = ", ".join(str(side) for side in spec.resolutions)
    parts = [titles.get(spec.base_model, spec.base_model), presets.get(spec.preset, spec.preset)]
    return " · ".join([*filter(None, parts), f"{spec.steps} steps", f"rank {spec.rank}", f"{sides} px"])


def card(
    job: Job | None,
    *,
    titles: Mapping[str, str],
    presets: Mapping[str, str],
    ahead: int = 0,
    last_step: int = 0,
    checkpoints: Sequence[int] = (),
    remedy: Remedy | None = None,
    why_waiting: str = "",
) -> dict[str, Any]:
    """The live card of a run; ``{"job": ""}`` when there is none."""
    if job is None:
        return {"job": ""}
    badge, tone = BADGES[job.status]
    said = STOPS[job.stop] if job.stop and job.status is JobStatus.RUNNING else ""
    if job.status is JobStatus.QUEUED:
        next_one = "Next: a worker takes it as soon as one is free"
        said = why_waiting or (f"{ahead} before it" if ahead else next_one)
    elif job.status is JobStatus.PAUSED:
        said = "It goes on from where it stopped when you resume it."
        if job.error:
            said = "Free some space first: Storage, below. " + said
    return {
        "job": job.id,
        "status": job.status,
        "badge": badge,
        "tone": tone,
        "title": name_of(job) or "Training",
        "about": summary(job, titles, presets),
        "said": said,
        "figures": {**figures(job), "last": last_step},
        "error": job.error.message if job.error else "",
        "result": result_words(job),
        "remedies": remedies(job, checkpoints, remedy),
    }


def result_words(job: Job) -> str:
    """What a finished training reached; empty for others."""
    result = job.result
    if job.status is not JobStatus.SUCCEEDED or not result:
        return ""
    losses = result.get("validation_losses") or []
    said = [f"{result.get('steps', 0)} steps"]
    if result.get("stopped_early"):
        said.append("ended early: the samples were no longer becoming more alike")
    if losses:
        step, lowest = min(losses, key=lambda entry: entry[1])
        said.append(f"lowest validation loss {lowest:.4f} at step {step} (base model {losses[0][1]:.4f})")
    return ", ".join(said)


def remedies(job: Job, checkpoints: Sequence[int], remedy: Remedy | None = None) -> list[dict[str, Any]]:
    """The buttons that mend an ended run; each with the changes it makes. ``remedy``: what the planner knows."""
    if job.status is JobStatus.CANCELLED:
        return [{"label": _go_on(checkpoints, "Continue"), "changes": {}}]
    spec = spec_of(job)
    if job.status is not JobStatus.FAILED or job.error is None or spec is None:
        return []
    ways: list[dict[str, Any]] = []
    if remedy is not None:
        ways.append({"label": f"Restart with {remedy.words}", "changes": dict(remedy.changes)})
    elif job.error.code == "out_of_memory":
        if not spec.gradient_checkpointing:
            ways.append(
                {"label": "Retry with gradient checkpointing", "changes": {"gradient_checkpointing": True}}
            )
        if spec.batch_size > 1:
            half = spec.batch_size // 2
            changes = {
                "batch_size": half,
                "gradient_accumulation_steps": min(64, 2 * spec.gradient_accumulation_steps),
            }
            ways.append({"label": f"Retry with batch size {half}", "changes": changes})
    words = {
        "disk_full": "Space is free now: retry",
        "missing_weights": "The model is there now: retry",
    }.get(job.error.code, _go_on(checkpoints, "Retry"))
    return [*ways, {"label": words, "changes": {}}]


def _go_on(checkpoints: Sequence[int], verb: str) -> str:
    return f"{verb} from step {max(checkpoints)}" if checkpoints else f"{verb} from the start"


def can(job: Job | None) -> dict[str, bool]:
    """Which of the five buttons can act on the job now."""
    status, stop = (job.status, job.stop) if job else (None, None)
    active = status in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED)
    steps = status is JobStatus.RUNNING and stop is None and bool(job and job.progress)
    return {
        "cancel": active and stop is not Stop.CANCEL,
        "pause": status in (JobStatus.QUEUED, JobStatus.RUNNING) and stop in (None, Stop.YIELD),
        "resume": status is JobStatus.PAUSED or stop is Stop.PAUSE,
        "save": steps,
        "sample": steps,
    }


def curves(rows: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """The points of the chart: training loss as it was and smoothed, validation loss."""
    raw = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    smooth, last = [], None
    for step, loss in raw:
        last = loss if last is None else SMOOTHING * last + (1 - SMOOTHING) * loss
        smooth.append((step, last))
    validation = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    lines = {"loss": raw, "smooth": smooth, "validation": validation}
    return {"steps": steps, **{name: thinned(points) for name, points in lines.items()}}


def thinned(points: Sequence[tuple[int, float]], most: int = POINTS) -> list[list[float]]:
    """Every n-th point and the last one, rounded for sending."""
    stride = max(1, -(-len(points) // most))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return [[step, round(value, 5)] for step, value in kept]


def sample_grid(
    spec: TrainingSpec | None, pictures: Mapping[tuple[int, int], tuple[str, str]]
) -> dict[str, Any]:
    """A row for each prompt, a column for each step; ``pictures``: small and whole address by step and prompt."""
    steps = sorted({step for step, _ in pictures})
    prompts = () if spec is None else spec.sample_prompts
    rows = []
    for number in sorted({number for _, number in pictures}):
        prompt = prompts[number] if number < len(prompts) else f"prompt {number + 1}"
        if spec is not None:
            prompt = resolve_caption(prompt, spec.trigger, spec.class_word)
        found = [(step, pictures.get((step, number))) for step in steps]
        cells = [{"step": step, "small": two[0], "whole": two[1]} for step, two in found if two]
        rows.append({"prompt": prompt, "cells": cells})
    return {"rows": rows}


def log_lines(logs: Iterable[Path], job_id: str, events: Iterable[JobEvent] = ()) -> list[dict[str, str]]:
    """The newest lines about a job, oldest first: what its workers logged and what happened to it in the queue."""
    found = [
        (event.at, "info", f"{event.kind} {event.detail}".strip().capitalize())
        for event in events
        if event.kind not in ("claimed", "succeeded", "failed")
    ]
    for line in (line for path in logs for line in _tail(path)):
        if job_id not in line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("job_id") == job_id:
            found.append(_of_record(record))
    found.sort(key=lambda entry: entry[0])
    return [{"at": f"{at:.0f}", "level": level, "text": text} for at, level, text in found[-LINES:]]


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            start = max(0, file.tell() - TAIL_BYTES)
            file.seek(start)
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return lines[1:] if start else lines


def _of_record(record: Mapping[str, Any]) -> tuple[float, str, str]:
    """A line of the log in plain words."""
    at = datetime.fromisoformat(str(record["time"])).astimezone(UTC).timestamp()
    message = str(record.get("message", ""))
    if message in WORDS:
        text = WORDS[message].format_map(defaultdict(str, record))
    else:
        text = message[:1].upper() + message[1:]
    return at, str(record.get("level", "INFO")).lower(), text
