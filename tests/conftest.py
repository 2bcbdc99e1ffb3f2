"""What every test needs."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from isengard.domain.model import Family, LocalModel, ModelCard
from isengard.domain.training import TrainingImage, TrainingSpec
from isengard.logs import LIBRARIES, TALKATIVE, show_again
from isengard.settings import ASSETS
from tests.clock import Clock
from tests.pictures import picture

AI_TOOLKIT = "ISENGARD_AI_TOOLKIT"
# How long an example takes says more of the machine's other work than of the code.
hypothesis.settings.register_profile(
    "isengard", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("isengard")
IMPORTED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-seed", action="append", type=int, help="another course of the chaos test; several"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "chaos_seed" in metafunc.fixturenames:
        metafunc.parametrize("chaos_seed", metafunc.config.getoption("--chaos-seed") or [5])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The slow tests go first: one that begins last would be waited for by all others.

    Tests of AI-Toolkit run only where a checkout of it is named.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if os.environ.get(AI_TOOLKIT):  # noqa: TID251  # says what is tested, not how the app is set
        return
    left_out = [item for item in items if item.get_closest_marker("aitoolkit")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is imported stays: without it a full collection, of which a training makes several, takes 0.3 s less."""
    if len(sys.modules) > item.config.stash.get(IMPORTED, 0):
        item.config.stash[IMPORTED] = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not os.environ.get(AI_TOOLKIT):  # noqa: TID251
        terminalreporter.write_line(f"tests of AI-Toolkit are left out: {AI_TOOLKIT} names no checkout of it")


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
    levels = {name: logging.getLogger(name).level for name in TALKATIVE}
    yield
    show_again()
    logging.captureWarnings(capture=False)
    for handler in [entry for entry in root.handlers if entry not in handlers]:
        root.removeHandler(handler)
        if type(handler).__module__ == "isengard.logs":
            handler.close()
    root.setLevel(level)
    for name, former in levels.items():
        logging.getLogger(name).setLevel(former)
    for name, kind in classes.items():
        logging.getLogger(name).__class__ = kind


@pytest.fixture
def unmeasured_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that the test starts keep no record of the lines they run, which takes a quarter of their time."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


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
    )
    return LocalModel(card=card, path=tiny_flux)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL's parts, a few channels wide with random weights, in diffusers' layout. The UNet has SDXL's own blocks."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "demo-base" / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "text_encoder": CLIPTextModel(text),
            "text_encoder_2": CLIPTextModelWithProjection(text),
            "vae": AutoencoderKL(
                block_out_channels=(4, 4, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=2,
                latent_channels=4,
                scaling_factor=0.13025,
            ),
            "unet": UNet2DConditionModel(
                sample_size=8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(8, 16, 16),
                transformer_layers_per_block=(1, 2, 1),
                attention_head_dim=(1, 2, 2),
                norm_num_groups=4,
                cross_attention_dim=32,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 16,
            ),
        }
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    folder = tmp_path_factory.mktemp("tiny-sdxl")
    StableDiffusionXLPipeline(
        **parts, scheduler=scheduler, tokenizer=tokenizer, tokenizer_2=tokenizer
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl_model(tiny_sdxl: Path, tiny_model: LocalModel) -> LocalModel:
    """The tiny SDXL with its card."""
    changes = {
        "name": "tiny-sdxl", "title": "Tiny SDXL", "family": Family.SDXL, "path": tiny_sdxl, "guidance_scale": 5,
    }  # fmt: skip
    return LocalModel(card=tiny_model.card.model_copy(update=changes), path=tiny_sdxl)


@pytest.fixture(scope="session")
def tiny_flux2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.2 [klein]'s parts, a few channels wide with random weights, in diffusers' layout."""
    from tests.tiny_flux2 import save_tiny_flux2

    folder = tmp_path_factory.mktemp("tiny-flux2")
    save_tiny_flux2(folder, distilled=False)
    return folder


@pytest.fixture(scope="session")
def tiny_flux2_model(tiny_flux2: Path, tiny_model: LocalModel) -> LocalModel:
    """The tiny FLUX.2 with its card."""
    changes = {
        "name": "tiny-flux2", "title": "Tiny FLUX.2", "family": Family.FLUX2, "path": tiny_flux2,
        "guidance_scale": 4, "max_sequence_length": 24,
    }  # fmt: skip
    return LocalModel(card=tiny_model.card.model_copy(update=changes), path=tiny_flux2)


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
