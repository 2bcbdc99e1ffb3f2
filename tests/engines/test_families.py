"""Every family from its shipped card to an image: located, trained, verified, used, and read by plain diffusers."""

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from isengard.domain.generation import LocalLora
from isengard.domain.job import JobKind, Phase, Requests
from isengard.domain.model import Family
from isengard.domain.performance import Quantization
from isengard.engines.lora_format import convert
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.flux2 import Flux2Adapter
from isengard.engines.native.sdxl import SdxlAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.equipment import equip
from isengard.errors import JobYielded, LoraRefused
from isengard.settings import Settings
from isengard.wiring import build
from tests.tiny_hub import random_lora, save_tiny_hub

CPU = torch.device("cpu")
ADAPTERS = {Family.FLUX: FluxAdapter, Family.FLUX2: Flux2Adapter, Family.SDXL: SdxlAdapter}
PIPELINES = {
    Family.FLUX: FluxPipeline,
    Family.FLUX2: Flux2KleinPipeline,
    Family.SDXL: StableDiffusionXLPipeline,
}
TRAINABLE = ["flux2-klein-base-4b", "flux1-dev", "flux1-schnell", "sdxl"]
#: Small and short enough for a tiny model; what else a training needs comes from the card and the preset.
SMALL = {
    "steps": 4, "batch_size": 2, "rank": 4, "alpha": 4, "learning_rate": 1e-2, "precision": "fp32",
    "resolutions": [64], "save_every": 4, "validate_every": 0, "sample_every": 0, "sample_resolution": 64,
    "sample_steps": 2, "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def large_card(tmp_path_factory):
    """The page and the planner believe in it; the work is done on the CPU."""
    tool = tmp_path_factory.mktemp("driver") / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 1024, 81920, 9.0, 1, 35'\n")
    tool.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tool.parent}:/bin:/usr/bin")
        yield


@pytest.fixture(scope="module")
def app(tmp_path_factory, tiny_flux, tiny_sdxl, large_card):
    """The shipped configuration with tiny weights in the models folder, and a character; a machine with a large card."""
    data = tmp_path_factory.mktemp("families")
    app = build(Settings(data_dir=data, device="auto"))
    save_tiny_hub(app.settings.models_dir, flux=tiny_flux, sdxl=tiny_sdxl)
    app.characters.create("Mira", trigger="ohwx")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"[trigger] [class], picture {number}")
    assert len(list(app.characters.add_files("mira", sorted(data.glob("?.*"))))) == 2
    return app


@pytest.fixture(scope="module")
def handlers(app):
    return equip(app.settings.model_copy(update={"device": "cpu"}), app).handlers


@pytest.fixture(scope="module")
def train(app, tmp_path_factory):
    """Train on a shipped card with the trainer alone."""
    folder = tmp_path_factory.mktemp("runs")

    def trained(name, run, *, report=lambda _progress: Requests(), **changes):
        card = app.catalog.model(name)
        spec = app.training.plan(
            character_id="mira", base_model=name, preset="quick",
            overrides=SMALL | {"engine": "native"} | changes,
        )  # fmt: skip
        (folder / f"{name}-{run}").mkdir(exist_ok=True)
        return NativeTrainer(adapters=ADAPTERS, device=CPU).train(
            spec=spec,
            model=app.weights.locate_to_train(card),
            images=[
                image.under(app.settings.characters_dir) for image in app.characters.training_images("mira")
            ],
            run_dir=folder / f"{name}-{run}",
            cache_dir=folder / "cache",
            report=report,
        )

    return trained


def pixels(image):
    return np.asarray(image)


def generate(app, name, *loras, tmp_path, prompt="ohwx at sea"):
    """An image of four steps, by the generator."""
    spec = app.images.plan(
        overrides={
            "base_model": name,
            "prompt": prompt,
            "width": 64,
            "height": 64,
            "num_inference_steps": 4,
            "seed": 3,
        }
    )
    (made,) = PipelineGenerator(device=CPU).generate(
        spec=spec,
        prompt=prompt,
        model=app.weights.locate(app.catalog.model(name)),
        loras=[LocalLora(id=path.stem, name=path.stem, path=path) for path in loras],
        preview=tmp_path / "preview.png",
        report=lambda _progress: Requests(),
    )
    return pixels(made.image)


