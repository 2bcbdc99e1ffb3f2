"""A diffusers pipeline, loaded part by part and put on its device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isengard.domain.job import Phase, Progress
from isengard.domain.model import LocalModel, ModelCard
from isengard.domain.performance import GenerationPlan, Offload
from isengard.engines.base import Report
from isengard.engines.device import compute_dtype, plain_out_of_memory
from isengard.engines.libraries import hide_progress_bars
from isengard.engines.pipelines.adapters import Adapters
from isengard.engines.pipelines.families import PipelineFamily, family_of
from isengard.engines.pipelines.preview import fit_factors


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline ready to make images, and what goes with it."""

    path: Path
    card: ModelCard
    plan: GenerationPlan
    family: PipelineFamily
    pipeline: Any
    adapters: Adapters
    preview_factors: Tensor

    @property
    def denoiser(self) -> Any:
        """The part that runs once for each step."""
        return getattr(self.pipeline, self.family.denoiser)


def load_pipeline(
    model: LocalModel, device: torch.device, *, plan: GenerationPlan, report: Report
) -> LoadedPipeline:
    """Load a base model and put its parts where the plan wants them.

    Raises:
        InvalidSpec: its family cannot make images yet.
        JobStopped: between two parts; nothing stays in memory.
        OutOfMemory.
    """
    family = family_of(model.card)
    total = len(family.components) + 1
    advice = f"{model.card.title} needs {model.card.generate_memory_gb:g} GB; choose a smaller model"
    hide_progress_bars()
    parts: dict[str, Any] = {}
    with plain_out_of_memory(device, advice=advice):
        for name, kind in family.components.items():
            report(_progress(len(parts), total, name))
            dtype = torch.float32 if name in family.float32 else compute_dtype(device)
            parts[name] = _load_part(kind, model.path, name, dtype)
        report(_progress(len(parts), total, "everything to its place"))
        pipeline = family.pipeline(**parts)
        pipeline.set_progress_bar_config(disable=True)
        _place(pipeline, device, plan)
        factors = fit_factors(pipeline.vae)
    report(_progress(total, total, "ready"))
    return LoadedPipeline(
        path=model.path,
        card=model.card,
        plan=plan,
        family=family,
        pipeline=pipeline,
        adapters=Adapters(pipeline, component=family.denoiser, model=model.card.title),
        preview_factors=factors,
    )


def _load_part(kind: Any, folder: Path, name: str, dtype: torch.dtype) -> Any:
    options = {"dtype": dtype} if issubclass(kind, torch.nn.Module) else {}
    return kind.from_pretrained(folder / name, local_files_only=True, **options)


def _place(pipeline: Any, device: torch.device, plan: GenerationPlan) -> None:
    if plan.offload is Offload.MODEL:  # pragma: gpu
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)


def _progress(step: int, total: int, what: str) -> Progress:
    return Progress(phase=Phase.LOADING, step=step, total=total, message=f"loading {what}")
