"""The autoencoder: 128 x 128 pixels to 16 x 16 latents of 16 channels and back."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from scripts.demo_model.data import Drawings
from scripts.demo_model.stage import Ema, Stage, batch_of, cosine, in_bfloat16, set_lr

CHANNELS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Recipe:
    steps: int = 6000
    batch: int = 8
    lr: float = 1.5e-3
    gradient_weight: float = 0.5
    square_weight: float = 2.0
    kl_weight: float = 1e-4


def new() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def to_pixels(images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """(n, h, w, 3) bytes as (n, 3, h, w) in -1 to 1."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(drawings: Drawings, folder: Path, recipe: Recipe, device: torch.device) -> AutoencoderKL:
    """Return the averaged model."""
    torch.manual_seed(drawings.seed)
    vae = new().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    ema = Ema(vae, decay=0.998)

    def step(number: int) -> dict[str, Tensor]:
        indices, generator = batch_of(number, 1, len(drawings), recipe.batch)
        pixels = to_pixels(drawings.images[indices.numpy()], device)
        with in_bfloat16(device):
            posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        latents = posterior.mean.float() + posterior.std.float() * noise
        with in_bfloat16(device):
            restored = vae.decode(latents).sample
        restored = restored.float()
        absolute = functional.l1_loss(restored, pixels)
        square = functional.mse_loss(restored, pixels)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = (
            absolute
            + recipe.square_weight * square
            + recipe.gradient_weight * _gradient_loss(restored, pixels)
            + recipe.kl_weight * kl
        )
        set_lr(optimizer, cosine(number, recipe.steps, warmup=100))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update()
        psnr = -10 * torch.log10(square.detach() / 4)
        return {"loss": loss.detach(), "l1": absolute.detach(), "kl": kl.detach(), "psnr": psnr}

    parts = {"vae": vae, "optimizer": optimizer, "ema": ema}
    Stage("autoencoder", folder, recipe.steps).run(parts, step)
    ema.copy_to(vae)
    return vae.eval()


def _gradient_loss(one: Tensor, other: Tensor) -> Tensor:
    difference = one - other
    across = difference[..., 1:] - difference[..., :-1]
    down = difference[..., 1:, :] - difference[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


@torch.inference_mode()
def encode_all(vae: AutoencoderKL, drawings: Drawings, device: torch.device) -> Tensor:
    """The mean latents of all drawings, (n, 16, 16, 16) float16, as the encoder gives them."""
    found = []
    for start in tqdm(range(0, len(drawings), 32), desc="encoding", unit="batch"):
        with in_bfloat16(device):
            posterior = vae.encode(to_pixels(drawings.images[start : start + 32], device)).latent_dist
        found.append(posterior.mean.half().cpu())
    return torch.cat(found).contiguous()


@torch.inference_mode()
def psnr(vae: AutoencoderKL, drawings: Drawings, device: torch.device) -> float:
    """Mean over the images of the peak signal-to-noise ratio, in dB."""
    values = []
    for start in range(0, len(drawings), 32):
        pixels = to_pixels(drawings.images[start : start + 32], device)
        restored = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(-10 * torch.log10(((restored - pixels) ** 2).mean(dim=(1, 2, 3)) / 4))
    return float(torch.cat(values).mean())


@torch.inference_mode()
def restore(vae: AutoencoderKL, images: npt.NDArray[np.uint8], device: torch.device) -> npt.NDArray[np.uint8]:
    """Images through the encoder and the decoder."""
    found = []
    for start in tqdm(range(0, len(images), 32), desc="restoring", unit="batch"):
        with in_bfloat16(device):
            latents = vae.encode(to_pixels(images[start : start + 32], device)).latent_dist.mode()
            pixels = vae.decode(latents).sample
        found.append(
            ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        )
    return np.concatenate(found)
