"""SDXL: a UNet that predicts the noise of a discrete diffusion, prompts from two CLIPs, sizes as conditions."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL.Image import Image
from torch import Tensor

from isengard.domain.model import LocalModel
from isengard.domain.performance import TextEncoders
from isengard.engines.device import compute_dtype, free_cached, moved
from isengard.engines.loading import Held, load_network, place_text_encoders
from isengard.engines.native.adapter import PromptEmbeds, SampleRequest
from isengard.engines.native.cache import placement_mark
from isengard.engines.native.parts import draw, load_vae, mark
from isengard.errors import InvalidSpec

_ATTENTION = r"transformer_blocks\.\d+\.attn[12]\.(to_[qkv]|to_out\.0)"
_MLP = r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)"
_PROJECTION = r"proj_(in|out)"
_PLACE = r".*\.attentions\.\d+\."
_TARGETS = {
    "attention": f"{_PLACE}{_ATTENTION}",
    "attention_mlp": f"{_PLACE}({_ATTENTION}|{_MLP})",
    "all_linear": f"{_PLACE}({_ATTENTION}|{_MLP}|{_PROJECTION})",
}


class SdxlAdapter:
    """SDXL and models made from it. See `FamilyAdapter`.

    The VAE is in float32 on every device: its activations overflow float16 and lose detail in bfloat16.
    """

    autocast = True

    def __init__(
        self,
        model: LocalModel,
        *,
        device: torch.device,
        text_encoders: TextEncoders = TextEncoders.DEVICE,
    ) -> None:
        """Raises: InvalidSpec when the model does not predict the noise."""
        self._model = model
        self._device = device
        self._text_encoders = text_encoders
        self._vae: Any = None
        self._text: Any = None
        self._alphas_cumprod: Tensor | None = None
        # The one class serves training, for its alphas_cumprod, and sampling.
        self._scheduler = EulerDiscreteScheduler.from_pretrained(model.path / "scheduler")
        kind = self._scheduler.config.prediction_type
        if kind != "epsilon":
            raise InvalidSpec(
                f"{model.card.title} has the prediction_type {kind!r}; SDXL models are trained here with 'epsilon' only"
            )

    def marks(self) -> Mapping[str, str]:
        text = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        return {
            "vae": mark(torch.float32, self._model.path, ("vae",)),
            "text": mark(compute_dtype(self._device), self._model.path, text)
            + placement_mark(self._text_encoders, self._device),
        }

    def encode_image(self, pixels: Tensor) -> Tensor:
        vae = self._load_vae()
        with torch.no_grad():
            latents = vae.encode(pixels[None].to(self._device, torch.float32)).latent_dist.mode()[0]
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled.cpu()

    def encode_prompt(self, prompt: str) -> PromptEmbeds:
        """Embed one prompt; the empty one is zeros, as SDXL was trained and as its pipeline guides away from."""
        if self._text is None:
            self._text = StableDiffusionXLPipeline.from_pretrained(
                self._model.path,
                unet=None,
                vae=None,
                use_safetensors=True,
                dtype=compute_dtype(self._device),
                add_watermarker=False,
            )
            place_text_encoders(self._text, self._text_encoders, device=self._device)
        with torch.no_grad():
            embeds, _, pooled, _ = self._text.encode_prompt(prompt, do_classifier_free_guidance=False)
        weight = float(bool(prompt))
        return {
            "prompt_embeds": (embeds[0] * weight).cpu(),
            "pooled_prompt_embeds": (pooled[0] * weight).cpu(),
        }

    def free_encoders(self) -> None:
        self._vae = self._text = None
        free_cached(self._device)

    def load_denoiser(self, **held: Unpack[Held]) -> torch.nn.Module:
        folder = self._model.path / "unet"
        denoiser: torch.nn.Module = load_network(UNet2DConditionModel, folder, device=self._device, **held)
        return denoiser

    def target_pattern(self, targets: str) -> str:
        return _TARGETS.get(targets, targets)

    def tokens(self, *, width: int, height: int) -> int:
        """Tokens of the finest attention, which sees one latent pixel in four."""
        return (width // 16) * (height // 16)

    def add_noise(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """``sqrt(a) * clean + sqrt(1 - a) * noise``, with a = alphas_cumprod at the timestep of sigma."""
        kept = self._alphas(sigma.device)[self.timesteps(sigma)]
        kept = kept.view(-1, *[1] * (clean.ndim - 1))
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def _alphas(self, device: torch.device) -> Tensor:
        """The schedule's ``alphas_cumprod``, brought to the device once; the scheduler needs its own on the CPU."""
        if self._alphas_cumprod is None:
            self._alphas_cumprod = self._scheduler.alphas_cumprod.to(device)
        return self._alphas_cumprod

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002 - part of the protocol
        return noise

    def timesteps(self, sigma: Tensor) -> Tensor:
        """Turn noise levels into timesteps: ``floor(sigma * 1000)``, at most 999.

        So each of the 1000 timesteps owns an equal share of [0, 1], and sigma drawn uniformly gives timesteps drawn
        uniformly. Sigma is a place on the schedule here, not the noise's share of the mixture as with FLUX.
        """
        count: int = self._scheduler.config.num_train_timesteps
        return (sigma * count).long().clamp(max=count - 1)

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy: Tensor,
        *,
        sigma: Tensor,
        prompts: PromptEmbeds,
        size: tuple[int, int],
        guidance_scale: float,  # noqa: ARG002 - SDXL has no guidance embedding
    ) -> Tensor:
        width, height = size
        # Original size, left upper corner of the crop, target size: the picture is told to be whole.
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=noisy.dtype)
        time_ids = moved(sizes, noisy.device).expand(len(noisy), -1)
        predicted: Tensor = denoiser(
            noisy,
            self.timesteps(sigma),
            encoder_hidden_states=prompts["prompt_embeds"].to(noisy.dtype),
            added_cond_kwargs={
                "text_embeds": prompts["pooled_prompt_embeds"].to(noisy.dtype),
                "time_ids": time_ids,
            },
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
        no_prompt: PromptEmbeds,  # noqa: ARG002 - the pipeline takes zeros, which it is
    ) -> Image:
        """Make one picture; where ``guidance_scale`` is above 1 the pipeline guides away from zeros."""
        network: Any = denoiser
        vae = self._load_vae()
        pipeline = StableDiffusionXLPipeline(
            scheduler=self._scheduler, vae=vae, unet=network, add_watermarker=False,
            text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        )  # fmt: skip
        inputs = {name: tensor[None].to(self._device, network.dtype) for name, tensor in prompt.items()}
        latents = draw(pipeline, request, on_step, **inputs, output_type="latent")
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            pixels = vae.decode(latents.float() / vae.config.scaling_factor, return_dict=False)[0]
        image: Image = pipeline.image_processor.postprocess(pixels)[0]
        return image

    def lora_key(self, module: str) -> str:
        return f"unet.{module}"

    def _load_vae(self) -> Any:
        if self._vae is None:
            self._vae = load_vae(AutoencoderKL, self._model.path, dtype=torch.float32, device=self._device)
        return self._vae
