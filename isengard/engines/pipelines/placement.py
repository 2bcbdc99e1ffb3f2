"""Which parts of a pipeline are on the device when: all of them, or one at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device

from isengard.domain.performance import GenerationPlan, Offload, TextEncoders


def place(pipeline: Any, denoiser: str, plan: GenerationPlan, *, device: torch.device) -> None:
    """Put the parts where the plan wants them. The text encoders in 8 bits and a streamed denoiser are there already."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    if plan.text_encoders is TextEncoders.CPU:
        parts = {name: part for name, part in parts.items() if not name.startswith("text_encoder")}
    moved = [part for name, part in parts.items() if name != denoiser or plan.offload is not Offload.BLOCKS]
    if plan.offload is Offload.NONE:
        for part in moved:
            part.to(device)
    else:
        for part in moved:
            part.to("cpu")
        for part in parts.values():
            add_hook_to_module(part, _OneAtATime(moved, device))
    if plan.vae_tiling:
        pipeline.vae.enable_tiling()
        pipeline.vae.enable_slicing()


class _OneAtATime(ModelHook):  # type: ignore[misc]  # accelerate has no types
    """Brings a part to the device when it is called, and sends the others to system memory before.

    Unlike the chain of `enable_model_cpu_offload` it knows no order, so it serves several images in a row; a part that
    streams its blocks itself takes its turn without being moved.
    """

    def __init__(self, moved: Sequence[torch.nn.Module], device: torch.device) -> None:
        self._moved = moved
        self.execution_device = device  # pipelines look for it under this name

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for part in self._moved:
            if part is not module and _where(part) != "cpu":
                part.to("cpu")  # pragma: gpu
        if any(part is module for part in self._moved) and _where(module) != self.execution_device.type:
            module.to(self.execution_device)  # pragma: gpu
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def _where(part: torch.nn.Module) -> str:
    return str(next(part.parameters()).device.type)
