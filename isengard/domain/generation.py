"""What an image generation is asked to do, and what is kept of a finished image."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from isengard.domain.base import MAX_TEXT, Frozen, Name
from isengard.domain.captions import CLASS, DEFAULT_CAPTION, TRIGGER, has_trigger, resolve_caption
from isengard.domain.likeness import Likeness
from isengard.domain.performance import PerformanceChoices, StepCache
from isengard.errors import InvalidSpec

Side = Annotated[int, Field(ge=64, le=2048, multiple_of=16)]


class LoraRef(Frozen, allow_inf_nan=False):
    """A LoRA by its id, with the strength it is applied at; ``step`` picks an earlier checkpoint."""

    lora: Name
    strength: float = Field(1.0, ge=-4, le=4)
    step: int | None = Field(None, ge=0, le=10**9)


class ImageSpec(Frozen, allow_inf_nan=False):
    """One request for images. Image i uses ``seed + i``."""

    base_model: Name
    prompt: str = Field(min_length=1, max_length=MAX_TEXT, description="may contain [trigger]")
    loras: tuple[LoraRef, ...] = Field((), max_length=8)
    width: Side = 1024
    height: Side = 1024
    num_inference_steps: int = Field(28, ge=1, le=200)
    guidance_scale: float = Field(3.5, ge=0, le=30)
    seed: int = Field(0, ge=0, lt=2**32)
    count: int = Field(1, ge=1, le=64)
    keep_best: int | None = Field(
        None,
        ge=1,
        le=64,
        description="keep so many, those most like the characters; the others go to the trash",
    )
    cache: StepCache = Field(StepCache.NONE, description="faster; the image differs a little")
    performance: PerformanceChoices = PerformanceChoices()
    template: Name = ""

    @model_validator(mode="after")
    def _loras_differ(self) -> Self:
        ids = [(ref.lora, ref.step) for ref in self.loras]
        if len(set(ids)) != len(ids):
            twice = next(name for name, _ in ids if ids.count((name, _)) > 1)
            raise ValueError(f"loras holds {twice!r} twice; name it once, with the sum of the strengths")
        return self

    @model_validator(mode="after")
    def _the_best_can_be_told(self) -> Self:
        if self.keep_best is not None and self.keep_best > self.count:
            raise ValueError(
                f"keep_best is {self.keep_best}, but only {self.count} are made: raise count or lower keep_best"
            )
        if self.keep_best is not None and not self.loras:
            raise ValueError(
                "keep_best needs a LoRA, as images are measured against its character: add one to loras"
            )
        return self


class LocalLora(Frozen):
    """A LoRA file on this machine, ready to load."""

    id: str
    name: str
    path: Path
    trigger: str = ""
    class_word: str = ""
    strength: float = 1.0


class GenerationTemplate(Frozen):
    """A named starting point for `ImageSpec`, in ``configs/generation``."""

    name: str
    title: str
    description: str
    settings: dict[str, Any]


class UsedLora(Frozen):
    """A LoRA an image was made with."""

    id: str
    name: str
    strength: float
    hash: str = Field("", description="as A1111 shows it: 12 hex digits of sha256 over the tensors")


class ImageRecord(Frozen):
    """How one image was made; it travels inside the PNG."""

    job_id: str
    index: int
    spec: ImageSpec
    prompt: str = Field(description="with trigger words put in")
    seed: int
    loras: tuple[UsedLora, ...]
    seconds: float
    created_at: float
    likeness: tuple[Likeness, ...] = Field(
        (), description="to each character whose LoRA was used, as far as it could be measured"
    )

    @property
    def again(self) -> ImageSpec:
        """The request that makes this image once more."""
        return self.spec.model_copy(update={"seed": self.seed, "count": 1, "keep_best": None})


class SavedImage(Frozen):
    """An image in the gallery."""

    id: str = Field(description="<job id>-<index>; also the stem of its file")
    path: Path
    record: ImageRecord


class FoundSettings(Frozen):
    """What a PNG says about how it was made."""

    origin: str = Field(description="isengard, or parameters for the text of A1111-style programs")
    settings: dict[str, Any] = Field(description="valid fields of ImageSpec")
    unmapped: tuple[str, ...] = Field((), description="what was found and has no place in an ImageSpec")


def resolve_prompt(prompt: str, loras: Sequence[LocalLora]) -> str:
    """Put trigger and class words in. With several LoRAs ``[trigger] [class]`` becomes ``ohwx woman, zxq dog``.

    Raises:
        InvalidSpec: a placeholder without a LoRA that could fill it.
    """
    named = [lora for lora in loras if lora.trigger]
    if not named and (TRIGGER in prompt or CLASS in prompt):
        raise InvalidSpec(
            f"the prompt holds {TRIGGER if TRIGGER in prompt else CLASS}, but no LoRA with a trigger word is chosen;"
            " choose a LoRA or write the word itself"
        )

    def fill(placeholder: re.Match[str]) -> str:
        return ", ".join(
            resolve_caption(placeholder.group(), lora.trigger, lora.class_word) for lora in named
        )

    return re.sub(rf"{re.escape(TRIGGER)}(\s+{re.escape(CLASS)})?|{re.escape(CLASS)}", fill, prompt)


def with_trigger(prompt: str, loras: Sequence[LocalLora]) -> str:
    """The prompt with ``[trigger] [class]`` in front, unless it has each LoRA's trigger already or a placeholder."""
    lacking = any(lora.trigger and not has_trigger(prompt, lora.trigger) for lora in loras)
    return f"{DEFAULT_CAPTION}, {prompt}" if lacking else prompt


class VideoSpec(Frozen, allow_inf_nan=False):
    """One request for clips. Nothing makes them yet."""

    base_model: Name
    prompt: str = Field(min_length=1, max_length=MAX_TEXT)
    loras: tuple[LoraRef, ...] = Field((), max_length=8)
    width: Side = 832
    height: Side = 480
    frames: int = Field(81, ge=1, le=241)
    frames_per_second: int = Field(16, ge=1, le=60)
    num_inference_steps: int = Field(30, ge=1, le=200)
    guidance_scale: float = Field(5.0, ge=0, le=30)
    seed: int = Field(0, ge=0, lt=2**32)
