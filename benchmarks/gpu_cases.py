"""What `benchmarks.gpu` measures, as data, and the arithmetic that a measured time is held against."""

from typing import Any

from pydantic import Field

from benchmarks.random_flux import Shape
from isengard.domain.base import Frozen

#: Tokens of FLUX.1-dev's prompt.
PROMPT_TOKENS = 512
#: Denoising steps and pixels per side of an image.
IMAGE_STEPS, IMAGE_SIDE = 28, 1024
SIDES = (512, 768, 1024)

OURS, PLAIN, AI_TOOLKIT = "ours", "plain", "ai-toolkit"
TRAIN, GENERATE = "train", "generate"


class Case(Frozen):
    """One row: a way to train or to make images. ``settings`` are fields of TrainingSpec, or of GenerationPlan."""

    kind: str
    name: str
    by: str = OURS
    settings: dict[str, Any] = Field(default_factory=dict)
    cache: str = "none"

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.name}"


class Measured(Frozen):
    """One size of one case."""

    side: int
    seconds: float = Field(description="of a training step, or of an image")
    peak_bytes: int
    first_s: float = Field(description="until the first step or image was done, compilation among it")
    swap_s: float | None = Field(None, description="to change the LoRA of a warm pipeline")


class Result(Frozen):
    """What came of a case; ``refused`` says why nothing did."""

    case: Case
    rows: tuple[Measured, ...] = ()
    refused: str = ""


#: In the order of their worth: when the time is up, the last are missing.
CASES = (
    Case(kind=TRAIN, name="plain diffusers + peft", by=PLAIN),
    Case(kind=TRAIN, name="bf16"),
    Case(kind=GENERATE, name="diffusers, as documented", by=PLAIN),
    Case(kind=GENERATE, name="bf16"),
    Case(kind=TRAIN, name="compile", settings={"compile": True}),
    Case(kind=GENERATE, name="compile", settings={"compile": True}),
    Case(kind=TRAIN, name="fp8_matmul + compile", settings={"quantization": "fp8_matmul", "compile": True}),
    Case(
        kind=GENERATE,
        name="fp8_matmul + compile",
        settings={"quantization": "fp8_matmul", "compile": True},
    ),
    Case(
        kind=GENERATE,
        name="fp8_matmul + compile + first_block",
        settings={"quantization": "fp8_matmul", "compile": True},
        cache="first_block",
    ),
    Case(kind=GENERATE, name="compile + first_block", settings={"compile": True}, cache="first_block"),
    Case(kind=GENERATE, name="compile + mag", settings={"compile": True}, cache="mag"),
    # What its example for 24 GB sets: an 8-bit base, checkpointing, an 8-bit optimizer.
    Case(
        kind=TRAIN,
        name="AI-Toolkit, its defaults",
        by=AI_TOOLKIT,
        settings={"quantization": "fp8", "gradient_checkpointing": True, "optimizer": "adamw8bit"},
    ),
    Case(kind=TRAIN, name="cudnn + compile", settings={"attention": "cudnn", "compile": True}),
    Case(kind=TRAIN, name="flash_3 + compile", settings={"attention": "flash_3", "compile": True}),
    Case(kind=GENERATE, name="cudnn + compile", settings={"attention": "cudnn", "compile": True}),
    Case(kind=GENERATE, name="flash_3 + compile", settings={"attention": "flash_3", "compile": True}),
    Case(kind=TRAIN, name="checkpointing", settings={"gradient_checkpointing": True}),
    Case(kind=TRAIN, name="int8 + checkpointing", settings={"quantization": "int8", "gradient_checkpointing": True}),
    Case(kind=TRAIN, name="nf4 + checkpointing", settings={"quantization": "nf4", "gradient_checkpointing": True}),
    Case(
        kind=TRAIN,
        name="nf4 + checkpointing + 20 blocks streamed",
        settings={"quantization": "nf4", "gradient_checkpointing": True, "streamed_blocks": 20},
    ),
    Case(kind=TRAIN, name="adamw8bit", settings={"optimizer": "adamw8bit"}),
    Case(kind=GENERATE, name="int8", settings={"quantization": "int8"}),
    Case(kind=GENERATE, name="nf4", settings={"quantization": "nf4"}),
    Case(kind=GENERATE, name="blocks offloaded", settings={"offload": "blocks", "text_encoders": "cpu"}),
)  # fmt: skip


def forward_flops(side: int, shape: Shape) -> float:
    """Floating-point operations of one forward pass over one image and its prompt.

    Each token goes through 12 width^2 weights in each block, of either kind; attention takes 4 tokens^2 width in each.
    """
    tokens = (side // 16) ** 2 + PROMPT_TOKENS
    width, blocks = shape.heads * 128, shape.layers + shape.single_layers
    return blocks * (2.0 * tokens * 12 * width**2 + 4.0 * tokens**2 * width)


def floor_flops(case: Case, side: int, shape: Shape) -> float:
    """The fewest operations a step or an image takes: a LoRA's gradient costs as much again as the forward pass."""
    return forward_flops(side, shape) * (2 if case.kind == TRAIN else IMAGE_STEPS)
