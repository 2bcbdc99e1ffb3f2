"""What every family does alike with the parts of its pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isengard.engines.native.adapter import SampleRequest
from isengard.engines.native.cache import fingerprint


def mark(kind: object, model: Path, folders: tuple[str, ...]) -> str:
    """Identify an encoder by how it is used and by the files in its folders."""
    return "/".join([str(kind), *(fingerprint(model / folder) for folder in folders)])


def load_vae(cls: Any, model: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A frozen VAE on the device."""
    vae = cls.from_pretrained(model / "vae", dtype=dtype, use_safetensors=True)
    return vae.to(device).requires_grad_(False)  # torch's own signature


def draw(pipeline: Any, request: SampleRequest, on_step: Callable[[], None], **inputs: Any) -> Any:
    """Run a pipeline for one picture and return what it made; ``on_step`` may raise after each denoising step."""
    pipeline.set_progress_bar_config(disable=True)

    def after_step(_pipeline: object, _step: int, _timestep: object, state: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return state

    made = pipeline(
        **inputs,
        height=request.resolution,
        width=request.resolution,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        callback_on_step_end=after_step,
    )
    return made.images
