"""Proof that a new LoRA works, before anybody is told that its training succeeded."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from isengard.domain.generation import ImageSpec, LocalLora
from isengard.domain.job import Phase, Progress, Requests
from isengard.domain.model import LocalModel
from isengard.engines.base import ImageGenerator, Report, Verification
from isengard.engines.lora_format import read_pairs
from isengard.engines.lora_keys import Pairs
from isengard.errors import LoraRefused, VerificationFailed
from isengard.files import check_now, replacing

SEED = 42


class PipelineVerifier:
    """A `LoraVerifier` that uses the LoRA as a user would: through the generator."""

    def __init__(self, *, generator: ImageGenerator) -> None:
        self._generator = generator

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
        """See `LoraVerifier.verify`."""
        try:
            pairs = read_pairs(lora.path)
            delta_norm = _delta_norm(pairs)
            spec = ImageSpec(
                base_model=model.card.name,
                prompt=prompt,
                width=resolution,
                height=resolution,
                num_inference_steps=steps,
                guidance_scale=model.card.guidance_scale,
                seed=SEED,
            )
            images = [
                self._picture(spec, model, loras, out_dir / name, _as_verifying(report, half, steps))
                for half, (name, loras) in enumerate((("before.png", []), ("after.png", [lora])))
            ]
        except LoraRefused as error:
            raise VerificationFailed(f"the LoRA does not load: {error}") from error
        difference = _difference(*images)
        if difference == 0:
            raise VerificationFailed(
                f"the image with the LoRA equals the one without it (seed {SEED}), so the LoRA has no effect;"
                " train for more steps or with a higher learning_rate"
            )
        return Verification(modules=len(pairs), delta_norm=delta_norm, image_difference=difference)

    def _picture(
        self, spec: ImageSpec, model: LocalModel, loras: list[LocalLora], path: Path, report: Report
    ) -> Image:
        """Make one image and keep it."""
        preview = path.with_name("preview.png")
        try:
            (made,) = self._generator.generate(
                spec=spec, prompt=spec.prompt, model=model, loras=loras, preview=preview, report=report
            )
        finally:
            check_now()  # the next owner has one by this name
            preview.unlink(missing_ok=True)
        with replacing(path) as temporary:
            made.image.save(temporary, "PNG")
        return made.image


def _delta_norm(pairs: Pairs) -> float:
    """Frobenius norm over all ``B @ A``, without building them. Raises: VerificationFailed."""
    total = 0.0
    for name, (down, up) in pairs.items():
        for part, tensor in (("lora_A", down), ("lora_B", up)):
            if not torch.isfinite(tensor).all():
                raise VerificationFailed(
                    f"the LoRA has values that are not numbers in {name}.{part};"
                    " train again from an earlier checkpoint with a lower learning_rate"
                )
        total += _squared_norm(down.double(), up.double())
    if total == 0:
        raise VerificationFailed(
            "every weight delta of the LoRA is zero, so nothing was trained;"
            " check learning_rate and the number of steps"
        )
    return math.sqrt(total)


def _squared_norm(down: Tensor, up: Tensor) -> float:
    """``|B A|^2 = trace((B^T B)(A A^T))``, never negative."""
    return max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0)


def _as_verifying(report: Report, half: int, steps: int) -> Callable[[Progress], Requests]:
    """Both images are one piece of work for whoever watches."""

    def passed_on(progress: Progress) -> Requests:
        if progress.phase is Phase.LOADING:
            return report(progress.model_copy(update={"phase": Phase.VERIFYING}))
        return report(
            Progress(
                phase=Phase.VERIFYING,
                step=half * steps + progress.step,
                total=2 * steps,
                message=("image with the LoRA" if half else "image without the LoRA"),
                steps_per_s=progress.steps_per_s,
            )
        )

    return passed_on


def _difference(before: Image, after: Image) -> float:
    """Mean absolute difference in 0..255."""
    pixels = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in (before, after)]
    return float(np.abs(pixels[0] - pixels[1]).mean())
