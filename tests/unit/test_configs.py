import pytest

from isengard.errors import InvalidSpec, NotFound
from isengard.settings import ROOT
from isengard.store.configs import Catalog

CARD = """
tiny:
  title: Tiny
  family: flux
  path: tiny
  licence: Apache-2.0
  licence_url: https://example.org
  resolutions: [64]
  num_inference_steps: 2
  guidance_scale: 1
"""
PRESET = """
title: Quick
description: A first look
steps_per_image: 10
min_steps: 1
max_steps: 100
"""
TEMPLATE = """
title: Portrait
description: One portrait
settings: {width: 128, height: 128}
"""


@pytest.fixture
def catalog(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "generation").mkdir()
    (tmp_path / "models.yaml").write_text(CARD)
    (tmp_path / "training" / "quick.yaml").write_text(PRESET)
    (tmp_path / "generation" / "portrait.yaml").write_text(TEMPLATE)
    return Catalog(tmp_path)


def add(catalog, path, text):
    (catalog.configs_dir / path).write_text((catalog.configs_dir / path).read_text() + text)


def test_models_presets_and_templates_are_read_by_name(catalog):
    assert catalog.model("tiny") == catalog.models()[0]
    assert catalog.preset("quick") == catalog.presets()[0]
    assert catalog.template("portrait") == catalog.templates()[0]


def test_an_edit_needs_no_restart(catalog):
    add(catalog, "training/quick.yaml", "settings: {rank: 4}\n")
    assert catalog.preset("quick").settings == {"rank": 4}


@pytest.mark.parametrize(
    ("kind", "known"), [("model", "tiny"), ("preset", "quick"), ("template", "portrait")]
)
def test_an_unknown_name_is_answered_with_the_known_ones(catalog, kind, known):
    with pytest.raises(NotFound, match=rf"'quik' \(known: {known}\)"):
        getattr(catalog, kind)("quik")


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("models.yaml", "  gatted: true\n", "unknown setting 'gatted'.*did you mean 'gated'"),
        ("models.yaml", "  family: flux\n", "the key 'family' stands twice"),
        ("models.yaml", "other: 3\n", "other must hold settings"),
        ("models.yaml", "  name: tiny\n", "tiny: remove the setting 'name'"),
        ("models.yaml", "  repository: a/b\n", "either a repository or a path"),
        ("models.yaml", "  generates_with: b\n", "there is no model 'b' .*known: tiny"),
        ("models.yaml", "  licence: [\n", "not valid YAML"),
        ("models.yaml", "1: {}\n", "must hold settings"),
        ("training/quick.yaml", "min_step: 3\n", "unknown setting 'min_step'.*'min_steps'"),
        ("training/quick.yaml", "settings: {rnk: 3}\n", "unknown setting 'rnk'.*'rank'"),
        ("training/quick.yaml", "settings: {rank: 0}\n", "rank: .*got 0"),
        ("training/quick.yaml", "settings: {trigger: x}\n", "trigger: not a training setting"),
        ("training/quick.yaml", "models: {tiny: {rank: -1}}\n", "rank: .*got -1"),
        ("training/quick.yaml", "models: {huge: {}}\n", "no base model 'huge'"),
        ("generation/portrait.yaml", "foo: 1\n", "unknown setting 'foo'"),
    ],
)
def test_a_mistake_is_refused_with_the_files_name(catalog, path, text, said):
    add(catalog, path, text)
    with pytest.raises(InvalidSpec, match=f"(?s){path}.*{said}"):
        (catalog.models(), catalog.presets(), catalog.templates())


def test_a_template_with_wrong_settings_is_refused(catalog):
    (catalog.configs_dir / "generation" / "bad.yaml").write_text(
        "title: t\ndescription: d\nsettings: {width: 100}\n"
    )
    with pytest.raises(InvalidSpec, match=r"bad\.yaml: width: .*got 100"):
        catalog.templates()


def test_a_preset_with_more_steps_at_least_than_at_most_is_refused(catalog):
    (catalog.configs_dir / "training" / "quick.yaml").write_text(
        PRESET.replace("min_steps: 1", "min_steps: 101")
    )
    with pytest.raises(InvalidSpec, match=r"min_steps \(101\) must not be above max_steps \(100\)"):
        catalog.presets()


def test_a_file_that_is_no_text_is_refused(catalog):
    (catalog.configs_dir / "training" / "quick.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidSpec, match=r"quick\.yaml is not valid YAML"):
        catalog.presets()


def test_a_list_key_is_refused(catalog):
    add(catalog, "training/quick.yaml", "? [a, b]\n: 1\n")
    with pytest.raises(InvalidSpec, match=r"quick\.yaml is not valid YAML"):
        catalog.presets()


def test_a_folder_without_models_is_answered_with_the_way_out(tmp_path):
    with pytest.raises(NotFound, match="ISENGARD_CONFIGS_DIR"):
        Catalog(tmp_path).models()


def test_every_shipped_file_loads():
    catalog = Catalog(ROOT / "configs")
    assert {card.name for card in catalog.models()} == {
        "demo", "flux1-dev", "flux1-schnell", "flux2-klein-base-4b", "flux2-klein-4b", "sdxl"
    }  # fmt: skip
    assert [preset.name for preset in catalog.presets()] == ["quick", "balanced", "best"]
    assert len(catalog.templates()) == len(list((ROOT / "configs" / "generation").glob("*")))


def test_every_shipped_model_names_its_licence_page_and_where_it_comes_from():
    for card in Catalog(ROOT / "configs").models():
        assert card.licence_url.startswith("https://")
        assert card.repository or (ROOT / "isengard" / "assets" / str(card.path)).is_dir()


def test_a_shipped_model_that_trains_has_settings_of_its_own_in_every_preset():
    catalog = Catalog(ROOT / "configs")
    trained = {card.name for card in catalog.models() if card.trainable}
    assert all(preset.models.keys() == trained for preset in catalog.presets())
