"""Base models: seen, fetched, checked, removed, and the user's own files; and the token."""

import json
import shutil
import stat
import struct
from dataclasses import replace

import pytest
import yaml
from pydantic import SecretStr
from typer.testing import CliRunner

from isengard import logs
from isengard.cli import app as cli
from isengard.errors import (
    CheckpointRefused,
    Conflict,
    DiskFull,
    HubRefused,
    HubUnreachable,
    InvalidSpec,
    MissingWeights,
    NotFound,
)
from isengard.services.model_tasks import Action, ModelTasks, Outcome
from isengard.services.models import ModelService
from isengard.settings import Settings
from isengard.store import child
from isengard.store.token import TokenFile
from isengard.store.weights import Place, Weights
from tests.fake_hub import FakeHub
from tests.tiny_app import submit_training, tiny_app

ADAPTER = "pytorch_lora_weights.safetensors"
SECRET = "hf_" + "secretsecret"


def lora():
    header = json.dumps({"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.fixture
def hub(tiny_flux):
    hub = FakeHub()
    hub.add("acme/tiny", tiny_flux)
    for entry in tiny_flux.iterdir():  # the fixture's folder is made of links
        for file in entry.iterdir() if entry.is_dir() else ():
            hub.repositories["acme/tiny"][f"{entry.name}/{file.name}"] = file.read_bytes()
    hub.repositories["acme/adapter"] = {ADAPTER: lora()}
    hub.tokens = {SECRET: {"acme/tiny"}, "hf_newcomer": set()}
    yield hub
    hub.close()


@pytest.fixture
def app(tmp_path, tiny_flux, hub):
    """The services, with the hub's model beside the tiny one, and no other place to look for it."""
    app = tiny_app(tmp_path, tiny_flux, hub_endpoint=hub.url)
    file = app.settings.configs_dir / "models.yaml"
    cards = yaml.safe_load(file.read_text())
    card = {key: value for key, value in cards["tiny"].items() if key != "path"}
    cards["far"] = {**card, "title": "Far", "repository": "acme/tiny", "gated": True}
    cards["fast"] = {
        **card, "title": "Fast", "repository": "acme/tiny", "trains": False, "training_adapter": "acme/adapter",
        "generates_with": "far",
    }  # fmt: skip
    file.write_text(yaml.safe_dump(cards))
    app.weights.hub_cache = tmp_path / "hub"
    app.models.token._library = tmp_path / "nothing"
    return app


@pytest.fixture
def models(app):
    return app.models


def quiet(progress):
    """Nobody listens."""


@pytest.fixture
def far(models, hub):
    """It is downloaded."""
    hub.gated = set()
    return models.download("far", quiet).path


def test_a_downloaded_model_is_ready_and_says_where_from_and_how_large(models, hub):
    assert models.get("far").state == "missing"
    state = models.download("far", quiet)
    assert (state.state, state.place, state.advice) == ("ready", Place.MODELS_FOLDER, "")
    assert state.size_bytes > 1_000_000
    assert state.begun_bytes == state.promised_bytes
    assert [each.card.name for each in models.list()] == ["far", "fast", "tiny"]


def test_what_is_ready_is_not_asked_for_again(models, far, hub):
    hub.close()
    assert models.download("far", quiet).state == "ready"


def test_a_bundled_model_is_neither_downloaded_nor_replaced(models, tmp_path):
    with pytest.raises(Conflict, match="comes with Isengard"):
        models.download("tiny", quiet)
    with pytest.raises(Conflict, match="comes with Isengard"):
        models.use("tiny", tmp_path)
    with pytest.raises(Conflict, match="it comes with Isengard"):
        models.remove("tiny")


def test_a_model_brings_its_training_adapter_and_names_its_partner(models):
    assert models.get("fast").lacks_adapter
    state = models.download("fast", quiet)
    assert (state.lacks_adapter, state.partner) == (False, "far")
    assert models.weights.locate_to_train(state.card).training_adapter.read_bytes() == lora()
    models.download("far", quiet)
    assert models.get("fast").partner == ""


def test_a_download_that_was_cut_counts_as_incomplete_although_each_weight_is_whole(models, far):
    (far / "tokenizer" / "tokenizer_config.json").with_name("tokenizer.json").unlink()
    state = models.get("far")
    assert (state.state, state.missing[0]) == ("incomplete", "tokenizer/tokenizer.json")
    assert "is incomplete in" in state.advice


def test_a_damaged_file_is_found_thrown_away_and_fetched_again(models, far, hub):
    weights = far / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (far / "tokenizer" / "tokenizer_config.json").unlink()
    told = []
    assert models.verify("far", told.append) == (
        "tokenizer/tokenizer_config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    )
    assert told[-1].message == "complete"
    assert not weights.exists()
    hub.asked.clear()
    models.download("far", quiet)
    assert {path for path, _ in hub.asked} == {
        "model_index.json", "tokenizer/tokenizer_config.json", "transformer/diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    assert models.verify("far", quiet) == ()


def test_a_copy_without_hashes_is_checked_for_lengths_and_never_changed(models, tiny_flux, tmp_path):
    own = shutil.copytree(tiny_flux, tmp_path / "own")
    models.use("far", own)
    assert models.verify("far", quiet) == ()
    (own / "vae" / "config.json").unlink()
    assert models.verify("far", quiet) == ("vae/config.json",)
    assert (own / "transformer" / "config.json").exists()


def test_a_model_that_is_not_here_cannot_be_checked(models):
    with pytest.raises(MissingWeights, match="models download far"):
        models.verify("far", quiet)


def test_a_removed_model_is_gone_and_can_be_downloaded_again(models, far):
    size = models.get("far").size_bytes
    assert models.remove("far") == size
    assert not far.exists()
    assert models.get("far").state == "missing"
    with pytest.raises(Conflict, match="Far is not on this machine"):
        models.remove("far")
    assert models.download("far", quiet).state == "ready"


def test_a_model_that_a_job_uses_is_not_removed(app, models, far):
    job = app.queue.enqueue("train_lora", {"spec": {"base_model": "far"}})
    with pytest.raises(Conflict, match=f"is used by job {job.id}"):
        models.remove("far")
    submit_training(app)
    app.jobs.cancel(job.id)
    models.remove("far")


def test_a_shared_cache_and_a_users_own_folder_are_never_deleted(models, tiny_flux, tmp_path):
    own = shutil.copytree(tiny_flux, tmp_path / "own")
    models.use("far", own)
    assert models.get("far").place is Place.OWN_PATH
    with pytest.raises(Conflict, match=r"your own folder.*--forget"):
        models.remove("far")
    models.forget("far")
    assert (own.exists(), models.get("far").state) == (True, "missing")
    with pytest.raises(NotFound, match="no own folder"):
        models.forget("far")
    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(tiny_flux, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert models.get("far").place is Place.HUB_CACHE
    with pytest.raises(Conflict, match="other programs share it"):
        models.remove("far")


def test_a_list_of_own_folders_that_is_damaged_counts_as_empty(models):
    file = models.weights.models_dir / "own-paths.json"
    file.parent.mkdir(exist_ok=True)
    for content in ("[", "[]"):
        file.write_text(content)
        assert models.get("far").state == "missing"


def test_a_folder_that_is_no_such_model_is_refused(models, tiny_flux, tmp_path):
    with pytest.raises(
        CheckpointRefused, match=r"not a whole model in diffusers' layout: model_index.json is missing"
    ):
        models.use("far", tmp_path)
    own = shutil.copytree(tiny_flux, tmp_path / "own")
    index = json.loads((own / "model_index.json").read_text())
    for kind in ("Flux2KleinPipeline", "StableDiffusionXLPipeline"):
        (own / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
        with pytest.raises(CheckpointRefused, match=f"holds a {kind}, and Far is a FluxPipeline"):
            models.use("far", own)


@pytest.mark.parametrize("name", ["transformer/flux.py", "None.py", "tokenizer/deep/code.py"])
def test_a_folder_that_holds_a_program_is_refused(models, tiny_flux, tmp_path, name):
    own = shutil.copytree(tiny_flux, tmp_path / "own")
    (own / name).parent.mkdir(exist_ok=True)
    (own / name).write_text("print('it ran')")
    with pytest.raises(CheckpointRefused, match=r"\.py is a program; a model needs none"):
        models.use("far", own)


def test_a_folder_whose_weights_are_pickles_is_refused(models, tiny_flux, tmp_path):
    own = shutil.copytree(tiny_flux, tmp_path / "own")
    weights = own / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"PK\x03\x04" + bytes(5000))
    with pytest.raises(CheckpointRefused, match=r"vae/diffusion_pytorch_model.safetensors \(cut off\)"):
        models.use("far", own)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointRefused, match=r"vae/diffusion_pytorch_model.safetensors \(or model"):
        models.use("far", own)


# Files in one piece


def safetensors(path, *names):
    entries = {name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]} for name in names}
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"x")
    return path


FLUX = "double_blocks.0.img_attn.qkv.weight"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(50), "is a pickle"),
        (b"\x80\x02" + bytes(50), "is a pickle"),
        (b"GGUF" + bytes(50), "GGUF"),
        (b"\x08\0\0\0\0\0\0\0{", "no safetensors file, or is cut off"),
        (["lora_A.weight"], "holds no FLUX or SDXL model"),
        (["label_emb.0.0.weight", "conditioner.embedders.1.x"], "of the family sdxl, and flux is needed"),
        (["double_stream_modulation_img.lin.weight", FLUX], "of the family flux2"),
    ],
)
def test_a_file_is_judged_by_its_content(models, tmp_path, content, words):
    file = tmp_path / "model.safetensors"
    if isinstance(content, list):
        safetensors(file, *content)
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointRefused, match=words):
        models.use("far", file)


