"""Training steps on a FLUX.1-dev of random weights: through our own trainer, and in a plain loop."""

import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor

from benchmarks.gpu_cases import AI_TOOLKIT, OURS, PROMPT_TOKENS, Case, Measured
from benchmarks.random_flux import CLIP_WIDTH, T5_WIDTH, Shape, build, enlarged, held, transformer
from benchmarks.task import ATTENTION, example_images
from isengard.domain.job import Phase, Progress, Requests
from isengard.domain.model import Family, LocalModel
from isengard.domain.performance import TextEncoders
from isengard.domain.training import TrainingSpec
from isengard.engines.base import LoraTrainer
from isengard.engines.loading import Held
from isengard.engines.native.adapter import PromptEmbeds
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.settings import ASSETS, ROOT, Settings
from isengard.store.configs import Catalog

#: Steps before the clock starts: allocators, autotuning, compilation.
WARM_UP = 4


class RandomFlux(FluxAdapter):
    """FLUX.1 whose transformer, latents and prompts are random: everything else is the real one."""

    def __init__(
        self,
        model: LocalModel,
        *,
        device: torch.device,
        text_encoders: TextEncoders = TextEncoders.DEVICE,
        shape: Shape,
    ) -> None:
        super().__init__(model, device=device, text_encoders=text_encoders)
        self._shape, self._place = shape, device

    def marks(self) -> Mapping[str, str]:
        return {"vae": "random", "text": "random"}

    def encode_image(self, pixels: Tensor) -> Tensor:
        return torch.randn(self.tokens(width=pixels.shape[2], height=pixels.shape[1]), 64)

    def encode_prompt(self, prompt: str) -> PromptEmbeds:  # noqa: ARG002 - part of the protocol
        return {
            "prompt_embeds": torch.randn(PROMPT_TOKENS, T5_WIDTH, dtype=torch.bfloat16),
            "pooled_prompt_embeds": torch.randn(CLIP_WIDTH, dtype=torch.bfloat16),
        }

    def load_denoiser(self, **how: Unpack[Held]) -> torch.nn.Module:
        network: torch.nn.Module = held(
            transformer(self._shape, self._place),
            quantization=how["quantization"],
            streamed_blocks=how["streamed_blocks"] or 0,
            device=self._place,
        )
        return network


def measure(case: Case, *, side: int, steps: int, shape: Shape, device: torch.device) -> Measured:
    """Train ``steps`` steps of one image after the warm-up, rank 16 on attention.

    Raises:
        IsengardError: the setting cannot be used here.
    """
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = {OURS: _ours, AI_TOOLKIT: _ai_toolkit}.get(case.by, _plain)
    began = time.perf_counter()
    marks = run(case.settings, side=side, steps=WARM_UP + steps, shape=shape, device=device)
    return Measured(
        side=side,
        seconds=(marks[-1] - marks[WARM_UP]) / steps,
        first_s=marks[1] - began,
        peak_bytes=int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0,
    )


def _ours(
    settings: Mapping[str, Any], *, side: int, steps: int, shape: Shape, device: torch.device
) -> list[float]:
    trainer = NativeTrainer(
        adapters={Family.FLUX: partial(RandomFlux, shape=shape)},
        device=device,
    )
    return _through(trainer, settings, side=side, steps=steps, folder=ASSETS / "demo-base", device=device)


def _ai_toolkit(
    settings: Mapping[str, Any], *, side: int, steps: int, shape: Shape, device: torch.device
) -> list[float]:
    """It loads its models from files only, so the transformer is saved first: 24 GB at full size."""
    from isengard.engines.ai_toolkit.trainer import AIToolkitTrainer

    if (
        device.type == "cpu"
    ):  # where the benchmark is only tried out, and AI-Toolkit's 8-bit optimizer does not run
        settings = {**settings, "optimizer": "adamw"}

    trainer = AIToolkitTrainer(
        checkout=Settings.load().ai_toolkit_dir, adapters={Family.FLUX: FluxAdapter}, device=device
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        build(folder, shape)
        return _through(trainer, settings, side=side, steps=steps, folder=folder, device=device)


def _through(
    trainer: LoraTrainer,
    settings: Mapping[str, Any],
    *,
    side: int,
    steps: int,
    folder: Path,
    device: torch.device,
) -> list[float]:
    """The times before the first and after each step of a whole training, which saves once, at its end."""
    card = Catalog(ROOT / "configs").model("flux1-dev")
    spec = TrainingSpec(
        character="nova", base_model=card.name, trigger="ohwx", steps=steps, rank=16, alpha=16, targets="attention",
        resolutions=(side,), save_every=steps, validate_every=0, sample_every=0, **settings,
    )  # fmt: skip
    marks: list[float] = []

    def report(progress: Progress) -> Requests:
        if progress.phase is Phase.TRAINING and progress.step == len(marks):
            _wait(device, at_the_ends=progress.step in (WARM_UP, steps))
            marks.append(time.perf_counter())
        return Requests()

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "images").mkdir()
        trainer.train(
            spec=spec,
            model=LocalModel(card=card, path=folder),
            images=enlarged(example_images()[:2], work / "images", side=side),
            run_dir=work / "run",
            cache_dir=work / "cache",
            report=report,
        )
    return marks


def _plain(
    settings: Mapping[str, Any], *, side: int, steps: int, shape: Shape, device: torch.device
) -> list[float]:
    """A loop as the textbooks write it: bf16 autocast, AdamW, the loss read at each step."""
    network: FluxTransformer2DModel = transformer(shape, device).train()
    network.add_adapter(
        LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=ATTENTION)
    )
    if settings.get("gradient_checkpointing"):
        network.enable_gradient_checkpointing()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    tokens = (side // 16) ** 2
    clean = torch.randn(1, tokens, 64, device=device, dtype=torch.bfloat16)
    embeds = torch.randn(1, PROMPT_TOKENS, T5_WIDTH, device=device, dtype=torch.bfloat16)
    pooled = torch.randn(1, CLIP_WIDTH, device=device, dtype=torch.bfloat16)
    text_ids, image_ids = (torch.zeros(count, 3, device=device) for count in (PROMPT_TOKENS, tokens))
    marks = [time.perf_counter()]
    for step in range(1, steps + 1):
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(1, device=device))
        with torch.autocast(device.type, torch.bfloat16):
            predicted = network(
                hidden_states=((1 - sigma) * clean + sigma * noise).to(clean.dtype), timestep=sigma,
                guidance=torch.ones_like(sigma), pooled_projections=pooled, encoder_hidden_states=embeds,
                txt_ids=text_ids, img_ids=image_ids, return_dict=False,
            )[0]  # fmt: skip
        loss = torch.nn.functional.mse_loss(predicted.float(), (noise - clean).float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        _wait(device, at_the_ends=step in (WARM_UP, steps))
        marks.append(time.perf_counter())
    return marks


def _wait(device: torch.device, *, at_the_ends: bool) -> None:
    """Let the device finish before the clock is read at the two ends of what is timed, and not between them."""
    if at_the_ends and device.type == "cuda":
        torch.cuda.synchronize(device)
