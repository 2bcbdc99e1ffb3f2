"""Descriptions of pictures by transformers' image-text-to-text models: Florence-2, Qwen-VL, LLaVA and their like."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL.Image import Image, Resampling
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from isengard.engines.device import compute_dtype, free_cached, free_memory, plain_out_of_memory
from isengard.engines.libraries import hide_progress_bars
from isengard.errors import CheckpointRefused, OutOfMemory

log = logging.getLogger(__name__)

#: Larger pictures are made smaller: models cut them into as many tokens as they have pixels, and see no more in them.
LONGEST_SIDE = 1024
MAX_TOKENS = 160
#: Florence-2 knows no instructions but these.
FLORENCE_TASK = "<MORE_DETAILED_CAPTION>"
#: For models that were trained with such a word, as JoyCaption.
SYSTEM = "You are a helpful image captioner."
#: Beside the weights, of their size.
OVERHEAD = 1.15
GIB = 2**30
ADVICE = "close other programs, or take a smaller captioner, such as florence2-large"


class ImagesOnlyQwenProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]  # transformers' types are not read
    """Qwen2.5-VL's processor without its part for videos, which needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any
    ) -> None:
        self.image_token = getattr(tokenizer, "image_token", "<|image_pad|>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = None
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class TransformersCaptioner:
    """A `Captioner`. Replies are those the model holds most likely: the same picture gives the same words."""

    def __init__(self, *, model: Any, processor: Any, device: torch.device) -> None:
        self._model, self._processor, self._device = model, processor, device
        self._is_florence = model.config.model_type == "florence2"

    def caption(
        self, images: Iterable[Image], *, instruction: str, on_token: Callable[[], object] = lambda: None
    ) -> Iterator[str]:
        """See `Captioner.caption`."""
        text = FLORENCE_TASK if self._is_florence else self._chat(instruction)
        for image in images:
            with plain_out_of_memory(self._device, advice=ADVICE):
                yield self._reply(_fitted(image), text, on_token)

    def _chat(self, instruction: str) -> str:
        """The whole prompt. Templates differ in what they take a message for: parts, or text to which they add the image.

        Raises:
            CheckpointRefused: the model has no template that puts the image in.
        """
        image = self._processor.image_token
        for messages in (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}],
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": instruction}],
            [{"role": "user", "content": f"{image}\n{instruction}"}],
        ):
            with suppress(TemplateError, TypeError, ValueError):
                said = str(
                    self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                )
                if said.count(image) == 1 and instruction in said and "'type'" not in said:
                    return said
        raise CheckpointRefused(
            f"{self._model.config.name_or_path} has no chat template for images: take a copy that was made for transformers"
        )

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _reply(self, image: Image, text: str, on_token: Callable[[], object]) -> str:
        inputs = self._processor(text=[text], images=[image], return_tensors="pt")
        inputs = inputs.to(self._device, dtype=self._model.dtype)
        made = self._model.generate(
            **inputs,
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            num_beams=3 if self._is_florence else 1,
            temperature=None,
            top_p=None,
            top_k=None,
            stopping_criteria=StoppingCriteriaList([_Told(on_token)]),
        )
        said = made[0] if self._is_florence else made[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.tokenizer.decode(said, skip_special_tokens=True)).strip()


class _Told(StoppingCriteria):  # type: ignore[misc]
    """Never stops by itself; what ``on_token`` raises does."""

    def __init__(self, on_token: Callable[[], object]) -> None:
        self._on_token = on_token

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self._on_token()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def open_captioner(folder: Path, *, device: torch.device) -> Iterator[TransformersCaptioner]:
    """Load a model for the time of the block.

    Raises:
        CheckpointRefused: the folder holds no model that describes pictures, or weights of another one.
        OutOfMemory: it does not fit.
    """
    hide_progress_bars()
    dtype = compute_dtype(device)
    _check_memory(folder, device, dtype)
    captioner = None
    try:
        with plain_out_of_memory(device, advice=ADVICE):
            captioner = TransformersCaptioner(
                model=_model(folder, device, dtype), processor=_processor(folder), device=device
            )
        yield captioner
    finally:
        del captioner
        free_cached(device)


def _model(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointRefused(f"{folder} holds no model that describes pictures: {reason}") from error
    lacking = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if lacking:
        raise CheckpointRefused(
            f"{folder} lacks {len(lacking)} weights of a {type(model).__name__} ({', '.join(lacking[:3])}):"
            " take a copy that was made for transformers"
        )
    return model.eval()


def _processor(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = ImagesOnlyQwenProcessor if config.get("model_type") == "qwen2_5_vl" else AutoProcessor
    return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)


def _check_memory(folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """A computer without room for the weights would not refuse them: it would end this process."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            count += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    needed, free = int(count * dtype.itemsize * OVERHEAD), free_memory(device)
    if needed > free:
        raise OutOfMemory(
            f"the captioner in {folder} takes {needed / GIB:.1f} GiB, and {device} has {free / GIB:.1f} GiB free: {ADVICE}"
        )


def _fitted(image: Image) -> Image:
    plain = image.convert("RGB")
    scale = LONGEST_SIDE / max(plain.size)
    if scale >= 1:
        return plain
    return plain.resize(
        (max(1, round(plain.width * scale)), max(1, round(plain.height * scale))), Resampling.LANCZOS
    )
