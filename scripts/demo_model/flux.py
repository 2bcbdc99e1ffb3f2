"""The text encoders and the transformer, trained together by flow matching; then guidance, distilled into the embedding."""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from scripts.demo_model.data import Drawings
from scripts.demo_model.stage import Ema, Stage, batch_of, in_bfloat16, set_lr
from scripts.demo_model.words import CLIP_LENGTH, T5_LENGTH, caption, clip_tokenizer, t5_tokenizer

#: Tokens along each side of the image: 128 pixels / 8 by the autoencoder / 2 by packing.
SIDE = 8
GUIDANCE = (1.0, 5.0)
COMPILE_STEPS = 200
#: As in the schedules of SD3 and FLUX: 2 puts the middle of the times at two thirds.
NOISE_SHIFT = 2.0


@dataclass(frozen=True)
class Recipe:
    steps: int = 4500
    batch: int = 64
    muon_lr: float = 2e-3
    adam_lr: float = 1.5e-3
    warmup: int = 200
    cooldown: float = 0.25
    """Share of the steps, at the end, in which the learning rate falls to zero."""
    ema_decay: float = 0.998
    finish_steps: int = 700
    """After ``steps``, with more noise: what the first denoising steps decide, such as the background, is learned here."""
    finish_lr: float = 0.5
    """Of the rates above."""
    distill_steps: int = 300
    distill_lr: float = 5e-4


class Painter(nn.Module):
    """What is trained: both text encoders and the transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.t5_words, self.clip_words = t5_tokenizer(), clip_tokenizer()
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.t5_words),
                d_model=128,
                d_kv=32,
                d_ff=256,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                is_encoder_decoder=False,
                use_cache=False,
            )
        )
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.clip_words),
                hidden_size=128,
                intermediate_size=256,
                projection_dim=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CLIP_LENGTH,
                bos_token_id=self.clip_words.bos_token_id,
                eos_token_id=self.clip_words.eos_token_id,
                pad_token_id=self.clip_words.pad_token_id,
            )
        )
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=3,
            num_single_layers=6,
            attention_head_dim=32,
            num_attention_heads=6,
            joint_attention_dim=128,
            pooled_projection_dim=128,
            guidance_embeds=True,
            axes_dims_rope=(4, 14, 14),
        )
        # Each block begins as the identity, and the velocity at zero.
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Linear) and (
                name.endswith("norm.linear") or "norm1" in name or name == "proj_out"
            ):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def encode(self, captions: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Embeddings (n, T5_LENGTH, 128) and pooled embeddings (n, 128), as FluxPipeline computes them."""
        t5 = self.t5_words(
            list(captions), padding="max_length", max_length=T5_LENGTH, truncation=True, return_tensors="pt"
        )
        # CLIP looks backwards only: what is padded after the end token changes nothing.
        clip = self.clip_words(
            list(captions), padding="longest", max_length=CLIP_LENGTH, truncation=True, return_tensors="pt"
        )
        embeddings = self.t5(t5.input_ids.to(device)).last_hidden_state
        return embeddings, self.clip(clip.input_ids.to(device)).pooler_output


