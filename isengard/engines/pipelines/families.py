"""What differs between model families when images are made. A new family is one more entry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2TokenizerFast,
    Qwen3ForCausalLM,
    T5EncoderModel,
    T5TokenizerFast,
)

from isengard.domain.model import Family, ModelCard
from isengard.engines.lora_format import TRANSFORMER, UNET
from isengard.engines.native.flux2 import latent_statistics


@dataclass(frozen=True)
class PipelineFamily:
    """How to load a family's pipeline and speak to it.

    ``denoiser`` is the component that LoRAs adapt; ``float32`` names those that never compute in less;
    ``encode(pipeline, prompt, card)`` gives the prompt as keyword arguments of the pipeline;
    ``unpack(pipeline, latents, height, width)`` gives ``(1, channels, height / 8, width / 8)`` scaled VAE latents;
    ``options(card)`` are the pipeline's settings beside its parts.
    """

    pipeline: Any
    components: Mapping[str, Any]
    denoiser: str
    encode: Callable[[Any, str, ModelCard], dict[str, Tensor]]
    unpack: Callable[[Any, Tensor, int, int], Tensor]
    float32: frozenset[str] = frozenset()
    options: Callable[[ModelCard], dict[str, Any]] = lambda _card: {}


def family_of(card: ModelCard) -> PipelineFamily:
    return _FAMILIES[card.family]


def _encoding_device(pipeline: Any) -> Any:
    """Where the text encoders compute. They may be on the CPU, or come from there when they are called."""
    hook = getattr(pipeline.text_encoder, "_hf_hook", None)
    return hook.execution_device if hook else pipeline.text_encoder.device


def _where_it_computes(pipeline: Any, embeds: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(pipeline._execution_device) for name, tensor in embeds.items()}


def _encode_flux(pipeline: Any, prompt: str, card: ModelCard) -> dict[str, Tensor]:
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt(
            prompt=prompt,
            prompt_2=None,
            device=_encoding_device(pipeline),
            max_sequence_length=card.max_sequence_length,
        )
    return _where_it_computes(pipeline, {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})


def _unpack_flux(pipeline: Any, latents: Tensor, height: int, width: int) -> Tensor:
    unpacked: Tensor = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    return unpacked


def _encode_flux2(pipeline: Any, prompt: str, card: ModelCard) -> dict[str, Tensor]:
    """The negative prompt is empty; the distilled model is not guided."""
    texts = {"prompt_embeds": prompt} | ({"negative_prompt_embeds": ""} if card.trains else {})
    length = card.max_sequence_length
    device = _encoding_device(pipeline)
    with torch.no_grad():
        embeds = {
            name: pipeline.encode_prompt(text, device=device, max_sequence_length=length)[0]
            for name, text in texts.items()
        }
    return _where_it_computes(pipeline, embeds)


def _unpack_flux2(pipeline: Any, latents: Tensor, height: int, width: int) -> Tensor:
    mean, deviation = (values.to(latents.device) for values in latent_statistics(pipeline.vae))
    patches = latents.float().transpose(1, 2).unflatten(2, (height // 16, width // 16))
    unpacked: Tensor = pipeline._unpatchify_latents(patches * deviation + mean)
    return unpacked


def _encode_sdxl(pipeline: Any, prompt: str, _card: ModelCard) -> dict[str, Tensor]:
    """The negative prompt is empty: the pipeline takes zeros for it."""
    names = (
        "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    )  # fmt: skip
    with torch.no_grad():
        embeds = pipeline.encode_prompt(prompt=prompt, device=_encoding_device(pipeline))
    return _where_it_computes(pipeline, dict(zip(names, embeds, strict=True)))


def _unpack_sdxl(_pipeline: Any, latents: Tensor, _height: int, _width: int) -> Tensor:
    return latents


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
        denoiser=TRANSFORMER,
        encode=_encode_flux,
        unpack=_unpack_flux,
    ),
    Family.FLUX2: PipelineFamily(
        pipeline=Flux2KleinPipeline,
        components={
            "scheduler": FlowMatchEulerDiscreteScheduler,
            "tokenizer": Qwen2TokenizerFast,
            "text_encoder": Qwen3ForCausalLM,
            "vae": AutoencoderKLFlux2,
            "transformer": Flux2Transformer2DModel,
        },
        denoiser=TRANSFORMER,
        encode=_encode_flux2,
        unpack=_unpack_flux2,
        options=lambda card: {"is_distilled": not card.trains},
    ),
    Family.SDXL: PipelineFamily(
        # By default it changes the pixels, with a watermark, where the package invisible-watermark is installed.
        pipeline=partial(StableDiffusionXLPipeline, add_watermarker=False),
        components={
            "scheduler": EulerDiscreteScheduler,
            "tokenizer": CLIPTokenizer,
            "tokenizer_2": CLIPTokenizer,
            "text_encoder": CLIPTextModel,
            "text_encoder_2": CLIPTextModelWithProjection,
            "vae": AutoencoderKL,
            "unet": UNet2DConditionModel,
        },
        denoiser=UNET,
        encode=_encode_sdxl,
        unpack=_unpack_sdxl,
        float32=frozenset({"vae"}),  # its activations overflow float16 and lose detail in bfloat16
    ),
}
