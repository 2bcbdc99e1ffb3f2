"""What is due after a step, whatever makes the steps: validation, checkpoints, samples."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from isengard.domain.performance import Quantization
from isengard.domain.training import Precision, TrainingSpec
from isengard.engines.base import TrainedLora
from isengard.engines.native.adapter import FamilyAdapter
from isengard.engines.native.checkpoint import Checkpoints, Metrics, Reason
from isengard.engines.native.dataset import Dataset
from isengard.engines.native.progress import ProgressReporter
from isengard.engines.native.samples import Samples
from isengard.engines.native.validation import validation_loss

log = logging.getLogger(__name__)


class Trainee(Protocol):
    """What is trained, at a step."""

    step: int  # optimizer steps done

    @property
    def denoiser(self) -> Any:
        """The network with the adapter on it."""
        ...

    def rows(self, *, lag: int) -> list[dict[str, Any]]:
        """Take the metrics of the steps done, each once, but not those of the newest ``lag`` steps.

        Raises:
            TrainingFailed: the loss of one of them is not a number: the weights are spoilt.
        """
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Put the weights that are exported into the network for a while: the moving average, if there is one."""
        ...

    def as_used(self) -> AbstractContextManager[None]:
        """As `averaged`, and without what is there for training only."""
        ...

    def save(self, checkpoints: Checkpoints, *, reason: Reason) -> None:
        """Write a checkpoint of the last whole step. Raises: DiskFull."""
        ...


def compute_precision(spec: TrainingSpec) -> Precision:
    """What the network computes in: quantized weights are multiplied in bfloat16."""
    return spec.precision if spec.quantization is Quantization.NONE else Precision.BF16


class Milestones:
    """Does what is due at a step and has not been done; the same after a restart as without one."""

    def __init__(
        self,
        spec: TrainingSpec,
        dataset: Dataset,
        *,
        adapter: FamilyAdapter,
        run_dir: Path,
        progress: ProgressReporter,
        device: torch.device,
    ) -> None:
        self._spec = spec
        self._dataset = dataset
        self._adapter = adapter
        self._progress = progress
        self._device = device
        self._bf16 = compute_precision(spec) is Precision.BF16
        self._metrics = Metrics(run_dir)
        self._samples = Samples(run_dir, spec, dataset.sample_prompts)
        self.checkpoints = Checkpoints(run_dir)

    @property
    def dtype(self) -> torch.dtype:
        """What the frozen network is kept in."""
        return torch.bfloat16 if self._bf16 else torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def begin(self, state: Trainee) -> None:
        """Go on at the step of ``state``: drop what was noted after it, and do what is due at it."""
        self._metrics.rewind(state.step)
        self._progress.remember(self._metrics.rows)
        if state.step:
            log.info("training goes on", extra={"step": state.step, "steps": self._spec.steps})
        self._reach(state)
        self._progress.start(state.step)

    def stepped(self, state: Trainee) -> None:
        """After a step: note the metrics of the one before it, and do what is due."""
        self._progress.stepped()
        self._note(state.rows(lag=1))
        self._reach(state)

    def stopped(self, state: Trainee) -> None:
        """Save the last whole step, to go on from it."""
        self._save(state, Reason.STOPPED)

    def is_over(self, state: Trainee) -> bool:
        """Whether the last step is done: of the spec, or the one at which `Requests.finish` came."""
        return state.step >= self._spec.steps or self._progress.is_finishing

    def result(self, state: Trainee) -> TrainedLora:
        return TrainedLora(
            path=self.checkpoints.path(state.step) / "lora.safetensors",
            steps=state.step,
            validation_losses=tuple(self._metrics.validation_losses()),
            best_step=self._best(),
        )

    def _note(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self._metrics.add(**row)
            self._progress.measured(loss=row["loss"])

    def _reach(self, state: Trainee) -> None:
        step = state.step
        scheduled = self._falls_on(step, self._spec.save_every) and step > 0
        validated = self._spec.validate_every and (
            scheduled or self._falls_on(step, self._spec.validate_every)
        )
        sampled = self._falls_on(step, self._spec.sample_every)
        if scheduled or validated or sampled:
            self._note(state.rows(lag=0))
        self._progress.training(step)
        self._metrics.flush()
        if validated:
            self._validate(state)
        wanted = self._progress.take_requests()
        if wanted.save or scheduled:
            self._save(state, Reason.REQUESTED if wanted.save else Reason.SCHEDULED)
        if wanted.sample or sampled:
            self._sample(state)
            self._progress.training(step)
        if self._progress.is_finishing and not scheduled:
            self._save(state, Reason.SCHEDULED)

    def _falls_on(self, step: int, every: int) -> bool:
        """Whether something is due that is done every so many steps (0: never) and at the end."""
        return every > 0 and (step == self._spec.steps or step % every == 0)

    def _validate(self, state: Trainee) -> None:
        step = state.step
        if any(at == step for at, _ in self._metrics.validation_losses()):
            return
        with state.averaged(), self.autocast():
            loss = validation_loss(
                state.denoiser,
                self._dataset.validation,
                adapter=self._adapter,
                guidance_scale=self._spec.guidance_scale,
                batch_size=self._spec.batch_size,
                device=self._device,
                on_batch=self._progress.validating,
            )
        self._metrics.add(step=step, validation_loss=loss)
        self._metrics.flush()
        self._progress.validated(step, loss)

    def _save(self, state: Trainee, reason: Reason) -> None:
        step = state.step
        self._note(state.rows(lag=0))
        if step not in self.checkpoints.steps() and step > 0:
            self._metrics.flush()
            state.save(self.checkpoints, reason=reason)
            log.info("checkpoint written", extra={"step": step, "reason": reason})
            self.checkpoints.retain(keep=self._spec.keep_checkpoints, best=self._best())
        if reason is not Reason.STOPPED:
            self._progress.saved(step)

    def _best(self) -> int | None:
        """Return the checkpoint with the lowest validation loss, the earliest of equals."""
        saved = self.checkpoints.steps()
        losses = [(loss, step) for step, loss in self._metrics.validation_losses() if step in saved]
        return min(losses)[1] if losses else None

    def _sample(self, state: Trainee) -> None:
        self._note(state.rows(lag=0))
        for number in self._samples.missing(state.step):
            denoised: Callable[[], None] = self._progress.sampling(state.step, number, self._samples)
            with state.as_used(), self.autocast():
                image = self._adapter.sample(
                    state.denoiser,
                    self._dataset.sample_prompts[number],
                    self._samples.request(number),
                    denoised,
                    no_prompt=self._dataset.no_prompt,
                )
            self._progress.sampled(self._samples.keep(image, step=state.step, number=number))
