"""Images of a FLUX.1-dev with random weights and a LoRA: through our own generator, and as diffusers documents it."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from safetensors.torch import save_file
from transformers import CLIPTokenizer, T5TokenizerFast

from benchmarks.gpu_cases import IMAGE_STEPS, OURS, PROMPT_TOKENS, Case, Measured
from benchmarks.random_flux import Shape, autoencoder, held, text_encoders, transformer
from isengard.domain.generation import ImageSpec, LocalLora
from isengard.domain.job import Progress, Requests
from isengard.domain.model import LocalModel
from isengard.domain.performance import GenerationPlan, Offload
from isengard.engines.base import Report
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.engines.pipelines.loading import LoadedPipeline, assembled
from isengard.settings import ASSETS, ROOT
from isengard.store.configs import Catalog

PROMPT = "a portrait photo of ohwx woman in a garden"
RANK = 16
#: Images that are timed, after one that is not.
IMAGES = 3


def measure(case: Case, *, side: int, shape: Shape, device: torch.device) -> Measured:
    """Make images of 28 steps with a LoRA on a warm pipeline; then change the LoRA.

    Raises:
        IsengardError: the setting cannot be used here.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = _ours if case.by == OURS else _as_documented
    with tempfile.TemporaryDirectory() as folder:
        loras = [
            _random_lora(Path(folder) / f"{name}.safetensors", shape, seed) for seed, name in enumerate("ab")
        ]
        first_s, seconds, swap_s = run(case, side=side, shape=shape, device=device, loras=loras)
    return Measured(
        side=side,
        seconds=seconds,
        first_s=first_s,
        swap_s=swap_s,
        peak_bytes=int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0,
    )


def _ours(
    case: Case, *, side: int, shape: Shape, device: torch.device, loras: list[Path]
) -> tuple[float, float, float]:
    card = (
        Catalog(ROOT / "configs").model("flux1-dev").model_copy(update={"max_sequence_length": PROMPT_TOKENS})
    )
    plan = GenerationPlan.model_validate(case.settings)

    def load(
        model: LocalModel, device: torch.device, *, plan: GenerationPlan, report: Report
    ) -> LoadedPipeline:
        del report  # nothing takes long
        streamed = shape.layers + shape.single_layers if plan.offload is Offload.BLOCKS else 0
        denoiser = held(
            transformer(shape, device),
            quantization=plan.quantization,
            streamed_blocks=streamed,
            device=device,
        )
        return assembled(model, _parts(denoiser, shape, device), plan=plan, device=device)

    generator = PipelineGenerator(device=device, plan=lambda _card, _spec: plan, load=load)
    spec = ImageSpec(
        base_model=card.name,
        prompt=PROMPT,
        width=side,
        height=side,
        num_inference_steps=IMAGE_STEPS,
        cache=case.cache,
    )
    model = LocalModel(card=card, path=ASSETS / "demo-base")

    def make(lora: Path, seed: int) -> float:
        began = time.perf_counter()
        local = LocalLora(id=lora.stem, name=lora.stem, path=lora)
        list(
            generator.generate(
                spec=spec.model_copy(update={"seed": seed}),
                prompt=PROMPT,
                model=model,
                loras=[local],
                preview=lora.with_suffix(".png"),
                report=_nothing,
            )
        )
        return time.perf_counter() - began

    return _timed(make, loras)


def _as_documented(
    case: Case, *, side: int, shape: Shape, device: torch.device, loras: list[Path]
) -> tuple[float, float, float]:
    del case
    pipeline = FluxPipeline(**_parts(transformer(shape, device), shape, device)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    held_lora: Path | None = None

    def make(lora: Path, seed: int) -> float:
        nonlocal held_lora
        began = time.perf_counter()
        if lora != held_lora:
            pipeline.unload_lora_weights()
            pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
            held_lora = lora
        pipeline(
            PROMPT, width=side, height=side, num_inference_steps=IMAGE_STEPS, guidance_scale=3.5,
            max_sequence_length=PROMPT_TOKENS, generator=torch.Generator("cpu").manual_seed(seed),
        )  # fmt: skip
        return time.perf_counter() - began

    return _timed(make, loras)


def _timed(make: Any, loras: list[Path]) -> tuple[float, float, float]:
    """Seconds of the first image, of each later one, and what a change of the LoRA adds. The image ends on the CPU."""
    first_s = make(loras[0], 0)
    seconds = sum(make(loras[0], seed) for seed in range(1, IMAGES + 1)) / IMAGES
    make(loras[1], 0)  # the second LoRA once, so that nothing is made anew for its shapes
    return first_s, seconds, max(make(loras[0], 1) - seconds, 0.0)


def _parts(denoiser: Any, shape: Shape, device: torch.device) -> dict[str, Any]:
    """A pipeline's components: everything of FLUX.1-dev's size when the transformer is."""
    small = shape != Shape()
    demo = ASSETS / "demo-base"
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(demo / "scheduler"),
        "tokenizer": CLIPTokenizer.from_pretrained(demo / "tokenizer"),
        "tokenizer_2": T5TokenizerFast.from_pretrained(demo / "tokenizer_2"),
        **text_encoders(device, small=small),
        "vae": autoencoder(device, small=small),
        "transformer": denoiser,
    }


def _random_lora(path: Path, shape: Shape, seed: int) -> Path:
    """A LoRA of rank 16 on every attention layer, in diffusers' format."""
    width = shape.heads * 128
    generator = torch.Generator().manual_seed(seed)
    double = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    names = [f"transformer_blocks.{block}.attn.{name}" for block in range(shape.layers) for name in double]
    names += [
        f"single_transformer_blocks.{block}.attn.{name}"
        for block in range(shape.single_layers)
        for name in double[:3]
    ]
    tensors = {}
    for name in names:
        tensors[f"transformer.{name}.lora_A.weight"] = (
            torch.randn(RANK, width, generator=generator) / width**0.5
        )
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(width, RANK, generator=generator) * 1e-3
    save_file(tensors, path)
    return path


def _nothing(_: Progress) -> Requests:
    return Requests()
