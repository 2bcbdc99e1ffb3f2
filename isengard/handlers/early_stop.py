"""Ends a training whose samples have stopped becoming more like the character."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from isengard.domain.character import Character
from isengard.domain.early_stop import has_stopped_rising
from isengard.domain.evaluation import MIN_PHOTOS
from isengard.domain.job import Phase, Progress, Requests
from isengard.domain.training import TrainingSpec
from isengard.engines.base import Report
from isengard.errors import InvalidSpec
from isengard.services.likeness import LikenessService

log = logging.getLogger(__name__)

#: Of each picture its likeness to the character; None where nobody is seen.
Scores = Callable[[Sequence[Path]], Sequence[float | None]]


class EarlyStop:
    """A ``report`` that asks for the end. It decides by the pictures in the run's folder alone: a restart changes nothing."""

    def __init__(
        self, report: Report, *, spec: TrainingSpec, samples_dir: Path, scores: Scores, ceiling: float
    ) -> None:
        """``ceiling``: the mean likeness of the photos among each other."""
        self._report, self._spec, self._folder = report, spec, samples_dir
        self._scores, self._ceiling = scores, ceiling
        self._means: dict[int, float | None] = {}

    def __call__(self, progress: Progress) -> Requests:
        asked = self._report(progress)
        if progress.phase is not Phase.TRAINING or not self._is_enough(progress.step):
            return asked
        log.info("likeness has stopped rising", extra={"step": progress.step})
        return asked.model_copy(update={"finish": True})

    def _is_enough(self, step: int) -> bool:
        if step == 0 or step % self._spec.sample_every:
            return False
        means = [self._mean(at) for at in range(0, step + 1, self._spec.sample_every)]
        floor = means[0]
        if means[-1] is None or floor is None:
            return False
        seen = [floor if mean is None else mean for mean in means]
        return has_stopped_rising(seen, ceiling=self._ceiling)

    def _mean(self, step: int) -> float | None:
        """Of the samples of a step; None when not all are there yet, or none shows anybody."""
        if step not in self._means:
            paths = [
                self._folder / f"{step:08d}-{number}.png" for number in range(len(self._spec.sample_prompts))
            ]
            if not all(path.is_file() for path in paths):
                return None
            seen = [score for score in self._scores(paths) if score is not None]
            self._means[step] = fmean(seen) if seen else None
        return self._means[step]


def stopping_early(
    report: Report, *, spec: TrainingSpec, run_dir: Path, character: Character, likeness: LikenessService
) -> Report:
    """The ``report`` of a training that ends when its samples say so.

    Raises:
        InvalidSpec: too few photos show the character. MissingWeights.
    """
    portrait = likeness.portrait(character)
    if len(portrait.ceiling) < MIN_PHOTOS:
        raise InvalidSpec(
            f"stop_early: {len(portrait.ceiling)} photos of {character.name} show whom to look for, and it takes"
            f" {MIN_PHOTOS}; switch it off, or add photos"
        )
    return EarlyStop(
        report,
        spec=spec,
        samples_dir=run_dir / "samples",
        scores=partial(likeness.score, portrait),
        ceiling=fmean(portrait.ceiling),
    )
