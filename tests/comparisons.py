"""A drawn character on the tiny FLUX, with checkpoints that were never trained."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from isengard.domain.training import TrainingSpec
from isengard.engines.lora_format import save_lora
from isengard.services.examples import example
from isengard.settings import ASSETS
from isengard.wiring import Application, build
from tests.engines.demo_model import CARD
from tests.tiny_app import tiny_settings

PROMPTS = ("[trigger] smiling", "[trigger] sad", "[trigger] at sunset", "[trigger] on a beach")
#: A small comparison.
FEW: dict[str, Any] = {"strengths": (1.0,), "prompts": PROMPTS, "seeds": (3, 4), "num_inference_steps": 2}


def drawn_app(folder: Path, model: Path) -> Application:
    """With the drawn character ``marisol``."""
    made = build(tiny_settings(folder, model))
    example(made.characters, ASSETS / "characters" / "marisol")
    record = made.settings.characters_dir / "marisol" / "character.json"
    record.write_text(record.read_text().replace('"scorer": null', '"scorer": "drawn_figures"'))
    return made


def write_checkpoints(folder: Path, model: Path, *, steps: tuple[int, ...]) -> Path:
    spec = TrainingSpec(character="marisol", base_model="tiny", trigger="sks", rank=2)
    for step in steps:
        path = folder / f"step-{step:08d}" / "lora.safetensors"
        path.parent.mkdir(parents=True)
        weights = _random_lora(model, seed=step)
        save_lora(path, weights, spec=spec, card=CARD, step=step, image_count=9, created_at=0.0)
    return folder


def new_run(app: Application, checkpoints: Path) -> str:
    """A training of marisol that was cancelled, and has left these checkpoints."""
    job = app.training.submit(character_id="marisol", base_model="tiny", preset="quick", overrides={})
    app.jobs.cancel(job.id)
    shutil.copytree(checkpoints, app.settings.runs_dir / job.id / "checkpoints")
    return job.id


def _random_lora(model: Path, *, seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    weights = {}
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    with safe_open(file, framework="pt") as tensors:
        for key in sorted(tensors.keys()):
            module = key.removesuffix(".weight")
            if module.endswith(("attn.to_q", "attn.to_v")):
                height, width = tensors.get_slice(key).get_shape()
                for letter, shape in (("A", (2, width)), ("B", (height, 2))):
                    name = f"transformer.{module}.lora_{letter}.weight"
                    weights[name] = torch.randn(shape, generator=random)
    return weights
