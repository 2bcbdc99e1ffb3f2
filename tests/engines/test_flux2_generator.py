"""FLUX.2 [klein] in the generator: previews, and what is told to a distilled model."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from isengard.domain.generation import ImageSpec
from isengard.engines.native.flux2 import Flux2Adapter
from isengard.engines.pipelines.families import family_of
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.engines.pipelines.preview import fit_factors, picture
from tests.engines.demo_model import Reports

CPU = torch.device("cpu")
SPEC = ImageSpec(
    base_model="tiny-flux2",
    prompt="a portrait",
    width=96,
    height=64,
    num_inference_steps=3,
    guidance_scale=4,
    seed=5,
)


class Clock:
    """One second later at each look."""

    now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


@pytest.fixture(scope="module")
def generator():
    made = PipelineGenerator(device=CPU, clock=Clock())
    yield made
    made.unload()
    gc.collect()


@pytest.fixture
def make(generator, tiny_flux2_model, tmp_path):
    def made(*, model=tiny_flux2_model, report=None, **changes):
        images = generator.generate(
            spec=SPEC.model_copy(update=changes),
            prompt=SPEC.prompt,
            model=model,
            loras=(),
            preview=tmp_path / "preview.png",
            report=Reports() if report is None else report,
        )
        return [np.asarray(image.image) for image in images]

    return made


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(make):
    (first, second), (again,), (other,) = make(count=2), make(), make(seed=6)
    assert first.shape == (64, 96, 3)
    assert np.array_equal(first, again)
    assert np.array_equal(second, other)
    assert not np.array_equal(first, other)


def test_a_distilled_model_ignores_the_guidance_scale(make, tiny_flux2_model):
    card = tiny_flux2_model.card.model_copy(update={"trains": False})
    distilled = tiny_flux2_model.model_copy(update={"card": card})
    assert not np.array_equal(make(guidance_scale=4)[0], make(guidance_scale=1)[0])
    assert np.array_equal(
        make(model=distilled, guidance_scale=4)[0], make(model=distilled, guidance_scale=1)[0]
    )


def test_a_preview_has_the_shape_of_the_image(make, tmp_path):
    reports = Reports()
    make(report=reports)
    assert reports[-1].preview == "preview.png"
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.size == (256, 171)


def test_the_preview_sees_the_latents_that_the_vae_gave(generator, make, tiny_flux2_model):
    make()
    loaded = generator._loaded
    pixels = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    packed = Flux2Adapter(tiny_flux2_model, device=CPU).encode_image(pixels)[None]
    unpacked = family_of(tiny_flux2_model.card).unpack(loaded.pipeline, packed, 64, 96)
    with torch.no_grad():
        latents = loaded.pipeline.vae.encode(pixels[None]).latent_dist.mode()
    torch.testing.assert_close(unpacked, latents)
    assert picture(unpacked, fit_factors(loaded.pipeline.vae)).size == (256, 171)
