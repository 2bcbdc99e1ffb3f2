"""Rectified flow, as plain maths on tensors.

Source: Esser et al. 2024, "Scaling Rectified Flow Transformers" (arXiv:2403.03206).
"""

import math

import torch
from torch import Tensor

from isengard.domain.training import LossWeighting, TimestepSampling


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the latents at noise level sigma: ``(1 - sigma) * clean + sigma * noise``.

    Args:
        clean: ``(batch, ...)`` latents.
        noise: Same shape, standard normal.
        sigma: ``(batch,)`` in [0, 1]; 0 is clean, 1 is pure noise.
    """
    sigma = sigma.view(-1, *[1] * (clean.ndim - 1))
    return (1 - sigma) * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """Return what the model predicts: the derivative of `add_noise` with respect to sigma."""
    return noise - clean


def draw_sigmas(
    count: int, *, sampling: TimestepSampling, tokens: int, generator: torch.Generator | None
) -> Tensor:
    """Draw ``(count,)`` noise levels in (0, 1), float32, on the generator's device.

    Args:
        count: Number of levels.
        sampling: Uniform; sigmoid of a standard normal; or that, shifted towards noise (`resolution_shift`).
        tokens: Image tokens of one example; only the shifted sampling depends on it.
        generator: Source of the randomness.
    """
    if sampling is TimestepSampling.UNIFORM:
        return torch.rand(count, generator=generator)
    sigma = torch.sigmoid(torch.randn(count, generator=generator))
    if sampling is TimestepSampling.SHIFTED:
        shift = resolution_shift(tokens)
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
    return sigma


def resolution_shift(tokens: int) -> float:
    """Return FLUX.1's time shift: exp(0.5) at 256 image tokens, exp(1.15) at 4096, log-linear between and beyond.

    Source: the scheduler configuration of FLUX.1-dev (base_shift, max_shift).
    """
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def loss_weights(sigma: Tensor, *, weighting: LossWeighting) -> Tensor:
    """Return ``(batch,)`` weights of the squared error at each sigma.

    Source: Esser et al. 2024, section 3.1; the names are those of diffusers.
    """
    if weighting is LossWeighting.SIGMA_SQRT:
        return sigma.clamp(min=1e-3) ** -2.0
    if weighting is LossWeighting.COSMAP:
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    return torch.ones_like(sigma)
