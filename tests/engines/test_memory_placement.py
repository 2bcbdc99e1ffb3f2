"""Where the parts of a model are, in training and while images are made, and that all is freed after an error."""

import gc

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from isengard.domain.job import Phase, Requests
from isengard.domain.model import Family
from isengard.domain.performance import GenerationPlan, Offload, TextEncoders
from isengard.domain.training import TrainingSpec
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.sdxl import SdxlAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.errors import InvalidSpec, JobCancelled, OutOfMemory
from tests.engines.demo_model import MODEL, SPEC, Reports, write_lora

CPU = torch.device("cpu")
ADAPTERS = {"tiny_model": FluxAdapter, "tiny_sdxl_model": SdxlAdapter}


def generator(**plan):
    return PipelineGenerator(device=CPU, plan=lambda _card, _spec: GenerationPlan(**plan))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")

    def made(generator, *loras, model=MODEL, **changes):
        spec = SPEC.model_copy(update=changes)
        images = generator.generate(
            spec=spec, prompt=spec.prompt, model=model, loras=loras, preview=folder / "preview.png",
            report=Reports(),
        )  # fmt: skip
        return np.stack([np.asarray(image.image, dtype=np.float32) for image in images])

    return made


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "mira.safetensors")


@pytest.fixture(scope="module")
def plain_pictures(picture, lora):
    plain = generator()
    return [picture(plain, *loras, count=2) for loras in ([], [lora])]


@pytest.mark.parametrize(
    "plan",
    [
        {"offload": Offload.MODEL},
        {"offload": Offload.BLOCKS},
        {"offload": Offload.BLOCKS, "text_encoders": TextEncoders.CPU, "vae_tiling": True},
        {"text_encoders": TextEncoders.CPU},
    ],
)
def test_another_placement_makes_the_same_pixels_with_and_without_a_lora(picture, lora, plain_pictures, plan):
    placed = generator(**plan)
    without, adapted = plain_pictures
    for loras, expected in (([], without), ([lora], adapted), ([], without)):
        assert np.array_equal(picture(placed, *loras, count=2), expected)


@pytest.mark.parametrize("model", list(ADAPTERS))
@pytest.mark.parametrize("offload", [Offload.NONE, Offload.BLOCKS])
def test_text_encoders_in_8_bits_hardly_change_the_image(request, picture, model, offload):
    model = request.getfixturevalue(model)
    plain = picture(generator(), model=model)
    placed = picture(generator(text_encoders=TextEncoders.INT8, offload=offload), model=model)
    assert 0 <= np.abs(plain - placed).mean() < 4


def test_a_tiled_vae_is_asked_for_by_the_plan(picture):
    tiled, plain = generator(vae_tiling=True), generator()
    picture(tiled)
    picture(plain)
    assert (tiled._loaded.pipeline.vae.use_tiling, tiled._loaded.pipeline.vae.use_slicing) == (True, True)
    assert not plain._loaded.pipeline.vae.use_tiling


def test_loading_tells_of_each_tensor_and_can_be_stopped_there(tmp_path):
    seen = []

    def report(progress):
        seen.append(progress.message)
        if "transformer, 50 %" in progress.message:
            raise JobCancelled
        return Requests()

    with pytest.raises(JobCancelled):
        list(
            generator().generate(
                spec=SPEC, prompt="", model=MODEL, loras=[], preview=tmp_path / "p.png", report=report
            )
        )
    assert len([message for message in seen if "transformer" in message]) > 90


@pytest.mark.parametrize("model", list(ADAPTERS))
def test_prompts_are_encoded_on_the_cpu_or_in_8_bits_nearly_alike(request, model):
    local = request.getfixturevalue(model)
    embeds = {
        placement: ADAPTERS[model](local, device=CPU, text_encoders=placement).encode_prompt("a knight")
        for placement in TextEncoders
    }
    for name, tensor in embeds[TextEncoders.DEVICE].items():
        assert torch.equal(embeds[TextEncoders.CPU][name], tensor)
        error = (embeds[TextEncoders.INT8][name] - tensor).norm() / tensor.norm()
        assert 0 < error < 0.02


