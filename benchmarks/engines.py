"""Our engine beside AI-Toolkit on the same training: seconds per step, peak memory, and the loss they end with.

The settings are those of the preset Quick, with its own batch size and with one image a step. Every training runs in a
fresh process, by turns, with the environment that a worker gives it; each round has a seed of its own. Both engines
validate on the same images, noise and noise levels. Run it as ``python -m benchmarks.engines``.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml
from rich.table import Table

from benchmarks.process import fresh, shown
from benchmarks.task import CHARACTER, WARM_UP, example_images, resident_peak_bytes, step_seconds
from isengard.domain.base import Frozen
from isengard.domain.job import Phase, Progress, Requests
from isengard.domain.model import Family
from isengard.domain.presets import resolve_spec
from isengard.domain.training import AI_TOOLKIT, NATIVE, TrainingSpec
from isengard.engines.base import LoraTrainer
from isengard.errors import IsengardError
from isengard.settings import ASSETS, Settings
from isengard.store.ai_toolkit import Checkout
from isengard.store.configs import Catalog
from isengard.store.weights import Weights


class Trained(Frozen):
    """What a training process found out about itself."""

    seconds: tuple[float, ...]  # of each step after the warm-up
    process_bytes: int
    device_bytes: int  # 0 where there is no GPU
    validation_loss: float
    device: str


class Row(Frozen):
    """All trainings of one engine with one batch size, one a round."""

    engine: str
    batch_size: int
    rounds: tuple[Trained, ...]

    @property
    def seconds(self) -> float:
        return median(second for one in self.rounds for second in one.seconds)

    @property
    def validation_loss(self) -> float:
        return mean(one.validation_loss for one in self.rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.only:
        spec = plan(options.only, options, batch_size=options.batch_size, seed=options.seed)
        print(train(spec, options).model_dump_json())
    else:
        compare(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--model", default="demo", help="name of a model card (default: demo)")
    parser.add_argument("--steps", type=int, help="of each training (default: the preset's)")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each kind (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    for name, kind in {"only": str, "batch-size": int, "seed": int}.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # of the child processes
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {options.rounds}")
    if options.steps is not None and options.steps <= WARM_UP:
        parser.error(f"--steps must be more than the {WARM_UP} that are not timed, got {options.steps}")
    return options


def handed_on(options: argparse.Namespace) -> list[str]:
    """The options of a child process that say what to train."""
    given = ["--model", options.model]
    if options.steps is not None:
        given += ["--steps", str(options.steps)]
    return given


# What is compared


def compare(options: argparse.Namespace) -> None:
    """Train with every engine that is here, by turns, and print the table."""
    settings = Settings.load()
    absence = why_absent(settings)
    engines = [NATIVE] if absence else [NATIVE, AI_TOOLKIT]
    spec = plan(NATIVE, options)
    found: dict[tuple[int, str], list[Trained]] = {
        (size, engine): [] for size in dict.fromkeys([spec.batch_size, 1]) for engine in engines
    }
    for number in range(options.rounds):
        for (size, engine), trained in found.items():
            child = ["--only", engine, "--batch-size", str(size), "--seed", str(number), *handed_on(options)]
            answer = fresh("benchmarks.engines", child, environment=settings.child_environment())
            one = Trained.model_validate(answer)
            trained.append(one)
            print(
                f"round {number + 1} of {options.rounds}, batch {size}, {engine}:"
                f" {median(one.seconds):.4f} s/step, loss {one.validation_loss:.4f}",
                flush=True,
            )
    rows = [
        Row(engine=engine, batch_size=size, rounds=tuple(trained))
        for (size, engine), trained in found.items()
    ]
    device = rows[0].rounds[0].device
    title = f"{options.model}, {spec.steps} steps, rank {spec.rank}, {options.rounds} rounds, {device}"
    print(table(rows, title=title))
    print(apart(rows) if not absence else f"no row of AI-Toolkit: {absence}")
    if options.json:
        result = {"spec": spec.model_dump(mode="json"), "rows": [row.model_dump() for row in rows]}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def why_absent(settings: Settings) -> str:
    """Why AI-Toolkit cannot be measured, and the way out; empty when it can."""
    lock = settings.data_dir / "ai-toolkit.lock"
    state = Checkout(settings.ai_toolkit_dir, owned=settings.ai_toolkit is None, lock=lock).state()
    return "" if state.usable else state.reason


def table(rows: Sequence[Row], *, title: str) -> str:
    """Return medians over all timed steps, the highest peaks and the mean of the last validation losses."""
    result = Table(title=title, title_justify="left")
    on_gpu = any(one.device_bytes for row in rows for one in row.rounds)
    headings = ["s/step", "steps/s", "peak MiB", *(["GPU MiB"] if on_gpu else []), "loss", "by native"]
    for heading in ("batch", "engine", *headings):
        result.add_column(heading, justify="left" if heading == "engine" else "right")
    native = {row.batch_size: row for row in rows if row.engine == NATIVE}
    for row in rows:
        ours = native[row.batch_size]
        cells = [f"{row.seconds:.4f}", f"{1 / row.seconds:.2f}", mib(one.process_bytes for one in row.rounds)]
        if on_gpu:
            cells.append(mib(one.device_bytes for one in row.rounds))
        difference = f"{row.validation_loss / ours.validation_loss - 1:+.1%}" if row is not ours else ""
        result.add_row(str(row.batch_size), row.engine, *cells, f"{row.validation_loss:.4f}", difference)
    return shown(result)


def mib(peaks: Any) -> str:
    return f"{max(peaks) / 2**20:.0f}"


def apart(rows: Sequence[Row]) -> str:
    """Say how far the losses are apart from engine to engine, and from seed to seed."""
    lines = []
    for size in dict.fromkeys(row.batch_size for row in rows):
        ours, theirs = (row for row in rows if row.batch_size == size)
        pairs = zip(ours.rounds, theirs.rounds, strict=True)
        each = ", ".join(f"{b.validation_loss / a.validation_loss - 1:+.1%}" for a, b in pairs)
        losses = [one.validation_loss for one in ours.rounds]
        lines.append(
            f"batch {size}: loss of AI-Toolkit by native, round by round: {each};"
            f" native from seed to seed: {max(losses) / min(losses) - 1:.1%}"
        )
    return "\n".join(lines)


# In the child process


def plan(engine: str, options: argparse.Namespace, **changes: Any) -> TrainingSpec:
    """Return what Quick says for the example character, validated at the start and the end and saved at the end only."""
    catalog = Catalog(Settings.load().configs_dir)
    about = yaml.safe_load((CHARACTER / "about.yaml").read_text(encoding="utf-8"))
    spec = resolve_spec(
        catalog.preset("quick"),
        catalog.model(options.model),
        character=CHARACTER.name,
        trigger=about["trigger"],
        class_word=about["class_word"],
        image_count=len(example_images()),
        engine=engine,
        overrides={**({"steps": options.steps} if options.steps else {}), **changes},
    )
    ends = {"save_every": spec.steps, "validate_every": spec.steps, "sample_every": 0}
    return spec.model_copy(update=ends)


def train(spec: TrainingSpec, options: argparse.Namespace) -> Trained:
    """Train in a temporary folder. Loading, encoding and what is due at the end are not timed."""
    import torch

    from isengard.engines.device import choose_device

    settings = Settings.load()
    device = choose_device(settings.device)
    card = Catalog(settings.configs_dir).model(options.model)
    marks: list[float] = []

    def report(progress: Progress) -> Requests:
        if progress.phase is Phase.TRAINING and progress.step == len(marks):
            marks.append(time.perf_counter())
        return Requests()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lora = trainer(spec.engine, settings, device).train(
            spec=spec,
            model=Weights(models_dir=settings.models_dir, assets_dir=ASSETS).locate_to_train(card),
            images=example_images(),
            run_dir=folder / "run",
            cache_dir=folder / "cache",
            report=report,
        )
    on_gpu = device.type == "cuda"
    return Trained(
        seconds=step_seconds(marks),
        process_bytes=resident_peak_bytes(),
        device_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else 0,
        validation_loss=lora.validation_losses[-1][1],
        device=torch.cuda.get_device_name(device) if on_gpu else f"{os.cpu_count()} CPU cores",
    )


def trainer(engine: str, settings: Settings, device: Any) -> LoraTrainer:
    from isengard.engines.ai_toolkit.trainer import AIToolkitTrainer
    from isengard.engines.native.adapter import AdapterFactory
    from isengard.engines.native.flux import FluxAdapter
    from isengard.engines.native.sdxl import SdxlAdapter
    from isengard.engines.native.trainer import NativeTrainer

    adapters: dict[Family, AdapterFactory] = {Family.FLUX: FluxAdapter, Family.SDXL: SdxlAdapter}
    if engine == AI_TOOLKIT:
        return AIToolkitTrainer(checkout=settings.ai_toolkit_dir, adapters=adapters, device=device)
    return NativeTrainer(adapters=adapters, device=device)


if __name__ == "__main__":
    try:
        main()
    except IsengardError as error:
        raise SystemExit(str(error)) from None
