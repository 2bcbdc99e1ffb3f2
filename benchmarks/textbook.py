"""A FLUX LoRA training as a textbook writes it, with diffusers and peft alone. Nothing of Isengard's engine is used."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from benchmarks.task import ATTENTION, Measured, Task, demo_model, example_images, peak_bytes, step_seconds
from isengard.domain.training import Precision, TrainingImage


def train(task: Task) -> Measured:
    """Load, encode once, then train; the encoders are dropped before the loop."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = task.precision is Precision.BF16
    model = demo_model()
    pipeline = FluxPipeline.from_pretrained(model.path, dtype=torch.bfloat16 if bf16 else torch.float32)
    pipeline.to(device)
    latents, prompt_embeds, pooled, text_ids = encode(
        pipeline, example_images(), max_sequence_length=model.card.max_sequence_length
    )
    side = model.card.resolutions[0] // 16
    image_ids = pipeline._prepare_latent_image_ids(1, side, side, device, latents.dtype)
    transformer = pipeline.transformer
    del pipeline

    transformer.requires_grad_(False)  # torch's own signature
    transformer.add_adapter(
        LoraConfig(r=task.rank, lora_alpha=task.rank, init_lora_weights="gaussian", target_modules=ATTENTION)
    )
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=task.learning_rate, weight_decay=task.weight_decay)
    dataset = TensorDataset(latents, prompt_embeds, pooled)
    drawn = RandomSampler(dataset, replacement=True, num_samples=task.steps * task.batch_size)

    transformer.train()
    marks = [time.perf_counter()]
    for clean, embeds, pooled_embeds in DataLoader(dataset, batch_size=task.batch_size, sampler=drawn):
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(len(clean), device=device))
        mix = sigma[:, None, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            predicted = transformer(
                hidden_states=(1 - mix) * clean + mix * noise,
                timestep=sigma,
                guidance=torch.ones_like(sigma),
                pooled_projections=pooled_embeds,
                encoder_hidden_states=embeds,
                txt_ids=text_ids,
                img_ids=image_ids,
                return_dict=False,
            )[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), (noise - clean).float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # what a progress bar shows; also waits for the device
        marks.append(time.perf_counter())
    return Measured(
        seconds=step_seconds(marks),
        peak_bytes=peak_bytes(),
        parameters=sum(parameter.numel() for parameter in parameters),
    )


@torch.no_grad()  # type: ignore[untyped-decorator]
def encode(
    pipeline: FluxPipeline, images: Sequence[TrainingImage], *, max_sequence_length: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return packed latents, prompt embeddings, pooled embeddings and text ids, all on the pipeline's device."""
    vae = pipeline.vae
    pixels = torch.stack([_pixels(image.path) for image in images]).to(vae.device, vae.dtype)
    latents = vae.encode(pixels).latent_dist.mode()
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    latents = pipeline._pack_latents(latents, *latents.shape)
    embeds, pooled, text_ids = pipeline.encode_prompt(
        [image.caption for image in images], prompt_2=None, max_sequence_length=max_sequence_length
    )
    return latents, embeds, pooled, text_ids


def _pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        values = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)
