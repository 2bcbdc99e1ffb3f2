"""Comparisons of a training's checkpoints on request."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from isengard.domain import disk
from isengard.domain.comparison import Comparison, ComparisonSpec, Tested
from isengard.domain.evaluation import Candidate, Reference, cannot_know, evaluate
from isengard.domain.generation import LocalLora
from isengard.domain.identity import Portrait
from isengard.domain.job import Job, Phase, Progress, Requests
from isengard.domain.model import LocalModel
from isengard.engines.base import ImageGenerator, PromptJudge, Report
from isengard.errors import NotFound
from isengard.handlers.memory import MemoryBook
from isengard.handlers.room import watching
from isengard.services.characters import CharacterService
from isengard.services.comparison import image_spec, read_payload
from isengard.services.likeness import LikenessService
from isengard.services.resemblance import Key, Sketch, shots, sketch, twins
from isengard.services.room import Room
from isengard.store.comparisons import Comparisons, KeptShots
from isengard.store.configs import Catalog
from isengard.store.weights import Weights

log = logging.getLogger(__name__)

PREVIEW = "preview.png"
#: Another number when the numbers of pictures are worked out in another way: kept ones do not count then.
MEASURE = 1


@dataclass(frozen=True, kw_only=True)
class CompareCheckpoints:
    """Makes the pictures of the base model and of each candidate, and scores them. What is there is not made again."""

    generator: ImageGenerator
    catalog: Catalog
    weights: Weights
    comparisons: Comparisons
    characters: CharacterService
    likeness: LikenessService
    judge: Callable[[], PromptJudge | None]
    memory: MemoryBook
    room: Room
    clock: Callable[[], float] = time.time

    def __call__(self, job: Job, report: Report) -> dict[str, Any]:
        """Run one job.

        Returns:
            ``{"run", "recommended", "reason", "pictures", "making_s", "scoring_s"}``: pictures that this attempt made, and
            the seconds it took to make and to score them.
        """
        spec = read_payload(job)
        model = self.weights.locate(self.catalog.model(spec.base_model))
        report(Progress(phase=Phase.LOADING, message="looking at the photos"))
        self.comparisons.sweep(spec.run)
        self.room.check_comparison(spec, job=job.id, begins=True)
        pair = image_spec(spec, prompt=0, seed=spec.seeds[0], count=len(spec.seeds))
        watched = watching(report, self.room, floor=disk.images_bytes(pair))
        measure = Measure.of(self, spec)
        with self.memory.images(model.card, pair, watched) as remembered:
            pictures = Pictures(
                spec=spec,
                model=model,
                generator=self.generator,
                comparisons=self.comparisons,
                preview=self.comparisons.folder(spec.run) / PREVIEW,
                report=remembered,
            )
            comparison = self._compared(spec, pictures, measure)
        self.comparisons.drop_others(spec, [one.candidate for one in comparison.tested])
        pictures.preview.unlink(missing_ok=True)
        recommended = comparison.verdict.recommended
        return {
            "run": spec.run,
            "recommended": recommended and recommended.model_dump(),
            "reason": comparison.verdict.reason,
            "pictures": pictures.made,
            "making_s": round(pictures.seconds, 3),
            "scoring_s": round(measure.seconds, 3),
        }

    def _compared(self, spec: ComparisonSpec, pictures: "Pictures", measure: "Measure") -> Comparison:
        pictures.make(None)
        reference = measure.reference()
        hopeless = bool(cannot_know(reference))
        tested = [] if hopeless else [measure.tested(one) for one in self._earlier(spec)]
        for candidate in () if hopeless else spec.candidates:
            pictures.make(candidate)
            tested.append(measure.tested(candidate))
            if candidate != spec.candidates[-1]:
                self._written(spec, measure, reference, tested, complete=False)
        comparison = self._written(spec, measure, reference, tested, complete=True)
        log.info("checkpoints compared", extra={"run": spec.run, "reason": comparison.verdict.reason})
        return comparison

    def _earlier(self, spec: ComparisonSpec) -> list[Candidate]:
        """What was tested before on the same pictures, and is there still: whoever tests another strength keeps the table."""
        former = self.comparisons.read(spec.run)
        if former is None or not spec.goes_with(former.spec):
            return []
        return [
            one.candidate
            for one in former.tested
            if one.candidate not in spec.candidates
            and self.comparisons.checkpoint(spec.run, one.candidate.step).is_file()
            and all(path.is_file() for path in self.comparisons.pictures(spec, one.candidate))
        ]

    def _written(
        self,
        spec: ComparisonSpec,
        measure: "Measure",
        reference: Reference,
        tested: Sequence[Tested],
        *,
        complete: bool,
    ) -> Comparison:
        comparison = Comparison(
            spec=spec,
            scorer=measure.portrait.scorer,
            reference=reference,
            tested=tuple(tested),
            adherence=measure.numbers(None).adherence,
            verdict=evaluate(reference, {one.candidate: one.shots for one in tested}),
            complete=complete,
            made_at=self.clock(),
        )
        self.comparisons.write(comparison)
        return comparison


@dataclass(kw_only=True)
class Pictures:
    """Makes what is not there yet."""

    spec: ComparisonSpec
    model: LocalModel
    generator: ImageGenerator
    comparisons: Comparisons
    preview: Path
    report: Report
    made: int = 0
    seconds: float = 0.0
    _behind: int = field(default=0, init=False)
    """Pictures of the spec that are there, or were passed over."""

    def make(self, candidate: Candidate | None) -> None:
        """All pictures of a candidate, or of the base model. Raises: NotFound: its checkpoint is gone."""
        loras = [] if candidate is None else [self._lora(candidate)]
        for prompt in range(len(self.spec.prompts)):
            for seeds in self._missing(candidate, prompt):
                request = image_spec(self.spec, prompt=prompt, seed=seeds[0], count=len(seeds))
                began = time.monotonic()
                for one in self.generator.generate(
                    spec=request,
                    prompt=request.prompt,
                    model=self.model,
                    loras=loras,
                    preview=self.preview,
                    report=self._told(candidate),
                ):
                    path = self._path(candidate, prompt, one.seed)
                    self.comparisons.keep(one.image, path)
                    self.made += 1
                self.seconds += time.monotonic() - began
                self._behind += len(seeds)

    def _lora(self, candidate: Candidate) -> LocalLora:
        path = self.comparisons.checkpoint(self.spec.run, candidate.step)
        if not path.is_file():
            raise NotFound(
                f"the checkpoint of step {candidate.step} of training {self.spec.run!r} is gone; compare the others anew"
            )
        name = f"{self.spec.run}-step{candidate.step}"
        return LocalLora(id=self.spec.run, name=name, path=path, strength=candidate.strength)

    def _path(self, candidate: Candidate | None, prompt: int, seed: int) -> Path:
        return self.comparisons.picture(self.spec, candidate, prompt=prompt, seed=seed)

    def _missing(self, candidate: Candidate | None, prompt: int) -> Iterator[list[int]]:
        """The seeds whose pictures are not there, those in a row together."""
        row: list[int] = []
        for seed in sorted(self.spec.seeds):
            if self._path(candidate, prompt, seed).is_file():
                self._behind += 1
                continue
            if row and seed != row[-1] + 1:
                yield row
                row = []
            row.append(seed)
        if row:
            yield row

    def _told(self, candidate: Candidate | None) -> Report:
        """Count the steps of one request among those of the whole comparison."""
        each = self.spec.num_inference_steps
        total = self.spec.pictures * each
        done = self._behind * each
        who = "the base model" if candidate is None else f"step {candidate.step} at {candidate.strength:g}"

        def told(progress: Progress) -> Requests:
            if progress.phase is not Phase.GENERATING:
                return self.report(progress)
            step = done + progress.step
            place = min(self.spec.pictures, -(-step // each))
            return self.report(
                progress.model_copy(
                    update={
                        "step": step,
                        "total": total,
                        "preview": None,  # it is not in this job's folder
                        "message": f"{who}: picture {place} of {self.spec.pictures}",
                        "eta_s": (total - step) / progress.steps_per_s if progress.steps_per_s else None,
                    }
                )
            )

        return told


@dataclass(kw_only=True)
class Measure:
    """Scores pictures, each candidate's once."""

    spec: ComparisonSpec
    portrait: Portrait
    ids: Sequence[str]
    """Of the photos."""
    photos: Sequence[Sketch]
    twins: float
    comparisons: Comparisons
    likeness: LikenessService
    judge: PromptJudge | None
    seconds: float = 0.0

    @classmethod
    def of(cls, tools: CompareCheckpoints, spec: ComparisonSpec) -> "Measure":
        """What the character's photos say. Raises: NotFound, InvalidSpec: no photo shows it. MissingWeights."""
        character = tools.characters.get(spec.character)
        portrait = tools.likeness.portrait(character)
        paths = [tools.characters.image_path(character.id, image.id) for image in character.images]
        photos = [sketch(path) for path in paths]
        return cls(
            spec=spec,
            portrait=portrait,
            ids=[image.id for image in character.images],
            photos=photos,
            twins=twins(character.images, photos),
            comparisons=tools.comparisons,
            likeness=tools.likeness,
            judge=tools.judge(),
        )

    def reference(self) -> Reference:
        floor = self.numbers(None).shots
        return Reference(ceiling=self.portrait.ceiling, twins=self.twins, floor=floor)

    def tested(self, candidate: Candidate) -> Tested:
        found = self.numbers(candidate)
        return Tested(candidate=candidate, shots=found.shots, adherence=found.adherence)

    def numbers(self, candidate: Candidate | None) -> KeptShots:
        """Of a candidate's pictures, which are all there, as are those of the base model."""
        paths = self.comparisons.pictures(self.spec, candidate)
        measured = self._measured(paths)
        kept = self.comparisons.shots(self.spec.run, candidate, measured=measured)
        if kept is not None:
            return kept
        began = time.monotonic()
        found = shots(
            self._keys,
            likeness=self.likeness.score(self.portrait, paths),
            sketches=[sketch(path) for path in paths],
            base=self._base,
            photos=self.photos,
        )
        kept = KeptShots(measured=measured, shots=found, adherence=self._adherence(paths))
        self.seconds += time.monotonic() - began
        self.comparisons.keep_shots(self.spec.run, candidate, kept)
        return kept

    def _adherence(self, paths: Sequence[Path]) -> float | None:
        if self.judge is None:
            return None
        with ExitStack() as stack:
            images = [stack.enter_context(Image.open(path)) for path in paths]
            return fmean(self.judge.follow(images, [self.spec.prompts[prompt] for prompt, _ in self._keys]))

    @property
    def _keys(self) -> list[Key]:
        return list(self.spec.keys)

    @cached_property
    def _base(self) -> list[Sketch]:
        return [sketch(path) for path in self.comparisons.pictures(self.spec, None)]

    def _measured(self, paths: Sequence[Path]) -> str:
        """Other text for other pictures or photos."""
        told = [
            MEASURE,
            self.judge is not None,
            self.portrait.scorer,
            *self.portrait.images,
            *self.ids,
            *(path.stem for path in paths),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
