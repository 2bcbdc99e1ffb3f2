"""How much of the disk a training or a request for images will take. Counted from a card's ``parts`` before it starts."""

from isengard.domain.generation import ImageSpec
from isengard.domain.model import ModelCard, ModelParts
from isengard.domain.training import TARGETS, Optimizer, TrainingSpec

MB = 10**6
#: Bytes of the optimizer's state for each parameter of the adapter.
OPTIMIZER_BYTES = {Optimizer.ADAMW: 8, Optimizer.ADAMW_8BIT: 3, Optimizer.PRODIGY: 16}
#: A picture that cannot be compressed at all.
PIXEL_BYTES = 3
#: The latents of one pixel: at most 128 channels in float32 for 256 pixels.
LATENT_BYTES = 2
#: An encoded prompt: 512 tokens of a large language model, or those of CLIP.
LONG_PROMPT_BYTES, SHORT_PROMPT_BYTES, LONG_FROM = 16 * MB, MB, 10**9


def checkpoint_bytes(parts: ModelParts, spec: TrainingSpec) -> int:
    """One checkpoint: the adapter, the optimizer's state, the moving average if there is one, and the LoRA, in float32."""
    each = 4 + OPTIMIZER_BYTES[spec.optimizer] + (4 if spec.ema_decay else 0) + 4
    return _adapter_parameters(parts, spec) * each


def kept_checkpoints(spec: TrainingSpec) -> int:
    """The most that are on disk at once: the scheduled ones that stay, the last and the best."""
    written = -(-spec.steps // spec.save_every)
    return min(written, spec.keep_checkpoints + 1) if spec.keep_checkpoints else written


def training_bytes(card: ModelCard, spec: TrainingSpec, *, images: int) -> int:
    """All that a training writes: its checkpoints and one more while it is written, samples, caches and the LoRA.

    Of a model whose parts are not known the checkpoints count for nothing.
    """
    sampled = spec.steps // spec.sample_every + 2 if spec.sample_every else 0
    samples = sampled * len(spec.sample_prompts) * spec.sample_resolution**2 * PIXEL_BYTES
    sides = 2 if spec.flip else 1
    latents = images * sides * sum(side**2 for side in spec.resolutions) * LATENT_BYTES
    if card.parts is None:
        return samples + latents
    prompt = LONG_PROMPT_BYTES if sum(card.parts.text_encoders) >= LONG_FROM else SHORT_PROMPT_BYTES
    prompts = (images + 1 + len(spec.sample_prompts)) * prompt
    checkpoints = (kept_checkpoints(spec) + 1) * checkpoint_bytes(card.parts, spec)
    return samples + latents + prompts + checkpoints + 4 * _adapter_parameters(card.parts, spec)


def images_bytes(spec: ImageSpec) -> int:
    """All images of a request."""
    return spec.count * picture_bytes(spec.width, spec.height)


def picture_bytes(width: int, height: int) -> int:
    """One picture that cannot be compressed."""
    return width * height * PIXEL_BYTES


def _adapter_parameters(parts: ModelParts, spec: TrainingSpec) -> int:
    targets = spec.targets if spec.targets in TARGETS else "all_linear"
    return parts.adapter_per_rank[targets] * spec.rank


def size(count: float) -> str:
    """``25.0 MB``, ``33.7 GB``: as disks are sold."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
