"""Pictures made on the way: fixed prompts and seeds, so that steps can be compared."""

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from isengard.domain.training import TrainingSpec
from isengard.engines.native.adapter import PromptEmbeds, SampleRequest
from isengard.files import replacing, sweep


class Samples:
    """The folder ``samples`` of one run."""

    def __init__(self, run_dir: Path, spec: TrainingSpec, prompts: Sequence[PromptEmbeds]) -> None:
        self._folder = run_dir / "samples"
        self._spec = spec
        self.count = len(prompts)
        sweep(self._folder)

    def missing(self, step: int) -> list[int]:
        """Return the numbers of the prompts that have no picture of this step yet."""
        return [number for number in range(self.count) if not self._path(step, number).exists()]

    def request(self, number: int) -> SampleRequest:
        return SampleRequest(
            resolution=self._spec.sample_resolution,
            num_inference_steps=self._spec.sample_steps,
            guidance_scale=self._spec.sample_guidance_scale,
            seed=self._spec.sample_seed + number,
        )

    def keep(self, image: Image, *, step: int, number: int) -> str:
        """Write a picture and return its name inside the run's folder. Raises: DiskFull."""
        path = self._path(step, number)
        with replacing(path) as temporary:
            image.save(temporary, format="PNG")
        return f"samples/{path.name}"

    def _path(self, step: int, number: int) -> Path:
        return self._folder / f"{step:08d}-{number}.png"
