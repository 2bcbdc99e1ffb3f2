"""Blocks whose frozen weights wait in system memory and come to the device for their turn.

The device holds two slots, each as large as the largest block. A block's weights are copied into its slot, on a stream
of their own, while the block before it computes. Block i of the streamed ones always comes to slot i mod 2: so what
the forward pass kept of the weights (bitsandbytes keeps a view) points at the right bytes again when the block's
backward pass begins. Adapters, and all that is smaller than a matrix, never leave the device.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from isengard.errors import InvalidSpec

#: Bytes; every kernel is content with it.
_ALIGNED = 256


def spread(names: Sequence[str], count: int) -> list[str]:
    """Choose ``count`` blocks at even distances: each copy then has the same time, that of the blocks between.

    Raises:
        InvalidSpec: there are fewer.
    """
    if count > len(names):
        raise InvalidSpec(
            f"streamed_blocks is {count}, and this model has {len(names)} blocks; choose at most {len(names)}"
        )
    return [names[(2 * number + 1) * len(names) // (2 * count)] for number in range(count)]


@dataclass
class _Slot:
    buffer: Tensor
    holds: int | None = None
    arrived: Any = None  # a CUDA event


@dataclass
class _Leaf:
    """One plain tensor: the data of a parameter or buffer, or a part of a quantized one."""

    owner: Tensor
    name: str
    start: int
    dtype: torch.dtype
    shape: torch.Size

    def put(self, tensor: Tensor) -> None:
        setattr(self.owner, self.name, tensor)

    def inside(self, buffer: Tensor) -> Tensor:
        count = self.shape.numel() * self.dtype.itemsize
        return buffer[self.start : self.start + count].view(self.dtype).view(self.shape)


@dataclass
class _Block:
    module: torch.nn.Module
    home: Tensor  # bytes
    leaves: list[_Leaf]


class BlockStreamer:
    """Streams some blocks of one network. In training each of them must be a gradient checkpoint of its own."""

    def __init__(self, names: Sequence[str], *, device: torch.device) -> None:
        """``names``: the blocks, in the order in which they follow each other."""
        self._device = device
        self._blocks: dict[str, _Block | None] = dict.fromkeys(names)
        self._order: list[_Block] = []
        self._slots: list[_Slot] = []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._before: int | None = None
        self._now: int | None = None
        #: Which block came after these two: tells forward from backward, and one pass's end from the next's beginning.
        self._follower: dict[tuple[int | None, int | None], int] = {}

    def stow(self, name: str, module: torch.nn.Module) -> None:
        """Take a block's weights, wherever they are, into system memory."""
        leaves, size = [], 0
        for owner, part in _matrices(module):
            tensor = getattr(owner, part)
            leaves.append(_Leaf(owner, part, size, tensor.dtype, tensor.shape))
            size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        home = torch.empty(size, dtype=torch.uint8)
        if self._stream is not None:
            _pin(home)  # pragma: gpu
        for leaf in leaves:
            leaf.inside(home).copy_(getattr(leaf.owner, leaf.name))
        self._blocks[name] = block = _Block(module, home, leaves)
        self._send_away(block)

    def start(self) -> None:
        """Begin, when each block has been stowed."""
        self._order = [block for block in self._blocks.values() if block is not None]
        size = max(len(block.home) for block in self._order)
        slots = range(min(2, len(self._order)))
        self._slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=self._device)) for _ in slots]
        for number, block in enumerate(self._order):
            block.module.register_forward_pre_hook(partial(self._enter, number))
            block.module.register_forward_hook(partial(self._watch_backward, number))

    def _enter(self, number: int, _module: object, _inputs: object) -> None:
        self._turn(number)

    def _watch_backward(self, number: int, _module: object, _inputs: object, outputs: Any) -> None:
        """Bring the block back before any part of its backward pass, which begins with the gradient of an output.

        By then that of the block after it has ended: autograd runs what was computed last first.
        """
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            if output.requires_grad:
                output.register_hook(partial(self._enter_backward, number))

    def _enter_backward(self, number: int, _gradient: Tensor) -> None:
        self._turn(number)

    def _turn(self, number: int) -> None:
        """Have a block on the device, and the one that will follow it on its way."""
        if number == self._now:
            return
        self._follower[self._before, self._now] = number
        self._before, self._now = self._now, number
        slot = self._fetch(number)
        if slot.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.arrived)  # pragma: gpu
        follower = self._follower.get((self._before, number))
        if follower is not None and (follower - number) % len(self._slots):
            self._fetch(follower)

    def _fetch(self, number: int) -> _Slot:
        slot = self._slots[number % len(self._slots)]
        if slot.holds == number:
            return slot
        if slot.holds is not None:
            self._send_away(self._order[slot.holds])
        block = self._order[number]
        slot.holds = number
        self._copy(block.home, slot)
        for leaf in block.leaves:
            leaf.put(leaf.inside(slot.buffer))
        return slot

    def _copy(self, home: Tensor, slot: _Slot) -> None:
        room = slot.buffer[: len(home)]
        if self._stream is None:
            room.copy_(home)
            return
        used = torch.cuda.Event()  # pragma: gpu
        used.record(torch.cuda.current_stream(self._device))  # pragma: gpu
        with torch.cuda.stream(self._stream):  # pragma: gpu
            self._stream.wait_event(used)  # who had the slot before may still compute
            room.copy_(home, non_blocking=True)
            slot.arrived = torch.cuda.Event()
            slot.arrived.record()

    def _send_away(self, block: _Block) -> None:
        for leaf in block.leaves:
            leaf.put(torch.empty(0, dtype=leaf.dtype, device=self._device))


def _pin(memory: Tensor) -> None:  # pragma: gpu
    """Let the device read the memory by itself. PyTorch's own pinned memory is rounded up to a power of two."""
    address, runtime = memory.data_ptr(), torch.cuda.cudart()

    def unpin() -> None:
        torch.cuda.synchronize()
        runtime.cudaHostUnregister(address)

    torch.cuda.check_error(int(runtime.cudaHostRegister(address, memory.nbytes, 0)))
    weakref.finalize(memory, unpin).atexit = False


def _matrices(module: torch.nn.Module) -> Iterator[tuple[Tensor, str]]:
    """The plain tensors that hold the weights, each as an object and the name of its attribute."""
    for tensor in [*module.parameters(), *module.buffers()]:
        yield from _leaves(tensor)


def _leaves(tensor: Tensor) -> Iterator[tuple[Tensor, str]]:
    if not is_traceable_wrapper_subclass(tensor):
        if tensor.ndim >= 2:
            yield tensor, "data"
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        inner = getattr(tensor, name)
        if is_traceable_wrapper_subclass(inner):
            yield from _leaves(inner)
        else:
            yield tensor, name
