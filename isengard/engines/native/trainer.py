"""Our LoRA trainer. The loop knows no model family; `FamilyAdapter` does."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from isengard.domain.model import Family, LocalModel
from isengard.domain.training import Precision, Quantization, TrainingImage, TrainingSpec
from isengard.engines.base import Report, TrainedLora
from isengard.engines.device import free_cached, plain_out_of_memory
from isengard.engines.libraries import hide_progress_bars
from isengard.engines.native.adapter import AdapterFactory, FamilyAdapter
from isengard.engines.native.checkpoint import Checkpoints, Metrics, Reason
from isengard.engines.native.dataset import Dataset, prepare
from isengard.engines.native.progress import ProgressReporter
from isengard.engines.native.samples import Samples
from isengard.engines.native.state import TrainingState
from isengard.engines.native.validation import validation_loss
from isengard.errors import InvalidSpec, JobStopped

log = logging.getLogger(__name__)


class NativeTrainer:
    """Implements `LoraTrainer` for every family that has an adapter."""

    def __init__(self, *, adapters: Mapping[Family, AdapterFactory], device: torch.device) -> None:
        self._adapters = adapters
        self._device = device

    def train(
        self,
        *,
        spec: TrainingSpec,
        model: LocalModel,
        images: Sequence[TrainingImage],
        run_dir: Path,
        cache_dir: Path,
        report: Report,
    ) -> TrainedLora:
        """See `LoraTrainer.train`."""
        if model.card.family not in self._adapters:
            known = ", ".join(sorted(self._adapters))
            raise InvalidSpec(
                f"this engine trains {known} models; {model.card.title} is of the family {model.card.family}"
            )
        if not images:
            raise InvalidSpec("there is no image to train on; add some to the character")
        progress = ProgressReporter(report, steps=spec.steps, device=self._device)
        progress.loading(model.card.title)
        hide_progress_bars()
        adapter = self._adapters[model.card.family](model, device=self._device)
        try:
            with plain_out_of_memory(self._device, advice=_advice(spec)):
                dataset = prepare(
                    spec, images, adapter=adapter, cache_dir=cache_dir, on_item=progress.caching
                )
                adapter.free_encoders()
                run = _Run(
                    spec,
                    model,
                    dataset,
                    adapter=adapter,
                    run_dir=run_dir,
                    progress=progress,
                    device=self._device,
                )
                return run.go()
        finally:
            adapter.free_encoders()
            free_cached(self._device)


class _Run:
    """One training from its newest checkpoint to its end or its next stop."""

    def __init__(
        self,
        spec: TrainingSpec,
        model: LocalModel,
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
        self._metrics = Metrics(run_dir)
        self._checkpoints = Checkpoints(run_dir)
        self._samples = Samples(run_dir, spec, dataset.sample_prompts)
        progress.loading("transformer")
        self._bf16 = spec.precision is Precision.BF16 or spec.quantization is not Quantization.NONE
        denoiser = adapter.load_denoiser(
            dtype=torch.bfloat16 if self._bf16 else torch.float32, quantization=spec.quantization
        )
        progress.loading("adapter")
        self._state = TrainingState(
            spec, model.card, denoiser, adapter=adapter, image_count=len(dataset.train)
        )

    def go(self) -> TrainedLora:
        self._metrics.rewind(self._state.restore(self._checkpoints))
        self._progress.remember(self._metrics.rows)
        if self._state.step:
            log.info("training goes on", extra={"step": self._state.step, "steps": self._spec.steps})
        try:
            self._after_step()
            self._progress.start(self._state.step)
            while self._state.step < self._spec.steps:
                self._train_step()
                self._after_step()
        except JobStopped:
            self._save(Reason.STOPPED)
            raise
        return TrainedLora(
            path=self._checkpoints.path(self._state.step) / "lora.safetensors",
            steps=self._state.step,
            validation_losses=tuple(self._metrics.validation_losses()),
            best_step=self._best(),
        )

    def _train_step(self) -> None:
        """One optimizer step. Its randomness is a function of the seed and its number alone."""
        state, spec = self._state, self._spec
        generator = state.generator()
        total = 0.0
        for micro in range(spec.gradient_accumulation_steps):
            if micro:
                self._progress.training(state.step)
            batch = [self._dataset.train[i] for i in state.batch(self._dataset.train, micro)]
            with self._autocast():
                loss = state.loss(batch, no_prompt=self._dataset.no_prompt, generator=generator)
            (loss / spec.gradient_accumulation_steps).backward()
            total += loss.item() / spec.gradient_accumulation_steps
        row = state.update(loss=total)
        self._metrics.add(**row)
        self._progress.stepped(loss=total)

    def _after_step(self) -> None:
        """Do what is due at this step and has not been done; the same after a restart as without one."""
        spec, step = self._spec, self._state.step
        self._progress.training(step)
        self._metrics.flush()
        scheduled = step == spec.steps or (step > 0 and step % spec.save_every == 0)
        if spec.validate_every and (scheduled or step % spec.validate_every == 0):
            self._validate()
        wanted = self._progress.take_requests()
        if wanted.save:
            self._save(Reason.REQUESTED)
        elif scheduled:
            self._save(Reason.SCHEDULED)
        if wanted.sample or (spec.sample_every and (step == spec.steps or step % spec.sample_every == 0)):
            self._sample()

    def _validate(self) -> None:
        step = self._state.step
        if any(at == step for at, _ in self._metrics.validation_losses()):
            return
        with self._state.averaged(), self._autocast():
            loss = validation_loss(
                self._state.denoiser,
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

    def _save(self, reason: Reason) -> None:
        step = self._state.step
        if step not in self._checkpoints.steps() and step > 0:
            self._metrics.flush()
            self._state.save(self._checkpoints, reason=reason)
            log.info("checkpoint written", extra={"step": step, "reason": reason})
            self._checkpoints.retain(keep=self._spec.keep_checkpoints, best=self._best())
        if reason is not Reason.STOPPED:
            self._progress.saved(step)

    def _best(self) -> int | None:
        """Return the checkpoint with the lowest validation loss, the earliest of equals."""
        saved = self._checkpoints.steps()
        losses = [(loss, step) for step, loss in self._metrics.validation_losses() if step in saved]
        return min(losses)[1] if losses else None

    def _sample(self) -> None:
        for number in self._samples.missing(self._state.step):
            with self._state.averaged(), self._autocast():
                image = self._adapter.sample(
                    self._state.denoiser,
                    self._dataset.sample_prompts[number],
                    self._samples.request(number),
                    self._progress.sampling(self._state.step, number, self._samples),
                )
            self._progress.sampled(self._samples.keep(image, step=self._state.step, number=number))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)


def _advice(spec: TrainingSpec) -> str:
    ways = []
    if spec.batch_size > 1:
        ways.append(f"lower batch_size (now {spec.batch_size})")
    if max(spec.resolutions) > 512:
        ways.append(f"leave out the highest of resolutions (now {max(spec.resolutions)})")
    if not spec.gradient_checkpointing:
        ways.append("switch gradient_checkpointing on")
    if spec.quantization is Quantization.NONE:
        ways.append("set quantization to int8")
    ways.append("close other programs that use the device")
    return "; or ".join(ways) + ". The last checkpoint is kept; resume the job after the change"
