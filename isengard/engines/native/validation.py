"""A loss that means something: the same examples, noise and noise levels every time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isengard.engines.native.adapter import FamilyAdapter, stacked
from isengard.engines.native.dataset import Example

#: Noise levels per example, spread evenly over (0, 1).
LEVELS = 8


@torch.no_grad()  # type: ignore[untyped-decorator]
def validation_loss(
    denoiser: torch.nn.Module,
    examples: Sequence[Example],
    *,
    adapter: FamilyAdapter,
    guidance_scale: float,
    batch_size: int,
    device: torch.device,
    on_batch: Callable[[int, int], None],
) -> float:
    """Return the mean squared error of the prediction, each noise level weighing the same.

    Args:
        denoiser: With the adapter on it.
        examples: The validation set.
        adapter: Of the model's family.
        guidance_scale: As in training.
        batch_size: Examples of one forward pass; all of one image at different levels.
        device: Where the denoiser is.
        on_batch: Called before each forward pass with (done, total); may raise to stop.
    """
    sigmas = (torch.arange(LEVELS) + 0.5) / LEVELS
    batches = [
        (number, example, levels)
        for number, example in enumerate(examples)
        for levels in sigmas.split(batch_size)
    ]
    losses: list[Tensor] = []
    for done, (number, example, levels) in enumerate(batches):
        on_batch(done, len(batches))
        noise = torch.cat([_noise(example, number, sigma) for sigma in levels.tolist()]).to(device)
        clean = example.latents.to(device).expand_as(noise)
        sigma = levels.to(device)
        predicted = adapter.predict(
            denoiser,
            adapter.add_noise(clean, noise, sigma),
            sigma=sigma,
            prompts=stacked([example.prompt] * len(levels), device),
            size=(example.bucket.width, example.bucket.height),
            guidance_scale=guidance_scale,
        )
        losses.append((predicted.float() - adapter.target(clean, noise)).square().flatten(1).mean(1))
    return float(torch.cat(losses).mean())


def _noise(example: Example, number: int, sigma: float) -> Tensor:
    """Noise that depends on the image's place in the set and the level only, ``(1, ...)``."""
    generator = torch.Generator().manual_seed(number * 1_000_003 + int(sigma * 1000))
    return torch.randn(1, *example.latents.shape, generator=generator)
