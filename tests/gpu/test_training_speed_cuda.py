"""What makes a training fast, on a CUDA device."""

import functools

import pytest
import torch
from safetensors.torch import load_file

from isengard.domain.job import Requests
from isengard.domain.model import Family
from isengard.domain.training import TrainingSpec
from isengard.engines.fp8 import Fp8Linear, supported
from isengard.engines.native import trainer
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.sdxl import SdxlAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.errors import InvalidSpec

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
BARE = {"steps": 6, "precision": "bf16", "sample_every": 0, "validate_every": 0, "ema_decay": 0.0}


@pytest.fixture
def train(tiny_model, training_images, training_spec, tmp_path):
    def run(name, *, model=tiny_model, **changes):
        (tmp_path / name).mkdir()
        trained = NativeTrainer(
            adapters={Family.FLUX: FluxAdapter, Family.SDXL: SdxlAdapter}, device=CUDA
        ).train(
            spec=TrainingSpec.model_validate({**training_spec.model_dump(), **BARE, **changes}),
            model=model,
            images=training_images,
            run_dir=tmp_path / name,
            cache_dir=tmp_path / "cache",
            report=lambda _progress: Requests(),
        )
        return load_file(trained.path)

    return run


def off(one, other):
    """Distance of two adapters by the size of one."""
    away = sum((one[key] - other[key]).square().sum() for key in one)
    return (away / sum(value.square().sum() for value in other.values())).sqrt().item()


@pytest.mark.parametrize("name", ["tiny_model", "tiny_sdxl_model"])
@pytest.mark.parametrize("kept", [0, 2**30])
def test_no_step_waits_for_the_device(request, train, monkeypatch, name, kept):
    step, done = trainer._Run._train_step, []

    @functools.wraps(step)
    def watched(run):
        torch.cuda.set_sync_debug_mode("error" if done else "default")  # the first step sets things up
        try:
            step(run)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        done.append(None)

    monkeypatch.setattr(trainer._Run, "_train_step", watched)
    monkeypatch.setattr("isengard.engines.native.dataset.KEPT_ON_DEVICE", kept)
    train("run", model=request.getfixturevalue(name))
    assert len(done) == 6


@pytest.mark.parametrize("attention", ["cudnn", "flash"])
def test_attention_kernels_train_alike(train, attention):
    plain = train("plain")
    try:
        other = train("other", attention=attention)
    except InvalidSpec as error:
        pytest.skip(str(error))
    assert off(other, plain) < 0.05


def test_compiled_blocks_train_alike(train):
    plain = train("plain")
    compiled = train("compiled", compile=True, gradient_checkpointing=True)
    assert off(compiled, plain) < 0.05


@pytest.mark.skipif(
    torch.cuda.is_available() and not supported(CUDA), reason="no 8-bit products on this card"
)
@pytest.mark.parametrize("keep_transpose", [False, True])
def test_eight_bit_products_are_near(keep_transpose):
    plain = torch.nn.Linear(3072, 12288).to(CUDA, torch.bfloat16).requires_grad_(False)
    layer = Fp8Linear.from_linear(plain, keep_transpose=keep_transpose)
    x = torch.randn(4608, 3072, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(4608, 12288, device=CUDA, dtype=torch.bfloat16)
    results = []
    for made in (plain, layer):
        y = made(x)
        y.backward(gradient)
        results.append((y.detach(), x.grad))
        x.grad = None
    for one, other in zip(*results, strict=True):
        assert ((one - other).float().norm() / one.float().norm()) < 0.05


def test_two_gpus_do_what_one_does_with_twice_the_batch(train):
    if torch.cuda.device_count() < 2:
        with pytest.raises(InvalidSpec, match="devices is 2, and this machine has 1"):
            train("two", devices=2)
        return
    assert off(train("two", devices=2, batch_size=1), train("one", batch_size=2)) < 0.02
