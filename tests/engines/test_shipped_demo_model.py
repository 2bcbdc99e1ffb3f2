"""The demo model and the figure encoder as they ship: that they load as any FLUX does, listen, and tell people apart."""

import logging
import warnings

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from isengard.domain.identity import ScorerKind, gain, largest, similarity
from isengard.settings import ASSETS
from isengard.wiring import open_scorer
from scripts.demo_model.draw import BACKGROUNDS
from scripts.demo_model.examples import EXAMPLES
from scripts.demo_model.painting import load, paint

FOLDER = ASSETS / "demo-base"
GUIDANCE = 3.0


def pictures(name):
    found = []
    for path in sorted((ASSETS / "characters" / name).glob("*.png")):
        with Image.open(path) as opened:
            found.append(opened.convert("RGB"))
    return found


@pytest.fixture(scope="module")
def scorer():
    return open_scorer(ScorerKind.DRAWN_FIGURES)


def test_weights_and_tokenizers_are_small():
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    assert size < 30e6
    assert (ASSETS / "figure-encoder.safetensors").stat().st_size < 1.5e6


def test_the_pipeline_loads_without_a_warning(caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        pipe = FluxPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    assert [record.message for record in caplog.records] == []
    assert type(pipe).__name__ == "FluxPipeline"
    assert pipe.transformer.config.guidance_embeds
    assert pipe.vae.config.latent_channels == 16


@pytest.mark.slow
def test_backgrounds_follow_the_prompt():
    """Each of the ten colours, seen in the upper corners; the report has the shares of all attributes."""
    prompts = [f"a portrait of a person, {name} background" for name in BACKGROUNDS]
    images = paint(load(FOLDER, torch.device("cpu")), prompts, seed=1, guidance=GUIDANCE)
    known = np.array(
        [[int(color[start : start + 2], 16) for start in (1, 3, 5)] for color in BACKGROUNDS.values()]
    )
    corners = np.concatenate([images[:, 2:14, 2:14], images[:, 2:14, -14:-2]], axis=1).reshape(
        len(prompts), -1, 3
    )
    seen = np.abs(np.median(corners, axis=1)[:, None] - known[None]).sum(-1).argmin(1)
    assert (seen == np.arange(len(prompts))).sum() >= 9


def test_the_encoder_tells_the_examples_apart(scorer):
    names = [example.name.lower() for example in EXAMPLES if example.name != "Odin"]
    embedded = {name: largest(scorer.find(pictures(name))) for name in names}
    for name, own in embedded.items():
        (other,) = (each for key, each in embedded.items() if key != name)
        for place, one in enumerate(own):
            rest = [each for number, each in enumerate(own) if number != place]
            assert similarity(one, rest) > similarity(one, other) + 0.3
    found = gain(references=embedded["nova"], before=embedded["marisol"], after=embedded["nova"])
    assert found.share > 0.95


def test_embeddings_are_of_unit_length_at_any_size(scorer):
    small, large = pictures("nova")[0], pictures("nova")[0].resize((512, 512))
    one, other = largest(scorer.find([small, large.convert("L").convert("RGB")]))
    assert len(one) == 64
    assert similarity(one, [one]) == pytest.approx(1, abs=1e-4)
    assert similarity(other, [other]) == pytest.approx(1, abs=1e-4)
