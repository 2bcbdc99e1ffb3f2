"""Networks from their files, tensor by tensor."""

import json

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from isengard.domain.performance import Quantization
from isengard.engines.loading import WEIGHTS, load_network, untold
from isengard.engines.quantize import quantizable, repeated_blocks
from isengard.errors import JobCancelled, MissingWeights

CPU = torch.device("cpu")
FLUX, SDXL = ("tiny_flux", FluxTransformer2DModel, "transformer"), ("tiny_sdxl", UNet2DConditionModel, "unet")


@pytest.fixture
def folder(tiny_flux, tmp_path):
    """A copy of the transformer that may be damaged."""
    for path in (tiny_flux / "transformer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def load(folder, kind=FluxTransformer2DModel, *, dtype=torch.float32, on_part=untold, **choices):
    return load_network(kind, folder, dtype=dtype, device=CPU, on_part=on_part, **choices)


def change(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def assert_same(ours, theirs):
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for name, tensor in mine.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name
    mine, other = dict(ours.named_buffers()), dict(theirs.named_buffers())
    assert mine.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("model", "kind", "part"), [FLUX, SDXL])
def test_a_network_is_bit_for_bit_the_one_of_from_pretrained(request, model, kind, part, dtype):
    folder = request.getfixturevalue(model) / part
    ours, theirs = load(folder, kind, dtype=dtype), kind.from_pretrained(folder, dtype=dtype)
    assert_same(ours, theirs)
    assert (ours.training, ours.dtype, ours.device) == (theirs.training, theirs.dtype, theirs.device)
    assert dict(ours.config) == {**theirs.config, "_name_or_path": str(folder)}
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_a_network_in_several_files_is_put_together(tiny_flux, tmp_path):
    whole = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    whole.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(load(tmp_path), whole)


def test_what_its_class_wants_in_float32_stays_so_and_is_not_quantized(folder, monkeypatch):
    monkeypatch.setattr(FluxTransformer2DModel, "_keep_in_fp32_modules", ["norm_q", "proj_mlp"])
    loaded = load(folder, dtype=torch.bfloat16, quantization=Quantization.INT8)
    block = loaded.single_transformer_blocks[0]
    assert block.attn.norm_q.weight.dtype == torch.float32
    assert type(block.proj_mlp.weight) is torch.nn.Parameter
    assert block.proj_mlp.weight.dtype == torch.float32
    assert_same(
        load(folder, dtype=torch.bfloat16),
        FluxTransformer2DModel.from_pretrained(folder, dtype=torch.bfloat16),
    )


def test_only_linear_layers_inside_the_blocks_are_quantized(folder):
    loaded = load(folder, dtype=torch.bfloat16, quantization=Quantization.INT8)
    changed = {
        name for name, part in loaded.named_modules()
        if isinstance(part, torch.nn.Linear) and type(part.weight) is not torch.nn.Parameter
    }  # fmt: skip
    assert changed == set(quantizable(loaded))
    assert list(repeated_blocks(loaded)) == ["transformer_blocks.0", "single_transformer_blocks.0"]
    assert {name.split(".")[0] for name in changed} == {"transformer_blocks", "single_transformer_blocks"}
    assert type(loaded.proj_out.weight) is torch.nn.Parameter


def test_each_tensor_is_told_and_loading_can_be_stopped_between_two(folder):
    told = []

    def stop(done, total):
        told.append((done, total))
        if done == 3:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        load(folder, on_part=stop)
    total = len(load_file(folder / WEIGHTS))
    assert told == [(number, total) for number in range(4)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop("x_embedder.weight"), "lack x_embedder.weight: they are not those of Flux"),
        (lambda tensors: tensors.update(stranger=torch.ones(1)), "hold unknown stranger"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors)[:5]], r"lack .*, .*, .* and 2 more"),
        (
            lambda tensors: tensors.update({"proj_out.bias": torch.ones(3)}),
            r"proj_out.bias is \[3\], and FluxTransformer2DModel as its config.json describes it wants \[64\]",
        ),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused_by_name(folder, damage, said):
    change(folder, damage)
    with pytest.raises(MissingWeights, match=said):
        load(folder)


def test_keys_that_the_class_knows_to_be_superfluous_are_passed_over(folder, monkeypatch):
    change(folder, lambda tensors: tensors.update({"old.thing": torch.ones(1)}))
    monkeypatch.setattr(FluxTransformer2DModel, "_keys_to_ignore_on_load_unexpected", [r"^old\."])
    load(folder)


def test_a_missing_file_is_named(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(MissingWeights, match=f"{WEIGHTS} cannot be read"):
        load(folder)


def test_a_missing_shard_is_named(folder):
    index = {"weight_map": dict.fromkeys(load_file(folder / WEIGHTS), "part-2.safetensors")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(MissingWeights, match=r"part-2.safetensors cannot be read"):
        load(folder)


def test_a_half_written_file_is_refused(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MissingWeights, match="download the model again"):
        load(folder)


def test_a_network_that_quantizes_while_loading_never_holds_its_weights_whole(folder):
    """At no time are two plain weights of quantized layers there."""
    most = 0
    loaded = {}

    def watch(_done, _total):
        nonlocal most
        plain = [
            name for name in loaded.get("names", ())
            if type(loaded["network"].get_submodule(name).weight) is torch.nn.Parameter
            and loaded["network"].get_submodule(name).weight.device.type != "meta"
        ]  # fmt: skip
        most = max(most, len(plain))

    original = FluxTransformer2DModel.from_config

    def spied(config):
        loaded["network"] = original(config)
        loaded["names"] = list(quantizable(loaded["network"]))
        return loaded["network"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FluxTransformer2DModel, "from_config", spied)
        load(folder, dtype=torch.bfloat16, quantization=Quantization.INT8, on_part=watch)
    assert most <= 1
