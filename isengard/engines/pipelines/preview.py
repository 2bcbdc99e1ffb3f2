"""A small picture of unfinished latents, for a thousandth of the price of decoding them.

A VAE's latents hold their colours almost linearly. The factors are fitted once per VAE: it encodes a few made-up
pictures, and least squares finds the matrix from latent channels to the mean colour of the 8 x 8 pixels below them.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from PIL import Image
from torch import Tensor

from isengard.files import replacing

SIDE = 128
LONGEST = 256


def fit_factors(vae: Any) -> Tensor:
    """``(channels + 1, 3)`` factors, on the CPU, from scaled latents and a constant 1 to colours in [-1, 1]."""
    pictures = _pictures().to(vae.device, vae.dtype)
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode()
    shift, scale = vae.config.get("shift_factor") or 0, vae.config.get("scaling_factor", 1)
    scaled = (latents - shift) * scale
    colours = F.adaptive_avg_pool2d(pictures.float(), scaled.shape[-2:])
    return torch.linalg.lstsq(_rows(scaled), colours.permute(0, 2, 3, 1).reshape(-1, 3).cpu()).solution


def picture(latents: Tensor, factors: Tensor) -> Image.Image:
    """``(1, channels, h, w)`` scaled latents as a picture whose longer side is at least 256 pixels."""
    height, width = latents.shape[-2:]
    colours = (_rows(latents) @ factors).reshape(height, width, 3)
    pixels = ((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    small = Image.fromarray(pixels.numpy())
    scale = max(LONGEST / max(height, width), 1)
    return small.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)


def write_picture(image: Image.Image, path: Path) -> None:
    """Replace the file at once, without waiting for the disk: a preview need not survive a power cut."""
    with replacing(path, durable=False) as temporary:
        image.save(temporary, "PNG", compress_level=1)


def _pictures() -> Tensor:
    """``(8, 3, 128, 128)``: soft colour fields and sharp tiles, always the same."""
    generator = torch.Generator().manual_seed(0)
    fields = torch.rand(4, 3, 5, 5, generator=generator) * 2 - 1
    tiles = torch.rand(4, 3, SIDE // 16, SIDE // 16, generator=generator) * 2 - 1
    soft = F.interpolate(fields, size=(SIDE, SIDE), mode="bicubic", align_corners=True).clamp(-1, 1)
    return torch.cat([soft, F.interpolate(tiles, size=(SIDE, SIDE), mode="nearest")])


def _rows(latents: Tensor) -> Tensor:
    """``(pixels, channels + 1)`` in float32 on the CPU."""
    rows = latents.float().cpu().permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
