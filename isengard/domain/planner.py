"""Chooses how a model is held and computed on a machine: the first of an ordered list of ways that fits.

Every way has one cost, whatever the machine: so more memory never gives a later way.
"""

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import Field

from isengard.domain.base import Frozen
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
    training_key,
    training_system_bytes,
)
from isengard.domain.model import Family, ModelCard, ModelParts
from isengard.domain.performance import Quantization, TextEncoders
from isengard.domain.training import AI_TOOLKIT, TrainingSpec

#: Fields of a training that the planner fills where nobody else did.
PLANNED = frozenset(
    {
        "quantization", "gradient_checkpointing", "streamed_blocks", "text_encoders",
        "batch_size", "gradient_accumulation_steps", "resolutions",
    }
)  # fmt: skip
#: Those that AI-Toolkit has a counterpart for.
PLANNED_AI_TOOLKIT = frozenset({"quantization", "gradient_checkpointing", "resolutions"})
#: With 8 bits so many blocks may be streamed; beyond that 4 bits are the better way.
STREAMED_IN_8_BITS = 1 / 3
#: A larger model would take minutes for a step on a CPU.
LARGEST_ON_CPU = 10**9


class TrainingPlan(Frozen):
    """A training made to fit, or the nearest that does not."""

    spec: TrainingSpec
    fits: bool
    words: str = Field(description="the plan in a line")
    reasons: tuple[str, ...] = Field(
        (), description="one sentence each; the first says what is wrong, if anything"
    )
    expected_peak_bytes: int = Field(0, description="on the device, of tensors; 0 when nothing is known")
    expected_system_bytes: int = 0
    room_bytes: int = Field(0, description="of the device, for tensors")
    possible: bool = Field(True, description="it may be tried: the count says no, the device is large enough")
    measured: bool = Field(False, description="the peak was measured here with these settings")

    @property
    def peak_bytes(self) -> int:
        return self.expected_peak_bytes


def plan_training(
    card: ModelCard,
    wishes: TrainingSpec,
    machine: Machine,
    *,
    fixed: Collection[str] = (),
    corrections: Corrections = NOTHING_MEASURED,
    below: int | None = None,
) -> TrainingPlan:
    """Fill the fields in `PLANNED` that are not ``fixed``, so that the training fits into the machine.

    Args:
        card: The model.
        wishes: The whole training as the preset and the user want it.
        machine: Where it runs.
        fixed: Fields the user chose; they stay.
        corrections: Peaks measured here.
        below: Only ways that take less than so many bytes: after such a peak did not fit.
    """
    parts = card.parts
    if parts is None:
        return TrainingPlan(spec=wishes, fits=True, words=_training_words(wishes, card))
    cost = Cost(card, parts, machine, corrections)
    if machine.kind is Kind.CPU and parts.denoiser > LARGEST_ON_CPU:
        return TrainingPlan(
            spec=wishes,
            fits=False,
            words=_training_words(wishes, card),
            reasons=(f"{card.title} needs a GPU to be trained: on a CPU a step would take minutes.",),
            possible=False,
            room_bytes=machine.room(),
        )
    last = wishes
    room = machine.room() if below is None else min(machine.room(), below)
    for spec in _training_ways(wishes, card, parts, machine, fixed):
        last = spec
        if cost.training(spec) <= room and _system_fits(parts, spec, machine):
            return _training_plan(card, parts, wishes, spec, cost, corrections)
    return TrainingPlan(
        spec=last,
        fits=False,
        words=_training_words(last, card),
        reasons=tuple(_why_not(card, parts, wishes, last, cost, fixed)),
        expected_peak_bytes=cost.training(last),
        expected_system_bytes=training_system_bytes(parts, last),
        room_bytes=machine.room(),
        possible=bool(set(fixed) & PLANNED) and cost.training(last) <= machine.total_bytes,
    )


def _system_fits(parts: ModelParts, spec: TrainingSpec, machine: Machine) -> bool:
    return machine.kind is not Kind.CUDA or training_system_bytes(parts, spec) <= machine.system_room()


