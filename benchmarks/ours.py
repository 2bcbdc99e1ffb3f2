"""The thin adapter between the benchmarks and Isengard's trainer."""

import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.task import ATTENTION, Measured, Task, demo_model, example_images, peak_bytes, step_seconds
from isengard.domain.job import Phase, Progress, Requests
from isengard.domain.model import Family
from isengard.domain.training import TrainingSpec
from isengard.engines.base import Report, TrainedLora
from isengard.engines.device import choose_device
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.trainer import NativeTrainer


def train(task: Task) -> Measured:
    """Train in a temporary folder. Loading, encoding and the checkpoint at the end are not timed."""
    marks: list[float] = []
    peak = 0

    def report(progress: Progress) -> Requests:
        nonlocal peak
        if progress.phase is Phase.TRAINING and progress.step == len(marks):
            marks.append(time.perf_counter())
            peak = peak_bytes()
        return Requests()

    with tempfile.TemporaryDirectory() as folder:
        lora = run(task, run_dir=Path(folder, "run"), cache_dir=Path(folder, "cache"), report=report)
        parameters = sum(tensor.numel() for tensor in load_file(lora.path).values())
    return Measured(seconds=step_seconds(marks), peak_bytes=peak, parameters=parameters)


def run(task: Task, *, run_dir: Path, cache_dir: Path, report: Report) -> TrainedLora:
    """Train as the textbook does: no validation, no samples, a checkpoint at the end only."""
    trainer = NativeTrainer(adapters={Family.FLUX: FluxAdapter}, device=choose_device("auto"))
    model = demo_model()
    spec = TrainingSpec(
        character="nova",
        base_model=model.card.name,
        trigger="ohwx",
        steps=task.steps,
        batch_size=task.batch_size,
        rank=task.rank,
        alpha=task.rank,
        targets=ATTENTION,
        learning_rate=task.learning_rate,
        weight_decay=task.weight_decay,
        precision=task.precision,
        resolutions=model.card.resolutions[:1],
        caption_dropout=0,
        save_every=task.steps,
        validate_every=0,
        sample_every=0,
    )
    return trainer.train(
        spec=spec,
        model=model,
        images=example_images(),
        run_dir=run_dir,
        cache_dir=cache_dir,
        report=report,
    )
