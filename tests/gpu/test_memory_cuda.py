"""How models are held in a CUDA device's memory: ``pytest -m gpu``."""

import gc

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from isengard.domain.job import Requests
from isengard.domain.performance import GenerationPlan, Offload, Quantization, TextEncoders
from isengard.engines.loading import load_network, untold
from isengard.engines.pipelines.generator import PipelineGenerator
from tests.engines.demo_model import MODEL, SPEC, write_lora
from tests.engines.test_block_streaming import FLUX, inputs, same, trained

pytestmark = pytest.mark.gpu


@pytest.fixture
def device():
    return torch.device("cuda", 0)


def load(device, streamed, quantization=Quantization.NONE):
    return load_network(
        FluxTransformer2DModel, FLUX, dtype=torch.bfloat16, device=device, quantization=quantization,
        streamed_blocks=streamed, on_part=untold,
    )  # fmt: skip


@pytest.mark.parametrize("quantization", list(Quantization))
def test_training_with_streamed_blocks_is_the_plain_training(device, quantization):
    runs = [trained(load(device, streamed, quantization), bf16=True) for streamed in (0, 4, None)]
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


def test_streamed_blocks_take_no_memory_on_the_device_but_for_two(device):
    def peak(streamed):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        network = load(device, streamed)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            network(**inputs(network))
        return torch.cuda.max_memory_allocated(device) - before

    peak(0)
    assert peak(None) < 0.8 * peak(0)


def test_pinned_memory_is_given_back(device):
    for _ in range(3):
        network = load(device, None)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            network(**inputs(network))
        del network
        gc.collect()
    torch.cuda.synchronize(device)


@pytest.mark.parametrize("quantization", list(Quantization))
@pytest.mark.parametrize("offload", list(Offload))
@pytest.mark.parametrize("text_encoders", list(TextEncoders))
def test_each_placement_makes_nearly_the_plain_image(device, tmp_path, quantization, offload, text_encoders):
    lora = write_lora(tmp_path / "mira.safetensors")

    def picture(plan):
        made = PipelineGenerator(device=device, plan=lambda _card, _spec: plan)
        images = [
            image.image
            for loras in ([], [lora])
            for image in made.generate(
                spec=SPEC.model_copy(update={"count": 2}), prompt=SPEC.prompt, model=MODEL, loras=loras,
                preview=tmp_path / "preview.png", report=lambda _progress: Requests(),
            )
        ]  # fmt: skip
        made.unload()
        return np.stack([np.asarray(image, dtype=np.float32) for image in images])

    plan = GenerationPlan(quantization=quantization, offload=offload, text_encoders=text_encoders)
    assert np.abs(picture(plan) - picture(GenerationPlan())).mean() < 25
