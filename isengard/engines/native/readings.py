"""Loss and gradient norm of each step, read one step late: the device never waits for Python."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isengard.errors import TrainingFailed


@dataclass(frozen=True)
class _Reading:
    row: Mapping[str, Any]
    values: Tensor  # loss and gradient norm, on their way to the CPU
    arrived: Any  # a CUDA event, or None


class Readings:
    """Rows of metrics whose figures are still being computed.

    An update with a loss that is not finite has already spoilt the weights when its figures arrive. So whoever saves,
    validates or samples takes all rows first, which raises then.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Reading] = deque()

    def note(self, *, step: int, lr: float, loss: Tensor, grad_norm: Tensor) -> None:
        """Start to fetch the figures of a step; nothing waits for them."""
        values = torch.stack([loss.detach().float(), grad_norm.detach().float()])
        arrived = None
        if values.is_cuda:  # pragma: gpu
            values = torch.empty(2, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append(_Reading({"step": step, "lr": lr}, values, arrived))

    def take(self, *, lag: int) -> list[dict[str, Any]]:
        """Return the rows of all steps but the newest ``lag``, each once; waits for these steps only.

        Raises:
            TrainingFailed: a loss or a gradient is not finite.
        """
        rows = []
        while len(self._waiting) > lag:
            reading = self._waiting.popleft()
            if reading.arrived is not None:
                reading.arrived.synchronize()  # pragma: gpu
            loss, norm = reading.values.tolist()
            rows.append(
                {"step": reading.row["step"], "loss": loss, "lr": reading.row["lr"], "grad_norm": norm}
            )
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingFailed(
                    f"the loss is no longer a number at step {reading.row['step']} (loss {loss}, gradient norm {norm}, "
                    f"learning rate {reading.row['lr']:g}). The last checkpoint is good: resume from it with a lower "
                    "learning_rate"
                )
        return rows