def pack(latents: Tensor) -> Tensor:
    """(n, 16, 16, 16) to (n, 64 tokens, 64), as FluxPipeline packs them."""
    n, channels, height, width = latents.shape
    blocks = latents.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(n, height * width // 4, channels * 4)


def predict(
    transformer: nn.Module, noisy: Tensor, time: Tensor, guidance: Tensor, text: tuple[Tensor, Tensor]
) -> Tensor:
    """The velocity, in float32."""
    device = noisy.device
    image_ids = torch.zeros(SIDE, SIDE, 3, device=device)
    image_ids[..., 1] += torch.arange(SIDE, device=device)[:, None]
    image_ids[..., 2] += torch.arange(SIDE, device=device)[None, :]
    with in_bfloat16(device):
        velocity = transformer(
            hidden_states=noisy,
            encoder_hidden_states=text[0],
            pooled_projections=text[1],
            timestep=time,
            guidance=guidance,
            img_ids=image_ids.reshape(-1, 3),
            txt_ids=torch.zeros(text[0].shape[1], 3, device=device),
            return_dict=False,
        )[0]
    return velocity.float()


@dataclass(frozen=True)
class Batch:
    clean: Tensor
    noise: Tensor
    time: Tensor
    captions: Sequence[str]
    generator: torch.Generator

    @property
    def noisy(self) -> Tensor:
        time = self.time[:, None, None]
        return (1 - time) * self.clean + time * self.noise


class Batches:
    """Latents with captions made up anew each time; a pure function of the step."""

    def __init__(self, drawings: Drawings, latents: Tensor, size: int, device: torch.device) -> None:
        """``latents`` are scaled already: mean 0, deviation 1."""
        self._drawings, self._latents, self._size, self._device = drawings, latents, size, device

    def __call__(self, step: int, seed: int, *, noisier: bool = False) -> Batch:
        """``noisier``: times are spread evenly and then shifted towards 1; else logit-normal, seldom near 0 or 1."""
        indices, generator = batch_of(step, seed, len(self._drawings), self._size)
        clean = pack(self._latents[indices].float()).to(self._device)
        noise = torch.randn(clean.shape, generator=generator).to(self._device)
        if noisier:
            time = torch.rand(len(indices), generator=generator)
            time = NOISE_SHIFT * time / (1 + (NOISE_SHIFT - 1) * time)
        else:
            time = torch.sigmoid(torch.randn(len(indices), generator=generator))
        rng = random.Random(seed * 10_000_000 + step)  # noqa: S311  # not for secrets
        portraits = [self._drawings.portraits[index] for index in indices.tolist()]
        captions = [caption(each.person, each.look, rng) for each in portraits]
        return Batch(clean, noise, time.to(self._device), captions, generator)


class Optimizers:
    """Muon for the matrices inside the blocks, AdamW for all else."""

    def __init__(self, painter: Painter, recipe: Recipe) -> None:
        inside = {
            id(parameter)
            for name, parameter in painter.named_parameters()
            if parameter.ndim == 2
            and ("blocks" in name or "encoder.block" in name or "encoder.layers" in name)
        }
        matrices = [each for each in painter.parameters() if id(each) in inside]
        others = [each for each in painter.parameters() if id(each) not in inside]
        self._all = (
            torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, factor: float) -> None:
        for optimizer in self._all:
            set_lr(optimizer, factor)
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> Any:
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, state: Any) -> None:
        for optimizer, saved in zip(self._all, state, strict=True):
            optimizer.load_state_dict(saved)


def train(batches: Batches, folder: Path, recipe: Recipe, device: torch.device) -> Painter:
    """Return the averaged model, trained at guidance 1."""
    torch.manual_seed(0)
    painter = Painter().to(device)
    steps = partial(_trapezoid, recipe=recipe)
    draw = partial(batches, seed=2)
    return _fit("transformer", painter, draw, steps, folder, recipe.steps, recipe, device)


def finish(painter: Painter, batches: Batches, folder: Path, recipe: Recipe, device: torch.device) -> Painter:
    """Go on with noisier pictures, the rate falling to zero; return the averaged model."""

    def rate(number: int) -> float:
        return recipe.finish_lr * min(1.0, (number + 1) / 50) * (1 - number / recipe.finish_steps)

    draw = partial(batches, seed=4, noisier=True)
    return _fit("finish", painter.train(), draw, rate, folder, recipe.finish_steps, recipe, device)


