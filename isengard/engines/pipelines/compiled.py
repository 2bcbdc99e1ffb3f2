"""Regional compilation: the blocks a denoiser repeats are compiled, the rest of it stays plain Python."""

from typing import Any

import torch


def compile_blocks(denoiser: Any, *, backend: str) -> None:
    """Compile the forward pass of each repeated block, once for any size and batch of images.

    It replaces ``forward`` and not the call: hooks that are put on a block later, such as a step cache's, stay outside
    of what is compiled, so putting them on and taking them off compiles nothing anew.
    """
    for block in denoiser.modules():
        if type(block).__name__ in denoiser._repeated_blocks:
            block.forward = torch.compile(block.forward, backend=backend, dynamic=True)
