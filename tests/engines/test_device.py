"""Choosing a device, and memory that runs out."""

import pytest
import torch

from isengard.engines.device import (
    choose_device,
    compute_dtype,
    free_cached,
    free_memory,
    memory_used,
    plain_out_of_memory,
    total_memory,
)
from isengard.equipment import cards_for
from isengard.errors import InvalidSpec, OutOfMemory
from isengard.settings import Settings

CPU = torch.device("cpu")


def test_cpu_is_found_and_computes_in_float32():
    assert choose_device("cpu") == CPU
    assert compute_dtype(CPU) == torch.float32
    assert compute_dtype(torch.device("cuda")) == torch.bfloat16


def test_auto_finds_a_device():
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


def test_every_card_has_an_id_of_its_own():
    cards = cards_for(Settings(device="auto"))
    assert len(set(cards)) == torch.cuda.device_count()


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InvalidSpec, match="'cuda:63' is not on this machine"):
        choose_device("cuda:63")


def test_memory_figures_are_plausible():
    free_cached(CPU)
    assert 2**20 < memory_used(CPU) < total_memory(CPU)
    assert 0 < free_memory(CPU) < total_memory(CPU)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
        MemoryError(),
    ],
)
def test_every_way_of_running_out_of_memory_is_one_error_with_advice(error):
    with (
        pytest.raises(OutOfMemory, match="lower batch_size"),
        plain_out_of_memory(CPU, advice="lower batch_size"),
    ):
        raise error


def test_an_allocation_that_is_truly_too_large_is_out_of_memory():
    with pytest.raises(OutOfMemory, match="memory of cpu"), plain_out_of_memory(CPU, advice="use less"):
        torch.empty(2**60)


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="shape"), plain_out_of_memory(CPU, advice="use less"):
        raise RuntimeError("shape mismatch")
