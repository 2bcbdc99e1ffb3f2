"""Checkpoints of a run: complete folders named by step, and the metrics beside them."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from isengard.domain.training import RESUMABLE_FIELDS, TrainingSpec
from isengard.errors import InvalidSpec, LeaseLost
from isengard.files import check_now, disk_full_as_error, replacing, sweep

log = logging.getLogger(__name__)

STATE = "state.pt"
ABOUT = "about.json"
PINNED = "pinned"


class Reason(StrEnum):
    """Why a checkpoint was written; it decides how long it stays."""

    SCHEDULED = "scheduled"
    REQUESTED = "requested"  # by the user: stays
    STOPPED = "stopped"  # to go on later: goes when a newer one is complete


class Checkpoints:
    """The folder ``checkpoints`` of one run. A folder that is there is complete."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "checkpoints"

    def path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending. Chosen by name, never by file time."""
        found = (re.fullmatch(r"step-(\d{8})", entry.name) for entry in self._folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def write(
        self, step: int, *, state: Mapping[str, Any], about: Mapping[str, Any], extra: Callable[[Path], None]
    ) -> None:
        """Write a checkpoint whole or not at all.

        Args:
            step: Optimizer steps done.
            state: What `newest` gives back; tensors and plain values.
            about: Readable facts, among them ``reason``.
            extra: Writes further files (the LoRA) into the folder it is given.

        Raises:
            DiskFull: nothing has changed.
        """
        with replacing(self.path(step)) as folder:
            folder.mkdir()
            with (folder / STATE).open("wb") as file:  # given a path, torch hides that the disk is full
                torch.save(dict(state), file)
            facts = {**about, "sha256": _sha256(folder / STATE)}
            (folder / ABOUT).write_text(json.dumps(facts, indent=2))
            extra(folder)

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Load the newest checkpoint that is as it was written; a damaged one is passed over with a warning."""
        sweep(self._folder)
        for step in reversed(self.steps()):
            path = self.path(step) / STATE
            if path.is_file() and _sha256(path) == self.about(step).get("sha256"):
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return step, state
            log.warning("checkpoint damaged", extra={"step": step})
        return None

    def about(self, step: int) -> dict[str, Any]:
        """Return the readable facts of a checkpoint; empty when they are lost."""
        try:
            facts: dict[str, Any] = json.loads((self.path(step) / ABOUT).read_text())
        except (OSError, ValueError):
            return {}
        return facts

    def retain(self, *, keep: int, best: int | None) -> None:
        """Remove checkpoints that nobody needs: all but the newest ``keep`` (0: all), the best, pinned and requested.

        One that was written only to go on after a stop is removed as soon as there is a newer one.
        """
        steps = self.steps()
        reasons = {step: self.about(step).get("reason") for step in steps}
        scheduled = [step for step in steps if reasons[step] == Reason.SCHEDULED]
        old = set(scheduled[:-keep]) if keep else set()
        old |= {step for step in steps[:-1] if reasons[step] == Reason.STOPPED}
        check_now()
        for step in old - {best}:
            if not (self.path(step) / PINNED).exists():
                # Another machine, which had the run meanwhile, may have removed it: a listing may be old.
                shutil.rmtree(self.path(step), ignore_errors=True)


def check_unchanged(before: Mapping[str, Any], spec: TrainingSpec, *, step: int) -> None:
    """Compare the spec a checkpoint was made with and the one it is to go on with.

    Raises:
        InvalidSpec: a field differs that cannot change on the way.
    """
    now = spec.model_dump(mode="json")
    for name in sorted(set(before) - RESUMABLE_FIELDS):
        if name in now and before[name] != now[name]:
            raise InvalidSpec(
                f"{name} cannot change on the way: the checkpoint at step {step} has {before[name]!r}, "
                f"this job {now[name]!r}; start a new training for that"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Metrics:
    """``metrics.jsonl`` of a run: one line per step and one per validation, none twice.

    Each owner of a job begins with a new file in the place of the old one, and appends to that file only.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._begun: os.stat_result | None = None
        self._waiting: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def rewind(self, step: int) -> None:
        """Read what is there and drop what came after ``step``, and a line that a kill cut short."""
        self._waiting = []
        self.rows = [row for row in read_metrics(self._path) if row["step"] <= step]
        with replacing(self._path) as temporary:
            temporary.write_text(_lines(self.rows))
            self._begun = temporary.stat()

    def add(self, **row: Any) -> None:
        """Keep a row in memory until `flush`."""
        self._waiting.append(row)
        self.rows.append(row)

    def flush(self) -> None:
        """Append the waiting rows to what `rewind` left.

        Raises:
            DiskFull.
            LeaseLost: another process has begun anew.
        """
        check_now()
        with disk_full_as_error(self._path), self._path.open("a") as file:
            if self._begun is None or not os.path.samestat(self._begun, os.fstat(file.fileno())):
                raise LeaseLost(f"{self._path} was begun anew by another worker")
            file.write(_lines(self._waiting))
        self._waiting = []

    def validation_losses(self) -> list[tuple[int, float]]:
        return [(row["step"], row["validation_loss"]) for row in self.rows if "validation_loss" in row]


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file, leaving out a line that is not whole."""
    rows = []
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            log.warning("metrics line cut short", extra={"path": str(path)})
    return rows
