"""Whatever a spec is given, the answer names the field and the value; what is accepted survives JSON."""

import json
import random

import pytest

from isengard.domain.base import validated
from isengard.domain.generation import ImageSpec
from isengard.domain.training import TrainingPreset, TrainingSpec
from isengard.errors import InvalidSpec

TRAINING = {"character": "anna", "base_model": "demo", "trigger": "ohwx"}
IMAGE = {"base_model": "demo", "prompt": "a photo of [trigger]"}
JUNK = (
    None, "", "many", "1e999", "NaN", float("nan"), float("inf"), -1, -0.5, 10**400, 2**64, [], {}, [[]], [None],
    {"a": {"b": [1]}}, "\x00", "🦊" * 2000, b"bytes", object(), True, (1, 2, 3), {1, 2},
)  # fmt: skip


def accepted(model, values, required):
    """Whether the values make a model; when not, each error is plain words about a field."""
    try:
        made = validated(model, values)
    except InvalidSpec as error:
        said = str(error)
        assert said
        assert "\n" not in said
        assert "pydantic" not in said
        assert "https://" not in said
        assert len(said) < 250 * max(1, said.count(";") + 1)
        assert any(name in said for name in values.keys() | set(required)), said
        return False
    again = validated(model, json.loads(made.model_dump_json()))
    assert again == made
    return True


@pytest.mark.parametrize(("model", "base"), [(TrainingSpec, TRAINING), (ImageSpec, IMAGE)])
def test_junk_in_any_field_is_accepted_or_refused_by_name(model, base):
    outcomes = [accepted(model, base | {name: junk}, base) for name in model.model_fields for junk in JUNK]
    assert outcomes.count(False) > 150


@pytest.mark.parametrize("seed", range(200))
def test_several_mistakes_at_once_are_each_named(seed):
    rng = random.Random(seed)
    model, base = rng.choice([(TrainingSpec, TRAINING), (ImageSpec, IMAGE)])
    values = dict(base)
    for _ in range(rng.randint(1, 5)):
        name = rng.choice([*model.model_fields, "".join(rng.choices("abcdefgh_", k=8))])
        values[name] = rng.choice(JUNK)
    for name in rng.sample(sorted(base), rng.randint(0, 1)):
        values.pop(name)
    accepted(model, values, base)


@pytest.mark.parametrize(
    ("model", "values", "said"),
    [
        (TrainingSpec, TRAINING | {"rank": 0}, "rank: must be greater than or equal to 1, got 0"),
        (TrainingSpec, TRAINING | {"rnak": 8}, "unknown setting 'rnak' (did you mean 'rank'?)"),
        (TrainingSpec, TRAINING | {"zzz": 8}, "unknown setting 'zzz'"),
        (TrainingSpec, {"character": "anna", "base_model": "demo"}, "trigger is missing"),
        (TrainingSpec, TRAINING | {"learning_rate": float("nan")}, "learning_rate: "),
        (TrainingSpec, TRAINING | {"targets": "(("}, "targets must be one of attention"),
        (TrainingSpec, TRAINING | {"resolutions": [100]}, "resolutions.0: must be a multiple of 16, got 100"),
        (TrainingSpec, TRAINING | {"resolutions": [128, 128]}, "resolutions has the same value twice"),
        (TrainingSpec, TRAINING | {"steps": 5, "lr_warmup_steps": 5}, "lr_warmup_steps (5) must be smaller than steps (5)"),
        (TrainingSpec, TRAINING | {"optimizer": "sgd"}, "optimizer: must be 'adamw', 'adamw8bit' or 'prodigy', got 'sgd'"),
        (ImageSpec, IMAGE | {"width": 100}, "width: must be a multiple of 16, got 100"),
        (ImageSpec, IMAGE | {"loras": [{"lora": "a", "strenght": 1}]}, "unknown setting 'loras.0.strenght'"),
        (ImageSpec, IMAGE | {"prompt": "x" * 5000}, "prompt: "),
    ],
)  # fmt: skip
def test_a_mistake_is_said_in_plain_words(model, values, said):
    with pytest.raises(InvalidSpec) as caught:
        validated(model, values)
    assert said in str(caught.value)


def test_every_mistake_is_said_at_once():
    with pytest.raises(InvalidSpec, match=r"steps: .*; .*rank: .*; .*unknown setting 'x'"):
        validated(TrainingSpec, TRAINING | {"steps": 0, "rank": 0, "x": 1})


def test_values_that_are_no_mapping_are_refused():
    with pytest.raises(InvalidSpec):
        validated(TrainingPreset, ["steps"])


def test_a_good_spec_survives_json():
    spec = validated(
        TrainingSpec, TRAINING | {"resolutions": [128, 256], "learning_rate": "1e-3", "ema_decay": 0.5}
    )
    assert validated(TrainingSpec, json.loads(spec.model_dump_json())) == spec


@pytest.mark.parametrize(
    ("model", "base", "values", "said"),
    [
        (ImageSpec, IMAGE, {"prompt": "x" * 4001}, "prompt: .* at most 4000 characters"),
        (ImageSpec, IMAGE, {"base_model": "x" * 201}, "base_model: .* at most 200 characters"),
        (ImageSpec, IMAGE, {"template": "x" * 201}, "template: .* at most 200 characters"),
        (ImageSpec, IMAGE, {"loras": [{"lora": "x" * 201}]}, "loras.0.lora: .* at most 200 characters"),
        (TrainingSpec, TRAINING, {"sample_prompts": ["x", "x" * 4001]}, "at most 4000 characters, got 4001"),
        (TrainingSpec, TRAINING, {"sample_prompts": ["x"] * 33}, "sample_prompts: .* at most 32 items"),
        (TrainingSpec, TRAINING, {"trigger": "x" * 201}, "trigger: .* at most 200 characters"),
        (TrainingSpec, TRAINING, {"targets": "x" * 1001}, "targets: .* at most 1000 characters"),
        (
            TrainingSpec,
            TRAINING,
            {"resolutions": list(range(64, 464, 16))},
            "resolutions: .* at most 16 items",
        ),
    ],
)
def test_texts_and_lists_have_a_length_that_is_told(model, base, values, said):
    with pytest.raises(InvalidSpec, match=said):
        validated(model, base | values)
