"""FLUX.1: packed latents, rectified flow, CLIP and T5 prompts."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import torch
from PIL.Image import Image
from torch import Tensor

from isengard.domain.model import LocalModel
from isengard.domain.performance import TextEncoders
from isengard.engines.device import compute_dtype, free_cached
from isengard.engines.loading import Held, load_network, place_text_encoders
from isengard.engines.native import flow_matching
from isengard.engines.native.adapter import PromptEmbeds, SampleRequest, stacked
from isengard.engines.native.cache import placement_mark
from isengard.engines.native.parts import draw, load_vae, mark

_ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_MLP = r"ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out"
_MODULATION = r"norm(1|1_context)?\.linear"
_BLOCK = r"(single_)?transformer_blocks\.\d+\."
_TARGETS = {
    "attention": f"{_BLOCK}{_ATTENTION}",
    "attention_mlp": f"{_BLOCK}({_ATTENTION}|{_MLP})",
    "all_linear": f"{_BLOCK}({_ATTENTION}|{_MLP}|{_MODULATION})",
}


class FluxAdapter:
    """FLUX.1-dev, FLUX.1-schnell and the demo model. See `FamilyAdapter`."""

    autocast = False
    pixels_per_latent = 16

    def __init__(
        self,
        model: LocalModel,
        *,
        device: torch.device,
        text_encoders: TextEncoders = TextEncoders.DEVICE,
    ) -> None:
        self._model = model
        self._device = device
        self._text_encoders = text_encoders
        self._vae: Any = None
        self._text: Any = None
        self._position_ids: dict[tuple[int, int], Tensor] = {}

    def marks(self) -> Mapping[str, str]:
        kind = f"{compute_dtype(self._device)}/{self._model.card.max_sequence_length}"
        text = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        return {
            "vae": mark(kind, self._model.path, ("vae",)),
            "text": mark(kind, self._model.path, text) + placement_mark(self._text_encoders, self._device),
        }

    def encode_image(self, pixels: Tensor) -> Tensor:
        vae = self._load_vae()
        with torch.no_grad():
            latents = vae.encode(pixels[None].to(self._device, vae.dtype)).latent_dist.mode()[0].float()
        return pack((latents - vae.config.shift_factor) * vae.config.scaling_factor).cpu()

    def encode_prompt(self, prompt: str) -> PromptEmbeds:
        if self._text is None:
            from diffusers import FluxPipeline  # seconds to import; not needed when all is cached

            self._text = FluxPipeline.from_pretrained(
                self._model.path,
                transformer=None,
                vae=None,
                dtype=compute_dtype(self._device),
                use_safetensors=True,
            )
            place_text_encoders(self._text, self._text_encoders, device=self._device)
        with torch.no_grad():
            embeds, pooled, _ = self._text.encode_prompt(
                prompt=prompt, prompt_2=None, max_sequence_length=self._model.card.max_sequence_length
            )
        return {"prompt_embeds": embeds[0].cpu(), "pooled_prompt_embeds": pooled[0].cpu()}

    def free_encoders(self) -> None:
        self._vae = self._text = None
        free_cached(self._device)

    def load_denoiser(self, **held: Unpack[Held]) -> torch.nn.Module:
        from diffusers import FluxTransformer2DModel

        folder = self._model.path / "transformer"
        denoiser: torch.nn.Module = load_network(FluxTransformer2DModel, folder, device=self._device, **held)
        return denoiser

    def target_pattern(self, targets: str) -> str:
        return _TARGETS.get(targets, targets)

    def tokens(self, *, width: int, height: int) -> int:
        return (width // self.pixels_per_latent) * (height // self.pixels_per_latent)

    def add_noise(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return flow_matching.add_noise(clean, noise, sigma)

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        return flow_matching.velocity(clean, noise)

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy: Tensor,
        *,
        sigma: Tensor,
        prompts: PromptEmbeds,
        size: tuple[int, int],
        guidance_scale: float,
    ) -> Tensor:
        network: Any = denoiser
        guidance = torch.full_like(sigma, guidance_scale) if network.config.guidance_embeds else None
        predicted: Tensor = network(
            hidden_states=noisy.to(network.dtype),
            timestep=sigma,
            guidance=guidance,
            pooled_projections=prompts["pooled_prompt_embeds"].to(network.dtype),
            encoder_hidden_states=prompts["prompt_embeds"].to(network.dtype),
            txt_ids=noisy.new_zeros(prompts["prompt_embeds"].shape[1], 3),
            img_ids=self._ids(size, noisy.device),
            return_dict=False,
        )[0]
        return predicted

    def sample(
        self,
        denoiser: torch.nn.Module,
        prompt: PromptEmbeds,
        request: SampleRequest,
        on_step: Callable[[], None],
        *,
        no_prompt: PromptEmbeds,  # noqa: ARG002 - guidance is an input of the network
    ) -> Image:
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(self._model.path / "scheduler")
        pipeline = FluxPipeline(
            scheduler=scheduler, vae=self._load_vae(), transformer=denoiser,
            text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        )  # fmt: skip
        image: Image = draw(pipeline, request, on_step, **stacked([prompt], self._device))[0]
        return image

    def lora_key(self, module: str) -> str:
        return f"transformer.{module}"

    def _load_vae(self) -> Any:
        if self._vae is None:
            from diffusers import AutoencoderKL

            dtype = compute_dtype(self._device)
            self._vae = load_vae(AutoencoderKL, self._model.path, dtype=dtype, device=self._device)
        return self._vae

    def _ids(self, size: tuple[int, int], device: torch.device) -> Tensor:
        if size not in self._position_ids:
            self._position_ids[size] = position_ids(
                width=size[0] // self.pixels_per_latent, height=size[1] // self.pixels_per_latent
            ).to(device)
        return self._position_ids[size]


def pack(latents: Tensor) -> Tensor:
    """Fold 2x2 patches into tokens: ``(channels, height, width)`` -> ``(height/2 * width/2, channels * 4)``."""
    channels, height, width = latents.shape
    patches = latents.view(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
    return patches.reshape(height // 2 * width // 2, channels * 4)


def position_ids(*, width: int, height: int) -> Tensor:
    """Return ``(height * width, 3)``: 0, row and column of each image token."""
    ids = torch.zeros(height, width, 3)
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None]
    return ids.view(-1, 3)
