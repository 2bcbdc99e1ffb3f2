"""Real trainings small enough for a test."""

from pathlib import Path

import pytest

from isengard.domain.model import Family, LocalModel, ModelCard
from isengard.domain.training import TrainingImage, TrainingSpec
from tests.engines.pictures import picture


@pytest.fixture(scope="session")
def tiny_model(tiny_flux: Path) -> LocalModel:
    """The tiny FLUX with its card."""
    card = ModelCard(
        name="tiny",
        title="Tiny FLUX",
        family=Family.FLUX,
        path=tiny_flux,
        licence="none",
        licence_url="https://example.org",
        resolutions=(64,),
        num_inference_steps=2,
        guidance_scale=3.5,
        max_sequence_length=16,
        train_memory_gb=0.1,
        generate_memory_gb=0.1,
    )
    return LocalModel(card=card, path=tiny_flux)


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
