"""How alike whole pictures look: any DINO or CLIP of the user's, through transformers.

For animals, objects and other styles of drawing. A background counts as much as what stands before it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel

from isengard.domain.identity import Box, Sighting
from isengard.errors import MissingWeights

#: As ``model_type`` in a model's config.json.
FAMILIES = ("clip", "dinov2", "dinov2_with_registers", "dinov3_vit", "siglip")
#: Pictures at once; a large model needs some 100 MB for each.
BATCH = 8


class LookScorer:
    """An `IdentityScorer` for whole pictures. Runs on the CPU: a picture takes some tenths of a second."""

    def __init__(self, folder: Path) -> None:
        """``folder``: in the layout of transformers. Raises: MissingWeights."""
        _check(folder)
        try:
            self._prepare: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise MissingWeights(
                f"the model in {folder} cannot be loaded ({error}): download it again"
            ) from error
        model.eval()
        self._embed = getattr(model, "get_image_features", model)  # a CLIP has texts, too

    def find(self, images: Sequence[Image]) -> Sequence[tuple[Sighting, ...]]:
        """See `IdentityScorer.find`: a whole picture is one sighting."""
        rows: list[list[float]] = []
        for start in range(0, len(images), BATCH):
            plain = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = self._prepare(images=plain, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                rows += functional.normalize(self._embed(pixel_values=pixels).pooler_output).tolist()
        return [
            (Sighting(box=Box(left=0, top=0, width=image.width, height=image.height), embedding=tuple(row)),)
            for image, row in zip(images, rows, strict=True)
        ]


def _check(folder: Path) -> None:
    """Raises: MissingWeights: there is no model, or none of those that are known to embed pictures."""
    way_out = (
        f"put one with config.json, preprocessor_config.json and model.safetensors there, name another folder with"
        f" ISENGARD_LOOK_MODEL, or let the character be told apart by faces; it may be of {', '.join(FAMILIES)}"
    )
    try:
        family = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        raise MissingWeights(
            f"whole pictures are compared with a DINO or CLIP model, and {folder} holds none: {way_out}"
        ) from None
    if family not in FAMILIES:
        raise MissingWeights(f"the model in {folder} is of the family {family!r}: {way_out}")
