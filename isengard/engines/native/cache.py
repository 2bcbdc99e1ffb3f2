"""Latents and prompt embeddings, computed once and kept on disk by the hash of what they were made from."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from isengard.domain.performance import TextEncoders
from isengard.files import write_bytes

log = logging.getLogger(__name__)


class TensorCache:
    """A folder of safetensors files, safe to share between runs and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of ``key``; compute and keep them when they are not there or unreadable."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self._folder / digest[:2] / f"{digest}.safetensors"
        try:
            return load_file(path)
        except FileNotFoundError:
            pass
        except SafetensorError:
            log.warning("cached tensors unreadable, computing them again", extra={"path": str(path)})
        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        write_bytes(path, save(tensors))
        return tensors


def placement_mark(placement: TextEncoders, device: torch.device) -> str:
    """Tell apart embeddings that differ because they were computed in another place or in fewer bits."""
    same = placement is TextEncoders.DEVICE or (placement is TextEncoders.CPU and device.type == "cpu")
    return "" if same else f"/{placement}"


def fingerprint(folder: Path) -> str:
    """Identify the weights in a folder by names, sizes and the first and last 64 KiB of each file."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}/{size}/".encode())
            with path.open("rb") as file:
                digest.update(file.read(65536))
                file.seek(max(0, size - 65536))
                digest.update(file.read())
    return digest.hexdigest()[:16]
