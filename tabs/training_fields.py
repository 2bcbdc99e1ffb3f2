"""The form of all settings of a training, made from the model `TrainingSpec` itself."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from isengard.domain.presets import IDENTITY_FIELDS
from isengard.domain.training import AI_TOOLKIT, NATIVE, TARGETS, TrainingSpec

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Length": ("steps", "batch_size", "gradient_accumulation_steps", "seed"),
    "Adapter": ("rank", "alpha", "targets"),
    "Optimizer": (
        "optimizer", "learning_rate", "weight_decay", "lr_scheduler", "lr_warmup_steps", "max_grad_norm", "ema_decay",
    ),
    "Precision and memory": (
        "engine", "precision", "quantization", "gradient_checkpointing", "streamed_blocks", "text_encoders",
        "attention", "compile", "devices",
    ),
    "Data": ("resolutions", "max_upscale", "flip", "caption_dropout"),
    "Loss": ("timestep_sampling", "loss_weighting", "guidance_scale", "validate_every"),
    "Checkpoints": ("save_every", "keep_checkpoints", "compare_when_done"),
    "Samples": (
        "sample_every", "sample_prompts", "sample_seed", "sample_steps", "sample_guidance_scale", "sample_resolution",
        "stop_early",
    ),
}  # fmt: skip

#: For fields whose name says enough to a program and too little to a person.
EXPLAINED: Mapping[str, str] = {
    "targets": "layers that are adapted: attention, attention_mlp, all_linear, or a regular expression of module names",
    "engine": "the trainer that does the work: AI-Toolkit for real base models where it is installed, else Isengard's own",
    "max_grad_norm": "gradients longer than this are shortened; 0 switches it off",
    "ema_decay": "share of the past in the averaged weights; 0 switches it off",
    "validate_every": "how often the loss on the validation set is measured; 0 switches it off",
    "sample_every": "how often sample pictures are made; 0 switches them off",
    "guidance_scale": "given to models that take guidance as an input",
    "seed": "the same seed with the same images gives the same LoRA",
    "rank": "size of the adapter: more can learn more, and learns by heart sooner",
    "optimizer": "the rule of learning: adamw8bit keeps its state in 8 bits, to save memory; prodigy finds the learning rate itself (set it to 1)",
    "learning_rate": "how far one step goes; too high destroys, too low learns nothing",
    "weight_decay": "pulls the adapter's weights towards zero",
    "lr_scheduler": "with cosine it falls to zero at the end; constant stays",
    "lr_warmup_steps": "the learning rate rises from zero over these steps",
    "precision": "of the computation: bf16 is quicker on a GPU; fp32 is quicker on most CPUs",
    "quantization": "holds the frozen base model in fewer bits: less memory, slightly less exact",
    "gradient_checkpointing": "computes parts twice to save memory; slower",
    "text_encoders": "where the captions are encoded, once, before the first step",
    "attention": "the kernel that computes attention; native lets PyTorch choose",
    "timestep_sampling": "which noise levels are trained: sigmoid prefers the middle, shifted more noise",
    "loss_weighting": "how much each noise level counts",
    "compare_when_done": "afterwards make pictures with each checkpoint and find the one most like the character",
    "sample_prompts": "one prompt a line; [trigger] and [class] are filled in",
    "sample_seed": "of the first prompt's picture, the next has one more",
    "sample_steps": "denoising steps of a sample picture",
    "sample_guidance_scale": "how closely a sample picture follows its prompt",
    "sample_resolution": "side of a sample picture",
}
UNITS: Mapping[str, str] = {
    "steps": "steps", "lr_warmup_steps": "steps", "save_every": "steps", "validate_every": "steps",
    "sample_every": "steps", "sample_steps": "steps", "batch_size": "images", "resolutions": "pixels",
    "sample_resolution": "pixels", "gradient_accumulation_steps": "passes", "keep_checkpoints": "checkpoints",
    "max_upscale": "times", "streamed_blocks": "blocks", "devices": "GPUs",
}  # fmt: skip
ENGINES: Mapping[str, str] = {NATIVE: "Isengard", AI_TOOLKIT: "AI-Toolkit"}
LABELS: Mapping[str, str] = {
    "max_grad_norm": "Gradient clipping", "ema_decay": "Moving average (EMA)", "flip": "Mirror pictures",
    "guidance_scale": "Guidance while training", "gradient_accumulation_steps": "Gradient accumulation",
    "lr_scheduler": "Learning rate schedule", "lr_warmup_steps": "Warm-up",
}  # fmt: skip


def groups(engines: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every field in its group, as the form's script takes it."""
    return [
        {"title": title, "fields": [describe(name, engines) for name in names]}
        for title, names in GROUPS.items()
    ]


