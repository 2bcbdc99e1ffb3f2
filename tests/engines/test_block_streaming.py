"""Blocks that wait in system memory: the same numbers, and never more than two of them on the device."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

from isengard.domain.performance import Quantization
from isengard.engines.loading import load_network, untold
from isengard.engines.native.lora import add_lora
from isengard.engines.quantize import repeated_blocks
from isengard.engines.streaming import spread
from isengard.errors import InvalidSpec
from isengard.settings import ASSETS

CPU = torch.device("cpu")
FLUX = ASSETS / "demo-base" / "transformer"
LAYERS = r"(single_)?transformer_blocks\.\d+\.(attn\.to_[qkv]|norm1\.linear|ff\.net\.0\.proj|proj_mlp)"
BLOCKS = 9


def load(streamed, *, quantization=Quantization.NONE, dtype=torch.float32):
    return load_network(
        FluxTransformer2DModel, FLUX, dtype=dtype, device=CPU, quantization=quantization,
        streamed_blocks=streamed, on_part=untold,
    )  # fmt: skip


def inputs(network):
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(2, *shape, generator=generator).to(network.device)

    config = network.config
    return {
        "hidden_states": noise(16, config.in_channels),
        "timestep": torch.tensor([0.3, 0.7], device=network.device),
        "guidance": torch.ones(2, device=network.device) if config.guidance_embeds else None,
        "pooled_projections": noise(config.pooled_projection_dim),
        "encoder_hidden_states": noise(8, config.joint_attention_dim),
        "txt_ids": torch.zeros(8, 3, device=network.device),
        "img_ids": torch.zeros(16, 3, device=network.device),
        "return_dict": False,
    }


def trained(network, *, pattern=LAYERS, bf16=False, steps=3):
    """Train a few steps with a picture between two of them; return all losses, outputs and weights."""
    parameters = add_lora(network, pattern=pattern, rank=4, alpha=4, seed=0)
    network.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    seen = []
    for _ in range(steps):
        with torch.autocast(network.device.type, torch.bfloat16, enabled=bf16):
            loss = network(**inputs(network))[0].float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad(), torch.autocast(network.device.type, torch.bfloat16, enabled=bf16):
            seen += [loss.detach(), network(**inputs(network))[0]]
    return [*seen, *(parameter.detach() for parameter in parameters)]


def same(ours, theirs):
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def away(block):
    """The block's frozen matrices, which are not on the device now."""
    return [parameter for parameter in block.parameters() if not parameter.numel()]


@pytest.fixture(scope="module")
def plain():
    return trained(load(0))


@pytest.mark.parametrize("count", [1, 2, 5, BLOCKS, None])
def test_training_with_streamed_blocks_is_the_plain_training_bit_for_bit(plain, count):
    assert same(trained(load(count)), plain)


@pytest.mark.parametrize(
    "quantization", [Quantization.INT8, Quantization.FP8, Quantization.NF4, Quantization.FP8_MATMUL]
)
def test_quantized_weights_stream_too(quantization):
    if quantization is Quantization.FP8_MATMUL:
        pytest.importorskip("isengard.engines.fp8")
    options = {"quantization": quantization, "dtype": torch.bfloat16}
    assert same(
        trained(load(4, **options), bf16=True, steps=2), trained(load(0, **options), bf16=True, steps=2)
    )


def test_an_adapter_on_the_last_blocks_alone_trains_the_same():
    pattern = r"single_transformer_blocks\.[45]\.attn\.to_q"
    assert same(trained(load(4), pattern=pattern, steps=2), trained(load(0), pattern=pattern, steps=2))


def test_a_unet_streams_its_transformer_blocks(tiny_sdxl):
    def output(streamed):
        network = load_network(
            UNet2DConditionModel, tiny_sdxl / "unet", dtype=torch.float32, device=CPU,
            streamed_blocks=streamed, on_part=untold,
        )  # fmt: skip
        parameters = add_lora(network, pattern=r".*attn1\.to_q", rank=2, alpha=2, seed=0)
        for parameter in parameters:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        network.enable_gradient_checkpointing()
        network.train()
        generator = torch.Generator().manual_seed(1)
        seen = []
        for _ in range(2):
            predicted = network(
                torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([5]),
                encoder_hidden_states=torch.randn(1, 7, 32, generator=generator),
                added_cond_kwargs={"text_embeds": torch.randn(1, 16, generator=generator), "time_ids": torch.ones(1, 6)},
            ).sample  # fmt: skip
            predicted.square().mean().backward()
            seen.append(predicted.detach())
        return seen + [parameter.grad for parameter in parameters]

    assert same(output(None), output(0))


@pytest.mark.parametrize("count", [4, None])
def test_at_most_two_streamed_blocks_are_on_the_device_at_any_time(count):
    network = load(count)
    blocks = list(repeated_blocks(network).values())
    streamed = [matrices for matrices in map(away, blocks) if matrices]
    assert len(streamed) == (count or BLOCKS)
    resident = []

    def look(*_):
        resident.append(sum(any(matrix.numel() for matrix in matrices) for matrices in streamed))

    for part in network.modules():
        part.register_forward_hook(look)
    trained(network, steps=2)
    assert max(resident) == 2


def test_adapters_and_small_tensors_stay_on_the_device():
    network = load(None)
    add_lora(network, pattern=LAYERS, rank=4, alpha=4, seed=0)
    for name, parameter in network.named_parameters():
        if "lora" in name or name.endswith("bias") or "norm_q" in name:
            assert parameter.numel() > 0, name


def test_a_block_that_is_away_cannot_be_used_by_mistake():
    with pytest.raises(RuntimeError):
        load(None).transformer_blocks[0].attn.to_q(torch.zeros(1, 4, 64))


def test_after_the_first_pass_a_block_is_fetched_while_the_one_before_computes():
    network = load(None)
    with torch.no_grad():
        network(**inputs(network))
        network(**inputs(network))
        arrived = []
        for block in repeated_blocks(network).values():
            block.register_forward_pre_hook(
                lambda block, _inputs: arrived.append(not away(block)), prepend=True
            )
        network(**inputs(network))
    assert arrived == [False] + [True] * (BLOCKS - 1)


def test_streamed_blocks_are_spread_evenly():
    assert spread(["0", "1", "2", "3", "4", "5", "6", "7"], 2) == ["2", "6"]
    assert spread(list("abc"), 3) == ["a", "b", "c"]
    assert spread(list("abc"), 0) == []


def test_more_streamed_blocks_than_there_are_is_refused():
    with pytest.raises(
        InvalidSpec, match="streamed_blocks is 10, and this model has 9 blocks; choose at most 9"
    ):
        load(10)
