"""What every test needs."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from isengard.logs import LIBRARIES
from isengard.settings import ASSETS


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
    return folder
