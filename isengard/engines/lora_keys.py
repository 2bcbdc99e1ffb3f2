"""The two names FLUX.1 modules go by in LoRA files, and LoRAs carried from one to the other.

*diffusers* names a module as its model does (``transformer_blocks.0.attn.to_q``). *kohya*, also read by ComfyUI and
A1111-style programs, flattens the original names (``double_blocks_0_img_attn_qkv``). The original model has one fused
projection where diffusers has q, k and v (in single blocks the MLP's input too). LoRAs on the parts become one LoRA of
the fused layer, whose rank is the sum of their ranks: ``down`` stacks the parts' A, ``up`` holds their B as diagonal
blocks. Every weight delta stays the same.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from isengard.errors import LoraRefused

#: Module name -> (A ``(rank, in)``, B ``(out, rank)``); the weight delta is ``B @ A``.
Pairs = dict[str, tuple[Tensor, Tensor]]

#: diffusers keeps (scale, shift) where the original has (shift, scale).
_SWAPPED = "norm_out.linear"
#: Original name -> diffusers' module; ``#`` is the number of the block.
_DIRECT = {
    "double_blocks_#_img_attn_proj": "transformer_blocks.#.attn.to_out.0",
    "double_blocks_#_img_mlp_0": "transformer_blocks.#.ff.net.0.proj",
    "double_blocks_#_img_mlp_2": "transformer_blocks.#.ff.net.2",
    "double_blocks_#_img_mod_lin": "transformer_blocks.#.norm1.linear",
    "double_blocks_#_txt_attn_proj": "transformer_blocks.#.attn.to_add_out",
    "double_blocks_#_txt_mlp_0": "transformer_blocks.#.ff_context.net.0.proj",
    "double_blocks_#_txt_mlp_2": "transformer_blocks.#.ff_context.net.2",
    "double_blocks_#_txt_mod_lin": "transformer_blocks.#.norm1_context.linear",
    "single_blocks_#_linear2": "single_transformer_blocks.#.proj_out",
    "single_blocks_#_modulation_lin": "single_transformer_blocks.#.norm.linear",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": _SWAPPED,
}
#: Fused layer -> its parts from the first output row down, with their heights in units of the input's width.
_FUSED = {
    "double_blocks_#_img_attn_qkv": {
        "transformer_blocks.#.attn.to_q": 1,
        "transformer_blocks.#.attn.to_k": 1,
        "transformer_blocks.#.attn.to_v": 1,
    },
    "double_blocks_#_txt_attn_qkv": {
        "transformer_blocks.#.attn.add_q_proj": 1,
        "transformer_blocks.#.attn.add_k_proj": 1,
        "transformer_blocks.#.attn.add_v_proj": 1,
    },
    "single_blocks_#_linear1": {
        "single_transformer_blocks.#.attn.to_q": 1,
        "single_transformer_blocks.#.attn.to_k": 1,
        "single_transformer_blocks.#.attn.to_v": 1,
        "single_transformer_blocks.#.proj_mlp": 4,
    },
}
_ORIGINAL = {module: name for name, module in _DIRECT.items()}
_FUSED_INTO = {part: name for name, parts in _FUSED.items() for part in parts}
_BLOCK = re.compile(r"(?<=blocks[._])\d+(?=[._])")


def to_kohya(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
    """diffusers' modules -> original ones.

    Raises:
        LoraRefused: a module the original model does not have.
    """
    result: Pairs = {}
    fused: dict[str, Pairs] = {}
    for module, (down, up) in pairs.items():
        pattern, block = _pattern(module)
        if pattern in _FUSED_INTO:
            fused.setdefault(_FUSED_INTO[pattern].replace("#", block), {})[pattern] = (down, up)
        elif pattern in _ORIGINAL:
            up = _halves_swapped(up) if module == _SWAPPED else up
            result[_ORIGINAL[pattern].replace("#", block)] = (down, up)
        else:
            raise LoraRefused(f"module {module!r} has no counterpart in the original FLUX.1")
    for name, parts in fused.items():
        result[name] = _fuse(parts, _FUSED[_pattern(name)[0]])
    return result


def from_kohya(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
    """Original modules -> diffusers' ones. Parts whose delta is zero, and ranks a part does not use, are left out.

    Raises:
        LoraRefused: a module FLUX.1 does not have.
    """
    result: Pairs = {}
    for name, (down, up) in pairs.items():
        pattern, block = _pattern(name)
        if pattern in _FUSED:
            parts = _split(name, down, up, _FUSED[pattern])
            result |= {part.replace("#", block): pair for part, pair in parts.items()}
        elif pattern in _DIRECT:
            module = _DIRECT[pattern].replace("#", block)
            result[module] = (down, _halves_swapped(up) if module == _SWAPPED else up)
        else:
            raise LoraRefused(f"module {name!r} is not part of FLUX.1")
    return result


def _pattern(name: str) -> tuple[str, str]:
    """A name with ``#`` for its block, and the block."""
    found = _BLOCK.search(name)
    return (_BLOCK.sub("#", name), found.group()) if found else (name, "")


def _halves_swapped(up: Tensor) -> Tensor:
    return torch.cat(tuple(reversed(up.chunk(2))))


def _fuse(parts: Pairs, heights: dict[str, int]) -> tuple[Tensor, Tensor]:
    present = [part for part in heights if part in parts]
    down = torch.cat([parts[part][0] for part in present])
    width = down.shape[1]
    up = down.new_zeros(sum(heights.values()) * width, down.shape[0])
    row = column = 0
    for part, height in heights.items():
        if part in parts:
            block = parts[part][1]
            up[row : row + height * width, column : column + block.shape[1]] = block
            column += block.shape[1]
        row += height * width
    return down, up


def _split(name: str, down: Tensor, up: Tensor, heights: dict[str, int]) -> Pairs:
    width = down.shape[1]
    if up.shape[0] != sum(heights.values()) * width:
        raise LoraRefused(
            f"module {name!r} has shape {tuple(up.shape)}, which is not that of a fused FLUX.1 layer"
        )
    blocks = up.split([height * width for height in heights.values()])
    used = {part: block.any(dim=0) for part, block in zip(heights, blocks, strict=True)}
    return {
        part: (down[used[part]], block[:, used[part]])
        for part, block in zip(heights, blocks, strict=True)
        if used[part].any()
    }
