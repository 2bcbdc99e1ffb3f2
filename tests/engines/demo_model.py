"""The bundled base model and LoRAs for it."""

from pathlib import Path

import torch
from safetensors import safe_open

from isengard.domain.generation import ImageSpec, LocalLora
from isengard.domain.job import Requests
from isengard.domain.model import Family, LocalModel, ModelCard
from isengard.domain.training import TrainingSpec
from isengard.engines.lora_format import save_lora
from isengard.handlers.likeness import Likenesses
from isengard.services.characters import CharacterService
from isengard.services.likeness import LikenessService
from isengard.settings import ROOT
from isengard.store.characters import CharacterStore

FOLDER = ROOT / "isengard" / "assets" / "demo-base"
CARD = ModelCard(
    name="demo",
    title="Demo",
    family=Family.FLUX,
    path=Path("demo-base"),
    licence="Apache-2.0",
    licence_url="https://example.org",
    resolutions=(128,),
    num_inference_steps=20,
    guidance_scale=3,
    max_sequence_length=40,
)
MODEL = LocalModel(card=CARD, path=FOLDER)
#: Small enough to be quick, large enough for the pipeline.
SPEC = ImageSpec(
    base_model="demo",
    prompt="a portrait",
    width=64,
    height=64,
    num_inference_steps=3,
    guidance_scale=3.5,
    seed=5,
)
TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "proj_out")


def lora_weights(*, seed=0, scale=0.3, rank=2):
    """Random weights for all attention layers of the demo model."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    with safe_open(FOLDER / "transformer" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        for key in sorted(file.keys()):
            module = key.removesuffix(".weight")
            if module.endswith(TARGETS) and "." in module:
                height, width = file.get_slice(key).get_shape()
                weights[f"transformer.{module}.lora_A.weight"] = (
                    torch.randn(rank, width, generator=generator) * scale
                )
                weights[f"transformer.{module}.lora_B.weight"] = (
                    torch.randn(height, rank, generator=generator) * scale
                )
    return weights


def write_lora(path, weights=None, *, strength=1.0):
    """A LoRA file of ours, and the reference a generator takes."""
    save_lora(
        path,
        lora_weights() if weights is None else weights,
        spec=TrainingSpec(character="mira", base_model="demo", trigger="ohwx", rank=2),
        card=CARD,
        step=1,
        image_count=1,
        created_at=0.0,
    )
    return LocalLora(id=path.stem, name=path.stem, path=path, trigger="ohwx", strength=strength)


def likenesses(folder, loras, scorers):
    """What measures images, with the characters of a folder."""
    store = CharacterStore(characters_dir=folder / "characters", trash_dir=folder / "trash" / "characters")
    characters = CharacterService(store=store)
    return Likenesses(
        likeness=LikenessService(characters=characters, scorers=scorers, cache_dir=folder / "sightings"),
        characters=characters,
        loras=loras,
        runs_dir=folder / "runs",
    )


class Reports(list):
    """Collects progress; raises ``stop`` at the report for which ``when`` is true."""

    def __init__(self, stop=None, when=lambda progress: True):
        self.stop, self.when = stop, when

    def __call__(self, progress):
        self.append(progress)
        if self.stop and self.when(progress):
            raise self.stop
        return Requests()
