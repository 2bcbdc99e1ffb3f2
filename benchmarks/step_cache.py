"""What the step cache gains and what it costs: seconds and pictures with and without it, of the same prompts and seeds.

For each number of denoising steps the demo model paints every prompt twice. A picture's difference is the mean of its
pixels' absolute differences, in 0..255; its likeness is the cosine similarity of the two figures, to be compared with
that of figures of different seeds. Run it as ``python -m benchmarks.step_cache``.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL.Image import Image
from rich.table import Table

from benchmarks.process import shown
from isengard.domain.base import Frozen
from isengard.domain.generation import ImageSpec
from isengard.domain.identity import ScorerKind, largest, similarity
from isengard.domain.job import Progress, Requests
from isengard.domain.performance import StepCache
from isengard.engines.device import choose_device
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.settings import Settings
from isengard.wiring import build, open_scorer

PROMPTS = (
    "a portrait of a person, pink background",
    "a portrait of a person with red hair, at sea",
    "a portrait of a person with a hat, smiling",
)


class Compared(Frozen):
    """Pictures of one number of steps with the cache beside those without it."""

    steps: int
    computed: float
    """Steps that were computed in full with the cache."""
    seconds: float
    seconds_exact: float
    difference: float
    likeness: float
    likeness_lowest: float
    likeness_of_strangers: float


class Painter:
    """The demo model, and a count of the steps it computes in full."""

    def __init__(self, *, device: str, count: int) -> None:
        self._app = build(Settings(device="cpu"))
        self._generator = PipelineGenerator(device=choose_device(device))
        self._count = count
        self._computed = 0

    def paint(self, steps: int, cache: StepCache) -> tuple[list[Image], float, float]:
        """The pictures of all prompts, seconds per picture, and steps per picture that were computed in full."""
        self._computed, images, began = 0, [], time.perf_counter()
        for prompt in PROMPTS:
            wanted = {"base_model": "demo", "prompt": prompt, "seed": 1, "count": self._count}
            spec = self._app.images.plan(overrides={**wanted, "num_inference_steps": steps, "cache": cache})
            images += self._made(spec)
        return images, (time.perf_counter() - began) / len(images), self._computed / len(images)

    def warm_up(self) -> None:
        """Load the model and count what its last block does."""
        self.paint(2, StepCache.NONE)
        loaded: Any = self._generator._loaded
        last = loaded.denoiser.single_transformer_blocks[-1]
        last.attn.register_forward_hook(self._count_one)

    def _count_one(self, *_: object) -> None:
        self._computed += 1

    def _made(self, spec: ImageSpec) -> list[Image]:
        model = self._app.weights.locate(self._app.catalog.model("demo"))
        with tempfile.TemporaryDirectory() as folder:
            made = self._generator.generate(
                spec=spec,
                prompt=spec.prompt,
                model=model,
                loras=(),
                preview=Path(folder) / "preview.png",
                report=_unheard,
            )
            return [one.image for one in made]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    painter = Painter(device=options.device, count=options.count)
    painter.warm_up()
    print(table([compare(painter, steps) for steps in options.steps]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_cache", description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20, 28, 50], help="denoising steps")
    parser.add_argument("--count", type=int, default=6, help="seeds for each prompt (default: 6)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda (default: cpu)")
    return parser.parse_args(arguments)


def compare(painter: Painter, steps: int) -> Compared:
    exact, seconds_exact, _ = painter.paint(steps, StepCache.NONE)
    fast, seconds, computed = painter.paint(steps, StepCache.FIRST_BLOCK)
    scorer = open_scorer(ScorerKind.DRAWN_FIGURES)
    figures, likely = largest(scorer.find(exact)), largest(scorer.find(fast))
    alike = [similarity(one, [other]) for one, other in zip(figures, likely, strict=True)]
    return Compared(
        steps=steps,
        computed=computed,
        seconds=seconds,
        seconds_exact=seconds_exact,
        difference=fmean(_difference(one, other) for one, other in zip(exact, fast, strict=True)),
        likeness=fmean(alike),
        likeness_lowest=min(alike),
        likeness_of_strangers=fmean(
            similarity(one, [other]) for one, other in itertools.combinations(figures, 2)
        ),
    )


def table(found: Sequence[Compared]) -> str:
    columns = (
        "steps", "done", "exact s", "fast s", "faster", "differ", "alike", "lowest", "others"
    )  # fmt: skip
    made = Table(*columns, title="first_block beside exact, per picture")
    for one in found:
        made.add_row(
            str(one.steps),
            f"{one.computed:.1f}",
            f"{one.seconds_exact:.2f}",
            f"{one.seconds:.2f}",
            f"{one.seconds_exact / one.seconds:.2f}",
            f"{one.difference:.2f}",
            f"{one.likeness:.3f}",
            f"{one.likeness_lowest:.2f}",
            f"{one.likeness_of_strangers:.2f}",
        )
    return shown(made)


def _difference(one: Image, other: Image) -> float:
    pixels = [np.asarray(image, dtype=np.float32) for image in (one, other)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def _unheard(_progress: Progress) -> Requests:
    return Requests()


if __name__ == "__main__":
    main()
