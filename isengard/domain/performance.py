"""How a model is held in memory and computed: choices that decide speed and memory, hardly the result."""

from enum import StrEnum

from pydantic import Field

from isengard.domain.base import Frozen


class Quantization(StrEnum):
    """How the frozen base model's weights are held."""

    NONE = "none"
    INT8 = "int8"  # multiplied in bfloat16
    FP8 = "fp8"  # multiplied in bfloat16
    NF4 = "nf4"  # 4 bits; multiplied in bfloat16
    FP8_MATMUL = "fp8_matmul"  # multiplied in 8 bits too: cards from Ada and Hopper on


class TextEncoders(StrEnum):
    """Where prompts are encoded."""

    DEVICE = "device"
    INT8 = "int8"  # on the device, in 8 bits
    CPU = "cpu"


class Offload(StrEnum):
    """Which parts of a pipeline wait in system memory while an image is made."""

    NONE = "none"
    MODEL = "model"  # one part is on the device at a time
    BLOCKS = "blocks"  # and of the largest part one block at a time, the next one on its way


class Attention(StrEnum):
    """Which kernel computes attention."""

    NATIVE = "native"  # PyTorch chooses
    CUDNN = "cudnn"
    FLASH = "flash"  # the package flash-attn
    FLASH_3 = "flash_3"  # the package flash-attn-3: Hopper only


class StepCache(StrEnum):
    """What is skipped where a denoising step changes little."""

    NONE = "none"
    FIRST_BLOCK = "first_block"
    MAG = "mag"


class PerformanceChoices(Frozen):
    """What the user decided about making images; the planner decides what is None."""

    quantization: Quantization | None = None
    offload: Offload | None = None
    text_encoders: TextEncoders | None = None
    attention: Attention | None = None
    compile: bool | None = Field(None, description="compile the repeated blocks: minutes once, faster after")
    vae_tiling: bool | None = Field(None, description="decode in tiles: less memory, seams are possible")
    batch_size: int | None = Field(None, ge=1, le=16, description="images that are made at once")


class GenerationPlan(Frozen):
    """How a pipeline is loaded and run. The defaults are for a device with plenty of memory."""

    quantization: Quantization = Quantization.NONE
    offload: Offload = Offload.NONE
    text_encoders: TextEncoders = TextEncoders.DEVICE
    attention: Attention = Attention.NATIVE
    compile: bool = False
    vae_tiling: bool = False
    batch_size: int = Field(1, ge=1)
    expected_peak_bytes: int = Field(0, ge=0, description="on the device; 0 when nothing is known")