def plain_diffusers(app, name, lora=None, *, prompt="ohwx at sea"):
    """The same image, by the pipeline as its documentation shows it."""
    card = app.catalog.model(name)
    pipeline = PIPELINES[card.family].from_pretrained(app.weights.locate(card).path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    length = {} if card.family is Family.SDXL else {"max_sequence_length": card.max_sequence_length}
    made = pipeline(
        prompt=prompt, width=64, height=64, num_inference_steps=4, guidance_scale=card.guidance_scale,
        generator=torch.Generator().manual_seed(3), **length,
    )  # fmt: skip
    return pixels(made.images[0])


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_training_lowers_the_loss_and_leaves_the_base_as_it_was(app, train, name, monkeypatch):
    kept = []
    adapter = ADAPTERS[app.catalog.model(name).family]
    load = adapter.load_denoiser
    monkeypatch.setattr(
        adapter, "load_denoiser", lambda self, **options: kept.append(load(self, **options)) or kept[-1]
    )
    losses = dict(
        train(name, "loss", steps=8, learning_rate=2e-2, save_every=8, validate_every=8).validation_losses
    )
    assert losses[8] < losses[0]
    after = {key.replace(".base_layer", ""): value for key, value in kept[0].state_dict().items()}
    before = load(
        adapter(app.weights.locate(app.catalog.model(name)), device=CPU),
        dtype=torch.float32,
        quantization=Quantization.NONE,
    )
    assert all(torch.equal(value, after[key]) for key, value in before.state_dict().items())


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_resumed_training_ends_as_one_without_a_break(train, name):
    def stop(progress):
        if progress.phase is Phase.TRAINING and progress.step == 3:
            raise JobYielded
        return Requests()

    straight = load_file(train(name, "straight").path)
    with pytest.raises(JobYielded):
        train(name, "broken", report=stop)
    resumed = load_file(train(name, "broken").path)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


@pytest.mark.parametrize("name", TRAINABLE)
def test_plain_diffusers_makes_the_same_image_with_our_lora(app, train, name, tmp_path):
    lora = train(name, "straight").path
    user = app.catalog.model(name).generates_with or name
    ours = generate(app, user, lora, tmp_path=tmp_path)
    assert np.array_equal(ours, plain_diffusers(app, user, lora))
    assert not np.array_equal(ours, generate(app, user, tmp_path=tmp_path))


def test_the_base_of_flux2_is_guided_and_its_distilled_partner_is_not(app, tmp_path):
    for name in ("flux2-klein-base-4b", "flux2-klein-4b"):
        assert np.array_equal(generate(app, name, tmp_path=tmp_path), plain_diffusers(app, name))
    base, partner = (app.catalog.model(name) for name in ("flux2-klein-base-4b", "flux2-klein-4b"))
    assert (base.generates_with, base.trainable, partner.trainable) == (partner.name, True, False)


def test_a_lora_of_the_flux2_base_is_proved_on_the_base_and_used_with_its_partner(app, handlers):
    submitted = app.training.submit(
        character_id="mira", base_model="flux2-klein-base-4b", preset="quick", overrides=SMALL
    )
    done = handlers[JobKind.TRAIN_LORA](submitted, lambda _progress: Requests())
    assert done["verification"]["image_difference"] > 0
    spec = app.images.plan(
        overrides={"prompt": "[trigger]", "loras": [{"lora": submitted.id}], "width": 64, "height": 64}
    )
    assert (spec.base_model, spec.num_inference_steps, spec.guidance_scale) == ("flux2-klein-4b", 4, 1)
    made = handlers[JobKind.GENERATE_IMAGES](app.images.submit(spec), lambda _progress: Requests())
    assert len(made["images"]) == 1


@pytest.mark.parametrize("name", ["flux2-klein-4b", "flux1-dev", "sdxl"])
def test_a_lora_of_others_is_read_by_its_original_names(app, name, tmp_path):
    adapter = ADAPTERS[app.catalog.model(name).family](
        app.weights.locate(app.catalog.model(name)), device=CPU
    )
    denoiser = adapter.load_denoiser(dtype=torch.float32, quantization=Quantization.NONE)
    component = adapter.lora_key("").rstrip(".")
    weights = {
        key: value
        for key, value in random_lora(denoiser, component).items()
        if component == "transformer" or ".attentions." in key
    }
    ours, kohya, dotted = (tmp_path / f"{kind}.safetensors" for kind in ("ours", "kohya", "dotted"))
    save_file(weights, ours)
    convert(ours, kohya, kohya=True)
    save_file(
        {key.replace("lora_unet_", "diffusion_model."): value for key, value in load_file(kohya).items()},
        dotted,
    )
    wanted = generate(app, name, ours, tmp_path=tmp_path)
    assert not np.array_equal(wanted, generate(app, name, tmp_path=tmp_path))
    for path in (kohya, dotted):
        difference = np.abs(generate(app, name, path, tmp_path=tmp_path).astype(int) - wanted)
        assert difference.max() <= 1, path.name  # fused layers add up in another order


def test_a_lora_of_flux1_is_refused_by_flux2_with_the_layer_that_is_missing(app, train, tmp_path):
    lora = train("flux1-dev", "straight").path
    with pytest.raises(LoraRefused, match=r"does not fit FLUX\.2 \[klein\] 4B: the model has no layer"):
        generate(app, "flux2-klein-4b", lora, tmp_path=tmp_path)
