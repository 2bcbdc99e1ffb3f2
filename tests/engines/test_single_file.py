"""Single-file checkpoints: a real transformer in the other layout comes back as it was."""

import shutil

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from safetensors.torch import save_file

from isengard.domain.model import Family
from isengard.engines.single_file import convert
from isengard.errors import CheckpointRefused
from isengard.store.single_file import check_single_file
from isengard.store.weights import missing_files


def original(transformer, family):
    """The tensors under the names, and joined, as the authors of FLUX keep them: the way back, by hand."""
    own, made = dict(transformer.state_dict()), {}
    outside = {
        "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "timestep_embedder.linear_1": "time_in.in_layer", "timestep_embedder.linear_2": "time_in.out_layer",
        "text_embedder.linear_1": "vector_in.in_layer", "text_embedder.linear_2": "vector_in.out_layer",
        "guidance_embedder.linear_1": "guidance_in.in_layer", "guidance_embedder.linear_2": "guidance_in.out_layer",
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin",
        "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2", "ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
        "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2",
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
        "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
        "norm.linear": "modulation.lin", "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2",
    }  # fmt: skip
    for part in ("weight", "bias"):
        joined(
            own,
            made,
            f"transformer_blocks.0.attn.{{}}.{part}",
            ("to_q", "to_k", "to_v"),
            f"double_blocks.0.img_attn.qkv.{part}",
        )
        joined(
            own,
            made,
            f"transformer_blocks.0.attn.{{}}.{part}",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            f"double_blocks.0.txt_attn.qkv.{part}",
        )
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        joined(
            own, made, f"single_transformer_blocks.0.{{}}.{part}", names, f"single_blocks.0.linear1.{part}"
        )
    for name, tensor in own.items():
        module, _, part = name.rpartition(".")
        block = module.partition("transformer_blocks.0.")
        front = "" if not block[1] else "single_blocks.0." if block[0] else "double_blocks.0."
        inner = block[2] or module.removeprefix("time_text_embed.").removeprefix("time_guidance_embed.")
        if inner in ("attn.norm_q", "attn.norm_k"):
            which = "query" if inner.endswith("q") else "key"
            inner, part = f"{'' if block[0] else 'img_attn.'}norm.{which}_norm", "scale"
        elif inner == "proj_out" and front:
            inner = "linear2"
        elif inner in outside:
            part = "scale" if "attn.norm" in inner else part
            inner = outside[inner]
        else:
            inner = inner.replace(".linear", ".lin")  # the modulations that FLUX.2's blocks share
        made[f"{front}{inner}.{part}"] = (
            torch.cat(tensor.chunk(2)[::-1]) if inner.startswith("final_layer.adaLN") else tensor
        )
    return {name: tensor.contiguous().clone() for name, tensor in made.items()}


def joined(own, made, pattern, names, target):
    if all(pattern.format(name) in own for name in names):
        made[target] = torch.cat([own.pop(pattern.format(name)) for name in names])


@pytest.fixture
def parts(tiny_flux, tmp_path):
    """Everything of the model but the transformer's weights."""
    parts = shutil.copytree(tiny_flux, tmp_path / "models" / "tiny")
    for weights in (parts / "transformer").glob("*.safetensors"):
        weights.unlink()
    return parts


def same(before, after):
    return all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())


@pytest.mark.parametrize(("prefix", "shard"), [("", 10**9), ("model.diffusion_model.", 20_000)])
def test_a_flux_checkpoint_comes_back_as_it_was(tiny_flux, parts, tmp_path, prefix, shard):
    before = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    file = tmp_path / "flux.safetensors"
    save_file(
        {prefix + name: tensor for name, tensor in original(before, Family.FLUX).items()}
        | {"vae.x": torch.zeros(1)},
        file,
    )
    check_single_file(file, Family.FLUX)
    convert(file, family=Family.FLUX, parts=parts, dtype=torch.float32, shard=shard)
    assert same(before, FluxTransformer2DModel.from_pretrained(parts / "transformer"))
    assert missing_files(parts) == ()
    assert [each.name for each in parts.parent.iterdir()] == ["tiny"]


def test_a_flux2_checkpoint_comes_back_as_it_was(tmp_path):
    before = Flux2Transformer2DModel(
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, timestep_guidance_channels=8, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    before.save_config(tmp_path / "klein" / "transformer")
    file = tmp_path / "klein.safetensors"
    save_file(original(before, Family.FLUX2), file)
    check_single_file(file, Family.FLUX2)
    convert(file, family=Family.FLUX2, parts=tmp_path / "klein", dtype=torch.float32)
    assert same(before, Flux2Transformer2DModel.from_pretrained(tmp_path / "klein" / "transformer"))


def tampered(tensors, how):
    if how == "another size":
        return {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
    if how == "no transformer_blocks.7":
        return tensors | {"double_blocks.7.img_mod.lin.weight": torch.zeros(2, 2)}
    if how == "quantized":
        return {"double_blocks.0.img_mod.lin.scale_weight": torch.zeros(1)} | tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("img_in")}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("another size", "another size"), ("no transformer_blocks.7", r"has no transformer_blocks\.7"),
        ("quantized", "is quantized"), ("lacks", r"lacks 2 tensors of this model, such as x_embedder\.bias"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused_and_leaves_nothing(tiny_flux, parts, tmp_path, how, words):
    tensors = original(FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer"), Family.FLUX)
    file = tmp_path / "flux.safetensors"
    save_file(tampered(tensors, how), file)
    with pytest.raises(CheckpointRefused, match=words):
        convert(file, family=Family.FLUX, parts=parts, dtype=torch.float32)
    assert not list((parts / "transformer").glob("*.safetensors"))
    assert [each.name for each in parts.parent.iterdir()] == ["tiny"]


def test_an_sdxl_checkpoint_that_does_not_fit_is_refused(tiny_sdxl, tmp_path):
    parts = shutil.copytree(tiny_sdxl, tmp_path / "models" / "sdxl")
    file = tmp_path / "sdxl.ckpt"  # the content counts
    front = "model.diffusion_model."
    save_file(
        {f"{front}label_emb.0.0.weight": torch.zeros(1), "conditioner.embedders.1.x": torch.zeros(1)}, file
    )
    check_single_file(file, Family.SDXL)
    with pytest.raises(CheckpointRefused, match=r"sdxl\.ckpt does not fit this model") as refused:
        convert(file, family=Family.SDXL, parts=parts)
    assert "pickle" not in str(refused.value)
    assert missing_files(parts) == ()
