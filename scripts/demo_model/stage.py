"""A training that can be killed at any time and goes on from its last saved state."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

SAVE_EVERY_S = 120.0
LOG_EVERY = 50


def in_bfloat16(device: torch.device) -> torch.autocast:
    """Autocast where the machine multiplies bfloat16 itself; a CPU that does not takes five times as long as in float32."""
    able = torch.cpu.get_capabilities()
    fast = device.type != "cpu" or any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


@dataclass(frozen=True)
class Stage:
    """``steps`` steps of a training whose state lies in ``folder``."""

    name: str
    folder: Path
    steps: int

    @property
    def _state(self) -> Path:
        return self.folder / "state.pt"

    def run(self, parts: Mapping[str, Stateful], step: Callable[[int], Mapping[str, Tensor]]) -> None:
        """Call ``step`` with each number that is left; save ``parts`` now and then, and at the end.

        ``step`` returns what to log, and draws its randomness from its number alone.
        """
        done, worked = self._load(parts)
        self.folder.mkdir(parents=True, exist_ok=True)
        began = saved_at = time.monotonic()
        sums, count = dict[str, float](), 0
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            bar = tqdm(range(done, self.steps), desc=self.name, initial=done, total=self.steps, unit="step")
            for number in bar:
                values = step(number)
                count += 1
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                if (number + 1) % LOG_EVERY == 0:
                    means = {name: round(value / count, 5) for name, value in sums.items()}
                    log.write(json.dumps({"step": number + 1, **means}) + "\n")
                    log.flush()
                    bar.set_postfix(means)
                    sums, count = {}, 0
                if number + 1 == self.steps or time.monotonic() - saved_at > SAVE_EVERY_S:
                    saved_at = time.monotonic()
                    self._save(parts, number + 1, worked + saved_at - began)

    def _load(self, parts: Mapping[str, Stateful]) -> tuple[int, float]:
        if not self._state.exists():
            return 0, 0.0
        state = torch.load(self._state, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["step"]), float(state.get("seconds", 0.0))

    def _save(self, parts: Mapping[str, Stateful], step: int, seconds: float) -> None:
        temporary = self._state.with_suffix(".tmp")
        torch.save(
            {name: part.state_dict() for name, part in parts.items()} | {"step": step, "seconds": seconds},
            temporary,
        )
        temporary.replace(self._state)


def history(folder: Path) -> Mapping[str, float]:
    """What a stage's last line of metrics says, and ``seconds``: how long it has taken, over all its attempts."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    return {**(json.loads(lines[-1]) if lines else {}), "seconds": round(state.get("seconds", 0.0))}


class Ema:
    """The exponential moving average of a model's weights; younger at first, so that it follows quickly."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self._step = 0
        self._weights = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        self._step += 1
        decay = min(self._decay, (1 + self._step) / (10 + self._step))
        torch._foreach_lerp_(self._weights, list(self._model.parameters()), 1 - decay)

    def state_dict(self) -> Any:
        return {"step": self._step, "weights": self._weights}

    def load_state_dict(self, state: Any) -> None:
        self._step = state["step"]
        for mine, saved in zip(self._weights, state["weights"], strict=True):
            mine.copy_(saved)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for parameter, weights in zip(model.parameters(), self._weights, strict=True):
            parameter.copy_(weights)


def cosine(step: int, steps: int, *, warmup: int) -> float:
    """The learning rate's factor: up in ``warmup`` steps, then down to 2 % along a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


def batch_of(step: int, seed: int, length: int, size: int) -> tuple[Tensor, torch.Generator]:
    """The indices of the step's batch and a generator for the rest of its randomness; epochs are shuffled anew."""
    per_epoch = length // size
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed * 1000 + epoch))
    generator = torch.Generator().manual_seed(seed * 10_000_000 + step)
    return order[position * size : (position + 1) * size], generator
