"""The kernel that computes attention: whether it can be had here, and its use for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from isengard.domain.model import Family
from isengard.domain.performance import Attention
from isengard.errors import InvalidSpec

_BACKENDS = {
    Attention.NATIVE: "native",
    Attention.CUDNN: "_native_cudnn",
    Attention.FLASH: "flash",
    Attention.FLASH_3: "_flash_3",
}


@contextmanager
def attention_backend(attention: Attention) -> Iterator[None]:
    """Compute attention with this kernel inside the block, in every model of diffusers that lets one choose.

    Hold it around the backward pass too: gradient checkpointing computes attention again there.
    """
    from diffusers.models.attention_dispatch import attention_backend as chosen

    with chosen(_BACKENDS[attention]):
        yield


def check(attention: Attention, device: torch.device, *, family: Family, training: bool = False) -> None:
    """Raise InvalidSpec when this kernel cannot be used: the device or a package lacks, or it has no gradient."""
    if attention is Attention.NATIVE:
        return
    if family is Family.SDXL:
        raise InvalidSpec(
            f"attention {attention} cannot be chosen for SDXL, whose attention PyTorch computes; choose native"
        )
    if training and attention is Attention.FLASH_3:
        raise InvalidSpec(
            "attention flash_3 cannot train: diffusers' form of it computes no gradient; choose cudnn, "
            "which is about as fast on this card, or native"
        )
    if device.type != "cuda":
        raise InvalidSpec(
            f"attention {attention} needs an NVIDIA GPU, and the device is {device}; choose native"
        )
    _check_card(attention, torch.cuda.get_device_capability(device))  # pragma: gpu
    _check_package(attention)  # pragma: gpu


def _check_card(attention: Attention, capability: tuple[int, int]) -> None:
    known = "{}.{}".format(*capability)
    if attention is Attention.FLASH_3 and capability[0] != 9:
        raise InvalidSpec(
            f"attention flash_3 runs on Hopper cards only (compute capability 9.0), this one has {known}; "
            "choose cudnn or native"
        )
    if capability < (8, 0):
        raise InvalidSpec(
            f"attention {attention} needs a card of compute capability 8.0 (Ampere) or newer, this one has {known}; "
            "choose native"
        )


def _check_package(attention: Attention) -> None:
    try:
        with attention_backend(attention):
            pass
    except RuntimeError as error:
        raise InvalidSpec(f"attention {attention} cannot be used here; choose native. {error}") from error
