"""A folder of tiny base models under the names of the shipped cards, each as its repository on the hub looks."""

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file

from tests.tiny_flux2 import save_tiny_flux2

SHARD = "30KB"


def save_tiny_hub(models: Path, *, flux: Path, sdxl: Path) -> None:
    """Fill ``models``; the large part of each is in several files with an index, as on the hub."""
    trainable = {"flux1-dev": True, "flux1-schnell": False}
    for name, guidance in trainable.items():
        _link_all_but(flux, models / name, "transformer")
        config = FluxTransformer2DModel.load_config(flux / "transformer")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            transformer = FluxTransformer2DModel.from_config(config | {"guidance_embeds": guidance})
        transformer.save_pretrained(models / name / "transformer", max_shard_size=SHARD)
    adapter = models / "flux1-schnell-training-adapter"
    adapter.mkdir()
    save_file(random_lora(transformer, "transformer"), adapter / "pytorch_lora_weights.safetensors")
    _link_all_but(sdxl, models / "sdxl", "unet")
    UNet2DConditionModel.from_pretrained(sdxl / "unet").save_pretrained(
        models / "sdxl" / "unet", max_shard_size=SHARD
    )
    for name, distilled in {"flux2-klein-base-4b": False, "flux2-klein-4b": True}.items():
        save_tiny_flux2(models / name, distilled=distilled, shard=SHARD)


def random_lora(denoiser: torch.nn.Module, component: str) -> dict[str, torch.Tensor]:
    """Weights for every linear layer in a block, in diffusers' layout."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, torch.nn.Linear) and ("blocks." in name):
            made[f"{component}.{name}.lora_A.weight"] = torch.randn(
                2, module.in_features, generator=generator
            )
            made[f"{component}.{name}.lora_B.weight"] = torch.randn(
                module.out_features, 2, generator=generator
            )
    return made


def _link_all_but(source: Path, target: Path, left_out: str) -> None:
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name != left_out:
            (target / entry.name).symlink_to(entry)
