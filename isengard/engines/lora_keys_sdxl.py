"""The names SDXL's UNet layers go by in LoRA files.

*diffusers* names a layer as its model does (``down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q``). *kohya*
flattens the name, either the original model's (``input_blocks_4_1_transformer_blocks_0_attn1_to_q``, which it writes
for SDXL) or diffusers' own. Both are read; the original's is written. Only the attention blocks' layers are known.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from isengard.engines.lora_keys import Pairs
from isengard.errors import LoraRefused

#: Original attention block -> diffusers'. Input block 0 is the first convolution; then come, for each resolution, two
#: layers and a downsampler. Output blocks are three layers for each resolution.
_PLACES = (
    {
        f"input_blocks_{1 + 3 * block + layer}_1": f"down_blocks.{block}.attentions.{layer}"
        for block in range(3)
        for layer in range(2)
    }
    | {"middle_block_1": "mid_block.attentions.0"}
    | {
        f"output_blocks_{3 * block + layer}_1": f"up_blocks.{block}.attentions.{layer}"
        for block in range(3)
        for layer in range(3)
    }
)
_ORIGINAL = {place: name for name, place in _PLACES.items()}
_READ = _PLACES | {place.replace(".", "_"): place for place in _PLACES.values()}
#: Layers of an attention block, ``#`` for the number of the transformer block.
_LAYERS = {
    layer.replace(".", "_"): layer
    for layer in (
        "proj_in",
        "proj_out",
        *(f"transformer_blocks.#.attn{n}.to_{to}" for n in (1, 2) for to in ("q", "k", "v", "out.0")),
        "transformer_blocks.#.ff.net.0.proj",
        "transformer_blocks.#.ff.net.2",
    )
}
_BLOCK = re.compile(r"(?<=transformer_blocks_)\d+(?=_)")


def to_kohya(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
    """diffusers' modules -> original ones.

    Raises:
        LoraRefused: a module outside the attention blocks.
    """
    result: Pairs = {}
    for module, pair in pairs.items():
        found = re.fullmatch(r"(.+\.attentions\.\d+)\.(.+)", module)
        if found is None or found[1] not in _ORIGINAL:
            raise LoraRefused(
                f"module {module!r} has no counterpart in the attention blocks of the original SDXL"
            )
        result[f"{_ORIGINAL[found[1]]}_{found[2].replace('.', '_')}"] = pair
    return result


def from_kohya(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
    """Original modules, or diffusers' flattened ones -> diffusers' modules.

    Raises:
        LoraRefused: a module that is none of SDXL's attention blocks.
    """
    return {_module(name): pair for name, pair in pairs.items()}


def code(_pairs: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Where the original SDXL is published."""
    return "https://github.com/Stability-AI/generative-models"


def _module(name: str) -> str:
    number = _BLOCK.search(name)
    pattern = _BLOCK.sub("#", name)
    for start, place in _READ.items():
        layer = _LAYERS.get(pattern.removeprefix(f"{start}_"))
        if layer is not None and pattern.startswith(f"{start}_"):
            return f"{place}.{layer.replace('#', number.group() if number else '')}"
    raise LoraRefused(f"module {name!r} is not part of SDXL's attention blocks")
