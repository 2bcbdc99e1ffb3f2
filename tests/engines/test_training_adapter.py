"""A distilled model in our trainer: its training adapter is there in training, away for pictures, never in the file."""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from isengard.domain.job import Phase, Requests
from isengard.domain.model import Family
from isengard.domain.performance import Quantization
from isengard.domain.training import TrainingSpec
from isengard.engines.native.adapter import stacked
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.engines.native.training_adapter import TrainingAdapter
from isengard.errors import JobYielded, LoraRefused

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    pipeline = FluxPipeline.from_pretrained(tiny_model.path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def file(pipeline, tmp_path_factory):
    """A LoRA of all linear layers in the blocks."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, module in pipeline.transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and "blocks." in name:
            made[f"transformer.{name}.lora_A.weight"] = torch.randn(
                2, module.in_features, generator=generator
            )
            made[f"transformer.{name}.lora_B.weight"] = torch.randn(
                module.out_features, 2, generator=generator
            )
    path = tmp_path_factory.mktemp("adapter") / "pytorch_lora_weights.safetensors"
    save_file(made, path)
    return path


@pytest.fixture
def distilled(tiny_model, file):
    card = tiny_model.card.model_copy(update={"trains": False, "training_adapter": "acme/adapter"})
    return tiny_model.model_copy(update={"card": card, "training_adapter": file})


@pytest.fixture
def train(distilled, training_spec, training_images, tmp_path):
    def trained(name="run", *, model=distilled, report=lambda _progress: Requests(), **changes):
        (tmp_path / name).mkdir(exist_ok=True)
        return NativeTrainer(adapters={Family.FLUX: FluxAdapter}, device=CPU).train(
            spec=TrainingSpec.model_validate({**training_spec.model_dump(), **changes}),
            model=model,
            images=training_images,
            run_dir=tmp_path / name,
            cache_dir=tmp_path / "cache",
            report=report,
        )

    return trained


@pytest.fixture
def predict(tiny_model):
    adapter = FluxAdapter(tiny_model, device=CPU)
    prompts = stacked([adapter.encode_prompt("ohwx person")], CPU)
    noisy = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def predicted(denoiser):
        return adapter.predict(
            denoiser, noisy, sigma=torch.tensor([0.5]), prompts=prompts, size=(64, 64), guidance_scale=1
        )

    return predicted


def denoiser_of(model, quantization=Quantization.NONE, dtype=torch.float32):
    return FluxAdapter(model, device=CPU).load_denoiser(dtype=dtype, quantization=quantization)


def test_it_gives_what_diffusers_gives_with_the_same_file(distilled, file, pipeline, predict):
    denoiser = denoiser_of(distilled)
    plain = predict(denoiser)
    adapter = TrainingAdapter(denoiser, file, dtype=torch.float32, device=CPU)
    ours = predict(denoiser)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    try:
        torch.testing.assert_close(ours, predict(pipeline.transformer), rtol=1e-4, atol=1e-4)
    finally:
        pipeline.unload_lora_weights()
    assert (ours - plain).abs().max() > 0.1
    with adapter.off():
        assert torch.equal(predict(denoiser), plain)
    assert torch.equal(predict(denoiser), ours)


def test_a_quantized_network_takes_it_too(distilled, file, predict):
    denoiser = denoiser_of(distilled, Quantization.INT8, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        plain = predict(denoiser)
        adapter = TrainingAdapter(denoiser, file, dtype=torch.bfloat16, device=CPU)
        assert (predict(denoiser) - plain).abs().max() > 0.1
        with adapter.off():
            assert torch.equal(predict(denoiser), plain)


def test_without_a_file_nothing_changes(distilled, predict):
    denoiser = denoiser_of(distilled)
    plain = predict(denoiser)
    TrainingAdapter(denoiser, None, dtype=torch.float32, device=CPU)
    assert torch.equal(predict(denoiser), plain)


@pytest.mark.parametrize(("name", "width"), [("transformer_blocks.7.attn.to_q", 32), ("x_embedder", 3)])
def test_an_adapter_of_another_model_is_refused(distilled, tmp_path, name, width):
    path = tmp_path / "other.safetensors"
    save_file(
        {f"transformer.{name}.lora_A.weight": torch.ones(2, width), f"transformer.{name}.lora_B.weight": torch.ones(32, 2)},
        path,
    )  # fmt: skip
    with pytest.raises(
        LoraRefused, match=rf"does not fit this model: it has no layer '{name}' of 32 x {width}"
    ):
        TrainingAdapter(denoiser_of(distilled), path, dtype=torch.float32, device=CPU)


def test_it_counts_in_training_and_validation_and_is_not_in_the_file(train, tiny_model):
    changes = {"steps": 2, "ema_decay": 0, "save_every": 2, "validate_every": 2, "sample_every": 0}
    with_it, without = train(**changes), train("plain", model=tiny_model, **changes)
    weights, others = load_file(with_it.path), load_file(without.path)
    assert weights.keys() == others.keys()
    assert any(not torch.equal(weights[key], others[key]) for key in weights)
    assert with_it.validation_losses[0] != without.validation_losses[0]


def test_a_picture_on_the_way_is_made_without_it(train, training_spec, tmp_path, pipeline):
    trained = train(steps=2, ema_decay=0, save_every=2, sample_every=2, validate_every=0)
    pipeline.load_lora_weights(trained.path.parent, weight_name="lora.safetensors")
    try:
        theirs = pipeline(
            "a portrait of ohwx", height=64, width=64, num_inference_steps=training_spec.sample_steps,
            guidance_scale=training_spec.sample_guidance_scale, max_sequence_length=16,
            generator=torch.Generator().manual_seed(training_spec.sample_seed),
        ).images[0]  # fmt: skip
    finally:
        pipeline.unload_lora_weights()
    with Image.open(tmp_path / "run" / "samples" / "00000002-0.png") as sample:
        difference = np.abs(np.asarray(sample, dtype=float) - np.asarray(theirs, dtype=float))
    assert difference.max() <= 1


@pytest.mark.parametrize("changes", [{}, {"quantization": "int8", "gradient_checkpointing": True}])
def test_a_training_with_it_resumes_exactly(train, changes):
    changes = {"steps": 4, "sample_every": 0, **changes}

    def stop(progress):
        if progress.phase is Phase.TRAINING and progress.step == 3:
            raise JobYielded
        return Requests()

    straight = train("straight", **changes)
    with pytest.raises(JobYielded):
        train(report=stop, **changes)
    resumed = train(**changes)
    weights, again = load_file(straight.path), load_file(resumed.path)
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert resumed.validation_losses == straight.validation_losses
