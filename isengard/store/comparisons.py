"""Comparisons of checkpoints, each in the folder of its training: ``runs/<run>/comparison``."""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from PIL.Image import Image
from pydantic import ValidationError

from isengard.domain.base import Frozen
from isengard.domain.comparison import Comparison, ComparisonSpec
from isengard.domain.evaluation import Candidate, Shot
from isengard.files import PARTIAL, Stamp, check_now, replacing, stamp, sweep, write_text

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
RECORD, SHOTS = "comparison.json", "shots.json"


class KeptShots(Frozen):
    """The numbers of one candidate's pictures, and what they were measured on and against."""

    measured: str
    shots: tuple[Shot, ...]
    adherence: float | None


class Comparisons:
    """Pictures, their numbers, and what came of them.

    A picture is named by all that decides how it looks, so one that is there is never made again.
    """

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._known: dict[str, tuple[Stamp, Comparison | None]] = {}

    def folder(self, run: str) -> Path:
        return self._runs_dir / run / "comparison"

    def checkpoint(self, run: str, step: int) -> Path:
        """The LoRA of a checkpoint; it need not be there."""
        return self._runs_dir / run / "checkpoints" / f"step-{step:08d}" / "lora.safetensors"

    def steps(self, run: str) -> tuple[int, ...]:
        """The checkpoints that are there, lowest first."""
        files = (self._runs_dir / run / "checkpoints").glob("step-*/lora.safetensors")
        return tuple(sorted(int(file.parent.name[5:]) for file in files if file.parent.name[5:].isdigit()))

    def picture(self, spec: ComparisonSpec, candidate: Candidate | None, *, prompt: int, seed: int) -> Path:
        """The file of one picture, of the base model without a candidate; it need not be there."""
        decides = [spec.base_model, spec.prompts[prompt], seed, spec.width, spec.height]
        decides += [spec.num_inference_steps, spec.guidance_scale]
        digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
        return self._of(spec.run, candidate) / f"{digest}.png"

    def pictures(self, spec: ComparisonSpec, candidate: Candidate | None) -> list[Path]:
        """The files of all pictures of a candidate, in the order of the spec's keys."""
        return [self.picture(spec, candidate, prompt=prompt, seed=seed) for prompt, seed in spec.keys]

    def keep(self, image: Image, path: Path) -> None:
        """Raises: DiskFull."""
        with replacing(path) as temporary:
            image.save(temporary, "PNG", compress_level=1)

    def shots(self, run: str, candidate: Candidate | None, *, measured: str) -> KeptShots | None:
        """What was kept under this name; None when there is nothing."""
        try:
            kept = KeptShots.model_validate_json((self._of(run, candidate) / SHOTS).read_bytes())
        except (OSError, ValidationError):
            return None
        return kept if kept.measured == measured else None

    def keep_shots(self, run: str, candidate: Candidate | None, shots: KeptShots) -> None:
        """Raises: DiskFull."""
        write_text(self._of(run, candidate) / SHOTS, shots.model_dump_json())

    def read(self, run: str) -> Comparison | None:
        """What came of the newest comparison; read again only when its file has changed."""
        if not _ID.fullmatch(run):
            return None
        path = self.folder(run) / RECORD
        try:
            changed = stamp(path.stat())
        except OSError:
            return None
        known = self._known.get(run)
        if known is None or known[0] != changed:
            known = self._known[run] = (changed, _read(path))
        return known[1]

    def write(self, comparison: Comparison) -> None:
        """Raises: DiskFull."""
        write_text(self.folder(comparison.spec.run) / RECORD, comparison.model_dump_json(indent=1))

    def sweep(self, run: str) -> None:
        """Remove what a killed worker left unfinished."""
        for folder in (self.folder(run), *self.folder(run).glob("*/")):
            sweep(folder)

    def drop_others(self, spec: ComparisonSpec, tested: Iterable[Candidate]) -> None:
        """Remove pictures that are neither the spec's nor, with its prompts, those of ``tested``. Raises: LeaseLost."""
        candidates = (None, *spec.candidates, *tested)
        wanted = {path for candidate in candidates for path in self.pictures(spec, candidate)}
        check_now()
        for path in self.folder(spec.run).glob("*/*.png"):
            if path not in wanted and PARTIAL not in path.name:
                path.unlink(missing_ok=True)

    def _of(self, run: str, candidate: Candidate | None) -> Path:
        name = "base" if candidate is None else f"{candidate.step:08d}-at-{candidate.strength:g}"
        return self.folder(run) / name


def _read(path: Path) -> Comparison | None:
    try:
        return Comparison.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        log.warning("comparison cannot be read", extra={"file": str(path)})
        return None
