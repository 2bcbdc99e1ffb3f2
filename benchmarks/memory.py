"""``python -m benchmarks.memory``: counts what each base model needs, on any machine, without its weights.

The real architectures are built with tensors that have no content; a training step and a denoising step run on them, and
every storage is counted from its making to its end. It is a count of the eager path in bfloat16 autocast, with our own
LoRA layers and attention that keeps no matrix of scores, as on a GPU; it was not measured on one. The figures are in the
cards (``parts`` in configs/models.yaml), where `isengard/domain/memory.py` reads them.
"""

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isengard.engines.native.lora import add_lora, chosen_layers, linear_layers
from isengard.settings import ASSETS

MIB = 2**20
RANK = 16
TARGETS = ("attention", "attention_mlp", "all_linear")
#: Both sides of the line that is drawn through two counts.
SIDES = (512, 1024)
Feed = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Architecture:
    """How to build the parts of a base model, and what its denoiser is fed at a side in pixels."""

    denoiser: Callable[[], Any]
    text_encoders: tuple[Callable[[], Any], ...]
    vae: Callable[[], Any]
    latent_channels: int
    feed: Feed
    blocks: tuple[str, ...]
    patterns: dict[str, str]
    vae_dtype: torch.dtype = torch.bfloat16


class Peak(TorchDispatchMode):  # type: ignore[misc]  # torch is untyped here
    """Sums the bytes of all storages that are made while it is on and are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.highest = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        before = {_storage_key(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and _storage_key(one) not in before:
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.highest = max(self.highest, self.live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)


def _storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def flux(*, text_length: int) -> Architecture:
    """FLUX.1-dev and -schnell."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from isengard.engines.native.flux import _TARGETS

    def feed(side: int) -> dict[str, Any]:
        tokens = (side // 16) ** 2
        return {
            "hidden_states": torch.randn(1, tokens, 64),
            "timestep": torch.rand(1),
            "guidance": torch.ones(1),
            "pooled_projections": torch.randn(1, 768),
            "encoder_hidden_states": torch.randn(1, text_length, 4096),
            "txt_ids": torch.zeros(text_length, 3),
            "img_ids": torch.zeros(tokens, 3),
        }

    t5 = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
    return Architecture(
        denoiser=partial(FluxTransformer2DModel, guidance_embeds=True),
        text_encoders=(
            lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            lambda: T5EncoderModel(T5Config(**t5, feed_forward_proj="gated-gelu")),
        ),
        vae=partial(
            AutoencoderKL, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **VAE
        ),
        latent_channels=16,
        feed=feed,
        blocks=("transformer_blocks", "single_transformer_blocks"),
        patterns=_TARGETS,
    )


def flux2_klein() -> Architecture:
    """FLUX.2-klein 4B, base and distilled."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    def feed(side: int) -> dict[str, Any]:
        tokens = (side // 16) ** 2
        return {
            "hidden_states": torch.randn(1, tokens, 128),
            "timestep": torch.rand(1),
            "guidance": None,
            "encoder_hidden_states": torch.randn(1, 512, 7680),
            "txt_ids": torch.zeros(1, 512, 4),
            "img_ids": torch.zeros(1, tokens, 4),
        }

    block = r"(single_)?transformer_blocks\.\d+\."
    qwen = {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    return Architecture(
        denoiser=partial(
            Flux2Transformer2DModel, num_layers=5, num_single_layers=20, num_attention_heads=24,
            joint_attention_dim=7680, guidance_embeds=False,
        ),
        text_encoders=(lambda: Qwen3ForCausalLM(Qwen3Config(**qwen)),),
        vae=AutoencoderKLFlux2,
        latent_channels=32,
        feed=feed,
        blocks=("transformer_blocks", "single_transformer_blocks"),
        patterns={
            "attention": rf"{block}attn\..*", "attention_mlp": f"{block}.*", "all_linear": f"{block}.*",
        },
    )  # fmt: skip


def sdxl() -> Architecture:
    """Stable Diffusion XL 1.0."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from isengard.engines.native.sdxl import _TARGETS

    def feed(side: int) -> dict[str, Any]:
        return {
            "sample": torch.randn(1, 4, side // 8, side // 8),
            "timestep": torch.rand(1),
            "encoder_hidden_states": torch.randn(1, 77, 2048),
            "added_cond_kwargs": {"text_embeds": torch.randn(1, 1280), "time_ids": torch.ones(1, 6)},
        }

    big = {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "projection_dim": 1280, "hidden_act": "gelu",
    }  # fmt: skip
    return Architecture(
        denoiser=partial(
            UNet2DConditionModel, sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
            addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816, use_linear_projection=True,
        ),
        text_encoders=(
            lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            lambda: CLIPTextModelWithProjection(CLIPTextConfig(**big)),
        ),
        vae=partial(AutoencoderKL, latent_channels=4, **VAE),
        latent_channels=4,
        feed=feed,
        blocks=(),
        patterns=_TARGETS,
        vae_dtype=torch.float32,
    )  # fmt: skip


def demo() -> Architecture:
    """The bundled model."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    folder = ASSETS / "demo-base"
    config = FluxTransformer2DModel.load_config(folder / "transformer")
    t5, clip = (
        T5Config.from_pretrained(folder / "text_encoder_2"),
        CLIPTextConfig.from_pretrained(folder / "text_encoder"),
    )
    vae = AutoencoderKL.load_config(folder / "vae")

    def feed(side: int) -> dict[str, Any]:
        tokens = (side // 16) ** 2
        return {
            "hidden_states": torch.randn(1, tokens, config["in_channels"]),
            "timestep": torch.rand(1),
            "guidance": torch.ones(1) if config["guidance_embeds"] else None,
            "pooled_projections": torch.randn(1, config["pooled_projection_dim"]),
            "encoder_hidden_states": torch.randn(1, 40, config["joint_attention_dim"]),
            "txt_ids": torch.zeros(40, 3),
            "img_ids": torch.zeros(tokens, 3),
        }

    return replace(
        flux(text_length=40),
        denoiser=lambda: FluxTransformer2DModel.from_config(config),
        text_encoders=(lambda: CLIPTextModel(clip), lambda: T5EncoderModel(t5)),
        vae=lambda: AutoencoderKL.from_config(vae),
        latent_channels=vae["latent_channels"],
        feed=feed,
    )


CLIP_L: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
MODELS: dict[str, Callable[[], Architecture]] = {
    "flux1-dev": partial(flux, text_length=512),
    "flux1-schnell": partial(flux, text_length=256),
    "flux2-klein-4b": flux2_klein,
    "sdxl": sdxl,
    "demo": demo,
}


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Under autocast normalizations in float32, and attention in one kernel."""
    functional: Any = torch.nn.functional
    former = functional.scaled_dot_product_attention, functional.layer_norm, functional.group_norm
    functional.scaled_dot_product_attention = flash
    functional.layer_norm, functional.group_norm = (in_float32(one) for one in former[1:])
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, functional.layer_norm, functional.group_norm = former


def in_float32(normalize: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """CUDA's autocast computes normalizations in float32, the CPU's does not."""

    def normalized(given: Tensor, *args: Any, **options: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return normalize(given, *args, **options)
        wide = [one.float() if isinstance(one, Tensor) else one for one in args]
        options = {name: one.float() if isinstance(one, Tensor) else one for name, one in options.items()}
        return normalize(given.float(), *wide, **options)

    return normalized


def flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> Tensor:
    """Attention as the GPU computes it: what is kept is the inputs, the output and a number per row."""
    made = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, False, scale=options.get("scale")
    )
    result: Tensor = made[0]
    return result


def built(build: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    """A network of this type that takes no memory and cannot run."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return build()
    finally:
        torch.set_default_dtype(former)


def runnable(network: Any) -> Any:
    """The same network on tensors without content, which operations take for real ones. Call it in a `FakeTensorMode`."""
    for module in network.modules():
        for name, one in module.named_parameters(recurse=False):
            hollow = torch.empty(one.shape, dtype=one.dtype, device="cpu")
            setattr(module, name, torch.nn.Parameter(hollow, requires_grad=one.requires_grad))
        for name, one in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(one.shape, dtype=one.dtype, device="cpu"))
    return network


def parameters(module: Any) -> int:
    return sum(one.numel() for one in module.parameters())


def training_peak(architecture: Architecture, side: int, *, checkpointing: bool) -> int:
    """Most bytes beside weights, adapter and optimizer in one forward and backward pass, batch 1."""
    denoiser = built(architecture.denoiser, torch.bfloat16)
    add_lora(denoiser, pattern=architecture.patterns["all_linear"], rank=RANK, alpha=RANK, seed=0)
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    denoiser.train()
    with FakeTensorMode():
        runnable(denoiser)
        inputs = architecture.feed(side)
        with Peak() as peak:
            with torch.autocast("cpu", torch.bfloat16):
                predicted = denoiser(**inputs, return_dict=False)[0]
                loss = predicted.float().square().mean()
            loss.backward()
        gradients = sum(4 * one.numel() for one in denoiser.parameters() if one.requires_grad)
        return int(peak.highest - gradients)


def generation_peak(architecture: Architecture, side: int) -> int:
    """Most bytes beside the weights in one denoising step, batch 1."""
    denoiser = built(architecture.denoiser, torch.bfloat16)
    with FakeTensorMode():
        runnable(denoiser)
        inputs = {name: _in(torch.bfloat16, value) for name, value in architecture.feed(side).items()}
        with torch.no_grad(), Peak() as peak:
            denoiser(**inputs, return_dict=False)
        return int(peak.highest)


def _in(dtype: torch.dtype, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _in(dtype, one) for name, one in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) else value


def decoding_peak(architecture: Architecture, side: int) -> int:
    """Most bytes beside the weights while the VAE makes an image."""
    vae = built(architecture.vae, architecture.vae_dtype).eval()
    with FakeTensorMode():
        runnable(vae)
        latents = torch.randn(
            1, architecture.latent_channels, side // 8, side // 8, dtype=architecture.vae_dtype
        )
        with torch.no_grad(), Peak() as peak:
            vae.decode(latents, return_dict=False)
        return int(peak.highest)


def line(count: Callable[[int], int]) -> tuple[float, float]:
    """``(MiB at no pixel, MiB per megapixel)`` of a straight line through the counts of both sides."""
    small, large = (count(side) / MIB for side in SIDES)
    pixels = [side * side / MIB for side in SIDES]
    slope = (large - small) / (pixels[1] - pixels[0])
    return large - slope * pixels[1], slope


def parameter_counts(architecture: Architecture) -> dict[str, Any]:
    """The figures of a card's ``parts`` that say how large it is."""
    denoiser = built(architecture.denoiser)
    sizes = [parameters(block) for group in architecture.blocks for block in denoiser.get_submodule(group)]
    linear = [layer for layer in denoiser.modules() if isinstance(layer, torch.nn.Linear)]
    return {
        "denoiser": parameters(denoiser),
        "quantizable": sum(sizes) or sum(layer.weight.numel() for layer in linear),
        "blocks": len(sizes),
        "smallest_block": min(sizes, default=0),
        "largest_block": max(sizes, default=0),
        "text_encoders": tuple(parameters(built(one)) for one in architecture.text_encoders),
        "vae": parameters(built(architecture.vae)),
        "adapter_per_rank": {targets: per_rank(architecture, denoiser, targets) for targets in TARGETS},
    }


def activations(architecture: Architecture) -> dict[str, tuple[float, float]]:
    """The figures that say what computing with it takes; minutes for a large model."""
    with as_on_a_gpu():
        return {
            "training": line(partial(training_peak, architecture, checkpointing=False)),
            "training_checkpointed": line(partial(training_peak, architecture, checkpointing=True)),
            "generation": line(partial(generation_peak, architecture)),
            "decoding": line(partial(decoding_peak, architecture)),
        }


def per_rank(architecture: Architecture, denoiser: Any, targets: str) -> int:
    """Parameters of an adapter of rank 1."""
    layers = chosen_layers(linear_layers(denoiser), architecture.patterns[targets])
    return sum(layer.in_features + layer.out_features for layer in map(denoiser.get_submodule, layers))


def main() -> None:
    """Print the figures of the models that are named, or of all."""
    for name in sys.argv[1:] or MODELS:
        architecture = MODELS[name]()
        print(name)
        for key, value in {**parameter_counts(architecture), **activations(architecture)}.items():
            print(f"  {key}: {value}")


if __name__ == "__main__":
    main()
