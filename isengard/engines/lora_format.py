"""LoRA files: what we write, what we accept, and conversion for other programs.

Two layouts are read. *diffusers*: ``<component>.<module>.lora_A.weight`` and ``.lora_B.weight``, where the component is
the pipeline's ``transformer`` (FLUX.1, FLUX.2) or ``unet`` (SDXL); its older ``.lora.down.weight`` and
``.lora.up.weight`` too. *kohya*, for ComfyUI and A1111-style programs: ``lora_unet_<module>.lora_down.weight``,
``.lora_up.weight`` and ``.alpha``; the output is scaled by alpha / rank. ComfyUI and AI-Toolkit also write
``diffusion_model.<module>``, with the original's dots in the name and either pair of suffixes.
`lora_keys` and `lora_keys_sdxl` say how modules correspond.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from isengard.domain.model import Family, ModelCard
from isengard.domain.training import TrainingSpec
from isengard.engines import lora_keys, lora_keys_sdxl
from isengard.engines.lora_keys import Pairs
from isengard.errors import LoraRefused
from isengard.files import write_bytes

SPEC_KEY = "isengard.spec"
TRANSFORMER = "transformer"
UNET = "unet"
KOHYA = "lora_unet_"
#: Prefixes of the original model's modules; the last is peft's own.
_ORIGINAL = (KOHYA, "diffusion_model.", "base_model.model.")
_NAMES: dict[str, ModuleType] = {TRANSFORMER: lora_keys, UNET: lora_keys_sdxl}
_UNET_KEY = re.compile(rf"({'|'.join(map(re.escape, _ORIGINAL))})(input|middle|output|down|mid|up)_block")
_DIFFUSERS_BLOCK = re.compile(r"(single_)?transformer_blocks\.")

_REFUSED = (
    (r"\.lokr_", "it is a LoKr file; train a plain LoRA instead"),
    (r"\.hada_", "it is a LoHa file; train a plain LoRA instead"),
    (r"dora_scale|lora_magnitude_vector", "it is a DoRA file; train a plain LoRA instead"),
    (r"^(text_encoder|lora_te)", "it also changes a text encoder; export it without that part"),
)
_METADATA_BY_FAMILY = {
    Family.FLUX: {
        "modelspec.architecture": "flux-1-dev/lora",
        "ss_base_model_version": "flux1",
        "ss_network_module": "networks.lora_flux",
    },
    Family.SDXL: {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
    },
}


def save_lora(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    spec: TrainingSpec,
    card: ModelCard,
    step: int,
    image_count: int,
    created_at: float,
) -> None:
    """Write a LoRA in diffusers' layout, whole or not at all. Equal arguments give equal bytes.

    Args:
        path: The ``.safetensors`` file.
        weights: ``<component>.<module>.lora_A.weight`` ``(rank, in)`` and ``.lora_B.weight`` ``(out, rank)``.
            Alpha is folded in: the delta is ``B @ A``.
        spec: The training; it travels in the file.
        card: The base model.
        step: Optimizer steps these weights have seen.
        image_count: Images of the training set.
        created_at: Seconds since the epoch.

    Raises:
        DiskFull.
    """
    metadata = _metadata(spec, card, step=step, image_count=image_count, created_at=created_at)
    write_bytes(path, _packed(weights, metadata))


def read_header(path: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """All tensor names and the metadata, without reading a tensor.

    Raises:
        LoraRefused: there is no such file, or it is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(file.keys()), dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise LoraRefused(
            f"{path.name} is not a readable safetensors file ({error}); pickle files (.pt, .ckpt, .bin) are never"
            " opened, because that can run any program"
        ) from error


def read_spec(path: Path) -> TrainingSpec | None:
    """The training inside one of our files; None in any other. Raises: LoraRefused."""
    _, metadata = read_header(path)
    try:
        return TrainingSpec.model_validate_json(metadata[SPEC_KEY])
    except (KeyError, ValidationError):
        return None


def component_of(path: Path) -> str:
    """The component of a pipeline that the file adapts: `TRANSFORMER` or `UNET`. Raises: LoraRefused."""
    return _layout(path, read_header(path)[0])[1]


