"""Denoising steps that change little are not computed: what the step before added is added again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import FirstBlockCacheConfig, MagCacheConfig

from isengard.domain.generation import ImageSpec
from isengard.domain.model import ModelCard
from isengard.domain.performance import StepCache

#: The first block's output may change by this share before a step is computed in full.
FIRST_BLOCK_THRESHOLD = 0.12
#: The summed error that MagCache may expect of skipped steps.
MAG_THRESHOLD = 0.06


@contextmanager
def step_cache(denoiser: Any, spec: ImageSpec, card: ModelCard) -> Iterator[None]:
    """Skip steps inside the block as ``spec.cache`` says, exactly none behind it.

    Wrap each call of a pipeline by itself: nothing of one image is left for the next.
    """
    if spec.cache is StepCache.NONE:
        yield
        return
    denoiser.enable_cache(_config(spec, card))
    try:
        yield
    finally:
        denoiser.disable_cache()


def _config(spec: ImageSpec, card: ModelCard) -> Any:
    if spec.cache is StepCache.FIRST_BLOCK:
        return FirstBlockCacheConfig(threshold=FIRST_BLOCK_THRESHOLD)
    return MagCacheConfig(
        threshold=MAG_THRESHOLD,
        mag_ratios=list(card.mag_ratios),
        num_inference_steps=spec.num_inference_steps,
    )
