"""What a training is asked to do. All defaults are here; presets in ``configs/training`` only override."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from isengard.domain.base import MAX_TEXT, Frozen, Name
from isengard.domain.performance import Attention, Quantization, TextEncoders


class Optimizer(StrEnum):
    ADAMW = "adamw"
    ADAMW_8BIT = "adamw8bit"  # its state in 8 bits
    PRODIGY = "prodigy"  # finds the learning rate itself; set learning_rate to 1


class LrScheduler(StrEnum):
    CONSTANT = "constant"
    COSINE = "cosine"


class TimestepSampling(StrEnum):
    """How the noise level sigma of a training example is drawn."""

    UNIFORM = "uniform"
    SIGMOID = "sigmoid"  # logit-normal, mean 0, deviation 1
    SHIFTED = "shifted"  # logit-normal, moved towards noise for high resolutions


class LossWeighting(StrEnum):
    """Weight of a training example by its sigma; named as in diffusers."""

    NONE = "none"
    SIGMA_SQRT = "sigma_sqrt"
    COSMAP = "cosmap"


class Precision(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"  # autocast; the adapter stays in float32


TARGETS = ("attention", "attention_mlp", "all_linear")
Resolution = Annotated[int, Field(ge=64, le=2048, multiple_of=16)]


#: The engines a training can name: our own trainer, and AI-Toolkit's.
NATIVE, AI_TOOLKIT = "native", "ai-toolkit"


class TrainingSpec(Frozen, allow_inf_nan=False):
    """One training, wholly described: with the same images it gives the same weights."""

    character: Name = Field(description="character id")
    base_model: Name = Field(description="name of a model card")
    engine: Name = Field(NATIVE, description="native, or ai-toolkit")
    preset: Name = Field("", description="the preset it was made from, for the record")
    trigger: Name = Field(min_length=1, description="stands for [trigger] in captions and prompts")
    class_word: Name = "person"

    steps: int = Field(1000, ge=1, le=100_000, description="optimizer steps")
    batch_size: int = Field(1, ge=1, le=64, description="images per forward pass")
    gradient_accumulation_steps: int = Field(1, ge=1, le=64, description="forward passes per optimizer step")
    seed: int = Field(0, ge=0, lt=2**32)

    rank: int = Field(16, ge=1, le=256)
    alpha: float = Field(16, gt=0, le=512, description="the adapter's output is scaled by alpha / rank")
    targets: str = Field(
        "attention",
        max_length=1000,
        description="attention, attention_mlp, all_linear, or a regular expression of module names",
    )

    optimizer: Optimizer = Optimizer.ADAMW
    learning_rate: float = Field(1e-4, gt=0, le=10)
    weight_decay: float = Field(1e-4, ge=0, le=1)
    lr_scheduler: LrScheduler = LrScheduler.CONSTANT
    lr_warmup_steps: int = Field(0, ge=0, le=100_000)
    max_grad_norm: float = Field(1.0, ge=0, description="0 switches clipping off")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="0 switches the moving average off")

    precision: Precision = Precision.BF16
    quantization: Quantization = Quantization.NONE
    gradient_checkpointing: bool = False
    streamed_blocks: int = Field(
        0,
        ge=0,
        le=200,
        description="transformer blocks whose frozen weights wait in system memory for their turn",
    )
    text_encoders: TextEncoders = TextEncoders.DEVICE
    attention: Attention = Attention.NATIVE
    compile: bool = Field(
        False, description="compile the repeated blocks: minutes at the start, faster steps"
    )
    devices: int = Field(
        1, ge=1, le=16, description="GPUs that share a training; each takes batch_size images a pass"
    )

    resolutions: tuple[Resolution, ...] = Field(
        (512,), min_length=1, max_length=16, description="square sides whose area is kept"
    )
    max_upscale: float = Field(1.0, ge=1, le=4, description="an image is enlarged at most by this factor")
    flip: bool = Field(False, description="mirror at random; harms faces, which are not symmetric")
    caption_dropout: float = Field(
        0.05, ge=0, le=1, description="share of examples trained with an empty caption"
    )

    timestep_sampling: TimestepSampling = TimestepSampling.SIGMOID
    loss_weighting: LossWeighting = LossWeighting.NONE
    guidance_scale: float = Field(1.0, ge=0, description="given to guidance-embedded models while training")

    save_every: int = Field(250, ge=1, description="optimizer steps between checkpoints")
    keep_checkpoints: int = Field(
        0, ge=0, description="newest to keep; 0 keeps all; best and pinned always stay"
    )
    validate_every: int = Field(50, ge=0, description="0 switches validation off")
    sample_every: int = Field(250, ge=0, description="0 switches samples off")
    sample_prompts: tuple[str, ...] = Field(("a photo of [trigger] [class]",), max_length=32)
    sample_seed: int = Field(42, ge=0, lt=2**32)
    sample_steps: int = Field(20, ge=1, le=200)
    sample_guidance_scale: float = Field(3.5, ge=0)
    sample_resolution: Resolution = 512
    stop_early: bool = Field(
        False, description="end when the samples have stopped becoming more like the character"
    )
    compare_when_done: bool = Field(
        False, description="compare the checkpoints after the training, which makes pictures with each"
    )

    @field_validator("targets")
    @classmethod
    def _targets_compile(cls, value: str) -> str:
        if value not in TARGETS:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"targets must be one of {', '.join(TARGETS)} or a regular expression: {error}"
                ) from None
        return value

    @field_validator("sample_prompts")
    @classmethod
    def _prompts_are_short(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if (longest := max(map(len, value), default=0)) > MAX_TEXT:
            raise ValueError(f"a prompt has at most {MAX_TEXT} characters, got {longest}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.lr_warmup_steps >= self.steps and self.lr_warmup_steps:
            raise ValueError(
                f"lr_warmup_steps ({self.lr_warmup_steps}) must be smaller than steps ({self.steps})"
            )
        if len(set(self.resolutions)) != len(self.resolutions):
            raise ValueError(f"resolutions has the same value twice: {self.resolutions}")
        if self.stop_early and not (self.sample_every and self.sample_prompts and self.devices == 1):
            raise ValueError(
                f"stop_early looks at the samples of a training on one device; got sample_every {self.sample_every},"
                f" {len(self.sample_prompts)} sample_prompts, devices {self.devices}"
            )
        if self.streamed_blocks and (self.compile or not self.gradient_checkpointing):
            raise ValueError(
                f"streamed_blocks ({self.streamed_blocks}) needs gradient_checkpointing on and compile off: a block is"
                " computed again when its weights are back for the backward pass"
            )
        return self


#: Fields that may change when a stopped or failed run goes on from its last checkpoint.
RESUMABLE_FIELDS = frozenset(
    {
        "steps", "batch_size", "gradient_accumulation_steps", "learning_rate", "max_grad_norm",
        "gradient_checkpointing", "precision", "quantization", "resolutions",
        "streamed_blocks", "text_encoders", "attention", "compile",
        "save_every", "keep_checkpoints", "validate_every",
        "sample_every", "sample_prompts", "sample_seed", "sample_steps", "sample_guidance_scale", "sample_resolution",
        "stop_early",
        "compare_when_done",
    }
)  # fmt: skip


class TrainingImage(Frozen):
    """One image as a trainer sees it."""

    path: Path = Field(
        description="in a job, under the folder of characters: machines mount that where they like"
    )
    sha256: str = Field(description="of the decoded pixels; caches are keyed by it")
    width: int
    height: int
    caption: str = Field(description="resolved: holds the trigger word itself")

    def under(self, characters_dir: Path) -> Self:
        """The same image with the whole path of its file; a whole path stays."""
        return self.model_copy(update={"path": characters_dir / self.path})


class TrainingPreset(Frozen):
    """Overrides for `TrainingSpec`, and how many steps a character of n images gets."""

    name: str
    title: str
    description: str
    steps_per_image: int = Field(ge=1)
    min_steps: int = Field(ge=1)
    max_steps: int = Field(ge=1)
    settings: dict[str, Any] = Field(default_factory=dict, description="for every model")
    models: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="more, by name of the model card"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps ({self.min_steps}) must not be above max_steps ({self.max_steps})")
        return self
