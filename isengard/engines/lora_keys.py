"""The two names that modules of FLUX.1 and FLUX.2 go by in LoRA files, and LoRAs carried from one to the other.

*diffusers* names a module as its model does (``transformer_blocks.0.attn.to_q``). *kohya*, also read by ComfyUI and
A1111-style programs, flattens the original names (``double_blocks_0_img_attn_qkv``). The original model has one fused
projection where diffusers has q, k and v (in FLUX.1's single blocks the MLP's input too). LoRAs on the parts become one
LoRA of the fused layer, whose rank is the sum of their ranks: ``down`` stacks the parts' A, ``up`` holds their B as
diagonal blocks. Every weight delta stays the same.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from isengard.errors import LoraRefused

#: Module name -> (A ``(rank, in)``, B ``(out, rank)``); the weight delta is ``B @ A``.
Pairs = dict[str, tuple[Tensor, Tensor]]

#: diffusers keeps (scale, shift) where the original has (shift, scale).
_SWAPPED = "norm_out.linear"
_BLOCK = re.compile(r"(?<=blocks[._])\d+(?=[._])")


class Names:
    """How the modules of one model correspond."""

    def __init__(
        self, model: str, *, code: str, direct: Mapping[str, str], fused: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Tell the names.

        Args:
            model: For messages.
            code: Where the original is published.
            direct: Original name -> diffusers' module; ``#`` is the number of the block.
            fused: Fused layer -> its parts from the first output row down, with their heights in units of the
                input's width.
        """
        self.model = model
        self.code = code
        self._direct = direct
        self._fused = fused
        self._original = {module: name for name, module in direct.items()}
        self._fused_into = {part: name for name, parts in fused.items() for part in parts}

    def known(self, modules: Iterable[str]) -> int:
        """How many of diffusers' modules the original has a counterpart for."""
        return sum(_pattern(module)[0] in self._original | self._fused_into for module in modules)

    def to_kohya(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
        """See `to_kohya`."""
        result: Pairs = {}
        fused: dict[str, Pairs] = {}
        for module, (down, up) in pairs.items():
            pattern, block = _pattern(module)
            if pattern in self._fused_into:
                fused.setdefault(self._fused_into[pattern].replace("#", block), {})[pattern] = (down, up)
            elif pattern in self._original:
                up = _halves_swapped(up) if module == _SWAPPED else up
                result[self._original[pattern].replace("#", block)] = (down, up)
            else:
                raise LoraRefused(f"module {module!r} has no counterpart in the original {self.model}")
        for name, parts in fused.items():
            result[name] = _fuse(parts, self._fused[_pattern(name)[0]])
        return result

    def from_kohya(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
        """See `from_kohya`."""
        result: Pairs = {}
        for name, (down, up) in pairs.items():
            pattern, block = _pattern(name)
            if pattern in self._fused:
                parts = _split(name, down, up, self._fused[pattern], self.model)
                result |= {part.replace("#", block): pair for part, pair in parts.items()}
            elif pattern in self._direct:
                module = self._direct[pattern].replace("#", block)
                result[module] = (down, _halves_swapped(up) if module == _SWAPPED else up)
            else:
                raise LoraRefused(f"module {name!r} is not part of {self.model}")
        return result


_SHARED = {
    "double_blocks_#_img_attn_proj": "transformer_blocks.#.attn.to_out.0",
    "double_blocks_#_txt_attn_proj": "transformer_blocks.#.attn.to_add_out",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": _SWAPPED,
}
_SHARED_FUSED = {
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
}
_FLUX = Names(
    "FLUX.1",
    code="https://github.com/black-forest-labs/flux",
    direct=_SHARED
    | {
        "double_blocks_#_img_mlp_0": "transformer_blocks.#.ff.net.0.proj",
        "double_blocks_#_img_mlp_2": "transformer_blocks.#.ff.net.2",
        "double_blocks_#_img_mod_lin": "transformer_blocks.#.norm1.linear",
        "double_blocks_#_txt_mlp_0": "transformer_blocks.#.ff_context.net.0.proj",
        "double_blocks_#_txt_mlp_2": "transformer_blocks.#.ff_context.net.2",
        "double_blocks_#_txt_mod_lin": "transformer_blocks.#.norm1_context.linear",
        "single_blocks_#_linear2": "single_transformer_blocks.#.proj_out",
        "single_blocks_#_modulation_lin": "single_transformer_blocks.#.norm.linear",
        "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    },
    fused=_SHARED_FUSED
    | {
        "single_blocks_#_linear1": {
            "single_transformer_blocks.#.attn.to_q": 1,
            "single_transformer_blocks.#.attn.to_k": 1,
            "single_transformer_blocks.#.attn.to_v": 1,
            "single_transformer_blocks.#.proj_mlp": 4,
        },
    },
)
_FLUX2 = Names(
    "FLUX.2",
    code="https://github.com/black-forest-labs/flux2",
    direct=_SHARED
    | {
        "double_blocks_#_img_mlp_0": "transformer_blocks.#.ff.linear_in",
        "double_blocks_#_img_mlp_2": "transformer_blocks.#.ff.linear_out",
        "double_blocks_#_txt_mlp_0": "transformer_blocks.#.ff_context.linear_in",
        "double_blocks_#_txt_mlp_2": "transformer_blocks.#.ff_context.linear_out",
        "single_blocks_#_linear1": "single_transformer_blocks.#.attn.to_qkv_mlp_proj",
        "single_blocks_#_linear2": "single_transformer_blocks.#.attn.to_out",
        "double_stream_modulation_img_lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt_lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation_lin": "single_stream_modulation.linear",
        "time_in_in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in_out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    },
    fused=_SHARED_FUSED,
)
#: Layers that both originals have, with FLUX.2's rows for each column (its MLP is gated and three times as wide as the
#: model, FLUX.1's is not and four times as wide).
_FLUX2_HEIGHTS = {
    "double_blocks_#_img_mlp_0": 6,
    "double_blocks_#_txt_mlp_0": 6,
    "double_blocks_#_img_mlp_2": 1 / 3,
    "double_blocks_#_txt_mlp_2": 1 / 3,
    "single_blocks_#_linear1": 9,
    "single_blocks_#_linear2": 1 / 4,
}


def to_kohya(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
    """diffusers' modules -> original ones.

    Raises:
        LoraRefused: a module the original model does not have.
    """
    return _names(pairs).to_kohya(pairs)


def from_kohya(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
    """Original modules -> diffusers' ones. Parts whose delta is zero, and ranks a part does not use, are left out.

    Raises:
        LoraRefused: a module the model does not have.
    """
    flux2 = any(
        "stream_modulation" in name or up.shape[0] == _FLUX2_HEIGHTS.get(_pattern(name)[0], 0) * down.shape[1]
        for name, (down, up) in pairs.items()
    )
    return (_FLUX2 if flux2 else _FLUX).from_kohya(pairs)


def code(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Where the original of the model is published whose modules these are."""
    return _names(pairs).code


def _names(modules: Iterable[str]) -> Names:
    """The model that has most of diffusers' modules. Attention in double blocks has the same names in both."""
    return max(_FLUX, _FLUX2, key=lambda names: names.known(modules))


def _pattern(name: str) -> tuple[str, str]:
    """A name with ``#`` for its block, and the block."""
    found = _BLOCK.search(name)
    return (_BLOCK.sub("#", name), found.group()) if found else (name, "")


def _halves_swapped(up: Tensor) -> Tensor:
    return torch.cat(tuple(reversed(up.chunk(2))))


def _fuse(parts: Pairs, heights: Mapping[str, int]) -> tuple[Tensor, Tensor]:
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


def _split(name: str, down: Tensor, up: Tensor, heights: Mapping[str, int], model: str) -> Pairs:
    width = down.shape[1]
    if up.shape[0] != sum(heights.values()) * width:
        raise LoraRefused(
            f"module {name!r} has shape {tuple(up.shape)}, which is not that of a fused {model} layer"
        )
    blocks = up.split([height * width for height in heights.values()])
    used = {part: block.any(dim=0) for part, block in zip(heights, blocks, strict=True)}
    return {
        part: (down[used[part]], block[:, used[part]])
        for part, block in zip(heights, blocks, strict=True)
        if used[part].any()
    }
