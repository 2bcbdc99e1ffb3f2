"""A FLUX.1-dev of any size with random weights, so that its speed and memory can be measured without its licence."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from isengard.domain.base import Frozen
from isengard.domain.training import TrainingImage
from isengard.settings import ASSETS
from isengard.store.decoding import pixel_hash

#: What FLUX.1-dev's transformer is given by its text encoders.
T5_WIDTH, CLIP_WIDTH = 4096, 768


class Shape(Frozen):
    """How large the transformer is; by default as FLUX.1-dev's, 12 billion parameters."""

    layers: int = 19
    single_layers: int = 38
    heads: int = 24  # of 128 channels


def build(folder: Path, shape: Shape) -> None:
    """Save the model in diffusers' layout: the transformer in bfloat16, the demo model's VAE and tokenizers.

    The text encoders have one narrow layer, but embeddings as wide as FLUX.1-dev's. Drawn on the GPU where there is one.
    """
    import torch
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    demo = ASSETS / "demo-base"
    replaced = shutil.ignore_patterns("transformer", "text_encoder", "text_encoder_2", "README.md")
    shutil.copytree(demo, folder, ignore=replaced)
    torch.manual_seed(0)
    clip = CLIPTextConfig.from_pretrained(
        demo / "text_encoder",
        hidden_size=CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
    )
    t5 = T5Config.from_pretrained(
        demo / "text_encoder_2", d_model=T5_WIDTH, d_ff=64, num_layers=1, num_heads=1
    )
    CLIPTextModel(clip).save_pretrained(folder / "text_encoder")
    T5EncoderModel(t5).save_pretrained(folder / "text_encoder_2")
    config = FluxTransformer2DModel.load_config(demo / "transformer") | {
        "num_layers": shape.layers,
        "num_single_layers": shape.single_layers,
        "num_attention_heads": shape.heads,
        "attention_head_dim": 128,
        "axes_dims_rope": (16, 56, 56),
        "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": CLIP_WIDTH,
    }
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in float32 it would take twice the memory first
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            transformer = FluxTransformer2DModel.from_config(config)
    finally:
        torch.set_default_dtype(former)
    transformer.save_pretrained(folder / "transformer")


def enlarged(images: Sequence[TrainingImage], folder: Path, *, side: int) -> tuple[TrainingImage, ...]:
    """Copies of square images at another size: AI-Toolkit enlarges none itself."""
    return tuple(_enlarged(image, folder / f"{image.path.stem}.png", side) for image in images)


def _enlarged(image: TrainingImage, path: Path, side: int) -> TrainingImage:
    with Image.open(image.path) as opened:
        larger = opened.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    larger.save(path)
    return image.model_copy(
        update={"path": path, "sha256": pixel_hash(larger), "width": side, "height": side}
    )