def describe(name: str, engines: tuple[str, ...] = ()) -> dict[str, Any]:
    """One field: what kind of input it needs, and what to say about it. ``choices``: label and value of each."""
    field = TrainingSpec.model_fields[name]
    kind, choices = _kind(field)
    if name == "engine":
        kind, choices = "choice", [(ENGINES.get(engine, engine), engine) for engine in engines]
    explanation = EXPLAINED.get(name) or field.description or ""
    return {
        "name": name,
        "label": LABELS.get(name, name.replace("_", " ").capitalize()),
        "explain": explanation[:1].upper() + explanation[1:],
        "range": allowed(field, UNITS.get(name, "")),
        "kind": kind,
        "choices": choices,
        "suggest": list(TARGETS) if name == "targets" else [],
    }


def allowed(field: FieldInfo, unit: str = "") -> str:
    """The range in words: ``1 to 256``, ``above 0, at most 10``, ``0 or more``; empty when there is none."""
    limits = {
        key: limit
        for rule in _rules(field)
        for key in ("ge", "gt", "le", "lt", "multiple_of")
        if (limit := getattr(rule, key, None)) is not None
    }
    if isinstance(limits.get("lt"), int) and field.annotation is int:
        limits["le"] = limits.pop("lt") - 1
    low = f"above {limits['gt']:,}" if "gt" in limits else f"{limits['ge']:,}" if "ge" in limits else ""
    high = f"below {limits['lt']:,}" if "lt" in limits else f"{limits['le']:,}" if "le" in limits else ""
    if low and high:
        words = f"{low}, at most {high}" if "gt" in limits else f"{low} to {high}"
    else:
        words = f"{low} or more" if low else high
    multiple = f", in steps of {limits['multiple_of']}" if "multiple_of" in limits else ""
    return f"{words} {unit}".strip() + multiple


def _rules(field: FieldInfo) -> Iterator[Any]:
    """The limits of a number, or of each number of a list."""
    yield from field.metadata if get_origin(field.annotation) is not tuple else ()
    if get_origin(field.annotation) is tuple:
        for part in get_args(get_args(field.annotation)[0])[1:]:
            yield from getattr(part, "metadata", [part])


def _kind(field: FieldInfo) -> tuple[str, list[tuple[str, str]]]:
    kind: Any = field.annotation
    if get_origin(kind) is tuple:
        return ("lines" if get_args(kind)[0] is str else "numbers"), []
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "choice", [(str(value), str(value)) for value in kind]
    return {bool: "switch", int: "number", float: "number"}.get(kind, "text"), []


def values(spec: TrainingSpec) -> dict[str, Any]:
    """A spec as the form shows it: a text for each field, or whether it is switched on."""
    return {
        name: shown(value)
        for name, value in spec.model_dump(mode="json").items()
        if name not in IDENTITY_FIELDS
    }


def shown(value: Any) -> Any:
    """One value as the form shows it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, list):
        is_text = bool(value) and isinstance(value[0], str)
        return ("\n" if is_text else ", ").join(str(entry) for entry in value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def overrides(form: Any) -> dict[str, Any]:
    """What the user changed in the form; a value that makes no sense is passed on, and the service says why."""
    given = form.get("overrides", {}) if isinstance(form, dict) else {}
    if not isinstance(given, dict):
        return {}
    return {str(name): _typed(str(name), value) for name, value in given.items()}


def _typed(name: str, value: Any) -> Any:
    field = TrainingSpec.model_fields.get(name)
    if field is None or not isinstance(value, str):
        return value
    kind, _ = _kind(field)
    if kind == "lines":
        return [line.strip() for line in value.splitlines() if line.strip()]
    if kind == "numbers":
        return value.replace(",", " ").split()
    return value.strip()


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``one`` that are not as in ``other``, with the other's values."""
    return {name: other[name] for name, value in one.items() if other[name] != value}
