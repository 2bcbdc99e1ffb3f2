"""The spine on a CUDA device: ``pytest -m gpu``. Everything else is tested on the CPU."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from isengard.domain.generation import ImageSpec, LocalLora
from isengard.domain.job import Phase, Requests
from isengard.domain.model import Family
from isengard.domain.performance import GenerationPlan, StepCache
from isengard.domain.training import TrainingSpec
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.flux2 import Flux2Adapter
from isengard.engines.native.sdxl import SdxlAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.engines.pipelines.verifier import PipelineVerifier
from isengard.errors import JobYielded

pytestmark = pytest.mark.gpu


@pytest.fixture
def train(tiny_model, training_images, training_spec, tmp_path):
    def run(name="run", *, stop_at=None, model=tiny_model, **changes):
        def report(progress):
            if progress.phase is Phase.TRAINING and progress.step == stop_at:
                raise JobYielded
            return Requests()

        (tmp_path / name).mkdir(exist_ok=True)
        adapters = {Family.FLUX: FluxAdapter, Family.FLUX2: Flux2Adapter, Family.SDXL: SdxlAdapter}
        return NativeTrainer(adapters=adapters, device=torch.device("cuda", 0)).train(
            spec=TrainingSpec.model_validate({**training_spec.model_dump(), **changes}),
            model=model,
            images=training_images,
            run_dir=tmp_path / name,
            cache_dir=tmp_path / "cache",
            report=report,
        )

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"precision": "bf16", "gradient_checkpointing": True},
        {"quantization": "int8"},
        {"quantization": "fp8"},
        {"quantization": "nf4"},
        {"quantization": "nf4", "streamed_blocks": 2, "gradient_checkpointing": True},
        {"text_encoders": "int8"},
        {"text_encoders": "cpu"},
        {"optimizer": "adamw8bit", "ema_decay": 0},
    ],
)
def test_a_training_lowers_the_loss_stops_and_goes_on(train, changes):
    long = {"steps": 40, "learning_rate": 2e-2, "save_every": 40, "sample_every": 0, **changes}
    with pytest.raises(JobYielded):
        train(stop_at=20, **long)
    losses = dict(train(**long).validation_losses)
    assert losses[40] < 0.97 * losses[0]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny_model", {}),
        ("tiny_flux2_model", {}),
        ("tiny_flux2_model", {"quantization": "int8"}),
        ("tiny_sdxl_model", {}),
        ("tiny_sdxl_model", {"quantization": "int8"}),
        ("tiny_sdxl_model", {"quantization": "fp8"}),
        ("tiny_sdxl_model", {"quantization": "nf4"}),
    ],
)
def test_a_lora_trained_on_the_gpu_is_verified_there(request, train, name, changes, tmp_path):
    model = request.getfixturevalue(name)
    trained = train(model=model, precision="bf16", ema_decay=0, **changes)
    generator = PipelineGenerator(device=torch.device("cuda", 0))
    proof = PipelineVerifier(generator=generator).verify(
        model=model,
        lora=LocalLora(id="x", name="x", path=trained.path, trigger="ohwx"),
        prompt="a portrait of ohwx",
        out_dir=tmp_path,
        resolution=64,
        steps=2,
        report=lambda _progress: Requests(),
    )
    assert proof.image_difference > 0
    generator.unload()


def test_memory_is_given_back_after_a_training(train):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    train()
    assert torch.cuda.memory_allocated() <= before + 2**20


@pytest.mark.parametrize("cache", [StepCache.NONE, StepCache.FIRST_BLOCK])
def test_compiled_blocks_make_the_image_of_plain_ones_with_each_lora_without_compiling_again(
    train, tiny_model, cache, tmp_path
):
    """By inductor, in bfloat16: pixels of 0..255 differ by 4 on average at most."""
    loras = [
        LocalLora(id=name, name=name, path=train(name, precision="bf16", ema_decay=0, seed=seed).path)
        for seed, name in enumerate(("a", "b"))
    ]
    spec = ImageSpec(
        base_model="x", prompt="a portrait", width=64, height=96, num_inference_steps=4, cache=cache
    )

    def make(compiled):
        generator = PipelineGenerator(
            device=torch.device("cuda", 0), plan=lambda _card, _spec: GenerationPlan(compile=compiled)
        )
        images, graphs = [], []
        for lora in (*loras, loras[0]):
            made = generator.generate(
                spec=spec,
                prompt="a portrait",
                model=tiny_model,
                loras=[lora],
                preview=tmp_path / "p.png",
                report=lambda _progress: Requests(),
            )
            images += [np.asarray(one.image, dtype=float) for one in made]
            graphs.append(counters["stats"]["unique_graphs"])
        generator.unload()
        return images, graphs

    (plain, _), (fast, graphs) = make(compiled=False), make(compiled=True)
    assert len(set(graphs)) == 1
    assert all(np.abs(one - other).mean() < 4 for one, other in zip(plain, fast, strict=True))
