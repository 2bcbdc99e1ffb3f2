"""What makes generation faster, beside the plain path: hot swap, compiled blocks, batches, caches, kept embeddings.

Tolerance: pixels of 0..255 differ by at most 1, where nothing smaller is said. Step caches are approximations: what is
tested of them is that they skip, and that nothing of them stays.
"""

import gc
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxPipeline
from torch._dynamo.utils import counters

from isengard.domain.generation import ImageSpec, LocalLora
from isengard.domain.job import Phase
from isengard.domain.model import LocalModel
from isengard.domain.performance import Attention, GenerationPlan, StepCache, TextEncoders
from isengard.domain.training import TrainingSpec
from isengard.engines.lora_format import save_lora
from isengard.engines.pipelines.generator import KEPT_PROMPTS, PipelineGenerator
from isengard.engines.pipelines.step_caches import step_cache
from isengard.errors import InvalidSpec, JobCancelled, OutOfMemory
from tests.engines.demo_model import CARD, SPEC, Reports

CPU = torch.device("cpu")
COMPILED = GenerationPlan(compile=True)
RATIOS = {"mag_ratios": (1.0,) * 40}
CACHED = {"cache": StepCache.FIRST_BLOCK, "num_inference_steps": 40}


class Studio:
    """A generator on a tiny model whose plan can be changed, and what it reported last."""

    def __init__(self, folder, preview):
        self.plan = GenerationPlan()
        self.preview = preview
        self.model = LocalModel(card=CARD, path=folder)
        self.generator = PipelineGenerator(device=CPU, plan=lambda _card, _spec: self.plan, compiler="eager")

    def make(self, *loras, prompt="a portrait", report=None, **changes):
        self.reports = Reports() if report is None else report
        self.preview.unlink(missing_ok=True)
        made = self.generator.generate(
            spec=SPEC.model_copy(update=changes),
            prompt=prompt,
            model=self.model,
            loras=loras,
            preview=self.preview,
            report=self.reports,
        )
        return [np.asarray(one.image, dtype=float) for one in made]

    @property
    def pipeline(self):
        return self.generator._loaded.pipeline

    @property
    def changes(self):
        """How often LoRA layers were loaded, and how often their numbers were swapped."""
        return self.generator._loaded.adapters.loads, self.generator._loaded.adapters.swaps

    def count_calls(self, module):
        """The list grows by one with each forward pass of a module."""
        calls = []
        self.hook = module.register_forward_hook(lambda *_: calls.append(1))
        return calls


@pytest.fixture(scope="module")
def plain(tiny_flux, tmp_path_factory):
    """The plain path: nothing of a plan is used."""
    studio = Studio(tiny_flux, tmp_path_factory.mktemp("plain") / "p.png")
    yield studio
    studio.generator.unload()
    gc.collect()


@pytest.fixture(scope="module")
def open_studio(tiny_flux, tmp_path_factory):
    studio = Studio(tiny_flux, tmp_path_factory.mktemp("studio") / "p.png")
    yield studio
    studio.generator.unload()
    gc.collect()


@pytest.fixture
def studio(open_studio, tiny_flux):
    """Warm, with the plain plan and no LoRA."""
    open_studio.plan = GenerationPlan()
    open_studio.model = LocalModel(card=CARD, path=tiny_flux)
    open_studio.make(num_inference_steps=1)
    return open_studio


@pytest.fixture(scope="module")
def compiled(tiny_flux, tmp_path_factory):
    """With blocks that were compiled for a LoRA already."""
    torch._dynamo.reset()
    studio = Studio(tiny_flux, tmp_path_factory.mktemp("compiled") / "p.png")
    studio.plan = COMPILED
    yield studio
    studio.generator.unload()
    torch._dynamo.reset()
    gc.collect()


