"""SDXL in our trainer: the conventions of diffusers, and the training loop on a tiny model."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from isengard.domain.job import Phase, Requests
from isengard.domain.model import Family
from isengard.domain.performance import Quantization
from isengard.domain.training import TrainingSpec
from isengard.engines.lora_format import component_of, read_header
from isengard.engines.native.adapter import SampleRequest, stacked
from isengard.engines.native.lora import add_lora
from isengard.engines.native.sdxl import SdxlAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.errors import InvalidSpec, JobYielded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl):
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def adapter(tiny_sdxl_model):
    return SdxlAdapter(tiny_sdxl_model, device=CPU)


@pytest.fixture
def denoiser(adapter):
    return adapter.load_denoiser(dtype=torch.float32, quantization=Quantization.NONE)


@pytest.fixture
def train(tiny_sdxl_model, training_spec, training_images, tmp_path):
    def trained(name="run", *, report=lambda _progress: Requests(), **changes):
        (tmp_path / name).mkdir(exist_ok=True)
        return NativeTrainer(adapters={Family.SDXL: SdxlAdapter}, device=CPU).train(
            spec=TrainingSpec.model_validate({**training_spec.model_dump(), **changes}),
            model=tiny_sdxl_model,
            images=training_images,
            run_dir=tmp_path / name,
            cache_dir=tmp_path / "cache",
            report=report,
        )

    return trained


def pixels(seed=0):
    return torch.rand(3, 64, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_uniform_noise_levels_give_uniform_timesteps(adapter):
    sigma = (torch.arange(4000) + 0.5) / 4000
    assert adapter.timesteps(sigma).bincount().tolist() == [4] * 1000
    assert adapter.timesteps(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


def test_noise_is_added_as_diffusers_does_it_and_is_what_is_to_be_predicted(adapter, tiny_sdxl):
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    clean, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    noisy = adapter.add_noise(clean, noise, torch.tensor([0.0, 0.5, 1.0]))
    theirs = scheduler.add_noise(clean, noise, torch.tensor([0, 500, 999]))
    torch.testing.assert_close(noisy, theirs)
    assert torch.equal(adapter.target(clean, noise), noise)


def test_an_image_becomes_scaled_latents_of_an_eighth_of_its_size(adapter, pipeline):
    latents = adapter.encode_image(pixels())
    with torch.no_grad():
        theirs = pipeline.vae.encode(pixels()[None]).latent_dist.mode()[0] * 0.13025
    assert latents.shape == (4, 8, 6)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, theirs)


def test_prompts_are_embedded_as_the_pipeline_does_it(adapter, pipeline):
    with torch.no_grad():
        embeds, zeros, pooled, pooled_zeros = pipeline.encode_prompt("ohwx person")
    ours, empty = adapter.encode_prompt("ohwx person"), adapter.encode_prompt("")
    assert torch.equal(ours["prompt_embeds"], embeds[0])
    assert torch.equal(ours["pooled_prompt_embeds"], pooled[0])
    assert torch.equal(empty["prompt_embeds"], zeros[0])
    assert torch.equal(empty["pooled_prompt_embeds"], pooled_zeros[0])


def test_the_denoiser_is_told_the_same_in_training_as_by_the_pipeline(adapter, pipeline):
    told = []
    handle = pipeline.unet.register_forward_pre_hook(
        lambda _unet, given, named: told.append((*given, named)), with_kwargs=True
    )
    try:
        pipeline("ohwx person", width=96, height=64, num_inference_steps=1, guidance_scale=1)
        (_, step, theirs), noisy = told.pop(), torch.randn(2, 4, 8, 12)
        with torch.no_grad():
            adapter.predict(
                pipeline.unet, noisy, sigma=(step / 1000).expand(2) + 1e-4, size=(96, 64), guidance_scale=1,
                prompts=stacked([adapter.encode_prompt("ohwx person")] * 2, CPU),
            )  # fmt: skip
    finally:
        handle.remove()
    latents, steps, ours = told.pop()
    assert torch.equal(latents, noisy)
    assert steps.tolist() == [int(step)] * 2
    for number in range(2):
        assert torch.equal(ours["encoder_hidden_states"][number], theirs["encoder_hidden_states"][0])
        for name, value in theirs["added_cond_kwargs"].items():
            assert torch.equal(ours["added_cond_kwargs"][name][number], value[0]), name


def test_only_the_chosen_layers_match(adapter):
    counts = {}
    for targets in ("attention", "attention_mlp", "all_linear", r".*attn2\.to_q"):
        denoiser = adapter.load_denoiser(dtype=torch.float32, quantization=Quantization.NONE)
        parameters = add_lora(denoiser, pattern=adapter.target_pattern(targets), rank=2, alpha=2, seed=0)
        counts[targets] = len(parameters) // 2
    blocks, places = 2 * 2 + 2 * 1 + 1 * 1 + 3 * 1 + 3 * 2, 2 + 2 + 1 + 3 + 3
    assert list(counts.values()) == [8 * blocks, 10 * blocks, 10 * blocks + 2 * places, blocks]


def test_the_loss_falls_on_a_fixed_batch(adapter, denoiser):
    parameters = add_lora(denoiser, pattern=adapter.target_pattern("all_linear"), rank=8, alpha=8, seed=0)
    prompts = stacked([adapter.encode_prompt("ohwx person")] * 2, CPU)
    clean = torch.stack([adapter.encode_image(pixels(seed)) for seed in range(2)])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 0.8])
    optimizer = torch.optim.AdamW(parameters, lr=2e-2)
    losses = []
    for _ in range(30):
        predicted = adapter.predict(
            denoiser, adapter.add_noise(clean, noise, sigma), sigma=sigma, prompts=prompts, size=(48, 64),
            guidance_scale=1,
        )  # fmt: skip
        loss = (predicted - adapter.target(clean, noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
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
    changes = {"steps": 4, "sample_every": 0, **changes}

    def stop(progress):
        if progress.phase is Phase.TRAINING and progress.step == 3:
            raise JobYielded
        return Requests()

    straight = train("straight", **changes)
    with pytest.raises(JobYielded):
        train(report=stop, **changes)
    resumed = train(**changes)
    assert resumed.steps == 4
    assert np.isfinite([loss for _, loss in straight.validation_losses]).all()
    assert resumed.validation_losses == straight.validation_losses
    weights, again = load_file(straight.path), load_file(resumed.path)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert any(value.abs().max() > 0 for key, value in weights.items() if "lora_B" in key)


def test_a_sample_on_the_way_is_what_diffusers_makes_with_the_file(train, training_spec, tmp_path, pipeline):
    trained = train(learning_rate=0.1)
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}

    def picture():
        seed = torch.Generator().manual_seed(training_spec.sample_seed)
        guidance = training_spec.sample_guidance_scale
        return (
            pipeline("a portrait of ohwx", generator=seed, guidance_scale=guidance, **options).images[0] * 255
        )

    plain = picture()
    pipeline.load_lora_weights(trained.path.parent, weight_name="lora.safetensors")
    adapted = picture()
    pipeline.unload_lora_weights()
    with Image.open(tmp_path / "run" / "samples" / "00000006-0.png") as opened:
        sample = np.asarray(opened, dtype=np.float32)
    assert np.abs(sample - adapted).max() <= 1
    assert np.abs(sample - plain).max() > 1


def test_the_file_names_the_unet_and_what_it_was_made_for(train):
    path = train(steps=1, lr_warmup_steps=0, sample_every=0, targets="attention").path
    keys, metadata = read_header(path)
    assert component_of(path) == "unet"
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


def test_sampling_can_be_stopped_after_each_step(adapter, denoiser):
    request = SampleRequest(resolution=64, num_inference_steps=5, guidance_scale=5, seed=0)
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        adapter.sample(denoiser, adapter.encode_prompt("ohwx"), request, stop, no_prompt={})
    assert len(calls) == 2


def test_a_model_that_does_not_predict_the_noise_is_refused(tiny_sdxl_model, tmp_path):
    EulerDiscreteScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    model = tiny_sdxl_model.model_copy(update={"path": tmp_path})
    with pytest.raises(
        InvalidSpec, match=r"Tiny SDXL has the prediction_type 'v_prediction'; .* with 'epsilon' only"
    ):
        SdxlAdapter(model, device=CPU)
