import pytest

from isengard.domain.model import ModelCard
from isengard.domain.presets import IDENTITY_FIELDS, differences, resolve_spec
from isengard.domain.training import TrainingPreset, TrainingSpec
from isengard.errors import InvalidSpec
from isengard.settings import ROOT
from isengard.store.configs import Catalog

CARD = ModelCard(
    name="tiny", title="Tiny", family="flux", path="tiny", licence="Apache-2.0", licence_url="https://example.org",
    resolutions=(128, 256), num_inference_steps=7, guidance_scale=2.5,
)  # fmt: skip
PRESET = TrainingPreset(
    name="quick", title="Quick", description="", steps_per_image=10, min_steps=50, max_steps=200,
    settings={"rank": 4, "seed": 1}, models={"tiny": {"seed": 2, "batch_size": 3}, "other": {"rank": 99}},
)  # fmt: skip


def resolve(*, images=10, card=CARD, engine="native", overrides=None):
    return resolve_spec(
        PRESET,
        card,
        character="anna",
        trigger="ohwx",
        class_word="woman",
        image_count=images,
        engine=engine,
        overrides=overrides or {},
    )


@pytest.mark.parametrize(("images", "steps"), [(1, 50), (10, 100), (1000, 200)])
def test_steps_grow_with_the_images_within_limits(images, steps):
    assert resolve(images=images).steps == steps


def test_later_wins_card_then_preset_then_preset_for_the_model_then_overrides():
    spec = resolve(overrides={"batch_size": 5})
    assert (spec.rank, spec.seed, spec.batch_size) == (4, 2, 5)
    assert (spec.sample_steps, spec.sample_guidance_scale, spec.sample_resolution) == (7, 2.5, 128)
    assert resolve(overrides={"steps": 3}).steps == 3


def test_a_model_the_preset_does_not_know_gets_the_settings_for_all():
    assert resolve(card=CARD.model_copy(update={"name": "new"})).seed == 1


def test_the_request_says_who_is_trained_on_what():
    spec = resolve()
    said = (spec.character, spec.base_model, spec.preset, spec.trigger, spec.class_word)
    assert said == ("anna", "tiny", "quick", "ohwx", "woman")


@pytest.mark.parametrize("name", sorted(IDENTITY_FIELDS))
def test_an_override_cannot_change_who_is_trained(name):
    with pytest.raises(InvalidSpec, match=f"{name}: not a training setting"):
        resolve(overrides={name: "x"})


def test_a_wrong_override_is_refused_by_name_and_value():
    with pytest.raises(
        InvalidSpec, match=r"unknown setting 'learnin_rate' \(did you mean 'learning_rate'\?\)"
    ):
        resolve(overrides={"learnin_rate": 1})
    with pytest.raises(InvalidSpec, match=r"rank: .*got 'many'"):
        resolve(overrides={"rank": "many"})


@pytest.mark.parametrize("engine", ["native", "ai-toolkit"])
def test_a_distilled_model_with_a_training_adapter_is_trained_by_either_engine(engine):
    schnell = Catalog(ROOT / "configs").model("flux1-schnell")
    assert resolve(card=schnell, engine=engine).engine == engine


@pytest.mark.parametrize("engine", ["native", "ai-toolkit"])
def test_without_a_training_adapter_no_engine_trains_a_distilled_model(engine):
    with pytest.raises(InvalidSpec, match=r"only generates .*python -m isengard models\)$"):
        resolve(card=CARD.model_copy(update={"trains": False}), engine=engine)


def test_a_model_that_only_generates_cannot_be_trained():
    with pytest.raises(InvalidSpec, match=r"Tiny only generates .*got 'tiny'"):
        resolve(card=CARD.model_copy(update={"trains": False}))


def test_differences_are_the_settings_that_are_not_default():
    spec = TrainingSpec(
        character="a", base_model="b", trigger="c", rank=4, resolutions=(128,), optimizer="prodigy"
    )
    assert differences(spec) == {"rank": 4, "resolutions": [128], "optimizer": "prodigy"}
