"""LoRA files of FLUX.2, and the keys that AI-Toolkit and ComfyUI write: the same deltas by every name."""

import pytest
import torch
from diffusers.loaders import Flux2LoraLoaderMixin
from safetensors.torch import load_file, save_file

from isengard.engines.lora_format import component_of, convert, read_header, read_lora, read_pairs
from isengard.errors import LoraRefused

WIDTH = 6
#: diffusers' module -> its shape, (out, in).
FLUX2 = {
    "transformer_blocks.0.attn.to_q": (WIDTH, WIDTH),
    "transformer_blocks.0.attn.to_k": (WIDTH, WIDTH),
    "transformer_blocks.0.attn.to_v": (WIDTH, WIDTH),
    "transformer_blocks.1.attn.add_q_proj": (WIDTH, WIDTH),
    "transformer_blocks.1.attn.to_add_out": (WIDTH, WIDTH),
    "transformer_blocks.1.attn.to_out.0": (WIDTH, WIDTH),
    "transformer_blocks.1.ff.linear_in": (6 * WIDTH, WIDTH),
    "transformer_blocks.1.ff_context.linear_out": (WIDTH, 3 * WIDTH),
    "single_transformer_blocks.10.attn.to_qkv_mlp_proj": (9 * WIDTH, WIDTH),
    "single_transformer_blocks.10.attn.to_out": (WIDTH, 4 * WIDTH),
}
#: Original module -> its shape.
ORIGINAL = {
    "double_blocks.0.img_attn.qkv": (3 * WIDTH, WIDTH),
    "double_blocks.0.txt_attn.qkv": (3 * WIDTH, WIDTH),
    "double_blocks.0.txt_attn.proj": (WIDTH, WIDTH),
    "double_blocks.0.img_mlp.0": (6 * WIDTH, WIDTH),
    "double_blocks.0.img_mlp.2": (WIDTH, 3 * WIDTH),
    "single_blocks.3.linear1": (9 * WIDTH, WIDTH),
    "single_blocks.3.linear2": (WIDTH, 4 * WIDTH),
    "single_stream_modulation.lin": (3 * WIDTH, WIDTH),
}
FLUX1 = {"double_blocks.0.img_attn.qkv": (3 * WIDTH, WIDTH), "single_blocks.3.linear1": (7 * WIDTH, WIDTH)}
SDXL = {"input_blocks.4.1.transformer_blocks.0.attn1.to_q": (WIDTH, WIDTH)}


def weights(shapes, prefix="transformer.", sides=("lora_A", "lora_B")):
    generator = torch.Generator().manual_seed(0)
    made = {}
    for module, (height, width) in shapes.items():
        made[f"{prefix}{module}.{sides[0]}.weight"] = torch.randn(2, width, generator=generator).round()
        made[f"{prefix}{module}.{sides[1]}.weight"] = torch.randn(height, 2, generator=generator).round()
    return made


def written(path, content):
    save_file(content, path)
    return path


def deltas(content):
    names = {key.rsplit(".lora_", 1)[0] for key in content}
    found = {name: content[f"{name}.lora_B.weight"] @ content[f"{name}.lora_A.weight"] for name in names}
    return {name: delta for name, delta in found.items() if delta.any()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_kohya_keys_lead_back_to_the_same_modules(tmp_path):
    source = written(tmp_path / "source.safetensors", weights(FLUX2))
    convert(source, tmp_path / "kohya.safetensors", kohya=True)
    keys, metadata = read_header(tmp_path / "kohya.safetensors")
    assert "lora_unet_single_blocks_10_linear1.lora_up.weight" in keys
    assert metadata["modelspec.implementation"] == "https://github.com/black-forest-labs/flux2"
    convert(tmp_path / "kohya.safetensors", tmp_path / "back.safetensors", kohya=False)
    assert same(load_file(tmp_path / "back.safetensors"), weights(FLUX2))


def test_diffusers_reads_the_same_out_of_our_kohya_file(tmp_path):
    source = written(tmp_path / "source.safetensors", weights(FLUX2))
    convert(source, tmp_path / "kohya.safetensors", kohya=True)
    theirs = Flux2LoraLoaderMixin.lora_state_dict(tmp_path, weight_name="kohya.safetensors")
    assert same(deltas(theirs), deltas(weights(FLUX2)))


@pytest.mark.parametrize(
    ("prefix", "sides"),
    [
        ("diffusion_model.", ("lora_A", "lora_B")),
        ("diffusion_model.", ("lora_down", "lora_up")),
        ("base_model.model.", ("lora_A", "lora_B")),
    ],
)
def test_files_in_the_originals_names_are_read_as_diffusers_reads_them(tmp_path, prefix, sides):
    path = written(tmp_path / "peer.safetensors", weights(ORIGINAL, prefix, sides))
    alike = weights(ORIGINAL, "diffusion_model.")  # diffusers takes lora_down for kohya's whatever the prefix
    assert same(deltas(read_lora(path)), deltas(Flux2LoraLoaderMixin.lora_state_dict(alike)))


def test_diffusers_names_behind_the_prefix_of_others_are_read_as_they_are(tmp_path):
    path = written(tmp_path / "peer.safetensors", weights(FLUX2, "diffusion_model."))
    assert same(read_lora(path), weights(FLUX2))


def test_the_scale_of_a_file_in_the_originals_names_counts(tmp_path):
    content = weights(ORIGINAL, "diffusion_model.")
    alphas = {f"diffusion_model.{module}.alpha": torch.tensor(1.0) for module in ORIGINAL}
    plain = deltas(read_lora(written(tmp_path / "plain.safetensors", content)))
    scaled = deltas(read_lora(written(tmp_path / "scaled.safetensors", content | alphas)))
    assert same(scaled, {name: delta / 2 for name, delta in plain.items()})


def test_flux1_and_flux2_are_told_apart_by_their_shapes(tmp_path):
    pairs = read_pairs(written(tmp_path / "flux1.safetensors", weights(FLUX1, "diffusion_model.")))
    assert {"single_transformer_blocks.3.proj_mlp", "transformer_blocks.0.attn.to_v"} <= pairs.keys()
    pairs = read_pairs(written(tmp_path / "flux2.safetensors", weights(ORIGINAL, "diffusion_model.")))
    assert {
        "single_transformer_blocks.3.attn.to_qkv_mlp_proj",
        "transformer_blocks.0.attn.to_v",
    } <= pairs.keys()


def test_a_unet_in_the_originals_names_is_read_too(tmp_path):
    path = written(tmp_path / "sdxl.safetensors", weights(SDXL, "diffusion_model."))
    assert component_of(path) == "unet"
    assert list(read_pairs(path)) == ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1", "it is a LoKr file"),
        ("lycoris_transformer_blocks_0_attn_to_q.lokr_w1", "it is a LoKr file"),
        ("lycoris_single_blocks_0_linear1.lora_A.weight", "does not fit the others"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path, key, reason):
    path = written(tmp_path / "strange.safetensors", {key: torch.zeros(2, 2)})
    with pytest.raises(LoraRefused, match=reason):
        read_pairs(path)


def test_a_layer_that_flux2_does_not_have_is_refused_by_name(tmp_path):
    content = weights({**ORIGINAL, "vector_in.in_layer": (WIDTH, WIDTH)}, "diffusion_model.")
    path = written(tmp_path / "mixed.safetensors", content)
    with pytest.raises(LoraRefused, match=r"'vector_in_in_layer' is not part of FLUX\.2"):
        read_pairs(path)
