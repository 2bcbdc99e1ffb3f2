import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from isengard.domain.job import Requests
from isengard.domain.model import Family
from isengard.domain.performance import Quantization
from isengard.engines.native.adapter import SampleRequest
from isengard.engines.native.flux import FluxAdapter, pack, position_ids
from isengard.engines.native.lora import add_lora
from isengard.engines.native.trainer import NativeTrainer
from isengard.settings import ASSETS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    pipeline = FluxPipeline.from_pretrained(tiny_model.path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def adapter(tiny_model):
    return FluxAdapter(tiny_model, device=CPU)


def test_packing_and_positions_are_those_of_diffusers():
    latents = torch.randn(16, 12, 8)
    theirs = FluxPipeline._pack_latents(latents[None], 1, 16, 12, 8)[0]
    assert torch.equal(pack(latents), theirs)
    ids = FluxPipeline._prepare_latent_image_ids(1, 6, 4, CPU, torch.float32)
    assert torch.equal(position_ids(width=4, height=6), ids)


def test_an_encoded_image_decodes_to_itself(adapter, pipeline):
    with Image.open(ASSETS / "characters" / "nova" / "01.png") as opened:
        picture = opened.convert("RGB")
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
    latents = adapter.encode_image(pixels)
    assert latents.shape == (64, 64)
    unpacked = pipeline._unpack_latents(latents[None], 128, 128, pipeline.vae_scale_factor)
    unpacked = unpacked / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    with torch.no_grad():
        decoded = pipeline.vae.decode(unpacked).sample[0]
    assert (decoded - pixels).abs().mean() < 0.08


def test_prompts_are_embedded_as_the_pipeline_does_it(adapter, pipeline):
    ours = adapter.encode_prompt("ohwx person")
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt("ohwx person", prompt_2=None, max_sequence_length=16)
    assert torch.equal(ours["prompt_embeds"], embeds[0])
    assert torch.equal(ours["pooled_prompt_embeds"], pooled[0])


def test_a_sample_on_the_way_is_what_diffusers_makes_with_the_file(
    tiny_model, training_images, training_spec, tmp_path, pipeline
):
    trained = NativeTrainer(adapters={Family.FLUX: FluxAdapter}, device=CPU).train(
        spec=training_spec,
        model=tiny_model,
        images=training_images,
        run_dir=tmp_path,
        cache_dir=tmp_path / "cache",
        report=lambda _progress: Requests(),
    )
    options = {
        "height": 64,
        "width": 64,
        "num_inference_steps": training_spec.sample_steps,
        "guidance_scale": training_spec.sample_guidance_scale,
        "max_sequence_length": 16,
        "output_type": "np",
    }

    def picture():
        seed = torch.Generator().manual_seed(training_spec.sample_seed)
        return pipeline("a portrait of ohwx", generator=seed, **options).images[0] * 255

    plain = picture()
    pipeline.load_lora_weights(trained.path.parent, weight_name="lora.safetensors")
    adapted = picture()
    pipeline.unload_lora_weights()
    with Image.open(tmp_path / "samples" / "00000006-0.png") as opened:
        sample = np.asarray(opened, dtype=np.float32)
    assert np.abs(sample - adapted).max() <= 1
    assert np.abs(sample - plain).max() > 1


def test_only_the_chosen_layers_match(adapter, tiny_model):
    counts = {}
    for targets in ("attention", "attention_mlp", "all_linear", r"transformer_blocks\.0\.attn\.to_q"):
        denoiser = adapter.load_denoiser(dtype=torch.float32, quantization=Quantization.NONE)
        parameters = add_lora(denoiser, pattern=adapter.target_pattern(targets), rank=2, alpha=2, seed=0)
        counts[targets] = len(parameters) // 2
    assert list(counts.values()) == [11, 17, 20, 1]


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
        adapter.sample(denoiser, prompt, request, stop, no_prompt={})
    assert len(calls) == 2