@pytest.fixture(scope="module")
def lora(tiny_flux, tmp_path_factory):
    """Makes LoRAs of some layers of the tiny model."""
    transformer = FluxPipeline.from_pretrained(tiny_flux, dtype=torch.float32).transformer
    folder = tmp_path_factory.mktemp("loras")

    def made(name, *, rank=2, layers=("attn.to_q", "attn.to_v"), strength=1.0):
        generator, weights = torch.Generator().manual_seed(len(name) + rank), {}
        for key, module in transformer.named_modules():
            if key.endswith(layers):
                down = torch.randn(rank, module.in_features, generator=generator) * 0.3
                up = torch.randn(module.out_features, rank, generator=generator) * 0.3
                weights |= {f"transformer.{key}.lora_A.weight": down, f"transformer.{key}.lora_B.weight": up}
        return written(folder / f"{name}.safetensors", weights, strength)

    return made


def written(path, weights, strength):
    spec = TrainingSpec(character="mira", base_model="demo", trigger="ohwx", rank=2)
    save_lora(path, weights, spec=spec, card=CARD, step=1, image_count=1, created_at=0.0)
    return LocalLora(id=path.stem, name=path.stem, path=path, strength=strength)


@pytest.fixture(scope="module")
def mira(lora):
    return lora("mira")


@pytest.fixture(scope="module")
def nova(lora):
    return lora("nova-x", rank=5)


def close(one, other, *, tolerance=1):
    return np.abs(one - other).max() <= tolerance


def same(one, other):
    return np.array_equal(one, other)


# LoRAs


def test_a_lora_of_the_same_shape_is_swapped_in_place_and_equals_a_fresh_load(studio, tiny_flux, mira, lora):
    studio.make(mira)
    (loads, swaps), other = studio.changes, lora("odin-xy")
    (swapped,) = studio.make(other)
    assert studio.changes == (loads, swaps + 1)
    studio.generator.unload()
    (fresh,) = studio.make(other)
    assert same(swapped, fresh)


def test_a_strength_changes_without_a_load(studio, mira):
    weaker = mira.model_copy(update={"strength": 0.5})
    studio.make(mira)
    loads, swaps = studio.changes
    (half,) = studio.make(weaker)
    assert studio.changes == (loads, swaps + 1)
    studio.make()
    assert same(half, studio.make(weaker)[0])


def test_the_same_request_again_touches_no_weights(studio, mira):
    studio.make(mira)
    before = studio.changes
    studio.make(mira)
    assert studio.changes == before


def test_an_image_does_not_depend_on_the_loras_of_earlier_requests(studio, mira, nova):
    (first,) = studio.make(mira)
    studio.make(mira, nova)
    studio.make()
    studio.make(nova)
    assert same(studio.make(mira)[0], first)


