"""From images and captions to cached tensors, grouped by size; and the fixed validation set."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from isengard.domain.captions import resolve_caption
from isengard.domain.training import TrainingImage, TrainingSpec
from isengard.engines.native.adapter import FamilyAdapter, PromptEmbeds
from isengard.engines.native.buckets import Bucket, bucket_for
from isengard.engines.native.cache import TensorCache
from isengard.errors import TrainingFailed

#: From this many images on, some are held out for validation.
HOLD_OUT_FROM = 8

#: Latents and prompts up to this many bytes stay on the device during the training.
KEPT_ON_DEVICE = 256 * 2**20


@dataclass(frozen=True)
class Example:
    """One image at one size."""

    bucket: Bucket
    latents: Tensor
    mirrored: Tensor | None
    prompt: PromptEmbeds


@dataclass(frozen=True)
class Dataset:
    """Everything the loop needs, on CPU."""

    train: list[Example]
    validation: list[Example]
    no_prompt: PromptEmbeds
    sample_prompts: list[PromptEmbeds]


def held_out(images: Sequence[TrainingImage]) -> frozenset[str]:
    """Choose the images kept for validation: a sixth, at most 4, by hash; none of fewer than `HOLD_OUT_FROM`."""
    if len(images) < HOLD_OUT_FROM:
        return frozenset()
    order = sorted(images, key=lambda image: hashlib.sha256(image.sha256.encode()).hexdigest())
    return frozenset(image.sha256 for image in order[: min(4, max(1, len(images) // 6))])


def prepare(
    spec: TrainingSpec,
    images: Sequence[TrainingImage],
    *,
    adapter: FamilyAdapter,
    cache_dir: Path,
    on_item: Callable[[int, int, str], None],
) -> Dataset:
    """Encode what is not cached yet.

    Args:
        spec: The training.
        images: All images of the character.
        adapter: Encodes; its encoders are loaded only when something is missing.
        cache_dir: Shared by all runs.
        on_item: Called before each item with (done, total, what); may raise to stop.

    Raises:
        TrainingFailed: an image that is not cached has vanished or cannot be read.
        DiskFull: the cache cannot be written.
    """
    marks = adapter.marks()
    latents = TensorCache(cache_dir / "latents")
    embeds = TensorCache(cache_dir / "prompts")
    sample_prompts = [
        resolve_caption(prompt, spec.trigger, spec.class_word) for prompt in spec.sample_prompts
    ]
    texts = list(dict.fromkeys([image.caption for image in images] + ["", *sample_prompts]))
    sizes = [(image, bucket) for image in images for bucket in _buckets(image, spec)]
    total = len(texts) + len(sizes)

    prompts: dict[str, PromptEmbeds] = {}
    for number, text in enumerate(texts):
        on_item(number, total, "prompts")
        prompts[text] = embeds.get(
            {"text": text, "model": marks["text"]}, partial(adapter.encode_prompt, text)
        )
    examples = []
    for number, (image, bucket) in enumerate(sizes, start=len(texts)):
        on_item(number, total, image.path.name)
        tensors = {
            side: latents.get(
                {
                    "image": image.sha256,
                    "size": [bucket.width, bucket.height],
                    "side": side,
                    "model": marks["vae"],
                },
                partial(_encode, adapter, image.path, bucket, mirror=side == "mirrored"),
            )["latents"]
            for side in (("plain", "mirrored") if spec.flip else ("plain",))
        }
        examples.append(Example(bucket, tensors["plain"], tensors.get("mirrored"), prompts[image.caption]))
    on_item(total, total, "done")
    kept_out = held_out(images)
    owners = [image.sha256 for image, _ in sizes]
    return Dataset(
        train=[example for example, owner in zip(examples, owners, strict=True) if owner not in kept_out],
        validation=[example for example, owner in zip(examples, owners, strict=True) if owner in kept_out]
        or examples[:4],
        no_prompt=prompts[""],
        sample_prompts=[prompts[text] for text in sample_prompts],
    )


def placed(dataset: Dataset, device: torch.device) -> Dataset:
    """Bring what the steps read to the device once, when it is small beside a model."""
    prompts = {
        id(prompt): prompt for prompt in [*(example.prompt for example in dataset.train), dataset.no_prompt]
    }
    latents = [
        tensor
        for example in dataset.train
        for tensor in (example.latents, example.mirrored)
        if tensor is not None
    ]
    tensors = [*latents, *(tensor for prompt in prompts.values() for tensor in prompt.values())]
    if sum(tensor.nbytes for tensor in tensors) > KEPT_ON_DEVICE:
        return dataset
    there = {
        key: {name: tensor.to(device) for name, tensor in prompt.items()} for key, prompt in prompts.items()
    }
    train = [
        replace(
            example,
            latents=example.latents.to(device),
            mirrored=None if example.mirrored is None else example.mirrored.to(device),
            prompt=there[id(example.prompt)],
        )
        for example in dataset.train
    ]
    return replace(dataset, train=train, no_prompt=there[id(dataset.no_prompt)])


def _encode(adapter: FamilyAdapter, path: Path, bucket: Bucket, *, mirror: bool) -> dict[str, Tensor]:
    return {"latents": adapter.encode_image(load_pixels(path, bucket, mirror=mirror))}


def _buckets(image: TrainingImage, spec: TrainingSpec) -> list[Bucket]:
    """Give the sizes of one image; resolutions that a small image cannot reach fall together."""
    sizes = [
        bucket_for(image.width, image.height, resolution=resolution, max_upscale=spec.max_upscale)
        for resolution in spec.resolutions
    ]
    return list(dict.fromkeys(sizes))


@contextmanager
def readable(path: Path) -> Iterator[Image.Image]:
    """Open an image of the character. Raises: TrainingFailed: it has vanished or is damaged."""
    try:
        with Image.open(path) as opened:
            yield opened
    except OSError as error:
        raise TrainingFailed(
            f"the image {path.name} cannot be read any more ({type(error).__name__}); "
            "put it back or remove it from the character, then start the training again"
        ) from error


def load_pixels(path: Path, bucket: Bucket, *, mirror: bool) -> Tensor:
    """Read an image, scaled to cover the bucket and cropped at the middle: ``(3, height, width)`` in [-1, 1]."""
    with readable(path) as opened:
        image = ImageOps.fit(opened.convert("RGB"), (bucket.width, bucket.height), Image.Resampling.LANCZOS)
    if mirror:
        image = ImageOps.mirror(image)
    values = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
    return (values / 127.5 - 1).permute(2, 0, 1)
