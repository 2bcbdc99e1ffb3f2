"""Storing the frozen base model in 8 bits, through torchao."""

from typing import Any

from isengard.domain.performance import Quantization


def quantization_config(quantization: Quantization) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that quantize the weights; empty for none."""
    if quantization is Quantization.NONE:
        return {}
    from diffusers import TorchAoConfig  # torchao takes a second to import
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    kinds = {Quantization.INT8: Int8WeightOnlyConfig, Quantization.FP8: Float8WeightOnlyConfig}
    return {"quantization_config": TorchAoConfig(kinds[quantization]())}
