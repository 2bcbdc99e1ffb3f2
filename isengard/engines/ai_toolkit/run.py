"""One training by AI-Toolkit: what its hooks lead to. Knows its objects only by what they are given as."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from isengard.domain.model import ModelCard
from isengard.domain.training import TrainingSpec
from isengard.engines.device import plain_out_of_memory
from isengard.engines.lora_format import save_lora
from isengard.engines.native.adapter import FamilyAdapter
from isengard.engines.native.checkpoint import Checkpoints, Reason, check_unchanged
from isengard.engines.native.flow_matching import draw_sigmas
from isengard.engines.native.lora import chosen_layers, linear_layers
from isengard.engines.native.milestones import Milestones
from isengard.engines.native.optimizer import build_scheduler
from isengard.engines.native.trainer import memory_advice
from isengard.errors import TrainingFailed

#: Noise levels of which a batch draws its own.
LEVELS = 1000


class EndedEarly(Exception):
    """Leads out of AI-Toolkit's loop, which knows no end but its last step."""


class Run:
    """A `Trainee` whose steps AI-Toolkit makes. Its process object is given by `attach`."""

    def __init__(
        self,
        spec: TrainingSpec,
        card: ModelCard,
        milestones: Milestones,
        *,
        adapter: FamilyAdapter,
        image_count: int,
        device: torch.device,
    ) -> None:
        self._spec, self._card, self._milestones, self._adapter = spec, card, milestones, adapter
        self._image_count, self._device = image_count, device
        self._process: Any = None
        self._loaded: dict[str, Any] | None = None
        self._row: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._batches: dict[str, Counter[int]] = {"given": Counter(), "trained": Counter()}
        self.step = 0

    # What AI-Toolkit's hooks call, in this order

    def attach(self, process: Any) -> None:
        """Go on from the newest checkpoint, chosen by its step. Raises: InvalidSpec, when it cannot go on with this spec."""
        self._process = process
        found = self._milestones.checkpoints.newest()
        if found is not None:
            self.step, self._loaded = found
            about = self._milestones.checkpoints.about(self.step)
            check_unchanged(about.get("spec", {}), self._spec, step=self.step)

    def model_loaded(self) -> None:
        """Name the layers to adapt one by one, so that both engines adapt the same ones.

        Raises:
            InvalidSpec: no linear layer has a name that matches the spec's targets as a whole.
        """
        linear = linear_layers(self._process.sd.unet)
        chosen = chosen_layers(linear, self._adapter.target_pattern(self._spec.targets))
        self._process.network_config.network_kwargs = {"only_if_contains": [f".{name}" for name in chosen]}

    def network_made(self) -> None:
        """Scale the adapter by alpha / rank, which AI-Toolkit leaves at 1 for FLUX, and put saved weights into it."""
        network = self._process.network
        for module in network.get_all_modules():
            module._set_runtime_scale(self._scale)
        if self._loaded is not None:
            network.load_state_dict(self._loaded["adapter"])

    def optimizer_made(self) -> None:
        """Put back the optimizer, the average and the step, and take our schedule, which warms up with each of them.

        Raises:
            TrainingFailed: the optimizer's state does not fit.
        """
        process = self._process
        process.step_num = process.start_step = self.step
        if self._loaded is not None:
            try:
                process.optimizer.load_state_dict(self._loaded["optimizer"])
            except (ValueError, KeyError, RuntimeError) as error:
                raise TrainingFailed(
                    f"the optimizer's state of the checkpoint at step {self.step} does not fit ({error}):"
                    " delete that checkpoint to go on from an earlier one, or start a new training"
                ) from error
            if process.ema is not None:
                process.ema.load_state_dict(self._loaded["ema"])
        for group in process.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = self._spec.learning_rate
        process.lr_scheduler = build_scheduler(process.optimizer, self._spec)
        self._loaded = None

    def begin(self) -> None:
        """Draw noise levels as our own engine does, and do what is due before the first step."""
        scheduler = self._process.sd.noise_scheduler
        if hasattr(scheduler, "set_train_timesteps"):  # SDXL has none: each timestep is as likely there
            scheduler.set_train_timesteps = self.set_train_timesteps
        self._milestones.begin(self)
        self._end_if_over()
        self._seed()

    def set_train_timesteps(
        self, num_timesteps: int, device: torch.device, *, latents: Tensor | None = None, **_: object
    ) -> Tensor:
        """Replace the scheduler's noise levels, of which AI-Toolkit then draws one for each example."""
        height, width = (64, 64) if latents is None else latents.shape[-2:]
        sigmas = draw_sigmas(
            num_timesteps,
            sampling=self._spec.timestep_sampling,
            tokens=height // 2 * (width // 2),
            generator=None,
        )
        timesteps = (sigmas * LEVELS).sort(descending=True).values.to(device)
        self._process.sd.noise_scheduler.timesteps = timesteps
        return timesteps

    @contextmanager
    def training_step(self, batches: Sequence[Any]) -> Iterator[None]:
        """Around the forward and backward passes of a step.

        Raises:
            OutOfMemory: AI-Toolkit would leave the batch out, count the step and go on.
        """
        sides = [int(batch.file_items[0].dataset_config.resolution) for batch in batches]
        self._batches["given"].update(sides)
        self._seed()
        rate = self._process.optimizer.param_groups[0]["lr"]
        with plain_out_of_memory(
            self._device, advice=f"{self._trained_share()}; {memory_advice(self._spec)}"
        ):
            yield
        self._batches["trained"].update(sides)
        self._row = {"lr": rate}

    def share(self, loss: Tensor) -> Tensor:
        """The loss of one forward pass as its part of the step: AI-Toolkit adds up the gradients of all.

        Raises:
            TrainingFailed: the loss is no number; AI-Toolkit would put zero in its place and go on.
        """
        if not torch.isfinite(loss).all():
            raise TrainingFailed(
                f"the loss is no longer a number at step {self.step + 1}. The last checkpoint is good: resume from it "
                "with a lower learning_rate"
            )
        return loss / self._spec.gradient_accumulation_steps

    def stepped(self, mean_share: float) -> None:
        """After a whole step: note it and do what is due."""
        self.step += 1
        loss = mean_share * self._spec.gradient_accumulation_steps
        self._rows.append({"step": self.step, "loss": loss, **self._row})
        self._milestones.stepped(self)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self.step < self._spec.steps and self._milestones.is_over(self):
            raise EndedEarly

    def detach(self) -> None:
        """Let go of AI-Toolkit's objects, which hold the model."""
        self._process = self._loaded = None

    # What `Milestones` calls

    def rows(self, *, lag: int) -> list[dict[str, Any]]:  # noqa: ARG002  # AI-Toolkit reads each loss at once
        """See `Trainee`."""
        taken, self._rows = self._rows, []
        return taken

    @property
    def denoiser(self) -> Any:
        return self._process.sd.unet

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """See `Trainee`. AI-Toolkit's adapter acts only inside its own context."""
        process = self._process
        process.network.multiplier = 1.0
        if process.ema is not None:
            process.ema.eval()
        try:
            with process.network, _without_training_adapter(process.sd):
                yield
        finally:
            if process.ema is not None:
                process.ema.train()

    as_used = averaged

    def save(self, checkpoints: Checkpoints, *, reason: Reason) -> None:
        """Write a checkpoint of our own kind; AI-Toolkit writes none.

        Raises:
            DiskFull: nothing has changed.
            TrainingFailed: a weight is no number, or the file holds another one than the network.
        """
        process = self._process
        state = {
            "adapter": {name: tensor.detach().cpu() for name, tensor in process.network.state_dict().items()},
            "optimizer": process.optimizer.state_dict(),
            "ema": process.ema.state_dict() if process.ema is not None else None,
        }
        about = {"step": self.step, "reason": reason, "spec": self._spec.model_dump(mode="json")}
        checkpoints.write(self.step, state=state, about=about, extra=self._write_lora)

    def _write_lora(self, folder: Path) -> None:
        path, weights = folder / "lora.safetensors", self._weights()
        save_lora(
            path,
            weights,
            spec=self._spec,
            card=self._card,
            step=self.step,
            image_count=self._image_count,
            created_at=time.time(),
        )
        written = load_file(path)
        if written.keys() != weights.keys() or not all(
            bool(torch.isfinite(tensor).all()) for tensor in written.values()
        ):
            raise TrainingFailed(
                f"the weights at step {self.step} are not whole numbers of this network, so no checkpoint was written;"
                " resume from the last one with a lower learning_rate"
            )

    def _weights(self) -> dict[str, Tensor]:
        """The adapter in diffusers' names, alpha folded into B."""
        process, weights = self._process, {}
        names = {id(module): name for name, module in process.sd.unet.named_modules()}
        with self.averaged():
            for module in process.network.get_all_modules():
                key = self._adapter.lora_key(names[id(module.org_module[0])])
                weights[f"{key}.lora_A.weight"] = module.lora_down.weight.detach().float().cpu().clone()
                weights[f"{key}.lora_B.weight"] = (
                    module.lora_up.weight.detach().float().cpu().clone() * self._scale
                )
        return weights

    @property
    def _scale(self) -> float:
        return self._spec.alpha / self._spec.rank

    def _seed(self) -> None:
        """Make the randomness of the next step a function of the seed and its number, also for the order of images."""
        seed = (self._spec.seed << 32 | self.step) % 2**63
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # AI-Toolkit draws from it

    def _trained_share(self) -> str:
        given, trained = self._batches["given"], self._batches["trained"]
        return ", ".join(
            f"{side} px: {trained[side]} of {count} batches trained" for side, count in sorted(given.items())
        )


@contextmanager
def _without_training_adapter(model: Any) -> Iterator[None]:
    """Take back what AI-Toolkit has merged into a distilled model for training: its LoRA counts -1 while it is active."""
    adapter = model.assistant_lora
    if adapter is None:
        yield
        return
    adapter.is_active = True
    adapter.force_to(model.device_torch, model.torch_dtype)
    try:
        yield
    finally:
        adapter.is_active = False
