"""The commands a newcomer types first, run for real; only the trainings are short."""

import json

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from isengard.cli import app as cli
from isengard.domain.job import JobError
from isengard.settings import ROOT
from tests.tiny_app import submit_training, tiny_app

runner = CliRunner()


@pytest.fixture
def tiny(tmp_path, tiny_flux):
    return tiny_app(tmp_path, tiny_flux)


@pytest.fixture
def run(tiny, monkeypatch):
    monkeypatch.setenv("ISENGARD_CONFIGS_DIR", str(tiny.settings.configs_dir))

    def invoke(*words):
        options = ["--data-dir", str(tiny.settings.data_dir), "--worker", "thread", "--device", "cpu"]
        return runner.invoke(cli, [*options, *words])

    return invoke


def test_train_trains_verifies_and_says_where_the_lora_is(run, tiny):
    result = run("train", "mira", "--model", "tiny", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["steps"] == 6
    assert said["verification"]["modules"] == 20
    assert said["path"].endswith(".safetensors")
    assert tiny.images.lora(said["job"]).character == "mira"


def test_train_in_words_ends_with_what_comes_next(run):
    result = run("train", "mira", "--model", "tiny", "--set", "steps=2", "--set", "sample_every=0")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith(".safetensors")
    assert "trained for 2 steps; validation loss" in result.stderr
    assert "verified: all 20 modules load" in result.stderr
    assert "python -m isengard generate --lora" in result.stderr


def test_a_plan_shows_what_differs_from_the_defaults(run, tiny):
    result = run("train", "mira", "--model", "tiny", "--plan", "--set", "resolutions=[64, 80]")
    assert "resolutions: [64, 80]" in result.stdout
    assert "rank: 4" in result.stdout
    spec = json.loads(run("train", "mira", "--model", "tiny", "--plan", "--json").stdout)
    assert (spec["steps"], spec["alpha"]) == (6, 4)
    assert tiny.jobs.jobs() == []


def test_detached_trainings_only_wait(run, tiny):
    first = run("train", "mira", "--model", "tiny", "--detach").stdout.strip()
    second = json.loads(run("train", "mira", "--model", "tiny", "--detach", "--json").stdout)["job"]
    assert [job.id for job in tiny.jobs.jobs()] == [first, second]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "nobody", "--model", "tiny"], 1, "error: "),
        (["train", "mira", "--model", "tiny", "--set", "rank"], 2, "must look like rank=32"),
        (["train", "mira", "--model", "tiny", "--set", "rank=[1"], 2, "the value is not readable"),
        (["train", "mira", "--model", "tiny", "--set", "rank=none"], 1, "error: rank:"),
        (["jobs", "retry", "nothing"], 1, "error: "),
    ],
)
def test_wrong_words_end_in_one_plain_line(run, words, code, said):
    result = run(*words)
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_failed_training_is_retried_with_a_change(run, tiny):
    job_id = submit_training(tiny)
    claimed = tiny.queue.claim("w", lease_s=60)
    tiny.queue.fail(claimed, JobError(code="out_of_memory", message="too big"))
    result = run("jobs", "retry", job_id, "--set", "batch_size=1", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["job"] == job_id
    assert tiny.jobs.get(job_id).payload["spec"]["batch_size"] == 1


@pytest.mark.slow
def test_the_demo_goes_from_nothing_to_a_picture_and_may_be_run_again(tmp_path, monkeypatch):
    configs = tmp_path / "configs"
    (configs / "training").mkdir(parents=True)
    cards = yaml.safe_load((ROOT / "configs" / "models.yaml").read_text())
    (configs / "models.yaml").write_text(yaml.safe_dump({"demo": cards["demo"]}))
    preset = yaml.safe_load((ROOT / "configs" / "training" / "quick.yaml").read_text())
    short = {
        "steps": 2,
        "batch_size": 1,
        "validate_every": 2,
        "sample_every": 0,
        "save_every": 2,
        "sample_steps": 2,
    }
    preset["models"] = {"demo": preset["models"]["demo"] | short | {"lr_warmup_steps": 0}}
    (configs / "training" / "quick.yaml").write_text(yaml.safe_dump(preset))
    monkeypatch.setenv("ISENGARD_CONFIGS_DIR", str(configs))
    options = ["--data-dir", str(tmp_path / "data"), "--worker", "thread", "--device", "cpu"]

    result = runner.invoke(cli, [*options, "demo"])
    assert result.exit_code == 0, result.output
    with Image.open(result.stdout.strip()) as sheet:
        assert sheet.size == (1084, 906)
    for said in ("1/3 character Nova: 10 images", "2/3 training", "3/3 making the same images", "done in"):
        assert said in result.stderr

    again = json.loads(runner.invoke(cli, [*options, "demo", "--json"]).stdout)
    assert again["verification"]["image_difference"] > 0
    assert again["seconds"] > 0


@pytest.mark.slow
@pytest.mark.no_cover
def test_the_trained_figure_is_plainly_the_character(tmp_path):
    """The demo as shipped, nothing shortened: the LoRA goes most of the way to the character's own pictures."""
    options = ["--data-dir", str(tmp_path / "data"), "--worker", "thread", "--device", "cpu"]
    result = runner.invoke(cli, [*options, "demo", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["identity"]
    assert found["share"] > 0.6
    assert found["before"] < found["after"] < 1
