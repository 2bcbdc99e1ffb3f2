"""Single-file checkpoints, turned once into diffusers' layout; everything else then reads that."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from isengard.domain.model import Family
from isengard.engines.libraries import hide_progress_bars
from isengard.engines.original_layout import SWAPPED, diffusers_names
from isengard.errors import CheckpointRefused
from isengard.files import disk_full_as_error

TRANSFORMERS = {Family.FLUX: FluxTransformer2DModel, Family.FLUX2: Flux2Transformer2DModel}
WEIGHTS = "diffusion_pytorch_model"
SHARD_BYTES = 5_000_000_000
#: A quantized checkpoint keeps the sizes of its numbers in tensors of such names.
SCALES = ("scaled_fp8", "scale_weight", "weight_scale", "scale_input", "absmax")


def convert(
    file: Path, *, family: Family, parts: Path, dtype: torch.dtype = torch.bfloat16, shard: int = SHARD_BYTES
) -> None:
    """Write the weights of ``file`` into ``parts``, which holds everything else of the model.

    FLUX is written tensor by tensor and needs the memory of one shard; SDXL is small and is read whole. It is kept in
    float16, as its authors give it.

    Raises:
        CheckpointRefused: its tensors do not fit the configuration in ``parts``.
        DiskFull.
    """
    with _beside(parts) as made, disk_full_as_error(parts):
        if family is Family.SDXL:
            _write_sdxl(file, parts, made)
        else:
            (made / "transformer").mkdir()
            _write_transformer(file, family, parts, made / "transformer", dtype, shard)
        for component in made.iterdir():
            _move_weights(component, parts / component.name)


def _write_transformer(
    file: Path, family: Family, parts: Path, made: Path, dtype: torch.dtype, shard: int
) -> None:
    kind = TRANSFORMERS[family]
    with torch.device("meta"):
        model = kind.from_config(kind.load_config(parts / "transformer"))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as checkpoint:
        for name in checkpoint.keys():  # noqa: SIM118  # it is no dictionary
            if name.endswith(SCALES):
                raise CheckpointRefused(
                    f"{file} is quantized ({name}); use the model in bfloat16 or plain float8"
                )
            if targets := diffusers_names(name, family):
                held |= _shared_out(file, name, checkpoint.get_tensor(name).to(dtype), targets, shapes)
            if sum(tensor.nbytes for tensor in held.values()) >= shard:
                shards.append(_save(held, made, len(shards)))
                held = {}
    if held:
        shards.append(_save(held, made, len(shards)))
    if lacking := shapes.keys() - {name for names in shards for name in names}:
        raise CheckpointRefused(f"{file} lacks {len(lacking)} tensors of this model, such as {min(lacking)}")
    _name_shards(made, shards)


def _shared_out(
    file: Path, name: str, tensor: Tensor, targets: tuple[str, ...], shapes: dict[str, torch.Size]
) -> dict[str, Tensor]:
    """The rows of an original tensor under diffusers' names."""
    if unknown := [target for target in targets if target not in shapes]:
        raise CheckpointRefused(
            f"{file} is of another size or kind than this model, which has no {unknown[0]}"
        )
    rows = [shapes[target][0] for target in targets]
    if (sum(rows), *shapes[targets[0]][1:]) != tuple(tensor.shape):
        raise CheckpointRefused(
            f"{file} is of another size than this model: {name} has the shape {tuple(tensor.shape)}"
        )
    if targets[0].startswith(SWAPPED):
        tensor = torch.cat(tensor.chunk(2)[::-1])
    return {target: part.contiguous() for target, part in zip(targets, tensor.split(rows), strict=True)}


def _save(tensors: dict[str, Tensor], made: Path, number: int) -> list[str]:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, made / f"{number}.safetensors")
    return list(tensors)


def _name_shards(made: Path, shards: list[list[str]]) -> None:
    """Names as diffusers gives them, with an index when there are several."""
    if len(shards) == 1:
        (made / "0.safetensors").rename(made / f"{WEIGHTS}.safetensors")
        return
    names = [f"{WEIGHTS}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for number, name in enumerate(names):
        (made / f"{number}.safetensors").rename(made / name)
    places = {tensor: name for name, held in zip(names, shards, strict=True) for tensor in held}
    index = {"metadata": {}, "weight_map": places}
    (made / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _write_sdxl(file: Path, parts: Path, made: Path) -> None:
    hide_progress_bars()
    named = made / "checkpoint.safetensors"  # by the name diffusers decides to read it as a pickle or not
    named.symlink_to(file)
    try:
        pipeline = StableDiffusionXLPipeline.from_single_file(
            str(named), config=str(parts), local_files_only=True, dtype=torch.float16
        )
    except (ValueError, KeyError, RuntimeError, SingleFileComponentError) as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointRefused(f"{file} does not fit this model: {said or type(error).__name__}") from error
    finally:
        named.unlink()
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        getattr(pipeline, name).save_pretrained(made / name)


@contextmanager
def _beside(parts: Path) -> Iterator[Path]:
    made = parts.with_name(f"{parts.name}.partial-converted")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _move_weights(made: Path, component: Path) -> None:
    """The index at the very end: until then the model counts as incomplete."""
    for old in component.glob("*.safetensors*"):
        old.unlink()
    for file in sorted(made.glob("*.safetensors*"), key=lambda each: each.suffix == ".json"):
        file.replace(component / file.name)
