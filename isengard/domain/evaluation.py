"""Which checkpoint, at what strength, looks like the character: numbers with their uncertainty, or why there are none.

Every candidate (a checkpoint at a strength) makes the same pictures: the same prompts with the same seeds, which the base
model makes, too, without the LoRA. Likeness is the cosine similarity to the centroid of the photos' embeddings. A score is
the part of the way from the base model's likeness (the floor, 0) to that of the photos among each other (the ceiling, 1).
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.identity import Embedding
from isengard.errors import InvalidSpec

#: Fewer photos or prompts than that give no interval worth showing.
MIN_PHOTOS, MIN_PROMPTS = 3, 4
#: Cosine. A floor as near to the ceiling leaves no room in which a LoRA could be told from none.
MIN_ROOM = 0.05
RESAMPLES, CONFIDENCE = 2000, 0.95
#: Shares of the pictures. The base model's own share is no fault of the LoRA.
FACELESS, COPIED = 0.25, 0.25
#: Of the way from the likest two photos to the very same picture. With the same clothes and place a picture of the same person
#: comes near to a photo without being a copy: of good LoRAs a few do, those of one character with six photos in 38 % of the
#: pictures, as three prompts in eight ask for what such a photo shows; half of those of a copying LoRA, and blurred and moved
#: copies go 0.2 to 1 of it.
NEARLY_THE_SAME = 0.25
#: A share of copies that a prompt like a photo cannot explain. A smaller one is a fault where all prompts give the same.
COPIED_ALL = 2 / 3
#: Of the base model's distance between prompts. Below it, all pictures are the same whatever the prompt says. (Seeds tell
#: nothing: with the same prompt a good LoRA makes them alike, as it shows the same person.)
MONOTONOUS = 0.5
#: Of the same distance. Pictures that are no likeness and so far from the base model's are broken, not unchanged.
BROKEN = 0.5
#: A score that a LoRA without any effect does not reach.
NO_GAIN = 0.1
#: How a verdict's reason begins when all candidates without a fault are alike.
NO_CLEAR_WINNER = "no clear winner"

Array = NDArray[np.float64]


class Fault(StrEnum):
    """What is wrong with a candidate, whatever its score."""

    NO_EFFECT = "no_effect"
    OVERCOOKED = "overcooked"
    COPYING = "copying"


class Candidate(Frozen):
    """A checkpoint and the strength it is used with."""

    step: int = Field(ge=0)
    strength: float


class Shot(Frozen):
    """One picture of the fixed set, as the scorers see it."""

    prompt: int = Field(ge=0, description="its place in the list of prompts")
    seed: int
    likeness: float | None = Field(description="cosine to the photos' centroid; None when it shows nobody")
    nearest: float = Field(description="likeness as a picture to the nearest training photo, 1 is the same")
    variety: float = Field(
        0.0, ge=0, description="mean distance to the pictures of the same prompt and other seeds"
    )
    spread: float = Field(
        0.0, ge=0, description="mean distance to the pictures of other prompts and the same seed"
    )
    change: float = Field(
        0.0, ge=0, description="distance to the base model's picture of the same prompt and seed"
    )


class Reference(Frozen):
    """What candidates are measured against."""

    ceiling: tuple[float, ...] = Field(description="of each photo, the cosine to the centroid of the others")
    twins: float = Field(
        description="the highest likeness, as pictures, that two photos have which are not the same"
    )
    floor: tuple[Shot, ...] = Field(description="pictures of the base model without the LoRA")


class Score(Frozen):
    """One candidate."""

    candidate: Candidate
    value: float = Field(
        description="0 as like as the base model's pictures, 1 as the photos are among each other"
    )
    low: float = Field(description="of the bootstrap interval")
    high: float
    faceless: float = Field(description="share of pictures that show nobody; they count as no gain")
    copied: float = Field(description="share of pictures that are nearly one of the photos")
    variety: float = Field(description="between seeds, as a share of the base model's")
    spread: float = Field(1.0, description="between prompts, as a share of the base model's")
    faults: tuple[Fault, ...] = ()


class Verdict(Frozen):
    """All candidates, and which to take."""

    scores: tuple[Score, ...]
    recommended: Candidate | None = None
    reason: str = Field(description="in words: why this one, or why none")


def centroid(embeddings: Sequence[Embedding]) -> Embedding:
    """Return the mean direction, of unit length. Raises: InvalidSpec without embeddings."""
    if not embeddings:
        raise InvalidSpec("no photo shows the character: there is nothing to compare with")
    mean = np.asarray(embeddings, dtype=np.float64).mean(axis=0)
    return tuple((mean / np.linalg.norm(mean)).tolist())


def left_out(embeddings: Sequence[Embedding]) -> tuple[float, ...]:
    """Return, of each photo, the cosine to the centroid of the others."""
    return tuple(
        float(np.dot(one, centroid([*embeddings[:place], *embeddings[place + 1 :]])))
        for place, one in enumerate(embeddings)
    )


def evaluate(reference: Reference, shots: Mapping[Candidate, Sequence[Shot]]) -> Verdict:
    """Score the candidates and recommend the earliest one that is as good as the best.

    The bootstrap draws prompts with replacement, the same ones for the floor and for all candidates, and photos for the
    ceiling; so two candidates are compared by their difference on the same prompts.

    Raises:
        InvalidSpec: a candidate's pictures are not those of the floor.
    """
    if why := cannot_know(reference):
        return Verdict(scores=(), reason=why)
    grids = {candidate: _grid(reference, candidate, made) for candidate, made in shots.items()}
    samples = _resampled(reference, grids)
    scores = tuple(
        _score(reference, candidate, shots[candidate], grids[candidate], samples[candidate])
        for candidate in sorted(shots, key=lambda one: (one.step, abs(one.strength - 1)))
    )
    prompts = len({shot.prompt for shot in reference.floor})
    return _verdict(scores, samples, prompts=prompts)


def cannot_know(reference: Reference) -> str:
    """Why nothing can be said, in words; empty when something can."""
    prompts = {shot.prompt for shot in reference.floor}
    if len(reference.ceiling) < MIN_PHOTOS:
        return f"only {len(reference.ceiling)} photos show the character clearly; it takes {MIN_PHOTOS}"
    if len(prompts) < MIN_PROMPTS:
        return f"only {len(prompts)} prompts were tried; it takes {MIN_PROMPTS}"
    if _floor(reference.floor) is None:
        return "the base model's pictures show nobody, so there is no floor to measure from; use prompts of a person"
    low = float(np.quantile(_ceilings(reference), 1 - CONFIDENCE))
    room = low - (_floor(reference.floor) or 0.0)
    if room < MIN_ROOM:
        return (
            f"the photos are hardly more like each other ({np.mean(reference.ceiling):.2f}) than the base model's"
            f" pictures are like them ({_floor(reference.floor):.2f}): this scorer cannot tell the character apart"
        )
    return ""


def _floor(shots: Sequence[Shot]) -> float | None:
    seen = [shot.likeness for shot in shots if shot.likeness is not None]
    return float(np.mean(seen)) if seen else None


def _grid(reference: Reference, candidate: Candidate, made: Sequence[Shot]) -> tuple[Array, Array]:
    """Likeness of the candidate's pictures and of the floor's, (prompts, seeds); who shows nobody gains nothing."""
    keys = sorted({(shot.prompt, shot.seed) for shot in reference.floor})
    by_key = {(shot.prompt, shot.seed): shot for shot in made}
    if sorted(by_key) != keys or len(keys) != len(made):
        raise InvalidSpec(
            f"step {candidate.step} at strength {candidate.strength:g} has {len(made)} pictures which are not those of"
            f" the base model ({len(keys)}): make the same prompts and seeds"
        )
    nobody = _floor(reference.floor) or 0.0
    floor = {
        (shot.prompt, shot.seed): nobody if shot.likeness is None else shot.likeness
        for shot in reference.floor
    }
    prompts = sorted({prompt for prompt, _ in keys})

    def rows(of: Mapping[tuple[int, int], float]) -> Array:
        return np.array([np.mean([of[key] for key in keys if key[0] == prompt]) for prompt in prompts])

    likeness = {key: floor[key] if shot.likeness is None else shot.likeness for key, shot in by_key.items()}
    return rows(likeness), rows(floor)


def _ceilings(reference: Reference) -> Array:
    photos = np.asarray(reference.ceiling)
    means: Array = photos[_draws(len(photos), stream=1)].mean(axis=1)
    return means


def _draws(size: int, *, stream: int) -> NDArray[np.int64]:
    """Which things each resample has, (RESAMPLES, size); the same ones for the same size."""
    return np.random.default_rng(stream).integers(0, size, (RESAMPLES, size))


def _resampled(
    reference: Reference, grids: Mapping[Candidate, tuple[Array, Array]]
) -> dict[Candidate, Array]:
    ceilings = _ceilings(reference)
    scores: dict[Candidate, Array] = {}
    for candidate, (made, floor) in grids.items():
        draws = _draws(len(floor), stream=0)
        floors = floor[draws].mean(axis=1)
        scores[candidate] = (made[draws].mean(axis=1) - floors) / np.maximum(ceilings - floors, MIN_ROOM)
    return scores


def _interval(samples: Array, *, prompts: int) -> tuple[float, float]:
    """The middle of the resamples, widened: those of few prompts spread too little, by as much as normal and t quantiles differ."""
    low, middle, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2])
    free = prompts - 1
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)  # Cornish and Fisher
    wider = t / z * (prompts / free) ** 0.5
    return float(middle - wider * (middle - low)), float(middle + wider * (high - middle))


def _score(
    reference: Reference,
    candidate: Candidate,
    made: Sequence[Shot],
    grid: tuple[Array, Array],
    samples: Array,
) -> Score:
    likeness, floor = (float(rows.mean()) for rows in grid)
    value = (likeness - floor) / max(float(np.mean(reference.ceiling)) - floor, MIN_ROOM)
    low, high = _interval(samples, prompts=len(grid[0]))
    found: dict[str, Any] = {
        "faceless": _share(made, lambda shot: shot.likeness is None),
        "copied": _share(made, partial(_is_copy, reference)),
        "variety": _of_base(made, reference.floor, lambda shot: shot.variety),
        "spread": _of_base(made, reference.floor, lambda shot: shot.spread),
    }
    score = Score(candidate=candidate, value=value, low=low, high=high, **found)
    return score.model_copy(update={"faults": tuple(_faults(reference, score, made))})


def _share(shots: Sequence[Shot], holds: Callable[[Shot], bool]) -> float:
    return sum(holds(shot) for shot in shots) / len(shots)


def _is_copy(reference: Reference, shot: Shot) -> bool:
    return shot.nearest > reference.twins + NEARLY_THE_SAME * (1 - reference.twins)


def _of_base(made: Sequence[Shot], base: Sequence[Shot], number: Callable[[Shot], float]) -> float:
    """The mean of a number, as a share of the base model's; 1 where that is nothing."""
    whole = fmean(map(number, base))
    return fmean(map(number, made)) / whole if whole else 1.0