def test_a_file_that_is_not_there_is_named(models, tmp_path):
    with pytest.raises(CheckpointRefused, match=r"gone\.safetensors cannot be read"):
        models.use("far", tmp_path / "gone.safetensors")


def test_a_checkpoint_says_what_it_needs_beside_it(models, tmp_path):
    file = safetensors(tmp_path / "flux.safetensors", f"model.diffusion_model.{FLUX}")
    with pytest.raises(
        CheckpointRefused, match=r"still lacks model_index\.json.*download far --for-checkpoint"
    ):
        models.use("far", file)


def test_a_checkpoint_is_turned_into_a_model_with_the_rest_of_it(models, tmp_path, hub):
    models.download("far", quiet, for_checkpoint=True)
    assert "transformer/diffusion_pytorch_model.safetensors" not in {path for path, _ in hub.asked}
    assert models.get("far").state == "incomplete"
    file, made = safetensors(tmp_path / "flux.safetensors", FLUX), []
    models._convert = lambda *given: made.append(given)
    models.use("far", file)
    assert [path for path, _, _ in made] == [file]
    models._free = lambda path: 1
    with pytest.raises(DiskFull, match=r"and the disk has 0.0 GB free"):
        models.use("far", file)


# The token


def test_a_good_token_is_kept_for_this_user_only(models, hub, app):
    hub.gated = {"acme/tiny"}
    answer = models.keep_token(f" {SECRET}\n")
    assert answer.sentence == "All is well: the token of ada is known and may have Far."
    file = app.settings.data_dir / "hub-token"
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (SECRET, 0o600)
    assert models.token.origin == "typed here"
    assert models.download("far", quiet).state == "ready"


