"""The ``parameters`` text that A1111-style programs keep in a PNG: ours for them, and theirs for us.

Three parts: the prompt, a line ``Negative prompt: ...``, and a last line ``Steps: 20, Sampler: Euler, ...``.
"""

import re
from typing import Any

from isengard.domain.base import validated
from isengard.domain.generation import FoundSettings, ImageRecord, ImageSpec
from isengard.domain.performance import StepCache
from isengard.errors import InvalidSpec

ORIGIN = "parameters"
#: Characters of the last line that are looked at; every repetition below is bounded, so no text takes long.
_MAX_PAIRS = 20_000
_PAIR = re.compile(r'([A-Z][\w /-]{0,40}):\s?("(?:[^"\\]|\\.){0,4000}"|[^,]*)(?:,|$)')
_LORA = re.compile(r"<lora:[^<>]{1,200}>")
_LAST_LINE = re.compile(r"^Steps: \d+", re.MULTILINE)
_FIELDS = {
    "Steps": "num_inference_steps",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Step cache": "cache",
}


def write_parameters(record: ImageRecord, *, version: str) -> str:
    """Describe an image as A1111-style programs do."""
    spec = record.spec
    tags = "".join(f" <lora:{lora.name}:{lora.strength:g}>" for lora in record.loras)
    pairs = {
        "Steps": spec.num_inference_steps,
        "Sampler": "Euler",
        "CFG scale": f"{spec.guidance_scale:g}",
        "Seed": record.seed,
        "Size": f"{spec.width}x{spec.height}",
        "Model": spec.base_model,
    }
    if spec.cache is not StepCache.NONE:
        pairs["Step cache"] = spec.cache
    hashes = ", ".join(f"{lora.name}: {lora.hash}" for lora in record.loras if lora.hash)
    if hashes:
        pairs["Lora hashes"] = f'"{hashes}"'
    pairs["Version"] = f"isengard {version}"
    return f"{record.prompt}{tags}\n" + ", ".join(f"{key}: {value}" for key, value in pairs.items())


def read_parameters(text: str) -> FoundSettings:
    """Map what has a field in `ImageSpec`; name the rest. A value out of range counts as the rest."""
    lines = list(_LAST_LINE.finditer(text))
    words, numbers = (text[: lines[-1].start()], text[lines[-1].start() :]) if lines else (text, "")
    prompt, negative, unwanted = words.partition("Negative prompt:")
    unmapped = [f"LoRA {tag}" for tag in _LORA.findall(prompt)]
    if negative:
        unmapped.append(f"Negative prompt: {unwanted.strip()}")
    candidates: list[tuple[str, dict[str, Any]]] = [("prompt", {"prompt": _LORA.sub("", prompt).strip()})]
    for key, value in _PAIR.findall(numbers[:_MAX_PAIRS]):
        size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value.strip())
        if key in _FIELDS:
            candidates.append((f"{key}: {value}", {_FIELDS[key]: value.strip()}))
        elif key == "Size" and size:
            candidates.append((f"{key}: {value}", {"width": size[1], "height": size[2]}))
        else:
            unmapped.append(f"{key}: {value}")
    settings: dict[str, Any] = {}
    for name, values in candidates:
        try:
            spec = validated(ImageSpec, {"base_model": "any", "prompt": "any", **values})
        except InvalidSpec as error:
            unmapped.append(f"{name} ({error})")
        else:
            settings |= {field: getattr(spec, field) for field in values}
    return FoundSettings(origin=ORIGIN, settings=settings, unmapped=tuple(unmapped))
