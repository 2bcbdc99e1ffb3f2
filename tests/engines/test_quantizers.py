"""Frozen networks in fewer bits: what they predict, and that they train and make images on the CPU."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from isengard.domain.generation import LocalLora
from isengard.domain.job import Requests
from isengard.domain.model import Family
from isengard.domain.performance import GenerationPlan, Quantization
from isengard.domain.training import TrainingSpec
from isengard.engines import libraries
from isengard.engines.loading import load_network, untold
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.lora import add_lora
from isengard.engines.native.sdxl import SdxlAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.engines.quantize import quantizable
from isengard.errors import InvalidSpec
from isengard.settings import ASSETS, ROOT
from tests.engines.demo_model import MODEL, SPEC, write_lora
from tests.engines.test_block_streaming import inputs

CPU = torch.device("cpu")
#: Largest error that a quantization of the demo model may make: of a predicted velocity, relative to its size; and of
#: an image with a LoRA on average, of 256 grey levels.
ERRORS = {
    Quantization.INT8: (0.02, 2),
    Quantization.FP8: (0.06, 8),
    Quantization.FP8_MATMUL: (0.08, 10),
    Quantization.NF4: (0.16, 25),
}


@pytest.fixture(params=list(ERRORS))
def quantization(request):
    if request.param is Quantization.FP8_MATMUL:
        pytest.importorskip("isengard.engines.fp8")
    return request.param


def load(quantization):
    return load_network(
        FluxTransformer2DModel, ASSETS / "demo-base" / "transformer", dtype=torch.bfloat16, device=CPU,
        quantization=quantization, on_part=untold,
    )  # fmt: skip


def predict(network):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return network(**inputs(network))[0].float()


@pytest.fixture(scope="module")
def exact():
    return predict(load(Quantization.NONE))


def test_a_quantized_network_predicts_nearly_the_same(quantization, exact):
    error = (predict(load(quantization)) - exact).norm() / exact.norm()
    assert 0 < error < ERRORS[quantization][0]


def test_gradients_reach_the_adapter_and_the_base_stays_as_it_is(quantization):
    network = load(quantization)
    names = list(quantizable(network))
    before = {name: whole(network.get_submodule(name)) for name in names}
    parameters = add_lora(network, pattern=r".*\.(to_q|proj_mlp)", rank=4, alpha=4, seed=0)
    predict(network)  # without gradients first: nothing may be rearranged for speed
    with torch.autocast("cpu", torch.bfloat16):
        network(**inputs(network))[0].float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
    assert sum(float(parameter.grad.abs().sum()) for parameter in parameters) > 0
    after = {}
    for name in names:
        layer = network.get_submodule(name)
        after[name] = whole(getattr(layer, "base_layer", layer))
    assert all(map(torch.equal, before.values(), after.values()))


def whole(layer):
    """What a layer multiplies with, found out from outside: the rows of the identity, in bfloat16."""
    with torch.no_grad():
        return layer(torch.eye(layer.in_features, dtype=torch.bfloat16))


@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_a_training_on_a_quantized_model_ends_in_a_lora_that_works_with_it(
    request, quantization, family, training_spec, training_images, tmp_path
):
    model = request.getfixturevalue({"flux": "tiny_model", "sdxl": "tiny_sdxl_model"}[family])
    spec = TrainingSpec.model_validate(
        {
            **training_spec.model_dump(), "quantization": quantization, "steps": 2, "sample_every": 2 * (family == "flux"),
            "validate_every": 0, "lr_warmup_steps": 0, "learning_rate": 0.1, "ema_decay": 0.1,
        }
    )  # fmt: skip
    trained = NativeTrainer(adapters={Family.FLUX: FluxAdapter, Family.SDXL: SdxlAdapter}, device=CPU).train(
        spec=spec, model=model, images=training_images[:2], run_dir=tmp_path, cache_dir=tmp_path / "cache",
        report=lambda _progress: Requests(),
    )  # fmt: skip
    lora = LocalLora(id="x", name="x", path=trained.path, trigger="ohwx")
    plan = GenerationPlan(quantization=quantization)
    generator = PipelineGenerator(device=CPU, plan=lambda _card, _spec: plan)
    plain, adapted = (picture(generator, tmp_path, model, loras) for loras in ([], [lora]))
    assert np.isfinite(adapted).all()
    assert np.abs(plain - adapted).max() > 0


def picture(generator, folder, model=MODEL, loras=()):
    (made,) = generator.generate(
        spec=SPEC, prompt=SPEC.prompt, model=model, loras=loras, preview=folder / "preview.png",
        report=lambda _progress: Requests(),
    )  # fmt: skip
    return np.asarray(made.image, dtype=np.float32)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "mira.safetensors")


@pytest.fixture(scope="module")
def plain_picture(lora, tmp_path_factory):
    return picture(PipelineGenerator(device=CPU), tmp_path_factory.mktemp("plain"), loras=[lora])


def test_an_image_of_a_quantized_model_is_nearly_the_plain_one(quantization, lora, plain_picture, tmp_path):
    plan = GenerationPlan(quantization=quantization)
    made = picture(PipelineGenerator(device=CPU, plan=lambda _card, _spec: plan), tmp_path, loras=[lora])
    assert 0 < np.abs(made - plain_picture).mean() < ERRORS[quantization][1]


def test_without_the_package_of_the_4_bit_weights_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(libraries, "show_bitsandbytes", lambda: None)
    monkeypatch.setitem(libraries.sys.modules, "bitsandbytes", None)
    with pytest.raises(
        InvalidSpec, match=r"quantization nf4 needs the package bitsandbytes, .* or choose int8"
    ):
        load(Quantization.NF4)


def test_bitsandbytes_is_out_of_sight_until_somebody_asks_for_it():
    program = "import sys, isengard.engines; print(sys.modules['bitsandbytes'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["None"]
