"""What differs between model families when images are made. A new family is one more entry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from isengard.domain.model import Family, ModelCard
from isengard.errors import InvalidSpec


@dataclass(frozen=True)
class PipelineFamily:
    """How to load a family's pipeline and speak to it.

    ``encode(pipeline, prompt, card)`` gives the prompt as keyword arguments of the pipeline;
    ``unpack(pipeline, latents, height, width)`` gives ``(1, channels, height / 8, width / 8)`` scaled VAE latents.
    """

    pipeline: Any
    components: Mapping[str, Any]
    encode: Callable[[Any, str, ModelCard], dict[str, Tensor]]
    unpack: Callable[[Any, Tensor, int, int], Tensor]


def family_of(card: ModelCard) -> PipelineFamily:
    """Raises: InvalidSpec when images cannot be made with this family yet."""
    if card.family not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise InvalidSpec(
            f"model {card.name!r} is of the family {card.family}, which cannot make images yet; choose one of: {known}"
        )
    return _FAMILIES[card.family]


def _encode_flux(pipeline: Any, prompt: str, card: ModelCard) -> dict[str, Tensor]:
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt(
            prompt=prompt, prompt_2=None, max_sequence_length=card.max_sequence_length
        )
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _unpack_flux(pipeline: Any, latents: Tensor, height: int, width: int) -> Tensor:
    unpacked: Tensor = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    return unpacked


_FAMILIES = {
    Family.FLUX: PipelineFamily(
        pipeline=FluxPipeline,
        components={
            "scheduler": FlowMatchEulerDiscreteScheduler,
            "tokenizer": CLIPTokenizer,
            "tokenizer_2": T5TokenizerFast,
            "text_encoder": CLIPTextModel,
            "text_encoder_2": T5EncoderModel,
            "vae": AutoencoderKL,
            "transformer": FluxTransformer2DModel,
        },
        encode=_encode_flux,
        unpack=_unpack_flux,
    )
}
