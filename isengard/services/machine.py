"""What this machine has to work with, without loading torch."""

import platform
import shutil
import subprocess
import time
from collections.abc import Callable

import psutil

from isengard.domain import memory
from isengard.domain.base import Frozen

ASK_EVERY_S = 5.0
TIMEOUT_S = 3.0
GIB = 1024**3
MIB = 1024**2
FACTS = "name,memory.used,memory.total,compute_cap,count,utilization.gpu"


class MachineState(Frozen):
    """The device that jobs use, and its memory in GiB (the machine's own where there is no GPU)."""

    device: str
    used_gb: float
    total_gb: float


class _Gpu(Frozen):
    name: str
    used_bytes: int
    total_bytes: int
    compute_capability: tuple[int, int]
    count: int
    load: float | None


class Machine:
    """Asks the driver at most every `ASK_EVERY_S` seconds; between that the last answer holds."""

    def __init__(
        self,
        *,
        device: str,
        clock: Callable[[], float] = time.monotonic,
        system: str = platform.system() + platform.machine(),
    ) -> None:
        """``device``: the setting; ``cpu`` asks no driver. ``system``: "Darwinarm64" is a Mac with a GPU of Apple's."""
        self._device, self._clock = device, clock
        self._has_mps = device in ("auto", "mps") and system == "Darwinarm64"
        self._asked_at = -ASK_EVERY_S
        self._gpu: _Gpu | None = None
        self._state = MachineState(device="", used_gb=0, total_gb=0)
        self._least_used, self._least_used_system = -1, -1

    def state(self) -> MachineState:
        """For the header of the page."""
        self._look()
        return self._state

    def free_bytes(self) -> int:
        """Of the device's memory, what nobody uses just now."""
        self._look()
        return int((self._state.total_gb - self._state.used_gb) * GIB)

    def load(self) -> float | None:
        """The share of the last moments in which the GPU was at work; None without one, or when it does not tell."""
        self._look()
        return self._gpu.load if self._gpu else None

    def lacks_gpu(self) -> bool:
        """Whether a GPU was asked for, or there is a driver for one, and none is to be seen."""
        self._look()
        driven = self._device == "auto" and shutil.which("nvidia-smi") is not None
        return self._gpu is None and (driven or self._device.startswith("cuda"))

    def facts(self) -> memory.Machine:
        """For plans. What is free is counted from the least that was ever seen in use: jobs of ours give theirs back."""
        self._look()
        system = psutil.virtual_memory()
        system_free = system.total - self._least_used_system
        shared = {"system_total_bytes": system.total, "system_free_bytes": system_free}
        if self._gpu is None:
            kind = memory.Kind.MPS if self._has_mps else memory.Kind.CPU
            own = {"total_bytes": system.total, "free_bytes": system_free}
            return memory.Machine(kind=kind, name=self._name(), **own, **shared)
        return memory.Machine(
            kind=memory.Kind.CUDA,
            name=self._gpu.name,
            total_bytes=self._gpu.total_bytes,
            free_bytes=self._gpu.total_bytes - self._least_used,
            compute_capability=self._gpu.compute_capability,
            gpus=self._gpu.count,
            **shared,
        )

    def _name(self) -> str:
        return "Apple GPU" if self._has_mps else f"{psutil.cpu_count() or 1} x {platform.machine()} CPU"

    def _look(self) -> None:
        if self._clock() - self._asked_at < ASK_EVERY_S:
            return
        self._asked_at = self._clock()
        self._gpu = None if self._device == "cpu" else self._asked()
        system = psutil.virtual_memory()
        name, used, total = self._name(), system.total - system.available, system.total
        self._least_used_system = _least(self._least_used_system, used)
        if self._gpu is not None:
            name, used, total = self._gpu.name, self._gpu.used_bytes, self._gpu.total_bytes
            self._least_used = _least(self._least_used, used)
        self._state = MachineState(device=name, used_gb=used / GIB, total_gb=total / GIB)

    def _asked(self) -> _Gpu | None:
        command = shutil.which("nvidia-smi")
        if command is None:
            return None
        index = self._device.partition(":")[2] or "0"
        query = [f"--query-gpu={FACTS}", "--format=csv,noheader,nounits", f"--id={index}"]
        try:
            said = subprocess.run(  # noqa: S603  # a fixed question to the driver's own tool
                [command, *query], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
            ).stdout
            name, used, total, capability, count, load = said.strip().rsplit(",", 5)
            major, _, minor = capability.strip().partition(".")
            return _Gpu(
                name=name.removeprefix("NVIDIA ").strip(),
                used_bytes=int(float(used) * MIB),
                total_bytes=int(float(total) * MIB),
                compute_capability=(int(major), int(minor)),
                count=int(count),
                load=float(load) / 100 if load.strip().isdecimal() else None,  # some cards say [N/A]
            )
        except (subprocess.SubprocessError, OSError, ValueError):
            return None


def _least(known: int, seen: int) -> int:
    return seen if known < 0 else min(known, seen)