def test_a_token_without_the_licence_is_kept_and_gets_the_page_to_accept_it(models, hub):
    hub.gated = {"acme/tiny"}
    said = models.keep_token("hf_newcomer").sentence
    assert "The token of ada is known. This token is known, but may not have acme/tiny yet" in said
    assert f"accept the licence at {hub.url}/acme/tiny" in said
    assert models.token.get() == "hf_newcomer"
    with pytest.raises(HubRefused, match="accept the licence"):
        models.download("far", quiet)


@pytest.mark.parametrize(
    ("token", "error"),
    [("hf_wrongwrong", HubRefused), ("short", InvalidSpec), ("two words and more", InvalidSpec)],
)
def test_a_wrong_token_is_not_kept_and_not_repeated(models, token, error):
    with pytest.raises(error) as refused:
        models.keep_token(token)
    assert models.token.get() is None
    assert token not in str(refused.value)


def test_a_token_cannot_be_tried_without_the_hub(models, hub):
    hub.close()
    with pytest.raises(HubUnreachable):
        models.keep_token(SECRET)
    assert models.token.origin == ""


def test_a_typed_token_goes_before_the_environments_and_that_before_the_librarys(tmp_path):
    library = tmp_path / "library"
    library.write_text("hf_library\n")
    token = TokenFile(tmp_path / "typed", given=SecretStr("hf_environment"), library=library)
    token.keep("hf_typed_here")
    assert token.get() == "hf_typed_here"
    token.forget()
    assert (token.get(), token.origin) == ("hf_environment", "HF_TOKEN")
    token = TokenFile(tmp_path / "typed", given=None, library=library)
    assert (token.get(), token.origin) == ("hf_library", "the Hugging Face library")
    library.write_bytes(b"\xff")
    assert (token.get(), token.origin) == (None, "")


def test_a_token_is_in_no_log_line():
    assert SECRET not in logs.redact(f"asked with {SECRET} and Authorization: Bearer {SECRET}")
    assert SECRET not in json.dumps(logs.clean({"hub_token": SECRET, "error": f"bad: {SECRET}"}))


# In the background


@pytest.fixture
def tasks(app):
    yield app.model_tasks
    app.model_tasks.end(5)


def test_a_download_in_the_background_is_a_process_that_reports(tasks, models):
    tasks.start("far", Action.DOWNLOAD)
    with pytest.raises(Conflict, match="a download of far runs already"):
        tasks.start("far", Action.DOWNLOAD)
    task = tasks.wait("far", 30)
    assert (task.outcome, task.error) == (Outcome.DONE, "")
    assert task.progress.done_bytes == task.progress.total_bytes > 0
    assert models.get("far").state == "ready"


