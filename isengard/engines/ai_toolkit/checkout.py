"""Importing AI-Toolkit from a checkout, and what is set in it while it runs."""

import importlib
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO
from unittest import mock

import torch

from isengard.engines.libraries import show_bitsandbytes
from isengard.errors import NotAvailable

log = logging.getLogger(__name__)

#: Called with (done, total, what) while images and captions are cached; may raise to stop.
OnItem = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Toolkit:
    """The parts of AI-Toolkit that are used. ``isengard/assets/ai-toolkit.json`` records them."""

    job: Any
    trainer: Any
    model: Any
    process_module: ModuleType
    prompts_module: ModuleType
    accelerator_module: ModuleType
    loader_module: ModuleType
    caching_module: ModuleType


def load(checkout: Path) -> Toolkit:
    """Import AI-Toolkit, which takes some ten seconds the first time.

    Raises:
        NotAvailable: there is no checkout, or a package it needs is missing.
    """
    if not (checkout / "toolkit").is_dir():
        raise NotAvailable(
            f"AI-Toolkit is not at {checkout}: run `python -m isengard ai-toolkit install`, or choose the engine native"
        )
    show_bitsandbytes()  # for its optimizers
    try:
        with _importable(checkout):
            find = importlib.import_module
            return Toolkit(
                job=find("jobs.BaseJob").BaseJob,
                trainer=find("extensions_built_in.sd_trainer.SDTrainer").SDTrainer,
                model=find("toolkit.stable_diffusion_model").StableDiffusion,
                process_module=find("jobs.process.BaseSDTrainProcess"),
                prompts_module=find("toolkit.train_tools"),
                accelerator_module=find("toolkit.accelerator"),
                loader_module=find("toolkit.data_loader"),
                caching_module=find("toolkit.dataloader_mixins"),
            )
    except (ImportError, AttributeError, RuntimeError) as error:
        raise NotAvailable(
            f"AI-Toolkit at {checkout} cannot be imported ({error}): run `python -m isengard ai-toolkit install`, or"
            " choose the engine native"
        ) from error


@contextmanager
def _importable(checkout: Path) -> Iterator[None]:
    """Its modules stay loaded; its folder does not stay on the path, where its names would hide others."""
    sys.path.insert(0, str(checkout))  # noqa: TID251  # it cannot be installed
    try:
        yield
    finally:
        sys.path.remove(str(checkout))  # noqa: TID251  # as above


@contextmanager
def fenced(toolkit: Toolkit, *, device: torch.device, text_length: int, on_item: OnItem) -> Iterator[None]:
    """Set what has no setting in AI-Toolkit, and put everything back at the end.

    - its device is ours, also where there is a GPU and the CPU was chosen;
    - the model's class is taken directly: looking it up imports every model it knows, and some fail;
    - prompts have the length that the model's card says, not always 512 tokens;
    - progress bars of its caches call ``on_item``, the others are silent; what it prints goes into the log.
    """
    accelerator = _accelerator(toolkit, device)
    encode = toolkit.prompts_module.encode_prompts_flux

    def encode_prompts(*args: Any, **options: Any) -> Any:
        return encode(*args, **{**options, "max_length": text_length})

    with ExitStack() as stack:
        put = stack.enter_context
        put(mock.patch.object(toolkit.process_module, "get_model_class", return_value=toolkit.model))
        put(
            mock.patch.object(
                toolkit.process_module,
                "ToolkitProgressBar",
                partial(toolkit.process_module.ToolkitProgressBar, file=_Nowhere()),
            )
        )
        put(mock.patch.object(toolkit.prompts_module, "encode_prompts_flux", encode_prompts))
        for module in (toolkit.loader_module, toolkit.caching_module):
            put(mock.patch.object(module, "tqdm", partial(CacheBar, on_item)))
        put(redirect_stdout(_Log(sys.stdout)))
        try:
            yield
        finally:
            accelerator.free_memory()


def _accelerator(toolkit: Toolkit, device: torch.device) -> Any:
    """AI-Toolkit's one accelerator, made for the device before it makes one itself. It serves every run of a process."""
    from accelerate import Accelerator

    module: Any = toolkit.accelerator_module
    if module.global_accelerator is None:
        module.global_accelerator = Accelerator(cpu=device.type == "cpu")
    return module.global_accelerator


class CacheBar:
    """Stands in for tqdm where AI-Toolkit fills its caches."""

    def __init__(
        self,
        on_item: OnItem,
        items: Iterable[Any] = (),
        *,
        desc: str = "",
        total: int | None = None,
        **_: object,
    ) -> None:
        self._on_item, self._items, self._what = on_item, list(items), desc.lower()
        self._done, self._total = 0, len(self._items) if total is None else total
        on_item(0, self._total, self._what)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        self._done += count
        self._on_item(self._done, self._total, self._what)

    def set_description(self, text: str) -> None:
        self._what = text.lower()

    def close(self) -> None:
        """Nothing is held."""


class _Nowhere(io.TextIOBase):
    """Takes a progress bar."""

    def write(self, text: str) -> int:
        return len(text)


class _Log(io.TextIOBase):
    """Sends what this thread prints into the job's log; other threads print as before."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal, self._thread, self._line = terminal, threading.get_ident(), ""

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._terminal.write(text)
        *lines, self._line = (self._line + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                log.info("AI-Toolkit: %s", line.rstrip())
        return len(text)

    def flush(self) -> None:
        if threading.get_ident() != self._thread:
            self._terminal.flush()
