"""What the training loop must know of a model family. One file per family implements it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, Unpack

import torch
from PIL.Image import Image
from torch import Tensor

from isengard.domain.base import Frozen
from isengard.engines.device import moved
from isengard.engines.loading import Held

#: Tensors of one encoded prompt by name, without a batch dimension.
PromptEmbeds = Mapping[str, Tensor]


class SampleRequest(Frozen):
    """One picture made during a training."""

    resolution: int
    num_inference_steps: int
    guidance_scale: float
    seed: int


class FamilyAdapter(Protocol):
    """Loads the parts of one base model and speaks its conventions.

    Latents are in the form that the denoiser takes: for FLUX.1 ``(tokens, 64)``, for FLUX.2 ``(tokens, 128)``, for SDXL ``(4, height, width)``.
    ``sigma`` is the noise level in [0, 1], whatever the family makes of it. Parts are loaded at first use.
    """

    #: Whether the denoiser is trained under autocast. Better not: it makes the norms' outputs float32, and the
    #: gradient keeps them; `predict` then gives the denoiser tensors of its own type.
    autocast: bool

    def marks(self) -> Mapping[str, str]:
        """Identify the encoders ``vae`` and ``text``: cached tensors with other marks are not used."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """``(3, height, width)`` in [-1, 1] -> latents, float32 on CPU, the same each time."""
        ...

    def encode_prompt(self, prompt: str) -> PromptEmbeds:
        """Embed one prompt, on CPU."""
        ...

    def free_encoders(self) -> None:
        """Drop the VAE and the text encoders."""
        ...

    def load_denoiser(self, **held: Unpack[Held]) -> torch.nn.Module:
        """Load the frozen network that is adapted, on the device. See `load_network`."""
        ...

    def target_pattern(self, targets: str) -> str:
        """Turn ``TrainingSpec.targets`` into a regular expression of full module names."""
        ...

    def tokens(self, *, width: int, height: int) -> int:
        """Image tokens at a size in pixels."""
        ...

    def add_noise(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Latents at noise level ``sigma`` of shape ``(batch,)``."""
        ...

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """What the denoiser should predict."""
        ...

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
        """Run the denoiser on a batch; ``prompts`` have a batch dimension, ``size`` is (width, height) in pixels."""
        ...

    def sample(
        self,
        denoiser: torch.nn.Module,
        prompt: PromptEmbeds,
        request: SampleRequest,
        on_step: Callable[[], None],
        *,
        no_prompt: PromptEmbeds,
    ) -> Image:
        """Make one picture; ``on_step`` is called after each denoising step and may raise.

        ``no_prompt`` is the empty prompt, for families that guide away from it.
        """
        ...

    def lora_key(self, module: str) -> str:
        """The key of a module in a diffusers-format LoRA file, without ``.lora_A.weight``."""
        ...


#: Makes an adapter for a local model: (model, device=, text_encoders=) -> adapter.
AdapterFactory = Callable[..., FamilyAdapter]


def stacked(prompts: Iterator[PromptEmbeds] | list[PromptEmbeds], device: torch.device) -> dict[str, Tensor]:
    """Give prompts a batch dimension and move them to the device."""
    listed = list(prompts)
    return {name: moved(torch.stack([prompt[name] for prompt in listed]), device) for name in listed[0]}
