"""Regional compilation: the blocks that a network repeats are compiled, the rest of it stays plain Python."""

from typing import Any

import torch

from isengard.engines.quantize import repeated_blocks

_BACKEND = "inductor"
#: Kinds of calls (with and without gradient, widths, batch sizes) that one block is compiled for. Torch's own limit is
#: 8; past it a block runs uncompiled without a word.
_VARIANTS = 32


def compile_blocks(denoiser: Any, *, dynamic: bool | None, backend: str | None = None) -> None:
    """Compile the forward pass of each repeated block in place, at its first use.

    It replaces ``forward`` and not the call: hooks that are put on a block later, such as a step cache's, stay outside
    of what is compiled, so putting them on and taking them off compiles nothing anew. The names of modules and weights
    stay as they are.

    Args:
        denoiser: A network of diffusers.
        dynamic: Whether the sizes of images are left open from the start, so that one compilation serves all of them;
            with None the first size is fixed, which is a little faster, until a second one comes along.
        backend: Of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = _VARIANTS
    for block in repeated_blocks(denoiser).values():
        block.forward = torch.compile(block.forward, backend=backend or _BACKEND, dynamic=dynamic)
