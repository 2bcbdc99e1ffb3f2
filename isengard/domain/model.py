"""Base models as data: one card per model in ``configs/models.yaml``."""

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from isengard.domain.base import Frozen
from isengard.domain.performance import StepCache


class Family(StrEnum):
    """A family shares its pipeline class and its training adapter."""

    FLUX = "flux"
    FLUX2 = "flux2"
    SDXL = "sdxl"


#: A straight line: MiB at no pixel, and MiB for each megapixel.
Line = tuple[float, float]


class ModelParts(Frozen):
    """What a model is made of, and what computing with it takes beside its weights; ``python -m benchmarks.memory``."""

    denoiser: int = Field(gt=0, description="parameters")
    quantizable: int = Field(gt=0, description="parameters of it that can be held in fewer bits")
    blocks: int = Field(0, ge=0, description="repeated blocks, which can be streamed; 0 where they differ")
    smallest_block: int = Field(0, ge=0, description="parameters")
    largest_block: int = Field(0, ge=0, description="parameters")
    text_encoders: tuple[int, ...] = Field(description="parameters of each")
    vae: int = Field(gt=0, description="parameters")
    vae_bytes: int = Field(2, ge=2, le=4, description="bytes of each on a GPU")
    adapter_per_rank: dict[str, int] = Field(description="parameters of a LoRA of rank 1, by targets")
    training: Line = Field(description="one forward and backward pass, batch 1, bf16 autocast")
    training_checkpointed: Line = Field(description="the same with gradient checkpointing")
    generation: Line = Field(description="one denoising step, batch 1, bf16")
    decoding: Line = Field(description="the VAE makes one image")
    guidance_passes: int = Field(1, ge=1, le=2, description="images of a batch for each that is made")


class ModelCard(Frozen):
    """What must be known of a base model before it is on the machine."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    family: Family
    repository: str | None = Field(None, description="repository on the Hugging Face hub")
    path: Path | None = Field(None, description="folder in diffusers' layout; relative to isengard/assets")
    licence: str
    licence_url: str
    gated: bool = False
    resolutions: tuple[int, ...] = Field(description="pixels per side it was made for, smallest first")
    num_inference_steps: int = Field(ge=1, description="default for generation")
    guidance_scale: float = Field(ge=0, description="default for generation")
    max_sequence_length: int = Field(512, ge=8, le=512, description="tokens of the long text encoder")
    parts: ModelParts | None = Field(None, description="without it nothing is planned for the model")
    trains: bool = Field(True, description="false for a distilled model, which training would undo")
    training_adapter: str | None = Field(
        None,
        description="repository of a LoRA that keeps training from undoing the distillation",
    )
    generates_with: str | None = Field(
        None, description="card to use this model's LoRAs with; itself when empty"
    )
    mag_ratios: tuple[float, ...] = Field(
        (),
        description="for the step cache mag: how much a step adds, as a share of what the step before added",
    )

    @property
    def trainable(self) -> bool:
        """Whether a LoRA can be trained on it: a distilled model takes its training adapter for that."""
        return self.trains or self.training_adapter is not None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.repository is None) == (self.path is None):
            raise ValueError(f"model {self.name!r} needs either a repository or a path, and not both")
        return self

    @property
    def step_caches(self) -> tuple[StepCache, ...]:
        """The caches that work with this model, the one to prefer first.

        diffusers has none for SDXL's UNet, and its first-block cache fails on the blocks of FLUX.2 (version 0.42.1).
        """
        first_block = (StepCache.FIRST_BLOCK,) if self.family is Family.FLUX else ()
        mag = (StepCache.MAG,) if self.mag_ratios and self.family is not Family.SDXL else ()
        return first_block + mag


class LocalModel(Frozen):
    """A base model that is on this machine, ready to load."""

    card: ModelCard
    path: Path
    training_adapter: Path | None = Field(
        None, description="the file, for a card that needs one to be trained"
    )