def _faults(reference: Reference, score: Score, made: Sequence[Shot]) -> list[Fault]:
    base_faceless = _share(reference.floor, lambda shot: shot.likeness is None)
    is_near = score.copied > _share(reference.floor, partial(_is_copy, reference)) + COPIED
    is_copying = is_near and (score.copied >= COPIED_ALL or score.spread < MONOTONOUS)
    no_gain = score.high < NO_GAIN or (score.low <= 0 and score.value < NO_GAIN)
    spread = fmean(shot.spread for shot in reference.floor)
    is_broken = no_gain and fmean(shot.change for shot in made) > BROKEN * spread > 0
    is_monotonous = score.spread < MONOTONOUS and not is_copying  # which explains it
    faults = []
    if no_gain and not is_broken:
        faults.append(Fault.NO_EFFECT)
    if is_broken or score.faceless > base_faceless + FACELESS or is_monotonous:
        faults.append(Fault.OVERCOOKED)
    if is_copying:
        faults.append(Fault.COPYING)
    return faults


def _verdict(scores: Sequence[Score], samples: Mapping[Candidate, Array], *, prompts: int) -> Verdict:
    sound = [score for score in scores if not score.faults]
    if not sound:
        return Verdict(scores=tuple(scores), reason=_all_faulty(scores))

    def ties(score: Score, best: Score) -> bool:
        """A noisy candidate ties easily, so a tie alone is not enough to be as good."""
        difference = samples[best.candidate] - samples[score.candidate]
        return _interval(difference, prompts=prompts)[0] <= 0

    best = max(sound, key=lambda score: score.value)
    equal = [score for score in sound if score is best or (score.value >= best.low and ties(score, best))]
    chosen = equal[0]
    words = f"step {chosen.candidate.step} at strength {chosen.candidate.strength:g}"
    if len(sound) > 1 and len(equal) == len(sound):
        reason = (
            f"{NO_CLEAR_WINNER}: the {len(sound)} candidates cannot be told apart; {words} is the earliest"
        )
    elif chosen is best:
        reason = f"{words} is the most like the photos"
    else:
        reason = f"{words} is the earliest that cannot be told from the best (step {best.candidate.step})"
    return Verdict(scores=tuple(scores), recommended=chosen.candidate, reason=reason)


def _all_faulty(scores: Sequence[Score]) -> str:
    words = {
        Fault.NO_EFFECT: "has no effect on the likeness",
        Fault.OVERCOOKED: "breaks the pictures or makes them all the same",
        Fault.COPYING: "copies training photos",
    }
    return "no checkpoint can be recommended: " + "; ".join(
        f"step {score.candidate.step} at {score.candidate.strength:g} "
        + " and ".join(words[fault] for fault in score.faults)
        for score in scores
    )
