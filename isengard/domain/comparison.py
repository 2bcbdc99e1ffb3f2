"""Comparing a training's checkpoints: which pictures are made, and what came of them."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, field_validator, model_validator

from isengard.domain.base import MAX_TEXT, Frozen, Name
from isengard.domain.evaluation import MIN_PROMPTS, Candidate, Reference, Shot, Verdict
from isengard.domain.generation import Side
from isengard.domain.identity import ScorerKind

#: Below the usual strength a LoRA may keep the likeness and follow the prompt better.
STRENGTHS = (1.0, 0.8)
SEEDS = (11, 12)
#: A longer training is compared at so many of its checkpoints, evenly apart.
MOST_STEPS = 8
#: Pictures of one comparison.
MOST_PICTURES = 4000

#: By what tells the character apart. The last two of each are far from what people take photos of for a training.
PROMPTS: Mapping[ScorerKind, tuple[str, ...]] = {
    ScorerKind.FACES: (
        "a portrait photo of [trigger] [class], head and shoulders, facing the camera, soft window light",
        "a close-up photo of [trigger] [class], serious, gray studio background",
        "a photo of [trigger] [class] laughing in a park, afternoon sun",
        "a photo of [trigger] [class] in a busy street at night, neon lights behind",
        "a photo of [trigger] [class] sitting in a café, three-quarter view, a cup on the table",
        "a photo of [trigger] [class] on a beach, wind in the hair, wearing a white shirt",
        "a film still of [trigger] [class] as an astronaut on the moon, no helmet, the earth in the sky",
        "a film still of [trigger] [class] in medieval armour in front of a burning castle",
    ),
    ScorerKind.DRAWN_FIGURES: (
        "a portrait of [trigger] [class], smiling, open eyes, wearing a green hoodie, purple background",
        "a portrait of [trigger] [class], talking, open eyes, wearing a red t-shirt, white background, in a city",
        "a portrait of [trigger] [class], calm, happy eyes, wearing a blue sweater, orange background",
        "a portrait of [trigger] [class], sad, sideways eyes, wearing a black blazer, pink background, on a beach",
        "a portrait of [trigger] [class], serious, open eyes, wearing a yellow v-neck, gray background, in a forest",
        "a portrait of [trigger] [class], laughing, happy eyes, wearing a white robe, blue background, at sunset",
        "a portrait of [trigger] [class], screaming, closed eyes, wearing a spacesuit, navy background, at sunset",
        "a portrait of [trigger] [class], tongue out, surprised eyes, wearing a chef jacket, red background, in a city",
    ),
    ScorerKind.LOOK: (
        "a photo of [trigger] [class] in the middle of the picture, soft window light",
        "a close-up photo of [trigger] [class], gray studio background",
        "a photo of [trigger] [class] in a park, afternoon sun",
        "a photo of [trigger] [class] in a busy street at night, neon lights behind",
        "a photo of [trigger] [class] on a wooden table, seen from the side",
        "a photo of [trigger] [class] on a beach, waves behind",
        "a film still of [trigger] [class] on the moon, the earth in the sky",
        "a photo of [trigger] [class] on the stage of an opera house, curtains behind",
    ),
}


class ComparisonSpec(Frozen, allow_inf_nan=False):
    """The pictures of one comparison: the same prompts with the same seeds for each candidate and the base model."""

    run: Name = Field(description="id of the training's job")
    character: Name = Field(description="character id")
    base_model: Name = Field(description="card of the model that makes the pictures")
    steps: tuple[int, ...] = Field(min_length=1, max_length=200, description="checkpoints, by their step")
    strengths: tuple[float, ...] = Field(STRENGTHS, min_length=1, max_length=8)
    prompts: tuple[str, ...] = Field(
        max_length=64, description="as the model gets them: trigger words are put in"
    )
    seeds: tuple[int, ...] = Field(
        SEEDS, max_length=16, description="two at least: variety lies between them"
    )
    width: Side
    height: Side
    num_inference_steps: int = Field(ge=1, le=200)
    guidance_scale: float = Field(ge=0, le=30)

    @field_validator("prompts")
    @classmethod
    def _enough_prompts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) < MIN_PROMPTS:
            raise ValueError(f"at least {MIN_PROMPTS} prompts say something of a checkpoint")
        if any(not prompt.strip() or len(prompt) > MAX_TEXT for prompt in value):
            raise ValueError(f"a prompt has 1 to {MAX_TEXT} characters")
        return value

    @field_validator("seeds")
    @classmethod
    def _two_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) < 2 or not all(0 <= seed < 2**32 for seed in value):
            raise ValueError("two seeds at least, each from 0 to 4294967295")
        return value

    @field_validator("strengths")
    @classmethod
    def _possible_strengths(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < strength <= 4 for strength in value):
            raise ValueError("a strength is above 0 and at most 4")
        return value

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("steps", "strengths", "prompts", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds something twice: {list(values)}")
        if self.pictures > MOST_PICTURES:
            raise ValueError(
                f"these are {self.pictures} pictures, and a comparison has at most {MOST_PICTURES}: take fewer steps,"
                " strengths, prompts or seeds"
            )
        return self

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """In the order in which they are made."""
        return tuple(
            Candidate(step=step, strength=strength) for step in self.steps for strength in self.strengths
        )

    @property
    def keys(self) -> tuple[tuple[int, int], ...]:
        """(place of the prompt, seed) of each picture of one candidate."""
        return tuple((prompt, seed) for prompt in range(len(self.prompts)) for seed in self.seeds)

    @property
    def pictures(self) -> int:
        """How many are made, those of the base model included."""
        return (len(self.candidates) + 1) * len(self.keys)

    def goes_with(self, other: Self) -> bool:
        """Whether the candidates of both make the same pictures, and can stand in one table."""
        return self == other.model_copy(update={"steps": self.steps, "strengths": self.strengths})


class Tested(Frozen):
    """A candidate with the numbers of its pictures."""

    candidate: Candidate
    shots: tuple[Shot, ...]
    adherence: float | None = Field(
        None, description="mean cosine of its pictures to their prompts; None where there is no CLIP to tell"
    )


class Comparison(Frozen):
    """What is known of the candidates so far."""

    spec: ComparisonSpec
    scorer: ScorerKind
    reference: Reference
    tested: tuple[Tested, ...] = Field(
        description="those of earlier comparisons with the same prompts, seeds and settings, then those of the spec"
    )
    adherence: float | None = Field(None, description="as of each candidate, of the base model's pictures")
    verdict: Verdict = Field(description="of those that were tested")
    complete: bool = Field(description="nothing more will be tested: all were, or nothing can be known")
    made_at: float

    @property
    def floor(self) -> float | None:
        """Mean cosine of the base model's pictures: a score of 0. None when they show nobody."""
        seen = [shot.likeness for shot in self.reference.floor if shot.likeness is not None]
        return sum(seen) / len(seen) if seen else None

    @property
    def ceiling(self) -> float | None:
        """Mean cosine of the photos to each other: a score of 1."""
        photos = self.reference.ceiling
        return sum(photos) / len(photos) if photos else None

    def followed(self, candidate: Candidate) -> float | None:
        """How well a candidate follows prompts, as a share of how well the base model does; None when nobody knows."""
        found = next((one.adherence for one in self.tested if one.candidate == candidate), None)
        return found / self.adherence if found and self.adherence else None


def spread(steps: tuple[int, ...], most: int = MOST_STEPS) -> tuple[int, ...]:
    """At most so many of the steps, evenly apart, with the last one."""
    if len(steps) <= most:
        return steps
    return tuple(steps[(place + 1) * len(steps) // most - 1] for place in range(most))
