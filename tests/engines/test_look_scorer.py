"""Whole pictures, with tiny random models of the classes that DINO and CLIP have."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from isengard.domain.character import Character
from isengard.domain.identity import ScorerKind
from isengard.engines.look import BATCH, LookScorer
from isengard.errors import MissingWeights
from isengard.settings import Settings
from isengard.wiring import build, open_scorer
from tests.unit.character_pictures import encoded, picture, write

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SEEN = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def save_dino(folder):
    torch.manual_seed(0)
    parts = SIZES | {"image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(**parts)).save_pretrained(folder)
    BitImageProcessor(**SEEN).save_pretrained(folder)


def save_clip(folder):
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=SIZES | {"vocab_size": 32},
        vision_config=SIZES | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(**SEEN).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look")
    save_dino(folder / "dino")
    save_clip(folder / "clip")
    return folder


@pytest.mark.parametrize(("name", "size"), [("dino", 16), ("clip", 8)])
def test_a_picture_is_one_sighting_of_unit_length(models, name, size):
    found = LookScorer(models / name).find([picture(1), picture(2, size=(40, 90)), picture(3, mode="RGBA")])
    assert [len(one) for one in found] == [1, 1, 1]
    assert [len(one[0].embedding) for one in found] == [size] * 3
    assert [np.linalg.norm(one[0].embedding) for one in found] == pytest.approx([1.0] * 3, abs=1e-5)
    assert (found[1][0].box.width, found[1][0].box.height) == (40, 90)


def test_the_same_picture_is_most_alike_whatever_it_is_looked_at_with(models):
    pictures = [picture(seed) for seed in range(BATCH + 1)]
    scorer = LookScorer(models / "dino")
    together = np.array([one[0].embedding for one in scorer.find(pictures)])
    (alone,) = scorer.find([pictures[-1].copy()])
    cosines = together @ np.array(alone[0].embedding)
    assert cosines.argmax() == BATCH
    assert cosines[-1] == pytest.approx(1, abs=1e-5)


def test_an_animal_is_scored_with_the_model_in_the_models_folder(tmp_path):
    settings = Settings.load({}, data_dir=tmp_path)
    save_dino(settings.models_dir / "look")
    app = build(settings)
    dog: Character = app.characters.create("Rex", class_word="dog")
    files = [write(tmp_path / "in", f"{seed}.png", encoded(picture(seed))) for seed in (1, 2)]
    list(app.characters.add_files(dog.id, files))
    portrait = app.likeness.portrait(app.characters.get(dog.id))
    assert portrait.scorer is ScorerKind.LOOK
    (score,) = app.likeness.score(portrait, files[:1])
    assert score is not None
    assert score > portrait.ceiling[0]


def test_without_a_model_it_is_said_where_one_belongs(tmp_path):
    app = build(Settings.load({"ISENGARD_LOOK_MODEL": str(tmp_path / "mine")}, data_dir=tmp_path))
    dog = app.characters.create("Rex", class_word="dog")
    list(app.characters.add_files(dog.id, [write(tmp_path, "1.png", encoded(picture(1)))]))
    with pytest.raises(MissingWeights, match=r"mine holds none: put one .* ISENGARD_LOOK_MODEL"):
        app.likeness.portrait(app.characters.get(dog.id))


def test_without_a_folder_no_other_scorer_takes_its_place():
    with pytest.raises(MissingWeights, match="name its folder"):
        open_scorer(ScorerKind.LOOK)


def test_another_kind_of_model_is_refused_by_its_family(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(MissingWeights, match=r"family 'llama'.*dinov2"):
        LookScorer(tmp_path)


def test_a_model_without_its_weights_is_refused(tmp_path, models):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((models / "dino" / name).read_bytes())
    with pytest.raises(MissingWeights, match=r"cannot be loaded .* download it again"):
        LookScorer(tmp_path)


def test_a_pickled_model_is_not_opened(tmp_path, models):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((models / "dino" / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(MissingWeights, match="cannot be loaded"):
        LookScorer(tmp_path)
