"""Regional compilation: the blocks that a network repeats are compiled, once for all of a kind."""

from typing import Any

import torch

_BACKEND = "inductor"
#: Kinds of calls (with and without gradient, widths, batch sizes) that one block is compiled for. Torch's own limit is
#: 8; past it a block runs uncompiled without a word.
_VARIANTS = 32


def compile_blocks(denoiser: Any, *, sizes: int) -> None:
    """Compile the repeated blocks of a diffusers model in place, at their first use.

    The names of modules and weights stay as they are. With several sizes of images the number of tokens is left open
    from the start: one compilation serves all of them. With one size it is fixed, which is a little faster, until a
    second one (a sample of another resolution) comes along.
    """
    torch._dynamo.config.recompile_limit = _VARIANTS
    denoiser.compile_repeated_blocks(backend=_BACKEND, dynamic=True if sizes > 1 else None)
