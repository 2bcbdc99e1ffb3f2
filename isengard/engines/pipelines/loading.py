"""A diffusers pipeline, loaded part by part and put on its device."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isengard.domain.job import Phase, Progress
from isengard.domain.model import LocalModel, ModelCard
from isengard.domain.performance import GenerationPlan, Offload, Quantization, TextEncoders
from isengard.engines.base import Report
from isengard.engines.device import compute_dtype, plain_out_of_memory
from isengard.engines.libraries import hide_progress_bars
from isengard.engines.loading import OnPart, load_network
from isengard.engines.pipelines.adapters import Adapters
from isengard.engines.pipelines.families import PipelineFamily, family_of
from isengard.engines.pipelines.placement import place
from isengard.engines.pipelines.preview import fit_factors
from isengard.engines.quantize import quantize_network


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
        JobStopped: between two parts; nothing stays in memory.
        OutOfMemory.
    """
    family = family_of(model.card)
    total = len(family.components) + 1
    advice = (
        f"{model.card.title} is too large as it is held here ({plan.quantization}, offload {plan.offload});"
        " choose a smaller model, quantization nf4, or offload blocks"
    )
    hide_progress_bars()
    parts: dict[str, Any] = {}
    with plain_out_of_memory(device, advice=advice):
        for name, kind in family.components.items():
            tell = partial(_tell, report, len(parts), total, name)
            if name == family.denoiser:
                parts[name] = _load_denoiser(kind, model.path / name, plan, device=device, on_part=tell)
            else:
                tell(0, 1)
                dtype = torch.float32 if name in family.float32 else compute_dtype(device)
                parts[name] = _load_part(kind, model.path / name, dtype)
                if name.startswith("text_encoder"):
                    _shrink(parts[name], plan, device=device)
        report(_progress(len(parts), total, "everything to its place"))
        loaded = assembled(model, parts, plan=plan, device=device)
    report(_progress(total, total, "ready"))
    return loaded


def assembled(
    model: LocalModel, parts: Mapping[str, Any], *, plan: GenerationPlan, device: torch.device
) -> LoadedPipeline:
    """Make a pipeline of components by their names, and put each where the plan wants it."""
    family = family_of(model.card)
    pipeline = family.pipeline(**parts, **family.options(model.card))
    pipeline.set_progress_bar_config(disable=True)
    factors = fit_factors(pipeline.vae.to(device))
    place(pipeline, family.denoiser, plan, device=device)
    return LoadedPipeline(
        path=model.path,
        card=model.card,
        plan=plan,
        family=family,
        pipeline=pipeline,
        adapters=Adapters(pipeline, component=family.denoiser, model=model.card.title),
        preview_factors=factors,
    )


def _load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    options = {"dtype": dtype, "use_safetensors": True} if issubclass(kind, torch.nn.Module) else {}
    return kind.from_pretrained(folder, local_files_only=True, **options)


def _load_denoiser(
    kind: Any, folder: Path, plan: GenerationPlan, *, device: torch.device, on_part: OnPart
) -> Any:
    return load_network(
        kind,
        folder,
        dtype=compute_dtype(device),
        device=device,
        quantization=plan.quantization,
        streamed_blocks=None if plan.offload is Offload.BLOCKS else 0,
        on_part=on_part,
    )


def _shrink(text_encoder: torch.nn.Module, plan: GenerationPlan, *, device: torch.device) -> None:
    """Quantize on the device, which is quick there, and leave the device to what is loaded next."""
    if plan.text_encoders is TextEncoders.INT8:
        quantize_network(text_encoder, Quantization.INT8, device=device)
        if plan.offload is not Offload.NONE:
            text_encoder.to("cpu")


def _tell(report: Report, loaded: int, total: int, what: str, done: int, of: int) -> None:
    report(_progress(loaded, total, f"{what}, {100 * done // of} %" if done else what))


def _progress(step: int, total: int, what: str) -> Progress:
    return Progress(phase=Phase.LOADING, step=step, total=total, message=f"loading {what}")
