"""What is planned for machines of every size, from the shipped cards and presets. No machine is asked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isengard.domain.generation import ImageSpec
from isengard.domain.image_planner import plan_generation
from isengard.domain.memory import (
    CONTEXT_BYTES,
    GB,
    Corrections,
    Kind,
    Machine,
    Peak,
    Task,
    generation_key,
    training_key,
)
from isengard.domain.performance import (
    GenerationPlan,
    Offload,
    PerformanceChoices,
    Quantization,
    TextEncoders,
)
from isengard.domain.planner import PLANNED, changes, plan_after_out_of_memory, plan_training
from isengard.domain.presets import resolve_spec
from isengard.settings import ROOT
from isengard.store.configs import Catalog

GIB = 2**30
CARDS = {card.name: card for card in Catalog(ROOT / "configs").models()}
PRESETS = {preset.name: preset for preset in Catalog(ROOT / "configs").presets()}
TRAINED = ("flux1-dev", "flux2-klein-base-4b", "sdxl")


def machine(size_gib, *, system_gib=64, capability=(8, 6), kind=Kind.CUDA, used=0.4):
    total = int(size_gib * GIB)
    return Machine(
        kind=kind,
        name=f"{size_gib} GiB",
        total_bytes=total,
        free_bytes=int(total - used * GB),
        compute_capability=capability if kind is Kind.CUDA else None,
        gpus=1,
        system_total_bytes=int(system_gib * GIB),
        system_free_bytes=int((system_gib - 3) * GIB),
    )


def wishes(model="flux1-dev", preset="best", engine="native", **overrides):
    return resolve_spec(
        PRESETS[preset], CARDS[model], character="x", trigger="x", class_word="x",
        image_count=20, engine=engine, overrides=overrides,
    )  # fmt: skip


def planned(size_gib, model="flux1-dev", preset="best", *, fixed=(), facts=None, **overrides):
    facts = facts or machine(size_gib)
    return plan_training(
        CARDS[model], wishes(model, preset, **overrides), facts, fixed=set(overrides) & PLANNED | set(fixed)
    )


def images(size_gib, model="flux1-dev", *, side=1024, count=1, facts=None, **performance):
    spec = ImageSpec(
        base_model=model, prompt="x", width=side, height=side, count=count,
        performance=PerformanceChoices(**performance),
    )  # fmt: skip
    return plan_generation(CARDS[model], spec, facts or machine(size_gib))


@pytest.mark.parametrize(
    ("size_gib", "quantization", "at_least"),
    [
        (12, Quantization.NF4, {512}),
        (16, Quantization.INT8, {512, 768}),
        (24, Quantization.INT8, {512, 768, 1024}),
        (48, Quantization.NONE, {512, 768, 1024}),
        (80, Quantization.NONE, {512, 768, 1024}),
    ],
)
def test_flux_is_trained_on_every_tier(size_gib, quantization, at_least):
    plan = planned(size_gib)
    assert plan.fits
    assert plan.spec.quantization is quantization
    assert at_least <= set(plan.spec.resolutions)
    assert CONTEXT_BYTES + plan.expected_peak_bytes < machine(size_gib).free_bytes


def test_nothing_is_recomputed_where_memory_allows():
    assert not planned(80).spec.gradient_checkpointing
    assert planned(48).spec.gradient_checkpointing


@pytest.mark.parametrize("size_gib", [12, 16, 24])
def test_klein_is_trained_at_full_size_without_quantization_from_12_gb_on(size_gib):
    plan = planned(size_gib, "flux2-klein-base-4b")
    assert (plan.fits, plan.spec.quantization, plan.spec.resolutions) == (
        True, Quantization.NONE, (512, 768, 1024),
    )  # fmt: skip


@pytest.mark.parametrize("size_gib", [8, 12, 24])
def test_sdxl_is_trained_from_8_gb_on(size_gib):
    assert planned(size_gib, "sdxl", "balanced").fits


def test_gradients_are_not_rounded_to_8_bits_unasked():
    facts = machine(24, capability=(8, 9))
    assert planned(24, facts=facts).spec.quantization is Quantization.INT8
    assert planned(24, facts=facts, quantization="fp8_matmul").spec.quantization is Quantization.FP8_MATMUL


def test_blocks_are_streamed_only_when_they_are_computed_twice():
    plan = planned(8)
    assert plan.fits
    assert plan.spec.streamed_blocks > 0
    assert plan.spec.gradient_checkpointing
    assert not planned(8, gradient_checkpointing=False).fits


def test_the_highest_resolution_goes_first_when_all_streaming_is_not_enough():
    plan = planned(6)
    assert (plan.fits, plan.spec.resolutions) == (True, (512,))
    assert plan.reasons[0].startswith("768, 1024 px left out")


def test_too_little_system_memory_leaves_no_room_for_streamed_blocks():
    plan = planned(6, preset="quick", facts=machine(6, system_gib=8))
    assert not plan.fits
    assert "system memory" in plan.reasons[0]


def test_a_batch_is_halved_with_twice_the_passes():
    assert planned(24, batch_size=16).spec.batch_size == 16  # the user's own stays
    asked = wishes("flux1-dev", "best").model_copy(update={"batch_size": 16})
    plan = plan_training(CARDS["flux1-dev"], asked, machine(24))
    assert plan.fits
    assert plan.spec.batch_size * plan.spec.gradient_accumulation_steps == 16
    assert any("passes a step" in reason for reason in plan.reasons)


@pytest.mark.parametrize("name", ["quantization", "resolutions", "streamed_blocks", "text_encoders"])
def test_what_the_user_chose_stays(name):
    chosen = {
        "quantization": "nf4", "resolutions": [1024], "streamed_blocks": 20, "text_encoders": "cpu",
    }[name]  # fmt: skip
    plan = planned(24, **{name: chosen})
    assert plan.fits
    assert plan.spec.model_dump(mode="json")[name] == chosen


def test_a_choice_in_the_way_is_named_with_one_that_would_fit():
    plan = planned(12, quantization="none", streamed_blocks=0, gradient_checkpointing=False)
    assert not plan.fits
    assert "Without your choices this would fit: 4-bit weights" in plan.reasons[-1]
    plan = planned(12, quantization="int8", streamed_blocks=0, resolutions=[512])
    assert "Your choice of quantization (int8) stands in the way; nf4 would fit." in plan.reasons


def test_only_a_choice_that_the_whole_device_could_hold_may_be_tried():
    assert not planned(12, quantization="none", streamed_blocks=0).possible
    assert planned(10.6, quantization="nf4", streamed_blocks=0, resolutions=[1024]).possible


def test_with_ai_toolkit_only_what_it_knows_is_planned():
    plan = planned(24, preset="best", engine="ai-toolkit")
    assert plan.fits
    assert plan.spec.quantization is Quantization.INT8
    assert (plan.spec.streamed_blocks, plan.spec.text_encoders) == (0, TextEncoders.DEVICE)
    assert not planned(12, engine="ai-toolkit").fits
    assert planned(16, "sdxl", "quick", engine="ai-toolkit").spec.quantization is Quantization.NONE


def test_the_demo_model_is_trained_on_a_cpu_and_no_large_model():
    small = machine(4, system_gib=4, kind=Kind.CPU)
    assert plan_training(CARDS["demo"], wishes("demo", "quick"), small).fits
    plan = planned(0, facts=machine(256, kind=Kind.CPU))
    assert (plan.fits, plan.possible) == (False, False)
    assert "needs a GPU" in plan.reasons[0]


def test_a_mac_is_given_whole_weights_only():
    mac = machine(64, kind=Kind.MPS)
    plan = planned(0, "flux2-klein-base-4b", facts=mac)
    assert (plan.fits, plan.spec.quantization) == (True, Quantization.NONE)
    assert not planned(0, facts=machine(16, kind=Kind.MPS)).fits
    assert images(0, "flux2-klein-4b", facts=mac).fits


@settings(max_examples=40)
@given(
    st.floats(4, 96), st.floats(0, 40), st.sampled_from(TRAINED), st.sampled_from(sorted(PRESETS)),
)  # fmt: skip
def test_more_memory_never_gives_a_worse_training(size, more, model, preset):
    small, large = (planned(gib, model, preset) for gib in (size, size + more))
    assert large.fits >= small.fits
    if not small.fits:
        return
    assert len(large.spec.resolutions) >= len(small.spec.resolutions)
    if large.spec.resolutions == small.spec.resolutions:
        bits = {Quantization.NF4: 4, Quantization.INT8: 8, Quantization.NONE: 16}
        assert bits[large.spec.quantization] >= bits[small.spec.quantization]
        if large.spec.quantization is small.spec.quantization:
            assert large.spec.streamed_blocks <= small.spec.streamed_blocks
            assert large.spec.gradient_checkpointing <= small.spec.gradient_checkpointing


@settings(max_examples=40)
@given(st.floats(4, 96), st.floats(0, 40), st.sampled_from(["flux1-dev", "flux2-klein-4b", "sdxl"]))
def test_more_memory_never_gives_worse_images(size, more, model):
    small, large = images(size, model), images(size + more, model)
    assert large.fits >= small.fits
    bits = {Quantization.NF4: 4, Quantization.INT8: 8, Quantization.NONE: 16}
    if small.fits:
        assert bits[large.plan.quantization] >= bits[small.plan.quantization]


@pytest.mark.parametrize("model", ["flux1-dev", "flux1-schnell", "flux2-klein-4b", "sdxl"])
@pytest.mark.parametrize("size_gib", [8, 12, 16, 24, 48, 80])
def test_images_of_1024_px_are_made_from_8_gb_on(model, size_gib):
    made = images(size_gib, model)
    assert made.fits
    assert 0 < made.plan.expected_peak_bytes < machine(size_gib).free_bytes - CONTEXT_BYTES


def test_a_large_card_holds_everything_and_makes_several_images_at_once():
    plan = images(80, count=16).plan
    assert (plan.quantization, plan.offload, plan.text_encoders) == (
        Quantization.NONE, Offload.NONE, TextEncoders.DEVICE,
    )  # fmt: skip
    assert plan.batch_size == 4


def test_the_users_choices_for_images_stay():
    made = images(24, quantization="nf4", vae_tiling=True, batch_size=2)
    assert (made.plan.quantization, made.plan.vae_tiling, made.plan.batch_size) == (Quantization.NF4, True, 2)
    refused = images(12, quantization="none", offload="none", text_encoders="device")
    assert not refused.fits
    assert "Your choices were kept: quantization none" in refused.reasons[-1]


def test_images_need_system_memory_for_what_waits_there():
    made = images(12, facts=machine(12, system_gib=6))
    assert not made.fits
    assert "system memory" in made.reasons[0]


def test_a_cpu_makes_images_slowly_and_says_so():
    made = images(0, "flux2-klein-4b", facts=machine(64, kind=Kind.CPU))
    assert made.fits
    assert "minutes" in made.reasons[-1]


def test_a_card_without_parts_is_not_planned_for():
    card = CARDS["flux1-dev"].model_copy(update={"parts": None})
    asked = wishes()
    assert plan_training(card, asked, machine(4)).spec == asked
    assert plan_after_out_of_memory(card, asked, machine(4)).spec == asked
    assert plan_generation(card, ImageSpec(base_model="x", prompt="x"), machine(4)).plan == GenerationPlan()


def peak(model, settings_said, factor, *, task=Task.TRAINING, device="24 GiB"):
    return Peak(
        task=task, model=model, device=device, settings=settings_said,
        expected_bytes=10 * GB, measured_bytes=int(factor * 10 * GB),
    )  # fmt: skip


def test_a_peak_measured_here_corrects_the_expectation():
    plain = planned(24)
    seen = Corrections(peaks=(peak("flux1-dev", training_key(plain.spec), 1.2),))
    plan = plan_training(CARDS["flux1-dev"], wishes(), machine(24), corrections=seen)
    assert plan.expected_peak_bytes == pytest.approx(1.2 * plain.expected_peak_bytes, rel=0.01)
    assert plan.measured
    assert not plain.measured


def test_a_measurement_of_other_settings_is_believed_within_limits_and_of_other_devices_not_at_all():
    plain = planned(24).expected_peak_bytes
    far = Corrections(peaks=(peak("flux1-dev", "others", 0.1), peak("sdxl", "x", 9)))
    assert plan_training(
        CARDS["flux1-dev"], wishes(), machine(24), corrections=far, fixed=PLANNED
    ).expected_peak_bytes == pytest.approx(0.7 * planned(24, fixed=PLANNED).expected_peak_bytes, rel=0.01)
    other = Corrections(peaks=(peak("flux1-dev", "others", 3, device="another"),))
    plan = plan_training(CARDS["flux1-dev"], wishes(), machine(24), corrections=other)
    assert plan.expected_peak_bytes == plain


def test_images_are_corrected_too():
    plain = images(24)
    spec = ImageSpec(base_model="flux1-dev", prompt="x")
    key = generation_key(spec, plain.plan)
    seen = Corrections(peaks=(peak("flux1-dev", key, 2, task=Task.GENERATION),))
    again = plan_generation(CARDS["flux1-dev"], spec, machine(24), corrections=seen)
    assert again.plan != plain.plan
    assert again.fits


def test_after_running_out_of_memory_the_next_plan_is_smaller():
    tried = planned(24).spec
    plan = plan_after_out_of_memory(CARDS["flux1-dev"], tried, machine(24))
    assert plan.fits
    assert plan.expected_peak_bytes < planned(24).expected_peak_bytes
    made = changes(tried, plan.spec)
    assert made
    assert set(made) <= PLANNED


def test_after_the_smallest_plan_there_is_no_smaller_one():
    smallest = wishes(preset="quick").model_copy(
        update={
            "quantization": Quantization.NF4, "gradient_checkpointing": True, "streamed_blocks": 57,
            "text_encoders": TextEncoders.CPU, "resolutions": (512,),
        }
    )  # fmt: skip
    assert not plan_after_out_of_memory(CARDS["flux1-dev"], smallest, machine(4)).fits
