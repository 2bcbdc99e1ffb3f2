"""What engines promise to handlers. Nothing here imports torch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from PIL.Image import Image
from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.generation import ImageSpec, LocalLora
from isengard.domain.identity import Sighting
from isengard.domain.job import Progress, Requests
from isengard.domain.model import LocalModel
from isengard.domain.training import TrainingImage, TrainingSpec

#: Call it after each step and between the parts of long work, at least every 2 seconds where that can be done.
#: It is cheap (the worker throttles what it writes). It raises a JobStopped (cancelled, paused, suspended, yielded): save,
#: free and let it through. It raises LeaseLost: write nothing more and let it through.
Report = Callable[[Progress], Requests]


class TrainedLora(Frozen):
    """What a training leaves behind. All paths lie in the run's folder."""

    path: Path = Field(description="the LoRA in diffusers format")
    steps: int = Field(description="optimizer steps it was trained for")
    validation_losses: tuple[tuple[int, float], ...] = Field(
        (), description="(step, loss); step 0 is the base model"
    )
    best_step: int | None = Field(None, description="checkpoint with the lowest validation loss")


class LoraTrainer(Protocol):
    """Trains one LoRA, or goes on with one that was stopped."""

    def train(
        self,
        *,
        spec: TrainingSpec,
        model: LocalModel,
        images: Sequence[TrainingImage],
        run_dir: Path,
        cache_dir: Path,
        report: Report,
    ) -> TrainedLora:
        """Train, going on from the newest checkpoint in ``run_dir`` if there is one.

        Leaves in ``run_dir``: ``checkpoints/step-00000250/lora.safetensors``, ``samples/00000250-0.png``,
        ``metrics.jsonl`` (``{"step", "loss", "lr", ...}``). ``cache_dir`` may be shared by runs.

        Raises:
            JobStopped: after a checkpoint of the last whole step was written.
            LeaseLost, OutOfMemory, DiskFull, TrainingFailed, MissingWeights, InvalidSpec.
        """
        ...


class GeneratedImage(Frozen, arbitrary_types_allowed=True):
    """One finished picture."""

    index: int
    seed: int
    image: Image
    seconds: float = Field(description="it took; its share, where several are made at once")


class ImageGenerator(Protocol):
    """Makes images; keeps the pipeline of the last request warm."""

    def generate(
        self,
        *,
        spec: ImageSpec,
        prompt: str,
        model: LocalModel,
        loras: Sequence[LocalLora],
        preview: Path,
        report: Report,
    ) -> Iterator[GeneratedImage]:
        """Yield each image as it is finished.

        Args:
            spec: Everything but the prompt is taken from it.
            prompt: The prompt with trigger words put in.
            model: The base model to use.
            loras: Files for ``spec.loras``, in the same order.
            preview: Where a small picture from the latents is written after each denoising step.
            report: Called after each denoising step.

        Raises:
            JobStopped: between two denoising steps.
            LoraRefused: a file adapts no module of this model, or fewer than it has keys for.
            OutOfMemory, MissingWeights.
        """
        ...

    def unload(self) -> None:
        """Free the pipeline's memory."""
        ...


class Verification(Frozen):
    """Proof that a LoRA works."""

    modules: int = Field(description="adapted modules, equal to those in the file")
    delta_norm: float = Field(description="Frobenius norm of all weight deltas B @ A, > 0")
    image_difference: float = Field(description="mean absolute difference of the two images, in 0..255, > 0")


class LoraVerifier(Protocol):
    """Tries a new LoRA before anybody is told that the training succeeded."""

    def verify(
        self,
        *,
        model: LocalModel,
        lora: LocalLora,
        prompt: str,
        out_dir: Path,
        resolution: int,
        steps: int,
        report: Report,
    ) -> Verification:
        """Load the file, check it, and write ``before.png`` and ``after.png`` (same prompt and seed) to ``out_dir``.

        Raises:
            VerificationFailed: a key that does not load, a NaN, a delta of zero, or two equal images.
            JobStopped: between two denoising steps.
        """
        ...


class IdentityScorer(Protocol):
    """Tells who is in a picture: embeddings that differ between identities and ignore clothes, place and expression."""

    def find(self, images: Sequence[Image]) -> Sequence[tuple[Sighting, ...]]:
        """Return, of each image, whom it shows, the largest first. Images of any size and mode are taken.

        One that cannot tell where somebody is, gives the whole image as one sighting.
        """
        ...


class Captioner(Protocol):
    """Describes pictures in words."""

    def caption(
        self, images: Iterable[Image], *, instruction: str, on_token: Callable[[], object] = lambda: None
    ) -> Iterator[str]:
        """Yield one description for each image, in their order, as it is finished.

        Args:
            images: Of any size and mode; each is taken when it is its turn.
            instruction: What to say, in plain English. A model that takes none describes what it sees.
            on_token: Called after each word or so; what it raises ends it at once.

        Raises:
            OutOfMemory.
        """
        ...


class PromptJudge(Protocol):
    """Tells how well pictures follow their prompts."""

    def follow(self, images: Sequence[Image], prompts: Sequence[str]) -> Sequence[float]:
        """Return, of each image, the cosine of its embedding to that of its prompt."""
        ...
