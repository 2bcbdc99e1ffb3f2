"""This process's part in a training that several devices share: every one holds the same network and adapter."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Part ``rank`` of ``count``. With more than one, torch's default process group connects them."""

    rank: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """The part of a batch of ``size`` examples."""
        part = size // self.count
        return slice(self.rank * part, (self.rank + 1) * part)

    def average(self, parameters: Sequence[torch.nn.Parameter], loss: Tensor) -> Tensor:
        """Replace the gradients by their mean over all devices, in one exchange; return the mean of the losses."""
        if self.count == 1:
            return loss
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.detach().float()[None]])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        *means, mean_loss = flat.split([*(gradient.numel() for gradient in gradients), 1])
        torch._foreach_copy_(gradients, [mean.view_as(gradient) for mean, gradient in zip(means, gradients, strict=True)])  # fmt: skip
        return mean_loss[0]

    def meet(self) -> None:
        """Wait until every device has come this far."""
        if self.count > 1:
            torch.distributed.barrier()