def test_two_loras_are_what_diffusers_makes_of_two_adapters(plain, tiny_flux, mira, nova):
    (ours,) = plain.make(mira.model_copy(update={"strength": 0.5}), nova)
    pipeline = FluxPipeline.from_pretrained(tiny_flux, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for number, each in enumerate((mira, nova)):
        with pytest.warns(UserWarning, match="Already found") if number else nullcontext():
            pipeline.load_lora_weights(
                each.path.parent, weight_name=each.path.name, adapter_name=f"a{number}"
            )
    pipeline.set_adapters(["a0", "a1"], [0.5, 1.0])
    theirs = pipeline(
        "a portrait",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=3.5,
        max_sequence_length=CARD.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]
    assert close(ours, np.asarray(theirs, dtype=float))


# Compiled blocks


def graphs():
    return counters["stats"]["unique_graphs"]


def test_swapping_loras_compiles_nothing_new(compiled, plain, mira, nova):
    compiled.make(mira)
    before, (loads, _) = graphs(), compiled.changes
    half = mira.model_copy(update={"strength": 0.5})
    for loras in ((nova,), (mira,), (half,), (half, nova), (), (mira,)):
        (image,) = compiled.make(*loras)
        assert close(image, plain.make(*loras)[0])
    assert graphs() == before > 0
    assert compiled.changes[0] == loads


def test_another_size_compiles_nothing_new(compiled, plain, mira):
    compiled.make(mira, width=96, height=80)
    before = graphs()
    for width, height in ((112, 80), (64, 128), (80, 80)):
        (image,) = compiled.make(mira, width=width, height=height)
        assert close(image, plain.make(mira, width=width, height=height)[0])
    assert graphs() == before


def test_a_step_cache_put_on_and_off_compiles_nothing_new(compiled, mira):
    compiled.make(mira)
    before = graphs()
    compiled.make(mira, **CACHED)
    compiled.make(mira)
    compiled.make(mira, **CACHED)
    assert graphs() == before


def test_a_plan_without_compilation_runs_the_plain_blocks(compiled, plain, mira):
    compiled.make(mira)
    compiled.plan = GenerationPlan()
    try:
        calls = counters["frames"]["total"]
        (image,) = compiled.make()
        assert counters["frames"]["total"] == calls
    finally:
        compiled.plan = COMPILED
    assert close(image, plain.make()[0])


def test_a_lora_of_more_layers_gets_the_room_it_needs(compiled, plain, mira, lora):
    compiled.make(mira)
    more = lora("freya-xyz", rank=40, layers=("attn.to_q", "attn.to_k", "proj_out"))
    loads, _ = compiled.changes
    assert close(compiled.make(more)[0], plain.make(more)[0])
    assert close(compiled.make(mira)[0], plain.make(mira)[0])
    assert compiled.changes[0] == loads + 1


# Batches


def test_an_image_of_a_batch_is_the_same_as_alone(studio, plain, mira):
    studio.plan = GenerationPlan(batch_size=2)
    for place, image in enumerate(studio.make(mira, count=5)):
        assert close(image, plain.make(mira, seed=5 + place)[0])


def test_progress_counts_the_steps_of_all_images_of_a_batch(studio):
    studio.plan = GenerationPlan(batch_size=2)
    studio.make(count=3)
    told = [one for one in studio.reports if one.phase is Phase.GENERATING]
    assert [one.step for one in told] == [2, 4, 6, 7, 8, 9]
    assert {one.total for one in told} == {9}
    assert [told[0].message, told[-1].message] == ["images 1 to 2 of 3", "image 3 of 3"]


def test_with_the_first_blocks_cache_images_are_made_one_by_one(studio, plain):
    studio.plan = GenerationPlan(batch_size=4)
    both, alone = studio.make(count=2, **CACHED), plain.make(seed=6, **CACHED)
    assert same(both[1], alone[0])


# Step caches


def skipped(studio, *loras, **changes):
    """Denoising steps that were not computed in full, and the image."""
    studio.make(num_inference_steps=1)
    calls = studio.count_calls(studio.pipeline.transformer.single_transformer_blocks[-1].attn)
    images = studio.make(*loras, **changes)
    studio.hook.remove()
    return changes["num_inference_steps"] * len(images) - len(calls), images[0]


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("cache", [StepCache.FIRST_BLOCK, StepCache.MAG])
def test_a_step_cache_skips_steps_and_the_next_image_is_exact(studio, plain, mira, cache, with_lora):
    loras = (mira,) if with_lora else ()
    studio.model = studio.model.model_copy(update={"card": CARD.model_copy(update=RATIOS)})
    count, image = skipped(studio, *loras, cache=cache, num_inference_steps=40)
    assert count > 0
    (exact,) = plain.make(*loras, num_inference_steps=40)
    assert 0 < np.abs(image - exact).mean() < 40
    assert same(studio.make(*loras, num_inference_steps=40)[0], exact)


def test_nothing_of_a_cached_image_is_left_for_the_next(studio):
    (first,) = studio.make(**CACHED)
    studio.make(seed=77, **CACHED)
    assert same(studio.make(**CACHED)[0], first)


def test_a_stop_takes_the_cache_off(studio, plain):
    with pytest.raises(JobCancelled):
        studio.make(report=Reports(JobCancelled(), lambda one: one.phase is Phase.GENERATING), **CACHED)
    assert not studio.pipeline.transformer.is_cache_enabled
    assert same(studio.make()[0], plain.make()[0])


def test_every_step_is_reported_and_previewed_with_a_cache(studio):
    studio.make(**CACHED)
    assert [one.step for one in studio.reports if one.phase is Phase.GENERATING] == list(range(1, 41))


def test_mag_skips_steps_of_flux_2_and_leaves_no_trace():
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    ).eval()
    spec = ImageSpec(base_model="x", prompt="x", num_inference_steps=12, cache=StepCache.MAG)
    calls = []
    model.single_transformer_blocks[-1].attn.register_forward_hook(lambda *_: calls.append(1))
    exact = denoised(model)
    with step_cache(model, spec, CARD.model_copy(update=RATIOS)):
        fast = denoised(model)
    assert len(calls) < 2 * 24
    assert torch.allclose(fast, exact, atol=0.05)
    assert torch.equal(denoised(model), exact)


