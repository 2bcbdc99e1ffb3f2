"""From a preset, a base model and a character to one whole `TrainingSpec`."""

from collections.abc import Mapping
from typing import Any

from isengard.domain.base import validated
from isengard.domain.model import ModelCard
from isengard.domain.training import TrainingPreset, TrainingSpec
from isengard.errors import InvalidSpec

#: Said by the request itself; a preset or an override may not say otherwise.
IDENTITY_FIELDS = frozenset({"character", "base_model", "preset", "trigger", "class_word"})


def resolve_spec(
    preset: TrainingPreset,
    card: ModelCard,
    *,
    character: str,
    trigger: str,
    class_word: str,
    image_count: int,
    engine: str,
    overrides: Mapping[str, Any],
) -> TrainingSpec:
    """Say everything the preset leaves open. Later wins: defaults, model card, preset, preset for this model, overrides.

    ``engine`` trains where neither the preset nor an override names another.

    Raises:
        InvalidSpec: names each wrong field, or says that the model only generates.
    """
    chosen = {
        "engine": engine,
        "steps": min(max(preset.steps_per_image * image_count, preset.min_steps), preset.max_steps),
        "sample_steps": card.num_inference_steps,
        "sample_guidance_scale": card.guidance_scale,
        "sample_resolution": card.resolutions[0],
        **preset.settings,
        **preset.models.get(card.name, {}),
        **overrides,
    }
    if not card.trainable:
        raise InvalidSpec(
            f"base_model: {card.title} only generates and cannot be trained, got {card.name!r};"
            " choose a model that trains (see: python -m isengard models)"
        )
    if fixed := sorted(IDENTITY_FIELDS & chosen.keys()):
        raise InvalidSpec(f"{', '.join(fixed)}: not a training setting; choose it in the request itself")
    identity = {
        "character": character,
        "base_model": card.name,
        "preset": preset.name,
        "trigger": trigger,
        "class_word": class_word,
    }
    return validated(TrainingSpec, {**chosen, **identity})


def differences(spec: TrainingSpec) -> dict[str, Any]:
    """The settings that are not at their default, by name, as JSON values."""
    defaults = {name: field.default for name, field in TrainingSpec.model_fields.items()}
    changed = {name for name, value in spec if name not in IDENTITY_FIELDS and value != defaults[name]}
    return spec.model_dump(mode="json", include=changed)
