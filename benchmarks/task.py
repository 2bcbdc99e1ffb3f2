"""What both training loops are given, and how a process measures itself."""

import resource
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml
from PIL import Image

from isengard.domain.base import Frozen
from isengard.domain.captions import resolve_caption
from isengard.domain.model import LocalModel
from isengard.domain.training import Precision, TrainingImage
from isengard.settings import ASSETS, ROOT
from isengard.store.configs import Catalog
from isengard.store.decoding import pixel_hash
from isengard.store.weights import Weights

#: Every linear layer of FLUX's attention, as peft reads it: a regular expression of whole module names.
ATTENTION = r".*attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
CHARACTER = ASSETS / "characters" / "nova"
#: Steps at the start that are not timed, while allocators and thread pools settle.
WARM_UP = 5


class Task(Frozen):
    """One training of the demo model on the example character."""

    steps: int
    precision: Precision = Precision.FP32
    batch_size: int = 8
    rank: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4


class Measured(Frozen):
    """What a training process found out about itself."""

    seconds: tuple[float, ...]  # of each step after the warm-up
    peak_bytes: int
    parameters: int  # trained ones, to be sure that both loops train the same


def demo_model() -> LocalModel:
    catalog = Catalog(ROOT / "configs")
    return Weights(models_dir=ROOT / "data" / "models", assets_dir=ASSETS).locate(catalog.model("demo"))


def example_images() -> tuple[TrainingImage, ...]:
    about = yaml.safe_load((CHARACTER / "about.yaml").read_text(encoding="utf-8"))
    return tuple(_image(path, about) for path in sorted(CHARACTER.glob("*.png")))


def _image(path: Path, about: dict[str, str]) -> TrainingImage:
    caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
    with Image.open(path) as image:
        return TrainingImage(
            path=path,
            sha256=pixel_hash(image.convert("RGB")),
            width=image.width,
            height=image.height,
            caption=resolve_caption(caption, about["trigger"], about["class_word"]),
        )


def step_seconds(marks: Sequence[float]) -> tuple[float, ...]:
    """Turn the times noted before the first and after each step into seconds per step, without the warm-up."""
    return tuple(after - before for before, after in pairwise(marks))[WARM_UP:]


def peak_bytes() -> int:
    """Most memory this process has held: of the GPU where there is one, else resident in main memory."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else resident_peak_bytes()


def resident_peak_bytes() -> int:
    """Most main memory this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
