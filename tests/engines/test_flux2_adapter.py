"""FLUX.2 [klein] in our trainer: the conventions of diffusers, and the training loop on a tiny model."""

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from safetensors.torch import load_file

from isengard.domain.job import Phase, Requests
from isengard.domain.model import Family
from isengard.domain.performance import Quantization
from isengard.domain.training import TrainingSpec
from isengard.engines.native.adapter import SampleRequest, stacked
from isengard.engines.native.flux2 import Flux2Adapter, position_ids
from isengard.engines.native.lora import add_lora
from isengard.engines.native.trainer import NativeTrainer
from isengard.errors import JobYielded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_flux2):
    pipeline = Flux2KleinPipeline.from_pretrained(tiny_flux2, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def adapter(tiny_flux2_model):
    return Flux2Adapter(tiny_flux2_model, device=CPU)


def pixels(seed=0):
    return torch.rand(3, 64, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_an_image_becomes_the_latents_that_the_pipeline_makes_of_it(adapter, pipeline):
    latents = adapter.encode_image(pixels())
    with torch.no_grad():
        theirs = pipeline._pack_latents(pipeline._encode_vae_image(pixels()[None], None))[0]
    assert latents.shape == (12, 16)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, theirs)


def test_positions_are_those_of_the_pipeline():
    assert torch.equal(
        position_ids(width=3, height=4), Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 1, 4, 3))[0]
    )


def test_prompts_are_embedded_as_the_pipeline_does_it(adapter, pipeline):
    ours = adapter.encode_prompt("ohwx person")
    with torch.no_grad():
        embeds, _ = pipeline.encode_prompt("ohwx person", max_sequence_length=24)
    assert ours.keys() == {"prompt_embeds"}
    assert ours["prompt_embeds"].shape == (24, 24)
    assert torch.equal(ours["prompt_embeds"], embeds[0])
    assert not torch.equal(ours["prompt_embeds"], adapter.encode_prompt("another")["prompt_embeds"])


def test_the_denoiser_is_told_the_same_in_training_as_by_the_pipeline(adapter, pipeline):
    told = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda _module, _given, named: told.append(named), with_kwargs=True
    )
    embeds = {"prompt_embeds": adapter.encode_prompt("ohwx person")["prompt_embeds"][None]}
    try:
        pipeline(**embeds, width=96, height=64, num_inference_steps=1, guidance_scale=1)
        noisy = torch.randn(2, 24, 16)
        with torch.no_grad():
            adapter.predict(
                pipeline.transformer, noisy, sigma=told[0]["timestep"].expand(2), size=(96, 64), guidance_scale=3,
                prompts=stacked([adapter.encode_prompt("ohwx person")] * 2, CPU),
            )  # fmt: skip
    finally:
        handle.remove()
    theirs, ours = told
    assert torch.equal(ours["hidden_states"], noisy)
    assert theirs["guidance"] is None
    for number in range(2):
        assert torch.equal(ours["timestep"][number], theirs["timestep"][0])
        assert torch.equal(ours["encoder_hidden_states"][number], theirs["encoder_hidden_states"][0])
    for name in ("img_ids", "txt_ids"):
        assert torch.equal(ours[name], theirs[name][0].float()), name


def test_what_is_to_be_predicted_leads_from_the_image_to_the_noise(adapter):
    clean, noise, sigma = torch.randn(2, 4, 16), torch.randn(2, 4, 16), torch.tensor([0.25, 0.75])
    noisy, target = adapter.add_noise(clean, noise, sigma), adapter.target(clean, noise)
    torch.testing.assert_close(noisy - sigma[:, None, None] * target, clean)


def test_only_the_chosen_layers_match(adapter):
    counts = {}
    for targets in ("attention", "attention_mlp", "all_linear", r"transformer_blocks\.0\.attn\.to_q"):
        denoiser = adapter.load_denoiser(dtype=torch.float32, quantization=Quantization.NONE)
        parameters = add_lora(denoiser, pattern=adapter.target_pattern(targets), rank=2, alpha=2, seed=0)
        counts[targets] = len(parameters) // 2
    assert list(counts.values()) == [10, 14, 14, 1]