def _training_ways(
    wishes: TrainingSpec, card: ModelCard, parts: ModelParts, machine: Machine, fixed: Collection[str]
) -> Iterator[TrainingSpec]:
    """Every way to run it, best first."""
    free = (PLANNED_AI_TOOLKIT if wishes.engine == AI_TOOLKIT else PLANNED) - set(fixed)
    for sides in _resolutions(wishes, free):
        for held in _held(wishes, card, parts, machine, free):
            for batch in _batches(wishes, free):
                for place in _places(wishes, machine, free):
                    yield wishes.model_copy(
                        update={"resolutions": sides, **batch, **held, "text_encoders": place}
                    )


def _resolutions(wishes: TrainingSpec, free: Collection[str]) -> list[tuple[int, ...]]:
    if "resolutions" not in free:
        return [wishes.resolutions]
    ascending = sorted(wishes.resolutions)
    return [wishes.resolutions, *(tuple(ascending[:count]) for count in range(len(ascending) - 1, 0, -1))]


def _batches(wishes: TrainingSpec, free: Collection[str]) -> Iterator[dict[str, int]]:
    """Halves of the batch, with as many passes more, so that a step learns from as many images."""
    batch, passes = wishes.batch_size, wishes.gradient_accumulation_steps
    yield {"batch_size": batch, "gradient_accumulation_steps": passes}
    while {"batch_size", "gradient_accumulation_steps"} <= set(free) and batch > 1 and passes <= 32:
        batch, passes = batch // 2, passes * 2
        yield {"batch_size": batch, "gradient_accumulation_steps": passes}


