"""Latents and prompt embeddings, computed once and kept on disk by the hash of what they were made from."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from isengard.domain.performance import TextEncoders
from isengard.domain.storage import DAY_S
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
            # Read whole: a mapped file ends the process when another machine replaces it.
            tensors = load(path.read_bytes())
        except FileNotFoundError:
            pass
        except SafetensorError:
            log.warning("cached tensors unreadable, computing them again", extra={"path": str(path)})
        else:
            _used(path)
            return tensors
        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        write_bytes(path, save(tensors))
        return tensors


def _used(path: Path) -> None:
    """Note that the file is in use, so that a cleanup leaves it; once a day is enough."""
    with suppress(OSError):  # removed just now, or of a disk that cannot be written
        if time.time() - path.stat().st_mtime > DAY_S:
            path.touch()


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
