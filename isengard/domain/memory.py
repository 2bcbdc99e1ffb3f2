"""How much memory a training or an image takes. Counted from a card's ``parts``, and scaled by what was measured here."""

from enum import StrEnum

from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.generation import ImageSpec
from isengard.domain.model import Line, ModelCard, ModelParts
from isengard.domain.performance import GenerationPlan, Offload, Quantization, TextEncoders
from isengard.domain.training import AI_TOOLKIT, TARGETS, Optimizer, Precision, TrainingSpec

GB = 10**9
MIB = 2**20
#: What CUDA itself takes of a device before the first tensor.
CONTEXT_BYTES = int(0.6 * GB)
#: What a worker with its libraries takes of system memory.
PROCESS_BYTES = int(0.6 * GB)
#: Kept free for the system and other programs.
SYSTEM_MARGIN_BYTES = 2 * GB
#: Share that PyTorch's allocator holds and cannot give out.
SLACK = 1.05
#: A quantized layer has its adapter beside it, not fused: more results are kept.
QUANTIZED_ACTIVATIONS = 1.15
#: Bytes of a parameter, with the scales of its group.
BYTES = {
    Quantization.NONE: 2.0,
    Quantization.INT8: 1.02,
    Quantization.FP8: 1.02,
    Quantization.FP8_MATMUL: 1.02,
    Quantization.NF4: 0.53,
}
#: Cards from Ada on multiply in 8 bits.
FP8_FROM = (8, 9)
#: Share of a megapixel that is decoded at once in tiles.
TILE = 0.25
#: Measured over expected: beyond these a measurement of other settings is not believed.
BELIEVED = (0.7, 1.5)


WORDS = {
    Quantization.NONE: "full weights",
    Quantization.INT8: "8-bit weights",
    Quantization.FP8: "8-bit weights",
    Quantization.FP8_MATMUL: "8-bit weights and products",
    Quantization.NF4: "4-bit weights",
}
ENCODERS = {
    TextEncoders.DEVICE: "",
    TextEncoders.INT8: "prompts encoded in 8 bits",
    TextEncoders.CPU: "prompts encoded on the CPU",
}


class Kind(StrEnum):
    """Where tensors live."""

    CUDA = "cuda"
    MPS = "mps"  # shares the system's memory
    CPU = "cpu"


