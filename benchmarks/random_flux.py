"""A FLUX.1-dev of any size with random weights, so that its speed and memory can be measured without its licence."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from isengard.domain.base import Frozen
from isengard.domain.performance import Quantization
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

    demo = ASSETS / "demo-base"
    replaced = shutil.ignore_patterns("transformer", "text_encoder", "text_encoder_2", "README.md")
    shutil.copytree(demo, folder, ignore=replaced)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, part in text_encoders(device, small=True).items():
        part.float().save_pretrained(folder / name)
    transformer(shape, device).save_pretrained(folder / "transformer")


def transformer(shape: Shape, device: Any) -> Any:
    """A FluxTransformer2DModel of this shape with random weights in bfloat16, frozen."""
    from diffusers import FluxTransformer2DModel

    config = FluxTransformer2DModel.load_config(ASSETS / "demo-base" / "transformer") | {
        "num_layers": shape.layers,
        "num_single_layers": shape.single_layers,
        "num_attention_heads": shape.heads,
        "attention_head_dim": 128,
        "axes_dims_rope": (16, 56, 56),
        "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": CLIP_WIDTH,
    }
    return drawn(lambda: FluxTransformer2DModel.from_config(config), device)


def text_encoders(device: Any, *, small: bool) -> dict[str, Any]:
    """FLUX.1-dev's two text encoders; ``small`` leaves their outputs' widths and takes the depth away."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    demo = ASSETS / "demo-base"
    clip = {"hidden_size": CLIP_WIDTH, "projection_dim": CLIP_WIDTH}
    t5 = {"d_model": T5_WIDTH}
    if small:
        clip |= {"intermediate_size": 64, "num_hidden_layers": 1}
        t5 |= {"d_ff": 64, "num_layers": 1, "num_heads": 1}
    else:
        clip |= {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        t5 |= {"d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64}
    return {
        "text_encoder": drawn(
            lambda: CLIPTextModel(CLIPTextConfig.from_pretrained(demo / "text_encoder", **clip)), device
        ),
        "text_encoder_2": drawn(
            lambda: T5EncoderModel(T5Config.from_pretrained(demo / "text_encoder_2", **t5)), device
        ),
    }


def autoencoder(device: Any, *, small: bool) -> Any:
    """FLUX.1's autoencoder, 84 million parameters; ``small`` takes its widths away."""
    from diffusers import AutoencoderKL

    config = AutoencoderKL.load_config(ASSETS / "demo-base" / "vae") | {
        "block_out_channels": (32, 32, 32, 32) if small else (128, 256, 512, 512),
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1 if small else 2,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
    }
    return drawn(lambda: AutoencoderKL.from_config(config), device)


def drawn(make: Callable[[], Any], device: Any) -> Any:
    """Make a network on the device in bfloat16, the same each time: in float32 it would take twice the memory first."""
    import torch

    torch.manual_seed(0)
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            network = make()
    finally:
        torch.set_default_dtype(former)
    return network.eval().requires_grad_(False)


def held(network: Any, *, quantization: Quantization, streamed_blocks: int, device: Any) -> Any:
    """Hold a network as `isengard.engines.loading.load_network` would, without its files."""
    from isengard.engines.quantize import quantize_network, repeated_blocks, say_how_quantized
    from isengard.engines.streaming import BlockStreamer, spread

    if quantization is not Quantization.NONE:
        quantize_network(network, quantization, device=device)
        say_how_quantized(network, quantization)
    if streamed_blocks:
        names = spread(list(repeated_blocks(network)), streamed_blocks)
        streamer = BlockStreamer(names, device=device)
        for name in names:
            streamer.stow(name, network.get_submodule(name))
        streamer.start()
    return network


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
