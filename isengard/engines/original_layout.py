"""The names that the authors of FLUX gave the tensors of their transformers, and diffusers' for the same."""

import re
from collections.abc import Mapping

from isengard.domain.model import Family

#: Rows that are joined in the original, in their order there.
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
#: The original keeps shift before scale; diffusers the other way round.
SWAPPED = "norm_out.linear"
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": SWAPPED,
}
_EMBEDDERS = {
    "time_in": "timestep_embedder",
    "vector_in": "text_embedder",
    "guidance_in": "guidance_embedder",
}
_LINEARS = {"in_layer": "linear_1", "out_layer": "linear_2"}
_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn.qkv": QKV,
    "txt_attn.qkv": ADDED_QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
_SINGLE: dict[str, tuple[str, ...]] = {
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_OF_FAMILY: Mapping[
    Family, tuple[str, dict[str, str], dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]
] = {
    Family.FLUX: (
        "time_text_embed",
        {},
        {
            "img_mod.lin": ("norm1.linear",),
            "txt_mod.lin": ("norm1_context.linear",),
            "img_mlp.0": ("ff.net.0.proj",),
            "img_mlp.2": ("ff.net.2",),
            "txt_mlp.0": ("ff_context.net.0.proj",),
            "txt_mlp.2": ("ff_context.net.2",),
        },
        {"linear1": (*QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)},
    ),
    Family.FLUX2: (
        "time_guidance_embed",
        {
            f"{name}.lin": f"{name}.linear"
            for name in (
                "double_stream_modulation_img",
                "double_stream_modulation_txt",
                "single_stream_modulation",
            )
        },
        {
            "img_mlp.0": ("ff.linear_in",),
            "img_mlp.2": ("ff.linear_out",),
            "txt_mlp.0": ("ff_context.linear_in",),
            "txt_mlp.2": ("ff_context.linear_out",),
        },
        {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
    ),
}


def diffusers_names(name: str, family: Family) -> tuple[str, ...]:
    """Where an original tensor goes, several names when its rows are shared out; none when it is no part of it."""
    module, _, kind = name.removeprefix("model.diffusion_model.").rpartition(".")
    kind = "weight" if kind == "scale" else kind
    embed, outside, double, single = _OF_FAMILY[family]
    if block := re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", module):
        folder = "transformer_blocks" if block[1] == "double" else "single_transformer_blocks"
        table = _DOUBLE | double if block[1] == "double" else _SINGLE | single
        return tuple(f"{folder}.{block[2]}.{inner}.{kind}" for inner in table.get(block[3], ()))
    first, _, last = module.partition(".")
    if first in _EMBEDDERS and last in _LINEARS:
        return (f"{embed}.{_EMBEDDERS[first]}.{_LINEARS[last]}.{kind}",)
    found = (_OUTSIDE | outside).get(module)
    return (f"{found}.{kind}",) if found else ()
