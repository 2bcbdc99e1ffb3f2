"""The finished model as a `FluxPipeline`: put together, written to disk, and used."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor

from isengard.files import replacing
from scripts.demo_model.flux import Painter
from scripts.demo_model.stage import in_bfloat16
from scripts.demo_model.words import T5_LENGTH

STEPS = 20
BATCH = 16


def scaled(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Set the autoencoder's scale and shift so that latents have mean 0 and deviation 1; return them so, in float16."""
    mean, deviation = float(latents.float().mean()), float(latents.float().std())
    vae.register_to_config(scaling_factor=1 / deviation, shift_factor=mean)
    return ((latents.float() - mean) / deviation).half()


def assemble(painter: Painter, vae: AutoencoderKL) -> FluxPipeline:
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=painter.clip,
        tokenizer=painter.clip_words,
        text_encoder_2=painter.t5,
        tokenizer_2=painter.t5_words,
        transformer=painter.transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def export(painter: Painter, vae: AutoencoderKL, folder: Path) -> None:
    """Write the pipeline in diffusers' layout with float16 weights, and nothing of this machine's paths."""
    with replacing(folder) as temporary:
        assemble(copy.deepcopy(painter), copy.deepcopy(vae)).to(torch.float16).save_pretrained(temporary)
        for file in temporary.rglob("*.json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            if content.pop("_name_or_path", None) is not None:
                file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
        print(f"{size / 1e6:.1f} MB in {folder}")


def load(folder: Path, device: torch.device) -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.inference_mode()
def paint(
    pipe: FluxPipeline, prompts: Sequence[str], *, seed: int, guidance: float, steps: int = STEPS
) -> npt.NDArray[np.uint8]:
    """One image for each prompt, (n, 128, 128, 3)."""
    found = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        with in_bfloat16(pipe.device):
            images = pipe(
                part,
                height=128,
                width=128,
                num_inference_steps=steps,
                guidance_scale=guidance,
                max_sequence_length=T5_LENGTH,
                generator=[torch.Generator().manual_seed(seed + start + place) for place in range(len(part))],
                output_type="np",
            ).images
        found.append((images * 255).round().astype(np.uint8))
    return np.concatenate(found)
