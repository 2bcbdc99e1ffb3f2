"""Single-file checkpoints: a real transformer in the other layout comes back as it was."""

import shutil

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from isengard.domain.model import Family
from isengard.engines.single_file import convert
from isengard.errors import CheckpointRefused
from isengard.store.single_file import check_single_file
from isengard.store.weights import missing_files


def _swap(tensor):
    """The final modulation keeps shift and scale the other way round."""
    first, second = tensor.chunk(2, dim=0)
    return torch.cat([second, first])


def in_one_piece(transformer):
    """The names that the authors of FLUX.1 gave the tensors of a model of one block of each kind."""
    own = transformer.state_dict()
    made = {
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        "final_layer.linear": "proj_out",
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    }
    double, single = "transformer_blocks.0.", "single_transformer_blocks.0."
    made |= {
        "double_blocks.0.img_mod.lin": f"{double}norm1.linear",
        "double_blocks.0.txt_mod.lin": f"{double}norm1_context.linear",
        "double_blocks.0.img_mlp.0": f"{double}ff.net.0.proj",
        "double_blocks.0.img_mlp.2": f"{double}ff.net.2",
        "double_blocks.0.txt_mlp.0": f"{double}ff_context.net.0.proj",
        "double_blocks.0.txt_mlp.2": f"{double}ff_context.net.2",
        "double_blocks.0.img_attn.proj": f"{double}attn.to_out.0",
        "double_blocks.0.txt_attn.proj": f"{double}attn.to_add_out",
        "single_blocks.0.modulation.lin": f"{single}norm.linear",
        "single_blocks.0.linear2": f"{single}proj_out",
    }
    found = {
        f"{theirs}.{part}": own[f"{ours}.{part}"]
        for theirs, ours in made.items()
        for part in ("weight", "bias")
        if f"{ours}.{part}" in own
    }
    for part in ("weight", "bias"):
        key = f"final_layer.adaLN_modulation.1.{part}"
        found[key] = _swap(found[key])
        for theirs, names in (
            ("img", ("to_q", "to_k", "to_v")),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ):
            joined = torch.cat([own[f"{double}attn.{name}.{part}"] for name in names])
            found[f"double_blocks.0.{theirs}_attn.qkv.{part}"] = joined
        parts = [f"{single}attn.{name}.{part}" for name in ("to_q", "to_k", "to_v")]
        found[f"single_blocks.0.linear1.{part}"] = torch.cat(
            [*(own[name] for name in parts), own[f"{single}proj_mlp.{part}"]]
        )
    for theirs, ours in (("img", ("norm_q", "norm_k")), ("txt", ("norm_added_q", "norm_added_k"))):
        for short, name in zip(("query", "key"), ours, strict=True):
            found[f"double_blocks.0.{theirs}_attn.norm.{short}_norm.scale"] = own[
                f"{double}attn.{name}.weight"
            ]
    for short, name in (("query", "norm_q"), ("key", "norm_k")):
        found[f"single_blocks.0.norm.{short}_norm.scale"] = own[f"{single}attn.{name}.weight"]
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


@pytest.fixture
def parts(tiny_flux, tmp_path):
    """Everything of the model but the transformer's weights."""
    parts = shutil.copytree(tiny_flux, tmp_path / "models" / "tiny")
    for weights in (parts / "transformer").glob("*.safetensors"):
        weights.unlink()
    return parts


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_flux_checkpoint_comes_back_as_it_was(tiny_flux, parts, tmp_path, prefix):
    before = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    file = tmp_path / "flux.safetensors"
    save_file({prefix + name: tensor for name, tensor in in_one_piece(before).items()}, file)
    check_single_file(file, Family.FLUX)
    convert(file, family=Family.FLUX, parts=parts, dtype=torch.float32)
    after = FluxTransformer2DModel.from_pretrained(parts / "transformer")
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert missing_files(parts) == ()
    assert [each.name for each in parts.parent.iterdir()] == ["tiny"]


def test_a_checkpoint_of_another_size_is_refused_and_leaves_nothing(tiny_flux, parts, tmp_path):
    tensors = in_one_piece(FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer"))
    file = tmp_path / "flux.safetensors"
    save_file({name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}, file)
    with pytest.raises(CheckpointRefused, match=r"flux\.safetensors does not fit this model"):
        convert(file, family=Family.FLUX, parts=parts, dtype=torch.float32)
    assert not list((parts / "transformer").glob("*.safetensors"))
    assert [each.name for each in parts.parent.iterdir()] == ["tiny"]
