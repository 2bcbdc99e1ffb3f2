"""The trainable adapter on the frozen network, through peft."""

import re
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from isengard.errors import InvalidSpec


class FusedLoraLinear(LoraLinear):  # type: ignore[misc]
    """peft's LoRA layer with scale and sum inside the second product: no pass over the output of their own.

    Training speed depends on it (``python -m benchmarks.train_step``). The base layer may be quantized: it is only
    called. The products are in the type of the base's output, so that the activations kept for the gradient are its
    input and ``rank`` numbers per token, and the layers that share an input share what is kept. One adapter, no
    dropout, nothing merged.
    """

    def forward(self, x: Tensor) -> Tensor:
        base: Tensor = self.base_layer(x)
        (name,) = self.lora_A
        down, up = self.lora_A[name].weight.to(base.dtype), self.lora_B[name].weight.to(base.dtype)
        hidden = torch.nn.functional.linear(x.to(base.dtype).flatten(0, -2), down)
        return torch.addmm(base.flatten(0, -2), hidden, up.t(), alpha=self.scaling[name]).view(base.shape)


def add_lora(denoiser: Any, *, pattern: str, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
    """Freeze the network, add a LoRA and return its parameters, float32, in a fixed order.

    Raises:
        InvalidSpec: no linear layer has a name that matches ``pattern`` as a whole.
    """
    chosen = chosen_layers(linear_layers(denoiser), pattern)
    denoiser.requires_grad_(False)  # torch's own signature
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen)
        config._register_custom_module({torch.nn.Linear: FusedLoraLinear})
        denoiser.add_adapter(config)
    parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def linear_layers(denoiser: torch.nn.Module) -> list[str]:
    """Return the names of all linear layers."""
    return [name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)]


def chosen_layers(linear: list[str], pattern: str) -> list[str]:
    """Return those whose whole name matches ``pattern``. Raises: InvalidSpec: none does."""
    chosen = [name for name in linear if re.fullmatch(pattern, name)]
    if not chosen:
        some = ", ".join(linear[:: max(1, len(linear) // 4)][:4])
        raise InvalidSpec(f"targets: no linear layer matches {pattern!r}; there are, among others, {some}")
    return chosen


def adapter_weights(denoiser: Any) -> dict[str, Tensor]:
    """Return the adapter's tensors by peft's names, detached copies on CPU."""
    weights: dict[str, Tensor] = get_peft_model_state_dict(denoiser)
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def load_adapter_weights(denoiser: Any, weights: dict[str, Tensor]) -> None:
    """Put back what `adapter_weights` gave."""
    set_peft_model_state_dict(denoiser, weights)


def exported(weights: dict[str, Tensor], *, scale: float, key: Callable[[str], str]) -> dict[str, Tensor]:
    """Rename to a diffusers-format file and fold ``scale`` (alpha / rank) into B, so that alpha equals rank there.

    Args:
        weights: From `adapter_weights`.
        scale: What the adapter's output was multiplied by.
        key: Turns a module name into its key in the file.
    """
    result = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".lora_")
        result[f"{key(module)}.lora_{kind}"] = tensor * scale if kind.startswith("B") else tensor
    return result
