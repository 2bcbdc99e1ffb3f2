"""What a checkpoint is worth: its likeness in pictures of prompts and seeds that no comparison has used."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from isengard.domain.evaluation import Candidate
from isengard.domain.generation import ImageSpec, LocalLora, LoraRef, resolve_prompt
from isengard.domain.job import Requests
from isengard.domain.lora import Lora
from isengard.domain.model import LocalModel
from isengard.domain.performance import GenerationPlan
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.files import replacing
from isengard.store.artifacts import Loras
from scripts.demo_model.draw import random_look
from scripts.demo_model.words import look_caption

PROMPTS, SEEDS = 24, range(20_001, 20_003)
#: Of comparisons and truth alike: fewer than a user would take, as there are hundreds of pictures.
INFERENCE_STEPS = 8
_LOOKS_SEED = 4711


def fresh_prompts() -> list[str]:
    """Expressions, clothes and places drawn at random."""
    rng = random.Random(_LOOKS_SEED)  # noqa: S311  # not for secrets
    return [look_caption(random_look(rng), "[trigger] [class]") for _ in range(PROMPTS)]


class Painter:
    """Makes pictures of fresh prompts, and keeps them: a second call reads them."""

    def __init__(self, *, model: LocalModel, loras: Loras, folder: Path) -> None:
        self._model, self._loras, self._folder = model, loras, folder
        self._generator = PipelineGenerator(
            device=torch.device("cpu"), plan=lambda _card, _spec: GenerationPlan(batch_size=len(SEEDS))
        )

    def pictures(self, lora: Lora, candidate: Candidate | None) -> Iterator[tuple[int, int, Path]]:
        """Prompt, seed and file of each picture of a candidate, or of the base model."""
        used = [] if candidate is None else [self._resolved(lora, candidate)]
        name = "base" if candidate is None else f"{candidate.step:08d}-{candidate.strength:g}"
        named = [LocalLora(id="", name="", path=Path(), trigger=lora.trigger, class_word=lora.class_word)]
        for number, prompt in enumerate(fresh_prompts()):
            paths = {seed: self._folder / lora.id / name / f"{number:02}-{seed}.png" for seed in SEEDS}
            if not all(path.exists() for path in paths.values()):
                self._make(resolve_prompt(prompt, named), used, paths)
            yield from ((number, seed, path) for seed, path in paths.items())

    def _resolved(self, lora: Lora, candidate: Candidate) -> LocalLora:
        return self._loras.resolve(LoraRef(lora=lora.id, step=candidate.step, strength=candidate.strength))

    def _make(self, prompt: str, loras: Sequence[LocalLora], paths: Mapping[int, Path]) -> None:
        card = self._model.card
        spec = ImageSpec(
            base_model=card.name,
            prompt=prompt,
            width=card.resolutions[0],
            height=card.resolutions[0],
            num_inference_steps=INFERENCE_STEPS,
            guidance_scale=card.guidance_scale,
            seed=SEEDS[0],
            count=len(SEEDS),
        )
        preview = self._folder / "preview.png"
        preview.parent.mkdir(parents=True, exist_ok=True)
        for made in self._generator.generate(
            spec=spec,
            prompt=prompt,
            model=self._model,
            loras=loras,
            preview=preview,
            report=lambda _progress: Requests(),
        ):
            paths[made.seed].parent.mkdir(parents=True, exist_ok=True)
            with replacing(paths[made.seed]) as temporary:
                made.image.save(temporary, format="PNG")
