"""What every test needs."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from isengard.domain.model import Family, LocalModel, ModelCard
from isengard.domain.training import TrainingImage, TrainingSpec
from isengard.logs import LIBRARIES
from isengard.settings import ASSETS
from tests.pictures import picture

AI_TOOLKIT = "ISENGARD_AI_TOOLKIT"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of AI-Toolkit run only where a checkout of it is named."""
    if os.environ.get(AI_TOOLKIT):  # noqa: TID251  # says what is tested, not how the app is set
        return
    left_out = [item for item in items if item.get_closest_marker("aitoolkit")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not os.environ.get(AI_TOOLKIT):  # noqa: TID251
        terminalreporter.write_line(f"tests of AI-Toolkit are left out: {AI_TOOLKIT} names no checkout of it")


@pytest.fixture(scope="session")
def ai_toolkit_checkout() -> Path:
    """The checkout that the tests marked ``aitoolkit`` are about."""
    return Path(os.environ[AI_TOOLKIT])  # noqa: TID251


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command under test configures the logging of the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    classes = {name: logging.getLogger(name).__class__ for name in LIBRARIES}
    yield
    logging.captureWarnings(capture=False)
    for handler in [entry for entry in root.handlers if entry not in handlers]:
        root.removeHandler(handler)
        if type(handler).__module__ == "isengard.logs":
            handler.close()
    root.setLevel(level)
    for name, kind in classes.items():
        logging.getLogger(name).__class__ = kind


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a transformer of one block of each kind and random weights, in diffusers' layout."""
    import torch
    from diffusers import FluxTransformer2DModel

    folder = tmp_path_factory.mktemp("tiny-flux")
    for entry in (ASSETS / "demo-base").iterdir():
        if entry.name != "transformer":
            (folder / entry.name).symlink_to(entry)
    shipped = FluxTransformer2DModel.load_config(ASSETS / "demo-base" / "transformer")
    smaller = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "axes_dims_rope": (4, 6, 6),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel.from_config(shipped | smaller)
    transformer.save_pretrained(folder / "transformer")
    return folder


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