def test_an_image_counts_a_token_for_sixteen_pixels_squared(adapter):
    assert adapter.tokens(width=96, height=64) == 24


@pytest.mark.parametrize("trains", [True, False])
def test_a_picture_on_the_way_is_guided_away_from_the_empty_prompt_unless_distilled(
    adapter, tiny_flux2_model, pipeline, trains
):
    card = tiny_flux2_model.card.model_copy(update={"trains": trains})
    adapter = Flux2Adapter(tiny_flux2_model.model_copy(update={"card": card}), device=CPU)
    request = SampleRequest(resolution=64, num_inference_steps=2, guidance_scale=4, seed=3)
    image = adapter.sample(
        pipeline.transformer, adapter.encode_prompt("ohwx"), request, lambda: None,
        no_prompt=adapter.encode_prompt(""),
    )  # fmt: skip
    theirs = pipeline(
        prompt="ohwx", width=64, height=64, num_inference_steps=2, guidance_scale=4 if trains else 1,
        max_sequence_length=24, generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert np.array_equal(np.asarray(image), np.asarray(theirs))


def test_sampling_can_be_stopped_after_each_step(adapter):
    denoiser = adapter.load_denoiser(dtype=torch.float32, quantization=Quantization.NONE)
    prompt = adapter.encode_prompt("ohwx")
    request = SampleRequest(resolution=64, num_inference_steps=5, guidance_scale=1, seed=0)
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        adapter.sample(denoiser, prompt, request, stop, no_prompt=prompt)
    assert len(calls) == 2


@pytest.fixture
def train(tiny_flux2_model, training_spec, training_images, tmp_path):
    def trained(name="run", *, report=lambda _progress: Requests(), **changes):
        (tmp_path / name).mkdir(exist_ok=True)
        return NativeTrainer(adapters={Family.FLUX2: Flux2Adapter}, device=CPU).train(
            spec=TrainingSpec.model_validate({**training_spec.model_dump(), **changes}),
            model=tiny_flux2_model,
            images=training_images,
            run_dir=tmp_path / name,
            cache_dir=tmp_path / "cache",
            report=report,
        )

    return trained


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "gradient_checkpointing": True, "flip": True},
        {"quantization": "int8", "targets": "attention"},
        {
            "resolutions": (64, 80),
            "targets": "attention_mlp",
            "max_upscale": 2,
            "timestep_sampling": "shifted",
        },
    ],
)
def test_every_setting_trains_and_resumes_exactly(train, changes):
    changes = {"steps": 4, "validate_every": 2, "sample_every": 0, **changes}

    def stop(progress):
        if progress.phase is Phase.TRAINING and progress.step == 3:
            raise JobYielded
        return Requests()

    straight = train("straight", **changes)
    with pytest.raises(JobYielded):
        train(report=stop, **changes)
    resumed = train(**changes)
    assert np.isfinite([loss for _, loss in straight.validation_losses]).all()
    assert resumed.validation_losses == straight.validation_losses
    weights, again = load_file(straight.path), load_file(resumed.path)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert any(value.abs().max() > 0 for key, value in weights.items() if "lora_B" in key)


def test_a_sample_on_the_way_is_what_diffusers_makes_with_the_file(train, training_spec, tmp_path, pipeline):
    trained = train(validate_every=0)
    pipeline.load_lora_weights(trained.path.parent, weight_name="lora.safetensors")
    try:
        theirs = pipeline(
            prompt="a portrait of ohwx", height=64, width=64, num_inference_steps=training_spec.sample_steps,
            guidance_scale=training_spec.sample_guidance_scale, max_sequence_length=24,
            generator=torch.Generator().manual_seed(training_spec.sample_seed),
        ).images[0]  # fmt: skip
    finally:
        pipeline.unload_lora_weights()
    with Image.open(tmp_path / "run" / "samples" / "00000006-0.png") as sample:
        difference = np.abs(np.asarray(sample, dtype=float) - np.asarray(theirs, dtype=float))
    assert difference.max() <= 1
