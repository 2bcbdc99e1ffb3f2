import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from isengard.domain.model import Family
from isengard.domain.performance import Attention
from isengard.domain.training import Precision
from isengard.engines import attention as kernels
from isengard.engines.attention import attention_backend, check
from isengard.errors import InvalidSpec

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def active():
    return str(_AttentionBackendRegistry.get_active_backend()[0].value)


def test_a_kernel_is_used_inside_the_block_only():
    before = active()
    with attention_backend(Attention.CUDNN):
        assert active() == "_native_cudnn"
    assert active() == before


def test_pytorchs_own_choice_works_everywhere():
    check(Attention.NATIVE, CPU, family=Family.SDXL, training=True)


@pytest.mark.parametrize(
    ("attention", "device", "family", "training", "words"),
    [
        (
            Attention.CUDNN,
            CPU,
            Family.FLUX,
            False,
            "attention cudnn needs an NVIDIA GPU, and the device is cpu",
        ),
        (Attention.FLASH, GPU, Family.SDXL, False, "attention flash cannot be chosen for SDXL"),
        (
            Attention.FLASH_3,
            GPU,
            Family.FLUX,
            True,
            "flash_3 cannot train.* computes no gradient; choose cudnn",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(attention, device, family, training, words):
    with pytest.raises(InvalidSpec, match=words):
        check(attention, device, family=family, training=training)


@pytest.mark.parametrize(
    ("attention", "capability", "words"),
    [
        (Attention.FLASH_3, (8, 9), r"Hopper cards only \(compute capability 9.0\), this one has 8.9"),
        (Attention.FLASH_3, (12, 0), "Hopper cards only"),
        (Attention.CUDNN, (7, 5), r"8.0 \(Ampere\) or newer, this one has 7.5"),
    ],
)
def test_a_card_that_is_too_old_or_too_new_is_refused(attention, capability, words):
    with pytest.raises(InvalidSpec, match=words):
        kernels._check_card(attention, capability)


def test_a_card_that_fits_is_taken():
    kernels._check_card(Attention.FLASH_3, (9, 0))
    kernels._check_card(Attention.FLASH, (8, 6))


def test_a_missing_package_is_named():
    with pytest.raises(InvalidSpec, match=r"attention flash cannot be used here; choose native.*flash-attn"):
        kernels._check_package(Attention.FLASH)


def test_a_kernel_without_a_package_needs_none():
    kernels._check_package(Attention.CUDNN)


def test_float32_is_refused_for_kernels_of_bfloat16(training_spec, monkeypatch):
    from isengard.engines.native import trainer

    monkeypatch.setattr(trainer, "check", lambda *_args, **_options: None)
    spec = training_spec.model_copy(update={"attention": Attention.CUDNN, "precision": Precision.FP32})
    with pytest.raises(InvalidSpec, match="cudnn computes in bfloat16, and precision is fp32"):
        trainer.check_attention(spec, Family.FLUX, device=GPU)
