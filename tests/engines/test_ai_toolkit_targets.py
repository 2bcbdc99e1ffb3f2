"""The words that choose layers in AI-Toolkit choose those that our own engine trains."""

import re

import pytest
import torch
from diffusers import FluxTransformer2DModel

from isengard.domain.ai_toolkit import TARGET_WORDS
from isengard.domain.model import Family
from isengard.domain.training import TARGETS
from isengard.engines.native.flux import FluxAdapter


@pytest.mark.parametrize("targets", TARGETS)
def test_the_same_layers_of_flux_are_adapted(tiny_flux, tiny_model, targets):
    transformer = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    pattern = FluxAdapter(tiny_model, device=torch.device("cpu")).target_pattern(targets)
    ours = [name for name in linear if re.fullmatch(pattern, name)]
    # As AI-Toolkit does: only inside the blocks, and any of the words in the name with its prefix.
    words = TARGET_WORDS[Family.FLUX][targets]
    theirs = [
        name
        for name in linear
        if "transformer_blocks" in name and any(word in f"transformer.{name}" for word in words)
    ]
    assert theirs == ours
    assert ours
