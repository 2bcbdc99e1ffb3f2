import json
import struct

import pytest

from isengard.domain.model import ModelCard
from isengard.errors import MissingWeights
from isengard.settings import ROOT
from isengard.store.configs import Catalog
from isengard.store.weights import Weights, is_whole, missing_files

ASSETS = ROOT / "isengard" / "assets"
INDEX = {
    "_class_name": "FluxPipeline",
    "is_distilled": True,
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}
CARD = ModelCard(
    name="tiny", title="Tiny [dev]", family="flux", repository="acme/tiny", licence="Acme License",
    licence_url="https://example.org/licence", gated=True, resolutions=(64,), num_inference_steps=1, guidance_scale=1,
)  # fmt: skip
SHARDED = "diffusion_pytorch_model.safetensors.index.json"
SHARDS = (
    "diffusion_pytorch_model-00001-of-00002.safetensors",
    "diffusion_pytorch_model-00002-of-00002.safetensors",
)


def tensors(size=8):
    """A safetensors file with one tensor."""
    header = json.dumps(
        {"__metadata__": {}, "w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def make_model(folder):
    """A pipeline's folder with one sharded and one single weight file."""
    for path, content in {
        "model_index.json": json.dumps(INDEX),
        "scheduler/scheduler_config.json": "{}",
        "tokenizer/tokenizer_config.json": "{}",
        "tokenizer/vocab.json": "{}",
        "feature_extractor/preprocessor_config.json": "{}",
        "transformer/config.json": "{}",
        f"transformer/{SHARDED}": json.dumps(
            {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}}
        ),
        "text_encoder/config.json": "{}",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    for shard in SHARDS:
        (folder / "transformer" / shard).write_bytes(tensors())
    (folder / "text_encoder" / "model.safetensors").write_bytes(tensors())
    return folder


@pytest.fixture
def weights(tmp_path):
    return Weights(models_dir=tmp_path / "models", assets_dir=tmp_path / "assets", hub_cache=tmp_path / "hub")


def cached(weights):
    """The folder of `CARD` as the Hugging Face library lays it out."""
    repository = weights.hub_cache / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    return make_model(repository / "snapshots" / "c0ffee")


def test_the_bundled_model_is_whole():
    card = Catalog(ROOT / "configs").model("demo")
    found = Weights(models_dir=ROOT, assets_dir=ASSETS).locate(card)
    assert found.path == ASSETS / "demo-base"
    assert found.card == card


def test_a_model_is_found_in_the_models_folder(weights):
    folder = make_model(weights.models_dir / "tiny")
    assert weights.locate(CARD).path == folder
    assert weights.status(CARD).state == "ready"


def test_a_model_is_found_in_the_hugging_face_cache(weights):
    folder = cached(weights)
    assert weights.locate(CARD).path == folder


def test_a_whole_copy_in_the_cache_is_taken_before_a_cut_one_in_the_models_folder(weights):
    folder = make_model(weights.models_dir / "tiny")
    (folder / "model_index.json").unlink()
    whole = cached(weights)
    assert weights.locate(CARD).path == whole


def test_a_missing_gated_model_says_where_it_was_looked_for_the_licence_and_how_to_get_it(weights):
    with pytest.raises(MissingWeights) as caught:
        weights.locate(CARD)
    said = str(caught.value)
    assert f"Tiny [dev] (tiny) is not on this machine; looked in {weights.models_dir / 'tiny'}" in said
    assert str(weights.hub_cache) in said
    assert "accept its licence (Acme License): do so at https://huggingface.co/acme/tiny" in said
    assert "python -m isengard models token" in said
    assert "python -m isengard models download tiny;" in said
    assert "python -m isengard models use tiny PATH" in said
    assert "https://example.org/licence" in said
    assert weights.status(CARD).state == "missing"


def test_an_open_model_asks_for_no_login(weights):
    with pytest.raises(MissingWeights) as caught:
        weights.locate(CARD.model_copy(update={"gated": False}))
    assert "login" not in str(caught.value)


def test_an_incomplete_model_names_what_is_missing(weights):
    folder = make_model(weights.models_dir / "tiny")
    for path in ("scheduler/scheduler_config.json", "tokenizer/vocab.json", f"transformer/{SHARDS[1]}",
                 "text_encoder/config.json", "text_encoder/model.safetensors"):  # fmt: skip
        (folder / path).unlink()
    with pytest.raises(
        MissingWeights, match=r"is incomplete in .*tiny: scheduler/scheduler_config\.json, .* and 2 more"
    ):
        weights.locate(CARD)
    assert weights.status(CARD).state == "incomplete"


def test_a_damaged_bundled_model_asks_for_a_new_installation(weights):
    card = CARD.model_copy(update={"repository": None, "path": "tiny-base"})
    with pytest.raises(MissingWeights, match=r"the folder is missing in .*tiny-base; install Isengard again"):
        weights.locate(card)
    (weights.assets_dir / "tiny-base").mkdir(parents=True)
    with pytest.raises(MissingWeights, match=r"model_index\.json is missing"):
        weights.locate(card)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("model_index.json", "model_index.json"),
        ("tokenizer/vocab.json", "tokenizer/tokenizer.json"),
        ("tokenizer/tokenizer_config.json", "tokenizer/tokenizer_config.json"),
        ("feature_extractor/preprocessor_config.json", "feature_extractor/preprocessor_config.json"),
        ("transformer/config.json", "transformer/config.json"),
        (f"transformer/{SHARDS[0]}", f"transformer/{SHARDS[0]}"),
        (
            "text_encoder/model.safetensors",
            "text_encoder/diffusion_pytorch_model.safetensors (or model.safetensors)",
        ),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path, path, said):
    folder = make_model(tmp_path)
    assert missing_files(folder) == ()
    (folder / path).unlink()
    assert missing_files(folder) == (said,)


def test_a_cut_off_weight_file_counts_as_missing(tmp_path):
    folder = make_model(tmp_path)
    (folder / "text_encoder" / "model.safetensors").write_bytes(tensors()[:-1])
    assert missing_files(folder) == ("text_encoder/model.safetensors (cut off)",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        tensors()[:20],
        tensors() + b"x",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 4) + b"nope",
    ],
)
def test_a_file_that_is_no_whole_safetensors_is_seen(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert not is_whole(tmp_path / "x")


@pytest.mark.parametrize("content", ["[]", "{", "\udcff"])
def test_a_model_index_that_is_no_json_object_counts_as_missing(tmp_path, content):
    folder = make_model(tmp_path)
    (folder / "model_index.json").write_text(content, errors="surrogateescape")
    assert missing_files(folder) == ("model_index.json",)


ADAPTER = "pytorch_lora_weights.safetensors"
DISTILLED = CARD.model_copy(update={"trains": False, "training_adapter": "acme/tiny-adapter"})


@pytest.fixture
def model_folder(weights):
    return make_model(weights.models_dir / "tiny")


def test_a_model_that_trains_by_itself_needs_no_training_adapter(weights, model_folder):
    for changes in ({"training_adapter": "acme/tiny-adapter"}, {"trains": False}):
        found = weights.locate_to_train(CARD.model_copy(update=changes))
        assert (found.path, found.training_adapter) == (model_folder, None)


def test_a_training_adapter_is_found_in_the_models_folder_before_the_cache(weights, model_folder):
    cache = weights.hub_cache / "models--acme--tiny-adapter"
    own = weights.models_dir / "tiny-training-adapter"
    for folder in (cache / "snapshots" / "c0ffee", cache / "refs", own):
        folder.mkdir(parents=True)
    (cache / "refs" / "main").write_text("c0ffee")
    (cache / "snapshots" / "c0ffee" / ADAPTER).write_bytes(tensors())
    assert weights.locate_to_train(DISTILLED).training_adapter == cache / "snapshots" / "c0ffee" / ADAPTER
    (own / ADAPTER).write_bytes(tensors())
    assert weights.locate_to_train(DISTILLED).training_adapter == own / ADAPTER


def test_a_training_adapter_that_is_missing_or_cut_off_is_asked_for_with_the_command(weights, model_folder):
    own = weights.models_dir / "tiny-training-adapter"
    own.mkdir()
    (own / ADAPTER).write_bytes(tensors()[:-1])
    with pytest.raises(MissingWeights, match=r"Tiny \[dev\] is trained with its training adapter") as refused:
        weights.locate_to_train(DISTILLED)
    assert str(refused.value).endswith("python -m isengard models download tiny")


def test_without_the_model_itself_its_training_adapter_is_of_no_use(weights):
    with pytest.raises(MissingWeights, match="is not on this machine"):
        weights.locate_to_train(DISTILLED)