def test_a_cancelled_download_ends_at_once_and_keeps_what_has_come(tasks, models, hub):
    hub.pause_s = 0.1
    tasks.start("far", Action.DOWNLOAD)
    thread = tasks._threads["far"]
    while thread.is_alive() and not tasks.tasks()["far"].progress.total_bytes:
        thread.join(0.02)
    tasks.cancel("far")
    assert tasks.wait("far", 10).outcome is Outcome.CANCELLED
    assert not tasks.running()
    with pytest.raises(NotFound, match="nothing of far"):
        tasks.cancel("far")
    assert models.get("far").promised_bytes > 0


def heard(*lines, code=0):
    """Tasks whose process says these lines."""

    def run(command, *, said):
        for line in ("", *lines):
            said(line)
        return code

    return ModelTasks(run=run, command=("models",))


def test_a_failed_task_says_why(app):
    tasks = heard("error: no room", code=1)
    tasks.start("far", Action.DOWNLOAD)
    assert tasks.wait("far", 5).error == "no room"
    tasks = heard(code=-9)
    tasks.start("far", Action.VERIFY)
    assert tasks.wait("far", 5).error == "it ended with exit code -9"
    tasks = ModelTasks(run=child.run, command=("/nonexistent/python",))
    tasks.start("far", Action.VERIFY)
    assert "cannot be started" in tasks.wait("far", 5).error


def test_a_check_tells_what_is_damaged():
    tasks = heard('{"damaged": ["a", "b"]}', "{a warning")
    tasks.start("far", Action.VERIFY)
    task = tasks.wait("far", 5)
    assert (task.damaged, task.outcome) == (("a", "b"), Outcome.DONE)


# The command line


@pytest.fixture
def call(app, monkeypatch):
    for key, value in app.settings.child_environment().items():
        if key.startswith(("ISENGARD_", "HF_")):
            monkeypatch.setenv(key, value)
    return lambda *words, **options: CliRunner().invoke(cli, ["models", *words], **options)


def test_models_without_a_word_is_the_list(call):
    assert call().stdout == call("list").stdout
    assert "far    missing" in call().stdout


def test_a_model_comes_and_goes_by_the_command_line(call, models, app):
    done = call("download", "far")
    assert done.stdout == f"{app.settings.models_dir / 'far'} (models folder)\n"
    assert call("verify", "far").stdout == "far is whole\n"
    (app.settings.models_dir / "far" / "vae" / "config.json").write_text("{}")
    damaged = call("verify", "far")
    assert (damaged.exit_code, "damaged or missing: vae/config.json" in damaged.stderr) == (1, True)
    assert "have come" in call("list", "far").stdout
    (line,) = call("verify", "far", "--json").stdout.splitlines()[-1:]
    assert json.loads(line) == {"damaged": ["vae/config.json"]}
    assert call("remove", "far", input="n\n").exit_code == 1
    assert call("remove", "far", "--yes").stdout.endswith("are free again\n")


def test_a_download_names_the_partner(call):
    assert "python -m isengard models download far" in call("download", "fast").stderr


def test_progress_is_one_json_object_a_line(call):
    lines = [json.loads(line) for line in call("download", "far", "--json").stdout.splitlines()]
    assert lines[-1]["done_bytes"] == lines[-1]["total_bytes"] > 0


def test_own_files_by_the_command_line(call, tiny_flux):
    assert call("use", "far", str(tiny_flux)).stdout == f"{tiny_flux} (own path)\n"
    assert call("use", "far").exit_code == 2
    assert "Far (far) is not on this machine" in call("use", "far", "--forget").stdout


def test_a_token_by_the_command_line_is_asked_for_and_not_shown(call):
    done = call("token", input=f"{SECRET}\n")
    assert "All is well" in done.stdout
    assert SECRET not in done.output
    assert call("token", "--forget").exit_code == 0


# Settings


def test_the_hubs_own_variables_are_read_and_the_token_is_not_handed_on(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    given = {"HF_TOKEN": SECRET, "HF_ENDPOINT": "https://mirror.example", "HF_HUB_OFFLINE": "1"}
    settings = Settings.load(given)
    assert settings.hub_token.get_secret_value() == SECRET
    assert settings.hub_offline
    handed = settings.child_environment()
    assert (handed["HF_ENDPOINT"], handed["HF_HUB_OFFLINE"]) == ("https://mirror.example", "True")
    assert SECRET not in handed.values()
    assert SECRET not in repr(settings)


def test_offline_everything_on_disk_works(app, models, far):
    offline = replace(app, models=ModelService(
        catalog=app.catalog, weights=Weights(models_dir=app.settings.models_dir, assets_dir=far),
        queue=app.queue, hub=type(models._hub)(endpoint="http://127.0.0.1:9", token=lambda: None, offline=True),
        token=models.token, convert=models._convert,
    )).models  # fmt: skip
    assert offline.offline
    assert offline.get("far").state == "ready"
    assert offline.verify("far", quiet) == ()
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        offline.download("fast", quiet)
