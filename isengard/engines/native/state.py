"""Everything that changes while training: adapter, optimizer, schedule, average, step, place in the data."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from isengard.domain.model import ModelCard
from isengard.domain.training import TrainingSpec
from isengard.engines.device import moved
from isengard.engines.lora_format import save_lora
from isengard.engines.native import lora
from isengard.engines.native.adapter import FamilyAdapter, PromptEmbeds, stacked
from isengard.engines.native.buckets import BatchOrder
from isengard.engines.native.checkpoint import Checkpoints, Reason, check_unchanged
from isengard.engines.native.dataset import Example
from isengard.engines.native.flow_matching import draw_sigmas, loss_weights
from isengard.engines.native.optimizer import build_optimizer, build_scheduler
from isengard.engines.native.readings import Readings
from isengard.engines.native.share import Share
from isengard.engines.native.training_adapter import TrainingAdapter


class TrainingState:
    """The state that a checkpoint holds, and the arithmetic of one step.

    No random generator lives longer than a step: the generator of step n is made from the seed and n, the order of
    batches from the seed and the count of batches. So these numbers are the random state and the sampler's position.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        card: ModelCard,
        denoiser: Any,
        *,
        adapter: FamilyAdapter,
        training_adapter: TrainingAdapter,
        image_count: int,
        share: Share,
    ) -> None:
        self._spec = spec
        self._card = card
        self._adapter = adapter
        self._image_count = image_count
        self._share = share
        self.denoiser = denoiser
        self._training_adapter = training_adapter
        self._parameters = lora.add_lora(
            denoiser,
            pattern=adapter.target_pattern(spec.targets),
            rank=spec.rank,
            alpha=spec.alpha,
            seed=spec.seed,
        )
        self._device = self._parameters[0].device
        if spec.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        self._optimizer = build_optimizer(self._parameters, spec)
        self._scheduler = build_scheduler(self._optimizer, spec)
        self._ema = EMAModel(self._parameters, decay=spec.ema_decay) if spec.ema_decay else None
        self._order: BatchOrder | None = None
        self._readings = Readings()
        self.step = 0
        self._batches = 0

    def generator(self) -> torch.Generator:
        """Return the source of all randomness of the next step, on CPU."""
        return torch.Generator().manual_seed(self._spec.seed << 32 | self.step)

    def batch(self, examples: Sequence[Example], micro: int) -> list[int]:
        """Return the examples of forward pass ``micro`` of the next step, those of all devices."""
        if self._order is None:
            self._order = BatchOrder(
                [example.bucket for example in examples],
                batch_size=self._spec.batch_size * self._share.count,
                seed=self._spec.seed,
            )
        return self._order.batch(self._batches + micro)

    def loss(
        self, examples: Sequence[Example], *, no_prompt: PromptEmbeds, generator: torch.Generator
    ) -> Tensor:
        """Run one forward pass on this device's share of a batch and return the weighted mean squared error.

        Args:
            examples: Of one bucket, for all devices: what is drawn for an example does not depend on who gets it.
            no_prompt: The embeddings of the empty caption.
            generator: Source of the randomness.
        """
        spec, bucket, mine = self._spec, examples[0].bucket, self._share.of(len(examples))
        tokens = self._adapter.tokens(width=bucket.width, height=bucket.height)
        sigma = draw_sigmas(
            len(examples), sampling=spec.timestep_sampling, tokens=tokens, generator=generator
        )
        sigma = moved(sigma[mine], self._device)
        dropped = torch.rand(len(examples), generator=generator) < spec.caption_dropout
        mirrored = torch.rand(len(examples), generator=generator) < 0.5
        noise = torch.randn(len(examples), *examples[0].latents.shape, generator=generator)
        noise = moved(noise[mine], self._device)
        examples = examples[mine]
        clean = torch.stack(
            [
                example.mirrored if mirror and example.mirrored is not None else example.latents
                for example, mirror in zip(examples, mirrored[mine].tolist(), strict=True)
            ]
        )
        clean = moved(clean, self._device)
        prompts = [
            no_prompt if drop else example.prompt
            for example, drop in zip(examples, dropped[mine].tolist(), strict=True)
        ]
        predicted = self._adapter.predict(
            self.denoiser,
            self._adapter.add_noise(clean, noise, sigma),
            sigma=sigma,
            prompts=stacked(prompts, self._device),
            size=(bucket.width, bucket.height),
            guidance_scale=spec.guidance_scale,
        )
        error = (predicted.float() - self._adapter.target(clean, noise)).square().flatten(1).mean(1)
        return (loss_weights(sigma, weighting=spec.loss_weighting) * error).mean()

    def update(self, *, loss: Tensor) -> None:
        """Apply the gradients. Nothing waits for the device: `rows` tells later what the step was like."""
        loss = self._share.average(self._parameters, loss)
        limit = self._spec.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit, foreach=True)
        rate = self._optimizer.param_groups[0]["lr"]
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.step(self._parameters)
        self.step += 1
        self._batches += self._spec.gradient_accumulation_steps
        self._readings.note(step=self.step, lr=rate, loss=loss, grad_norm=norm)

    def rows(self, *, lag: int) -> list[dict[str, Any]]:
        """See `Trainee`. Raises: TrainingFailed."""
        return self._readings.take(lag=lag)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average into the network for a while, if there is one."""
        if self._ema is None:
            yield
            return
        self._ema.store(self._parameters)
        self._ema.copy_to(self._parameters)
        try:
            yield
        finally:
            self._ema.restore(self._parameters)

    @contextmanager
    def as_used(self) -> Iterator[None]:
        """See `Trainee`."""
        with self.averaged(), self._training_adapter.off():
            yield

    def save(self, checkpoints: Checkpoints, *, reason: Reason) -> None:
        """Write a checkpoint of the last whole step. Raises: DiskFull."""
        state = {
            "adapter": lora.adapter_weights(self.denoiser),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "ema": self._ema.state_dict() if self._ema is not None else None,
            "random": {"seed": self._spec.seed, "step": self.step},
            "batches": self._batches,
        }
        about = {"step": self.step, "reason": reason, "spec": self._spec.model_dump(mode="json")}
        checkpoints.write(self.step, state=state, about=about, extra=self._write_lora)

    def _write_lora(self, folder: Path) -> None:
        with self.averaged():
            weights = lora.adapter_weights(self.denoiser)
        save_lora(
            folder / "lora.safetensors",
            lora.exported(weights, scale=self._spec.alpha / self._spec.rank, key=self._adapter.lora_key),
            spec=self._spec,
            card=self._card,
            step=self.step,
            image_count=self._image_count,
            created_at=time.time(),
        )

    def restore(self, checkpoints: Checkpoints) -> int:
        """Go on from the newest checkpoint, if there is one; return its step, else 0.

        Raises:
            InvalidSpec: a field differs from the checkpoint's that cannot change on the way.
        """
        found = checkpoints.newest()
        if found is None:
            return 0
        self.step, state = found
        check_unchanged(checkpoints.about(self.step).get("spec", {}), self._spec, step=self.step)
        lora.load_adapter_weights(self.denoiser, state["adapter"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._set_learning_rate(self._spec.learning_rate)
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        self._batches = state["batches"]
        return self.step

    def _set_learning_rate(self, base: float) -> None:
        """Put the schedule on another base rate; the same one changes nothing."""
        self._scheduler.base_lrs = [base] * len(self._scheduler.base_lrs)
        for group, factor in zip(self._optimizer.param_groups, self._scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(self._scheduler.last_epoch)
