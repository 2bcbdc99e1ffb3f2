"""Trainings on request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isengard.domain import disk
from isengard.domain.captions import resolve_caption
from isengard.domain.generation import LocalLora
from isengard.domain.job import Job
from isengard.domain.training import TrainingSpec
from isengard.engines.base import ImageGenerator, LoraTrainer, LoraVerifier, Report
from isengard.files import sweep
from isengard.handlers.early_stop import stopping_early
from isengard.handlers.memory import MemoryBook
from isengard.handlers.room import watching
from isengard.services.characters import CharacterService
from isengard.services.likeness import LikenessService
from isengard.services.room import Room
from isengard.services.training import read_payload
from isengard.store.artifacts import Loras
from isengard.store.configs import Catalog
from isengard.store.weights import Weights


@dataclass(frozen=True, kw_only=True)
class TrainLora:
    """Trains, proves that the LoRA works, and files it under the job's id."""

    trainers: Mapping[str, LoraTrainer]
    generator: ImageGenerator
    verifier: LoraVerifier
    catalog: Catalog
    weights: Weights
    loras: Loras
    runs_dir: Path
    characters_dir: Path
    cache_dir: Path
    characters: CharacterService
    likeness: LikenessService
    memory: MemoryBook
    room: Room
    compare: Callable[[str], None]
    """Asks for a comparison of the checkpoints of a training that is done."""

    def __call__(self, job: Job, report: Report) -> dict[str, Any]:
        """Run one job. The warm pipeline is dropped first: a training needs the whole device.

        Returns:
            ``{"lora", "steps", "stopped_early", "validation_losses", "best_step", "verification"}``; before.png and after.png
            of the verification are in the run's folder.
        """
        spec, images, name = read_payload(job)
        model = self.weights.locate_to_train(self.catalog.model(spec.base_model))
        run_dir = self.runs_dir / job.id
        run_dir.mkdir(parents=True, exist_ok=True)
        sweep(run_dir)
        self.room.check_training(model.card, spec, images=len(images), job=job.id, begins=True)
        floor = disk.checkpoint_bytes(model.card.parts, spec) if model.card.parts else 0
        report = watching(report, self.room, floor=floor)
        report = self._until_alike(report, spec, run_dir)
        self.generator.unload()
        with self.memory.training(model.card, spec, report) as watched:
            trained = self.trainers[spec.engine].train(
                spec=spec,
                model=model,
                images=[image.under(self.characters_dir) for image in images],
                run_dir=run_dir,
                cache_dir=self.cache_dir,
                report=watched,
            )
        prompt = spec.sample_prompts[0] if spec.sample_prompts else ""
        verification = self.verifier.verify(
            model=model,
            lora=LocalLora(id=job.id, name=name, path=trained.path, trigger=spec.trigger),
            prompt=resolve_caption(prompt, spec.trigger, spec.class_word),
            out_dir=run_dir,
            resolution=spec.sample_resolution,
            steps=spec.sample_steps,
            report=report,
        )
        details = {
            "stopped_early": trained.steps < spec.steps,
            "validation_losses": [list(pair) for pair in trained.validation_losses],
            "best_step": trained.best_step,
            "verification": verification.model_dump(),
        }
        self.loras.add(
            lora_id=job.id,
            name=name,
            character=spec.character,
            trigger=spec.trigger,
            class_word=spec.class_word,
            base_model=spec.base_model,
            steps=trained.steps,
            source=trained.path,
            details=details,
        )
        if spec.compare_when_done:
            self.compare(job.id)
        return {"lora": job.id, "steps": trained.steps, **details}

    def _until_alike(self, report: Report, spec: TrainingSpec, run_dir: Path) -> Report:
        if not spec.stop_early:
            return report
        character = self.characters.get(spec.character)
        return stopping_early(report, spec=spec, run_dir=run_dir, character=character, likeness=self.likeness)