@pytest.mark.parametrize("model", list(ADAPTERS))
def test_cached_embeddings_are_told_apart_where_they_differ(request, model):
    def marks(placement, device="cuda"):
        local = request.getfixturevalue(model)
        return ADAPTERS[model](local, device=torch.device(device), text_encoders=placement).marks()

    assert len({marks(placement)["text"] for placement in TextEncoders}) == 3
    assert len({marks(placement)["vae"] for placement in TextEncoders}) == 1
    assert marks(TextEncoders.CPU, "cpu") == marks(TextEncoders.DEVICE, "cpu")


def alive(*kinds):
    """Identities of all parts of these kinds that exist."""
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if issubclass(type(thing), kinds)}


@pytest.fixture
def train(tiny_model, training_images, training_spec, tmp_path):
    def run(adapter=FluxAdapter, report=lambda _progress: Requests(), **changes):
        short = {"steps": 1, "validate_every": 0, "sample_every": 0, "lr_warmup_steps": 0}
        return NativeTrainer(adapters={Family.FLUX: adapter}, device=CPU).train(
            spec=TrainingSpec.model_validate({**training_spec.model_dump(), **short, **changes}),
            model=tiny_model, images=training_images[:2], run_dir=tmp_path, cache_dir=tmp_path / "cache",
            report=report,
        )  # fmt: skip

    return run


def test_no_encoder_is_alive_when_the_denoiser_is_loaded(train):
    encoders = (T5EncoderModel, CLIPTextModel, AutoencoderKL)
    before, left = alive(*encoders), []

    class Watched(FluxAdapter):
        def encode_image(self, pixels):
            latents = super().encode_image(pixels)
            left.append(len(alive(*encoders) - before))
            return latents

        def load_denoiser(self, **options):
            left.append(len(alive(*encoders) - before))
            return super().load_denoiser(**options)

    train(Watched)
    assert left == [3, 3, 0]


def test_loading_a_denoiser_for_training_can_be_stopped_between_two_tensors(train):
    seen = []

    def report(progress):
        if progress.phase is Phase.LOADING and progress.total:
            seen.append(progress.step)
            if progress.step == 5:
                raise JobCancelled
        return Requests()

    with pytest.raises(JobCancelled):
        train(report=report)
    assert seen == [0, 1, 2, 3, 4, 5]


def no_memory(*_args, **_kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_after_a_training_without_enough_memory_no_model_is_left_and_a_smaller_one_works(train, monkeypatch):
    before = alive(FluxTransformer2DModel)
    with monkeypatch.context() as patch:
        patch.setattr("isengard.engines.native.state.loss_weights", no_memory)
        with pytest.raises(OutOfMemory) as caught:
            train()
        assert caught.value.code == "out_of_memory"
        assert alive(FluxTransformer2DModel) == before  # while the error is still being handled
    assert train(batch_size=1).steps == 1


def test_after_an_image_without_enough_memory_no_model_is_left_and_a_smaller_one_works(picture, monkeypatch):
    before = alive(FluxTransformer2DModel)
    maker = generator()
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKL, "decode", no_memory)
        with pytest.raises(OutOfMemory, match="choose a smaller size"):
            picture(maker)
        assert alive(FluxTransformer2DModel) == before
    assert picture(maker).any()


def test_streaming_needs_gradient_checkpoints_and_no_compiled_blocks(training_spec):
    fields = training_spec.model_dump() | {"streamed_blocks": 1}
    for wrong in ({}, {"gradient_checkpointing": True, "compile": True}):
        with pytest.raises(
            ValueError, match=r"streamed_blocks \(1\) needs gradient_checkpointing on and compile off"
        ):
            TrainingSpec.model_validate(fields | wrong)
    assert TrainingSpec.model_validate(fields | {"gradient_checkpointing": True}).streamed_blocks == 1


def test_more_streamed_blocks_than_the_model_has_are_refused_by_the_trainer(train):
    with pytest.raises(InvalidSpec, match="this model has 2 blocks"):
        train(streamed_blocks=3, gradient_checkpointing=True)
