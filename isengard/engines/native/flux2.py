"""FLUX.2 [klein]: latents normalised by the VAE's own statistics, rectified flow, prompts from the middle of Qwen3."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
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

_DOUBLE, _SINGLE = r"transformer_blocks\.\d+\.", r"single_transformer_blocks\.\d+\."
#: A single block has one layer before its attention, which makes the MLP's input too, and one behind both.
_ATTENTION = (
    rf"{_DOUBLE}attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|{_SINGLE}attn\.(to_qkv_mlp_proj|to_out)"
)
_MLP = rf"{_DOUBLE}ff(_context)?\.linear_(in|out)"
_TARGETS = {
    "attention": _ATTENTION,
    "attention_mlp": f"{_ATTENTION}|{_MLP}",
    "all_linear": f"{_ATTENTION}|{_MLP}",  # the modulation is shared by all blocks; other programs leave it alone too
}


class Flux2Adapter:
    """FLUX.2 [klein], base and distilled. See `FamilyAdapter`."""

    pixels_per_token = 16
    autocast = False

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
        self._image_ids: dict[tuple[int, int], Tensor] = {}

    def marks(self) -> Mapping[str, str]:
        dtype, length = compute_dtype(self._device), self._model.card.max_sequence_length
        return {
            "vae": mark(dtype, self._model.path, ("vae",)),
            "text": mark(f"{dtype}/{length}", self._model.path, ("text_encoder", "tokenizer"))
            + placement_mark(self._text_encoders, self._device),
        }

    def encode_image(self, pixels: Tensor) -> Tensor:
        vae = self._load_vae()
        with torch.no_grad():
            latents = vae.encode(pixels[None].to(self._device, vae.dtype)).latent_dist.mode().float()
        mean, deviation = latent_statistics(vae)
        patches = Flux2KleinPipeline._patchify_latents(latents)
        return Flux2KleinPipeline._pack_latents((patches - mean) / deviation)[0].cpu()

    def encode_prompt(self, prompt: str) -> PromptEmbeds:
        if self._text is None:
            self._text = Flux2KleinPipeline.from_pretrained(
                self._model.path,
                transformer=None,
                vae=None,
                dtype=compute_dtype(self._device),
                use_safetensors=True,
            )
            place_text_encoders(self._text, self._text_encoders, device=self._device)
        with torch.no_grad():
            embeds, _ = self._text.encode_prompt(
                prompt, max_sequence_length=self._model.card.max_sequence_length
            )
        return {"prompt_embeds": embeds[0].cpu()}

    def free_encoders(self) -> None:
        self._vae = self._text = None
        free_cached(self._device)

    def load_denoiser(self, **held: Unpack[Held]) -> torch.nn.Module:
        folder = self._model.path / "transformer"
        denoiser: torch.nn.Module = load_network(Flux2Transformer2DModel, folder, device=self._device, **held)
        return denoiser

    def target_pattern(self, targets: str) -> str:
        return _TARGETS.get(targets, targets)

    def tokens(self, *, width: int, height: int) -> int:
        return (width // self.pixels_per_token) * (height // self.pixels_per_token)

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
        guidance_scale: float,  # noqa: ARG002 - klein has no guidance embedding
    ) -> Tensor:
        network: Any = denoiser
        embeds = prompts["prompt_embeds"].to(network.dtype)
        text_ids = noisy.new_zeros(embeds.shape[1], 4, dtype=torch.float32)
        text_ids[:, 3] = torch.arange(len(text_ids), device=noisy.device)
        predicted: Tensor = network(
            hidden_states=noisy.to(network.dtype),
            timestep=sigma,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
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
        no_prompt: PromptEmbeds,
    ) -> Image:
        network: Any = denoiser
        pipeline = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(self._model.path / "scheduler"),
            vae=self._load_vae(), transformer=network, text_encoder=None, tokenizer=None,
            is_distilled=not self._model.card.trains,
        )  # fmt: skip
        negative = stacked([no_prompt], self._device)["prompt_embeds"]
        image: Image = draw(
            pipeline, request, on_step, **stacked([prompt], self._device), negative_prompt_embeds=negative
        )[0]
        return image

    def lora_key(self, module: str) -> str:
        return f"transformer.{module}"

    def _load_vae(self) -> Any:
        if self._vae is None:
            dtype = compute_dtype(self._device)
            self._vae = load_vae(AutoencoderKLFlux2, self._model.path, dtype=dtype, device=self._device)
        return self._vae

    def _ids(self, size: tuple[int, int], device: torch.device) -> Tensor:
        if size not in self._image_ids:
            width, height = (side // self.pixels_per_token for side in size)
            self._image_ids[size] = position_ids(width=width, height=height).to(device)
        return self._image_ids[size]


def latent_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the VAE's patched latents, each ``(1, channels, 1, 1)``, float32."""
    mean, variance = (
        values.float()[None, :, None, None] for values in (vae.bn.running_mean, vae.bn.running_var)
    )
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def position_ids(*, width: int, height: int) -> Tensor:
    """Return ``(height * width, 4)``: 0, row and column of each image token, 0."""
    ids = torch.zeros(height, width, 4)
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None]
    return ids.view(-1, 4)
