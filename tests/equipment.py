"""What a worker without engines works with."""

from collections.abc import Callable
from typing import Any

from isengard.domain.job import JobKind
from isengard.domain.worker import WorkerState
from isengard.equipment import Equipment


def trains_with(handler: Callable[..., dict[str, Any]]) -> Equipment:
    """Its trainings are the ``handler``."""
    return Equipment(
        handlers={JobKind.TRAIN_LORA: handler},
        describe=lambda name: WorkerState(name=name),
        check_files=lambda: None,
    )
