"""LoRAs on a pipeline: checked before anything is changed, counted after loading, swapped in place where they fit.

All LoRAs of a request become one adapter: their A matrices on top of each other, their B matrices, times the strength,
side by side, which gives the same sum. So a change of LoRAs or strengths writes new numbers into tensors that are there
already; nothing is loaded again, and compiled blocks stay compiled.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from isengard.domain.generation import LocalLora
from isengard.engines.device import compute_dtype
from isengard.engines.lora_format import component_of, read_pairs, weights_of
from isengard.engines.lora_keys import Pairs
from isengard.errors import LoraRefused

#: Compiled blocks get room for ranks in multiples of this: a LoRA of another rank seldom needs new room.
RANK_STEP = 32
_NAME = "isengard"
_FileKey = tuple[str, int, int]


class Adapters:
    """The LoRAs of one pipeline, by the content of their files."""

    def __init__(self, pipeline: Any, *, component: str, model: str) -> None:
        self._pipeline = pipeline
        self._component = component
        self._denoiser = getattr(pipeline, component)
        self._model = model
        self._room: dict[str, int] = {}
        self._pairs: dict[_FileKey, Pairs] = {}
        self._applied: tuple[Any, ...] = ()
        self._loads = self._swaps = 0

    @property
    def loads(self) -> int:
        """How often layers were put into the model."""
        return self._loads

    @property
    def swaps(self) -> int:
        """How often the numbers in such layers were replaced."""
        return self._swaps

    def apply(self, loras: Sequence[LocalLora], *, compiled: bool) -> None:
        """Make exactly these LoRAs active, each with its strength.

        Args:
            loras: Their files.
            compiled: Whether the denoiser's blocks are compiled: its layers are then only ever given more room. Otherwise
                they are what this request needs, so that an image does not depend on earlier requests.

        Raises:
            LoraRefused: a file cannot be used with this model; nothing is changed then.
        """
        files = {_file_key(lora): lora for lora in loras}
        wanted = (compiled, *((key, lora.strength) for key, lora in files.items()))
        if wanted == self._applied:
            return
        pairs = {
            key: self._pairs[key] if key in self._pairs else self._checked(lora)
            for key, lora in files.items()
        }
        total = _summed([(pairs[key], lora.strength) for key, lora in files.items()])
        room = self._room_for(total, compiled=compiled)
        if room == self._room:
            self._write(total)
        else:
            self.clear()
            self._put_in(total, room, names=[lora.name for lora in files.values()])
        self._pairs, self._applied = pairs, wanted

    def clear(self) -> None:
        """Give the pipeline its own layers back."""
        if self._room:
            self._pipeline.unload_lora_weights()
        self._room, self._pairs, self._applied = {}, {}, ()

    def _room_for(self, total: Pairs, *, compiled: bool) -> dict[str, int]:
        """The rank of each adapted module."""
        ranks = {name: down.shape[0] for name, (down, _) in total.items()}
        if not compiled:
            return ranks
        highest = max([*ranks.values(), *self._room.values()], default=0)
        return dict.fromkeys({**self._room, **ranks}, math.ceil(highest / RANK_STEP) * RANK_STEP)

    def _checked(self, lora: LocalLora) -> Pairs:
        """The file's weights, when each module exists and has the right shape. Raises: LoraRefused."""
        misfit = f"LoRA {lora.name!r} does not fit {self._model}"
        way_out = "use it with the model it was trained on"
        component = component_of(lora.path)
        if component != self._component:
            raise LoraRefused(
                f"{misfit}: it changes a {component} and this model has a {self._component}; {way_out}"
            )
        pairs = read_pairs(lora.path)
        modules = dict(self._denoiser.named_modules())
        for name, (down, up) in pairs.items():
            module = modules.get(name)
            if module is None or not hasattr(module, "in_features"):
                raise LoraRefused(f"{misfit}: the model has no layer {name!r}; {way_out}")
            shape, wanted = (up.shape[0], down.shape[1]), (module.out_features, module.in_features)
            if shape != wanted:
                raise LoraRefused(
                    f"{misfit}: layer {name!r} is {wanted[0]} x {wanted[1]}, the LoRA's is {shape[0]} x {shape[1]};"
                    f" {way_out}"
                )
        return pairs

    def _put_in(self, total: Pairs, room: Mapping[str, int], *, names: Sequence[str]) -> None:
        """Load LoRA layers that have the room, zero where nothing is known. Raises: LoraRefused."""
        if not room:
            return
        self._loads += 1
        modules = dict(self._denoiser.named_modules())
        dtype = compute_dtype(self._pipeline._execution_device)
        padded = {name: _padded(total.get(name), modules[name], rank, dtype) for name, rank in room.items()}
        self._room = dict(room)
        self._denoiser.load_lora_adapter(
            weights_of(padded, self._component),
            prefix=self._component,
            adapter_name=_NAME,
            _pipeline=self._pipeline,
            low_cpu_mem_usage=True,
        )
        adapted = sum(
            isinstance(module, BaseTunerLayer) and _NAME in module.lora_A
            for module in self._denoiser.modules()
        )
        if adapted != len(room):
            self.clear()
            raise LoraRefused(
                f"LoRA {' + '.join(map(repr, names))} adapted {adapted} modules of {self._model}, but its file has"
                f" {len(room)}"
            )

    def _write(self, total: Pairs) -> None:
        """Replace the numbers in the layers that are there."""
        self._swaps += 1
        with torch.no_grad():
            for name in self._room:
                layer = self._denoiser.get_submodule(name)
                down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
                up.zero_()
                if name in total:
                    new_down, new_up = total[name]
                    rank = new_down.shape[0]
                    down[:rank].copy_(new_down)
                    up[:, :rank].copy_(new_up)


def _summed(parts: Sequence[tuple[Pairs, float]]) -> Pairs:
    """One LoRA that does what all do together, each times its strength."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for pairs, strength in parts:
        for name, (down, up) in pairs.items():
            found.setdefault(name, []).append((down, up if strength == 1 else up * strength))
    return {
        name: (torch.cat([down for down, _ in each]), torch.cat([up for _, up in each], dim=1))
        for name, each in found.items()
    }


def _padded(
    pair: tuple[Tensor, Tensor] | None, module: Any, rank: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A and B of exactly this rank; what was not there is zero."""
    down = torch.zeros(rank, module.in_features, dtype=dtype)
    up = torch.zeros(module.out_features, rank, dtype=dtype)
    if pair is not None:
        down[: pair[0].shape[0]] = pair[0]
        up[:, : pair[0].shape[0]] = pair[1]
    return down, up


def _file_key(lora: LocalLora) -> _FileKey:
    try:
        stat = lora.path.stat()
    except OSError as error:
        raise LoraRefused(f"the file of LoRA {lora.name!r} cannot be read: {error}") from error
    return (str(lora.path), stat.st_mtime_ns, stat.st_size)
