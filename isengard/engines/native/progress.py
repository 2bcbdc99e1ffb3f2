"""Turns what the loop does into `Progress`: smoothed loss, speed, time left."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from isengard.domain.job import Phase, Progress, Requests
from isengard.engines.base import Report
from isengard.engines.device import memory_used
from isengard.engines.native.samples import Samples

#: Weight of the former value in the smoothed loss.
SMOOTHING = 0.95


class ProgressReporter:
    """Calls ``report`` with figures filled in; gathers requests until the loop takes them."""

    def __init__(self, report: Report, *, steps: int, device: torch.device) -> None:
        self._report = report
        self._steps = steps
        self._device = device
        self._requests = Requests()
        self.is_finishing = False  # whether the training has to end at the step it has come to
        self._loss: float | None = None
        self._validation_loss: float | None = None
        self._preview: str | None = None
        self._started: tuple[float, int] | None = None
        self._speed: float | None = None
        self._last_step_at: float | None = None

    def loading(self, part: str, done: int = 0, total: int = 0) -> None:
        self._send(Progress(phase=Phase.LOADING, step=done, total=total, message=f"loading {part}"))

    def caching(self, done: int, total: int, what: str) -> None:
        self._send(Progress(phase=Phase.CACHING, step=done, total=total, message=what))

    def remember(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the losses shown from the metrics of an earlier attempt."""
        for row in rows:
            self._smooth(row.get("loss"))
            self._validation_loss = row.get("validation_loss", self._validation_loss)

    def start(self, step: int) -> None:
        """Begin to measure the time left, at ``step``."""
        self._started = (time.monotonic(), step)

    def measured(self, *, loss: float) -> None:
        """Note the loss of a step; `training` reports it."""
        self._smooth(loss)

    def stepped(self) -> None:
        """Note the time at which an optimizer step was finished."""
        now = time.monotonic()
        if self._last_step_at is not None:
            speed = 1 / max(now - self._last_step_at, 1e-9)
            self._speed = speed if self._speed is None else 0.9 * self._speed + 0.1 * speed
        self._last_step_at = now

    def _smooth(self, loss: float | None) -> None:
        if loss is not None:
            self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss

    def training(self, step: int) -> None:
        self._send(self._progress(Phase.TRAINING, step, self._steps, "", at=step))

    def validating(self, done: int, total: int) -> None:
        self._last_step_at = None
        self._send(self._progress(Phase.VALIDATING, done, total, "the fixed validation set"))

    def validated(self, step: int, loss: float) -> None:
        self._validation_loss = loss
        self._send(self._progress(Phase.TRAINING, step, self._steps, f"validation loss {loss:.4f}", at=step))

    def saved(self, step: int) -> None:
        self._last_step_at = None
        self._send(self._progress(Phase.SAVING, step, self._steps, f"checkpoint at step {step}", at=step))

    def sampling(self, step: int, number: int, samples: Samples) -> Callable[[], None]:
        """Return what is to be called after each denoising step of one picture."""
        self._last_step_at = None
        done = 0

        def denoised() -> None:
            nonlocal done
            done += 1
            total = samples.request(number).num_inference_steps
            message = f"sample {number + 1} of {samples.count} at step {step}"
            self._send(self._progress(Phase.SAMPLING, done, total, message))

        return denoised

    def sampled(self, name: str) -> None:
        self._preview = name
        self._send(self._progress(Phase.SAMPLING, 0, 0, name))

    def take_requests(self) -> Requests:
        """Return what the user asked for since the last call."""
        taken, self._requests = self._requests, Requests()
        return taken

    def _progress(
        self, phase: Phase, step: int, total: int, message: str, *, at: int | None = None
    ) -> Progress:
        return Progress(
            phase=phase,
            step=step,
            total=total,
            message=message,
            loss=self._loss,
            validation_loss=self._validation_loss,
            steps_per_s=self._speed,
            eta_s=None if at is None else self._eta(at),
            memory_bytes=memory_used(self._device),
            preview=self._preview,
        )

    def _eta(self, step: int) -> float | None:
        """Estimate the seconds left from all the time since the start, so that validation and samples count."""
        if self._started is None or step <= self._started[1]:
            return None
        since, first = self._started
        return (time.monotonic() - since) / (step - first) * (self._steps - step)

    def _send(self, progress: Progress) -> None:
        asked = self._report(progress)
        self.is_finishing |= asked.finish
        self._requests = Requests(
            save=self._requests.save or asked.save, sample=self._requests.sample or asked.sample
        )
