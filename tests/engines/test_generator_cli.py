"""``generate`` and ``lora`` as a user types them, on the bundled model."""

import json

import pytest
import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from isengard.cli import generate, lora
from isengard.engines.lora_format import read_header
from isengard.errors import InvalidSpec, IsengardError, LoraRefused, NotFound
from isengard.settings import ASSETS, Settings, WorkerMode
from isengard.wiring import build
from tests.engines.demo_model import lora_weights, write_lora

QUICK = ("--model", "demo", "--prompt", "a portrait", "--size", "64x64", "--steps", "2", "--seed", "5")


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data", worker=WorkerMode.THREAD, device="cpu")


@pytest.fixture
def invoke(settings):
    app = typer.Typer()
    app.command("generate")(generate.generate)
    app.add_typer(lora.app, name="lora")

    @app.callback()
    def main(context: typer.Context):
        context.obj = settings

    def invoked(*words, fails=None):
        result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=fails is not None)
        if fails is None:
            assert result.exit_code == 0, result.output
        elif isinstance(fails, int):
            assert result.exit_code == fails
        else:
            assert isinstance(result.exception, fails)
        return result

    return invoked


@pytest.fixture
def lora_id(settings, tmp_path):
    """A LoRA that a job left behind, and an earlier checkpoint of it."""
    source = write_lora(tmp_path / "trained.safetensors").path
    write_lora(
        settings.runs_dir / "job1" / "checkpoints" / "step-00000005" / "lora.safetensors",
        lora_weights(seed=3),
    )
    loras = build(settings).images._loras
    return loras.add(
        lora_id="job1",
        name="Mira",
        character="mira",
        trigger="ohwx",
        class_word="woman",
        base_model="demo",
        steps=10,
        source=source,
        details={},
    ).id


def test_images_are_made_and_their_paths_printed(invoke, lora_id):
    one = ("generate", *QUICK, "--json", "--lora")
    last, early = (
        json.loads(invoke(*one, text, "--prompt", "[trigger] [class]").stdout)
        for text in ("job1:0.5", "job1:0.5@5")
    )
    assert last["images"][0]["record"]["prompt"] == "ohwx woman"
    assert last["images"][0]["record"]["loras"][0]["strength"] == 0.5
    assert early["images"][0]["record"]["loras"][0]["name"] == "Mira-step5"
    files = [Image.open(made["images"][0]["path"]) for made in (last, early)]
    assert files[0].tobytes() != files[1].tobytes()
    for file in files:
        file.close()


def test_the_best_are_kept_and_what_does_not_look_like_the_character_is_told(invoke, settings, lora_id):
    app = build(settings)
    app.characters.create("Mira", trigger="ohwx")
    pictures = sorted((ASSETS / "characters" / "nova").glob("*.png"))[:3]
    assert len(list(app.characters.add_files("mira", pictures))) == 3
    result = invoke("generate", *QUICK, "--lora", lora_id, "--count", "3", "--keep-best", "1")
    assert len(result.stdout.split()) == 1
    assert len(list((settings.trash_dir / "images").iterdir())) == 2
    for words in ("likeness to Mira: cosine ", "2 less alike were moved to", "do not look like Mira ("):
        assert words in result.stderr


def test_an_image_can_be_made_again_from_itself(invoke):
    (first,) = invoke("generate", *QUICK).stdout.split()
    (again,) = invoke("generate", "--like", first).stdout.split()
    with Image.open(first) as one, Image.open(again) as other:
        assert one.tobytes() == other.tobytes()


def test_what_a_foreign_image_says_and_is_not_taken_over_is_told(invoke, tmp_path):
    info = PngInfo()
    info.add_text("parameters", "at sea\nSteps: 3, Sampler: Euler, Size: 64x64")
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=info)
    result = invoke("generate", "--like", tmp_path / "theirs.png", "--model", "demo", "--detach")
    assert "not taken over from theirs.png: Sampler: Euler" in result.stderr


def test_a_detached_job_is_only_queued(invoke, settings):
    job_id = invoke("generate", *QUICK, "--detach").stdout.strip()
    job = build(settings).jobs.get(job_id)
    assert job.status == "queued"
    assert job.payload["spec"]["width"] == 64


def test_a_prompt_that_calls_up_no_lora_is_remarked_on(invoke, lora_id):
    words = ("generate", "--lora", lora_id, "--detach", "--prompt")
    assert "calls up no LoRA" in invoke(*words, "at sea").stderr
    assert "calls up no LoRA" not in invoke(*words, "ohwx at sea").stderr


def test_a_step_cache_and_how_the_model_is_held_are_options(invoke, settings):
    words = ("--cache", "first_block", "--set", "batch_size=2", "--set", "compile=false", "--detach")
    job_id = invoke("generate", *QUICK, *words).stdout.strip()
    spec = build(settings).jobs.get(job_id).payload["spec"]
    assert spec["cache"] == "first_block"
    chosen = {name: value for name, value in spec["performance"].items() if value is not None}
    assert chosen == {"batch_size": 2, "compile": False}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("--cache", "tea"), 2),
        (("--cache", "mag"), InvalidSpec),
        (("--set", "quantisation=int8"), InvalidSpec),
        (("--size", "64"), 2),
        (("--lora", "a:b"), 2),
        (("--like", "absent.png"), 2),
        (("--size", "65x64"), InvalidSpec),
        (("--lora", "job9"), NotFound),
    ],
)
def test_what_cannot_be_is_refused(invoke, words, kind):
    invoke("generate", *QUICK, "--detach", *words, fails=kind)


def test_a_failed_job_ends_the_command_with_its_reason(invoke, settings, lora_id):
    loras = build(settings).images._loras
    loras.path(loras.get(lora_id)).write_bytes(b"broken")
    result = invoke("generate", *QUICK, "--lora", lora_id, fails=IsengardError)
    assert "is not a readable safetensors file" in str(result.exception)


def test_loras_are_listed_shown_and_removed(invoke, lora_id):
    assert "ohwx" in invoke("lora", "list").stdout
    assert json.loads(invoke("lora", "list", "--json").stdout)[0]["id"] == "job1"
    assert "ss_network_dim" in invoke("lora", "show", lora_id).stdout
    assert json.loads(invoke("lora", "show", lora_id, "--json").stdout)["modules"] == 36
    invoke("lora", "remove", lora_id)
    assert "no LoRAs yet" in invoke("lora", "list").stdout


def test_a_lora_is_converted_for_other_programs(invoke, lora_id, tmp_path):
    target = tmp_path / "kohya.safetensors"
    assert invoke("lora", "convert", lora_id, target).stdout.strip() == str(target)
    assert read_header(target)[0][0].startswith("lora_unet_")
    invoke("lora", "convert", lora_id, target, fails=2)
    invoke("lora", "convert", target, target, "--to", "diffusers", "--force")
    assert read_header(target)[0][0].startswith("transformer.")


def test_a_file_that_is_no_lora_is_refused(invoke, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"x")
    invoke("lora", "show", path, fails=LoraRefused)
