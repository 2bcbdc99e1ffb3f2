"""What a worker works with: the second half of the wiring, which imports the engines."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from isengard import __version__
from isengard.domain.generation import ImageSpec
from isengard.domain.job import Job, JobKind
from isengard.domain.model import Family, ModelCard
from isengard.domain.performance import GenerationPlan
from isengard.domain.training import AI_TOOLKIT, NATIVE
from isengard.domain.worker import WorkerState
from isengard.engines.base import PromptJudge, Report
from isengard.services.planning import Planning
from isengard.services.workers import ModelsHere
from isengard.settings import Settings
from isengard.store.comparisons import Comparisons
from isengard.wiring import TRAINS, Application, images_of, loras_of, peaks_of


@dataclass(frozen=True)
class Equipment:
    """What a worker runs, by kind of job, how it is described to others, where it works, and what goes on beside it."""

    handlers: Mapping[JobKind, Callable[[Job, Report], dict[str, Any]]]
    describe: Callable[[str], WorkerState]
    #: Raises VolumeUnfit while the data folder is not there.
    check_files: Callable[[], None]
    beside: Callable[[], AbstractContextManager[None]] = nullcontext
    after_job: Callable[[], None] = lambda: None


def equip(settings: Settings, application: Application) -> Equipment:
    """What a worker works with. Imports the engines, which takes seconds: call it in the worker only."""
    from isengard.engines.ai_toolkit.trainer import AIToolkitTrainer
    from isengard.engines.captioner import open_captioner
    from isengard.engines.device import choose_device, cuda_machine, reset_peak
    from isengard.engines.native.adapter import AdapterFactory
    from isengard.engines.native.flux import FluxAdapter
    from isengard.engines.native.flux2 import Flux2Adapter
    from isengard.engines.native.sdxl import SdxlAdapter
    from isengard.engines.native.trainer import NativeTrainer
    from isengard.engines.pipelines.generator import PipelineGenerator
    from isengard.engines.pipelines.verifier import PipelineVerifier
    from isengard.handlers.captioning import caption_images
    from isengard.handlers.comparison import CompareCheckpoints
    from isengard.handlers.generation import generate_images
    from isengard.handlers.likeness import Likenesses
    from isengard.handlers.memory import MemoryBook
    from isengard.handlers.training import TrainLora

    device = choose_device(settings.device)
    adapters: Mapping[Family, AdapterFactory] = {
        Family.FLUX: FluxAdapter,
        Family.FLUX2: Flux2Adapter,
        Family.SDXL: SdxlAdapter,
    }

    peaks = peaks_of(settings)
    facts = application.machine.facts
    planning = Planning(
        machine=partial(cuda_machine, device, facts) if device.type == "cuda" else facts,
        corrections=peaks.read,
    )
    book = MemoryBook(planning=planning, peaks=peaks, reset=partial(reset_peak, device))

    def plan(card: ModelCard, spec: ImageSpec) -> GenerationPlan:
        return planning.images(card, spec).plan

    generator = PipelineGenerator(device=device, plan=plan)
    loras = loras_of(settings)
    handlers: dict[JobKind, Callable[[Job, Report], dict[str, Any]]] = {
        JobKind.TRAIN_LORA: TrainLora(
            trainers={
                NATIVE: NativeTrainer(adapters=adapters, device=device),
                AI_TOOLKIT: AIToolkitTrainer(
                    checkout=settings.ai_toolkit_dir, adapters=adapters, device=device
                ),
            },
            generator=generator,
            verifier=PipelineVerifier(generator=generator),
            catalog=application.catalog,
            weights=application.weights,
            loras=loras,
            runs_dir=settings.runs_dir,
            characters_dir=settings.characters_dir,
            cache_dir=settings.cache_dir,
            characters=application.characters,
            likeness=application.likeness,
            memory=book,
            room=application.room,
            compare=application.comparison.after_training,
        ),
        JobKind.GENERATE_IMAGES: partial(
            generate_images,
            generator=generator,
            catalog=application.catalog,
            weights=application.weights,
            loras=loras,
            images=images_of(settings),
            runs_dir=settings.runs_dir,
            memory=book,
            room=application.room,
            likenesses=Likenesses(
                likeness=application.likeness,
                characters=application.characters,
                loras=loras,
                runs_dir=settings.runs_dir,
            ),
        ),
        JobKind.EVALUATE_CHECKPOINTS: CompareCheckpoints(
            generator=generator,
            catalog=application.catalog,
            weights=application.weights,
            comparisons=Comparisons(settings.runs_dir),
            characters=application.characters,
            likeness=application.likeness,
            judge=cache(partial(open_judge, settings.look_folder)),
            memory=book,
            room=application.room,
        ),
    }
    handlers[JobKind.CAPTION_IMAGES] = partial(
        caption_images,
        open_captioner=partial(open_captioner, device=device),
        make_room=generator.unload,
        characters=application.characters,
        catalog=application.catalog,
        weights=application.weights,
    )
    notices = application.notices
    return Equipment(
        handlers={kind: notices.watched(handler) for kind, handler in handlers.items()},
        describe=describing(application, warm=lambda: generator.warm),
        check_files=application.volume.check_still_there,
        beside=notices.sending,
        after_job=notices.soon,
    )


def open_judge(folder: Path) -> PromptJudge | None:
    """What tells how well prompts are followed: a CLIP or SigLIP with its tokenizer; None without. Raises: MissingWeights."""
    try:
        family = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        return None
    if family not in ("clip", "siglip") or not (folder / "tokenizer_config.json").is_file():
        return None
    from isengard.engines.prompt_judge import ClipJudge

    return ClipJudge(folder)


def describing(application: Application, *, warm: Callable[[], str]) -> Callable[[str], WorkerState]:
    """How a worker of this process is described, by its name."""
    started_at, machine = time.time(), application.machine
    models = ModelsHere(
        catalog=application.catalog, weights=application.weights, shared=application.settings.is_shared
    )

    def engines() -> tuple[str, ...]:
        # The only machine there is gets every job: what it lacks is then said at once, by the job that fails.
        lacks = application.settings.is_shared and application.ai_toolkit.absence()
        return tuple(engine for engine in TRAINS if not (lacks and engine == AI_TOOLKIT))

    def describe(name: str) -> WorkerState:
        return WorkerState(
            name=name,
            machine=machine.facts(),
            free_bytes=machine.free_bytes(),
            load=machine.load(),
            engines=engines(),
            models=models.names(),
            warm=warm(),
            version=__version__,
            started_at=started_at,
        )

    return describe


def cards_for(settings: Settings) -> tuple[str, ...]:
    """The ids of the CUDA devices a worker may have, by index. Imports torch, unless it is told to do without them."""
    if settings.device in ("cpu", "mps"):
        return ()
    from isengard.engines.device import cards

    return cards()


def is_spent() -> bool:
    """Whether AI-Toolkit was imported here: what it changes in the process must not reach the next job."""
    return "toolkit.accelerator" in sys.modules
