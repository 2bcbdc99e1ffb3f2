"""The LoRA that keeps training from undoing a distillation: there while the network learns, away for pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from isengard.engines.lora_format import read_pairs
from isengard.errors import LoraRefused


class TrainingAdapter:
    """A frozen LoRA on a network, added to what its layers give.

    It is no adapter of peft's: the network can be quantized, the trained LoRA keeps its one fast layer, and nothing of
    this one can get into the file. Put it on before the trained one.
    """

    def __init__(
        self, denoiser: torch.nn.Module, path: Path | None, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """With no path nothing is added.

        Raises:
            LoraRefused: the file fits another model, or is no LoRA.
        """
        self._on = True
        layers = dict(denoiser.named_modules())
        for name, (down, up) in (read_pairs(path) if path else {}).items():
            layer = _fitting(layers.get(name), name, down, up)
            # Buffers and one method for all layers: blocks stay alike, so that compiling one compiles them all.
            layer.register_buffer("training_down", down.to(device, dtype), persistent=False)
            layer.register_buffer("training_up", up.to(device, dtype), persistent=False)
            layer.register_forward_hook(self._added)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Leave the network as it is used."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def _added(self, layer: Any, given: tuple[Tensor], output: Tensor) -> Tensor:
        if not self._on:
            return output
        return output + F.linear(F.linear(given[0], layer.training_down), layer.training_up)


def _fitting(layer: torch.nn.Module | None, name: str, down: Tensor, up: Tensor) -> torch.nn.Module:
    """The layer, when it is there and has the LoRA's shape. Raises: LoraRefused."""
    height, width = up.shape[0], down.shape[1]
    if not isinstance(layer, torch.nn.Linear) or (layer.out_features, layer.in_features) != (height, width):
        raise LoraRefused(
            f"the training adapter does not fit this model: it has no layer {name!r} of {height} x {width};"
            " get the adapter that belongs to the model again"
        )
    return layer