def module_count(path: Path) -> int:
    """How many modules of a diffusers model the file adapts. Raises: LoraRefused."""
    return len(read_pairs(path))


def read_lora(path: Path) -> dict[str, Tensor]:
    """The weights in diffusers' layout with alpha folded in, from either layout. Raises: LoraRefused."""
    return weights_of(read_pairs(path), component_of(path))


def weights_of(pairs: Pairs, component: str) -> dict[str, Tensor]:
    """diffusers' layout of a LoRA given in diffusers' modules."""
    return {
        key: tensor
        for module, (down, up) in pairs.items()
        for key, tensor in (
            (f"{component}.{module}.lora_A.weight", down),
            (f"{component}.{module}.lora_B.weight", up),
        )
    }


def read_pairs(path: Path) -> Pairs:
    """A and B of each diffusers module, with alpha folded in, from either layout.

    Raises:
        LoraRefused: with the reason, when the file holds anything but LoRA pairs of FLUX's transformer or SDXL's UNet.
    """
    keys, metadata = read_header(path)
    prefix, component = _layout(path, keys)
    if "lora_adapter_metadata" in metadata:
        _check_alpha(path, metadata["lora_adapter_metadata"], component)
    with safe_open(path, framework="pt") as file:
        content = {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
    down, up = _suffixes(keys)
    pairs = _paired(path, content, down=down, up=up)
    if prefix not in _ORIGINAL or all(map(_DIFFUSERS_BLOCK.match, pairs)):
        return pairs
    flat = {module.replace(".", "_"): pair for module, pair in pairs.items()}
    converted: Pairs = _NAMES[component].from_kohya(flat)
    return converted


def convert(source: Path, target: Path, *, kohya: bool) -> None:
    """Write ``source`` with the keys of kohya and ComfyUI, or with those of diffusers. Metadata are kept.

    Raises:
        LoraRefused: the source holds something that has no counterpart.
    """
    _, metadata = read_header(source)
    metadata.pop("lora_adapter_metadata", None)
    component, pairs = component_of(source), read_pairs(source)
    metadata["modelspec.implementation"] = _NAMES[component].code(pairs) if kohya else "diffusers"
    weights = kohya_weights(pairs, component) if kohya else weights_of(pairs, component)
    write_bytes(target, _packed(weights, metadata))


def kohya_weights(pairs: Pairs, component: str) -> dict[str, Tensor]:
    """kohya's layout of a LoRA given in diffusers' modules; alpha equals the rank. Raises: LoraRefused."""
    return {
        f"{KOHYA}{module}.{name}": tensor
        for module, (down, up) in _NAMES[component].to_kohya(pairs).items()
        for name, tensor in (
            ("lora_down.weight", down),
            ("lora_up.weight", up),
            ("alpha", torch.tensor(float(down.shape[0]), dtype=down.dtype)),
        )
    }


def _layout(path: Path, keys: tuple[str, ...]) -> tuple[str, str]:
    """The one prefix of all keys, and the component they adapt. Raises: LoraRefused."""
    if not keys:
        raise LoraRefused(f"{path.name} holds no weights")
    for key in keys:
        for pattern, reason in _REFUSED:
            if re.search(pattern, key):
                raise LoraRefused(f"{path.name} cannot be used: {reason} (key {key!r})")
    prefixes = {f"{component}.": component for component in _NAMES} | dict.fromkeys(
        _ORIGINAL, UNET if any(map(_UNET_KEY.match, keys)) else TRANSFORMER
    )
    for prefix, component in prefixes.items():
        if all(key.startswith(prefix) for key in keys):
            return prefix, component
    stranger = next((key for key in keys if not key.startswith(tuple(prefixes))), keys[0])
    raise LoraRefused(
        f"{path.name} cannot be used: its keys must all begin with {' or all with '.join(map(repr, prefixes))},"
        f" and {stranger!r} does not fit the others"
    )


def _suffixes(keys: tuple[str, ...]) -> tuple[str, str]:
    """What A and B are called in these keys."""
    for down, up in (("lora.down", "lora.up"), ("lora_down", "lora_up")):
        if any(key.endswith(f".{down}.weight") for key in keys):
            return down, up
    return "lora_A", "lora_B"


def _check_alpha(path: Path, text: str, component: str) -> None:
    """Refuse scales we do not fold in: peft's settings that diffusers writes beside the weights."""
    settings = json.loads(text)
    ranks = {key.removeprefix(f"{component}."): value for key, value in settings.items()}
    if ranks.get("lora_alpha") != ranks.get("r") or ranks.get("alpha_pattern"):
        raise LoraRefused(
            f"{path.name} cannot be used: its lora_alpha ({ranks.get('lora_alpha')}) differs from its rank"
            f" ({ranks.get('r')}) in lora_adapter_metadata; save it with alpha equal to the rank"
        )


def _paired(path: Path, content: Mapping[str, Tensor], *, down: str, up: str) -> Pairs:
    """Match A with B and fold alpha into B. Raises: LoraRefused."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in content.items():
        match = re.fullmatch(rf"(.+?)\.({re.escape(down)}\.weight|{re.escape(up)}\.weight|alpha)", key)
        if match is None:
            raise LoraRefused(f"{path.name} cannot be used: key {key!r} is no part of a LoRA")
        found.setdefault(match[1], {})[match[2].removesuffix(".weight")] = tensor
    pairs: Pairs = {}
    for module, parts in found.items():
        missing = [name for name in (down, up) if name not in parts]
        if missing:
            raise LoraRefused(f"{path.name} is incomplete: {module}.{missing[0]} is missing")
        if parts[down].ndim == 4:
            raise LoraRefused(
                f"{path.name} cannot be used: it also changes convolutions ({module}), as LoCon files and those of"
                " Stable Diffusion 1 and 2 do; choose a plain LoRA made for SDXL"
            )
        if parts[down].ndim != 2 or parts[up].ndim != 2 or parts[down].shape[0] != parts[up].shape[1]:
            shapes = f"{tuple(parts[down].shape)} and {tuple(parts[up].shape)}"
            raise LoraRefused(
                f"{path.name} is broken: {module} has shapes {shapes}, which do not fit together"
            )
        rank = parts[down].shape[0]
        scale = float(parts["alpha"]) / rank if "alpha" in parts else 1.0
        pairs[module] = (parts[down], parts[up] if scale == 1.0 else parts[up] * scale)
    return pairs


def _metadata(
    spec: TrainingSpec, card: ModelCard, *, step: int, image_count: int, created_at: float
) -> dict[str, str]:
    created = datetime.fromtimestamp(created_at, UTC).isoformat(timespec="seconds")
    resolution = max(spec.resolutions)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{card.name}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{spec.character} ({spec.trigger} {spec.class_word})",
        "modelspec.date": created,
        "modelspec.trigger_phrase": spec.trigger,
        "modelspec.usage_hint": f"put {spec.trigger} {spec.class_word} into the prompt",
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.license": card.licence,
        "ss_network_dim": str(spec.rank),
        "ss_network_alpha": str(spec.rank),
        "ss_sd_model_name": card.name,
        "ss_output_name": spec.character,
        "ss_learning_rate": str(spec.learning_rate),
        "ss_optimizer": str(spec.optimizer),
        "ss_lr_scheduler": str(spec.lr_scheduler),
        "ss_batch_size_per_device": str(spec.batch_size),
        "ss_gradient_accumulation_steps": str(spec.gradient_accumulation_steps),
        "ss_mixed_precision": str(spec.precision),
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_num_train_images": str(image_count),
        "ss_steps": str(step),
        "ss_max_train_steps": str(spec.steps),
        "ss_seed": str(spec.seed),
        "ss_tag_frequency": json.dumps({spec.character: {spec.trigger: image_count}}),
        SPEC_KEY: spec.model_dump_json(),
    } | _METADATA_BY_FAMILY.get(card.family, {})


def _packed(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata sorted (the library's order changes from run to run) and its hash."""
    content = save({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()})
    size = int.from_bytes(content[:8], "little")
    tensors = content[8 + size :]
    digest = hashlib.sha256(tensors).hexdigest()
    hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    described = {"__metadata__": dict(sorted({**metadata, **hashes}.items()))} | json.loads(
        content[8 : 8 + size]
    )
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + tensors
