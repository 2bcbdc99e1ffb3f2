"""Composition root: the only place that names concrete classes."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from isengard.domain.generation import ImageSpec
from isengard.domain.job import Job, JobKind
from isengard.domain.model import Family, ModelCard
from isengard.domain.performance import GenerationPlan
from isengard.domain.training import AI_TOOLKIT, NATIVE
from isengard.engines.base import IdentityScorer, Report
from isengard.queue.base import JobQueue
from isengard.queue.sqlite import SqliteQueue
from isengard.services.ai_toolkit import AiToolkitService
from isengard.services.characters import CharacterService
from isengard.services.images import ImageService
from isengard.services.jobs import JobService
from isengard.services.machine import Machine
from isengard.services.model_tasks import ModelTasks
from isengard.services.models import ModelService
from isengard.services.planning import Planning
from isengard.services.training import Engine, TrainingService
from isengard.settings import ASSETS, ROOT, Settings
from isengard.store import child
from isengard.store.ai_toolkit import Checkout
from isengard.store.artifacts import Images, Loras
from isengard.store.characters import CharacterStore
from isengard.store.configs import Catalog
from isengard.store.hub import Hub
from isengard.store.memory import Peaks
from isengard.store.token import TokenFile
from isengard.store.weights import Weights

#: What `build_handlers` can make: families by training engine, and families that make images.
TRAINS = {NATIVE: tuple(Family), AI_TOOLKIT: (Family.FLUX, Family.SDXL)}
GENERATES = tuple(Family)


@dataclass(frozen=True)
class Application:
    """The services behind the page and the command line."""

    settings: Settings
    queue: JobQueue
    catalog: Catalog
    weights: Weights
    characters: CharacterService
    training: TrainingService
    ai_toolkit: AiToolkitService
    images: ImageService
    jobs: JobService
    machine: Machine
    planning: Planning
    models: ModelService
    model_tasks: ModelTasks


def open_queue(settings: Settings) -> JobQueue:
    """The job list that the settings name. Raises: QueueUnavailable, Conflict."""
    if settings.redis_url is None:
        return SqliteQueue(settings.jobs_db)
    from isengard.queue.redis import RedisQueue  # redis takes 0.1 s to import

    return RedisQueue(settings.redis_url.get_secret_value())


def build(settings: Settings) -> Application:
    """Wire the services. Imports no engine."""
    queue = open_queue(settings)
    catalog = Catalog(settings.configs_dir)
    weights = Weights(models_dir=settings.models_dir, assets_dir=ASSETS)
    characters = CharacterService(
        store=CharacterStore(
            characters_dir=settings.characters_dir, trash_dir=settings.trash_dir / "characters"
        )
    )
    ai_toolkit = AiToolkitService(checkout=_checkout(settings))
    machine = Machine(device=settings.device)
    planning = Planning(machine=machine.facts, corrections=_peaks(settings).read)
    token = TokenFile(settings.data_dir / "hub-token", given=settings.hub_token)
    return Application(
        settings=settings,
        queue=queue,
        catalog=catalog,
        weights=weights,
        characters=characters,
        training=TrainingService(
            queue=queue,
            catalog=catalog,
            weights=weights,
            characters=characters,
            engines={
                NATIVE: Engine(TRAINS[NATIVE]),
                AI_TOOLKIT: Engine(TRAINS[AI_TOOLKIT], absence=ai_toolkit.absence),
            },
            planning=planning,
            runs_dir=settings.runs_dir,
        ),
        ai_toolkit=ai_toolkit,
        images=ImageService(
            queue=queue,
            catalog=catalog,
            weights=weights,
            loras=_loras(settings),
            images=_images(settings),
            families=GENERATES,
            planning=planning,
        ),
        jobs=JobService(queue=queue, runs_dir=settings.runs_dir),
        machine=machine,
        planning=planning,
        models=ModelService(
            catalog=catalog,
            weights=weights,
            queue=queue,
            hub=Hub(endpoint=settings.hub_endpoint, token=token.get, offline=settings.hub_offline),
            token=token,
            convert=_convert,
        ),
        model_tasks=ModelTasks(
            run=partial(child.run, env=settings.child_environment(), cwd=ROOT),
            command=(sys.executable, "-m", "isengard", "models"),
        ),
    )


def build_handlers(
    settings: Settings, application: Application
) -> Mapping[JobKind, Callable[[Job, Report], dict[str, Any]]]:
    """What a worker runs, by kind of job. Imports the engines, which takes seconds: call it in the worker only."""
    from isengard.engines.ai_toolkit.trainer import AIToolkitTrainer
    from isengard.engines.device import choose_device, cuda_machine, reset_peak
    from isengard.engines.native.adapter import AdapterFactory
    from isengard.engines.native.flux import FluxAdapter
    from isengard.engines.native.flux2 import Flux2Adapter
    from isengard.engines.native.sdxl import SdxlAdapter
    from isengard.engines.native.trainer import NativeTrainer
    from isengard.engines.pipelines.generator import PipelineGenerator
    from isengard.engines.pipelines.verifier import PipelineVerifier
    from isengard.handlers.generation import generate_images
    from isengard.handlers.memory import MemoryBook
    from isengard.handlers.training import TrainLora

    device = choose_device(settings.device)
    adapters: Mapping[Family, AdapterFactory] = {
        Family.FLUX: FluxAdapter,
        Family.FLUX2: Flux2Adapter,
        Family.SDXL: SdxlAdapter,
    }

    peaks = _peaks(settings)
    facts = application.machine.facts
    planning = Planning(
        machine=partial(cuda_machine, device, facts) if device.type == "cuda" else facts,
        corrections=peaks.read,
    )
    book = MemoryBook(planning=planning, peaks=peaks, reset=partial(reset_peak, device))

    def plan(card: ModelCard, spec: ImageSpec) -> GenerationPlan:
        return planning.images(card, spec).plan

    generator = PipelineGenerator(device=device, plan=plan)
    loras = _loras(settings)
    return {
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
            cache_dir=settings.cache_dir,
            memory=book,
        ),
        JobKind.GENERATE_IMAGES: partial(
            generate_images,
            generator=generator,
            catalog=application.catalog,
            weights=application.weights,
            loras=loras,
            images=_images(settings),
            runs_dir=settings.runs_dir,
            memory=book,
        ),
    }


def is_spent() -> bool:
    """Whether AI-Toolkit was imported here: what it changes in the process must not reach the next job."""
    return "toolkit.accelerator" in sys.modules


def drawn_figure_scorer() -> IdentityScorer:
    """Tells the demo model's figures apart. Imports torch."""
    from isengard.engines.drawn_figures import DrawnFigureScorer

    return DrawnFigureScorer(ASSETS / "figure-encoder.safetensors")


def _convert(file: Path, family: Family, parts: Path) -> None:
    """Turn a single-file checkpoint into diffusers' layout. Imports torch."""
    from isengard.engines.single_file import convert

    convert(file, family=family, parts=parts)


def _checkout(settings: Settings) -> Checkout:
    return Checkout(
        settings.ai_toolkit_dir,
        owned=settings.ai_toolkit is None,
        lock=settings.data_dir / "ai-toolkit.lock",
    )


def _loras(settings: Settings) -> Loras:
    return Loras(
        loras_dir=settings.loras_dir, runs_dir=settings.runs_dir, trash_dir=settings.trash_dir / "loras"
    )


def _peaks(settings: Settings) -> Peaks:
    return Peaks(settings.data_dir / "memory.json")


def _images(settings: Settings) -> Images:
    return Images(images_dir=settings.images_dir, trash_dir=settings.trash_dir / "images")
