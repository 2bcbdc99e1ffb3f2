"""AI-Toolkit behind the `LoraTrainer` contract."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from isengard.domain.ai_toolkit import check_keys, to_config
from isengard.domain.model import Family, LocalModel
from isengard.domain.training import Optimizer, TimestepSampling, TrainingImage, TrainingSpec
from isengard.engines.ai_toolkit.checkout import Toolkit, fenced, load
from isengard.engines.ai_toolkit.process import process_class
from isengard.engines.ai_toolkit.run import EndedEarly, Run
from isengard.engines.base import Report, TrainedLora
from isengard.engines.device import free_cached, plain_out_of_memory
from isengard.engines.libraries import hide_progress_bars
from isengard.engines.native.adapter import AdapterFactory, FamilyAdapter
from isengard.engines.native.dataset import Dataset, held_out, prepare, readable
from isengard.engines.native.milestones import Milestones
from isengard.engines.native.progress import ProgressReporter
from isengard.engines.native.trainer import memory_advice
from isengard.errors import InvalidSpec, JobStopped
from isengard.files import check_now, replacing

NAME = "lora"


class AIToolkitTrainer:
    """Trains with AI-Toolkit; validates, samples and saves as our own engine does."""

    def __init__(
        self, *, checkout: Path, adapters: Mapping[Family, AdapterFactory], device: torch.device
    ) -> None:
        self._checkout = checkout
        self._adapters = adapters
        self._device = device

    def train(
        self,
        *,
        spec: TrainingSpec,
        model: LocalModel,
        images: Sequence[TrainingImage],
        run_dir: Path,
        cache_dir: Path,
        report: Report,
    ) -> TrainedLora:
        """See `LoraTrainer.train`. Raises also: NotAvailable, when there is no usable checkout."""
        if not images:
            raise InvalidSpec("there is no image to train on; add some to the character")
        if spec.optimizer is Optimizer.ADAMW_8BIT and self._device.type != "cuda":
            raise InvalidSpec("optimizer adamw8bit needs an NVIDIA GPU; choose adamw or prodigy")
        progress = ProgressReporter(report, steps=spec.steps, device=self._device)
        progress.loading("AI-Toolkit")
        toolkit = load(self._checkout)
        hide_progress_bars()
        adapter = self._adapters[model.card.family](
            model, device=self._device, text_encoders=spec.text_encoders
        )
        kept_out = held_out(images)
        train = [image for image in images if image.sha256 not in kept_out]
        try:
            with plain_out_of_memory(self._device, advice=memory_advice(spec)):
                dataset = _validation(
                    spec, images, adapter=adapter, cache_dir=cache_dir, on_item=progress.caching
                )
                adapter.free_encoders()
                milestones = Milestones(
                    spec, dataset, adapter=adapter, run_dir=run_dir, progress=progress, device=self._device
                )
                run = Run(
                    spec, model.card, milestones, adapter=adapter, image_count=len(train), device=self._device
                )
                own = run_dir / "ai-toolkit"
                config = in_process(
                    spec,
                    family=model.card.family,
                    model_path=str(model.path),
                    dataset_dir=str(write_dataset(own / "dataset", train)),
                    training_dir=str(own),
                    name=NAME,
                    device=str(self._device),
                    assistant_lora_path=str(model.training_adapter) if model.training_adapter else None,
                )
                progress.loading(model.card.title)
                with fenced(
                    toolkit,
                    device=self._device,
                    text_length=model.card.max_sequence_length,
                    on_item=progress.caching,
                ):
                    self._go(toolkit, config, run, milestones)
                check_now()
                shutil.rmtree(own, ignore_errors=True)
                return milestones.result(run)
        finally:
            adapter.free_encoders()
            free_cached(self._device)

    def _go(self, toolkit: Toolkit, config: dict[str, Any], run: Run, milestones: Milestones) -> None:
        job = toolkit.job(config)
        job.load_processes({"isengard": process_class(toolkit.trainer, run)})
        (process,) = job.process
        try:
            with suppress(EndedEarly):
                process.run()
        except JobStopped:
            if run.step:
                milestones.stopped(run)
            raise
        finally:
            run.detach()


def in_process(spec: TrainingSpec, *, family: Family, **places: Any) -> dict[str, Any]:
    """The configuration for a run of ours, where `Run` sets the layers, the schedule and the noise levels itself.

    Images are repeated so that every batch is whole: AI-Toolkit ends an epoch with a smaller one.
    """
    plain: dict[str, Any] = {"targets": "all_linear", "lr_warmup_steps": 0}
    if family is Family.FLUX:
        plain["timestep_sampling"] = TimestepSampling.SIGMOID
    config = to_config(spec.model_copy(update=plain), family=family, **places)
    config["config"]["process"][0]["datasets"][0]["num_repeats"] = spec.batch_size
    check_keys(config)
    return config


def _validation(
    spec: TrainingSpec,
    images: Sequence[TrainingImage],
    *,
    adapter: FamilyAdapter,
    cache_dir: Path,
    on_item: Callable[[int, int, str], None],
) -> Dataset:
    """Our validation set and the samples' prompts, encoded; AI-Toolkit encodes what it trains on itself."""
    kept_out = held_out(images)
    chosen = [image for image in images if image.sha256 in kept_out] or images[:4]
    dataset = prepare(spec, chosen, adapter=adapter, cache_dir=cache_dir, on_item=on_item)
    everything = dataset.train if kept_out else dataset.validation
    return Dataset(
        train=[],
        validation=everything,
        no_prompt=dataset.no_prompt,
        sample_prompts=dataset.sample_prompts,
    )


def write_dataset(folder: Path, images: Sequence[TrainingImage]) -> Path:
    """Lay out images and captions as AI-Toolkit reads them; keep the caches of one that is the same.

    Raises:
        TrainingFailed: an image has vanished or is damaged; AI-Toolkit would go on without it.
        DiskFull.
    """
    wanted = {f"{number:04}-{image.sha256[:16]}": image for number, image in enumerate(images)}
    if {path.stem for path in folder.glob("*.txt")} == wanted.keys() and all(
        (folder / f"{name}.txt").read_text(encoding="utf-8") == image.caption
        for name, image in wanted.items()
    ):
        return folder
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        for name, image in wanted.items():
            with readable(image.path) as opened:
                opened.load()
            shutil.copyfile(image.path, temporary / f"{name}{image.path.suffix}")
            (temporary / f"{name}.txt").write_text(image.caption, encoding="utf-8")
    return folder
