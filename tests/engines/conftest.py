"""Real FLUX pipelines small enough for a test."""

from pathlib import Path

import pytest

from isengard.domain.model import Family, LocalModel, ModelCard
from isengard.domain.training import TrainingImage, TrainingSpec
from tests.engines.pictures import picture

ASSETS = Path(__file__).parents[2] / "isengard" / "assets"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> LocalModel:
    """The demo model with a transformer of one block of each kind and random weights."""
    import torch
    from diffusers import FluxTransformer2DModel

    folder = tmp_path_factory.mktemp("tiny-flux")
    for entry in (ASSETS / "demo-base").iterdir():
        if entry.name != "transformer":
            (folder / entry.name).symlink_to(entry)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=128,
            pooled_projection_dim=64,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    transformer.save_pretrained(folder / "transformer")
    card = ModelCard(
        name="tiny",
        title="Tiny FLUX",
        family=Family.FLUX,
        path=folder,
        licence="none",
        licence_url="https://example.org",
        resolutions=(64,),
        num_inference_steps=2,
        guidance_scale=3.5,
        max_sequence_length=16,
        train_memory_gb=0.1,
        generate_memory_gb=0.1,
    )
    return LocalModel(card=card, path=folder)


@pytest.fixture
def training_images(tmp_path) -> list[TrainingImage]:
    """Nine pictures of coloured noise, each with its own caption."""
    return [picture(tmp_path / f"{number}.png", number) for number in range(9)]


@pytest.fixture(scope="session")
def training_spec() -> TrainingSpec:
    """Six steps on the tiny model, with everything switched on that a step can do."""
    return TrainingSpec(
        character="mira",
        base_model="tiny",
        trigger="ohwx",
        steps=6,
        batch_size=2,
        rank=4,
        alpha=2,
        targets="all_linear",
        learning_rate=1e-2,
        precision="fp32",
        resolutions=(64,),
        caption_dropout=0.2,
        ema_decay=0.9,
        lr_scheduler="cosine",
        lr_warmup_steps=1,
        save_every=2,
        validate_every=3,
        sample_every=3,
        sample_prompts=("a portrait of [trigger]",),
        sample_resolution=64,
        sample_steps=2,
    )