def _held(
    wishes: TrainingSpec, card: ModelCard, parts: ModelParts, machine: Machine, free: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Weights, checkpointing and streaming together. A streamed block has to be computed twice anyway."""
    eight = [Quantization.INT8] if _can_hold_8_bits(card, wishes, machine) else []
    streams = [] if "streamed_blocks" not in free else list(range(1, parts.blocks + 1))
    some = streams[: int(parts.blocks * STREAMED_IN_8_BITS)]
    ladder: list[tuple[Quantization, bool, int]] = [
        (Quantization.NONE, False, 0),
        (Quantization.NONE, True, 0),
        *((one, True, count) for one in eight for count in (0, *some)),
    ]
    if machine.kind is Kind.CUDA and wishes.engine != AI_TOOLKIT:
        ladder += [(Quantization.NF4, True, count) for count in (0, *streams)]
    if "quantization" not in free:
        ladder = [
            (wishes.quantization, on, count)
            for on, count in ((False, 0), (True, 0), *((True, count) for count in streams))
        ]
    for quantization, checkpointing, count in ladder:
        made = {
            "quantization": quantization,
            "gradient_checkpointing": checkpointing,
            "streamed_blocks": count if "streamed_blocks" in free else wishes.streamed_blocks,
        }
        if "gradient_checkpointing" not in free:
            made["gradient_checkpointing"] = wishes.gradient_checkpointing
        if made["streamed_blocks"] and not made["gradient_checkpointing"]:
            continue
        yield made


def _can_hold_8_bits(card: ModelCard, wishes: TrainingSpec, machine: Machine) -> bool:
    """Products in 8 bits (fp8_matmul) round the gradients too: they are the user's choice, never the planner's."""
    if wishes.engine == AI_TOOLKIT:
        return card.family is not Family.SDXL
    return machine.kind is not Kind.MPS


def _places(wishes: TrainingSpec, machine: Machine, free: Collection[str]) -> tuple[TextEncoders, ...]:
    if "text_encoders" not in free or machine.kind is not Kind.CUDA:
        return (wishes.text_encoders,)
    return (TextEncoders.DEVICE, TextEncoders.INT8, TextEncoders.CPU)


def _training_plan(
    card: ModelCard,
    parts: ModelParts,
    wishes: TrainingSpec,
    spec: TrainingSpec,
    cost: Cost,
    corrections: Corrections,
) -> TrainingPlan:
    machine = cost.machine
    key = {"task": Task.TRAINING, "model": card.name, "device": machine.name, "settings": training_key(spec)}
    return TrainingPlan(
        spec=spec,
        fits=True,
        words=_training_words(spec, card),
        reasons=tuple(_training_reasons(wishes, spec, cost)),
        expected_peak_bytes=cost.training(spec),
        expected_system_bytes=training_system_bytes(parts, spec),
        room_bytes=machine.room(),
        measured=corrections.knows(**key),  # type: ignore[arg-type]  # each by its name
    )


def _training_words(spec: TrainingSpec, card: ModelCard) -> str:
    blocks = f"of {card.parts.blocks} " if card.parts else ""
    said = [
        WORDS[spec.quantization],
        "activations computed twice" if spec.gradient_checkpointing else "",
        f"{spec.streamed_blocks} {blocks}blocks streamed" if spec.streamed_blocks else "",
        ENCODERS[spec.text_encoders],
        f"{', '.join(map(str, spec.resolutions))} px",
    ]
    return ", ".join(part for part in said if part)


def _training_reasons(wishes: TrainingSpec, spec: TrainingSpec, cost: Cost) -> Iterator[str]:
    """Why the plan is not the plain one: each step down, with what it would take without it."""
    room = cost.machine.room()
    if dropped := [side for side in wishes.resolutions if side not in spec.resolutions]:
        yield f"{', '.join(map(str, sorted(dropped)))} px left out: the memory is not enough for it."
    if spec.batch_size < wishes.batch_size:
        yield (
            f"Batches of {spec.batch_size} instead of {wishes.batch_size}, and"
            f" {spec.gradient_accumulation_steps} passes a step: it learns the same from less memory."
        )
    plain = {"quantization": Quantization.NONE, "streamed_blocks": 0, "gradient_checkpointing": False}
    steps: tuple[tuple[str, str], ...] = (
        ("gradient_checkpointing", "results kept for the way back"),
        ("quantization", f"{WORDS[Quantization.NONE]}"),
        ("streamed_blocks", "all blocks on the device"),
    )
    for name, what in steps:
        if getattr(spec, name) != plain[name]:
            without = cost.training(spec.model_copy(update={name: plain[name]}))
            if without > room:
                yield f"With {what} it would take {gb(without)} of the {gb(room)} there are."
    if spec.text_encoders is not TextEncoders.DEVICE:
        yield f"The text encoders do not fit beside the rest: {ENCODERS[spec.text_encoders]}."


def _why_not(
    card: ModelCard,
    parts: ModelParts,
    wishes: TrainingSpec,
    smallest: TrainingSpec,
    cost: Cost,
    fixed: Collection[str],
) -> Iterator[str]:
    machine = cost.machine
    need, room = cost.training(smallest), machine.room()
    if need > room:
        yield f"{card.title} does not fit: the smallest way takes {gb(need)}, and {machine.name} has {gb(room)} for it."
    else:
        yield (
            f"{card.title} does not fit: {gb(training_system_bytes(parts, smallest))} of system memory are needed,"
            f" and {gb(machine.system_room())} are free."
        )
    for name in sorted(set(fixed) & PLANNED):
        others = set(fixed) - {name}
        way = plan_training(card, wishes, machine, fixed=others)
        if way.fits:
            chosen, better = getattr(wishes, name), getattr(way.spec, name)
            yield f"Your choice of {name} ({_value(chosen)}) stands in the way; {_value(better)} would fit."
            return
    if set(fixed) & PLANNED:
        way = plan_training(card, wishes, machine)
        if way.fits:
            yield f"Without your choices this would fit: {way.words}."


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def changes(tried: TrainingSpec, spec: TrainingSpec) -> dict[str, Any]:
    """The planned fields of ``spec`` that are not as tried, as JSON values."""
    new, old = spec.model_dump(mode="json"), tried.model_dump(mode="json")
    return {name: new[name] for name in sorted(PLANNED) if new[name] != old[name]}


def plan_after_out_of_memory(
    card: ModelCard, tried: TrainingSpec, machine: Machine, *, corrections: Corrections = NOTHING_MEASURED
) -> TrainingPlan:
    """The next smaller plan that should fit, now that this one did not."""
    if card.parts is None:
        return plan_training(card, tried, machine)
    expected = Cost(card, card.parts, machine, corrections).training(tried)
    # What was tried took all there is; everything else is taken to be as much above its count.
    beyond = max(1.0, machine.room() / max(expected, 1))
    return plan_training(
        card,
        tried,
        machine,
        corrections=corrections,
        below=int(min(machine.room() / beyond, expected) * 0.98),
    )
