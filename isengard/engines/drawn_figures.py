"""Identity of drawn figures, as the demo model paints them: a small encoder trained together with it.

It was trained on portraits of thousands of drawn people (`scripts/demo_model/judge.py`) and knows nothing of
photographs: for those take face embeddings.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL.Image import Image, Resampling
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from isengard.domain.identity import Box, Sighting

SIZE = 128
EMBEDDING_SIZE = 64
_CHANNELS = (24, 48, 80, 112)


class FigureEncoder(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """A small residual network: (n, 3, 128, 128) in -1 to 1 becomes (n, outputs)."""

    def __init__(self, outputs: int = EMBEDDING_SIZE) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before = 3
        for number, channels in enumerate(_CHANNELS):
            stages += [_convolution(before, channels, stride=2)]
            stages += [_Residual(channels)] if number else []
            before = channels
        self.trunk = nn.Sequential(*stages)
        self.head = nn.Linear(2 * before, outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.trunk(pixels)
        return cast("Tensor", self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)))


class DrawnFigureScorer:
    """An `IdentityScorer` for drawn figures. Runs on the CPU: an image takes milliseconds."""

    def __init__(self, path: Path) -> None:
        """``path``: the encoder's safetensors file."""
        self._encoder = FigureEncoder()
        self._encoder.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        self._encoder.eval()

    def find(self, images: Sequence[Image]) -> Sequence[tuple[Sighting, ...]]:
        """See `IdentityScorer.find`: a drawn figure is taken to fill its picture."""
        pixels = torch.stack([_pixels(image) for image in images])
        with torch.inference_mode():
            embeddings = functional.normalize(self._encoder(pixels)).tolist()
        return [
            (Sighting(box=Box(left=0, top=0, width=image.width, height=image.height), embedding=tuple(row)),)
            for image, row in zip(images, embeddings, strict=True)
        ]


class _Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = _convolution(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        return cast("Tensor", features + self.second(self.first(features)))


def _convolution(before: int, after: int, *, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(8, after), nn.SiLU()
    )


def _pixels(image: Image) -> Tensor:
    plain = image.convert("RGB")
    if plain.size != (SIZE, SIZE):
        plain = plain.resize((SIZE, SIZE), Resampling.BICUBIC)
    return torch.from_numpy(np.array(plain)).permute(2, 0, 1).float() / 127.5 - 1
