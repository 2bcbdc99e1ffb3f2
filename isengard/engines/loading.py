"""A network from its files, tensor by tensor: neither system memory nor the device ever holds more than the result."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Required, TypedDict

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isengard.domain.performance import Quantization, TextEncoders
from isengard.engines.quantize import (
    quantizable,
    quantize_network,
    quantized,
    repeated_blocks,
    say_how_quantized,
)
from isengard.engines.streaming import BlockStreamer, spread
from isengard.errors import MissingWeights

#: Called before each tensor with (done, total); may raise to stop.
OnPart = Callable[[int, int], None]


def untold(_done: int, _total: int) -> None:
    """For a caller that nobody watches."""


class Held(TypedDict, total=False):
    """How a network is loaded: arguments of `load_network`."""

    dtype: Required[torch.dtype]
    quantization: Quantization
    streamed_blocks: int | None
    on_part: OnPart


WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_network(
    kind: Any,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization = Quantization.NONE,
    streamed_blocks: int | None = 0,
    on_part: OnPart = untold,
) -> Any:
    """Load a network of diffusers, frozen and in evaluation mode, on the device.

    Args:
        kind: Its class.
        folder: With ``config.json`` and safetensors files, in one piece or in several with an index.
        dtype: What the weights are held in, but for those that the class wants in float32.
        device: Where it computes.
        quantization: Of the linear layers inside its blocks; each is quantized as soon as it is read.
        streamed_blocks: Blocks whose weights stay in system memory until their turn, see `BlockStreamer`; None for
            all of them.
        on_part: Called before each tensor.

    Raises:
        MissingWeights: a file is missing or is not of this network.
        InvalidSpec: more ``streamed_blocks`` than there are; the machine lacks what the quantization needs.
    """
    files = _files(folder)
    with _default_dtype(dtype), init_empty_weights(include_buffers=False):
        network = kind.from_config(kind.load_config(folder))
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    _check_names(files, expected, network, folder)
    filling = _Filling(network, quantization=quantization, streamed_blocks=streamed_blocks, device=device)
    exact = set(network._keep_in_fp32_modules or ())
    for done, (name, tensor) in enumerate(_tensors(files, expected)):
        on_part(done, len(expected))
        if tensor.shape != expected[name]:
            raise MissingWeights(
                f"{folder}: {name} is {list(tensor.shape)}, and {kind.__name__} as its config.json describes it"
                f" wants {list(expected[name])}; download the model again"
            )
        if tensor.is_floating_point():
            tensor = tensor.to(device).to(torch.float32 if exact & set(name.split(".")) else dtype)
        filling.put(name, tensor.to(device))
    filling.end()
    say_how_quantized(network, quantization)
    network.register_to_config(_name_or_path=str(folder))
    return network.eval()


def place_text_encoders(pipeline: Any, placement: TextEncoders, *, device: torch.device) -> None:
    """Put the text encoders of a pipeline, which are on the CPU, where prompts are encoded."""
    for name, part in pipeline.components.items():
        if not name.startswith("text_encoder") or part is None:
            continue
        if placement is TextEncoders.INT8:
            quantize_network(part, Quantization.INT8, device=device)
        if placement is not TextEncoders.CPU:
            part.to(device)


class _Filling:
    """Puts tensors into a network without weights; what is whole is quantized and stowed at once."""

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        quantization: Quantization,
        streamed_blocks: int | None,
        device: torch.device,
    ) -> None:
        self._network = network
        self._quantization = quantization
        self._device = device
        self._linear = set() if quantization is Quantization.NONE else set(quantizable(network))
        blocks = list(repeated_blocks(network))
        self._streamed = blocks if streamed_blocks is None else spread(blocks, streamed_blocks)
        self._streamer = BlockStreamer(self._streamed, device=device) if self._streamed else None
        self._missing: Counter[str] = Counter()
        for name in network.state_dict():
            self._missing.update(self._owners(name))

    def put(self, name: str, tensor: Tensor) -> None:
        module, _, attribute = name.rpartition(".")
        owner = self._network.get_submodule(module)
        if attribute in owner._parameters:
            owner._parameters[attribute] = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[attribute] = tensor
        for part in self._owners(name):
            self._missing[part] -= 1
            if not self._missing[part]:
                self._whole(part)

    def end(self) -> None:
        if self._streamer is not None:
            self._streamer.start()

    def _owners(self, name: str) -> list[str]:
        """The linear layer, then the streamed block, that a tensor belongs to; each where there is one."""
        module = name.rpartition(".")[0]
        blocks = [block for block in self._streamed if name.startswith(f"{block}.")]
        return [*([module] if module in self._linear else []), *blocks]

    def _whole(self, part: str) -> None:
        module = self._network.get_submodule(part)
        if part in self._linear:
            self._network.set_submodule(part, quantized(module, self._quantization, device=self._device))
        elif self._streamer is not None:
            self._streamer.stow(part, module)


def _files(folder: Path) -> dict[Path, set[str]]:
    """The weight files of a folder, each with the names of its tensors. Raises: MissingWeights."""
    index = folder / f"{WEIGHTS}.index.json"
    if not index.exists():
        with _opened(folder / WEIGHTS) as file:
            return {folder / WEIGHTS: set(file.keys())}
    files: dict[Path, set[str]] = {}
    for name, shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        files.setdefault(folder / shard, set()).add(name)
    return files


def _tensors(
    files: Mapping[Path, set[str]], expected: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in the order of the files' bytes. Raises: MissingWeights."""
    for path, names in files.items():
        with _opened(path) as file:
            for name in file.offset_keys():
                if name in names and name in expected:
                    yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Raises: MissingWeights."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise MissingWeights(f"{path} cannot be read ({error}); download the model again") from error


def _check_names(
    files: Mapping[Path, set[str]], expected: Mapping[str, torch.Size], network: Any, folder: Path
) -> None:
    found = set().union(*files.values())
    ignored = network._keys_to_ignore_on_load_unexpected or ()
    missing = sorted(set(expected) - found)
    unknown = sorted(
        name for name in found - set(expected) if not any(re.search(pattern, name) for pattern in ignored)
    )
    for what, names in (("lack", missing), ("hold unknown", unknown)):
        if names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise MissingWeights(
                f"the weights in {folder} {what} {some}: they are not those of {type(network).__name__} as its"
                " config.json describes it; download the model again"
            )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What a network makes itself, such as a table of frequencies, is in its dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
