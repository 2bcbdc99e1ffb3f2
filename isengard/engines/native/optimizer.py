"""Optimizers and learning-rate schedules by name."""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from isengard.domain.training import LrScheduler, Optimizer, TrainingSpec
from isengard.engines.libraries import bitsandbytes


def build_optimizer(parameters: Iterable[torch.nn.Parameter], spec: TrainingSpec) -> torch.optim.Optimizer:
    """Make the optimizer of a spec.

    Raises:
        InvalidSpec: adamw8bit where bitsandbytes is missing.
    """
    if spec.optimizer is Optimizer.PRODIGY:
        from prodigyopt import Prodigy

        prodigy: torch.optim.Optimizer = Prodigy(
            parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, use_bias_correction=True,
            safeguard_warmup=spec.lr_warmup_steps > 0,
        )  # fmt: skip
        return prodigy
    if spec.optimizer is Optimizer.ADAMW_8BIT:
        library = bitsandbytes(wanted_by="optimizer adamw8bit", instead="adamw")
        adamw: torch.optim.Optimizer = library.optim.AdamW8bit(
            parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay
        )
        return adamw
    return torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True)


def build_scheduler(optimizer: torch.optim.Optimizer, spec: TrainingSpec) -> Any:
    """Make the learning-rate schedule: linear warm-up, then constant or a half cosine to zero at the last step."""
    names = {LrScheduler.CONSTANT: "constant_with_warmup", LrScheduler.COSINE: "cosine"}
    return get_scheduler(
        names[spec.lr_scheduler],
        optimizer,
        num_warmup_steps=spec.lr_warmup_steps,
        num_training_steps=spec.steps,
    )
