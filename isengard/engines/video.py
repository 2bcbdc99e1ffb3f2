"""Video, in development: the contract an engine will keep. Nothing implements it yet."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from isengard.domain.generation import LocalLora, VideoSpec
from isengard.domain.model import LocalModel
from isengard.engines.base import Report


class VideoGenerator(Protocol):
    """Makes clips of a character; keeps the pipeline of the last request warm."""

    def generate(
        self,
        *,
        spec: VideoSpec,
        prompt: str,
        model: LocalModel,
        loras: Sequence[LocalLora],
        preview: Path,
        report: Report,
    ) -> Iterator[Path]:
        """Yield the file of each clip as it is finished. Arguments and errors are those of `ImageGenerator.generate`."""
        ...

    def unload(self) -> None:
        """Free the pipeline's memory."""
        ...
