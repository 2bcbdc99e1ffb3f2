"""Our LoRA trainer. The loop knows no model family; `FamilyAdapter` does."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch

from isengard.domain.job import Requests
from isengard.domain.model import Family, LocalModel
from isengard.domain.performance import Attention, Quantization
from isengard.domain.training import Precision, TrainingImage, TrainingSpec
from isengard.engines.attention import attention_backend, check
from isengard.engines.base import Report, TrainedLora
from isengard.engines.compiling import compile_blocks
from isengard.engines.device import free_cached, plain_out_of_memory
from isengard.engines.libraries import hide_progress_bars
from isengard.engines.native.adapter import AdapterFactory, FamilyAdapter
from isengard.engines.native.dataset import Dataset, placed, prepare
from isengard.engines.native.followers import devices_of, followers
from isengard.engines.native.milestones import Milestones, compute_precision
from isengard.engines.native.progress import ProgressReporter
from isengard.engines.native.share import Share
from isengard.engines.native.state import TrainingState
from isengard.engines.native.training_adapter import TrainingAdapter
from isengard.errors import InvalidSpec, JobStopped


class NativeTrainer:
    """Implements `LoraTrainer` for every family that has an adapter."""

    def __init__(self, *, adapters: Mapping[Family, AdapterFactory], device: torch.device) -> None:
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
        """See `LoraTrainer.train`."""
        if model.card.family not in self._adapters:
            known = ", ".join(sorted(self._adapters))
            raise InvalidSpec(
                f"this engine trains {known} models; {model.card.title} is of the family {model.card.family}"
            )
        if not images:
            raise InvalidSpec("there is no image to train on; add some to the character")
        check_attention(spec, model.card.family, device=self._device)
        devices = devices_of(self._device, spec.devices)
        progress = ProgressReporter(report, steps=spec.steps, device=self._device)
        progress.loading(model.card.title)
        hide_progress_bars()
        make_adapter = self._adapters[model.card.family]
        adapter = make_adapter(model, device=self._device, text_encoders=spec.text_encoders)
        follow = partial(
            _follow,
            make_adapter=make_adapter,
            spec=spec,
            model=model,
            images=images,
            run_dir=run_dir,
            cache_dir=cache_dir,
        )
        try:
            with plain_out_of_memory(self._device, advice=memory_advice(spec)):
                dataset = prepare(
                    spec, images, adapter=adapter, cache_dir=cache_dir, on_item=progress.caching
                )
                adapter.free_encoders()
                with (
                    followers(devices, follow, waiting=partial(progress.loading, "other devices")) as share,
                    attention_backend(spec.attention),
                ):
                    return _Run(  # has no name here: nothing may hold it when memory runs out
                        spec,
                        model,
                        dataset,
                        adapter=adapter,
                        run_dir=run_dir,
                        progress=progress,
                        device=self._device,
                        share=share,
                    ).go()
        finally:
            adapter.free_encoders()
            free_cached(self._device)


class _Run:
    """One training from its newest checkpoint to its end or its next stop."""

    def __init__(
        self,
        spec: TrainingSpec,
        model: LocalModel,
        dataset: Dataset,
        *,
        adapter: FamilyAdapter,
        run_dir: Path,
        progress: ProgressReporter,
        device: torch.device,
        share: Share,
    ) -> None:
        self._spec = spec
        self._share = share
        self._adapter = adapter
        self._device = device
        self._dataset = placed(dataset, device)
        self._progress = progress
        self._milestones = Milestones(
            spec, dataset, adapter=adapter, run_dir=run_dir, progress=progress, device=device
        )
        denoiser = adapter.load_denoiser(
            dtype=self._milestones.dtype,
            quantization=spec.quantization,
            streamed_blocks=spec.streamed_blocks,
            on_part=partial(progress.loading, "transformer"),
        )
        progress.loading("adapter")
        training_adapter = TrainingAdapter(
            denoiser, model.training_adapter, dtype=self._milestones.dtype, device=device
        )
        self._state = TrainingState(
            spec,
            model.card,
            denoiser,
            adapter=adapter,
            training_adapter=training_adapter,
            image_count=len(dataset.train),
            share=share,
        )
        if spec.compile:
            several = len({example.bucket for example in dataset.train}) > 1
            compile_blocks(denoiser, dynamic=True if several else None)

    def go(self) -> TrainedLora:
        state, milestones = self._state, self._milestones
        state.restore(milestones.checkpoints)
        self._share.meet()  # all have read the checkpoint
        try:
            milestones.begin(state)
            while not milestones.is_over(state):
                self._train_step()
                milestones.stepped(state)
        except JobStopped:
            milestones.stopped(state)
            raise
        return milestones.result(state)

    def follow(self) -> None:
        """Make the steps that the leader makes, for the gradients alone."""
        state = self._state
        state.restore(self._milestones.checkpoints)
        self._share.meet()
        while state.step < self._spec.steps:
            self._train_step()
            state.rows(lag=1)

    def _train_step(self) -> None:
        """One optimizer step. Its randomness is a function of the seed and its number alone.

        Nothing here may read a value from the device: the CPU prepares the next step while the device is at this one.
        """
        state, spec = self._state, self._spec
        generator = state.generator()
        total = torch.zeros((), device=self._device)
        for micro in range(spec.gradient_accumulation_steps):
            if micro:
                self._progress.training(state.step)
            batch = [self._dataset.train[i] for i in state.batch(self._dataset.train, micro)]
            with self._autocast():
                loss = state.loss(batch, no_prompt=self._dataset.no_prompt, generator=generator)
            (loss / spec.gradient_accumulation_steps).backward()
            total += loss.detach() / spec.gradient_accumulation_steps
        state.update(loss=total)

    def _autocast(self) -> AbstractContextManager[None]:
        return self._milestones.autocast() if self._adapter.autocast else nullcontext()


def _follow(
    share: Share,
    device: torch.device,
    *,
    make_adapter: AdapterFactory,
    spec: TrainingSpec,
    model: LocalModel,
    images: Sequence[TrainingImage],
    run_dir: Path,
    cache_dir: Path,
) -> None:
    """Take part in a training from another process; everything is encoded already."""
    hide_progress_bars()
    progress = ProgressReporter(lambda _progress: Requests(), steps=spec.steps, device=device)
    adapter = make_adapter(model, device=device, text_encoders=spec.text_encoders)
    dataset = prepare(spec, images, adapter=adapter, cache_dir=cache_dir, on_item=progress.caching)
    run = _Run(
        spec, model, dataset, adapter=adapter, run_dir=run_dir, progress=progress, device=device, share=share
    )
    with attention_backend(spec.attention):
        run.follow()


def check_attention(spec: TrainingSpec, family: Family, *, device: torch.device) -> None:
    """Raise InvalidSpec when ``spec.attention`` cannot be used in this training."""
    check(spec.attention, device, family=family, training=True)
    if spec.attention is not Attention.NATIVE and compute_precision(spec) is not Precision.BF16:
        raise InvalidSpec(  # pragma: gpu
            f"attention {spec.attention} computes in bfloat16, and precision is {spec.precision}; "
            "set precision to bf16, or attention to native"
        )


def memory_advice(spec: TrainingSpec) -> str:
    """What to change when a training does not fit into the device's memory."""
    ways = []
    if spec.batch_size > 1:
        ways.append(f"lower batch_size (now {spec.batch_size})")
    if max(spec.resolutions) > 512:
        ways.append(f"leave out the highest of resolutions (now {max(spec.resolutions)})")
    if not spec.gradient_checkpointing:
        ways.append("switch gradient_checkpointing on")
    if spec.quantization is Quantization.NONE:
        ways.append("set quantization to int8")
    ways.append("close other programs that use the device")
    return "; or ".join(ways) + ". The last checkpoint is kept; resume the job after the change"
