"""Models that describe images, as `models` has them: seen, fetched, checked, removed, and the user's own folder."""

import json
import struct

import pytest
from typer.testing import CliRunner

from isengard.cli import app as cli
from isengard.errors import CheckpointRefused, Conflict, DownloadFailed, InvalidSpec, MissingWeights, NotFound
from isengard.settings import Settings
from isengard.store.weights import Place
from isengard.wiring import build
from tests.fake_hub import FakeHub

REPOSITORY = "fancyfeast/llama-joycaption-beta-one-hf-llava"


def weights():
    header = json.dumps({"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


FILES = {
    "config.json": json.dumps({"model_type": "llava", "vision_config": {}}).encode(),
    "tokenizer.json": b"{}",
    "preprocessor_config.json": b"{}",
    "model.safetensors": weights(),
}


@pytest.fixture
def hub():
    hub = FakeHub()
    hub.repositories[REPOSITORY] = {**FILES, "pytorch_model.bin": b"a pickle", "images/cat.png": b"a cat"}
    yield hub
    hub.close()


@pytest.fixture
def app(tmp_path, hub):
    app = build(Settings(data_dir=tmp_path / "data", device="cpu", hub_endpoint=hub.url))
    app.weights.hub_cache = tmp_path / "hub"
    app.models.token._library = tmp_path / "nothing"
    return app


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def quiet(progress):
    """Nobody listens."""


def test_a_captioner_is_fetched_without_what_it_does_not_need(app):
    assert app.models.get("joycaption").state == "missing"
    state = app.models.download("joycaption", quiet)
    assert (state.state, state.place) == ("ready", Place.MODELS_FOLDER)
    kept = {path.name for path in state.path.iterdir() if not path.name.startswith(".")}
    assert kept == set(FILES)
    assert app.models.download("joycaption", quiet).state == "ready"


def test_weights_in_several_files_are_fetched_by_their_index(app, hub):
    files = dict(FILES)
    shard = "model-00001-of-00001.safetensors"
    files[shard] = files.pop("model.safetensors")
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"w": shard}}).encode()
    hub.repositories[REPOSITORY] = files
    assert app.models.download("joycaption", quiet).state == "ready"


def test_a_captioner_that_is_here_in_pickles_only_is_not_fetched(app, hub):
    hub.repositories[REPOSITORY] = {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}
    with pytest.raises(DownloadFailed, match="safetensors"):
        app.models.download("joycaption", quiet)


def test_a_fetched_captioner_is_checked_and_removed(app):
    app.models.download("joycaption", quiet)
    assert app.models.verify("joycaption", quiet) == ()
    assert app.models.remove("joycaption") > 0
    assert app.models.get("joycaption").state == "missing"


def test_a_folder_of_the_users_own_is_used_where_it_is(app, own):
    assert app.models.use("joycaption", own).place is Place.OWN_PATH
    assert app.weights.locate_files(app.catalog.captioner("joycaption")) == own


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_lacks_something_is_refused_by_its_name(app, own, name):
    (own / name).unlink()
    with pytest.raises(CheckpointRefused, match=f"transformers' layout: {name} is missing"):
        app.models.use("joycaption", own)


def test_a_model_that_sees_no_images_is_refused(app, own):
    (own / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointRefused, match="holds a llama, which sees no images"):
        app.models.use("joycaption", own)


def test_a_model_that_brings_a_program_is_refused(app, own):
    (own / "modeling.py").write_text("print()")
    with pytest.raises(CheckpointRefused, match="is a program"):
        app.models.use("joycaption", own)


def test_a_single_file_is_no_captioner(app, own):
    with pytest.raises(CheckpointRefused, match="is no folder"):
        app.models.use("joycaption", own / "model.safetensors")


def test_what_is_missing_is_said_with_the_way_to_get_it(app):
    with pytest.raises(MissingWeights, match="models download joycaption"):
        app.weights.locate_files(app.catalog.captioner("joycaption"))
    with pytest.raises(NotFound, match="no captioner 'demo'"):
        app.catalog.captioner("demo")


def test_the_command_line_lists_captioners_behind_the_base_models(app):
    arguments = ["--data-dir", str(app.settings.data_dir), "models", "list"]
    names = [
        line.split()[0]
        for line in CliRunner().invoke(cli, arguments).stdout.splitlines()
        if "captions" in line
    ]
    assert names == [card.name for card in app.catalog.captioners()]


def test_a_wrong_card_of_a_captioner_is_refused_with_its_file(app, tmp_path):
    configs = tmp_path / "configs"
    configs.mkdir()
    app.catalog.configs_dir = configs
    assert app.catalog.captioners() == ()
    (configs / "captioners.yaml").write_text("mine: {title: Mine}\n")
    with pytest.raises(InvalidSpec, match=r"captioners\.yaml.*repository"):
        app.catalog.captioners()


def test_a_captioner_does_not_take_the_name_of_a_base_model(app):
    names = [card.name for card in app.catalog.cards()]
    assert sorted(set(names)) == sorted(names)


def test_a_captioner_that_is_not_used_has_no_path_to_forget(app):
    with pytest.raises(NotFound, match="no own folder"):
        app.models.forget("joycaption")
    with pytest.raises(Conflict, match="not on this machine"):
        app.models.remove("joycaption")
