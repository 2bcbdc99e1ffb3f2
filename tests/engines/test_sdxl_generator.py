"""SDXL in the generator and the verifier, on a tiny model."""

import gc

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import save_file

from isengard.domain.generation import ImageSpec, LocalLora
from isengard.engines.lora_format import convert
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.engines.pipelines.verifier import PipelineVerifier
from isengard.errors import LoraRefused, VerificationFailed
from tests.engines.demo_model import MODEL as FLUX
from tests.engines.demo_model import Reports
from tests.engines.demo_model import write_lora as write_flux_lora

SPEC = ImageSpec(
    base_model="tiny-sdxl",
    prompt="a portrait",
    width=96,
    height=64,
    num_inference_steps=4,
    guidance_scale=5,
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
    made = PipelineGenerator(device=torch.device("cpu"), clock=Clock())
    yield made
    made.unload()
    gc.collect()


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl):
    made = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def weights(pipeline):
    """A LoRA of every linear layer in the attention blocks."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, module in pipeline.unet.named_modules():
        if isinstance(module, torch.nn.Linear) and ".attentions." in name:
            made[f"unet.{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator)
            made[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator)
    return made


@pytest.fixture
def lora(weights, tmp_path):
    return written(tmp_path / "mira.safetensors", weights)


def written(path, weights):
    save_file(weights, path)
    return LocalLora(id=path.stem, name=path.stem, path=path)


@pytest.fixture
def make(generator, tiny_sdxl_model, tmp_path):
    def made(*loras, model=tiny_sdxl_model, report=None, **changes):
        images = generator.generate(
            spec=SPEC.model_copy(update=changes),
            prompt=SPEC.prompt,
            model=model,
            loras=loras,
            preview=tmp_path / "preview.png",
            report=Reports() if report is None else report,
        )
        return [np.asarray(image.image) for image in images]

    return made


def same(one, other):
    return np.array_equal(one, other)


def theirs(pipeline):
    seed = torch.Generator("cpu").manual_seed(5)
    made = pipeline(
        "a portrait", width=96, height=64, num_inference_steps=4, guidance_scale=5, generator=seed
    )
    return np.asarray(made.images[0])


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(make):
    (first, second), (again,), (other,) = make(count=2), make(), make(seed=6)
    assert first.shape == (64, 96, 3)
    assert same(first, again)
    assert same(second, other)
    assert not same(first, other)


def test_plain_diffusers_loads_the_file_and_makes_the_same_pixels(make, lora, pipeline):
    (before,), (ours,), (after,) = make(), make(lora), make()
    assert same(before, after)
    assert same(before, theirs(pipeline))
    pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name)
    try:
        assert same(ours, theirs(pipeline))
    finally:
        pipeline.unload_lora_weights()
    assert not same(ours, before)


def test_a_prompt_is_guided_away_from_nothing(make):
    assert not same(make(guidance_scale=1)[0], make(guidance_scale=5)[0])


def test_a_preview_has_the_shape_of_the_image(make, tmp_path):
    reports = Reports()
    make(report=reports)
    assert reports[-1].preview == "preview.png"
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.size == (256, 171)


def test_a_kohya_file_with_either_names_makes_the_same_image(make, lora, weights, tmp_path):
    original, flat = tmp_path / "original.safetensors", tmp_path / "flat.safetensors"
    convert(lora.path, original, kohya=True)
    renamed = {
        "lora_unet_" + key.removeprefix("unet.").rsplit(".lora_", 1)[0].replace(".", "_")
        + (".lora_down.weight" if "lora_A" in key else ".lora_up.weight"): value
        for key, value in weights.items()
    }  # fmt: skip
    save_file(renamed, flat)
    (ours,) = make(lora)
    for path in (original, flat):
        assert same(ours, make(lora.model_copy(update={"path": path}))[0])


def test_plain_diffusers_loads_the_kohya_file_too(make, lora, pipeline, tmp_path):
    convert(lora.path, tmp_path / "kohya.safetensors", kohya=True)
    pipeline.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    try:
        assert same(make(lora)[0], theirs(pipeline))
    finally:
        pipeline.unload_lora_weights()


def test_a_lora_in_the_older_layout_of_diffusers_makes_the_same_image(make, lora, weights, tmp_path):
    older = {
        key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): value
        for key, value in weights.items()
    }
    assert same(make(lora)[0], make(written(tmp_path / "older.safetensors", older))[0])


def test_a_lora_of_flux_is_refused_and_the_other_way_round(make, lora, tmp_path):
    (before,) = make()
    flux = write_flux_lora(tmp_path / "flux.safetensors")
    with pytest.raises(LoraRefused, match="'flux' does not fit Tiny SDXL: it changes a transformer"):
        make(lora, flux)
    assert same(make()[0], before)
    with pytest.raises(
        LoraRefused, match="'mira' does not fit Demo: it changes a unet and this model has a tr"
    ):
        make(lora, model=FLUX)


def test_a_lora_of_a_layer_that_is_not_there_is_refused(make, weights, tmp_path):
    other = {key.replace("blocks.1.", "blocks.9."): value for key, value in weights.items()}
    with pytest.raises(LoraRefused, match=r"Tiny SDXL: the model has no layer 'down_blocks\.9"):
        make(written(tmp_path / "other.safetensors", other))


def test_a_lora_of_convolutions_is_refused(make, tmp_path):
    name = "lora_unet_input_blocks_1_0_in_layers_2"
    file = {
        f"{name}.lora_down.weight": torch.ones(2, 8, 3, 3),
        f"{name}.lora_up.weight": torch.ones(8, 2, 1, 1),
    }
    with pytest.raises(LoraRefused, match="it also changes convolutions"):
        make(written(tmp_path / "locon.safetensors", file))


def test_the_verifier_passes_a_good_lora_and_tells_one_of_zeros(
    generator, tiny_sdxl_model, weights, tmp_path
):
    def verify(name, content):
        return PipelineVerifier(generator=generator).verify(
            model=tiny_sdxl_model, lora=written(tmp_path / f"{name}.safetensors", content), prompt="a portrait",
            out_dir=tmp_path / name, resolution=64, steps=2, report=Reports(),
        )  # fmt: skip

    found = verify("good", weights)
    assert found.modules == len(weights) // 2
    assert found.delta_norm > 0
    assert found.image_difference > 0
    with pytest.raises(VerificationFailed, match="every weight delta of the LoRA is zero"):
        verify("zeros", {key: value * ("lora_A" in key) for key, value in weights.items()})