def denoised(model):
    """Twelve guided steps."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 16, generator=generator)
    prompts = {name: torch.randn(1, 7, 24, generator=generator) for name in ("cond", "uncond")}
    for step in range(12):
        flows = []
        for name, prompt in prompts.items():
            with torch.no_grad(), model.cache_context(name):
                flows += model(
                    hidden_states=latents,
                    encoder_hidden_states=prompt,
                    timestep=torch.tensor([1 - step / 12]),
                    img_ids=torch.zeros(1, 16, 4),
                    txt_ids=torch.zeros(1, 7, 4),
                    guidance=None,
                    return_dict=False,
                )
        latents = latents - 0.01 * (flows[1] + 2 * (flows[0] - flows[1]))
    return latents


# Plans


def test_only_a_plan_that_holds_the_weights_differently_loads_them_again(studio):
    studio.make()
    for changes in ({"vae_tiling": True}, {"batch_size": 2}, {}):
        studio.plan = GenerationPlan(**changes)
        studio.make()
        assert Phase.LOADING not in {one.phase for one in studio.reports}
    studio.plan = GenerationPlan(text_encoders=TextEncoders.CPU)
    studio.make()
    assert Phase.LOADING in {one.phase for one in studio.reports}


def test_the_image_is_decoded_in_tiles_only_when_the_plan_says_so(studio):
    studio.plan = GenerationPlan(vae_tiling=True)
    studio.make()
    assert studio.pipeline.vae.use_tiling
    studio.plan = GenerationPlan()
    studio.make()
    assert not studio.pipeline.vae.use_tiling


def test_an_attention_kernel_that_is_not_here_is_refused_before_anything_is_loaded(studio):
    studio.generator.unload()
    studio.plan = GenerationPlan(attention=Attention.FLASH_3)
    with pytest.raises(InvalidSpec, match="attention flash_3 needs an NVIDIA GPU"):
        studio.make()
    assert studio.generator._loaded is None


def test_running_out_of_memory_frees_it_and_tells_what_takes_less(studio):
    def greedy(one):
        if one.phase is Phase.GENERATING:
            raise torch.OutOfMemoryError("CUDA out of memory")

    studio.plan = GenerationPlan(batch_size=4)
    with pytest.raises(
        OutOfMemory, match="choose a smaller size, or batch_size 1, or vae_tiling, or quantization"
    ):
        studio.make(report=greedy, count=4)
    assert studio.generator._loaded is None


# Embeddings


def test_a_prompt_is_encoded_once(studio):
    studio.make()
    calls = studio.count_calls(studio.pipeline.text_encoder_2)
    (first,) = studio.make(prompt="by a lake")
    (again,) = studio.make(prompt="by a lake")
    assert same(first, again)
    assert len(calls) == 1


def test_only_the_last_prompts_are_kept(studio):
    studio.make(prompt="at sea", num_inference_steps=1)
    calls = studio.count_calls(studio.pipeline.text_encoder_2)
    for number in range(KEPT_PROMPTS):
        studio.make(prompt=f"at sea {number}", num_inference_steps=1)
    studio.make(prompt="at sea", num_inference_steps=1)
    assert len(calls) == KEPT_PROMPTS + 1
