"""Chooses how a pipeline is held for a request: the first of an ordered list of ways that fits."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.generation import ImageSpec
from isengard.domain.memory import (
    ENCODERS,
    NOTHING_MEASURED,
    WORDS,
    Corrections,
    Cost,
    Kind,
    Machine,
    Task,
    gb,
    generation_key,
    generation_system_bytes,
)
from isengard.domain.model import ModelCard, ModelParts
from isengard.domain.performance import GenerationPlan, Offload, Quantization, TextEncoders

#: Images of one pass.
MAX_BATCH = 4
OFFLOADS = {
    Offload.NONE: "",
    Offload.MODEL: "one part on the device at a time",
    Offload.BLOCKS: "one block on the device at a time",
}


class ImagePlan(Frozen):
    """How a request is made, or the nearest way that does not fit."""

    plan: GenerationPlan
    fits: bool
    words: str = ""
    reasons: tuple[str, ...] = ()
    room_bytes: int = 0
    measured: bool = Field(False, description="the peak was measured here with these settings")

    @property
    def peak_bytes(self) -> int:
        return self.plan.expected_peak_bytes


def plan_generation(
    card: ModelCard, spec: ImageSpec, machine: Machine, *, corrections: Corrections = NOTHING_MEASURED
) -> ImagePlan:
    """How to hold a model for a request: ``spec.performance`` is kept, the rest planned around it."""
    chosen = {name: value for name, value in spec.performance if value is not None}
    parts = card.parts
    if parts is None:
        plan = GenerationPlan(**chosen)
        return ImagePlan(plan=plan, fits=True, words=_image_words(plan))
    cost, last = Cost(card, parts, machine, corrections), GenerationPlan(**chosen)
    for way in _image_ways(parts, spec, machine, chosen):
        last = way.model_copy(update={"expected_peak_bytes": cost.generation(spec, way)})
        if last.expected_peak_bytes <= machine.room() and _waits(parts, way, machine):
            return _image_plan(card, spec, last, cost, corrections)
    need = cost.generation(spec, last)
    said = [
        f"{card.title} at {spec.width} x {spec.height} does not fit: the smallest way takes {gb(need)},"
        f" and {machine.name} has {gb(machine.room())} for it."
        if need > machine.room()
        else f"{card.title} does not fit: {gb(generation_system_bytes(parts, last))} of system memory are needed,"
        f" and {gb(machine.system_room())} are free."
    ]
    if chosen:
        said.append(
            f"Your choices were kept: {', '.join(f'{name} {value}' for name, value in chosen.items())}."
        )
    return ImagePlan(
        plan=last, fits=False, words=_image_words(last), reasons=tuple(said), room_bytes=machine.room()
    )


def _waits(parts: ModelParts, plan: GenerationPlan, machine: Machine) -> bool:
    return machine.kind is not Kind.CUDA or generation_system_bytes(parts, plan) <= machine.system_room()


def _image_ways(
    parts: ModelParts, spec: ImageSpec, machine: Machine, chosen: Mapping[str, Any]
) -> Iterator[GenerationPlan]:
    for quantization, offload, place in _image_ladder(parts, machine):
        for tiling in (False, True):
            for batch in range(min(spec.count, MAX_BATCH) if offload is Offload.NONE else 1, 0, -1):
                way = {
                    "quantization": quantization, "offload": offload, "text_encoders": place,
                    "vae_tiling": tiling, "batch_size": batch,
                }  # fmt: skip
                if tiling and batch > 1:
                    continue
                yield GenerationPlan(**{**way, **chosen})


def _image_ladder(
    parts: ModelParts, machine: Machine
) -> Iterator[tuple[Quantization, Offload, TextEncoders]]:
    """Ways to hold the parts, best first: whole weights, then fewer bits, then block after block."""
    yield Quantization.NONE, Offload.NONE, TextEncoders.DEVICE
    if machine.kind is not Kind.CUDA:
        return
    eight = machine.eight_bits
    for quantization in (Quantization.NONE, eight, Quantization.NF4):
        for offload in (Offload.NONE, Offload.MODEL):
            for place in (TextEncoders.DEVICE, TextEncoders.INT8):
                yield quantization, offload, place
    yield Quantization.NF4, Offload.MODEL, TextEncoders.CPU
    if parts.blocks:
        yield Quantization.NF4, Offload.BLOCKS, TextEncoders.CPU


def _image_plan(
    card: ModelCard, spec: ImageSpec, plan: GenerationPlan, cost: Cost, corrections: Corrections
) -> ImagePlan:
    machine, reasons = cost.machine, []
    whole = cost.generation(spec, GenerationPlan())
    if whole > machine.room():
        reasons.append(
            f"Whole on the device it would take {gb(whole)} of the {gb(machine.room())} there are."
        )
    if machine.kind is Kind.CPU:
        reasons.append("There is no GPU: an image takes minutes.")
    key = {"task": Task.GENERATION, "model": card.name, "device": machine.name}
    return ImagePlan(
        plan=plan,
        fits=True,
        words=_image_words(plan),
        reasons=tuple(reasons),
        room_bytes=machine.room(),
        measured=corrections.knows(**key, settings=generation_key(spec, plan)),  # type: ignore[arg-type]  # each by its name
    )


def _image_words(plan: GenerationPlan) -> str:
    said = [
        WORDS[plan.quantization],
        OFFLOADS[plan.offload],
        ENCODERS[plan.text_encoders],
        "decoded in tiles" if plan.vae_tiling else "",
        f"{plan.batch_size} images at once" if plan.batch_size > 1 else "",
    ]
    return ", ".join(part for part in said if part)
