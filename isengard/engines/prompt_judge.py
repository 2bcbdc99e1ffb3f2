"""How well pictures follow their prompts, by a CLIP of the user's. The base model's own text encoder sees no pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from isengard.errors import MissingWeights

#: Pictures at once; a large model needs some 100 MB for each.
BATCH = 8


class ClipJudge:
    """A `PromptJudge`. Runs on the CPU: a picture takes some tenths of a second."""

    def __init__(self, folder: Path) -> None:
        """``folder``: a CLIP or SigLIP in the layout of transformers, with its tokenizer. Raises: MissingWeights."""
        try:
            self._prepare: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            ).eval()
        except (OSError, ValueError) as error:
            raise MissingWeights(
                f"the model in {folder} cannot be loaded ({error}): download it again"
            ) from error

    def follow(self, images: Sequence[Image], prompts: Sequence[str]) -> Sequence[float]:
        """See `PromptJudge.follow`."""
        found: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                seen = self._seen(images[start : start + BATCH])
                found += (seen * self._read(prompts[start : start + BATCH])).sum(dim=1).tolist()
        return found

    def _seen(self, images: Sequence[Image]) -> Tensor:
        pixels = self._prepare(images=[image.convert("RGB") for image in images], return_tensors="pt")
        features = self._model.get_image_features(pixel_values=pixels["pixel_values"])
        return cast("Tensor", functional.normalize(features.pooler_output))

    def _read(self, prompts: Sequence[str]) -> Tensor:
        length = self._model.config.text_config.max_position_embeddings
        # SigLIP was trained on texts that were filled up.
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        features = self._model.get_text_features(**tokens)
        return cast("Tensor", functional.normalize(features.pooler_output))
