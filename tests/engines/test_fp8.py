import pytest
import torch
from diffusers import FluxTransformer2DModel

from isengard.engines.fp8 import Fp8Linear, supported
from isengard.engines.native import lora
from isengard.engines.native.flux import FluxAdapter

CPU = torch.device("cpu")
#: A number in e4m3 has 3 bits behind its leading one, so it is off by 1/16 at most; random errors add up to less.
ROUNDING = 0.05


def linear(dtype=torch.bfloat16, *, inner=64, outer=96, bias=True):
    torch.manual_seed(0)
    layer = torch.nn.Linear(inner, outer, bias=bias).to(dtype)
    return layer.requires_grad_(False)


def passed(layer, *, dtype=torch.bfloat16, rows=20, spread=1.0):
    """The output and the gradient of the input for the same random numbers."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, rows // 2, 64, generator=generator)
    x = (x * torch.logspace(0, spread, rows).view(2, rows // 2, 1)).to(dtype).requires_grad_()
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=generator).to(y.dtype))
    return y.detach(), x.grad


def off(one, other):
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


@pytest.mark.parametrize("keep_transpose", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradient_are_those_of_the_plain_layer_but_for_rounding(dtype, keep_transpose, bias):
    plain = linear(dtype, bias=bias)
    layer = Fp8Linear.from_linear(plain, keep_transpose=keep_transpose)
    (y, gradient), (wanted, wanted_gradient) = passed(layer, dtype=dtype), passed(plain, dtype=dtype)
    assert (y.dtype, y.shape, gradient.dtype) == (dtype, wanted.shape, dtype)
    assert off(y, wanted) < ROUNDING
    assert off(gradient, wanted_gradient) < ROUNDING


def test_a_small_row_keeps_its_precision_beside_a_large_one():
    plain = linear()
    y, _ = passed(Fp8Linear.from_linear(plain), spread=6)
    wanted, _ = passed(plain, spread=6)
    assert off(y[0, 0], wanted[0, 0]) < ROUNDING


def test_rows_of_zeros_stay_zeros():
    layer = Fp8Linear.from_linear(linear(bias=False))
    assert not layer(torch.zeros(3, 64)).any()


def test_nothing_of_the_input_is_kept_for_the_gradient():
    layer = Fp8Linear.from_linear(linear())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        layer(torch.randn(1000, 64, requires_grad=True))
    assert {tensor.data_ptr() for tensor in kept} <= {layer.weight.data_ptr(), layer.scale.data_ptr()}


def test_the_weight_is_never_trained_and_takes_half_the_memory():
    plain = linear()
    layer = Fp8Linear.from_linear(plain)
    passed(layer)
    assert not layer.weight.requires_grad
    assert layer.weight.nbytes == plain.weight.nbytes // 2
    assert (layer.in_features, layer.out_features) == (64, 96)


def test_sizes_that_are_no_multiple_of_16_are_left_alone():
    assert Fp8Linear.from_linear(linear(inner=40)) is None
    assert Fp8Linear.from_linear(linear(outer=40)) is None


def test_a_cast_of_the_whole_model_changes_nothing():
    layer = Fp8Linear.from_linear(linear(), keep_transpose=True)
    before, _ = passed(layer)
    after, _ = passed(layer.to(torch.bfloat16))
    assert torch.equal(before, after)


def test_saved_and_loaded_it_is_the_same():
    layer = Fp8Linear.from_linear(linear(), keep_transpose=True)
    other = Fp8Linear(64, 96, keep_transpose=True)
    other.load_state_dict(layer.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(passed(layer), passed(other), strict=True))


def test_under_autocast_it_gives_autocasts_type():
    layer = Fp8Linear.from_linear(linear())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(4, 64)).dtype is torch.bfloat16


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch's compiler does it
@pytest.mark.parametrize("keep_transpose", [False, True])
def test_compiled_as_one_graph_it_is_the_same(keep_transpose):
    layer = Fp8Linear.from_linear(linear(), keep_transpose=keep_transpose)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(one, two) for one, two in zip(passed(layer), passed(compiled), strict=True))


def test_under_gradient_checkpointing_it_is_the_same():
    layer = Fp8Linear.from_linear(linear())

    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)

    assert all(torch.equal(one, two) for one, two in zip(passed(layer), passed(checkpointed), strict=True))


def test_the_cpu_is_supported_for_tests_and_apples_gpu_is_not():
    assert supported(CPU)
    assert not supported(torch.device("mps"))


def trained(tiny_model, *, fp8, steps=30):
    """Losses of a LoRA on the tiny FLUX that learns one example."""
    adapter = FluxAdapter(tiny_model, device=CPU)
    denoiser = FluxTransformer2DModel.from_pretrained(tiny_model.path / "transformer", dtype=torch.bfloat16)
    if fp8:
        for name, module in list(denoiser.named_modules()):
            made = Fp8Linear.from_linear(module) if isinstance(module, torch.nn.Linear) else None
            if made is not None and "blocks" in name:
                denoiser.set_submodule(name, made)
    weights = lora.add_lora(denoiser, pattern=adapter.target_pattern("all_linear"), rank=4, alpha=4, seed=0)
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    config = denoiser.config
    noisy, target = (torch.randn(1, 16, config.in_channels, generator=generator) for _ in range(2))
    prompts = {
        "prompt_embeds": torch.randn(1, 8, config.joint_attention_dim, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, config.pooled_projection_dim, generator=generator),
    }
    losses = []
    for _ in range(steps):
        predicted = adapter.predict(
            denoiser, noisy, sigma=torch.tensor([0.5]), prompts=prompts, size=(64, 64), guidance_scale=1
        )
        loss = (predicted.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_tiny_flux_learns_with_it_as_it_does_without(tiny_model):
    plain, in_8_bits = trained(tiny_model, fp8=False), trained(tiny_model, fp8=True)
    assert in_8_bits[-1] < 0.9 * in_8_bits[0]
    assert in_8_bits == pytest.approx(plain, rel=0.05)
