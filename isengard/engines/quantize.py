"""The linear layers of a frozen network in fewer bits."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from isengard.domain.performance import Quantization
from isengard.engines import fp8
from isengard.engines.libraries import bitsandbytes
from isengard.errors import InvalidSpec


def repeated_blocks(network: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The blocks a network repeats, by name: nearly all of its weights. Its library says which they are."""
    kinds = getattr(network, "_repeated_blocks", None) or getattr(network, "_no_split_modules", None) or ()
    return {name: part for name, part in network.named_modules() if type(part).__name__ in kinds}


def quantizable(network: torch.nn.Module) -> Iterator[str]:
    """Names of the linear layers that may be quantized: those inside the repeated blocks.

    What lies before and after the blocks (embedders of time, text and image, the final norm and projection) is a few
    per cent of the weights, and every error there reaches each token whole.
    """
    exact = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, block in repeated_blocks(network).items():
        for inner, part in block.named_modules():
            path = f"{name}.{inner}" if inner else name
            if isinstance(part, torch.nn.Linear) and not exact & set(path.split(".")):
                yield path


def quantized(
    linear: torch.nn.Linear, quantization: Quantization, *, device: torch.device
) -> torch.nn.Linear:
    """Put a linear layer on the device and hold its weight in fewer bits: the same layer changed, or another one.

    Raises:
        InvalidSpec: the machine lacks what this quantization needs.
    """
    linear = linear.to(device)
    if quantization is Quantization.NONE:
        return linear
    if quantization is Quantization.NF4:
        return _nf4(linear)
    if quantization is Quantization.FP8_MATMUL:
        return _fp8_matmul(linear, device)
    from torchao.quantization import quantize_  # a second to import

    quantize_(linear, _torchao(quantization))
    return linear


def say_how_quantized(network: Any, quantization: Quantization) -> None:
    """Leave word where peft looks: without it, it warns at each layer that it could not undo a merge."""
    if quantization in (Quantization.INT8, Quantization.FP8):
        from diffusers import TorchAoConfig

        network.hf_quantizer = SimpleNamespace(quantization_config=TorchAoConfig(_torchao(quantization)))


def _torchao(quantization: Quantization) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return {Quantization.INT8: Int8WeightOnlyConfig, Quantization.FP8: Float8WeightOnlyConfig}[quantization]()


def quantize_network(network: torch.nn.Module, quantization: Quantization, *, device: torch.device) -> None:
    """Quantize a network that is loaded already, layer by layer on the device; the rest stays where it is."""
    for name in list(quantizable(network)):
        network.set_submodule(name, quantized(network.get_submodule(name), quantization, device=device))


def _nf4(linear: torch.nn.Linear) -> torch.nn.Linear:
    nn = bitsandbytes(wanted_by="quantization nf4", instead="int8").nn
    weight = linear.weight
    layer: Any = nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=weight.dtype, quant_type="nf4",
        device="meta",
    )  # fmt: skip
    # Without gradients it would repack the weight for some CPUs, in place, into a form that has no backward pass.
    layer.support_avx512bf16_for_cpu = False
    layer.weight = nn.Params4bit(
        weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
    ).to(weight.device)
    layer.bias = linear.bias
    return layer.train(linear.training)


def _fp8_matmul(linear: torch.nn.Linear, device: torch.device) -> torch.nn.Linear:
    if not fp8.supported(device):  # pragma: gpu
        raise InvalidSpec(
            "quantization fp8_matmul needs an NVIDIA card of the Ada, Hopper or a later generation;"
            " choose fp8, which only stores in 8 bits"
        )
    return fp8.Fp8Linear.from_linear(linear) or linear  # its sizes may not be what the matrix units take
