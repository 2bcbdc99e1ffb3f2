"""The generator on the bundled model: seeds, LoRAs, warmth, progress, stops."""

import gc

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from isengard.domain.job import Phase
from isengard.engines.lora_format import convert
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.engines.pipelines.preview import picture
from isengard.errors import JobCancelled, LoraRefused, OutOfMemory
from tests.engines.demo_model import FOLDER, MODEL, SPEC, Reports, lora_weights, write_lora


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
def lora(tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "mira.safetensors")


@pytest.fixture
def make(generator, tmp_path):
    def made(*loras, report=None, spec=SPEC, **changes):
        images = generator.generate(
            spec=spec.model_copy(update=changes),
            prompt=spec.prompt,
            model=MODEL,
            loras=loras,
            preview=tmp_path / "preview.png",
            report=Reports() if report is None else report,
        )
        return [np.asarray(image.image) for image in images]

    return made


def same(one, other):
    return np.array_equal(one, other)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(make):
    (first,), (again,), (other,) = make(), make(), make(seed=6)
    assert same(first, again)
    assert not same(first, other)


def test_an_image_does_not_depend_on_how_many_are_made(make):
    three = make(count=3, seed=5)
    (second,) = make(seed=6)
    assert same(three[1], second)


def test_a_lora_changes_the_image_and_leaves_no_trace(make, lora):
    (before,), (with_lora,), (after,) = make(), make(lora), make()
    assert not same(before, with_lora)
    assert same(before, after)


def test_plain_diffusers_loads_the_file_and_makes_the_same_pixels(make, lora):
    (ours,) = make(lora)
    pipeline = FluxPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name)
    theirs = pipeline(
        SPEC.prompt,
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=3.5,
        max_sequence_length=MODEL.card.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]
    assert same(ours, np.asarray(theirs))


def test_two_loras_add_up_with_their_strengths(make, lora, tmp_path):
    other = write_lora(tmp_path / "other.safetensors", lora_weights(seed=1))
    half = lora.model_copy(update={"strength": 0.5})
    (one,), (both,), (weaker,) = make(lora), make(lora, other), make(half, other)
    (back,) = make(lora)
    (without,) = make(half.model_copy(update={"strength": 0.0}))
    assert not same(one, both)
    assert not same(both, weaker)
    assert same(one, back)
    assert same(without, make()[0])


def test_a_second_request_loads_nothing(make, lora):
    make(lora)
    reports = Reports()
    make(lora, report=reports)
    assert {progress.phase for progress in reports} == {Phase.GENERATING}


def test_a_generator_says_which_model_it_holds(make, generator):
    make()
    assert (generator.warm, PipelineGenerator(device=torch.device("cpu")).warm) == (MODEL.card.name, "")


def test_an_unchanged_lora_is_kept_and_a_changed_file_is_read_again(generator, make, tmp_path):
    lora = write_lora(tmp_path / "lora.safetensors")
    (first,) = make(lora)
    loads = generator._loaded.adapters.loads
    make(lora)
    assert generator._loaded.adapters.loads == loads
    write_lora(lora.path, lora_weights(seed=9, rank=3))
    (second,) = make(lora)
    assert generator._loaded.adapters.loads == loads + 1
    assert not same(first, second)


def test_a_kohya_file_makes_the_same_image(make, lora, tmp_path):
    path = tmp_path / "kohya.safetensors"
    convert(lora.path, path, kohya=True)
    (ours,), (theirs,) = make(lora), make(lora.model_copy(update={"path": path}))
    assert same(ours, theirs)


def test_progress_counts_all_steps_of_all_images(make):
    make()
    reports = Reports()
    make(report=reports, count=2)
    assert [progress.step for progress in reports] == [1, 2, 3, 4, 5, 6]
    assert {progress.total for progress in reports} == {6}
    assert (reports[-1].eta_s, reports[-1].message) == (0, "image 2 of 2")
    assert reports[0].memory_bytes > 0


def test_a_preview_resembles_the_image(make, tmp_path):
    reports = Reports()
    (image,) = make(report=reports, num_inference_steps=8)
    assert reports[-1].preview == "preview.png"
    with Image.open(tmp_path / "preview.png") as picture_file:
        preview = picture_file.convert("RGB").resize((8, 8))
    small = Image.fromarray(image).resize((8, 8))
    assert np.abs(np.asarray(preview, float) - np.asarray(small, float)).mean() < 30
    assert list(tmp_path.iterdir()) == [tmp_path / "preview.png"]


def test_a_stop_between_steps_leaves_the_pipeline_usable(make):
    make()
    reports = Reports(JobCancelled(), lambda progress: progress.step == 2)
    with pytest.raises(JobCancelled):
        make(report=reports)
    assert len(reports) == 2
    assert same(make()[0], make()[0])


def test_a_stop_while_loading_keeps_nothing_and_names_the_parts(tmp_path):
    generator = PipelineGenerator(device=torch.device("cpu"))
    reports = Reports(JobCancelled(), lambda progress: progress.step == 2)
    with pytest.raises(JobCancelled):
        next(
            generator.generate(
                spec=SPEC, prompt="a", model=MODEL, loras=(), preview=tmp_path / "p.png", report=reports
            )
        )
    assert [progress.message for progress in reports][:2] == ["loading scheduler", "loading tokenizer"]
    assert generator._loaded is None


def test_fewer_modules_than_the_file_has_is_refused(generator, make, lora, tmp_path):
    (before,) = make()
    weights = lora_weights()
    tail = {
        key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value
        for key, value in weights.items()
    }
    assert len(tail) == len(weights)
    adapters = generator._loaded.adapters
    adapters._denoiser = Deaf(adapters._denoiser)
    try:
        with pytest.raises(LoraRefused, match="adapted 0 modules of Demo, but its file has"):
            make(write_lora(tmp_path / "deaf.safetensors", lora_weights(seed=2)))
    finally:
        adapters._denoiser = adapters._denoiser.denoiser
    assert same(make()[0], before)


class Deaf:
    """A denoiser that loads no LoRA and says nothing, as diffusers does with keys it does not know."""

    def __init__(self, denoiser):
        self.denoiser = denoiser

    def __getattr__(self, name):
        return getattr(self.denoiser, name)

    def load_lora_adapter(self, *args, **kwargs):
        pass


def test_a_lora_whose_file_is_gone_is_refused(make, lora, tmp_path):
    with pytest.raises(LoraRefused, match="cannot be read"):
        make(lora.model_copy(update={"path": tmp_path / "gone.safetensors"}))


def test_too_large_an_image_is_told_in_plain_words(make):
    def greedy(progress):
        if progress.phase is Phase.GENERATING:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemory, match="64 x 64 pixels is too large here"):
        make(report=greedy)


def test_a_wide_preview_keeps_its_shape():
    factors = torch.zeros(17, 3)
    assert picture(torch.zeros(1, 16, 8, 32), factors).size == (256, 64)
    assert picture(torch.zeros(1, 16, 8, 512), factors).size == (512, 8)
