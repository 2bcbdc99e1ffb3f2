"""Images from a warm pipeline, one at a time, with progress and a preview after each denoising step."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from isengard.domain.generation import ImageSpec, LocalLora
from isengard.domain.job import Phase, Progress
from isengard.domain.model import LocalModel, ModelCard
from isengard.domain.performance import GenerationPlan
from isengard.engines.base import GeneratedImage, Report
from isengard.engines.device import free_cached, memory_used, plain_out_of_memory
from isengard.engines.pipelines.loading import LoadedPipeline, load_pipeline
from isengard.engines.pipelines.preview import picture, write_picture
from isengard.errors import OutOfMemory

#: Seconds between two previews; one costs about 5 ms.
PREVIEW_EVERY_S = 0.5


class PipelineGenerator:
    """An `ImageGenerator` on diffusers pipelines. Not for two threads at once."""

    def __init__(
        self,
        *,
        device: torch.device,
        plan: Callable[[ModelCard, ImageSpec], GenerationPlan] = lambda _card, _spec: GenerationPlan(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``plan``: how to hold a model for a request; asked when a model has to be loaded."""
        self._device = device
        self._plan = plan
        self._clock = clock
        self._loaded: LoadedPipeline | None = None

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
        """See `ImageGenerator.generate`. Image i is the same whatever the count: each has a call of its own."""
        loaded = self._warm(model, spec, report)
        with self._enough_memory(spec):
            loaded.adapters.apply(loras)
            encoded = loaded.family.encode(loaded.pipeline, prompt, loaded.card)
        steps = _Steps(
            spec=spec,
            loaded=loaded,
            preview=preview,
            report=report,
            clock=self._clock,
            memory=partial(memory_used, self._device),
        )
        for index in range(spec.count):
            with self._enough_memory(spec):
                image = self._one(loaded, spec, index, encoded, steps)
            yield GeneratedImage(index=index, seed=_seed(spec, index), image=image)

    def unload(self) -> None:
        """Free the pipeline's memory."""
        self._loaded = None
        free_cached(self._device)

    @contextmanager
    def _enough_memory(self, spec: ImageSpec) -> Iterator[None]:
        advice = f"{spec.width} x {spec.height} pixels is too large here; choose a smaller size"
        try:
            with plain_out_of_memory(self._device, advice=advice):
                yield
        except OutOfMemory:
            self.unload()
            raise

    def _warm(self, model: LocalModel, spec: ImageSpec, report: Report) -> LoadedPipeline:
        if self._loaded is None or (self._loaded.path, self._loaded.card) != (model.path, model.card):
            self.unload()
            self._loaded = load_pipeline(
                model, self._device, plan=self._plan(model.card, spec), report=report
            )
        return self._loaded

    def _one(
        self, loaded: LoadedPipeline, spec: ImageSpec, index: int, encoded: dict[str, Tensor], steps: "_Steps"
    ) -> Image:
        try:
            output = loaded.pipeline(
                **encoded,
                width=spec.width,
                height=spec.height,
                num_inference_steps=spec.num_inference_steps,
                guidance_scale=spec.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(_seed(spec, index)),
                callback_on_step_end=steps.of_image(index),
            )
        finally:
            loaded.pipeline.maybe_free_model_hooks()
        image: Image = output.images[0]
        return image


class _Steps:
    """Reports the denoising steps of one request, over all its images."""

    def __init__(
        self,
        *,
        spec: ImageSpec,
        loaded: LoadedPipeline,
        preview: Path,
        report: Report,
        clock: Callable[[], float],
        memory: Callable[[], int],
    ) -> None:
        self._spec = spec
        self._loaded = loaded
        self._preview = preview
        self._report = report
        self._clock = clock
        self._memory = memory
        self._total = spec.count * spec.num_inference_steps
        self._began = self._pictured = clock()

    def of_image(self, index: int) -> Callable[..., dict[str, Any]]:
        """The callback for one image."""
        before: Tensor | None = None

        def ended(pipeline: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            nonlocal before
            latents = values["latents"]
            if before is not None and self._clock() - self._pictured >= PREVIEW_EVERY_S:
                self._draw(pipeline.scheduler.sigmas[step : step + 2], before, latents)
            before = latents
            self._tell(index * self._spec.num_inference_steps + step + 1, index)
            if step + 1 < self._spec.num_inference_steps:
                return {}
            return {"latents": latents.to(pipeline.vae.dtype)}  # it may be more precise than the denoiser

        return ended

    def _draw(self, sigmas: Tensor, before: Tensor, latents: Tensor) -> None:
        """Write what the last step expects the image to become: follow its direction down to sigma 0."""
        start, end = (float(sigma) for sigma in sigmas)
        expected = latents - end * (latents - before) / (end - start)
        unpacked = self._loaded.family.unpack(
            self._loaded.pipeline, expected, self._spec.height, self._spec.width
        )
        write_picture(picture(unpacked, self._loaded.preview_factors), self._preview)
        self._pictured = self._clock()

    def _tell(self, done: int, index: int) -> None:
        rate = done / max(self._clock() - self._began, 1e-6)
        self._report(
            Progress(
                phase=Phase.GENERATING,
                step=done,
                total=self._total,
                message=f"image {index + 1} of {self._spec.count}",
                steps_per_s=rate,
                eta_s=(self._total - done) / rate,
                memory_bytes=self._memory(),
                preview=self._preview.name if self._preview.exists() else None,
            )
        )


def _seed(spec: ImageSpec, index: int) -> int:
    return (spec.seed + index) % 2**32
