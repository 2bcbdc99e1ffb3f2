"""LoRA files: metadata, refusals, and conversion with equal weight deltas."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from isengard.domain.model import Family, ModelCard
from isengard.domain.training import TrainingSpec
from isengard.engines.lora_format import (
    TRANSFORMER,
    UNET,
    component_of,
    convert,
    kohya_weights,
    module_count,
    read_header,
    read_lora,
    read_pairs,
    read_spec,
    save_lora,
)
from isengard.errors import LoraRefused

CARD = ModelCard(
    name="small",
    title="Small",
    family=Family.FLUX,
    path=Path("small"),
    licence="Apache-2.0",
    licence_url="https://example.org",
    resolutions=(128,),
    num_inference_steps=4,
    guidance_scale=3.5,
)
SPEC = TrainingSpec(character="mira", base_model="small", trigger="ohwx", class_word="woman", rank=2)
WIDTH = 8
OUTPUTS = {
    "transformer_blocks.0.attn.to_q": WIDTH,
    "transformer_blocks.0.attn.to_k": WIDTH,
    "transformer_blocks.0.attn.to_v": WIDTH,
    "transformer_blocks.0.attn.add_q_proj": WIDTH,
    "transformer_blocks.0.attn.add_v_proj": WIDTH,
    "transformer_blocks.1.attn.to_out.0": WIDTH,
    "transformer_blocks.1.ff.net.0.proj": 4 * WIDTH,
    "single_transformer_blocks.10.attn.to_q": WIDTH,
    "single_transformer_blocks.10.proj_mlp": 4 * WIDTH,
    "single_transformer_blocks.10.proj_out": WIDTH,
    "norm_out.linear": 2 * WIDTH,
    "x_embedder": WIDTH,
}


def lora(outputs=OUTPUTS, *, width=WIDTH, rank=2):
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for module, height in outputs.items():
        weights[f"transformer.{module}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        weights[f"transformer.{module}.lora_B.weight"] = torch.randn(height, rank, generator=generator)
    return weights


def write(path, weights, **changes):
    given = {"spec": SPEC, "card": CARD, "step": 7, "image_count": 12, "created_at": 0.0} | changes
    save_lora(path, weights, **given)
    return path


def deltas(weights):
    names = {key.rsplit(".lora_", 1)[0] for key in weights}
    return {
        name.removeprefix("transformer."): weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
        for name in names
    }


@pytest.fixture
def plain(tmp_path):
    return write(tmp_path / "plain.safetensors", lora())


def test_a_saved_lora_reads_back_as_it_was(plain):
    weights = lora()
    found = read_lora(plain)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert module_count(plain) == len(OUTPUTS)


def test_its_spec_and_the_usual_metadata_travel_in_the_file(plain):
    _, metadata = read_header(plain)
    assert read_spec(plain) == SPEC
    assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
    assert metadata["modelspec.trigger_phrase"] == "ohwx"
    assert metadata["modelspec.date"] == "1970-01-01T00:00:00+00:00"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2")
    assert (metadata["ss_steps"], metadata["ss_num_train_images"]) == ("7", "12")
    assert json.loads(metadata["ss_tag_frequency"]) == {"mira": {"ohwx": 12}}
    assert len(metadata["sshs_model_hash"]) == 64


def test_another_family_is_named_by_its_card(tmp_path):
    card = CARD.model_copy(update={"family": Family.FLUX2})
    _, metadata = read_header(write(tmp_path / "other.safetensors", lora(), card=card))
    assert metadata["modelspec.architecture"] == "small/lora"


def test_equal_arguments_give_equal_bytes(tmp_path, plain):
    assert write(tmp_path / "again.safetensors", lora()).read_bytes() == plain.read_bytes()


def test_a_file_of_others_has_no_spec(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(lora(), path)
    assert read_spec(path) is None


def test_kohya_keys_hold_equal_deltas_and_lead_back_to_the_same_modules(tmp_path, plain):
    converted, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    convert(plain, converted, kohya=True)
    convert(converted, back, kohya=False)
    assert "lora_unet_double_blocks_0_img_attn_qkv.alpha" in read_header(converted)[0]
    expected = lora()
    assert read_lora(back).keys() == expected.keys()
    assert all(torch.equal(read_lora(back)[key], expected[key]) for key in expected)
    assert read_spec(back) == SPEC


def test_diffusers_own_converter_finds_the_same_deltas():
    width = 3072  # its converter knows the full-size model only
    outputs = {
        "transformer_blocks.0.attn.to_q": width,
        "transformer_blocks.0.attn.to_k": width,
        "transformer_blocks.0.attn.to_v": width,
        "transformer_blocks.3.attn.add_q_proj": width,
        "transformer_blocks.3.attn.add_v_proj": width,
        "transformer_blocks.3.attn.to_add_out": width,
        "single_transformer_blocks.7.attn.to_q": width,
        "single_transformer_blocks.7.attn.to_k": width,
        "single_transformer_blocks.7.attn.to_v": width,
        "single_transformer_blocks.7.proj_mlp": 4 * width,
        "single_transformer_blocks.8.attn.to_k": width,
        "norm_out.linear": 2 * width,
    }
    weights = {
        key: tensor.round() for key, tensor in lora(outputs, width=width, rank=1).items()
    }  # exact sums
    pairs = {
        key: (weights[f"transformer.{key}.lora_A.weight"], weights[f"transformer.{key}.lora_B.weight"])
        for key in outputs
    }
    theirs = _convert_kohya_flux_lora_to_diffusers(kohya_weights(pairs, TRANSFORMER))
    probe = torch.randn(width, 2, generator=torch.Generator().manual_seed(1)).round()
    for name in {key.rsplit(".lora_", 1)[0] for key in theirs}:
        found = theirs[f"{name}.lora_B.weight"] @ (theirs[f"{name}.lora_A.weight"] @ probe)
        down, up = pairs.pop(
            name.removeprefix("transformer."), (torch.zeros(1, width), found.new_zeros(len(found), 1))
        )
        assert torch.equal(found, up @ (down @ probe)), name
    assert not pairs


def test_alpha_scales_a_kohya_file(tmp_path):
    path = tmp_path / "alpha.safetensors"
    down, up = torch.ones(2, WIDTH), torch.ones(WIDTH, 2)
    name = "lora_unet_single_blocks_0_linear2"
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)},
        path,
    )
    (found,) = deltas(read_lora(path)).values()
    assert torch.equal(found, up @ down / 2)


def test_conversion_leaves_settings_behind_that_no_longer_hold(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    settings = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 2})
    save_file(lora(), source, {"lora_adapter_metadata": settings})
    convert(source, target, kohya=True)
    assert "lora_adapter_metadata" not in read_header(target)[1]


def test_an_alpha_kept_in_peft_settings_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(
        lora(), path, {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4})}
    )
    with pytest.raises(LoraRefused, match="lora_alpha \\(4\\) differs from its rank \\(2\\)"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("transformer.x.lokr_w1", "LoKr"),
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("transformer.x.dora_scale", "DoRA"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1", "LoKr"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "qkv.lora_B is missing"),
        ("text_encoder.x.lora_A.weight", "text encoder"),
        ("lora_te1_x.lora_down.weight", "text encoder"),
        ("lora_unet_input_blocks_1.lora_down.weight", "input_blocks_1.lora_up is missing"),
        ("base_model.x.lora_A.weight", "must all begin with"),
        ("transformer.x.bias", "no part of a LoRA"),
        ("transformer.x.lora_A.weight", "x.lora_B is missing"),
    ],
)
def test_other_content_is_refused_with_the_reason(tmp_path, key, reason):
    path = tmp_path / "strange.safetensors"
    save_file({key: torch.zeros(2, 2)}, path)
    with pytest.raises(LoraRefused, match=reason):
        read_pairs(path)


def test_two_layouts_in_one_file_are_refused(tmp_path):
    path = tmp_path / "mixed.safetensors"
    save_file(lora() | {"lora_unet_img_in.alpha": torch.tensor(1.0)}, path)
    with pytest.raises(LoraRefused, match="does not fit the others"):
        read_pairs(path)


def test_shapes_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "shapes.safetensors"
    save_file(
        {"transformer.x.lora_A.weight": torch.zeros(2, 4), "transformer.x.lora_B.weight": torch.zeros(4, 3)},
        path,
    )
    with pytest.raises(LoraRefused, match=r"\(2, 4\) and \(4, 3\), which do not fit"):
        read_pairs(path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.safetensors"
    save_file({}, path)
    with pytest.raises(LoraRefused, match="holds no weights"):
        module_count(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"\xff" * 64])
def test_a_pickle_or_broken_file_is_never_opened(tmp_path, content):
    path = tmp_path / "lora.pt"
    path.write_bytes(content)
    with pytest.raises(LoraRefused, match="pickle files"):
        read_header(path)
    with pytest.raises(LoraRefused, match="absent"):
        read_header(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("lora_unet_nowhere", (WIDTH, 2), "'nowhere' is not part of FLUX.1"),
        ("lora_unet_single_blocks_0_linear1", (WIDTH, 2), "not that of a fused FLUX.1 layer"),
    ],
)
def test_kohya_modules_flux_does_not_have_are_refused(tmp_path, name, shape, reason):
    path = tmp_path / "kohya.safetensors"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(2, WIDTH), f"{name}.lora_up.weight": torch.ones(*shape)}, path
    )
    with pytest.raises(LoraRefused, match=reason):
        read_pairs(path)


SDXL_NAMES = {
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj": (
        "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"
    ),
    "middle_block_1_transformer_blocks_9_attn2_to_out_0": (
        "mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0"
    ),
    "output_blocks_0_1_proj_in": "up_blocks.0.attentions.0.proj_in",
    "output_blocks_5_1_transformer_blocks_1_ff_net_2": "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.2",
}


def test_sdxl_names_are_those_of_the_original_and_lead_back(tmp_path):
    source, converted = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    weights = {
        f"unet.{module}.lora_{side}.weight": torch.ones(2, 2)
        for module in SDXL_NAMES.values()
        for side in "AB"
    }
    save_file(weights, source)
    convert(source, converted, kohya=True)
    keys, metadata = read_header(converted)
    assert {key.split(".")[0] for key in keys} == {f"lora_unet_{name}" for name in SDXL_NAMES}
    assert metadata["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"
    assert read_lora(converted).keys() == weights.keys()
    assert (component_of(source), component_of(converted)) == (UNET, UNET)


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks_1_0_emb_layers_1",
        "input_blocks_4_1_norm",
        "down_blocks_7_attentions_0_proj_in",
        "output_blocks_0_1_transformer_blocks_0_attn3_to_q",
    ],
)
def test_kohya_modules_outside_sdxls_attention_blocks_are_refused(tmp_path, name):
    path = tmp_path / "kohya.safetensors"
    save_file({f"lora_unet_{name}.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}, path)
    with pytest.raises(LoraRefused, match=f"'{name}' is not part of SDXL's attention blocks"):
        read_pairs(path)


@pytest.mark.parametrize("module", ["add_embedding.linear_1", "down_blocks.0.attentions.5.proj_in"])
def test_an_sdxl_module_without_a_kohya_name_is_refused(tmp_path, module):
    source = tmp_path / "a.safetensors"
    save_file({f"unet.{module}.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}, source)
    with pytest.raises(LoraRefused, match=f"'{module}' has no counterpart in the attention blocks"):
        convert(source, tmp_path / "b.safetensors", kohya=True)


def test_an_alpha_kept_in_peft_settings_of_a_unet_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    settings = json.dumps({"unet.r": 2, "unet.lora_alpha": 4})
    save_file(
        {f"unet.x.lora_{side}.weight": torch.ones(2, 2) for side in "AB"},
        path,
        {"lora_adapter_metadata": settings},
    )
    with pytest.raises(LoraRefused, match="lora_alpha \\(4\\) differs from its rank \\(2\\)"):
        read_pairs(path)


def test_a_module_without_a_kohya_name_is_refused(tmp_path):
    source = write(tmp_path / "a.safetensors", lora({"transformer_blocks.0.unknown": WIDTH}))
    with pytest.raises(LoraRefused, match="no counterpart"):
        convert(source, tmp_path / "b.safetensors", kohya=True)
    assert not (tmp_path / "b.safetensors").exists()


def test_the_written_tensors_are_what_the_library_reads(plain):
    assert load_file(plain).keys() == lora().keys()
    with safe_open(plain, framework="pt") as file:
        assert file.metadata()["modelspec.license"] == "Apache-2.0"
