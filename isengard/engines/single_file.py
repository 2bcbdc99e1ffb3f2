"""Single-file checkpoints, turned once into diffusers' layout; everything else then reads that."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import (
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
)
from diffusers.models import Flux2Transformer2DModel

from isengard.domain.model import Family
from isengard.engines.libraries import hide_progress_bars
from isengard.errors import CheckpointRefused
from isengard.files import disk_full_as_error

TRANSFORMERS = {Family.FLUX: FluxTransformer2DModel, Family.FLUX2: Flux2Transformer2DModel}
SHARD = "5GB"


def convert(file: Path, *, family: Family, parts: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the weights of ``file`` into ``parts``, which holds everything else of the model.

    It needs as much system memory as the file is long in ``dtype``. SDXL is kept in float16, as its authors give it.

    Raises:
        CheckpointRefused: its tensors do not fit the configuration in ``parts``.
        DiskFull.
    """
    hide_progress_bars()
    with _beside(parts) as made, disk_full_as_error(parts), _fitting(file):
        if family is Family.SDXL:
            pipeline = StableDiffusionXLPipeline.from_single_file(
                str(file), config=str(parts), local_files_only=True, dtype=torch.float16
            )
            for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
                getattr(pipeline, name).save_pretrained(made / name, max_shard_size=SHARD)
        else:
            transformer = TRANSFORMERS[family].from_single_file(
                str(file), config=str(parts), subfolder="transformer", local_files_only=True, dtype=dtype
            )
            transformer.save_pretrained(made / "transformer", max_shard_size=SHARD)
        for component in made.iterdir():
            _move_weights(component, parts / component.name)


@contextmanager
def _beside(parts: Path) -> Iterator[Path]:
    made = parts.with_name(f"{parts.name}.partial-converted")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _fitting(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointRefused(f"{file} does not fit this model: {said or type(error).__name__}") from error


def _move_weights(made: Path, component: Path) -> None:
    """The weights last, and their index at the very end: until then the model counts as incomplete."""
    component.mkdir(exist_ok=True)
    for old in component.glob("*.safetensors*"):
        old.unlink()
    for file in sorted(made.glob("*.safetensors*"), key=lambda each: each.suffix == ".json"):
        file.replace(component / file.name)
