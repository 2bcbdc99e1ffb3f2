"""A folder whose weights are pickles: nothing in them is ever run."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from isengard.engines.native.parts import load_vae
from isengard.engines.pipelines.loading import _load_part
from isengard.settings import ASSETS

DEMO = ASSETS / "demo-base"


class Program:
    """A pickle of it makes a file when it is opened."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


@pytest.fixture
def model(tmp_path):
    """A VAE and a text encoder, with a program in the place of their weights."""
    for part, old, new in (
        ("vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
    ):
        shutil.copytree(DEMO / part, tmp_path / "model" / part, ignore=shutil.ignore_patterns(old))
        torch.save({"weight": Program(tmp_path / "it-ran")}, tmp_path / "model" / part / new)
    return tmp_path / "model"


def test_a_vae_that_is_a_pickle_is_not_opened(model):
    with pytest.raises(OSError, match="safetensors"):
        load_vae(AutoencoderKL, model, dtype=torch.float32, device=torch.device("cpu"))
    assert not (model.parent / "it-ran").exists()


@pytest.mark.parametrize(("kind", "part"), [(AutoencoderKL, "vae"), (CLIPTextModel, "text_encoder")])
def test_a_part_that_is_a_pickle_is_not_opened(model, kind, part):
    with pytest.raises(OSError, match="safetensors"):
        _load_part(kind, model / part, torch.float32)
    assert not (model.parent / "it-ran").exists()


def test_a_pickle_under_the_name_of_safetensors_is_not_opened(model):
    weights = model / "vae" / "diffusion_pytorch_model.bin"
    weights.rename(weights.with_suffix(".safetensors"))
    with pytest.raises(Exception, match=r"(?i)header|safetensors"):
        load_vae(AutoencoderKL, model, dtype=torch.float32, device=torch.device("cpu"))
    assert not (model.parent / "it-ran").exists()
