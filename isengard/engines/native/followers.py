"""The other devices of a shared training: one process each, which computes gradients and keeps nothing.

All that lasts is in the leading process: it caches, validates, samples, saves and reports. So followers need no message
to stop: they are ended, wherever they are. They follow by meeting the leader once a step, to average the gradients.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed

from isengard.engines.native.share import Share
from isengard.errors import InvalidSpec, TrainingFailed

#: Followers wait at the gradients while the leader validates and samples.
_PATIENCE = timedelta(hours=12)

#: What a follower does in its process: (share, device). It must be picklable.
Follow = Callable[[Share, torch.device], None]


def devices_of(device: torch.device, count: int) -> list[torch.device]:
    """The leader's device and those of its followers.

    Raises:
        InvalidSpec: there are not so many.
    """
    if count == 1:
        return [device]
    if device.type == "cpu":
        return [device] * count
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > found:
        raise InvalidSpec(
            f"devices is {count}, and this machine has {found} of the kind {device.type}; set devices to {found}"
        )
    others = (index for index in range(found) if index != (device.index or 0))  # pragma: gpu
    return [device, *(torch.device("cuda", next(others)) for _ in range(count - 1))]  # pragma: gpu


@contextmanager
def followers(devices: list[torch.device], follow: Follow, *, waiting: Callable[[], None]) -> Iterator[Share]:
    """Run a follower on every device but the first, and give the leader its share; nobody is left behind.

    Args:
        devices: From `devices_of`.
        follow: Runs in each follower's process.
        waiting: Called while they start; may raise to stop.

    Raises:
        TrainingFailed: a follower died.
    """
    if len(devices) == 1:
        yield Share()
        return
    context = multiprocessing.get_context("spawn")
    share = Share(0, len(devices))
    with tempfile.TemporaryDirectory() as folder:
        processes: list[BaseProcess] = [
            context.Process(target=_run, args=(follow, Share(rank, share.count), device, folder), daemon=True)
            for rank, device in enumerate(devices[1:], start=1)
        ]
        try:
            _start(processes, devices, Path(folder), waiting)
            _connect(share, devices[0], Path(folder))
            if devices[0].type == "cuda":  # pragma: gpu
                threading.Thread(target=_abort_with, args=(processes,), daemon=True).start()
            yield share
        except RuntimeError as error:
            _let_end(processes)
            _check_alive(processes, devices, cause=error)
            raise
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _start(
    processes: list[BaseProcess], devices: list[torch.device], folder: Path, waiting: Callable[[], None]
) -> None:
    for process in processes:
        process.start()
    while len(list(folder.glob("ready-*"))) < len(processes):
        _check_alive(processes, devices)
        waiting()
        time.sleep(0.05)


def _let_end(processes: list[BaseProcess]) -> None:
    """A process that broke the connection needs a moment to be gone."""
    ended = wait([process.sentinel for process in processes], timeout=10)
    for process in processes:
        if process.sentinel in ended:
            process.join()


def _check_alive(
    processes: list[BaseProcess], devices: list[torch.device], *, cause: Exception | None = None
) -> None:
    for rank, process in enumerate(processes, start=1):
        if process.exitcode is not None:
            raise TrainingFailed(
                f"the process that trained on device {rank + 1} of {len(devices)} ({devices[rank]}) ended with code "
                f"{process.exitcode}; the log says why. The last checkpoint is good: resume from it, or start a new "
                "training with devices set to 1"
            ) from cause


def _abort_with(processes: list[BaseProcess]) -> None:  # pragma: gpu
    """NCCL waits for a dead process without end; break its connection off instead."""
    wait([process.sentinel for process in processes])
    if torch.distributed.is_initialized():
        torch.distributed.distributed_c10d._abort_process_group()


def _run(follow: Follow, share: Share, device: torch.device, folder: str) -> None:
    """A follower's process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    (Path(folder) / f"ready-{share.rank}").touch()
    _connect(share, device, Path(folder))
    follow(share, device)
    threading.Event().wait()  # the leader still saves and samples; it ends its followers itself


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _connect(share: Share, device: torch.device, folder: Path) -> None:
    if device.type == "cuda":  # pragma: gpu
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=share.rank,
        world_size=share.count,
        timeout=_PATIENCE,
        device_id=device if device.type == "cuda" else None,
    )
