"""What this machine has to work with, without loading torch."""

import platform
import shutil
import subprocess
import time
from collections.abc import Callable

import psutil

from isengard.domain.base import Frozen

ASK_EVERY_S = 5.0
TIMEOUT_S = 3.0
GIB = 1024**3


class MachineState(Frozen):
    """The device that jobs use, and its memory in GiB (the machine's own where there is no GPU)."""

    device: str
    used_gb: float
    total_gb: float


class Machine:
    """Asks the driver at most every `ASK_EVERY_S` seconds; between that the last answer holds."""

    def __init__(self, *, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``device``: the setting; ``cpu`` asks no driver."""
        self._device, self._clock = device, clock
        self._asked_at = -ASK_EVERY_S
        self._state = MachineState(device="", used_gb=0, total_gb=0)

    def state(self) -> MachineState:
        if self._clock() - self._asked_at >= ASK_EVERY_S:
            self._asked_at = self._clock()
            self._state = (None if self._device == "cpu" else self._gpu()) or _processor()
        return self._state

    def _gpu(self) -> MachineState | None:
        command = shutil.which("nvidia-smi")
        if command is None:
            return None
        index = self._device.partition(":")[2] or "0"
        query = [
            "--query-gpu=name,memory.used,memory.total",
            "--format=csv,noheader,nounits",
            f"--id={index}",
        ]
        try:
            said = subprocess.run(  # noqa: S603  # a fixed question to the driver's own tool
                [command, *query], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
            ).stdout
            name, used, total = said.strip().rsplit(",", 2)
            mib_per_gib = 1024
            return MachineState(
                device=name.removeprefix("NVIDIA ").strip(),
                used_gb=float(used) / mib_per_gib,
                total_gb=float(total) / mib_per_gib,
            )
        except (subprocess.SubprocessError, OSError, ValueError):
            return None


def _processor() -> MachineState:
    memory = psutil.virtual_memory()
    return MachineState(
        device=f"{psutil.cpu_count() or 1} x {platform.machine()} CPU",
        used_gb=(memory.total - memory.available) / GIB,
        total_gb=memory.total / GIB,
    )
