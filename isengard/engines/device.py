"""The device tensors live on: which one, how much memory it has, and running out of it in plain words."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

from isengard.domain.memory import CONTEXT_BYTES, Kind, Machine
from isengard.errors import InvalidSpec, OutOfMemory

GIB = 2**30


def choose_device(name: str) -> torch.device:
    """The device for ``Settings.device``; ``auto`` takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        InvalidSpec: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)  # pragma: gpu
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    count = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 1)
    if (device.index or 0) >= count:
        raise InvalidSpec(f"device {name!r} is not on this machine ({count} found); use auto or cpu")
    return device


def cards() -> tuple[str, ...]:
    """The ids of the CUDA devices that this process sees, by index: a card has the same id in every container."""
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return tuple(str(found.uuid) for found in properties)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device, if it is not there; the CPU does not wait until it has arrived."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)  # pragma: gpu
    return tensor.to(device)


def compute_dtype(device: torch.device) -> torch.dtype:
    """What a pipeline computes in: bfloat16 on CUDA, float32 elsewhere (bfloat16 is slower on most CPUs)."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def total_memory(device: torch.device) -> int:
    """Bytes of the device, or of this machine for the CPU and Apple's GPU, which shares it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)  # pragma: gpu
    return int(psutil.virtual_memory().total)


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses at the moment."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])  # pragma: gpu
    return int(psutil.virtual_memory().available)


def memory_used(device: torch.device) -> int:
    """Most bytes held on the device so far; on the CPU, what this process holds now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))  # pragma: gpu
    return int(psutil.Process().memory_info().rss)


def reset_peak(device: torch.device) -> None:
    """Let `memory_used` forget what was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # pragma: gpu


def cuda_machine(device: torch.device, facts: Callable[[], Machine]) -> Machine:  # pragma: gpu
    """The machine's ``facts`` with the GPU as this process sees it: what it holds itself counts as free."""
    free, total = torch.cuda.mem_get_info(device)
    return facts().model_copy(
        update={
            "kind": Kind.CUDA,
            "name": torch.cuda.get_device_name(device).removeprefix("NVIDIA ").strip(),
            "total_bytes": total,
            "free_bytes": min(total, free + torch.cuda.memory_reserved(device) + CONTEXT_BYTES),
            "compute_capability": torch.cuda.get_device_capability(device),
            "gpus": torch.cuda.device_count(),
        }
    )


def free_cached(device: torch.device) -> None:
    """Give memory of dropped tensors back to the device. Drop the last reference to a model before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # pragma: gpu


@contextmanager
def plain_out_of_memory(device: torch.device, *, advice: str) -> Iterator[None]:
    """Turn the many ways in which memory runs out into one.

    Args:
        device: Where the work runs.
        advice: The way out, for the end of the sentence, such as "lower batch_size".

    Raises:
        OutOfMemory: instead of PyTorch's or Python's own error. What the calls below the block held is free then.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # their variables hold the models
        size = f"{total_memory(device) / GIB:.1f} GiB in all"
        raise OutOfMemory(f"the memory of {device} ({size}) is not enough: {advice}") from error


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    said = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    return isinstance(error, MemoryError) or any(sign in said for sign in signs)