class Machine(Frozen):
    """What plans are made for."""

    kind: Kind
    name: str
    total_bytes: int = Field(ge=0, description="of the device; of the system where it shares its memory")
    free_bytes: int = Field(ge=0, description="that jobs of ours can have")
    compute_capability: tuple[int, int] | None = None
    gpus: int = Field(0, ge=0)
    system_total_bytes: int = Field(ge=0)
    system_free_bytes: int = Field(ge=0, description="that jobs of ours can have")

    @property
    def eight_bits(self) -> Quantization:
        """How it computes best with weights in 8 bits."""
        fast = self.compute_capability is not None and self.compute_capability >= FP8_FROM
        return Quantization.FP8_MATMUL if fast else Quantization.INT8

    def room(self) -> int:
        """Bytes of the device for tensors."""
        if self.kind is Kind.CUDA:
            return max(0, int((self.free_bytes - CONTEXT_BYTES) / SLACK))
        return max(0, self.free_bytes - SYSTEM_MARGIN_BYTES // 2)

    def system_room(self) -> int:
        return max(0, self.system_free_bytes - SYSTEM_MARGIN_BYTES)


class Task(StrEnum):
    TRAINING = "training"
    GENERATION = "generation"


class Peak(Frozen):
    """What a job took, beside what was counted before it."""

    task: Task
    model: str
    device: str
    settings: str = Field(description="those that matter, as `training_key` and `generation_key` say them")
    expected_bytes: int = Field(gt=0)
    measured_bytes: int = Field(gt=0)


class Corrections(Frozen):
    """Measured peaks of one machine, oldest first."""

    peaks: tuple[Peak, ...] = ()

    def factor(self, *, task: Task, model: str, device: str, settings: str) -> float:
        """Measured over counted: of the same settings, else the mean of other settings of this model; 1 without any."""
        alike = [peak for peak in self.peaks if (peak.task, peak.model, peak.device) == (task, model, device)]
        factors = [(peak.settings == settings, peak.measured_bytes / peak.expected_bytes) for peak in alike]
        same = [factor for exact, factor in factors if exact]
        if same:
            return same[-1]
        low, high = BELIEVED
        believed = [min(max(factor, low), high) for _, factor in factors]
        return sum(believed) / len(believed) if believed else 1.0

    def knows(self, *, task: Task, model: str, device: str, settings: str) -> bool:
        """Whether a job with these settings was measured."""
        given = (task, model, device, settings)
        return any((peak.task, peak.model, peak.device, peak.settings) == given for peak in self.peaks)


#: Of a machine that is new to us.
NOTHING_MEASURED = Corrections()


def training_key(spec: TrainingSpec) -> str:
    """The settings of a training that decide its memory."""
    names = (
        "engine", "precision", "quantization", "gradient_checkpointing", "streamed_blocks", "text_encoders",
        "batch_size", "resolutions", "rank", "targets", "optimizer", "compile", "attention",
    )  # fmt: skip
    return " ".join(f"{name}={_said(getattr(spec, name))}" for name in names)


def generation_key(spec: ImageSpec, plan: GenerationPlan) -> str:
    """The settings of an image request that decide its memory."""
    chosen = plan.model_dump(mode="json", exclude={"expected_peak_bytes"})
    given = {"width": spec.width, "height": spec.height, **chosen}
    return " ".join(f"{name}={_said(value)}" for name, value in given.items())


def _said(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _at(line: Line, megapixels: float) -> float:
    return (line[0] + line[1] * megapixels) * MIB


def _weight_bytes(quantization: Quantization, *, wide: bool) -> float:
    return 4.0 if wide and quantization is Quantization.NONE else BYTES[quantization]


def denoiser_bytes(
    parts: ModelParts, quantization: Quantization, *, streamed: int = 0, wide: bool = False
) -> int:
    """Weights on the device; of streamed blocks two at a time. ``wide``: in float32."""
    each = _weight_bytes(quantization, wide=wide)
    rest = (parts.denoiser - parts.quantizable) * (4 if wide else 2)
    kept = parts.quantizable - streamed * parts.smallest_block
    if streamed:
        kept = max(kept, 0) + 2 * parts.largest_block
    scratch = 0 if quantization is Quantization.NONE else parts.largest_block // 2
    return int(rest + min(kept, parts.quantizable) * each + scratch)


def adapter_bytes(parts: ModelParts, spec: TrainingSpec) -> int:
    """The LoRA, its gradients, the optimizer's state and the moving average, in float32."""
    per_rank = parts.adapter_per_rank[spec.targets if spec.targets in TARGETS else "all_linear"]
    each = {Optimizer.ADAMW: 16, Optimizer.ADAMW_8BIT: 10, Optimizer.PRODIGY: 24}[spec.optimizer]
    return per_rank * spec.rank * (each + (8 if spec.ema_decay else 0))


def training_bytes(parts: ModelParts, spec: TrainingSpec, kind: Kind) -> int:
    """The peak on the device: while prompts are encoded, in a step, or while a sample is made."""
    wide = kind is not Kind.CUDA
    precise = spec.precision is Precision.FP32
    weights = denoiser_bytes(
        parts, spec.quantization, streamed=spec.streamed_blocks, wide=precise
    ) + adapter_bytes(parts, spec)
    megapixels = max(spec.resolutions) ** 2 / MIB
    activations = _at(
        parts.training_checkpointed if spec.gradient_checkpointing else parts.training, megapixels
    )
    if spec.quantization is not Quantization.NONE:
        activations *= QUANTIZED_ACTIVATIONS
    step = weights + activations * spec.batch_size * (2 if precise else 1)
    vae = parts.vae * (4 if wide else parts.vae_bytes)
    encoding = _encoders_bytes(parts, spec.text_encoders, wide=wide) + vae
    if spec.engine == AI_TOOLKIT:  # it loads everything before it encodes
        encoding += denoiser_bytes(parts, spec.quantization)
    sampling = weights + vae + _at(parts.decoding, spec.sample_resolution**2 / MIB)
    peaks = [encoding, step, *([sampling] if spec.sample_every and spec.sample_prompts else [])]
    return int(max(peaks)) + (PROCESS_BYTES if wide else 0)


def training_system_bytes(parts: ModelParts, spec: TrainingSpec) -> int:
    """The peak in system memory beside a GPU."""
    encoders = sum(parts.text_encoders) * 2 if spec.text_encoders is TextEncoders.CPU else 0
    streamed = min(spec.streamed_blocks * parts.largest_block, parts.quantizable)
    return int(PROCESS_BYTES + max(encoders, streamed * BYTES[spec.quantization]))


def _encoders_bytes(parts: ModelParts, place: TextEncoders, *, wide: bool, largest: bool = False) -> int:
    count = max(parts.text_encoders) if largest else sum(parts.text_encoders)
    if wide:
        return count * 4
    each = {TextEncoders.DEVICE: 2.0, TextEncoders.INT8: 1.1, TextEncoders.CPU: 0.0}[place]
    return int(count * each)


def generation_bytes(parts: ModelParts, plan: GenerationPlan, *, megapixels: float, kind: Kind) -> int:
    """The peak on the device: while the prompt is encoded, in a denoising step, or while the VAE decodes."""
    wide = kind is not Kind.CUDA
    factor = 2 if wide else 1
    streamed = parts.blocks if plan.offload is Offload.BLOCKS else 0
    denoiser = denoiser_bytes(parts, plan.quantization, streamed=streamed, wide=wide)
    step = _at(parts.generation, megapixels) * plan.batch_size * parts.guidance_passes * factor
    decoded = min(megapixels, TILE) if plan.vae_tiling else megapixels
    precise = factor if parts.vae_bytes == 2 else 1
    decoding = _at(parts.decoding, decoded) * precise + 12 * megapixels * MIB * plan.batch_size
    vae = parts.vae * (4 if wide else parts.vae_bytes)
    if plan.offload is Offload.NONE:
        encoders = _encoders_bytes(parts, plan.text_encoders, wide=wide)
        peak = encoders + denoiser + vae + max(step, decoding)
    else:
        encoders = _encoders_bytes(parts, plan.text_encoders, wide=wide, largest=True)
        peak = max(encoders, denoiser + step, vae + decoding)
    return int(peak) + (PROCESS_BYTES if wide else 0)


def generation_system_bytes(parts: ModelParts, plan: GenerationPlan) -> int:
    """What waits in system memory beside a GPU."""
    encoders = sum(parts.text_encoders) * 2
    if plan.offload is not Offload.NONE:
        return int(PROCESS_BYTES + encoders + denoiser_bytes(parts, plan.quantization) + parts.vae * 2)
    return PROCESS_BYTES + (encoders if plan.text_encoders is TextEncoders.CPU else 0)


class Cost:
    """What a training or an image takes on a machine, by all that is known of it."""

    def __init__(
        self, card: ModelCard, parts: ModelParts, machine: Machine, corrections: Corrections
    ) -> None:
        self._card, self._parts, self.machine, self._corrections = card, parts, machine, corrections

    def training(self, spec: TrainingSpec) -> int:
        """The peak on the device."""
        named = {"task": Task.TRAINING, "model": self._card.name, "device": self.machine.name}
        factor = self._corrections.factor(**named, settings=training_key(spec))  # type: ignore[arg-type]  # each by its name
        return int(training_bytes(self._parts, spec, self.machine.kind) * factor)

    def generation(self, spec: ImageSpec, plan: GenerationPlan) -> int:
        """The peak on the device."""
        named = {"task": Task.GENERATION, "model": self._card.name, "device": self.machine.name}
        factor = self._corrections.factor(**named, settings=generation_key(spec, plan))  # type: ignore[arg-type]  # each by its name
        size = spec.width * spec.height / MIB
        counted = generation_bytes(self._parts, plan, megapixels=size, kind=self.machine.kind)
        return int(counted * factor)


def gb(count: float) -> str:
    """``10.9 GB``, as drivers and shops count: a card of 12 GB has 12 x 2**30 bytes."""
    return f"{count / 2**30:.1f} GB"