def _fit(
    name: str,
    painter: Painter,
    draw: Callable[[int], Batch],
    rate: Callable[[int], float],
    folder: Path,
    steps: int,
    recipe: Recipe,
    device: torch.device,
) -> Painter:
    optimizers, ema = Optimizers(painter, recipe), Ema(painter, min(recipe.ema_decay, 1 - 7 / steps))

    def step(number: int) -> Mapping[str, Tensor]:
        batch = draw(number)
        with in_bfloat16(device):
            text = painter.encode(batch.captions, device)
        velocity = predict(compiled, batch.noisy, batch.time, torch.ones_like(batch.time), text)
        loss = functional.mse_loss(velocity, batch.noise - batch.clean)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(painter.parameters(), 1.0)
        optimizers.step(rate(number))
        ema.update()
        return {"loss": loss.detach(), "norm": norm}

    with fast_attention(device):
        compiled = _compiled(painter.transformer, steps)
        Stage(name, folder, steps).run({"painter": painter, "optimizers": optimizers, "ema": ema}, step)
    ema.copy_to(painter)
    return painter.eval()


def distill(
    painter: Painter, batches: Batches, folder: Path, recipe: Recipe, device: torch.device
) -> Painter:
    """Teach the guidance embedding what classifier-free guidance does, so that one pass per step is enough."""
    teacher = painter.requires_grad_(False)
    student = Painter().to(device)
    student.load_state_dict(teacher.state_dict())
    student.t5.requires_grad_(False)
    student.clip.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.transformer.parameters(), lr=recipe.distill_lr, weight_decay=0.0)
    ema = Ema(student.transformer, 0.99)
    steps = recipe.distill_steps

    def step(number: int) -> Mapping[str, Tensor]:
        batch = batches(number, seed=3, noisier=True)
        guidance = torch.empty(len(batch.time)).uniform_(*GUIDANCE, generator=batch.generator).to(device)
        ones = torch.ones_like(guidance)
        with torch.no_grad():
            text = teacher.encode(batch.captions, device)
            empty = tuple(
                each.expand(len(guidance), *each.shape[1:]) for each in teacher.encode([""], device)
            )
            given = predict(guide, batch.noisy, batch.time, ones, text)
            free = predict(
                guide, batch.noisy, batch.time, ones, (empty[0].contiguous(), empty[1].contiguous())
            )
            target = free + guidance[:, None, None] * (given - free)
        velocity = predict(compiled, batch.noisy, batch.time, guidance, text)
        loss = functional.mse_loss(velocity, target)
        loss.backward()
        nn.utils.clip_grad_norm_(student.transformer.parameters(), 1.0)
        set_lr(optimizer, min(1.0, (number + 1) / 50) * (1 - number / steps))
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        return {"loss": loss.detach()}

    with fast_attention(device):
        guide = _compiled(teacher.transformer, steps)
        compiled = _compiled(student.transformer, steps)
        Stage("guidance", folder, steps).run({"painter": student, "optimizer": optimizer, "ema": ema}, step)
    ema.copy_to(student.transformer)
    return student.eval()


def _trapezoid(step: int, recipe: Recipe) -> float:
    left = (recipe.steps - step) / (recipe.steps * recipe.cooldown)
    return min(1.0, (step + 1) / recipe.warmup, left)


def _compiled(transformer: nn.Module, steps: int) -> nn.Module:
    """Compiled where there is a compiler and the minute it takes is worth it: half of a step's time on a CPU."""
    return torch.compile(transformer) if steps > COMPILE_STEPS and shutil.which("g++") else transformer


@contextmanager
def fast_attention(device: torch.device) -> Iterator[None]:
    """On a CPU plain matrix products: the fused attention of torch takes a third of a step for its backward pass there."""
    if device.type != "cpu":
        yield
        return
    fused = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    **_: Any,
) -> Tensor:
    # A division here would be recognised by torch.compile, and replaced by the fused attention again.
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), float("-inf"))
    if attn_mask is not None:
        scores = (
            scores.masked_fill(~attn_mask, float("-inf"))
            if attn_mask.dtype is torch.bool
            else scores + attn_mask
        )
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
