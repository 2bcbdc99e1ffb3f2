"""What an image generation is asked to do."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from isengard.domain.base import Frozen

Side = Annotated[int, Field(ge=64, le=2048, multiple_of=16)]


class LoraRef(Frozen, allow_inf_nan=False):
    """A LoRA by its id, with the strength it is applied at; ``step`` picks an earlier checkpoint."""

    lora: str
    strength: float = Field(1.0, ge=-4, le=4)
    step: int | None = Field(None, ge=0)


class ImageSpec(Frozen, allow_inf_nan=False):
    """One request for images. Image i uses ``seed + i``."""

    base_model: str
    prompt: str = Field(min_length=1, max_length=4000, description="may contain [trigger]")
    loras: tuple[LoraRef, ...] = Field((), max_length=8)
    width: Side = 1024
    height: Side = 1024
    num_inference_steps: int = Field(28, ge=1, le=200)
    guidance_scale: float = Field(3.5, ge=0, le=30)
    seed: int = Field(0, ge=0, lt=2**32)
    count: int = Field(1, ge=1, le=64)
    template: str = ""


class LocalLora(Frozen):
    """A LoRA file on this machine, ready to load."""

    id: str
    name: str
    path: Path
    trigger: str = ""
    strength: float = 1.0


class GenerationTemplate(Frozen):
    """A named starting point for `ImageSpec`, in ``configs/generation``."""

    name: str
    title: str
    description: str
    settings: dict[str, Any]
