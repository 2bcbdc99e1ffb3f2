"""Images from a warm pipeline, with progress and a preview after each denoising step."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from isengard.domain.generation import ImageSpec, LocalLora
from isengard.domain.job import Phase, Progress
from isengard.domain.model import LocalModel, ModelCard
from isengard.domain.performance import GenerationPlan, Offload, Quantization, StepCache
from isengard.engines import attention
from isengard.engines.base import GeneratedImage, Report
from isengard.engines.compiling import compile_blocks
from isengard.engines.device import free_cached, memory_used, plain_out_of_memory
from isengard.engines.pipelines.loading import LoadedPipeline, load_pipeline
from isengard.engines.pipelines.preview import picture, write_picture
from isengard.engines.pipelines.step_caches import step_cache
from isengard.errors import OutOfMemory

#: Seconds between two previews; one costs about 5 ms.
PREVIEW_EVERY_S = 0.5
#: Prompts whose embeddings are kept; one takes 4 MB with FLUX.1.
KEPT_PROMPTS = 16


class PipelineGenerator:
    """An `ImageGenerator` on diffusers pipelines. Not for two threads at once."""

    def __init__(
        self,
        *,
        device: torch.device,
        plan: Callable[[ModelCard, ImageSpec], GenerationPlan] = lambda _card, _spec: GenerationPlan(),
        clock: Callable[[], float] = time.monotonic,
        compiler: str = "inductor",
        load: Callable[..., LoadedPipeline] = load_pipeline,
    ) -> None:
        """Keep what is needed to load a model.

        Args:
            device: Where images are made.
            plan: How to hold and run a model for a request. It is asked for each request, and an answer that holds the
                weights differently loads them again: the pipeline that is loaded must not count as memory in use.
            clock: Seconds.
            compiler: The backend of `torch.compile`.
            load: As `load_pipeline`.
        """
        self._device = device
        self._plan = plan
        self._clock = clock
        self._compiler = compiler
        self._load = load
        self._loaded: LoadedPipeline | None = None
        self._is_compiled = False
        self._embeddings: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

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
        """See `ImageGenerator.generate`. Image i has noise of its own, whatever the count and the batch."""
        plan = self._plan(model.card, spec)
        attention.check(plan.attention, self._device, family=model.card.family)
        loaded = self._warm(model, plan, report)
        with self._enough_memory(spec, plan):
            self._arrange(loaded, plan)
            loaded.adapters.apply(loras, compiled=self._is_compiled)
            encoded = self._encoded(loaded, prompt)
        steps = _Steps(
            spec=spec,
            loaded=loaded,
            preview=preview,
            report=report,
            clock=self._clock,
            memory=partial(memory_used, self._device),
        )
        size = _batch_size(spec, plan)
        for first in range(0, spec.count, size):
            indices = range(first, min(first + size, spec.count))
            began = self._clock()
            with self._enough_memory(spec, plan):
                images = self._made(loaded, plan, spec, indices, encoded, steps)
            seconds = (self._clock() - began) / len(indices)
            for index, image in zip(indices, images, strict=True):
                yield GeneratedImage(index=index, seed=_seed(spec, index), image=image, seconds=seconds)

    @property
    def warm(self) -> str:
        """The name of the model that is loaded; empty when none is. Any thread may ask."""
        loaded = self._loaded
        return loaded.card.name if loaded else ""

    def unload(self) -> None:
        """Free the pipeline's memory."""
        self._loaded = None
        self._is_compiled = False
        self._embeddings.clear()
        free_cached(self._device)

    @contextmanager
    def _enough_memory(self, spec: ImageSpec, plan: GenerationPlan) -> Iterator[None]:
        try:
            with plain_out_of_memory(self._device, advice=_advice(spec, plan)):
                yield
        except OutOfMemory:
            self.unload()
            raise

    def _warm(self, model: LocalModel, plan: GenerationPlan, report: Report) -> LoadedPipeline:
        wanted = (model.path, model.card, *_holding(plan))
        kept = self._loaded
        if kept is None or (kept.path, kept.card, *_holding(kept.plan)) != wanted:
            self.unload()
            self._loaded = self._load(model, self._device, plan=plan, report=report)
        return self._loaded  # type: ignore[return-value]  # loaded by now

    def _arrange(self, loaded: LoadedPipeline, plan: GenerationPlan) -> None:
        """Do what of the plan needs no other weights."""
        if plan.compile and not self._is_compiled:
            compile_blocks(loaded.denoiser, dynamic=True, backend=self._compiler)
            self._is_compiled = True
        (loaded.pipeline.vae.enable_tiling if plan.vae_tiling else loaded.pipeline.vae.disable_tiling)()

    def _encoded(self, loaded: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
        """The prompt's embeddings; those of the last few prompts are at hand."""
        if prompt not in self._embeddings:
            self._embeddings[prompt] = loaded.family.encode(loaded.pipeline, prompt, loaded.card)
        self._embeddings.move_to_end(prompt)
        while len(self._embeddings) > KEPT_PROMPTS:
            self._embeddings.popitem(last=False)
        return self._embeddings[prompt]

    def _made(
        self,
        loaded: LoadedPipeline,
        plan: GenerationPlan,
        spec: ImageSpec,
        indices: range,
        encoded: dict[str, Tensor],
        steps: "_Steps",
    ) -> list[Image]:
        """The images of one batch. Only what is compiled and wanted so runs compiled."""
        plainly = self._is_compiled and not plan.compile
        try:
            with (
                torch.compiler.set_stance("force_eager") if plainly else nullcontext(),
                attention.attention_backend(plan.attention),
                step_cache(loaded.denoiser, spec, loaded.card),
            ):
                output = loaded.pipeline(
                    **{
                        name: value.repeat(len(indices), *[1] * (value.ndim - 1))
                        for name, value in encoded.items()
                    },
                    width=spec.width,
                    height=spec.height,
                    num_inference_steps=spec.num_inference_steps,
                    guidance_scale=spec.guidance_scale,
                    generator=[torch.Generator("cpu").manual_seed(_seed(spec, index)) for index in indices],
                    callback_on_step_end=steps.of_images(indices),
                )
        finally:
            loaded.pipeline.maybe_free_model_hooks()
        images: list[Image] = output.images
        return images


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

    def of_images(self, indices: range) -> Callable[..., dict[str, Any]]:
        """The callback for images that are made at once; each step counts once for each of them."""
        before: Tensor | None = None

        def ended(pipeline: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            nonlocal before
            latents = values["latents"]
            if before is not None and self._clock() - self._pictured >= PREVIEW_EVERY_S:
                self._draw(pipeline.scheduler.sigmas[step : step + 2], before, latents)
            before = latents
            self._tell(indices[0] * self._spec.num_inference_steps + (step + 1) * len(indices), indices)
            if step + 1 < self._spec.num_inference_steps:
                return {}
            return {"latents": latents.to(pipeline.vae.dtype)}  # it may be more precise than the denoiser

        return ended

    def _draw(self, sigmas: Tensor, before: Tensor, latents: Tensor) -> None:
        """Write what the last step expects the first image to become: follow its direction down to sigma 0."""
        start, end = (float(sigma) for sigma in sigmas)
        expected = (latents - end * (latents - before) / (end - start))[:1]
        unpacked = self._loaded.family.unpack(
            self._loaded.pipeline, expected, self._spec.height, self._spec.width
        )
        write_picture(picture(unpacked, self._loaded.preview_factors), self._preview)
        self._pictured = self._clock()

    def _tell(self, done: int, indices: range) -> None:
        rate = done / max(self._clock() - self._began, 1e-6)
        self._report(
            Progress(
                phase=Phase.GENERATING,
                step=done,
                total=self._total,
                message=f"{_named(indices)} of {self._spec.count}",
                steps_per_s=rate,
                eta_s=(self._total - done) / rate,
                memory_bytes=self._memory(),
                preview=self._preview.name if self._preview.exists() else None,
            )
        )


def _seed(spec: ImageSpec, index: int) -> int:
    return (spec.seed + index) % 2**32


def _named(indices: range) -> str:
    one = f"image {indices[0] + 1}"
    return one if len(indices) == 1 else f"images {indices[0] + 1} to {indices[-1] + 1}"


def _holding(plan: GenerationPlan) -> tuple[object, ...]:
    """What of a plan cannot change while a pipeline is loaded."""
    return (plan.quantization, plan.offload, plan.text_encoders)


def _batch_size(spec: ImageSpec, plan: GenerationPlan) -> int:
    """Images made at once. The first block's cache looks at all of them together, so it gets one at a time."""
    return 1 if spec.cache is StepCache.FIRST_BLOCK else plan.batch_size


def _advice(spec: ImageSpec, plan: GenerationPlan) -> str:
    """What takes less memory than this request under this plan."""
    ways = [
        "a smaller size",
        *(["batch_size 1"] if _batch_size(spec, plan) > 1 else []),
        *([] if plan.vae_tiling else ["vae_tiling"]),
        *(["quantization int8 or nf4"] if plan.quantization is Quantization.NONE else []),
        *(["offload model"] if plan.offload is Offload.NONE else []),
        *(["offload blocks"] if plan.offload is Offload.MODEL else []),
    ]
    return f"{spec.width} x {spec.height} pixels is too large here; choose {', or '.join(ways)}"
