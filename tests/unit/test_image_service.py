"""Generation jobs: from a template and a few words to a whole request, or a refusal."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from isengard.domain.base import validated
from isengard.domain.generation import ImageSpec, LocalLora, resolve_prompt, with_trigger
from isengard.domain.job import JobKind, Lane
from isengard.domain.memory import Corrections
from isengard.domain.model import Family
from isengard.domain.performance import StepCache
from isengard.errors import InvalidSpec, MissingWeights, NotFound
from isengard.queue.sqlite import SqliteQueue
from isengard.services.images import OFFER_AGE_S, ImageService, read_payload
from isengard.services.machine import Machine
from isengard.services.planning import Planning
from isengard.services.room import Room
from isengard.settings import ASSETS, ROOT
from isengard.store.artifacts import Images, Loras
from isengard.store.configs import Catalog
from isengard.store.weights import Weights

SEED = 77


@pytest.fixture
def loras(tmp_path):
    return Loras(loras_dir=tmp_path / "loras", runs_dir=tmp_path / "runs", trash_dir=tmp_path / "trash")


@pytest.fixture
def images(tmp_path):
    return Images(images_dir=tmp_path / "images", trash_dir=tmp_path / "trash")


@pytest.fixture
def service(service_of):
    return service_of(tuple(Family))


@pytest.fixture
def service_of(tmp_path, loras, images):
    queue, catalog = SqliteQueue(tmp_path / "jobs.db"), Catalog(ROOT / "configs")
    return lambda families: ImageService(
        queue=queue,
        catalog=catalog,
        room=Room(queue=queue, catalog=catalog, folder=tmp_path, runs_dir=tmp_path / "runs"),
        weights=Weights(models_dir=tmp_path / "models", assets_dir=ASSETS, hub_cache=tmp_path / "hub"),
        loras=loras,
        images=images,
        families=families,
        planning=Planning(machine=Machine(device="cpu").facts, corrections=Corrections),
        draw_seed=lambda: SEED,
    )


@pytest.fixture
def add_lora(loras, tmp_path):
    def added(lora_id="job1", *, base_model="demo", trigger="ohwx", class_word="woman"):
        source = tmp_path / "trained.safetensors"
        save_file({"x": np.zeros(1)}, source)
        return loras.add(
            lora_id=lora_id,
            name=lora_id,
            character="mira",
            trigger=trigger,
            class_word=class_word,
            base_model=base_model,
            steps=10,
            source=source,
            details={},
        )

    return added


def local(tmp_path, trigger, class_word):
    return LocalLora(id=trigger, name=trigger, path=tmp_path, trigger=trigger, class_word=class_word)


def test_what_is_not_given_comes_from_the_models_card(service):
    spec = service.plan(overrides={"base_model": "demo", "prompt": "a portrait"})
    assert (spec.width, spec.height, spec.num_inference_steps, spec.guidance_scale) == (128, 128, 20, 3.0)
    assert (spec.seed, spec.count) == (SEED, 1)


def test_a_template_comes_before_the_card_and_what_is_given_before_both(service):
    spec = service.plan(template="flux-schnell", overrides={"prompt": "x", "width": 512, "seed": 0})
    assert (spec.base_model, spec.num_inference_steps, spec.guidance_scale) == ("flux1-schnell", 4, 0)
    assert (spec.width, spec.height, spec.seed, spec.template) == (512, 1024, 0, "flux-schnell")


@pytest.mark.parametrize(
    "template", Catalog(ROOT / "configs").templates(), ids=lambda template: template.name
)
def test_every_template_names_a_model_and_fits_it(service, template):
    spec = service.plan(template=template.name, overrides={"prompt": "x"})
    with pytest.raises(MissingWeights):
        service.submit(spec)


def test_without_a_model_that_of_the_lora_is_taken(service, add_lora):
    add_lora()
    add_lora("job2", base_model="flux2-klein-base-4b")
    assert service.plan(overrides={"prompt": "x", "loras": [{"lora": "job1"}]}).base_model == "demo"
    assert service.plan(overrides={"prompt": "x", "loras": [{"lora": "job2"}]}).base_model == "flux2-klein-4b"


def test_while_the_partner_is_not_here_the_model_that_a_lora_was_trained_on_is_taken(
    service, add_lora, tmp_path, tiny_flux2
):
    add_lora(base_model="flux2-klein-base-4b")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "flux2-klein-base-4b").symlink_to(tiny_flux2)
    assert service.model_for("job1") == "flux2-klein-base-4b"
    (tmp_path / "models" / "flux2-klein-4b").symlink_to(tiny_flux2)
    assert service.model_for("job1") == "flux2-klein-4b"


def test_without_model_and_lora_the_models_are_named(service):
    with pytest.raises(InvalidSpec, match="choose a model \\(demo, flux2-klein-base"):
        service.plan(overrides={"prompt": "x"})


def test_a_misspelt_setting_is_named(service):
    with pytest.raises(InvalidSpec, match="did you mean 'width'"):
        service.plan(overrides={"prompt": "x", "base_model": "demo", "widht": 64})


def test_a_request_becomes_an_interactive_job_with_the_trigger_put_in(service, add_lora):
    add_lora()
    spec = service.plan(overrides={"prompt": "[trigger] [class] at sea", "loras": [{"lora": "job1"}]})
    job = service.submit(spec)
    assert (job.kind, job.lane) == (JobKind.GENERATE_IMAGES, Lane.INTERACTIVE)
    assert read_payload(job) == (spec, "ohwx woman at sea")


def test_a_job_without_its_record_is_refused(service):
    job = service.submit(service.plan(overrides={"prompt": "x", "base_model": "demo"}))
    with pytest.raises(InvalidSpec, match="has no 'prompt' in its record"):
        read_payload(job.model_copy(update={"payload": {"spec": job.payload["spec"]}}))


@pytest.mark.parametrize("field", ["width", "height"])
def test_a_size_the_model_was_not_made_for_is_refused(service, field):
    spec = service.plan(overrides={"prompt": "x", "base_model": "demo", field: 272})
    with pytest.raises(InvalidSpec, match=f"{field}: .* made for 128 pixels and makes at most 256, got 272"):
        service.submit(spec)


@pytest.mark.parametrize(
    ("model", "cache", "reason"),
    [
        ("demo", "mag", "its card has no mag_ratios; choose one of: first_block, none"),
        ("sdxl", "first_block", "it cannot skip blocks of the family sdxl; choose one of: none"),
    ],
)
def test_a_step_cache_that_does_not_work_with_the_model_is_refused(service, model, cache, reason):
    spec = service.plan(overrides={"base_model": model, "prompt": "x", "cache": cache})
    with pytest.raises(InvalidSpec, match=reason):
        service.submit(spec)


def test_every_shipped_model_with_ratios_can_use_mag(service):
    able = [card.name for card, _ in service.models() if StepCache.MAG in card.step_caches]
    assert able == ["flux1-dev"]


def test_an_unknown_lora_model_or_template_is_refused(service):
    with pytest.raises(NotFound, match="no LoRA 'job7'"):
        service.plan(overrides={"prompt": "x", "loras": [{"lora": "job7"}]})
    with pytest.raises(NotFound, match="no base model 'demon'"):
        service.plan(overrides={"prompt": "x", "base_model": "demon"})
    with pytest.raises(NotFound, match="no generation template"):
        service.plan(template="none", overrides={"prompt": "x"})


def test_a_lora_of_another_family_is_refused(service, add_lora):
    add_lora(base_model="sdxl")
    spec = service.plan(overrides={"prompt": "x", "base_model": "demo", "loras": [{"lora": "job1"}]})
    with pytest.raises(InvalidSpec, match="trained on sdxl \\(sdxl\\) and does not fit demo \\(flux\\)"):
        service.submit(spec)


def test_a_checkpoint_that_is_not_there_is_refused(service, add_lora):
    add_lora()
    spec = service.plan(overrides={"prompt": "x", "loras": [{"lora": "job1", "step": 5}]})
    with pytest.raises(NotFound, match="no checkpoint of step 5"):
        service.submit(spec)


def test_a_lora_named_twice_is_refused():
    ref = {"lora": "job1"}
    with pytest.raises(InvalidSpec, match="loras holds 'job1' twice"):
        validated(ImageSpec, {"base_model": "demo", "prompt": "x", "loras": [ref, {"lora": "job2"}, ref]})
    validated(ImageSpec, {"base_model": "demo", "prompt": "x", "loras": [ref, {"lora": "job1", "step": 2}]})


def test_placeholders_take_the_words_of_all_loras(tmp_path):
    two = [local(tmp_path, "ohwx", "woman"), local(tmp_path, "zxq", "dog")]
    assert resolve_prompt("[trigger] [class] at sea", two[:1]) == "ohwx woman at sea"
    assert resolve_prompt("[trigger] [class] at sea", two) == "ohwx woman, zxq dog at sea"
    assert resolve_prompt("[trigger], the [class]", two[:1]) == "ohwx, the woman"
    assert resolve_prompt("a [cat]", []) == "a [cat]"


@pytest.mark.parametrize("placeholder", ["[trigger]", "[class]"])
def test_a_placeholder_that_nobody_fills_is_refused(tmp_path, placeholder):
    for loras in ([], [local(tmp_path, "", "")]):
        with pytest.raises(InvalidSpec, match=f"holds \\{placeholder[:-1]}\\], but no LoRA"):
            resolve_prompt(f"a {placeholder}", loras)


def test_a_prompt_without_the_trigger_can_get_it(tmp_path, service, add_lora):
    ohwx = local(tmp_path, "ohwx", "woman")
    assert with_trigger("at sea", [ohwx]) == "[trigger] [class], at sea"
    assert with_trigger("OHWX at sea", [ohwx]) == "OHWX at sea"
    assert with_trigger("[trigger] at sea", [ohwx]) == "[trigger] at sea"
    assert with_trigger("at sea", []) == "at sea"
    add_lora()
    assert service.with_trigger(service.plan(overrides={"prompt": "x", "loras": [{"lora": "job1"}]})) != "x"


def test_the_gallery_shows_and_forgets_images(service, images):
    spec = ImageSpec(base_model="demo", prompt="x", width=64, height=64)
    saved = images.add(
        Image.new("RGB", (64, 64)), job_id="j", index=0, spec=spec, prompt="x", loras=(), seed=0, seconds=1
    )
    assert service.gallery() == service.of_job("j") == (saved,)
    assert service.read_settings(saved.path).settings["prompt"] == "x"
    service.remove("j-0")
    assert service.gallery() == ()


def test_loras_are_listed_found_and_removed(service, add_lora):
    lora = add_lora()
    assert service.loras(character="mira") == (lora,)
    assert service.lora("job1") == lora
    assert service.lora_path("job1").name == "job1.safetensors"
    service.remove_lora("job1")
    assert service.loras() == ()


def test_a_family_that_makes_no_images_here_is_refused_at_once(service_of):
    service = service_of([Family.FLUX])
    spec = service.plan(overrides={"prompt": "a person", "base_model": "sdxl"})
    with pytest.raises(
        InvalidSpec, match=r"the families flux so far, and Stable Diffusion XL 1\.0 is of the family sdxl"
    ):
        service.submit(spec)


def test_models_and_templates_are_those_that_make_images_here(service_of):
    service = service_of([Family.FLUX])
    assert [(card.name, ready) for card, ready in service.models()] == [
        ("demo", True),
        ("flux1-dev", False),
        ("flux1-schnell", False),
    ]
    assert [template.name for template in service.templates()] == ["flux-dev-lora", "flux-schnell"]


def test_the_prompt_as_sent_has_the_trigger_filled_in(service, add_lora):
    add_lora()
    spec = service.plan(overrides={"prompt": "at sea", "loras": [{"lora": "job1"}]})
    assert service.prompt_as_sent(spec) == "ohwx woman, at sea"
    assert service.model_for("job1") == "demo"
    assert service.checkpoints("job1") == ()


def test_each_image_is_known_with_the_characters_that_made_it(service, images, add_lora, tmp_path):
    add_lora()

    def made(job_id, *used):
        spec = ImageSpec(base_model="demo", prompt="x", width=64, height=64)
        picture = Image.new("RGB", (64, 64))
        facts = {"spec": spec, "prompt": "x", "seed": 0, "seconds": 1}
        return images.add(picture, job_id=job_id, index=0, loras=used, **facts)

    of_mira = made("a", LocalLora(id="job1", name="job1", path=tmp_path))
    of_gone = made("b", LocalLora(id="gone", name="Nova-step50", path=tmp_path))
    plain = made("c")
    assert {image.id: owners for image, owners in service.all_with_characters()} == {
        of_mira.id: {"mira"},
        of_gone.id: {"Nova"},
        plain.id: set(),
    }
    assert service.image(plain.id) == plain


def test_models_are_looked_up_again_after_a_moment(service, tmp_path):
    now = [0.0]
    service._clock = lambda: now[0]
    assert service.models() is service.models()
    service._weights = Weights(models_dir=tmp_path, assets_dir=tmp_path / "none", hub_cache=tmp_path)
    assert any(ready for _, ready in service.models())
    now[0] = OFFER_AGE_S + 1
    assert not any(ready for _, ready in service.models())
