"""A frozen linear layer that multiplies in 8 bits, forwards and for the gradient of its input.

All scales come from the numbers themselves at each call, one per row: a token with large values costs the others no
precision. They are powers of two, so that a scale adds no rounding of its own to that of the 8 bits, and survives a
cast of the whole model to bfloat16.
"""

from typing import Any, Self

import torch
from torch import Tensor

_E4M3 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_E4M3).max
#: What the matrix units ask of a product's inner and outer size.
MULTIPLE = 16


def supported(device: torch.device) -> bool:
    """Whether the device multiplies in 8 bits: cards from Ada and Hopper on; the CPU, slowly, for tests."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 9))  # pragma: gpu
    return bool(device.type == "cpu")


class Fp8Linear(torch.nn.Linear):  # type: ignore[misc]
    """Takes the place of a frozen `torch.nn.Linear`; adapters go on it as on any linear layer.

    ``weight`` holds float8_e4m3fn numbers as bytes: so a cast of the model to another type, and peft, which gives an
    adapter the floating type of its base, leave them alone. It is never trained. The product is bfloat16, and is
    returned in the type of the input, or of autocast.
    """

    weight: torch.nn.Parameter
    scale: Tensor
    transposed: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,  # noqa: FBT001, FBT002  # torch's own signature
        *,
        keep_transpose: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """``keep_transpose`` holds the weight a second time, as the backward pass reads it, instead of transposing it each time."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        empty = torch.empty(out_features, in_features, dtype=torch.uint8, device=device)
        self.weight = torch.nn.Parameter(empty, requires_grad=False)
        self.register_buffer("scale", torch.empty(out_features, device=device))
        self.register_buffer("transposed", empty.t().contiguous() if keep_transpose else None)
        self.bias = (
            torch.nn.Parameter(
                torch.empty(out_features, dtype=torch.bfloat16, device=device), requires_grad=False
            )
            if bias
            else None
        )

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, *, keep_transpose: bool = False) -> Self | None:
        """Convert a layer, on its device; None when its sizes are no multiples of 16: it stays as it is."""
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            return None
        weight = linear.weight.detach()
        made = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            keep_transpose=keep_transpose,
            device=weight.device,
        )
        numbers, scale = _in_8_bits(weight)
        made.weight.data = numbers.view(torch.uint8)
        made.scale = scale.flatten()
        if made.transposed is not None:
            made.transposed = made.weight.t().contiguous()
        if made.bias is not None:
            made.bias.data = linear.bias.detach().to(torch.bfloat16)
        return made

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        rows = _Product.apply(
            x.reshape(-1, self.in_features), self.weight, self.scale, self.transposed, self.bias
        )
        return rows.view(*x.shape[:-1], self.out_features).to(dtype)


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """``x @ weight.T``, and the gradient of x alone. Keeps nothing of x, nor anything else of its size.

    The gradient too is rounded to e4m3: its narrow range is enough when each row has a scale of its own, and it has a
    bit more precision than e5m2. The scales of the weight's rows are multiplied into the gradient first, since the
    backward product adds over these rows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, transposed: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight, scale, transposed)
        ctx.dtype = x.dtype
        return _multiply(x, weight.t(), scale, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, scale, transposed = ctx.saved_tensors
        if transposed is None:
            transposed = weight.t().contiguous()
        ones = torch.ones(transposed.shape[0], dtype=torch.float32, device=gradient.device)
        product = _multiply(gradient * scale.to(gradient.dtype), transposed.t(), ones, None)
        return product.to(ctx.dtype), None, None, None, None


def _multiply(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``(rows, n) @ (n, m)`` in bfloat16; ``weight`` are bytes, column after column, with one scale per column."""
    numbers, row_scale = _in_8_bits(x)
    return torch._scaled_mm(
        numbers,
        weight.view(_E4M3) if weight.is_contiguous() else weight.t().view(_E4M3).t(),
        scale_a=row_scale,
        scale_b=scale.float()[None],
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        # Sums are kept in fewer bits on Hopper, still many more than the factors have.
        use_fast_accum=True,
    )


def _in_8_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` as e4m3 numbers and their scales, ``(rows, 1)``: the smallest powers of two that let each row fit."""
    largest = x.detach().abs().amax(1, keepdim=True).float().clamp(min=2**-100)  # a row of zeros
    scale = torch.exp2(torch.ceil(torch.log2(largest / _LARGEST)))
    return (x.float() / scale).clamp(-_LARGEST, _LARGEST).to(_E4M3), scale
